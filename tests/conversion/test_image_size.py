"""Another image size: on the full grid the model is its source's own class with `interpolate_pos_encoding=True`, whether the
source is converted for that size or a converted model is resized."""

import copy
import json
import warnings

import pytest
import torch
from conversion_checks import PROMISED, REACHED
from random_weights import randomise
from transformers import (
    AutoModelForImageClassification,
    BeitConfig,
    BeitForImageClassification,
    BitImageProcessor,
    CLIPConfig,
    CLIPForImageClassification,
    DeiTConfig,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersForImageClassification,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    IJepaConfig,
    IJepaForImageClassification,
    SiglipConfig,
    SiglipForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from spot_hf import SpotViTForPreTraining, convert_checkpoint
from spot_hf.placement import isotropic


# Grids as those of real checkpoints: 14 × 14 cells of 16 pixels; DINOv2's table has 37 × 37 of 14 pixels, its recipe 224.
BODY = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_labels": 7}
VIT = {**BODY, "intermediate_size": 80, "image_size": 224, "patch_size": 16}
DINOV2 = {**BODY, "mlp_ratio": 2, "image_size": 518, "patch_size": 14}
SOURCES = {
    "vit": (ViTForImageClassification, ViTConfig(**VIT)),
    "deit": (DeiTForImageClassification, DeiTConfig(**VIT)),
    "deit_distilled": (DeiTForImageClassificationWithTeacher, DeiTConfig(**VIT)),
    "dinov2": (Dinov2ForImageClassification, Dinov2Config(**DINOV2)),
    "registers": (Dinov2WithRegistersForImageClassification, Dinov2WithRegistersConfig(**DINOV2)),
    "clip": (CLIPForImageClassification, CLIPConfig(vision_config=VIT, num_labels=7)),
    "siglip": (SiglipForImageClassification, SiglipConfig(vision_config=VIT, num_labels=7)),
    "ijepa": (IJepaForImageClassification, IJepaConfig(**VIT)),
}
# The last is no multiple of either patch size: almost a patch of 16 pixels is left over, of which the source sees nothing.
SIZES = [(128, 128), (224, 320), (384, 384), (143, 255)]
sizes = pytest.mark.parametrize("size", SIZES, ids=str)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """By name, the source model and its directory."""
    found = {}
    for name, (model_class, config) in SOURCES.items():
        directory = tmp_path_factory.mktemp(name)
        model = randomise(model_class(config))
        model.save_pretrained(directory)
        if name in ("dinov2", "registers"):
            BitImageProcessor(
                size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}, resample=3
            ).save_pretrained(directory)
        else:
            ViTImageProcessor(size={"height": 224, "width": 224}).save_pretrained(directory)
        found[name] = model, directory
    return found


def images(height: int, width: int) -> torch.Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def source_logits(model, pixel_values: torch.Tensor) -> torch.Tensor:
    # DINOv2 always interpolates.
    arguments = {} if "Dinov2" in type(model).__name__ else {"interpolate_pos_encoding": True}
    return model(pixel_values, **arguments).logits


@torch.no_grad()
def difference(model, source, height: int, width: int) -> float:
    pixel_values = images(height, width)
    return (model(pixel_values).logits - source_logits(source, pixel_values)).abs().max().item()


@sizes
@pytest.mark.parametrize("name", SOURCES)
def test_converted_for_another_size(name, size, sources, tmp_path):
    source, directory = sources[name]
    report = convert_checkpoint(directory, tmp_path / "converted", image_size=size)
    converted = AutoModelForImageClassification.from_pretrained(tmp_path / "converted").eval()
    assert difference(converted, source, *size) <= REACHED
    # It matters: without it, the kernel between the cells of the usual size gives other logits.
    assert difference(convert_checkpoint(directory).model, source, *size) > 10 * PROMISED
    assert converted.config.image_height_width == size
    processor = AutoImageProcessor.from_pretrained(tmp_path / "converted")
    assert processor.model_size((500, 333)) == size[::-1]
    assert any("the position table was interpolated from" in note for note in report.notes)


@sizes
@pytest.mark.parametrize("name", ["vit", "deit", "deit_distilled", "clip", "siglip"])
def test_resized_after_conversion(name, size, sources, tmp_path):
    source, directory = sources[name]
    model = convert_checkpoint(directory).model
    before = copy.deepcopy(model.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.resize_position_embeddings(*size)
    assert difference(model, source, *size) <= REACHED
    grid_size = [size[0] // 16, size[1] // 16]
    assert (model.config.image_height_width, list(model.config.position_grid_size)) == (size, grid_size)
    assert list(model.config.position_source_grid_size) == [14, 14]
    changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before.get(name))]
    assert changed == ["spot_vit.embeddings.position_embeddings.weight"]
    model.save_pretrained(tmp_path)
    assert difference(AutoModelForImageClassification.from_pretrained(tmp_path), source, *size) <= REACHED


@sizes
@torch.no_grad()
def test_rotary_positions_follow_an_images_size_by_themselves(size, tmp_path):
    source = randomise(DINOv3ViTModel(DINOv3ViTConfig(**VIT, layerscale_value=0.5)))
    source.save_pretrained(tmp_path / "source")
    model = convert_checkpoint(tmp_path / "source").model
    pixel_values = images(*size)
    expected = source(pixel_values).last_hidden_state
    for resized in (False, True):
        if resized:
            model.resize_position_embeddings(*size)
        assert (model(pixel_values).last_hidden_state - expected).abs().max() <= REACHED


def test_relative_positions_are_for_the_sources_size(tmp_path):
    config = BeitConfig(**VIT, use_relative_position_bias=True)
    randomise(BeitForImageClassification(config)).save_pretrained(tmp_path / "source")
    with pytest.raises(ValueError, match=r"`image_size` must be that of the source.*got \[128, 128\].*has \[224, 224\]"):
        convert_checkpoint(tmp_path / "source", tmp_path / "out", image_size=128)
    assert not (tmp_path / "out").exists()
    model = convert_checkpoint(tmp_path / "source", image_size=224).model
    model.resize_position_embeddings(128, 160)  # displacements are relative to the image: it runs
    assert model(images(128, 160)).logits.shape == (2, 7)


def test_a_table_that_was_interpolated_is_not_the_sources(sources):
    """DINOv2's from 37 × 37 to 16 × 16 at its conversion; a ViT's, once it was resized: the model says so."""
    for name in ("dinov2", "registers"):
        source, directory = sources[name]
        model = convert_checkpoint(directory).model
        with pytest.warns(
            UserWarning, match="16 × 16 was itself interpolated, from the source's of 37 × 37: .* only approximates"
        ):
            model.resize_position_embeddings(126, 126)
        assert difference(model, source, 126, 126) > PROMISED
    source, directory = sources["vit"]
    model = convert_checkpoint(directory).model
    model.resize_position_embeddings(128, 128)
    with pytest.warns(UserWarning, match="only approximates"):
        model.resize_position_embeddings(224, 224)
    with pytest.warns(UserWarning, match="only approximates"):
        convert_checkpoint(directory, image_size=128).model.resize_position_embeddings(384, 384)


def test_the_same_size_changes_nothing(sources):
    for name in SOURCES:
        model = convert_checkpoint(sources[name][1]).model
        before, config = copy.deepcopy(model.state_dict()), model.config.to_dict()
        model.resize_position_embeddings(224, 224)
        assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
        assert model.config.to_dict() == config


def test_a_recorded_interpolation_is_used(sources):
    """With antialiasing as the other family has it, the logits are others."""
    source, directory = sources["vit"]
    model = convert_checkpoint(directory).model
    assert model.config.position_interpolation == {"mode": "bicubic", "antialias": False}
    model.config.position_interpolation["antialias"] = True
    model.resize_position_embeddings(128, 128)
    assert difference(model, source, 128, 128) > PROMISED


def test_models_saved_before_the_interpolation_was_recorded(sources, tmp_path):
    """Their config says nothing of it: bicubic, as ViT's."""
    source, directory = sources["vit"]
    convert_checkpoint(directory, tmp_path / "converted")
    file = tmp_path / "converted" / "config.json"
    config = json.loads(file.read_text())
    del config["position_interpolation"], config["position_source_grid_size"]
    file.write_text(json.dumps(config))
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "converted")
    model.resize_position_embeddings(128, 128)
    assert difference(model, source, 128, 128) <= REACHED


def test_the_decoder_of_pretraining_is_resized_too(tmp_path, sources):
    convert_checkpoint(sources["vit"][1], tmp_path / "converted")
    model = SpotViTForPreTraining.from_pretrained(
        tmp_path / "converted", decoder_hidden_size=24, decoder_num_attention_heads=3, decoder_num_hidden_layers=1
    )
    model.resize_position_embeddings(64, 96)
    assert model.decoder.config.image_height_width == model.config.image_height_width == (64, 96)
    assert model.decoder.position_embeddings.weight.shape == (4, 6, 24)
    model.save_pretrained(tmp_path / "resized")
    loaded = SpotViTForPreTraining.from_pretrained(tmp_path / "resized").eval()
    noise = torch.rand(2, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        losses = [one(images(64, 96), noise=noise).loss for one in (model.eval(), loaded)]
    assert torch.equal(*losses)


def test_half_precision_and_frozen_weights_stay_so(sources):
    model = convert_checkpoint(sources["vit"][1]).model.to(torch.bfloat16).requires_grad_(False)
    model.resize_position_embeddings(128, 128)
    weight = model.spot_vit.embeddings.position_embeddings.weight
    assert weight.dtype == torch.bfloat16 and not weight.requires_grad


def test_few_tokens_at_another_size(sources):
    """Any positions go with any image: not only cells."""
    model = convert_checkpoint(sources["vit"][1], image_size=128).model
    with torch.no_grad():
        assert torch.isfinite(model(images(128, 128), isotropic(9)[None]).logits).all()


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("image_size", "message"),
    [
        (7, r"`image_size` must be at least the source's patch_size=16; got \[7\]"),
        ((224, 15), r"`image_size` must be at least the source's patch_size=16; got \[224, 15\]"),
        (0, "`image_size` must be a number of pixels, or height and width; got .0."),
        ((224, 224, 3), "`image_size` must be a number of pixels, or height and width"),
        ((), "`image_size` must be a number of pixels"),
        (1.5, "`image_size` must be a number of pixels"),
        (True, "`image_size` must be a number of pixels"),
        ("large", "`image_size` must be a number of pixels"),
    ],
)
def test_sizes_that_cannot_be(image_size, message, sources, tmp_path):
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(sources["vit"][1], tmp_path / "out", image_size=image_size)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [(15, 224), (224, 0), (224.0, 224), (True, 224), ("224", 224)])
def test_sizes_to_which_no_model_can_be_resized(size, sources):
    model = convert_checkpoint(sources["vit"][1]).model
    with pytest.raises(ValueError, match="must be an integer of at least patch_size=16; got"):
        model.resize_position_embeddings(*size)
    assert model.config.image_size == 224


def test_a_recipe_that_keeps_proportions_cannot_make_others(sources, tmp_path):
    model, _ = sources["vit"]
    model.save_pretrained(tmp_path / "source")
    BitImageProcessor(size={"shortest_edge": 224}, do_center_crop=False).save_pretrained(tmp_path / "source")
    with pytest.raises(ValueError, match="cannot make images of 224 × 320 pixels"):
        convert_checkpoint(tmp_path / "source", image_size=(224, 320))


def test_saved_defaults_are_checked_at_the_new_size(sources):
    _, directory = sources["vit"]
    with pytest.raises(ValueError, match="`num_tokens` must be at most 64 with placement='grid_subset'"):
        convert_checkpoint(directory, image_size=128, num_tokens=100, placement="grid_subset")
    processor = convert_checkpoint(directory, image_size=128, num_tokens=9, placement="center").image_processor
    assert (processor.num_tokens, processor.placement) == (9, "center")
