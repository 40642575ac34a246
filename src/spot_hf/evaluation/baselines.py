"""Alternatives to freely placed tokens, at the same number of tokens. Each takes a converted SpotViT, which on its full grid
is its source model, and returns what is called in the same way, with `pixel_values`.

- [`TokenMerging`]: ToMe (Bolya et al. 2023, arXiv 2210.09461) merges tokens inside the network.
- Larger windows are a placement: isotropic tokens with scales that cover (`cells.py`).
- [`shrink`]: the image is made smaller, so that its grid has fewer cells: the first thing to try.
"""

import copy
import math
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import ImageClassifierOutput

from ..modeling_spot_vit import SpotViTForImageClassification, SpotViTModel


# ----------------------------------------------------------------------------------------------------- token merging


def merge_at_rate(num_tokens: int, rate: int, num_layers: int, num_kept: int = 1) -> list[int]:
    """Tokens to merge in each layer: `rate`, at most half of what a layer has, and not below `num_kept`."""
    schedule, left = [], num_tokens
    for _ in range(num_layers):
        schedule.append(max(0, min(rate, left // 2, left - num_kept)))
        left -= schedule[-1]
    return schedule


def merge_schedule(num_tokens: int, num_kept: int, num_layers: int) -> list[int]:
    """
    Tokens to merge in each layer, as evenly as can be, so that `num_kept` of `num_tokens` are left after the last.

    Raises:
        `ValueError`: fewer would be left even if every layer merged half.
    """
    for rate in range(num_tokens + 1):  # the lowest that is high enough; the surplus is taken from the last layers
        schedule = merge_at_rate(num_tokens, rate, num_layers, num_kept)
        if num_tokens - sum(schedule) == num_kept:
            return schedule
    fewest = num_tokens - sum(merge_at_rate(num_tokens, num_tokens, num_layers))
    raise ValueError(f"`num_kept` must be {fewest} to {num_tokens} with {num_layers} layers; got {num_kept}")


def merge_schedule_of_cost(num_tokens: int, num_placed: int, hidden_size: int, num_layers: int) -> list[int]:
    """The schedule of one rate for all layers whose multiplications are nearest to those of `num_placed` tokens without
    merging. Merging halves at most, so that its first layers set a floor."""

    def attention(count: int) -> int:
        return 4 * count * hidden_size**2 + 2 * count**2 * hidden_size

    def cost(schedule: list[int]) -> int:
        total, left = 0, num_tokens
        for merged in schedule:
            total += attention(left)
            left -= merged
            total += 8 * left * hidden_size**2  # the MLP
        return total

    wanted = num_layers * (attention(num_placed) + 8 * num_placed * hidden_size**2)
    schedules = [merge_at_rate(num_tokens, rate, num_layers) for rate in range(num_tokens // 2 + 1)]
    return min(schedules, key=lambda schedule: abs(cost(schedule) - wanted))


def bipartite_soft_matching(keys: torch.Tensor, num_merged: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Which tokens to merge with which: tokens are put alternately into two sets; each of the first proposes the most similar of
    the second, by the cosine of their keys; the most similar pairs merge.

    Args:
        keys (`torch.Tensor` of shape `(batch_size, num_tokens, head_dim)`): the attention's keys, averaged over its heads,
            without the class token.
        num_merged (`int`): pairs, at most half of the tokens.

    Returns:
        Three `torch.LongTensor`, positions in the sequence: `kept` `(batch_size, num_tokens // 2 rounded up - num_merged)` of
        the first set, `source` and `target` `(batch_size, num_merged)`: each source, of the first set, merges into its target,
        of the second.
    """
    keys = nn.functional.normalize(keys.float(), dim=-1)
    similarity = keys[:, 0::2] @ keys[:, 1::2].transpose(1, 2)
    best, partner = similarity.max(-1)
    order = best.argsort(dim=-1, descending=True, stable=True)
    source, kept = order[:, :num_merged], order[:, num_merged:].sort(dim=-1).values
    return 2 * kept, 2 * source, 2 * partner.gather(1, source) + 1


def merge_tokens(
    hidden_states: torch.Tensor, sizes: torch.Tensor, keys: torch.Tensor, num_merged: int, num_prefix_tokens: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Replaces pairs of patch tokens by their means, weighted by how many cells each stands for.

    Args:
        hidden_states (`torch.Tensor` of shape `(batch_size, sequence, hidden_size)`).
        sizes (`torch.Tensor` of shape `(batch_size, sequence)`): cells that each token stands for.
        keys (`torch.Tensor` of shape `(batch_size, sequence, head_dim)`): means over the heads.
        num_merged (`int`): tokens fewer afterwards.
        num_prefix_tokens (`int`): at the beginning of the sequence, which never merge.
    """
    prefix, patches = hidden_states[:, :num_prefix_tokens], hidden_states[:, num_prefix_tokens:]
    prefix_sizes, patch_sizes = sizes[:, :num_prefix_tokens], sizes[:, num_prefix_tokens:]
    kept, source, target = bipartite_soft_matching(keys[:, num_prefix_tokens:], num_merged)
    weighted = patches * patch_sizes[..., None]
    hidden_size = patches.shape[-1]

    def take(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return values.gather(1, index[..., None].expand(-1, -1, hidden_size)) if values.ndim == 3 else values.gather(1, index)

    # Of the second set all stay, and take in what merges into them.
    into = (target - 1) // 2
    second = weighted[:, 1::2].scatter_add(1, into[..., None].expand(-1, -1, hidden_size), take(weighted, source))
    second_sizes = patch_sizes[:, 1::2].scatter_add(1, into, take(patch_sizes, source))
    merged_sizes = torch.cat([take(patch_sizes, kept), second_sizes], dim=1)
    merged = torch.cat([take(weighted, kept), second], dim=1) / merged_sizes[..., None]
    return torch.cat([prefix, merged], dim=1), torch.cat([prefix_sizes, merged_sizes], dim=1)


class TokenMerging(nn.Module):
    """
    A SpotViT on its full grid that merges tokens in every layer, between attention and MLP, with proportional attention: a
    token that stands for `s` cells counts `s` times (ToMe, arXiv 2210.09461, sections 3 and 3.2).

    Args:
        model ([`SpotViTForImageClassification`]): converted; is not changed.
        schedule (`list[int]`): tokens to merge in each layer, such as of [`merge_schedule`]. All zero: the model itself.
    """

    def __init__(self, model: SpotViTForImageClassification, schedule: list[int]):
        super().__init__()
        if len(schedule) != model.config.num_hidden_layers:
            raise ValueError(
                f"`schedule` must have {model.config.num_hidden_layers} numbers, one per layer; got {len(schedule)}"
            )
        self.model, self.schedule = model, schedule
        self.config = model.config

    def forward(self, pixel_values: torch.Tensor) -> ImageClassifierOutput:
        """`pixel_values` `(batch_size, num_channels, height, width)` to an output with `logits` `(batch_size, num_labels)`."""
        return ImageClassifierOutput(logits=self.model.classifier(self.features(pixel_values)))

    def features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The pooled feature, `(batch_size, pooled_size)`."""
        encoder, config = self.model.spot_vit, self.config
        hidden_states = encoder.embeddings(pixel_values)
        sizes: torch.Tensor | None = None  # as long as every token stands for one cell
        layer: Any
        for layer, num_merged in zip(encoder.layers, self.schedule, strict=True):
            attended, keys = _attend(layer, layer.norm1(hidden_states), sizes)
            hidden_states = hidden_states + layer.layer_scale1(attended)
            if num_merged:
                sizes = hidden_states.new_ones(hidden_states.shape[:2]) if sizes is None else sizes
                hidden_states, sizes = merge_tokens(hidden_states, sizes, keys, num_merged, config.num_prefix_tokens)
            hidden_states = hidden_states + layer.layer_scale2(layer.mlp(layer.norm2(hidden_states)))
        return _pool(encoder, hidden_states, sizes)


def _attend(layer: Any, hidden_states: torch.Tensor, sizes: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention in which a token counts as often as its size says, and the keys' mean over the heads."""
    attention = layer.attention
    heads = (*hidden_states.shape[:2], -1, attention.head_dim)
    query, key, value = (
        projection(hidden_states).view(heads).transpose(1, 2)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    # To count s times in the softmax is to add log s.
    bias = None if sizes is None else sizes.log()[:, None, None, :]
    output = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=attention.scaling)
    output = output.transpose(1, 2).flatten(2)
    return attention.o_proj(output), key.mean(1)


def _pool(encoder: SpotViTModel, hidden_states: torch.Tensor, sizes: torch.Tensor | None) -> torch.Tensor:
    """As the model pools, where a mean is over cells, not over tokens."""
    config = encoder.config
    if not config.norm_after_pooling:
        hidden_states = encoder.layernorm(hidden_states)
    if config.pooling == "cls":
        pooled = hidden_states[:, 0]
    elif config.pooling == "cls_distillation":
        pooled = hidden_states[:, :2].flatten(1)
    else:
        patches = hidden_states[:, config.num_prefix_tokens :]
        weights = torch.ones_like(patches[..., :1]) if sizes is None else sizes[:, config.num_prefix_tokens :, None]
        mean = (patches * weights).sum(1) / weights.sum(1)
        pooled = mean if config.pooling == "mean" else torch.cat([hidden_states[:, 0], mean], dim=1)
    return encoder.layernorm(pooled) if config.norm_after_pooling else pooled


# ------------------------------------------------------------------------------------------- smaller images, larger windows


def shrunken_size(num_tokens: int, height: int, width: int, patch_size: int) -> tuple[int, int]:
    """`(height, width)` in pixels, multiples of the patch, of an image of that shape with about `num_tokens` cells."""
    rows = max(1, round(math.sqrt(num_tokens * height / width)))
    return rows * patch_size, max(1, round(num_tokens / rows)) * patch_size


def shrink(model: SpotViTForImageClassification, height: int, width: int) -> SpotViTForImageClassification:
    """
    A copy of the model for smaller images, see [`SpotViTPreTrainedModel.resize_position_embeddings`]: its position table is
    interpolated as its source's family does; the kernel of a released SPoT checkpoint follows the images' size by itself.

    Args:
        model ([`SpotViTForImageClassification`]): is not changed.
        height (`int`), width (`int`): of the images, in pixels.
    """
    shrunken = copy.deepcopy(model)
    shrunken.resize_position_embeddings(height, width)
    return shrunken


# By name, with a description.
BASELINES = {
    "full_grid": "the model on all cells of its grid",
    "shrunken_image": "the model on an image shrunk to that many cells, position table interpolated as the source does",
    "larger_windows": "isotropic, with windows so large that they cover the image",
    "token_merging": "ToMe, merging down to that many tokens by the last layer",
    "token_merging_same_cost": "ToMe, merging as much as makes it as cheap as that many tokens",
}
