"""What a run of `spot-hf train` needs, found and checked before its directory is touched."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import datasets
from transformers import EarlyStoppingCallback, PreTrainedModel
from transformers.trainer_utils import IntervalStrategy

from ..coordinates.joining import join_coordinates
from ..coordinates.loading import load_coordinates
from ..data.source import load_images, parts_overlap
from .arguments import TrainArguments
from .data import EvaluationImages, TrainingImages
from .trainer import SpotTrainer
from .trainer_arguments import SpotTrainingArguments


logger = logging.getLogger(__name__)

Model = TypeVar("Model", bound=PreTrainedModel)


@dataclass(frozen=True)
class Ingredients:
    """
    Attributes:
        processor: the image processor that is saved with the model.
        images ([`TrainingImages`]): to train on.
        evaluation (`dict`, *optional*): images to evaluate on, by number of tokens: `n25` and so on.
        labels (`str`, *optional*): how the data set's labels are the model's classes, for the log and the record.
        pins (`dict`): parameters of the run beyond its arguments: the models' commits and digests, the classes.
        make_trainer (`Callable`): loads the model, and makes the trainer.
    """

    processor: Any
    images: TrainingImages
    evaluation: Mapping[str, EvaluationImages] | None
    labels: str | None
    pins: Mapping[str, Any]
    make_trainer: Callable[[], SpotTrainer]


def trained_on(training: SpotTrainingArguments, model: Model) -> Model:
    """The model, as it trains fastest on its device."""
    if training.device.type == "cpu":
        model.set_attn_implementation("eager")  # the fused one's backward pass is slow there: a third of a step at 25 tokens
    return model


def early_stopping(arguments: TrainArguments) -> list[EarlyStoppingCallback] | None:
    patience = arguments.early_stopping_patience
    return [EarlyStoppingCallback(patience)] if patience else None


def load_training_images(arguments: TrainArguments) -> datasets.Dataset:
    images: Any = load_images(arguments.source())
    if len(images) == 0:
        raise ValueError(
            f"`dataset_split` must have images; {arguments.dataset_split!r} of {arguments.dataset_name!r} has none"
        )
    if arguments.coordinates is None:
        return images
    rows = load_coordinates(
        arguments.coordinates,
        arguments.coordinates_config,
        arguments.coordinates_split,
        revision=arguments.coordinates_revision,
    )
    num_tokens = len(rows[0]["coordinates"])
    if num_tokens not in arguments.token_counts:
        raise ValueError(f"`num_tokens` must include {num_tokens}, which `coordinates` have; got {arguments.token_counts}")
    return join_coordinates(images, rows.select_columns(["image_id", "image_sha256", "coordinates"]), split=str(images.split))


def load_evaluation_images(
    arguments: TrainArguments, training: SpotTrainingArguments, train_split: str
) -> datasets.Dataset | None:
    """The split to evaluate on; `None` where nothing is to be. `ValueError` where none was named, and none is beside the
    training images."""
    if training.eval_strategy == IntervalStrategy.NO:
        return None
    source = arguments.source(dataset_split=arguments.eval_dataset_split, max_samples=arguments.max_eval_samples)
    try:
        images: Any = load_images(source)
    except ValueError as error:
        raise ValueError(str(error).replace("`dataset_split`", "`eval_dataset_split`")) from None
    overlap = parts_overlap(str(images.split), train_split)
    if overlap and arguments.eval_dataset_split is not None:  # as was asked for
        logger.warning(
            "`eval_dataset_split` and `dataset_split` have images in common: these accuracies are of training images"
        )
    elif overlap:
        raise ValueError(
            f"`eval_dataset_split` must be named, or `eval_strategy` be no: {arguments.dataset_name!r} has no split test or "
            f"validation beside {arguments.dataset_split!r}"
        )
    return images
