"""What positions are like: coverage, collapse, grid bias, saliency."""

import math

import pytest
import torch

from spot_hf.evaluation.analysis import describe_positions
from spot_hf.placement import grid


def described(points, saliency=None, height=48, width=64, patch_size=8):
    found = describe_positions(torch.tensor(points)[None].float(), height, width, patch_size, saliency)
    return {name: value.item() for name, value in found.items()}


def test_a_full_grid_covers_all_and_is_all_at_one_phase():
    found = describe_positions(grid(48, 64, 8)[None], 48, 64, 8)
    assert found["coverage"].item() == 1 and found["collapsed"].item() == 0
    # float32 coordinates: 64 pixels times half a unit in the last place.
    assert found["nearest"].item() == pytest.approx(1, abs=1e-5) and found["grid_bias"].item() == pytest.approx(1, abs=1e-5)


def test_one_window_covers_its_area():
    found = described([[0.5, 0.5]])
    assert found["coverage"] == pytest.approx(8 * 8 / (48 * 64)) and math.isnan(found["nearest"])
    assert described([[0.0, 0.0]])["coverage"] == pytest.approx(4 * 4 / (48 * 64))


def test_coverage_is_that_of_a_plain_loop():
    points = torch.rand(9, 2, generator=torch.Generator().manual_seed(0))
    seen = sum(
        any(abs(x * 64 - (i + 0.5)) <= 4 and abs(y * 48 - (j + 0.5)) <= 4 for x, y in points.double().tolist())
        for i in range(64)
        for j in range(48)
    )
    assert described(points.tolist())["coverage"] == pytest.approx(seen / (48 * 64))


def test_tokens_that_collapse():
    # 1 pixel apart is an eighth of a patch, 3 pixels are more than a quarter.
    assert described([[0.5, 0.5], [0.5 + 1 / 64, 0.5], [0.1, 0.1]])["collapsed"] == pytest.approx(2 / 3)
    assert described([[0.5, 0.5], [0.5 + 3 / 64, 0.5], [0.1, 0.1]])["collapsed"] == 0


def test_positions_anywhere_have_little_grid_bias():
    points = torch.rand(4000, 2, generator=torch.Generator().manual_seed(0)).tolist()
    # The mean of n random phases has a length of about sqrt(pi / 4n) = 0.014.
    assert described(points)["grid_bias"] < 0.06


def test_saliency_is_relative_to_its_mean():
    saliency = torch.zeros(1, 48, 64)
    saliency[:, :24] = 1
    assert described([[0.5, 0.1], [0.2, 0.3]], saliency)["saliency"] == pytest.approx(2)
    assert described([[0.5, 0.9], [0.2, 0.3]], saliency)["saliency"] == pytest.approx(1)
    assert described([[1.2, 1.1]], saliency)["saliency"] == 0  # beyond the crop: the border
    assert math.isnan(described([[0.5, 0.5]], torch.zeros(1, 48, 64))["saliency"])  # all that is salient was cut off
