"""Arguments of `spot-hf train`."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy, IntervalStrategy, SaveStrategy, SchedulerType

from ..jobs.versions import public_name, weights_digest
from ..placement import PLACEMENTS, check_placement
from .placements import TrainingPlacements, token_buckets
from .run import STATE


CLASSIFIERS = ("keep", "new")


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
