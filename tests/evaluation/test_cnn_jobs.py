"""Oracle, evaluation and transfer of a SpotCNN: the same jobs as a SpotViT's, beside plain loops."""

import logging

import pytest
import torch
from coordinate_runs import COUNT
from PIL import Image
from tiny import random_coordinates, random_images
from tiny_networks import save_network, tiny_network
from transformers import AutoModelForImageClassification
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from spot_hf import SpotCNNModel, SpotOracle, convert_checkpoint, join_coordinates, load_coordinates, wrap_network
from spot_hf.cli import main
from spot_hf.evaluation.arguments import EvaluationArguments, TransferArguments
from spot_hf.evaluation.baselines import shrink, shrunken_size
from spot_hf.evaluation.run import run_evaluation
from spot_hf.evaluation.transfer import evaluate_transfer
from spot_hf.oracle.arguments import OracleArguments
from spot_hf.oracle.run import run_oracle
from spot_hf.placement import isotropic


@pytest.fixture(scope="module")
def cnn(tmp_path_factory) -> str:
    root = tmp_path_factory.mktemp("cnn")
    convert_checkpoint(save_network(root / "source"), root / "tiny-cnn")
    return str(root / "tiny-cnn")


@pytest.fixture(scope="module")
def run(cnn, made, tmp_path_factory) -> str:
    """Of the oracle, on the pictures of `made`, with 4 and with 9 tokens."""
    directory = str(tmp_path_factory.mktemp("run"))
    run_oracle(
        OracleArguments(
            model=cnn, dataset_name=made.pictures, output_dir=directory, num_tokens=[4, 9], steps=2, learning_rate=0.03,
            shard_size=5, batch_size=4, num_workers=0,
        )
    )  # fmt: skip
    return directory


# --------------------------------------------------------------------------------------------------------------- oracle


def test_the_oracle_descends_each_images_own_loss():
    model = wrap_network(tiny_network("convnext"), image_size=96)
    pixel_values, labels = random_images(3, 96, 96), torch.tensor([0, 3, 4])
    begin = isotropic(4)[None]
    result = SpotOracle(model, steps=4, learning_rate=0.02).optimize(pixel_values, labels, begin)
    assert (result.losses.min(1).values < result.losses[:, 0]).all()
    with torch.no_grad():
        for i in range(3):
            logits = model(pixel_values[i : i + 1], coordinates=result.coordinates[i : i + 1]).logits
            loss = torch.nn.functional.cross_entropy(logits, labels[i : i + 1])
            assert loss.item() == pytest.approx(result.losses[i].min().item(), rel=1e-4)
    alone = SpotOracle(model, steps=4, learning_rate=0.02).optimize(pixel_values[1:2], labels[1:2], begin)
    # An image's steps are its own: Adam divides by a gradient's size, which enlarges a float's rounding where that is small.
    assert (alone.trajectory[0] - result.trajectory[1]).abs().max() <= 1e-4


@torch.no_grad()
def test_without_a_classifier_features_are_what_counts():
    model = wrap_network(tiny_network(), image_size=96).base_model
    assert isinstance(model, SpotCNNModel)
    pixel_values = random_images(2, 96, 96)
    result = SpotOracle(model, objective="feature", steps=1).optimize(pixel_values, coordinates=random_coordinates(2, 9))
    assert result.predictions is None
    with pytest.raises(ValueError, match="`objective` must be 'feature'"):
        SpotOracle(model)
    with pytest.raises(ValueError, match="or a SpotCNN; got ResNet"):
        SpotOracle(tiny_network())


def test_a_coordinate_data_set_holds_what_the_model_says(cnn, made, run):
    rows = load_coordinates(run, "tiny-cnn_n4")
    assert len(rows) == COUNT
    model, processor = AutoModelForImageClassification.from_pretrained(cnn), AutoImageProcessor.from_pretrained(cnn)
    for row in join_coordinates(made.images, rows).select(range(0, COUNT, 3)):
        for column, prediction in (("coordinates", "prediction"), ("initial_coordinates", "initial_prediction")):
            inputs = processor(row["image"], coordinates=row[column], return_tensors="pt")
            with torch.no_grad():
                assert model(**inputs).logits.argmax().item() == row[prediction]


@pytest.mark.parametrize(
    "argv",
    [
        ["oracle", "--num_tokens", "4", "5"],
        ["evaluate", "--dataset_split", "test", "--num_tokens", "4", "5"],
    ],
    ids=lambda argv: argv[0],
)
def test_a_number_of_tokens_that_makes_no_mosaic_is_refused_at_once(argv, cnn, made, tmp_path, capsys):
    output = tmp_path / "output"
    argv = [*argv, "--model", cnn, "--dataset_name", made.pictures, "--output_dir", str(output)]
    assert main(argv) == 2 and not output.exists()
    printed = capsys.readouterr().err.strip()
    assert "`num_tokens` must make a mosaic of equal rows for a CNN" in printed and "\n" not in printed


@pytest.mark.parametrize("command", ["train", "train-placer", "pretrain", "benchmark"])
def test_what_only_a_vit_can_do_is_refused(command, cnn, made, tmp_path, capsys):
    output = tmp_path / "output"
    argv = [command, "--model", cnn, "--dataset_name", made.pictures, "--output_dir", str(output)]
    assert main(argv if command != "benchmark" else argv[:3]) == 2 and not output.exists()
    assert "must be a SpotViT here; " in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------------------- evaluation


def test_placements_and_baselines_beside_a_vits(cnn, made, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        results = run_evaluation(
            EvaluationArguments(
                model=[f"cnn={cnn}", f"vit={made.model}"], dataset_name=made.pictures, dataset_split="test",
                num_tokens=[4, 9], placement=["isotropic", "center"], oracle_steps=[1], output_dir=str(tmp_path / "out"),
                num_workers=0, batch_size=5,
            )
        )  # fmt: skip
    assert "cnn: without token_merging and token_merging_same_cost, which are for ViTs" in caplog.text
    assert results is not None
    methods = {name: {row.method for row in results.results if row.model == name} for name in ("cnn", "vit")}
    assert methods["cnn"] == {"full_grid", "isotropic", "center", "shrunken_image", "larger_windows"}
    assert methods["vit"] == methods["cnn"] | {"token_merging", "token_merging_same_cost"}
    network, processor = tiny_network(), AutoImageProcessor.from_pretrained(cnn)
    correct = {"full_grid": 0, "shrunken_image": 0}
    for i, file in enumerate(made.files):
        for name, one in (("full_grid", processor), ("shrunken_image", processor.resized(64, 64))):
            pixel_values = one(processor.open_image(str(file)), return_tensors="pt")["pixel_values"]
            with torch.no_grad():
                correct[name] += network(pixel_values).logits.argmax().item() == made.images[i]["label"]
    for name, count in correct.items():
        row = next(row for row in results.results if (row.model, row.method) == ("cnn", name))
        assert row.top_1 == pytest.approx(100 * count / COUNT)
    assert {row.steps for row in results.oracle if row.model == "cnn"} == {0, 1}


@torch.no_grad()
def test_a_smaller_image_is_the_networks_own(cnn):
    model = AutoModelForImageClassification.from_pretrained(cnn)
    height, width = shrunken_size(6, 96, 128, 32)
    pixel_values = random_images(2, height, width)
    smaller = shrink(model, height, width)
    # The same operations, on the same pixels.
    assert (smaller(pixel_values).logits - tiny_network()(pixel_values).logits).abs().max() <= 1e-5
    assert (smaller.config.image_size, model.config.image_size) == ([height, width], 96)


# ------------------------------------------------------------------------------------------------------------- transfer


def right(model_path: str, joined, column: str) -> list[bool]:
    """One image at a time."""
    model, processor = (one.from_pretrained(model_path) for one in (AutoModelForImageClassification, AutoImageProcessor))
    found = []
    for row in joined:
        image = row["image"] if isinstance(row["image"], Image.Image) else processor.open_image(row["image"])
        with torch.no_grad():
            logits = model(**processor(image, coordinates=row[column], return_tensors="pt")).logits
        found.append(logits.argmax().item() == row["label"])
    return found


@pytest.mark.parametrize("direction", ["vit to cnn", "cnn to vit"])
def test_positions_serve_the_other_kind_of_model(direction, cnn, made, run, tmp_path):
    model, directory, config = (cnn, made.run, "spot_n9") if direction == "vit to cnn" else (made.model, run, "tiny-cnn_n9")
    arguments = TransferArguments(
        model=model, coordinates=directory, config=config, dataset_name=made.pictures, output_dir=str(tmp_path)
    )
    result = evaluate_transfer(arguments)
    joined = join_coordinates(made.images, load_coordinates(directory, config))
    for name, column in (("initial", "initial_coordinates"), ("shared", "coordinates")):
        assert result.accuracy[name].value == pytest.approx(100 * sum(right(model, joined, column)) / COUNT)
    assert set(result.accuracy) == {"initial", "shared", "snapped", "control"} and (tmp_path / "transfer.md").is_file()
