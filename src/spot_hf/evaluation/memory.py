"""How much memory a computation needs for its tensors: counted, not sampled, so that a figure can be repeated."""

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakMemory(TorchDispatchMode):
    """
    Counts the bytes of the tensors that are made inside of it and live at the same time, those that the backward pass keeps
    among them. What was there before, such as weights and inputs, is not counted, nor is what a kernel needs for itself. It
    means the same on every device, and depends on shapes and dtypes alone.

    ```python
    >>> with PeakMemory() as memory:
    ...     model(pixel_values)
    >>> memory.peak  # bytes
    ```
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        for value in _tensors((args, kwargs)):
            self._follow(value.untyped_storage(), 0)  # made inside, and known, or made before
        result = function(*args, **kwargs)
        for value in _tensors(result):
            self._follow(value.untyped_storage(), value.untyped_storage().nbytes())
        return result

    def _follow(self, storage: torch.UntypedStorage, size: int) -> None:
        """Counts a storage that is new, until it is freed. Views, and what is written in place, share one."""
        key = id(storage)
        if key in self._known:
            return

        def freed(_: Any) -> None:
            self.now -= size
            del self._known[key]

        self._known[key] = weakref.ref(storage, freed)
        self.now += size
        self.peak = max(self.peak, self.now)


def _tensors(values: Any) -> list[torch.Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, torch.Tensor)]
