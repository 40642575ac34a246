"""Conversion of convolutional classifiers of transformers; those of timm are in `test_conversion_cnn_timm.py`."""

import json
from pathlib import Path

import pytest
import torch
from conversion_checks import REACHED, assert_accounted, assert_verified, differences, edited, refused, without
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import random_images
from tiny_networks import LABELS, NETWORKS, save_network, tiny_network
from transformers import (
    AutoModelForImageClassification,
    ConvNextImageProcessorPil,
    EfficientNetImageProcessorPil,
    MobileNetV2ImageProcessorPil,
    ResNetConfig,
    ResNetForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from spot_hf import convert_checkpoint, wrap_network
from spot_hf.cli import main
from spot_hf.placement import grid


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return save_network(tmp_path_factory.mktemp("resnet"))


@pytest.mark.parametrize("family", NETWORKS)
@torch.no_grad()
def test_the_full_grid_gives_the_sources_logits(family, tmp_path):
    directory = save_network(tmp_path / "source", family)
    report = convert_checkpoint(directory, tmp_path / "converted", num_tokens=4, placement="center")
    source = AutoModelForImageClassification.from_pretrained(directory).eval()
    converted = AutoModelForImageClassification.from_pretrained(tmp_path / "converted")
    pixel_values = random_images(3, 96, 96)
    expected = {"logits": source(pixel_values).logits}
    assert differences(expected, converted, pixel_values)["logits"] <= REACHED
    same = converted(pixel_values, coordinates=grid(96, 96, 32)[None]).logits
    assert (same - expected["logits"]).abs().max() <= REACHED
    assert_accounted(report, load_file(directory / "model.safetensors"))
    assert_verified(tmp_path / "converted")
    assert (report.family, report.missing, report.notes) == (family, {}, [])
    config = converted.config
    assert (config.image_size, config.patch_size, list(config.id2label.values())) == (96, 32, LABELS)
    assert config.source_model == {"name": "source", "revision": None, "family": family, "license": "cc-by-4.0"}
    assert (report.image_processor.patch_size, report.image_processor.num_tokens) == (32, 4)
    card = (tmp_path / "converted" / "README.md").read_text()
    assert "# SpotCNN from source" in card and f"`{family}`, width" in card and "3 × 3 = 9 tokens" in card
    assert "A convolutional network that sees" in card and "num_tokens=2," in card


@torch.no_grad()
def test_of_a_size_and_a_window_that_were_asked_for(source, tmp_path, capsys):
    argv = ["convert", "--source_model", str(source), "--output_dir", str(tmp_path / "converted")]
    assert main([*argv, "--image_size", "128", "192", "--patch_size", "64"]) == 0
    assert "SpotCNNForImageClassification" in capsys.readouterr().out
    config = json.loads((tmp_path / "converted" / "config.json").read_text())
    assert (config["image_size"], config["patch_size"]) == ([128, 192], 64)
    report = convert_checkpoint(source, image_size=[128, 176])
    assert len(report.notes) == 1 and "are no whole windows of 32" in report.notes[0]
    pixel_values = random_images(1, 128, 176)
    assert (report.model(pixel_values).logits - tiny_network()(pixel_values).logits).abs().max() <= REACHED


@torch.no_grad()
def test_weights_in_half_precision_become_float32(tmp_path):
    half = tiny_network().half()
    half.save_pretrained(tmp_path / "half")
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "float16"
    pixel_values = random_images(1, 96, 96)
    for model in (convert_checkpoint(tmp_path / "half").model, wrap_network(half)):
        assert {one.dtype for one in model.parameters()} == {torch.float32}
        assert (model(pixel_values).logits - half.float()(pixel_values).logits).abs().max() <= REACHED
        half.half()


@torch.no_grad()
def test_a_source_without_a_classifier(source, tmp_path):
    tensors = {name.removeprefix("resnet."): one for name, one in load_file(source / "model.safetensors").items()}
    tensors = {name: one for name, one in tensors.items() if not name.startswith("classifier.")}
    headless = edited(source, tmp_path / "headless", tensors, architectures=["ResNetModel"])
    report = convert_checkpoint(headless, tmp_path / "converted")
    assert type(report.model).__name__ == "SpotCNNModel" and report.missing == {}
    pixel_values = random_images(1, 96, 96)
    expected = tiny_network().base_model(pixel_values).pooler_output.flatten(1)
    assert (report.model(pixel_values).pooler_output - expected).abs().max() <= REACHED
    with_labels = convert_checkpoint(headless, num_labels=7)
    assert set(with_labels.missing) == {"classifier.weight", "classifier.bias"}
    assert with_labels.model(pixel_values).logits.shape == (1, 7)


# -------------------------------------------------------------------------------------------------------------- recipes

RECIPES = {
    "convnext": ConvNextImageProcessorPil(size={"shortest_edge": 64}, crop_pct=0.8),
    "convnext_large": ConvNextImageProcessorPil(size={"shortest_edge": 384}),
    "efficientnet": EfficientNetImageProcessorPil(size={"height": 96, "width": 96}),
    "efficientnet_offset": EfficientNetImageProcessorPil(size={"height": 64, "width": 64}, rescale_offset=True),
    "efficientnet_features": EfficientNetImageProcessorPil(
        size={"height": 64, "width": 64}, do_normalize=False, rescale_offset=True, rescale_factor=1 / 127.5
    ),
    "mobilenet": MobileNetV2ImageProcessorPil(size={"shortest_edge": 72}, crop_size={"height": 64, "width": 64}),
}


@pytest.mark.parametrize("name", RECIPES)
def test_images_are_the_source_processors(name, source, photos, tmp_path):
    directory = edited(source, tmp_path / "source")
    RECIPES[name].save_pretrained(directory)
    processor = convert_checkpoint(directory).image_processor
    processor = processor if processor.backend == "pil" else type(processor).from_dict(processor.to_dict())
    for photo in photos:
        image = Image.open(photo)
        expected = RECIPES[name](image, return_tensors="pt")["pixel_values"]
        actual = processor(image, return_tensors="pt")["pixel_values"]
        assert actual.shape == expected.shape
        assert (actual - expected).abs().max() <= 1e-5  # two normalizations are one: a float's rounding, of values to 8


# ------------------------------------------------------------------------------------------------------------- refusals


def refused_by_command(directory: Path, tmp_path: Path, capsys, *options: str) -> str:
    """The one line of the command line; nothing was written."""
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    argv = ["convert", "--source_model", str(directory), "--output_dir", str(outputs / "converted"), *options]
    assert main(argv) in (1, 2) and list(outputs.iterdir()) == []
    printed = capsys.readouterr().err.strip()
    assert "\n" not in printed
    return printed


STRIDES = {
    16: ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 8], depths=[1, 1, 1], layer_type="basic"),
    64: ResNetConfig(embedding_size=8, hidden_sizes=[8] * 5, depths=[1] * 5, layer_type="basic"),
}


@pytest.mark.parametrize("stride", STRIDES)
def test_a_network_of_another_stride_is_refused(stride, tmp_path, capsys):
    network = ResNetForImageClassification(STRIDES[stride])
    network.save_pretrained(tmp_path / "source")
    printed = refused_by_command(tmp_path / "source", tmp_path, capsys)
    cells = {16: "4 × 6", 64: "1 × 2"}[stride]
    assert f"a SpotCNN needs a network of stride 32, with 2 × 3 cells for 64 × 96 pixels; 'resnet' has {cells}" in printed
    with pytest.raises(ValueError, match="of stride 32"):
        wrap_network(network)


def test_what_is_no_convolutional_network_is_refused(tmp_path, capsys):
    swin = SwinForImageClassification(SwinConfig(image_size=64, embed_dim=8, depths=[1, 1], num_heads=[1, 1], window_size=4))
    swin.save_pretrained(tmp_path / "swin")
    printed = refused_by_command(tmp_path / "swin", tmp_path, capsys)
    assert "is of no known family" in printed and "'swin'" in printed
    with pytest.raises(ValueError, match="a SpotCNN needs a network"):
        wrap_network(ViTForImageClassification(ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1)))


def test_another_classifier_is_refused():
    network = tiny_network()
    network.classifier.append(torch.nn.Tanh())
    with pytest.raises(ValueError, match="a SpotCNN has a linear classifier on the network's pooled feature; that of ResNet"):
        wrap_network(network)


def test_tensors_that_are_missing_unknown_or_misshapen_are_named(source, tmp_path):
    tensors = load_file(source / "model.safetensors")
    name = "resnet.encoder.stages.1.layers.0.layer.0.convolution.weight"
    changes = {
        "missing": {name: without(tensors[name])},
        "wrong shape of": {name: tensors[name][:1].clone()},
        "unexpected": {"resnet.encoder.another.weight": tensors[name].clone()},
    }
    for kind, change in changes.items():
        changed = {key: one for key, one in (tensors | change).items() if one is not None}
        message = refused(edited(source, tmp_path / "edited", changed), tmp_path)
        assert message.startswith(f"{kind} tensor `{next(iter(change))}`") and "\n" not in message
    bias = {key: one for key, one in tensors.items() if key != "classifier.1.bias"}
    assert refused(edited(source, tmp_path / "edited", bias), tmp_path).startswith("missing tensor `classifier.1.bias`")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--patch_size", "48"], "`patch_size` must be a multiple of the network's stride, 32; got 48"),
        (["--num_tokens", "5"], "`num_tokens` must make a mosaic of equal rows for a CNN"),
        (["--num_labels", "3"], "`num_labels` is for a source without a classifier; 'resnet0' has one of 5 labels; got 3"),
        (["--image_size", "31"], "`image_size` must be at least the source's patch_size=32"),
        (["--architecture", "resnet18"], "`architecture` is for a file without a config"),
        (["--num_attention_heads", "2"], "`num_attention_heads` is for a file without a config"),
    ],
    ids=str,
)
def test_an_argument_that_no_conversion_can_have_is_named(options, expected, source, tmp_path, capsys):
    assert expected in refused_by_command(source, tmp_path, capsys, *options)


def test_networks_of_timm_need_it(source, tiny_vit, tmp_path, capsys):
    save_file({"fc.weight": torch.zeros(2, 2)}, tmp_path / "weights.safetensors")
    message = refused_by_command(tmp_path / "weights.safetensors", tmp_path, capsys, "--architecture", "resnet18")
    assert "needs timm, which is not installed" in message
    message = refused(edited(source, tmp_path / "edited", model_type=None, architecture="resnet18"), tmp_path)
    assert "is of no known family" in message and "'resnet18' is timm's, which is not installed" in message
    with pytest.raises(ValueError, match="`patch_size` is for convolutional networks"):
        convert_checkpoint(tiny_vit, patch_size=32)


@torch.no_grad()
def test_windows_larger_than_the_probe(source):
    """Of 96 pixels: three of the network's cells a side."""
    report = convert_checkpoint(source, patch_size=96, image_size=192)
    network = AutoModelForImageClassification.from_pretrained(source).eval()
    pixel_values = random_images(2, 192, 192)
    same = report.model(pixel_values, coordinates=grid(192, 192, 96)[None]).logits
    assert (same - network(pixel_values).logits).abs().max() <= REACHED


def test_what_was_converted_already(source, tmp_path):
    convert_checkpoint(source, tmp_path / "spot")
    assert "was converted already: it is a 'spot_cnn'" in refused(tmp_path / "spot", tmp_path)
    with pytest.raises(ValueError, match="SpotCNNForImageClassification is ours"):
        wrap_network(convert_checkpoint(source).model)


def test_counters_of_training_may_be_missing(source, tmp_path):
    """As in old files; each tensor that is used becomes one of the result."""
    tensors = load_file(source / "model.safetensors")
    counters = [name for name in tensors if name.endswith("num_batches_tracked")]
    assert counters
    kept = {name: tensor for name, tensor in tensors.items() if name not in counters}
    directory = edited(source, tmp_path / "edited", kept)
    report = convert_checkpoint(directory)
    names = {name.removeprefix("spot_cnn.") for name in report.model.state_dict()}
    assert set(report.used.values()) <= names and set(report.used) == set(kept)
