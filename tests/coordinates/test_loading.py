"""Coordinate data sets, loaded by directory, config and split; what is none is refused."""

import shutil

import datasets
import numpy as np
import pytest
from coordinate_runs import COUNT

from spot_hf import load_coordinates


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
