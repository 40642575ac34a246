"""Alternatives to freely placed tokens, at the same number of tokens, of a converted SpotViT, which on its full grid is its
source model.

- Token merging inside the network (ToMe, arXiv 2210.09461) is the model's own, on its full grid (`merging.py`).
- Larger windows are a placement: isotropic tokens with scales that cover (`cells.py`).
- [`shrink`]: the image is made smaller, so that its grid has fewer cells: the first thing to try.
"""

import copy
import math
from typing import Any, TypeVar

from ..merging import merge_at_rate


Model = TypeVar("Model", bound=Any)


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


# ------------------------------------------------------------------------------------------- smaller images, larger windows


def shrunken_size(num_tokens: int, height: int, width: int, patch_size: int) -> tuple[int, int]:
    """`(height, width)` in pixels, multiples of the patch, of an image of that shape with about `num_tokens` cells."""
    rows = max(1, round(math.sqrt(num_tokens * height / width)))
    return rows * patch_size, max(1, round(num_tokens / rows)) * patch_size


def shrink(model: Model, height: int, width: int) -> Model:
    """
    A copy of the model for smaller images, see [`SpotViTPreTrainedModel.resize_position_embeddings`]: its position table is
    interpolated as its source's family does; the kernel of a released SPoT checkpoint follows the images' size by itself, and
    so does a CNN.

    Args:
        model ([`SpotViTForImageClassification`] or [`SpotCNNForImageClassification`]): is not changed.
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
OF_VITS = ("token_merging", "token_merging_same_cost")  # which a CNN has not
