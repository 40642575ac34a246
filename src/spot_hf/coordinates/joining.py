"""Coordinates beside their images: rows are matched by `image_id`, and every image's bytes by their hash."""

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import datasets
import numpy as np

from ..data.encoded import encoded, encoded_image
from ..data.failures import FailedImage, UnreadableImageError, describe_failures


MAX_SLICES = 1000  # that a joined data set is made of

logger = logging.getLogger(__name__)


def join_coordinates(
    images: datasets.Dataset | datasets.IterableDataset,
    coordinates: datasets.Dataset,
    *,
    image_column_name: str = "image",
    split: str | None = None,
) -> datasets.Dataset | datasets.IterableDataset:
    """
    Puts coordinates beside their images, by `image_id`, and compares the hash of every image's bytes.

    Args:
        images (`datasets.Dataset` or `datasets.IterableDataset`): the source, or a part of it, with images as they were
            loaded: after `map` or `cast` to another form their bytes are others.
        coordinates (`datasets.Dataset`): rows of [`load_coordinates`].
        image_column_name (`str`): the column of the images.
        split (`str`, *optional*): the source's split, for images without file names, whose ids are `SPLIT/INDEX`; by default
            what `images` says. Join such images before you shuffle, select or filter them.

    Returns:
        The rows of `images` that have coordinates, in their order, with the columns of `coordinates` that `images` does not
        have; without those whose files cannot be read, which are logged. A stream stays a stream.

    Raises:
        `ValueError`: images whose bytes are not those that the coordinates were found for, with their number and examples;
        or no image has coordinates. Of a stream, while it is read; one without any image that has coordinates is empty.
    """
    if isinstance(images, datasets.Dataset):
        joined, failed = join_readable(images, coordinates, image_column_name=image_column_name, split=split)
        if failed:
            logger.warning(describe_failures(failed))
        return joined
    if images.features is None:
        images = images._resolve_features()  # of a stream that does not state them: reads its first rows
    _check_image_column(images, image_column_name)
    return _join_stream(images, coordinates, split, image_column_name)


def join_readable(
    images: datasets.Dataset,
    coordinates: datasets.Dataset,
    *,
    image_column_name: str = "image",
    split: str | None = None,
    max_samples: int | None = None,
) -> tuple[datasets.Dataset, list[FailedImage]]:
    """[`join_coordinates`] of the first `max_samples` that can be read, and those before that have coordinates and cannot."""
    _check_image_column(images, image_column_name)
    finder = _Finder(coordinates, split or str(images.split or ""))
    undecoded = encoded(images, image_column_name)
    stored = (row[image_column_name] for row in undecoded.select_columns([image_column_name]))
    kept, found = finder.find(stored, range(len(images)))
    if not kept:
        failed = f" that can be read, {len(finder.failed)} cannot" if finder.failed else ""
        raise ValueError(
            f"`coordinates` hold none of the {len(images)} images{failed}: are they of this data set and split? "
            f"{_ids_of(coordinates, finder)}. `map` drops the file names of the images that it returns: join before it"
        )
    kept, found = kept[:max_samples], found[:max_samples]
    columns = coordinates.select_columns(_new_columns(images, coordinates))
    table = datasets.table.InMemoryTable(columns.with_format("arrow")[found])
    beside = datasets.Dataset(table, info=datasets.DatasetInfo(features=columns.features))
    joined = datasets.concatenate_datasets([_select_without_copy(images, np.array(kept)), beside], axis=1)
    return joined, [one for one in finder.failed if max_samples is None or one.image_index < kept[-1]]


def _ids_of(coordinates: datasets.Dataset, finder: "_Finder") -> str:
    """Examples of either side's ids, for a message."""
    theirs = coordinates["image_id"][0] if len(coordinates) else "none"
    return f"The ids of the coordinates are such as {theirs!r}, those of the images such as {finder.first_id!r}"


def _check_image_column(images: datasets.Dataset | datasets.IterableDataset, image_column_name: str) -> None:
    if image_column_name not in images.features:
        raise ValueError(f"`image_column_name` must be one of {', '.join(images.features)}; got {image_column_name!r}")


def _new_columns(images: datasets.Dataset | datasets.IterableDataset, coordinates: datasets.Dataset) -> list[str]:
    return [name for name in coordinates.column_names if name not in images.features]


def _select_without_copy(images: datasets.Dataset, kept: np.ndarray) -> datasets.Dataset:
    """Rows of it, as slices that follow each other: from a list of numbers, joining columns would copy all images."""
    slices = np.split(kept, np.flatnonzero(np.diff(kept) != 1) + 1)
    if len(slices) > MAX_SLICES:
        return images.select(kept)
    return datasets.concatenate_datasets([images.select(range(part[0], part[-1] + 1)) for part in slices])


class _Finder:
    """Finds the coordinates of images, by their ids and the hashes of their bytes."""

    def __init__(self, coordinates: datasets.Dataset, split: str):
        self.split = split
        self.hashes = list(coordinates["image_sha256"])
        self.rows_of: dict[str, list[int]] = {}
        for row, image_id in enumerate(coordinates["image_id"]):
            self.rows_of.setdefault(image_id, []).append(row)
        self.used: set[int] = set()  # rows whose image was there
        self.failed: list[FailedImage] = []  # images that have coordinates, and cannot be read
        self.first_id: str | None = None  # of the images

    def find(self, stored: Iterable[dict[str, Any]], indices: Sequence[int]) -> tuple[list[int], list[int]]:
        """Which of these undecoded images have coordinates, by their place among them, and which rows those are."""
        kept, found, differing = [], [], []
        for place, (one, index) in enumerate(zip(stored, indices, strict=True)):
            image = encoded_image({"image": one}, index, self.split)
            if image.image_id.startswith("/"):
                raise ValueError("`split` is needed: images without file names are known by their split; got none")
            self.first_id = self.first_id or image.image_id
            rows = self.rows_of.get(image.image_id, [])
            if image.unreadable is not None:
                if rows:
                    self.failed.append(image.failed(UnreadableImageError(image.unreadable)))
                continue
            digest = image.sha256 if rows else ""
            matching = [row for row in rows if self.hashes[row] == digest]
            if matching:
                kept.append(place)
                found.append(matching[0])
            elif rows:
                differing.append((image.image_id, rows))
        self.used.update(found)
        # Several images may have one name, not all of them coordinates.
        wrong = [image_id for image_id, rows in differing if not self.used.issuperset(rows)]
        if wrong:
            more = ", ..." if len(wrong) > 3 else ""
            raise ValueError(
                f"`coordinates` were found for other images: the bytes of {len(wrong)} of {len(indices)} differ, such as "
                f"{', '.join(wrong[:3])}{more}. The source may be another one or resized, or, where names are numbers, "
                "shuffled"
            )
        return kept, found


def _join_stream(images, coordinates, split, image_column_name) -> datasets.IterableDataset:
    undecoded, new = encoded(images, image_column_name), _new_columns(images, coordinates)
    finder = _Finder(coordinates, split or str(images.split or ""))
    image = {image_column_name: datasets.Image()}
    features = datasets.Features({**undecoded.features, **image, **{name: coordinates.features[name] for name in new}})
    beside = coordinates.select_columns(new)

    def join(rows: dict[str, list], indices: list[int]) -> dict[str, list]:
        kept, found = finder.find(rows[image_column_name], indices)
        if finder.failed:
            logger.warning(describe_failures(finder.failed))
            finder.failed.clear()
        return {**{name: [values[i] for i in kept] for name, values in rows.items()}, **beside[found]}

    # Not `map(features=...)`: its images would stay undecoded.
    return undecoded.map(join, batched=True, batch_size=100, with_indices=True).cast(features)
