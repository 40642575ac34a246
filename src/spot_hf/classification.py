"""Images in, classes out: what `spot-hf classify` does, on the pipeline."""

import itertools
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from .budgets import check_looks, check_one_budget, looks_of
from .coordinates.own import OWN_COORDINATES, read_own_coordinates
from .data.candidates import CandidateArguments
from .data.encoded import reason_of
from .data.failures import FailedImage, check_max_failed_share
from .data.files import URL, image_files
from .data.saliency import boxes_of_images
from .data.source import DECODE_HELP, check_decode_option
from .export.files import check_quantize, check_runtime
from .hub.loading import open_model
from .input_checks import check_outside
from .jobs.files import write_atomically
from .pipeline_spot_vit import SpotImageClassificationPipeline
from .placement import check_placement, check_takes_saliency, get_placement, scale_policy
from .zero_shot_pipeline import SpotZeroShotImageClassificationPipeline


logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class ClassifyArguments(CandidateArguments):
    model: str = field(metadata={"help": "A SpotViT classifier or zero-shot model: a directory or a Hub id."})
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a Hub id."})
    num_tokens: str | None = field(
        default=None,
        metadata={
            "help": "Tokens per image, or several, as 9,25,49: a look with each in turn, until the model is sure (default: "
            "what the model saved)."
        },
    )
    confidence: str | None = field(
        default=None,
        metadata={"help": "With several --num_tokens: how sure, such as 0.9, or one number for each look but the last."},
    )
    max_mean_tokens: float | None = field(
        default=None, metadata={"help": "Instead: the calibrated thresholds that averaged at most this many tokens per image."}
    )
    merge_tokens: float | None = field(
        default=None, metadata={"help": "Share of the tokens that merge inside the network (default: what the model saved)."}
    )
    placement: str | None = field(
        default=None, metadata={"help": "The prior that places them, module:function, or learned (default: the same)."}
    )
    coordinates: str | None = field(default=None, metadata={"help": OWN_COORDINATES})
    window_scales: str | None = field(
        default=None,
        metadata={
            "help": "Size of all windows, in patches, or cover: their areas sum to the image's (default: what the placement "
            "or the model says)."
        },
    )
    boxes_csv: str | None = field(
        default=None,
        metadata={
            "help": "CSV file of boxes around what is salient, with the columns image, x_min, y_min, x_max, y_max, in pixels: "
            "for the placements salient (the default with it) and inverse_salient."
        },
    )
    outside: str = field(
        default="warn", metadata={"help": "Coordinates that the model's crop removes: warn and keep, drop, or error."}
    )
    draw: str | None = field(
        default=None, metadata={"help": "Directory for pictures: each image with what the model sees of it."}
    )
    seed: int | None = field(default=None, metadata={"help": "Seed of random placements."})
    decode: str | None = field(default=None, metadata={"help": DECODE_HELP})
    compile: bool = field(
        default=False,
        metadata={"help": "Run the model through torch.compile: for many images, as the first batches take up to a minute."},
    )
    runtime: str = field(
        default="torch", metadata={"help": "torch, or onnx: the files that `spot-hf export` wrote beside the model's config."}
    )
    quantize: str | None = field(
        default=None, metadata={"help": "With --runtime onnx: int8 or float16, which of these files (default: float32)."}
    )
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
        self.check_candidates()
        self._check_runtime()
        looks = self.looks
        if isinstance(looks, list):
            check_looks(looks)
        check_one_budget(self.confidence, self.max_mean_tokens)
        if self.placement != "learned" and (self.placement is not None or looks is not None):
            for count in looks_of(looks):
                # Where only a placement is given, the model's saved default may say how many tokens: the processor knows.
                check_placement(self.placement or "isotropic", 1 if count is None else count)
            if self.coordinates is not None:
                raise ValueError("`coordinates` excludes `num_tokens` and `placement`; got both")
        check_outside(self.outside)
        check_decode_option(self.decode)
        if self.window_scales is not None:
            scale_policy(self.window_scales)
        is_salient = self.placement not in (None, "learned") and get_placement(self.placement).saliency  # type: ignore[arg-type]
        if is_salient and self.boxes_csv is None:
            raise ValueError(f"`placement` {self.placement!r} needs `boxes_csv`, or a saliency map in Python; got none")
        if self.boxes_csv is not None and self.coordinates is not None:
            raise ValueError(f"`boxes_csv` is for the placements salient and others; got `coordinates` {self.coordinates!r}")
        if self.boxes_csv is not None and self.placement is not None:
            check_takes_saliency("boxes_csv", self.placement)

    def _check_runtime(self) -> None:
        check_runtime(self.runtime)
        if self.runtime == "torch" and self.quantize is not None:
            raise ValueError(f"`quantize` is for `runtime` onnx; got {self.quantize!r} with {self.runtime!r}")
        if self.runtime == "onnx":
            check_quantize(self.quantize)
            for name in ("compile", "merge_tokens"):
                if getattr(self, name):
                    raise ValueError(f"`{name}` is for `runtime` torch; got {getattr(self, name)!r} with {self.runtime!r}")

    @property
    def looks(self) -> int | list[int] | None:
        """`num_tokens`, read; `ValueError` where it is neither a number nor several."""
        return _numbers("num_tokens", self.num_tokens, int)

    @property
    def budget(self) -> dict[str, Any]:
        """How many tokens, and when they are enough, as the pipeline takes it: what was given."""
        given = {
            "num_tokens": self.looks,
            "confidence": _numbers("confidence", self.confidence, float),
            "max_mean_tokens": self.max_mean_tokens,
            "merge_tokens": self.merge_tokens,
        }
        return {name: value for name, value in given.items() if value is not None}


def _numbers(name: str, value: Any, kind: type) -> Any:
    """A number, or a list of those that commas separate; anything but text unchanged."""
    if not isinstance(value, str):
        return value
    try:
        numbers = [kind(one) for one in value.split(",")]
    except ValueError:
        raise ValueError(f"`{name}` must be a number, or several, separated by commas; got {value!r}") from None
    return numbers if len(numbers) > 1 else numbers[0]


@dataclass
class Result:
    """Of one image: its classes and the positions that were used, or why it could not be read."""

    image: str
    predictions: list[dict[str, Any]] | None = None
    coordinates: list[list[float]] | None = None
    window_scales: list[float] | None = None  # where not all 1
    picture: str | None = None  # where it was drawn
    error: str | None = None


def run_classification(arguments: ClassifyArguments, images: Sequence[str]) -> int:
    """
    Prints the classes of images as they come: all that can be read.

    Args:
        arguments ([`ClassifyArguments`]): how.
        images: paths of files, or of directories, which are searched with all their folders; and URLs.

    Returns:
        `int`: the exit status: 1 where more than `max_failed_share` of the images could not be read, else 0.

    Raises:
        `ValueError`: an argument is wrong. `OSError`: no such model.
    """
    arguments.check()
    names = list(image_files(images))
    failed = print_results(classify_images(arguments, names), arguments.json)  # each failure is named when it comes
    if arguments.draw is not None and not arguments.json:
        print(f"pictures written to {arguments.draw}")
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
    tokens: dict[str, dict[str, Any]] = {}  # of an image
    if arguments.coordinates is not None:
        tokens = read_own_coordinates(arguments.coordinates, names)
    elif arguments.boxes_csv is not None:
        boxes = boxes_of_images(arguments.boxes_csv, names)
        tokens = {name: {"boxes": own} for name, own in zip(names, boxes, strict=True)}
    classifier = _load(arguments)
    given = {name: getattr(arguments, name) for name in ("placement", "seed", "top_k", "outside")}
    parameters = {**{name: value for name, value in given.items() if value is not None}, **arguments.budget}
    if arguments.window_scales is not None:
        parameters["window_scales"] = scale_policy(arguments.window_scales)
    if arguments.boxes_csv is not None:
        parameters.setdefault("placement", "salient")
    pictures = _Pictures(arguments.draw, classifier.image_processor) if arguments.draw is not None else None
    for start in range(0, len(names), arguments.batch_size):
        results, inputs = [], []
        for name in names[start : start + arguments.batch_size]:
            result = Result(name)
            try:
                inputs.append({"image": _read(name, classifier.image_processor), **tokens.get(name, {})})
            except Exception as error:  # whatever a decoder or a server makes of a broken image
                result.error = reason_of(error)
            results.append(result)
        outputs = iter(
            classifier(inputs, batch_size=arguments.batch_size, return_coordinates=True, **parameters) if inputs else []
        )
        read = iter(inputs)
        for result in results:
            if result.error is None:
                output = next(outputs)
                result.predictions, result.coordinates = output["predictions"], output["coordinates"]
                result.window_scales = output.get("window_scales")
                if pictures is not None:
                    result.picture = str(pictures.draw(result, next(read)["image"]))
            yield result


class _Pictures:
    """Draws what the model sees of images into a directory, each under a name of its own."""

    def __init__(self, directory: str, image_processor: Any):
        self.directory, self.image_processor = Path(directory), image_processor
        if self.directory.exists() and not self.directory.is_dir():
            raise ValueError(f"`draw` must be a directory; {directory!r} is a file")
        self.taken: set[str] = set()

    def draw(self, result: Result, image: Any) -> Path:
        coordinates = self.image_processor.to_model_frame(np.array(result.coordinates, dtype=np.float32), image.size)
        inputs = {"coordinates": coordinates[None]}
        if result.window_scales is not None:
            inputs["window_scales"] = np.array([result.window_scales])
        stem = Path(urlsplit(result.image).path if result.image.startswith(URL) else result.image).stem or "image"
        names = (f"{stem}{suffix}.png" for suffix in itertools.chain([""], (f"_{number}" for number in itertools.count(2))))
        path = self.directory / next(name for name in names if name not in self.taken)
        self.taken.add(path.name)
        with write_atomically(path) as file:
            self.image_processor.draw(image, inputs).save(file, format="PNG")
        return path


def _read(name: str, image_processor: Any) -> Any:
    """Decoded: `PIL.Image`, or [`DecodedImage`]."""
    if not name.startswith(URL) and not Path(name).is_file():
        raise FileNotFoundError("no such file")
    return image_processor.open_image(name, timeout=30)


def _load(arguments: ClassifyArguments) -> SpotImageClassificationPipeline:
    source = open_model(arguments.model, arguments.revision).among(arguments)
    source.check_candidates()
    source.check_classifier()
    if arguments.runtime == "onnx" and source.candidates is not None:
        raise ValueError(f"`runtime` onnx is for models with classes of their own; `model` {arguments.model!r} is zero-shot")
    # By the class: `pipeline` would run the repository's copy of this package's own pipeline.
    image_processor = source.load_image_processor(arguments.decode)
    if source.candidates is not None:
        return SpotZeroShotImageClassificationPipeline(
            model=source.load_zero_shot(),
            tokenizer=source.load_tokenizer(),
            image_processor=image_processor,
            compile=arguments.compile,
            candidate_labels=source.candidates.labels,
            hypothesis_template=source.candidates.template,
        )
    if arguments.runtime == "onnx":
        from .export.runtime import OnnxSpotViT

        exported: Any = OnnxSpotViT.from_pretrained(source.name, revision=source.revision, quantize=arguments.quantize)
        return SpotImageClassificationPipeline(model=exported, image_processor=image_processor)
    return SpotImageClassificationPipeline(model=source.load(), image_processor=image_processor, compile=arguments.compile)


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
        **({} if result.window_scales is None else {"window_scales": result.window_scales}),
        **({} if result.picture is None else {"picture": result.picture}),
    }
