"""What a person hands to the image processor or the pipeline, checked: a `ValueError` that names the argument, what was given
and what is accepted, before any image is processed."""

import warnings
from typing import Any

import numpy as np
import torch
from torch import nn

from .merging import check_merge_tokens
from .placement import COVER


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


BOXES = "[x_min, y_min, x_max, y_max] in pixels of the original image, 0 being its left or top edge: one or several per image"


def check_boxes(boxes: Any, num_images: int) -> list[np.ndarray]:
    """
    Reads boxes that a person gave.

    Args:
        boxes (`torch.Tensor`, `np.ndarray` or nested list): for one image, one box `(4,)` or several `(num_boxes, 4)`; for a
            list of images, as many of these.
        num_images (`int`): how many images there are.

    Returns:
        `list[np.ndarray]`: of each image, float64 `(num_boxes, 4)`.

    Raises:
        `ValueError`: another shape or number.
    """
    if not isinstance(boxes, (torch.Tensor, np.ndarray, list, tuple)) or len(boxes) == 0:
        raise ValueError(f"`boxes` must be {BOXES}; got {shorten(boxes)}")
    per_image = [boxes] if num_images == 1 and _depth(boxes) < 3 else list(boxes)
    if len(per_image) != num_images:
        raise ValueError(f"`boxes` must hold one or several boxes per image, for {num_images} images; got {len(per_image)}")
    arrays = [_to_array("boxes", one) for one in per_image]
    for i, array in enumerate(arrays):
        if array.ndim not in (1, 2) or array.shape[-1] != 4 or array.size == 0:
            raise ValueError(f"`boxes` of image {i} must be {BOXES}; got shape {array.shape}")
    return [array.reshape(-1, 4) for array in arrays]


def boxes_to_map(boxes: np.ndarray, image_size: tuple[int, int], subject: str) -> np.ndarray:
    """
    A saliency map: 1 in each pixel that a box touches, else 0.

    Args:
        boxes (`np.ndarray` of shape `(num_boxes, 4)`): as [`check_boxes`] returns them.
        image_size (`tuple[int, int]`): `(width, height)` of the original image in pixels.
        subject (`str`): whose boxes these are, for a message.

    Returns:
        `np.ndarray` of shape `(height, width)`, float32.

    Raises:
        `ValueError`: a box is empty, or reaches out of the image.
    """
    width, height = image_size
    found = np.zeros((height, width), dtype=np.float32)
    for box in boxes:
        x_min, y_min, x_max, y_max = box
        if not (0 <= x_min < x_max <= width and 0 <= y_min < y_max <= height):  # also refuses NaN
            raise ValueError(
                f"{subject} must be boxes [x_min, y_min, x_max, y_max] that are not empty and lie inside of the image, which "
                f"is {width} wide and {height} high; got {box.tolist()}"
            )
        found[int(y_min) : int(np.ceil(y_max)), int(x_min) : int(np.ceil(x_max))] = 1
    return found


def _depth(value: Any) -> int:
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return value.ndim
    return 1 + _depth(value[0]) if isinstance(value, (list, tuple)) and len(value) else 0


def check_saliency(saliency: Any, num_images: int) -> list[np.ndarray]:
    """One float64 map `(rows, columns)` per image, or a `ValueError` that names `saliency`."""
    if 0 < _depth(saliency) < 3:  # before maps are counted
        _refuse_boxes("`saliency`", _to_array("saliency", saliency))
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
        _refuse_boxes(f"`saliency` of image {i}", array)
        if array.ndim != 2 or array.size == 0:
            raise ValueError(f"`saliency` of image {i} must have shape (rows, columns); got {array.shape}")
        if not np.isfinite(array).all() or array.min() < 0:
            raise ValueError(f"`saliency` of image {i} must be finite and not negative; its minimum is {array.min()}")
        if not array.any():
            raise ValueError(f"`saliency` of image {i} must not be zero everywhere; got a map of shape {array.shape}")
    return arrays


def _refuse_boxes(subject: str, array: np.ndarray) -> None:
    """`ValueError` where boxes were given for a map."""
    if _looks_like_boxes(array):
        raise ValueError(
            f"{subject} must be a map (rows, columns); four numbers are a box, which `boxes` takes: got "
            f"{shorten(array.tolist())}"
        )


def _looks_like_boxes(array: np.ndarray) -> bool:
    """Four numbers, or rows of four that grow as corners in pixels do."""
    if array.shape in ((4,), (1, 4)):
        return True
    if array.ndim != 2 or array.shape[1] != 4 or not array.size:
        return False
    return bool((array[:, 0] < array[:, 2]).all() and (array[:, 1] < array[:, 3]).all() and array.max() > 1)


def expand_window_scales(scales: list[np.ndarray], counts: list[int]) -> list[np.ndarray]:
    """
    The window scales of several images' tokens.

    Args:
        scales (`list[np.ndarray]`): lists of them, as [`check_window_scales`] returns these.
        counts (`list[int]`): each image's number of tokens.

    Returns:
        `list[np.ndarray]`: of each image, float32 `(num_tokens,)`.

    Raises:
        `ValueError`: another number of lists than of images, or of scales than of tokens.
    """
    if len(scales) == 1:
        scales = scales * len(counts)
    if len(scales) != len(counts):
        raise ValueError(f"`window_scales` must hold one list per image, {len(counts)}; got {len(scales)}")
    for i, (one, count) in enumerate(zip(scales, counts, strict=True)):
        if len(one) != count:
            where = f" of image {i}" if len(counts) > 1 else ""
            raise ValueError(f"`window_scales` must hold one scale per token{where}, {count}; got {len(one)}")
    return scales


OUTSIDE = ("warn", "drop", "error")


def check_outside(outside: Any) -> None:
    """`ValueError` where it is none of `OUTSIDE`."""
    if outside not in OUTSIDE:
        raise ValueError(f"`outside` must be one of {', '.join(OUTSIDE)}; got {outside!r}")


DECODE = ("exact", "scaled")


def check_decode(decode: Any) -> None:
    """`ValueError` where it is none of `DECODE`."""
    if decode not in DECODE:
        raise ValueError(f"`decode` must be one of {', '.join(DECODE)}; got {decode!r}")


def inside_image(sets: list[np.ndarray], outside: str) -> list[np.ndarray]:
    """
    Which tokens lie on what the model sees.

    Args:
        sets (`list[np.ndarray]`): of each image, positions `(num_tokens, 2)`, model frame.
        outside (`str`): of `OUTSIDE`: what becomes of tokens that the crop has removed. `"warn"`: they stay, and see repeated
            border pixels.

    Returns:
        `list[np.ndarray]`: of each image, bool `(num_tokens,)`: the tokens to keep.

    Raises:
        `ValueError`: with `"error"`, where there are any; with `"drop"`, where an image would have none left.
    """
    inside: list[np.ndarray] = [np.all((one >= -EDGE_TOLERANCE) & (one <= 1 + EDGE_TOLERANCE), axis=-1) for one in sets]
    num_tokens, num_outside = sum(map(len, sets)), sum(int((~one).sum()) for one in inside)
    if not num_outside:
        return inside
    first = next(i for i, one in enumerate(inside) if not one.all())
    subject = (
        f"{num_outside} of {num_tokens} tokens lie outside of what the model sees of the image, such as one of image {first}"
    )
    if outside == "error":
        raise ValueError(f"`coordinates`: {subject}: the crop removes them")
    if outside == "drop":
        empty = [i for i, one in enumerate(inside) if not one.any()]
        if empty:
            raise ValueError(f"`coordinates`: all tokens of image {empty[0]} lie outside of what the model sees of it")
        return inside
    warnings.warn(f"{subject}: they see repeated border pixels. `outside` can be 'drop' or 'error'", stacklevel=2)
    return [np.ones_like(one) for one in inside]


def check_window_scales(window_scales: Any) -> Any:
    """
    Reads window scales that a person gave.

    Args:
        window_scales (`float`, `str`, `torch.Tensor`, `np.ndarray` or nested list): multiples of the distance between a
            window's samples: one for all tokens, one per token `(num_tokens,)`, or one such list per image; or `"cover"`.

    Returns:
        `"cover"`; a `float`, for all tokens; or `list[np.ndarray]`: one for all images, or one per image, float32
        `(num_tokens,)`.

    Raises:
        `ValueError`: another shape, or a scale that is not finite and above 0.
    """
    if isinstance(window_scales, str):
        if window_scales == COVER:
            return COVER
        raise ValueError(f"`window_scales` must be numbers above 0, or {COVER!r}; got {window_scales!r}")
    depth = _depth(window_scales)
    arrays = [_to_array("window_scales", one) for one in ([window_scales] if depth < 2 else window_scales)]
    scales = []
    for array in arrays:
        if array.ndim != min(depth, 1) or array.size == 0:
            raise ValueError(
                "`window_scales` must be one scale, one per token (num_tokens,), or one such list per image; got shape "
                f"{np.shape(window_scales) if depth < 2 else array.shape}"
            )
        with np.errstate(over="ignore"):  # to infinity, which is refused
            scales.append(array.astype(np.float32))
        wrong = ~np.atleast_1d(np.isfinite(scales[-1]) & (scales[-1] > 0))
        if wrong.any():
            token = int(wrong.argmax())
            raise ValueError(
                f"`window_scales` must be finite and above 0; that of token {token} is {np.atleast_1d(array)[token]}"
            )
    return float(scales[0]) if depth == 0 else scales


# Of the image's width or height: what lies farther away was given in pixels.
FARTHEST = 10.0


def check_values(coordinates: torch.Tensor, window_scales: torch.Tensor | None) -> None:
    """
    `ValueError` for values of a model's input that no image processor gives: not finite, in pixels, or scales that are not
    above 0. Reads the values, for which an accelerator has to be waited for.

    Args:
        coordinates (`torch.Tensor` of shape `(batch_size, num_tokens, 2)`): `(x, y)`, model frame.
        window_scales (`torch.Tensor` of shape `(batch_size, num_tokens)`, *optional*): in patches.
    """
    wrong = ~(coordinates.detach().abs() <= FARTHEST).all(-1)  # also of NaN
    try:
        is_wrong = bool(wrong.any())
    except RuntimeError:  # under `torch.func.vmap`, there are no values to be read
        return
    if is_wrong:
        image, token = wrong.nonzero()[0].tolist()
        raise ValueError(
            "`coordinates` must be finite and relative to `pixel_values`, as (x, y): 0 and 1 are its edges; token "
            f"{token} of image {image} is {coordinates[image, token].tolist()}. The image processor's "
            "`coordinates_from_pixels` turns pixels into coordinates"
        )
    if window_scales is not None:
        wrong = ~((window_scales.detach() > 0) & window_scales.detach().isfinite())
        if wrong.any():
            image, token = wrong.nonzero()[0].tolist()
            value = window_scales[image, token].item()
            raise ValueError(f"`window_scales` must be finite and above 0; that of token {token} of image {image} is {value}")


# -------------------------------------------------------------------------------------------------- of a model's forward pass


def _fits_batch(tensor: torch.Tensor, batch_size: int) -> bool:
    """Whether it has one entry for all images, or one per image. Written without `in`, which compares symbols, not sizes,
    while a graph for several sizes is traced."""
    return tensor.shape[0] == 1 or tensor.shape[0] == batch_size


def _is_traced(tensor: torch.Tensor) -> bool:
    """Whether it stands for tensors of any values, as while a graph is made: then it is of a class of its own, or a flag is
    set."""
    is_plain = type(tensor) in (torch.Tensor, nn.Parameter)
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or not is_plain


def check_model_inputs(
    config: Any,
    pixel_values: Any,
    coordinates: Any = None,
    coordinates_mask: Any = None,
    window_scales: Any = None,
    windows: Any = None,
) -> None:
    """Of a model's forward pass: one `ValueError` that names the argument, before any compute. Values only on the CPU, or with
    `config.check_inputs`: elsewhere the device would have to be waited for, and the image processor has checked them."""
    channels, patch_size = config.num_channels, config.patch_size
    if windows is not None:
        _check_windows(config, pixel_values, coordinates, windows)
    elif pixel_values is None:
        raise ValueError("`pixel_values` is required: a tensor of shape (batch_size, num_channels, height, width)")
    elif (
        pixel_values.ndim != 4
        or pixel_values.shape[1] != channels
        or any(side < patch_size for side in pixel_values.shape[2:])  # not by their minimum, which says which one is smaller
    ):
        raise ValueError(
            f"`pixel_values` must have shape (batch_size, {channels}, height, width) with height and width of at "
            f"least patch_size={patch_size}; got {tuple(pixel_values.shape)}"
        )
    batch_size = (pixel_values if windows is None else windows).shape[0]
    given = {"coordinates": coordinates, "coordinates_mask": coordinates_mask, "window_scales": window_scales}
    for name, value in given.items():
        if value is not None and not isinstance(value, torch.Tensor):
            raise ValueError(f"`{name}` must be a torch.Tensor; got {type(value).__name__}")
    if coordinates is None:
        for name, value in {"coordinates_mask": coordinates_mask, "window_scales": window_scales}.items():
            if value is not None:
                raise ValueError(f"`{name}` needs `coordinates`: it has one entry per coordinate; got none")
        return
    if coordinates.ndim != 3 or coordinates.shape[2] != 2 or not _fits_batch(coordinates, batch_size):
        raise ValueError(
            f"`coordinates` must have shape (batch_size, num_tokens, 2) with batch_size {batch_size} or 1; "
            f"got {tuple(coordinates.shape)}"
        )
    if coordinates.shape[1] == 0:
        raise ValueError(f"`coordinates` must hold at least one token; got shape {tuple(coordinates.shape)}")
    for name, value in {"coordinates": coordinates, "window_scales": window_scales}.items():
        if value is not None and value.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"`{name}` must be float32, whatever the model's dtype: bfloat16 moves a position by almost a "
                f"pixel; got {value.dtype}"
            )
    for name, value in {"coordinates_mask": coordinates_mask, "window_scales": window_scales}.items():
        if value is not None and (
            value.ndim != 2 or value.shape[1] != coordinates.shape[1] or not _fits_batch(value, batch_size)
        ):
            raise ValueError(
                f"`{name}` must have shape (batch_size, num_tokens) = ({batch_size}, {coordinates.shape[1]}) like "
                f"`coordinates`; got {tuple(value.shape)}"
            )
    if windows is not None and windows.shape[1] != coordinates.shape[1]:
        raise ValueError(
            f"`windows` must have one for each of the {coordinates.shape[1]} coordinates; got shape {tuple(windows.shape)}"
        )
    checks = coordinates.device.type == "cpu" if config.check_inputs is None else config.check_inputs
    if checks and not _is_traced(coordinates):
        check_values(coordinates, window_scales)


def _check_windows(config: Any, pixel_values: Any, coordinates: Any, windows: Any) -> None:
    if pixel_values is not None:
        raise ValueError("`pixel_values` and `windows` exclude each other; got both")
    if coordinates is None:
        raise ValueError("`windows` needs `coordinates`, of which they are; got none")
    size = (config.num_channels, config.patch_size, config.patch_size)
    if not isinstance(windows, torch.Tensor) or windows.ndim != 5 or tuple(windows.shape[2:]) != size:
        got = tuple(windows.shape) if isinstance(windows, torch.Tensor) else type(windows).__name__
        raise ValueError(f"`windows` must have shape (batch_size, num_tokens, {', '.join(map(str, size))}); got {got}")
    if not config.has_plain_windows:
        raise ValueError(
            "`windows` of an image processor are of samples one pixel apart that repeat border pixels, whatever the image's "
            f"size: this model needs `pixel_values`, for its window_spacing={config.window_spacing}, window_border="
            f"{config.window_border!r}, position_kernel_unit={config.position_kernel_unit!r} and position_kernel_centers="
            f"{config.position_kernel_centers!r}"
        )


def check_segmentation_labels(config: Any, labels: Any, batch_size: int) -> None:
    """Of a model that segments: `ValueError` for labels of another shape or type, or, where values are checked, classes."""
    if labels is None:
        return
    if not isinstance(labels, torch.Tensor) or labels.ndim != 3 or len(labels) != batch_size or labels.dtype != torch.int64:
        got = f"{labels.dtype} {tuple(labels.shape)}" if isinstance(labels, torch.Tensor) else type(labels).__name__
        raise ValueError(f"`labels` must be an int64 tensor of shape (batch_size, height, width); got {got}")
    checks = labels.device.type == "cpu" if config.check_inputs is None else config.check_inputs
    if checks and not _is_traced(labels):
        foreign = ((labels < 0) | (labels >= config.num_labels)) & (labels != config.semantic_loss_ignore_index)
        if foreign.any():
            raise ValueError(
                f"`labels` must be classes from 0 to {config.num_labels - 1}, or semantic_loss_ignore_index="
                f"{config.semantic_loss_ignore_index}; got {labels[foreign][0].item()}"
            )


def check_texts(config: Any, input_ids: Any) -> None:
    """Of a zero-shot model's forward pass."""
    longest = config.text_config.max_position_embeddings
    if not isinstance(input_ids, torch.Tensor) or input_ids.ndim != 2 or not 1 <= input_ids.shape[1] <= longest:
        got = tuple(input_ids.shape) if isinstance(input_ids, torch.Tensor) else type(input_ids).__name__
        raise ValueError(f"`input_ids` must be a tensor (num_texts, sequence) of at most {longest} tokens; got {got}")


def check_candidate_labels(candidate_labels: Any, argument: str = "candidate_labels") -> tuple[str, ...]:
    """The labels among which a zero-shot model classifies; `ValueError`, which names the argument, where they are none."""
    accepted = "a list of different texts"
    if isinstance(candidate_labels, str) or not isinstance(candidate_labels, (list, tuple)) or not candidate_labels:
        raise ValueError(f"`{argument}` must be {accepted}; got {shorten(candidate_labels)}")
    wrong = [one for one in candidate_labels if not isinstance(one, str) or not one.strip()]
    if wrong:
        raise ValueError(f"`{argument}` must be {accepted}; got {shorten(wrong[0])} among them")
    twice = [one for number, one in enumerate(candidate_labels) if one in candidate_labels[:number]]
    if twice:
        raise ValueError(f"`{argument}` must be {accepted}; got {twice[0]!r} twice")
    return tuple(candidate_labels)


def check_hypothesis_template(hypothesis_template: Any) -> None:
    """`ValueError` where it is no text with one place for a label."""
    try:
        is_template = isinstance(hypothesis_template, str) and "\0" in hypothesis_template.format("\0")
    except (IndexError, KeyError, ValueError):
        is_template = False
    if not is_template:
        raise ValueError(
            f"`hypothesis_template` must be a text with a place {{}} for a label, such as 'a photo of a {{}}.'; got "
            f"{shorten(hypothesis_template)}"
        )


def check_attention(config: Any, merge_tokens: Any, coordinates_mask: torch.Tensor | None) -> None:
    """`ValueError` where tokens are to merge, and cannot, or attention's scores are to get a bias, and cannot."""
    check_merge_tokens(merge_tokens, config.num_hidden_layers)
    if not merge_tokens and not config.use_relative_position_bias:
        return
    name = "merge_tokens" if merge_tokens else "use_relative_position_bias"
    implementation = config._attn_implementation
    if implementation not in ("eager", "sdpa"):
        raise ValueError(f"`{name}` needs `attn_implementation` eager or sdpa, which weigh tokens; got {implementation}")
    if merge_tokens and coordinates_mask is not None:
        raise ValueError("`merge_tokens` needs as many tokens in every image; got `coordinates_mask`")
    if merge_tokens and config.positions_in_attention:
        raise ValueError(
            "`merge_tokens` is not for models with rotary or relative positions, as a merged token has no position; got "
            f"{merge_tokens}"
        )
