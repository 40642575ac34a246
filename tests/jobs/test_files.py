"""Output directories: whole or not at all, and nobody's files are lost."""

import pytest

from spot_hf.jobs.files import check_output_dir, replaced_directory


def test_it_takes_the_place_of_what_was_there(tmp_path):
    out = tmp_path / "new" / "out"
    with replaced_directory(out, overwrite=False) as temporary:
        (temporary / "a").write_text("1")
        assert not out.exists()
    with replaced_directory(out, overwrite=True) as temporary:
        (temporary / "b").write_text("2")
    assert [path.name for path in out.iterdir()] == ["b"] and [path.name for path in out.parent.iterdir()] == ["out"]


def test_a_failure_leaves_everything_as_it_was(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("mine")
    with pytest.raises(RuntimeError), replaced_directory(tmp_path / "out", overwrite=True) as temporary:
        (temporary / "half").write_text("written")
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "precious").read_text() == "mine"


def test_a_link_is_followed(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with replaced_directory(tmp_path / "link", overwrite=True) as temporary:
        (temporary / "a").write_text("1")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real" / "a").read_text() == "1"


@pytest.mark.parametrize("output_dir", [".", "..", "here/..", "source", "source/.."])
def test_what_may_not_be_replaced(tmp_path, monkeypatch, output_dir):
    for name in ("here", "source"):
        (tmp_path / "work" / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    with pytest.raises(ValueError, match="must not be or hold"):
        check_output_dir(output_dir, overwrite=True, inputs=["source", "user/name"])
    assert check_output_dir("here", overwrite=False, inputs=["source"]) == tmp_path / "work" / "here"
