"""The scripts in `examples/`, as a person runs them, on digits."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from PIL import Image

from spot_hf import convert_checkpoint, quickstart
from spot_hf.cli import main
from spot_hf.data.digits import load_digits


EXAMPLES = {path.stem: path for path in sorted((ROOT / "examples").glob("*.py"))}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    """Two models that have seen digits for a few epochs, as `make quickstart` makes them in more."""
    directory = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quickstart, "EPOCHS", 3)
        train = load_digits()["train"]
        for seed, name in enumerate("ab"):
            source = quickstart.train_digits_vit(train, directory / f"source-{name}", seed)
            convert_checkpoint(source, directory / name)
    return {name: str(directory / name) for name in "ab"}


def run(name: str, *arguments, cwd: Path) -> str:
    environment = {**os.environ, "HF_HOME": str(cwd / "huggingface")}
    command = [sys.executable, str(EXAMPLES[name]), *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def numbers(text: str) -> list[float]:
    return [float(word.strip("%:,")) for word in text.split() if word.strip("%:,").replace(".", "", 1).isdigit()]


def test_every_example_is_run():
    tests = Path(__file__).read_text(encoding="utf-8")
    assert all(f'"{name}"' in tests for name in EXAMPLES) and len(EXAMPLES) == 10
    index = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    assert all(f"({path.name})" in index for path in EXAMPLES.values())


def test_classify_and_draw(models, tmp_path):
    printed = run("classify_and_draw", models["a"], cwd=tmp_path)
    assert "9 tokens, center:" in printed
    assert {path.stem for path in (tmp_path / "runs/examples").iterdir()} == {"isotropic", "center", "edge"}
    assert Image.open(tmp_path / "runs/examples/edge.png").size == (480, 480)


def test_budgets(models, tmp_path):
    printed = run("budgets", models["a"], cwd=tmp_path)
    lines = [numbers(line) for line in printed.splitlines() if "per image" in line]
    tokens = [line[-1] for line in lines]
    assert tokens[:3] == [4, 9, 36] and 4 <= tokens[3] <= tokens[4] <= tokens[5] <= 49  # the surer, the dearer


def test_own_coordinates(models, tmp_path):
    printed = run("own_coordinates", models["a"], cwd=tmp_path)
    assert "a block of 3 × 3 windows:" in printed and "must lie in [0, 1], relative to the image's size" in printed


def test_retrieval(models, tmp_path):
    everything, half, quarter = (numbers(line)[-1] for line in run("retrieval", models["a"], cwd=tmp_path).splitlines())
    assert everything > 30 and min(half, quarter) > 5  # by chance, one in ten; the models have learned for three epochs


@pytest.mark.parametrize("name", ["train_plain", "train_spot", "lora"])
def test_training(name, models, tmp_path, capsys):
    printed = run(name, models["a"], tmp_path / "out", cwd=tmp_path)
    assert f"written to {tmp_path / 'out'}" in printed
    # What it leaves is a model for every command.
    load_digits()["test"][0]["image"].save(tmp_path / "digit.png")
    assert main(["classify", "--model", str(tmp_path / "out"), str(tmp_path / "digit.png"), "--num_tokens", "9"]) == 0
    assert "digit.png" in capsys.readouterr().out


def test_oracle_and_sharing(models, tmp_path):
    printed = run("oracle_and_sharing", models["a"], models["b"], tmp_path / "out", cwd=tmp_path)
    assert "first row: test/0" in printed and "'shared':" in printed and (tmp_path / "out/README.md").exists()


def test_own_placement(models, tmp_path):
    lines = run("own_placement", models["a"], cwd=tmp_path).splitlines()
    assert [line.split(":")[0] for line in lines] == ["isotropic", "spiral", "ink"]


def test_boxes(models, tmp_path):
    found = {line.split(":")[0]: numbers(line)[-2] for line in run("boxes", models["a"], cwd=tmp_path).splitlines()}
    assert list(found) == ["uniform", "in the box", "outside of it"] and found["in the box"] > found["outside of it"]
