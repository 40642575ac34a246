"""The model: any number of tokens, anywhere, each image by itself."""

import copy

import pytest
import torch
from safetensors.torch import save_file
from tiny import POSITION_KINDS, random_coordinates, random_images, tiny_config, tiny_model
from torch.nn import functional as F

from spot_hf import SpotViTForImageClassification, SpotViTForPreTraining, SpotViTModel
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
    "attention, no class token": {"pooling": "attention", "use_class_token": False},
    "all norms": {"use_pre_norm": True, "use_qk_norm": True, "use_attention_norm": True, "use_mlp_norm": True},
    "no norm, registers alone": {
        "pooling": "mean", "use_final_norm": False, "use_class_token": False, "num_register_tokens": 2, "use_mlp_norm": True,
        "use_swiglu_ffn": True,
    },
    **{f"positions: {kind}": {**options, "num_register_tokens": 1} for kind, options in POSITION_KINDS.items()},
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
def test_one_set_of_coordinates_for_all_images(variant):
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


def logits_of_windows(model, windows, coordinates, height, width):
    """The rest of the model, written out, from windows `(batch_size, num_tokens, channels, patch_size, patch_size)` on."""
    embeddings = model.spot_vit.embeddings
    tokens = embeddings.patch_projection(windows.flatten(2)) + embeddings.position_embeddings(coordinates, height, width)
    hidden_states = torch.cat([embeddings.prefix_tokens.expand(len(windows), -1, -1), tokens], dim=1)
    for layer in model.spot_vit.layers:
        hidden_states = layer(hidden_states)
    return model.classifier(model.spot_vit.layernorm(hidden_states)[:, 0])


@pytest.mark.parametrize("size", [(48, 48), (8, 8), (96, 32), (51, 83)])
@torch.no_grad()
def test_images_of_any_size(size):
    model, images = tiny_model(), random_images(2, *size)
    height, width = size
    # All cells: the patches as unfold cuts them, without what is left of an image whose size is no multiple of 8.
    patches = images.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).flatten(1, 2)
    cells = grid(height, width, 8)[None].expand(2, -1, -1)
    assert len(cells[0]) == (height // 8) * (width // 8)
    expected = logits_of_windows(model, patches, cells, height, width)
    torch.testing.assert_close(logits(model, images), expected, rtol=0, atol=BATCH_TOLERANCE)
    # One token anywhere: its pixels as torch's own sampler finds them, which also replicates border pixels.
    coordinates = random_coordinates(2, 1)
    offsets = torch.arange(8) - 3.5
    x = (coordinates[..., 0] + offsets / width)[:, None, :].expand(-1, 8, -1)
    y = (coordinates[..., 1] + offsets / height)[:, :, None].expand(-1, -1, 8)
    lattice = 2 * torch.stack([x, y], dim=-1) - 1  # its -1 and 1 are the image's edges
    windows = F.grid_sample(images, lattice, mode="bilinear", padding_mode="border", align_corners=False)[:, None]
    expected = logits_of_windows(model, windows, coordinates, height, width)
    # Its positions are rounded otherwise, by about 1e-5 pixels.
    torch.testing.assert_close(logits(model, images, coordinates), expected, rtol=0, atol=2e-4)


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


def test_a_new_classifier_on_a_saved_encoder(tmp_path):
    """Loading a headless repository as a classifier: the encoder is the saved one, the classifier new."""
    encoder = tiny_model(model_class=SpotViTModel)
    encoder.save_pretrained(tmp_path)
    model, info = SpotViTForImageClassification.from_pretrained(tmp_path, num_labels=400, output_loading_info=True)
    assert info["missing_keys"] == {"classifier.weight", "classifier.bias"}
    assert all(torch.equal(tensor, encoder.state_dict()[name]) for name, tensor in model.spot_vit.state_dict().items())
    assert_initialised("classifier.weight", model.classifier.weight, model.config)
    assert_initialised("classifier.bias", model.classifier.bias, model.config)


def assert_initialised(name: str, parameter: torch.Tensor, config) -> None:
    """With what a parameter of that name begins."""
    module, kind = name.split(".")[-2], name.split(".")[-1]
    if kind == "scale":
        assert (parameter == config.layerscale_value).all(), name
    elif "norm" in module or kind == "bias":
        assert (parameter == (kind == "weight")).all(), name  # norms are the identity; other biases are 0
    else:
        # Of n normal numbers, mean and standard deviation are found to within 5 standard errors. Of one that was cut off at
        # 2 standard deviations either way (or, as torch counts, not at all) the standard deviation is at least 0.87 as large.
        std, error = config.initializer_range, 5 / parameter.numel() ** 0.5
        assert abs(parameter.mean()) < error * std, name
        assert (0.87 - error) * std < parameter.std() < (1 + error) * std, name


def test_a_new_model_is_initialised_everywhere(tmp_path):
    """From a repository that lacks all parameters but one, through the meta device, where memory that nothing fills holds
    anything: every parameter of the largest class, with every option, gets what its name promises."""
    config = tiny_config(
        hidden_size=64, use_layer_scale=True, layerscale_value=0.5, num_register_tokens=3, initializer_range=0.05,
        use_swiglu_ffn=True, decoder_hidden_size=48, decoder_num_hidden_layers=2, decoder_num_attention_heads=3,
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    kept = {"spot_vit.layernorm.weight": torch.full((64,), 7.0)}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    for model_class in (SpotViTForPreTraining, SpotViTForImageClassification):
        model, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
        names = set(model.state_dict())
        assert info["missing_keys"] == names - set(kept) and names == set(dict(model.named_parameters()))
        assert (model.spot_vit.layernorm.weight == 7).all()
        for name, parameter in model.named_parameters():
            assert parameter.device.type == "cpu"
            if name not in kept:
                assert_initialised(name, parameter, model.config)


def test_multi_label_and_regression_losses():
    targets = torch.tensor([[1.0, 0, 1, 0, 0], [0, 0, 0, 1, 1]])
    for problem_type, labels, function in (
        ("multi_label_classification", targets, F.binary_cross_entropy_with_logits),
        ("regression", targets - 0.3, F.mse_loss),
    ):
        model = tiny_model()
        model.config.problem_type = problem_type
        outputs = model(random_images(), labels=labels)
        torch.testing.assert_close(outputs.loss, function(outputs.logits, labels))
        assert outputs.loss > 0.1  # of logits that are not the targets


# ------------------------------------------------------------------------------------------- several processes that save


@pytest.fixture
def cards(monkeypatch) -> list[str]:
    """The directories for which a card was written."""
    written: list[str] = []
    monkeypatch.setattr(SpotViTModel, "_write_model_card", lambda self, directory: written.append(directory))
    return written


def test_only_the_main_process_writes_the_card(tmp_path, cards):
    model = tiny_model(model_class=SpotViTModel)
    model.save_pretrained(tmp_path / "other", is_main_process=False)
    model.save_pretrained(tmp_path / "positional", False)
    assert cards == []
    model.save_pretrained(tmp_path / "main")
    assert cards == [tmp_path / "main"]


def test_the_first_of_several_processes_writes_the_card(tmp_path, cards, monkeypatch):
    """As torchrun starts them, before and after they make their group."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    model = tiny_model(model_class=SpotViTModel)
    for rank in (1, 0):
        monkeypatch.setenv("RANK", str(rank))
        model.save_pretrained(tmp_path / f"launched-{rank}")
    monkeypatch.delenv("RANK")
    for rank in (1, 0):
        torch.distributed.init_process_group("fake", rank=rank, world_size=2, store=FakeStore())
        try:
            model.save_pretrained(tmp_path / f"grouped-{rank}")
        finally:
            torch.distributed.destroy_process_group()
    assert cards == [tmp_path / "launched-0", tmp_path / "grouped-0"]


# ----------------------------------------------------------------------------------------------------- misplaced tokens


@pytest.mark.parametrize("value", [112.0, -30.0, float("nan"), float("inf")])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_positions_in_pixels_are_refused(value, requires_grad):
    coordinates = random_coordinates()
    coordinates[1, 3, 0] = value
    with pytest.raises(ValueError, match=r"`coordinates` must be finite and relative .* token 3 of image 1 is \["):
        tiny_model()(random_images(), coordinates.requires_grad_(requires_grad))
    # A crop removes positions: these lie outside, but not by many images.
    coordinates = coordinates.detach().clone()
    coordinates[1, 3, 0] = -0.24
    assert tiny_model()(random_images(), coordinates).logits.isfinite().all()


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_scales_that_no_window_has_are_refused(value):
    scales = torch.ones(2, 7)
    scales[0, 5] = value
    with pytest.raises(ValueError, match="`window_scales` must be finite and above 0; that of token 5 of image 0"):
        tiny_model()(random_images(), random_coordinates(), window_scales=scales)


def test_values_are_checked_where_they_are_known(monkeypatch):
    """On the CPU; elsewhere where `check_inputs` says so, as the device would have to be waited for; never in a graph."""
    from spot_hf import input_checks

    checked = []
    monkeypatch.setattr(input_checks, "check_values", lambda coordinates, scales: checked.append(coordinates.device.type))
    tiny_model()(random_images(), random_coordinates())
    assert checked == ["cpu"]
    for check_inputs, expected in ((None, []), (False, []), (True, ["meta"])):
        checked.clear()
        config = tiny_config(check_inputs=check_inputs)
        input_checks.check_model_inputs(config, random_images().to("meta"), random_coordinates().to("meta"))
        assert checked == expected
    checked.clear()
    torch.export.export(tiny_model(), (random_images(),), {"coordinates": random_coordinates()}, strict=False)
    assert not checked


def test_values_that_cannot_be_read_are_not_checked():
    """Under `vmap` there are none; and `check_inputs=False` asks for none to be."""
    model, images, coordinates = tiny_model(), random_images(1), random_coordinates(2)[:, None]
    with torch.no_grad():
        mapped = torch.func.vmap(lambda one: model(images, one).logits)(coordinates)
        torch.testing.assert_close(mapped[1], logits(model, images, coordinates[1]), rtol=0, atol=BATCH_TOLERANCE)
    assert tiny_model(check_inputs=False)(images, torch.full((1, 3, 2), 100.0)).logits.shape == (1, 5)
