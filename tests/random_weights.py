"""Random weights under which every parameter matters: a fresh model's zeros and ones would hide what is lost or swapped."""

from collections.abc import Callable

import torch
from torch import nn


@torch.no_grad()
def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Fills all parameters with noise: factors around 1, matrices so that activations keep their size, all else around 0."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1 and not name.endswith("bias"):  # norms and layer scales
            parameter.copy_(1 + 0.3 * noise)
        elif parameter.ndim == 1 or parameter.shape[0] == 1:  # biases, tokens, position tables
            parameter.copy_(0.4 * noise)
        else:
            parameter.copy_(1.5 * noise / parameter[0].numel() ** 0.5)
    return model.eval()


@torch.no_grad()
def assert_every_parameter_matters(model: nn.Module, run: Callable[[], torch.Tensor], at_least: float) -> None:
    """Fails where a change of one parameter changes `run()` by less than `at_least`: a parity test would not see it lost."""
    expected = run()
    for name, parameter in model.named_parameters():
        # They add the same to all of a query's scores: the softmax removes it.
        if name.endswith(("k_proj.bias", "k_norm.bias")):
            continue
        before = parameter.clone()
        parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        change = (run() - expected).abs().max().item()
        parameter.copy_(before)
        assert change >= at_least, f"{name} hardly matters: {change}"
