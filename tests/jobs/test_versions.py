"""What a record says of a job's ingredients: names without paths, digests of files, commits."""

import shlex

import pytest

from spot_hf.jobs.versions import hub_commit, public_command, public_name, versions, weights_digest


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A working directory `work`, with a directory `runs/spot` in it."""
    (tmp_path / "work/runs/spot").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


@pytest.mark.parametrize(
    ("word", "public"),
    [
        ("{root}/work/runs/spot", "spot"),
        ("{root}/work/runs/spot/", "spot"),
        ("{root}/absent/model", "model"),
        ("--model={root}/work/runs/spot", "--model=spot"),
        ("runs/spot", "spot"),
        ("./runs/new", "new"),
        ("../data set", "data set"),
        ("~/data", "data"),
        ("user/name", "user/name"),
        ("--dataset_name=user/name", "--dataset_name=user/name"),
        ("digits", "digits"),
        ("--learning_rate", "--learning_rate"),
        ("3e-3", "3e-3"),
        ('{{"momentum": 0.9}}', '{{"momentum": 0.9}}'),
    ],
)
def test_a_command_names_no_path(work, word, public):
    words = ["spot-hf", "oracle", word.format(root=work)]
    command = public_command(words)
    assert shlex.split(command) == ["spot-hf", "oracle", public.format()]
    assert str(work) not in command


def test_names_of_what_lies_here(work):
    assert public_name("runs/spot") == public_name(str(work / "work/runs/spot")) == "spot"
    assert public_name(".") == "work" and public_name("user/name") == "user/name" and public_name("digits") == "digits"


def test_a_digest_is_of_weights_and_configs(tmp_path):
    for name, content in {"model.safetensors": b"a", "config.json": b"b", "preprocessor_config.json": b"c"}.items():
        (tmp_path / name).write_bytes(content)
    digests = [weights_digest(str(tmp_path))]
    for name in ("model.safetensors", "config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes(b"other")
        digests.append(weights_digest(str(tmp_path)))
    assert len(set(digests)) == 4 and None not in digests
    (tmp_path / "README.md").write_text("a card")
    assert weights_digest(str(tmp_path)) == digests[-1]
    assert weights_digest("user/name") is None


def test_a_hub_that_cannot_be_asked_says_what_was_asked_for(tmp_path):
    assert hub_commit(str(tmp_path), "main", "model") is None  # a directory has no commit
    assert hub_commit("user/name", "v1", "model") == "v1"  # the tests are offline
    assert hub_commit("user/name", None, "dataset") is None


def test_versions_name_what_numbers_depend_on():
    found = versions()
    assert {"spot_hf", "torch", "transformers", "datasets", "accelerate", "python"} == set(found) and all(found.values())
