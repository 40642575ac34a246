"""Images and labels as people have them: folders with metadata, names instead of numbers, `save_to_disk`, boxes in a file."""

import json
import os
import tempfile

import datasets
import numpy as np
import pytest
from coordinate_runs import CLASSES, picture, write_pictures

from spot_hf import OracleArguments, join_coordinates
from spot_hf.cli import main
from spot_hf.data.encoded import image_ids
from spot_hf.data.saliency import boxes_of_images, read_boxes_csv
from spot_hf.data.source import DatasetSource, SalientSource, load_images


@pytest.fixture
def folders(tmp_path):
    """An ImageFolder of twelve pictures in five classes."""
    files = write_pictures(tmp_path / "pictures")
    return tmp_path / "pictures", files


def load(directory, **options):
    return load_images(DatasetSource(dataset_name=str(directory), **options))


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_folders_stay_labels_beside_metadata(folders, suffix):
    directory, files = folders
    names = [str(file.relative_to(directory / "test")) for file in files]
    if suffix == "csv":
        lines = ["file_name,photographer", *(f"{name},p{i}" for i, name in enumerate(names))]
    else:
        lines = [json.dumps({"file_name": name, "photographer": f"p{i}"}) for i, name in enumerate(names)]
    (directory / "test" / f"metadata.{suffix}").write_text("\n".join(lines) + "\n")
    plain = datasets.load_dataset(str(directory), split="test")
    assert "label" not in plain.features and "photographer" in plain.features  # or this is needed no more
    found = load(directory)
    assert found.features["label"].names == CLASSES and len(found) == 12
    by_file = dict(zip(names, (os.path.dirname(name) for name in names), strict=True))
    assert [CLASSES[label] for label in found["label"]] == list(by_file.values())
    assert found[3]["image"].size == datasets.load_dataset(str(directory), split="test")[3]["image"].size


def test_a_metadata_file_of_a_single_folder_makes_no_labels(tmp_path):
    picture(0, (40, 40)).save(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text("file_name,caption\na.png,b\n")
    with pytest.raises(ValueError, match="`label_column_name` must be one of image, caption; got 'label'"):
        load(tmp_path)
    assert load(tmp_path, label_column_name=None).column_names == ["image"]


def test_names_in_a_column_are_classes(folders):
    directory, files = folders
    kinds = {name: f"kind of {name}" for name in CLASSES}
    lines = [f"{file.relative_to(directory / 'test')},{kinds[file.parent.name]}" for file in files]
    (directory / "test" / "metadata.csv").write_text("\n".join(["file_name,kind", *lines]) + "\n")
    found = load(directory, label_column_name="kind")
    assert found.features["label"].names == sorted(kinds.values())
    assert [found.features["label"].names[label] for label in found["label"]] == [kinds[file.parent.name] for file in files]


@pytest.mark.parametrize("kind", ["data set", "splits"])
def test_what_save_to_disk_wrote(folders, tmp_path, kind):
    directory, _ = folders
    splits = datasets.load_dataset(str(directory))
    (splits["test"] if kind == "data set" else splits).save_to_disk(str(tmp_path / "saved"))
    found, expected = load(tmp_path / "saved"), load(directory)
    assert str(found.split) == "test" and found.features == expected.features and found["label"][:] == expected["label"][:]
    assert [np.asarray(one).tobytes() for one in found["image"]] == [np.asarray(one).tobytes() for one in expected["image"]]
    with pytest.raises(ValueError, match="`dataset_split` must be one of test; got 'train'"):
        load(tmp_path / "saved", dataset_split="train")


def test_what_is_left_of_save_to_disk(tmp_path):
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(OSError, match="`dataset_name`"):
        load(tmp_path)


# --------------------------------------------------------------------------------------------------------------- boxes


def test_boxes_come_beside_their_images(folders, tmp_path):
    directory, files = folders
    lines = ["image,x_min,y_min,x_max,y_max,score"]
    for i, file in enumerate(files):
        lines.append(f"{file.name},0,0,{i + 1},5,0.5")
    lines.append(f"{files[2].name},7,8,9,10,1")
    (tmp_path / "boxes.csv").write_text("\n".join(lines))
    source = SalientSource(dataset_name=str(directory), boxes_csv=str(tmp_path / "boxes.csv"), max_samples=5)
    source.check_source()
    found = load_images(source.source())
    assert [row["saliency"][0][2] for row in found] == [1, 2, 3, 4, 5] and found[2]["saliency"][1] == [7, 8, 9, 10]
    (tmp_path / "boxes.csv").write_text("\n".join(lines[:4]))
    with pytest.raises(ValueError, match=r"has none for 2 of 5, such as '.*bee0.jpg'; it names images such as 'ant0.jpg'"):
        load_images(source.source())
    with pytest.raises(ValueError, match="`boxes_csv` and `streaming` exclude each other"):
        other = SalientSource(dataset_name=str(directory), boxes_csv=str(tmp_path / "boxes.csv"))
        other.streaming = True
        other.check_source()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("image,x_min,y_min,x_max\na,1,2,3\n", "lacks y_max"),
        ("", "lacks image, x_min, y_min, x_max, y_max"),
        ("image,x_min,y_min,x_max,y_max\na,1,2,3,4\nb,1,2,3,four\n", "line 3 of"),
        ("image,x_min,y_min,x_max,y_max\na,1,2,nan,4\n", "line 2 of"),
        ("image,x_min,y_min,x_max,y_max\na,1,2\n", "line 2 of"),
    ],
)
def test_files_that_hold_no_boxes(tmp_path, content, words):
    (tmp_path / "boxes.csv").write_text(content)
    with pytest.raises(ValueError, match=f"`boxes_csv` must have .*{words}"):
        read_boxes_csv(str(tmp_path / "boxes.csv"))
    with pytest.raises(ValueError, match="`boxes_csv` must be a CSV file"):
        read_boxes_csv(str(tmp_path / "absent.csv"))


def test_jobs_place_tokens_in_boxes(made, tmp_path):
    """The oracle begins in the boxes, the evaluation places there, the transfer describes positions by them."""
    lines = ["image,x_min,y_min,x_max,y_max", *(f"{file.name},4,4,24,24" for file in made.files)]
    (tmp_path / "boxes.csv").write_text("\n".join(lines))
    source = ["--dataset_name", made.pictures, "--boxes_csv", str(tmp_path / "boxes.csv")]
    own = ["--model", made.model, "--placement", "salient", "--num_tokens", "6"]
    assert main(["oracle", *own, *source, "--steps", "0", "--num_workers", "0", "--output_dir", str(tmp_path / "oracle")]) == 0
    rows = datasets.load_dataset(str(tmp_path / "oracle"), split="test")
    for row in rows:
        width, height = row["image_size"]
        points = np.array(row["initial_coordinates"]) * (width, height)
        # To a pixel of the model's 32 per side.
        assert points[:, 0].max() < 24 + width / 32 and points[:, 1].max() < 24 + height / 32 and points.min() > 2
    parameters = json.loads((tmp_path / "oracle/run.json").read_text())["parameters"]
    assert parameters["boxes_csv"] == "boxes.csv" and len(parameters["boxes_csv_sha256"]) == 64
    words = ["evaluate", *own, *source, "--baselines", "none", "--num_workers", "0", "--num_seeds", "1"]
    assert main([*words, "--output_dir", str(tmp_path / "evaluation")]) == 0
    assert json.loads((tmp_path / "evaluation/run.json").read_text())["parameters"]["boxes_csv"] == "boxes.csv"
    (tmp_path / "boxes.csv").write_text("\n".join(lines).replace("24,24", "20,24"))
    assert main([*words, "--output_dir", str(tmp_path / "evaluation")]) == 2  # other boxes, another run
    transfer = ["evaluate", "--model", made.model, "--coordinates", made.run, "--config", made.config, *source]
    assert main([*transfer, "--output_dir", str(tmp_path / "transfer")]) == 0
    assert json.loads((tmp_path / "transfer/transfer.json").read_text())["saliency"] == "saliency by `boxes.csv`"


def test_a_join_that_finds_nothing_says_why(made):
    """`map` encodes what it returns anew, without a name."""
    mapped = made.images.map(lambda row: {"image": row["image"].convert("RGB")})
    with pytest.raises(ValueError, match="`map` drops the file names") as error:
        join_coordinates(mapped, made.rows, split="test")
    assert "those of the coordinates" not in str(error.value) and "are such as 'ant0.jpg'" in str(error.value)
    assert "'test/0'" in str(error.value)


def test_boxes_of_images_of_one_name():
    """By as much of their paths as tells them apart."""
    paths = ["/x/cat/1.jpg", "/x/dog/1.jpg", "/x/dog/2.jpg"]

    def find(*names, images=paths):
        file = boxes_file(*names)
        return [own[0][0] for own in boxes_of_images(file, images)]

    assert find("cat/1.jpg", "dog/1.jpg", "2.jpg") == [0, 1, 2] and find("2.jpg", "dog/1.jpg", "x/cat/1.jpg") == [2, 1, 0]
    assert find("/y/photos/1.jpg", images=["1.jpg"]) == [0]
    with pytest.raises(ValueError, match=r"'1.jpg' could be '/x/cat/1.jpg' or '/x/dog/1.jpg'"):
        find("1.jpg", "2.jpg")
    with pytest.raises(ValueError, match=r"must name each image once; '1.jpg' could be a/1.jpg or b/1.jpg"):
        find("a/1.jpg", "b/1.jpg", images=["1.jpg"])


def boxes_file(*names: str) -> str:
    file = os.path.join(tempfile.mkdtemp(), "boxes.csv")
    with open(file, "w") as opened:
        opened.write("\n".join(["image,x_min,y_min,x_max,y_max", *(f"{name},{i},0,9,9" for i, name in enumerate(names))]))
    return file


def test_a_class_has_one_number_in_all_splits(tmp_path):
    for split, names in {"train": ["ant", "bee", "cat"], "test": ["bee", "cat"]}.items():
        (tmp_path / split).mkdir()
        for name in names:
            picture(0, (8, 8)).save(tmp_path / split / f"{name}.png")
        lines = [f"{name}.png,{name}" for name in names]
        (tmp_path / split / "metadata.csv").write_text("\n".join(["file_name,label", *lines]) + "\n")
    found = {split: load(tmp_path, dataset_split=split) for split in ("train", "test")}
    assert found["train"].features == found["test"].features and found["test"]["label"][:] == [1, 2]


def test_a_part_of_a_split(tmp_path):
    """As `datasets` writes it; it is called so, and its labels are those of the whole split."""
    for name in ("ant", "bee", "cat", "dog"):
        (tmp_path / "train" / name).mkdir(parents=True)
        picture(0, (8, 8)).save(tmp_path / "train" / name / "0.png")
    found = load(tmp_path, dataset_split="train[1:3]")
    assert found["label"][:] == [1, 2] and str(found.split) == "train[1:3]"
    assert image_ids(found.map(lambda row: {"image": row["image"].convert("L")})) == [
        "train/1",
        "train/2",
    ]  # as in the whole split
    assert found.features["label"].names == ["ant", "bee", "cat", "dog"]
    assert load(tmp_path, dataset_split="train[75%:]")["label"][:] == [3]
    assert len(load(tmp_path, dataset_split="train[:3]", max_samples=2)) == 2
    for wrong, message in (
        ("train[1", "a part of one"),
        ("test[:1]", "must be one of train"),
        ("train[:1]+train[2:]", "part"),
    ):
        with pytest.raises(ValueError, match=message):
            load(tmp_path, dataset_split=wrong)
    source = DatasetSource(dataset_name=str(tmp_path), dataset_split="train[:1]")
    source.streaming = True
    with pytest.raises(ValueError, match="a whole split with `streaming`"):
        load_images(source)
    given = {"model": "m", "dataset_name": str(tmp_path), "num_tokens": [4], "output_dir": "out"}
    arguments = OracleArguments(**given, dataset_split="train[:1]")
    with pytest.raises(ValueError, match="`dataset_split` must be a whole split"):
        arguments.check()
