"""Small scenes with masks, for tests of semantic segmentation: rectangles of a colour per class on a background."""

from pathlib import Path

import datasets
import numpy as np
from PIL import Image


CLASSES = ["ground", "red", "blue"]
COLORS = np.array([[60, 60, 60], [220, 40, 40], [40, 60, 220]])
IGNORED = 7


def scene(number: int, height: int = 48, width: int = 64) -> tuple[Image.Image, Image.Image]:
    """An image and its mask; the top row of pixels does not count."""
    generator = np.random.default_rng(number)
    mask = np.zeros((height, width), dtype=np.uint8)
    for label in (1, 2):
        top, left = generator.integers(4, height - 20), generator.integers(0, width - 24)
        mask[top : top + 18, left : left + 22] = label
    pixels = COLORS[mask] + generator.normal(0, 12, (height, width, 3))
    mask[0] = IGNORED
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), Image.fromarray(mask)


def save_scenes(directory: Path, train: int = 24, validation: int = 6, **changes) -> Path:
    """A data set on disk, with the splits train and validation. `changes`: index of a training image → its mask."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Image()})
    splits = {}
    for split, first, count in (("train", 0, train), ("validation", 1000, validation)):
        images, masks = zip(*(scene(first + i) for i in range(count)), strict=True)
        masks = [changes.get(f"{split}_{i}", mask) for i, mask in enumerate(masks)]
        rows = {"image": list(images), "label": masks}
        splits[split] = datasets.Dataset.from_dict(rows, features=features, split=datasets.NamedSplit(split))
    datasets.DatasetDict(splits).save_to_disk(str(directory))
    return directory
