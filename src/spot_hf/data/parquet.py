"""Streams whose source is Parquet: any row can be read without those before it, so that each of several processes reads its
own part of them, and a resumed one what is missing. By row groups: one is a range of a file, on the Hub one request."""

from bisect import bisect_right
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import datasets
import fsspec
import pyarrow.parquet as pq
from datasets.packaged_modules.parquet.parquet import Parquet
from datasets.table import table_cast

from .digits import DIGITS
from .encoded import EncodedImage, encoded, encoded_image
from .source import DatasetSource


FOOTERS_AT_A_TIME = 8


@dataclass(frozen=True)
class _RowGroup:
    file: str
    number: int  # in the file
    start: int  # its first row, in the split
    num_rows: int
    metadata: Any  # of its file, which need not be read again


class ParquetImages:
    """
    The images of a split, by their rows.

    Args:
        images (`datasets.IterableDataset`): the stream, as `load_images` gives it: its columns and split.
        files (`list[str]`): of the split, in order: paths or URLs, as fsspec opens them.
        columns (`dict[str, str]`): the stream's names of its columns → those in the files.
        max_samples (`int`, *optional*): only the first so many rows.
    """

    def __init__(
        self,
        images: datasets.IterableDataset,
        files: list[str],
        columns: dict[str, str],
        max_samples: int | None = None,
    ):
        self.features, self.split = encoded(images).features, str(images.split)
        self.files, self.columns, self.max_samples = files, columns, max_samples
        self._read: tuple[_RowGroup, Any] | None = None  # the last row group, of which the next rows may be, too

    @cached_property
    def groups(self) -> list[_RowGroup]:
        """By the files' footers, which are read when they are first needed."""
        with ThreadPoolExecutor(FOOTERS_AT_A_TIME) as pool:
            footers = list(pool.map(_footer, self.files))
        groups: list[_RowGroup] = []
        start = 0
        for file, metadata in zip(self.files, footers, strict=True):
            for number in range(metadata.num_row_groups):
                num_rows = metadata.row_group(number).num_rows
                groups.append(_RowGroup(file, number, start, num_rows, metadata))
                start += num_rows
        return groups

    @property
    def num_rows(self) -> int:
        total = sum(group.num_rows for group in self.groups)
        return total if self.max_samples is None else min(total, self.max_samples)

    def rows(self, rows: range) -> Iterator[EncodedImage]:
        """Consecutive ones, of those that there are."""
        for row in range(rows.start, min(rows.stop, self.num_rows)):
            group = self.groups[bisect_right(self.groups, row, key=lambda one: one.start) - 1]
            (found,) = self._table(group).slice(row - group.start, 1).to_pylist()
            yield encoded_image(found, row, self.split)

    def _table(self, group: _RowGroup) -> Any:
        if self._read is None or self._read[0] is not group:
            self._read = None  # before the next one is in memory
            with _open(group.file) as file:
                reader = pq.ParquetFile(file, metadata=group.metadata)
                table = reader.read_row_group(group.number, columns=list(self.columns.values()))
            table = table.select(list(self.columns.values())).rename_columns(list(self.columns))
            self._read = group, table_cast(table, self.features.arrow_schema)
        return self._read[1]


def parquet_images(source: DatasetSource, images: datasets.Dataset | datasets.IterableDataset) -> ParquetImages | None:
    """
    Args:
        source ([`DatasetSource`]): which images.
        images: what [`load_images`] loaded of it.

    Returns:
        [`ParquetImages`], or `None` for a data set that is no stream, or not one of Parquet files.
    """
    if not isinstance(images, datasets.IterableDataset) or source.dataset_name == DIGITS:
        return None
    builder = datasets.load_dataset_builder(**source.loaded_from)
    files = (builder.config.data_files or {}).get(str(images.split))
    if not isinstance(builder, Parquet) or not files or list(images.features) != list(source.columns):
        return None
    return ParquetImages(images, list(files), source.columns, source.max_samples)


def _open(file: str) -> Any:
    filesystem, path = fsspec.url_to_fs(file)
    # A cache that reads ahead would read of the next row group, too. Files on a disk have none.
    return filesystem.open(path, "rb", **({"cache_type": "none"} if "://" in file else {}))


def _footer(file: str) -> Any:
    with _open(file) as opened:
        return pq.ParquetFile(opened).metadata
