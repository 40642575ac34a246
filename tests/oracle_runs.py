"""Small data sets and runs of the oracle, for the tests of what the oracle writes."""

import io
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
from PIL import Image


LABELS = ["ant", "bee", "cat", "dog", "eel"]


def picture(seed: int, size: tuple[int, int] = (40, 32)) -> bytes:
    """An encoded picture, smooth and of many colours."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


def save_images(directory: Path, count: int, broken: tuple[int, ...] = (), split: str = "validation") -> Path:
    """A data set of `count` pictures with names and labels, as a parquet file; the `broken` ones cannot be decoded."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=LABELS)})
    contents = [b"not a picture" if i in broken else picture(i, (40 + i % 3, 32)) for i in range(count)]
    rows = {
        "image": [{"bytes": content, "path": f"picture_{i}.png"} for i, content in enumerate(contents)],
        "label": [i % len(LABELS) for i in range(count)],
    }
    directory.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(directory / f"{split}.parquet")
    return directory


def rows_of(directory: Path) -> dict[str, list[bytes]]:
    """Of a finished run: config → its rows, as bytes that are equal only where every bit is."""
    found: dict[str, list[bytes]] = {}
    for path in sorted(directory.glob("*/*.parquet")):
        for batch in pq.read_table(path).to_batches(max_chunksize=1):
            found.setdefault(path.parent.name, []).append(repr(batch.to_pydict()).encode())
    return found


def files_of(directory: Path) -> dict[str, bytes]:
    """Everything that a run has left, by name."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}
