"""torchvision and timm beside a CPU build of torch: runs a script that imports them.

    python tests/torchvision_shim.py SCRIPT [ARGUMENT...]

torchvision has no CPU build for this torch: its wheel imports only where the operators exist that its missing C++ part would
have declared. They are declared here (they cannot be called; nothing does) before torchvision, timm or transformers are
imported, hence in a process of its own. Tests call `run_beside_torchvision`.
"""

import os
import runpy
import subprocess
import sys
from pathlib import Path


TESTS = Path(__file__).resolve().parent
SIDE_PACKAGES = Path(sys.prefix) / "side"  # made by `make test`


def main(script: str, *arguments: str) -> None:
    import torch

    sys.path.append(str(SIDE_PACKAGES))
    library = torch.library.Library("torchvision", "DEF")  # lives as long as this call: its operators go with it
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


def run_beside_torchvision(script: str, *arguments: str | Path, timeout: int = 300, **environment: str | Path) -> None:
    """Runs a script of this folder in a new interpreter that finds torchvision and timm; skips the test without them."""
    import pytest

    if not (SIDE_PACKAGES / "torchvision").exists():
        pytest.skip(f"needs torchvision and timm in {SIDE_PACKAGES}: `make test` puts them there")
    environment = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **{k: str(v) for k, v in environment.items()}}
    command = [sys.executable, __file__, str(TESTS / script), *map(str, arguments)]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=timeout)
    if done.returncode:
        pytest.fail(f"{script} failed:\n{done.stdout[-2000:]}{done.stderr[-6000:]}", pytrace=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
