"""Images as their source stores them: bytes, an id, where they are."""

import hashlib
import math
import re
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import fsspec

from .failures import FailedImage, UnreadableImageError


@dataclass(frozen=True)
class EncodedImage:
    """An image as its source stores it, and where."""

    index: int  # in the source's split
    image_id: str
    content: bytes
    label: int | None
    saliency: Any = None  # as `read_saliency` takes it
    unreadable: str | None = None  # why there is no content

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    def decode(self, image_processor: Any = None) -> Any:
        """
        As `datasets` decodes it: upright as its EXIF orientation says.

        Args:
            image_processor (*optional*): that will prepare it: with `decode="scaled"`, the image is no larger than it needs.

        Returns:
            `PIL.Image`, or [`DecodedImage`].

        Raises:
            [`UnreadableImageError`]: the file is gone or broken.
        """
        if self.unreadable is not None:
            raise UnreadableImageError(self.unreadable)
        scaled = image_processor is not None and image_processor.decode == "scaled"
        try:
            if scaled:
                return image_processor.open_image(self.content)
            image = datasets.Image().decode_example({"bytes": self.content, "path": None})
            image.load()
        except MemoryError:
            raise
        except Exception as error:  # a decoder raises anything for a broken file: OSError, SyntaxError, struct.error, ...
            raise UnreadableImageError(reason_of(error)) from error
        return image

    def failed(self, error: Exception) -> FailedImage:
        """For the record of what was skipped."""
        return FailedImage(self.index, self.image_id, str(error))


def reason_of(error: Exception) -> str:
    """An error's class and the first line of what it says, the same in every process: without addresses of objects."""
    lines = re.sub(r" <[^<>]* at 0x[0-9a-f]+>", "", str(error)).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"


def encoded(images: datasets.Dataset | datasets.IterableDataset, image_column_name: str = "image") -> Any:
    """The same data set, with images as the bytes that are stored, or where these are."""
    if isinstance(images, datasets.IterableDataset):
        images = images.decode(False)  # or a later cast would come after the decoding
    return images.cast_column(image_column_name, datasets.Image(decode=False))


def encoded_image(row: dict[str, Any], index: int, split: str) -> EncodedImage:
    """
    A row of a data set of [`encoded`] images.

    Args:
        row (`dict`): with `image` and, where there are such, `label` and `saliency`.
        index (`int`): of the row in its split.
        split (`str`): for the id of an image without a file name: `SPLIT/INDEX`.
    """
    stored = row["image"] or {}
    path = stored.get("path")
    content, unreadable = b"", None
    try:
        content = stored_bytes(stored)
    except MemoryError:
        raise
    except Exception as error:  # a file raises OSError, an archive also BadZipFile, zlib.error, NotImplementedError, ...
        if isinstance(error, OSError) and _is_remote(path):  # the network's failure, not the image's
            raise
        unreadable = reason_of(error)
    saliency = stored_saliency(row.get("saliency"))
    return EncodedImage(index, image_id_of(path, index, split), content, row.get("label"), saliency, unreadable)


def stored_saliency(value: Any) -> Any:
    """Of a row's column `saliency`: what [`read_saliency`] takes."""
    return stored_bytes(value) if isinstance(value, dict) else value


def stored_bytes(stored: dict[str, Any]) -> bytes:
    """Of an image that is not decoded: its file's bytes; none where there is no image."""
    path, content = stored.get("path"), stored.get("bytes")
    if content is None:
        with fsspec.open(path) if path else nullcontext(BytesIO()) as file:  # of a stream, on the Hub
            content = file.read()
    return content


def _is_remote(path: str | None) -> bool:
    """Whether a path, or the archive that it lies in, is a URL: `https://...`, `hf://...`, `zip://member::https://...`."""
    where = (path or "").rpartition("::")[2]
    return "://" in where and not where.startswith("file://")


def image_id_of(path: str | None, index: int, split: str) -> str:
    """
    An image's id: what coordinates are joined by, and random placements are drawn by.

    Args:
        path (`str`, *optional*): as the source states it. In an archive, fsspec's chain of URLs, innermost first, such as
            `zip://cat/0.png::/x/train.zip`.
        index (`int`): of the row in its split.
        split (`str`): its name.

    Returns:
        `str`: the file's name; in an archive, its path below the archive; without a path, `SPLIT/INDEX`.
    """
    if not path:
        name, start, _ = rows_of_part(split)
        return f"{name}/{start + index}"
    member, chained, _ = path.partition("::")
    return member.partition("://")[2] if chained else Path(path).name


def rows_of_part(split: str) -> tuple[str, int, float]:
    """Of a split, or a part of one such as `train[100:900]`: the split's name, the first row, and the one after the last."""
    found = re.fullmatch(r"(.+)\[(\d+):(\d+)\]", split)
    return (found[1], int(found[2]), int(found[3])) if found else (split, 0, math.inf)


def image_paths(images: datasets.Dataset, image_column_name: str = "image") -> list[str | None]:
    """Of all images of a split, in order, as the source states them. Reads no image."""
    column = encoded(images, image_column_name).with_format("arrow")[image_column_name][:]
    return [path for chunk in column.chunks for path in chunk.field("path").to_pylist()]


def image_ids(images: datasets.Dataset) -> list[str]:
    """Of all images of a split, in order. Reads no image."""
    return [image_id_of(path, index, str(images.split)) for index, path in enumerate(image_paths(images))]


def check_image_ids(images: datasets.Dataset) -> None:
    """`ValueError` where two images of a split have one id. Reads no image."""
    rows: dict[str, int] = {}
    for index, image_id in enumerate(image_ids(images)):
        if image_id in rows:
            raise ValueError(
                f"`dataset_name`: images {rows[image_id]} and {index} of {str(images.split)!r} share the id {image_id!r}, by "
                "which their coordinates would be known: an id is a file's name, or, in an archive, its path there. Rename "
                "the files"
            )
        rows[image_id] = index


def iterate_encoded(images: Any, split: str, start: int = 0) -> Iterator[EncodedImage]:
    """All rows of a data set of images from row `start` on."""
    rows = encoded(images)
    rows = rows.skip(start) if start else rows
    for index, row in enumerate(rows, start):
        yield encoded_image(row, index, split)
