"""Shards of a coordinate data set: parquet files that are written whole, and how a run's directory names them."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..jobs.files import write_atomically


FACTS = b"spot_hf"  # key of the footer's metadata


@dataclass
class Shard:
    """A shard in the making: rows as columns, and what the rows do not say."""

    features: datasets.Features
    tables: list[pa.Table] = field(default_factory=list)
    failed: list[dict[str, Any]] = field(default_factory=list)  # images that could not be read
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
            "failed": self.failed,
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


def shard_facts(path: Path) -> dict[str, Any]:
    """What a shard's footer says: `num_images`, `num_bytes` (in memory), and the facts of [`Shard`]."""
    metadata = pq.read_metadata(path)
    facts = json.loads(metadata.metadata[FACTS])
    num_bytes = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    return {"num_images": metadata.num_rows, "num_bytes": num_bytes, **facts}


SHARD_NAME = re.compile(r"(?P<split>.+?)-(?P<index>\d{5})(-of-(?P<total>\d{5}))?\.parquet")
