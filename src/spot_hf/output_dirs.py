"""Output directories: nothing is destroyed unasked, and nothing half-written is left behind."""

import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path


def check_output_dir(output_dir: str | Path, overwrite: bool) -> None:
    """`ValueError` where writing `output_dir` would fail or destroy something."""
    path = Path(output_dir)
    if path.exists() and not path.is_dir():
        raise ValueError(f"`output_dir` must be a directory; {str(path)!r} is a file")
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        raise ValueError(f"`output_dir` {str(path)!r} is not empty; add --overwrite_output_dir to replace it")


@contextmanager
def replaced_directory(output_dir: str | Path, overwrite: bool):
    """Yields a temporary directory that takes `output_dir`'s place when all went well, and vanishes when not."""
    path = Path(output_dir)
    check_output_dir(path, overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        if path.exists():
            shutil.rmtree(path)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
