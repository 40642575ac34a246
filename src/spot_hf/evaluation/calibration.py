"""`spot-hf calibrate`: when is a model sure? Picks the confidence with which an image needs no further look.

Each look's logits get a temperature (Guo et al. 2017, "On Calibration of Modern Neural Networks"), so that confidences after
different looks can be compared. Of all thresholds, those are kept with which the images of one split are expected to be
classified best for what they cost; expected by the confidences, as there are few mistakes to count. What they come to is
measured on another split.
"""

import itertools
import logging
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import ModelCard
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from tqdm import tqdm

from ..budgets import check_looks
from ..configuration_spot_vit import MODEL_PLACEMENTS
from ..data.batches import FailureCount, Preparation, batches_of, work_of
from ..data.failures import describe_failures
from ..data.labels import LabelledSource, match_labels
from ..data.source import load_images, parts_overlap, pinned
from ..golden import GOLDEN_FILE
from ..hub.cards import with_section
from ..hub.loading import open_model
from ..hub.models import REQUIREMENTS_FILE, save_model
from ..jobs.files import check_output_dir, write_atomically
from ..jobs.process import default_device
from ..jobs.versions import public_name
from ..modeling_spot_vit import SpotViTForImageClassification
from .intervals import CONFIDENCE, Accuracy, Difference


MAX_TRIALS = 30_000  # combinations of thresholds
MAX_POINTS = 12  # that are kept, about

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class CalibrateArguments(LabelledSource):
    model: str = field(metadata={"help": "The SpotViT classifier: a directory or a Hub id."})
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of its Hub id."})
    dataset_name: str = field(metadata={"help": "digits, a Hub id, or a directory that load_dataset reads."})
    eval_dataset_split: str | None = field(
        default=None,
        metadata={
            "help": "Split to report on (default: every second image of --dataset_split, which then does not calibrate)."
        },
    )
    num_tokens: list[int] = field(
        default_factory=lambda: [9, 25, 49, 196], metadata={"help": "Tokens of each look, ascending."}
    )
    placement: str | None = field(
        default=None, metadata={"help": f"{', '.join(MODEL_PLACEMENTS)} (default: the model's own)."}
    )
    accuracy: float | None = field(
        default=None, metadata={"help": "Top-1 in percent to reach, as cheaply as can be. This or --mean_tokens."}
    )
    mean_tokens: float | None = field(
        default=None, metadata={"help": "Tokens per image, of all its looks, to spend at most on average, as well as can be."}
    )
    batch_size: int = field(default=50, metadata={"help": "Images per forward pass."})
    num_workers: int = field(default=1, metadata={"help": "Processes that decode ahead."})
    output_dir: str | None = field(
        default=None, metadata={"help": "Where the calibrated model is written (default: into the directory of --model)."}
    )

    def check(self) -> None:
        """`ValueError` for what cannot be, before anything is loaded."""
        self.check_source(needs_labels=True)
        check_looks(self.num_tokens)
        if (self.accuracy is None) == (self.mean_tokens is None):
            got = "neither" if self.accuracy is None else "both"
            raise ValueError(f"`accuracy` or `mean_tokens` says what to calibrate for, one of them; got {got}")
        if self.accuracy is not None and not 0 < self.accuracy <= 100:
            raise ValueError(f"`accuracy` must be in percent, above 0 and at most 100; got {self.accuracy}")
        if self.mean_tokens is not None and not self.mean_tokens >= self.num_tokens[0]:
            raise ValueError(
                f"`mean_tokens` must be at least those of the first look, {self.num_tokens[0]}; got {self.mean_tokens}"
            )
        if self.placement is not None and self.placement not in MODEL_PLACEMENTS:
            raise ValueError(f"`placement` must be one of {', '.join(MODEL_PLACEMENTS)}; got {self.placement!r}")
        for name, least in (("batch_size", 1), ("num_workers", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"`{name}` must be at least {least}; got {getattr(self, name)}")
        if self.output_dir is not None:
            check_output_dir(self.output_dir, False, [self.model, self.dataset_name])
        elif not Path(self.model).expanduser().is_dir():
            raise ValueError(f"`output_dir` is needed: `model` {self.model!r} is no directory to write to; got none")


@dataclass(frozen=True)
class Point:
    """Thresholds, one for each look but the last, and what they came to on the split that they were picked on."""

    confidence: list[float]
    mean_tokens: float
    accuracy: float  # in percent


@dataclass(frozen=True)
class Looks:
    """All looks at the images of a split, whether they need them or not."""

    logits: np.ndarray  # (num_looks, num_images, num_labels), float32
    labels: np.ndarray  # (num_images,)

    def part(self, rows: np.ndarray | slice) -> "Looks":
        return Looks(self.logits[:, rows], self.labels[rows])

    @property
    def correct(self) -> np.ndarray:
        """`(num_looks, num_images)`, bool."""
        return self.logits.argmax(-1) == self.labels

    def confidence(self, temperature: list[float]) -> np.ndarray:
        """`(num_looks, num_images)`: the largest probability, float32 as the model computes it."""
        return softmax(self.logits / np.array(temperature, dtype=np.float32)[:, None, None], axis=-1).max(-1)

    def temperatures(self) -> list[float]:
        """One per look, with which the labels' cross-entropy is least."""
        rows = np.arange(len(self.labels))

        def cross_entropy(log_temperature: float, logits: np.ndarray) -> float:
            return -log_softmax(logits / np.exp(log_temperature), axis=-1)[rows, self.labels].mean()

        return [
            float(np.exp(minimize_scalar(cross_entropy, bounds=(-3, 3), args=(one,), method="bounded").x))
            for one in self.logits
        ]


def run_calibration(arguments: CalibrateArguments, *, command: str | None = None) -> dict[str, Any]:
    """
    Calibrates a model's budgets, measures them, and writes both into its config and onto its card: it then decides by itself
    how many tokens an image needs.

    Args:
        arguments ([`CalibrateArguments`]): what to do.
        command (`str`, *optional*): how this was started, for the record.

    Returns:
        `dict`: `calibration` of the model's config.

    Raises:
        `ValueError`: an argument that cannot be, or an accuracy out of reach. `OSError`: no such model or data set, or too
            many images that cannot be read.
    """
    arguments.check()
    arguments = pinned(arguments)
    source = open_model(arguments.model, arguments.revision)
    source.check_classifier()
    images, others = _images_of(arguments)
    model: Any = source.load().to(default_device())
    image_processor = source.load_image_processor()
    if arguments.placement is not None:
        model.config.placement = arguments.placement
    split, first = str(images.split), _look(arguments, model, image_processor, images)
    if others is not None:
        second, splits = _look(arguments, model, image_processor, others), (split, str(others.split))
    elif len(first.labels) < 2:
        raise ValueError(f"`dataset_split` must have at least 2 images; {split!r} has {len(first.labels)}")
    else:
        first, second = first.part(slice(0, None, 2)), first.part(slice(1, None, 2))
        splits = f"{split}, every second image", f"{split}, the other images"
    temperature = first.temperatures()
    points = frontier(first, temperature, arguments.num_tokens)
    chosen = _choose(points, arguments)
    points = thinned(points, chosen)
    measured = [_measure(second, temperature, arguments.num_tokens, point) for point in points]
    there = measured[points.index(chosen)]
    if arguments.accuracy is not None and there["accuracy_high"] < arguments.accuracy:
        logger.warning(
            f"on the images to measure on, the accuracy is {there['accuracy']:.1f} % ({there['accuracy_low']:.1f} to "
            f"{there['accuracy_high']:.1f}), below the {arguments.accuracy:g} % that was asked for, and reached where "
            "thresholds were picked"
        )
    calibration = {
        "num_tokens": list(arguments.num_tokens),
        "temperature": temperature,
        "points": [asdict(point) for point in points],
        "dataset_name": public_name(arguments.dataset_name),
        "dataset_split": splits[0],
        "num_images": len(first.labels),
        "evaluation": {
            "dataset_split": splits[1],
            "num_images": len(second.labels),
            "points": measured,
            "fixed": [vars(Accuracy.of(one)) for one in second.correct],
        },
        **({} if command is None else {"command": command}),
    }
    _write(arguments, model, image_processor, calibration, points.index(chosen))
    return calibration


def _images_of(arguments: CalibrateArguments) -> tuple[Any, Any]:
    """Of the split that thresholds are picked on, and of that which they are measured on, where it is another one.
    `ValueError` where the two have some in common."""
    images: Any = load_images(arguments.source())
    if arguments.eval_dataset_split is None:
        return images, None
    others: Any = load_images(arguments.source(dataset_split=arguments.eval_dataset_split))
    name, other = str(images.split), str(others.split)
    if parts_overlap(name, other):
        raise ValueError(f"`eval_dataset_split` must have no images of `dataset_split`; got {other!r} and {name!r}")
    return images, others


def _look(arguments: CalibrateArguments, model: SpotViTForImageClassification, image_processor: Any, images: Any) -> Looks:
    """With every number of tokens at every image that can be read."""
    mapping = match_labels(images.features["label"], model.config, arguments)
    mapping.of(images)
    failures = FailureCount(arguments.max_failed_share, len(images))
    work = work_of(range(len(images)), arguments.batch_size)
    logits: list[list[np.ndarray]] = [[] for _ in arguments.num_tokens]
    labels: list[int] = []
    with tqdm(total=len(images), desc=f"looks at {images.split}", unit="image") as progress, torch.inference_mode():
        preparation = Preparation(images, image_processor)
        for batch in batches_of(preparation, work, arguments.num_workers, failures):
            progress.update(batch.num_images)
            if batch.pixel_values is None:
                continue
            labels += batch.labels(mapping).tolist()
            pixel_values = batch.pixel_values.to(model.device)
            for found, num_tokens in zip(logits, arguments.num_tokens, strict=True):
                found.append(model(pixel_values, num_tokens=num_tokens).logits.float().cpu().numpy())
    if failures.failed:
        logger.info(describe_failures(failures.failed))
    if not labels:
        raise ValueError(f"`dataset_split` must have images; {str(images.split)!r} has none")
    return Looks(np.stack([np.concatenate(found) for found in logits]), np.array(labels))


def frontier(looks: Looks, temperature: list[float], num_tokens: list[int]) -> list[Point]:
    """The thresholds, from the cheapest to the most expensive, than which none are expected to be better for less."""
    confidence, correct = looks.confidence(temperature), looks.correct
    cost = np.cumsum(num_tokens)
    num_thresholds = len(num_tokens) - 1
    num_levels = int(MAX_TRIALS ** (1 / num_thresholds))
    levels = [np.unique(np.quantile(one, np.linspace(0, 1, num_levels))) for one in confidence[:-1]]
    trials = []
    for thresholds in itertools.product(*levels):
        last = last_look(confidence, thresholds)
        rows = np.arange(len(last))
        trials.append((cost[last].mean(), -confidence[last, rows].mean(), thresholds))
    kept: list[Point] = []
    best = np.inf
    for mean_tokens, negative, thresholds in sorted(trials):
        if negative < best:
            best, last = negative, last_look(confidence, thresholds)
            accuracy = 100 * correct[last, np.arange(len(last))].mean()
            kept.append(Point([float(one) for one in thresholds], float(mean_tokens), float(accuracy)))
    return kept


def thinned(points: list[Point], chosen: Point) -> list[Point]:
    """About `MAX_POINTS` of a frontier, evenly in the logarithm of their cost, the chosen one among them."""
    costs = np.log([point.mean_tokens for point in points])
    wanted = np.linspace(costs[0], costs[-1], MAX_POINTS)
    kept = {points.index(chosen), *(int(np.abs(costs - one).argmin()) for one in wanted)}
    return [points[i] for i in sorted(kept)]


def last_look(confidence: np.ndarray, thresholds: Any) -> np.ndarray:
    """Of each image, with which look it stops, `(num_images,)`; `confidence` `(num_looks, num_images)`."""
    sure = confidence[:-1] >= np.asarray(thresholds, dtype=confidence.dtype)[:, None]
    return np.where(sure.any(0), sure.argmax(0), len(confidence) - 1)


def _choose(points: list[Point], arguments: CalibrateArguments) -> Point:
    if arguments.mean_tokens is not None:
        affordable = [point for point in points if point.mean_tokens <= arguments.mean_tokens]
        if not affordable:
            raise ValueError(f"`mean_tokens` must be at least {points[0].mean_tokens:.1f} here; got {arguments.mean_tokens}")
        return affordable[-1]
    assert arguments.accuracy is not None
    good = [point for point in points if point.accuracy >= arguments.accuracy]
    if not good:
        best = max(points, key=lambda point: point.accuracy)
        raise ValueError(
            f"`accuracy` must be at most {best.accuracy:.2f}, which {best.mean_tokens:.1f} tokens per image give; got "
            f"{arguments.accuracy}"
        )
    return good[0]


def _measure(looks: Looks, temperature: list[float], num_tokens: list[int], point: Point) -> dict[str, float]:
    """What thresholds come to on other images: accuracy and cost with 95 % intervals, difference to the last look."""
    last = last_look(looks.confidence(temperature), point.confidence)
    correct = looks.correct
    right = correct[last, np.arange(len(last))]
    spent = np.cumsum(num_tokens)[last]
    means = np.random.default_rng(0).choice(spent, (1000, len(spent))).mean(1)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    accuracy, difference = Accuracy.of(right), Difference.of(correct[-1], right)
    return {
        "accuracy": accuracy.value,
        "accuracy_low": accuracy.low,
        "accuracy_high": accuracy.high,
        "mean_tokens": float(spent.mean()),
        "mean_tokens_low": float(low),
        "mean_tokens_high": float(high),
        "difference_to_last_look": difference.value,
        "difference_low": difference.low,
        "difference_high": difference.high,
    }


# --------------------------------------------------------------------------------------------------- config and card


def _write(arguments: CalibrateArguments, model: Any, image_processor: Any, calibration: dict[str, Any], chosen: int) -> None:
    """Into the model's config and onto its card."""
    directory = Path(arguments.output_dir or arguments.model).expanduser()
    model.config.num_tokens = calibration["num_tokens"]
    model.config.confidence = calibration["points"][chosen]["confidence"]
    model.config.calibration = calibration
    given = {name: getattr(image_processor, name) for name in ("num_tokens", "placement", "window_scales")}
    if any(value is not None for value in given.values()):
        logger.info("the image processor no longer places tokens by default (%s): the model does", given)
        for name in given:
            setattr(image_processor, name, None)
    if arguments.output_dir is not None:
        save_model(model, image_processor, directory, repo_id=public_name(arguments.model))
    else:
        _update(directory, model, image_processor)
    text = "\n".join(_section(calibration, chosen, model.config.placement))
    card_path = directory / "README.md"
    if card_path.is_file():
        card = ModelCard.load(card_path)
        with write_atomically(card_path) as file:
            body = with_section(card.text.strip(), "budgets", f"## Budget per image\n\n{text}")
            file.write(f"---\n{card.data.to_yaml()}\n---\n\n{body}\n".encode())
    logger.info(text)
    logger.info("\nwritten to %s: config.json%s", directory, ", README.md" if card_path.is_file() else "")


def _update(directory: Path, model: Any, image_processor: Any) -> None:
    """Of a model's directory all but the weights and the card: also the code, which an earlier version may have written and
    remote code runs, and what an endpoint has to install, where nothing says that. The config comes last."""
    with tempfile.TemporaryDirectory() as folder:
        save_model(model, image_processor, folder, repo_id=directory.name)
        files = [
            *sorted(Path(folder).glob("*.py")),
            *([] if (directory / REQUIREMENTS_FILE).exists() else [Path(folder) / REQUIREMENTS_FILE]),
            *(Path(folder) / name for name in ("preprocessor_config.json", GOLDEN_FILE, "config.json")),
        ]
        for path in files:
            with write_atomically(directory / path.name) as file:
                file.write(path.read_bytes())


def _section(calibration: dict[str, Any], chosen: int, placement: str) -> list[str]:
    """Markdown lines."""
    counts, evaluation = calibration["num_tokens"], calibration["evaluation"]
    fixed = ", ".join(f"{count} tokens {one['value']:.1f}" for count, one in zip(counts, evaluation["fixed"], strict=True))
    lines = [
        f"The model looks at an image with {', '.join(map(str, counts))} tokens in turn ({placement}, windows that cover), "
        f"until it is sure. Thresholds were picked on {calibration['num_images']} images of `{calibration['dataset_name']}`, "
        f"split `{calibration['dataset_split']}`, and measured on {evaluation['num_images']}, "
        f"`{evaluation['dataset_split']}`. An image costs all of its looks. In brackets: 95 % intervals.",
        "",
        "| sure at | tokens per image | top-1, % | vs. last look at every image (points, paired) | `max_mean_tokens` | |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for number, (point, measured) in enumerate(zip(calibration["points"], evaluation["points"], strict=True)):
        lines.append(
            f"| {', '.join(f'{one:.3f}' for one in point['confidence'])} | {measured['mean_tokens']:.1f} "
            f"({measured['mean_tokens_low']:.1f} to {measured['mean_tokens_high']:.1f}) | {measured['accuracy']:.1f} "
            f"({measured['accuracy_low']:.1f} to {measured['accuracy_high']:.1f}) | "
            f"{measured['difference_to_last_look']:+.1f} ({measured['difference_low']:+.1f} to "
            f"{measured['difference_high']:+.1f}) | {point['mean_tokens']:.1f} | {'**saved**' if number == chosen else ''} |"
        )
    lines += ["", f"The same images with one budget for all, top-1 in percent: {fixed}."]
    lines += [
        "",
        "`max_mean_tokens=` picks another row, by its cost on the images that thresholds were picked on.",
    ]
    if "command" in calibration:
        lines += ["", "```", calibration["command"], "```"]
    return lines
