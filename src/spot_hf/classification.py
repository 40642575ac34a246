"""Images in, classes out: what `spot-hf classify` does, on the pipeline."""

import json
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from transformers.image_utils import load_image

from .data.encoded import reason_of
from .data.failures import FailedImage, check_max_failed_share
from .hub.loading import open_model
from .image_processing_spot_vit import check_coordinates
from .pipeline_spot_vit import SpotImageClassificationPipeline
from .placement import check_placement, get_placement


IMAGE_SUFFIXES = tuple(sorted(suffix for suffix, name in Image.registered_extensions().items() if name in Image.OPEN))
URL = ("http://", "https://")

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class ClassifyArguments:
    model: str = field(metadata={"help": "A SpotViT classifier: a directory or a Hub id."})
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a Hub id."})
    num_tokens: int | None = field(default=None, metadata={"help": "Tokens per image (default: what the model saved)."})
    placement: str | None = field(default=None, metadata={"help": "The prior that places them (default: the same)."})
    coordinates: str | None = field(
        default=None,
        metadata={"help": "JSON file: one list of [x, y] for all images, or an object from image name to such a list."},
    )
    seed: int | None = field(default=None, metadata={"help": "Seed of random placements."})
    top_k: int = field(default=5, metadata={"help": "Classes per image."})
    batch_size: int = field(default=8, metadata={"help": "Images per forward pass."})
    max_failed_share: float = field(
        default=0.01,
        metadata={"help": "Images that cannot be read are named and skipped; above this share, the exit status is 1."},
    )
    json: bool = field(default=False, metadata={"help": "Print JSON instead of a table."})

    def check(self) -> None:
        """`ValueError` for what cannot be, before anything is loaded."""
        for name in ("top_k", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1; got {getattr(self, name)}")
        check_max_failed_share(self.max_failed_share)
        if self.placement is not None or self.num_tokens is not None:
            # Where only a placement is given, the model's saved default may say how many tokens: the processor knows.
            check_placement(self.placement or "isotropic", 1 if self.num_tokens is None else self.num_tokens)
            if self.coordinates is not None:
                raise ValueError("`coordinates` excludes `num_tokens` and `placement`; got both")
        if self.placement is not None and get_placement(self.placement).saliency:
            raise ValueError(f"`placement` {self.placement!r} needs a saliency map per image: use the Python pipeline")


@dataclass
class Result:
    """Of one image: its classes and the positions that were used, or why it could not be read."""

    image: str
    predictions: list[dict[str, Any]] | None = None
    coordinates: list[list[float]] | None = None
    error: str | None = None


def run_classification(arguments: ClassifyArguments, images: Sequence[str]) -> int:
    """
    Prints the classes of images as they come: all that can be read.

    Args:
        arguments ([`ClassifyArguments`]): how.
        images: paths of files or directories, and URLs.

    Returns:
        `int`: the exit status: 1 where more than `max_failed_share` of the images could not be read, else 0.

    Raises:
        `ValueError`: an argument is wrong. `OSError`: no such model.
    """
    arguments.check()
    names = list(_expand(images))
    failed = print_results(classify_images(arguments, names), arguments.json)  # each failure is named when it comes
    if failed and len(names) > 1:
        print(f"{len(failed)} of {len(names)} images could not be read", file=sys.stderr)
    return int(len(failed) > arguments.max_failed_share * len(names))


def classify_images(arguments: ClassifyArguments, names: Sequence[str]) -> Iterator[Result]:
    """
    Classifies images one batch after another.

    Args:
        arguments ([`ClassifyArguments`]): how; checked.
        names: paths of files, and URLs.

    Yields:
        [`Result`], in the order of the images. One that cannot be read has an `error`.
    """
    positions = _read_coordinates(arguments.coordinates, names) if arguments.coordinates else {}
    classifier = _load(arguments.model, arguments.revision)
    given = {name: getattr(arguments, name) for name in ("num_tokens", "placement", "seed", "top_k")}
    parameters = {name: value for name, value in given.items() if value is not None}
    for start in range(0, len(names), arguments.batch_size):
        results, inputs = [], []
        for name in names[start : start + arguments.batch_size]:
            result = Result(name)
            own = {"coordinates": positions[name]} if name in positions else {}
            try:
                inputs.append({"image": _read(name), **own})
            except Exception as error:  # whatever a decoder or a server makes of a broken image
                result.error = reason_of(error)
            results.append(result)
        outputs = iter(
            classifier(inputs, batch_size=arguments.batch_size, return_coordinates=True, **parameters) if inputs else []
        )
        for result in results:
            if result.error is None:
                output = next(outputs)
                result.predictions, result.coordinates = output["predictions"], output["coordinates"]
            yield result


def _read(name: str) -> Image.Image:
    if not name.startswith(URL) and not Path(name).is_file():
        raise FileNotFoundError("no such file")
    return load_image(name, timeout=30)


def _load(model: str, revision: str | None) -> SpotImageClassificationPipeline:
    source = open_model(model, revision)
    source.check_classifier()
    # By the class: `pipeline` would run the repository's copy of this package's own pipeline.
    return SpotImageClassificationPipeline(model=source.load(), image_processor=source.load_image_processor())


def _expand(images: Sequence[str]) -> Iterator[str]:
    """Directories become the images in them, by name."""
    for name in images:
        if not name.startswith(URL) and Path(name).is_dir():
            files = sorted(str(path) for path in Path(name).iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
            if not files:
                raise ValueError(f"`images`: the directory {name!r} holds no image files")
            yield from files
        else:
            yield name


def _read_coordinates(file: str, names: Sequence[str]) -> dict[str, Any]:
    try:
        value = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"`coordinates` must be a JSON file; {file!r}: {error}") from None
    if isinstance(value, list):
        sets, one_set = check_coordinates(value)
        if not one_set:
            raise ValueError(f"`coordinates` {file!r} must be one list of [x, y], or an object from image name to such a list")
        return dict.fromkeys(names, sets[0].tolist())
    if not isinstance(value, dict):
        raise ValueError(f"`coordinates` {file!r} must be a list or an object; got {type(value).__name__}")
    found = {name: value.get(name, value.get(Path(name).name)) for name in names}
    absent = [name for name, own in found.items() if own is None]
    if absent:
        raise ValueError(
            f"`coordinates` {file!r} has no entry for {absent[0]!r}" + (f" and {len(absent) - 1} more" if absent[1:] else "")
        )
    for own in found.values():
        check_coordinates(own)
    return found


def print_results(results: Iterator[Result], as_json: bool = False) -> list[FailedImage]:
    """Prints results as they come, errors to stderr, and returns the images that could not be read."""
    failed = []
    for count, result in enumerate(results):
        if result.error is not None:
            failed.append(FailedImage(count, result.image, result.error))
            print(f"{result.image}: {result.error}", file=sys.stderr)
        if as_json:
            print("[" if count == 0 else ",\n ", json.dumps(_as_json(result)), end="")
            continue
        if count == 0:
            print(f"{'image':<40} {'tokens':>6}  {'score':>6}  label")
        for i, prediction in enumerate(result.predictions or []):
            name = result.image if len(result.image) <= 40 else "..." + result.image[-37:]
            head = f"{name:<40} {len(result.coordinates or []):>6}" if i == 0 else " " * 47
            print(f"{head}  {prediction['score']:>6.3f}  {prediction['label']}")
    if as_json:
        print(" ]")
    return failed


def _as_json(result: Result) -> dict[str, Any]:
    if result.error is not None:
        return {"image": result.image, "error": result.error}
    return {
        "image": result.image,
        "num_tokens": len(result.coordinates or []),
        "predictions": result.predictions,
        "coordinates": result.coordinates,
    }
