"""Arguments of the oracle: of a search on tensors, and of `spot-hf oracle`, which searches for a whole data set."""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..coordinates.schema import check_config_name
from ..data.batches import PlacementRequest
from ..data.candidates import NOT_RECORDED, CandidateArguments
from ..data.corruptions import CorruptionArguments
from ..data.labels import LabelledSource
from ..data.source import DECODE_HELP, SalientSource, check_decode_option
from ..hub.uploads import PushArguments, check_push
from ..jobs.arguments import json_object
from ..placement import check_placement, check_placement_name, get_placement, recorded_placements, scale_policy
from .objectives import OBJECTIVES
from .optimizers import OPTIMIZERS


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def check_dtype(dtype: str) -> None:
    """`ValueError` where it is no name of `DTYPES`."""
    if dtype not in DTYPES:
        raise ValueError(f"`dtype` must be one of {', '.join(DTYPES)}; got {dtype!r}")


@dataclass(kw_only=True)
class SearchArguments:
    """How positions are found: what [`SpotOracle`] takes beside its model."""

    objective: str = field(
        default="label",
        metadata={
            "help": "label: cross-entropy with the true label (a ceiling, not a method); distill: KL to the model's own "
            "full-grid prediction; feature: cosine to its full-grid feature."
        },
    )
    steps: int = field(default=5, metadata={"help": "Updates of the positions."})
    learning_rate: float = field(default=3e-3, metadata={"help": "In units of the image's width and height."})
    optimizer: str = field(default="adamw", metadata={"help": "A name in torch.optim (adamw, sgd, ...), or sign."})
    optimizer_arguments: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Its further arguments, as JSON: '{\"momentum\": 0.9}'."}
    )
    optimize_window_scales: bool = field(default=False, metadata={"help": "Also optimize how large each window is."})
    window_scale_learning_rate: float = field(default=0.05, metadata={"help": "Of the logarithms of the windows' scales."})
    early_stop: float | None = field(
        default=None,
        metadata={"help": "Images whose loss is at or below this take no more steps (label: 0.69 = more than half sure)."},
    )
    dtype: str = field(default="float32", metadata={"help": "float32, or bfloat16 or float16 for autocast."})
    compile: bool = field(default=False, metadata={"help": "Run the model through torch.compile."})

    def __post_init__(self) -> None:
        if isinstance(self.optimizer_arguments, str):
            self.optimizer_arguments = json_object(
                "optimizer_arguments", self.optimizer_arguments, example='{"momentum": 0.9}'
            )

    @property
    def further_optimizer_arguments(self) -> dict[str, Any]:
        """`optimizer_arguments`, read."""
        return self.optimizer_arguments if isinstance(self.optimizer_arguments, dict) else {}

    def check_search(self) -> None:
        """`ValueError` that names the argument that no search can have. Needs no model."""
        if self.objective not in OBJECTIVES:
            raise ValueError(f"`objective` must be one of {', '.join(OBJECTIVES)}; got {self.objective!r}")
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 0:
            raise ValueError(f"`steps` must be an integer of at least 0; got {self.steps!r}")
        for name in ("learning_rate", "window_scale_learning_rate"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 < value < float("inf"):
                raise ValueError(f"`{name}` must be a positive number; got {value!r}")
        if self.early_stop is not None and (not isinstance(self.early_stop, int | float) or not self.early_stop >= 0):
            raise ValueError(f"`early_stop` must be a loss of at least 0; got {self.early_stop!r}")
        check_dtype(self.dtype)
        if not isinstance(self.optimizer, str) or self.optimizer.lower() not in OPTIMIZERS:
            raise ValueError(f"`optimizer` must be one of {', '.join(sorted(OPTIMIZERS))}; got {self.optimizer!r}")
        kind, given = OPTIMIZERS[self.optimizer.lower()], self.further_optimizer_arguments
        try:
            kind([nn.Parameter(torch.zeros(1, 2))], lr=self.learning_rate, **given)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"`optimizer_arguments` {self.optimizer_arguments!r} do not suit {self.optimizer!r}: {error}"
            ) from None

    def search(self) -> dict[str, Any]:
        """These alone, of a job's arguments: keywords of [`SpotOracle`]."""
        return {one.name: getattr(self, one.name) for one in fields(SearchArguments)}


@dataclass(kw_only=True)
class OracleArguments(SearchArguments, CorruptionArguments, CandidateArguments, LabelledSource, SalientSource):
    """
    What a run of the oracle does. Its rows depend on all of these but where they are written and how images are read.
    """

    model: str = field(metadata={"help": "A SpotViT: a directory or a Hub id."})
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the model's Hub id."})
    dataset_name: str = field(metadata={"help": "digits, a Hub id, or a directory that load_dataset reads."})
    streaming: bool = field(
        default=False,
        metadata={
            "help": "Read the data set while it is used, and store nothing. Of Parquet files, each process reads its part; of "
            "others, all."
        },
    )
    num_tokens: list[int] = field(
        default_factory=lambda: [49], metadata={"help": "Tokens per image; several numbers make several configs."}
    )
    placement: str = field(
        default="isotropic", metadata={"help": "The prior from which the search begins, or module:function."}
    )
    window_scales: str | None = field(
        default=None,
        metadata={
            "help": "Size of all windows where the search begins, in patches, or cover: their areas sum to the image's "
            "(default: the placement's own)."
        },
    )
    seed: int = field(default=0, metadata={"help": "Seed of random placements and of corruptions, which are drawn per image."})
    among_labels: bool = field(
        default=False, metadata={"help": "Classify among the classes that occur in the split only, such as Imagenette's ten."}
    )
    run_name: str | None = field(
        default=None, metadata={"help": "Configs are called RUN_NAME_nTOKENS (default: the model's name)."}
    )
    batch_size: int = field(default=32, metadata={"help": "Images per forward pass."})
    shard_size: int = field(default=1000, metadata={"help": "Images per shard: what a killed run may lose at most."})
    decode: str | None = field(default=None, metadata={"help": DECODE_HELP})
    save_trajectories: bool = field(default=False, metadata={"help": "Also write every step's positions."})
    num_workers: int = field(default=2, metadata={"help": "Processes that decode ahead, per process of the run."})
    output_dir: str = field(
        metadata={"help": "Where the coordinate data set is written. The same command resumes a killed run."}
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Replace what an earlier run wrote to --output_dir, and begin anew."}
    )
    license: str = field(default="cc-by-4.0", metadata={"help": "Licence of the coordinates, for the card."})
    push_to_hub: bool = field(default=False, metadata={"help": "Also publish the result in --hub_dataset_id."})
    hub_dataset_id: str | None = field(default=None, metadata={"help": "Data set to push to, such as user/name."})
    hub_private: bool = field(default=False, metadata={"help": "Create that data set as a private one."})

    def __post_init__(self) -> None:
        SearchArguments.__post_init__(self)
        SalientSource.__post_init__(self)

    def check(self) -> None:
        """`ValueError` for what no run can have, before anything is loaded."""
        self.check_search()
        self.check_source()
        if not self.num_tokens or len(set(self.num_tokens)) != len(self.num_tokens):
            raise ValueError(f"`num_tokens` must be one or several different numbers; got {self.num_tokens}")
        if "[" in (self.dataset_split or ""):
            raise ValueError(
                f"`dataset_split` must be a whole split, by whose positions rows are known; got {self.dataset_split!r} "
                "(`max_samples` takes the first images)"
            )
        check_placement_name(self.placement)
        for num_tokens in self.num_tokens:
            check_placement(self.placement, num_tokens)
        self.check_saliency_of(self.placement)
        check_decode_option(self.decode)
        self.check_corruption()
        self.check_candidates()
        if self.window_scales is not None:
            scale_policy(self.window_scales)
        for name, least in (("batch_size", 1), ("shard_size", 1), ("num_workers", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"`{name}` must be at least {least}; got {getattr(self, name)}")
        if self.objective == "label" and self.label_column_name is None:
            raise ValueError("`label_column_name` is needed by objective='label'; got none")
        if self.among_labels and (self.label_column_name is None or self.streaming):
            missing = "`label_column_name`" if self.label_column_name is None else "all of the data set: not `streaming`"
            raise ValueError(f"`among_labels` needs {missing}, to know which classes occur")
        check_config_name("run_name", self.config_names[0])
        check_push(self.push_to_hub, "hub_dataset_id", self.hub_dataset_id)

    def request(self, num_tokens: int) -> PlacementRequest:
        """Where the search of a budget begins."""
        scales = None if self.window_scales is None else scale_policy(self.window_scales)
        return PlacementRequest(self.placement, num_tokens, self.seed, scales)

    @property
    def begins_scaled(self) -> bool:
        """Whether windows have sizes of their own where the search begins: known beforehand, as a column is there for all
        images or for none."""
        if self.window_scales is not None:
            return scale_policy(self.window_scales) != 1
        return get_placement(self.placement).scaled

    @property
    def config_names(self) -> list[str]:
        """Of the result: one per budget."""
        name = self.run_name or Path(self.model.rstrip("/")).name
        return [f"{name}_n{num_tokens}" for num_tokens in self.num_tokens]

    @property
    def push(self) -> PushArguments | None:
        """Where the result is published, where it is."""
        if self.hub_dataset_id is None:
            return None
        return PushArguments(**{one.name: getattr(self, one.name) for one in fields(PushArguments)})

    def recorded(self) -> dict[str, Any]:
        """On which the rows depend; the model and its commit are added by [`ModelSource.recorded`]."""
        not_recorded = (
            "num_workers", "streaming", "max_failed_share", "output_dir", "overwrite_output_dir", "license", "push_to_hub",
            "hub_dataset_id", "hub_private", "label_names", "labels_by_number", "boxes_csv", "corruption", "severity",
            *NOT_RECORDED,
        )  # fmt: skip
        recorded = {name: value for name, value in asdict(self).items() if name not in not_recorded}
        recorded.update(recorded_placements([self.placement]))
        for name in ("saliency_column_name", "window_scales", "decode"):  # as before there were these options
            if recorded[name] is None:
                del recorded[name]
        return {**recorded, **self.recorded_source(), **self.recorded_saliency(), **self.recorded_corruption()}
