"""What coordinates are worth to a model: accuracy at the positions that another model's oracle found. Mean IoU, of a model
that segments, is `segmentation_transfer`'s."""

import json
import logging
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from tqdm import tqdm

from ..coordinates.joining import join_readable
from ..coordinates.loading import load_coordinates
from ..coordinates.records import load_record
from ..data.batches import model_saliency
from ..data.corruptions import check_view_size, of_views
from ..data.encoded import EncodedImage, encoded, encoded_image
from ..data.failures import FailedImage, UnreadableImageError, check_failures, describe_failures
from ..data.labels import LabelMapping, likeliest_class, match_labels
from ..data.source import load_images, pinned, with_boxes
from ..hub.loading import ModelSource, open_model
from ..jobs.files import write_atomically
from ..jobs.process import default_device
from ..jobs.versions import hub_commit, public_name
from ..oracle.arguments import DTYPES
from ..placement import edge_saliency, generator_for, grid, scale_policy, scales_of, uniform
from .analysis import PositionFigures, analysis_table, describe_positions, means
from .arguments import TransferArguments
from .intervals import Accuracy, Difference


# Of one image: what each set of positions is.
POSITIONS = {
    "initial": "where the search began",
    "shared": "best positions that the other model's oracle found",
    "snapped": "the same, each moved to the centre of the nearest grid cell",
    "control": "where the search began, moved as another image's positions were: what a gain owes to moving alone",
}

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Transferred(ABC):
    """
    What `transfer.json` holds of models of any task.

    Attributes:
        model, coordinates, config, dataset, split (`str`): what was measured; revision, coordinates_revision,
            dataset_revision (`str`, *optional*): their commits.
        num_images, num_tokens (`int`); saliency (`str`): which the analysis takes.
        window_scales (`str`, *optional*): of all windows; `None`: each set of positions has those with which it was found.
        analysis (`dict`): name of `POSITIONS`, or `"random"` → [`PositionFigures`].
        failed (`list`): images that could not be read.
        corruption (`str`, *optional*), found_under (`str`, *optional*): how the images were corrupted, such as `"fog 3"`, on
            which positions were measured, and for which they were found. `None`: as they are; or nothing says what they were
            found for.
    """

    model: str
    revision: str | None
    coordinates: str
    coordinates_revision: str | None
    config: str
    dataset: str
    dataset_revision: str | None
    split: str
    num_images: int
    num_tokens: int
    saliency: str
    analysis: dict[str, PositionFigures]
    failed: list[FailedImage]
    corruption: str | None = None
    found_under: str | None = None
    window_scales: str | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def heading(self) -> str:
        """What was measured: the first line of the table."""
        scales = "" if self.window_scales is None else f", window scales {self.window_scales}"
        shifted = self.found_under or self.corruption
        return (
            f"{self.model} at the positions of {self.coordinates} {self.config}: {self.num_tokens} tokens{scales}, "
            f"{self.num_images} images of {self.dataset}, {self.split}"
            + (f"; positions found on {_kind(self.found_under)}, measured on {_kind(self.corruption)}" if shifted else "")
        )

    @abstractmethod
    def table(self) -> str:
        """Markdown."""


@dataclass(kw_only=True)
class TransferResult(Transferred):
    """
    Of a classifier.

    Attributes:
        among_labels (`bool`): whether images were classified among the classes that occur.
        accuracy (`dict`): name of `POSITIONS` → [`Accuracy`].
        difference_to_initial (`dict`): name of `POSITIONS` → [`Difference`]; difference_to_control ([`Difference`]): of the
            shared positions.
    """

    accuracy: dict[str, Accuracy]
    difference_to_initial: dict[str, Difference]
    difference_to_control: Difference
    among_labels: bool

    def table(self) -> str:
        return transfer_table(self)


def evaluate_transfer(arguments: TransferArguments) -> Transferred:
    """
    Accuracy, or mean IoU, of a model at the positions of a coordinate data set, which another model's oracle may have found:
    at the initial positions, at the shared ones, at the shared ones snapped to this model's grid, and, as a control, at the
    initial ones moved as those of another image were, half the data set away; on the same images.

    Args:
        arguments ([`TransferArguments`]): which model, which coordinates, which images.

    Returns:
        [`TransferResult`], or [`SegmentationTransferResult`]: in percent, differences in points, with intervals.

    Raises:
        `ValueError`: an argument is wrong, or the coordinates were found for other images. `OSError`: no such model or data,
            or too many images that cannot be read.
    """
    arguments.check()
    from .segmentation_transfer import SegmentationTransfer  # which is a Transfer itself

    model = open_model(arguments.model, arguments.revision)
    kind = SegmentationTransfer if model.segments else Transfer
    kind.check(arguments, model)
    commit = hub_commit(arguments.coordinates, arguments.coordinates_revision, "dataset")
    rows = load_coordinates(arguments.coordinates, arguments.config, arguments.split, revision=commit)
    config, split = rows.info.config_name, str(rows.split)
    if arguments.dataset_name is None:
        record = load_record(arguments.coordinates, config, split, revision=commit)
        arguments = arguments.with_source(*record.dataset, split)
        if arguments.dataset_revision is None:
            arguments = replace(arguments, dataset_revision=record.parameters.get("dataset_revision"))
    else:
        arguments = arguments.with_source(arguments.dataset_name, arguments.dataset_config_name, split)
    arguments = pinned(arguments)
    images: Any = load_images(arguments.source(max_samples=None, boxes_csv=None))
    measuring = kind(model, arguments)
    images = measuring.match_labels(images)
    joined, failed = join_readable(images, rows, max_samples=arguments.max_samples)
    if arguments.boxes_csv is not None:
        joined = with_boxes(joined, arguments.boxes_csv)
    measuring.run(joined, failed)
    if not measuring.measured["initial"]:
        raise OSError(f"none of the images could be read, such as {measuring.failed[0]}")
    if measuring.num_outside:
        count = len(measuring.measured_at["shared"]) * len(joined[0]["coordinates"])
        logger.info("%d of %d shared positions lie outside of what the model sees", measuring.num_outside, count)
    saliency = arguments.saliency_column_name or arguments.boxes_csv
    result = measuring.result(
        model=public_name(arguments.model),
        revision=model.revision,
        coordinates=public_name(arguments.coordinates),
        coordinates_revision=commit,
        config=config,
        dataset=public_name(str(arguments.dataset_name)),
        dataset_revision=arguments.dataset_revision,
        split=split,
        num_images=len(measuring.measured_at["initial"]),
        num_tokens=len(joined[0]["coordinates"]),
        window_scales=arguments.window_scales,
        saliency="edge saliency" if saliency is None else f"saliency by `{Path(saliency).name}`",
        analysis={name: means(parts) for name, parts in measuring.described.items()},
        failed=measuring.failed,
        corruption=None if arguments.chosen_corruption is None else str(arguments.chosen_corruption),
        found_under=_found_under(arguments.coordinates, config, split, commit),
    )
    _write(result, arguments.output_dir)
    return result


def _found_under(coordinates: str, config: str, split: str, revision: str | None) -> str | None:
    """The corruption for which positions were found, as their record says; positions of one's own have none."""
    try:
        parameters = load_record(coordinates, config, split, revision=revision).parameters
    except OSError:
        return None
    return f"{parameters['corruption']} {parameters['severity']}" if "corruption" in parameters else None


def _write(result: Transferred, output_dir: str | None) -> None:
    table = result.table()
    logger.info(table)
    if result.failed:
        logger.info(describe_failures(result.failed))
    if output_dir is not None:
        for name, text in {"transfer.json": json.dumps(result.to_json(), indent=2), "transfer.md": table}.items():
            with write_atomically(Path(output_dir) / name) as file:
                file.write(f"{text}\n".encode())
        logger.info("written to %s: transfer.json and transfer.md", output_dir)


class Transfer:
    """Which images are classified correctly at each of `POSITIONS`, and what the positions are like, beside random ones."""

    model: Any
    image_processor: Any
    labels: LabelMapping
    classes: list[int] | None = None  # the only ones

    def __init__(self, source: ModelSource, arguments: TransferArguments):
        self.source, self.arguments, self.device = source, arguments, default_device()
        self.measured: dict[str, list[np.ndarray]] = {name: [] for name in POSITIONS}  # by batch
        self.described: dict[str, list[dict[str, torch.Tensor]]] = {name: [] for name in (*POSITIONS, "random")}
        self.failed: list[FailedImage] = []  # images that could not be read, so far
        self.num_outside = 0  # of the shared positions, that this model's crop removes

    @staticmethod
    def check(arguments: TransferArguments, source: ModelSource) -> None:
        """`ValueError` where it cannot be measured."""
        if not source.is_zero_shot:
            source.check_classifier()

    def match_labels(self, images: datasets.Dataset) -> datasets.Dataset:
        """The images, whose labels are known to be the model's classes; `ValueError` where they are not."""
        self.source = self.source.among(self.arguments, images.features["label"])
        self.source.check_candidates()
        self.labels = match_labels(images.features["label"], self.source.config, self.arguments)
        logger.info(self.labels.description)
        classes = self.labels.classes_of(images)  # and every image has one
        self.classes = classes if self.arguments.among_labels else None
        return images

    def truth_of(self, rows: list[dict[str, Any]], sizes: list[tuple[int, int]]) -> Any:
        """What outputs are compared with. `sizes`: `(width, height)` of the images."""
        return np.array([self.labels(row["label"]) for row in rows])

    def compare(self, logits: torch.Tensor, truth: Any) -> np.ndarray:
        """What is measured of each image, `(batch_size, ...)`: here bool, whether it is right."""
        return likeliest_class(logits.float().cpu().numpy(), self.classes) == truth

    def figure_of(self, measured: np.ndarray) -> float:
        """Of all images so far, in percent, for the progress bar."""
        return 100 * float(measured.mean())

    def result(self, **fields: Any) -> Transferred:
        """`fields`: what is known whatever is measured."""
        correct = self.measured_at
        return TransferResult(
            accuracy={name: Accuracy.of(values) for name, values in correct.items()},
            difference_to_initial={
                name: Difference.of(correct["initial"], values) for name, values in correct.items() if name != "initial"
            },
            difference_to_control=Difference.of(correct["control"], correct["shared"]),
            among_labels=self.arguments.among_labels,
            **fields,
        )

    @property
    def measured_at(self) -> dict[str, np.ndarray]:
        """Name of `POSITIONS` → `(num_images, ...)`."""
        return {name: np.concatenate(parts) for name, parts in self.measured.items()}

    @torch.inference_mode()
    def run(self, joined: datasets.Dataset, failed: list[FailedImage]) -> None:
        """Over rows that [`join_readable`] gives; `failed` are those that it could not read."""
        self.failed += failed
        self.model = self.source.load().to(self.device)
        self.image_processor = self.source.load_image_processor(self.arguments.decode)
        self.corruption = self.arguments.chosen_corruption
        if self.corruption is not None:
            check_view_size(self.image_processor.model_size((1000, 1000)), self.source.config.num_channels)
            self.of_views = of_views(self.image_processor)
        positions = joined.select_columns(["image_size", "coordinates", "initial_coordinates"])
        stored, count, failed_before = encoded(joined), len(joined), len(self.failed)
        with tqdm(total=count, desc="transfer", unit="image") as progress:
            for start in range(0, count, self.arguments.batch_size):
                numbers = range(start, min(start + self.arguments.batch_size, count))
                images, rows, kept = self._read([stored[i] for i in numbers], numbers)
                check_failures(self.failed, count + failed_before, self.arguments.max_failed_share)
                if rows:
                    others = positions[[(i + count // 2) % count for i in kept]]
                    for name, values in self._measure(images, rows, others).items():
                        self.measured[name].append(values)
                    figures = [f"{name} {self.figure_of(values):.1f} %" for name, values in self.measured_at.items()]
                    progress.set_postfix_str(", ".join(figures), refresh=False)
                progress.update(len(numbers))

    def _read(self, rows: list[dict[str, Any]], numbers: range) -> tuple[list[Any], list[dict[str, Any]], list[int]]:
        """Decoded images, their rows and the rows' numbers, of those that can be read."""
        images, found, kept = [], [], []
        for row, number in zip(rows, numbers, strict=True):
            image: EncodedImage = encoded_image(row, row["image_index"], "")
            try:
                images.append(image.decode(self.image_processor))
            except UnreadableImageError as error:
                self.failed.append(FailedImage(row["image_index"], row["image_id"], str(error)))
                continue
            found.append({**row, "saliency": image.saliency})
            kept.append(number)
        return images, found, kept

    def _measure(self, images: list[Any], rows: list[dict[str, Any]], others: dict[str, list]) -> dict[str, np.ndarray]:
        """A batch: name of `POSITIONS` → `(batch_size, ...)`. `others` are rows of other images, for the control."""
        sizes = [image.size for image in images]
        image_processor = self.image_processor
        if self.corruption is not None:
            ids = [row["image_id"] for row in rows]
            images = [self.corruption.view(image_processor, one, name) for one, name in zip(images, ids, strict=True)]
            image_processor = self.of_views
        pixel_values = image_processor(images, placement="grid", return_tensors="pt")["pixel_values"]
        shared = self._in_model_frame([row["coordinates"] for row in rows], sizes)
        self.num_outside += int(((shared < 0) | (shared > 1)).any(-1).sum())
        initial = self._in_model_frame([row["initial_coordinates"] for row in rows], sizes)
        moved = [self._in_model_frame(others[name], others["image_size"]) for name in ("coordinates", "initial_coordinates")]
        patch_size = self.model.config.patch_size
        sets = {
            "initial": initial,
            "shared": shared,
            "snapped": snap_to_grid(shared, pixel_values, patch_size),
            "control": (initial + moved[0] - moved[1]).clamp(0, 1),
        }
        saliency = self._saliency(rows, sizes, pixel_values)
        for name, coordinates in {**sets, "random": _random_like(initial, [row["image_id"] for row in rows])}.items():
            height, width = saliency.shape[-2:]
            self.described[name].append(describe_positions(coordinates, height, width, patch_size, saliency))
        scales = {
            name: torch.tensor([row[name] for row in rows]).to(self.device)
            for name in ("window_scales", "initial_window_scales")
            if name in rows[0]
        }
        if self.arguments.window_scales is not None:
            policy, (height, width) = scale_policy(self.arguments.window_scales), pixel_values.shape[-2:]
            chosen = scales_of(policy, initial.shape[1], height, width, patch_size)
            assert chosen is not None
            scales = dict.fromkeys(("window_scales", "initial_window_scales"), chosen.expand(len(rows), -1).to(self.device))
        pixel_values, truth = pixel_values.to(self.device), self.truth_of(rows, sizes)
        measured, dtype = {}, DTYPES[self.arguments.dtype]
        for name, coordinates in sets.items():
            # Windows have their own sizes at the positions for which these were found; at the start, 1 unless they say so.
            own = scales.get("initial_window_scales" if name == "initial" else "window_scales")
            with torch.autocast(self.device.type, dtype=dtype, enabled=dtype != torch.float32):
                logits = self.model(pixel_values, coordinates=coordinates.to(self.device), window_scales=own).logits
            measured[name] = self.compare(logits, truth)
        return measured

    def _saliency(self, rows: list[dict[str, Any]], sizes: list[tuple[int, int]], pixel_values: torch.Tensor) -> torch.Tensor:
        """`(batch_size, height, width)`: what the data set states, or how strong edges are."""
        if not self.arguments.has_saliency:
            return torch.stack([edge_saliency(image) for image in pixel_values])
        return torch.stack([
            model_saliency(row["saliency"], size, row["image_id"], self.image_processor)
            for row, size in zip(rows, sizes, strict=True)
        ])  # fmt: skip

    def _in_model_frame(self, sets: list[Any], sizes: list[Any]) -> torch.Tensor:
        """`(batch_size, num_tokens, 2)`: positions of images of those `(width, height)`, from the image frame."""
        return torch.stack([
            self.image_processor.to_model_frame(torch.tensor(one), tuple(size)) for one, size in zip(sets, sizes, strict=True)
        ])  # fmt: skip


def _random_like(coordinates: torch.Tensor, image_ids: list[str]) -> torch.Tensor:
    """Uniform positions, drawn per image."""
    return torch.stack([uniform(coordinates.shape[1], generator_for(0, image_id)) for image_id in image_ids])


def snap_to_grid(coordinates: torch.Tensor, pixel_values: torch.Tensor, patch_size: int) -> torch.Tensor:
    """
    Each position moved to the centre of the nearest cell of the model's grid.

    Args:
        coordinates (`torch.Tensor` of shape `(batch_size, num_tokens, 2)`): `(x, y)`, model frame.
        pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`): whose size gives the grid.
        patch_size (`int`): in pixels.

    Returns:
        `torch.Tensor` of the same shape. Tokens that share a nearest cell share its centre.
    """
    height, width = pixel_values.shape[-2:]
    cells = grid(height, width, patch_size).to(coordinates)
    pixels = torch.tensor([width, height]).to(coordinates)  # nearest in pixels
    return cells[torch.cdist(coordinates * pixels, cells * pixels).argmin(-1)]


def transfer_table(result: TransferResult) -> str:
    """Markdown."""
    lines = [
        result.heading + (", among the classes that occur" if result.among_labels else ""),
        "",
        "| positions | top-1, % (95 % interval) | difference to initial, points (95 % interval, paired) | gained / lost |",
        "|---|---:|---:|---:|",
    ]
    for name, accuracy in result.accuracy.items():
        cell = f"{accuracy.value:.1f} ({accuracy.low:.1f} to {accuracy.high:.1f})"
        difference = result.difference_to_initial.get(name)
        if difference is None:
            lines.append(f"| {name} | {cell} | | |")
        else:
            lines.append(f"| {name} | {cell} | {_points(difference)} | {difference.gained} / {difference.lost} |")
    control = _points(result.difference_to_control)
    lines += [
        "",
        f"Shared positions against the control (another image's moves), paired: {control} points.",
        "",
        *analysis_table(result.analysis, result.saliency),
    ]
    return "\n".join(lines)


def _kind(corruption: str | None) -> str:
    return "images as they are" if corruption is None else f"images under {corruption}"


def _points(difference: Difference) -> str:
    return f"{difference.value:+.1f} ({difference.low:+.1f} to {difference.high:+.1f})"
