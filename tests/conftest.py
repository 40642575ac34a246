"""Shared fixtures: tiny models, real weights where they are, a local Hub."""

import os
from pathlib import Path

import pytest


# Before anything of Hugging Face is imported: nothing here may reach the network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("SPOT_SHARED", ROOT.parent / "shared"))
SIDE_PACKAGES = ROOT / ".venv" / "side"


def shared(path: str) -> Path:
    """A file of `../shared` (or `$SPOT_SHARED`); skips the test where it is absent."""
    if not (SHARED / path).exists():
        pytest.skip(f"needs {path} of the folder shared/ (looked in {SHARED}; set SPOT_SHARED)")
    return SHARED / path


@pytest.fixture(scope="session")
def vit_tiny() -> Path:
    """Real weights: ViT-Ti/16 of ImageNet-1k."""
    return shared("models/vit-tiny-patch16-224")


@pytest.fixture(scope="session")
def deit_tiny() -> Path:
    """Real weights: DeiT-Ti/16 of ImageNet-1k."""
    return shared("models/deit-tiny-patch16-224")


@pytest.fixture(scope="session")
def nips2017():
    """1,000 photographs with ImageNet-1k labels."""
    from datasets import load_dataset

    return load_dataset(str(shared("data/nips2017")), split="validation")
