"""When a model is sure: `spot-hf calibrate`, and what `spot-hf evaluate` then measures."""

import json
import shutil

import numpy as np
import pytest
from oracle_runs import save_images
from scipy.special import log_softmax
from tiny import tiny_model

from spot_hf import SpotViTConfig, SpotViTForImageClassification, convert_checkpoint, verify_model
from spot_hf.cli import main
from spot_hf.evaluation.arguments import EvaluationArguments
from spot_hf.evaluation.calibration import CalibrateArguments, Looks, frontier, last_look, run_calibration
from spot_hf.evaluation.cells import cells_of


COUNTS = [4, 9, 16]


@pytest.fixture(scope="module")
def source(tiny_vit, tmp_path_factory):
    directory = tmp_path_factory.mktemp("calibration")
    convert_checkpoint(tiny_vit, directory / "spot")
    return directory / "spot", str(save_images(directory / "images", 40))


@pytest.fixture
def model(source, tmp_path):
    return shutil.copytree(source[0], tmp_path / "spot")


def calibrate(model, source, **changes) -> None:
    given = {"num_tokens": COUNTS, "mean_tokens": 12, "num_workers": 0, **changes}
    run_calibration(CalibrateArguments(model=str(model), dataset_name=source[1], **given))


def words_of(model, source) -> list[str]:
    counts = [str(count) for count in COUNTS]
    return ["--model", str(model), "--dataset_name", source[1], "--num_tokens", *counts, "--num_workers", "0"]


def some_looks(num_images: int = 300, seed: int = 0) -> Looks:
    """Of a model that gets better with each look, and is too sure of itself."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 4, num_images)
    logits = 3 * generator.normal(size=(3, num_images, 4))
    logits += np.array([2.0, 5.0, 9.0])[:, None, None] * (labels[:, None] == np.arange(4))
    return Looks(logits.astype(np.float32), labels)


def test_temperatures_are_the_best_of_a_grid():
    """To 2 %, the step of the grid."""
    looks = some_looks()
    rows = np.arange(len(looks.labels))
    grid = np.exp(np.arange(-1, 2, 0.02))
    for logits, temperature in zip(looks.logits, looks.temperatures(), strict=True):
        losses = [-log_softmax(logits / one, axis=-1)[rows, looks.labels].mean() for one in grid]
        assert temperature == pytest.approx(grid[int(np.argmin(losses))], rel=0.025)


def test_images_stop_at_their_first_sure_look():
    confidence = np.random.default_rng(0).random((3, 50))
    for thresholds in ([0.5, 0.7], [0.0, 0.5], [2.0, 2.0]):
        expected = []
        for image in confidence.T:
            sure = [number for number in (0, 1) if image[number] >= thresholds[number]]
            expected.append(sure[0] if sure else 2)
        assert last_look(confidence, thresholds).tolist() == expected


def test_the_frontier_is_better_for_more():
    looks = some_looks()
    temperature = looks.temperatures()
    points = frontier(looks, temperature, COUNTS)
    confidence = looks.confidence(temperature)
    expected = []
    for point in points:
        last = last_look(confidence, point.confidence)
        assert point.mean_tokens == pytest.approx(np.cumsum(COUNTS)[last].mean())
        right = looks.logits.argmax(-1)[last, np.arange(len(last))] == looks.labels
        assert point.accuracy == pytest.approx(100 * right.mean())
        expected.append(confidence[last, np.arange(len(last))].mean())
    assert len(points) > 4 and expected == sorted(expected)
    assert [point.mean_tokens for point in points] == sorted(point.mean_tokens for point in points)
    # What a random choice of thresholds costs, the frontier gives at least as well, but for the points that it leaves out.
    last = last_look(confidence, [0.6, 0.6])
    dearer = [
        value for point, value in zip(points, expected, strict=True) if point.mean_tokens >= np.cumsum(COUNTS)[last].mean()
    ]
    assert dearer[0] >= confidence[last, np.arange(len(last))].mean() - 1e-9


def test_a_calibrated_model_decides_by_itself(source, model, capsys):
    words = ["calibrate", *words_of(model, source)]
    assert main([*words, "--mean_tokens", "12"]) == 0
    said = capsys.readouterr().out
    config = SpotViTConfig.from_pretrained(model)
    calibration = config.calibration
    assert config.num_tokens == COUNTS and calibration["num_images"] == calibration["evaluation"]["num_images"] == 20
    assert "every second image" in calibration["dataset_split"] and "the other images" in said
    card = (model / "README.md").read_text()
    assert "## Budget per image" in card and "**saved**" in card and card.count("| sure at |") == 1
    chosen = [point for point in calibration["points"] if point["confidence"] == config.confidence]
    assert len(chosen) == 1 and chosen[0]["mean_tokens"] <= 12

    # What was measured is what the saved model does with these images.
    from datasets import load_dataset

    from spot_hf import SpotViTImageProcessorPil

    images = next(iter(load_dataset(source[1]).values()))
    saved = SpotViTForImageClassification.from_pretrained(model)
    processor = SpotViTImageProcessorPil.from_pretrained(model)
    others = range(1, 40, 2)
    pixel_values = processor([images[i]["image"] for i in others], return_tensors="pt")["pixel_values"]
    measured = calibration["evaluation"]["points"][calibration["points"].index(chosen[0])]
    outputs = saved(pixel_values)
    assert outputs.num_tokens.float().mean().item() == pytest.approx(measured["mean_tokens"])
    cheapest = calibration["points"][0]
    spent = saved(pixel_values, max_mean_tokens=cheapest["mean_tokens"]).num_tokens.float().mean().item()
    assert spent == pytest.approx(calibration["evaluation"]["points"][0]["mean_tokens"])

    # Again, for an accuracy: replaces what is there.
    reachable = max(point["accuracy"] for point in calibration["points"])
    assert main([*words, "--accuracy", str(reachable)]) == 0
    assert (model / "README.md").read_text().count("## Budget per image") == 1
    assert main([*words, "--accuracy", "100" if reachable < 100 else "101"]) == 2


def test_an_evaluation_with_budgets_per_image(source, model, tmp_path):
    calibrate(model, source)
    words = ["evaluate", *words_of(model, source)]
    words += [
        "--placement",
        "isotropic",
        "uniform",
        "--window_scales",
        "cover",
        "--baselines",
        "full_grid",
        "--num_seeds",
        "1",
    ]
    words += ["--merge_tokens", "0", "0.5", "--output_dir", str(tmp_path / "out")]
    assert main([*words, "--confidence", "0", "0.25", "2", "saved"]) == 0
    rows = json.loads((tmp_path / "out/results.json").read_text())["results"]
    budgets = {(row["way"], row["confidence"]): row for row in rows if "looks" in row}
    fixed = {(row["way"], row["num_tokens"]): row for row in rows if "looks" not in row}
    assert len(budgets) == 2 * 2 * 3 + 1 and {row["looks"] == COUNTS for row in budgets.values()} == {True}
    for name in ("isotropic, cover, merged 0", "uniform, cover, merged 0.5"):
        at_once, never = budgets[f"{name}, until sure", 0.0], budgets[f"{name}, until sure", 2.0]
        assert at_once["mean_tokens"] == 4 and never["mean_tokens"] == 29
        # A temperature leaves the likeliest class.
        assert at_once["top_1"] == fixed[name, 4]["top_1"] and never["top_1"] == fixed[name, 16]["top_1"]
    # As it was calibrated, on all of the images: those on which thresholds were picked, and those that they were measured on.
    calibration = SpotViTConfig.from_pretrained(model).calibration
    chosen = [point["confidence"] for point in calibration["points"]].index(SpotViTConfig.from_pretrained(model).confidence)
    both = calibration["points"][chosen], calibration["evaluation"]["points"][chosen]
    saved = budgets["calibrated, until sure", "saved"]
    assert saved["mean_tokens"] == pytest.approx(np.mean([one["mean_tokens"] for one in both]))
    assert saved["top_1"] == pytest.approx(np.mean([one["accuracy"] for one in both]))
    report = (tmp_path / "out/README.md").read_text()
    assert "Budget per image: looks with 4, 9, 16 tokens" in report
    assert main([*words, "--confidence", "0", "0.25", "2", "saved"]) == 0  # it resumes: nothing is left to do
    assert main([*words, "--confidence", "0.3"]) == 2  # another run
    assert main(["card", "--model", str(model), "--results", str(tmp_path / "out")]) == 0
    for wrong in (["much"], ["0.5", "0.5"], ["-1"]):
        assert main([*words[:-1], str(tmp_path / "other"), "--confidence", *wrong]) == 2


def test_what_calibration_refuses(source, model, tmp_path):
    given = {"model": str(model), "dataset_name": source[1], "num_tokens": COUNTS}
    for wrong, message in (
        ({}, "got neither"),
        ({"accuracy": 50.0, "mean_tokens": 9.0}, "got both"),
        ({"accuracy": 0.0}, "in percent"),
        ({"mean_tokens": 3.0}, "at least those of the first look"),
        ({"mean_tokens": 9.0, "num_tokens": [9, 4]}, "ascending"),
        ({"mean_tokens": 9.0, "placement": "sobol"}, "`placement` must be one of isotropic"),
        ({"mean_tokens": 9.0, "batch_size": 0}, "`batch_size`"),
        ({"mean_tokens": 9.0, "model": "user/name"}, "`output_dir` is needed"),
        ({"mean_tokens": 9.0, "output_dir": str(model)}, "`output_dir`"),
    ):
        with pytest.raises(ValueError, match=message):
            run_calibration(CalibrateArguments(**{**given, **wrong}))
    assert SpotViTConfig.from_pretrained(model).num_tokens is None


def test_a_calibrated_copy(source, model, tmp_path):
    calibrate(model, source, placement="foveated_center", mean_tokens=9, output_dir=str(tmp_path / "copy"))
    copy = SpotViTForImageClassification.from_pretrained(tmp_path / "copy")
    assert copy.config.placement == "foveated_center" and copy.config.num_tokens == COUNTS
    assert SpotViTConfig.from_pretrained(model).num_tokens is None
    assert "## Budget per image" in (tmp_path / "copy/README.md").read_text()
    verified = verify_model(str(tmp_path / "copy"))
    assert verified.equal and "default/num_tokens" in verified.differences  # what it decides


def test_in_place_also_the_code_and_the_processor_are_renewed(source, model):
    """A directory of an earlier version, whose processor places 4 tokens: afterwards the model decides, as remote code too."""
    from spot_hf import SpotViTImageProcessorPil

    for name in ("budgets.py", "merging.py"):
        (model / name).unlink()
    for name in ("handler.py", "requirements.txt"):
        (model / name).unlink(missing_ok=True)
    (model / "modeling_spot_vit.py").write_text("# of an earlier version\n")
    SpotViTImageProcessorPil.from_pretrained(model, num_tokens=4, placement="isotropic").save_pretrained(model)
    calibrate(model, source)
    assert (model / "budgets.py").is_file() and "SpotViTForImageClassification" in (model / "modeling_spot_vit.py").read_text()
    assert (model / "handler.py").is_file() and (model / "requirements.txt").is_file()
    processor = SpotViTImageProcessorPil.from_pretrained(model)
    assert processor.num_tokens is None and processor.placement is None
    assert verify_model(str(model)).equal


def test_fine_tuning_drops_what_was_calibrated(source, model, tmp_path, capsys):
    """Also as the teacher, the model is asked for its full grid."""
    calibrate(model, source)
    words = ["train", "--model", str(model), "--dataset_name", source[1], "--dataset_split", "validation", "--num_tokens", "4"]
    words += ["--distill_weight", "1", "--feature_weight", "1", "--eval_strategy", "no", "--max_steps", "2"]
    words += ["--per_device_train_batch_size", "8", "--dataloader_num_workers", "0", "--report_to", "none"]
    assert main([*words, "--output_dir", str(tmp_path / "tuned")]) == 0
    assert "budgets per image are not kept" in capsys.readouterr().out
    config = SpotViTConfig.from_pretrained(tmp_path / "tuned")
    assert config.num_tokens is config.confidence is config.calibration is None


def test_parts_of_a_split_that_overlap_are_refused(source, model, tmp_path, capsys):
    given = {"model": str(model), "dataset_name": source[1], "num_tokens": COUNTS, "mean_tokens": 12.0, "num_workers": 0}
    for first, second in (
        ("validation[:20]", "validation[10:]"),
        ("validation", "validation[10:]"),
        ("validation", "validation"),
    ):
        with pytest.raises(ValueError, match="must have no images of `dataset_split`"):
            run_calibration(CalibrateArguments(**given, dataset_split=first, eval_dataset_split=second))
    run_calibration(CalibrateArguments(**given, dataset_split="validation[:20]", eval_dataset_split="validation[20:]"))
    words = ["train", "--model", str(model), "--dataset_name", source[1], "--num_tokens", "4", "--max_steps", "1"]
    words += ["--dataset_split", "validation[:30]", "--output_dir", str(tmp_path / "tuned"), "--report_to", "none"]
    assert main(words) == 2  # named, it is what was asked for, with a word
    words += ["--eval_dataset_split", "validation[20:]", "--dataloader_num_workers", "0"]
    assert main([*words, "--per_device_train_batch_size", "8"]) == 0
    assert "these accuracies are of training images" in capsys.readouterr().out


def test_saved_looks_are_of_the_models_that_have_them():
    arguments = EvaluationArguments(model=["m"], dataset_name="d", num_tokens=[4], confidence=["saved"], output_dir="o")
    calibrated = tiny_model(num_tokens=[4, 9], confidence=0.5).config
    (looks,) = [cell.looks for cell in cells_of(arguments, 36, calibrated) if cell.method == "calibrated"]
    assert looks == (4, 9)
    assert "calibrated" not in {cell.method for cell in cells_of(arguments, 36, tiny_model(num_tokens=4).config)}


def test_saved_looks_need_a_calibrated_model(source, tmp_path, capsys):
    words = [
        "evaluate",
        "--model",
        str(source[0]),
        "--dataset_name",
        source[1],
        "--num_tokens",
        "4",
        "9",
        "--confidence",
        "saved",
    ]
    assert main([*words, "--output_dir", str(tmp_path / "out")]) == 2
    assert "as `spot-hf calibrate` saves them" in capsys.readouterr().err and not (tmp_path / "out").exists()
