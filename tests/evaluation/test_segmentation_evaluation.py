"""`spot-hf evaluate` of models that segment: figures against counting by hand, baselines, resume, what is refused."""

import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from segmentation_data import CLASSES, IGNORED, save_scenes, scene
from tiny import tiny_model, tiny_processor

from spot_hf import SpotViTForSemanticSegmentation
from spot_hf.cli import main
from spot_hf.evaluation.confusion import bootstrap, mean_iou_of, segmentation_scores


LABELS = {"num_labels": 3, "id2label": dict(enumerate(CLASSES)), "label2id": {name: i for i, name in enumerate(CLASSES)}}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    return save_scenes(tmp_path_factory.mktemp("scenes") / "scenes", train=2, validation=7)


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("model") / "segmenter"
    model = tiny_model(
        model_class=SpotViTForSemanticSegmentation,
        image_size=[48, 64],
        semantic_loss_ignore_index=IGNORED,
        segmentation_scores_per_side=2,
        **LABELS,
    )
    processor = tiny_processor(size={"height": 48, "width": 64})
    with torch.no_grad():  # so that each class is the likeliest somewhere
        logits = model(**processor(scene(0)[0], return_tensors="pt")).logits.view(1, 3, -1)
        model.decode_head.classifier.bias -= logits.mean(-1).repeat_interleave(4)
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory


def command(segmenter, scenes, output, *more: str) -> list[str]:
    return [
        "evaluate", "--model", str(segmenter), "--dataset_name", str(scenes), "--dataset_split", "validation",
        "--num_tokens", "12", "--placement", "isotropic", "uniform", "--num_seeds", "2", "--batch_size", "3",
        "--shard_size", "4", "--num_workers", "0", "--output_dir", str(output), *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def evaluated(segmenter, scenes, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("evaluation") / "run"
    assert main(command(segmenter, scenes, output)) == 0
    return output


def rows_of(output: Path) -> dict[tuple[str, int], dict]:
    results = json.loads((output / "results.json").read_text())["results"]
    return {(row["method"], row["num_tokens"]): row for row in results}


def test_figures_against_counting(evaluated, segmenter, scenes):
    """Mean IoU of the full grid, and of isotropic tokens, from the model's own maps."""
    model = SpotViTForSemanticSegmentation.from_pretrained(segmenter).eval()
    processor = tiny_processor(size={"height": 48, "width": 64})
    rows = rows_of(evaluated)
    for method, placed in {"full_grid": {}, "isotropic": {"num_tokens": 12, "placement": "isotropic"}}.items():
        intersection, union, right, total = np.zeros(3), np.zeros(3), 0, 0
        for row in datasets.load_from_disk(str(scenes))["validation"]:
            inputs = processor(row["image"], return_tensors="pt", **placed)
            with torch.no_grad():
                (found,) = processor.post_process_semantic_segmentation(model(**inputs), [(48, 64)])
            found, mask = found.numpy(), np.asarray(row["label"])
            counted = mask != IGNORED
            for label in range(3):
                intersection[label] += ((found == label) & (mask == label) & counted).sum()
                union[label] += (((found == label) | (mask == label)) & counted).sum()
            right, total = right + ((found == mask) & counted).sum(), total + counted.sum()
        row = rows[method, 12 if placed else 48]
        # Batches of another size round otherwise: a few pixels of 20,000 whose two best scores are equal.
        assert row["mean_iou"]["value"] == pytest.approx(100 * np.nanmean(intersection / union), abs=0.1)
        assert row["pixel_accuracy"] == pytest.approx(100 * right / total, abs=0.1)
        assert row["mean_iou"]["low"] <= row["mean_iou"]["value"] <= row["mean_iou"]["high"]
        assert len(row["per_class"]) == 3


def test_methods_and_files(evaluated):
    rows = rows_of(evaluated)
    assert {method for method, _ in rows} == {"full_grid", "isotropic", "uniform", "shrunken_image", "larger_windows"}
    assert rows["full_grid", 48]["share_of_full_grid"] == pytest.approx(100)
    assert rows["uniform", 12]["num_seeds"] == 2 and rows["uniform", 12]["mean_iou_spread"] > 0
    assert "difference_to_shrunken" in rows["isotropic", 12] and "difference_to_shrunken" not in rows["full_grid", 48]
    readme = (evaluated / "README.md").read_text()
    assert "| isotropic |" in readme and "IoU of each class" in readme and "ground | red | blue" in readme
    for name in ("segmenter_tokens.png", "segmenter_predictions_n12.png", "segmenter_predictions_n48.png"):
        assert (evaluated / name).stat().st_size > 5000 and name in readme


def test_the_oracle_with_the_masks(segmenter, scenes, tmp_path):
    """More steps, a lower loss: each image keeps its best iterate. Mean IoU is not what it descends."""
    more = ("--oracle_steps", "2", "--oracle_learning_rate", "1e-2", "--placement", "isotropic", "--baselines", "full_grid")
    assert main(command(segmenter, scenes, tmp_path / "run", *more)) == 0
    model = shutil.copytree(segmenter, tmp_path / "segmenter")
    assert main(["card", "--model", str(model), "--results", str(tmp_path / "run")]) == 0
    names = {one.metric_name for one in ModelCard.load(model / "README.md").data.eval_results}
    assert names == {"mean IoU, full_grid, 48 tokens", "mean IoU, isotropic, 12 tokens"}  # without the oracle
    results = json.loads((tmp_path / "run" / "results.json").read_text())["results"]
    losses = {row["steps"]: row["loss"] for row in results if row["method"] == "oracle"}
    assert losses[2] < losses[0] and all(row["uses_label"] for row in results if row["method"] == "oracle")
    assert "a ceiling, not a method" in (tmp_path / "run" / "README.md").read_text()


def test_baselines_see_all_cells_whatever_the_config_says(evaluated, segmenter, scenes, tmp_path):
    """A model that places tokens by itself is not its own full grid."""
    model = SpotViTForSemanticSegmentation.from_pretrained(segmenter, num_tokens=2)
    model.save_pretrained(tmp_path / "segmenter")
    tiny_processor(size={"height": 48, "width": 64}).save_pretrained(tmp_path / "segmenter")
    assert main(command(tmp_path / "segmenter", scenes, tmp_path / "run")) == 0
    first, second = rows_of(evaluated), rows_of(tmp_path / "run")
    for key in (("full_grid", 48), ("shrunken_image", 12)):
        assert second[key]["mean_iou"] == first[key]["mean_iou"]


def test_models_of_other_classes(segmenter, scenes, tmp_path, capsys):
    other = tmp_path / "other"
    tiny_model(model_class=SpotViTForSemanticSegmentation, semantic_loss_ignore_index=IGNORED).save_pretrained(other)
    tiny_processor(size={"height": 48, "width": 64}).save_pretrained(other)
    assert main(command(segmenter, scenes, tmp_path / "run", "--model", str(segmenter), str(other))) == 2
    assert "`model` must be models of the same classes" in capsys.readouterr().err


def test_results_on_a_card(evaluated, segmenter, tmp_path):
    model = shutil.copytree(segmenter, tmp_path / "segmenter")
    assert main(["card", "--model", str(model), "--results", str(evaluated)]) == 0
    card = ModelCard.load(model / "README.md")
    measured = {one.metric_name: one.metric_value for one in card.data.eval_results}
    expected = rows_of(evaluated)["isotropic", 12]["mean_iou"]["value"]
    assert measured["mean IoU, isotropic, 12 tokens"] == pytest.approx(expected, abs=1e-3)
    assert "## Mean IoU by tokens and placement" in card.text and "| isotropic |" in card.text


def test_a_killed_run_goes_on(evaluated, segmenter, scenes, tmp_path):
    """Half of the ledger is there, and of one line a part: the results are the same."""
    output = tmp_path / "run"
    output.mkdir()
    (output / "run.json").write_bytes((evaluated / "run.json").read_bytes())
    lines = (evaluated / "lines-0.jsonl").read_bytes().splitlines(keepends=True)
    (output / "lines-0.jsonl").write_bytes(b"".join(lines[: len(lines) // 2]) + lines[len(lines) // 2][:40])
    assert main(command(segmenter, scenes, output)) == 0
    timed = ("images_per_second", "speed_up", "peak_mib")
    first, second = (
        {key: {name: value for name, value in row.items() if name not in timed} for key, row in rows_of(one).items()}
        for one in (evaluated, output)
    )
    assert first == second


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--baselines", "token_merging"], "`baselines` must be of full_grid, shrunken_image, larger_windows"),
        (["--num_tokens", "6", "12", "--confidence", "0.8"], "`confidence` is not for models that segment"),
        (["--knn_dataset_split", "train"], "`knn_dataset_split` is not for models that segment"),
        (["--image_size", "64"], "`image_size` is not for models that segment"),
        (["--label_column_name", "image"], "`label_column_name` must be a column of its own"),
    ],
)
def test_what_is_refused(more, message, segmenter, scenes, tmp_path, capsys):
    assert main(command(segmenter, scenes, tmp_path / "run", *more)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_masks_of_other_classes(segmenter, tmp_path, capsys):
    scenes = save_scenes(
        tmp_path / "scenes", train=1, validation=3, validation_1=scene(9)[1].point(lambda one: 5 if one == 1 else one)
    )
    assert main(command(segmenter, scenes, tmp_path / "run")) == 2
    assert "the mask of image 'validation/1' has the number 5; accepted are 0 to 2, and 7" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_models_of_both_tasks(segmenter, scenes, tmp_path, capsys):
    other = tmp_path / "classifier"
    tiny_model().save_pretrained(other)
    tiny_processor().save_pretrained(other)
    assert main(command(segmenter, scenes, tmp_path / "run", "--model", str(segmenter), str(other))) == 2
    assert "`model` must be all of one task; only segmenter of segmenter, classifier segments" in capsys.readouterr().err


# -------------------------------------------------------------------------------------------------------------- figures


def test_mean_iou_by_hand():
    # Class 0: 3 right, 1 more true, 0 more given. Class 1: 4 right, 1 more given. Class 2 never occurs.
    confusion = np.array([[[3, 1, 0], [0, 4, 0], [0, 0, 0]]])
    scores = segmentation_scores(confusion)
    assert scores.mean_iou == pytest.approx(100 * (3 / 4 + 4 / 5) / 2)
    assert scores.pixel_accuracy == pytest.approx(100 * 7 / 8)
    assert scores.per_class[:2] == pytest.approx([75, 80]) and np.isnan(scores.per_class[2])
    assert mean_iou_of(confusion[0]) == pytest.approx(scores.mean_iou)


def test_bootstrap():
    """Images that are all alike leave no doubt; a difference of equals is none; and an interval holds its value."""
    alike = np.repeat(np.array([[[5, 1], [2, 8]]]), 20, axis=0)
    estimate = bootstrap(alike)
    assert estimate.low == pytest.approx(estimate.value) and estimate.high == pytest.approx(estimate.value)
    generator = np.random.default_rng(0)
    various = generator.integers(1, 50, (30, 4, 4))
    estimate, nothing = bootstrap(various), bootstrap(various, various)
    assert estimate.low < estimate.value < estimate.high
    assert (nothing.value, nothing.low, nothing.high) == (0, 0, 0)
    better = various + 20 * np.eye(4, dtype=int)
    assert bootstrap(better, various).low > 0
