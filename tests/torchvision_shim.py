"""torchvision and timm beside a CPU build of torch.

torchvision has no CPU build for this torch: its wheel imports only where the operators that its missing C++ part would have
declared exist. `install` declares them (they cannot be called; nothing here does), before torchvision, timm or
transformers are imported. Hence a process of its own: `run_beside_torchvision`.
"""

import os
import subprocess
import sys
from pathlib import Path


TESTS = Path(__file__).resolve().parent
SIDE_PACKAGES = TESTS.parent / ".venv" / "side"  # made by `make test`
_libraries = []  # a library's operators vanish with it


def install() -> None:
    """To be called before torchvision, timm and transformers are imported."""
    import torch

    library = torch.library.Library("torchvision", "DEF")  # noqa: TOR901
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _libraries.append(library)


def run_beside_torchvision(script: str, *arguments: str | Path, timeout: int = 300) -> None:
    """Runs a script of this folder in a new interpreter that finds torchvision and timm; skips the test without them."""
    import pytest

    if not (SIDE_PACKAGES / "torchvision").exists():
        pytest.skip(f"needs torchvision and timm in {SIDE_PACKAGES}: `make test` puts them there")
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(SIDE_PACKAGES), str(TESTS)]),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(TESTS / script), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
    if done.returncode:
        pytest.fail(f"{script} failed:\n{done.stdout[-2000:]}{done.stderr[-6000:]}", pytrace=False)
