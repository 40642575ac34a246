"""How training is done: transformers' arguments, with defaults for ViTs. Options of `spot-hf train` and `spot-hf pretrain`."""

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy, IntervalStrategy, SaveStrategy, SchedulerType

from .recipe_values import apply_declared_types


RECORDED = (
    "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "num_train_epochs", "max_steps", "optim",
    "optim_args", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "label_smoothing_factor",
    "dataloader_drop_last", "load_best_model_at_end", "metric_for_best_model", "bf16", "fp16", "seed",
)  # fmt: skip


@dataclass(kw_only=True)
class SpotTrainingArguments(TrainingArguments):
    """transformers' own, with defaults for fine-tuning a ViT. `output_dir` may be given by position, as there."""

    output_dir: str = field(kw_only=False, metadata={"help": "Where the model is written. The same command resumes a run."})
    learning_rate: float = field(
        default=1e-4, metadata={"help": "Of the classifier; `layer_decay` lowers it towards the first layer."}
    )
    lr_scheduler_type: SchedulerType | str = field(default="cosine", metadata={"help": "How the learning rate decays."})
    warmup_steps: float = field(default=0.05, metadata={"help": "Steps of warm-up or, below 1, its share of all steps."})
    weight_decay: float = field(
        default=0.05, metadata={"help": "Of matrices only: not of biases, norms, prefix tokens, positions."}
    )
    per_device_train_batch_size: int = field(default=64, metadata={"help": "Images per step and process."})
    per_device_eval_batch_size: int = field(
        default=100, metadata={"help": "Images per forward pass and process in evaluations."}
    )
    dataloader_drop_last: bool = field(default=True, metadata={"help": "Leave out an epoch's last, smaller batch."})
    dataloader_num_workers: int = field(default=2, metadata={"help": "Processes that prepare images, per process of the run."})
    metric_for_best_model: str | None = field(
        default="accuracy",
        metadata={"help": "Chooses the best checkpoint and stops early: accuracy or loss (means), or such as n25_accuracy."},
    )
    eval_strategy: IntervalStrategy | str = field(default="epoch", metadata={"help": "When to evaluate: no, steps or epoch."})
    save_strategy: SaveStrategy | str = field(
        default="epoch", metadata={"help": "When to write a checkpoint: no, steps, epoch or best."}
    )
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints to keep."})
    logging_steps: float = field(default=20, metadata={"help": "Steps between two entries of the log."})
    hub_strategy: HubStrategy | str = field(
        default="end", metadata={"help": "When to push. Before the end, card, code and averaged weights are missing."}
    )
    restore_callback_states_from_checkpoint: bool = field(
        default=True, metadata={"help": "Early stopping continues its count in a resumed run."}
    )
    # No option, and always transformers' default: `--label_names` is the data set's option of that name.
    label_names: list[str] | None = field(init=False, default=None)
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must be False."})

    def __post_init__(self) -> None:
        if not torch.accelerator.is_available():
            self.use_cpu = True  # or bf16 is refused
        apply_declared_types(self)
        super().__post_init__()

    def recorded(self) -> dict[str, Any]:
        """Those on which the weights depend; the number of processes is not one of them."""
        return {name: _plain(getattr(self, name)) for name in RECORDED}


@dataclass(kw_only=True)
class SpotPretrainingArguments(SpotTrainingArguments):
    """As in fine-tuning, with MAE's defaults (its appendix A)."""

    learning_rate: float = field(default=1.5e-4, metadata={"help": "MAE: 1.5e-4 per 256 images of a step."})
    adam_beta2: float = field(default=0.95, metadata={"help": "Beta2 of AdamW."})
    eval_strategy: IntervalStrategy | str = field(default="no", metadata={"help": "Must be no."})
    metric_for_best_model: str | None = field(default=None, metadata={"help": "Nothing is measured."})


def _plain(value: Any) -> Any:
    return value if isinstance(value, int | float | bool | dict | None) else str(getattr(value, "value", value))
