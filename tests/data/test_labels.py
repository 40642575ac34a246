"""Labels meet a model by name: what fits which class, and what is refused."""

import json

import datasets
import numpy as np
import pytest
from conftest import shared
from PIL import Image
from transformers import PreTrainedConfig

from spot_hf import convert_checkpoint
from spot_hf.cli import main
from spot_hf.coordinates.loading import load_coordinates
from spot_hf.data.labels import ForeignLabelsError, match_labels
from spot_hf.data.source import DatasetSource


def match(names: list[str], theirs: list[str], **options):
    source = DatasetSource()
    for name, value in options.items():
        setattr(source, name, value)
    return match_labels(datasets.ClassLabel(names=names), PreTrainedConfig(id2label=dict(enumerate(theirs))), source)


@pytest.fixture(scope="module")
def imagenet(vit_tiny) -> list[str]:
    names = json.loads((vit_tiny / "config.json").read_text())["id2label"]
    return [names[str(number)] for number in range(1000)]


ANIMALS = ["tench, Tinca tinca", "Great_White-Shark", "crane (n02012849)", "crane (n03126707)", "Loafer"]


@pytest.mark.parametrize(
    ("names", "numbers"),
    [
        (["Loafer", "tench, Tinca tinca"], (4, 0)),
        (["loafer", "great white shark"], (4, 1)),
        (["GREAT_WHITE_SHARK"], (1,)),
        (["tinca_tinca", "Tench"], (0, 0)),
        (["n03126707", "n02012849-crane"], (3, 2)),
        (["Loafer", "tench, a fish"], (4, 0)),
    ],
)
def test_what_fits(names, numbers):
    assert match(names, ANIMALS).numbers == numbers


def test_equal_lists_are_the_same_numbers_also_where_a_name_is_there_twice():
    mapping = match(["a", "b, crane", "c, crane"], ["a", "crane", "crane"])
    assert mapping.numbers is None and mapping.recorded() == {} and "by name: 3 classes" in mapping.description
    assert [mapping(label) for label in (0, 2, 3, -1, None, float("nan"))] == [0, 2, None, None, None, None]


def test_imagenet_by_synonym_and_by_wordnet_id(imagenet):
    names = ["n02102040", "n03000684", "Loafer", "buckeye", "English_springer", "garbage truck"]
    assert match(names, imagenet).numbers == (217, 491, 630, 990, 217, 569)
    # A model with WordNet ids, and one with ImageNet's names: each way.
    ids = match(imagenet, [f"n{i:08}" for i in range(1000)], labels_by_number=True)
    assert ids.numbers is None and "as asked" in ids.description


def test_what_does_not_fit_is_named(imagenet):
    with pytest.raises(ForeignLabelsError) as error:
        match(["Loafer", "my cat", "my dog", "my hen", "my cow"], imagenet)
    text = str(error.value)
    assert "4 of the 5 classes of 'label'" in text and "'my cat', 'my dog', 'my hen'." in text
    assert all(way in text for way in ("--classifier new", "--label_names FILE.json", "--labels_by_number"))
    with pytest.raises(ForeignLabelsError, match=r"'crane' \(fits several\)"):
        match(["crane"], imagenet)


@pytest.mark.parametrize("names", [[], ["ant", "bee"]])
def test_without_names_numbers_are_all_there_is(names):
    feature = datasets.ClassLabel(names=names) if names else datasets.Value("int64")
    mapping = match_labels(feature, PreTrainedConfig(num_labels=5), DatasetSource())
    assert mapping.numbers is None and "by number" in mapping.description
    with pytest.raises(ForeignLabelsError, match="has 6 classes, the model 5"):
        match_labels(datasets.ClassLabel(names=list("abcdef")), PreTrainedConfig(num_labels=5), DatasetSource())


def test_names_that_a_person_gives(tmp_path, imagenet):
    file = tmp_path / "names.json"
    file.write_text(json.dumps({"my shoe": "Loafer", "my nut": 990}))
    assert match(["tench", "my nut", "my shoe"], imagenet, label_names=str(file)).numbers == (0, 990, 630)
    file.write_text(json.dumps(["Loafer", "tench"]))
    feature, config = datasets.Value("int64"), PreTrainedConfig(id2label=dict(enumerate(imagenet)))
    source = DatasetSource()
    source.label_names = str(file)
    assert match_labels(feature, config, source).numbers == (630, 0)
    for content, reason in (
        ("{", "must be a file of"),
        ("{}", "must be a file of"),
        ('{"his": "Loafer"}', "must have names of the data set's classes, such as 'a'; got 'his'"),
        ('{"a": 1000}', "number them from 0 to 999; 'a' is 1000"),
        ('{"a": "nothing"}', "'a' is 'nothing'"),
        ('["a", "b"]', "must name the 1 classes of 'label'; got 2 names"),
    ):
        file.write_text(content)
        with pytest.raises(ValueError, match="`label_names`") as error:
            match(["a"], imagenet, label_names=str(file))
        assert reason in str(error.value)


# ------------------------------------------------------------------------------------------------- folders, a real model


@pytest.fixture(scope="module")
def spot_vit_tiny(vit_tiny, tmp_path_factory) -> str:
    directory = tmp_path_factory.mktemp("converted") / "vit-tiny"
    convert_checkpoint(vit_tiny, directory)
    return str(directory)


def sort_into_folders(images, chosen: dict[str, int], directory, num_images: int = 4) -> str:
    """Photographs of some classes of ImageNet, by their numbers, in folders of other names."""
    labels = np.array(images["label"])
    for name, number in chosen.items():
        folder = directory / "test" / name
        folder.mkdir(parents=True)
        for row in np.flatnonzero(labels == number)[:num_images]:
            images[int(row)]["image"].convert("RGB").save(folder / f"{number}_{row}.jpg", quality=95)
    return str(directory)


@pytest.fixture(scope="module")
def folders(nips2017, tmp_path_factory) -> str:
    counts = np.bincount(nips2017["label"], minlength=1000)
    frequent = counts.argsort(kind="stable")[::-1]
    names = nips2017.features["label"].names
    chosen = {names[number].split(",")[0].replace(" ", "_").upper(): int(number) for number in frequent[:5]}
    return sort_into_folders(nips2017, chosen, tmp_path_factory.mktemp("folders"))


def test_folders_are_evaluated_by_name(spot_vit_tiny, folders, tmp_path, capsys):
    words = ["evaluate", "--model", spot_vit_tiny, "--dataset_name", folders, "--num_tokens", "25", "--placement", "isotropic"]
    words += ["--baselines", "full_grid", "--num_workers", "0"]
    assert main([*words, "--output_dir", str(tmp_path / "by_name")]) == 0
    assert "labels are matched by name: 5 classes of 'label' to the model's 1000" in capsys.readouterr().out
    assert main([*words, "--output_dir", str(tmp_path / "by_number"), "--labels_by_number"]) == 0
    found = {}
    for name in ("by_name", "by_number"):
        results = json.loads((tmp_path / name / "results.json").read_text())
        found[name] = next(row["top_1"] for row in results["results"] if row["way"] == "full_grid")
        assert name[3:] in results["labels"]["vit-tiny"]
    assert found["by_name"] >= 80 and found["by_number"] == 0  # the model is right on 88.5 % of all these photographs
    mapping = json.loads((tmp_path / "by_name/run.json").read_text())["parameters"]["label_mapping"]["vit-tiny"]
    assert len(mapping) == 5 and "label_mapping" not in (tmp_path / "by_number/run.json").read_text()
    assert main([*words, "--output_dir", str(tmp_path / "among"), "--among_labels"]) == 0
    among = json.loads((tmp_path / "among/results.json").read_text())["results"]
    assert next(row["top_1"] for row in among if row["way"] == "full_grid") >= found["by_name"]


def test_the_oracle_pulls_towards_the_named_class(spot_vit_tiny, folders, tmp_path):
    output = tmp_path / "run"
    words = ["--model", spot_vit_tiny, "--dataset_name", folders, "--num_tokens", "49", "--steps", "2", "--num_workers", "0"]
    assert main(["oracle", *words, "--output_dir", str(output)]) == 0
    parameters = json.loads((output / "run.json").read_text())["parameters"]
    rows, classes = load_coordinates(output), list(parameters["label_mapping"].values())
    # The label stays the source's; the model's class is another number.
    right = [row["prediction"] == classes[row["label"]] for row in rows]
    results = json.loads((output / f"{rows.info.config_name}/test.json").read_text())["results"]
    assert results["accuracy_after"] == pytest.approx(100 * np.mean(right), abs=1e-3) and np.mean(right) > 0.5
    assert results["accuracy_per_step"][-1] > 50
    transfer = ["evaluate", "--model", spot_vit_tiny, "--coordinates", str(output), "--dataset_name", folders]
    assert main([*transfer, "--output_dir", str(tmp_path / "transfer")]) == 0
    shared_positions = json.loads((tmp_path / "transfer/transfer.json").read_text())["accuracy"]["shared"]["value"]
    assert shared_positions == pytest.approx(results["accuracy_after"], abs=1e-3)


def test_labels_of_other_classes(spot_vit_tiny, tmp_path, capsys):
    for name in ("mine", "yours"):
        (tmp_path / "train" / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (64, 64), (60 * i, 20, 200)).save(tmp_path / "train" / name / f"{name}{i}.png")
    source = ["--model", spot_vit_tiny, "--dataset_name", str(tmp_path), "--num_tokens", "9"]
    for command in (
        ["evaluate", *source, "--output_dir", str(tmp_path / "a")],
        ["oracle", *source, "--output_dir", str(tmp_path / "b")],
        ["train", *source, "--eval_strategy", "no", "--output_dir", str(tmp_path / "c")],
    ):
        assert main(command) == 2
        line = capsys.readouterr().err.strip().splitlines()[-1]  # after bars of progress
        assert line.startswith(f"spot-hf {command[0]}: error: `label_column_name`: 2 of the 2 classes of 'label' are none of")
        assert "--classifier new" in line and not (tmp_path / command[-1]).exists()
    # Where labels are not needed, all goes on without accuracy.
    assert main(["oracle", *source, "--objective", "distill", "--steps", "1", "--output_dir", str(tmp_path / "d")]) == 0
    assert "accuracy is not measured" in capsys.readouterr().out
    results = json.loads(next((tmp_path / "d").glob("*_n9/train.json")).read_text())["results"]
    assert results["accuracy_before"] is None and results["num_images"] == 8


def test_training_keeps_the_meaning_of_classes(spot_vit_tiny, folders, tmp_path):
    from transformers import AutoModelForImageClassification

    words = ["--model", spot_vit_tiny, "--dataset_name", folders, "--dataset_split", "test", "--num_tokens", "25"]
    words += ["--eval_dataset_split", "test", "--per_device_train_batch_size", "8", "--num_train_epochs", "2"]
    words += ["--dataloader_num_workers", "0", "--learning_rate", "1e-4", "--save_strategy", "no"]
    assert main(["train", *words, "--output_dir", str(tmp_path / "run")]) == 0
    training = json.loads((tmp_path / "run/training.json").read_text())
    assert training["labels"].startswith("labels are matched by name") and len(training["parameters"]["label_mapping"]) == 5
    assert training["evaluation"]["eval_accuracy"] > 40  # of 1,000 classes; by number it would be near 0
    assert AutoModelForImageClassification.from_pretrained(tmp_path / "run").config.id2label[0] == "tench, Tinca tinca"


def test_the_shared_data_sets_are_named_like_the_models(imagenet):
    for name in ("nips2017", "imagenette160"):
        feature = datasets.load_dataset(str(shared(f"data/{name}")), split="validation").features["label"]
        assert match(feature.names, imagenet).numbers is None


def test_the_order_in_which_a_config_lists_its_classes_does_not_matter(imagenet):
    theirs = {number: imagenet[number] for number in sorted(range(1000), key=str)}
    mapping = match_labels(datasets.ClassLabel(names=["n02110185"]), PreTrainedConfig(id2label=theirs), DatasetSource())
    assert mapping.numbers == (250,)  # Siberian husky


def test_a_name_that_is_another_classs_in_just_these_letters(imagenet):
    assert match(["cardigan"], imagenet).numbers == (474,)  # all of the sweater's name
    with pytest.raises(ForeignLabelsError, match=r"'Cardigan' \(fits several\)"):
        match(["Cardigan"], imagenet)  # the dog's, too


def test_numbers_cannot_be_renamed_by_an_object(tmp_path):
    (tmp_path / "names.json").write_text('{"0": 5}')
    source = DatasetSource()
    source.label_names = str(tmp_path / "names.json")
    with pytest.raises(ValueError, match="`label_names` must be a list of names by number: 'label' has no names"):
        match_labels(datasets.Value("int64"), PreTrainedConfig(num_labels=9), source)


def test_training_that_needs_no_labels_takes_any(spot_vit_tiny, tmp_path, capsys):
    for name in ("mine", "yours"):
        (tmp_path / "train" / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (64, 64), (60 * i, 20, 200)).save(tmp_path / "train" / name / f"{name}{i}.png")
    words = ["train", "--model", spot_vit_tiny, "--dataset_name", str(tmp_path), "--num_tokens", "9", "--eval_strategy", "no"]
    words += ["--cross_entropy_weight", "0", "--distill_weight", "1", "--per_device_train_batch_size", "4", "--max_steps", "1"]
    assert main([*words, "--dataloader_num_workers", "0", "--output_dir", str(tmp_path / "run")]) == 0
    assert "labels are not used" in capsys.readouterr().out
