"""The job of `spot-hf train`: fine-tuning for few tokens."""

from collections.abc import Callable
from typing import Any

import datasets
from torch import nn
from transformers import EarlyStoppingCallback, set_seed
from transformers.trainer_utils import IntervalStrategy

from ..configuration_spot_vit import SpotViTConfig
from ..coordinates.joining import join_coordinates
from ..coordinates.loading import load_coordinates
from ..data.labels import classes_of, label_numbers, outside_of
from ..data.source import load_images
from ..hub.loading import check_classifier, has_classifier, load_image_processor, load_spot_vit_config
from ..modeling_spot_vit import SpotViTForImageClassification
from .arguments import SpotTrainingArguments, TrainArguments
from .batches import BatchPreparation
from .data import EvaluationImages, TrainingImages, benchmark_input
from .report import save_learning_curves, training_summary
from .run import TrainingRun
from .trainer import SpotTrainer


RESULTS = "training.json"  # is written last


def run_training(
    arguments: TrainArguments,
    training: SpotTrainingArguments,
    *,
    command: str | None = None,
    say: Callable[[str], Any] = print,
) -> dict[str, Any]:
    """
    Fine-tunes a model, and writes it to `training.output_dir`: ready for `from_pretrained`, with its card, `training.json`
    (the log), `training.png` and the last checkpoints. Run again after it was killed, it goes on from the last whole one.

    Args:
        arguments ([`TrainArguments`]): what is trained on what.
        training ([`SpotTrainingArguments`]): how.
        command (`str`, *optional*): how this run was started, for the record.
        say: is called with lines that tell what happens; on the first process alone.

    Returns:
        `dict`: what `training.json` holds.

    Raises:
        `ValueError`: an argument that no run can have, or the directory holds a run with other parameters. `OSError`: no such
            model or data set, or no access to it.
    """
    arguments.check(training)
    say = say if training.process_index == 0 else (lambda _: None)
    config = load_spot_vit_config(arguments.model, arguments.revision)
    if arguments.classifier == "keep":
        check_classifier(arguments.model, config)
    processor = load_image_processor(arguments.model, arguments.revision)
    width, height = processor.model_size((1000, 1000))
    placements = arguments.placements(height, width, config.patch_size, training.seed)
    arguments.check_eval_placement((height // config.patch_size) * (width // config.patch_size))
    images = _load_training_images(arguments)
    num_labels = config.num_labels if arguments.classifier == "keep" else _num_classes(images, arguments)
    classes = _check_labels(arguments, images, num_labels) if arguments.has_labels else None
    if arguments.needs_teacher:
        _check_teacher(arguments, config, processor)
    training_images = TrainingImages(
        images,
        processor,
        crop_scale=(arguments.crop_scale[0], arguments.crop_scale[1]),
        crop_ratio=(arguments.crop_ratio[0], arguments.crop_ratio[1]),
        flip=arguments.flip,
        seed=training.seed,
    )
    if arguments.benchmark_input:
        rate = benchmark_input(training_images, training.train_batch_size, training.dataloader_num_workers)
        say(
            f"input pipeline alone: {rate.images_per_second:.0f} images/s with {rate.num_workers} workers, "
            f"over {rate.num_images} images"
        )
        return {"input_images_per_second": rate.images_per_second}
    preparation = BatchPreparation(
        placements,
        processor,
        mixup=arguments.mixup,
        cutmix=arguments.cutmix,
        rand_augment_num_ops=arguments.rand_augment_num_ops,
        rand_augment_magnitude=arguments.rand_augment_magnitude,
    )
    evaluation = _evaluation_images(arguments, training, processor, num_labels, classes)

    run = TrainingRun(training, RESULTS, say)
    inputs = [arguments.model, arguments.dataset_name, arguments.teacher_model, arguments.coordinates]
    run.open(arguments, len(images), inputs, command)
    finished = run.results
    if finished is not None:
        say(f"this run is finished\n{training_summary(run.directory, finished)}")
        return finished

    set_seed(training.seed)
    trainer = SpotTrainer(
        model=_load_model(arguments, images, num_labels),
        args=training,
        train_dataset=training_images,
        eval_dataset=evaluation,
        processing_class=processor,
        preparation=preparation,
        classes=classes if arguments.among_labels else None,
        teacher=_load_teacher(arguments) if arguments.needs_teacher else None,
        callbacks=[EarlyStoppingCallback(arguments.early_stopping_patience)] if arguments.early_stopping_patience else None,
        **{
            name: getattr(arguments, name)
            for name in ("cross_entropy_weight", "distill_weight", "distill_temperature", "feature_weight", "layer_decay",
                         "ema_decay")
        },
    )  # fmt: skip
    results = run.train(trainer)
    last = trainer.evaluate() if evaluation else {}
    results["evaluation"] = {name: value for name, value in last.items() if name.endswith(("_accuracy", "_loss"))}
    results["evaluated_on"] = _described(evaluation)
    card = {
        "num_tokens": processor.num_tokens,
        "placement": processor.placement,
        "measured": training_summary(None, results),
    }
    run.save(trainer, results, card, {"training.png": lambda picture: save_learning_curves(picture, results)})
    say(training_summary(run.directory, results))
    return results


def _load_training_images(arguments: TrainArguments) -> datasets.Dataset:
    images: Any = load_images(
        arguments.dataset_name,
        config_name=arguments.dataset_config_name,
        split=arguments.dataset_split,
        revision=arguments.dataset_revision,
        image_column_name=arguments.image_column_name,
        label_column_name=arguments.label_column_name if arguments.has_labels else None,
        max_samples=arguments.max_samples,
    )
    if len(images) == 0:
        raise ValueError(
            f"`dataset_split` must have images; {arguments.dataset_split!r} of {arguments.dataset_name!r} has none"
        )
    if arguments.coordinates is None:
        return images
    rows = load_coordinates(arguments.coordinates, arguments.coordinates_config, arguments.coordinates_split)
    num_tokens = len(rows[0]["coordinates"])
    if num_tokens not in arguments.token_counts:
        raise ValueError(f"`num_tokens` must include {num_tokens}, which `coordinates` have; got {arguments.token_counts}")
    return join_coordinates(images, rows.select_columns(["image_id", "image_sha256", "coordinates"]), split=str(images.split))


def _evaluation_images(
    arguments: TrainArguments,
    training: SpotTrainingArguments,
    processor: Any,
    num_labels: int,
    classes: list[int] | None,
) -> dict[str, EvaluationImages] | None:
    """By number of tokens, `n25` and so on; none where nothing is to be evaluated."""
    if training.eval_strategy == IntervalStrategy.NO:
        return None
    try:
        images: Any = load_images(
            arguments.dataset_name,
            config_name=arguments.dataset_config_name,
            split=arguments.eval_dataset_split,
            revision=arguments.dataset_revision,
            image_column_name=arguments.image_column_name,
            label_column_name=arguments.label_column_name,
            max_samples=arguments.max_eval_samples,
        )
    except ValueError as error:
        raise ValueError(str(error).replace("`dataset_split`", "`eval_dataset_split`")) from None
    if arguments.eval_dataset_split is None and str(images.split) == arguments.dataset_split:
        raise ValueError(
            f"`eval_dataset_split` must be named, or `eval_strategy` be no: {arguments.dataset_name!r} has no split test or "
            f"validation beside {arguments.dataset_split!r}"
        )
    others = set(_check_labels(arguments, images, num_labels)) - set(classes or [])
    if arguments.among_labels and others:
        raise ValueError(
            f"`among_labels` needs the evaluation's classes among those of training; {str(images.split)!r} also has "
            f"{', '.join(map(str, sorted(others)[:5]))}"
        )
    return {
        f"n{num_tokens}": EvaluationImages(images, processor, num_tokens, arguments.eval_placement)
        for num_tokens in arguments.evaluated_num_tokens
    }


def _described(evaluation: dict[str, EvaluationImages] | None) -> dict[str, Any] | None:
    images = next(iter((evaluation or {}).values()), None)
    return None if images is None else {"split": images.split, "num_images": len(images)}


def _check_labels(arguments: TrainArguments, images: datasets.Dataset, num_labels: int) -> list[int]:
    """The classes that occur; `ValueError` where a label is none that the model knows."""
    try:
        labels = label_numbers(images)
    except (TypeError, ValueError):
        raise ValueError(
            f"`label_column_name` must name a column of class numbers; {arguments.label_column_name!r} is "
            f"{images.features['label']}"
        ) from None
    wrong = outside_of(labels, num_labels)
    if len(wrong):
        raise ValueError(
            f"`label_column_name`: row {wrong[0]} and {len(wrong) - 1} more of {str(images.split)!r} have labels that the "
            f"model does not know: {labels[wrong[0]]:g}, not 0 to {num_labels - 1}. `classifier='new'` takes the data set's"
        )
    return classes_of(images)


def _num_classes(images: datasets.Dataset, arguments: TrainArguments) -> int:
    feature = images.features["label"]
    if not isinstance(feature, datasets.ClassLabel):
        raise ValueError(
            f"`label_column_name` must be a ClassLabel, which names its classes, with `classifier='new'`; "
            f"{arguments.label_column_name!r} is {feature}"
        )
    return int(feature.num_classes)


def _load_model(arguments: TrainArguments, images: datasets.Dataset, num_labels: int) -> SpotViTForImageClassification:
    changes: dict[str, Any] = {"drop_path_rate": arguments.drop_path_rate}
    if arguments.classifier == "new":
        names = images.features["label"].names
        changes.update(id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)})
        changes.update(num_labels=num_labels, ignore_mismatched_sizes=True)
    model = SpotViTForImageClassification.from_pretrained(arguments.model, revision=arguments.revision, **changes)
    if arguments.classifier == "new":
        # One for as many other classes would have been kept.
        nn.init.trunc_normal_(model.classifier.weight, std=model.config.initializer_range)
        nn.init.zeros_(model.classifier.bias)
    return model


def _teacher_source(arguments: TrainArguments) -> tuple[str, str | None]:
    """Directory or Hub id, and revision."""
    return (arguments.model, arguments.revision) if arguments.teacher_model is None else (arguments.teacher_model, None)


def _check_teacher(arguments: TrainArguments, config: SpotViTConfig, processor: Any) -> None:
    """`ValueError` where the student's outputs cannot be compared with the teacher's, or the teacher not see its images."""
    source, revision = _teacher_source(arguments)
    teacher = load_spot_vit_config(source, revision)
    if arguments.distill_weight and not has_classifier(teacher):
        raise ValueError(f"`teacher_model` must have a classifier for `distill_weight` above 0; {source!r} has none")
    if arguments.distill_weight and teacher.num_labels != config.num_labels:
        raise ValueError(
            f"`teacher_model` must know the model's {config.num_labels} classes for `distill_weight` above 0; {source!r} has "
            f"{teacher.num_labels}"
        )
    if arguments.feature_weight and teacher.pooled_size != config.pooled_size:
        raise ValueError(
            f"`teacher_model` must have features of the model's size, {config.pooled_size}, for `feature_weight` above 0; "
            f"{source!r} has {teacher.pooled_size}"
        )
    of_teacher = load_image_processor(source, revision)
    for name in ("do_normalize", "image_mean", "image_std"):
        theirs, ours = getattr(of_teacher, name), getattr(processor, name)
        if theirs != ours:
            raise ValueError(
                f"`teacher_model` must normalize images as the model does: it sees the same; {name} is {theirs}, not {ours}"
            )


def _load_teacher(arguments: TrainArguments) -> SpotViTForImageClassification:
    source, revision = _teacher_source(arguments)
    return SpotViTForImageClassification.from_pretrained(source, revision=revision)
