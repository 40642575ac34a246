"""Labels of a data set: class numbers."""

import datasets
import numpy as np


def label_numbers(images: datasets.Dataset) -> np.ndarray:
    """`(num_images,)`, float64: the labels, NaN where there are none. Reads no image."""
    return images.with_format("arrow")["label"][:].to_numpy(zero_copy_only=False).astype(float)


def classes_of(images: datasets.Dataset) -> list[int]:
    """The class numbers that occur, in order. Every image must have one."""
    return np.unique(label_numbers(images)).astype(int).tolist()


def likeliest_class(logits: np.ndarray, classes: list[int] | None) -> np.ndarray:
    """`(batch_size, num_labels)` to `(batch_size,)`: the class with the highest logit, of `classes` where given."""
    return logits.argmax(-1) if classes is None else np.array(classes)[logits[:, classes].argmax(-1)]


def outside_of(labels: np.ndarray, num_labels: int) -> np.ndarray:
    """The rows whose label is no class from 0 to `num_labels - 1`."""
    return np.flatnonzero(~((labels >= 0) & (labels < num_labels)))
