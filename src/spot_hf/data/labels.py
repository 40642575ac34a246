"""Labels of a data set: class numbers."""

import datasets
import numpy as np


def label_numbers(images: datasets.Dataset) -> np.ndarray:
    """`(num_images,)`, float64: the labels, NaN where there are none. Reads no image."""
    return images.with_format("arrow")["label"][:].to_numpy(zero_copy_only=False).astype(float)


def check_label_column(feature: object, label_column_name: str) -> None:
    """`ValueError` where a column, by the type that its data set states, has no class numbers."""
    dtype = getattr(feature, "dtype", None)
    if not isinstance(dtype, str) or not dtype.startswith(("int", "uint")):
        raise ValueError(f"`label_column_name` must name a column of class numbers; {label_column_name!r} is {feature}")


def check_labels(images: datasets.Dataset, label_column_name: str | None, num_labels: int, advice: str = "") -> np.ndarray:
    """
    The labels of all images.

    Args:
        images (`datasets.Dataset`): as [`load_images`] loads them.
        label_column_name (`str`): what their column is called in the source, for messages.
        num_labels (`int`): that the model knows.
        advice (`str`): is added to a message.

    Returns:
        `np.ndarray` of shape `(num_images,)`, int64.

    Raises:
        `ValueError`: the column has no class numbers, or some that the model does not know.
    """
    feature = images.features["label"]
    check_label_column(feature, str(label_column_name))
    names = getattr(feature, "names", None)
    if names and len(names) > num_labels:
        raise ValueError(
            f"`label_column_name`: {label_column_name!r} has {len(names)} classes, the model {num_labels}: its labels mean "
            f"something else{advice}"
        )
    labels = label_numbers(images)
    wrong = np.flatnonzero(~((labels >= 0) & (labels < num_labels)))
    if len(wrong):
        first = labels[wrong[0]]
        raise ValueError(
            f"`label_column_name`: row {wrong[0]} of {str(images.split)!r} has {describe_label(first)}, and "
            f"{len(wrong) - 1} more rows have such; the model knows 0 to {num_labels - 1}{advice}"
        )
    return labels.astype(np.int64)


def describe_label(label: float) -> str:
    """For a message."""
    return "no label" if np.isnan(label) else f"the label {label:g}"


def classes_of(images: datasets.Dataset) -> list[int]:
    """The class numbers that occur, in order. Every image must have one."""
    return np.unique(label_numbers(images)).astype(int).tolist()


def likeliest_class(logits: np.ndarray, classes: list[int] | None) -> np.ndarray:
    """`(batch_size, num_labels)` to `(batch_size,)`: the class with the highest logit, of `classes` where given."""
    return logits.argmax(-1) if classes is None else np.array(classes)[logits[:, classes].argmax(-1)]
