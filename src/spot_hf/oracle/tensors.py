"""Small things that the oracle does to tensors."""

from typing import Any

import torch


def for_backward(tensor: torch.Tensor) -> torch.Tensor:
    """Without history. One that was made in inference mode is copied: autograd cannot keep it for the backward pass."""
    return tensor.clone() if tensor.is_inference() else tensor.detach()


def padded(values: list[torch.Tensor], mask: torch.Tensor | None, padding: torch.Tensor) -> torch.Tensor:
    """A batch `(batch_size, num_tokens, size)` of images' own `(tokens, size)`, with values of `padding` where `mask` is 0."""
    return torch.stack(values) if mask is None else padding.masked_scatter(mask[..., None], torch.cat(values))


def describe(value: Any) -> str:
    if not isinstance(value, torch.Tensor):
        return repr(value)[:80]
    found = f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    return f"{found} with values from {value.min().item()} to {value.max().item()}" if value.numel() else found
