"""`spot-hf train --task semantic-segmentation`: masks move with their images; the job; what it refuses."""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from segmentation_data import CLASSES, IGNORED, save_scenes, scene
from tiny import tiny_model, tiny_processor

from spot_hf import SpotViTForImageClassification, SpotViTForSemanticSegmentation, verify_model
from spot_hf.cli import main
from spot_hf.data.masks import MaskClasses, check_masks, with_encoded_masks
from spot_hf.evaluation.confusion import confusion_matrices
from spot_hf.training.segmentation import SegmentationEvaluationImages, SegmentationTrainingImages


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    return save_scenes(tmp_path_factory.mktemp("scenes") / "scenes")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("model") / "classifier"
    torch.manual_seed(0)
    SpotViTForImageClassification(tiny_model().config).save_pretrained(directory)
    tiny_processor().save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def names(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("names") / "classes.json"
    file.write_text(json.dumps(CLASSES))
    return file


def command(classifier, scenes, names, output, *more: str) -> list[str]:
    return [
        "train", "--task", "semantic-segmentation", "--model", str(classifier), "--dataset_name", str(scenes),
        "--label_names", str(names), "--ignore_index", str(IGNORED), "--image_size", "48", "64", "--num_tokens", "12", "48",
        "--placement", "isotropic", "--window_scales", "cover", "--per_device_train_batch_size", "8",
        "--dataloader_num_workers", "0", "--output_dir", str(output), *more,
    ]  # fmt: skip


# --------------------------------------------------------------------------------------------------------------- images


def test_masks_move_with_their_images():
    """Each image is a picture of its own mask: what is drawn of one must be drawn of the other, to what resizing blurs."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Image()})
    masks = [np.asarray(scene(i)[1]) for i in range(3)]
    grey = [Image.fromarray(np.repeat((30 * mask)[..., None], 3, axis=2).astype(np.uint8)) for mask in masks]
    images = datasets.Dataset.from_dict(
        {"image": grey, "label": [Image.fromarray(mask) for mask in masks]},
        features=features,
        split=datasets.NamedSplit("train"),
    )
    training = SegmentationTrainingImages(
        with_encoded_masks(images, "label"),
        tiny_processor(size={"height": 48, "width": 64}, resample=0),
        classes=MaskClasses(3, IGNORED),
        crop_scale=(0.3, 1.0),
        flip=0.5,
    )
    flipped = set()
    for draw in range(12):
        found = training[draw]
        flipped.add(training.view(draw)[1].flipped)
        assert found["labels"].shape == (48, 64) and found["labels"].dtype == torch.int64
        assert torch.equal(30 * found["labels"], found["pixels"][0].long())
    assert flipped == {True, False}


def test_evaluation_images_have_their_masks():
    features = datasets.Features({"image": datasets.Image(decode=False), "label": datasets.Image()})
    image, mask = scene(0)
    rows = {"image": [{"bytes": b"no image", "path": None}, {"bytes": None, "path": None}], "label": [mask, mask]}
    from io import BytesIO

    buffer = BytesIO()
    image.save(buffer, "PNG")
    rows["image"][1]["bytes"] = buffer.getvalue()
    images = datasets.Dataset.from_dict(rows, features=features, split=datasets.NamedSplit("test"))
    images = with_encoded_masks(images.cast_column("image", datasets.Image()), "label")
    processor = tiny_processor(size={"height": 48, "width": 64})
    found = SegmentationEvaluationImages(images, processor, 12, "isotropic", 1.0, classes=MaskClasses(3, IGNORED))
    assert (found[0]["labels"] == IGNORED).all() and len(found[0]["failed"]) == 1
    np.testing.assert_array_equal(found[1]["labels"], np.asarray(mask))
    assert found[1]["coordinates"].shape == (12, 2) and found[1]["failed"] == []


def test_confusion_matrices_against_counting():
    generator = np.random.default_rng(0)
    predicted, labels = generator.integers(0, 3, (2, 5, 6)), generator.choice([0, 1, 2, IGNORED], (2, 5, 6))
    found = confusion_matrices(torch.from_numpy(predicted), torch.from_numpy(labels), 3, IGNORED)
    for i in range(2):
        for true in range(3):
            for given in range(3):
                assert found[i, true, given] == ((labels[i] == true) & (predicted[i] == given)).sum()


def test_classes_are_counted_where_nobody_names_them(scenes):
    images = with_encoded_masks(datasets.load_from_disk(str(scenes))["train"], "label")
    assert check_masks(images, None, IGNORED) == MaskClasses(3, IGNORED)
    assert check_masks(images, None, 255) == MaskClasses(IGNORED + 1, 255)


# -------------------------------------------------------------------------------------------------------------- the job


@pytest.fixture(scope="module")
def trained(classifier, scenes, names, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("trained") / "run"
    more = ("--num_train_epochs", "8", "--learning_rate", "5e-3", "--crop_scale", "0.6", "1", "--scores_per_side", "2")
    assert main(command(classifier, scenes, names, output, *more)) == 0
    return output


def test_it_learns(trained):
    results = json.loads((trained / "training.json").read_text())
    first = next(entry for entry in results["log"] if "eval_n48_mean_iou" in entry)
    last = results["evaluation"]
    # Colours are easy: from nothing to more than half of each class; on six scenes, so much is no chance.
    assert last["eval_n48_mean_iou"] > 55 and last["eval_n48_mean_iou"] > first["eval_n48_mean_iou"]
    assert last["eval_n48_pixel_accuracy"] > 80
    assert results["parameters"]["task"] == "semantic-segmentation" and results["parameters"]["classes"] == CLASSES
    assert "masks of 3 classes" in results["labels"]


def test_the_model_is_whole(trained):
    model = SpotViTForSemanticSegmentation.from_pretrained(trained)
    assert verify_model(str(trained)).equal
    assert list(model.config.id2label.values()) == CLASSES and model.config.semantic_loss_ignore_index == IGNORED
    assert model.config.image_height_width == (48, 64) and model.config.segmentation_scores_per_side == 2
    card = (trained / "README.md").read_text()
    assert "image-segmentation" in card and "mean IoU at 12 tokens" in card
    assert (trained / "training.png").stat().st_size > 5000


def test_a_finished_run_says_so_and_a_head_is_kept(trained, classifier, scenes, names, tmp_path, capsys):
    more = ("--num_train_epochs", "8", "--learning_rate", "5e-3", "--crop_scale", "0.6", "1", "--scores_per_side", "2")
    assert main(command(classifier, scenes, names, trained, *more)) == 0
    assert "this run is finished" in capsys.readouterr().out
    argv = command(trained, scenes, names, tmp_path / "on", "--max_steps", "1", "--eval_strategy", "no")
    assert main(argv) == 0
    before, after = (SpotViTForSemanticSegmentation.from_pretrained(one) for one in (trained, tmp_path / "on"))
    change = (before.decode_head.classifier.weight - after.decode_head.classifier.weight).abs().max()
    assert change < 1e-3  # a step of 1e-4 away, and not drawn anew


def test_the_loss_of_an_evaluation_knows_no_batches(trained):
    """Masks of which more or less is labelled: the mean over images of their pixels' means."""
    from spot_hf import SpotTrainingArguments
    from spot_hf.training.batches import TrainingBatch
    from spot_hf.training.segmentation import SegmentationTrainer

    model = SpotViTForSemanticSegmentation.from_pretrained(trained).eval()
    arguments = SpotTrainingArguments(str(trained.parent / "unused"), eval_strategy="no")
    trainer = SegmentationTrainer(model=model, args=arguments)
    images = torch.randn(3, 3, 48, 64, generator=torch.Generator().manual_seed(0))
    labels = torch.ones(3, 48, 64, dtype=torch.int64)
    labels[0, :40], labels[2] = IGNORED, IGNORED  # the last has no label at all
    with torch.no_grad():
        logits = model(images).logits
        together = trainer._cross_entropy(logits, TrainingBatch({}, labels))
        alone = [trainer._cross_entropy(logits[i : i + 1], TrainingBatch({}, labels[i : i + 1])) for i in range(3)]
    torch.testing.assert_close(together, torch.stack(alone).mean())
    assert alone[2] == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--task", "segmentation"], "`task` must be one of image-classification, semantic-segmentation"),
        (["--mixup", "0.5"], "`mixup` must be 0 for semantic segmentation; got 0.5"),
        (["--distill_weight", "1"], "`distill_weight` must be 0 for semantic segmentation"),
        (["--image_size", "48"], "`image_size` must be height and width in pixels; got [48]"),
        (["--scores_per_side", "0"], "`scores_per_side` must be at least 1; got 0"),
        (["--ignore_index", "255"], "has the number 7; accepted are 0 to 2, and 255"),
        (["--label_column_name", "image"], "`label_column_name` must be a column of its own"),
        (["--metric_for_best_model", "accurate"], "`metric_for_best_model` must be one of mean_iou"),
    ],
)
def test_bad_options(more, message, classifier, scenes, names, tmp_path, capsys):
    output = tmp_path / "run"
    assert main(command(classifier, scenes, names, output, *more)) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert message in errors[-1] and len([line for line in errors if line.startswith("spot-hf")]) == 1
    assert not output.exists()


def test_a_mask_of_another_size(classifier, names, tmp_path, capsys):
    scenes = save_scenes(tmp_path / "scenes", train=9, train_3=scene(3, 40, 64)[1])
    assert main(command(classifier, scenes, names, tmp_path / "run")) == 2
    error = capsys.readouterr().err
    assert "the mask of image 'train/3' has (height, width) (40, 64), its image (48, 64)" in error
    assert not (tmp_path / "run").exists()


def test_labels_that_are_no_masks(classifier, names, tmp_path, capsys):
    argv = command(classifier, "digits", names, tmp_path / "run")
    assert main(argv) == 2
    assert "must name a column of masks" in capsys.readouterr().err


def test_options_of_segmentation_are_refused_elsewhere(classifier, tmp_path, capsys):
    argv = ["train", "--model", str(classifier), "--dataset_name", "digits", "--output_dir", str(tmp_path / "run")]
    assert main([*argv, "--ignore_index", "11"]) == 2
    assert "`ignore_index` is for task='semantic-segmentation'; got 11" in capsys.readouterr().err
