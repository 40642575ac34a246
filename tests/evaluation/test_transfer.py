"""What coordinates are worth to another model: beside a plain loop."""

import json
import logging

import numpy as np
import pytest
import torch
from coordinate_runs import COUNT
from tiny import tiny_model, tiny_processor
from transformers import AutoModelForImageClassification
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from spot_hf import SpotViTModel, join_coordinates, load_coordinates
from spot_hf.evaluation.arguments import TransferArguments
from spot_hf.evaluation.intervals import Accuracy
from spot_hf.evaluation.transfer import TransferResult, evaluate_transfer, snap_to_grid
from spot_hf.oracle.arguments import OracleArguments
from spot_hf.oracle.run import run_oracle


def nearest_cells(positions: np.ndarray, height: int, width: int, patch_size: int) -> np.ndarray:
    """Of `(num_tokens, 2)` relative positions, by looking at every cell: the centre of the nearest in pixels."""
    cells = [
        ((column + 0.5) * patch_size / width, (row + 0.5) * patch_size / height)
        for row in range(height // patch_size)
        for column in range(width // patch_size)
    ]
    return np.array(
        [min(cells, key=lambda cell: ((cell[0] - x) * width) ** 2 + ((cell[1] - y) * height) ** 2) for x, y in positions]
    )


@pytest.mark.parametrize(("height", "width", "patch_size"), [(48, 48, 8), (48, 96, 16), (50, 61, 7), (224, 224, 16)])
def test_snapping_finds_the_nearest_cell(height, width, patch_size):
    positions = torch.rand(3, 40, 2, generator=torch.Generator().manual_seed(0))
    positions[0, :4] = torch.tensor([[0.0, 0.0], [1.0, 1.0], [1.0, 0.0], [0.5 / width, 1.0]])
    positions[0, 4] = torch.tensor([-0.3, 1.2])  # outside another model's crop
    snapped = snap_to_grid(positions, torch.zeros(3, 3, height, width), patch_size)
    assert snapped.dtype == torch.float32 and snapped.shape == positions.shape
    for found, before in zip(snapped, positions, strict=True):
        # The same cells, whose centres are rounded to float32.
        expected = nearest_cells(before.double().numpy(), height, width, patch_size)
        np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-6)
    assert torch.equal(snap_to_grid(snapped, torch.zeros(3, 3, height, width), patch_size), snapped)


def plain_transfer(model_path: str, joined, classes: list[int] | None = None) -> dict[str, np.ndarray]:
    """Which images are right at each set of positions, one forward pass per image and set."""
    model = AutoModelForImageClassification.from_pretrained(model_path).eval()
    processor = AutoImageProcessor.from_pretrained(model_path)
    right = {"initial": [], "shared": [], "snapped": [], "control": []}

    def positions(row, column):
        return processor(row["image"], coordinates=row[column], return_tensors="pt")["coordinates"]

    for i, row in enumerate(joined):
        for name in right:
            stored = row["initial_coordinates" if name in ("initial", "control") else "coordinates"]
            inputs = processor(row["image"], coordinates=stored, return_tensors="pt")
            if name == "snapped":
                size = inputs["pixel_values"].shape[-2:]
                cells = nearest_cells(inputs["coordinates"][0].double().numpy(), *size, model.config.patch_size)
                inputs["coordinates"] = torch.tensor(cells, dtype=torch.float32)[None]
            if name == "control":
                other = joined[(i + len(joined) // 2) % len(joined)]
                moves = positions(other, "coordinates") - positions(other, "initial_coordinates")
                inputs["coordinates"] = (inputs["coordinates"] + moves).clamp(0, 1)
            if name != "initial" and "window_scales" in row:
                inputs["window_scales"] = torch.tensor([row["window_scales"]])
            with torch.no_grad():
                logits = model(**inputs).logits[0]
                known = range(len(logits)) if classes is None else classes
                right[name].append(max(known, key=lambda label: logits[label].item()) == row["label"])
    return {name: np.array(values) for name, values in right.items()}


def transfer(model, coordinates, dataset_name, **options) -> TransferResult:
    return evaluate_transfer(
        TransferArguments(model=str(model), coordinates=str(coordinates), dataset_name=dataset_name, **options)
    )


@pytest.mark.parametrize(
    ("kind", "which"), [("made", "own"), ("made", "other"), ("nameless", "own")], ids=["own", "other", "window scales"]
)
def test_transfer_is_a_plain_loop(made, kind, which, other_model, tmp_path, request, caplog):
    it = request.getfixturevalue(kind)
    caplog.clear()  # what making it has logged
    caplog.set_level(logging.INFO, logger="spot_hf")
    model = made.model if which == "own" else other_model
    config = made.config if kind == "made" else None
    result = transfer(model, it.run, it.pictures, config=config, batch_size=5, output_dir=str(tmp_path / "out"))
    joined = join_coordinates(it.images, it.rows)
    right = plain_transfer(model, joined)
    assert len({tuple(values) for values in right.values()}) > 1, "the sets make no difference"
    for name, values in right.items():
        assert result.accuracy[name].value == pytest.approx(100 * values.mean())
        assert result.accuracy[name] == Accuracy.of(values)  # Wilson's interval, by its own test
    control = result.difference_to_control
    assert control.value == pytest.approx(100 * (right["shared"].mean() - right["control"].mean()))
    for name in ("shared", "snapped", "control"):
        difference = result.difference_to_initial[name]
        assert difference.gained == (right[name] & ~right["initial"]).sum()
        assert difference.lost == (right["initial"] & ~right[name]).sum()
        assert difference.value == pytest.approx(100 * (right[name].mean() - right["initial"].mean()))
        assert difference.low <= difference.value <= difference.high
    if which == "own":  # what the run itself says
        for name, column in (("initial", "initial_prediction"), ("shared", "prediction")):
            truth = np.array(joined[column]) == np.array(joined["label"])
            assert result.accuracy[name].value == pytest.approx(100 * truth.mean())
    assert result.num_images == COUNT and result.num_tokens == len(joined[0]["coordinates"])
    assert result.config == it.rows.info.config_name and result.split == str(it.rows.split)
    assert not any("/" in getattr(result, name) for name in ("model", "dataset", "coordinates")), "a path of this machine"
    assert json.loads((tmp_path / "out" / "transfer.json").read_text()) == result.to_json()
    table = (tmp_path / "out" / "transfer.md").read_text()
    assert table.rstrip() in caplog.messages and f"| shared | {result.accuracy['shared'].value:.1f} (" in table
    assert all(f"\n| {name} |" in table for name in right)


def test_transfer_of_the_first_images(made):
    result = transfer(made.model, made.run, made.pictures, config=made.config, max_samples=5, batch_size=2)
    right = plain_transfer(made.model, join_coordinates(made.images.select(range(5)), made.rows))
    assert result.num_images == 5
    assert {name: one.value for name, one in result.accuracy.items()} == {
        name: pytest.approx(100 * values.mean()) for name, values in right.items()
    }
    # Batches of another size: the same counts.
    again = transfer(made.model, made.run, made.pictures, config=made.config, max_samples=5, batch_size=64)
    assert again == result


def test_oracle_and_transfer_among_the_classes_that_occur(made, tmp_path):
    """Five, of a model that knows fifteen."""
    model, classes = str(tmp_path / "fifteen"), [0, 1, 2, 3, 4]
    tiny_model(num_labels=15).save_pretrained(model)
    tiny_processor().save_pretrained(model)
    arguments = OracleArguments(
        model=model, dataset_name=made.pictures, num_tokens=[9], steps=1, learning_rate=0.03, among_labels=True,
        num_workers=0, output_dir=str(tmp_path / "run"),
    )  # fmt: skip
    run_oracle(arguments)
    joined = join_coordinates(made.images, load_coordinates(tmp_path / "run"))
    spot, processor = AutoModelForImageClassification.from_pretrained(model), AutoImageProcessor.from_pretrained(model)
    for row in joined:
        inputs = processor(row["image"], coordinates=row["initial_coordinates"], return_tensors="pt")
        with torch.no_grad():
            logits = spot(**inputs).logits[:, classes]
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor([row["label"]])).item()
        assert row["losses"][0] == pytest.approx(loss, rel=1e-4)  # of float32, through batches of another size
        assert row["initial_prediction"] == logits.argmax().item() and row["prediction"] in classes

    result = transfer(model, tmp_path / "run", made.pictures, among_labels=True)
    right, all_classes = plain_transfer(model, joined, classes), plain_transfer(model, joined)
    assert {name: one.value for name, one in result.accuracy.items()} == {
        name: pytest.approx(100 * values.mean()) for name, values in right.items()
    }
    assert any((right[name] != all_classes[name]).any() for name in right), "no image makes a difference"


def test_transfer_with_bad_input(made, nameless, tmp_path):
    tiny_model(model_class=SpotViTModel).save_pretrained(tmp_path / "headless")
    tiny_processor().save_pretrained(tmp_path / "headless")
    cases = [
        ({"batch_size": 0}, ValueError, "`batch_size` must be at least 1; got 0"),
        ({"max_samples": 0}, ValueError, "`max_samples` must be at least 1; got 0"),
        ({"model": str(tmp_path / "absent")}, OSError, "`model` must be a directory or a Hub id"),
        ({"model": str(tmp_path / "headless")}, ValueError, "has no classifier"),
        ({"coordinates": str(tmp_path)}, OSError, "holds no coordinate data set"),
        ({"config": None}, ValueError, "`config` must be one of spot_n4, spot_n9"),
        ({"split": "train"}, ValueError, "`split` must be one of test"),
        ({"dataset_split": "train"}, ValueError, "`dataset_split` must be one of test; got 'train'"),
        ({"label_column_name": "class"}, ValueError, "`label_column_name` must be one of image, label; got 'class'"),
        ({"dataset_name": nameless.pictures, "dataset_split": "validation"}, ValueError, "hold none of the 12 images"),
    ]
    for changes, kind, message in cases:
        arguments = {"model": made.model, "coordinates": made.run, "dataset_name": made.pictures, "config": made.config}
        with pytest.raises(kind, match=message):
            transfer(**{**arguments, **changes}, output_dir=str(tmp_path / "out"))
        assert not (tmp_path / "out").exists(), changes
