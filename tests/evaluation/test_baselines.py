"""The smaller image as a baseline: for every kind of model the copy is what the model, or its source, is at that size."""

import copy

import pytest
import torch
from official_reference import HEADS, random_checkpoint, reference
from random_weights import randomise
from tiny import random_images
from transformers import Dinov2Config, Dinov2ForImageClassification, ViTForImageClassification

from spot_hf import convert_checkpoint, coordinates_to_official
from spot_hf.evaluation.baselines import shrink, shrunken_size
from spot_hf.placement import grid


@pytest.fixture(scope="module")
def spot_checkpoint(tmp_path_factory):
    """The file of a released SPoT checkpoint's format, with random weights."""
    file = tmp_path_factory.mktemp("spot") / "spot.pth"
    torch.save({"model": random_checkpoint(mean_pooled=False)}, file)
    return str(file)


@torch.no_grad()
def test_a_smaller_vit_is_transformers_own(tiny_vit):
    source = ViTForImageClassification.from_pretrained(tiny_vit).eval()
    model = convert_checkpoint(tiny_vit).model
    for num_tokens in (4, 6, 9):
        height, width = shrunken_size(num_tokens, 32, 32, 8)
        images = random_images(2, height, width)
        expected = source(images, interpolate_pos_encoding=True).logits
        # float32 through the kernel's weights and two layers.
        torch.testing.assert_close(shrink(model, height, width)(images).logits, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_spot_checkpoint_of_the_same_size_is_the_model_itself(spot_checkpoint):
    """Its kernel is measured in pixels and its centres are a mesh: there is no table to be interpolated."""
    model = convert_checkpoint(spot_checkpoint, num_attention_heads=HEADS).model
    images = random_images(2, 224, 224)
    assert torch.equal(shrink(model, 224, 224)(images).logits, model(images).logits)


@torch.no_grad()
def test_a_smaller_spot_checkpoint_is_the_released_code(spot_checkpoint):
    shrunken = shrink(convert_checkpoint(spot_checkpoint, num_attention_heads=HEADS).model, 64, 64)
    images, cells = random_images(2, 64, 64), grid(64, 64, 8)[None].expand(2, -1, -1)
    mu = coordinates_to_official(cells.double(), (64, 64))
    expected = reference(random_checkpoint(mean_pooled=False), images, mu, mean_pooled=False)
    torch.testing.assert_close(shrunken(images, cells.double()).logits, expected.float(), rtol=0, atol=1e-4)  # as converted


@torch.no_grad()
def test_a_table_that_was_interpolated_is_said_to_be_an_approximation(tmp_path):
    config = Dinov2Config(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=4, mlp_ratio=2, image_size=112, patch_size=14, num_labels=5
    )
    randomise(Dinov2ForImageClassification(config)).save_pretrained(tmp_path)
    model = convert_checkpoint(tmp_path, image_size=56).model
    with pytest.warns(UserWarning, match="only approximates its source"):
        shrink(model, 28, 28)


def test_the_model_is_not_changed(tiny_vit):
    model = convert_checkpoint(tiny_vit).model
    before, config = copy.deepcopy(model.state_dict()), model.config.to_dict()
    shrunken = shrink(model, 16, 24)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.config.to_dict() == config and shrunken.config.image_height_width == (16, 24)
