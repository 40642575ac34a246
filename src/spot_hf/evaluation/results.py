"""From the ledger's lines to results: means over seeds, intervals, speed-ups."""

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import evaluate
import numpy as np

from .arguments import EvaluationArguments
from .cells import ORACLE, Cell, joined
from .intervals import Accuracy, Difference


METRICS = Path(__file__).parent / "metrics"


def summarize_lines(lines: list[dict[str, Any]], arguments: EvaluationArguments) -> list[dict[str, Any]]:
    """One result per model, image size, way and number of tokens: means over seeds, with intervals and spread."""
    metrics = load_metrics()
    found = []
    for (model, image_size), every_cell in group_lines(lines):
        by_cell = {cell: parts for cell, parts in every_cell.items() if cell.way != ORACLE}
        full = next((parts for cell, parts in by_cell.items() if cell.way == "full_grid"), None)
        merged = {cell: joined([parts[shard] for shard in sorted(parts)]) for cell, parts in by_cell.items()}
        for way, num_tokens in dict.fromkeys((cell.way, cell.num_tokens) for cell in by_cell):
            seeds = sorted(
                (cell for cell in by_cell if (cell.way, cell.num_tokens) == (way, num_tokens)), key=lambda c: c.seed or 0
            )
            result = summarize_cells([merged[cell] for cell in seeds], metrics)
            against = Cell("grid_subset", num_tokens, arguments.seed)
            if against in merged and way != "grid_subset" and merged[against]["label"]:
                first, second = _right(merged[against]), _right(merged[seeds[0]])
                result["difference_to_grid_subset"] = vars(Difference.of(first, second))
            speeds = [timing(by_cell[cell], full) for cell in seeds]
            for name in ("images_per_second", "speed_up"):
                values = [value for speed in speeds if (value := speed[name]) is not None]
                result[name] = statistics.median(values) if values else None
            if result["speed_up"] is not None and full is not None:
                # By the ratio on the same batches: what slowed the machine for a while slowed both.
                base = timing(full, None)["images_per_second"]
                result["images_per_second"] = base * result["speed_up"] if base is not None else None
            found.append({"model": model, "image_size": image_size, "way": way, "num_tokens": num_tokens, **result})
    return found


def summarize_oracle(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One result per model, image size, number of tokens and steps of the oracle, of which every one uses the label."""
    metrics = load_metrics()
    found = []
    for (model, image_size), by_cell in group_lines(lines):
        for cell, parts in by_cell.items():
            if cell.way != ORACLE or cell.steps is None:
                continue
            speed = timing(parts, by_cell[Cell(ORACLE, cell.num_tokens, steps=0)])
            found.append({
                "model": model, "image_size": image_size, "way": ORACLE, "uses_label": True, "num_tokens": cell.num_tokens,
                "steps": cell.steps, "forward_passes": 2 * cell.steps + 1,
                **summarize_cells([joined([parts[shard] for shard in sorted(parts)])], metrics),
                "images_per_second": speed["images_per_second"],
                "slow_down": 1 / speed["speed_up"] if speed["speed_up"] else None,
            })  # fmt: skip
    return found


def load_metrics() -> dict[str, Any]:
    # In memory: in files, runs at the same time would wait for each other's locks.
    return {
        name: evaluate.load(str(METRICS / name), keep_in_memory=True)
        for name in ("top_k_accuracy", "expected_calibration_error")
    }


def group_lines(lines: list[dict[str, Any]]) -> list[tuple[tuple, dict[Cell, dict[int, dict[str, Any]]]]]:
    """`(model, image_size)`, and of it cell → shard → line."""
    shards: dict[tuple, dict[Cell, dict[int, dict[str, Any]]]] = {}
    for line in lines:
        shards.setdefault((line["model"], line["image_size"]), {}).setdefault(Cell(**line["cell"]), {})[line["shard"]] = line
    return sorted(shards.items(), key=str)


def _right(record: Mapping[str, Any]) -> np.ndarray:
    return np.array([top[0] == label for top, label in zip(record["top"], record["label"], strict=True)])


def summarize_cells(records: list[dict[str, Any]], metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Of one way and number of tokens, a record per seed."""
    num_images = len(records[0]["label"])
    result: dict[str, Any] = {"num_images": num_images, "num_failed": sum(records[0]["num_failed"]), "num_seeds": len(records)}
    if not num_images:
        return result
    per_seed: dict[str, list[float]] = {}
    for record in records:
        ranked = {"predictions": record["top"], "references": record["label"]}
        predictions = [top[0] for top in record["top"]]
        values = {"top_1": 100 * metrics["top_k_accuracy"].compute(**ranked, k=1)["top_1_accuracy"]}
        if len(record["top"][0]) >= 5:
            values["top_5"] = 100 * metrics["top_k_accuracy"].compute(**ranked, k=5)["top_5_accuracy"]
        values["loss"] = float(np.mean(record["loss"]))
        values["ece"] = (
            100
            * metrics["expected_calibration_error"].compute(
                predictions=predictions, references=record["label"], confidences=record["confidence"]
            )["expected_calibration_error"]
        )
        if "knn" in record:
            values["knn"] = 100 * float(np.mean(np.array(record["knn"]) == np.array(record["label"])))
        for name, value in values.items():
            per_seed.setdefault(name, []).append(value)
    result.update({name: statistics.fmean(values) for name, values in per_seed.items()})
    # The interval is over images; the spread is over seeds.
    interval = Accuracy.of_share(result["top_1"] / 100, num_images)
    result["top_1_low"], result["top_1_high"] = interval.low, interval.high
    result["top_1_spread"] = statistics.stdev(per_seed["top_1"]) if len(records) > 1 else None
    result["peak_mib"] = max(max(record["peak_mib"]) for record in records)
    return result


def timing(parts: Mapping[int, Mapping[str, Any]], full: Mapping[int, Mapping[str, Any]] | None) -> dict[str, float | None]:
    """Images/s, and the speed-up to another cell (the full grid) on the same batches: the median over batches."""
    rates, ratios = [], []
    for shard, part in parts.items():
        per_image = [seconds / count for seconds, count in zip(part["seconds"], part["num_timed"], strict=True)]
        rates += [1 / value for value in per_image]
        if full is not None and shard in full:
            base = [a / b for a, b in zip(full[shard]["seconds"], full[shard]["num_timed"], strict=True)]
            ratios += [a / b for a, b in zip(base, per_image, strict=False)]
    return {
        "images_per_second": statistics.median(rates) if rates else None,
        "speed_up": statistics.median(ratios) if ratios else None,
    }
