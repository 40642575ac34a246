"""Where images are salient: maps, or boxes around objects, in a column of their data set or in a file beside it."""

import csv
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from ..input_checks import boxes_to_map


ACCEPTED = (
    "greyscale images or two-dimensional arrays (maps over the whole image), or boxes [x_min, y_min, x_max, y_max] in pixels "
    "of the original image, one or a list"
)


BOXES_HEADER = ("image", "x_min", "y_min", "x_max", "y_max")


def read_boxes_csv(file: str) -> dict[str, list[list[float]]]:
    """
    Boxes in a CSV file.

    Args:
        file (`str`): with the columns `image` (a file's name, or its path), `x_min`, `y_min`, `x_max` and `y_max` (in pixels
            of the original image, 0 being its left or top edge), and perhaps others; a row per box.

    Returns:
        `dict`: image → its boxes.

    Raises:
        `ValueError`: no such file, a column that is not there, or a value that is no number.
    """
    try:
        with Path(file).expanduser().open(newline="", encoding="utf-8-sig") as opened:
            rows = list(csv.DictReader(opened))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"`boxes_csv` must be a CSV file; {file!r}: {error}") from None
    header = list(rows[0]) if rows else []
    missing = [name for name in BOXES_HEADER if name not in header]
    if missing:
        raise ValueError(
            f"`boxes_csv` must have rows with the columns {', '.join(BOXES_HEADER)}; {file!r} lacks {', '.join(missing)}"
        )
    found: dict[str, list[list[float]]] = {}
    for number, row in enumerate(rows, 2):
        try:
            box = [float(row[name]) for name in BOXES_HEADER[1:]]
        except (TypeError, ValueError):
            box = [math.nan]
        if not all(map(math.isfinite, box)):
            raise ValueError(
                f"`boxes_csv` must have numbers in {', '.join(BOXES_HEADER[1:])}; line {number} of {file!r} has not"
            )
        found.setdefault(row["image"], []).append(box)
    return found


def boxes_of_images(file: str, images: Iterable[str]) -> list[list[list[float]]]:
    """
    The boxes that a CSV file has for each of some images.

    Args:
        file (`str`): as [`read_boxes_csv`] takes it.
        images: their paths, or names where that is all there is. The file may name an image by as much of the end of its path
            as tells it from the others.

    Raises:
        `ValueError`: as [`read_boxes_csv`]; there are images without a box; or a name fits several images, or an image several
            names.
    """
    boxes = read_boxes_csv(file)
    by_name: dict[str, list[str]] = {}
    for name in boxes:
        by_name.setdefault(Path(name).name, []).append(name)
    found, absent = [], []
    used: dict[str, str] = {}  # a name in the file → the image that it is
    for image in images:
        fitting = [name for name in by_name.get(Path(image).name, []) if _is_end_of(name, image)]
        most = max((len(Path(name).parts) for name in fitting), default=0)
        fitting = [name for name in fitting if len(Path(name).parts) == most]
        if len(fitting) > 1:
            raise ValueError(f"`boxes_csv` {file!r} must name each image once; {image!r} could be {' or '.join(fitting[:2])}")
        if fitting and used.setdefault(fitting[0], image) != image:
            raise ValueError(
                f"`boxes_csv` {file!r} must name images by enough of their paths; {fitting[0]!r} could be "
                f"{used[fitting[0]]!r} or {image!r}"
            )
        found.append(boxes[fitting[0]] if fitting else [])
        if not fitting:
            absent.append(image)
    if absent:
        raise ValueError(
            f"`boxes_csv` must have a box for each image; {file!r} has none for {len(absent)} of {len(found)}, such as "
            f"{absent[0]!r}; it names images such as {next(iter(boxes))!r}"
        )
    return found


def _is_end_of(name: str, image: str) -> bool:
    """Whether one of two paths, of which less may be known, is the other's end."""
    ours, theirs = Path(name).parts, Path(image).parts
    shorter = min(len(ours), len(theirs))
    return ours[-shorter:] == theirs[-shorter:]


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
