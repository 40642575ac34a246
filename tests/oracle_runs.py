"""Small data sets and runs of the oracle, for the tests of what the oracle writes."""

import io
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
from PIL import Image
from tiny import tiny_model, tiny_processor

from spot_hf import SpotViTForSemanticSegmentation


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


# ---------------------------------------------------------------------------------------------------- segmentation

NUM_CLASSES = 4  # of masks and of the model that segments
IGNORED = 9


def encoded_mask(classes: np.ndarray) -> bytes:
    """A mask `(height, width)` as a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(classes.astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def mask(seed: int, size: tuple[int, int]) -> np.ndarray:
    """Classes `(height, width)` of a picture of that `(width, height)`: blocks, and a border that does not count."""
    coarse = np.random.default_rng(1000 + seed).integers(0, NUM_CLASSES, (4, 5), dtype=np.uint8)
    classes = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.NEAREST)).copy()
    classes[:2] = IGNORED
    return classes


def save_scenes(directory: Path, count: int, broken: tuple[int, ...] = (), masks: dict[int, bytes] | None = None) -> Path:
    """As [`save_images`], with masks in place of labels; some of them given."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Image()})
    sizes = [(40 + i % 3, 32) for i in range(count)]
    given = {i: encoded_mask(mask(i, size)) for i, size in enumerate(sizes)} | (masks or {})
    rows = {
        "image": [
            {"bytes": b"no picture" if i in broken else picture(i, size), "path": f"picture_{i}.png"}
            for i, size in enumerate(sizes)
        ],
        "label": [{"bytes": given[i], "path": None} for i in range(count)],
    }
    directory.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(directory / "validation.parquet")
    return directory


def save_segmenter(
    directory: Path,
    seed: int = 0,
    num_labels: int = NUM_CLASSES,
    ignore_index: int = IGNORED,
    image_size: tuple[int, int] = (32, 40),
) -> Path:
    """A model with random weights, which sees all of an image, squeezed to `(height, width)` pixels."""
    model = tiny_model(
        seed, SpotViTForSemanticSegmentation, num_labels=num_labels, semantic_loss_ignore_index=ignore_index,
        image_size=list(image_size), segmentation_scores_per_side=2,
    )  # fmt: skip
    model.save_pretrained(directory)
    tiny_processor(size={"height": image_size[0], "width": image_size[1]}).save_pretrained(directory)
    return directory
