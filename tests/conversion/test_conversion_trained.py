"""Conversion of trained weights on real images, all in the repository: the tiny ViT in `tests/fixtures/digits-vit`, and
scikit-learn's digits. Trained weights have what random ones lack, such as features of very different sizes."""

from pathlib import Path

import pytest
import torch
from conversion_checks import REACHED
from transformers import ViTForImageClassification
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from spot_hf import SpotViTForImageClassification, convert_checkpoint
from spot_hf.data.digits import load_digits
from spot_hf.placement import grid


SOURCE = Path(__file__).parents[1] / "fixtures" / "digits-vit"


@pytest.fixture(scope="module")
def digits():
    """The held-out ones: `{"image": [...], "label": [...]}`."""
    return load_digits()["test"][:]


@pytest.fixture(scope="module")
def source():
    return ViTForImageClassification.from_pretrained(SOURCE).eval()


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """The directory of the converted model."""
    directory = tmp_path_factory.mktemp("digits") / "spot"
    convert_checkpoint(SOURCE, directory)
    return directory


@torch.no_grad()
def test_the_full_grid_gives_the_sources_logits_on_real_digits(source, converted, digits):
    model = SpotViTForImageClassification.from_pretrained(converted).eval()
    images = digits["image"]
    pixel_values = AutoImageProcessor.from_pretrained(converted)(images, return_tensors="pt")["pixel_values"]
    assert torch.equal(pixel_values, AutoImageProcessor.from_pretrained(SOURCE)(images, return_tensors="pt")["pixel_values"])
    expected = source(pixel_values).logits
    # The weights are trained: this is a classifier, whose logits are far apart.
    accuracy = (expected.argmax(-1) == torch.tensor(digits["label"])).float().mean()
    assert accuracy > 0.95 and expected.std() > 1
    for logits in (model(pixel_values).logits, model(pixel_values, grid(48, 48, 8)[None]).logits):
        assert (logits - expected).abs().max() <= REACHED
        assert torch.equal(logits.argmax(-1), expected.argmax(-1))


@pytest.mark.parametrize("size", [(96, 96), (32, 80), (50, 51)], ids=str)
@torch.no_grad()
def test_another_image_size_gives_the_sources_logits(size, source, converted, digits):
    report = convert_checkpoint(SOURCE, image_size=size)
    pixel_values = report.image_processor(digits["image"][:50], return_tensors="pt")["pixel_values"]
    assert pixel_values.shape[2:] == size
    expected = source(pixel_values, interpolate_pos_encoding=True).logits
    resized = SpotViTForImageClassification.from_pretrained(converted).eval()
    resized.resize_position_embeddings(*size)
    for model in (report.model, resized):
        assert (model(pixel_values).logits - expected).abs().max() <= REACHED


@torch.no_grad()
def test_a_shifted_digit_and_shifted_tokens(converted, digits):
    """Windows that move with the image see the same pixels; only their position embeddings differ. The trained model's class
    then changes for fewer digits than with windows that stay."""
    model = SpotViTForImageClassification.from_pretrained(converted).eval()
    pixel_values = AutoImageProcessor.from_pretrained(converted)(digits["image"][:100], return_tensors="pt")["pixel_values"]
    inner = grid(48, 48, 8).unflatten(0, (6, 6))[1:-1, 1:-1].flatten(0, 1)[None]
    moved = model(pixel_values.roll(3, dims=-1), inner + torch.tensor([3 / 48, 0])).logits
    still = model(pixel_values, inner).logits
    agree = (moved.argmax(-1) == still.argmax(-1)).float().mean()
    grid_agree = (model(pixel_values.roll(3, dims=-1), inner).logits.argmax(-1) == still.argmax(-1)).float().mean()
    assert agree > grid_agree and agree > 0.8
