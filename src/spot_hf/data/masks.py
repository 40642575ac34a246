"""Masks of class numbers beside the images of a data set: read, checked, counted."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from .batches import Batch
from .encoded import encoded, image_id_of, stored_bytes


SEGMENTATION = "semantic-segmentation"  # a job's task
SHOWN = 1000  # more masks than these are checked with a progress bar


@dataclass(frozen=True)
class MaskClasses:
    """
    What the numbers in masks mean.

    Attributes:
        num_labels (`int`): classes, 0 to `num_labels - 1`.
        ignore_index (`int`): the number of pixels that do not count.
    """

    num_labels: int
    ignore_index: int = 255

    def check(self, mask: np.ndarray, image_size: tuple[int, int], image_id: str) -> np.ndarray:
        """The mask; `ValueError` where it has another size than its image, `(width, height)`, or other numbers."""
        width, height = image_size
        if mask.shape != (height, width):
            raise ValueError(
                f"`label_column_name`: the mask of image {image_id!r} has (height, width) {mask.shape}, its image "
                f"{(height, width)}"
            )
        foreign = sorted({*numbers_in(mask)} - {*range(self.num_labels), self.ignore_index})
        if foreign:
            raise ValueError(
                f"`label_column_name`: the mask of image {image_id!r} has the number {foreign[0]}; accepted are 0 to "
                f"{self.num_labels - 1}, and {self.ignore_index} for pixels that do not count (`ignore_index`)"
            )
        return mask

    @property
    def description(self) -> str:
        """For the log and the record."""
        return f"masks of {self.num_labels} classes by number; {self.ignore_index} does not count"

    def recorded(self) -> dict[str, Any]:
        """As of a mapping of labels: numbers are the model's own."""
        return {}

    def read(self, stored: Any, image_size: tuple[int, int], image_id: str) -> np.ndarray:
        """As [`read_mask`], checked."""
        return self.check(read_mask(stored, image_id), image_size, image_id)

    def seen(self, stored: Any, image_size: tuple[int, int], image_id: str, image_processor: Any) -> torch.Tensor:
        """What the model sees of a mask, checked: `(height, width)` of `pixel_values`, int64. Arguments as of [`read_mask`];
        `image_size` is `(width, height)` of the original image."""
        return image_processor.segmentation_map_to_model_frame(self.read(stored, image_size, image_id))

    def seen_of(self, batch: Batch, image_processor: Any) -> torch.Tensor:
        """What the model sees of a batch's masks: `(batch_size, height, width)`, int64."""
        rows = zip(batch.label, batch.image_size, batch.image_id, strict=True)
        return torch.stack([self.seen(*row, image_processor) for row in rows])

    def read_of(self, batch: Batch) -> list[np.ndarray]:
        """A batch's masks as they are stored, each `(height, width)`, checked."""
        return [self.read(*row) for row in zip(batch.label, batch.image_size, batch.image_id, strict=True)]


def refuse_options_of_labels(arguments: Any) -> None:
    """`ValueError` where a job's arguments have options that are of class numbers, and its labels are masks."""
    for name in ("among_labels", "label_names", "labels_by_number"):
        if getattr(arguments, name):
            raise ValueError(f"`{name}` is of class numbers: masks are read as they are; got {getattr(arguments, name)!r}")


def read_mask(stored: Any, image_id: str) -> np.ndarray:
    """
    Args:
        stored (`dict`): a mask as a data set stores it, undecoded: a greyscale or palette image of class numbers.
        image_id (`str`): of its image, for messages.

    Returns:
        `np.ndarray` of shape `(height, width)`, int64: class numbers.

    Raises:
        `ValueError`: it cannot be read, or has colours.
    """
    try:
        with Image.open(BytesIO(stored_bytes(stored or {}))) as mask:
            array = np.asarray(mask)
    except MemoryError:
        raise
    except Exception as error:
        raise ValueError(f"`label_column_name`: the mask of image {image_id!r} cannot be read: {error}") from None
    if array.ndim != 2 or array.dtype.kind not in "iub":
        raise ValueError(
            f"`label_column_name`: a mask must be a greyscale or palette image of class numbers; that of image {image_id!r} "
            f"has mode {mask.mode}"
        )
    return array.astype(np.int64)


def numbers_in(mask: np.ndarray) -> list[int]:
    """Which numbers a mask has, in order."""
    if mask.min() < 0 or mask.max() > 0xFFFF:  # no class numbers, and none to count
        return np.unique(mask).tolist()
    return np.flatnonzero(np.bincount(mask.ravel())).tolist()  # many times as fast, as nothing is sorted


def with_encoded_masks(images: Any, label_column_name: str | None) -> Any:
    """The same data set with masks as the bytes that are stored; `ValueError` where its labels are no masks."""
    feature = images.features.get("label")
    if not isinstance(feature, datasets.Image):
        raise ValueError(
            f"`label_column_name` must name a column of masks, images of class numbers, for semantic segmentation; "
            f"{label_column_name!r} is {type(feature).__name__ if feature is not None else 'not given'}"
        )
    return encoded(images, "label")


def check_masks(images: datasets.Dataset, num_labels: int | None, ignore_index: int) -> MaskClasses:
    """
    Reads all masks, before a job that needs them begins.

    Args:
        images (`datasets.Dataset`): as [`with_encoded_masks`] gives them.
        num_labels (`int`, *optional*): classes; as many as occur where not given.
        ignore_index (`int`): the number of pixels that do not count.

    Returns:
        [`MaskClasses`].

    Raises:
        `ValueError`: a mask of another size than its image, or of other numbers, by the image's id.
    """
    split, local = str(images.split), threading.local()

    def check(index: int) -> int:
        if not hasattr(local, "rows"):
            local.rows = encoded(images)
        row = local.rows[index]
        image_id = image_id_of((row["image"] or {}).get("path"), index, split)
        mask = read_mask(row["label"], image_id)
        highest = max((one for one in numbers_in(mask) if one != ignore_index), default=-1)
        size = _image_size(row["image"]) or mask.shape[::-1]
        MaskClasses(highest + 1 if num_labels is None else num_labels, ignore_index).check(mask, size, image_id)
        return highest

    with ThreadPoolExecutor(4) as threads:
        checks = threads.map(check, range(len(images)))
        progress = tqdm(checks, total=len(images), desc="masks", unit="image", disable=len(images) <= SHOWN)
        highest = max(progress, default=-1)
    return MaskClasses(max(1, highest + 1) if num_labels is None else num_labels, ignore_index)


def _image_size(stored: Any) -> tuple[int, int] | None:
    """`(width, height)` by the file's header, upright; `None` where it cannot be read, which is its job's to treat."""
    try:
        with Image.open(BytesIO(stored_bytes(stored or {}))) as image:
            size, turned = image.size, image.getexif().get(0x0112, 1) >= 5
    except MemoryError:
        raise
    except Exception:
        return None
    return size[::-1] if turned else size


def class_names(names: Sequence[str] | None, num_labels: int) -> dict[int, str]:
    """`id2label`; `ValueError` where there are fewer names than classes."""
    if names is None:
        return {i: f"LABEL_{i}" for i in range(num_labels)}
    if len(names) < num_labels:
        raise ValueError(f"`label_names` must name all {num_labels} classes of the masks; got {len(names)} names")
    return dict(enumerate(names))
