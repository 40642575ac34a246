"""Coordinate data sets in use: loaded, joined with their images, run through models, measured and drawn.

One finished run of the oracle serves all tests: 12 pictures with file names, some of them turned by their EXIF orientation.
Another one, of the same pictures without names in a parquet file, has window scales.
"""

import hashlib
import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from tiny import tiny_model, tiny_processor
from transformers import AutoModel, AutoModelForImageClassification, pipeline
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from spot_hf import SpotViTModel, convert_checkpoint, join_coordinates, load_coordinates
from spot_hf.coordinates.schema import coordinate_features
from spot_hf.coordinates.show import show_coordinates
from spot_hf.data.source import load_images
from spot_hf.evaluation.intervals import Accuracy, Difference
from spot_hf.evaluation.transfer import evaluate_transfer, snap_to_grid
from spot_hf.oracle.arguments import OracleRunArguments
from spot_hf.oracle.run import run_oracle


CLASSES = ["ant", "bee", "cat", "dog", "eel"]  # of the model `tiny_vit`
COUNT = 12


def picture(seed: int, size: tuple[int, int]) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def write_pictures(directory: Path) -> list[Path]:
    """`DIRECTORY/test/CLASS/NAME`, as `load_dataset` orders them; of all EXIF orientations, and one in grey."""
    files = []
    for label, name in enumerate(CLASSES):
        (directory / "test" / name).mkdir(parents=True)
        for i in range(3 if label < 2 else 2):
            number = len(files)
            image = picture(number, (40 + 3 * number, 60 - 2 * number))
            exif = Image.Exif()
            exif[0x0112] = number % 8 + 1
            files.append(directory / "test" / name / f"{name}{i}.{'png' if number == 9 else 'jpg'}")
            image.convert("L" if number == 9 else "RGB").save(files[-1], exif=exif)
    assert len(files) == COUNT
    return files


def quiet(*_):
    pass


@pytest.fixture(scope="module", autouse=True)
def data_cache(tmp_path_factory):
    """What `load_dataset` prepares goes to this test's own folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


@pytest.fixture(scope="module")
def made(tiny_vit, tmp_path_factory):
    """Model, pictures and finished run, of 4 and of 9 tokens."""
    root = tmp_path_factory.mktemp("coordinates")
    convert_checkpoint(tiny_vit, root / "spot")
    files = write_pictures(root / "pictures")
    arguments = OracleRunArguments(
        model=str(root / "spot"), dataset_name=str(root / "pictures"), num_tokens=[4, 9], steps=2, learning_rate=0.03,
        shard_size=5, batch_size=4, num_workers=0, save_trajectories=True,
    )  # fmt: skip
    run_oracle(arguments, root / "run", say=quiet)
    return SimpleNamespace(
        model=str(root / "spot"), pictures=str(root / "pictures"), files=files, run=str(root / "run"), config="spot_n9",
        images=load_images(str(root / "pictures"), split="test"), rows=load_coordinates(root / "run", "spot_n9"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def nameless(made, tmp_path_factory):
    """The same pictures as bytes without names, and positions with window scales."""
    root = tmp_path_factory.mktemp("nameless")
    stored = [{"bytes": file.read_bytes(), "path": None} for file in made.files]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)})
    dataset = datasets.Dataset.from_dict({"image": stored, "label": made.images["label"]}, features=features)
    (root / "pictures").mkdir()
    dataset.to_parquet(root / "pictures" / "validation-00000-of-00001.parquet")
    arguments = OracleRunArguments(
        model=made.model, dataset_name=str(root / "pictures"), num_tokens=[5], steps=2, learning_rate=0.03, batch_size=5,
        num_workers=0, run_name="scaled", optimize_window_scales=True, window_scale_learning_rate=0.2,
    )  # fmt: skip
    run_oracle(arguments, root / "run", say=quiet)
    return SimpleNamespace(
        pictures=str(root / "pictures"), run=str(root / "run"), images=load_images(str(root / "pictures")),
        rows=load_coordinates(root / "run"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def other_model(made, tmp_path_factory):
    """Another model, which sees a crop of 48 × 48 pixels."""
    directory = tmp_path_factory.mktemp("other") / "cropping"
    model = tiny_model(seed=3)
    processor = tiny_processor(size={"shortest_edge": 56}, do_center_crop=True, crop_size={"height": 48, "width": 48})
    with torch.no_grad():  # random weights prefer one class: no more
        inputs = processor(made.images["image"][:], num_tokens=9, return_tensors="pt")
        model.classifier.bias -= model(**inputs).logits.mean(0)
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return str(directory)


def coordinates_of(images, indices, label=None) -> datasets.Dataset:
    """Coordinates that say, by a single token's position, for which of `images` they were made."""
    rows = []
    for index in indices:
        stored = images.cast_column("image", datasets.Image(decode=False))[index]["image"]
        content = stored["bytes"] or Path(stored["path"]).read_bytes()
        here = [[index / 100, 0.5]]
        rows.append({
            "image_id": Path(stored["path"]).name if stored["path"] else f"{images.split}/{index}", "image_index": index,
            "image_sha256": hashlib.sha256(content).hexdigest(), "image_size": [1, 1], "label": 0, "coordinates": here,
            "initial_coordinates": here, "losses": [0.0], "initial_prediction": 0, "prediction": 0,
        })  # fmt: skip
    return datasets.Dataset.from_list(rows, features=coordinate_features(datasets.Value("int64"), 1))


def contents(images) -> list[bytes]:
    """The encoded bytes of a data set's images."""
    stored = images.cast_column("image", datasets.Image(decode=False))["image"]
    return [one["bytes"] or Path(one["path"]).read_bytes() for one in stored]


# ------------------------------------------------------------------------------------------------------------- schema


def test_columns_are_those_of_the_contract(made):
    point, coarse = (datasets.List(datasets.Value(kind), length=2) for kind in ("float32", "float16"))
    assert dict(made.rows.features) == {
        "image_id": datasets.Value("string"),
        "image_index": datasets.Value("int64"),
        "image_sha256": datasets.Value("string"),
        "image_size": datasets.List(datasets.Value("int32"), length=2),
        "label": datasets.ClassLabel(names=CLASSES),
        "coordinates": datasets.List(point, length=9),
        "initial_coordinates": datasets.List(point, length=9),
        "losses": datasets.List(datasets.Value("float32")),
        "initial_prediction": datasets.Value("int64"),
        "prediction": datasets.Value("int64"),
        "trajectory": datasets.List(datasets.List(coarse, length=9), length=3),
    }
    assert made.rows.features == coordinate_features(datasets.ClassLabel(names=CLASSES), 9, 3)
    plain, scaled = (coordinate_features(datasets.Value("int64"), 9, window_scales=scaled) for scaled in (False, True))
    assert "trajectory" not in plain and scaled["window_scales"] == datasets.List(datasets.Value("float32"), length=9)
    # In the files too, which other libraries read.
    shards = sorted(Path(made.run, made.config).glob("*.parquet"))
    assert [shard.name for shard in shards] == [f"test-0000{i}-of-00003.parquet" for i in range(3)]
    schema = pq.read_schema(shards[0])
    assert schema.field("coordinates").type == pa.list_(pa.list_(pa.float32(), 2), 9)
    assert schema.field("trajectory").type == pa.list_(pa.list_(pa.list_(pa.float16(), 2), 9), 3)
    assert schema.field("image_size").type == pa.list_(pa.int32(), 2) and schema.field("label").type == pa.int64()


def test_rows_say_what_they_are_about(made):
    rows = made.rows
    assert rows["image_id"] == [file.name for file in made.files] and rows["image_index"] == list(range(COUNT))
    assert rows["image_sha256"] == [hashlib.sha256(file.read_bytes()).hexdigest() for file in made.files]
    assert rows["label"] == [CLASSES.index(file.parent.name) for file in made.files]
    sizes = [list(Image.open(file).size) for file in made.files]
    turned = [number % 8 >= 4 for number in range(COUNT)]  # EXIF orientations 5 to 8 swap width and height
    assert rows["image_size"] == [size[::-1] if turn else size for size, turn in zip(sizes, turned, strict=True)]
    losses, trajectory = np.array(rows["losses"]), np.array(rows["trajectory"])
    assert losses.shape == (COUNT, 3) and trajectory.shape == (COUNT, 3, 9, 2)
    best = trajectory[np.arange(COUNT), losses.argmin(1)]
    # float16 has 11 bits: 2^-12 just below 1.
    np.testing.assert_allclose(best, np.array(rows["coordinates"]), rtol=0, atol=2.5e-4)
    np.testing.assert_allclose(trajectory[:, 0], np.array(rows["initial_coordinates"]), rtol=0, atol=2.5e-4)
    assert (losses.argmin(1) > 0).any() and (losses.min(1) <= losses[:, 0]).all()


# ------------------------------------------------------------------------------------------------------------ loading


def test_loading(made, nameless):
    assert len(made.rows) == COUNT and str(made.rows.split) == "test" and made.rows.info.config_name == made.config
    named = load_coordinates(made.run, "spot_n4", "test")
    assert np.array(named["coordinates"]).shape == (COUNT, 4, 2)
    only = load_coordinates(nameless.run)  # one config, one split: no need to name them
    assert len(only) == COUNT and only["image_id"][:2] == ["validation/0", "validation/1"]
    # As anybody loads it, without this package.
    assert datasets.load_dataset(made.run, made.config, split="test")[:] == made.rows[:]


def test_what_cannot_be_loaded(made, tmp_path):
    with pytest.raises(ValueError, match=r"`config` must be one of spot_n4, spot_n9 in .*; got None"):
        load_coordinates(made.run)
    with pytest.raises(ValueError, match=r"`config` must be one of spot_n4, spot_n9 in .*; got 'spot_n25'"):
        load_coordinates(made.run, "spot_n25")
    with pytest.raises(ValueError, match=r"`split` must be one of test in .*; got 'train'"):
        load_coordinates(made.run, made.config, "train")
    for wrong in (made.pictures, tmp_path):
        with pytest.raises(OSError, match=f"'{wrong}' holds no coordinate data set$"):
            load_coordinates(wrong)
    with pytest.raises(OSError, match=f"'{made.model}' holds no coordinate data set that can be read: "):
        load_coordinates(made.model)  # has a README.md and JSON files, as a data set may
    for wrong in ("absent", "a/b/c", str(tmp_path / "absent"), made.run + "/README.md"):
        with pytest.raises(OSError, match=f"'{wrong}' is neither a directory with a coordinate data set nor a Hub id"):
            load_coordinates(wrong)


def test_a_run_that_is_not_finished(made, tmp_path):
    shutil.copytree(made.run, tmp_path / "run")
    (tmp_path / "run" / "README.md").unlink()  # written last
    with pytest.raises(OSError, match="its run is not finished, go on with the same command"):
        load_coordinates(tmp_path / "run", made.config)


def test_other_data_sets_are_refused_by_their_card(made, tmp_path):
    """Before anything is downloaded: here, the file that the card speaks of is not even readable."""
    made.images.select_columns(["label"]).to_parquet(tmp_path / "data" / "test.parquet")
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - {split: test, path: data/test.parquet}\n"
        "dataset_info:\n  features:\n  - {name: label, dtype: int64}\n  splits:\n  - {name: test, num_examples: 12}\n---\n"
    )
    (tmp_path / "data" / "test.parquet").write_bytes(b"no parquet")
    with pytest.raises(ValueError, match="is no coordinate data set: it has the columns label"):
        load_coordinates(tmp_path)


def test_other_data_sets_without_a_card_are_refused(made, tmp_path):
    made.images.select_columns(["label"]).to_parquet(tmp_path / "test.parquet")
    (tmp_path / "README.md").write_text("# Labels\n")
    with pytest.raises(ValueError, match="is no coordinate data set: it has the columns label"):
        load_coordinates(tmp_path)


# ------------------------------------------------------------------------------------------------------------ joining


def test_join_puts_coordinates_beside_their_images(made):
    joined = join_coordinates(made.images, made.rows)
    assert joined.column_names == ["image", "label", *(name for name in made.rows.column_names if name != "label")]
    assert dict(joined.features) == {**made.images.features, **made.rows.features}
    assert joined.remove_columns("image")[:] == {name: made.rows[:][name] for name in joined.column_names if name != "image"}
    assert contents(joined) == [file.read_bytes() for file in made.files]
    for row, file in zip(joined, made.files, strict=True):
        assert row["image"].size == tuple(row["image_size"]) and row["image_id"] == file.name


def test_join_keeps_the_order_of_the_images(made):
    orders = {
        "subset": made.images.select([7, 2, 5]),
        "shuffled": made.images.shuffle(seed=1),
        "filtered": made.images.filter(lambda label: label in (1, 4), input_columns="label"),
        "sorted": made.images.sort("label", reverse=True),
        "flattened": made.images.shuffle(seed=2).flatten_indices(),
    }
    rows = {row["image_id"]: row for row in made.rows}
    for order, images in orders.items():
        joined = join_coordinates(images, made.rows)
        assert len(joined) == len(images) and contents(joined) == contents(images), order
        for row, content in zip(joined.remove_columns("image"), contents(images), strict=True):
            assert row == rows[row["image_id"]], order
            assert row["image_sha256"] == hashlib.sha256(content).hexdigest(), order
    assert [row["image_id"] for row in join_coordinates(orders["subset"], made.rows)] == [
        made.files[i].name for i in (7, 2, 5)
    ]


def test_images_without_coordinates_are_left_out(made):
    joined = join_coordinates(made.images, made.rows.select([9, 3, 4]))
    assert joined["image_index"] == [3, 4, 9] and contents(joined) == [made.files[i].read_bytes() for i in (3, 4, 9)]


def test_many_gaps(nameless, monkeypatch):
    """Beyond a limit, a table of many slices would be slower than a copy."""
    monkeypatch.setattr("spot_hf.coordinates.loading.MAX_SLICES", 3)
    chosen = [0, 2, 4, 6, 11]
    joined = join_coordinates(nameless.images, nameless.rows.select(chosen))
    assert joined["image_index"] == chosen and contents(joined) == [contents(nameless.images)[i] for i in chosen]


def test_images_are_not_copied(nameless):
    """Their bytes stay in the memory-mapped file that `datasets` prepared, also where some are left out."""
    [file] = {one["filename"] for one in nameless.images.cache_files}
    for chosen in (range(COUNT), range(3, 8), [0, 4, 5, 6, 11]):
        joined = join_coordinates(nameless.images, nameless.rows.select(chosen))
        assert joined._indices is None and joined["image_index"] == list(chosen)
        blocks = [block for blocks in joined.data.blocks for block in blocks if "image" in block.column_names]
        assert blocks and all(isinstance(block, datasets.table.MemoryMappedTable) and block.path == file for block in blocks)


@pytest.mark.parametrize("kind", ["made", "nameless"])
def test_a_stream_is_joined_alike(kind, request):
    it = request.getfixturevalue(kind)
    stream = load_images(it.pictures, streaming=True)
    assert isinstance(stream, datasets.IterableDataset)
    joined = join_coordinates(stream, it.rows)
    assert isinstance(joined, datasets.IterableDataset)
    expected = join_coordinates(it.images, it.rows)
    assert dict(joined.features) == dict(expected.features)
    found = list(joined)
    assert len(found) == COUNT
    for row, other in zip(found, expected, strict=True):
        assert list(row) == list(other)
        assert {**row, "image": np.array(row["image"]).tolist()} == {**other, "image": np.array(other["image"]).tolist()}
    part = join_coordinates(stream.take(7), it.rows.select(range(5, 12)))
    assert [row["image_index"] for row in part] == [5, 6]
    # A stream that does not state its columns, as after `map`: images as they are stored are images still.
    unstated = stream.cast_column("image", datasets.Image(decode=False)).map(lambda row: row)
    assert unstated.features is None
    assert [row["image_sha256"] for row in join_coordinates(unstated, it.rows)] == it.rows["image_sha256"]


def test_changed_images_are_counted_and_named(made, tmp_path):
    shutil.copytree(Path(made.pictures) / "test", tmp_path / "test")
    changed = [made.files[i].relative_to(made.pictures) for i in (1, 4, 6, 8)]
    for file in changed:
        Image.open(tmp_path / file).resize((20, 20)).save(tmp_path / file)
    images = load_images(str(tmp_path), split="test")
    with pytest.raises(ValueError) as error:
        join_coordinates(images, made.rows)
    assert "`coordinates` were found for other images: the bytes of 4 of 12 differ" in str(error.value)
    assert ", ".join(file.name for file in changed[:3]) + ", ..." in str(error.value)
    assert changed[3].name not in str(error.value)
    with pytest.raises(ValueError, match="the bytes of 4 of 12 differ"):
        list(join_coordinates(load_images(str(tmp_path), split="test", streaming=True), made.rows))
    whole = [i for i in range(COUNT) if i not in (1, 4, 6, 8)]
    assert join_coordinates(images, made.rows.select(whole))["image_index"] == whole


def test_images_of_something_else(made, nameless, tmp_path):
    picture(50, (30, 30)).save(tmp_path / "unknown.png")
    images = datasets.load_dataset(str(tmp_path), split="train")
    with pytest.raises(ValueError, match="`coordinates` hold none of the 1 images"):
        join_coordinates(images, made.rows)
    with pytest.raises(ValueError, match="`coordinates` hold none of the 12 images"):
        join_coordinates(made.images, nameless.rows)
    assert list(join_coordinates(load_images(made.pictures, streaming=True), nameless.rows)) == []
    with pytest.raises(ValueError, match="`image_column_name` must be one of image, label; got 'picture'"):
        join_coordinates(made.images, made.rows, image_column_name="picture")


def test_other_column_names(made):
    renamed = made.images.rename_columns({"image": "picture", "label": "kind"})
    joined = join_coordinates(renamed, made.rows, image_column_name="picture")
    assert joined.column_names == ["picture", "kind", *made.rows.column_names]
    assert joined["label"] == joined["kind"] == made.images["label"]


@pytest.mark.parametrize("streaming", [False, True])
def test_images_of_one_name(tmp_path, streaming):
    for i, name in enumerate(("a", "b", "c")):
        (tmp_path / "train" / name).mkdir(parents=True)
        picture(i, (20, 20)).save(tmp_path / "train" / name / "0.png")
    images = load_images(str(tmp_path), split="train")
    source = load_images(str(tmp_path), split="train", streaming=streaming)
    backwards = coordinates_of(images, [2, 1, 0])
    joined = list(join_coordinates(source, backwards))
    assert [row["image_index"] for row in joined] == [0, 1, 2]
    assert [row["coordinates"][0][0] for row in joined] == pytest.approx([0.0, 0.01, 0.02])
    # Where a run stopped after `max_samples`, one name may have coordinates and not: no reason to refuse the others.
    first = list(join_coordinates(source, coordinates_of(images, [0])))
    assert [row["image_index"] for row in first] == [0]
    # But coordinates whose own image is not there are another matter.
    other = coordinates_of(images, [0]).map(lambda row: {"image_sha256": "0" * 64})
    with pytest.raises(ValueError, match=r"the bytes of 3 of 3 differ, such as 0\.png, 0\.png, 0\.png"):
        list(join_coordinates(source, other))


def test_images_without_names(nameless):
    joined = join_coordinates(nameless.images, nameless.rows)
    assert joined["image_id"] == [f"validation/{i}" for i in range(COUNT)]
    assert contents(joined) == contents(nameless.images)
    assert np.array(joined["window_scales"]).shape == (COUNT, 5) and (np.array(joined["window_scales"]) != 1).any()
    # Their ids are numbers: in another order they are other images.
    with pytest.raises(ValueError, match=r"the bytes of 2 of 2 differ, such as validation/0, validation/1. .* shuffled"):
        join_coordinates(nameless.images.select([3, 4]), nameless.rows)
    # A data set that was put together does not know of which split it is.
    for anonymous in (
        datasets.concatenate_datasets([nameless.images.select(range(5)), nameless.images.select(range(5, 12))]),
        datasets.Dataset.from_dict({"image": nameless.images.cast_column("image", datasets.Image(decode=False))["image"][:]})
        .cast_column("image", datasets.Image()),
    ):  # fmt: skip
        if anonymous.split is None:
            with pytest.raises(ValueError, match="`split` is needed"):
                join_coordinates(anonymous, nameless.rows)
        assert len(join_coordinates(anonymous, nameless.rows, split="validation")) == COUNT
        with pytest.raises(ValueError, match="hold none of the 12 images"):
            join_coordinates(anonymous, nameless.rows, split="test")


# ------------------------------------------------------------------------------------- use: processor, model, pipeline


@pytest.mark.parametrize("config", ["spot_n4", "spot_n9"])
@torch.no_grad()
def test_rows_reproduce_their_predictions(made, config):
    rows = load_coordinates(made.run, config)
    joined = join_coordinates(made.images, rows)
    model = AutoModelForImageClassification.from_pretrained(made.model).eval()
    processor = AutoImageProcessor.from_pretrained(made.model)
    for row in joined:
        losses = []
        for name, prediction in (("initial_coordinates", "initial_prediction"), ("coordinates", "prediction")):
            inputs = processor(row["image"], coordinates=row[name], return_tensors="pt")
            logits = model(**inputs).logits
            assert logits.argmax().item() == row[prediction], row["image_id"]
            losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor([row["label"]])).item())
        # Positions were stored relative to the image, in float32, and mapped back.
        assert losses == pytest.approx([row["losses"][0], min(row["losses"])], abs=1e-3)
    # The bare encoder too takes what the processor gives.
    encoder = AutoModel.from_pretrained(made.model).eval()
    assert encoder(**inputs).last_hidden_state.shape[1] == 1 + len(row["coordinates"])
    accuracy = np.mean(np.array(rows["prediction"]) == np.array(rows["label"]))
    assert accuracy > np.mean(np.array(rows["initial_prediction"]) == np.array(rows["label"])), "the search found nothing"


@torch.no_grad()
def test_window_scales_are_part_of_the_prediction(made, nameless):
    joined = join_coordinates(nameless.images, nameless.rows)
    model = AutoModelForImageClassification.from_pretrained(made.model).eval()
    processor = AutoImageProcessor.from_pretrained(made.model)
    without = []
    for row in joined:
        inputs = processor(row["image"], coordinates=row["coordinates"], return_tensors="pt")
        logits = model(**inputs, window_scales=torch.tensor([row["window_scales"]])).logits
        assert logits.argmax().item() == row["prediction"]
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor([row["label"]])).item()
        assert loss == pytest.approx(min(row["losses"]), abs=1e-3)  # as above
        without.append(abs(model(**inputs).logits - logits).max().item())
    assert np.median(without) > 0.1


@pytest.mark.parametrize("batch_size", [1, 5])
@pytest.mark.parametrize("kind", ["made", "nameless"])
def test_the_pipeline_takes_joined_rows(made, kind, batch_size, request):
    it = request.getfixturevalue(kind)
    joined = join_coordinates(it.images, it.rows)
    classifier = pipeline(
        "spot-image-classification",
        model=AutoModelForImageClassification.from_pretrained(made.model),
        image_processor=AutoImageProcessor.from_pretrained(made.model),
    )
    answers = classifier(list(joined), top_k=1, batch_size=batch_size, return_coordinates=True)
    assert [answer["predictions"][0]["label"] for answer in answers] == [CLASSES[i] for i in joined["prediction"]]
    for answer, row in zip(answers, joined, strict=True):
        np.testing.assert_allclose(answer["coordinates"], row["coordinates"], rtol=0, atol=1e-6)  # float32, there and back
    assert classifier(joined[3], top_k=1)[0]["label"] == CLASSES[joined[3]["prediction"]]
    streamed = classifier((row for row in joined), top_k=1, batch_size=batch_size)
    assert [answer[0]["label"] for answer in streamed] == [CLASSES[i] for i in joined["prediction"]]


# ----------------------------------------------------------------------------------------------------------- transfer


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


def wilson(right: int, count: int) -> tuple[float, float]:
    """Wilson's score interval in percent, as in his paper of 1927."""
    z, share = 1.959963984540054, right / count
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return 100 * (middle - half), 100 * (middle + half)


@pytest.mark.parametrize(
    ("kind", "which"), [("made", "own"), ("made", "other"), ("nameless", "own")], ids=["own", "other", "window scales"]
)
def test_transfer_is_a_plain_loop(made, kind, which, other_model, tmp_path, request):
    it = request.getfixturevalue(kind)
    model = made.model if which == "own" else other_model
    config = made.config if kind == "made" else None
    lines = []
    result = evaluate_transfer(
        model, it.run, it.pictures, config=config, batch_size=5, output_dir=tmp_path / "out", say=lines.append
    )
    joined = join_coordinates(it.images, it.rows)
    right = plain_transfer(model, joined)
    assert len({tuple(values) for values in right.values()}) > 1, "the sets make no difference"
    for name, values in right.items():
        accuracy = result["accuracy"][name]
        assert accuracy["value"] == pytest.approx(100 * values.mean())
        assert (accuracy["low"], accuracy["high"]) == pytest.approx(wilson(int(values.sum()), COUNT))
    control = result["difference_to_control"]
    assert control["value"] == pytest.approx(100 * (right["shared"].mean() - right["control"].mean()))
    for name in ("shared", "snapped", "control"):
        difference = result["difference_to_initial"][name]
        assert difference["gained"] == (right[name] & ~right["initial"]).sum()
        assert difference["lost"] == (right["initial"] & ~right[name]).sum()
        assert difference["value"] == pytest.approx(100 * (right[name].mean() - right["initial"].mean()))
        assert difference["low"] <= difference["value"] <= difference["high"]
    if which == "own":  # what the run itself says
        for name, column in (("initial", "initial_prediction"), ("shared", "prediction")):
            truth = np.array(joined[column]) == np.array(joined["label"])
            assert result["accuracy"][name]["value"] == pytest.approx(100 * truth.mean())
    assert result["num_images"] == COUNT and result["num_tokens"] == len(joined[0]["coordinates"])
    assert result["config"] == it.rows.info.config_name and result["split"] == str(it.rows.split)
    assert not any("/" in result[name] for name in ("model", "dataset", "coordinates")), "a path of this machine"
    assert json.loads((tmp_path / "out" / "transfer.json").read_text()) == result
    table = (tmp_path / "out" / "transfer.md").read_text()
    assert lines[0] == table.rstrip() and f"| shared | {result['accuracy']['shared']['value']:.1f} (" in table
    assert all(f"\n| {name} |" in table for name in right)


def test_transfer_of_the_first_images(made):
    options = {"config": made.config, "say": quiet}
    result = evaluate_transfer(made.model, made.run, made.pictures, max_samples=5, batch_size=2, **options)
    right = plain_transfer(made.model, join_coordinates(made.images.select(range(5)), made.rows))
    assert result["num_images"] == 5
    assert {name: one["value"] for name, one in result["accuracy"].items()} == {
        name: pytest.approx(100 * values.mean()) for name, values in right.items()
    }
    # Batches of another size: the same counts.
    again = evaluate_transfer(made.model, made.run, made.pictures, max_samples=5, batch_size=64, **options)
    assert again == result


def test_oracle_and_transfer_among_the_classes_that_occur(made, tmp_path):
    """Five, of a model that knows fifteen."""
    model, classes = str(tmp_path / "fifteen"), [0, 1, 2, 3, 4]
    tiny_model(num_labels=15).save_pretrained(model)
    tiny_processor().save_pretrained(model)
    arguments = OracleRunArguments(
        model=model, dataset_name=made.pictures, num_tokens=[9], steps=1, learning_rate=0.03, among_labels=True, num_workers=0
    )
    run_oracle(arguments, tmp_path / "run", say=quiet)
    joined = join_coordinates(made.images, load_coordinates(tmp_path / "run"))
    spot, processor = AutoModelForImageClassification.from_pretrained(model), AutoImageProcessor.from_pretrained(model)
    for row in joined:
        inputs = processor(row["image"], coordinates=row["initial_coordinates"], return_tensors="pt")
        with torch.no_grad():
            logits = spot(**inputs).logits[:, classes]
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor([row["label"]])).item()
        assert row["losses"][0] == pytest.approx(loss, rel=1e-4)  # of float32, through batches of another size
        assert row["initial_prediction"] == logits.argmax().item() and row["prediction"] in classes

    result = evaluate_transfer(model, str(tmp_path / "run"), made.pictures, among_labels=True, say=quiet)
    right, all_classes = plain_transfer(model, joined, classes), plain_transfer(model, joined)
    assert {name: one["value"] for name, one in result["accuracy"].items()} == {
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
        ({"coordinates_split": "train"}, ValueError, "`split` must be one of test"),
        ({"dataset_split": "train"}, ValueError, "`dataset_split` must be one of test; got 'train'"),
        ({"label_column_name": "class"}, ValueError, "`label_column_name` must be one of image, label; got 'class'"),
        ({"dataset_name": nameless.pictures, "dataset_split": "validation"}, ValueError, "hold none of the 12 images"),
    ]
    for changes, kind, message in cases:
        arguments = {"model": made.model, "coordinates": made.run, "dataset_name": made.pictures, "config": made.config}
        with pytest.raises(kind, match=message):
            evaluate_transfer(**{**arguments, **changes}, output_dir=tmp_path / "out", say=quiet)
        assert not (tmp_path / "out").exists(), changes


@pytest.mark.parametrize(("right", "count"), [(0, 12), (12, 12), (1, 1), (7, 12), (413, 1000)])
def test_accuracy_has_wilsons_interval(right, count):
    found = Accuracy.of(np.arange(count) < right)
    assert found.value == pytest.approx(100 * right / count)
    assert (found.low, found.high) == pytest.approx(wilson(right, count), abs=1e-9)
    assert 0 <= found.low <= found.value + 1e-9 and found.value - 1e-9 <= found.high <= 100


@pytest.mark.parametrize(("count", "first_share", "second_share"), [(200, 0.4, 0.55), (60, 0.9, 0.9), (300, 0.1, 0.05)])
def test_the_interval_of_a_difference_is_that_of_a_bootstrap_over_images(count, first_share, second_share):
    generator = np.random.default_rng(5)
    first, second = generator.random(count) < first_share, generator.random(count) < second_share
    found = Difference.of(first, second)
    assert (found.gained, found.lost) == ((second & ~first).sum(), (first & ~second).sum())
    assert found.value == pytest.approx(100 * (second.mean() - first.mean()))
    images = generator.integers(0, count, (10_000, count))
    resampled = 100 * (second[images].mean(1) - first[images].mean(1))
    # A quantile q of 10,000 draws from a normal distribution has a standard error of sqrt(q (1 - q) / 10,000) / density, 0.027
    # of its standard deviation at q = 0.025. Both intervals have it: four of them are 0.15 together. And all values are
    # multiples of one image.
    tolerance = 0.15 * resampled.std() + 100 / count
    assert (found.low, found.high) == pytest.approx(np.quantile(resampled, [0.025, 0.975]), abs=tolerance)
    assert tolerance < 0.4 * (found.high - found.low), "too lax to notice a wrong width"
    reverse = Difference.of(second, first)
    assert (reverse.value, reverse.gained, reverse.lost) == (-found.value, found.lost, found.gained)
    assert Difference.of(first, second) == found  # no chance in it


def test_no_difference_has_no_interval():
    same = np.arange(50) % 3 == 0
    assert Difference.of(same, same) == Difference(0.0, 0.0, 0.0, 0, 0)
    assert Difference.of(~same & False, same | True) == Difference(100.0, 100.0, 100.0, 50, 0)


# ----------------------------------------------------------------------------------------------------------- pictures


def read_picture(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The three parts side by side, without titles: ways, windows at the start, windows at the end."""
    picture = Image.open(path)
    pixels = np.asarray(picture.convert("RGB")).astype(int)
    assert picture.format == "PNG" and pixels.shape == (570, 1575, 3)
    ways, *windows = (pixels[60:, left : left + 525] for left in (0, 525, 1046))
    for i, part in enumerate(windows):  # from edge to edge of what is drawn on white
        drawn = (part < 250).any(-1)
        rows, columns = np.flatnonzero(drawn.mean(1) > 0.5), np.flatnonzero(drawn.mean(0) > 0.5)
        windows[i] = part[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height, width = np.minimum(windows[0].shape[:2], windows[1].shape[:2])  # they may be rounded to other pixels
    assert height > 300 and width > 300
    return ways, windows[0][:height, :width], windows[1][:height, :width]


def changed(path: Path) -> float:
    """The share of pixels that differ between windows at the start and at the end."""
    _, start, end = read_picture(path)
    return (abs(start - end).max(-1) > 60).mean()


def coloured(path: Path) -> int:
    """The number of pixels of the ways that are not grey, as the image below them is."""
    return (np.ptp(read_picture(path)[0], axis=-1) > 60).sum()


def test_pictures(made, tmp_path):
    ids = [made.files[6].name, made.files[1].name]
    lines = []
    written = show_coordinates(
        made.run, ids, tmp_path / "out", config=made.config, dataset_name=made.pictures, say=lines.append
    )
    assert [path.name for path in written] == [f"{Path(one).stem}_n9.png" for one in ids]
    assert sorted(tmp_path.glob("out/*")) == sorted(written) and all(path.stat().st_size > 10_000 for path in written)
    assert lines == [f"written to {path}" for path in written]
    # Beside the same pictures of a search that took no step.
    arguments = OracleRunArguments(model=made.model, dataset_name=made.pictures, num_tokens=[9], steps=0, num_workers=0)
    run_oracle(arguments, tmp_path / "still", say=quiet)
    still = show_coordinates(str(tmp_path / "still"), ids, tmp_path / "out2", dataset_name=made.pictures, say=quiet)
    for moved, unmoved in zip(written, still, strict=True):
        assert changed(unmoved) < 0.02  # lines that are rounded to the next pixel
        assert changed(moved) > 0.2  # windows of 8 pixels of 32, which move by 1 or 2
        assert coloured(moved) > 2 * coloured(unmoved) > 0  # a way beside a dot


def test_pictures_of_images_without_names(nameless, made, tmp_path):
    written = show_coordinates(
        nameless.run, ["validation/7", "validation/2"], tmp_path, dataset_name=nameless.pictures, say=quiet
    )
    assert {path.name for path in written} == {"validation_7_n5.png", "validation_2_n5.png"}
    assert all(path.exists() for path in written)


def test_pictures_from_a_copy_in_another_order(made, tmp_path):
    for i, file in enumerate(reversed(made.files)):
        (tmp_path / "data" / "test" / f"{i:02d}").mkdir(parents=True)
        shutil.copy(file, tmp_path / "data" / "test" / f"{i:02d}")
    options = {"config": made.config, "say": quiet}
    # At their places in the copy are none of these images, or two of these three.
    for case, indices in enumerate([(0, 10), (0, 11, 3)]):
        ids = [made.files[i].name for i in indices]
        pictures = [
            show_coordinates(made.run, ids, tmp_path / f"out{case}" / source.name, dataset_name=str(source), **options)
            for source in (tmp_path / "data", Path(made.pictures))
        ]
        found, expected = ({path.name: path.read_bytes() for path in written} for written in pictures)
        assert found == expected and len(found) == len(indices)
    shutil.rmtree(tmp_path / "data" / "test" / "00")  # the last image's
    absent = made.files[11].name
    with pytest.raises(ValueError, match=f"`dataset_name` must hold the images of `image_id`; {absent} are not there"):
        show_coordinates(made.run, ids, tmp_path / "out", dataset_name=str(tmp_path / "data"), **options)


def test_pictures_of_images_of_one_name(made, tmp_path):
    """In two classes, or of two formats: each has a picture of its own."""
    for name in ("ant/0.png", "bee/0.png", "bee/0.jpg"):
        (tmp_path / "data" / "test" / name).parent.mkdir(parents=True, exist_ok=True)
        picture(len(name) + ord(name[0]), (40, 40)).save(tmp_path / "data" / "test" / name)
    arguments = OracleRunArguments(
        model=made.model, dataset_name=str(tmp_path / "data"), num_tokens=[4], steps=1, num_workers=0, objective="distill"
    )
    run_oracle(arguments, tmp_path / "run", say=quiet)
    written = show_coordinates(
        str(tmp_path / "run"), ["0.png", "0.jpg"], tmp_path / "out", dataset_name=str(tmp_path / "data"), say=quiet
    )
    assert len(set(written)) == 3 and len({path.read_bytes() for path in written}) == 3


def test_what_cannot_be_shown(made, tmp_path):
    options = {"config": made.config, "output_dir": tmp_path / "out", "say": quiet}
    with pytest.raises(ValueError, match=r"`image_id` must be ids of .*, such as ant0.jpg, .*; got 'absent.jpg', 'no.png'"):
        show_coordinates(made.run, ["absent.jpg", "ant0.jpg", "no.png"], dataset_name=made.pictures, **options)
    with pytest.raises(ValueError, match="`dataset_name` is needed: the images lay in a local directory, 'pictures'"):
        show_coordinates(made.run, ["ant0.jpg"], **options)
    with pytest.raises(ValueError, match="`config` must be one of spot_n4, spot_n9"):
        show_coordinates(made.run, ["ant0.jpg"], **{**options, "config": None})
    with pytest.raises(ValueError, match="`image_column_name` must be one of image, label; got 'picture'"):
        show_coordinates(made.run, ["ant0.jpg"], dataset_name=made.pictures, image_column_name="picture", **options)
    with pytest.raises(OSError, match="holds no coordinate data set"):
        show_coordinates(str(tmp_path), ["ant0.jpg"], **options)
    assert not (tmp_path / "out").exists()
