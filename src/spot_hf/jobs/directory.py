"""A job's directory: its parameters, so that a killed job goes on and another one is refused, and its results."""

import json
import re
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from .files import LEDGER, TEMPORARY, check_output_dir, write_json


# Commits of what lies on the Hub. One that could not be asked for, or instead of which an earlier version recorded nothing or
# a branch, is not known to differ.
COMMITS = ("revision", "dataset_revision", "teacher_revision", "coordinates_revision")


@dataclass(kw_only=True)
class Ledger:
    """
    What `run.json` holds.

    Attributes:
        parameters (`dict`): on which the results depend. A job with others is another job.
        command (`str`, *optional*): how the job was started.
        versions (`dict`): of the libraries; device (`str`): on which it ran.
        labels (`dict` or `str`, *optional*): how the data set's labels were matched with the models' classes.
        results (`dict`, *optional*): are there when all is done.
    """

    parameters: dict[str, Any]
    command: str | None = None
    versions: dict[str, str] | None = None
    device: str | None = None
    labels: dict[str, str] | str | None = None
    results: dict[str, Any] | None = None

    @classmethod
    def read(cls, path: Path) -> "Ledger":
        """`ValueError` where the file is no such ledger."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(values["parameters"], dict):
                raise ValueError
        except (OSError, ValueError, KeyError, TypeError):
            raise ValueError(f"`output_dir` {str(path.parent)!r} holds no run: no {LEDGER}") from None
        return cls(**{one.name: values.get(one.name) for one in fields(cls)})

    def to_json(self) -> dict[str, Any]:
        values = asdict(self)
        return {name: value for name, value in values.items() if name not in ("labels", "results") or value is not None}


class JobDirectory:
    """
    A directory that a job fills, and goes on with after it was killed.

    Args:
        directory (`str`): where.
    """

    def __init__(self, directory: str | Path):
        self.directory = Path(directory).expanduser().resolve()

    @property
    def ledger(self) -> Ledger:
        """`ValueError` where there is none."""
        return Ledger.read(self.directory / LEDGER)

    def open(self, ledger: Ledger, *, overwrite: bool = False, inputs: Iterable[str] = ()) -> None:
        """
        Begins a job, or goes on with one.

        Args:
            ledger ([`Ledger`]): of this job.
            overwrite (`bool`): begin anew, and remove what an earlier job has written there.
            inputs: what the job reads, which must not be overwritten.

        Raises:
            `ValueError`: the directory holds something else, or a job with other parameters.
        """
        if overwrite:
            check_output_dir(self.directory, True, inputs=inputs)
            if self.directory.exists():
                shutil.rmtree(self.directory)
        self.check(ledger.parameters)
        if not (self.directory / LEDGER).exists():
            self.directory.mkdir(parents=True, exist_ok=True)
            self.write_ledger(ledger)

    def check(self, parameters: dict[str, Any]) -> None:
        """The same checks, without writing."""
        if not self.directory.exists():
            return
        if not self.directory.is_dir():
            raise ValueError(f"`output_dir` must be a directory; {str(self.directory)!r} is a file")
        if not (self.directory / LEDGER).exists():
            # A job that was killed in its first instant has left a temporary file.
            if any(not path.match(TEMPORARY) for path in self.directory.iterdir()):
                raise ValueError(
                    f"`output_dir` {str(self.directory)!r} is not empty and holds no run to go on with; give another directory"
                )
            return
        there = self.ledger.parameters
        unknown = {name for name in COMMITS if not (_is_known(there.get(name)) and _is_known(parameters.get(name)))}
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

    def write_ledger(self, ledger: Ledger) -> None:
        self.write_json(LEDGER, ledger.to_json())

    def write_json(self, name: str, value: Any) -> None:
        """Writes a JSON file of the directory, all at once."""
        write_json(self.directory / name, value, default=str)

    def clean(self) -> None:
        """Removes what killed processes left half-written."""
        for path in [*self.directory.glob(TEMPORARY), *self.directory.glob("*/" + TEMPORARY)]:
            path.unlink(missing_ok=True)


def _is_known(revision: Any) -> bool:
    """Whether it is a commit, or commits by the names of their repositories."""
    return isinstance(revision, dict) or (isinstance(revision, str) and re.fullmatch("[0-9a-f]{40}", revision) is not None)
