"""The cells of an evaluation: what is measured, and the ledger of what was."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.batches import Shards, Start
from ..placement import PLACEMENTS
from .arguments import EvaluationArguments


@dataclass(frozen=True)
class Cell:
    """What is measured."""

    way: str  # a placement, a baseline, or `ORACLE`
    num_tokens: int
    seed: int | None = None  # of a random placement
    steps: int | None = None  # of the oracle

    @property
    def start(self) -> Start | None:
        """Where tokens are to be placed for it."""
        if self.way in PLACEMENTS:
            return Start(self.way, self.num_tokens, self.seed or 0)
        return Start("isotropic", self.num_tokens) if self.way in ("larger_windows", ORACLE) else None


def cells_of(arguments: EvaluationArguments, num_cells: int) -> list[Cell]:
    """All cells of a model whose grid has `num_cells`."""
    cells = [Cell("full_grid", num_cells)] if "full_grid" in arguments.baselines else []
    for num_tokens in arguments.num_tokens:
        for name in arguments.placement:
            if PLACEMENTS[name].on_grid and num_tokens > num_cells:
                continue
            seeds = range(arguments.seed, arguments.seed + arguments.num_seeds) if PLACEMENTS[name].random else [None]
            cells += [Cell(name, num_tokens, seed) for seed in seeds]
        if num_tokens < num_cells:
            cells += [Cell(name, num_tokens) for name in arguments.baselines if name != "full_grid"]
        if arguments.oracle_steps:
            cells += [Cell(ORACLE, num_tokens, steps=steps) for steps in sorted({0, *arguments.oracle_steps})]
    return cells


class CellShards(Shards):
    """Those of an evaluation: lines of its ledger. A task is a cell."""

    def starts(self, shard: int) -> list[Start]:
        return list(dict.fromkeys(cell.start for cell in self.lacks(shard) if cell.start is not None))


class Lines:
    """The ledger: a JSON line per shard and cell, appended when it is done. A line that a killed process left half is none."""

    def __init__(self, directory: Path, process_index: int):
        self.directory, self.path = directory, directory / f"lines-{process_index}.jsonl"
        if self.path.exists() and not self.path.read_bytes().endswith(b"\n"):
            with self.path.open("a", encoding="utf-8") as file:
                file.write("\n")

    def read(self) -> list[dict[str, Any]]:
        found = {}
        for path in sorted(self.directory.glob("lines-*.jsonl")):
            for text in path.read_text(encoding="utf-8").splitlines():
                try:
                    line = json.loads(text)
                except ValueError:
                    continue
                found[line["model"], line["image_size"], json.dumps(line["cell"]), line["shard"]] = line
        return list(found.values())

    def append(self, line: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())


def joined(parts: list[dict[str, list]]) -> dict[str, list]:
    lists = [name for name, value in parts[0].items() if isinstance(value, list)] if parts else []
    names = lists or ("image_index", "label", "top", "confidence", "loss", "num_failed", "seconds", "num_timed", "peak_mib")
    return {name: [value for part in parts for value in part[name]] for name in names}


ORACLE = "oracle"  # the way that uses the label: a ceiling, not a method
