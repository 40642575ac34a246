"""The oracle's optimizers, by name."""

from collections.abc import Callable

import torch


class SignDescent(torch.optim.Optimizer):
    """A step of the learning rate against each gradient's sign."""

    def __init__(self, params, lr: float = 3e-3):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad.sign(), alpha=group["lr"])


def _optimizers() -> dict[str, Callable[..., torch.optim.Optimizer]]:
    """By lower-case name. Not LBFGS, which needs to evaluate the model by itself, nor SparseAdam, for sparse gradients."""
    found: dict[str, Callable[..., torch.optim.Optimizer]] = {"sign": SignDescent}
    for name in dir(torch.optim):
        kind = getattr(torch.optim, name)
        if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer):
            found[name.lower()] = kind
    return {name: kind for name, kind in found.items() if name not in ("optimizer", "lbfgs", "sparseadam")}


OPTIMIZERS = _optimizers()
