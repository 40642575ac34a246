"""What identifies a job's ingredients for its record: versions of libraries, digests of weights, names without paths."""

import platform
import shlex
from collections.abc import Sequence
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from ..golden import GOLDEN_FILE
from ..version import __version__
from .network import is_connection_error


def weights_digest(model: str) -> str | None:
    """Of a local model, whose files may change between two runs; a Hub model has its commit."""
    directory = Path(model).expanduser()
    if not directory.is_dir():
        return None
    digest = sha256()
    for path in sorted([*directory.glob("*.safetensors"), directory / "config.json", directory / "preprocessor_config.json"]):
        if path.exists() and path.name != GOLDEN_FILE:  # which depends on the libraries, too
            with path.open("rb") as file:
                while chunk := file.read(2**20):
                    digest.update(chunk)
    return digest.hexdigest()


def versions(*others: str) -> dict[str, str]:
    """Of this package, of those that every job uses, and of `others` that this one does."""
    return {
        "spot_hf": __version__,
        "torch": torch.__version__,
        **{name: version(name) for name in ("transformers", "datasets", "accelerate", *others)},
        "python": platform.python_version(),
    }


def device_name(device: torch.device | str) -> str:
    device = torch.device(device)
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({platform.machine()})"


def public_name(source: str) -> str:
    """Of a model or a data set, for what is published: the Hub id, or of what lies on this machine the name, not the path."""
    path = Path(source).expanduser()
    return path.resolve().name if path.exists() else source


def hub_commit(name: str, revision: str | None, repo_type: str) -> str | None:
    """
    The commit that a revision of a Hub repository names now.

    Args:
        name (`str`): a Hub id, or a directory, which has none.
        revision (`str`, *optional*): branch, tag or commit.
        repo_type (`str`): `"model"` or `"dataset"`.

    Returns:
        `str`, *optional*: the commit; where the Hub cannot be asked, what was asked for.
    """
    if Path(name).expanduser().exists():
        return None
    try:
        return HfApi().repo_info(name, revision=revision, repo_type=repo_type).sha
    except Exception as error:
        # Who loads it says what is wrong with a name, or finds it in the cache.
        if isinstance(error, HfHubHTTPError | HFValidationError | OSError) or is_connection_error(error):
            return revision
        raise


def public_command(words: Sequence[str]) -> str:
    """A command for the record and for cards: of what lies on this machine the name, not the path."""
    return shlex.join([_without_path(word) for word in words])


def _without_path(word: str) -> str:
    option, equals, value = word.partition("=")  # `--option=PATH`, or a model that is called NAME=PATH
    if not equals or Path(word).exists():
        option, equals, value = "", "", word
    is_local = value.startswith(("/", "./", "../", "~")) or ("/" in value and Path(value).exists())
    return f"{option}{equals}{Path(value).name}" if is_local else word
