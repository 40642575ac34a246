"""From the ledger's lines to results: means over seeds, intervals, speed-ups."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import evaluate
import numpy as np

from .arguments import EvaluationArguments
from .cells import ORACLE, Cell, Line, Measurement, SettingKey
from .intervals import Accuracy, Difference


METRICS = Path(__file__).parent / "metrics"


@dataclass(kw_only=True)
class Result:
    """
    Of a method at a number of tokens: accuracies in percent. What was not measured is `None`.

    Attributes:
        model (`str`), image_size (`int`, *optional*), method (`str`), num_tokens (`int`): what was measured.
        num_images, num_failed, num_seeds (`int`): images that were classified, that could not be read; draws.
        top_1, top_5, ece, knn (`float`): means over seeds; top_1_low, top_1_high: 95 % interval over images; top_1_spread:
            standard deviation over seeds. loss (`float`): mean cross-entropy.
        peak_mib (`float`): of a batch's tensors.
        difference_to_grid_subset ([`Difference`]): on the same images, first seeds.
        images_per_second, speed_up (`float`): speed-up to the full grid on the same batches.
        mean_tokens (`float`), looks (`list[int]`), confidence (`float` or `str`): of a budget per image: the tokens that an
            image got on average, those of each look, and when it stopped; `num_tokens` are those of the last look.
        steps, forward_passes (`int`), slow_down (`float`): of the oracle, whose every result uses the label.
        corruption (`str`), severity (`int`): of the images, where they were corrupted.
    """

    model: str
    image_size: int | None
    method: str
    num_tokens: int
    num_images: int
    num_failed: int
    num_seeds: int
    top_1: float | None = None
    top_5: float | None = None
    loss: float | None = None
    ece: float | None = None
    knn: float | None = None
    top_1_low: float | None = None
    top_1_high: float | None = None
    top_1_spread: float | None = None
    peak_mib: float | None = None
    difference_to_grid_subset: Difference | None = None
    images_per_second: float | None = None
    speed_up: float | None = None
    mean_tokens: float | None = None
    looks: list[int] | None = None
    confidence: float | str | None = None
    steps: int | None = None
    forward_passes: int | None = None
    slow_down: float | None = None
    corruption: str | None = None
    severity: int | None = None

    @property
    def cost(self) -> float:
        """Tokens per image."""
        return self.num_tokens if self.mean_tokens is None else self.mean_tokens

    @property
    def key(self) -> SettingKey:
        """By which tables are made."""
        return SettingKey(self.model, self.image_size, self.corruption, self.severity)

    def to_json(self) -> dict[str, Any]:
        """Without what this kind of result does not have; a method is called a way, as it was in 0.1.0."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        kept = {"image_size", "images_per_second", "speed_up" if self.steps is None else "slow_down"}
        if self.num_images:
            kept.add("top_1_spread")
        values = {name: value for name, value in values.items() if value is not None or name in kept}
        values = {("way" if name == "method" else name): value for name, value in values.items()}
        if self.difference_to_grid_subset is not None:
            values["difference_to_grid_subset"] = vars(self.difference_to_grid_subset)
        return {**values, "uses_label": True} if self.steps is not None else values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Result":
        known = {one.name: values[one.name] for one in fields(cls) if one.name in values}
        if "difference_to_grid_subset" in known:
            known["difference_to_grid_subset"] = Difference(**known["difference_to_grid_subset"])
        return cls(**{**known, "method": values["way"]})


Parts = dict[int, Measurement]  # by shard


def group_lines(lines: list[Line]) -> list[tuple[SettingKey, dict[Cell, Parts]]]:
    """Setting, and of it cell → shard → measurement."""
    found: dict[SettingKey, dict[Cell, Parts]] = {}
    for line in lines:
        found.setdefault(line.setting, {}).setdefault(line.cell, {})[line.shard] = line.measured
    return sorted(found.items(), key=lambda item: tuple(map(str, vars(item[0]).values())))


def summarize_lines(lines: list[Line], arguments: EvaluationArguments) -> list[Result]:
    """One result per setting, method and number of tokens."""
    metrics = load_metrics()
    found = []
    for setting, every_cell in group_lines(lines):
        by_cell = {cell: parts for cell, parts in every_cell.items() if cell.method != ORACLE}
        full = next((parts for cell, parts in by_cell.items() if cell.method == "full_grid"), None)
        merged = {cell: in_order(parts) for cell, parts in by_cell.items()}
        for method, num_tokens, confidence in dict.fromkeys(map(identity_of, by_cell)):
            seeds = [cell for cell in by_cell if identity_of(cell) == (method, num_tokens, confidence)]
            seeds.sort(key=lambda cell: cell.seed or 0)
            figures = summarize_cells([merged[cell] for cell in seeds], metrics)
            result = Result(**vars(setting), method=method, num_tokens=num_tokens, **figures)
            if seeds[0].looks is not None:
                result.looks, result.confidence = list(seeds[0].looks), confidence
                spent = [count for cell in seeds for count in merged[cell].num_tokens or []]
                result.mean_tokens = float(np.mean(spent)) if spent else None
            against = Cell("grid_subset", num_tokens, arguments.seed)
            if against in merged and method != "grid_subset" and seeds[0].looks is None and merged[against].label:
                first, second = (np.array(merged[cell].correct) for cell in (against, seeds[0]))
                result.difference_to_grid_subset = Difference.of(first, second)
            _add_speed(result, [timing(by_cell[cell], full) for cell in seeds], full)
            found.append(result)
    return found


def identity_of(cell: Cell) -> tuple[str, int, float | str | None]:
    """What a result is of: a cell, whatever its seed."""
    return cell.name, cell.num_tokens, cell.confidence


def summarize_oracle(lines: list[Line]) -> list[Result]:
    """One result per setting, number of tokens and steps of the oracle, of which every one uses the label."""
    metrics = load_metrics()
    found = []
    for setting, by_cell in group_lines(lines):
        for cell, parts in by_cell.items():
            if cell.steps is None:
                continue
            speed = timing(parts, by_cell[Cell(ORACLE, cell.num_tokens, steps=0)])
            found.append(
                Result(
                    **vars(setting),
                    method=ORACLE,
                    num_tokens=cell.num_tokens,
                    **summarize_cells([in_order(parts)], metrics),
                    steps=cell.steps,
                    forward_passes=2 * cell.steps + 1,
                    images_per_second=speed.images_per_second,
                    slow_down=1 / speed.ratio if speed.ratio else None,
                )
            )
    return found


def load_metrics() -> dict[str, Any]:
    return {name: load_metric(name) for name in ("top_k_accuracy", "expected_calibration_error")}


@cache
def load_metric(name: str) -> Any:
    """One of our modules of `evaluate`, which computes as often as it is asked to."""
    # In memory: in files, runs at the same time would wait for each other's locks.
    return evaluate.load(str(METRICS / name), keep_in_memory=True)


def in_order(parts: Parts) -> Measurement:
    return Measurement.concatenated([parts[shard] for shard in sorted(parts)])


def summarize_cells(measured: list[Measurement], metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Figures of a [`Result`]: of one method and number of tokens, a measurement per seed."""
    num_images = len(measured[0].label)
    result: dict[str, Any] = {
        "num_images": num_images,
        "num_failed": sum(measured[0].num_failed),
        "num_seeds": len(measured),
    }
    if not num_images:
        return result
    per_seed: dict[str, list[float]] = {}
    for one in measured:
        ranked = {"predictions": one.top, "references": one.label}
        values = {"top_1": 100 * metrics["top_k_accuracy"].compute(**ranked, k=1)["top_1_accuracy"]}
        if len(one.top[0]) >= 5:
            values["top_5"] = 100 * metrics["top_k_accuracy"].compute(**ranked, k=5)["top_5_accuracy"]
        values["loss"] = float(np.mean(one.loss))
        calibration = metrics["expected_calibration_error"].compute(
            predictions=[top[0] for top in one.top], references=one.label, confidences=one.confidence
        )
        values["ece"] = 100 * calibration["expected_calibration_error"]
        if one.knn is not None:
            values["knn"] = 100 * float(np.mean(np.array(one.knn) == np.array(one.label)))
        for name, value in values.items():
            per_seed.setdefault(name, []).append(value)
    result.update({name: statistics.fmean(values) for name, values in per_seed.items()})
    # The interval is over images; the spread is over seeds.
    interval = Accuracy.of_share(result["top_1"] / 100, num_images)
    result["top_1_low"], result["top_1_high"] = interval.low, interval.high
    result["top_1_spread"] = statistics.stdev(per_seed["top_1"]) if len(measured) > 1 else None
    result["peak_mib"] = max(max(one.peak_mib, default=0.0) for one in measured)
    return result


@dataclass(frozen=True)
class Speed:
    """Medians over batches: images/s, and the ratio to another cell on the same batches. `None` where there are none."""

    images_per_second: float | None
    ratio: float | None


def timing(parts: Parts, base: Parts | None) -> Speed:
    """Of a cell, against another one (the full grid)."""
    rates, ratios = [], []
    for shard, part in parts.items():
        per_image = [seconds / count for seconds, count in zip(part.seconds, part.num_timed, strict=True)]
        rates += [1 / value for value in per_image]
        if base is not None and shard in base:
            others = [a / b for a, b in zip(base[shard].seconds, base[shard].num_timed, strict=True)]
            ratios += [a / b for a, b in zip(others, per_image, strict=False)]
    return Speed(statistics.median(rates) if rates else None, statistics.median(ratios) if ratios else None)


def _add_speed(result: Result, speeds: list[Speed], full: Parts | None) -> None:
    """Medians over seeds."""
    rates = [speed.images_per_second for speed in speeds if speed.images_per_second is not None]
    ratios = [speed.ratio for speed in speeds if speed.ratio is not None]
    result.images_per_second = statistics.median(rates) if rates else None
    result.speed_up = statistics.median(ratios) if ratios else None
    if result.speed_up is not None and full is not None:
        # By the ratio on the same batches: what slowed the machine for a while slowed both.
        base = timing(full, None).images_per_second
        result.images_per_second = base * result.speed_up if base is not None else None
