"""From bytes to a training step's inputs, on the device: normalization, placement, and the labels of mixed images."""

from dataclasses import dataclass
from typing import Any

import torch

from .placements import TrainingPlacements


@dataclass
class TrainingBatch:
    """
    Attributes:
        inputs: of the model: `pixel_values`, `coordinates` and, where drawn, `window_scales`.
        labels (`torch.LongTensor` of shape `(batch_size,)` or `None`): of the images.
        other_labels (`torch.LongTensor` of shape `(batch_size,)` or `None`): of the images that were mixed in.
        other_weights (`torch.Tensor` of shape `(batch_size,)` or `None`): weights of `other_labels`, in [0, 1].
    """

    inputs: dict[str, torch.Tensor]
    labels: torch.Tensor | None
    other_labels: torch.Tensor | None = None
    other_weights: torch.Tensor | None = None


class BatchPreparation:
    """
    Args:
        placements ([`TrainingPlacements`]): draws the coordinates.
        image_processor: of the model, for its normalization.
    """

    def __init__(self, placements: TrainingPlacements, image_processor: Any):
        self.placements, self.image_processor = placements, image_processor
        normalized = image_processor.do_normalize
        self.mean = torch.tensor(image_processor.image_mean if normalized else [0.0] * 3)[:, None, None]
        self.std = torch.tensor(image_processor.image_std if normalized else [1.0] * 3)[:, None, None]

    def __call__(self, batch: dict[str, Any], num_tokens: int) -> TrainingBatch:
        """
        Args:
            batch (`dict`): rows of [`TrainingImages`], collated, on the device.
            num_tokens (`int`): per image.
        """
        pixels = batch["pixels"].float() / 255
        pixel_values = (pixels - self.mean.to(pixels.device)) / self.std.to(pixels.device)
        placed = self.placements(batch["draw"], num_tokens, pixel_values, batch.get("coordinates"))
        inputs = {"pixel_values": pixel_values, **placed}
        labels, other_labels = batch.get("labels"), batch.get("other_labels")
        if other_labels is None:
            return TrainingBatch(inputs, labels)
        seen = seen_share(inputs, batch["mixed_box"], self.placements.patch_size)
        return TrainingBatch(inputs, labels, other_labels, batch["mixed_weight"] * seen)


def seen_share(inputs: dict[str, torch.Tensor], boxes: torch.Tensor, patch_size: int) -> torch.Tensor:
    """
    How much of what an image's tokens see lies in a box. A mixed image's label goes by this, and not by the box's share of the
    image: what no token looks at is no reason for a label.

    Args:
        inputs (`dict`): of the model: `pixel_values`, `coordinates` and, where drawn, `window_scales`.
        boxes (`torch.Tensor` of shape `(batch_size, 4)`): left, top, right, bottom in pixels.
        patch_size (`int`): side of a window in pixels, at scale 1.

    Returns:
        `torch.Tensor` of shape `(batch_size,)`, float32: the mean over tokens of the share of each window's area.
    """
    height, width = inputs["pixel_values"].shape[-2:]
    size = inputs["coordinates"].new_tensor([width, height])
    centers = inputs["coordinates"] * size
    half = patch_size / 2 * inputs.get("window_scales", torch.ones_like(centers[..., 0]))[..., None]
    # A window that leaves the image sees replicated border pixels: boxes that touch the border go on.
    low = torch.where(boxes[:, :2] <= 0, -torch.inf, boxes[:, :2])[:, None]
    high = torch.where(boxes[:, 2:] >= size, torch.inf, boxes[:, 2:])[:, None]
    inside = torch.minimum(centers + half, high) - torch.maximum(centers - half, low)
    return (inside.clamp_min(0) / (2 * half)).clamp_max(1).prod(-1).mean(1)
