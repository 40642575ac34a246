"""What coordinates are worth to a model that segments: mean IoU and pixel accuracy at the positions that an oracle found, of
whichever model: a classifier's, another segmenter's, or one's without a head. Positions are relative to the image, so all can
be used.

Predictions are compared with the masks at the size of the original images, as in an evaluation.
"""

from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch

from ..data.masks import MaskClasses, check_masks, refuse_options_of_labels, with_encoded_masks
from ..hub.loading import ModelSource
from .analysis import analysis_table
from .arguments import TransferArguments
from .confusion import Estimate, bootstrap, confusion_matrices, mean_iou_of, pixel_accuracy_of
from .transfer import Transfer, Transferred


MEASURES = {"mean_iou": ("mean IoU", mean_iou_of), "pixel_accuracy": ("pixel accuracy", pixel_accuracy_of)}


@dataclass(kw_only=True)
class SegmentationTransferResult(Transferred):
    """
    Of a model that segments.

    Attributes:
        figures (`dict`): `"mean_iou"` or `"pixel_accuracy"` → name of `POSITIONS` → [`Estimate`], over all images' pixels.
        difference_to_initial (`dict`): the same of differences on the same images, in points.
        difference_to_control (`dict`): `"mean_iou"` or `"pixel_accuracy"` → [`Estimate`], of the shared positions.
    """

    figures: dict[str, dict[str, Estimate]]
    difference_to_initial: dict[str, dict[str, Estimate]]
    difference_to_control: dict[str, Estimate]

    def table(self) -> str:
        lines = [
            self.heading,
            "",
            "| positions | mean IoU, % (95 % interval) | difference to initial, points (paired) | pixel accuracy, % | "
            "difference |",
            "|---|---:|---:|---:|---:|",
        ]
        for name in self.figures["mean_iou"]:
            cells = [name]
            for measure, at in self.figures.items():
                difference = self.difference_to_initial[measure].get(name)
                cells += [str(at[name]), "" if difference is None else _points(difference)]
            lines.append(f"| {' | '.join(cells)} |")
        control = ", ".join(f"{MEASURES[name][0]} {_points(one)} points" for name, one in self.difference_to_control.items())
        return "\n".join([
            *lines, "", f"Shared positions against the control (another image's moves), paired: {control}.", "",
            *analysis_table(self.analysis, self.saliency),
        ])  # fmt: skip


def _points(estimate: Estimate) -> str:
    return f"{estimate.value:+.1f} ({estimate.low:+.1f} to {estimate.high:+.1f})"


class SegmentationTransfer(Transfer):
    """Confusion matrices `(num_images, num_labels, num_labels)` at each of `POSITIONS`."""

    masks: MaskClasses

    @staticmethod
    def check(arguments: TransferArguments, source: ModelSource) -> None:
        refuse_options_of_labels(arguments)

    def match_labels(self, images: datasets.Dataset) -> datasets.Dataset:
        config = self.source.config
        images = with_encoded_masks(images, self.arguments.label_column_name)
        self.masks = check_masks(images, config.num_labels, config.semantic_loss_ignore_index)
        return images

    def truth_of(self, rows: list[dict[str, Any]], sizes: list[tuple[int, int]]) -> list[torch.Tensor]:
        masks = [self.masks.read(row["label"], size, row["image_id"]) for row, size in zip(rows, sizes, strict=True)]
        return [torch.from_numpy(mask) for mask in masks]

    def compare(self, logits: torch.Tensor, truth: list[torch.Tensor]) -> np.ndarray:
        sizes = [tuple(mask.shape) for mask in truth]
        predicted = self.image_processor.post_process_semantic_segmentation({"logits": logits}, sizes)
        num_labels, ignored = self.masks.num_labels, self.masks.ignore_index
        matrices = [
            confusion_matrices(own[None].cpu(), mask[None], num_labels, ignored)
            for own, mask in zip(predicted, truth, strict=True)
        ]
        return torch.cat(matrices).numpy()

    def figure_of(self, measured: np.ndarray) -> float:
        return float(mean_iou_of(measured.sum(0)))

    def result(self, **fields: Any) -> SegmentationTransferResult:
        measured = self.measured_at
        initial, control, shared = (measured[name] for name in ("initial", "control", "shared"))
        figures, differences, to_control = {}, {}, {}
        for key, (_, measure) in MEASURES.items():
            figures[key] = {name: bootstrap(one, measure=measure) for name, one in measured.items()}
            differences[key] = {
                name: bootstrap(one, initial, measure=measure) for name, one in measured.items() if name != "initial"
            }
            to_control[key] = bootstrap(shared, control, measure=measure)
        return SegmentationTransferResult(
            figures=figures, difference_to_initial=differences, difference_to_control=to_control, **fields
        )
