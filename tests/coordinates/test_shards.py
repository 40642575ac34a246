"""Shards, and what all of them say together."""

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest

from spot_hf.coordinates.schema import check_config_name, coordinate_features
from spot_hf.coordinates.shards import CoordinateDirectory, Shard, ShardFacts
from spot_hf.coordinates.summary import DENSITY_CELLS, Summary, summarize
from spot_hf.data.failures import FailedImage
from spot_hf.data.labels import LabelMapping


FAILED = FailedImage(5, "5.png", "OSError: gone")


def make_shard(count: int, seed: int, labels: bool = True) -> tuple[Shard, dict]:
    """A shard of two batches, and its rows as columns."""
    generator = np.random.default_rng(seed)
    columns = {
        "image_id": [f"{i}.png" for i in range(count)],
        "image_index": list(range(count)),
        "image_sha256": ["0" * 64] * count,
        "image_size": np.full((count, 2), 32, dtype=np.int32),
        "label": [i % 3 if labels else None for i in range(count)],
        "coordinates": generator.random((count, 4, 2), dtype=np.float32),
        "initial_coordinates": generator.random((count, 4, 2), dtype=np.float32),
        "losses": generator.random((count, 3), dtype=np.float32),
        "initial_prediction": generator.integers(0, 3, count) if labels else [None] * count,
        "prediction": generator.integers(0, 3, count) if labels else [None] * count,
    }
    shard = Shard(coordinate_features(datasets.Value("int64"), 4), failed=[FAILED])
    for part in (slice(0, 2), slice(2, None)):
        shard.add({name: values[part] for name, values in columns.items()})
    shard.num_steps, shard.num_labelled = 2 * count, count if labels else 0
    shard.correct_per_step = np.array([1, 2, 3])
    return shard, columns


def test_a_shard_is_read_back_as_it_was_written(tmp_path):
    shard, columns = make_shard(5, 0)
    shard.write(tmp_path / "x.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["x.parquet"]
    found = datasets.Dataset.from_parquet(str(tmp_path / "x.parquet"), cache_dir=str(tmp_path / "cache"))
    assert found.features == shard.features
    for name, values in columns.items():
        np.testing.assert_array_equal(np.array(found[name]), np.array(values))
    facts = ShardFacts.read(tmp_path / "x.parquet")
    assert (facts.num_images, facts.num_steps, facts.num_labelled, facts.correct_per_step) == (5, 10, 5, [1, 2, 3])
    assert facts.failed == [FAILED] and facts.num_bytes > 5 * 4 * 2 * 4 * 2


def test_an_empty_shard(tmp_path):
    Shard(coordinate_features(datasets.Value("int64"), 4), failed=[FAILED]).write(tmp_path / "x.parquet")
    assert pq.read_metadata(tmp_path / "x.parquet").num_row_groups == 0
    facts = ShardFacts.read(tmp_path / "x.parquet")
    assert facts.num_images == facts.num_bytes == 0 and facts.failed == [FAILED]


def test_a_directory_is_its_own_ledger(tmp_path):
    directory = CoordinateDirectory(tmp_path)
    for index, split in ((10, "test"), (2, "test"), (0, "test-b"), (1, "train")):
        make_shard(3, index)[0].write(directory.shard_path("c_n4", split, index, None))
    (tmp_path / "c_n4/.test-00003.parquet.17.tmp").write_bytes(b"half")
    (tmp_path / "c_n4/notes.parquet").write_bytes(b"another's")
    assert list(directory.shards("c_n4", "test")) == [2, 10]
    assert list(directory.shards("c_n4", "test-b")) == [0] and directory.shards("other_n4", "test") == {}
    directory.name_totals("c_n4", "test", 11)
    directory.name_totals("c_n4", "test", 11)  # again, as after a kill
    assert [path.name for path in directory.shards("c_n4", "test").values()] == [
        "test-00002-of-00011.parquet",
        "test-00010-of-00011.parquet",
    ]
    directory.clean()
    assert not list(tmp_path.rglob("*.tmp")) and (tmp_path / "c_n4/notes.parquet").exists()


def test_a_summary_is_that_of_all_rows(tmp_path):
    shards = [make_shard(count, seed) for seed, count in enumerate((5, 3))]
    for i, (shard, _) in enumerate(shards):
        shard.write(tmp_path / f"{i}.parquet")
    summary = summarize(sorted(tmp_path.glob("*.parquet")), LabelMapping(5))
    rows = {name: np.concatenate([np.array(columns[name]) for _, columns in shards]) for name in shards[0][1]}
    assert (summary.num_images, summary.num_labelled, summary.num_steps, summary.failed) == (8, 8, 16, [FAILED] * 2)
    assert summary.accuracy_before == pytest.approx(100 * np.mean(rows["initial_prediction"] == rows["label"]), abs=1e-3)
    assert summary.accuracy_after == pytest.approx(100 * np.mean(rows["prediction"] == rows["label"]), abs=1e-3)
    assert summary.accuracy_per_step == [25.0, 50.0, 75.0]
    np.testing.assert_allclose(summary.loss_per_step, rows["losses"].astype(np.float64).mean(0), rtol=1e-12)
    assert summary.download_size == sum(path.stat().st_size for path in tmp_path.glob("*.parquet"))
    for density, name in ((summary.start_density, "initial_coordinates"), (summary.end_density, "coordinates")):
        expected = np.zeros((DENSITY_CELLS, DENSITY_CELLS))
        for x, y in rows[name].reshape(-1, 2):
            expected[int(y * DENSITY_CELLS), int(x * DENSITY_CELLS)] += 1 / 32
        np.testing.assert_allclose(density, expected, atol=1e-12)
    # Through the record: all but what is drawn.
    again = Summary.from_json(summary.to_json())
    assert again.start_density is None and again.to_json() == summary.to_json() and again.failed == summary.failed


def test_a_summary_without_labels(tmp_path):
    make_shard(4, 0, labels=False)[0].write(tmp_path / "0.parquet")
    summary = summarize([tmp_path / "0.parquet"], LabelMapping(5))
    assert summary.accuracy_before is summary.accuracy_after is None and summary.accuracy_per_step == []
    assert len(summary.loss_per_step) == 3


@pytest.mark.parametrize("name", ["", "data", "a/b", "a[1]", "a*", ".a", 'a"b', "a:b"])
def test_names_that_no_config_can_have(name):
    with pytest.raises(ValueError, match="`run_name` must be a name without"):
        check_config_name("run_name", name)
