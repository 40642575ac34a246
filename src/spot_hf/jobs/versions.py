"""What identifies a job's ingredients for its record: versions of libraries, digests of weights, names without paths."""

import platform
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import torch

from ..version import __version__


def weights_digest(model: str) -> str | None:
    """Of a local model, whose files may change between two runs; a Hub model has its commit."""
    directory = Path(model).expanduser()
    if not directory.is_dir():
        return None
    digest = sha256()
    for path in sorted([*directory.glob("*.safetensors"), directory / "config.json", directory / "preprocessor_config.json"]):
        if path.exists():
            with path.open("rb") as file:
                while chunk := file.read(2**20):
                    digest.update(chunk)
    return digest.hexdigest()


def versions() -> dict[str, str]:
    return {
        "spot_hf": __version__,
        "torch": torch.__version__,
        **{name: version(name) for name in ("transformers", "datasets", "accelerate")},
        "python": platform.python_version(),
    }


def device_name(device: torch.device | str) -> str:
    device = torch.device(device)
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({platform.machine()})"


def public_name(source: str) -> str:
    """Of a model or a data set, for what is published: the Hub id, or of what lies on this machine the name, not the path."""
    path = Path(source).expanduser()
    return path.resolve().name if path.exists() else source
