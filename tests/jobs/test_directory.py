"""A job's directory: a killed job goes on, another one is refused by name."""

import json

import pytest
from oracle_runs import files_of

from spot_hf.jobs.directory import COMMITS, JobDirectory, Ledger


PARAMETERS = {"seed": 0, "num_tokens": [4, 9], "model": "spot", "revision": None}


def ledger(**changes) -> Ledger:
    return Ledger(parameters={**PARAMETERS, **changes}, command="spot-hf oracle", versions={"torch": "2"}, device="cpu")


def test_a_job_begins_and_goes_on(tmp_path):
    directory = JobDirectory(tmp_path / "a" / "run")
    directory.check(PARAMETERS)  # nothing there yet
    directory.open(ledger())
    assert directory.ledger == ledger() and "results" not in json.loads((tmp_path / "a/run/run.json").read_text())
    before = files_of(tmp_path)
    # On other versions, by another command: the same job.
    directory.open(Ledger(parameters=PARAMETERS, command="other", versions={"torch": "3"}, device="cuda"))
    assert files_of(tmp_path) == before


def test_results_are_part_of_the_ledger_when_they_are_there(tmp_path):
    directory = JobDirectory(tmp_path)
    finished = ledger()
    finished.results = {"accuracy": 1.0}
    directory.write_ledger(finished)
    assert directory.ledger == finished and directory.ledger.results == {"accuracy": 1.0}


def test_another_job_is_refused_and_what_differs_is_named(tmp_path):
    directory = JobDirectory(tmp_path / "run")
    directory.open(ledger(gone=1))
    before = files_of(tmp_path)
    with pytest.raises(ValueError) as error:
        directory.open(ledger(seed=1, new=2))
    message = str(error.value)
    assert "gone 1 there, None here; new None there, 2 here; seed 0 there, 1 here. Give" in message
    assert "num_tokens" not in message and str(tmp_path / "run") in message
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("name", COMMITS)
def test_commits_differ_where_both_are_known(tmp_path, name):
    """A Hub that cannot be asked, or a record of an earlier version, says nothing."""
    there, here = "a" * 40, "b" * 40
    directory = JobDirectory(tmp_path / "run")
    directory.open(ledger(**{name: there}))
    directory.check({**PARAMETERS, name: there})
    directory.check({**PARAMETERS, name: None})
    directory.check({**PARAMETERS, name: "main"})
    directory.check({one: value for one, value in PARAMETERS.items() if one != name})
    with pytest.raises(ValueError, match=f"{name} '{there}' there, '{here}' here"):
        directory.check({**PARAMETERS, name: here})


def test_a_directory_of_something_else_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and holds no run to go on with"):
        JobDirectory(tmp_path).open(ledger())
    with pytest.raises(ValueError, match=r"must be a directory; .* is a file"):
        JobDirectory(tmp_path / "notes.txt").open(ledger())
    with pytest.raises(ValueError, match=r"holds no run: no run\.json"):
        _ = JobDirectory(tmp_path).ledger
    assert files_of(tmp_path) == {"notes.txt": b"mine"}


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"parameters": 1}', "null"])
def test_what_is_no_ledger(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match=r"holds no run: no run\.json"):
        JobDirectory(tmp_path).open(ledger())


def test_a_ledger_with_fields_of_another_version(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"parameters": PARAMETERS, "unknown": 1}))
    assert JobDirectory(tmp_path).ledger == Ledger(parameters=PARAMETERS)


def test_overwriting_removes_an_earlier_job_and_nothing_else(tmp_path):
    directory = JobDirectory(tmp_path / "run")
    directory.open(ledger())
    (tmp_path / "run/config").mkdir()
    (tmp_path / "run/config/shard.parquet").write_bytes(b"rows")
    directory.open(ledger(seed=1), overwrite=True)
    assert list(files_of(tmp_path)) == ["run/run.json"] and directory.ledger.parameters["seed"] == 1
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="replaces only what a command of spot-hf wrote"):
        JobDirectory(tmp_path / "mine").open(ledger(), overwrite=True)
    (tmp_path / "run/config").mkdir()
    with pytest.raises(ValueError, match="must not be or hold what is read"):
        directory.open(ledger(), overwrite=True, inputs=[str(tmp_path / "run/config")])
    assert set(files_of(tmp_path)) == {"run/run.json", "mine/notes.txt"}
    JobDirectory(tmp_path / "new").open(ledger(), overwrite=True)
    assert (tmp_path / "new/run.json").exists()


def test_what_killed_processes_left_is_removed(tmp_path):
    directory = JobDirectory(tmp_path / "run")
    directory.open(ledger())
    for name in (".run.json.7.tmp", "config/.a.parquet.8.tmp", "config/a.parquet"):
        (tmp_path / "run" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "run" / name).write_text("")
    directory.clean()
    assert set(files_of(tmp_path)) == {"run/run.json", "run/config/a.parquet"}
