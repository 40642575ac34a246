"""Conversion of timm's ViTs: repositories in timm's own layout and wrapped by transformers, against what timm computes.

`timm_sources.py` makes them in a process of its own, as timm needs torchvision; the conversion here has neither.
"""

import json
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import torch
from conversion_checks import (
    PROMISED,
    REACHED,
    assert_accounted,
    assert_verified,
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

from spot_hf import ConversionError, convert_checkpoint
from spot_hf.conversion.assembly import match_names
from spot_hf.conversion.families import FAMILIES, detect_family
from spot_hf.conversion.sources import Source


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
    "clip": {"use_pre_norm": True, "layer_norm_eps": 1e-5, "pooling": "cls"},
    "clip_quickgelu": {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
    "clip_mean": {"pooling": "mean", "norm_after_pooling": True},
    "norm_of_queries": {"use_qk_norm": True},
    "norms_inside": {"use_attention_norm": True, "use_mlp_norm": True, "layer_norm_eps": 1e-5},
    "siglip": {"use_class_token": False, "pooling": "attention", "hidden_act": "gelu", "layer_norm_eps": 1e-6},
    "siglip_classifier": {"hidden_act": "gelu_pytorch_tanh", "image_size": [24, 56]},
    "siglip_mean": {"use_class_token": False, "pooling": "mean", "norm_after_pooling": False},
    "map_with_registers": {"use_class_token": False, "num_register_tokens": 4, "pooling": "attention"},
    "map_with_class_token": {"use_class_token": True, "pooling": "attention"},
    "no_class_token": {"use_class_token": False, "pooling": "mean", "norm_after_pooling": False, "qkv_bias": False},
    "registers_without_class_token": {"use_class_token": False, "num_register_tokens": 4, "norm_after_pooling": True},
    "test_vit2": {"use_class_token": False, "num_register_tokens": 1},
    "without_final_norm": {"use_final_norm": False, "num_register_tokens": 7},
    "without_table": {"use_position_table": False, "rope_theta": None},
    "eva": {"rope_theta": None, "use_swiglu_ffn": False, "pooling": "mean", "norm_after_pooling": True, "qkv_bias": True},
    "eva_clip": {"pooling": "cls", "layer_norm_eps": 1e-6},
    "eva02": {"rope_theta": 10000.0, "rope_coordinates": "cells", "rope_grid_size": [16, 16], "use_swiglu_ffn": True},
    "eva02_separate": {"use_mlp_norm": True, "use_attention_norm": False, "intermediate_size": 128},
    "eva02_clip": {"use_mlp_norm": True, "use_attention_norm": True, "pooling": "cls"},
    "eva02_without_bias": {"qkv_bias": False, "use_layer_scale": True},
    "eva02_norm_of_queries": {"use_qk_norm": True, "use_attention_norm": False},
    "rotary_and_register": {"use_position_table": False, "use_class_token": False, "num_register_tokens": 1},
    "rotary_x_first": {"use_position_table": False, "rope_theta": 100.0, "rope_grid_size": None, "pooling": "cls"},
    "rotary_and_table": {"use_position_table": True, "rope_theta": 100.0},
    "dinov3": {"rope_coordinates": "centered", "rope_theta": 100.0, "num_register_tokens": 4, "qkv_bias": False},
    "dinov3_classifier": {"num_register_tokens": 2, "qkv_bias": True, "layer_norm_eps": 1e-5},
    "dinov3_swiglu": {"use_swiglu_ffn": True, "num_register_tokens": 0, "use_mlp_norm": False},
    "dinov3_other_layout": {"rope_coordinates": "centered"},
    "dinov3_x_first": {"rope_coordinates": "centered"},
    "lingbot": {"rope_coordinates": "centered", "pooling": "cls"},
    "pe_core": {"use_class_token": False, "pooling": "attention", "rope_grid_size": [32, 32], "rope_grid_offset": 0.0},
    "pe_spatial": {"use_final_norm": False, "use_pre_norm": True, "rope_grid_offset": 1.0, "layer_norm_eps": 1e-5},
    "pe_lang": {"use_layer_scale": True, "rope_grid_offset": 1.0},
    "small_clip": {"num_attention_heads": 4, "layer_norm_eps": 1e-5},
    "small_eva02": {"num_attention_heads": 3, "rope_grid_size": [16, 16], "image_size": [42, 28]},
    "small_dinov3": {"num_attention_heads": 3, "rope_coordinates": "centered", "image_size": 256},
    "small_pe": {"num_attention_heads": 3, "rope_grid_offset": 1.0, "use_final_norm": False},
    "beit": {"use_relative_position_bias": True, "use_position_table": False, "norm_after_pooling": True},
    "beit_and_table": {"use_relative_position_bias": True, "use_position_table": True, "position_grid_size": [3, 7]},
    "beit_shared": {"use_relative_position_bias": True, "pooling": "mean"},
}
MISSHAPEN = (
    "vit", "deit_distilled", "registers_classifier", "swiglu", "mean", "clip", "norms_inside", "siglip_classifier",
    "eva02_clip", "dinov3_classifier", "rotary_and_table", "beit",
)  # fmt: skip
# Where the architecture alone says what is computed, as in timm's repositories on the Hub.
ARCHITECTURE_IS_ENOUGH = ("test_vit", "test_vit2", "small_clip", "small_eva02", "small_dinov3", "small_pe")
RESIZED = (
    "vit", "deit_distilled", "registers_classifier", "vit_not_square", "clip", "siglip_classifier", "without_table", "eva",
    "eva02", "eva02_separate", "rotary_x_first", "rotary_and_table", "dinov3", "dinov3_classifier", "pe_lang",
)  # fmt: skip
UNSUPPORTED = {
    "rms_norm": "`norm_layer` of the timm config is not supported: got 'rmsnorm'",
    "rms_norm_of_an_architecture": "its norms are RMS norms",
    "max_pooling": "`global_pool` of the timm config must be token, avg or map; got 'max'",
    "registers_in_the_mean": "`pool_include_prefix` of the timm config is not supported: got True",
    "registers_in_the_map": "`pool_include_prefix` of the timm config is not supported: got True",
    "class_token_in_the_map": "its attention pooling looks at class token and registers, too",
    "more_heads_in_the_map": "its attention pooling has 8 heads, where its layers have 4",
    "both_norms": "`norm.weight` in both_norms stand for the same parameter",
    "map_normed_late": "a norm follows its attention pooling",
    "geglu": "`act_layer` of the timm config is not supported: got 'gelu'",
    "mish": "`act_layer` of the timm config is not supported: got 'mish'",
    "hybrid": "unexpected tensor `patch_embed.backbone.",
    "differential": "unexpected tensor `blocks.0.attn.lambda_k1`",
    "learned_frequencies": "its rotary frequencies are learned, for each layer and head",
    "three_axes": "its rotary positions are of rope_type 'mrope'",
    "dinov3_offset": "its rotary positions are DINOv3's with a rope_grid_offset of 0.5",
    "norms_after": "its layers' norms come after attention and feed-forward layer",
    "shared_keys": "several of its queries share a key",
    "scaled_attention_alone": "only its attention has a layer scale",
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
    features = {k: expected.pop(k) for k in ("pooler_output", "last_hidden_state") if k in expected and k != "logits"}
    if name == "deit_distilled":
        del features["pooler_output"]  # timm's is the mean of two tokens, ours both of them
    if expected:
        assert max(differences(expected, converted, pixel_values).values()) <= REACHED
    inner = getattr(converted, "spot_vit", converted)
    for key, difference in differences(features, inner, pixel_values).items():
        # Without a norm, features are up to 20: float32 rounds them to a millionth of that.
        assert difference <= REACHED * max(1.0, features[key].std().item()), key
    key = "logits" if expected else "pooler_output"
    assert_every_parameter_matters(converted, lambda: converted(pixel_values)[key], at_least=10 * PROMISED)

    assert_accounted(report, load_file(sources / name / "model.safetensors"))
    assert_verified(tmp_path / "converted")
    assert (report.family, report.skipped, report.missing) == ("timm", {}, {})
    assert {key: getattr(converted.config, key) for key in MODELS[name]} == MODELS[name]
    if expected and name != "test_vit":
        assert list(converted.config.id2label.values()) == LABELS


@pytest.mark.parametrize("name", RESIZED)
@torch.no_grad()
def test_another_image_size_is_as_timm_resizes_the_model(name, sources):
    """By `set_input_size`, which resamples the table with antialiasing, and makes a new grid of rotary positions."""
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
@pytest.mark.parametrize("name", MISSHAPEN)
def test_every_tensor_that_is_missing_or_misshapen_is_named(name, change, sources, tmp_path):
    tensors = load_file(sources / name / "model.safetensors")
    deciding = []  # the config says less than transformers': these tensors decide what is expected of others
    for key in tensors:
        if key.startswith("blocks.") and not key.startswith("blocks.1."):
            continue  # one layer stands for all
        if key == "pos_embed" and (change, name) in (
            *((shorter, one) for one in ("vit", "mean", "clip", "norms_inside", "eva02_clip")),
            (longer, "rotary_and_table"),
        ):
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


@pytest.mark.parametrize("name", ARCHITECTURE_IS_ENOUGH)
def test_a_config_without_arguments_is_enough_for_a_known_architecture(name, sources, tmp_path):
    """As timm's repositories on the Hub are: heads, rotary positions and more are the architecture's."""
    pixel_values, expected = outputs_of(sources, name)
    config = json.loads((sources / name / "config.json").read_text())
    directory = edited(sources / name, tmp_path / "edited", **{**config, "model_args": None})
    expected = {key: expected[key] for key in ("logits" if "logits" in expected else "pooler_output",)}
    report = convert_checkpoint(directory)
    assert max(differences(expected, report.model, pixel_values).values()) <= REACHED


def test_heads_that_nothing_says(sources, tmp_path):
    message = refused(edited(sources / "vit", tmp_path / "edited", model_args=None), tmp_path)
    assert "does not say its number of heads" in message


@pytest.mark.parametrize("name", ["clip", "siglip", "eva02", "eva02_separate", "dinov3"])
def test_a_file_that_does_not_say_what_it_is(name, sources, tmp_path):
    file = tmp_path / "weights.safetensors"
    file.write_bytes((sources / name / "model.safetensors").read_bytes())
    message = refused(file, tmp_path)
    assert "cannot be converted" in message and "architecture of timm's" in message and "\n" not in message


# Architectures of timm's that are refused, by a pattern of their names, and in which words.
REFUSED_ARCHITECTURES = {
    "aimv2_*": "RMS norms",
    "test_vit4": "RMS norms",
    "test_vit3": "pool_include_prefix",
    "eva02_enormous_*": "norms come after",
    "vit_*_rope_mixed_*": "frequencies are learned",
    "vit_pe_core_*": "attention pooling",
}


def test_every_architecture_is_described_as_timm_makes_it(sources):
    """Of each of timm's ViTs, EVAs and BEiTs, from its tensors' shapes and the config of its repository. What would be wrong
    here would give wrong features, and no error."""
    described = 0
    for name, known in json.loads((sources / "architectures.json").read_text()).items():
        facts = known["facts"]
        tensors = {key: torch.empty(shape, device="meta") for key, shape in known["shapes"].items()}
        names = {key: key for key in tensors}
        source = Source(name, None, None, known["config"], None, tensors, names, [])
        if facts["class"] not in ("Block", "EvaBlock", "EvaBlockPostNorm") or facts["attention"] == "DiffAttention":
            with pytest.raises(ConversionError):
                match_names(source, FAMILIES[detect_family(source)])
                FAMILIES["timm"].describe(source)
            continue
        family = FAMILIES[detect_family(source)]
        reason = next((why for pattern, why in REFUSED_ARCHITECTURES.items() if fnmatchcase(name, pattern)), None)
        if reason is not None:
            with pytest.raises(ConversionError, match=reason):
                family.describe(source)
            continue
        match_names(source, family)
        actual, rope = family.describe(source), facts.pop("rope", None)
        assert not (facts.pop("rms_norm") or (facts.pop("pool_prefix") and actual["pooling"] == "attention")), name
        assert actual["pooling"] != "attention" or facts["pool_heads"] == actual["num_attention_heads"], name
        if actual["use_swiglu_ffn"]:
            del facts["hidden_act"]
        for key in ("class", "attention", "pool_heads"):
            del facts[key]
        size = actual["image_size"]
        actual["image_size"] = size if isinstance(size, list) else [size] * 2
        assert {key: actual[key] for key in facts} == facts, name
        order = family.order_within_heads(source, 8)
        if rope is None:
            assert (actual.get("rope_theta"), order) == (None, None), name
        else:
            cells = rope["kind"] == "RotaryEmbeddingCat"
            assert actual["rope_coordinates"] == ("cells" if cells else "centered"), name
            assert (actual["rope_theta"], actual.get("rope_grid_offset", 0)) == (rope["theta"], rope["offset"]), name
            assert actual.get("rope_grid_size") == rope["grid"], name
            expected = {(False, "ij"): [0, 2, 4, 6, 1, 3, 5, 7], (False, "xy"): [4, 6, 0, 2, 5, 7, 1, 3], (True, "ij"): None}
            assert (None if order is None else order.tolist()) == expected[rope["half"], rope["indexing"]], name
        described += 1
    assert described > 150


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
