"""The model: any number of tokens, anywhere, each image by itself."""

import copy

import pytest
import torch
from tiny import random_coordinates, random_images, tiny_config, tiny_model

from spot_hf import SpotViTForImageClassification, SpotViTModel
from spot_hf.placement import grid


# float32 sums in another order: a batch of another size takes other kernels. Logits here are of the order of 1.
BATCH_TOLERANCE = 2e-5
VARIANTS = {
    "cls": {},
    "mean": {"pooling": "mean"},
    "mean, norm after": {"pooling": "mean", "norm_after_pooling": True},
    "cls_mean, registers, layer scale, swiglu": {
        "pooling": "cls_mean", "num_register_tokens": 3, "use_layer_scale": True, "use_swiglu_ffn": True,
    },
    "distilled": {"pooling": "cls_distillation", "num_register_tokens": 1},
}  # fmt: skip
variants = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())


@torch.no_grad()
def logits(model, *args, **kwargs):
    return model(*args, **kwargs).logits


def test_the_full_grid_is_the_default():
    model, images = tiny_model(), random_images(2, 40, 72)
    torch.testing.assert_close(logits(model, images), logits(model, images, grid(40, 72, 8)[None]), rtol=0, atol=0)


@variants
def test_order_of_tokens_does_not_matter(variant):
    model, images, coordinates = tiny_model(**variant), random_images(), random_coordinates()
    shuffled = coordinates[:, torch.randperm(7, generator=torch.Generator().manual_seed(0))]
    torch.testing.assert_close(
        logits(model, images, shuffled), logits(model, images, coordinates), rtol=0, atol=BATCH_TOLERANCE
    )


@variants
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_an_image_does_not_see_its_batch(variant, attention):
    model = tiny_model(**variant)
    model.set_attn_implementation(attention)
    images, coordinates = random_images(5), random_coordinates(5, 9)
    counts = [9, 4, 1, 7, 2]
    mask = torch.arange(9)[None] < torch.tensor(counts)[:, None]
    together = logits(model, images, coordinates, coordinates_mask=mask)
    for i, count in enumerate(counts):
        alone = logits(model, images[i : i + 1], coordinates[i : i + 1, :count])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=BATCH_TOLERANCE)
    elsewhere = torch.where(mask[..., None], coordinates, 1 - coordinates)  # what padding holds
    torch.testing.assert_close(logits(model, images, elsewhere, coordinates_mask=mask), together, rtol=0, atol=BATCH_TOLERANCE)


@variants
def test_one_set_of_coordinates_serves_all_images(variant):
    model, images, coordinates = tiny_model(**variant), random_images(3), random_coordinates(1)
    mask = torch.tensor([[True] * 5 + [False] * 2])
    for inputs in ({}, {"coordinates_mask": mask}, {"window_scales": torch.full((1, 7), 1.5)}):
        expanded = {name: value.expand(3, -1) for name, value in inputs.items()}
        torch.testing.assert_close(
            logits(model, images, coordinates, **inputs),
            logits(model, images, coordinates.expand(3, -1, -1), **expanded),
            rtol=0, atol=BATCH_TOLERANCE,
        )  # fmt: skip


def test_sdpa_and_eager_agree():
    model, images, coordinates = tiny_model(), random_images(), random_coordinates()
    fast = logits(model, images, coordinates)
    model.set_attn_implementation("eager")
    torch.testing.assert_close(logits(model, images, coordinates), fast, rtol=0, atol=BATCH_TOLERANCE)


def test_outputs_on_request():
    model = tiny_model(num_register_tokens=2)
    model.set_attn_implementation("eager")
    outputs = model(random_images(), random_coordinates(), output_attentions=True, output_hidden_states=True)
    assert [tuple(state.shape) for state in outputs.hidden_states] == [(2, 3 + 7, 32)] * 3
    assert [tuple(weights.shape) for weights in outputs.attentions] == [(2, 4, 10, 10)] * 2
    torch.testing.assert_close(outputs.attentions[0].sum(-1), torch.ones(2, 4, 10), rtol=0, atol=1e-5)  # a softmax
    assert isinstance(model(random_images(), return_dict=False), tuple)


def test_masked_tokens_get_no_attention():
    model = tiny_model()
    model.set_attn_implementation("eager")
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[0, 4:] = 0
    attentions = model(random_images(), random_coordinates(), coordinates_mask=mask, output_attentions=True).attentions
    assert attentions[0][0, :, :, 5:].max() == 0 and attentions[0][1, :, :, 5:].min() > 0


def test_loss_and_gradients_reach_positions_and_scales():
    model, labels = tiny_model(), torch.tensor([1, 4])
    coordinates = random_coordinates().requires_grad_()
    scales = torch.full((2, 7), 1.3, requires_grad=True)
    outputs = model(random_images(), coordinates, window_scales=scales, labels=labels)
    torch.testing.assert_close(outputs.loss, torch.nn.functional.cross_entropy(outputs.logits, labels))
    outputs.loss.backward()
    assert (coordinates.grad.abs().sum(-1) > 0).all() and (scales.grad.abs() > 0).all()


def test_moving_down_the_gradient_lowers_the_loss():
    model, images, labels = tiny_model(), random_images(), torch.tensor([1, 4])
    coordinates = random_coordinates().requires_grad_()
    before = model(images, coordinates, labels=labels).loss
    before.backward()
    moved = (coordinates - 1e-4 * coordinates.grad / coordinates.grad.norm()).detach()
    assert model(images, moved, labels=labels).loss < before


def test_gradient_checkpointing_gives_the_same_gradients():
    model, images, coordinates = tiny_model().train(), random_images(), random_coordinates()
    checkpointed = copy.deepcopy(model)
    checkpointed.gradient_checkpointing_enable()
    gradients = []
    for each in (model, checkpointed):
        each(images, coordinates, labels=torch.tensor([0, 1])).loss.backward()
        gradients.append([parameter.grad for parameter in each.parameters()])
    assert any(getattr(layer, "gradient_checkpointing", False) for layer in checkpointed.spot_vit.layers)
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_positions(dtype):
    """Half precision rounds weights and activations, not positions: tokens a third of a pixel apart stay apart."""
    model = tiny_model()
    half = copy.deepcopy(model).to(dtype)
    images, coordinates = random_images(2, 224, 224), random_coordinates()
    exact, rounded = logits(model, images, coordinates), logits(half, images.to(dtype), coordinates)
    assert rounded.dtype == dtype
    # Relative rounding of 2^-8 (bfloat16) through two layers: a few per cent of the logits' scale.
    assert (rounded.float() - exact).abs().max() < 0.1 * exact.abs().max()
    moved = coordinates + 1 / 3 / 224
    step = logits(half, images.to(dtype), moved).float() - rounded.float()
    expected = logits(model, images, moved) - exact
    assert torch.nn.functional.cosine_similarity(step.flatten(), expected.flatten(), dim=0) > 0.9


def test_autocast_keeps_positions():
    model, coordinates = tiny_model(), random_coordinates()
    embeddings = model.spot_vit.embeddings.position_embeddings
    expected = embeddings(coordinates, 48, 48)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(embeddings(coordinates, 48, 48), expected)


@pytest.mark.parametrize("size", [(48, 48), (8, 8), (96, 32), (51, 83)])
def test_images_of_any_size(size):
    model = tiny_model()
    assert logits(model, random_images(2, *size)).shape == (2, 5)
    assert logits(model, random_images(2, *size), random_coordinates(2, 1)).shape == (2, 5)


def test_headless_and_pooled_features():
    for variant, size in (({"pooling": "cls"}, 32), ({"pooling": "cls_mean"}, 64)):
        model = tiny_model(model_class=SpotViTModel, **variant)
        outputs = model(random_images(), random_coordinates())
        assert outputs.last_hidden_state.shape == (2, 8, 32) and outputs.pooler_output.shape == (2, size)
    torch.testing.assert_close(outputs.pooler_output[:, 32:], outputs.last_hidden_state[:, 1:].mean(1))


def test_save_and_load_give_the_same_logits(tmp_path):
    model, images, coordinates = tiny_model(), random_images(), random_coordinates()
    model.save_pretrained(tmp_path)
    loaded, info = SpotViTForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(logits(loaded, images, coordinates), logits(model, images, coordinates))
    assert {**loaded.config.to_dict(), "_name_or_path": ""} == model.config.to_dict()


def test_a_new_model_is_initialised_everywhere():
    """Loading a headless repository as a classifier: the encoder is the saved one, the classifier new and sane."""
    model = SpotViTForImageClassification(tiny_config(use_layer_scale=True, layerscale_value=0.5))
    assert model.spot_vit.embeddings.position_embeddings.weight.std() > 0
    assert (model.spot_vit.layers[0].layer_scale1.scale == 0.5).all()
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_multi_label_and_regression_losses():
    for problem_type, labels in (
        ("multi_label_classification", torch.ones(2, 5)),
        ("regression", torch.zeros(2, 5)),
    ):
        model = tiny_model()
        model.config.problem_type = problem_type
        assert torch.isfinite(model(random_images(), labels=labels).loss)
