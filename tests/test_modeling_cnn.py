"""SpotCNN: windows laid out as a mosaic, against the networks' own classes, loops and finite differences."""

import pytest
import torch
from random_weights import assert_every_parameter_matters
from tiny import random_coordinates, random_images
from tiny_networks import LABELS, NETWORKS, tiny_network
from transformers import AutoModel, AutoModelForImageClassification, ResNetConfig

from spot_hf import SpotCNNConfig, SpotCNNForImageClassification, SpotCNNModel, wrap_network
from spot_hf.modeling_spot_cnn import lay_mosaic
from spot_hf.placement import center, grid, isotropic
from spot_hf.windows import sample_windows


# The same operations on the same pixels, of logits of order 10: they differ by nothing, or by another order of summing up.
SAME = 1e-5


@pytest.fixture(scope="module")
def model() -> SpotCNNForImageClassification:
    return wrap_network(tiny_network(), image_size=96)


@pytest.fixture(scope="module", params=NETWORKS)
def family(request) -> str:
    return request.param


# ----------------------------------------------------------------------------------------------------------- full grid


@torch.no_grad()
def test_all_windows_on_the_grid_give_the_networks_logits(family):
    network = tiny_network(family)
    model = wrap_network(network)
    for height, width in ((96, 96), (64, 160), (32, 32)):
        pixel_values = random_images(2, height, width)
        expected = network(pixel_values).logits
        assert expected.std() > 0.1  # or anything would do
        for coordinates in (None, grid(height, width, 32)[None], grid(height, width, 32).expand(2, -1, -1)):
            assert (model(pixel_values, coordinates=coordinates).logits - expected).abs().max() <= SAME
    assert model.config.id2label == dict(enumerate(LABELS)) and model.config.model_type == "spot_cnn"


@torch.no_grad()
@pytest.mark.parametrize("size", [(75, 101), (33, 127)], ids=str)
def test_without_coordinates_images_of_any_size_give_the_networks_logits(family, size):
    network = tiny_network(family)
    pixel_values = random_images(2, *size)
    model = wrap_network(network)
    assert (model(pixel_values).logits - network(pixel_values).logits).abs().max() <= SAME
    # Windows on the grid see the whole cells alone.
    height, width = (32 * (side // 32) for side in size)
    cells = model(pixel_values, coordinates=grid(*size, 32)[None]).logits
    assert (cells - network(pixel_values[..., :height, :width]).logits).abs().max() <= SAME


@torch.no_grad()
def test_larger_windows_are_several_cells(family):
    network = tiny_network(family)
    model = wrap_network(network, patch_size=64)
    pixel_values = random_images(1, 128, 192)
    same = model(pixel_values, coordinates=grid(128, 192, 64)[None])
    assert (same.logits - network(pixel_values).logits).abs().max() <= SAME
    assert model.base_model(pixel_values, coordinates=isotropic(4)[None]).last_hidden_state.shape[2:] == (4, 4)


def test_every_parameter_matters(model):
    pixel_values = random_images(1, 96, 96)
    assert_every_parameter_matters(model, lambda: model(pixel_values).logits, at_least=10 * SAME)


# -------------------------------------------------------------------------------------------------------------- mosaics


@torch.no_grad()
def test_a_mosaic_is_an_image_of_windows_side_by_side(model):
    """Against a loop over tokens."""
    pixel_values, coordinates = random_images(2, 96, 128), random_coordinates(2, 6)
    scales = 0.5 + random_coordinates(2, 6, seed=2)[..., 0]
    windows = sample_windows(pixel_values, coordinates, 32, scales)
    image = torch.empty(2, 3, 2 * 32, 3 * 32)
    for token in range(6):
        top, left = 32 * (token // 3), 32 * (token % 3)
        image[:, :, top : top + 32, left : left + 32] = windows[:, token]
    assert torch.equal(lay_mosaic(windows, 2, 3), image)
    expected = tiny_network()(image).logits
    for inputs in (
        {"pixel_values": pixel_values, "coordinates": coordinates, "window_scales": scales},
        {"windows": windows, "coordinates": coordinates},
    ):
        assert (model(**inputs).logits - expected).abs().max() <= SAME


@pytest.mark.parametrize("size", [(224, 224), (96, 160), (224, 112), (360, 480)], ids=str)
def test_mosaics_have_the_rows_of_the_placements(size):
    """As many tokens as there are cells make the grid; others the lattice that placements list, where its rows are equal."""
    config, (height, width) = SpotCNNConfig(), size
    num_cells = (height // 32) * (width // 32)
    assert config.mosaic_shape(num_cells, height, width) == (height // 32, width // 32)
    accepted = []
    for count in range(1, 2 * num_cells):
        try:
            rows, columns = config.mosaic_shape(count, height, width)
        except ValueError:
            continue
        accepted.append(count)
        assert rows * columns == count
        if count != num_cells:
            for placement in (isotropic, center):
                lattice = placement(count, width / height).unflatten(0, (rows, columns))
                # To a float's rounding: y is the same along a row, x along a column.
                assert (lattice[:, :1, 1] - lattice[..., 1]).abs().max() < 1e-6
                assert (lattice[:1, :, 0] - lattice[..., 0]).abs().max() < 1e-6
    if height == width:
        assert accepted == sorted({n * m for n in range(1, 12) for m in (n, n + 1) if n * m < 2 * num_cells} | {num_cells})


def test_a_number_that_makes_no_mosaic_is_refused_with_those_that_do(model):
    with pytest.raises(ValueError) as error:
        model(random_images(1, 224, 224), coordinates=random_coordinates(1, 23))
    message = str(error.value)
    assert message.startswith("`num_tokens` must make a mosaic of equal rows") and message.endswith("got 23")
    assert " 1, 2, 4, 6, 9, 12, 16, 20, 25, 30, 36, 42, 49;" in message and "\n" not in message
    with pytest.raises(ValueError, match=r" 42, 49, 65280, 65536; got 65400$"):  # at once, and in one line
        model.config.mosaic_shape(65400, 224, 224)


@torch.no_grad()
def test_an_images_result_is_its_own(model):
    """Whatever its batch mates, their number of tokens, and where the padding is."""
    pixel_values, coordinates = random_images(4, 96, 128), random_coordinates(4, 6)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 1, 1, 0, 1, 1], [1, 1, 1, 1, 0, 0], [0, 1, 0, 0, 0, 0]])
    alone = [
        model(pixel_values[i : i + 1], coordinates=coordinates[i : i + 1, mask[i].bool()]).logits[0] for i in range(len(mask))
    ]
    together = model(pixel_values, coordinates=coordinates, coordinates_mask=mask)
    assert (together.logits - torch.stack(alone)).abs().max() <= SAME
    features = model.base_model(pixel_values, coordinates=coordinates, coordinates_mask=mask)
    assert features.last_hidden_state is None and features.pooler_output.shape == (4, 24)
    equal = mask[[1, 2]]  # as many tokens, at other places
    outputs = model.base_model(pixel_values[1:3], coordinates=coordinates[1:3], coordinates_mask=equal)
    assert outputs.last_hidden_state.shape == (2, 24, 2, 2)
    assert torch.equal(outputs.pooler_output, features.pooler_output[1:3])


def test_positions_and_scales_are_differentiable():
    """Against central differences, in float64; windows are linear in a position between two pixels' centres."""
    model = wrap_network(tiny_network("convnext")).double()  # smooth, unlike ReLU
    pixel_values = random_images(1, 96, 96, dtype=torch.float64)
    inputs = [
        (0.2 + 0.6 * random_coordinates(1, 4, dtype=torch.float64)).requires_grad_(),
        (0.8 + 0.1 * random_coordinates(1, 4, dtype=torch.float64)[..., 0]).requires_grad_(),
    ]

    def loss() -> torch.Tensor:
        windows = sample_windows(pixel_values, inputs[0], 32, inputs[1])
        return model(windows=windows, coordinates=inputs[0]).logits[0, 1]

    gradients = torch.autograd.grad(loss(), inputs)
    step = 1e-7
    for values, gradient in zip(inputs, gradients, strict=True):
        flat, slopes = values.detach().view(-1), gradient.view(-1)
        assert slopes.abs().min() > 1e-3
        for i in range(len(flat)):
            losses = []
            for sign in (1, -1):
                flat[i] += sign * step
                losses.append(loss().item())
                flat[i] -= sign * step
            assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(slopes[i].item(), rel=1e-4)


# ------------------------------------------------------------------------------------------- transformers' conventions


@torch.no_grad()
def test_saved_and_loaded(family, tmp_path):
    model = wrap_network(tiny_network(family), image_size=[64, 96], num_tokens=4)
    model.save_pretrained(tmp_path)
    pixel_values = random_images(2, 64, 96)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert type(loaded) is SpotCNNForImageClassification and not loaded.training
    configs = [one.config.to_dict() for one in (loaded, model)]
    for config in configs:
        config.pop("_name_or_path", None)
        config["network_config"].pop("dtype")  # that of the weights, known when they are loaded
    assert configs[0] == configs[1] and configs[0]["network_config"]["model_type"] == family
    headless, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(headless) is SpotCNNModel and report["missing_keys"] == set()
    coordinates = random_coordinates(2, 6)
    assert torch.equal(loaded(pixel_values, coordinates).logits, model(pixel_values, coordinates).logits)
    expected = model.base_model(pixel_values, coordinates).pooler_output
    assert torch.equal(headless(pixel_values, coordinates).pooler_output, expected)
    names = {name.removeprefix("spot_cnn.network.") for name in model.state_dict() if not name.startswith("classifier.")}
    assert names == set(tiny_network(family).base_model.state_dict())  # the network's own


def test_the_default_is_a_resnet_50():
    config = SpotCNNConfig()
    assert isinstance(config.network_config, ResNetConfig) and config.network_config.hidden_sizes[-1] == config.hidden_size
    with torch.device("meta"):
        model = SpotCNNForImageClassification(SpotCNNConfig(num_labels=1000))
    assert sum(one.numel() for one in model.parameters()) == 25_557_032


@torch.no_grad()
def test_half_precision_keeps_positions(model):
    half = wrap_network(tiny_network()).to(torch.bfloat16)
    pixel_values, coordinates = random_images(1, 96, 96), random_coordinates(1, 4)
    logits = half(pixel_values.bfloat16(), coordinates).logits
    assert logits.dtype == torch.bfloat16
    # 8 bits, through nine layers.
    expected = model(pixel_values, coordinates).logits
    assert (logits.float() - expected).abs().max() <= 0.1 * expected.abs().max()


@torch.no_grad()
def test_feature_maps_loss_and_tuples(model):
    pixel_values, coordinates = random_images(2, 96, 96), random_coordinates(2, 4)
    outputs = model(pixel_values, coordinates, labels=torch.tensor([1, 2]), output_hidden_states=True)
    assert len(outputs.hidden_states) == 5 and outputs.hidden_states[-1].shape == (2, 24, 2, 2)
    expected = torch.nn.functional.cross_entropy(outputs.logits, torch.tensor([1, 2]))
    assert outputs.loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert torch.equal(model(pixel_values, coordinates, return_dict=False)[0], outputs.logits)


@torch.no_grad()
def test_it_places_tokens_itself_and_looks_until_it_is_sure(model):
    pixel_values = random_images(3, 96, 96)
    placed = model.place(pixel_values, 4)
    assert torch.equal(placed["coordinates"], isotropic(4).expand(3, -1, -1)) and float(placed["window_scales"][0, 0]) == 1.5
    assert torch.equal(model(pixel_values, num_tokens=4).logits, model(pixel_values, **placed).logits)
    outputs = model(pixel_values, num_tokens=[4, 9], confidence=1.1)
    assert outputs.num_tokens.tolist() == [13] * 3 and torch.equal(outputs.logits, model(pixel_values, num_tokens=9).logits)


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ({}, "`pixel_values` is required"),
        ({"pixel_values": random_images(1, 31, 96)}, "least patch_size=32"),
        ({"pixel_values": random_images(1, 96, 96)[:, :1]}, "`pixel_values` must have shape (batch_size, 3"),
        ({"pixel_values": random_images(1, 96, 96), "coordinates": random_coordinates(2, 4)}, "batch_size 1 or 1"),
        ({"pixel_values": random_images(1, 96, 96), "coordinates": 96 * random_coordinates(1, 4)}, "`coordinates`"),
        ({"pixel_values": random_images(1, 96, 96), "merge_tokens": 0.5}, "`merge_tokens` must be 0"),
        ({"windows": torch.zeros(1, 4, 3, 16, 16), "coordinates": random_coordinates(1, 4)}, "num_tokens, 3, 32, 32); got"),
        (
            {
                "pixel_values": random_images(1, 96, 96),
                "coordinates": random_coordinates(1, 4),
                "coordinates_mask": torch.tensor([[1, 1, 1, 0]]),
            },
            "equal rows for a CNN",
        ),
        ({"pixel_values": random_images(1, 96, 96), "num_tokens": 4, "placement": "learned"}, None),
    ],
)
def test_bad_input_is_named(model, inputs, expected):
    if expected is None:
        with pytest.raises(ValueError, match="needs a placer"):
            model.place(inputs["pixel_values"], inputs["num_tokens"], inputs["placement"])
        return
    with pytest.raises(ValueError) as error:
        model(**inputs)
    assert expected in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"patch_size": 48}, "`patch_size` must be a multiple of the network's stride, 32; got 48"),
        ({"patch_size": 16}, "`patch_size` must be a multiple"),
        ({"hidden_size": 0}, "`hidden_size` must be at least 1"),
        ({"placement": "learned"}, "`placement` must be one of"),
        ({"num_tokens": [9, 4]}, "`num_tokens` must be one number, or several, ascending"),
    ],
)
def test_a_config_that_no_model_can_have_is_refused(changes, expected):
    with pytest.raises(Exception) as error:
        SpotCNNConfig(**changes)
    assert expected in str(error.value.__cause__ or error.value)
