"""The command line where all is well: what it prints and writes, and its exit status. (Mistakes: test_bad_input.py.)"""

import json
import re
import subprocess
import sys
import threading
from dataclasses import fields
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import datasets
import pyarrow.parquet as pq
import pytest
from oracle_runs import save_images
from transformers import TrainingArguments

from spot_hf import SpotViTForImageClassification
from spot_hf.cli import COMMANDS, main
from spot_hf.placement import isotropic


@pytest.fixture(scope="module")
def converted(tiny_vit, tmp_path_factory):
    output = tmp_path_factory.mktemp("cli") / "spot"
    assert main(["convert", "--source_model", str(tiny_vit), "--output_dir", str(output)]) == 0
    return output


def test_convert_reports_and_writes(tiny_vit, tmp_path, capsys):
    output = tmp_path / "new" / "spot"
    argv = [
        "convert",
        "--source_model",
        str(tiny_vit),
        "--output_dir",
        str(output),
        "--num_tokens",
        "5",
        "--placement",
        "center",
    ]
    assert main(argv) == 0
    printed = capsys.readouterr().out
    assert "cc-by-4.0" in printed and "0 newly initialised" in printed and str(output) in printed
    assert {path.name for path in output.iterdir()} == {
        "README.md", "config.json", "conversion_report.json", "model.safetensors", "preprocessor_config.json",
        "configuration_spot_vit.py", "image_processing_spot_vit.py", "modeling_spot_vit.py", "pipeline_spot_vit.py",
        "placement.py", "windows.py", "positions.py", "frames.py", "drawing.py", "decoding.py", "batch_feature.py",
        "foveation.py", "budgets.py", "merging.py", "placer.py", "input_checks.py", "pretraining_spot_vit.py",
        "segmentation_maps.py", "segmentation_pipeline.py", "segmentation_spot_vit.py",
        "zero_shot_pipeline.py", "zero_shot_spot_vit.py",
        "configuration_spot.py", "modeling_spot.py", "golden.py", "golden.safetensors", "version.py", "backbone_spot_vit.py",
        "handler.py", "requirements.txt",
    }  # fmt: skip
    assert [path.name for path in output.parent.iterdir()] == ["spot"]
    config = json.loads((output / "config.json").read_text())
    assert set(config["auto_map"]) == {
        "AutoConfig", "AutoModel", "AutoModelForImageClassification", "AutoModelForPreTraining", "AutoBackbone",
        "AutoModelForSemanticSegmentation", "AutoModelForZeroShotImageClassification",
    }  # fmt: skip
    assert set(config["custom_pipelines"]) == {"spot-image-classification"}
    card = (output / "README.md").read_text()
    assert (
        "5 tokens, center" in card and '"spot"' in card and str(output) not in card and "More Information Needed" not in card
    )
    # The same command again is refused, and with the flag it replaces.
    assert main(argv) == 2
    assert main([*argv, "--overwrite_output_dir"]) == 0


def test_classify_prints_a_table(converted, photos, capsys):
    assert main(["classify", "--model", str(converted), *photos, "--num_tokens", "5", "--top_k", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["image", "tokens", "score", "label"] and len(lines) == 1 + 2 * len(photos)
    first = lines[1].split()
    assert first[1] == "5" and 0 <= float(first[2]) <= 1 and first[3] in ("ant", "bee", "cat", "dog", "eel")


def test_classify_json_of_a_directory(converted, photos, capsys):
    directory = photos[0].rpartition("/")[0]
    assert main(["classify", "--model", str(converted), directory, "--num_tokens", "4", "--json", "--batch_size", "2"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert [result["image"] for result in results] == photos
    for result in results:
        assert result["num_tokens"] == 4 and len(result["predictions"]) == 5
        assert result["coordinates"] == pytest.approx(isotropic(4).numpy(), abs=1e-6)


def test_classify_goes_on_past_a_broken_image(converted, photos, tmp_path, capsys):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG")
    assert main(["classify", "--model", str(converted), photos[0], str(broken), photos[1], "--json"]) == 1
    output = capsys.readouterr()
    results = json.loads(output.out)
    assert [set(result) >= {"predictions"} for result in results] == [True, False, True]
    assert str(broken) in output.err and "error" in results[1]
    assert results[0]["num_tokens"] == 16  # nothing asked, nothing saved: the full grid


def test_classify_placement_with_the_saved_number_of_tokens(tiny_vit, photos, tmp_path, capsys):
    assert main(["convert", "--source_model", str(tiny_vit), "--output_dir", str(tmp_path / "spot"), "--num_tokens", "5"]) == 0
    capsys.readouterr()
    assert main(["classify", "--model", str(tmp_path / "spot"), photos[0], "--placement", "center", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["num_tokens"] == 5


def test_classify_takes_urls(converted, photos, capsys):
    directory, _, name = photos[0].rpartition("/")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=directory))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        assert main(["classify", "--model", str(converted), f"{url}/{name}", photos[0], f"{url}/absent.png", "--json"]) == 1
    finally:
        server.shutdown()
        server.server_close()
    output = capsys.readouterr()
    results = json.loads(output.out)
    assert (
        results[0]["predictions"] == results[1]["predictions"]
        and "absent.png" in results[2]["image"]
        and "error" in results[2]
    )
    assert "/absent.png: " in output.err


def test_a_reader_that_has_gone_is_no_error(converted, photos):
    command = [
        sys.executable,
        "-m",
        "spot_hf",
        "classify",
        "--model",
        str(converted),
        *photos * 200,
        "--num_tokens",
        "1",
        "--json",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.readline()
    process.stdout.close()
    assert "rror" not in process.stderr.read() and process.wait(60) == 1


def test_classify_with_a_file_of_coordinates(converted, photos, tmp_path, capsys):
    sets = {"0.png": [[0.5, 0.5]], photos[1]: [[0.25, 0.5], [0.75, 0.5]]}
    (tmp_path / "coordinates.json").write_text(json.dumps(sets))
    argv = ["classify", "--model", str(converted), *photos[:2], "--coordinates", str(tmp_path / "coordinates.json"), "--json"]
    assert main(argv) == 0
    results = json.loads(capsys.readouterr().out)
    for result, expected in zip(results, sets.values(), strict=True):
        assert result["coordinates"] == [pytest.approx(point, abs=1e-6) for point in expected]


def test_classify_seeds(converted, photos, capsys):
    def used(seed):
        argv = ["--num_tokens", "4", "--placement", "uniform", "--json", "--seed", str(seed)]
        assert main(["classify", "--model", str(converted), photos[0], *argv]) == 0
        return json.loads(capsys.readouterr().out)[0]["coordinates"]

    assert used(1) == used(1) != used(2)


def test_benchmark_writes_its_figures(converted, tiny_vit, tmp_path, capsys):
    file = tmp_path / "results" / "benchmark.json"
    argv = ["--num_tokens", "4", "16", "--repeats", "2", "--num_threads", "1", "--batch_size", "2", "--output_file", str(file)]
    assert main(["benchmark", "--model", str(converted), "--baseline", str(tiny_vit), *argv]) == 0
    result = json.loads(file.read_text())
    assert [row["name"] for row in result["rows"]] == ["ordinary", "spot full grid", "spot 4", "spot 16"]
    assert all(row["ms"] > 0 for row in result["rows"])
    # More tokens, more memory: counted, so that it holds on any machine. The full grid needs no coordinates of its own.
    peaks = [row["peak_mib"] for row in result["rows"][2:]]
    assert 0 < peaks[0] < peaks[-1] and peaks == sorted(peaks)
    assert result["rows"][2]["sampling_share"] > 0
    assert "placer_share" not in result["rows"][2]  # this model has none
    assert "| spot 4 | 4 |" in capsys.readouterr().out


@pytest.mark.slow
def test_quickstart_on_given_models(tiny_vit, tmp_path, capsys):
    """The story without its training; `make quickstart` runs all of it."""
    output, images = tmp_path / "story", ["--dataset_name", str(save_images(tmp_path / "images", 12))]
    assert main(["quickstart", "--model", str(tiny_vit), *images, "--output_dir", str(output)]) == 0
    results = json.loads((output / "results.json").read_text())
    assert results["models"]["a"]["max_logit_difference"] <= 1e-4 and results["num_images"] == 12
    assert results["remote_code"]["num_tokens"] == [4] * 4
    accuracies = results["models"]["a"]["accuracies"]
    assert accuracies["grid_subset"]["16"] == accuracies["isotropic"]["16"] == results["models"]["a"]["full_grid"]
    for picture in ("accuracy.png", "windows.png"):
        assert (output / picture).stat().st_size > 10_000
    assert "| isotropic |" in (output / "README.md").read_text()
    # A finished quickstart may be run again; somebody else's directory may not be replaced.
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious.txt").write_text("mine")
    assert main(["quickstart", "--model", str(tiny_vit), "--output_dir", str(tmp_path / "mine")]) == 2
    assert (tmp_path / "mine" / "precious.txt").read_text() == "mine"
    (tmp_path / "mine" / "results.json").write_text('{"accuracy": 1}')  # not a quickstart's
    assert main(["quickstart", "--model", str(tiny_vit), "--output_dir", str(tmp_path / "mine")]) == 2
    assert main(["quickstart", "--model", str(tiny_vit), *images, "--max_samples", "3", "--output_dir", str(output)]) == 0
    # Digits are none of the model's classes.
    assert main(["quickstart", "--model", str(tiny_vit), "--output_dir", str(output)]) == 2
    assert "10 of the 10 classes of 'label' are none of the model's" in capsys.readouterr().err


@pytest.mark.slow
def test_quickstart_on_labels_without_names(tiny_vit, tmp_path):
    table = pq.read_table(save_images(tmp_path / "named", 8) / "validation.parquet").to_pylist()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    (tmp_path / "data").mkdir()
    datasets.Dataset.from_list(table, features=features).to_parquet(tmp_path / "data/test.parquet")
    words = ["--model", str(tiny_vit), "--dataset_name", str(tmp_path / "data"), "--output_dir", str(tmp_path / "story")]
    assert main(["quickstart", *words]) == 0
    assert json.loads((tmp_path / "story/results.json").read_text())["oracle"]["objective"] == "label"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_describes_every_option(command, capsys):
    assert main([command, "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"spot-hf {command}" in text
    for option in [option for kind in COMMANDS[command].classes for option in fields(kind) if option.init]:
        if option.name not in TrainingArguments.__dataclass_fields__ or command not in ("train", "pretrain"):
            assert f"--{option.name}" in text and option.metadata["help"].split(":")[0][:30] in text, option.name


def test_the_module_is_the_command():
    done = subprocess.run([sys.executable, "-m", "spot_hf", "--version"], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"spot_hf \d+\.\d+\.\d+\n", done.stdout)


def test_the_converted_model_is_loadable(converted):
    assert SpotViTForImageClassification.from_pretrained(converted).config.source_model["license"] == "cc-by-4.0"
