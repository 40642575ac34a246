"""Arguments of `spot-hf train` and `spot-hf pretrain`: what is trained on what. How, says `trainer_arguments.py`."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from transformers.trainer_utils import IntervalStrategy

from ..configuration_spot_vit import SpotViTConfig
from ..data.labels import LabelledSource
from ..data.source import DatasetSource, pinned
from ..jobs.arguments import json_object
from ..jobs.versions import hub_commit, public_name, weights_digest
from ..placement import check_placement, check_placement_name, get_placement, recorded_placements, scale_policy
from .augmentation import Augmentation
from .data import TrainingImages
from .placements import ScaleRule, TrainingPlacements, scale_rule, token_buckets
from .recipe_values import apply_declared_types
from .segmentation_arguments import TaskOptions
from .trainer_arguments import SpotPretrainingArguments, SpotTrainingArguments


CLASSIFIERS = ("keep", "new")
STATE = "trainer_state.json"  # the file that Trainer writes last into a checkpoint

# How a run is done, and not what: neither recorded nor compared when a run is resumed.
# Labels are recorded by what comes of them.
NOT_RECORDED = ("overwrite_output_dir", "benchmark_input", "max_failed_share", "label_names", "labels_by_number")

Arguments = TypeVar("Arguments", bound="TrainingInputArguments")


@dataclass(kw_only=True)
class TrainingInputArguments(DatasetSource):
    """What fine-tuning and pre-training share: which images, and how they are cropped."""

    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the model's Hub id."})
    dataset_name: str = field(metadata={"help": "digits (embedded), a Hub id, or a directory that load_dataset reads."})
    dataset_split: str = field(
        default="train", metadata={"help": "Split to train on, or a part of one, such as train[:9000]."}
    )
    max_samples: int | None = field(default=None, metadata={"help": "Train on the first so many images only."})
    jitter: float = field(
        default=0.25, metadata={"help": "Standard deviation of the noise added to each token's position, in patches."}
    )
    crop_scale: list[float] = field(
        default_factory=lambda: [0.35, 1.0],
        metadata={"help": "Random resized crop: smallest and largest share of the image's area."},
    )
    crop_ratio: list[float] = field(
        default_factory=lambda: [3 / 4, 4 / 3], metadata={"help": "Random resized crop: smallest and largest width / height."}
    )
    flip: float = field(default=0.5, metadata={"help": "Share of the images that are mirrored left to right."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Delete the run in --output_dir and start again."})

    def __post_init__(self) -> None:
        apply_declared_types(self)
        super().__post_init__()

    def check_input(self) -> None:
        """`ValueError` for what no run can have, before anything is loaded."""
        self.check_source()
        self._check_pairs("crop_scale", "crop_ratio")

    def _check_pairs(self, *names: str) -> None:
        for name in names:
            values = getattr(self, name)
            if values is not None and len(values) != 2:
                raise ValueError(f"`{name}` must be two numbers, the lowest and the highest; got {values}")

    def pinned(self: Arguments) -> Arguments:
        """The same arguments at the commits that their data sets' revisions name now."""
        return pinned(self)

    def training_images(
        self,
        images: Any,
        image_processor: Any,
        seed: int,
        images_class: type[TrainingImages] = TrainingImages,
        **options: Any,
    ) -> TrainingImages:
        """`images`, as [`load_images`] gives them, for training; further `options` as `images_class` takes them."""
        return images_class(
            images,
            image_processor,
            crop_scale=(self.crop_scale[0], self.crop_scale[1]),
            crop_ratio=(self.crop_ratio[0], self.crop_ratio[1]),
            flip=self.flip,
            seed=seed,
            max_failed_share=self.max_failed_share,
            **options,
        )

    def recorded(self, training: SpotTrainingArguments) -> dict[str, Any]:
        """The values on which the weights depend. Of what lies on this machine the name, not the path."""
        values = {name: value for name, value in asdict(self).items() if name not in NOT_RECORDED}
        return {**values, **self.recorded_source(), **training.recorded()}


@dataclass(kw_only=True)
class TrainArguments(TaskOptions, TrainingInputArguments, LabelledSource):
    """What is fine-tuned on what. How, beyond this, is [`SpotTrainingArguments`]."""

    model: str = field(metadata={"help": "The SpotViT classifier to start from: a directory or a Hub id."})
    eval_dataset_split: str | None = field(
        default=None, metadata={"help": "Split to evaluate on during training (default: test or validation)."}
    )
    max_eval_samples: int | None = field(default=None, metadata={"help": "Evaluate on the first so many images only."})
    coordinates: str | None = field(
        default=None,
        metadata={"help": "A coordinate data set, a directory or a Hub id: train on its images, also at its positions."},
    )
    coordinates_config: str | None = field(default=None, metadata={"help": "Its config, where there are several."})
    coordinates_split: str | None = field(default=None, metadata={"help": "Its split, where there are several."})
    coordinates_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of its Hub id."})
    coordinates_share: float = field(
        default=0.5, metadata={"help": "Share of the images that use them, in batches of as many tokens."}
    )

    num_tokens: list[int] = field(
        default_factory=lambda: [25, 49, 100], metadata={"help": "Token counts; each batch has one of them."}
    )
    num_tokens_range: list[int] | None = field(
        default=None,
        metadata={
            "help": "Instead of --num_tokens: lowest and highest; batches have one of --num_token_buckets counts between."
        },
    )
    num_token_buckets: int = field(default=8, metadata={"help": "Counts in that range: the number of graphs to compile."})
    num_tokens_weights: list[float] | None = field(
        default=None, metadata={"help": "Relative frequency of each token count (default: equal)."}
    )
    placement: list[str] = field(
        default_factory=lambda: ["isotropic", "center", "uniform", "gaussian", "sobol"],
        metadata={"help": "Priors, or module:function; each image is placed by one of them."},
    )
    placement_weights: list[float] | None = field(
        default=None, metadata={"help": "Relative frequency of each prior (default: equal)."}
    )
    window_scales: list[str] | None = field(
        default=None,
        metadata={
            "help": "Two numbers: smallest and largest window scale, drawn log-uniformly per token. Or cover, a number, a "
            "range as 0.5-2, or several of these, of which each image has one (default: 1)."
        },
    )
    window_scales_weights: list[float] | None = field(
        default=None, metadata={"help": "Relative frequency of each of several window scales (default: equal)."}
    )
    eval_num_tokens: list[int] | None = field(
        default=None, metadata={"help": "Token counts to evaluate at during training (default: the lowest and the highest)."}
    )
    eval_placement: str = field(default="isotropic", metadata={"help": "The prior to evaluate with."})
    eval_window_scales: str | None = field(
        default=None,
        metadata={"help": "Size of all windows to evaluate with, in patches, or cover (default: the prior's own)."},
    )

    classifier: str = field(
        default="keep", metadata={"help": "keep the model's, or new: an untrained one for the data set's own classes."}
    )
    among_labels: bool = field(
        default=False,
        metadata={"help": "Restrict loss and accuracy to the classes that occur, such as Imagenette's ten of 1,000."},
    )
    cross_entropy_weight: float = field(default=1.0, metadata={"help": "Weight of the cross-entropy with the labels."})
    distill_weight: float = field(
        default=0.0, metadata={"help": "Weight of the divergence from the teacher's full-grid prediction. Needs no labels."}
    )
    distill_temperature: float = field(default=1.0, metadata={"help": "Temperature of both predictions for that."})
    feature_weight: float = field(
        default=0.0, metadata={"help": "Weight of 1 - cosine to the teacher's full-grid feature. Needs no labels."}
    )
    teacher_model: str | None = field(
        default=None, metadata={"help": "A SpotViT that sees the full grid (default: --model as it was before training)."}
    )
    teacher_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the teacher's Hub id."})

    layer_decay: float = field(
        default=1.0, metadata={"help": "Ratio of each layer's learning rate to that of the layer above."}
    )
    drop_path_rate: float = field(
        default=0.0, metadata={"help": "Stochastic depth: rate of the last layer, rising from 0 in the first."}
    )
    ema_decay: float | None = field(
        default=None, metadata={"help": "Keep an exponential moving average of the weights; evaluate and save that."}
    )
    mixup: float = field(default=0.0, metadata={"help": "Share of the images that are blended with another one."})
    mixup_alpha: float = field(default=0.8, metadata={"help": "The other image's weight is drawn from Beta(alpha, alpha)."})
    cutmix: float = field(default=0.0, metadata={"help": "Share of the images that get a rectangle of another one."})
    cutmix_alpha: float = field(
        default=1.0, metadata={"help": "The rectangle's share of the image is drawn from Beta(alpha, alpha)."}
    )
    rand_augment_num_ops: int = field(default=0, metadata={"help": "Operations of RandAugment per image; 0: none."})
    rand_augment_magnitude: float = field(default=9.0, metadata={"help": "Their magnitude, at least 1 and below 30."})
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after so many evaluations without an improvement."}
    )
    benchmark_input: bool = field(
        default=False, metadata={"help": "Only measure how many images/s the input pipeline delivers."}
    )

    def check(self, training: SpotTrainingArguments) -> None:
        """`ValueError` for what no run can have, before anything is loaded."""
        self.check_input()
        self.check_task()
        if self.segments and training.metric_for_best_model == "accuracy":  # the default
            training.metric_for_best_model = "mean_iou"
        for name in self.placement:
            check_placement_name(name)
        check_placement_name(self.eval_placement, "eval_placement")
        if self.classifier not in CLASSIFIERS:
            raise ValueError(f"`classifier` must be one of {', '.join(CLASSIFIERS)}; got {self.classifier!r}")
        self._check_pairs("num_tokens_range")
        self._check_numbers(training)
        for name, needed in (("teacher_revision", "teacher_model"), ("coordinates_revision", "coordinates")):
            if getattr(self, name) is not None and getattr(self, needed) is None:
                raise ValueError(f"`{name}` is a revision of `{needed}`, which is needed too; got none")
        self._check_losses()
        checkpoint = training.resume_from_checkpoint
        if checkpoint is not None and not (Path(checkpoint) / STATE).is_file():
            raise ValueError(f"`resume_from_checkpoint` must be a checkpoint's directory, with {STATE}; got {checkpoint!r}")
        if training.remove_unused_columns:
            raise ValueError("`remove_unused_columns` must be False: a training batch is not the model's input yet")
        self._check_evaluation(training)
        self.augmentation(training.seed)
        self.placements(224, 224, 16, training.seed)  # as far as they do not depend on the model

    def _check_numbers(self, training: SpotTrainingArguments) -> None:
        for name in ("max_eval_samples", "early_stopping_patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1; got {value}")
        for name, lowest in (("learning_rate", 0), ("weight_decay", 0), ("per_device_train_batch_size", 1)):
            value = getattr(training, name)
            if not value >= lowest:
                raise ValueError(f"`{name}` must be at least {lowest}; got {value}")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"`ema_decay` must lie between 0 and 1; got {self.ema_decay}")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"`layer_decay` must be above 0 and at most 1; got {self.layer_decay}")
        if not self.distill_temperature > 0:
            raise ValueError(f"`distill_temperature` must be above 0; got {self.distill_temperature}")

    def _check_losses(self) -> None:
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

    def _check_evaluation(self, training: SpotTrainingArguments) -> None:
        self.check_eval_placement()
        names = ["mean_iou", "pixel_accuracy", "loss"] if self.segments else ["accuracy", "loss"]
        measured = names + [f"n{num_tokens}_{name}" for num_tokens in self.evaluated_num_tokens for name in names]
        metric = str(training.metric_for_best_model).removeprefix("eval_")
        if metric not in measured:
            raise ValueError(f"`metric_for_best_model` must be one of {', '.join(measured)}; got {metric!r}")
        strategy = IntervalStrategy(training.eval_strategy)
        evaluates = strategy != IntervalStrategy.NO
        if evaluates and not self.has_labels:
            raise ValueError(f"`eval_strategy` must be no without labels; got {strategy.value}")
        if self.early_stopping_patience is not None and not evaluates:
            raise ValueError("`early_stopping_patience` needs evaluations: `eval_strategy` must be steps or epoch; got no")

    def check_eval_placement(self, num_cells: int | None = None) -> None:
        """`ValueError` for a placement that evaluations cannot have, in a grid of so many cells where known."""
        for num_tokens in self.evaluated_num_tokens:
            try:
                check_placement(self.eval_placement, num_tokens, num_cells)
            except ValueError as error:
                raise ValueError(f"`eval_placement` or `eval_num_tokens`: {error}") from None
        if self.eval_window_scales is not None:
            scale_policy(self.eval_window_scales, "eval_window_scales")
        if get_placement(self.eval_placement).saliency:
            raise ValueError(f"`eval_placement` {self.eval_placement!r} needs a saliency map per image, which training lacks")

    @property
    def has_labels(self) -> bool:
        return self.label_column_name is not None

    @property
    def needs_teacher(self) -> bool:
        return self.distill_weight > 0 or self.feature_weight > 0

    @property
    def token_counts(self) -> list[int]:
        if self.num_tokens_range is None:
            return self.num_tokens
        return token_buckets(self.num_tokens_range[0], self.num_tokens_range[1], self.num_token_buckets)

    @property
    def scale_rules(self) -> tuple[float, float] | list[ScaleRule] | None:
        """`window_scales`, read: a range, or several rules. `ValueError` for what is none."""
        if self.window_scales is None:
            return None
        try:
            numbers = [float(one) for one in self.window_scales]
        except ValueError:
            numbers = []
        if len(numbers) == 2:
            return numbers[0], numbers[1]
        return [scale_rule(one) for one in self.window_scales]

    @property
    def evaluated_num_tokens(self) -> list[int]:
        return self.eval_num_tokens or sorted({min(self.token_counts), max(self.token_counts)})

    def pinned(self) -> "TrainArguments":
        found = super().pinned()
        if self.coordinates is not None:
            found.coordinates_revision = hub_commit(self.coordinates, self.coordinates_revision, "dataset")
        return found

    def augmentation(self, seed: int) -> Augmentation:
        return Augmentation(
            mixup=self.mixup,
            cutmix=self.cutmix,
            mixup_alpha=self.mixup_alpha,
            cutmix_alpha=self.cutmix_alpha,
            rand_augment_num_ops=self.rand_augment_num_ops,
            rand_augment_magnitude=self.rand_augment_magnitude,
            seed=seed,
        )

    def placements(self, height: int, width: int, patch_size: int, seed: int) -> TrainingPlacements:
        return TrainingPlacements(
            num_tokens=self.token_counts,
            num_tokens_weights=self.num_tokens_weights,
            placement=self.placement,
            placement_weights=self.placement_weights,
            jitter=self.jitter,
            window_scales=self.scale_rules,
            window_scales_weights=self.window_scales_weights,
            coordinates_share=self.coordinates_share,
            height=height,
            width=width,
            patch_size=patch_size,
            seed=seed,
        )

    def recorded(self, training: SpotTrainingArguments) -> dict[str, Any]:
        values = super().recorded(training)
        values = {name: value for name, value in values.items() if name not in TaskOptions.__dataclass_fields__}
        values.update(self.recorded_task())
        values["label_column_name"] = self.label_column_name or "none"  # as runs before 0.2.0 recorded it
        # As runs recorded them before there were more than a range.
        rules = self.scale_rules
        values["window_scales"] = list(rules) if isinstance(rules, tuple) else self.window_scales
        values.update(recorded_placements([*self.placement, self.eval_placement]))
        for name in ("window_scales_weights", "eval_window_scales"):
            if values[name] is None:
                del values[name]
        for name in ("teacher_model", "coordinates"):
            if values[name] is not None:
                values[name] = public_name(values[name])
        if self.teacher_model is not None:
            values["teacher_model_sha256"] = weights_digest(self.teacher_model)
        # These numbers are drawn by image since 0.2.0: a run before that cannot be resumed. Where unused, they are the same.
        for name in ("mixup", "cutmix"):
            if not getattr(self, name):
                del values[f"{name}_alpha"]
        if self.rand_augment_num_ops:
            values["rand_augment_drawn_per"] = "image"
        return values


@dataclass(kw_only=True)
class PretrainArguments(TrainingInputArguments):
    """What is pre-trained on what. How, beyond this, is [`SpotPretrainingArguments`]."""

    model: str | None = field(
        default=None, metadata={"help": "The SpotViT to continue from: a directory or a Hub id (default: a new ViT-B/16)."}
    )
    config_overrides: str | None = field(
        default=None,
        metadata={
            "help": "Fields of SpotViTConfig, as JSON: any of a new model, such as '{\"hidden_size\": 192}'; with --model "
            "those of the decoder only."
        },
    )
    mask_ratio: float = field(default=0.75, metadata={"help": "Share of an image's tokens that the encoder does not see."})
    norm_pix_loss: bool = field(
        default=True, metadata={"help": "Predict pixels in standard deviations from their window's mean."}
    )
    label_column_name: None = field(init=False, default=None)  # no option: labels are not used
    num_tokens: list[int] | None = field(
        default=None,
        metadata={"help": "Tokens per image, visible and masked; each batch has one of these counts (default: all cells)."},
    )
    placement: list[str] = field(
        default_factory=lambda: ["isotropic", "sobol", "uniform"],
        metadata={"help": "Priors, or module:function; each image is placed by one of them."},
    )
    crop_scale: list[float] = field(
        default_factory=lambda: [0.2, 1.0],
        metadata={"help": "Random resized crop: smallest and largest share of the image's area."},
    )

    def check(self, training: SpotPretrainingArguments) -> None:
        """`ValueError` for what no run can have, before anything is loaded."""
        self.check_input()
        given = training.to_dict()
        for name, value in (("eval_strategy", "no"), ("remove_unused_columns", False)):
            if given[name] != value:
                raise ValueError(f"`{name}` must be {value} in pre-training; got {given[name]}")
        for name in self.placement:
            if get_placement(name).scaled:
                raise ValueError(f"`placement` {name!r} is not for pre-training: windows have one size there")
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"`mask_ratio` must be above 0 and below 1; got {self.mask_ratio}")
        known = [one for one in SpotViTConfig.__dataclass_fields__ if self.model is None or one.startswith("decoder_")]
        wrong = [one for one in self.overrides if one not in known]
        if wrong:
            accepted = "fields of SpotViTConfig" if self.model is None else "the decoder's fields, as `model` is given"
            raise ValueError(f"`config_overrides` must be {accepted}; got {', '.join(wrong)}")

    @property
    def overrides(self) -> dict[str, Any]:
        """What `config_overrides` says."""
        return json_object("config_overrides", self.config_overrides or "{}", example='{"hidden_size": 192}')

    def placements(self, height: int, width: int, patch_size: int, seed: int) -> TrainingPlacements:
        return TrainingPlacements(
            num_tokens=self.num_tokens or [(height // patch_size) * (width // patch_size)],
            placement=self.placement,
            jitter=self.jitter,
            height=height,
            width=width,
            patch_size=patch_size,
            seed=seed,
        )

    def recorded(self, training: SpotTrainingArguments) -> dict[str, Any]:
        values = super().recorded(training)
        del values["label_column_name"]
        return values
