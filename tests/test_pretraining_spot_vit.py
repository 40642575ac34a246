"""Masked pre-training: what the encoder sees, what the loss counts, and where the encoder can go afterwards."""

import pytest
import torch
from test_bad_input import assert_names
from tiny import POSITION_KINDS, random_coordinates, random_images, tiny_model
from transformers import AutoModelForPreTraining

from spot_hf import SpotViTForImageClassification, SpotViTForPreTraining, SpotViTModel
from spot_hf.placement import grid
from spot_hf.windows import sample_windows


DECODER = {
    "decoder_hidden_size": 24,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 3,
    "decoder_intermediate_size": 40,
}
NUM_TOKENS = 8
# Windows of 8 pixels, none of which overlaps another: every other cell of a grid of 6 × 6, moved by a third of a pixel.
COORDINATES = (grid(48, 48, 8).unflatten(0, (6, 6))[::2, ::2].flatten(0, 1) + 0.3 / 48)[None, :NUM_TOKENS].expand(2, -1, -1)
# The first image's tokens 0 and 4 are seen, the second's 5 and 6.
NOISE = torch.full((2, NUM_TOKENS), 0.5) + torch.linspace(0, 0.4, NUM_TOKENS)
NOISE[0, [0, 4]], NOISE[1, [5, 6]] = 0.1, 0.2
MASK = (NOISE >= 0.5).float()


def pretraining_model(**changes) -> SpotViTForPreTraining:
    return tiny_model(model_class=SpotViTForPreTraining, **{**DECODER, **changes})


def inputs(seed: int = 0) -> dict[str, torch.Tensor]:
    return {"pixel_values": random_images(seed=seed), "coordinates": COORDINATES, "noise": NOISE}


def pixels_of(index: int, image: int) -> torch.Tensor:
    """Which pixels the window of a token reads: `(48, 48)`, bool."""
    images = torch.zeros(2, 3, 48, 48, requires_grad=True)
    sample_windows(images, COORDINATES, 8)[image, index].sum().backward()
    return images.grad[image, 0] > 0


@torch.no_grad()
def test_windows_of_these_tests_are_apart():
    with torch.enable_grad():
        seen = sum(pixels_of(i, 0).int() for i in range(NUM_TOKENS))
    assert seen.max() == 1


@pytest.mark.parametrize("norm_pix_loss", [True, False])
@pytest.mark.parametrize("windows", [{}, {"window_spacing": 8 / 7, "window_border": "zero"}], ids=["ours", "released SPoT"])
@torch.no_grad()
def test_loss_by_hand(norm_pix_loss, windows):
    outputs = (model := pretraining_model(norm_pix_loss=norm_pix_loss, **windows))(**inputs())
    assert outputs.logits.shape == (2, NUM_TOKENS, 3 * 8 * 8)
    assert torch.equal(outputs.mask, MASK)
    spacing, border = model.config.window_spacing, model.config.window_border
    windows = sample_windows(inputs()["pixel_values"], COORDINATES, 8, spacing=spacing, border=border)
    errors = []
    for image in range(2):
        for token in range(NUM_TOKENS):
            if NOISE[image, token] < 0.5:
                continue
            target = windows[image, token].flatten()
            if norm_pix_loss:
                target = (target - target.mean()) / (target.std() ** 2 + 1e-6) ** 0.5
            errors += [float(a - b) ** 2 for a, b in zip(outputs.logits[image, token], target, strict=True)]
    assert len(errors) == 12 * 3 * 8 * 8
    assert outputs.loss.item() == pytest.approx(sum(errors) / len(errors), rel=1e-5)
    assert model.targets(inputs()["pixel_values"], COORDINATES).shape == outputs.logits.shape


@torch.no_grad()
def test_logits_by_hand():
    """The encoder on the visible tokens alone, and the decoder written out token by token."""
    model = pretraining_model(num_register_tokens=2)
    outputs, decoder = model(**inputs()), model.decoder
    for image in range(2):
        seen = [i for i in range(NUM_TOKENS) if not MASK[image, i]]
        encoded = model.spot_vit(inputs()["pixel_values"][image : image + 1], COORDINATES[image : image + 1, seen])
        encoded = decoder.embed(encoded.last_hidden_state[0])
        tokens = list(encoded[:3])  # class token and registers: no position
        for i in range(NUM_TOKENS):
            token = encoded[3 + seen.index(i)] if i in seen else decoder.mask_token[0, 0]
            tokens.append(token + decoder.position_embeddings(COORDINATES[image, i], 48, 48))
        hidden_states = torch.stack(tokens)[None]
        for layer in decoder.layers:
            hidden_states = layer(hidden_states)
        expected = decoder.prediction(decoder.layernorm(hidden_states))[0, 3:]
        torch.testing.assert_close(outputs.logits[image], expected, rtol=0, atol=1e-4)  # of the order of 10


@torch.no_grad()
def test_encoder_never_sees_masked_windows():
    """Other pixels there: the same predictions, another loss. Other pixels in a visible window: other predictions."""
    model, expected = pretraining_model(), pretraining_model()(**inputs())
    for image, token, seen in ((0, 3, False), (1, 0, False), (0, 4, True), (1, 5, True)):
        changed = inputs()
        with torch.enable_grad():
            where = pixels_of(token, image)
        changed["pixel_values"][image, :, where] += torch.randn(
            3, int(where.sum()), generator=torch.Generator().manual_seed(1)
        )
        outputs = model(**changed)
        assert torch.equal(outputs.logits, expected.logits) != seen
        assert outputs.loss != expected.loss


def test_loss_counts_masked_windows_only():
    """Gradients by the predictions: those of visible windows have none."""
    outputs = pretraining_model()(**inputs())
    outputs.logits.retain_grad()
    outputs.loss.backward()
    assert torch.equal(outputs.logits.grad.abs().amax(-1) > 0, MASK.bool())
    # And by the pixels, which targets do not lead back to: only visible windows' reach the loss.
    images = random_images().requires_grad_()
    pretraining_model()(images, COORDINATES, noise=NOISE).loss.backward()
    for image in range(2):
        seen = sum(pixels_of(i, image) for i in range(NUM_TOKENS) if not MASK[image, i])
        assert torch.equal(images.grad[image].abs().amax(0) > 0, seen)


@torch.no_grad()
def test_noise_makes_the_mask_and_repeats_it():
    model = pretraining_model()
    first, again = model(**inputs()), model(**inputs())
    assert first.loss == again.loss and torch.equal(first.logits, again.logits)
    assert torch.equal(first.ids_restore, NOISE.argsort(1).argsort(1))
    drawn = [model(random_images(), COORDINATES) for _ in range(4)]
    assert all((outputs.mask.sum(1) == 6).all() for outputs in drawn)
    assert len({tuple(outputs.mask.flatten().tolist()) for outputs in drawn}) > 1
    torch.manual_seed(5)
    seeded = model(random_images(), COORDINATES)
    torch.manual_seed(5)
    assert torch.equal(model(random_images(), COORDINATES).mask, seeded.mask)


@pytest.mark.parametrize(("mask_ratio", "num_tokens", "masked"), [(0.75, 49, 37), (0.9, 100, 90), (0.3, 10, 3), (0.5, 2, 1)])
@torch.no_grad()
def test_share_of_masked_tokens(mask_ratio, num_tokens, masked):
    outputs = pretraining_model(mask_ratio=mask_ratio)(random_images(), random_coordinates(2, num_tokens))
    assert outputs.mask.sum(1).tolist() == [masked] * 2


@torch.no_grad()
def test_grid_by_default_and_one_set_for_all_images():
    model, noise = pretraining_model(), torch.rand(2, 36, generator=torch.Generator().manual_seed(0))
    expected = model(random_images(), grid(48, 48, 8)[None].expand(2, -1, -1), noise=noise)
    for coordinates in (None, grid(48, 48, 8)[None]):
        assert torch.equal(model(random_images(), coordinates, noise=noise).logits, expected.logits)


@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"pooling": "mean", "norm_after_pooling": True},
        {"num_register_tokens": 2, "use_layer_scale": True, "use_swiglu_ffn": True},
        {"position_kernel_unit": "pixels", "position_kernel_centers": "mesh", "position_kernel_normalization": "image"},
        POSITION_KINDS["rotary"],
        {**POSITION_KINDS["relative"], "use_class_token": False, "pooling": "mean"},
    ],
    ids=["plain", "fc_norm", "registers, layer scale, swiglu", "released SPoT", "rotary", "relative, no class token"],
)
def test_gradients_reach_every_parameter(variant):
    model = pretraining_model(**variant).train()
    model(random_images(), random_coordinates(2, 60)).loss.backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert not without


@torch.no_grad()
def test_outputs_on_request():
    model = pretraining_model()
    model.set_attn_implementation("eager")
    assert model.decoder.config._attn_implementation == "eager"
    outputs = model(**inputs(), output_attentions=True, output_hidden_states=True)
    assert [tuple(state.shape) for state in outputs.hidden_states] == [(2, 1 + 2, 32)] * 3  # the encoder's, of visible tokens
    assert [tuple(weights.shape) for weights in outputs.attentions] == [(2, 4, 3, 3)] * 2
    assert isinstance(model(**inputs(), return_dict=False), tuple)


@torch.no_grad()
def test_half_precision():
    model = pretraining_model().to(torch.bfloat16)
    outputs = model(**{**inputs(), "pixel_values": inputs()["pixel_values"].bfloat16()})
    assert outputs.logits.dtype == torch.bfloat16 and outputs.loss.dtype == torch.float32
    # Rounding of 2^-8 through four layers.
    assert outputs.loss.item() == pytest.approx(pretraining_model()(**inputs()).loss.item(), rel=0.1)


@torch.no_grad()
def test_save_and_load(tmp_path):
    model = pretraining_model()
    model.save_pretrained(tmp_path)
    loaded, info = AutoModelForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is SpotViTForPreTraining and not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(loaded(**inputs()).logits, model(**inputs()).logits)


@torch.no_grad()
def test_the_encoder_becomes_a_classifiers(tmp_path):
    model = pretraining_model(pooling="mean")
    model.save_pretrained(tmp_path)
    classifier, info = SpotViTForImageClassification.from_pretrained(tmp_path, num_labels=7, output_loading_info=True)
    assert set(info["missing_keys"]) == {"classifier.weight", "classifier.bias"}
    assert info["unexpected_keys"] and all(name.startswith("decoder.") for name in info["unexpected_keys"])
    encoder = SpotViTModel.from_pretrained(tmp_path)
    for name, parameter in model.spot_vit.named_parameters():
        assert torch.equal(classifier.spot_vit.get_parameter(name), parameter)
        assert torch.equal(encoder.get_parameter(name), parameter)
    assert classifier(random_images(), COORDINATES).logits.shape == (2, 7)


@pytest.mark.parametrize("model_class", [SpotViTModel, SpotViTForImageClassification])
def test_a_classifier_or_an_encoder_goes_on_with_pretraining(model_class, tmp_path):
    source = tiny_model(model_class=model_class)
    source.save_pretrained(tmp_path)
    model, info = SpotViTForPreTraining.from_pretrained(tmp_path, output_loading_info=True, **DECODER)
    assert all(name.startswith("decoder.") for name in info["missing_keys"])
    assert torch.equal(model.spot_vit.layers[1].mlp.fc1.weight, source.base_model.layers[1].mlp.fc1.weight)
    assert model.decoder.position_embeddings.weight.std() > 0 and model.decoder.mask_token.std() > 0
    assert torch.isfinite(model(random_images()).loss)


@torch.no_grad()
def test_a_converted_mae_checkpoint_is_the_encoder(tmp_path):
    """transformers' ViTMAEForPreTraining and ours, of the same encoder: equal features at the visible cells."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    from spot_hf import convert_checkpoint

    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    torch.manual_seed(0)
    source = ViTMAEForPreTraining(ViTMAEConfig(**shape, image_size=48, patch_size=8, initializer_range=0.3, **DECODER)).eval()
    source.save_pretrained(tmp_path / "source")
    convert_checkpoint(str(tmp_path / "source"), tmp_path / "converted")
    model = SpotViTForPreTraining.from_pretrained(tmp_path / "converted", **DECODER)
    noise = torch.rand(2, 36)
    theirs = source.vit(random_images(), noise=noise).last_hidden_state
    coordinates = grid(48, 48, 8)[noise.argsort(1)[:, :9]]
    torch.testing.assert_close(
        model.spot_vit(random_images(), coordinates).last_hidden_state, theirs, rtol=0, atol=1e-4
    )  # of the order of 1
    assert torch.equal(model(random_images(), noise=noise).mask, source(random_images(), noise=noise).mask)


@pytest.mark.slow
@torch.no_grad()
def test_compile_fullgraph():
    model = pretraining_model()
    torch.compiler.reset()  # graphs of other tests count towards a limit
    compiled = torch.compile(model, fullgraph=True)(**inputs())
    torch.testing.assert_close(compiled.logits, model(**inputs()).logits, rtol=0, atol=1e-4)  # of the order of 10


BAD = {
    "no images": ({"pixel_values": None}, ["pixel_values", "required"]),
    "coordinates": ({"coordinates": torch.rand(2, 8)}, ["coordinates", "(2, 8)"]),
    "coordinates_mask": ({"coordinates_mask": torch.ones(2, 8)}, ["coordinates_mask", "None", "(2, 8)"]),
    "window_scales": ({"window_scales": torch.ones(2, 8)}, ["window_scales", "None", "(2, 8)"]),
    "one token": ({"coordinates": torch.rand(2, 1, 2), "noise": None}, ["coordinates", "mask_ratio=0.75", "got 1 "]),
    "noise of other images": ({"noise": torch.rand(3, 8)}, ["noise", "(2, 8)", "(3, 8)"]),
    "noise is a number": ({"noise": 0.5}, ["noise", "torch.Tensor", "float"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    changes, words = BAD[case]
    with pytest.raises(ValueError) as error:
        pretraining_model()(**{**inputs(), **changes})
    assert_names(str(error.value), words)
