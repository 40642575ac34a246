"""Labelled images by the name of their data set: the Hub's, a directory's, or scikit-learn's digits, which need no network."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image


DIGITS = "digits"
DIGITS_SIZE = 48  # pixels; the originals are 8 × 8


def load_images(
    dataset_name: str,
    *,
    config_name: str | None = None,
    split: str | None = None,
    image_column_name: str = "image",
    label_column_name: str = "label",
    max_samples: int | None = None,
) -> datasets.Dataset:
    """
    Loads a split of an image-classification data set.

    Args:
        dataset_name (`str`): `"digits"`, a Hub id, or a directory in any form that `load_dataset` reads.
        config_name (`str`, *optional*): the data set's config.
        split (`str`, *optional*): by default `test`, or `validation` where there is no test split.
        image_column_name, label_column_name (`str`): the columns' names in the source.
        max_samples (`int`, *optional*): the first so many rows only.

    Returns:
        `datasets.Dataset` with the columns `image` (decoded to `PIL.Image`) and `label`.

    Raises:
        `ValueError`: no such split or column. `OSError`: no such data set.
    """
    if dataset_name == DIGITS:
        splits = load_digits()
    else:
        try:
            local = Path(dataset_name).expanduser()
            splits = datasets.load_dataset(str(local) if local.exists() else dataset_name, config_name)
        except datasets.exceptions.DatasetNotFoundError as error:
            raise OSError(f"`dataset_name` {dataset_name!r}: {str(error).splitlines()[0]}") from None
    if split is None:
        split = next((name for name in ("test", "validation") if name in splits), next(iter(splits)))
    if split not in splits:
        raise ValueError(f"`dataset_split` must be one of {', '.join(splits)}; got {split!r}")
    dataset = splits[split]
    for argument, name in (("image_column_name", image_column_name), ("label_column_name", label_column_name)):
        if name not in dataset.column_names:
            raise ValueError(f"`{argument}` must be one of {', '.join(dataset.column_names)}; got {name!r}")
    dataset = dataset.select_columns([image_column_name, label_column_name])
    dataset = dataset.rename_columns({
        old: new for old, new in ((image_column_name, "image"), (label_column_name, "label")) if old != new
    })  # fmt: skip
    return dataset.select(range(min(max_samples, len(dataset)))) if max_samples else dataset


def load_digits() -> datasets.DatasetDict:
    """scikit-learn's 1,797 handwritten digits as RGB images of 48 × 48 pixels: three quarters to train, the rest to test."""
    from sklearn.datasets import load_digits as load_sklearn_digits
    from sklearn.model_selection import train_test_split

    bunch = load_sklearn_digits()
    indices = np.arange(len(bunch.target))
    train, test = train_test_split(indices, test_size=0.25, random_state=0, stratify=bunch.target)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=[str(i) for i in range(10)])})

    def rows(chosen: np.ndarray) -> dict[str, list[Any]]:
        images = [Image.fromarray((bunch.images[i] * (255 / 16)).astype(np.uint8)) for i in chosen]
        return {
            "image": [image.resize((DIGITS_SIZE, DIGITS_SIZE), Image.Resampling.BICUBIC).convert("RGB") for image in images],
            "label": bunch.target[chosen].tolist(),
        }

    return datasets.DatasetDict({
        name: datasets.Dataset.from_dict(rows(np.sort(chosen)), features=features)
        for name, chosen in (("train", train), ("test", test))
    })  # fmt: skip
