"""Token merging: similar tokens become one, inside the network (ToMe, Bolya et al. 2023, arXiv 2210.09461).

Between attention and MLP of a layer, pairs of patch tokens with similar keys are replaced by their means. A token that stands
for `s` tokens counts `s` times in attention and in means (ToMe, sections 3 and 3.2).
"""

from collections.abc import Sequence

import torch
from torch import nn


def schedule_of(merge_tokens: float | Sequence[int], num_tokens: int, num_layers: int) -> list[int]:
    """
    How many tokens each layer merges.

    Args:
        merge_tokens (`float` or `list[int]`): the share of the tokens that is merged away by the last layer, evenly over the
            layers; or the numbers themselves, one per layer, of which a layer merges at most half of the tokens that it has.
        num_tokens (`int`), num_layers (`int`): patch tokens of an image, layers of the model.
    """
    if isinstance(merge_tokens, (list, tuple)):
        return _within_halves(merge_tokens, num_tokens)
    assert isinstance(merge_tokens, (int, float))
    fewest = num_tokens - sum(merge_at_rate(num_tokens, num_tokens, num_layers))
    return merge_schedule(num_tokens, max(fewest, round(num_tokens * (1 - merge_tokens))), num_layers)


def check_merge_tokens(merge_tokens: object, num_layers: int) -> None:
    """`ValueError` where it is neither a share nor a number per layer."""
    if isinstance(merge_tokens, (list, tuple)):
        accepted = len(merge_tokens) == num_layers and all(
            isinstance(one, int) and not isinstance(one, bool) and one >= 0 for one in merge_tokens
        )
    else:
        accepted = isinstance(merge_tokens, (int, float)) and not isinstance(merge_tokens, bool) and 0 <= merge_tokens < 1
    if not accepted:
        raise ValueError(
            f"`merge_tokens` must be a share of at least 0 and below 1, or {num_layers} numbers of at least 0, one per layer; "
            f"got {merge_tokens!r}"
        )


def merge_at_rate(num_tokens: int, rate: int, num_layers: int, num_kept: int = 1) -> list[int]:
    """Tokens to merge in each layer: `rate`, at most half of what a layer has, and not below `num_kept`."""
    return _within_halves([rate] * num_layers, num_tokens, num_kept)


def _within_halves(wanted: Sequence[int], num_tokens: int, num_kept: int = 1) -> list[int]:
    """As many as are wanted of each layer, at most half of what it has, and not below `num_kept`."""
    schedule, left = [], num_tokens
    for count in wanted:
        schedule.append(max(0, min(count, left // 2, left - num_kept)))
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
