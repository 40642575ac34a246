"""Where images are salient, as a column of their data set says: maps, or boxes around objects."""

from typing import Any

import datasets
import numpy as np

from ..input_checks import boxes_to_map


ACCEPTED = (
    "greyscale images or two-dimensional arrays (maps over the whole image), or boxes [x_min, y_min, x_max, y_max] in pixels "
    "of the original image, one or a list"
)


def check_saliency_column(feature: Any, column_name: str) -> None:
    """`ValueError` for a column that holds neither maps nor boxes, by the type that the data set states."""
    inner, depth = feature, 0
    while isinstance(inner, datasets.List | datasets.LargeList):
        inner, depth = inner.feature, depth + 1
    kind = inner.dtype if isinstance(inner, datasets.Value) else ""
    if not (
        isinstance(feature, datasets.Image | datasets.Array2D)
        or (depth in (1, 2) and kind.startswith(("int", "uint", "float")))
    ):
        raise ValueError(f"`saliency_column_name` must name a column of {ACCEPTED}; {column_name!r} is {feature}")


def read_saliency(value: Any, image_size: tuple[int, int], image_id: str) -> np.ndarray:
    """
    The map of an image.

    Args:
        value (`bytes` or nested `list`): what the column holds. Bytes are an encoded greyscale image. Of lists, four numbers,
            or rows of four numbers each, are boxes `[x_min, y_min, x_max, y_max]` in pixels of the original image, 0 being its
            left or top edge; other rows are a map.
        image_size (`tuple[int, int]`): `(width, height)` of the original image in pixels.
        image_id (`str`): for messages.

    Returns:
        `np.ndarray` of shape `(rows, columns)`, float64, over the whole original image. Of boxes: 1 in each pixel that one
        touches, else 0.

    Raises:
        `ValueError`: no map or box, or a box that is empty or reaches out of the image.
    """
    subject = f"`saliency_column_name`: the saliency of image {image_id!r}"
    if isinstance(value, bytes):
        return _decode(value, subject)
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        array = np.empty(0)
    array = array[None] if array.ndim == 1 else array
    if array.ndim != 2 or not array.size:
        text = repr(value)
        raise ValueError(f"{subject} must be of {ACCEPTED}; got {text if len(text) <= 80 else text[:77] + '...'}")
    return boxes_to_map(array, image_size, subject) if array.shape[1] == 4 else array


def _decode(content: bytes, subject: str) -> np.ndarray:
    try:
        image = datasets.Image().decode_example({"bytes": content, "path": None})
        image.load()
    except Exception as error:  # whatever a decoder makes of a broken file
        raise ValueError(f"{subject} must be an image that can be read; got {type(error).__name__}: {error}") from None
    if len(image.getbands()) != 1 or image.mode == "P":  # the numbers of a palette's colours are no strengths
        raise ValueError(f"{subject} must be a greyscale image; got one of mode {image.mode!r}")
    return np.asarray(image, dtype=np.float64)
