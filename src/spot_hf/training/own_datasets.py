"""[`SpotTrainer`] in one's own script: from ordinary data sets of `datasets` to what it trains and evaluates on."""

from collections.abc import Sequence
from typing import Any

import datasets

from ..data.labels import LabelMapping, match_labels
from ..data.source import DatasetSource
from .batches import BatchPreparation
from .data import EvaluationImages, TrainingImages
from .placements import TrainingPlacements


def adopt_datasets(
    given: dict[str, Any],
    num_tokens: int | Sequence[int] | None,
    placement: str | Sequence[str],
    preparation: BatchPreparation | None,
) -> BatchPreparation | None:
    """
    Replaces data sets of `datasets`, among what Trainer is given, by what is trained and evaluated on.

    Args:
        given (`dict`): Trainer's arguments by name; `train_dataset` and `eval_dataset` are replaced in place.
        num_tokens, placement, preparation: as [`SpotTrainer`] takes them.

    Returns:
        [`BatchPreparation`], *optional*: of the training images: the given one, or one that follows from the other arguments.

    Raises:
        `ValueError`: data sets without images, labels of other classes, or an argument that these need and that is not given.
    """
    train, evaluation = given.get("train_dataset"), given.get("eval_dataset")
    model, processor = given.get("model"), given.get("processing_class")
    if not (_has_images(train) or _has_images(evaluation)):
        return preparation
    if model is None or processor is None:
        missing = "model" if model is None else "processing_class"
        raise ValueError(f"`{missing}` is needed with data sets of images: the model, and its image processor; got none")
    num_tokens = processor.num_tokens if num_tokens is None and preparation is None else num_tokens
    counts = [num_tokens] if isinstance(num_tokens, int) else list(num_tokens or [])
    placements = [placement] if isinstance(placement, str) else list(placement)
    seed = given["args"].seed if given.get("args") is not None else 0
    if preparation is None:
        if not counts:
            raise ValueError("`num_tokens` is needed with data sets of images: one or several token counts; got none")
        width, height = processor.model_size((1000, 1000))
        patch_size = model.config.patch_size
        preparation = BatchPreparation(
            TrainingPlacements(
                num_tokens=counts, placement=placements, height=height, width=width, patch_size=patch_size, seed=seed
            ),
            processor,
        )
    if _has_images(train):
        mapping = _mapping_of(train, model)
        given["train_dataset"] = TrainingImages(train, processor, seed=seed, mapping=mapping)
    if _has_images(evaluation):
        mapping = _mapping_of(evaluation, model)
        chosen = preparation.placements
        given["eval_dataset"] = {
            f"n{count}": EvaluationImages(evaluation, processor, count, chosen.placement[0], mapping=mapping)
            for count in chosen.num_tokens
        }
    return preparation


def _has_images(dataset: Any) -> bool:
    """Whether it is one of `datasets` without a transform of its own, that is, of images."""
    if not isinstance(dataset, datasets.Dataset) or dataset.format["type"] == "custom":
        return False
    feature = dataset.features.get("image")
    if not isinstance(feature, datasets.Image):
        raise ValueError(
            f"a data set must have a column `image` of images, or a transform that gives the model's inputs; it has "
            f"{', '.join(dataset.features)}" + (f", where image is {feature}" if feature is not None else "")
        )
    return True


def _mapping_of(images: datasets.Dataset, model: Any) -> LabelMapping | None:
    """`ValueError` for labels that are none of the model's classes."""
    if "label" not in images.features:
        return None
    advice = ". Give the model a classifier for them: `num_labels` and `id2label` of `from_pretrained`"
    mapping = match_labels(images.features["label"], model.config, DatasetSource(), advice=advice)
    mapping.of(images)
    return mapping
