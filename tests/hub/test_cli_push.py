"""`spot-hf convert --push_to_hub`: by a real client, to a Hub on loopback; refusals are one line and leave the result."""

import json

import pytest


def convert_and_push(source, output, repo_id, endpoint=None):
    """In its process: the command line. Returns its status and what it printed."""
    import contextlib
    import io
    import os

    if endpoint:
        os.environ["HF_ENDPOINT"] = endpoint
    from spot_hf.cli import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([
            "convert", "--source_model", source, "--output_dir", output, "--push_to_hub", "--hub_model_id", repo_id,
            "--hub_private",
        ])  # fmt: skip
    lines = [line for line in err.getvalue().splitlines() if line.strip() and "%|" not in line and "B/s" not in line]
    return {"status": status, "out": out.getvalue(), "err": lines}


def test_it_pushes_everything_in_one_commit(hub, tiny_vit, tmp_path, fresh_process):
    result = fresh_process(convert_and_push, tiny_vit, tmp_path / "spot", "alice/new", hub=hub, token="hf_alice")
    assert result["status"] == 0 and not result["err"], result
    repo = hub.repos["model", "alice/new"]
    tree, _ = repo.tree(repo.resolve("main")[1])
    assert set(tree) - {".gitattributes"} == {path.name for path in (tmp_path / "spot").iterdir()}
    assert len(list(repo.history(repo.resolve("main")[1]))) == 2 and repo.meta["private"]  # the Hub's first, and ours
    card = repo.get(tree["README.md"][1]).decode()
    assert 'model="alice/new"' in card and "license: cc-by-4.0" in card
    assert "alice/new" in result["out"] and json.loads(repo.get(tree["config.json"][1]))["model_type"] == "spot_vit"


@pytest.mark.parametrize(
    ("token", "words"),
    [("hf_nobody", "log in"), ("hf_alice_reader", "log in"), ("hf_bob", "log in"), (None, "log in")],
    ids=["unknown token", "read-only token", "another's repository", "no token"],
)
def test_a_refusal_is_one_line_and_keeps_the_result(hub, tiny_vit, tmp_path, fresh_process, token, words):
    output = tmp_path / "spot"
    result = fresh_process(convert_and_push, tiny_vit, output, "alice/refused", hub=hub, token=token)
    assert result["status"] == 1 and len(result["err"]) == 1, result
    assert words in result["err"][0] and "alice/refused" in result["err"][0] and str(output) in result["err"][0]
    assert (output / "model.safetensors").exists() and ("model", "alice/refused") not in hub.repos


def test_a_hub_that_is_away(tiny_vit, tmp_path, fresh_process, hub):
    result = fresh_process(
        convert_and_push, tiny_vit, tmp_path / "spot", "alice/away", "http://127.0.0.1:9", hub=hub, token="hf_alice"
    )
    assert result["status"] == 1 and len(result["err"]) == 1, result
    assert "alice/away" in result["err"][0] and (tmp_path / "spot" / "model.safetensors").exists()


def test_a_name_that_is_none(tiny_vit, tmp_path, fresh_process, hub):
    result = fresh_process(convert_and_push, tiny_vit, tmp_path / "spot", "a/b/c", hub=hub, token="hf_alice")
    assert result["status"] == 2 and "hub_model_id" in result["err"][0], result
