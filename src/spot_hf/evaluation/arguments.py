"""Arguments of `spot-hf evaluate`: of an evaluation by tokens and placement, and, with `--coordinates`, of a transfer."""

import itertools
import re
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from ..budgets import check_confidence, check_looks
from ..data.candidates import NOT_RECORDED, CandidateArguments
from ..data.corruptions import (
    CORRUPTION_HELP,
    DEFAULT_SEVERITY,
    SEVERITY_HELP,
    Corruption,
    CorruptionArguments,
    check_corruptions,
)
from ..data.labels import LabelledSource
from ..data.source import DECODE_HELP, SalientSource, check_decode_option
from ..jobs.versions import public_name, weights_digest
from ..oracle.arguments import SearchArguments, check_dtype
from ..placement import BUILT_IN, PLACEMENTS, check_placement, check_placement_name, recorded_placements, scale_policy
from .baselines import BASELINES


LEARNED = ("learned", "learned_control")  # by the model's placer: of the image, and, to compare, of another image
SAVED = "saved"  # the confidence that a model's config has


def default_placements(with_saliency: bool = False) -> list[str]:
    """All built-in priors but `grid`, which is the baseline `full_grid`, and the foveated ones, which an evaluation of an
    earlier version did not have; with saliency, those that need it too."""
    known = [name for name in BUILT_IN if name != "grid" and not PLACEMENTS[name].scaled]
    return [name for name in known if with_saliency or not PLACEMENTS[name].saliency]


def _named(model: str) -> tuple[str, str]:
    """Name and place of a model that was given as `DIRECTORY`, `HUB_ID` or `NAME=DIRECTORY`."""
    name, equals, place = model.partition("=")
    if equals and not Path(model).expanduser().exists() and re.fullmatch(r"[\w.-]+", name) and place:
        return name, place
    return public_name(model), model


@dataclass(kw_only=True)
class EvaluationArguments(CandidateArguments, LabelledSource, SalientSource):
    """
    What is evaluated. Results depend on all of these but where they are written and how images are read. A number of tokens
    above the grid's is left out where a method cannot have it.
    """

    model: list[str] = field(
        metadata={
            "help": "SpotViT classifiers: directories or Hub ids; or NAME=DIRECTORY, to call one otherwise in the results."
        }
    )
    revision: list[str] | None = field(
        default=None, metadata={"help": "Branch, tag or commit of the models' Hub ids: one for all, or one per model."}
    )
    dataset_name: str = field(metadata={"help": "digits, a Hub id, or a directory that load_dataset reads."})
    streaming: bool = field(
        default=False,
        metadata={
            "help": "Read the data set while it is used, and store nothing. Of Parquet files, each process reads its part; of "
            "others, all."
        },
    )
    num_tokens: list[int] = field(default_factory=lambda: [25, 49, 100, 196], metadata={"help": "Token counts."})
    placement: list[str] | None = field(
        default=None,
        metadata={
            "help": "Priors that place them, or module:function; learned: by the model's placer; learned_control: as it says "
            "of another image (default: all built-in ones but the foveated; with saliency also those that need it)."
        },
    )
    window_scales: list[str] | None = field(
        default=None,
        metadata={
            "help": "Sizes of all windows, in patches, or cover: every placement is measured with each (default: its own)."
        },
    )
    merge_tokens: list[float] | None = field(
        default=None,
        metadata={
            "help": "Shares of the tokens that merge inside the network, such as 0 0.5: every placement is measured with each "
            "(default: the model's own)."
        },
    )
    confidence: list[str] | None = field(
        default=None,
        metadata={
            "help": "Also give each image a budget of its own: looks with all of --num_tokens in turn, until the model is as "
            "sure as each of these, such as 0.8 0.9; or saved: the looks of those models that are calibrated."
        },
    )
    baselines: list[str] | None = field(default=None, metadata={"help": f"{', '.join(BASELINES)} (default: all), or none."})
    image_size: list[int] | None = field(
        default=None, metadata={"help": "Pixels per side, such as 128 224 384 (default: the model's own)."}
    )
    num_seeds: int = field(default=3, metadata={"help": "Draws of each random placement."})
    seed: int = field(default=0, metadata={"help": "Seed of the first of them, and of corruptions."})
    corruption: list[str] | None = field(
        default=None, metadata={"help": f"Also measure all of it where {CORRUPTION_HELP} (default: only as images are)."}
    )
    severity: list[int] | None = field(default=None, metadata={"help": f"Of each corruption: {SEVERITY_HELP}."})
    oracle_steps: list[int] = field(
        default_factory=list,
        metadata={
            "help": "Also run the oracle with the label, a ceiling, in so many steps, such as 1 3 5 10; 0 is measured along."
        },
    )
    oracle_learning_rate: float = field(default=3e-3, metadata={"help": "In units of the image's width and height."})
    among_labels: bool = field(
        default=False, metadata={"help": "Classify among the classes that occur in the split only, such as Imagenette's ten."}
    )
    knn_dataset_split: str | None = field(
        default=None, metadata={"help": "Also measure kNN accuracy (k = 20, cosine) by the features of this split."}
    )
    knn_samples: int = field(default=5000, metadata={"help": "Images of that split."})
    batch_size: int = field(default=50, metadata={"help": "Images per forward pass."})
    shard_size: int = field(default=250, metadata={"help": "Images per line of the ledger: what a killed run may lose."})
    dtype: str = field(default="float32", metadata={"help": "float32, or bfloat16 or float16 for autocast."})
    decode: str | None = field(default=None, metadata={"help": DECODE_HELP})
    num_workers: int = field(default=1, metadata={"help": "Processes that decode ahead."})
    output_dir: str = field(metadata={"help": "Where tables and plots are written. The same command resumes a killed run."})
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Replace what an earlier run wrote to --output_dir, and begin anew."}
    )
    pareto: bool = field(
        default=False,
        metadata={
            "help": "Also draw accuracy against speed, of the first model's placements and budgets, and of what one would use "
            "instead: the baselines, and all of the other models."
        },
    )
    published: bool = field(default=False, metadata={"help": "Also draw the paper's figures, marked as published."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.placement is None:
            self.placement = default_placements(self.has_saliency)
        if self.baselines is None:
            self.baselines = list(BASELINES)
        elif self.baselines == ["none"]:
            self.baselines = []

    @property
    def scale_policies(self) -> list[float | str | None]:
        """`window_scales`, read; a placement's own where none are given."""
        return [scale_policy(one) for one in self.window_scales] if self.window_scales else [None]

    @property
    def merge_shares(self) -> list[float | None]:
        """`merge_tokens`; the model's own where none are given."""
        return list(self.merge_tokens) if self.merge_tokens else [None]

    @property
    def corruptions(self) -> list[Corruption | None]:
        """What is done to the images, in turn: nothing at first."""
        pairs = itertools.product(self.corruption or [], self.severity or [DEFAULT_SEVERITY])
        return [None, *(Corruption(name, severity, self.seed) for name, severity in pairs)]

    @property
    def confidences(self) -> list[float | str]:
        """`confidence`, read."""
        return [one if one == SAVED else float(one) for one in self.confidence or []]

    @property
    def placements(self) -> list[str]:
        """`placement`, with the default filled in."""
        return self.placement or []

    @property
    def chosen_baselines(self) -> list[str]:
        """`baselines`, with the default filled in."""
        return self.baselines or []

    @property
    def named_models(self) -> dict[str, str]:
        """What a model is called in the results → its directory or Hub id."""
        return dict(map(_named, self.model))

    def revision_of(self, name: str) -> str | None:
        """What was asked for, of a model by its name in the results."""
        if not self.revision:
            return None
        return self.revision[0] if len(self.revision) == 1 else self.revision[list(self.named_models).index(name)]

    def check(self) -> None:
        """`ValueError` for what no run can have, before anything is loaded."""
        self.check_source(needs_labels=True)
        self._check_models()
        if not self.num_tokens or len(set(self.num_tokens)) != len(self.num_tokens):
            raise ValueError(f"`num_tokens` must be one or several different numbers; got {self.num_tokens}")
        self._check_methods()
        for name in ("num_seeds", "batch_size", "shard_size", "knn_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1; got {getattr(self, name)}")
        for name in ("among_labels", "knn_dataset_split"):
            if self.streaming and getattr(self, name):
                raise ValueError(f"`{name}` needs a data set as a whole; got `streaming`")
        if self.num_workers < 0:
            raise ValueError(f"`num_workers` must be at least 0; got {self.num_workers}")
        check_decode_option(self.decode)
        check_dtype(self.dtype)
        check_corruptions(self.corruption, self.severity)
        self.check_candidates()

    def _check_models(self) -> None:
        names = [_named(model)[0] for model in self.model]
        if not names or len(set(names)) != len(names):
            raise ValueError(
                f"`model` must be one or several models with different names; got {', '.join(names) or 'none'}. "
                "NAME=DIRECTORY gives a model another name"
            )
        if self.revision is not None and len(self.revision) not in (1, len(self.model)):
            raise ValueError(f"`revision` must be one for all models or one per model, {len(self.model)}; got {self.revision}")

    def _check_methods(self) -> None:
        if len(set(self.scale_policies)) != len(self.scale_policies):
            raise ValueError(f"`window_scales` must be different ones; got {', '.join(map(str, self.window_scales or []))}")
        if len(set(self.merge_shares)) != len(self.merge_shares):
            raise ValueError(f"`merge_tokens` must be different shares; got {self.merge_tokens}")
        for share in self.merge_tokens or []:
            if not 0 <= share < 1:
                raise ValueError(f"`merge_tokens` must be shares of at least 0 and below 1; got {share}")
        if self.confidence:
            self._check_confidence()
        if self.pareto:
            self._check_pareto()
        for name in self.placements:
            check_placement_name(name)
            if name in LEARNED:
                continue
            for num_tokens in self.num_tokens:
                check_placement(name, num_tokens)
            self.check_saliency_of(name)
            if name == "grid":
                raise ValueError("`placement` 'grid' is the baseline 'full_grid'; got it as a placement")
        for name in self.chosen_baselines:
            if name not in BASELINES:
                raise ValueError(f"`baselines` must be of {', '.join(BASELINES)}; got {name!r}")
        if not self.placements and not self.chosen_baselines and not self.oracle_steps:
            raise ValueError("`placement`, `baselines` and `oracle_steps` leave nothing to measure; got none of them")
        for steps in self.oracle_steps:
            self.search(steps).check_search()

    def _check_pareto(self) -> None:
        """Speeds are multiples of the full grid's."""
        if "full_grid" not in self.chosen_baselines or self.image_size or self.corruption or not self.placements:
            raise ValueError("`pareto` needs a `placement`, the baseline full_grid, and no `image_size` or `corruption`")

    def _check_confidence(self) -> None:
        try:
            values = self.confidences
        except ValueError:
            values = []
        if not values or len(set(values)) != len(values):
            raise ValueError(f"`confidence` must be different numbers, or {SAVED}; got {', '.join(self.confidence or [])}")
        looks = check_looks(sorted(self.num_tokens))
        for value in values:
            if value != SAVED:
                check_confidence(value, len(looks))
        if not self.placements:
            raise ValueError("`confidence` needs a `placement`; got none")

    def search(self, steps: int) -> SearchArguments:
        """Of the oracle, which has the label."""
        return SearchArguments(objective="label", steps=steps, learning_rate=self.oracle_learning_rate, dtype=self.dtype)

    def recorded(self) -> dict:
        """On which results depend; the models' commits are added when these are known."""
        not_recorded = (
            "num_workers", "streaming", "max_failed_share", "output_dir", "overwrite_output_dir", "published", "pareto",
            "revision",
            "label_names", "labels_by_number", "boxes_csv", *NOT_RECORDED,
        )  # fmt: skip
        recorded = {name: value for name, value in asdict(self).items() if name not in not_recorded}
        recorded.update(self.recorded_source(), **self.recorded_saliency())
        recorded.update(recorded_placements(name for name in self.placements if name not in LEARNED))
        if self.corruption is not None:
            recorded["severity"] = self.severity or [DEFAULT_SEVERITY]
        # As before there were these options.
        for name in ("window_scales", "merge_tokens", "confidence", "decode", "corruption", "severity"):
            if recorded[name] is None:
                del recorded[name]
        recorded.update(model={name: weights_digest(one) for name, one in self.named_models.items()})
        if self.image_size is not None:  # until 0.1.0, the position kernel alone said what lies between the table's cells
            recorded["position_interpolation"] = "source"
        return recorded


@dataclass(kw_only=True)
class TransferArguments(CorruptionArguments, CandidateArguments, LabelledSource, SalientSource):
    """What another model's positions are worth to a model."""

    model: str = field(metadata={"help": "The SpotViT, which classifies or segments: a directory or a Hub id."})
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of its Hub id."})
    coordinates: str = field(
        metadata={"help": "A coordinate data set, a directory or a Hub id: measure what its positions are worth to --model."}
    )
    coordinates_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of the coordinates' Hub id."}
    )
    config: str | None = field(default=None, metadata={"help": "Config of the coordinates, where there are several."})
    split: str | None = field(default=None, metadata={"help": "Split of the coordinates, where there are several."})
    dataset_name: str | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "Where the images lie (default: the Hub id that the coordinates name)."}
    )
    among_labels: bool = field(
        default=False, metadata={"help": "Classify among the classes that occur in the split only, such as Imagenette's ten."}
    )
    window_scales: str | None = field(
        default=None,
        metadata={
            "help": "Size of all windows, in patches of --model, or cover: their areas sum to the image's (default: as "
            "the positions were found)."
        },
    )
    batch_size: int = field(default=32, metadata={"help": "Images per forward pass."})
    dtype: str = field(default="float32", metadata={"help": "float32, or bfloat16 or float16 for autocast."})
    decode: str | None = field(default=None, metadata={"help": DECODE_HELP})
    seed: int = field(default=0, metadata={"help": "Seed of the corruption."})
    output_dir: str | None = field(default=None, metadata={"help": "Where transfer.json and transfer.md are written."})

    def check(self) -> None:
        """`ValueError` for what no transfer can have, before anything is loaded."""
        self.check_source(needs_labels=True)
        if self.batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1; got {self.batch_size}")
        if self.window_scales is not None:
            scale_policy(self.window_scales)
        check_decode_option(self.decode)
        check_dtype(self.dtype)
        self.check_corruption()
        self.check_candidates()

    def with_source(self, dataset_name: str, dataset_config_name: str | None, dataset_split: str) -> "TransferArguments":
        """With what the coordinates say of the images, where nothing else was said."""
        if self.dataset_name is not None:
            dataset_name, dataset_config_name = self.dataset_name, self.dataset_config_name
        return replace(
            self,
            dataset_name=dataset_name,
            dataset_config_name=dataset_config_name,
            dataset_split=self.dataset_split or dataset_split,
        )
