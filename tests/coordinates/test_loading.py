"""Coordinate data sets, loaded by directory, config and split; what is none is refused."""

import shutil

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from coordinate_runs import COUNT

from spot_hf import load_coordinates
from spot_hf.oracle.arguments import OracleArguments
from spot_hf.oracle.run import run_oracle


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


def test_files_that_changed_are_read_again(made, tmp_path):
    """Of the same names, numbers of rows and card: `datasets` alone would give what it has prepared before."""
    shutil.copytree(made.run, tmp_path / "run")
    before = load_coordinates(tmp_path / "run", made.config)
    for shard in (tmp_path / "run" / made.config).glob("*.parquet"):
        table = pq.read_table(shard)
        at = table.schema.get_field_index("prediction")
        pq.write_table(table.set_column(at, table.schema.field(at), pa.array([4] * len(table))), shard)
    after = load_coordinates(tmp_path / "run", made.config)
    assert set(after["prediction"]) == {4} != set(before["prediction"])
    assert after.remove_columns("prediction")[:] == before.remove_columns("prediction")[:]
    assert after.features == before.features and after.info.config_name == made.config and str(after.split) == "test"
    # And what has not changed is prepared once.
    assert load_coordinates(tmp_path / "run", made.config).cache_files == after.cache_files


def test_a_run_that_was_done_again_is_read_again(made, tmp_path):
    """With other results of the same size, as another seed gives them."""
    found = []
    for seed in (0, 1):
        arguments = OracleArguments(
            model=made.model, dataset_name=made.pictures, num_tokens=[4], steps=1, seed=seed, num_workers=0,
            output_dir=str(tmp_path / "run"), overwrite_output_dir=True, placement="uniform",
        )  # fmt: skip
        run_oracle(arguments)
        found.append(load_coordinates(tmp_path / "run")["initial_coordinates"][:])
    assert found[0] != found[1]


def test_a_shard_that_is_missing_is_noticed(made, tmp_path):
    """By the number of rows that the card states."""
    shutil.copytree(made.run, tmp_path / "run")
    next((tmp_path / "run" / made.config).glob("*-00001-*")).unlink()
    with pytest.raises(datasets.exceptions.NonMatchingSplitsSizesError):
        load_coordinates(tmp_path / "run", made.config)
