"""SpotViT as a backbone: DINOv2's feature maps on the full grid, under heads of transformers; features of placed tokens."""

import json

import pytest
import torch
from random_weights import randomise
from safetensors.torch import save_file
from tiny import random_coordinates, random_images, tiny_config, tiny_model
from transformers import (
    AutoBackbone,
    AutoModel,
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Backbone,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersBackbone,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTBackbone,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    DPTConfig,
    DPTForDepthEstimation,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from spot_hf import (
    SpotViTBackbone,
    SpotViTConfig,
    SpotViTForImageClassification,
    SpotViTForPreTraining,
    SpotViTModel,
    convert_checkpoint,
    verify_model,
)
from spot_hf.placement import grid


REACHED = 1e-5  # the same arithmetic in another order, on values of order 1
BODY = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
SIZES = {**BODY, "mlp_ratio": 2}
SOURCES = {
    "dinov2": (Dinov2Model, Dinov2Backbone, Dinov2Config(**SIZES), (32, 32)),
    "not_square": (Dinov2Model, Dinov2Backbone, Dinov2Config(**SIZES), (24, 48)),
    "registers": (
        Dinov2WithRegistersModel,
        Dinov2WithRegistersBackbone,
        Dinov2WithRegistersConfig(**SIZES, num_register_tokens=3),
        (32, 32),
    ),
    "dinov3": (
        DINOv3ViTModel,
        DINOv3ViTBackbone,
        DINOv3ViTConfig(**BODY, intermediate_size=80, num_register_tokens=2),
        (32, 48),
    ),
}


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """Directories of a source and of what it was converted to."""
    directories = {}
    for name, (model_class, _, config, size) in SOURCES.items():
        directory = tmp_path_factory.mktemp(name)
        randomise(model_class(config)).save_pretrained(directory / "source")
        convert_checkpoint(directory / "source", directory / "spot", image_size=size)
        directories[name] = directory
    return directories


# ------------------------------------------------------------------------------------------------- DINOv2's feature maps


@pytest.mark.parametrize("settings", [{}, {"apply_layernorm": False}, {"reshape_hidden_states": False}], ids=str)
@pytest.mark.parametrize("stages", [{}, {"out_indices": [0, 2, 4]}, {"out_features": ["stage1", "stage3"]}], ids=str)
@pytest.mark.parametrize("name", SOURCES)
@torch.no_grad()
def test_maps_are_those_of_the_sources_backbone(name, stages, settings, converted):
    _, backbone_class, _, size = SOURCES[name]
    if name == "dinov3" and settings:
        pytest.skip("DINOv3's backbone always norms its last stage and leaves out prefix tokens; ours is as DINOv2's")
    source = backbone_class.from_pretrained(converted[name] / "source", **stages, **settings).eval()
    backbone = SpotViTBackbone.from_pretrained(converted[name] / "spot", **stages, **settings).eval()
    assert (backbone.out_features, list(backbone.out_indices)) == (source.out_features, list(source.out_indices))
    assert (backbone.channels, backbone.stage_names) == (source.channels, source.stage_names)
    pixel_values = random_images(2, *size)
    expected, found = source(pixel_values), backbone(pixel_values)
    assert found.hidden_states is found.attentions is found.coordinates is None
    for one, other in zip(found.feature_maps, expected.feature_maps, strict=True):
        assert one.shape == other.shape and (one - other).abs().max() <= REACHED * other.abs().max().clamp_min(1)
    assert isinstance(backbone(pixel_values, return_dict=False), tuple)
    states = backbone(pixel_values, output_hidden_states=True).hidden_states
    assert len(states) == 5 and all(one.shape[1] > 12 for one in states)
    backbone.set_attn_implementation("eager")
    assert len(backbone(pixel_values, output_attentions=True).attentions) == 4


# ---------------------------------------------------------------------------------------------------------- under heads

NECK = {"neck_hidden_sizes": [8, 8, 16, 16], "fusion_hidden_size": 8, "head_in_index": -1}
HEADS = {
    "upernet": (
        UperNetForSemanticSegmentation,
        UperNetConfig,
        {"hidden_size": 16, "auxiliary_in_channels": 48, "num_labels": 5},
    ),
    "dpt": (
        DPTForDepthEstimation,
        DPTConfig,
        {"hidden_size": 48, "num_attention_heads": 4, "backbone_out_indices": None, **NECK},
    ),
    "depth_anything": (
        DepthAnythingForDepthEstimation,
        DepthAnythingConfig,
        {"reassemble_hidden_size": 48, "patch_size": 8, "head_hidden_size": 8, **NECK},
    ),
}


@pytest.mark.parametrize("name", HEADS)
@torch.no_grad()
def test_heads_of_transformers_sit_on_it(name, converted, tmp_path):
    model_class, config_class, settings = HEADS[name]
    stages = {"out_indices": [1, 2, 3, 4], "reshape_hidden_states": name == "upernet"}
    source = Dinov2Backbone.from_pretrained(converted["dinov2"] / "source", **stages)
    backbone = SpotViTBackbone.from_pretrained(converted["dinov2"] / "spot", **stages)
    torch.manual_seed(0)
    expected = model_class(config_class(backbone_config=source.config, **settings)).eval()
    expected.backbone.load_state_dict(source.state_dict())
    model = model_class(config_class(backbone_config=backbone.config, **settings)).eval()
    assert type(model.backbone) is SpotViTBackbone
    state = {key: one for key, one in expected.state_dict().items() if not key.startswith("backbone.")}
    state |= {f"backbone.{key}": one for key, one in backbone.state_dict().items()}
    model.load_state_dict(state)

    def output(of):
        outputs = of(pixel_values)
        return outputs.logits if name == "upernet" else outputs.predicted_depth

    pixel_values = random_images(2, 32, 32)
    difference = (output(model) - output(expected)).abs().max()
    assert difference <= REACHED * output(expected).abs().max().clamp_min(1)
    # Saved whole, and loaded where the package is: by its model type.
    model.save_pretrained(tmp_path)
    loaded = model_class.from_pretrained(tmp_path).eval()
    assert type(loaded.backbone) is SpotViTBackbone and torch.equal(output(loaded), output(model))
    for parameter in model.backbone.spot_vit.layers[0].parameters():  # an image's gradient reaches it
        parameter.requires_grad_()
    with torch.enable_grad():
        output(model).square().mean().backward()
    assert model.backbone.spot_vit.layers[0].mlp.fc1.weight.grad.abs().sum() > 0


# -------------------------------------------------------------------------------------------------------- placed tokens

KINDS = {
    "table": {},
    "rotary": {"rope_theta": 100.0, "use_position_table": False, "num_register_tokens": 2},
    "both": {"rope_theta": 100.0, "rope_coordinates": "cells"},
    "relative": {"use_relative_position_bias": True, "use_position_table": False},
    "no_class_token": {"use_class_token": False, "pooling": "attention"},
    "no_final_norm": {"use_final_norm": False, "use_pre_norm": True},
    "norm_after_pooling": {"pooling": "mean", "norm_after_pooling": True},
    "merging": {"merge_tokens": 0.5},
}


def made(kind: str, **changes) -> SpotViTBackbone:
    return tiny_model(model_class=SpotViTBackbone, **KINDS[kind], **changes)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_of_any_kind_maps_are_the_tokens_of_the_full_grid(kind, tmp_path):
    backbone = made(kind)
    prefix = backbone.config.num_prefix_tokens
    pixel_values = random_images(2, 48, 64)
    (found,) = backbone(pixel_values).feature_maps
    assert found.shape == (2, 32, 6, 8)
    coordinates = grid(48, 64, 8)[None]
    placed = backbone(pixel_values, coordinates=coordinates)
    torch.testing.assert_close(placed.feature_maps[0], found.flatten(2).transpose(1, 2), rtol=0, atol=0)
    assert torch.equal(placed.coordinates, coordinates.expand(2, -1, -1))
    tokens = backbone.spot_vit(pixel_values, coordinates, merge_tokens=0.0).last_hidden_state[:, prefix:]
    tokens = backbone.spot_vit.layernorm(tokens) if backbone.config.norm_after_pooling else tokens
    torch.testing.assert_close(placed.feature_maps[0], tokens, rtol=0, atol=0)

    backbone.save_pretrained(tmp_path)
    assert verify_model(str(tmp_path)).equal
    again = AutoBackbone.from_config(SpotViTConfig.from_pretrained(tmp_path))
    assert type(again) is SpotViTBackbone
    assert torch.equal(SpotViTBackbone.from_pretrained(tmp_path)(pixel_values).feature_maps[0], found)


@torch.no_grad()
def test_few_tokens_have_features_and_places():
    backbone = made("table", out_indices=[0, 2])
    pixel_values, coordinates = random_images(), random_coordinates(2, 7)
    scales, mask = torch.full((1, 7), 1.5), torch.arange(7)[None] < torch.tensor([[7], [4]])
    found = backbone(pixel_values, coordinates=coordinates, coordinates_mask=mask, window_scales=scales)
    assert [one.shape for one in found.feature_maps] == [(2, 7, 32)] * 2
    assert torch.equal(found.coordinates, coordinates) and torch.equal(found.coordinates_mask, mask)
    assert torch.equal(found.window_scales, scales.expand(2, -1))
    fewer = backbone(pixel_values[1:], coordinates=coordinates[1:, :4], window_scales=scales[:, :4])
    for one, other in zip(found.feature_maps, fewer.feature_maps, strict=True):
        torch.testing.assert_close(one[1:, :4], other, rtol=0, atol=1e-5)  # sums of another length
    # The same where the sequence is asked for: a placed token's row is its own.
    backbone.config.reshape_hidden_states = False
    assert backbone(pixel_values, coordinates=coordinates).feature_maps[0].shape == (2, 7, 32)
    assert backbone(pixel_values).feature_maps[0].shape == (2, 37, 32)


def test_gradients_reach_positions():
    coordinates = random_coordinates(2, 7).requires_grad_()
    made("rotary")(random_images(), coordinates=coordinates).feature_maps[0].square().sum().backward()
    assert coordinates.grad.abs().sum() > 0


# ----------------------------------------------------------------------------------------------------- saved and loaded


@pytest.mark.parametrize("model_class", [SpotViTModel, SpotViTForImageClassification, SpotViTForPreTraining])
@torch.no_grad()
def test_from_other_models_and_back(model_class, tmp_path):
    model = tiny_model(model_class=model_class, pooling="mean")
    model.save_pretrained(tmp_path / "model")
    backbone = SpotViTBackbone.from_pretrained(tmp_path / "model", out_indices=[1, 2])
    encoder = model if model_class is SpotViTModel else model.spot_vit
    pixel_values = random_images()
    expected = encoder(pixel_values).last_hidden_state[:, 1:].transpose(1, 2).unflatten(2, (6, 6))
    torch.testing.assert_close(backbone(pixel_values).feature_maps[1], expected, rtol=0, atol=1e-5)  # of weights' alignment
    backbone.save_pretrained(tmp_path / "backbone")
    again = AutoModel.from_pretrained(tmp_path / "backbone")
    assert type(again) is SpotViTModel
    torch.testing.assert_close(again(pixel_values).pooler_output, encoder(pixel_values).pooler_output, rtol=0, atol=1e-5)


def run_remotely(directory, inputs):
    """In a process without the package: of a directory, as `AutoBackbone` takes Hub ids alone."""
    from safetensors.torch import load_file
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    backbone_class = get_class_from_dynamic_module("backbone_spot_vit.SpotViTBackbone", directory)
    backbone = backbone_class.from_pretrained(directory, out_indices=[0, 2])
    outputs = backbone(**load_file(inputs))
    sums = [one.double().square().sum().item() for one in outputs.feature_maps]
    return {"module": backbone_class.__module__, "sums": sums, "places": outputs.coordinates.tolist()}


def test_without_the_package_from_a_directory(tmp_path, fresh_process):
    model = tiny_model()
    model.save_pretrained(tmp_path / "model")
    inputs = {"pixel_values": random_images(), "coordinates": random_coordinates(2, 7)}
    save_file(inputs, tmp_path / "inputs.safetensors")
    found = fresh_process(run_remotely, tmp_path / "model", tmp_path / "inputs.safetensors", without_spot_hf=True)
    expected = SpotViTBackbone.from_pretrained(tmp_path / "model", out_indices=[0, 2])(**inputs)
    assert found["module"].startswith("transformers_modules.") and found["places"] == inputs["coordinates"].tolist()
    sums = [one.double().square().sum().item() for one in expected.feature_maps]
    assert found["sums"] == pytest.approx(sums, rel=1e-5)  # weights lie elsewhere in memory


def test_only_a_backbone_has_stages(tmp_path):
    """Configs of other models, and of earlier versions, say nothing of them."""
    tiny_model().save_pretrained(tmp_path / "classifier")
    saved = json.loads((tmp_path / "classifier" / "config.json").read_text())
    assert not {"stage_names", "_out_features"} & set(saved)
    assert saved.get("out_features") is saved.get("out_indices") is None
    assert tiny_config(num_hidden_layers=7).out_features is None
    config = tiny_config(out_features=["stem", "stage2"])
    assert (config.out_indices, config.stage_names) == ([0, 2], ["stem", "stage1", "stage2"])
    config.save_pretrained(tmp_path / "config")
    again = SpotViTConfig.from_pretrained(tmp_path / "config")
    assert (again.out_features, again.out_indices) == (["stem", "stage2"], [0, 2])
    assert SpotViTConfig.from_pretrained(tmp_path / "config", out_indices=[1]).out_features == ["stage1"]


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: tiny_config(out_features=["stage3"]), "out_features must be a subset of stage_names"),
        (lambda: tiny_config(out_indices=[3]), "out_indices must be valid indices"),
        (lambda: made("table")(random_images(), merge_tokens=0.5), "`merge_tokens` must be 0 in a backbone"),
        (lambda: made("table")(random_images()[:, :2]), "`pixel_values`"),
    ],
    ids=["name", "index", "merging", "channels"],
)
def test_bad_input(call, words):
    with pytest.raises(Exception, match=words) as error:
        call()
    assert isinstance(error.value.__cause__ or error.value, ValueError)
