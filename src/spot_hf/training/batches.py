"""From bytes to a training step's inputs, on the device: RandAugment, mixup and cutmix, normalization, placement.

Pixels are changed first and tokens placed afterwards, so that coordinates always refer to what the model sees.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from kornia.augmentation import RandomCutMixV2, RandomMixUpV2
from kornia.augmentation.auto import RandAugment
from kornia.geometry.bbox import infer_bbox_shape

from .placements import TrainingPlacements


@dataclass
class TrainingBatch:
    """
    Attributes:
        inputs: of the model: `pixel_values`, `coordinates` and, where drawn, `window_scales`.
        labels (`torch.LongTensor` of shape `(batch_size,)` or `None`): of the images.
        other_labels (`torch.LongTensor` of shape `(batch_size,)` or `None`): of the images that were mixed in.
        other_share (`torch.Tensor` of shape `(batch_size,)` or `None`): how much of what tokens see is theirs.
    """

    inputs: dict[str, torch.Tensor]
    labels: torch.Tensor | None
    other_labels: torch.Tensor | None = None
    other_share: torch.Tensor | None = None


class BatchPreparation:
    """
    Args:
        placements ([`TrainingPlacements`]): draws the coordinates.
        image_processor: of the model, for its normalization.
        mixup (`float`): share of the batches whose images are blended with others' (Zhang et al. 2018); cutmix (`float`):
            share of the batches whose images have a rectangle of another (Yun et al. 2019).
        rand_augment_num_ops (`int`): operations of RandAugment (Cubuk et al. 2020), 0 for none; rand_augment_magnitude
            (`float`): between 0 and 30.

    Raises:
        `ValueError`: an argument is none of these.
    """

    def __init__(
        self,
        placements: TrainingPlacements,
        image_processor: Any,
        *,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        rand_augment_num_ops: int = 0,
        rand_augment_magnitude: float = 9.0,
    ):
        if min(mixup, cutmix) < 0 or mixup + cutmix > 1:
            raise ValueError(
                f"`mixup` and `cutmix` must be shares of at least 0 and at most 1 in all; got {mixup} and {cutmix}"
            )
        if not 0 <= rand_augment_num_ops <= 15 or not 0 < rand_augment_magnitude < 30:
            raise ValueError(
                "`rand_augment_num_ops` must be 0 to 15 and `rand_augment_magnitude` between 0 and 30; got "
                f"{rand_augment_num_ops} and {rand_augment_magnitude}"
            )
        self.placements, self.mixup, self.cutmix = placements, mixup, cutmix
        self.rand_augment: Callable | None = None
        if rand_augment_num_ops:
            self.rand_augment = RandAugment(n=rand_augment_num_ops, m=int(rand_augment_magnitude))
        normalized = image_processor.do_normalize
        self.mean = torch.tensor(image_processor.image_mean if normalized else [0.0] * 3)[:, None, None]
        self.std = torch.tensor(image_processor.image_std if normalized else [1.0] * 3)[:, None, None]

    def __call__(self, batch: dict[str, torch.Tensor], num_tokens: int) -> TrainingBatch:
        """
        Args:
            batch (`dict`): as [`TrainingImages`] gives it, collated, on the device: `pixels`, `draw`, and where given `labels`
                and `coordinates`.
            num_tokens (`int`): per image.
        """
        pixels, labels = batch["pixels"].float() / 255, batch.get("labels")
        if self.rand_augment is not None:
            pixels = self.rand_augment(pixels).clamp(0, 1)
        pixels, mixed = self._mix(pixels)
        pixel_values = (pixels - self.mean.to(pixels.device)) / self.std.to(pixels.device)
        inputs = {
            "pixel_values": pixel_values,
            **self.placements(batch["draw"], num_tokens, pixel_values, batch.get("coordinates")),
        }
        if mixed is None or labels is None:
            return TrainingBatch(inputs, labels)
        return TrainingBatch(inputs, labels, labels[mixed.partner], mixed.share(inputs, self.placements.patch_size))

    def _mix(self, pixels: torch.Tensor) -> tuple[torch.Tensor, "Mixed | None"]:
        if not self.mixup + self.cutmix:
            return pixels, None
        chosen = torch.rand(()).item()
        if chosen < self.mixup:
            blend = RandomMixUpV2(data_keys=["input"])
            pixels = blend(pixels)
            parameters = blend._params
            return pixels, Mixed(parameters["mixup_pairs"].to(pixels.device), parameters["mixup_lambdas"].to(pixels.device))
        if chosen < self.mixup + self.cutmix:
            paste = RandomCutMixV2(data_keys=["input"], use_correct_lambda=True)
            pixels = paste(pixels)
            partner, corners = paste._params["mix_pairs"][0], paste._params["crop_src"][0]
            width, height = infer_bbox_shape(corners)
            boxes = torch.stack([*corners[:, 0].T, corners[:, 0, 0] + width, corners[:, 0, 1] + height], dim=1)
            return pixels, Mixed(partner.to(pixels.device), boxes=boxes.to(pixels.device))
        return pixels, None


@dataclass
class Mixed:
    """What was mixed into each image: which other one, by which share (mixup), or in which box (cutmix)."""

    partner: torch.Tensor  # (batch_size,), int64
    weight: torch.Tensor | None = None  # (batch_size,)
    boxes: torch.Tensor | None = None  # (batch_size, 4): left, top, right, bottom in pixels

    def share(self, inputs: dict[str, torch.Tensor], patch_size: int) -> torch.Tensor:
        """
        `(batch_size,)`: how much of what the tokens see is the other image. Of a box, the share of the windows' area that
        lies in it, not of the image's: what no token looks at is no reason for a label.
        """
        if self.boxes is None:
            assert self.weight is not None
            return self.weight
        height, width = inputs["pixel_values"].shape[-2:]
        centers = inputs["coordinates"] * inputs["coordinates"].new_tensor([width, height])
        half = patch_size / 2 * inputs.get("window_scales", torch.ones_like(centers[..., 0]))[..., None]
        low = torch.maximum(centers - half, self.boxes[:, None, :2])
        high = torch.minimum(centers + half, self.boxes[:, None, 2:])
        covered = (high - low).clamp_min(0).prod(-1) / (2 * half[..., 0]) ** 2  # (batch_size, num_tokens)
        return covered.mean(1)
