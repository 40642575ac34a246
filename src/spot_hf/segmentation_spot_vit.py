"""Semantic segmentation by freely placed tokens: each token's class scores, spread over the image from where the token sits.

On the full grid it is what one usually puts on a ViT: a linear head on every patch, interpolated bilinearly.
"""

from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .configuration_spot_vit import SEGMENTATION_PIPELINES, SpotViTConfig
from .input_checks import check_model_inputs, check_segmentation_labels
from .modeling_spot_vit import SpotViTModel, SpotViTPreTrainedModel
from .placement import grid, place_images


if TYPE_CHECKING:
    # Saving a model copies the files that this one imports.
    from .segmentation_pipeline import SpotImageSegmentationPipeline  # noqa: F401


STRIDE = 4  # pixels of the image per pixel of the map of scores

# Where the tokens near a point have less of a say than this, all others share the rest. On the full grid those near a point
# have a say of 1, and of a quarter in the image's corners, where a single one is near.
LEAST_SAY = 0.25


def map_size_of(height: int, width: int) -> tuple[int, int]:
    """`(height, width)` of the map of scores of an image of that size in pixels."""
    return max(1, height // STRIDE), max(1, width // STRIDE)


def spread_scores(
    scores: torch.Tensor,
    coordinates: torch.Tensor,
    reach: torch.Tensor,
    map_size: tuple[int, int],
    image_size: tuple[int, int],
) -> torch.Tensor:
    """
    Scores of points to a map of scores, by normalised kernels. Differentiable in the first three.

    A point has a say of `max(0, 1 - |x| / reach) * max(0, 1 - |y| / reach)` at a distance `(x, y)`: on a lattice as wide as
    the reach this is bilinear interpolation, and beyond the outermost points it repeats them. Where the points near are too
    few for a say of `LEAST_SAY` in all, the rest is a mean of all points that weighs them by `((1 + x²) (1 + y²))⁻⁴`, in
    multiples of their reach, as in inverse distance weighting (Shepard 1968), so that every place has a score.

    Args:
        scores (`torch.Tensor` of shape `(batch_size, num_points, num_labels)`): computed in float32 at least.
        coordinates (`torch.Tensor` of shape `(batch_size or 1, num_points, 2)`): `(x, y)`, relative to the image.
        reach (`torch.Tensor` of shape `(batch_size or 1, num_points)`): in pixels of the image; 0 for points without a say.
        map_size (`tuple[int, int]`): `(height, width)` of the map, which covers the image.
        image_size (`tuple[int, int]`): `(height, width)` of the image in pixels.

    Returns:
        `torch.Tensor` of shape `(batch_size, num_labels, map_height, map_width)`.
    """
    # Autocast would round weights to 8 or 11 bits, and small ones to 0.
    with torch.autocast(scores.device.type, enabled=False):
        return _spread(scores, coordinates, reach, map_size, image_size)


def _spread(scores, coordinates, reach, map_size, image_size) -> torch.Tensor:
    """As [`spread_scores`]."""
    dtype = torch.promote_types(scores.dtype, torch.float32)
    has_say = (reach > 0).to(dtype)[..., None]
    reach = reach.to(dtype).clamp_min(torch.finfo(torch.float32).eps)[..., None]

    def distances(axis: int) -> torch.Tensor:
        """In multiples of a point's reach, `(batch_size or 1, num_points, map_size)`."""
        pixels, size = map_size[1 - axis], image_size[1 - axis]
        places = (torch.arange(pixels, dtype=dtype, device=scores.device) + 0.5) / pixels
        return (places - coordinates[..., axis : axis + 1].to(dtype)) * size / reach

    x, y = distances(0), distances(1)
    weighted = torch.cat([scores.to(dtype), torch.ones_like(scores[..., :1], dtype=dtype)], dim=-1) * has_say

    def weigh(of_x: torch.Tensor, of_y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Sums over points of scores, and of weights, `(batch_size, num_labels or 1, map_height, map_width)`."""
        rows = (weighted[..., None] * of_y[..., None, :]).flatten(2).transpose(1, 2)  # (batch_size, labels * height, points)
        sums = (rows @ of_x).unflatten(1, (-1, map_size[0]))
        return sums[:, :-1], sums[:, -1:]

    near, say = weigh((1 - x.abs()).clamp_min(0), (1 - y.abs()).clamp_min(0))
    if _is_enough(say):  # where windows cover, half of the work can be left out
        return near / say
    far, weight = weigh((1 + x.square()) ** -4, (1 + y.square()) ** -4)
    rest = (LEAST_SAY - say).clamp_min(0)
    return (near + rest * far / weight.clamp_min(torch.finfo(dtype).tiny)) / (say + rest)


def _is_enough(say: torch.Tensor) -> bool:
    """Whether it is known to be `LEAST_SAY` everywhere: to ask would make a device wait, or a graph depend on its input."""
    if say.device.type != "cpu" or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    try:
        return bool((say >= LEAST_SAY).all())
    except RuntimeError:  # of `torch.func.vmap`, which knows no values
        return False


class SpotViTSegmentationHead(nn.Module):
    """A token's features `(..., hidden_size)` to scores of `config.segmentation_scores_per_side²` points of its window, row by
    row: `(..., num_points, num_labels)`."""

    def __init__(self, config: SpotViTConfig):
        super().__init__()
        self.num_labels, self.num_points = config.num_labels, config.segmentation_scores_per_side**2
        width = config.segmentation_hidden_size or config.hidden_size
        self.dense = nn.Linear(config.hidden_size, width) if config.segmentation_hidden_size else None
        self.activation_fn = ACT2FN[config.hidden_act]
        self.classifier = nn.Linear(width, self.num_labels * self.num_points)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.dense is not None:
            hidden_states = self.activation_fn(self.dense(hidden_states))
        return self.classifier(hidden_states).unflatten(-1, (self.num_labels, self.num_points)).transpose(-1, -2)


class SpotViTForSemanticSegmentation(SpotViTPreTrainedModel):
    """SpotViT with a map of class scores over the image: a head on each token, and [`spread_scores`] from where tokens sit.

    A token's say reaches as far as its window is wide, times one factor for all tokens of an image, with which the windows'
    areas sum to the image's. So on the full grid, and wherever windows just cover, neighbours meet.
    """

    custom_pipelines = SEGMENTATION_PIPELINES
    accepts_loss_kwargs = False  # the loss is a mean over pixels: Trainer divides by its steps of accumulation

    def __init__(self, config: SpotViTConfig):
        config = config.without_pooling_head()
        super().__init__(config)
        self.num_labels = config.num_labels
        self.spot_vit = SpotViTModel(config)
        self.decode_head = SpotViTSegmentationHead(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        coordinates: torch.Tensor | None = None,
        coordinates_mask: torch.Tensor | None = None,
        window_scales: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_tokens: int | None = None,
        windows: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SemanticSegmenterOutput:
        r"""
        Args:
            pixel_values, coordinates, coordinates_mask, window_scales, windows: as in [`SpotViTModel.forward`]. Tokens do not
                merge here.
            labels (`torch.LongTensor` of shape `(batch_size, height, width)`, *optional*): the class of each pixel, in
                `[0, config.num_labels)`, or `config.semantic_loss_ignore_index`. Of any size: the map is interpolated to it.
            num_tokens (`int`, *optional*): instead of `coordinates`, how many tokens the model places itself, by
                `config.placement`; `config.num_tokens` by default, and where that is none, all cells of the grid.

        Returns:
            `SemanticSegmenterOutput`: `logits` `(batch_size, num_labels, height // 4, width // 4)`, float32 or above, over
            all of the image, and `loss`, the mean cross-entropy of the labelled pixels, where `labels` are given.

        Raises:
            `ValueError`: a tensor's shape or dtype is not as above, or `labels` are of other classes.
        """
        config = self.config
        if coordinates is None and windows is None:
            num_tokens = config.num_tokens if num_tokens is None else num_tokens  # type: ignore[assignment]
        elif num_tokens is not None:
            raise ValueError(f"`coordinates` and `num_tokens` exclude each other; got both (num_tokens={num_tokens!r})")
        if num_tokens is not None and (isinstance(num_tokens, bool) or not isinstance(num_tokens, int) or num_tokens < 1):
            raise ValueError(f"`num_tokens` must be one number of at least 1 in segmentation; got {num_tokens!r}")
        if kwargs.pop("merge_tokens", None):
            raise ValueError("`merge_tokens` must be 0 in segmentation: a merged token has no place of its own")
        check_model_inputs(config, pixel_values, coordinates, coordinates_mask, window_scales, windows)
        check_segmentation_labels(config, labels, (pixel_values if windows is None else windows).shape[0])  # type: ignore
        height, width = config.image_height_width if pixel_values is None else pixel_values.shape[-2:]
        if num_tokens is not None:
            assert pixel_values is not None
            coordinates, window_scales = place_images(config.placement, num_tokens, pixel_values, config.patch_size)
        outputs = self.spot_vit(
            pixel_values,
            coordinates,
            coordinates_mask,
            window_scales,
            merge_tokens=0.0,
            windows=windows,
            return_dict=True,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state[:, config.num_prefix_tokens :]
        if config.norm_after_pooling:  # there is no pooled token here: the norm is part of every token
            hidden_states = self.spot_vit.layernorm(hidden_states)
        scores = self.decode_head(hidden_states)  # (batch_size, num_tokens, num_points, num_labels)
        if coordinates is None:
            coordinates = grid(height, width, config.patch_size).to(scores.device)[None]
        places, reach = self._points(coordinates, coordinates_mask, window_scales, height, width)
        logits = spread_scores(scores.flatten(1, 2), places, reach, map_size_of(height, width), (height, width))
        return SemanticSegmenterOutput(
            loss=None if labels is None else self.loss_of(logits, labels),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def loss_of(self, logits: torch.Tensor, labels: torch.Tensor, label_smoothing: float = 0.0) -> torch.Tensor:
        """The mean cross-entropy over labelled pixels, a scalar; 0 where there is none. Arguments as of [`forward`]."""
        logits = nn.functional.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
        ignored = self.config.semantic_loss_ignore_index
        total = nn.functional.cross_entropy(
            logits, labels, ignore_index=ignored, reduction="sum", label_smoothing=label_smoothing
        )
        return total / (labels != ignored).sum().clamp_min(1)

    def _points(
        self,
        coordinates: torch.Tensor,
        mask: torch.Tensor | None,
        window_scales: torch.Tensor | None,
        height: int,
        width: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Where the head's scores lie, `(batch_size or 1, num_tokens * num_points, 2)`, and how far their say reaches, in
        pixels, `(batch_size or 1, num_tokens * num_points)`; 0 of padding."""
        patch_size, per_side = self.config.patch_size, self.config.segmentation_scores_per_side
        scales = torch.ones_like(coordinates[..., 0]) if window_scales is None else window_scales
        used = scales if mask is None else scales * mask.to(scales.dtype)
        num_cells = (height // patch_size) * (width // patch_size)
        factor = (num_cells / used.square().sum(-1, keepdim=True)).sqrt()
        reach = (used * factor * patch_size / per_side)[..., None].expand(-1, -1, per_side**2)
        steps = (torch.arange(per_side, device=scales.device, dtype=scales.dtype) + 0.5) / per_side - 0.5
        offsets = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), dim=-1).reshape(-1, 2)  # in windows
        side = patch_size * self.config.window_spacing / scales.new_tensor([width, height])
        places = coordinates[..., None, :] + scales[..., None, None] * offsets * side
        return places.flatten(1, 2), reach.flatten(1)


__all__ = ["SpotViTForSemanticSegmentation", "SpotViTSegmentationHead", "spread_scores"]
