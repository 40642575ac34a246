"""The columns of a coordinate data set, and the names that its configs may have."""

from collections.abc import Mapping
from typing import Any

import datasets

from ..data.masks import SEGMENTATION


# What a record's `objective` is, in a card's words. The losses themselves are the oracle's.
OBJECTIVE_DESCRIPTIONS = {
    "label": "cross-entropy with the true label",
    "distill": "KL divergence from the same model's full-grid prediction",
    "feature": "1 - cosine to the same model's full-grid pooled feature",
}
# The same where the record's `task` is segmentation. Of other models it has none.
SEGMENTATION_OBJECTIVES = {
    "label": "mean cross-entropy of an image's labelled pixels",
    "distill": "mean over pixels of the KL divergence from the same model's full-grid map",
}


def describe_objective(parameters: Mapping[str, Any]) -> str:
    """Of a record's parameters."""
    of_task = SEGMENTATION_OBJECTIVES if parameters.get("task") == SEGMENTATION else {}
    return {**OBJECTIVE_DESCRIPTIONS, **of_task}[parameters["objective"]]


def coordinate_features(
    label: Any,
    num_tokens: int,
    trajectory_length: int | None = None,
    window_scales: bool = False,
    initial_window_scales: bool = False,
) -> datasets.Features:
    """
    The columns of a coordinate data set; positions are `(x, y)` in the image frame.

    Args:
        label (`datasets.ClassLabel`): the feature of the source's labels. Where these are masks, or there are none, int64: the
            column `label` is null then, and so are `initial_prediction` and `prediction`.
        num_tokens (`int`): tokens per image.
        trajectory_length (`int`, *optional*): positions per token in `trajectory`, steps + 1; without it there is no such
            column.
        window_scales (`bool`): whether there is a column of each token's window scale, in the model that found it.
        initial_window_scales (`bool`): likewise of those with which the search began, where these were not 1.
    """
    point = datasets.List(datasets.Value("float32"), length=2)
    columns = {
        "image_id": datasets.Value("string"),
        "image_index": datasets.Value("int64"),
        "image_sha256": datasets.Value("string"),
        "image_size": datasets.List(datasets.Value("int32"), length=2),  # (width, height)
        "label": label,
        "coordinates": datasets.List(point, length=num_tokens),
        "initial_coordinates": datasets.List(point, length=num_tokens),
        "losses": datasets.List(datasets.Value("float32")),
        "initial_prediction": datasets.Value("int64"),
        "prediction": datasets.Value("int64"),
    }
    if window_scales:
        columns["window_scales"] = datasets.List(datasets.Value("float32"), length=num_tokens)
    if initial_window_scales:
        columns["initial_window_scales"] = datasets.List(datasets.Value("float32"), length=num_tokens)
    if trajectory_length is not None:
        coarse_point = datasets.List(datasets.Value("float16"), length=2)
        columns["trajectory"] = datasets.List(datasets.List(coarse_point, length=num_tokens), length=trajectory_length)
    return datasets.Features(columns)


def check_config_name(argument: str, name: str) -> None:
    """`ValueError` where `name` can be no config of a data set. In brackets, it would be read as a pattern of file names."""
    if not name or name == "data" or set(name) & set('<>:/\\|?*"[]') or name.startswith("."):
        raise ValueError(f"`{argument}` must be a name without any of <>:/\\|?*\"[], and not 'data'; got {name!r}")
