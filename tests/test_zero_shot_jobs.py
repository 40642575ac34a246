"""Jobs with a zero-shot model: as with any classifier, among texts; by default the names of the data set's classes."""

import json
import re
import shutil
from pathlib import Path

import datasets
import pytest
import torch
from oracle_runs import LABELS, save_images
from PIL import Image
from tiny import nearly, save_pictures
from tiny_texts import save_source

from spot_hf import (
    EvaluationArguments,
    OracleArguments,
    SpotOracle,
    SpotViTForImageClassification,
    SpotViTForZeroShotImageClassification,
    TransferArguments,
    convert_checkpoint,
    evaluate_transfer,
    load_coordinates,
    run_evaluation,
    run_oracle,
)
from spot_hf.classification import ClassifyArguments, classify_images
from spot_hf.cli import main
from spot_hf.hub.loading import load_weights, open_model
from spot_hf.oracle.objectives import feature_loss


TEMPLATE = "This is a photo of {}."


@pytest.fixture(scope="module", params=["clip", "siglip"])
def model(request, tmp_path_factory) -> str:
    directory = tmp_path_factory.mktemp(request.param)
    convert_checkpoint(save_source(directory / "source", request.param), directory / "model")
    return str(directory / "model")


@pytest.fixture(scope="module")
def data(tmp_path_factory, data_cache) -> str:
    return str(save_images(tmp_path_factory.mktemp("data"), 7))


def logits_of(model: str, images, coordinates=None, labels=LABELS, template=TEMPLATE) -> torch.Tensor:
    """Of all images `(num_images, num_labels)`, by the model itself; `coordinates` in the images' own frame."""
    source = open_model(model)
    loaded, processor, tokenizer = source.load(), source.load_image_processor(), source.load_tokenizer()
    assert isinstance(loaded, SpotViTForZeroShotImageClassification)
    inputs = processor(list(images), coordinates=coordinates, return_tensors="pt")
    texts = tokenizer([template.format(label) for label in labels], return_tensors="pt", **loaded.config.text_padding)
    with torch.no_grad():
        return loaded(**inputs, **texts).logits_per_image.double()


def images_of(data: str) -> datasets.Dataset:
    return datasets.load_dataset(data, split="validation")


def oracle(model, data, output_dir, **changes):
    arguments = {"num_tokens": [4], "steps": 4, "learning_rate": 0.02, "num_workers": 0, **changes}
    summaries = run_oracle(OracleArguments(model=model, dataset_name=data, output_dir=str(output_dir), **arguments))
    return next(iter(summaries.values())), load_coordinates(str(output_dir)), json.loads((output_dir / "run.json").read_text())


def test_the_objective_label_among_the_data_sets_classes(model, data, tmp_path):
    summary, rows, ledger = oracle(model, data, tmp_path / "run")
    images = images_of(data)
    logits = logits_of(model, images["image"], torch.tensor(rows["initial_coordinates"]))
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(images["label"]), reduction="none")
    # Positions are rounded to float32 on their way between the image's frame and the model's.
    assert [losses[0] for losses in rows["losses"]] == pytest.approx(expected.tolist(), abs=1e-4)
    assert rows["initial_prediction"] == logits.argmax(1).tolist()
    assert summary.loss_per_step[-1] < summary.loss_per_step[0] - 1e-4  # gradients reach positions
    assert ledger["parameters"]["candidate_labels"] == LABELS and ledger["parameters"]["hypothesis_template"] == TEMPLATE
    card = (tmp_path / "run" / "README.md").read_text()
    assert "AutoModelForZeroShotImageClassification" in card and "5 texts, each in the place of `{}`" in card
    assert "spot-zero-shot-image-classification" in card


def test_the_objective_label_among_other_texts(model, data, tmp_path):
    labels = ["fox", *reversed(LABELS)]
    given = {"candidate_labels": labels, "hypothesis_template": "an {}"}
    _, rows, ledger = oracle(model, data, tmp_path / "run", **given)
    images = images_of(data)
    logits = logits_of(model, images["image"], torch.tensor(rows["initial_coordinates"]), labels, "an {}")
    truth = torch.tensor([labels.index(LABELS[label]) for label in images["label"]])
    expected = torch.nn.functional.cross_entropy(logits, truth, reduction="none")
    assert [losses[0] for losses in rows["losses"]] == pytest.approx(expected.tolist(), abs=1e-4)
    assert rows["initial_prediction"] == logits.argmax(1).tolist()
    assert ledger["parameters"]["candidate_labels"] == labels
    assert ledger["parameters"]["label_mapping"] == {label: labels.index(label) for label in LABELS}
    with pytest.raises(ValueError, match="hypothesis_template"):  # other results: another run
        oracle(model, data, tmp_path / "run", candidate_labels=labels)


@pytest.mark.parametrize("objective", ["distill", "feature"])
def test_objectives_without_labels(model, data, tmp_path, objective):
    summary, rows, _ = oracle(model, data, tmp_path / "run", objective=objective)
    assert summary.loss_per_step[-1] < summary.loss_per_step[0] and summary.accuracy_before is not None
    images = images_of(data)["image"]
    if objective == "distill":
        few, full = (logits_of(model, images, at).log_softmax(1) for at in (torch.tensor(rows["initial_coordinates"]), None))
        expected = torch.nn.functional.kl_div(few, full, reduction="none", log_target=True).sum(1)
        assert [losses[0] for losses in rows["losses"]] == pytest.approx(expected.tolist(), abs=1e-5)


def test_features_need_no_texts(model, data, tmp_path):
    """Without labels nothing has a name: the tower alone is asked."""
    summary, rows, ledger = oracle(model, data, tmp_path / "run", objective="feature", label_column_name="none")
    assert summary.accuracy_before is None and set(rows["prediction"]) == {None}
    assert "candidate_labels" not in ledger["parameters"]
    loaded = open_model(model).load()
    search = SpotOracle(loaded, objective="feature", steps=1)
    pixel_values = torch.randn(2, 3, 31, 31)
    result = search.optimize(pixel_values, coordinates=torch.rand(1, 4, 2))
    with torch.no_grad():
        full, few = (loaded.spot_vit(pixel_values, coordinates=at).pooler_output for at in (None, result.coordinates))
    assert result.losses.min(1).values.tolist() == pytest.approx(feature_loss(few, full).tolist(), abs=1e-5)


def test_evaluation(model, data, tmp_path):
    arguments = {"num_tokens": [4], "placement": ["isotropic"], "baselines": ["full_grid", "shrunken_image"], "num_workers": 0}
    results = run_evaluation(
        EvaluationArguments(model=[model], dataset_name=data, output_dir=str(tmp_path / "out"), oracle_steps=[1], **arguments)
    )
    images = images_of(data)
    logits, truth = logits_of(model, images["image"]), torch.tensor(images["label"])
    row = next(row for row in results.results if row.method == "full_grid")
    assert row.top_1 == pytest.approx(100 * (logits.argmax(1) == truth).double().mean().item())
    assert row.loss == pytest.approx(torch.nn.functional.cross_entropy(logits, truth).item(), abs=1e-4)
    assert {row.method for row in results.results} == {"full_grid", "shrunken_image", "isotropic"}
    assert results.ledger.parameters["candidate_labels"] == LABELS
    assert main(["card", "--model", model, "--results", str(tmp_path / "out")]) == 0
    card = (Path(model) / "README.md").read_text()
    assert "Zero-shot, among 5 texts, each in the place of `{}` in `This is a photo of {}.`" in card
    assert "type: zero-shot-image-classification" in card


def test_evaluation_at_coordinates_of_another_model(model, data, tmp_path):
    oracle(model, data, tmp_path / "run")
    result = evaluate_transfer(
        TransferArguments(model=model, coordinates=str(tmp_path / "run"), dataset_name=data, candidate_labels=[*LABELS, "fox"])
    )
    images = images_of(data)
    rows = load_coordinates(str(tmp_path / "run"))
    logits = logits_of(model, images["image"], torch.tensor(rows["coordinates"]), [*LABELS, "fox"])
    correct = (logits.argmax(1) == torch.tensor(images["label"])).double().mean().item()
    assert result.accuracy["shared"].value == pytest.approx(100 * correct)


def test_classification(model, tmp_path, capsys):
    files = save_pictures(tmp_path / "pictures", 3)
    arguments = ClassifyArguments(model=model, candidate_labels=LABELS, hypothesis_template="a {}", batch_size=2)
    logits = logits_of(model, [Image.open(file) for file in files], template="a {}")
    scores = logits.sigmoid() if "siglip" in model else logits.softmax(1)
    for result, expected in zip(classify_images(arguments, files), scores.tolist(), strict=True):
        found = {one["label"]: one["score"] for one in result.predictions}
        assert found == nearly(dict(zip(LABELS, expected, strict=True)))
    argv = ["classify", "--model", model, *files, "--num_tokens", "4", "--json", "--candidate_labels", "cat", "hot dog"]
    assert main(argv) == 0
    printed = json.loads(capsys.readouterr().out)
    assert {one["label"] for one in printed[0]["predictions"]} == {"cat", "hot dog"} and printed[0]["num_tokens"] == 4


def test_training_a_classifier_takes_the_tower(model):
    source = open_model(model)
    classifier = load_weights(SpotViTForImageClassification, source, anew=["classifier."], num_labels=3)
    assert classifier.config.text_config is None and classifier.config.num_labels == 3
    for name, parameter in source.load().spot_vit.named_parameters():
        assert torch.equal(classifier.spot_vit.get_parameter(name), parameter)


# ------------------------------------------------------------------------------------------------------------ bad input


def nameless(tmp_path):
    """A data set whose classes are numbers."""
    rows = images_of(str(save_images(tmp_path / "named", 4)))
    directory = tmp_path / "nameless"
    directory.mkdir()
    rows.cast_column("label", datasets.Value("int64")).to_parquet(directory / "validation.parquet")
    return str(directory)


def test_bad_input_is_one_line(model, data, tmp_path, capsys, tiny_vit):
    convert_checkpoint(tiny_vit, tmp_path / "plain")
    out = ["--output_dir", str(tmp_path / "out")]
    of_numbers = ["--dataset_name", nameless(tmp_path)]
    on = ["--dataset_name", data]
    picture = save_pictures(tmp_path / "pictures", 1)
    twice = tmp_path / "names.json"
    twice.write_text(json.dumps(["crane", "crane", "cat", "dog", "eel"]))
    needed = "`candidate_labels` are needed by the zero-shot model .*; got none"
    refused = "is a zero-shot model: this is for models with classes of their own"
    cases = [
        (["oracle", "--model", model, *of_numbers, *out], needed),
        (["oracle", "--model", model, *of_numbers, "--objective", "distill", *out], needed),
        (["evaluate", "--model", model, *of_numbers, *out], needed),
        (["classify", "--model", model, *picture], needed),
        (
            ["oracle", "--model", model, *on, "--candidate_labels", "fox", "hen", *out],
            "5 of the 5 classes of 'label' are",
        ),
        (
            ["oracle", "--model", model, *on, "--candidate_labels", "fox", "fox", *out],
            "`candidate_labels` .*'fox' twice",
        ),
        (
            ["evaluate", "--model", model, *on, "--label_names", str(twice), *out],
            "`label_names` must be a list of different texts; got 'crane' twice",
        ),
        (
            ["oracle", "--model", model, *on, "--hypothesis_template", "x", *out],
            "`hypothesis_template` must be a text",
        ),
        (
            ["oracle", "--model", str(tmp_path / "plain"), *on, "--candidate_labels", "fox", *out],
            "`candidate_labels` is for zero-shot models; `model` .* is none",
        ),
        (
            ["evaluate", "--model", str(tmp_path / "plain"), *on, "--hypothesis_template", "a {}", *out],
            "`hypothesis_template` is for zero-shot models; `model` .* is none",
        ),
        (["classify", "--model", str(tmp_path / "plain"), *picture, "--candidate_labels", "fox"], "is for zero-shot models"),
        (["calibrate", "--model", model, *on, "--num_tokens", "4", "9", "--accuracy", "10"], refused),
        (["train-placer", "--model", model, *on, *out], refused),
        (["benchmark", "--model", model, "--num_tokens", "4"], refused),
    ]
    capsys.readouterr()
    for argv, message in cases:
        assert main(argv) == 2, argv
        lines = [
            line for line in capsys.readouterr().err.splitlines() if line and "split" not in line
        ]  # progress of loading data
        assert len(lines) == 1 and re.match(f"spot-hf {argv[0]}: error: .*{message}", lines[0]), lines
        assert not (tmp_path / "out").exists(), argv


def test_a_model_without_its_tokenizer(model, data, tmp_path):
    shutil.copytree(model, tmp_path / "model")
    for file in (tmp_path / "model").glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ValueError, match="has no tokenizer"):
        oracle(str(tmp_path / "model"), data, tmp_path / "out")
