"""Bad input: one line that names the argument, what was given and what is accepted, before any compute; nothing is left.

Each case is `(what is wrong, words that the message must have)`.
"""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import random_coordinates, random_images, tiny_config, tiny_model, tiny_processor

from spot_hf import SpotImageClassificationPipeline, SpotViTConfig, SpotViTModel, convert_checkpoint
from spot_hf.cli import main


IMAGE = Image.new("RGB", (60, 45), "white")
GOOD = [[0.25, 0.5], [0.75, 0.5]]

PROCESSOR = {
    "coordinates: a flat list": ({"coordinates": [0.5, 0.5]}, ["coordinates", "(num_tokens, 2)", "got"]),
    "coordinates: three numbers per token": ({"coordinates": [[0.1, 0.2, 0.3]]}, ["coordinates", "(1, 3)"]),
    "coordinates: four dimensions": ({"coordinates": np.zeros((1, 1, 3, 2))}, ["coordinates", "(1, 1, 3, 2)"]),
    "coordinates: not a number": ({"coordinates": [[0.5, float("nan")]]}, ["coordinates", "finite", "nan"]),
    "coordinates: infinite": ({"coordinates": torch.tensor([[0.5, float("inf")]])}, ["coordinates", "finite", "inf"]),
    "coordinates: above 1": ({"coordinates": [[0.5, 0.5], [0.5, 1.5]]}, ["coordinates", "[0, 1]", "1.5"]),
    "coordinates: below 0": ({"coordinates": np.array([[-0.1, 0.5]])}, ["coordinates", "[0, 1]", "-0.1"]),
    "coordinates: in pixels": ({"coordinates": [[112, 60]]}, ["coordinates", "[0, 1]", "112"]),
    "coordinates: none": ({"coordinates": []}, ["coordinates", "at least one token"]),
    "coordinates: an empty set": ({"coordinates": torch.zeros(0, 2)}, ["coordinates", "at least one token"]),
    "coordinates: sets for other images": ({"coordinates": [GOOD, GOOD, GOOD]}, ["coordinates", "per image, 2", "3 sets"]),
    "coordinates: one set as a batch": ({"coordinates": torch.tensor([GOOD])}, ["coordinates", "per image, 2", "1 set"]),
    "coordinates: ragged within a set": ({"coordinates": [[[0.1, 0.2], [0.3]], GOOD]}, ["coordinates", "regular array"]),
    "coordinates: text": ({"coordinates": "0.5,0.5"}, ["coordinates", "tensor", "0.5,0.5"]),
    "coordinates: words inside": ({"coordinates": [["left", "top"]]}, ["coordinates", "numbers", "left"]),
    "coordinates and num_tokens": ({"coordinates": GOOD, "num_tokens": 2}, ["coordinates", "num_tokens", "both"]),
    "coordinates and placement": ({"coordinates": GOOD, "placement": "grid"}, ["coordinates", "placement", "both"]),
    "num_tokens: 0": ({"num_tokens": 0}, ["num_tokens", "from 1", "got 0"]),
    "num_tokens: negative": ({"num_tokens": -3}, ["num_tokens", "from 1", "got -3"]),
    "num_tokens: a fraction": ({"num_tokens": 2.5}, ["num_tokens", "integer", "2.5"]),
    "num_tokens: text": ({"num_tokens": "25"}, ["num_tokens", "integer", "'25'"]),
    "num_tokens: true": ({"num_tokens": True}, ["num_tokens", "integer", "True"]),
    "num_tokens: absurd": ({"num_tokens": 10**9}, ["num_tokens", "65536", "1000000000"]),
    "num_tokens: not the grid's": ({"placement": "grid", "num_tokens": 25}, ["num_tokens", "36", "got 25"]),
    "num_tokens: more than cells": ({"placement": "grid_subset", "num_tokens": 37}, ["num_tokens", "at most 36", "37"]),
    "placement: unknown": ({"placement": "centre", "num_tokens": 4}, ["placement", "isotropic", "'centre'"]),
    "placement: without num_tokens": ({"placement": "sobol"}, ["placement='sobol'", "num_tokens"]),
    "saliency: a box": ({"saliency": [[[5, 6, 30, 40]], [[5, 6, 30, 40]]]}, ["a box, which `boxes` takes", "[[5.0, 6.0"]),
    "saliency: boxes": ({"saliency": [[[5, 6, 30, 40], [1, 2, 3, 4]]] * 2}, ["a box, which `boxes` takes"]),
    "saliency: and boxes": ({"saliency": np.ones((2, 3, 3)), "boxes": [[5, 6, 30, 40]] * 2}, ["`saliency` and `boxes`"]),
    "saliency: unused": (
        {"saliency": np.ones((2, 3, 3)), "placement": "isotropic"}, ["`saliency` is for the placements salient", "isotropic"],
    ),
    "boxes: of other images": ({"boxes": [[5, 6, 30, 40]] * 3, "num_tokens": 4}, ["`boxes`", "for 2 images; got 3"]),
    "boxes: three numbers": ({"boxes": [[5, 6, 30]] * 2, "num_tokens": 4}, ["`boxes` of image 0", "shape (3,)"]),
    "boxes: text": ({"boxes": "5, 6, 7, 8", "num_tokens": 4}, ["`boxes` must be [x_min"]),
    "boxes: outside": ({"boxes": [[5, 6, 30, 40], [5, 6, 70, 40]], "num_tokens": 4}, ["of image 1", "60 wide", "70.0"]),
    "boxes: empty": ({"boxes": [[5, 6, 5, 40]] * 2, "num_tokens": 4}, ["`boxes` of image 0", "not empty"]),
    "boxes: without a number": ({"boxes": [[5, 6, 30, 40]] * 2}, ["salient", "needs `num_tokens`"]),
    "window_scales: of other images": ({"coordinates": GOOD, "window_scales": [[1, 2]] * 3}, ["per image, 2; got 3"]),
    "window_scales: of other tokens": ({"coordinates": GOOD, "window_scales": [1, 2, 3]}, ["per token of image 0, 2; got 3"]),
    "window_scales: 0": ({"num_tokens": 4, "window_scales": 0}, ["`window_scales` must be finite and above 0"]),
    "outside: unknown": ({"coordinates": GOOD, "outside": "keep"}, ["`outside` must be one of warn, drop, error", "'keep'"]),
    "placement: of another kind": ({"placement": 3, "num_tokens": 4}, ["`placement` must be one of", "got 3"]),
    "placement: nowhere": ({"placement": "no.module:there", "num_tokens": 4}, ["cannot be imported", "No module named 'no'"]),
    "saliency: missing": ({"placement": "salient", "num_tokens": 4}, ["saliency", "one map per image", "none"]),
    "saliency: negative": ({"saliency": -np.ones((2, 3, 3))}, ["saliency", "not negative", "-1.0"]),
    "saliency: not a number": ({"saliency": np.full((2, 3, 3), np.nan)}, ["saliency", "finite", "nan"]),
    "saliency: all zero": ({"saliency": np.zeros((2, 3, 3))}, ["saliency", "zero everywhere"]),
    "saliency: larger than the image": ({"saliency": np.ones((2, 90, 90))}, ["saliency", "(45, 60)", "(90, 90)"]),
    "saliency: for other images": ({"saliency": np.ones((3, 4, 4))}, ["saliency", "per image, 2", "got 3"]),
    "saliency: a number": ({"saliency": 0.5}, ["saliency", "one map", "0.5"]),
    "image_ids: too few": ({"image_ids": ["a"], "num_tokens": 4}, ["image_ids", "per image, 2", "['a']"]),
    "do_pad": ({"do_pad": True, "num_tokens": 4}, ["do_pad", "false"]),
}  # fmt: skip


def assert_names(message: str, words: list[str]) -> None:
    assert "\n" not in message.strip(), message
    assert len(message) < 400, message
    for word in words:
        found = re.search(word, message) if "|" in word else word in message
        assert found, f"{word!r} is not in: {message}"


@pytest.mark.parametrize("case", PROCESSOR)
def test_image_processor(case, monkeypatch):
    inputs, words = PROCESSOR[case]
    if "saliency" in inputs:
        inputs = {"placement": "salient", "num_tokens": 4, **inputs}
    processor = tiny_processor()

    def no_compute(*args, **kwargs):
        raise AssertionError("an image was processed before the input was checked")

    monkeypatch.setattr(type(processor), "resize", no_compute)
    with pytest.raises(ValueError) as error:
        processor([IMAGE, IMAGE], return_tensors="pt", **inputs)
    assert_names(str(error.value), words)


COORDINATES = random_coordinates()
MODEL = {
    "pixel_values: none": ({}, ["pixel_values", "required"]),
    "pixel_values: one image": ({"pixel_values": torch.zeros(3, 48, 48)}, ["pixel_values", "batch_size", "(3, 48, 48)"]),
    "pixel_values: four channels": ({"pixel_values": torch.zeros(1, 4, 48, 48)}, ["pixel_values", "(1, 4, 48, 48)"]),
    "pixel_values: smaller than a patch": ({"pixel_values": torch.zeros(1, 3, 48, 7)}, ["pixel_values", "patch_size=8"]),
    "coordinates: without a batch": ({"coordinates": COORDINATES[0]}, ["coordinates", "num_tokens, 2", "(7, 2)"]),
    "coordinates: another batch size": ({"coordinates": COORDINATES[:1].expand(3, -1, -1)}, ["coordinates", "(3, 7, 2)"]),
    "coordinates: no tokens": ({"coordinates": COORDINATES[:, :0]}, ["coordinates", "at least one token"]),
    "coordinates: bfloat16": ({"coordinates": COORDINATES.bfloat16()}, ["coordinates", "float32", "bfloat16"]),
    "coordinates: integers": ({"coordinates": torch.zeros(2, 7, 2, dtype=torch.long)}, ["coordinates", "float32", "int64"]),
    "coordinates_mask: wrong length": (
        {"coordinates": COORDINATES, "coordinates_mask": torch.ones(2, 6)}, ["coordinates_mask", "(2, 7)", "(2, 6)"],
    ),
    "coordinates_mask: alone": ({"coordinates_mask": torch.ones(2, 7)}, ["coordinates_mask", "needs `coordinates`"]),
    "window_scales: wrong shape": (
        {"coordinates": COORDINATES, "window_scales": torch.ones(7)}, ["window_scales", "(2, 7)", "(7,)"],
    ),
    "window_scales: half precision": (
        {"coordinates": COORDINATES, "window_scales": torch.ones(2, 7).half()}, ["window_scales", "float32", "float16"],
    ),
    "window_scales: alone": ({"window_scales": torch.ones(2, 7)}, ["window_scales", "needs `coordinates`"]),
}  # fmt: skip


@pytest.mark.parametrize("case", MODEL)
def test_model(case):
    inputs, words = MODEL[case]
    if not case.startswith("pixel_values"):
        inputs = {"pixel_values": random_images(), **inputs}
    with pytest.raises(ValueError) as error:
        tiny_model(model_class=SpotViTModel)(**inputs)
    assert_names(str(error.value), words)


CONFIG = {
    "pooling": ({"pooling": "max"}, "pooling"),
    "heads": ({"num_attention_heads": 5}, "num_attention_heads"),
    "heads of the decoder": ({"decoder_hidden_size": 500}, "`decoder_hidden_size` .500."),
    "all masked": ({"mask_ratio": 1.0}, "mask_ratio"),
    "none masked": ({"mask_ratio": 0.0}, "mask_ratio"),
    "patch larger than the image": ({"patch_size": 64}, "position_grid_size"),
    "extent": ({"position_grid_extent": [1.5, 1]}, "position_grid_extent"),
    "interpolation": ({"position_interpolation": {"mode": "nearest"}}, "position_interpolation"),
    "interpolation of another name": ({"position_interpolation": {"anti_alias": True}}, "position_interpolation"),
    "sigma": ({"position_kernel_sigma": 0.0}, "position_kernel_sigma"),
    "distillation without its token": ({"pooling": "cls_distillation"}, "num_register_tokens"),
    "type": ({"hidden_size": "wide"}, "hidden_size"),
}


@pytest.mark.parametrize("case", CONFIG)
def test_config(case):
    changes, word = CONFIG[case]
    with pytest.raises(Exception, match=word):  # huggingface_hub's strict dataclasses wrap a ValueError in their own error
        tiny_config(**changes)
    assert isinstance(tiny_config(), SpotViTConfig)


PIPELINE = {
    "sets for other images": ({"coordinates": [GOOD, GOOD, GOOD]}, ["coordinates", "per image, 2", "got 3"]),
    "outside": ({"coordinates": [[0.5, 2.0]]}, ["coordinates", "[0, 1]", "2.0"]),
    "top_k": ({"top_k": 0}, ["top_k", "positive integer", "got 0"]),
    "placement": ({"placement": "middle", "num_tokens": 4}, ["placement", "'middle'"]),
    "both": ({"coordinates": GOOD, "num_tokens": 2}, ["coordinates", "num_tokens", "both"]),
}


@pytest.mark.parametrize("case", PIPELINE)
def test_pipeline(case):
    inputs, words = PIPELINE[case]
    classifier = SpotImageClassificationPipeline(model=tiny_model(), image_processor=tiny_processor())
    with pytest.raises(ValueError) as error:
        classifier([IMAGE, IMAGE], **inputs)
    assert_names(str(error.value), words)


PLACED = {"image": IMAGE, "coordinates": GOOD}
NOT_A_SCALE = "`window_scales` must be finite and above 0"
ROWS = {
    "no image": ({"picture": IMAGE}, ["key image, and may have coordinates, saliency, boxes, image_id", "got picture"]),
    "images": ({"images": IMAGE}, ["'images'", "is it 'image'?"]),
    "Image": ({"Image": IMAGE}, ["'Image'", "is it 'image'?"]),
    "coordinate": ({"image": IMAGE, "coordinate": GOOD}, ["'coordinate'", "is it 'coordinates'?"]),
    "cordinates": ({"image": IMAGE, "cordinates": GOOD, "label": 3}, ["'cordinates'", "is it 'coordinates'?"]),
    "window_scale": ({"image": IMAGE, "coordinates": GOOD, "window_scale": 2}, ["window_scale", "is it 'window_scales'?"]),
    "saliancy": ({"image": IMAGE, "saliancy": [[1]]}, ["'saliancy'", "is it 'saliency'?"]),
    "image_ids": ({"image": IMAGE, "image_ids": "a"}, ["'image_ids'", "is it 'image_id'?"]),
    "scale 0": ({**PLACED, "window_scales": [1, 0]}, [NOT_A_SCALE, "token 1 is 0.0"]),
    "scale -1": ({**PLACED, "window_scales": np.array([-1.0, 1])}, [NOT_A_SCALE, "token 0 is -1.0"]),
    "scale nan": ({**PLACED, "window_scales": [1, float("nan")]}, [NOT_A_SCALE, "nan"]),
    "scale inf": ({**PLACED, "window_scales": torch.tensor([1, torch.inf])}, [NOT_A_SCALE, "inf"]),
    "scale too large for float32": ({**PLACED, "window_scales": [1, 1e300]}, [NOT_A_SCALE, "1e+300"]),
    "scale of text": ({**PLACED, "window_scales": ["a", "b"]}, ["window_scales", "numbers", "'a'"]),
    "no scale": ({**PLACED, "window_scales": []}, ["window_scales", "one scale, one per token"]),
}  # fmt: skip


@pytest.mark.parametrize("case", ROWS)
def test_pipeline_rows(case, monkeypatch):
    row, words = ROWS[case]
    classifier = SpotImageClassificationPipeline(model=tiny_model(), image_processor=tiny_processor())

    def no_compute(*args, **kwargs):
        raise AssertionError("an image was processed before its row was checked")

    monkeypatch.setattr(type(classifier.image_processor), "resize", no_compute)
    with pytest.raises(ValueError) as error:
        classifier(row)
    assert_names(str(error.value), words)


def test_as_many_scales_as_tokens():
    classifier = SpotImageClassificationPipeline(model=tiny_model(), image_processor=tiny_processor())
    with pytest.raises(ValueError, match="`window_scales` must hold one scale per token, 2; got 3"):
        classifier({"image": IMAGE, "coordinates": GOOD, "window_scales": [1, 1, 1]})


# ------------------------------------------------------------------------------------------------------- command line


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a SpotViT, an ordinary model's config, an image and files of coordinates."""
    folder = tmp_path_factory.mktemp("bad_input")
    tiny_model().save_pretrained(folder / "spot")
    tiny_processor().save_pretrained(folder / "spot")
    tiny_model(model_class=SpotViTModel).save_pretrained(folder / "headless")
    tiny_processor().save_pretrained(folder / "headless")
    (folder / "vit").mkdir()
    (folder / "vit" / "config.json").write_text(
        json.dumps({"model_type": "vit", "architectures": ["ViTForImageClassification"]})
    )
    shutil.copytree(Path(__file__).parent / "fixtures" / "digits-vit", folder / "digits")
    (folder / "bert").mkdir()
    (folder / "bert" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    torch.save({"embeddings.weight": torch.zeros(2)}, folder / "bert" / "pytorch_model.bin")
    for name in ("truncated", "strange"):
        shutil.copytree(folder / "spot", folder / name)
    weights = (folder / "spot" / "model.safetensors").read_bytes()
    (folder / "truncated" / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    config = json.loads((folder / "spot" / "config.json").read_text())
    (folder / "strange" / "config.json").write_text(json.dumps({**config, "pooling": "max"}))
    (folder / "full").mkdir()
    (folder / "full" / "precious.txt").write_text("mine")
    (folder / "empty").mkdir()
    IMAGE.save(folder / "image.png")
    (folder / "notes.txt").write_text("no image")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (folder / "pixels.json").write_text("[[112, 112]]")
    (folder / "other.json").write_text('{"another.png": [[0.5, 0.5]]}')
    (folder / "no.json").write_text("{")
    return folder


CLASSIFY = ["classify", "--model", "spot", "image.png"]
CONVERT = ["convert", "--output_dir", "out", "--source_model"]
COMMANDS = {
    "no command": ([], 2, []),
    "unknown command": (["clasify"], 2, ["clasify", "classify"]),
    "unknown option": ([*CLASSIFY, "--tokens", "4"], 2, ["--tokens"]),
    "no model": (["classify", "image.png"], 2, ["--model"]),
    "no image": (["classify", "--model", "spot"], 2, ["IMAGE"]),
    "a number that is none": ([*CLASSIFY, "--num_tokens", "many"], 2, ["`num_tokens`", "many"]),
    "0 tokens": ([*CLASSIFY, "--num_tokens", "0"], 2, ["num_tokens", "got 0"]),
    "top_k": ([*CLASSIFY, "--top_k", "0"], 2, ["top_k", "got 0"]),
    "batch_size": ([*CLASSIFY, "--batch_size", "-1"], 2, ["batch_size", "got -1"]),
    "unknown placement": ([*CLASSIFY, "--placement", "centre", "--num_tokens", "4"], 2, ["placement", "'centre'"]),
    "placement that needs maps": ([*CLASSIFY, "--placement", "salient", "--num_tokens", "4"], 2, ["salient", "saliency map"]),
    "coordinates and tokens": (
        [*CLASSIFY, "--coordinates", "pixels.json", "--num_tokens", "4"], 2, ["coordinates", "num_tokens"],
    ),
    "coordinates in pixels": ([*CLASSIFY, "--coordinates", "pixels.json"], 2, ["coordinates", "[0, 1]", "112"]),
    "coordinates of another image": ([*CLASSIFY, "--coordinates", "other.json"], 2, ["coordinates", "image.png"]),
    "coordinates that are no JSON": ([*CLASSIFY, "--coordinates", "no.json"], 2, ["coordinates", "no.json"]),
    "coordinates not there": ([*CLASSIFY, "--coordinates", "absent.json"], 2, ["coordinates", "absent.json"]),
    "model not there": (["classify", "--model", "absent", "image.png"], 1, ["model", "absent"]),
    "model of another kind": (["classify", "--model", "vit", "image.png"], 2, ["vit", "spot-hf convert"]),
    "model without a classifier": (["classify", "--model", "headless", "image.png"], 2, ["headless", "classifier"]),
    "directory without images": (["classify", "--model", "spot", "empty"], 2, ["empty", "no image"]),
    "broken image": (["classify", "--model", "spot", "broken.png"], 1, ["broken.png"]),
    "text for an image": (["classify", "--model", "spot", "notes.txt"], 1, ["notes.txt"]),
    "image not there": (["classify", "--model", "spot", "absent.png"], 1, ["absent.png"]),
    "source not there": ([*CONVERT, "absent"], 1, ["source_model", "absent"]),
    "source without weights": ([*CONVERT, "vit"], 1, ["vit", "model.safetensors"]),
    "source of another family": ([*CONVERT, "bert"], 1, ["bert", "dinov2"]),
    "source of another format": ([*CONVERT, "notes.txt"], 1, ["notes.txt", ".safetensors"]),
    "source is an image": ([*CONVERT, "image.png"], 1, ["image.png", ".safetensors"]),
    "revision of a directory": ([*CONVERT, "vit", "--revision", "main"], 1, ["revision", "main"]),
    "output_dir in use": (["convert", "--source_model", "vit", "--output_dir", "full"], 2, ["output_dir", "full"]),
    "output_dir is a file": (
        ["convert", "--source_model", "vit", "--output_dir", "notes.txt"], 2, ["output_dir", "notes.txt"],
    ),
    "push without an id": ([*CONVERT, "vit", "--push_to_hub"], 2, ["hub_model_id"]),
    "id without a push": ([*CONVERT, "vit", "--hub_model_id", "a/b"], 2, ["push_to_hub"]),
    "placement without tokens": ([*CONVERT, "vit", "--placement", "sobol"], 2, ["sobol", "num_tokens"]),
    "num_labels": ([*CONVERT, "vit", "--num_labels", "0"], 2, ["num_labels", "got 0"]),
    "image_size smaller than a patch": ([*CONVERT, "digits", "--image_size", "7"], 2, ["image_size", "patch_size=8", "[7]"]),
    "image_size: 0": ([*CONVERT, "digits", "--image_size", "0"], 2, ["image_size", "number of pixels", "[0]"]),
    "image_size: three": ([*CONVERT, "digits", "--image_size", "8", "8", "3"], 2, ["image_size", "height and width"]),
    "a default that needs maps": ([*CONVERT, "vit", "--placement", "salient", "--num_tokens", "4"], 2, ["salient", "map"]),
    "output_dir is here": (
        ["convert", "--source_model", "vit", "--output_dir", ".", "--overwrite_output_dir"], 2, ["output_dir", "working"],
    ),
    "output_dir holds this": (
        ["convert", "--source_model", "vit", "--output_dir", "..", "--overwrite_output_dir"], 2, ["output_dir", "working"],
    ),
    "output_dir is the source": (
        ["convert", "--source_model", "vit", "--output_dir", "vit", "--overwrite_output_dir"], 2, ["output_dir", "'vit'"],
    ),
    "truncated weights": (["classify", "--model", "truncated", "image.png"], 1, ["safetensors|header|Header|deserializ"]),
    "a config of no model": (["classify", "--model", "strange", "image.png"], 1, ["pooling", "'max'"]),
    "benchmark: dtype": (["benchmark", "--dtype", "float8"], 2, ["dtype", "bfloat16", "float8"]),
    "benchmark: tokens": (["benchmark", "--num_tokens", "0"], 2, ["num_tokens", "0"]),
    "quickstart: data without a model": (["quickstart", "--dataset_name", "other/data"], 2, ["model", "other/data"]),
    "quickstart: three models": (["quickstart", "--model", "a", "b", "c"], 2, ["model", "got 3"]),
    "quickstart: split": (["quickstart", "--dataset_split", "dev"], 2, ["dataset_split", "train, test", "'dev'"]),
    "quickstart: column": (
        ["quickstart", "--label_column_name", "class"], 2, ["label_column_name", "image, label", "'class'"],
    ),
}  # fmt: skip


def snapshot(folder):
    return sorted((str(path.relative_to(folder)), path.stat().st_size) for path in folder.rglob("*"))


@pytest.mark.parametrize("case", COMMANDS)
def test_command_line(case, place, monkeypatch, capsys):
    argv, status, words = COMMANDS[case]
    monkeypatch.chdir(place)
    before = snapshot(place)
    assert main(argv) == status
    output = capsys.readouterr()
    if words:
        lines = [line for line in output.err.splitlines() if line.strip() and "it/s" not in line]
        assert len(lines) == 1, output.err
        assert_names(lines[0], words)
        assert "Traceback" not in output.err
    assert snapshot(place) == before, "something was left behind"


def test_debug_shows_the_traceback(place, monkeypatch):
    monkeypatch.chdir(place)
    with pytest.raises(ValueError, match="num_tokens"):
        main([*CLASSIFY, "--num_tokens", "0", "--debug"])


def test_conversion_arguments_come_before_the_source():
    with pytest.raises(ValueError, match="num_labels"):
        convert_checkpoint("absent/anything", num_labels=-1)
    with pytest.raises(ValueError, match="placement"):
        convert_checkpoint("absent/anything", placement="nowhere", num_tokens=3)
