"""What a forward pass costs, by its number of tokens."""

from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from ..export.graph import fixed_inputs


@torch.no_grad()
def cost_coefficients(model: Any) -> list[float]:
    """
    Floating point operations of an image, as PyTorch counts them in matrix products, convolutions and attention: `[a, b, c]`
    of `a + b n + c n²`, `n` being its number of tokens. Attention is quadratic, all the rest linear.
    """
    model = deepcopy(model).eval()
    model.set_attn_implementation("eager")
    counts = [1, 64, 128]
    flops = [_flops(lambda: model(**fixed_inputs(model.config, count))) for count in counts]  # noqa: B023
    highest_first = np.polyfit(counts, flops, 2)
    return [float(round(one)) for one in highest_first[::-1]]


@torch.no_grad()
def placer_cost(model: Any) -> float:
    """Of an image, what its placer costs; 0 where there is none."""
    if getattr(model, "placer", None) is None:
        return 0.0
    pixel_values = fixed_inputs(model.config, 1)["pixel_values"]
    return float(_flops(lambda: model.placer.place(pixel_values, 1)))


def _flops(run: Any) -> int:
    counter = FlopCounterMode(display=False)
    with counter:
        run()
    return counter.get_total_flops()
