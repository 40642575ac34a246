"""The job of `spot-hf train`: fine-tuning for few tokens."""

import logging
from dataclasses import asdict, dataclass
from typing import Any

import datasets
from torch import nn
from transformers import EarlyStoppingCallback, set_seed
from transformers.trainer_utils import IntervalStrategy

from ..configuration_spot_vit import SpotViTConfig
from ..coordinates.joining import join_coordinates
from ..coordinates.loading import load_coordinates
from ..data.labels import ForeignLabelsError, LabelMapping, match_labels
from ..data.source import load_images, parts_overlap
from ..hub.loading import ModelSource, load_weights, open_model
from ..modeling_spot_vit import SpotViTForImageClassification
from ..placement import scale_policy
from .arguments import TrainArguments
from .batches import BatchPreparation
from .data import EvaluationImages, TrainingImages, benchmark_input
from .placements import TrainingPlacements
from .report import save_learning_curves, training_card, training_summary
from .run import TrainingResults, TrainingRun
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
    found = _find_ingredients(arguments, training, model)
    if arguments.benchmark_input:
        run.log(str(benchmark_input(found.images, training.train_batch_size, training.dataloader_num_workers)))
        return None
    pins = {
        **found.model.recorded(),
        "teacher_revision": found.teacher.revision if arguments.teacher_model else None,
        **(found.labels.recorded() if found.labels is not None else {}),
    }
    inputs = [arguments.model, arguments.dataset_name, arguments.teacher_model, arguments.coordinates]
    labels = found.labels.description if found.labels is not None else None
    finished = run.open(arguments, pins, len(found.images), inputs, command, labels)
    if finished is not None:
        return finished
    if labels is not None:
        run.log(labels)
    set_seed(training.seed)
    trainer = _make_trainer(arguments, training, found)
    results = run.train(trainer)
    if found.evaluation:
        last = trainer.evaluate()
        results.evaluation = {name: value for name, value in last.items() if name.endswith(("_accuracy", "_loss"))}
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


@dataclass
class _Ingredients:
    """What a run needs, found and checked before its directory is touched."""

    model: ModelSource
    teacher: ModelSource  # by default the model itself
    processor: Any
    class_names: list[str] | None  # of a new classifier
    labels: LabelMapping | None  # to the model's classes; none without labels
    classes: list[int] | None  # that occur; likewise
    placements: TrainingPlacements
    images: TrainingImages
    evaluation: dict[str, EvaluationImages] | None  # by number of tokens, `n25` and so on


def _find_ingredients(arguments: TrainArguments, training: SpotTrainingArguments, model: ModelSource) -> _Ingredients:
    if arguments.classifier == "keep":
        model.check_classifier()
    processor, config = model.load_image_processor(), model.config
    width, height = processor.model_size((1000, 1000))
    placements = arguments.placements(height, width, config.patch_size, training.seed)
    arguments.check_eval_placement((height // config.patch_size) * (width // config.patch_size))
    images = _load_training_images(arguments)
    class_names = _class_names(images, arguments) if arguments.classifier == "new" else None
    labels = _labels_of(arguments, training, images, config, class_names)
    classes = labels.classes_of(images) if labels is not None else None
    teacher = model
    if arguments.needs_teacher:
        if arguments.teacher_model is not None:
            teacher = open_model(arguments.teacher_model, arguments.teacher_revision)
            teacher.check_vit()
        _check_teacher(arguments, teacher, model, processor)
    return _Ingredients(
        model=model,
        teacher=teacher,
        processor=processor,
        class_names=class_names,
        labels=labels,
        classes=classes,
        placements=placements,
        images=arguments.training_images(
            images, processor, training.seed, augmentation=arguments.augmentation(training.seed), mapping=labels
        ),
        evaluation=_evaluation_images(arguments, training, processor, config, class_names, classes, str(images.split)),
    )


def _make_trainer(arguments: TrainArguments, training: SpotTrainingArguments, found: _Ingredients) -> SpotTrainer:
    names = (
        "cross_entropy_weight", "distill_weight", "distill_temperature", "feature_weight", "layer_decay", "ema_decay",
    )  # fmt: skip
    patience = arguments.early_stopping_patience
    model = _load_model(arguments, found)
    if training.device.type == "cpu":
        model.set_attn_implementation("eager")  # the fused one's backward pass is slow there: a third of a step at 25 tokens
    return SpotTrainer(
        model=model,
        args=training,
        train_dataset=found.images,
        eval_dataset=found.evaluation,
        processing_class=found.processor,
        preparation=BatchPreparation(found.placements, found.processor),
        classes=found.classes if arguments.among_labels else None,
        teacher=_load_teacher(found.teacher) if arguments.needs_teacher else None,
        callbacks=[EarlyStoppingCallback(patience)] if patience else None,
        **{name: getattr(arguments, name) for name in names},
    )


# ------------------------------------------------------------------------------------------------------------- images


def _load_training_images(arguments: TrainArguments) -> datasets.Dataset:
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


def _evaluation_images(
    arguments: TrainArguments,
    training: SpotTrainingArguments,
    processor: Any,
    config: SpotViTConfig,
    class_names: list[str] | None,
    classes: list[int] | None,
    train_split: str,
) -> dict[str, EvaluationImages] | None:
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


def _load_model(arguments: TrainArguments, found: _Ingredients) -> SpotViTForImageClassification:
    changes: dict[str, Any] = {"drop_path_rate": arguments.drop_path_rate}
    if found.model.config.calibration is not None or isinstance(found.model.config.num_tokens, (list, tuple)):
        logger.info("budgets per image are not kept: their thresholds are those of the weights as they were. Calibrate anew")
        changes.update(num_tokens=None, confidence=None, calibration=None)
    names = found.class_names
    if names is None:
        return load_weights(SpotViTForImageClassification, found.model, **changes)
    changes.update(id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)})
    model = load_weights(SpotViTForImageClassification, found.model, anew=["classifier."], num_labels=len(names), **changes)
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
