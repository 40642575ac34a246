"""Output directories: nothing is destroyed unasked, and nothing half-written is left behind."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


LEDGER = "run.json"  # of a job, in its directory
CONVERSION_REPORT = "conversion_report.json"
QUICKSTART_RESULTS = "results.json"
TEMPORARY = ".*.tmp"  # what a killed process may leave of a file


def is_written_by_us(directory: Path) -> bool:
    """Whether a job, a conversion or a quickstart wrote the directory."""
    return (
        _holds(directory / LEDGER, "parameters")
        or _holds(directory / CONVERSION_REPORT, "source_model")
        or is_written_by_quickstart(directory)
    )


def is_written_by_quickstart(directory: Path) -> bool:
    """Whether a quickstart wrote the directory: another one may replace it unasked."""
    return _holds(directory / QUICKSTART_RESULTS, "models", "remote_code", "num_images")


def _holds(path: Path, *keys: str) -> bool:
    """Whether it is a JSON file of an object with these keys."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and set(keys) <= set(values)


def check_output_dir(output_dir: str | Path, overwrite: bool, inputs: Iterable[str | Path] = ()) -> Path:
    """
    The path that will be written, with links resolved.

    Args:
        output_dir (`str`): as the user gave it.
        overwrite (`bool`): whether what is there may be replaced, as far as a job or a conversion wrote it.
        inputs (`list[str]`): what the work reads, which must not be replaced by it. Hub ids are no paths, and pass.

    Raises:
        `ValueError`: writing there would fail, or destroy something.
    """
    path = Path(output_dir).expanduser().resolve()
    if path.exists() and not path.is_dir():
        raise ValueError(f"`output_dir` must be a directory; {str(output_dir)!r} is a file")
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        raise ValueError(f"`output_dir` {str(output_dir)!r} is not empty; give `overwrite_output_dir` to replace it")
    here = Path.cwd()
    if path == here or path in here.parents:
        raise ValueError(
            f"`output_dir` must not be or hold the working directory, which would be replaced; got {str(output_dir)!r}"
        )
    for source in inputs:
        source_path = Path(source).expanduser().resolve()
        if source_path.exists() and (path == source_path or path in source_path.parents):
            raise ValueError(f"`output_dir` must not be or hold what is read, {str(source)!r}; got {str(output_dir)!r}")
    if path.is_dir() and any(not one.match(TEMPORARY) for one in path.iterdir()) and not is_written_by_us(path):
        raise ValueError(
            f"`overwrite_output_dir` replaces only what a command of spot-hf wrote; {str(output_dir)!r} holds no "
            f"{LEDGER} or {CONVERSION_REPORT}: remove it yourself, or give another `output_dir`"
        )
    return path


@contextmanager
def replaced_directory(output_dir: str | Path, overwrite: bool, inputs: Iterable[str | Path] = ()):
    """Yields a temporary directory that takes `output_dir`'s place when all went well, and vanishes when not."""
    path = check_output_dir(output_dir, overwrite, inputs)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    replaced = temporary.with_name(temporary.name + ".replaced")
    try:
        yield temporary
        temporary.chmod(0o755)
        if path.exists():
            path.rename(replaced)
        temporary.rename(path)
    finally:
        if replaced.exists() and not path.exists():
            replaced.rename(path)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def write_json(path: str | Path, value: Any, default: Callable[[Any], Any] | None = None) -> None:
    """Writes a JSON file, all at once; `default` as `json.dumps` takes it."""
    with write_atomically(path) as file:
        file.write((json.dumps(value, indent=2, default=default) + "\n").encode())


@contextmanager
def write_atomically(path: str | Path) -> Iterator[BinaryIO]:
    """Yields a file that takes `path`'s place when it is complete and on the disk. A killed process leaves `.NAME.PID.tmp`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    # The name is on the disk when its directory is. Windows cannot open one.
    if hasattr(os, "O_DIRECTORY"):
        directory = os.open(path.parent, os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
