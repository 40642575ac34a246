"""What cannot be exported, or run: one line that says what to do instead. And the formats other than ONNX."""

import json
from importlib.util import find_spec

import pytest
import torch
from tiny import random_coordinates, random_images, tiny_model, tiny_processor

from spot_hf import SpotViTForImageClassification
from spot_hf.cli import main
from spot_hf.export import OnnxSpotViT, export_model
from spot_hf.export.errors import ExportError
from spot_hf.export.executorch import run_executorch


pytestmark = pytest.mark.export


has_onnx = pytest.mark.skipif(find_spec("onnxruntime") is None, reason="the extra onnx is not installed")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("saved")
    tiny_model().save_pretrained(directory)
    tiny_processor().save_pretrained(directory)
    return directory


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "coreml"], "`format` must be one of onnx, torch_export, executorch; got 'coreml'"),
        (["--quantize", "int4"], "`quantize` must be int8 or float16; got 'int4'"),
        (["--quantize", "int8", "--format", "torch_export"], "`quantize` is for `format` onnx; got ['int8']"),
        (["--dataset_split", "test"], "`dataset_split` needs `dataset_name`; got 'test' alone"),
        (["--dataset_name", "digits", "--format", "torch_export"], "`dataset_name` is for `format` onnx"),
        (["--push_to_hub"], "`push_to_hub` needs `hub_model_id`"),
        (["--num_tokens", "0"], "`num_tokens` must be positive integers; got [0]"),
        (["--batch_size", "0"], "`batch_size` must be at least 1; got 0"),
    ],
)
def test_options(saved, tmp_path, capsys, options, message):
    assert main(["export", "--model", str(saved), "--output_dir", str(tmp_path / "out"), *options]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


@has_onnx
def test_what_is_no_spot_vit(tmp_path, tiny_vit, capsys):
    for model, message in ((tiny_vit, "is a 'vit', not a SpotViT"), (tmp_path / "none", "must be a directory or a Hub id")):
        assert main(["export", "--model", str(model), "--output_dir", str(tmp_path / "out")]) != 0
        error = capsys.readouterr().err
        assert message in error and len(error.strip().splitlines()) == 1
    with pytest.raises(ValueError, match="`model` must be a SpotViT; got Linear"):
        export_model(torch.nn.Linear(2, 2), tmp_path / "out")
    with pytest.raises(ExportError, match=r"`model` merges tokens, merge_tokens=0\.5"):
        export_model(tiny_model(merge_tokens=0.5), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@has_onnx
def test_files_that_are_there_stay(saved, tmp_path):
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"holds onnx/model.onnx; give `overwrite` to replace it"):
        export_model(saved, tmp_path)
    assert (tmp_path / "onnx" / "model.onnx").read_bytes() == b"mine"


@has_onnx
def test_files_that_are_none(saved, tmp_path, capsys, photos):
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_text((saved / name).read_text())
    with pytest.raises(OSError, match=r"has no onnx/model.onnx: `spot-hf export` writes it"):
        OnnxSpotViT.from_pretrained(tmp_path)
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").write_bytes(b"no graph")
    classify = ["classify", photos[0], "--model", str(tmp_path), "--runtime", "onnx"]
    for more, message in (
        ([], "is no ONNX file that ONNX Runtime reads"),
        (["--quantize", "int8"], "has no onnx/model_quantized.onnx: `spot-hf export --quantize int8` writes it"),
        (["--quantize", "int2"], "`quantize` must be int8 or float16; got 'int2'"),
        (["--compile"], "`compile` is for `runtime` torch"),
    ):
        assert main([*classify, *more]) != 0
        error = capsys.readouterr().err
        assert message in error and len(error.strip().splitlines()) == 1
    with pytest.raises(ValueError, match=r"`providers` must be of .*; got \['TPU'\]"):
        OnnxSpotViT.from_pretrained(tmp_path, providers=["TPU"])
    with pytest.raises(ValueError, match="`num_threads` must be at least 1; got 0"):
        OnnxSpotViT.from_pretrained(tmp_path, num_threads=0)


def test_runtimes(saved, capsys, photos):
    assert main(["classify", photos[0], "--model", str(saved), "--runtime", "tvm"]) == 2
    assert "`runtime` must be one of torch, onnx; got 'tvm'" in capsys.readouterr().err
    assert main(["classify", photos[0], "--model", str(saved), "--quantize", "int8"]) == 2
    assert "`quantize` is for `runtime` onnx; got 'int8' with 'torch'" in capsys.readouterr().err
    assert main(["benchmark", "--runtime", "onnx", "--dtype", "bfloat16"]) == 2
    assert "`dtype` must be float32 with `runtime` onnx; got 'bfloat16'" in capsys.readouterr().err


def test_without_the_packages(saved, tmp_path, capsys, monkeypatch, photos):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    export = ["export", "--model", str(saved), "--output_dir", str(tmp_path / "out")]
    for command, message in (
        (export, "the package onnx is not installed: pip install 'spot_hf[onnx]'"),
        ([*export, "--format", "executorch"], "needs the package executorch, which is not installed"),
        (["classify", photos[0], "--model", str(saved), "--runtime", "onnx"], "the package onnxruntime is not installed"),
    ):
        assert main(command) == 1
        error = capsys.readouterr().err
        assert message in error and len(error.strip().splitlines()) == 1


@torch.no_grad()
def test_torch_export(saved, tmp_path):
    """One program, for images wide and high, small and large."""
    assert main(["export", "--model", str(saved), "--output_dir", str(tmp_path), "--format", "torch_export"]) == 0
    program = torch.export.load(tmp_path / "model.pt2").module()
    model = SpotViTForImageClassification.from_pretrained(saved).eval()
    for batch_size, num_tokens, height, width in ((2, 9, 56, 64), (1, 2, 48, 200), (5, 25, 131, 48)):
        inputs = {
            "pixel_values": random_images(batch_size, height, width),
            "coordinates": random_coordinates(batch_size, num_tokens),
        }
        # Other kernels, the same float32 arithmetic: logits here are of the order of 1.
        torch.testing.assert_close(program(**inputs)["logits"], model(**inputs).logits, rtol=0, atol=2e-5)
    report = json.loads((tmp_path / "export_report.json").read_text())
    assert report["format"] == "torch_export" and max(report["differences"]["float32"].values()) < 1e-4


@torch.no_grad()
def test_executorch(saved, tmp_path):
    """A program for as many tokens as were asked for, of one image."""
    pytest.importorskip("executorch.runtime", reason="executorch is not installed")
    command = ["export", "--model", str(saved), "--output_dir", str(tmp_path), "--format", "executorch", "--num_tokens", "4"]
    assert main(command) == 0
    report = json.loads((tmp_path / "export_report.json").read_text())
    assert report["num_tokens"] == 4 and max(report["differences"]["float32"].values()) < 1e-4
    inputs = {"pixel_values": random_images(1), "coordinates": random_coordinates(1, 4)}
    found = run_executorch(tmp_path / "model.pte", ["logits"])(**inputs)["logits"]
    model = SpotViTForImageClassification.from_pretrained(saved).eval()
    # Other kernels, the same float32 arithmetic: logits here are of the order of 1.
    torch.testing.assert_close(found, model(**inputs).logits, rtol=0, atol=2e-5)


def push_and_load(model, directory):
    import torch

    from spot_hf.cli import main
    from spot_hf.export import OnnxSpotViT

    command = ["export", "--model", model, "--output_dir", directory, "--push_to_hub", "--hub_model_id", "alice/exported"]
    status = main(command)
    loaded = OnnxSpotViT.from_pretrained("alice/exported")
    return [status, list(loaded(torch.zeros(2, 3, 48, 48), coordinates=torch.full((2, 3, 2), 0.5)).logits.shape)]


@has_onnx
def test_push_and_load_from_the_hub(saved, tmp_path, hub, fresh_process):
    assert fresh_process(push_and_load, str(saved), str(tmp_path / "out"), hub=hub, token="hf_alice") == [0, [2, 5]]
