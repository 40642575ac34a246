"""Arguments of `spot-hf pretrain`: what is trained on what, and how."""

import json
from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy

from ..configuration_spot_vit import SpotViTConfig
from .arguments import SpotTrainingArguments, TrainingInputArguments
from .placements import TrainingPlacements


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
        metadata={"help": "Priors; each image is placed by one of them."},
    )
    crop_scale: list[float] = field(
        default_factory=lambda: [0.2, 1.0],
        metadata={"help": "Random resized crop: smallest and largest share of the image's area."},
    )

    def check(self, training: TrainingArguments) -> None:
        """`ValueError` for what no run can have, before anything is loaded."""
        self.check_input()
        given = training.to_dict()
        for name, value in (("eval_strategy", "no"), ("remove_unused_columns", False)):
            if given[name] != value:
                raise ValueError(f"`{name}` must be {value} in pre-training; got {given[name]}")
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
        try:
            overrides = json.loads(self.config_overrides or "{}")
        except ValueError:
            overrides = None
        if not isinstance(overrides, dict):
            raise ValueError(
                f"`config_overrides` must be a JSON object, such as '{{\"hidden_size\": 192}}'; got {self.config_overrides!r}"
            )
        return overrides

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

    def recorded(self, training: TrainingArguments) -> dict[str, Any]:
        values = super().recorded(training)
        del values["label_column_name"]
        return values


@dataclass(kw_only=True)
class SpotPretrainingArguments(SpotTrainingArguments):
    """As in fine-tuning, with MAE's defaults (its appendix A)."""

    learning_rate: float = field(default=1.5e-4, metadata={"help": "MAE: 1.5e-4 per 256 images of a step."})
    adam_beta2: float = field(default=0.95, metadata={"help": "Beta2 of AdamW."})
    eval_strategy: IntervalStrategy | str = field(default="no", metadata={"help": "Must be no."})
    metric_for_best_model: str | None = field(default=None, metadata={"help": "Nothing is measured."})
