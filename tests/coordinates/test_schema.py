"""Columns and rows of a finished run are those of the contract."""

import hashlib
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from coordinate_runs import CLASSES, COUNT
from PIL import Image

from spot_hf.coordinates.schema import coordinate_features


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
