"""Models and data sets of the Hub are pinned: a job's record names their commits, and a job goes on with those alone."""

import json
from pathlib import Path

import pytest
from oracle_runs import rows_of, save_images


def use_the_command_line(steps):
    """
    In its process, as alice: does one step after the other. Of a command, returns its status, the lines that it prints to
    stderr, and the parameters in the record of its directory; of a push, the commit.
    """
    import contextlib
    import io
    import json
    from pathlib import Path

    import torch
    from huggingface_hub import HfApi

    from spot_hf import SpotViTForImageClassification, SpotViTImageProcessor
    from spot_hf.cli import main

    api = HfApi()

    def push_model(repo_id, directory, change):
        model = SpotViTForImageClassification.from_pretrained(directory)
        with torch.no_grad():
            model.classifier.bias += change
        model.push_to_hub(repo_id)
        SpotViTImageProcessor.from_pretrained(directory).push_to_hub(repo_id)
        return api.model_info(repo_id).sha

    def push_data(repo_id, directory):
        api.create_repo(repo_id, repo_type="dataset", exist_ok=True)
        api.upload_folder(repo_id=repo_id, repo_type="dataset", folder_path=directory)
        return api.dataset_info(repo_id).sha

    def run(*words):
        err = io.StringIO()
        with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
            status = main(list(words))
        ledger = Path(words[words.index("--output_dir") + 1]) / "run.json"
        recorded = json.loads(ledger.read_text())["parameters"] if ledger.exists() else None
        lines = [line for line in err.getvalue().splitlines() if line.startswith("spot-hf")]
        return {"status": status, "err": lines, "parameters": recorded}

    kinds = {"model": push_model, "data": push_data, "run": run}
    return [kinds[kind](*arguments) for kind, arguments in steps]


@pytest.fixture(scope="module")
def model(tiny_vit, tmp_path_factory) -> str:
    from spot_hf import convert_checkpoint

    directory = tmp_path_factory.mktemp("model") / "tiny"
    convert_checkpoint(str(tiny_vit), directory)
    return str(directory)


COMMON = ["--num_tokens", "4", "--num_workers", "0", "--shard_size", "4"]
COMMANDS = {
    "oracle": ["oracle", "--steps", "1", "--placement", "uniform", *COMMON],
    "evaluate": ["evaluate", "--placement", "center", "--baselines", "none", *COMMON],
}
OTHER_BIAS = 0.5  # on every logit: the predictions stay, and the weights are others


@pytest.fixture(scope="module", params=list(COMMANDS))
def job(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def happened(hub, job, model, tmp_path_factory, fresh_process) -> dict:
    """A job on a model and a data set of the Hub, to which others are pushed meanwhile; what each step has come to."""
    root = tmp_path_factory.mktemp(job)
    old, new = (str(save_images(root / name, count)) for name, count in (("old", 8), ("new", 9)))
    repo_id, data = f"alice/model-{job}", f"alice/pictures-{job}"
    command = [*COMMANDS[job], "--model", repo_id, "--dataset_name", data, "--output_dir"]
    first, other = str(root / "run"), str(root / "other")
    before = [
        ("model", [repo_id, model, 0.0]),
        ("data", [data, old]),
        ("run", [*command, first]),
        ("run", [*command, first]),
        ("model", [repo_id, model, OTHER_BIAS]),
        ("run", [*command, first]),
    ]
    names = ["first model", "first data", "run", "again", "second model", "after the model"]
    done = dict(zip(names, fresh_process(use_the_command_line, before, hub=hub, token="hf_alice"), strict=True))
    rows = rows_of(Path(first))
    pin = ["--revision", done["first model"]]
    for shard in Path(first).glob("*/*-00001-*.parquet"):
        shard.unlink()  # or nothing is left to do
    after = [
        ("run", [*command, first, *pin]),
        ("data", [data, new]),
        ("run", [*command, first, *pin]),
        ("run", [*command, first, *pin, "--dataset_revision", done["first data"]]),
        ("run", [*command, other]),
    ]
    names = ["with the model's commit", "second data", "after the data", "with both commits", "elsewhere"]
    done |= dict(zip(names, fresh_process(use_the_command_line, after, hub=hub, token="hf_alice"), strict=True))
    return {**done, "rows before": rows, "rows": rows_of(Path(first)), "other rows": rows_of(Path(other)), "repo_id": repo_id}


def revision_of(done: dict, step: str) -> str:
    """Of the model; an evaluation may be of several, and has one for each."""
    revision = done[step]["parameters"]["revision"]
    return revision if isinstance(revision, str) else revision[done["repo_id"]]


def test_commits_are_recorded(happened):
    assert happened["run"]["status"] == 0, happened["run"]
    assert revision_of(happened, "run") == happened["first model"]
    assert happened["run"]["parameters"]["dataset_revision"] == happened["first data"]
    assert happened["again"]["status"] == 0, "nothing has changed"


def test_another_commit_of_the_model_is_refused_by_name(happened):
    result = happened["after the model"]
    (line,) = result["err"]
    assert result["status"] == 2 and " revision " in line and "dataset_revision" not in line
    assert happened["first model"] in line and happened["second model"] in line
    assert result["parameters"] == happened["run"]["parameters"]


def test_a_job_goes_on_with_the_commit_that_it_began_with(happened, job):
    result = happened["with the model's commit"]
    assert result["status"] == 0 and not result["err"] and result["parameters"] == happened["run"]["parameters"], result
    if job == "oracle":
        assert happened["rows"] == happened["rows before"]


def test_another_commit_of_the_data_is_refused_by_name(happened):
    result = happened["after the data"]
    (line,) = result["err"]
    assert result["status"] == 2 and "dataset_revision" in line, result
    assert happened["first data"] in line and happened["second data"] in line
    assert happened["with both commits"]["status"] == 0


def test_a_new_job_is_of_the_newest_commits(happened, job):
    result = happened["elsewhere"]
    assert result["status"] == 0 and revision_of(happened, "elsewhere") == happened["second model"]
    assert result["parameters"]["dataset_revision"] == happened["second data"]
    if job == "oracle":
        assert len(happened["other rows"]["model-oracle_n4"]) == 9 and len(happened["rows"]["model-oracle_n4"]) == 8


# ------------------------------------------------------------------------------------- coordinates that were found on the Hub


@pytest.fixture(scope="module")
def transferred(hub, model, tmp_path_factory, fresh_process) -> dict:
    """Coordinates of a model and a data set of the Hub, published; both move on; then they are used by their names alone."""
    root = tmp_path_factory.mktemp("transfer")
    old, new, copy = (str(save_images(root / name, count)) for name, count in (("old", 8), ("new", 9), ("copy", 9)))
    oracle = [
        *COMMANDS["oracle"], "--model", "alice/spot", "--dataset_name", "alice/pictures", "--push_to_hub",
        "--hub_dataset_id", "alice/coordinates", "--output_dir", str(root / "run"),
    ]  # fmt: skip
    evaluate = ["evaluate", "--model", "alice/spot", "--coordinates", "alice/coordinates", "--output_dir"]
    show = ["show", "--coordinates", "alice/coordinates", "--image_id", "picture_3.png", "--output_dir"]
    steps = {
        "model": ("model", ["alice/spot", model, 0.0]),
        "data": ("data", ["alice/pictures", old]),
        "copy": ("data", ["alice/copy", copy]),
        "oracle": ("run", oracle),
        "new model": ("model", ["alice/spot", model, OTHER_BIAS]),
        "new data": ("data", ["alice/pictures", new]),
        "evaluate": ("run", [*evaluate, str(root / "transfer")]),
        "evaluate on": ("run", [*evaluate, str(root / "elsewhere"), "--dataset_name", "alice/copy"]),
        "show": ("run", [*show, str(root / "shown")]),
        "show on": ("run", [*show, str(root / "shown elsewhere"), "--dataset_name", "alice/copy"]),
    }
    done = fresh_process(use_the_command_line, list(steps.values()), hub=hub, token="hf_alice")
    return {**dict(zip(steps, done, strict=True)), "root": root}


def test_a_transfer_is_of_the_commits_that_the_coordinates_name(hub, transferred):
    assert transferred["evaluate"]["status"] == 0, transferred["evaluate"]
    result = json.loads((transferred["root"] / "transfer/transfer.json").read_text())
    assert result["revision"] == transferred["new model"]  # none was asked for: the newest
    assert result["dataset_revision"] == transferred["data"] != transferred["new data"]
    assert result["coordinates_revision"] == hub.repos["dataset", "alice/coordinates"].resolve("main")[1]
    assert result["dataset"] == "alice/pictures" and result["num_images"] == 8


def test_another_repository_has_commits_of_its_own(transferred):
    assert transferred["evaluate on"]["status"] == 0, transferred["evaluate on"]
    result = json.loads((transferred["root"] / "elsewhere/transfer.json").read_text())
    assert result["dataset_revision"] == transferred["copy"] and result["num_images"] == 8
    for step, directory in (("show", "shown"), ("show on", "shown elsewhere")):
        assert transferred[step]["status"] == 0, transferred[step]
        assert [path.name for path in (transferred["root"] / directory).iterdir()] == ["picture_3_n4.png"]


def test_the_card_names_the_commits_and_no_path(hub, transferred):
    repo = hub.repos["dataset", "alice/coordinates"]
    tree, _ = repo.tree(repo.resolve("main")[1])
    card = repo.get(tree["README.md"][1]).decode()
    assert f"| model | `alice/spot`, revision `{transferred['model']}` |" in card
    assert f"`alice/pictures`, split `validation`, revision `{transferred['data']}` |" in card
    for name in ("README.md", "spot_n4/validation.json"):
        text = repo.get(tree[name][1]).decode()
        assert str(transferred["root"]) not in text and "--output_dir run" in text
