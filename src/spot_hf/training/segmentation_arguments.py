"""Options of `spot-hf train` that say which task a model is trained for, and those of semantic segmentation."""

from dataclasses import dataclass, field
from typing import Any

from ..data.masks import SEGMENTATION


CLASSIFICATION = "image-classification"
TASKS = (CLASSIFICATION, SEGMENTATION)


@dataclass(kw_only=True)
class TaskOptions:
    """For which task. Those after the first are of semantic segmentation alone."""

    task: str = field(
        default=CLASSIFICATION,
        metadata={
            "help": "image-classification, or semantic-segmentation: the label column has masks, images of class numbers, and "
            "--label_names may be a list of the classes' names."
        },
    )
    image_size: list[int] | None = field(
        default=None,
        metadata={"help": "Segmentation: height and width of the model's images, all of the original (default: the model's)."},
    )
    ignore_index: int | None = field(
        default=None,
        metadata={"help": "Segmentation: number of mask pixels that do not count (default: the model's, 255)."},
    )
    scores_per_side: int | None = field(
        default=None,
        metadata={"help": "Segmentation: points per side of a token's window that get scores of their own (default: 1)."},
    )
    head_hidden_size: int | None = field(
        default=None, metadata={"help": "Segmentation: width of a hidden layer of a new head (default: a linear head)."}
    )

    @property
    def segments(self) -> bool:
        return self.task == SEGMENTATION

    def check_task(self) -> None:
        """`ValueError` for what a task does not have."""
        if self.task not in TASKS:
            raise ValueError(f"`task` must be one of {', '.join(TASKS)}; got {self.task!r}")
        if not self.segments:
            for name in ("image_size", "ignore_index", "scores_per_side", "head_hidden_size"):
                if getattr(self, name) is not None:
                    raise ValueError(f"`{name}` is for task='semantic-segmentation'; got {getattr(self, name)}")
            return
        if getattr(self, "label_column_name", None) is None:
            raise ValueError("`label_column_name` is needed for semantic segmentation: a column of masks; got none")
        allowed: dict[str, Any] = {
            "distill_weight": 0, "feature_weight": 0, "mixup": 0, "cutmix": 0, "rand_augment_num_ops": 0,
            "among_labels": False, "labels_by_number": False,
        }  # fmt: skip
        for name, value in allowed.items():
            if getattr(self, name, value) != value:
                raise ValueError(f"`{name}` must be {value} for semantic segmentation; got {getattr(self, name)}")
        if self.image_size is not None and (len(self.image_size) != 2 or min(self.image_size) < 1):
            raise ValueError(f"`image_size` must be height and width in pixels; got {self.image_size}")
        for name, least in (("ignore_index", 0), ("scores_per_side", 1), ("head_hidden_size", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"`{name}` must be at least {least}; got {value}")

    def recorded_task(self) -> dict[str, Any]:
        """For a job's record: nothing of a classification, as before there were other tasks."""
        names = ("image_size", "ignore_index", "scores_per_side", "head_hidden_size")
        if not self.segments:
            return {}
        return {"task": self.task, **{name: getattr(self, name) for name in names if getattr(self, name) is not None}}
