"""`--decode scaled` of the jobs, `spot-hf benchmark --end_to_end`, and threads: on real files and processes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from transformers import AutoImageProcessor

from spot_hf import load_coordinates
from spot_hf.cli import main
from spot_hf.decoding import decode_image


COUNT = 6
SIZE = (302, 202)  # of which libjpeg's half is larger than what a recipe of 32 pixels needs


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """JPEGs of sharp noise, of which scaled decoding makes other pixels, in two classes."""
    directory, generator = tmp_path_factory.mktemp("images") / "pictures", np.random.default_rng(0)
    for i in range(COUNT):
        folder = directory / "train" / ("ant", "bee")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.jpg", quality=95)
    return directory


def oracle(model, images, output, *more: str) -> int:
    argv = ["oracle", "--model", str(model), "--dataset_name", str(images), "--dataset_split", "train", "--num_tokens", "4"]
    return main([*argv, "--steps", "1", "--num_workers", "0", "--run_name", "tiny", "--output_dir", str(output), *more])


def test_the_oracle_decodes_as_it_is_told(model, images, tmp_path, capsys):
    for name, more in {"exact": [], "scaled": ["--decode", "scaled"]}.items():
        assert oracle(model, images, tmp_path / name, *more) == 0
    exact, scaled = (load_coordinates(tmp_path / name) for name in ("exact", "scaled"))
    assert exact["image_size"] == scaled["image_size"] == [[*SIZE]] * COUNT  # of the file, in both
    assert exact["initial_coordinates"] == scaled["initial_coordinates"] and exact["losses"] != scaled["losses"]
    # Results depend on it: it is recorded where it is given, and another is refused.
    records = {name: json.loads((tmp_path / name / "run.json").read_text())["parameters"] for name in ("exact", "scaled")}
    assert records["scaled"]["decode"] == "scaled" and "decode" not in records["exact"]
    capsys.readouterr()
    assert oracle(model, images, tmp_path / "scaled") == 2
    assert "decode" in capsys.readouterr().err
    assert oracle(model, images, tmp_path / "none", "--decode", "half") == 2
    assert "`decode` must be one of exact, scaled; got 'half'" in capsys.readouterr().err and not (tmp_path / "none").exists()


def test_a_saved_setting_holds_for_jobs(model, images, tmp_path):
    """Of a model whose processor says so, what `--decode scaled` says of one that does not."""
    scaling = tmp_path / "scaling"
    shutil.copytree(model, scaling)
    AutoImageProcessor.from_pretrained(scaling, decode="scaled").save_pretrained(scaling)
    assert oracle(scaling, images, tmp_path / "saved") == 0
    assert oracle(model, images, tmp_path / "told", "--decode", "scaled") == 0
    saved, told = (load_coordinates(tmp_path / name)["losses"] for name in ("saved", "told"))
    assert saved == told


def test_evaluation_and_transfer_decode_as_they_are_told(model, images, tmp_path):
    losses = {}
    for name, more in {"exact": [], "scaled": ["--decode", "scaled"]}.items():
        argv = [
            "evaluate",
            "--model",
            str(model),
            "--dataset_name",
            str(images),
            "--dataset_split",
            "train",
            "--num_tokens",
            "4",
        ]
        argv += ["--placement", "isotropic", "--baselines", "full_grid", "shrunken_image", "--num_workers", "0"]
        assert main([*argv, "--output_dir", str(tmp_path / name), *more]) == 0
        lines = [json.loads(line) for path in (tmp_path / name).rglob("*.jsonl") for line in path.read_text().splitlines()]
        losses[name] = {json.dumps(line["cell"]): line["loss"] for line in lines}
    assert losses["exact"].keys() == losses["scaled"].keys() and len(losses["exact"]) == 3
    assert all(losses["exact"][cell] != losses["scaled"][cell] for cell in losses["exact"])
    assert oracle(model, images, tmp_path / "oracle", "--decode", "scaled") == 0
    argv = ["evaluate", "--coordinates", str(tmp_path / "oracle"), "--model", str(model), "--dataset_name", str(images)]
    assert main([*argv, "--decode", "scaled", "--output_dir", str(tmp_path / "transfer")]) == 0
    found = json.loads((tmp_path / "transfer" / "transfer.json").read_text())
    assert found["num_images"] == COUNT


def test_classify_decodes_as_it_is_told(model, images, capsys):
    file = str(next(images.rglob("*.jpg")))
    answers = {}
    for name, more in {"exact": [], "scaled": ["--decode", "scaled"], "compiled": ["--compile"]}.items():
        assert main(["classify", "--model", str(model), file, "--num_tokens", "4", "--json", *more]) == 0
        (answers[name],) = json.loads(capsys.readouterr().out)
    scores = {name: {one["label"]: one["score"] for one in answer["predictions"]} for name, answer in answers.items()}
    assert answers["exact"]["coordinates"] == answers["scaled"]["coordinates"]
    assert scores["exact"] != scores["scaled"]
    assert scores["compiled"] == pytest.approx(scores["exact"], abs=1e-4)  # kernels that round otherwise, logits of order 1
    assert main(["classify", "--model", str(model), file, "--decode", "fast"]) == 2
    assert "`decode` must be one of exact, scaled; got 'fast'" in capsys.readouterr().err


def test_pictures_of_what_was_decoded_scaled(model, images, tmp_path, capsys):
    file = str(next(images.rglob("*.jpg")))
    argv = ["classify", "--model", str(model), file, "--num_tokens", "4", "--draw", str(tmp_path / "seen")]
    assert main([*argv, "--decode", "scaled"]) == 0
    (picture,) = (tmp_path / "seen").iterdir()
    width, height = Image.open(picture).size
    assert width / height == pytest.approx(SIZE[0] / SIZE[1], rel=0.02)


def test_end_to_end_times_pipelines(model, tiny_vit, images, tmp_path, capsys, monkeypatch):
    decoded = []  # widths of files, whether they were to be scaled, and how many times smaller they came out

    def record(image, resized_size=None):
        found = decode_image(image, resized_size)
        decoded.append((found.size[0], resized_size is not None, round(found.size[0] / found.pixels.size[0])))
        return found

    monkeypatch.setattr("spot_hf.image_processing_spot_vit.decode_image", record)
    large = round(SIZE[0] * (12_000_000 / (SIZE[0] * SIZE[1])) ** 0.5)
    file = tmp_path / "end_to_end.json"
    argv = ["benchmark", "--model", str(model), "--baseline", str(tiny_vit), "--num_tokens", "2", "--repeats", "2"]
    argv += ["--num_threads", "1", "--end_to_end", str(images), "--num_images", "3", "--num_large_images", "1"]
    assert main([*argv, "--output_file", str(file)]) == 0
    result = json.loads(file.read_text())
    names = ["transformers", "spot full grid", "spot 2", "spot 2, scaled"]
    cells = [(row["files"], row["batch_size"], row["name"]) for row in result["rows"]]
    assert cells == [(kind, size, name) for kind in ("as given", "12 megapixels") for size in (1, 16) for name in names]
    for row in result["rows"]:
        assert row["ms"] > 0 and (row["p95"] is None) == (row["batch_size"] == 16)
        assert sum(row["stages"].values()) == pytest.approx(row["ms"])
        assert ("place" in row["stages"]) == row["name"].startswith("spot 2")
    # The large files are decoded at an eighth of their width where the name says so, and only there.
    assert {one for one in decoded if one[0] > 1000} == {(large, False, 1), (large, True, 8)}
    printed = capsys.readouterr().out
    assert "| as given | 16 | spot 2 |" in printed and "3 files of 302 × 202 pixels" in printed
    assert main([*argv, "--compile"]) == 2 and "`compile` is not for `end_to_end`" in capsys.readouterr().err
    assert main([*argv[:-4], "--end_to_end", str(tmp_path / "none.jpg")]) == 2
    assert "`end_to_end` must be files or directories of images" in capsys.readouterr().err


CORES = """
import os, sys
from spot_hf.cli import main
main(["oracle", "--help"])
import torch
from spot_hf.jobs.threads import limit_threads
limit_threads()
print(os.environ.get("GOMP_SPINCOUNT"), torch.get_num_threads(), len(os.sched_getaffinity(0)))
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_threads_are_those_of_the_cores_that_may_be_used():
    def seen(one_core: bool = True, **environment: str) -> list[str]:
        unset = ("OMP_NUM_THREADS", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
        kept = {name: value for name, value in os.environ.items() if name not in unset}
        path = os.pathsep.join([str(ROOT / "src"), kept.get("PYTHONPATH", "")])
        cores = {min(os.sched_getaffinity(0))} if one_core else os.sched_getaffinity(0)
        process = subprocess.run(
            [sys.executable, "-c", CORES], env={**kept, "PYTHONPATH": path, **environment}, capture_output=True, text=True,
            check=True, preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )  # fmt: skip
        return process.stdout.splitlines()[-1].split()

    assert seen() == ["3000", "1", "1"]
    assert seen(OMP_NUM_THREADS="2") == ["3000", "2", "1"]  # what the user says stays
    assert seen(GOMP_SPINCOUNT="7")[0] == "7" and seen(OMP_WAIT_POLICY="ACTIVE")[0] == "None"
    # The limits of a container, which affinity does not show, as loky reads them.
    assert seen(one_core=False, LOKY_MAX_CPU_COUNT="1")[1] == "1"
