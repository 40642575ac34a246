"""Positions as parts that can be exchanged: each is a function of the tokens' own coordinates, and differentiable in them."""

import pytest
import torch
from tiny import POSITION_KINDS, random_coordinates, random_images, tiny_config, tiny_model

from spot_hf import SpotViTBackbone, SpotViTForPreTraining, SpotViTForSemanticSegmentation, SpotViTModel
from spot_hf.placement import grid
from spot_hf.positions import Rotation, SpotViTRelativePositionBias, SpotViTRotaryEmbeddings


ROTARY, BOTH = POSITION_KINDS["rotary"], POSITION_KINDS["table and rotary"]
in_attention = pytest.mark.parametrize("kind", ["rotary", "table and rotary", "relative"])


def rotary(**options) -> SpotViTRotaryEmbeddings:
    return SpotViTRotaryEmbeddings(tiny_config(**options))


def test_an_angle_is_linear_in_a_coordinate():
    for options in (ROTARY, BOTH):
        start, step = torch.tensor([0.3, 0.6]), torch.tensor([0.02, -0.05])
        line = torch.stack([start + i * step for i in range(4)])[None]
        angles = rotary(**options).angles(line, 48, 64)
        assert angles.shape == (1, 4, 32 // 4 // 2)
        # Second differences of float32 angles of the order of 10.
        torch.testing.assert_close(angles.diff(n=2, dim=1), torch.zeros(1, 2, 4), rtol=0, atol=1e-5)


def test_half_of_the_periods_are_for_y_and_half_for_x():
    angles = rotary(**ROTARY).angles(torch.tensor([[[0.5, 0.5], [0.5, 0.75], [1.0, 0.5]]]), 48, 64)[0]
    torch.testing.assert_close(angles[0], torch.zeros(4), rtol=0, atol=0)  # the image's centre
    down, right = angles[1], angles[2]
    # A head of 8 has 2 periods per axis: base 100 to the power of 0 and of 1/2.
    torch.testing.assert_close(down, torch.pi * torch.tensor([1, 0.1, 0, 0]))
    torch.testing.assert_close(right, torch.pi * torch.tensor([0, 0, 2, 0.2]))


def test_cells_count_from_the_centre_of_the_first_as_of_a_grid_of_another_size():
    options = {**BOTH, "rope_grid_offset": 0.0}
    angles = rotary(**options).angles(grid(48, 64, 8)[None], 48, 64)[0, :, [0, 2]]  # of period 1: in cells
    rows, columns = torch.arange(6) * (4 / 6), torch.arange(8) * (5 / 8)
    torch.testing.assert_close(angles, torch.cartesian_prod(rows, columns), rtol=0, atol=1e-5)  # float32's, of numbers up to 5
    own = rotary(**{**options, "rope_grid_size": None}).angles(grid(48, 64, 8)[None], 48, 64)[0, :, [0, 2]]
    torch.testing.assert_close(own, torch.cartesian_prod(torch.arange(6.0), torch.arange(8.0)), rtol=0, atol=1e-5)


def test_class_token_and_registers_are_not_turned():
    turn = rotary(**ROTARY, num_register_tokens=2)(random_coordinates(), 48, 48, torch.float32)
    heads = torch.randn(2, 3 + 7, 4, 8, generator=torch.Generator().manual_seed(0))
    turned = turn(heads)
    torch.testing.assert_close(turned[:, :3], heads[:, :3], rtol=0, atol=0)
    assert (turned[:, 3:] - heads[:, 3:]).abs().amax((0, 2, 3)).min() > 0.1
    # A rotation keeps lengths, to a few roundings.
    torch.testing.assert_close(turned.norm(dim=-1), heads.norm(dim=-1), rtol=1e-6, atol=0)


def test_products_depend_on_displacements_alone():
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 1, 1, 1, 8, generator=generator)
    scores = []
    for shift in (0.0, 0.2):
        coordinates = torch.tensor([[[0.1, 0.3], [0.4, 0.35]]]) + shift
        turn = rotary(**ROTARY, use_class_token=False, pooling="mean")(coordinates, 48, 48, torch.float32)
        turned = [turn(one.expand(1, 2, 1, 8)) for one in (query, key)]
        scores.append((turned[0][0, 0, 0] @ turned[1][0, 1, 0]).item())
    assert scores[1] == pytest.approx(scores[0], abs=1e-5)  # angles of the order of 10 in float32


def test_angles_are_float32_whatever_the_models_dtype():
    """In bfloat16 a coordinate near 1 has steps of almost a pixel at 224."""
    coordinates = torch.tensor([[[0.9, 0.9], [0.9 + 1 / 2000, 0.9]]])
    model = tiny_model(**ROTARY).to(torch.bfloat16)
    turn: Rotation = model.spot_vit.attention_positions(coordinates, 48, 48, torch.bfloat16)["rotation"]
    exact = tiny_model(**ROTARY).spot_vit.attention_positions(coordinates, 48, 48, torch.float32)["rotation"]
    assert turn.cos.dtype == torch.bfloat16
    torch.testing.assert_close(turn.cos.float(), exact.cos, rtol=0, atol=2**-8)  # rounded once, numbers up to 1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        angles = model.spot_vit.attention_positions(coordinates, 48, 48, torch.float32)["rotation"]
    assert torch.equal(angles.sin, exact.sin)


def test_relative_positions_between_cells_are_their_means():
    config = tiny_config(**POSITION_KINDS["relative"], use_class_token=False, pooling="mean")
    bias = SpotViTRelativePositionBias(config)
    with torch.no_grad():
        bias.weight.copy_(torch.randn(bias.weight.shape, generator=torch.Generator().manual_seed(0)))
    table = bias.weight.detach().view(11, 11, 4)

    def between(first, second):
        coordinates = torch.tensor([[first, second]]) / 6  # in cells
        return bias(bias.displacements(config, coordinates, 48, 48))[0, :, 0, 1]

    with torch.no_grad():
        torch.testing.assert_close(between((3.5, 4.5), (1.5, 0.5)), table[5 + 4, 5 + 2])  # (x, y); the table: rows, columns
        halfway = between((3.5, 4.5), (1.5, 1.0))
        torch.testing.assert_close(halfway, (table[5 + 4, 5 + 2] + table[5 + 3, 5 + 2]) / 2)
        # From edge to edge is farther than between cells' centres: the outermost entry.
        torch.testing.assert_close(between((6.0, 6.0), (0.0, 0.0)), table[10, 10])


@in_attention
@pytest.mark.parametrize("image", ["constant", "random"])
def test_gradients_by_coordinates_are_finite_differences(kind, image):
    """Of a constant image the windows say nothing: what moves the output is what attention knows of positions. In float64."""
    model = tiny_model(model_class=SpotViTModel, pooling="mean", **POSITION_KINDS[kind]).double()
    images = torch.full((1, 3, 48, 48), 0.7).double() if image == "constant" else random_images(1, dtype=torch.float64)
    coordinates = (0.1 + 0.8 * random_coordinates(1, 5, dtype=torch.float64)).requires_grad_()
    weights = torch.randn(1, 32, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def value(at):
        return (model(images, at).pooler_output * weights).sum()

    (gradient,) = torch.autograd.grad(value(coordinates), coordinates)
    assert (gradient.abs() > 1e-4).all()
    step = 1e-6
    for i in range(5):
        for axis in range(2):
            there = torch.zeros_like(coordinates)
            there[0, i, axis] = step
            with torch.no_grad():
                found = (value(coordinates + there) - value(coordinates - there)) / (2 * step)
            # Central differences are exact to step² and to float64's 1e-16 / step; windows and relative positions are linear
            # in between, so that no kink lies within a step of these positions.
            assert gradient[0, i, axis].item() == pytest.approx(found.item(), rel=1e-5, abs=1e-7)


def test_positions_of_no_kind_leave_a_bag_of_windows():
    model = tiny_model(model_class=SpotViTModel, pooling="mean", **POSITION_KINDS["none"])
    images = torch.full((1, 3, 48, 48), 0.7)
    first, second = (model(images, random_coordinates(1, seed=seed)).pooler_output for seed in (1, 2))
    torch.testing.assert_close(first, second, rtol=0, atol=2e-6)  # windows are interpolated to a few roundings


def test_relative_positions_at_another_size_keep_their_table():
    """Also beside a position table, which a resize leaves at its size then, as both tables share it."""
    model = tiny_model(use_relative_position_bias=True)
    weights = {name: one.clone() for name, one in model.state_dict().items()}
    for size in ((72, 64), (24, 40), (51, 61)):
        model.resize_position_embeddings(*size)
        assert model(random_images(2, *size)).logits.isfinite().all()
    assert all(torch.equal(one, weights[name]) for name, one in model.state_dict().items())


def test_windows_cut_before_are_refused_where_angles_hang_on_the_images_size():
    assert tiny_config(**ROTARY).has_plain_windows and not tiny_config(**BOTH).has_plain_windows


@pytest.mark.parametrize("model_class", [SpotViTForPreTraining, SpotViTForSemanticSegmentation, SpotViTBackbone])
def test_a_pooling_head_that_nobody_reads_is_left_out(model_class, tmp_path):
    """Neither parameters without gradient, nor weights that are missing where the encoder is loaded."""
    sizes = {"decoder_hidden_size": 16, "decoder_num_attention_heads": 2, "decoder_num_hidden_layers": 1}
    model = tiny_model(model_class=model_class, pooling="attention", use_class_token=False, **sizes)
    assert not any("pooler" in name for name, _ in model.named_parameters())
    model.save_pretrained(tmp_path)
    encoder, report = SpotViTModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and encoder.config.pooling == "mean"


@in_attention
def test_merging_is_refused_where_attention_needs_positions(kind):
    model = tiny_model(**POSITION_KINDS[kind])
    with pytest.raises(ValueError, match="`merge_tokens` is not for models with rotary or relative positions"):
        model(random_images(), random_coordinates(), merge_tokens=0.5)


def test_a_bias_of_scores_needs_an_attention_that_takes_one():
    model = tiny_model(**POSITION_KINDS["relative"])
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(ValueError, match="`use_relative_position_bias` needs `attn_implementation` eager or sdpa"):
        model(random_images(), random_coordinates())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rope_theta": 100.0, "hidden_size": 24}, "a head's width must be a multiple of 4.*hidden_size=24"),
        ({"rope_theta": 0.0}, "`rope_theta` must be above 0; got 0.0"),
        (
            {"rope_theta": 100.0, "rope_coordinates": "pixels"},
            "`rope_coordinates` must be one of centered, cells; got 'pixels'",
        ),
        (
            {"rope_theta": 100.0, "rope_coordinates": "cells", "rope_grid_size": [0, 4]},
            r"`rope_grid_size` must be \[rows, columns\].*got \[0, 4\]",
        ),
        ({"rope_theta": 100.0, "rope_grid_size": [4, 4]}, "`rope_grid_size` and `rope_grid_offset` are for"),
        ({"rope_grid_size": [4, 4]}, "`rope_grid_size` and `rope_grid_offset` are for `rope_theta`"),
        ({"rope_theta": 100.0, "merge_tokens": 0.5}, "`merge_tokens` is not for models with rotary or relative positions"),
        ({"use_class_token": False}, "`pooling` 'cls' needs a class token; got use_class_token=False"),
        ({"pooling": "attention", "norm_after_pooling": True}, "`norm_after_pooling` is not for `pooling='attention'`"),
    ],
)
def test_a_configuration_that_no_model_can_have(options, message):
    with pytest.raises(Exception, match=message):
        tiny_config(**options)
