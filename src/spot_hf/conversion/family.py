"""What a family of checkpoints is: names, and what its config says."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .errors import ConversionError
from .sources import Source


@dataclass(frozen=True)
class Family:
    """How one family's files become SpotViT: its names, and what its config says."""

    table: dict[str, str]
    describe: Callable[[Source], dict[str, Any]]
    layer_name: str  # of the source, up to the layer's number
    # Whether position embeddings are a channel of the windows, beside the image's, rather than a table.
    position_channel: bool = False
    # How the source interpolates its position table for images of another size: `config.position_interpolation`.
    interpolation: dict[str, Any] | None = None
    # Whether it always does, from the size in its config to that of its recipe.
    follows_recipe: bool = False
    # Whether the table may have no position for the class token (timm's `no_embed_class`), or one for each register.
    varied_positions: bool = False
    # Modules that have a bias here and none in the source, by the end of their names: zeros, then.
    without_bias: Callable[[Source], tuple[str, ...]] = lambda source: ()
    # Tensors that are skipped beside `SKIPPED`: patterns of names, and why.
    unused: Callable[[Source], dict[str, str]] = lambda source: {}
    # Where each number of a head's queries and keys, of a width, lies in the source's, if elsewhere: of another rotary layout.
    order_within_heads: Callable[[Source, int], torch.Tensor | None] = lambda source, head_dim: None


def square(name: str, value: Any) -> int:
    if isinstance(value, (list, tuple)):
        if len(set(value)) != 1:
            raise ConversionError(f"`{name}` must be square; got {list(value)}")
        value = value[0]
    return int(value)


# Heads of timm's ViTs are 64 wide, but for these hidden sizes (64: `test_vit`).
TIMM_HEADS = {64: 2, 1152: 16, 1280: 16, 1408: 16, 1664: 16}


def stated_heads(source: Source, hidden_size: int) -> int:
    """The number of attention heads of a checkpoint whose config does not say it: as stated by the caller, or of width 64."""
    if source.num_attention_heads is not None:
        return source.num_attention_heads
    if hidden_size not in TIMM_HEADS and hidden_size % 64:
        raise ConversionError(
            f"{source.name} does not say its number of heads, and {hidden_size} is no multiple of 64: give "
            "`num_attention_heads`"
        )
    return TIMM_HEADS.get(hidden_size, hidden_size // 64)


def count_layers(source: Source, layer_name: str) -> int:
    numbers = {name.split(".")[layer_name.count(".") + 1] for name in source.tensors if name.startswith(layer_name + ".")}
    return 1 + max((int(number) for number in numbers if number.isdecimal()), default=-1)
