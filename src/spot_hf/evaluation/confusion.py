"""Confusion matrices of maps of classes, and what is measured by them."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from .intervals import CONFIDENCE
from .results import load_metric


RESAMPLES = 2000


@dataclass(frozen=True)
class SegmentationScores:
    """In percent; `mean_iou` and `per_class` (`nan` of a class that never occurs) over the pixels of all images."""

    mean_iou: float
    pixel_accuracy: float
    per_class: list[float]


def confusion_matrices(predicted: torch.Tensor, labels: torch.Tensor, num_labels: int, ignore_index: int) -> torch.Tensor:
    """
    Args:
        predicted, labels (`torch.LongTensor` of shape `(batch_size, height, width)`): classes of pixels.
        num_labels (`int`): classes; ignore_index (`int`): the label of pixels that do not count.

    Returns:
        `torch.LongTensor` of shape `(batch_size, num_labels, num_labels)`: pixels by true and by predicted class.
    """
    counted = labels != ignore_index
    images = torch.arange(len(labels), device=labels.device)[:, None, None].expand_as(labels)
    cells = (images * num_labels + labels) * num_labels + predicted
    counts = torch.bincount(cells[counted], minlength=len(labels) * num_labels**2)
    return counts.view(len(labels), num_labels, num_labels)


def confusions_of_logits(logits: torch.Tensor, labels: torch.Tensor, ignore_index: int) -> torch.Tensor:
    """[`confusion_matrices`] of scores `(batch_size, num_labels, rows, columns)`, interpolated to the labels' size."""
    logits = nn.functional.interpolate(logits.float(), size=labels.shape[-2:], mode="bilinear", align_corners=False)
    return confusion_matrices(logits.argmax(1), labels, logits.shape[1], ignore_index)


def segmentation_scores(confusions: np.ndarray) -> SegmentationScores:
    """Of images' confusion matrices `(num_images, num_labels, num_labels)`."""
    # The metric adds matrices up: one that is their sum says the same.
    found = load_metric("mean_iou").compute(confusions=[confusions.sum(0).tolist()])
    return SegmentationScores(
        mean_iou=100 * found["mean_iou"],
        pixel_accuracy=100 * found["overall_accuracy"],
        per_class=[100 * value for value in found["per_category_iou"]],
    )


@dataclass(frozen=True)
class Estimate:
    """In percent or points, with its 95 % interval: a percentile bootstrap over images."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.1f} ({self.low:.1f} to {self.high:.1f})"


def mean_iou_of(confusions: np.ndarray) -> np.ndarray:
    """Mean IoU in percent over the classes that occur, `(...)`, of confusion matrices `(..., num_labels, num_labels)`."""
    right = np.diagonal(confusions, axis1=-2, axis2=-1).astype(float)
    union = confusions.sum(-1) + confusions.sum(-2) - right
    ious = np.where(union > 0, right / np.maximum(union, 1), np.nan)
    return 100 * np.nanmean(ious, axis=-1)


def pixel_accuracy_of(confusions: np.ndarray) -> np.ndarray:
    """Share of pixels that are right, in percent; shapes as of [`mean_iou_of`]."""
    return 100 * np.trace(confusions, axis1=-2, axis2=-1) / confusions.sum((-2, -1))


def bootstrap(
    confusions: np.ndarray,
    others: np.ndarray | None = None,
    seed: int = 0,
    measure: Callable[[np.ndarray], np.ndarray] = mean_iou_of,
) -> Estimate:
    """
    Mean IoU with its interval; or the difference of two on the same images, drawn together.

    Args:
        confusions (`np.ndarray` of shape `(num_images, num_labels, num_labels)`): of each image.
        others (`np.ndarray`, *optional*): of the same images, to be subtracted.
        seed (`int`): of the draws.
        measure (`Callable`, *optional*): what instead of mean IoU, by sums of confusion matrices.
    """
    count, num_labels = confusions.shape[:2]
    # To draw images with replacement is to draw how often each occurs.
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=RESAMPLES).astype(float)

    def drawn(matrices: np.ndarray) -> tuple[float, np.ndarray]:
        totals = (draws @ matrices.reshape(count, -1)).reshape(-1, num_labels, num_labels)
        return float(measure(matrices.sum(0))), measure(totals)

    value, resampled = drawn(confusions)
    if others is not None:
        other, of_other = drawn(others)
        value, resampled = value - other, resampled - of_other
    low, high = np.nanquantile(resampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(value, float(low), float(high))
