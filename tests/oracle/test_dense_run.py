"""`spot-hf oracle` with a model that segments, over pictures with masks. Real processes, killed for real."""

import json
import multiprocessing
import random
import signal
from pathlib import Path

import numpy as np
import pytest
from conftest import shared
from oracle_runs import encoded_mask, files_of, mask, rows_of, save_images, save_scenes, save_segmenter
from test_oracle_run import command, run_in_child
from transformers import AutoModelForSemanticSegmentation
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from spot_hf import SpotOracle, join_coordinates, load_coordinates
from spot_hf.cli import main
from spot_hf.data.source import DatasetSource, load_images


NUM_IMAGES, BROKEN = 14, (3,)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    return save_scenes(tmp_path_factory.mktemp("scenes") / "scenes", NUM_IMAGES, BROKEN)


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory) -> Path:
    return save_segmenter(tmp_path_factory.mktemp("segmenter") / "tiny")


@pytest.fixture(scope="module")
def options(segmenter, scenes) -> dict[str, list[str]]:
    return {
        "--model": [str(segmenter)],
        "--dataset_name": [str(scenes)],
        "--num_tokens": ["4", "6"],
        "--placement": ["uniform"],
        "--window_scales": ["cover"],
        "--steps": ["2"],
        "--batch_size": ["3"],
        "--shard_size": ["4"],
        "--num_workers": ["0"],
        "--max_failed_share": ["0.1"],
    }


@pytest.fixture(scope="module")
def undisturbed(options, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("undisturbed") / "run"
    assert main(command(options, directory)) == 0
    return directory


def test_rows_are_those_of_a_plain_loop(undisturbed, segmenter, scenes):
    rows = load_coordinates(undisturbed, "tiny_n6")
    assert rows["image_index"] == [i for i in range(NUM_IMAGES) if i not in BROKEN]
    assert set(rows["label"]) == set(rows["prediction"]) == set(rows["initial_prediction"]) == {None}
    model = AutoModelForSemanticSegmentation.from_pretrained(segmenter)
    processor = AutoImageProcessor.from_pretrained(segmenter)
    oracle = SpotOracle(model, steps=2)
    images = load_images(DatasetSource(dataset_name=str(scenes)))
    for row in join_coordinates(images.select_columns(["image"]), rows):
        image = row["image"]
        inputs = processor(
            image, segmentation_maps=mask(row["image_index"], image.size), coordinates=row["initial_coordinates"],
            window_scales=row["initial_window_scales"], return_tensors="pt",
        )  # fmt: skip
        result = oracle.optimize(**inputs)
        # float32 through two frames, and a batch of another size; an adaptive optimizer's steps are of 3e-3.
        found = processor.to_image_frame(result.coordinates[0], image.size)
        np.testing.assert_allclose(row["coordinates"], found, rtol=0, atol=2e-5)
        np.testing.assert_allclose(row["losses"], result.losses[0], rtol=0, atol=1e-4)
        assert row["window_scales"] == pytest.approx([(5 * 4 / 6) ** 0.5] * 6, rel=1e-6)


def test_what_is_written_says_that_there_are_no_class_numbers(undisturbed):
    ledger = json.loads((undisturbed / "run.json").read_text())
    assert ledger["parameters"]["task"] == "semantic-segmentation"
    results = ledger["results"]["tiny_n4"]
    assert results["accuracy_before"] is None and results["num_labelled"] == 0
    rows = load_coordinates(undisturbed, "tiny_n4").with_format("numpy")
    np.testing.assert_allclose(results["loss_per_step"], np.mean(np.stack(rows["losses"]), axis=0), rtol=1e-5)
    card = (undisturbed / "README.md").read_text()
    for words in (
        "AutoModelForSemanticSegmentation", "post_process_semantic_segmentation", "`label` | int64 | empty",
        "mean cross-entropy of an image's labelled pixels", "a ceiling, not a method", "- image-segmentation",
        "spot-image-segmentation", "Mean IoU was not measured here",
    ):  # fmt: skip
        assert words in card, words
    assert "top-1" not in card and "image-classification" not in card


def test_the_example_on_the_card_runs(undisturbed, segmenter, scenes, tmp_path):
    """As it is written, with the places that the record knows by their names alone."""
    card = (undisturbed / "README.md").read_text()
    code = card.split("```python")[1].split("```")[0]
    for name, path in {"PATH/TO/tiny": segmenter, "PATH/TO/scenes": scenes, "DIR_OR_REPO": undisturbed}.items():
        assert f'"{name}"' in code, name
        code = code.replace(f'"{name}"', repr(str(path)))
    found: dict = {}
    exec(code, found)
    height, width = found["classes"].shape
    assert [width, height] == found["row"]["image_size"]


@pytest.mark.parametrize("objective", ["distill", "feature"])
def test_objectives_without_masks(options, tmp_path, objective):
    """Masks are not read: broken ones do not matter."""
    scenes = save_scenes(tmp_path / "scenes", 5, masks={2: b"broken"})
    changes = {"dataset_name": scenes, "objective": objective, "max_failed_share": 0}
    assert main(command(options, tmp_path / "run", **changes)) == 0
    unlabelled = command(options, tmp_path / "other", **changes, label_column_name="none")
    assert main(unlabelled) == 0
    assert rows_of(tmp_path / "run") == rows_of(tmp_path / "other")
    losses = np.array(load_coordinates(tmp_path / "run", "tiny_n6")["losses"])
    assert (losses.min(1) <= losses[:, 0]).all() and (losses.min(1) < losses[:, 0]).any()


@pytest.mark.parametrize("objective", ["label", "feature"])
def test_workers_and_streams_give_the_same_rows(options, undisturbed, tmp_path, objective):
    expected = undisturbed
    if objective != "label":
        expected = tmp_path / "expected"
        assert main(command(options, expected, objective=objective)) == 0
    assert main(command(options, tmp_path / "workers", num_workers=1, objective=objective)) == 0
    assert main(command(options, tmp_path / "stream", "--streaming", objective=objective)) == 0
    assert rows_of(tmp_path / "workers") == rows_of(tmp_path / "stream") == rows_of(expected)


def test_killed_it_ends_with_the_same_rows(options, undisturbed, tmp_path):
    """Each time as soon as so many shards are written; and at random instants."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["spot_hf.oracle.run", "spot_hf.cli", "test_oracle_run"])
    output, log, generator = tmp_path / "run", tmp_path / "log", random.Random(0)

    def start(kill_after=None):
        process = context.Process(target=run_in_child, args=(command(options, output), str(log), kill_after))
        process.start()
        return process

    for kill_after, shards in ((1, 1), (3, 4), (1, 5)):
        process = start(kill_after)
        process.join()
        assert process.exitcode == -signal.SIGKILL, log.read_text()[-3000:]
        assert len(list(output.glob("*/*.parquet"))) == shards
    for _ in range(4):
        process = start()
        process.join(timeout=generator.uniform(0, 2))
        process.kill()
        process.join()
    process = start()
    process.join()
    assert process.exitcode == 0, log.read_text()[-3000:]
    assert rows_of(output) == rows_of(undisturbed) and not list(output.rglob("*.tmp"))


BAD = {
    "a mask of another size": ({"masks": {2: encoded_mask(mask(2, (10, 10)))}}, {}, ["picture_2.png", "(10, 10)", "(32, 42)"]),
    "another number": ({"masks": {1: encoded_mask(np.full((32, 41), 7))}}, {}, ["picture_1.png", "number 7", "0 to 3", "9"]),
    "no mask": ({"masks": {1: b"nothing"}}, {}, ["picture_1.png", "cannot be read"]),
    "no labels": ({}, {"label_column_name": "none"}, ["`label_column_name` is needed by objective='label'"]),
    "among_labels": ({}, {"among_labels": True}, ["`among_labels`", "masks"]),
    "labels_by_number": ({}, {"labels_by_number": True}, ["`labels_by_number`", "masks"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_masks_are_one_line_and_nothing_is_written(options, tmp_path, capsys, case):
    data, changes, words = BAD[case]
    scenes = save_scenes(tmp_path / "scenes", 4, **data)
    assert main(command(options, tmp_path / "run", dataset_name=scenes, **changes)) == 2
    assert_one_line(capsys.readouterr().err, words)
    assert not (tmp_path / "run").exists()


def assert_one_line(errors: str, words: list[str]) -> None:
    lines = [line for line in errors.splitlines() if "error:" in line]
    assert len(lines) == 1 and "Traceback" not in errors, errors
    for word in words:
        assert word in lines[0], f"{word!r} is not in: {lines[0]}"


@pytest.mark.parametrize("objective", ["label", "distill"])
def test_class_numbers_for_a_model_that_segments(options, tmp_path, capsys, objective):
    images = save_images(tmp_path / "images", 4)
    assert main(command(options, tmp_path / "run", dataset_name=images, objective=objective)) == 2
    assert_one_line(capsys.readouterr().err, ["`label_column_name`", "column of masks", "'label' is ClassLabel"])
    assert not (tmp_path / "run").exists()


def test_masks_for_a_classifier(options, model, scenes, tmp_path, capsys):
    """Its objective `feature` finds positions on the same images; the labels that it could not use are left out."""
    changes = {"model": model, "objective": "feature"}
    assert main(command(options, tmp_path / "run", **changes)) == 2
    assert_one_line(capsys.readouterr().err, ["`label_column_name`", "column of class numbers"])
    assert not (tmp_path / "run").exists()
    assert main(command(options, tmp_path / "run", **changes, label_column_name="none")) == 0


def test_other_parameters_are_refused_and_a_finished_run_is_not_repeated(options, undisturbed, capsys):
    before = files_of(undisturbed)
    assert main(command(options, undisturbed)) == 0
    assert main(command(options, undisturbed, objective="distill")) == 2
    assert "objective" in capsys.readouterr().err
    assert files_of(undisturbed) == before


def test_show_draws_positions_without_labels(undisturbed, scenes, tmp_path):
    words = ["show", "--coordinates", str(undisturbed), "--config", "tiny_n6", "--image_id", "picture_1.png"]
    assert main([*words, "--dataset_name", str(scenes), "--output_dir", str(tmp_path)]) == 0
    assert (tmp_path / "picture_1_n6.png").stat().st_size > 0


def test_real_scenes(tmp_path):
    """CamVid, at its own size: masks of 11 classes."""
    camvid = shared("data/camvid")
    model = save_segmenter(tmp_path / "model", num_labels=11, ignore_index=11, image_size=(48, 64))
    words = ["oracle", "--model", str(model), "--dataset_name", str(camvid), "--num_tokens", "12", "--max_samples", "6"]
    assert main([*words, "--steps", "2", "--num_workers", "0", "--output_dir", str(tmp_path / "run")]) == 0
    losses = np.array(load_coordinates(tmp_path / "run")["losses"])
    assert len(losses) == 6 and (losses.min(1) < losses[:, 0]).all()
