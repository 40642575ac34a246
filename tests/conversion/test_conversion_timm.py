"""Conversion of timm's ViTs: repositories in timm's own layout and wrapped by transformers, against what timm computes.

`timm_sources.py` makes them in a process of its own, as timm needs torchvision; the conversion here has neither.
"""

import json
from pathlib import Path

import pytest
import torch
from conversion_checks import (
    PROMISED,
    REACHED,
    assert_accounted,
    differences,
    edited,
    longer,
    names,
    refused,
    shorter,
    wider,
    without,
)
from PIL import Image
from random_weights import assert_every_parameter_matters
from safetensors.torch import load_file
from torchvision_shim import run_beside_torchvision
from transformers import AutoModel, AutoModelForImageClassification
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from spot_hf import convert_checkpoint
from spot_hf.conversion.family import TIMM_HEADS


LABELS = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu"]

# What the converted model is, where the source's config or tensors decide.
MODELS = {
    "vit": {"pooling": "cls", "num_attention_heads": 4, "layer_norm_eps": 1e-6},
    "vit_headless": {"pooling": "cls"},
    "vit_without_qkv_bias": {"qkv_bias": False},
    "vit_not_square": {"image_size": [24, 56], "position_grid_size": [3, 7]},
    "vit_one_channel": {"num_channels": 1},
    "quick_gelu": {"hidden_act": "quick_gelu"},
    "mean": {"pooling": "mean", "norm_after_pooling": True},
    "mean_of_normed": {"pooling": "mean", "norm_after_pooling": False},
    "token_normed_late": {"pooling": "cls", "norm_after_pooling": True},
    "deit": {"num_register_tokens": 0},
    "deit_distilled": {"pooling": "cls_distillation", "num_register_tokens": 1},
    "deit3": {"use_layer_scale": True},
    "dinov2": {"use_layer_scale": True, "num_register_tokens": 0},
    "registers": {"num_register_tokens": 4},
    "registers_classifier": {"num_register_tokens": 3},
    "registers_mean": {"pooling": "mean", "num_register_tokens": 4},
    "registers_with_positions": {"num_register_tokens": 4},
    "swiglu": {"use_swiglu_ffn": True, "intermediate_size": 96},
    "flexivit": {"pooling": "cls"},
    "test_vit": {"num_attention_heads": 2, "image_size": 160},
    "wrapped": {"hidden_act": "gelu_pytorch_tanh", "num_attention_heads": 4},
}
UNSUPPORTED = {
    "no_class_token": "missing tensor `cls_token`",
    "attention_pooling": "`global_pool` of the timm config must be token or avg; got 'map'",
    "norm_before_layers": "unexpected tensor `norm_pre.bias`",
    "norm_of_queries": "unexpected tensor `blocks.0.attn.k_norm.bias`",
    "rms_norm": "`norm_layer` of the timm config is not supported: got 'rmsnorm'",
    "max_pooling": "`global_pool` of the timm config must be token or avg; got 'max'",
    "registers_in_the_mean": "`pool_include_prefix` of the timm config is not supported: got True",
    "geglu": "`act_layer` of the timm config is not supported: got 'gelu'",
    "mish": "`act_layer` of the timm config is not supported: got 'mish'",
    "hybrid": "unexpected tensor `patch_embed.backbone.",
    "rotary": "unexpected tensor `blocks.0.gamma_1`",
    "convolutions": "is of no known family",
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("timm")
    run_beside_torchvision("conversion/timm_sources.py", directory)
    return directory


def outputs_of(sources: Path, name: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    outputs = load_file(sources / f"{name}.safetensors")
    return outputs.pop("pixel_values"), outputs


@pytest.mark.parametrize("name", MODELS)
def test_the_full_grid_gives_the_sources_outputs(name, sources, tmp_path):
    report = convert_checkpoint(sources / name, tmp_path / "converted")
    pixel_values, expected = outputs_of(sources, name)
    auto_class = AutoModelForImageClassification if "logits" in expected else AutoModel
    converted = auto_class.from_pretrained(tmp_path / "converted").eval()
    assert max(differences(expected, converted, pixel_values).values()) <= REACHED
    key = "logits" if "logits" in expected else "pooler_output"
    assert_every_parameter_matters(converted, lambda: converted(pixel_values)[key], at_least=10 * PROMISED)

    assert_accounted(report, load_file(sources / name / "model.safetensors"))
    assert (report.family, report.skipped, report.missing) == ("timm", {}, {})
    assert {key: getattr(converted.config, key) for key in MODELS[name]} == MODELS[name]
    if "logits" in expected and name != "test_vit":
        assert list(converted.config.id2label.values()) == LABELS


@pytest.mark.parametrize("name", ["vit", "deit_distilled", "registers_classifier", "vit_not_square"])
@torch.no_grad()
def test_another_image_size_is_as_timm_resizes_the_model(name, sources):
    """By `set_input_size`, which resamples the table with antialiasing."""
    pixel_values, expected = outputs_of(sources, f"{name}_resized")
    converted, resized = convert_checkpoint(sources / name, image_size=(48, 40)), convert_checkpoint(sources / name).model
    resized.resize_position_embeddings(48, 40)
    for model in (converted.model, resized):
        assert max(differences(expected, model, pixel_values).values()) <= REACHED
    assert converted.image_processor.model_size((500, 500)) == (40, 48)


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_a_model_with_another_part_is_refused_by_its_name(name, sources, tmp_path):
    message = refused(sources / name, tmp_path)
    assert UNSUPPORTED[name] in message and "\n" not in message


@pytest.mark.parametrize("change", [without, longer, shorter, wider])
@pytest.mark.parametrize("name", ["vit", "deit_distilled", "registers_classifier", "swiglu", "mean"])
def test_every_tensor_that_is_missing_or_misshapen_is_named(name, change, sources, tmp_path):
    tensors = load_file(sources / name / "model.safetensors")
    deciding = []  # the config says less than transformers': these tensors decide what is expected of others
    for key in tensors:
        if key.startswith("blocks.") and not key.startswith("blocks.1."):
            continue  # one layer stands for all
        if key == "pos_embed" and change is shorter and name in ("vit", "mean"):
            continue  # a table without the class token's position is timm's `no_embed_class`
        changed = {k: change(tensor) if k == key else tensor for k, tensor in tensors.items()}
        changed = {k: tensor for k, tensor in changed.items() if tensor is not None}
        message = refused(edited(sources / name, tmp_path / "edited", changed), tmp_path)
        if not names(message, key):
            deciding.append(key)
        else:
            assert message.startswith("missing tensor" if change is without else "wrong shape"), (key, message)
    assert deciding == ([] if change is without else ["patch_embed.proj.weight"]), (deciding, change)


@pytest.mark.parametrize("key", ["patch_embed.proj.weight", "pos_embed", "blocks.0.mlp.fc1.weight", "cls_token"])
def test_a_tensor_of_other_dimensions_is_named(key, sources, tmp_path):
    tensors = load_file(sources / "vit" / "model.safetensors")
    message = refused(edited(sources / "vit", tmp_path / "edited", {**tensors, key: tensors[key].flatten()}), tmp_path)
    assert message.startswith(f"wrong shape of tensor `{key}`")


# ------------------------------------------------------------------------------------------------- older layouts, labels


def test_a_config_without_arguments_is_enough_for_a_known_architecture(sources, tmp_path):
    """As timm's repositories on the Hub are: the number of heads is the architecture's."""
    pixel_values, expected = outputs_of(sources, "test_vit")
    report = convert_checkpoint(edited(sources / "test_vit", tmp_path / "edited", model_args=None))
    assert max(differences(expected, report.model, pixel_values).values()) <= REACHED
    message = refused(edited(sources / "vit", tmp_path / "edited", model_args=None), tmp_path)
    assert "does not say its number of heads" in message


def test_the_heads_of_every_architecture_are_known(sources):
    """timm's repositories do not state them; a wrong number would give wrong logits and no error."""
    architectures = json.loads((sources / "architectures.json").read_text())
    assert len(architectures) > 80
    for name, (hidden_size, num_heads) in architectures.items():
        assert TIMM_HEADS.get(hidden_size, hidden_size / 64) == num_heads, name


def test_the_oldest_layout_has_its_settings_at_the_top(sources, tmp_path):
    config = json.loads((sources / "vit_not_square" / "config.json").read_text())
    directory = edited(sources / "vit_not_square", tmp_path / "edited", **config["pretrained_cfg"], pretrained_cfg=None)
    report, usual = convert_checkpoint(directory), convert_checkpoint(sources / "vit_not_square")
    assert report.model.config.image_size == [24, 56]
    assert report.image_processor.to_dict() == usual.image_processor.to_dict()


def test_labels_of_every_form(sources, tmp_path):
    synsets = [f"n{i}" for i in range(7)]
    described = {"label_names": synsets, "label_descriptions": dict(zip(synsets, LABELS, strict=True))}
    for config in (
        {"label_names": LABELS},
        {"label_names": {str(i): label for i, label in enumerate(LABELS)}},
        described,
        {"label_names": None, "pretrained_cfg": {"input_size": [3, 32, 32], **described}},
    ):
        report = convert_checkpoint(edited(sources / "vit", tmp_path / "edited", **config))
        assert report.model.config.id2label == dict(enumerate(LABELS))
        assert report.notes == []
    with_timm = json.loads((sources / "imagenet_labels.json").read_text())
    assert (len(with_timm), with_timm["0"], with_timm["999"]) == (
        1000,
        "tench, Tinca tinca",
        "toilet tissue, toilet paper, bathroom tissue",
    )
    report = convert_checkpoint(sources / "test_vit")  # here, without timm
    assert report.model.config.id2label[999] == "LABEL_999"
    assert report.notes == ["no names for the 1000 labels in the source: they are numbered"]


# -------------------------------------------------------------------------------------------------------------- recipe


@pytest.mark.parametrize("name", ["center", "center_whole", "squash", "test_size", "nothing_said"])
def test_the_image_processor_does_what_timms_transform_does(name, sources, tmp_path):
    """To float32 rounding, once aligned: of an odd margin timm (torchvision) cuts off the half rounded to even before the
    image, transformers the smaller half, so that its picture may lie one pixel further down or right."""
    transforms = json.loads((sources / "transforms.json").read_text())
    pretrained = {"input_size": [3, 32, 32], **{k: v for k, v in transforms[name].items() if v is not None}}
    directory = edited(sources / "vit", tmp_path / "edited", pretrained_cfg=pretrained)
    report = convert_checkpoint(directory, tmp_path / "converted")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "converted")
    assert report.model.config.image_size == 32
    expected = load_file(sources / "transformed.safetensors")
    for i in range(4):
        picture = Image.open(sources / f"{i}.png")
        actual, wanted = processor(picture, return_tensors="pt")["pixel_values"][0], expected[f"{name}/{i}"]
        assert actual.shape == wanted.shape == (3, 32, 32)
        size = dict(processor.size)
        if "shortest_edge" in size:
            short = size["shortest_edge"]
            resized = [int(short * edge / min(picture.size)) for edge in (picture.height, picture.width)]
        else:
            resized = [size["height"], size["width"]]
        down, right = (round((edge - 32) / 2) - (edge - 32) // 2 for edge in resized)
        assert max(down, right) <= 1
        actual, wanted = actual[:, down:, right:], wanted[:, : 32 - down, : 32 - right]
        assert (actual - wanted).abs().max() <= 1e-5


def test_a_transform_that_the_image_processor_has_not(sources, tmp_path):
    directory = edited(sources / "vit", tmp_path / "edited", pretrained_cfg={"input_size": [3, 32, 32], "crop_mode": "border"})
    assert "`crop_mode` of the timm config must be center or squash; got 'border'" in refused(directory, tmp_path)
    report = convert_checkpoint(sources / "vit_not_square")
    assert any("squeezes" in note for note in report.notes)
