"""The cells of an evaluation: what is measured, and the ledger of what was."""

import itertools
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ..configuration_spot_cnn import SpotCNNConfig
from ..configuration_spot_vit import SpotViTConfig
from ..data.batches import PlacementRequest, Shards
from ..data.failures import FailedImage
from ..placement import COVER, get_placement, is_placement
from .arguments import LEARNED, SAVED, EvaluationArguments
from .baselines import OF_VITS


ORACLE = "oracle"  # the method that uses the label: a ceiling
CALIBRATED = "calibrated"  # looks as the model's config says, at the model's own positions


@dataclass(frozen=True)
class SettingKey:
    """Within which results are compared: a model, at an image size, on images as they are or corrupted."""

    model: str
    image_size: int | None = None  # where it is not the model's own
    corruption: str | None = None
    severity: int | None = None

    @property
    def title(self) -> str:
        pixels = "" if self.image_size is None else f", {self.image_size} px"
        return self.model + pixels + ("" if self.corruption is None else f", {self.corruption} {self.severity}")


@dataclass(frozen=True)
class Cell:
    """What is measured."""

    method: str  # a placement, a baseline, or `ORACLE`
    num_tokens: int
    seed: int | None = None  # of a random placement
    steps: int | None = None  # of the oracle
    window_scales: float | str | None = None  # of all tokens of a placement, where they are not its own
    merge_tokens: float | None = None  # the share that merges, where it is not the model's own
    looks: tuple[int, ...] | None = None  # of a budget per image: the tokens of each, of which `num_tokens` is the last
    confidence: float | str | None = None  # with which an image stops, or `SAVED`

    @property
    def name(self) -> str:
        """Of the method, in results."""
        parts = [self.method]
        if self.window_scales is not None:
            scale = self.window_scales
            parts.append(scale if isinstance(scale, str) else f"scale {scale:g}")
        if self.merge_tokens is not None:
            parts.append(f"merged {self.merge_tokens:g}")
        if self.looks is not None:
            parts.append("until sure")
        return ", ".join(parts)

    @property
    def placements(self) -> list[PlacementRequest]:
        """Where tokens are to be placed for it, in each look."""
        if is_placement(self.method):
            return [
                PlacementRequest(self.method, count, self.seed or 0, self.window_scales)
                for count in self.looks or (self.num_tokens,)
            ]
        if self.method == "larger_windows":
            return [PlacementRequest("isotropic", self.num_tokens, window_scales=COVER)]
        return [PlacementRequest("isotropic", self.num_tokens)] if self.method == ORACLE else []

    def to_json(self) -> dict[str, Any]:
        """In the ledger and in results, a method is called a way, as it was in 0.1.0."""
        values = {"way": self.method, "num_tokens": self.num_tokens, "seed": self.seed, "steps": self.steps}
        later = {name: getattr(self, name) for name in ("window_scales", "merge_tokens", "looks", "confidence")}
        return {**values, **{name: value for name, value in later.items() if value is not None}}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Cell":
        later = {name: values.get(name) for name in ("window_scales", "merge_tokens", "confidence")}
        looks = tuple(values["looks"]) if "looks" in values else None
        return cls(values["way"], values["num_tokens"], values["seed"], values["steps"], **later, looks=looks)


def is_placed(method: str) -> bool:
    """Whether tokens are placed freely under a method, by its name in results, rather than it being a baseline."""
    name = method.split(",")[0]
    return name in (*LEARNED, CALIBRATED) or (is_placement(name) and name != "grid_subset")


def cells_of(arguments: EvaluationArguments, num_cells: int, config: SpotViTConfig | SpotCNNConfig) -> list[Cell]:
    """All cells of a model whose grid has `num_cells`."""
    baselines = [name for name in arguments.chosen_baselines if name not in left_out(arguments, config)]
    cells = [Cell("full_grid", num_cells)] if "full_grid" in baselines else []
    for num_tokens in arguments.num_tokens:
        for name in arguments.placements:
            cells += _placed_cells(arguments, name, num_tokens, num_cells)
        if num_tokens < num_cells:
            cells += [Cell(name, num_tokens) for name in baselines if name != "full_grid"]
        if arguments.oracle_steps:
            cells += [Cell(ORACLE, num_tokens, steps=steps) for steps in sorted({0, *arguments.oracle_steps})]
    looks = saved_looks(config)
    if SAVED in arguments.confidences and looks:
        cells.append(Cell(CALIBRATED, looks[-1], looks=looks, confidence=SAVED))
    return cells + _budget_cells(arguments, num_cells)


def left_out(arguments: EvaluationArguments, config: SpotViTConfig | SpotCNNConfig) -> list[str]:
    """Baselines that a model cannot have, as it is a CNN, or its tokens cannot merge."""
    merges = config.model_type == "spot_vit" and not config.positions_in_attention  # type: ignore[union-attr]
    return [name for name in arguments.chosen_baselines if name in OF_VITS and not merges]


def saved_looks(config: SpotViTConfig | SpotCNNConfig) -> tuple[int, ...]:
    """Those that a model has of its own, as it was calibrated; none where it was not."""
    several = isinstance(config.num_tokens, (list, tuple)) and config.confidence is not None
    return tuple(config.num_tokens) if several else ()  # type: ignore[arg-type]


def _placed_cells(arguments: EvaluationArguments, name: str, num_tokens: int, num_cells: int) -> list[Cell]:
    """Of a placement at a number of tokens: by the windows' scales, which a placer has of its own, merging, and seed."""
    if name in LEARNED:
        return [Cell(name, num_tokens, merge_tokens=merged) for merged in arguments.merge_shares]
    spec = get_placement(name)
    if spec.on_grid and num_tokens > num_cells:
        return []
    seeds = range(arguments.seed, arguments.seed + arguments.num_seeds) if spec.random else [None]
    variants = itertools.product(arguments.scale_policies, arguments.merge_shares, seeds)
    return [Cell(name, num_tokens, seed, window_scales=scales, merge_tokens=merged) for scales, merged, seed in variants]


def _budget_cells(arguments: EvaluationArguments, num_cells: int) -> list[Cell]:
    """Those with a budget per image: of each placement, with its first seed, by each confidence."""
    looks = tuple(sorted(arguments.num_tokens))
    placed = [cell for name in arguments.placements for cell in _placed_cells(arguments, name, looks[-1], num_cells)]
    firsts = [cell for cell in placed if cell.seed in (None, arguments.seed)]
    confidences = [one for one in arguments.confidences if one != SAVED]
    return [replace(cell, looks=looks, confidence=one) for cell in firsts for one in confidences]


class CellShards(Shards):
    """Those of an evaluation: lines of its ledger. A task is a cell."""

    def placements(self, shard: int) -> list[PlacementRequest]:
        return list(dict.fromkeys(request for cell in self.lacks(shard) for request in cell.placements))


@dataclass(kw_only=True)
class Measurement:
    """
    Of a cell, on a batch or on several. Lists have an entry per image that could be read, or per batch.

    Attributes:
        image_index, label (`list[int]`): per image. top (`list[list[int]]`): its five likeliest classes, in order.
        confidence, loss (`list[float]`): probability of the likeliest class, cross-entropy; per image.
        num_failed (`list[int]`): per batch; failed (`list`): the images that could not be read.
        seconds (`list[float]`), num_timed (`list[int]`): per batch, and how many images it had.
        peak_mib (`list[float]`): of the batches for which memory was counted.
        knn (`list[int]`, *optional*): the nearest neighbours' class, per image.
        num_tokens (`list[int]`, *optional*): of a budget per image, the tokens of all looks, per image.
        confusions (`list[list[int]]`, *optional*): of segmentation, each image's pixels by true and by predicted class, row by
            row; there, images have no `label`, `top` or `confidence`.
    """

    image_index: list[int] = field(default_factory=list)
    label: list[int] = field(default_factory=list)
    top: list[list[int]] = field(default_factory=list)
    confidence: list[float] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    num_failed: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    num_timed: list[int] = field(default_factory=list)
    peak_mib: list[float] = field(default_factory=list)
    failed: list[FailedImage] = field(default_factory=list)
    knn: list[int] | None = None
    num_tokens: list[int] | None = None
    confusions: list[list[int]] | None = None

    @classmethod
    def concatenated(cls, parts: Sequence["Measurement"]) -> "Measurement":
        found = cls()
        for part in parts:
            for one in fields(cls):
                value = getattr(part, one.name)
                if value is not None:
                    setattr(found, one.name, [*(getattr(found, one.name) or []), *value])
        return found

    @property
    def correct(self) -> list[bool]:
        """Per image."""
        return [top[0] == label for top, label in zip(self.top, self.label, strict=True)]

    def to_json(self) -> dict[str, Any]:
        """Without what there is not always, where there is none."""
        optional = ("failed", "knn", "num_tokens", "confusions")
        return {name: value for name, value in asdict(self).items() if name not in optional or value}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Measurement":
        """Lines of 0.1.0 name no failed images."""
        failed = [FailedImage(**one) for one in values.get("failed", [])]
        return cls(**{**{one.name: values[one.name] for one in fields(cls) if one.name in values}, "failed": failed})


@dataclass(frozen=True)
class Line:
    """Of the ledger: a cell on a shard of images."""

    setting: SettingKey
    cell: Cell
    shard: int
    measured: Measurement

    def to_json(self) -> dict[str, Any]:
        setting = {name: value for name, value in vars(self.setting).items() if value is not None or name == "image_size"}
        return {**setting, "cell": self.cell.to_json(), "shard": self.shard, **self.measured.to_json()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Line":
        setting = SettingKey(values["model"], values["image_size"], values.get("corruption"), values.get("severity"))
        return cls(setting, Cell.from_json(values["cell"]), values["shard"], Measurement.from_json(values))


class Lines:
    """The ledger: a JSON line per shard and cell, appended when it is done. A line that a killed process left half is none."""

    def __init__(self, directory: Path, process_index: int):
        self.directory, self.path = directory, directory / f"lines-{process_index}.jsonl"
        if self.path.exists() and not self.path.read_bytes().endswith(b"\n"):
            with self.path.open("a", encoding="utf-8") as file:
                file.write("\n")

    def read(self) -> list[Line]:
        found = {}
        for path in sorted(self.directory.glob("lines-*.jsonl")):
            for text in path.read_text(encoding="utf-8").splitlines():
                try:
                    line = Line.from_json(json.loads(text))
                except ValueError:
                    continue
                found[line.setting, line.cell, line.shard] = line
        return list(found.values())

    def append(self, line: Line) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line.to_json()) + "\n")
            file.flush()
            os.fsync(file.fileno())
