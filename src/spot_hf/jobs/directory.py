"""A job's directory: its parameters, so that a killed job goes on and another one is refused, and its results."""

import json
from pathlib import Path
from typing import Any

from ..coordinates.shards import SHARD_NAME
from .files import write_atomically


TEMPORARY = ".*.tmp"


LEDGER = "run.json"


class RunDirectory:
    """
    A directory that a run fills with shards. The directory is the ledger: a shard whose file is there is done. `run.json`
    holds the parameters that all of them share, and, when all is done, the results.

    Args:
        directory (`str`): where.
    """

    def __init__(self, directory: str | Path):
        self.directory = Path(directory)

    @property
    def ledger(self) -> dict[str, Any]:
        """What `run.json` holds; `ValueError` where it is no such ledger."""
        try:
            ledger = json.loads((self.directory / LEDGER).read_text(encoding="utf-8"))
            if not isinstance(ledger["parameters"], dict):
                raise ValueError
        except (OSError, ValueError, KeyError, TypeError):
            raise ValueError(f"`output_dir` {str(self.directory)!r} holds no run of `spot-hf oracle`: no {LEDGER}") from None
        return ledger

    def open(self, parameters: dict[str, Any], facts: dict[str, Any]) -> None:
        """
        Begins a run, or goes on with one.

        Args:
            parameters (`dict`): on which the rows depend.
            facts (`dict`): of this run, for the record: versions, command.

        Raises:
            `ValueError`: the directory holds something else, or a run with other parameters.
        """
        self.check(parameters)
        if not (self.directory / LEDGER).exists():
            self.directory.mkdir(parents=True, exist_ok=True)
            self.write_ledger({"parameters": parameters, **facts})

    def check(self, parameters: dict[str, Any]) -> None:
        """The same checks, without writing."""
        if not self.directory.exists():
            return
        if not self.directory.is_dir():
            raise ValueError(f"`output_dir` must be a directory; {str(self.directory)!r} is a file")
        if not (self.directory / LEDGER).exists():
            # A run that was killed in its first instant has left a temporary file.
            if any(not path.match(TEMPORARY) for path in self.directory.iterdir()):
                raise ValueError(
                    f"`output_dir` {str(self.directory)!r} is not empty and holds no run to go on with; give another one, or "
                    "`overwrite_output_dir` to replace it"
                )
            return
        there = self.ledger["parameters"]
        # What the Hub could not be asked for is not known to differ.
        unknown = {name for name in ("dataset_revision",) if there.get(name) is None or parameters.get(name) is None}
        differing = [
            f"{name} {there.get(name)!r} there, {parameters.get(name)!r} here"
            for name in sorted({*there, *parameters} - unknown)
            if there.get(name) != parameters.get(name)
        ]
        if differing:
            raise ValueError(
                f"`output_dir` {str(self.directory)!r} holds a run with other parameters: {'; '.join(differing)}. Give the "
                "same ones to go on with it, another directory, or `overwrite_output_dir` to replace it"
            )

    def write_ledger(self, ledger: dict[str, Any]) -> None:
        with write_atomically(self.directory / LEDGER) as file:
            file.write((json.dumps(ledger, indent=2) + "\n").encode())

    def shards(self, config: str, split: str) -> dict[int, Path]:
        """The shards that are done, by their number."""
        found = {}
        for path in sorted((self.directory / config).glob("*.parquet")):
            match = SHARD_NAME.fullmatch(path.name)
            if match and match["split"] == split:
                found[int(match["index"])] = path
        return dict(sorted(found.items()))

    def shard_path(self, config: str, split: str, index: int, total: int | None) -> Path:
        """Where a shard goes. Until the end of a source of unknown length, names do not say of how many it is."""
        suffix = "" if total is None else f"-of-{total:05d}"
        return self.directory / config / f"{split}-{index:05d}{suffix}.parquet"

    def name_totals(self, config: str, split: str, total: int) -> None:
        """Gives shards of what was a source of unknown length their final names. May be interrupted, and repeated."""
        for index, path in self.shards(config, split).items():
            path.rename(self.shard_path(config, split, index, total))

    def records(self) -> dict[tuple[str, str], dict[str, Any]]:
        """Of all finished configs: `(config, split)` → record."""
        found = {}
        for path in sorted(self.directory.glob("*/*.json")):
            found[path.parent.name, path.stem] = json.loads(path.read_text(encoding="utf-8"))
        return found

    def clean(self) -> None:
        """Removes what killed processes left half-written."""
        for path in [*self.directory.glob(TEMPORARY), *self.directory.glob("*/" + TEMPORARY)]:
            path.unlink(missing_ok=True)
