"""Coordinates beside their images: by id, and by the hash of their bytes."""

import hashlib
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
from coordinate_runs import COUNT, contents, coordinates_of, images_of, picture
from PIL import Image

from spot_hf import join_coordinates


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
    monkeypatch.setattr("spot_hf.coordinates.joining.MAX_SLICES", 3)
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
    stream = images_of(it.pictures, streaming=True)
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
    images = images_of(tmp_path, split="test")
    with pytest.raises(ValueError) as error:
        join_coordinates(images, made.rows)
    assert "`coordinates` were found for other images: the bytes of 4 of 12 differ" in str(error.value)
    assert ", ".join(file.name for file in changed[:3]) + ", ..." in str(error.value)
    assert changed[3].name not in str(error.value)
    with pytest.raises(ValueError, match="the bytes of 4 of 12 differ"):
        list(join_coordinates(images_of(tmp_path, split="test", streaming=True), made.rows))
    whole = [i for i in range(COUNT) if i not in (1, 4, 6, 8)]
    assert join_coordinates(images, made.rows.select(whole))["image_index"] == whole


def test_images_of_something_else(made, nameless, tmp_path):
    picture(50, (30, 30)).save(tmp_path / "unknown.png")
    images = datasets.load_dataset(str(tmp_path), split="train")
    with pytest.raises(ValueError, match="`coordinates` hold none of the 1 images"):
        join_coordinates(images, made.rows)
    with pytest.raises(ValueError, match="`coordinates` hold none of the 12 images"):
        join_coordinates(made.images, nameless.rows)
    assert list(join_coordinates(images_of(made.pictures, streaming=True), nameless.rows)) == []
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
    images = images_of(tmp_path, split="train")
    source = images_of(tmp_path, split="train", streaming=streaming)
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
