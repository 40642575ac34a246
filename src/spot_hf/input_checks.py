"""What a person hands to the image processor or the pipeline, checked: a `ValueError` that names the argument, what was given
and what is accepted, before any image is processed."""

from typing import Any

import numpy as np
import torch


# Positions at the edge that were mapped between frames and back may lie outside by float32's rounding.
EDGE_TOLERANCE = 1e-6


def _to_array(name: str, value: Any) -> np.ndarray:
    """A float array of what a person gave, or a `ValueError` that names it."""
    try:
        if isinstance(value, torch.Tensor):
            value = value.detach().cpu().float().numpy()
        return np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"`{name}` must be numbers in a regular array; got {shorten(value)}") from None


def shorten(value: Any) -> str:
    """What a person gave, as it is shown in a message: one line, at most 80 characters."""
    text = repr(value).replace("\n", " ")
    return text if len(text) <= 80 else text[:77] + "..."


def _is_one_set(value: Any) -> bool:
    """Whether `value` is a single (num_tokens, 2) set rather than one set per image."""
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return value.ndim == 2
    first = value[0]
    if isinstance(first, (torch.Tensor, np.ndarray)):
        return first.ndim == 1
    return isinstance(first, (list, tuple)) and bool(len(first)) and not isinstance(first[0], (list, tuple, np.ndarray))


def check_coordinates(coordinates: Any) -> tuple[list[np.ndarray], bool]:
    """
    Reads coordinates that a person gave.

    Args:
        coordinates (`torch.Tensor`, `np.ndarray` or nested list): one set `(num_tokens, 2)`, or one set per image.

    Returns:
        `tuple[list[np.ndarray], bool]`: the sets, each float32 `(num_tokens, 2)`, and whether it was one set for all.

    Raises:
        `ValueError`: wrong shape, no tokens, NaN or infinity, a value outside [0, 1].
    """
    accepted = "shape (num_tokens, 2) for all images, or one such set per image, as (x, y) in [0, 1]"
    if not isinstance(coordinates, (torch.Tensor, np.ndarray, list, tuple)):
        raise ValueError(
            f"`coordinates` must be a tensor, an array or a nested list of {accepted}; got {shorten(coordinates)}"
        )
    if isinstance(coordinates, (torch.Tensor, np.ndarray)) and coordinates.ndim not in (2, 3):
        raise ValueError(f"`coordinates` must have {accepted}; got shape {tuple(coordinates.shape)}")
    if len(coordinates) == 0:
        raise ValueError(f"`coordinates` must hold at least one token, in {accepted}; got none")
    one_set = _is_one_set(coordinates)
    sets = []
    for i, values in enumerate([coordinates] if one_set else coordinates):
        where = "`coordinates`" if one_set else f"`coordinates` of image {i}"
        array = _to_array("coordinates", values)
        if (array.ndim == 2 and array.shape[0] == 0) or array.size == 0:
            raise ValueError(f"{where} must hold at least one token; got shape {array.shape}")
        if array.ndim != 2 or array.shape[1] != 2:
            raise ValueError(f"{where} must have {accepted}; got shape {array.shape}")
        if not np.isfinite(array).all():
            bad = int(np.argwhere(~np.isfinite(array))[0, 0])
            raise ValueError(f"{where} must be finite numbers in [0, 1]; token {bad} is {array[bad].tolist()}")
        if array.min() < -EDGE_TOLERANCE or array.max() > 1 + EDGE_TOLERANCE:
            bad = int(np.argwhere((array < -EDGE_TOLERANCE) | (array > 1 + EDGE_TOLERANCE))[0, 0])
            raise ValueError(
                f"{where} must lie in [0, 1], relative to the image's size, as (x, y); token {bad} is {array[bad].tolist()}"
            )
        sets.append(array.clip(0, 1).astype(np.float32))
    return sets, one_set


def check_saliency(saliency: Any, num_images: int) -> list[np.ndarray]:
    """One float64 map `(rows, columns)` per image, or a `ValueError` that names `saliency`."""
    if isinstance(saliency, (torch.Tensor, np.ndarray)):
        maps = [saliency] if saliency.ndim == 2 else list(saliency)
    elif isinstance(saliency, (list, tuple)) and len(saliency):
        maps = [saliency] if _to_array("saliency", saliency[0]).ndim == 1 else list(saliency)
    else:
        raise ValueError(f"`saliency` must be one map (rows, columns) per image; got {shorten(saliency)}")
    if len(maps) != num_images:
        raise ValueError(f"`saliency` must hold one map per image, {num_images}; got {len(maps)}")
    arrays = [_to_array("saliency", one) for one in maps]
    for i, array in enumerate(arrays):
        if array.ndim != 2 or array.size == 0:
            raise ValueError(f"`saliency` of image {i} must have shape (rows, columns); got {array.shape}")
        if not np.isfinite(array).all() or array.min() < 0:
            raise ValueError(f"`saliency` of image {i} must be finite and not negative; its minimum is {array.min()}")
        if not array.any():
            raise ValueError(f"`saliency` of image {i} must not be zero everywhere; got a map of shape {array.shape}")
    return arrays


def check_window_scales(window_scales: Any) -> np.ndarray:
    """
    Reads the window scales of one image's tokens.

    Args:
        window_scales (`torch.Tensor`, `np.ndarray` or list of shape `(num_tokens,)`): multiples of the distance between a
            window's samples.

    Returns:
        `np.ndarray` of shape `(num_tokens,)`: float32.

    Raises:
        `ValueError`: another shape, or a scale that is not finite and above 0.
    """
    array = _to_array("window_scales", window_scales)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"`window_scales` must hold one scale per token, (num_tokens,); got shape {array.shape}")
    with np.errstate(over="ignore"):  # to infinity, which is refused
        scales = array.astype(np.float32)
    wrong = ~(np.isfinite(scales) & (scales > 0))
    if wrong.any():
        token = int(wrong.argmax())
        raise ValueError(f"`window_scales` must be finite and above 0; that of token {token} is {array[token]}")
    return scales
