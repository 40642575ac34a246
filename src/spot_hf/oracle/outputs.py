"""What the oracle reads from a model for semantic segmentation; and what its objectives aim at, checked, for all models."""

from typing import Any

import torch
from torch import nn

from ..input_checks import check_segmentation_labels
from ..placement import grid
from ..segmentation_spot_vit import SpotViTForSemanticSegmentation, map_size_of
from .objectives import OBJECTIVES, UNLABELLED
from .tensors import describe


def segmenter_outputs(
    model: SpotViTForSemanticSegmentation,
    objective: str,
    pixel_values: torch.Tensor,
    coordinates: torch.Tensor | None,
    window_scales: torch.Tensor | None,
    mask: torch.Tensor | None,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Map of scores `(batch_size, num_labels, height // 4, width // 4)` and pooled features `(batch_size, pooled_size)`: the
    one that the objective needs. Arguments as of the model; without `coordinates`, all cells of the grid."""
    if coordinates is None:
        height, width = pixel_values.shape[-2:]
        coordinates = grid(height, width, model.config.patch_size).to(pixel_values.device)[None]
    placed = {"coordinates": coordinates, "coordinates_mask": mask, "window_scales": window_scales}
    if OBJECTIVES[objective].target == "features":
        return None, model.spot_vit(pixel_values, **placed, merge_tokens=0.0).pooler_output
    return model(pixel_values, **placed).logits, None


def sampled_labels(labels: torch.Tensor, map_size: tuple[int, int], ignore_index: int) -> torch.Tensor:
    """Labels `(batch_size, height, width)` at the pixels of a map over the same image, each the nearest one: `(batch_size,
    *map_size)`, with `UNLABELLED` for pixels that do not count."""
    labels = labels.masked_fill(labels == ignore_index, UNLABELLED)
    # As float32, which holds every whole number below 2²⁴.
    return nn.functional.interpolate(labels[:, None].float(), size=map_size, mode="nearest-exact")[:, 0].long()


def _check_given(labels: Any) -> None:
    if labels is None:
        raise ValueError("`labels` are needed by objective='label'; got none. 'distill' and 'feature' need none")


def check_class_targets(
    config: Any, objective: str, other_classes: torch.Tensor | None, batch_size: int, labels: Any, targets: Any
) -> None:
    """`ValueError` where the target of an objective is missing, or of another shape, dtype or range. `other_classes`: bool
    `(num_labels,)`, those that no label may be."""
    if objective == "label":
        num_labels = config.num_labels
        _check_given(labels)
        if (
            not isinstance(labels, torch.Tensor)
            or labels.shape != (batch_size,)
            or labels.dtype != torch.int64
            or not ((labels >= 0) & (labels < num_labels)).all()
        ):
            raise ValueError(
                f"`labels` must be int64 ({batch_size},) with values from 0 to {num_labels - 1}; got {describe(labels)}"
            )
        if other_classes is not None and other_classes[labels].any():
            outside = labels[other_classes[labels]][0].item()
            raise ValueError(f"`labels` must be of `classes`; got {outside}, which is not")
    elif targets is not None:
        size = config.pooled_size if objective == "feature" else config.num_labels
        if not isinstance(targets, torch.Tensor) or targets.shape != (batch_size, size):
            raise ValueError(
                f"`targets` must be a tensor {(batch_size, size)} with objective={objective!r}; got {describe(targets)}"
            )


def check_map_targets(config: Any, objective: str, pixel_values: torch.Tensor, labels: Any, targets: Any) -> None:
    """The same of a model that segments."""
    batch_size = len(pixel_values)
    if objective == "label":
        _check_given(labels)
        check_segmentation_labels(config, labels, batch_size)
    elif targets is not None:
        of_map = (batch_size, config.num_labels, *map_size_of(*pixel_values.shape[-2:]))
        size = (batch_size, config.pooled_size) if objective == "feature" else of_map
        if not isinstance(targets, torch.Tensor) or targets.shape != size:
            raise ValueError(f"`targets` must be a tensor {size} with objective={objective!r}; got {describe(targets)}")
