"""Fine-tuning for semantic segmentation: images and masks that move together, the loss, and the measure."""

from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from transformers import EvalPrediction

from ..data.encoded import encoded_image
from ..data.labels import read_label_names
from ..data.masks import MaskClasses, check_masks, class_names, with_encoded_masks
from ..evaluation.confusion import confusions_of_logits, segmentation_scores
from ..hub.loading import ModelSource, load_weights
from ..placement import scale_policy
from ..segmentation_spot_vit import SpotViTForSemanticSegmentation
from .arguments import TrainArguments
from .batches import BatchPreparation, TrainingBatch
from .data import EvaluationImages, TrainingImages
from .ingredients import Ingredients, early_stopping, load_evaluation_images, load_training_images, trained_on
from .trainer import SpotTrainer
from .trainer_arguments import SpotTrainingArguments


class SegmentationTrainingImages(TrainingImages):
    """As [`TrainingImages`]; `labels` is the mask `(height, width)`, int64, cropped, resized and mirrored as its image is, by
    the nearest pixel.

    Args:
        classes ([`MaskClasses`]): of the masks, the column `label`, undecoded.
    """

    def __init__(self, *args: Any, classes: MaskClasses, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.classes = classes

    def __getitem__(self, draw: int) -> dict[str, Any]:
        row, view, pixels, failed = self.view(draw)
        index = draw % len(self)
        mask = self.classes.read(row["label"], view.image_size, row.get("image_id", f"{self.split}/{index}"))
        seen = np.asarray(
            Image.fromarray(mask.astype(np.int32)).resize(self.size, Image.Resampling.NEAREST, box=view.box), dtype=np.int64
        )
        seen = seen[:, ::-1] if view.flipped else seen
        found = {"pixels": pixels, "draw": draw, "failed": failed, "labels": torch.from_numpy(seen.copy())}
        if "coordinates" in row:
            found["coordinates"] = view.positions(torch.tensor(row["coordinates"]))
        return found


class SegmentationEvaluationImages(EvaluationImages):
    """As [`EvaluationImages`]; `labels` is the mask over what the model sees, all of it without a class where the image could
    not be read.

    Args:
        classes ([`MaskClasses`]): of the masks, the column `label`, undecoded.
    """

    def __init__(self, *args: Any, classes: MaskClasses, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.classes = classes

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = encoded_image(self.images[index], index, self.split)
        decoded, failed = self.decoded(image)
        if failed:
            mask = np.full((decoded.height, decoded.width), self.classes.ignore_index)
        else:
            mask = self.classes.read(image.label, decoded.size, image.image_id)
        return {**self.inputs_of(image, decoded, segmentation_maps=mask), "failed": failed}


class SegmentationTrainer(SpotTrainer):
    """[`SpotTrainer`] for [`SpotViTForSemanticSegmentation`]: cross-entropy of pixels; mean IoU and pixel accuracy."""

    measured = ("mean_iou", "pixel_accuracy")

    def loss_of(self, logits: torch.Tensor, batch: TrainingBatch) -> torch.Tensor:
        return self._cross_entropy(logits, batch)

    def _cross_entropy(self, logits: torch.Tensor, batch: TrainingBatch) -> torch.Tensor:
        model: Any = self.model
        assert batch.labels is not None
        if model.training:
            return model.loss_of(logits.float(), batch.labels, self.args.label_smoothing_factor)
        # Of each image its own mean, so that batches do not matter; 0 without labelled pixels, as of one that was not read.
        return torch.stack(
            [model.loss_of(*one) for one in zip(logits.float().split(1), batch.labels.split(1), strict=True)]
        ).mean()

    def prediction_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> tuple[Any, Any, Any]:
        """Confusion matrices `(batch_size, num_labels, num_labels)` in the place of logits, so that no maps are kept."""
        loss, logits, labels = super().prediction_step(model, inputs, *args, **kwargs)
        if logits is None or labels is None:
            return loss, logits, labels
        return loss, confusions_of_logits(logits, labels, self.model.config.semantic_loss_ignore_index), labels[:, 0, 0]


def mean_iou_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Trainer's `compute_metrics`: in percent."""
    scores = segmentation_scores(np.asarray(prediction.predictions))
    return {"mean_iou": scores.mean_iou, "pixel_accuracy": scores.pixel_accuracy}


def find_segmentation_ingredients(
    arguments: TrainArguments, training: SpotTrainingArguments, model: ModelSource
) -> Ingredients:
    """What a run needs whose task is semantic segmentation."""
    keeps_head = model.segments and arguments.classifier == "keep"
    if keeps_head and (arguments.scores_per_side or arguments.head_hidden_size):
        raise ValueError("`scores_per_side` and `head_hidden_size` are of a new head; the model's own is kept")
    processor, config = model.load_image_processor(), model.config
    if arguments.image_size is not None:
        processor = processor.resized_whole(*arguments.image_size)
    width, height = processor.model_size((1000, 1000))
    if min(width, height) < config.patch_size:
        raise ValueError(f"`image_size` must be at least the patch size, {config.patch_size}; got {arguments.image_size}")
    placements = arguments.placements(height, width, config.patch_size, training.seed)
    arguments.check_eval_placement((height // config.patch_size) * (width // config.patch_size))
    images = with_encoded_masks(load_training_images(arguments), arguments.label_column_name)
    given = _names_of(arguments)
    ignored = config.semantic_loss_ignore_index if arguments.ignore_index is None else arguments.ignore_index
    known = config.num_labels if keeps_head else None if given is None else len(given)
    classes = check_masks(images, known, ignored)
    names: dict[int, str] = config.id2label if keeps_head else class_names(given, classes.num_labels)
    training_images = arguments.training_images(
        images, processor, training.seed, images_class=SegmentationTrainingImages, classes=classes
    )
    evaluation = _evaluation_images(arguments, training, processor, classes, str(images.split))

    def make_trainer() -> SegmentationTrainer:
        segmenter = _load_model(arguments, model, names, classes, keeps_head)
        segmenter.resize_position_embeddings(height, width)
        return SegmentationTrainer(
            model=trained_on(training, segmenter),
            args=training,
            train_dataset=training_images,
            eval_dataset=evaluation,
            processing_class=processor,
            preparation=BatchPreparation(placements, processor),
            compute_metrics=mean_iou_metrics,
            callbacks=early_stopping(arguments),
            layer_decay=arguments.layer_decay,
            ema_decay=arguments.ema_decay,
        )

    return Ingredients(
        processor=processor,
        images=training_images,
        evaluation=evaluation,
        labels=f"masks of {classes.num_labels} classes, {', '.join(names.values())}; {classes.ignore_index} does not count",
        pins={**model.recorded(), "classes": list(names.values()), "ignore_index": classes.ignore_index},
        make_trainer=make_trainer,
    )


def _names_of(arguments: TrainArguments) -> Sequence[str] | None:
    if arguments.label_names is None:
        return None
    names = read_label_names(arguments.label_names)
    if not isinstance(names, list):
        raise ValueError("`label_names` must be a list of names, by number, for semantic segmentation; got an object")
    return names


def _evaluation_images(
    arguments: TrainArguments,
    training: SpotTrainingArguments,
    processor: Any,
    classes: MaskClasses,
    train_split: str,
) -> dict[str, EvaluationImages] | None:
    found: datasets.Dataset | None = load_evaluation_images(arguments, training, train_split)
    if found is None:
        return None
    images = with_encoded_masks(found, arguments.label_column_name)
    check_masks(images, classes.num_labels, classes.ignore_index)
    scales = None if arguments.eval_window_scales is None else scale_policy(arguments.eval_window_scales)
    return {
        f"n{num_tokens}": SegmentationEvaluationImages(
            images,
            processor,
            num_tokens,
            arguments.eval_placement,
            arguments.max_failed_share,
            window_scales=scales,
            classes=classes,
        )
        for num_tokens in arguments.evaluated_num_tokens
    }


def _load_model(
    arguments: TrainArguments, source: ModelSource, names: dict[int, str], classes: MaskClasses, keeps_head: bool
) -> SpotViTForSemanticSegmentation:
    changes: dict[str, Any] = {
        "drop_path_rate": arguments.drop_path_rate,
        "semantic_loss_ignore_index": classes.ignore_index,
        # Of a classifier alone.
        **{"num_tokens": None, "confidence": None, "calibration": None, "placer": None, "merge_tokens": 0.0},
        **({"placement": "isotropic"} if source.config.placement == "learned" else {}),
    }
    if keeps_head:
        return load_weights(SpotViTForSemanticSegmentation, source, **changes)
    changes.update(id2label=names, label2id={name: i for i, name in names.items()}, num_labels=len(names))
    changes.update(segmentation_scores_per_side=arguments.scores_per_side or 1)
    changes.update(segmentation_hidden_size=arguments.head_hidden_size)
    model = load_weights(SpotViTForSemanticSegmentation, source, anew=["decode_head."], **changes)
    model.decode_head.apply(model._init_weights)  # one for as many other classes would have been kept
    return model
