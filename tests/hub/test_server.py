"""The local Hub answers the client as the real one would, where tests build on it."""

import pytest

from .server import Hub
from .xetstore import Xet


def write(size):
    """In its process, as alice: writes, is refused, reads back."""
    import os

    from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    def status(function, *args, **kwargs):
        try:
            function(*args, **kwargs)
        except GatedRepoError:
            return "gated"
        except RepositoryNotFoundError:
            return "not found"
        except HfHubHTTPError as error:
            return error.response.status_code
        return "done"

    alice, reader, bob, nobody = (HfApi(token=t) for t in ("hf_alice", "hf_alice_reader", "hf_bob", False))
    alice.create_repo("alice/data", repo_type="dataset")
    data = {"repo_id": "alice/data", "repo_type": "dataset"}
    content = os.urandom(size)

    def add(api, path="a.txt", bytes_=b"a", **kwargs):
        operations = [CommitOperationAdd(path, bytes_)]
        return api.create_commit(**data, operations=operations, commit_message=f"add {path}", **kwargs)

    results = {"503": status(add, alice), "after 503": status(add, alice)}
    head = alice.dataset_info("alice/data").sha
    large = add(alice, "large.parquet", content, parent_commit=head)
    results["late"] = status(add, alice, "b.txt", parent_commit=head)
    results["in time"] = status(add, alice, "b.txt", parent_commit=large.oid)
    results["reader writes"] = status(add, reader, "c.txt")
    results["bob writes"] = status(add, bob, "c.txt")
    results["nobody writes"] = status(add, nobody, "c.txt")
    with open(hf_hub_download(**data, filename="large.parquet", token=False), "rb") as file:
        results["same content"] = file.read() == content
    results["files"] = sorted(alice.list_repo_files(**data))
    alice.update_repo_settings(**data, gated="manual")
    results["bob reads, gated"] = status(bob.hf_hub_download, **data, filename="b.txt")
    results["bob asks, gated"] = status(bob.dataset_info, "alice/data")
    alice.update_repo_settings(**data, gated=False, private=True)
    results["bob asks, private"] = status(bob.dataset_info, "alice/data")
    results["reader reads, private"] = status(reader.hf_hub_download, **data, filename="b.txt")
    return results


@pytest.mark.parametrize("storage", ["lfs", "xet"])
def test_writers_and_readers(storage, tmp_path, fresh_process):
    if storage == "xet":
        pytest.importorskip("hf_xet", reason="needs the client's xet")
    tokens = {"hf_alice": "alice", "hf_bob": "bob", "hf_alice_reader": {"user": "alice", "role": "read"}}
    xet = Xet(tmp_path / "xet") if storage == "xet" else None
    with Hub(tmp_path / "hub", tokens=tokens, page=2, xet=xet) as hub:
        hub.fail("POST", "/commit/", 503)
        results = fresh_process(write, 300_000, hub=hub, token="hf_alice", xet=storage == "xet")
    assert results == {
        "503": 503,
        "after 503": "done",
        "late": 412,
        "in time": "done",
        "reader writes": 403,
        "bob writes": 403,
        "nobody writes": 401,
        "same content": True,
        "files": [".gitattributes", "a.txt", "b.txt", "large.parquet"],
        "bob reads, gated": "gated",
        "bob asks, gated": "done",
        "bob asks, private": "not found",
        "reader reads, private": "done",
    }
    paths = [path for _, path, *_ in hub.log]
    assert any(path.startswith("/_lfs/") for path in paths) == (storage == "lfs")
    assert any(path.startswith("/_cas/") for path in paths) == (storage == "xet")
    assert max(status for _, _, status, *_ in hub.log) == 503  # and never an error of the server's own


def test_repositories_are_git_repositories_that_outlive_the_server(tmp_path, fresh_process):
    import shutil
    import subprocess

    if shutil.which("git") is None:
        pytest.skip("needs git")
    with Hub(tmp_path, tokens={"hf_alice": "alice"}) as hub:
        fresh_process(commit_twice, hub=hub, token="hf_alice")
    path = Hub(tmp_path).repos["model", "alice/model"].path
    subprocess.run(["git", "-C", path, "fsck", "--strict"], check=True, capture_output=True)
    log = subprocess.run(["git", "-C", path, "log", "--format=%s"], check=True, capture_output=True, text=True)
    assert log.stdout.split("\n") == ["add b/c.txt", "add a.txt", "initial commit", ""]


def commit_twice():
    from huggingface_hub import CommitOperationAdd, HfApi

    HfApi().create_repo("alice/model")
    for path in ("a.txt", "b/c.txt"):
        HfApi().create_commit("alice/model", [CommitOperationAdd(path, b"x")], commit_message=f"add {path}")
