"""Covering windows and foveations in evaluation, oracle, transfer and training."""

import json
import math

import numpy as np
import pytest
import torch
from oracle_runs import save_images

from spot_hf import OracleArguments, SpotOracle, convert_checkpoint, load_coordinates, run_oracle
from spot_hf.cli import main
from spot_hf.training.placements import TrainingPlacements


@pytest.fixture(scope="module")
def source(tiny_vit, tmp_path_factory) -> list[str]:
    directory = tmp_path_factory.mktemp("foveated")
    convert_checkpoint(tiny_vit, directory / "spot")
    return ["--model", str(directory / "spot"), "--dataset_name", str(save_images(directory / "images", 12))]


def test_every_placement_with_every_scale(source, tmp_path):
    words = ["evaluate", *source, "--num_tokens", "4", "9", "--placement", "isotropic", "foveated_center", "grid_subset"]
    words += [
        "--window_scales",
        "1",
        "cover",
        "1.5",
        "--baselines",
        "larger_windows",
        "--num_seeds",
        "1",
        "--num_workers",
        "0",
    ]
    assert main([*words, "--output_dir", str(tmp_path / "out")]) == 0
    rows = json.loads((tmp_path / "out/results.json").read_text())["results"]
    found = {(row["way"], row["num_tokens"]): row["loss"] for row in rows}
    assert len(found) == 2 * (3 * 3 + 1)
    assert {"isotropic, scale 1", "isotropic, cover", "foveated_center, scale 1.5"} <= {way for way, _ in found}
    for num_tokens in (4, 9):  # the baseline is the same thing
        assert found["isotropic, cover", num_tokens] == found["larger_windows", num_tokens]
        assert found["isotropic, cover", num_tokens] != found["isotropic, scale 1", num_tokens]
    assert main([*words, "--output_dir", str(tmp_path / "out")]) == 0  # it resumes: nothing is left to do
    words[words.index("1.5")] = "large"
    assert main([*words, "--output_dir", str(tmp_path / "other")]) == 2


def oracle(source, output, **options):
    return run_oracle(
        OracleArguments(
            model=source[1], dataset_name=source[3], num_tokens=[9], num_workers=0, output_dir=str(output), **options
        )
    )


@pytest.mark.parametrize("optimizes", [False, True])
def test_the_oracle_begins_with_covering_windows(source, tmp_path, optimizes, capsys):
    options = {"window_scales": "cover", "steps": 2, "learning_rate": 0.02, "optimize_window_scales": optimizes}
    (summary,) = oracle(source, tmp_path / "run", **options).values()
    rows = load_coordinates(tmp_path / "run").with_format("numpy")
    assert np.allclose(rows["initial_window_scales"][:], math.sqrt(16 / 9))
    assert np.allclose(rows["window_scales"][:], math.sqrt(16 / 9)) != optimizes
    # What the run says is what a transfer to the same model finds, at the start and at the best positions.
    transfer = ["evaluate", "--model", source[1], "--coordinates", str(tmp_path / "run"), "--dataset_name", source[3]]
    assert main([*transfer, "--output_dir", str(tmp_path / "transfer")]) == 0
    accuracy = json.loads((tmp_path / "transfer/transfer.json").read_text())["accuracy"]
    assert accuracy["initial"]["value"] == pytest.approx(summary.accuracy_before, abs=1e-3)
    assert accuracy["shared"]["value"] == pytest.approx(summary.accuracy_after, abs=1e-3)
    shown = ["show", "--coordinates", str(tmp_path / "run"), "--image_id", "picture_3.png", "--dataset_name", source[3]]
    assert main([*shown, "--output_dir", str(tmp_path / "shown")]) == 0
    assert "window scales cover" in (tmp_path / "run/README.md").read_text()


def test_the_oracle_begins_foveated(source, tmp_path):
    oracle(source, tmp_path / "run", placement="foveated_center", steps=1)
    rows = load_coordinates(tmp_path / "run").with_format("numpy")
    scales = rows["initial_window_scales"][:]
    assert (scales[:, 4] < scales[:, 0]).all() and np.array_equal(scales, rows["window_scales"][:])
    with pytest.raises(ValueError, match="`window_scales` must be a number above 0, in patches, or 'cover'; got 'large'"):
        oracle(source, tmp_path / "other", window_scales="large")


def test_the_search_keeps_the_scales_that_it_is_given():
    from tiny import random_coordinates, random_images, tiny_model

    model, scales = tiny_model(), torch.tensor([[0.5, 1, 2, 3, 1, 1, 1.5]])
    labels = torch.tensor([1, 3])
    inputs = {"coordinates": random_coordinates(), "window_scales": scales}
    result = SpotOracle(model, steps=2, learning_rate=0.01).optimize(random_images(), labels, **inputs)
    assert torch.equal(result.window_scales, scales.expand(2, -1))
    with torch.no_grad():
        logits = model(random_images(), **inputs).logits
    torch.testing.assert_close(
        result.losses[:, 0], torch.nn.functional.cross_entropy(logits, labels, reduction="none"), rtol=1e-5, atol=1e-5
    )
    moved = SpotOracle(model, steps=2, learning_rate=0.01, optimize_window_scales=True)
    assert not torch.equal(moved.optimize(random_images(), labels, **inputs).window_scales, scales.expand(2, -1))
    with pytest.raises(ValueError, match="`window_scales` must be a tensor"):
        SpotOracle(model).optimize(random_images(), labels, random_coordinates(), window_scales=torch.zeros(1, 7))


# ------------------------------------------------------------------------------------------------------------- training


def placements(**options) -> TrainingPlacements:
    return TrainingPlacements(num_tokens=[9], height=48, width=48, patch_size=8, seed=5, **options)


PIXELS = torch.zeros(400, 3, 48, 48)


def test_random_foveations():
    made, draws = placements(placement=["foveated"]), torch.arange(400)
    placed = made(draws, 9, PIXELS)
    areas = (placed["window_scales"].double() ** 2).sum(1)
    torch.testing.assert_close(areas, torch.full((400,), 36.0).double(), rtol=1e-5, atol=0)
    flat = (placed["window_scales"] - 2).abs().amax(1) < 1e-6
    assert 0.14 < flat.float().mean() < 0.26  # a fifth
    assert placed["window_scales"].max() > 2.8 and placed["window_scales"].min() < 1.2  # 2 covers
    alone = made(draws[17:18], 9, PIXELS[:1])
    assert torch.equal(alone["coordinates"][0], placed["coordinates"][17])


def test_a_mixture_of_scales_and_placements():
    made = placements(
        placement=["isotropic", "foveated"], window_scales=["cover", (1.0, 1.0), (0.5, 1.5)], window_scales_weights=[2, 1, 1]
    )
    placed = made(torch.arange(400), 9, PIXELS)
    scales = placed["window_scales"]
    from spot_hf.placement import isotropic

    lattice = (placed["coordinates"] - isotropic(9)).abs().amax((1, 2)) < 1e-6
    covering, unit = (scales == 2).all(1), (scales == 1).all(1)
    # Half of the images are isotropic, and a fifth of the foveations flat, which is isotropic and covers, too.
    assert covering[lattice].float().mean() == pytest.approx((0.5 * 0.5 + 0.1) / 0.6, abs=0.08)
    assert unit[lattice].float().mean() == pytest.approx(0.125 / 0.6, abs=0.06)
    assert ((scales[~lattice].double() ** 2).sum(1) - 36).abs().max() < 1e-3  # foveations tile the image


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"window_scales": ["large"]}, "`window_scales` must be 'cover', or the lowest and the highest"),
        ({"window_scales": [(2.0, 1.0)]}, "`window_scales` must be 'cover'"),
        ({"window_scales": ["cover", "cover"]}, "`window_scales` must be one or several different values"),
        ({"window_scales": ["cover"], "window_scales_weights": [1, 2]}, "`window_scales_weights` must be 1 numbers"),
        ({"window_scales_weights": [1]}, "`window_scales_weights` are of `window_scales`"),
    ],
)
def test_scales_that_cannot_be(options, words):
    with pytest.raises(ValueError, match=words):
        placements(**options)


def test_train_and_evaluate_with_covering_windows(source, tmp_path, capsys):
    words = ["train", *source, "--dataset_split", "validation", "--eval_dataset_split", "validation", "--num_tokens", "4", "9"]
    words += ["--per_device_train_batch_size", "4", "--num_train_epochs", "1", "--dataloader_num_workers", "0"]
    words += ["--placement", "isotropic", "foveated", "foveated_edge", "--window_scales", "cover", "1", "0.5-2"]
    words += ["--window_scales_weights", "2", "1", "1", "--eval_window_scales", "cover"]
    assert main([*words, "--output_dir", str(tmp_path / "run")]) == 0
    training = json.loads((tmp_path / "run/training.json").read_text())
    assert training["parameters"]["window_scales"] == ["cover", "1", "0.5-2"] and "eval_n4_accuracy" in training["evaluation"]
    # What was measured is what an evaluation measures.
    again = ["evaluate", "--model", str(tmp_path / "run"), *source[2:], "--num_tokens", "4", "--placement", "isotropic"]
    again += ["--window_scales", "cover", "--baselines", "none", "--num_workers", "0", "--output_dir", str(tmp_path / "e")]
    assert main(again) == 0
    (row,) = json.loads((tmp_path / "e/results.json").read_text())["results"]
    assert row["top_1"] == pytest.approx(training["evaluation"]["eval_n4_accuracy"])
    capsys.readouterr()
    for wrong in (["--window_scales", "wide"], ["--eval_window_scales", "wide"]):
        assert main([*words[:9], *wrong, "--output_dir", str(tmp_path / "no")]) == 2
        assert "window_scales` must be" in capsys.readouterr().err


def test_pre_training_has_windows_of_one_size(source, tmp_path, capsys):
    words = ["pretrain", "--dataset_name", source[3], "--dataset_split", "validation", "--placement", "foveated"]
    assert main([*words, "--output_dir", str(tmp_path / "run")]) == 2
    assert "`placement` 'foveated' is not for pre-training" in capsys.readouterr().err
