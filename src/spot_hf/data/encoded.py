"""Images as their source stores them: bytes, an id, where they are."""

import hashlib
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import fsspec
from PIL import Image


@dataclass(frozen=True)
class EncodedImage:
    """An image as its source stores it, and where."""

    index: int  # in the source's split
    image_id: str
    content: bytes
    label: int | None
    saliency: Any = None  # as `read_saliency` takes it

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    def decode(self) -> Image.Image:
        """As `datasets` decodes it: upright as its EXIF orientation says. Raises what a broken file makes PIL raise."""
        image = datasets.Image().decode_example({"bytes": self.content, "path": None})
        image.load()
        return image


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
    image_id = image_id_of(stored.get("path"), index, split)
    return EncodedImage(index, image_id, _stored_bytes(stored), row.get("label"), stored_saliency(row.get("saliency")))


def stored_saliency(value: Any) -> Any:
    """Of a row's column `saliency`: what [`read_saliency`] takes."""
    return _stored_bytes(value) if isinstance(value, dict) else value


def _stored_bytes(stored: dict[str, Any]) -> bytes:
    """Of an image that is not decoded: its file's bytes; none where there is no image."""
    path, content = stored.get("path"), stored.get("bytes")
    if content is None:
        with fsspec.open(path) if path else nullcontext(BytesIO()) as file:  # of a stream, on the Hub
            content = file.read()
    return content


def image_id_of(path: str | None, index: int, split: str) -> str:
    """The file name where the source has one, else `SPLIT/INDEX`."""
    return Path(path).name if path else f"{split}/{index}"


def iterate_encoded(images: Any, split: str, start: int = 0) -> Iterator[EncodedImage]:
    """All rows of a data set of images from row `start` on."""
    rows = encoded(images)
    rows = rows.skip(start) if start else rows
    for index, row in enumerate(rows, start):
        yield encoded_image(row, index, split)
