"""The job of `spot-hf train`: fine-tuning for few tokens."""

import logging
from dataclasses import asdict
from typing import Any

import datasets
from torch import nn
from transformers import set_seed
from transformers.trainer_utils import IntervalStrategy

from ..configuration_spot_vit import SpotViTConfig
from ..data.labels import ForeignLabelsError, LabelMapping, match_labels
from ..hub.loading import ModelSource, load_weights, open_model
from ..modeling_spot_vit import SpotViTForImageClassification
from ..placement import scale_policy
from .arguments import TrainArguments
from .batches import BatchPreparation
from .data import EvaluationImages, benchmark_input
from .ingredients import Ingredients, early_stopping, load_evaluation_images, load_training_images, trained_on
from .report import save_learning_curves, training_card, training_summary
from .run import TrainingResults, TrainingRun
from .segmentation import find_segmentation_ingredients
from .trainer import SpotTrainer
from .trainer_arguments import SpotTrainingArguments


RESULTS = "training.json"  # is written last

logger = logging.getLogger(__name__)


def run_training(
    arguments: TrainArguments, training: SpotTrainingArguments, *, command: str | None = None
) -> TrainingResults | None:
    """
    Fine-tunes a model, and writes it to `training.output_dir`: ready for `from_pretrained`, with its card, `training.json`
    (the log), `training.png` and the last checkpoints. Run again after it was killed, it resumes from the last whole one.

    Args:
        arguments ([`TrainArguments`]): what is trained on what.
        training ([`SpotTrainingArguments`]): how.
        command (`str`, *optional*): how this run was started, for the record.

    Returns:
        [`TrainingResults`]: what `training.json` holds; `None` with `benchmark_input`, which only logs a rate.

    Raises:
        `ValueError`: an argument that no run can have, or the directory holds a run with other parameters. `OSError`: no such
            model or data set, no access to it, or too many images that cannot be read.
    """
    arguments.check(training)
    run = TrainingRun(training, RESULTS, training_summary)
    model = open_model(arguments.model, arguments.revision)
    model.check_vit()
    arguments = arguments.pinned()
    find = find_segmentation_ingredients if arguments.segments else _find_ingredients
    found = find(arguments, training, model)
    if arguments.benchmark_input:
        run.log(str(benchmark_input(found.images, training.train_batch_size, training.dataloader_num_workers)))
        return None
    inputs = [arguments.model, arguments.dataset_name, arguments.teacher_model, arguments.coordinates]
    finished = run.open(arguments, found.pins, len(found.images), inputs, command, found.labels)
    if finished is not None:
        return finished
    if found.labels is not None:
        run.log(found.labels)
    set_seed(training.seed)
    trainer = found.make_trainer()
    results = run.train(trainer)
    if found.evaluation:
        last = trainer.evaluate()
        measured = ("_accuracy", "_mean_iou", "_loss")
        results.evaluation = {name: value for name, value in last.items() if name.endswith(measured)}
        images = next(iter(found.evaluation.values()))
        failed = [asdict(one) for one in trainer.failed_eval_images]
        results.evaluated_on = {"split": images.split, "num_images": len(images), "failed": failed}
    card = {
        "num_tokens": found.processor.num_tokens,
        "placement": found.processor.placement,
        "measured": training_card(results),
    }
    run.save(trainer, results, card, {"training.png": lambda picture: save_learning_curves(picture, results)})
    return results


def _find_ingredients(arguments: TrainArguments, training: SpotTrainingArguments, model: ModelSource) -> Ingredients:
    if arguments.classifier == "keep":
        model.check_classifier()
    processor, config = model.load_image_processor(), model.config
    width, height = processor.model_size((1000, 1000))
    placements = arguments.placements(height, width, config.patch_size, training.seed)
    arguments.check_eval_placement((height // config.patch_size) * (width // config.patch_size))
    images = load_training_images(arguments)
    class_names = _class_names(images, arguments) if arguments.classifier == "new" else None
    labels = _labels_of(arguments, training, images, config, class_names)
    classes = labels.classes_of(images) if labels is not None else None
    teacher = model
    if arguments.needs_teacher:
        if arguments.teacher_model is not None:
            teacher = open_model(arguments.teacher_model, arguments.teacher_revision)
            teacher.check_vit()
        _check_teacher(arguments, teacher, model, processor)
    training_images = arguments.training_images(
        images, processor, training.seed, augmentation=arguments.augmentation(training.seed), mapping=labels
    )
    evaluation = _evaluation_images(arguments, training, processor, config, class_names, classes, str(images.split))

    def make_trainer() -> SpotTrainer:
        names = (
            "cross_entropy_weight", "distill_weight", "distill_temperature", "feature_weight", "layer_decay", "ema_decay",
        )  # fmt: skip
        return SpotTrainer(
            model=trained_on(training, _load_model(arguments, model, class_names)),
            args=training,
            train_dataset=training_images,
            eval_dataset=evaluation,
            processing_class=processor,
            preparation=BatchPreparation(placements, processor),
            classes=classes if arguments.among_labels else None,
            teacher=_load_teacher(teacher) if arguments.needs_teacher else None,
            callbacks=early_stopping(arguments),
            **{name: getattr(arguments, name) for name in names},
        )

    return Ingredients(
        processor=processor,
        images=training_images,
        evaluation=evaluation,
        labels=labels.description if labels is not None else None,
        pins={
            **model.recorded(),
            "teacher_revision": teacher.revision if arguments.teacher_model else None,
            **(labels.recorded() if labels is not None else {}),
        },
        make_trainer=make_trainer,
    )


# ------------------------------------------------------------------------------------------------------------- images


def _evaluation_images(
    arguments: TrainArguments,
    training: SpotTrainingArguments,
    processor: Any,
    config: SpotViTConfig,
    class_names: list[str] | None,
    classes: list[int] | None,
    train_split: str,
) -> dict[str, EvaluationImages] | None:
    images = load_evaluation_images(arguments, training, train_split)
    if images is None:
        return None
    labels = _match_labels(arguments, images, config, class_names)
    others = set(labels.classes_of(images)) - set(classes or [])
    if arguments.among_labels and others:
        raise ValueError(
            f"`among_labels` needs the evaluation's classes among those of training; {str(images.split)!r} also has "
            f"{', '.join(map(str, sorted(others)[:5]))}"
        )
    return {
        f"n{num_tokens}": EvaluationImages(
            images,
            processor,
            num_tokens,
            arguments.eval_placement,
            arguments.max_failed_share,
            labels,
            None if arguments.eval_window_scales is None else scale_policy(arguments.eval_window_scales),
        )
        for num_tokens in arguments.evaluated_num_tokens
    }


def _labels_of(
    arguments: TrainArguments,
    training: SpotTrainingArguments,
    images: datasets.Dataset,
    config: SpotViTConfig,
    class_names: list[str] | None,
) -> LabelMapping | None:
    """Where there are labels. `ValueError` for labels that are none of the model's classes, and yet are needed."""
    if not arguments.has_labels:
        return None
    evaluates = training.eval_strategy != IntervalStrategy.NO
    try:
        return _match_labels(arguments, images, config, class_names)
    except ForeignLabelsError as error:
        if arguments.cross_entropy_weight or arguments.among_labels or evaluates:
            raise
        logger.info("labels are not used: %s", error)
        return None


def _match_labels(
    arguments: TrainArguments, images: datasets.Dataset, config: SpotViTConfig, class_names: list[str] | None
) -> LabelMapping:
    """`ValueError` for labels that are none of the classes: `class_names`, of a new classifier, or those of the model."""
    if class_names is not None:
        config = SpotViTConfig(id2label=dict(enumerate(class_names)))
        return match_labels(images.features["label"], config, arguments)
    advice = ". `classifier='new'` takes the data set's classes"
    return match_labels(images.features["label"], config, arguments, advice=advice, new_classifier=True)


def _class_names(images: datasets.Dataset, arguments: TrainArguments) -> list[str]:
    feature = images.features["label"]
    if not isinstance(feature, datasets.ClassLabel):
        raise ValueError(
            f"`label_column_name` must be a ClassLabel, which names its classes, with `classifier='new'`; "
            f"{arguments.label_column_name!r} is {feature}"
        )
    return feature.names


# ------------------------------------------------------------------------------------------------------------- models


def _load_model(arguments: TrainArguments, source: ModelSource, names: list[str] | None) -> SpotViTForImageClassification:
    changes: dict[str, Any] = {"drop_path_rate": arguments.drop_path_rate}
    if source.config.calibration is not None or isinstance(source.config.num_tokens, (list, tuple)):
        logger.info("budgets per image are not kept: their thresholds are those of the weights as they were. Calibrate anew")
        changes.update(num_tokens=None, confidence=None, calibration=None)
    if names is None:
        return load_weights(SpotViTForImageClassification, source, **changes)
    changes.update(id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)})
    model = load_weights(SpotViTForImageClassification, source, anew=["classifier."], num_labels=len(names), **changes)
    # One for as many other classes would have been kept.
    classifier: Any = model.classifier
    nn.init.trunc_normal_(classifier.weight, std=model.config.initializer_range)
    nn.init.zeros_(classifier.bias)
    return model


def _load_teacher(teacher: ModelSource) -> SpotViTForImageClassification:
    """One without a classifier gets a random one: its features are what counts."""
    anew = () if teacher.has_classifier else ("classifier.",)
    return load_weights(SpotViTForImageClassification, teacher, anew=anew)


def _check_teacher(arguments: TrainArguments, teacher: ModelSource, model: ModelSource, processor: Any) -> None:
    """`ValueError` where the student's outputs cannot be compared with the teacher's, or the teacher cannot see its images."""
    theirs, ours = teacher.config, model.config
    if arguments.distill_weight and not teacher.has_classifier:
        raise ValueError(f"`teacher_model` must have a classifier for `distill_weight` above 0; {teacher.name!r} has none")
    if arguments.distill_weight and theirs.num_labels != ours.num_labels:
        raise ValueError(
            f"`teacher_model` must know the model's {ours.num_labels} classes for `distill_weight` above 0; {teacher.name!r} "
            f"has {theirs.num_labels}"
        )
    if arguments.feature_weight and theirs.pooled_size != ours.pooled_size:
        raise ValueError(
            f"`teacher_model` must have features of the model's size, {ours.pooled_size}, for `feature_weight` above 0; "
            f"{teacher.name!r} has {theirs.pooled_size}"
        )
    of_teacher = teacher.load_image_processor()
    for name in ("do_normalize", "image_mean", "image_std"):
        if getattr(of_teacher, name) != getattr(processor, name):
            raise ValueError(
                "`teacher_model` must normalize images as the model does, as it sees the same ones; "
                f"{name} is {getattr(of_teacher, name)}, not {getattr(processor, name)}"
            )
