"""Shards of a coordinate data set: parquet files that are written whole, and how a run's directory names them."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..data.failures import FailedImage
from ..jobs.directory import JobDirectory
from ..jobs.files import write_atomically


SHARD_NAME = re.compile(r"(?P<split>.+?)-(?P<index>\d{5})(-of-(?P<total>\d{5}))?\.parquet")
FACTS = b"spot_hf"  # key of the footer's metadata


@dataclass
class Shard:
    """A shard in the making: rows as columns, and what the rows do not say."""

    features: datasets.Features
    tables: list[pa.Table] = field(default_factory=list)
    failed: list[FailedImage] = field(default_factory=list)  # images that could not be read
    num_steps: int = 0  # that were taken, over all images
    num_labelled: int = 0
    correct_per_step: np.ndarray | int = 0  # of the labelled images

    def add(self, columns: Mapping[str, Any]) -> None:
        """Appends a batch: for each column a list or an array, whose first dimension is the batch."""
        schema = self.features.arrow_schema
        self.tables.append(
            pa.Table.from_arrays([_to_arrow(columns[name], schema.field(name).type) for name in schema.names], schema=schema)
        )

    def write(self, path: Path) -> None:
        """All at once, under a temporary name until it is complete."""
        schema = self.features.arrow_schema
        facts = {
            "failed": [asdict(one) for one in self.failed],
            "num_steps": self.num_steps,
            "num_labelled": self.num_labelled,
            "correct_per_step": np.atleast_1d(self.correct_per_step).tolist(),
        }
        table = pa.concat_tables(self.tables) if self.tables else schema.empty_table()
        table = table.replace_schema_metadata({**(schema.metadata or {}), FACTS: json.dumps(facts).encode()})
        with write_atomically(path) as file, pq.ParquetWriter(file, table.schema) as writer:
            if len(table):  # `datasets` cannot read an empty row group
                writer.write_table(table)


def _to_arrow(values: Any, kind: pa.DataType) -> pa.Array:
    """Arrays without a Python object per number."""
    if not isinstance(values, np.ndarray) or values.ndim == 1:
        return pa.array(values, type=kind)
    flat = _to_arrow(values.reshape(-1, *values.shape[2:]), kind.value_type)
    if isinstance(kind, pa.FixedSizeListType):
        return pa.FixedSizeListArray.from_arrays(flat, kind.list_size)
    offsets = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
    return pa.ListArray.from_arrays(offsets, flat)


@dataclass(frozen=True)
class ShardFacts:
    """What a shard's footer says: see [`Shard`]."""

    num_images: int
    num_bytes: int  # in memory
    failed: list[FailedImage]
    num_steps: int
    num_labelled: int
    correct_per_step: list[int]

    @classmethod
    def read(cls, path: Path) -> "ShardFacts":
        metadata = pq.read_metadata(path)
        facts = json.loads(metadata.metadata[FACTS])
        facts["failed"] = [FailedImage(**one) for one in facts["failed"]]
        num_bytes = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
        return cls(num_images=metadata.num_rows, num_bytes=num_bytes, **facts)


class CoordinateDirectory(JobDirectory):
    """The directory of a coordinate data set in the making. It is its own ledger: a shard whose file is there is done."""

    def shards(self, config: str, split: str) -> dict[int, Path]:
        """The shards that are done, by their number."""
        found = {}
        for path in sorted((self.directory / config).glob("*.parquet")):
            match = SHARD_NAME.fullmatch(path.name)
            if match and match["split"] == split:
                found[int(match["index"])] = path
        return dict(sorted(found.items()))

    def shard_path(self, config: str, split: str, index: int, total: int | None) -> Path:
        """Where a shard goes. Until the end of a source of unknown length, names do not say of how many it is."""
        suffix = "" if total is None else f"-of-{total:05d}"
        return self.directory / config / f"{split}-{index:05d}{suffix}.parquet"

    def name_totals(self, config: str, split: str, total: int) -> None:
        """Gives shards of what was a source of unknown length their final names. May be interrupted, and repeated."""
        for index, path in self.shards(config, split).items():
            path.rename(self.shard_path(config, split, index, total))
