"""[`SpotTrainer`] in one's own script: from ordinary data sets of `datasets` to what it trains and evaluates on."""

import logging
from collections.abc import Sequence
from typing import Any

import datasets

from ..data.labels import LabelMapping, match_labels
from ..data.source import DatasetSource
from .batches import BatchPreparation
from .data import EvaluationImages, TrainingImages
from .placements import TrainingPlacements


logger = logging.getLogger(__name__)


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
    evaluations = list(evaluation.values()) if isinstance(evaluation, dict) else [evaluation]
    if not any(map(has_images, [train, *evaluations])):
        if num_tokens is not None or placement != "isotropic":
            raise ValueError(
                "`num_tokens` and `placement` are for data sets of images, whose tokens are placed here; got data sets of the "
                "model's inputs, or none"
            )
        return preparation
    if model is None or processor is None:
        missing = "model" if model is None else "processing_class"
        raise ValueError(f"`{missing}` is needed with data sets of images: the model, and its image processor; got none")
    if given.get("args") is None or given["args"].remove_unused_columns:
        raise ValueError(
            "`remove_unused_columns` must be False with data sets of images: Trainer would remove these. "
            "SpotTrainingArguments has it so"
        )
    num_tokens = processor.num_tokens if num_tokens is None and preparation is None else num_tokens
    counts = [num_tokens] if isinstance(num_tokens, int) else list(num_tokens or [])
    placements: Any = [placement] if isinstance(placement, str) or callable(placement) else list(placement)
    seed = given["args"].seed
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
    if has_images(train):
        mapping = _mapping_of(train, model)
        given["train_dataset"] = TrainingImages(train, processor, seed=seed, mapping=mapping)
    if isinstance(evaluation, dict):
        named = {name: evaluation_of(one, model, preparation) for name, one in evaluation.items()}
        given["eval_dataset"] = {
            key if key == name else f"{name}_{key}": one
            for name, several in named.items()
            for key, one in (several.items() if isinstance(several, dict) else [(name, several)])
        }
    else:
        given["eval_dataset"] = evaluation_of(evaluation, model, preparation)
    return preparation


def evaluation_of(dataset: Any, model: Any, preparation: BatchPreparation | None) -> Any:
    """Of a data set of images, one evaluation per number of tokens, `n25` and so on, with the first placement of training;
    another data set as it is."""
    if preparation is None or not has_images(dataset):
        return dataset
    mapping, chosen = _mapping_of(dataset, model), preparation.placements
    return {
        f"n{count}": EvaluationImages(dataset, preparation.image_processor, count, chosen.placement[0], mapping=mapping)
        for count in chosen.num_tokens
    }


def has_images(dataset: Any) -> bool:
    """Whether it is one of `datasets`, of images: without a transform of its own, and not of the model's inputs. `ValueError`
    where it is neither."""
    if isinstance(dataset, datasets.IterableDataset) and isinstance((dataset.features or {}).get("image"), datasets.Image):
        raise ValueError("a data set of images must not be a stream: each epoch draws them anew; got an IterableDataset")
    if not isinstance(dataset, datasets.Dataset) or dataset.format["type"] == "custom" or "pixel_values" in dataset.features:
        return False
    feature = dataset.features.get("image")
    if not isinstance(feature, datasets.Image):
        raise ValueError(
            f"a data set must have a column `image` of images, or a transform that gives the model's inputs; it has "
            f"{', '.join(dataset.features)}" + (f", where image is {feature}" if feature is not None else "")
        )
    return True


def _mapping_of(images: datasets.Dataset, model: Any) -> LabelMapping:
    """`ValueError` for labels that are none of the model's classes."""
    if "label" not in images.features:
        raise ValueError(f"a data set of images must have a column `label`; it has {', '.join(images.features)}")
    advice = ". Give the model a classifier for them: `num_labels` and `id2label` of `from_pretrained`"
    mapping = match_labels(images.features["label"], model.config, DatasetSource(), advice=advice)
    mapping.of(images)
    logger.info(mapping.description)
    return mapping
