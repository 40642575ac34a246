"""Fine-tuning for few tokens: `spot-hf train`, on transformers' Trainer.

A converted model has seen nothing but full grids. Here each step has a number of tokens and each image a placement, drawn at
random (SPoT, arXiv 2507.01654, section on training); the loss is cross-entropy, or agreement with the source model on its
full grid, which needs no labels, or both.

All that Trainer does stays: several processes and machines, bf16, gradient accumulation and checkpointing, `torch.compile`,
loggers, checkpoints, pushing. Data flows: `training_data.py` (images by draw) → `training_batches.py` (on the device) →
`training_placements.py` (where tokens sit) → here.
"""

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import EarlyStoppingCallback, EvalPrediction, Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.trainer_utils import HubStrategy, IntervalStrategy, SaveStrategy, SchedulerType

from .configuration_spot_vit import SpotViTConfig
from .coordinates import join_coordinates, load_coordinates
from .data import classes_of, label_numbers, likeliest_class, load_images, outside_of
from .loading import check_classifier, has_classifier, load_image_processor, load_spot_vit_config, public_name
from .modeling_spot_vit import SpotViTForImageClassification
from .oracle import distill_loss, feature_loss
from .oracle_run import weights_digest
from .placement import PLACEMENTS, check_placement
from .training_batches import BatchPreparation, TrainingBatch
from .training_data import DrawSampler, EvaluationImages, TrainingImages, benchmark_input, collate
from .training_placements import TrainingPlacements, token_buckets
from .training_report import save_learning_curves, training_summary
from .training_runs import STATE, TrainingRun


EMA_WEIGHTS = "ema.safetensors"
RESULTS = "training.json"  # is written last
CLASSIFIERS = ("keep", "new")


# --------------------------------------------------------------------------------------------------------- arguments


@dataclass(kw_only=True)
class TrainArguments:
    """What is trained on what. How, beyond this, is [`SpotTrainingArguments`]."""

    model: str = field(metadata={"help": "The SpotViT classifier to begin with: a directory or a Hub id."})
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a Hub id."})
    dataset_name: str = field(metadata={"help": "digits, a Hub id, or a directory that load_dataset reads."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Config of that data set."})
    dataset_split: str = field(default="train", metadata={"help": "Split to train on."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the data set's Hub id."})
    eval_dataset_split: str | None = field(
        default=None, metadata={"help": "Split to evaluate on while training (default: test or validation)."}
    )
    image_column_name: str = field(default="image", metadata={"help": "Column of the images."})
    label_column_name: str = field(default="label", metadata={"help": "Column of the labels; none: train without labels."})
    max_samples: int | None = field(default=None, metadata={"help": "Train on the first so many images only."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Evaluate on the first so many images only."})
    coordinates: str | None = field(
        default=None,
        metadata={"help": "A coordinate data set, a directory or a Hub id: its images are trained on, at its positions too."},
    )
    coordinates_config: str | None = field(default=None, metadata={"help": "Its config, where there are several."})
    coordinates_split: str | None = field(default=None, metadata={"help": "Its split, where there are several."})
    coordinates_share: float = field(default=0.5, metadata={"help": "How many of the images, where the tokens are as many."})

    num_tokens: list[int] = field(
        default_factory=lambda: [25, 49, 100], metadata={"help": "Token counts; every batch has one of them."}
    )
    num_tokens_range: list[int] | None = field(
        default=None, metadata={"help": "Instead: lowest and highest; batches have one of --num_token_buckets counts between."}
    )
    num_token_buckets: int = field(default=8, metadata={"help": "Counts in a range: as many compiled graphs."})
    num_tokens_weights: list[float] | None = field(
        default=None, metadata={"help": "How often each count, relative to the others (default: alike)."}
    )
    placement: list[str] = field(
        default_factory=lambda: ["isotropic", "center", "uniform", "gaussian", "sobol"],
        metadata={"help": "Priors; every image is placed by one of them."},
    )
    placement_weights: list[float] | None = field(
        default=None, metadata={"help": "How often each prior, relative to the others (default: alike)."}
    )
    jitter: float = field(default=0.25, metadata={"help": "Normal step that moves every token, in patches."})
    window_scales: list[float] | None = field(
        default=None, metadata={"help": "Lowest and highest scale of windows, drawn log-uniformly per token (default: 1)."}
    )
    eval_num_tokens: list[int] | None = field(
        default=None, metadata={"help": "Token counts to evaluate at while training (default: the lowest and the highest)."}
    )
    eval_placement: str = field(default="isotropic", metadata={"help": "The prior to evaluate with."})

    classifier: str = field(
        default="keep", metadata={"help": "keep the model's; or new: one for the data set's own classes, untrained."}
    )
    among_labels: bool = field(
        default=False,
        metadata={"help": "Loss and accuracy among the classes that occur only, such as Imagenette's ten of 1,000."},
    )
    cross_entropy_weight: float = field(default=1.0, metadata={"help": "Weight of the cross-entropy with the labels."})
    distill_weight: float = field(
        default=0.0, metadata={"help": "Weight of the divergence from the teacher's full-grid prediction. Needs no labels."}
    )
    distill_temperature: float = field(default=1.0, metadata={"help": "Divides the logits of both for that."})
    feature_weight: float = field(
        default=0.0, metadata={"help": "Weight of 1 - cosine to the teacher's full-grid feature. Needs no labels."}
    )
    teacher_model: str | None = field(
        default=None, metadata={"help": "A SpotViT, seen with all cells (default: --model as it was before training)."}
    )

    layer_decay: float = field(
        default=1.0, metadata={"help": "Each layer's learning rate is so many times that of the layer above."}
    )
    drop_path_rate: float = field(default=0.0, metadata={"help": "Stochastic depth: of the last layer, from 0 in the first."})
    ema_decay: float | None = field(
        default=None, metadata={"help": "Keep an exponential moving average of the weights; evaluate and save that."}
    )
    mixup: float = field(default=0.0, metadata={"help": "Share of batches whose images are blended."})
    cutmix: float = field(default=0.0, metadata={"help": "Share of batches whose images have a rectangle of another."})
    rand_augment_num_ops: int = field(default=0, metadata={"help": "Operations of RandAugment; 0: none."})
    rand_augment_magnitude: float = field(default=9.0, metadata={"help": "Their magnitude, between 0 and 30."})
    crop_scale: list[float] = field(
        default_factory=lambda: [0.35, 1.0],
        metadata={"help": "Random resized crop: lowest and highest share of the image's area."},
    )
    crop_ratio: list[float] = field(
        default_factory=lambda: [3 / 4, 4 / 3], metadata={"help": "Random resized crop: lowest and highest width / height."}
    )
    flip: float = field(default=0.5, metadata={"help": "How many of the images are mirrored."})
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after so many evaluations without a better one."}
    )

    benchmark_input: bool = field(default=False, metadata={"help": "Only measure how many images/s the input pipeline gives."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Replace what is in --output_dir, and begin anew."})

    def check(self, training: TrainingArguments) -> None:
        """`ValueError` for what no run can have, before anything is loaded."""
        if self.classifier not in CLASSIFIERS:
            raise ValueError(f"`classifier` must be one of {', '.join(CLASSIFIERS)}; got {self.classifier!r}")
        for name in ("crop_scale", "crop_ratio", "num_tokens_range", "window_scales"):
            values = getattr(self, name)
            if values is not None and len(values) != 2:
                raise ValueError(f"`{name}` must be two numbers, the lowest and the highest; got {values}")
        for name in ("max_samples", "max_eval_samples", "early_stopping_patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1; got {value}")
        for name, lowest in (("learning_rate", 0), ("weight_decay", 0), ("per_device_train_batch_size", 1)):
            value = getattr(training, name)
            if not value >= lowest:
                raise ValueError(f"`{name}` must be at least {lowest}; got {value}")
        checkpoint = training.resume_from_checkpoint
        if checkpoint is not None and not (Path(checkpoint) / STATE).is_file():
            raise ValueError(f"`resume_from_checkpoint` must be a checkpoint's directory, with {STATE}; got {checkpoint!r}")
        weights = {name: getattr(self, name) for name in ("cross_entropy_weight", "distill_weight", "feature_weight")}
        if min(weights.values()) < 0 or not sum(weights.values()) > 0:
            raise ValueError(f"the losses' weights must be at least 0, not all 0; got {weights}")
        if not self.has_labels and self.cross_entropy_weight:
            raise ValueError(
                "`label_column_name` is needed by `cross_entropy_weight` above 0; got none. Without labels, give "
                "`--cross_entropy_weight 0` and `distill_weight` or `feature_weight`"
            )
        if not self.has_labels and (self.among_labels or self.classifier == "new"):
            raise ValueError("`label_column_name` is needed by `among_labels` and `classifier='new'`; got none")
        if self.classifier == "new" and self.distill_weight:
            raise ValueError(
                "`distill_weight` must be 0 with `classifier='new'`: the teacher knows other classes (`feature_weight` needs "
                f"none); got {self.distill_weight}"
            )
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"`ema_decay` must lie between 0 and 1; got {self.ema_decay}")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"`layer_decay` must be above 0 and at most 1; got {self.layer_decay}")
        if not self.distill_temperature > 0:
            raise ValueError(f"`distill_temperature` must be above 0; got {self.distill_temperature}")
        if training.remove_unused_columns:
            raise ValueError("`remove_unused_columns` must be False: a training batch is not the model's input yet")
        self._check_evaluation(training)
        self.placements(224, 224, 16, training.seed)  # what does not depend on the model

    def _check_evaluation(self, training: TrainingArguments) -> None:
        self.check_eval_placement()
        measured = ["accuracy", "loss"]
        measured += [f"n{num_tokens}_{name}" for num_tokens in self.evaluated_num_tokens for name in measured[:2]]
        metric = str(training.metric_for_best_model).removeprefix("eval_")
        if metric not in measured:
            raise ValueError(f"`metric_for_best_model` must be one of {', '.join(measured)}; got {metric!r}")
        evaluates = training.eval_strategy != IntervalStrategy.NO
        if evaluates and not self.has_labels:
            raise ValueError(f"`eval_strategy` must be no without labels; got {_plain(training.eval_strategy)}")
        if self.early_stopping_patience is not None and not evaluates:
            raise ValueError("`early_stopping_patience` needs evaluations: `eval_strategy` must be steps or epoch; got no")

    def check_eval_placement(self, num_cells: int | None = None) -> None:
        """`ValueError` for a placement that evaluations cannot have, in so many cells of the model's grid where known."""
        for num_tokens in self.evaluated_num_tokens:
            try:
                check_placement(self.eval_placement, num_tokens, num_cells)
            except ValueError as error:
                raise ValueError(f"`eval_placement` or `eval_num_tokens`: {error}") from None
        if PLACEMENTS[self.eval_placement].saliency:
            raise ValueError(f"`eval_placement` {self.eval_placement!r} needs a saliency map per image, which training lacks")

    @property
    def has_labels(self) -> bool:
        return self.label_column_name.lower() != "none"

    @property
    def needs_teacher(self) -> bool:
        return self.distill_weight > 0 or self.feature_weight > 0

    @property
    def token_counts(self) -> list[int]:
        if self.num_tokens_range is None:
            return self.num_tokens
        return token_buckets(self.num_tokens_range[0], self.num_tokens_range[1], self.num_token_buckets)

    @property
    def evaluated_num_tokens(self) -> list[int]:
        return self.eval_num_tokens or sorted({min(self.token_counts), max(self.token_counts)})

    def placements(self, height: int, width: int, patch_size: int, seed: int) -> TrainingPlacements:
        return TrainingPlacements(
            num_tokens=self.token_counts,
            num_tokens_weights=self.num_tokens_weights,
            placement=self.placement,
            placement_weights=self.placement_weights,
            jitter=self.jitter,
            window_scales=None if self.window_scales is None else (self.window_scales[0], self.window_scales[1]),
            coordinates_share=self.coordinates_share,
            height=height,
            width=width,
            patch_size=patch_size,
            seed=seed,
        )

    def recorded(self, training: TrainingArguments) -> dict[str, Any]:
        """On which the weights depend. Of what lies on this machine the name, not the path."""
        parameters = asdict(self)
        for name in ("overwrite_output_dir", "benchmark_input"):
            del parameters[name]
        for name in ("model", "teacher_model", "dataset_name", "coordinates"):
            if parameters[name] is not None:
                parameters[name] = public_name(parameters[name])
        parameters["model_sha256"] = weights_digest(self.model)
        if self.teacher_model is not None:
            parameters["teacher_model_sha256"] = weights_digest(self.teacher_model)
        return {**parameters, **{name: _plain(getattr(training, name)) for name in OF_TRAINER}}


# What of Trainer's arguments the weights depend on; the number of processes is none of them.
OF_TRAINER = (
    "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "num_train_epochs", "max_steps", "optim",
    "optim_args", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "label_smoothing_factor",
    "dataloader_drop_last", "load_best_model_at_end", "metric_for_best_model", "bf16", "fp16", "seed",
)  # fmt: skip


def _plain(value: Any) -> Any:
    return value if isinstance(value, int | float | bool | dict | None) else str(getattr(value, "value", value))


@dataclass(kw_only=True)
class SpotTrainingArguments(TrainingArguments):
    """transformers' own, with defaults for fine-tuning a ViT."""

    output_dir: str = field(metadata={"help": "Where the model is written. The same command goes on with it."})
    learning_rate: float = field(default=1e-4, metadata={"help": "Of the classifier; `layer_decay` lowers it further down."})
    lr_scheduler_type: SchedulerType | str = field(default="cosine", metadata={"help": "How the learning rate falls."})
    warmup_steps: float = field(default=0.05, metadata={"help": "Steps, or below 1 the share of them, while it rises."})
    weight_decay: float = field(default=0.05, metadata={"help": "Of matrices; not of biases, norms, prefix and positions."})
    per_device_train_batch_size: int = field(default=64, metadata={"help": "Images per step and process."})
    per_device_eval_batch_size: int = field(default=100, metadata={"help": "The same, when evaluating."})
    dataloader_drop_last: bool = field(default=True, metadata={"help": "Leave out an epoch's last, smaller batch."})
    dataloader_num_workers: int = field(default=2, metadata={"help": "Processes that decode ahead, per process of the run."})
    metric_for_best_model: str | None = field(
        default="accuracy",
        metadata={"help": "Of the best checkpoint and of early stopping: the mean, or such as n25_accuracy."},
    )
    eval_strategy: IntervalStrategy | str = field(default="epoch", metadata={"help": "When to evaluate: no, steps or epoch."})
    save_strategy: SaveStrategy | str = field(
        default="epoch", metadata={"help": "When to write a checkpoint: no, steps, epoch or best."}
    )
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints that are kept."})
    logging_steps: float = field(default=20, metadata={"help": "Steps between two lines of the log."})
    hub_strategy: HubStrategy | str = field(
        default="end", metadata={"help": "When to push: before the end, without card, code and averaged weights."}
    )
    restore_callback_states_from_checkpoint: bool = field(
        default=True, metadata={"help": "Early stopping goes on counting where a killed run was."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must be False."})

    def __post_init__(self) -> None:
        if not torch.accelerator.is_available():
            self.use_cpu = True  # or bf16 is refused
        super().__post_init__()


# ----------------------------------------------------------------------------------------------------------- trainer


class SpotTrainer(Trainer):
    """
    Trainer for [`SpotViTForImageClassification`]: trains on batches of [`TrainingImages`], whose tokens it places, and
    evaluates on batches of the model's own inputs, such as of [`EvaluationImages`]. The model may carry PEFT adapters.

    Args:
        preparation ([`BatchPreparation`]): from bytes to inputs.
        classes (`list[int]`, *optional*): loss and accuracy are among these.
        teacher ([`SpotViTForImageClassification`], *optional*): of the distillation, seen with all cells.
        cross_entropy_weight, distill_weight, distill_temperature, feature_weight, layer_decay, ema_decay: as in
            [`TrainArguments`].
        kwargs: as [`Trainer`] takes them.
    """

    optimizer: Any
    control: Any

    def __init__(
        self,
        *args: Any,
        preparation: BatchPreparation,
        classes: list[int] | None = None,
        teacher: SpotViTForImageClassification | None = None,
        cross_entropy_weight: float = 1.0,
        distill_weight: float = 0.0,
        distill_temperature: float = 1.0,
        feature_weight: float = 0.0,
        layer_decay: float = 1.0,
        ema_decay: float | None = None,
        **kwargs: Any,
    ):
        kwargs.setdefault("data_collator", collate)
        kwargs.setdefault("compute_metrics", Accuracies(classes))
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False  # our loss is the mean over a batch
        self.preparation, self.classes = preparation, classes
        self.cross_entropy_weight, self.distill_weight = cross_entropy_weight, distill_weight
        self.distill_temperature, self.feature_weight = distill_temperature, feature_weight
        self.layer_decay = layer_decay
        self.teacher = None if teacher is None else teacher.to(self.args.device).eval().requires_grad_(False)
        self.features_of: dict[str, Callable[[], torch.Tensor]] = {}
        if feature_weight:
            self.features_of = {"student": _watch_features(self.model), "teacher": _watch_features(self.teacher)}
        self.ema: AveragedModel | None = None
        if ema_decay is not None:
            self.ema = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(ema_decay))
            self.add_callback(_AverageWeights(self.ema))
        self.train_sampler: DrawSampler | None = None
        self.add_callback(_NumberEpochs(self))

    # ------------------------------------------------------------------------------------------------------------ data

    def _get_train_sampler(self, train_dataset: Any = None) -> DrawSampler | None:
        images = self.train_dataset if train_dataset is None else train_dataset
        if isinstance(images, TrainingImages):
            self.train_sampler = DrawSampler(len(images), images.seed)
            return self.train_sampler
        return super()._get_train_sampler(train_dataset)

    def _get_dataloader(self, *args: Any, is_training: bool = False, **kwargs: Any) -> Any:
        """`dataloader_drop_last` is for training: an evaluation is of all images."""
        given = self.args.dataloader_drop_last
        self.args.dataloader_drop_last = given and is_training
        try:
            return super()._get_dataloader(*args, is_training=is_training, **kwargs)
        finally:
            self.args.dataloader_drop_last = given

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Nothing where a run goes on from the checkpoint at which it had ended: Trainer would take another step."""
        stopped = any(
            isinstance(callback, EarlyStoppingCallback)
            and callback.early_stopping_patience_counter >= callback.early_stopping_patience
            for callback in self.callback_handler.callbacks
        )
        if stopped or self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    # ------------------------------------------------------------------------------------------------------------ loss

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Of a training batch, tokens are placed first; any other is the model's own input, with `labels`."""
        if "pixels" in inputs:
            num_tokens = self.preparation.placements.num_tokens_at(self.state.global_step)
            batch = self.preparation(inputs, num_tokens)
        else:
            given = dict(inputs)
            labels = given.pop("labels", None)
            batch = TrainingBatch(given, labels)
        outputs = model(**batch.inputs)
        loss = self.loss_of(outputs.logits, batch) if model.training else self._cross_entropy(outputs.logits, batch)
        outputs = ImageClassifierOutput(loss=loss, logits=outputs.logits)
        return (loss, outputs) if return_outputs else loss

    def loss_of(self, logits: torch.Tensor, batch: TrainingBatch) -> torch.Tensor:
        """The weighted sum of the losses, a scalar. `logits` `(batch_size, num_labels)`."""
        loss = logits.new_zeros((), dtype=torch.float32)
        if self.cross_entropy_weight:
            loss = loss + self.cross_entropy_weight * self._cross_entropy(logits, batch)
        if self.teacher is None:
            return loss
        with torch.no_grad(), self.accelerator.autocast():
            targets = self.teacher(pixel_values=batch.inputs["pixel_values"]).logits
        if self.distill_weight:
            temperature = self.distill_temperature
            divergence = distill_loss(self._among(logits) / temperature, self._among(targets) / temperature)
            # Gradients of softened distributions are smaller by the square of the temperature (Hinton et al. 2015).
            loss = loss + self.distill_weight * temperature**2 * divergence.mean()
        if self.feature_weight:
            student, teacher = (self.features_of[name]().float() for name in ("student", "teacher"))
            loss = loss + self.feature_weight * feature_loss(student, teacher).mean()
        return loss

    def _cross_entropy(self, logits: torch.Tensor, batch: TrainingBatch) -> torch.Tensor:
        logits = self._among(logits)
        smoothing = self.args.label_smoothing_factor if self.model.training else 0.0

        def against(labels: torch.Tensor) -> torch.Tensor:
            if self.classes is not None:
                labels = torch.searchsorted(torch.tensor(self.classes, device=labels.device), labels)
            return nn.functional.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)

        assert batch.labels is not None
        losses = against(batch.labels)
        if batch.other_labels is not None and batch.other_share is not None:
            losses = torch.lerp(losses, against(batch.other_labels), batch.other_share)
        return losses.mean()

    def _among(self, logits: torch.Tensor) -> torch.Tensor:
        """`(batch_size, num_classes)`, float32: those of the classes that count."""
        return (logits if self.classes is None else logits[:, self.classes]).float()

    # ------------------------------------------------------------------------------------------------------- optimizer

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Layer-wise learning-rate decay (as BEiT and MAE fine-tune), and no weight decay for positions and prefix tokens."""
        model = self.model if model is None else model
        if self.optimizer is None:
            kind, arguments = self.get_optimizer_cls_and_kwargs(self.args, model)
            decayed = set(self.get_decay_parameter_names(model))
            groups: dict[tuple[float, float], list[nn.Parameter]] = {}
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    rate = self.args.learning_rate * self.layer_decay ** layers_above(name, self._num_layers())
                    one_dimensional = parameter.ndim == 1  # such as layer scales, which `decayed` holds
                    free = name not in decayed or one_dimensional or "position_embeddings" in name or "prefix_tokens" in name
                    groups.setdefault((rate, 0.0 if free else self.args.weight_decay), []).append(parameter)
            self.optimizer = kind(
                [{"params": found, "lr": rate, "weight_decay": decay} for (rate, decay), found in groups.items()], **arguments
            )
        return self.optimizer

    def _num_layers(self) -> int:
        return int(self.model.config.num_hidden_layers)

    # -------------------------------------------------------------------------------------- evaluation and checkpoints

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """As Trainer does; of several data sets also the means, `eval_accuracy` and `eval_loss`."""
        with self.averaged():
            metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        several = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(several, dict):
            means = {}
            for name in ("accuracy", "loss"):
                found = [metrics[key] for key in (f"{metric_key_prefix}_{one}_{name}" for one in several) if key in metrics]
                if found:
                    means[f"{metric_key_prefix}_{name}"] = float(np.mean(found))
            metrics.update(means)
            # Trainer tells callbacks of each data set: early stopping waits for the means.
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, means)
        return metrics

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        with self.averaged():
            return super().predict(*args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The averaged weights where there are any; in a checkpoint, which training goes on from, the others too."""
        in_checkpoint = output_dir is not None and Path(output_dir).name.startswith("checkpoint-")
        if self.ema is None or in_checkpoint:
            super().save_model(output_dir, _internal_call)
            if self.ema is not None and output_dir is not None and self.args.should_save:
                state = {name: tensor.contiguous() for name, tensor in self.ema.state_dict().items()}
                save_file(state, Path(output_dir) / EMA_WEIGHTS)
        else:
            with self.averaged():
                super().save_model(output_dir, _internal_call)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._load_average(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self.state.best_model_checkpoint is not None:
            self._load_average(self.state.best_model_checkpoint)

    def _load_average(self, checkpoint: str) -> None:
        if self.ema is not None:
            self.ema.load_state_dict(load_file(Path(checkpoint) / EMA_WEIGHTS))

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """With the averaged weights in the model's place."""
        if self.ema is None:
            yield
            return
        pairs = list(zip(self.model.parameters(), self.ema.module.parameters(), strict=True))
        with torch.no_grad():
            own = [parameter.clone() for parameter, _ in pairs]
            for parameter, average in pairs:
                parameter.copy_(average)
        try:
            yield
        finally:
            with torch.no_grad():
                for (parameter, _), before in zip(pairs, own, strict=True):
                    parameter.copy_(before)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Our own card is there already: Trainer's would replace it."""


class _AverageWeights(TrainerCallback):
    def __init__(self, ema: AveragedModel):
        self.ema = ema

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.ema.update_parameters(model)


class _NumberEpochs(TrainerCallback):
    """Tells the sampler which epoch it is: through the wrappers of a resumed run of several processes, Trainer does not."""

    def __init__(self, trainer: SpotTrainer):
        self.trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer.train_sampler is not None:
            # A resumed epoch's number has a fraction, and rounding.
            self.trainer.train_sampler.set_epoch(math.floor((state.epoch or 0.0) + 1e-6))


def _watch_features(model: nn.Module | None) -> Callable[[], torch.Tensor]:
    """What the classifier was last given: the pooled features, `(batch_size, pooled_size)`."""
    seen: list[torch.Tensor] = [torch.empty(0)]

    def remember(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        seen[0] = inputs[0]

    assert model is not None
    classifiers = [module for name, module in model.named_modules() if name.endswith("classifier")]
    classifiers[0].register_forward_pre_hook(remember)
    return lambda: seen[0]


def layers_above(name: str, num_layers: int) -> int:
    """How many layers lie between a parameter and the classifier, by its name: 0 of the classifier and the last norm."""
    layer = re.search(r"\blayers\.(\d+)\.", name)
    if layer:
        return num_layers - int(layer[1])
    return num_layers + 1 if "embeddings." in name else 0


class Accuracies:
    """Trainer's `compute_metrics`: top-1 accuracy in percent, among `classes` where given."""

    def __init__(self, classes: list[int] | None):
        self.classes = classes

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        logits: Any = prediction.predictions
        chosen = likeliest_class(logits, self.classes)
        return {"accuracy": 100 * float((chosen == prediction.label_ids).mean())}


# ----------------------------------------------------------------------------------------------------------- the run


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
