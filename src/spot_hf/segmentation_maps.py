"""Maps of class numbers over images: to the model's frame, and from its scores back to the image. Of the image processor."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import BatchFeature

from .frames import Frame, FrameMixin


def check_segmentation_maps(segmentation_maps: Any) -> list[np.ndarray]:
    """One map of class numbers `(height, width)`, int64, per image; `ValueError` for what is none."""
    several = isinstance(segmentation_maps, (list, tuple)) or getattr(segmentation_maps, "ndim", 2) == 3
    found = []
    for i, one in enumerate(segmentation_maps if several else [segmentation_maps]):
        array = np.asarray(one)
        if array.ndim != 2 or array.dtype.kind not in "iub" or array.size == 0:
            raise ValueError(
                f"`segmentation_maps` must be one map of class numbers (height, width) per image; got {array.dtype} of shape "
                f"{array.shape} for image {i}"
            )
        found.append(array.astype(np.int64))
    return found


class SegmentationMapMixin(FrameMixin):
    """What an image processor does with segmentation."""

    @staticmethod
    def _crop_segmentation_maps(
        maps: list[np.ndarray], sizes: list[tuple[int, int]], frames: list[Frame]
    ) -> list[torch.Tensor]:
        """Each map over what the model sees of its image, `(height, width)` of `pixel_values`, int64: the class under each
        pixel. `sizes`: `(width, height)` of the images."""
        if len(maps) != len(sizes):
            raise ValueError(f"`segmentation_maps` must be one per image, {len(sizes)}; got {len(maps)}")
        if any(frame.pads for frame in frames):
            raise ValueError("`segmentation_maps` need a recipe whose crop is no larger than the image; here it pads")
        for i, (one, (width, height)) in enumerate(zip(maps, sizes, strict=True)):
            if one.shape != (height, width):
                raise ValueError(
                    f"`segmentation_maps` must have the size of their images; image {i} has (height, width) "
                    f"{(height, width)}, its map {one.shape}"
                )
        return [frame.crop_map(one) for frame, one in zip(frames, maps, strict=True)]

    def post_process_semantic_segmentation(
        self,
        outputs: Any,
        target_sizes: Sequence[tuple[int, int]] | None = None,
        return_segmentation_scores: bool = False,
    ) -> list[Any]:
        """
        A model's scores to class numbers.

        Args:
            outputs (`SemanticSegmenterOutput`): with `logits` `(batch_size, num_labels, height, width)` over what the model
                sees.
            target_sizes (`list[tuple[int, int]]`, *optional*): `(height, width)` of each original image in pixels: scores are
                interpolated bilinearly to its pixels, through this processor's resize and crop. What the crop removed has the
                classes of the crop's border. By default the maps stay as large as `logits` are.
            return_segmentation_scores (`bool`, *optional*, defaults to `False`): also return the scores.

        Returns:
            `list[torch.Tensor]`: per image its classes `(height, width)`, int64. With `return_segmentation_scores` instead
            `list[BatchFeature]`, of `segmentation` and `segmentation_scores` `(num_labels, height,
            width)`, of the logits' dtype or, interpolated, float32.

        Raises:
            `ValueError`: as many target sizes as images are needed.
        """
        logits = outputs.logits if hasattr(outputs, "logits") else outputs["logits"]
        if target_sizes is None:
            found = list(logits)
        elif len(target_sizes) != len(logits):
            raise ValueError(f"`target_sizes` must be one (height, width) per image, {len(logits)}; got {len(target_sizes)}")
        else:
            found = []
            for scores, size in zip(logits, target_sizes, strict=True):
                height, width = (int(side) for side in size)
                found.append(_to_image(scores, self._frame((width, height), **self._recipe()), height, width))
        if not return_segmentation_scores:
            return [scores.argmax(0) for scores in found]
        return [BatchFeature({"segmentation": scores.argmax(0), "segmentation_scores": scores}) for scores in found]

    def segmentation_map_to_model_frame(self, segmentation_map: Any) -> torch.Tensor:
        """A map of class numbers over the original image `(height, width)` to one over what the model sees of it, int64: the
        class under each pixel of `pixel_values`."""
        (one,) = check_segmentation_maps(segmentation_map)
        return self._frame(one.shape[::-1], **self._recipe()).crop_map(one)  # type: ignore[arg-type]


def _to_image(scores: torch.Tensor, frame: Frame, height: int, width: int) -> torch.Tensor:
    """`(num_labels, rows, columns)` over the model's frame to `(num_labels, height, width)` of the image."""
    scores = scores[None].float()
    if frame.crop_offset == (0, 0) and frame.model_size == frame.resized_size:
        return nn.functional.interpolate(scores, size=(height, width), mode="bilinear", align_corners=False)[0]
    x, y = ((torch.arange(side) + 0.5) / side for side in (width, height))
    points = frame.to_model(torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1))
    points = 2 * points[None].to(scores) - 1
    return nn.functional.grid_sample(scores, points, mode="bilinear", padding_mode="border", align_corners=False)[0]
