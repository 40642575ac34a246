"""Output directories: whole or not at all, and nobody's files are lost."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
from conftest import ROOT
from oracle_runs import files_of

from spot_hf.jobs.files import check_output_dir, is_written_by_us, replaced_directory, write_atomically


# By name of the file: what says that one of our commands wrote its directory.
OURS = {
    "run.json": {"parameters": {"seed": 0}},
    "conversion_report.json": {"source_model": "a/b"},
    "results.json": {"remote_code": {}, "models": {}, "num_images": 1},
}


def mark(directory, name="conversion_report.json"):
    """Makes it one of ours."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / name).write_text(json.dumps(OURS[name]))


def test_it_takes_the_place_of_what_was_there(tmp_path):
    out = tmp_path / "new" / "out"
    with replaced_directory(out, overwrite=False) as temporary:
        (temporary / "a").write_text("1")
        mark(temporary)
        assert not out.exists()
    with replaced_directory(out, overwrite=True) as temporary:
        (temporary / "b").write_text("2")
    assert [path.name for path in out.iterdir()] == ["b"] and [path.name for path in out.parent.iterdir()] == ["out"]


def test_a_failure_leaves_everything_as_it_was(tmp_path):
    mark(tmp_path / "out")
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


@pytest.mark.parametrize("name", OURS)
def test_only_what_our_commands_wrote_is_replaced(tmp_path, name):
    mark(tmp_path / "ours", name)
    (tmp_path / "ours" / "model.safetensors").write_bytes(b"weights")
    assert is_written_by_us(tmp_path / "ours")
    assert check_output_dir(tmp_path / "ours", overwrite=True) == tmp_path / "ours"
    with pytest.raises(ValueError, match="is not empty; give `overwrite_output_dir` to replace it"):
        check_output_dir(tmp_path / "ours", overwrite=False)


# Files in a directory of somebody else, some of which are called as ours are.
THEIRS = {
    "another's file": {"thesis.tex": "my life's work"},
    "no JSON": {"run.json": "parameters"},
    "a list": {"run.json": '["parameters"]'},
    "a text": {"run.json": '"parameters"'},
    "a number": {"run.json": "1"},
    "another's results": {"results.json": '{"accuracy": 1}'},
    "ours, further down": {"sub/run.json": '{"parameters": {}}'},
    "a hidden file": {".git/config": ""},
}


@pytest.mark.parametrize("name", THEIRS)
def test_what_others_wrote_is_not_replaced(tmp_path, name):
    for path, text in THEIRS[name].items():
        (tmp_path / "out" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / path).write_text(text)
    before = files_of(tmp_path)
    with (
        pytest.raises(ValueError, match="`overwrite_output_dir` replaces only what a command of spot-hf wrote"),
        replaced_directory(tmp_path / "out", overwrite=True),
    ):
        pytest.fail("it would be replaced")
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("left", [[], [".run.json.17.tmp"]], ids=["empty", "killed in its first instant"])
def test_an_empty_directory_is_replaced(tmp_path, left):
    (tmp_path / "out").mkdir()
    for name in left:
        (tmp_path / "out" / name).write_text("{")
    assert check_output_dir(tmp_path / "out", overwrite=True) == tmp_path / "out"


# --------------------------------------------------------------------------------------------------------- single files


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    with write_atomically(tmp_path / "new" / "x.txt") as file:
        file.write(b"first")
        assert not (tmp_path / "new" / "x.txt").exists()
    with pytest.raises(RuntimeError), write_atomically(tmp_path / "new" / "x.txt") as file:
        file.write(b"sec")
        raise RuntimeError
    assert files_of(tmp_path) == {"new/x.txt": b"first"}


KILLED = """
import os, signal, sys
from spot_hf.jobs.files import write_atomically
with write_atomically(sys.argv[1]) as file:
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_leaves_what_was_there(tmp_path):
    (tmp_path / "x.txt").write_bytes(b"first")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "x.txt")], env=environment)
    assert done.returncode == -signal.SIGKILL
    (half,) = tmp_path.glob(".x.txt.*.tmp")
    assert (tmp_path / "x.txt").read_bytes() == b"first" and half.read_bytes() == b"half"
    shutil.rmtree(tmp_path)
