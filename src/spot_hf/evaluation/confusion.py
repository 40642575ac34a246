"""Confusion matrices of maps of classes, and what is measured by them."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

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
