"""scikit-learn's handwritten digits: the embedded data set, which needs no network."""

from typing import Any

import datasets
import numpy as np
from PIL import Image


DIGITS = "digits"


DIGITS_SIZE = 48  # pixels; the originals are 8 × 8


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
        name: datasets.Dataset.from_dict(rows(np.sort(chosen)), features=features, split=datasets.Split(name))
        for name, chosen in (("train", train), ("test", test))
    })  # fmt: skip
