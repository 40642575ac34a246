"""What the image processor returns: pixel values or windows, and the tokens of a batch as one array each."""

from typing import Any

import numpy as np
import torch
from transformers import BatchFeature

from .frames import Frame
from .placement import scales_of


# Coordinates keep this precision wherever a model's inputs are cast: bfloat16 moves a position by almost a pixel.
FLOAT32_INPUTS = ("coordinates", "window_scales")


class SpotViTBatchFeature(BatchFeature):
    """A `BatchFeature` whose `to(dtype)` leaves coordinates in float32."""

    def to(self, *args, **kwargs) -> "SpotViTBatchFeature":
        precise = {name: self.data[name] for name in FLOAT32_INPUTS if isinstance(self.data.get(name), torch.Tensor)}
        super().to(*args, **kwargs)
        for name, tensor in precise.items():
            self.data[name] = tensor.to(self.data[name].device)
        return self


def policy_scales(policy: float | str, num_tokens: int, frame: Frame, patch_size: int) -> np.ndarray:
    """Of all tokens of an image, by a number or `"cover"`: float32 `(num_tokens,)`."""
    width, height = frame.model_size
    return filled_in(scales_of(policy, num_tokens, height, width, patch_size), num_tokens)


def filled_in(scales: torch.Tensor | None, num_tokens: int) -> np.ndarray:
    """1 where no scales are given."""
    return np.ones(num_tokens, dtype=np.float32) if scales is None else scales.numpy()


def stack_tokens(sets: list[np.ndarray], scales: list[np.ndarray] | None, like: Any) -> dict[str, Any]:
    """One array, padded with a mask where token counts differ; on the device of `like`, where that is a tensor. Window scales
    where they are not all 1."""
    counts = np.array([len(one) for one in sets])
    coordinates = np.full((len(sets), counts.max(), 2), 0.5, dtype=np.float32)
    mask = np.arange(counts.max())[None] < counts[:, None]
    coordinates[mask] = np.concatenate(sets)
    arrays = {"coordinates": coordinates} if mask.all() else {"coordinates": coordinates, "coordinates_mask": mask}
    if scales is not None and any((one != 1).any() for one in scales):
        arrays["window_scales"] = np.ones(mask.shape, dtype=np.float32)
        arrays["window_scales"][mask] = np.concatenate(scales)
    if isinstance(like, torch.Tensor):
        return {name: torch.from_numpy(array).to(like.device) for name, array in arrays.items()}
    return arrays


__all__ = ["SpotViTBatchFeature"]
