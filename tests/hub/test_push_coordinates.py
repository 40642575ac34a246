"""Coordinate data sets on the Hub: real clients, a Hub on loopback, and what may go wrong between them.

Each process here stands for a person: alice publishes (`push_again`, `push_at_once`, `edit_and_push`, `push_by_xet`), somebody
without a token loads what is there by then (`read`), and others are refused (`use_the_command_line`, `meet_the_gate`).
"""

import json
import re
import shutil
import time
from itertools import pairwise
from pathlib import Path

import pytest
from oracle_runs import files_of, save_images

from hub.server import POINTER, Hub, Repo
from hub.xetstore import Xet
from spot_hf import convert_checkpoint
from spot_hf.oracle.arguments import OracleArguments
from spot_hf.oracle.run import run_oracle


SHARD = "ant_n4/validation-00001-of-00003.parquet"
SHARDS = {f"ant_n4/validation-0000{i}-of-00003.parquet" for i in range(3)}
FILES = {*SHARDS, "ant_n4/validation.json", "ant_n4/validation.png", "README.md"}


@pytest.fixture(scope="module")
def model(tiny_vit, tmp_path_factory) -> str:
    directory = tmp_path_factory.mktemp("model") / "tiny"
    convert_checkpoint(str(tiny_vit), directory)
    return str(directory)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> str:
    """Twelve pictures in each of three splits."""
    directory = tmp_path_factory.mktemp("images") / "pictures"
    for split in ("validation", "test", "train"):
        save_images(directory, 12, split=split)
    return str(directory)


@pytest.fixture(scope="module")
def runs(model, images, tmp_path_factory) -> dict[str, str]:
    """Finished runs, by what is special about each. All but `bee` are of the config `ant_n4`."""
    special = {
        "ant": {},
        "coarse": {"shard_size": 6},
        "test": {"dataset_split": "test"},
        "train": {"dataset_split": "train", "save_trajectories": True},  # a column more
        "bee": {"run_name": "bee", "num_tokens": [5]},
    }
    parent = tmp_path_factory.mktemp("runs")
    for name, settings in special.items():
        common = {"run_name": "ant", "num_tokens": [4], "dataset_split": "validation", "shard_size": 4, "steps": 1}
        arguments = {"model": model, "dataset_name": images, "num_workers": 0, **common, **settings}
        run_oracle(OracleArguments(**arguments, output_dir=str(parent / name)))
    return {name: str(parent / name) for name in special}


def changes(hub, repo_id: str) -> list[set[str]]:
    """The files that each commit has changed, from the oldest on; without the Hub's own first commit."""
    repo = hub.repos["dataset", repo_id]
    trees = [repo.tree(oid)[0] for oid in repo.history(repo.resolve("main")[1])][::-1]
    return [{path for path in {*old, *new} if old.get(path) != new.get(path)} for old, new in pairwise(trees)]


def contents(hub, repo_id: str) -> dict[str, bytes]:
    """What a repository holds, large files too."""
    repo = hub.repos["dataset", repo_id]
    found = {}
    for path, (_, blob) in repo.tree(repo.resolve("main")[1])[0].items():
        data = repo.get(blob)
        pointer = POINTER.match(data)
        found[path] = repo.lfs_path(pointer[1].decode()).read_bytes() if pointer else data
    return found


def statuses(hub, method: str, pattern: str) -> list[int]:
    """Of all such requests, in their order."""
    return [status for verb, path, status, *_ in hub.log if verb == method and re.search(pattern, path)]


# --------------------------------------------------------------------------------------------------- again and again


def push_again(ant, coarse):
    """In its process: pushes again and again, after this and that has happened to the repository. Returns what is said."""
    import logging
    import os
    import signal

    from huggingface_hub import HfApi

    import spot_hf.hub.uploads as publishing

    api = HfApi()
    shard = "ant_n4/validation-00001-of-00003.parquet"
    said, log = {}, logging.getLogger("spot_hf")
    log.setLevel(logging.INFO)

    class Listener(logging.Handler):
        def __init__(self, hear):
            super().__init__()
            self.hear = hear

        def emit(self, record):
            self.hear(record.getMessage())

    def push(what, directory, repo_id):
        said[what] = []
        listener = Listener(said[what].append)
        log.addHandler(listener)
        try:
            publishing.push_coordinates(directory, repo_id)
        except Exception as error:  # the others are tested all the same
            said[what].append(repr(error))
        finally:
            log.removeHandler(listener)

    push("hard to create", ant, "alice/created")
    push("first", ant, "alice/again")
    push("nothing new", ant, "alice/again")
    api.delete_file(shard, "alice/again", repo_type="dataset")
    push("a shard is gone", ant, "alice/again")
    api.upload_file(path_or_fileobj=b"PAR1", path_in_repo=shard, repo_id="alice/again", repo_type="dataset")
    api.upload_file(path_or_fileobj=b"{}", path_in_repo="ant_n4/validation.json", repo_id="alice/again", repo_type="dataset")
    push("files are others", ant, "alice/again")

    push("three shards", ant, "alice/coarse")
    push("two shards", coarse, "alice/coarse")
    push("complete", ant, "alice/spoiled")
    api.delete_file(shard, "alice/spoiled", repo_type="dataset")
    push("the Hub goes away", ant, "alice/away")

    publishing.FILES_PER_COMMIT = 2
    push("many", ant, "alice/many")
    if (child := os.fork()) == 0:
        log.addHandler(Listener(lambda _: os.kill(os.getpid(), signal.SIGKILL)))
        publishing.push_coordinates(ant, "alice/killed")
    killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    left = api.list_repo_files("alice/killed", repo_type="dataset")
    push("after the kill", ant, "alice/killed")
    return {"said": said, "killed": killed, "left": left}


@pytest.fixture(scope="module")
def pushed(hub, runs, fresh_process):
    # In a row: in trouble; busy, as the Hub says it; done, but the answer is lost.
    hub.fail("POST", "/repos/create", 503)
    hub.fail("POST", "/repos/create", 409, message="Cannot create repo: another conflicting operation is in progress")
    hub.fail("POST", "/repos/create", None, done=True)

    hub.meanwhile("PUT", "alice/away/", lambda: hub.leave(3))
    before = files_of(Path(runs["ant"]))
    result = fresh_process(push_again, runs["ant"], runs["coarse"], hub=hub, token="hf_alice")
    assert files_of(Path(runs["ant"])) == before
    return result


def test_the_first_push_is_one_commit_of_all_files(hub, runs, pushed):
    assert changes(hub, "alice/again")[0] == FILES
    (line,) = pushed["said"]["first"]
    assert "pushed 6 files" in line and "/datasets/alice/again/commit/" in line
    there, local = contents(hub, "alice/again"), files_of(Path(runs["ant"]))
    for name in FILES - {"README.md"}:
        assert there[name] == local[name], name
    card = there["README.md"].decode()
    assert 'load_coordinates("alice/again", "ant_n4", "validation")' in card and "DIR_OR_REPO" not in card
    assert "ant_n4/validation.png" in card and "license: cc-by-4.0" in card


def test_only_what_is_missing_or_other_is_pushed(hub, pushed):
    record = "ant_n4/validation.json"
    assert pushed["said"]["nothing new"] == []
    # Ours, and between them what somebody has done there.
    assert changes(hub, "alice/again") == [FILES, {SHARD}, {SHARD}, {SHARD}, {record}, {SHARD, record}]


def test_shards_of_another_number_take_the_place_of_the_old_ones(hub, pushed):
    fewer = {f"ant_n4/validation-0000{i}-of-00002.parquet" for i in range(2)}
    _, commit = changes(hub, "alice/coarse")
    # Of the same rows, the picture is the same.
    assert commit - {"ant_n4/validation.png"} == {*SHARDS, *fewer, "ant_n4/validation.json", "README.md"}
    assert {path for path in contents(hub, "alice/coarse") if path.endswith(".parquet")} == fewer


def test_many_files_are_several_commits_and_the_card_is_in_the_last(hub, pushed):
    for repo_id in ("alice/many", "alice/killed"):
        commits = changes(hub, repo_id)
        assert [len(commit) for commit in commits] == [2, 2, 2] and set().union(*commits) == FILES, commits
        assert "README.md" in commits[-1]
    assert [re.findall(r"\d+ left", line) for line in pushed["said"]["many"]] == [["3 left"], ["1 left"], ["0 left"]]


def test_a_killed_push_goes_on(pushed):
    assert pushed["killed"] == -9 and len(FILES.intersection(pushed["left"])) == 2 and "README.md" not in pushed["left"]
    assert len(pushed["said"]["after the kill"]) == 2  # and not three: the first commit stands


def test_a_hub_that_is_hard_to_create_in_or_goes_away(hub, pushed):
    assert statuses(hub, "POST", "/repos/create")[:4] == [503, 409, 499, 409]
    assert [line[:19] for line in pushed["said"]["hard to create"][:2]] == ["attempt 1 of 3 fail", "attempt 2 of 3 fail"]
    assert len(statuses(hub, "PUT", "alice/away/")) > len(FILES) - 2  # some of its four large files came twice
    for repo_id in ("alice/created", "alice/away"):
        assert changes(hub, repo_id) == [FILES]


# --------------------------------------------------------------------------------------------------- faults and rivals

# By repository: the requests that something happens to, and what.
FAULTS = {
    "503-on-commit": ("POST", "/commit/", {"status": 503, "times": 2}),
    "503-on-preupload": ("POST", "/preupload/", {"status": 503, "times": 2}),
    "503-on-upload": ("PUT", "/", {"status": 503, "times": 2}),
    "503-on-listing": ("GET", "/tree/", {"status": 503}),
    "503-on-card": ("HEAD", "/resolve/.*README", {"status": 503}),
    "504-when-done": ("POST", "/commit/", {"status": 504, "done": True}),
    "409-on-commit": ("POST", "/commit/", {"status": 409, "times": 2}),
    "409-on-upload": ("PUT", "/", {"status": 409, "times": 2}),  # the client tries once, and raises an error without status
    "412-on-commit": ("POST", "/commit/", {"status": 412, "times": 2}),
    "429-with-retry-after": ("POST", "/commit/", {"status": 429, "headers": {"Retry-After": "3"}}),
    "429-with-ratelimit": ("POST", "/commit/", {"status": 429, "headers": {"RateLimit": '"api";r=0;t=4'}}),
    "cut-on-commit": ("POST", "/commit/", {"status": None, "times": 2}),
    "cut-when-done": ("POST", "/commit/", {"status": None, "done": True}),
    "cut-on-upload": ("PUT", "/", {"status": None, "times": 3}),
    "cut-on-listing": ("GET", "/tree/", {"status": None}),
    "cut-on-card": ("GET", "/resolve/.*README", {"status": None}),
}


def push_at_once(jobs):
    """In its process: does all jobs at the same time; each pushes its runs one after the other. Returns what each says."""
    import logging
    import threading
    from concurrent.futures import ThreadPoolExecutor

    from spot_hf.hub.uploads import push_coordinates

    of_thread = threading.local()

    class Listener(logging.Handler):
        def emit(self, record):
            of_thread.said.append(record.getMessage())

    logging.getLogger("spot_hf").setLevel(logging.INFO)
    logging.getLogger("spot_hf").addHandler(Listener())

    def push(job):
        repo_id, directories = job
        of_thread.said = said = []
        try:
            for directory in directories:
                push_coordinates(directory, repo_id)
        except Exception as error:  # the others are tested all the same
            said.append(repr(error))
        return said

    with ThreadPoolExecutor(len(jobs)) as pool:
        return list(pool.map(push, jobs))


@pytest.fixture(scope="module")
def survived(hub, runs, fresh_process) -> dict[str, list[list[str]]]:
    """One repository per fault, to which `ant` and then `bee` are pushed, and two that several push to at the same time."""
    for name, (method, path, fault) in FAULTS.items():
        hub.fail(method, f"alice/{name}{path}", **fault)

    def wait_for_a_commit():
        """So that the commit that is held meanwhile comes too late."""
        deadline = time.monotonic() + 60
        while not changes(hub, "alice/rivals") and time.monotonic() < deadline:
            time.sleep(0.05)

    hub.meanwhile("POST", "alice/rivals/commit/", wait_for_a_commit)
    jobs = [(f"alice/{name}", [runs["ant"], runs["bee"]]) for name in FAULTS]
    jobs += [("alice/rivals", [runs[name]]) for name in ("ant", "bee")]
    jobs += [("alice/crowd", [runs[name]]) for name in ("ant", "bee", "test")]
    said: dict[str, list[list[str]]] = {}
    for (repo_id, _), lines in zip(jobs, fresh_process(push_at_once, jobs, hub=hub, token="hf_alice"), strict=True):
        said.setdefault(repo_id, []).append(lines)
    return said


@pytest.mark.parametrize("name", FAULTS)
def test_a_push_survives(hub, survived, name):
    method, path, fault = FAULTS[name]
    times = fault.get("times", 1)
    there = statuses(hub, method, f"alice/{name}{path}")
    assert there[:times] == [fault["status"] or 499] * times and there[-1] == 200  # it happened
    first, second = changes(hub, f"alice/{name}")
    assert first == FILES and len(second) == len(FILES) and "README.md" in second  # and each run is one commit all the same


@pytest.mark.parametrize(("name", "seconds"), [("429-with-retry-after", 3), ("429-with-ratelimit", 4)])
def test_it_waits_for_as_long_as_the_hub_says(survived, name, seconds):
    # By itself it would wait for one second and a half at most.
    assert f"the next one in {seconds} s" in survived[f"alice/{name}"][0][0]


def test_who_comes_second_takes_the_firsts_card_along(hub, survived):
    assert sorted(statuses(hub, "POST", "alice/rivals/commit/")) == [200, 200, 412]
    assert sorted(len(lines) for lines in survived["alice/rivals"]) == [1, 2]
    for repo_id, number in {"alice/rivals": 2, "alice/crowd": 3}.items():
        assert [len(commit) for commit in changes(hub, repo_id)] == [len(FILES)] * number


# ------------------------------------------------------------------------------------------------------------- the card

OWN_CARD = """---
pretty_name: Ants and others
license: mit
language:
- en
tags:
- insects
configs:
- config_name: own
  data_files: own.parquet
---

Before all, my own words.
"""


def edit_and_push(runs, own_card):
    """In its process: a person's card, a config, edits, more splits and configs. Returns the card after each push."""
    import logging
    from pathlib import Path

    import pyarrow as pa
    import pyarrow.parquet as pq
    from huggingface_hub import HfApi

    from spot_hf.hub.uploads import push_coordinates

    api = HfApi()
    card = {"repo_id": "alice/card", "repo_type": "dataset"}
    api.create_repo(**card)
    api.upload_file(path_or_fileobj=own_card.encode(), path_in_repo="README.md", **card)
    pq.write_table(pa.table({"a": [1, 2]}), "own.parquet")
    api.upload_file(path_or_fileobj="own.parquet", path_in_repo="own.parquet", **card)
    cards, said = {}, {}

    class Listener(logging.Handler):
        def emit(self, record):
            list(said.values())[-1].append(record.getMessage())

    logging.getLogger("spot_hf").setLevel(logging.INFO)
    logging.getLogger("spot_hf").addHandler(Listener())

    def read():
        return Path(api.hf_hub_download(filename="README.md", **card)).read_text()

    def push(what, directory):
        said[what] = []
        try:
            push_coordinates(directory, "alice/card")
        except ValueError as error:
            said[what].append(str(error))
        cards[what] = read()

    push("ant", runs["ant"])
    edited = read().replace("data_files:\n  - split", "default: true\n  data_files:\n  - split", 1)
    edited = edited.replace("## `ant_n4`, validation", "## Nothing that is generated stays like this")
    api.upload_file(path_or_fileobj=(edited + "\nAfter all, more words.\n").encode(), path_in_repo="README.md", **card)
    push("after edits", runs["ant"])
    push("second split", runs["test"])
    push("other columns", runs["train"])
    push("second config", runs["bee"])
    push("ant again", runs["ant"])
    push("second split again", runs["test"])
    return {"cards": cards, "said": said}


@pytest.fixture(scope="module")
def edited(hub, runs, fresh_process):
    return fresh_process(edit_and_push, runs, OWN_CARD, hub=hub, token="hf_alice")


def test_a_persons_text_and_settings_stay(edited):
    for what, card in edited["cards"].items():
        for own in (
            "pretty_name: Ants and others",
            "license: mit",
            "- en",
            "- insects",
            "own.parquet",
            "Before all, my own words.",
        ):
            assert card.count(own) == 1, (what, own)
        assert card.count("After all, more words.") == (what != "ant")
        assert card.count("default: true") == (what != "ant")


def test_what_is_generated_is_brought_up_to_date(edited):
    assert "stays like this" not in edited["cards"]["after edits"]
    last = edited["cards"]["second split again"]
    sections = re.findall(r"<!-- spot_hf: (.+): generated;", last)
    assert sections == ["use", "ant_n4 validation", "ant_n4 test", "bee_n5 validation"]
    assert sections == re.findall(r"<!-- spot_hf: end of (.+) -->", last)
    assert 'load_coordinates("alice/card", "ant_n4", "test")' in last  # the first of them by name, whoever was last
    assert "The coordinates are under mit." in last


def test_a_card_that_says_it_already_is_not_pushed(edited):
    assert edited["said"]["ant again"] == [] and edited["said"]["second split again"] == []


def test_other_columns_for_a_config_are_refused_before_anything_is_uploaded(hub, edited):
    (message,) = edited["said"]["other columns"]
    assert "'ant_n4'" in message and "'train'" in message and "run_name" in message
    assert edited["cards"]["other columns"] == edited["cards"]["second split"]
    assert not any("train" in path for commit in changes(hub, "alice/card") for path in commit)


# ------------------------------------------------------------------------------------------------------------------ xet


@pytest.fixture(scope="module")
def xet_hub(tmp_path_factory):
    """A Hub that stores large files as the real one does."""
    pytest.importorskip("hf_xet", reason="needs the client's xet")
    root = tmp_path_factory.mktemp("xet_hub")
    with Hub(root / "hub", tokens={"hf_alice": "alice"}, xet=Xet(root / "xet")) as server:
        yield server


def push_by_xet(directory):
    """In its process: pushes, and counts the rows that it loads back."""
    import logging

    from datasets import load_dataset

    from spot_hf.hub.uploads import push_coordinates

    said = []

    class Listener(logging.Handler):
        def emit(self, record):
            said.append(record.getMessage())

    push_coordinates(directory, "alice/xet")
    logging.getLogger("spot_hf").setLevel(logging.INFO)
    logging.getLogger("spot_hf").addHandler(Listener())
    push_coordinates(directory, "alice/xet")
    return {"said": said, "ids": load_dataset("alice/xet", "ant_n4", split="validation")["image_id"][:]}


def test_uploads_by_xet(xet_hub, runs, fresh_process):
    xet_hub.fail("POST", "/_cas/v1/xorbs/", None)
    result = fresh_process(push_by_xet, runs["ant"], hub=xet_hub, token="hf_alice", xet=True)
    assert result == {"said": [], "ids": [f"picture_{i}.png" for i in range(12)]}
    assert statuses(xet_hub, "POST", "/_cas/v1/xorbs/") == [499, 200] and not statuses(xet_hub, "PUT", "/_lfs/")
    assert changes(xet_hub, "alice/xet") == [FILES]


# ---------------------------------------------------------------------------------------------------------------- loads


def read(wanted):
    """
    In a process without a token: loads repositories as `load_dataset` does it, which verifies the number of rows.

    `wanted`: repository → directories of the runs that it is to hold. Returns for each its configs, and for each split whether
    its rows are those of the run's files, in their order; or the error.
    """
    from pathlib import Path

    import pyarrow.parquet as pq
    from datasets import get_dataset_config_names, load_dataset

    from spot_hf.coordinates.loading import load_coordinates
    from spot_hf.coordinates.records import load_record

    def compare(repo_id, directory):
        (record,) = Path(directory).glob("*/*.json")
        config, split = record.parent.name, record.stem
        shards = sorted(record.parent.glob(f"{split}-*.parquet"))
        rows = [row for shard in shards for row in pq.read_table(shard).to_pylist()]
        assert len({row["image_id"] for row in rows}) == len(rows) == 12
        splits = load_dataset(repo_id, config)
        return {f"{config} {name}": name != split or splits[name].to_list() == rows for name in splits}

    results = {}
    for repo_id, directories in wanted.items():
        try:
            results[repo_id] = {"configs": get_dataset_config_names(repo_id)}
            for directory in directories:
                results[repo_id] |= compare(repo_id, directory)
        except Exception as error:
            results[repo_id] = f"{type(error).__name__}: {error}"
    results["alone"] = load_coordinates("alice/again")["image_id"][:]
    results["record"] = load_record("alice/again", "ant_n4", "validation").to_json()
    results["own"] = load_dataset("alice/card", "own", split="train").to_list()
    return results


WANTED = {
    "alice/created": ["ant"],
    "alice/again": ["ant"],
    "alice/coarse": ["coarse"],
    "alice/away": ["ant"],
    "alice/many": ["ant"],
    "alice/killed": ["ant"],
    "alice/rivals": ["ant", "bee"],
    "alice/crowd": ["ant", "bee", "test"],
    "alice/card": ["ant", "bee", "test"],
    **{f"alice/{name}": ["ant", "bee"] for name in FAULTS},
}


@pytest.fixture(scope="module")
def loaded(hub, runs, pushed, survived, edited, fresh_process):
    wanted = {**WANTED, "alice/spoiled": ["ant"]}
    return fresh_process(read, {repo_id: [runs[name] for name in names] for repo_id, names in wanted.items()}, hub=hub)


@pytest.mark.parametrize("repo_id", WANTED)
def test_every_row_is_there_once_and_verified(loaded, repo_id):
    expected = {"configs": ["ant_n4", "bee_n5"] if "bee" in WANTED[repo_id] else ["ant_n4"], "ant_n4 validation": True}
    expected |= {"bee_n5 validation": True} if "bee" in WANTED[repo_id] else {}
    expected |= {"ant_n4 test": True} if "test" in WANTED[repo_id] else {}
    if repo_id == "alice/card":
        expected["configs"] = ["ant_n4", "bee_n5", "own"]
    assert loaded[repo_id] == expected


def test_the_verification_would_miss_rows(loaded):
    """Or all that is tested above would mean little: here, somebody has deleted a shard."""
    assert loaded["alice/spoiled"].startswith("NonMatchingSplitsSizesError"), loaded["alice/spoiled"]


def test_the_package_loads_rows_and_record(loaded, runs):
    assert loaded["alone"] == [f"picture_{i}.png" for i in range(12)]  # the only config, and the only split
    assert loaded["record"] == json.loads((Path(runs["ant"]) / "ant_n4/validation.json").read_text())
    assert loaded["own"] == [{"a": 1}, {"a": 2}]  # a person's own config beside ours


# ------------------------------------------------------------------------------------------------- commands and refusals


def use_the_command_line(calls):
    """In its process: for each call a token and the command line. Returns its status, and the lines it prints where."""
    import contextlib
    import io
    import os

    from huggingface_hub import HfApi

    from spot_hf.cli import main

    results = {}
    for name, (token, arguments) in calls.items():
        os.environ.pop("HF_TOKEN", None)
        os.environ.update({"HF_TOKEN": token} if token else {})
        if not arguments:
            HfApi().whoami()  # a mark in the Hub's log
            continue
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(arguments)
        lines = [line.split("\r")[-1] for line in err.getvalue().splitlines()]
        lines = [line for line in lines if line.strip() and "%|" not in line and "B/s" not in line]
        results[name] = {"status": status, "out": out.getvalue(), "err": lines}
    return results


@pytest.fixture(scope="module")
def directories(runs, tmp_path_factory) -> dict[str, Path]:
    """What cannot be pushed: a run that was killed before it wrote its results, one that has lost a shard, and no runs."""
    parent = tmp_path_factory.mktemp("directories")
    for name in ("unfinished", "short"):
        shutil.copytree(runs["ant"], parent / name)
    ledger = parent / "unfinished" / "run.json"
    ledger.write_text(re.sub(r',\s*"results":.*\}', "}", ledger.read_text(), flags=re.DOTALL))
    (parent / "short" / SHARD).unlink()
    (parent / "no run").mkdir()
    (parent / "no run" / "notes.txt").write_text("mine")
    return {name: parent / name for name in ("unfinished", "short", "no run", "absent")}


# By what is wrong: the exit status, and words of the one line.
BAD_INPUT = {
    "unfinished": (2, ["output_dir", "not finished", "same command"]),
    "short": (2, ["output_dir", "8 rows", "12", "same command"]),
    "no run": (2, ["output_dir", "no run"]),
    "absent": (2, ["output_dir", "no run"]),
    "a/b/c": (2, ["hub_dataset_id", "user/name", "'a/b/c'"]),
    "bare-name": (2, ["hub_dataset_id", "user/name", "'bare-name'"]),
}
# The token, the repository, and words of the one line.
REFUSED = {
    "a Hub in trouble": ("hf_alice", "alice/new", ["503", "injected fault", "alice/new"]),
    "unknown token": ("hf_nobody", "alice/new", ["401", "log in", "alice/new"]),
    "no token": (None, "alice/new", ["401", "log in", "alice/new"]),
    "read-only token": ("hf_alice_reader", "alice/new", ["403", "log in", "alice/new"]),
    "read-only token, repository there": ("hf_alice_reader", "alice/private", ["403", "log in", "alice/private"]),
    "another's repository": ("hf_bob", "alice/again", ["403", "log in", "alice/again"]),
    "what the Hub does not take": ("hf_alice", "alice/refusing", ["400", "no such metadata", "alice/refusing"]),
}


@pytest.fixture(scope="module")
def commands(hub, runs, model, images, directories, pushed, tmp_path_factory, fresh_process):
    """What each command has come to, and the paths of all requests."""

    def push(directory, repo_id):
        return ["push", "--output_dir", str(directory), "--hub_dataset_id", repo_id]

    oracle = [
        "oracle", "--model", model, "--dataset_name", images, "--dataset_split", "validation", "--run_name", "ant",
        "--num_tokens", "4", "--steps", "1", "--shard_size", "4", "--num_workers", "0", "--push_to_hub",
        "--hub_dataset_id", "alice/private", "--hub_private", "--output_dir", str(tmp_path_factory.mktemp("run") / "run"),
    ]  # fmt: skip
    refused = {name: (token, push(runs["bee"], repo_id)) for name, (token, repo_id, _) in REFUSED.items()}
    calls = {
        **{name: ("hf_alice", push(directory, "alice/new")) for name, directory in directories.items()},
        **{name: ("hf_alice", push(runs["bee"], name)) for name in ("a/b/c", "bare-name")},
        "ask who I am": ("hf_alice", []),
        "a Hub in trouble": refused["a Hub in trouble"],
        "oracle": ("hf_alice", oracle),
        **refused,
    }
    hub.fail("POST", "/repos/create", 503, times=3)  # as often as it is tried
    hub.fail("POST", "alice/refusing/commit/", 400, message="no such metadata")
    before, requests = files_of(Path(runs["bee"])), len(hub.log)
    results = fresh_process(use_the_command_line, calls, hub=hub)
    assert files_of(Path(runs["bee"])) == before
    return results, [path for _, path, *_ in hub.log[requests:]]


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_is_one_line_before_any_request(commands, name):
    results, requests = commands
    status, words = BAD_INPUT[name]
    assert results[name]["status"] == status and len(results[name]["err"]) == 1, results[name]
    assert all(word in results[name]["err"][0] for word in words), results[name]
    before = requests[: requests.index("/api/whoami-v2")]
    assert set(before) <= {"/api/agent-harnesses"}  # which huggingface_hub asks for by itself


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_is_one_line(hub, runs, commands, name):
    _, repo_id, words = REFUSED[name]
    result = commands[0][name]
    assert result["status"] == 1 and len(result["err"]) == 1, result
    assert all(word in result["err"][0] for word in [*words, f"{runs['bee']} is complete"]), result
    assert ("dataset", "alice/new") not in hub.repos
    if repo_id in ("alice/again", "alice/private"):
        assert not any("bee_n5" in path for commit in changes(hub, repo_id) for path in commit)


def test_a_run_that_pushes_to_a_private_repository(hub, commands, loaded):
    result = commands[0]["oracle"]
    assert result["status"] == 0 and "published at" in result["out"], result
    assert changes(hub, "alice/private") == [FILES]
    assert hub.repos["dataset", "alice/private"].meta["private"] and not hub.repos["dataset", "alice/again"].meta["private"]
    assert "spot-hf oracle --model" in contents(hub, "alice/private")["README.md"].decode()


# ---------------------------------------------------------------------------------------------------------- a gated source


SOURCE_CARD = """---
dataset_info:
  features:
  - name: image
    dtype: image
  - name: label
    dtype:
      class_label:
        names: {'0': ant, '1': bee, '2': cat, '3': dog, '4': eel}
  splits:
  - {name: validation, num_examples: 12}
---
"""
GATED = {"alice/gated": {}, "alice/gated-with-open-card": {"open_card": True}}


def meet_the_gate(repo_ids, model, output):
    """In its process: wants the pictures, as several. Returns what comes of it."""
    import contextlib
    import io
    import os

    from spot_hf.cli import main
    from spot_hf.data.source import DatasetSource, load_images

    def load(repo_id, streaming):
        try:
            return next(iter(load_images(DatasetSource(dataset_name=repo_id).source(streaming=streaming))))["image"].mode
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    def run(repo_id, *more):
        err = io.StringIO()
        with contextlib.redirect_stderr(err):
            status = main(["oracle", "--model", model, "--dataset_name", repo_id, "--output_dir", output, *more])
        return [status, err.getvalue()]

    results = {}
    for token in ("hf_bob", "", "hf_alice"):  # who may comes last: nothing is in a cache before
        os.environ["HF_TOKEN"] = token
        results[token] = {repo_id: [load(repo_id, streaming) for streaming in (False, True)] for repo_id in repo_ids}
        if token == "hf_bob":
            results["command"] = {repo_id: [run(repo_id), run(repo_id, "--streaming")] for repo_id in repo_ids}
    return results


@pytest.fixture(scope="module")
def at_the_gate(hub, images, model, tmp_path_factory, fresh_process):
    for repo_id, settings in GATED.items():
        repo = Repo.init(hub.root / "datasets" / f"{repo_id}.git", owner="alice", gated="manual", **settings)
        files = {path.name: path.read_bytes() for path in Path(images).glob("validation.parquet")}
        files |= {"README.md": SOURCE_CARD.encode()}
        tree = {name: ("100644", repo.put("blob", content)) for name, content in files.items()}
        repo.set_ref("refs/heads/main", repo.commit(tree, [repo.resolve("main")[1]], "pictures", "alice"))
        hub.repos["dataset", repo_id] = repo
    output = tmp_path_factory.mktemp("gate") / "run"
    return {**fresh_process(meet_the_gate, list(GATED), model, output, hub=hub), "output": output}


@pytest.mark.parametrize("repo_id", GATED)
def test_a_gated_source_says_where_to_ask(hub, at_the_gate, repo_id):
    page = f"{hub.url}/datasets/{repo_id}"
    for token in ("hf_bob", ""):
        for message in at_the_gate[token][repo_id]:
            assert message.startswith("OSError: `dataset_name`") and page in message and "hf auth login" in message, message
    for status, err in at_the_gate["command"][repo_id]:
        (line,) = err.splitlines()
        assert status == 1 and "dataset_name" in line and page in line and "hf auth login" in line
    assert not at_the_gate["output"].exists()
    assert at_the_gate["hf_alice"][repo_id] == ["RGB", "RGB"]  # nothing else was wrong
