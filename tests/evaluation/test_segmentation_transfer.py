"""What coordinates are worth to a model that segments, and a segmenter's to a classifier: beside a plain loop, and by hand."""

import io
import json

import numpy as np
import pytest
import torch
from oracle_runs import IGNORED, LABELS, NUM_CLASSES, encoded_mask, mask, picture, save_images, save_scenes, save_segmenter
from PIL import Image
from test_transfer import nearest_cells
from tiny import tiny_model, tiny_processor
from transformers import AutoModelForSemanticSegmentation
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from spot_hf import SpotViTForImageClassification, SpotViTModel, join_coordinates, load_coordinates
from spot_hf.cli import main
from spot_hf.data.source import DatasetSource, load_images
from spot_hf.evaluation.arguments import TransferArguments
from spot_hf.evaluation.confusion import bootstrap, pixel_accuracy_of
from spot_hf.evaluation.transfer import POSITIONS, evaluate_transfer
from spot_hf.oracle.arguments import OracleArguments
from spot_hf.oracle.run import run_oracle


COUNT = 6


def search(model, dataset_name, output_dir, **changes):
    arguments = {"objective": "label", "num_tokens": [6], "steps": 2, "learning_rate": 0.05, "num_workers": 0, **changes}
    run_oracle(OracleArguments(model=str(model), dataset_name=str(dataset_name), output_dir=str(output_dir), **arguments))
    return str(output_dir)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return tmp_path_factory.mktemp("dense")


@pytest.fixture(scope="module")
def scenes(places):
    return save_scenes(places / "scenes", COUNT)


@pytest.fixture(scope="module")
def segmenters(places):
    """Two; the second sees other pixels."""
    return [save_segmenter(places / "one"), save_segmenter(places / "two", seed=5, image_size=(48, 32))]


@pytest.fixture(scope="module")
def classifier(places):
    """Sees a crop."""
    processor = tiny_processor(size={"shortest_edge": 56}, do_center_crop=True, crop_size={"height": 48, "width": 48})
    model = tiny_model(seed=3)
    with torch.no_grad():  # random weights prefer one class: no more
        pictures = [Image.open(io.BytesIO(picture(i))) for i in range(8)]
        model.classifier.bias -= model(**processor(pictures, num_tokens=6, return_tensors="pt")).logits.mean(0)
    model.save_pretrained(places / "classifier")
    processor.save_pretrained(places / "classifier")
    return places / "classifier"


@pytest.fixture(scope="module")
def headless(places):
    tiny_model(seed=4, model_class=SpotViTModel).save_pretrained(places / "headless")
    tiny_processor().save_pretrained(places / "headless")
    return places / "headless"


@pytest.fixture(scope="module")
def coordinates(places, scenes, segmenters, classifier, headless):
    """By who found them, on the same scenes."""
    unlabelled = {"objective": "feature", "label_column_name": None}
    return {
        "one": search(segmenters[0], scenes, places / "by one", window_scales="cover"),
        "classifier": search(classifier, scenes, places / "by classifier", **unlabelled),
        "headless": search(headless, scenes, places / "by headless", **unlabelled, optimize_window_scales=True),
    }


def plain_transfer(model_path, joined, scales=None) -> dict[str, np.ndarray]:
    """Confusion matrices at each set of positions, counted pixel by pixel; one forward pass per image and set."""
    model = AutoModelForSemanticSegmentation.from_pretrained(model_path).eval()
    processor = AutoImageProcessor.from_pretrained(model_path)

    def positions(row, column):
        return processor(row["image"], coordinates=row[column], return_tensors="pt")["coordinates"][0]

    found = {name: [] for name in POSITIONS}
    for i, row in enumerate(joined):
        other = joined[(i + len(joined) // 2) % len(joined)]
        initial, shared = positions(row, "initial_coordinates"), positions(row, "coordinates")
        inputs = processor(row["image"], placement="grid", return_tensors="pt")
        size, image_size = inputs["pixel_values"].shape[-2:], (row["image"].height, row["image"].width)
        truth = mask(row["image_index"], row["image"].size)
        sets = {
            "initial": initial,
            "shared": shared,
            "snapped": torch.tensor(nearest_cells(shared.double().numpy(), *size, 8), dtype=torch.float32),
            "control": (initial + positions(other, "coordinates") - positions(other, "initial_coordinates")).clamp(0, 1),
        }
        for name, one in sets.items():
            own = row.get("initial_window_scales" if name == "initial" else "window_scales") if scales is None else scales
            placed = {} if own is None else {"window_scales": torch.tensor([own])}
            with torch.no_grad():
                outputs = model(inputs["pixel_values"], coordinates=one[None], **placed)
            predicted = processor.post_process_semantic_segmentation(outputs, [image_size])[0].numpy()
            matrix = np.zeros((NUM_CLASSES, NUM_CLASSES), dtype=int)
            for true, guess in zip(truth.ravel(), predicted.ravel(), strict=True):
                if true != IGNORED:
                    matrix[true, guess] += 1
            found[name].append(matrix)
    return {name: np.stack(matrices) for name, matrices in found.items()}


def plain_mean_iou(matrices) -> float:
    total, ious = matrices.sum(0), []
    for one in range(NUM_CLASSES):
        union = total[one].sum() + total[:, one].sum() - total[one, one]
        if union:
            ious.append(total[one, one] / union)
    return 100 * sum(ious) / len(ious)


def transfer(model, coordinates, dataset_name, **options):
    arguments = {"model": str(model), "coordinates": coordinates, "dataset_name": str(dataset_name), **options}
    return evaluate_transfer(TransferArguments(**arguments))


@pytest.mark.parametrize("user", [0, 1])
@pytest.mark.parametrize("finder", ["one", "classifier", "headless"])
def test_transfer_is_a_plain_loop(coordinates, segmenters, scenes, tmp_path, finder, user):
    where = coordinates[finder]
    result = transfer(segmenters[user], where, scenes, batch_size=4, output_dir=str(tmp_path / "out"))
    images = load_images(DatasetSource(dataset_name=str(scenes)))
    matrices = plain_transfer(segmenters[user], join_coordinates(images, load_coordinates(where)))
    assert len({one.tobytes() for one in matrices.values()}) == len(POSITIONS), "the sets make no difference"
    for name, one in matrices.items():
        # A pixel in 7,000 whose two best scores are equal up to float32's rounding may go either way.
        assert result.figures["mean_iou"][name].value == pytest.approx(plain_mean_iou(one), abs=0.05)
        accuracy = 100 * one.trace(axis1=1, axis2=2).sum() / one.sum()
        assert result.figures["pixel_accuracy"][name].value == pytest.approx(accuracy, abs=0.05)
        if name != "initial":
            difference = result.difference_to_initial["mean_iou"][name]
            assert difference.value == pytest.approx(plain_mean_iou(one) - plain_mean_iou(matrices["initial"]), abs=0.1)
            assert difference.low <= difference.value <= difference.high
    control = plain_mean_iou(matrices["shared"]) - plain_mean_iou(matrices["control"])
    assert result.difference_to_control["mean_iou"].value == pytest.approx(control, abs=0.1)
    assert result.num_images == COUNT and result.num_tokens == 6
    assert json.loads((tmp_path / "out" / "transfer.json").read_text()) == result.to_json()
    table = (tmp_path / "out" / "transfer.md").read_text()
    assert f"| shared | {result.figures['mean_iou']['shared']} |" in table and all(
        f"\n| {name} |" in table for name in POSITIONS
    )


def test_batches_of_another_size_and_the_first_images(coordinates, segmenters, scenes):
    results = [transfer(segmenters[1], coordinates["one"], scenes, max_samples=4, batch_size=size) for size in (1, 3)]
    assert results[0].num_images == 4
    assert [one.figures["mean_iou"]["shared"].value for one in results] == [
        pytest.approx(results[0].figures["mean_iou"]["shared"].value, abs=0.05)
    ] * 2  # a pixel at a tie, as above


@pytest.mark.parametrize(("policy", "scale"), [("1.5", 1.5), ("cover", (48 * 32 / 64 / 6) ** 0.5)])
def test_windows_of_a_size_of_their_own(coordinates, segmenters, scenes, policy, scale):
    result = transfer(segmenters[1], coordinates["one"], scenes, window_scales=policy)
    joined = join_coordinates(load_images(DatasetSource(dataset_name=str(scenes))), load_coordinates(coordinates["one"]))
    matrices = plain_transfer(segmenters[1], joined, scales=[scale] * 6)
    for name, one in matrices.items():
        assert result.figures["mean_iou"][name].value == pytest.approx(plain_mean_iou(one), abs=0.05)
    assert result.window_scales == policy and f"window scales {policy}" in result.table()


def test_a_classifier_at_the_positions_that_a_segmenter_found(segmenters, classifier, tmp_path):
    """On images with class labels, which the segmenter does not read."""
    images = save_images(tmp_path / "images", 8)
    found = search(segmenters[0], images, tmp_path / "run", objective="distill", label_column_name=None)
    assert set(load_coordinates(found)["label"]) == {None}
    result = transfer(classifier, found, images, labels_by_number=True)
    rows = join_coordinates(load_images(DatasetSource(dataset_name=str(images))), load_coordinates(found))
    assert rows["label"] == [i % len(LABELS) for i in range(8)]
    model = SpotViTForImageClassification.from_pretrained(classifier)
    processor = AutoImageProcessor.from_pretrained(classifier)
    predicted = {"initial": [], "shared": []}
    for row in rows:
        for name, column in (("initial", "initial_coordinates"), ("shared", "coordinates")):
            inputs = processor(row["image"], coordinates=row[column], return_tensors="pt")
            with torch.no_grad():
                predicted[name].append(model(**inputs).logits.argmax().item())
    assert predicted["initial"] != predicted["shared"] and len(set(predicted["shared"])) > 1
    for name, classes in predicted.items():
        assert result.accuracy[name].value == pytest.approx(100 * np.mean(np.array(classes) == rows["label"]))


def test_a_bootstrap_by_hand():
    """Two images, one right everywhere and one nowhere: of the draws, a quarter have the one alone, a quarter the other."""
    right, wrong = np.array([[4, 0], [0, 4]]), np.array([[0, 4], [4, 0]])
    estimate = bootstrap(np.stack([right, wrong]), measure=pixel_accuracy_of)
    assert (estimate.value, estimate.low, estimate.high) == (50, 0, 100)
    difference = bootstrap(np.stack([right, right]), np.stack([right, wrong]), measure=pixel_accuracy_of)
    assert (difference.value, difference.low, difference.high) == (50, 0, 100)
    assert bootstrap(np.stack([right, wrong])).value == pytest.approx(100 / 3)  # of 8 pixels of a class or taken for it, 4 - 0


def test_bad_input_is_one_line_and_nothing_is_written(coordinates, segmenters, classifier, scenes, tmp_path, capsys):
    images = save_images(tmp_path / "images", 4)
    of_images = search(classifier, images, tmp_path / "by classifier", objective="feature", label_column_name=None)
    masks = {2: encoded_mask(mask(2, (10, 10)))}
    other = save_scenes(tmp_path / "other", COUNT, masks=masks)
    foreign = save_scenes(tmp_path / "foreign", COUNT, masks={1: encoded_mask(np.full((32, 41), 7))})
    cases = [
        ({"dataset_name": other}, ["picture_2.png", "(10, 10)"]),
        ({"dataset_name": foreign}, ["picture_1.png", "number 7", "0 to 3"]),
        ({"dataset_name": images, "coordinates": of_images}, ["`label_column_name`", "column of masks", "ClassLabel"]),
        ({"model": classifier}, ["`label_column_name`", "column of class numbers"]),
        ({"among_labels": True}, ["`among_labels`", "masks"]),
        ({"window_scales": "wide"}, ["`window_scales`", "'wide'"]),
        ({"label_column_name": "none"}, ["`label_column_name` is needed"]),
    ]
    for changes, words in cases:
        options = {"model": segmenters[0], "coordinates": coordinates["one"], "dataset_name": scenes, **changes}
        line = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        assert main(["evaluate", *line, "--output_dir", str(tmp_path / "out")]) == 2, changes
        errors = [one for one in capsys.readouterr().err.splitlines() if "error:" in one]
        assert len(errors) == 1, changes
        assert all(word in errors[0] for word in words), errors
        assert not (tmp_path / "out").exists()
