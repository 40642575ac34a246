"""Accuracy against speed: of one model, and of what one would use instead."""

import json

import numpy as np
import pytest
from oracle_runs import save_images

from spot_hf import convert_checkpoint
from spot_hf.cli import main
from spot_hf.evaluation.pareto import Point, frontier, height_at, write_pareto
from spot_hf.evaluation.results import Result


def point(method: str, speed: float, right: int, ours: bool = True) -> Point:
    """With `right` of 100 images."""
    result = Result(
        model="a" if ours else "b", image_size=None, method=method, num_tokens=9, num_images=100, num_failed=0, num_seeds=1,
        top_1=float(right), top_1_low=right - 3.0, top_1_high=right + 3.0,
    )  # fmt: skip
    return Point(result, speed, np.arange(100) < right, ours)


def test_the_frontier_and_its_curve():
    points = [point("p", speed, right) for speed, right in ((1, 90), (2, 95), (4, 80), (3, 70), (8, 60), (4, 85))]
    curve = frontier(points)
    assert [(one.speed, one.top_1) for one in curve] == [(2, 95), (4, 85), (8, 60)]
    assert height_at(curve, 1) == height_at(curve, 2) == 95 and height_at(curve, 9) == 0
    assert height_at(curve, 2 * 2**0.5) == pytest.approx(90)  # half of the way, in the logarithm


def test_what_the_report_says(tmp_path):
    ours = [point("isotropic", 1, 95), point("isotropic", 8, 60)]
    below, above = point("shrunken_image", 8, 55, ours=False), point("shrunken_image", 2, 94, ours=False)
    said = "\n".join(write_pareto(tmp_path, [*ours, below], "a", None))
    assert "No rival's point lies above the curve of `a`." in said and (tmp_path / "pareto.png").stat().st_size > 10_000
    assert "| b: shrunken_image | 9 | 8.0× | 55.0 | 60.0 | +5.0" in said
    said = "\n".join(write_pareto(tmp_path, [*ours, below, above], "a", "cpu"))
    assert "1 of the rivals' 2 best points lie above the curve of `a`: b: shrunken_image (2.0×, 94.0 %)." in said
    with pytest.raises(ValueError, match="got only one of the two"):
        write_pareto(tmp_path, ours, "a", None)


def test_an_evaluation_draws_it(tiny_vit, tmp_path):
    for name in ("first", "second"):
        convert_checkpoint(tiny_vit, tmp_path / name)
    words = [
        "evaluate",
        "--dataset_name",
        str(save_images(tmp_path / "images", 12)),
        "--num_tokens",
        "4",
        "9",
        "--num_workers",
        "0",
    ]
    words += ["--model", str(tmp_path / "first"), str(tmp_path / "second"), "--placement", "isotropic", "grid_subset"]
    words += ["--confidence", "0.25", "--window_scales", "cover", "--output_dir", str(tmp_path / "out")]
    assert main([*words, "--baselines", "full_grid", "shrunken_image", "token_merging", "--pareto"]) == 0
    report = (tmp_path / "out/README.md").read_text()
    assert "## Accuracy against speed" in report and "![pareto.png](pareto.png)" in report
    assert "second: " in report or "first: " in report  # a rival
    assert main([*words, "--baselines", "full_grid", "shrunken_image", "token_merging"]) == 0  # the same run
    assert json.loads((tmp_path / "out/run.json").read_text())["parameters"]["confidence"] == ["0.25"]
    words[-1] = str(tmp_path / "other")
    assert main([*words, "--baselines", "shrunken_image", "--pareto"]) == 2
