"""The labelled images of an evaluation."""

from typing import Any

import datasets
import numpy as np

from ..data.labels import label_numbers, outside_of
from ..data.source import load_images
from .arguments import EvaluationArguments


def load_evaluated(arguments: EvaluationArguments, split: str | None, max_samples: int | None) -> Any:
    return load_images(
        arguments.dataset_name,
        config_name=arguments.dataset_config_name,
        split=split,
        revision=arguments.dataset_revision,
        image_column_name=arguments.image_column_name,
        label_column_name=arguments.label_column_name,
        saliency_column_name=arguments.saliency_column_name,
        max_samples=max_samples,
        streaming=arguments.streaming,
    )


def labels_of(images: datasets.Dataset, arguments: EvaluationArguments, num_labels: int) -> np.ndarray:
    """`(num_images,)` of class numbers; `ValueError` where there are none, or some that the model does not know."""
    try:
        labels = label_numbers(images)
    except (TypeError, ValueError):
        labels = np.full(len(images), np.nan)
    wrong = outside_of(labels, num_labels)
    if len(wrong):
        raise ValueError(
            f"`label_column_name` must name a column of class numbers from 0 to {num_labels - 1}; row {wrong[0]} of "
            f"{arguments.label_column_name!r} has {images[int(wrong[0])]['label']!r}, and {len(wrong) - 1} more are not either"
        )
    return labels.astype(int)
