"""Images in, classes out: what `spot-hf classify` does, on the pipeline."""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from transformers.image_utils import load_image

from .hub.loading import check_classifier, load_image_processor, load_spot_vit, load_spot_vit_config
from .image_processing_spot_vit import check_coordinates
from .pipeline_spot_vit import SpotImageClassificationPipeline
from .placement import PLACEMENTS, check_placement


IMAGE_SUFFIXES = tuple(sorted(suffix for suffix, name in Image.registered_extensions().items() if name in Image.OPEN))


URL = ("http://", "https://")


@dataclass
class Result:
    """Of one image: its classes and the positions that were used, or why it could not be read."""

    image: str
    predictions: list[dict[str, Any]] | None = None
    coordinates: list[list[float]] | None = None
    error: str | None = None


def classify_images(
    model: str,
    images: Sequence[str],
    *,
    revision: str | None = None,
    num_tokens: int | None = None,
    placement: str | None = None,
    coordinates_file: str | None = None,
    seed: int | None = None,
    top_k: int = 5,
    batch_size: int = 8,
) -> Iterator[Result]:
    """
    Classifies images one batch after another.

    Args:
        model (`str`): directory or Hub id of a SpotViT classifier.
        images: paths of files or directories, and URLs.
        revision (`str`, *optional*): of a Hub id.
        num_tokens (`int`, *optional*), placement (`str`, *optional*), seed (`int`, *optional*): as in the pipeline.
        coordinates_file (`str`, *optional*): JSON: a list of `[x, y]`, or an object from an image's name (as it is
            listed, or its file name) to such a list.
        top_k (`int`): classes per image.
        batch_size (`int`): images per forward pass, which may differ in their number of tokens.

    Yields:
        [`Result`], in the order of the images. One that cannot be read has an `error`.

    Raises:
        `ValueError`: an argument is wrong. `OSError`: no such model.
    """
    if placement is not None or num_tokens is not None:
        # Where only a placement is given, the model's saved default may say how many tokens: the processor knows.
        check_placement(placement or "isotropic", 1 if num_tokens is None else num_tokens)
    if placement is not None and PLACEMENTS[placement].saliency:
        raise ValueError(f"`placement` {placement!r} needs a saliency map per image: use the Python pipeline")
    if coordinates_file is not None and (placement is not None or num_tokens is not None):
        raise ValueError("`coordinates` excludes `num_tokens` and `placement`; got both")
    names = list(_expand(images))
    positions = _read_coordinates(coordinates_file, names) if coordinates_file else {}
    return _classify(model, revision, names, positions, batch_size, {
        "num_tokens": num_tokens, "placement": placement, "seed": seed, "top_k": top_k,
    })  # fmt: skip


def _classify(model, revision, names, positions, batch_size, parameters) -> Iterator[Result]:
    classifier = _load(model, revision)
    parameters = {name: value for name, value in parameters.items() if value is not None}
    for start in range(0, len(names), batch_size):
        results, inputs = [], []
        for name in names[start : start + batch_size]:
            result = Result(name)
            try:
                own = {"coordinates": positions[name]} if name in positions else {}
                if not name.startswith(URL) and not Path(name).is_file():
                    raise FileNotFoundError("no such file")
                inputs.append({"image": load_image(name, timeout=30), **own})
            except Exception as error:  # whatever a decoder or a server makes of a broken image
                reason = str(error).strip().splitlines()
                result.error = f"{type(error).__name__}: {reason[0] if reason else 'no reason given'}"
            results.append(result)
        outputs = iter(classifier(inputs, batch_size=batch_size, return_coordinates=True, **parameters) if inputs else [])
        for result in results:
            if result.error is None:
                output = next(outputs)
                result.predictions, result.coordinates = output["predictions"], output["coordinates"]
            yield result


def _load(model: str, revision: str | None) -> SpotImageClassificationPipeline:
    check_classifier(model, load_spot_vit_config(model, revision))
    # By the class: `pipeline` would run the repository's copy of this package's own pipeline.
    return SpotImageClassificationPipeline(
        model=load_spot_vit(model, revision), image_processor=load_image_processor(model, revision)
    )


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


def _read_coordinates(file: str, names: list[str]) -> dict[str, Any]:
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


def print_results(results: Iterator[Result], as_json: bool = False) -> int:
    """Prints results as they come, errors to stderr, and returns the number of images that could not be read."""
    failed = 0
    for count, result in enumerate(results):
        if result.error is not None:
            failed += 1
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
