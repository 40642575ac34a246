"""Windows and position embeddings: what a token reads, and how it moves."""

import pytest
import torch
from test_image_processing import NoFloat64
from tiny import random_coordinates, random_images, tiny_config
from torch._subclasses.fake_tensor import FakeTensorMode

from spot_hf.placement import grid
from spot_hf.positions import SpotViTPositionEmbeddings, evaluate_kernel_weights, gaussian_kernel, solve_kernel_weights
from spot_hf.windows import sample_windows


def cut_patches(images: torch.Tensor, patch_size: int) -> torch.Tensor:
    """`(batch_size, cells, channels, patch_size, patch_size)`: the pixels of each whole cell, row by row."""
    patches = images.unfold(2, patch_size, patch_size).unfold(3, patch_size, patch_size)
    return patches.permute(0, 2, 3, 1, 4, 5).flatten(1, 2)


@pytest.mark.parametrize("patch_size", [4, 14, 16])
@pytest.mark.parametrize("size", [(224, 224), (384, 384), (518, 518), (37, 91), (600, 200), (225, 223), (1031, 777)])
def test_cell_centres_read_the_patch_exactly(size, patch_size):
    images = random_images(2, *size)
    windows = sample_windows(images, grid(*size, patch_size)[None], patch_size)
    assert torch.equal(windows, cut_patches(images, patch_size))  # to the last bit: no tolerance


def test_unit_scales_are_the_default():
    images, coordinates = random_images(), random_coordinates()
    scaled = sample_windows(images, coordinates, 8, torch.ones(2, 7))
    assert torch.equal(scaled, sample_windows(images, coordinates, 8))


def test_half_a_pixel_is_the_mean_of_two():
    image = random_images(1, 16, 16)
    centre = torch.tensor([[[8.5 / 16, 8 / 16]]])  # a 4 × 4 window, half a pixel to the right of a cell
    window = sample_windows(image, centre, 4)[0, 0]
    expected = (image[0, :, 6:10, 6:10] + image[0, :, 6:10, 7:11]) / 2
    torch.testing.assert_close(window, expected, rtol=0, atol=1e-5)  # rounding of the position: 1e-6 pixels


def test_border_pixels_are_replicated_outside():
    image = random_images(1, 16, 16)
    window = sample_windows(image, torch.tensor([[[-3.0, 0.5]]]), 4)[0, 0]
    expected = image[0, :, 6:10, :1].expand(-1, -1, 4)
    assert torch.equal(window, expected)


@pytest.mark.parametrize("shift", [(1, 0), (0, 1), (3, 2)])
def test_shifting_image_and_coordinates_together_changes_nothing(shift):
    right, down = shift
    image = random_images(1, 64, 80, dtype=torch.float64)
    pixels = 24 + 16 * random_coordinates(1, 20, dtype=torch.float64)  # far from the border, before and after
    size = torch.tensor([80.0, 64.0], dtype=torch.float64)
    before = sample_windows(image, pixels / size, 8)
    after = sample_windows(image.roll((down, right), dims=(2, 3)), (pixels + torch.tensor([right, down])) / size, 8)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-10)  # float64: the rounding of the positions alone


@pytest.mark.parametrize("size", [(32, 32), (29, 45)])
def test_gradients_agree_with_finite_differences(size):
    image = random_images(1, *size, dtype=torch.float64)
    # Of a bilinear sample, the gradient jumps where a position crosses a pixel; scales, where they cross a power of two.
    # These positions and scales stay away from both: every sample's fraction is checked below.
    coordinates = torch.tensor([[[10.13, 12.71], [16.37, 9.81]]], dtype=torch.float64) / torch.tensor([size[1], size[0]])
    scales = torch.tensor([[1.31, 0.77]], dtype=torch.float64)
    offsets = torch.arange(4) - 1.5
    for level in (0, 1):
        lattice = (coordinates * torch.tensor([size[1], size[0]]) - 0.5)[..., None] + offsets * scales[..., None, None]
        fractions = ((lattice + 0.5) / 2**level - 0.5).remainder(1)
        assert ((fractions > 1e-3) & (fractions < 1 - 1e-3)).all()
    coordinates.requires_grad_()
    scales.requires_grad_()
    assert torch.autograd.gradcheck(lambda c: sample_windows(image, c, 4), (coordinates,), eps=1e-6, atol=1e-6)
    assert torch.autograd.gradcheck(lambda c, s: sample_windows(image, c, 4, s), (coordinates, scales), eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("size", [(64, 96), (37, 91)])
def test_a_window_is_the_same_whatever_else_is_read(size):
    """To the last bit: of levels of the pyramid, those are made that any window needs. Gradients are sums over a window's
    samples, in another order: a millionth of the largest."""
    images, coordinates = random_images(2, *size), random_coordinates(2, 8)
    scales = torch.tensor([[0.5, 1.0, 1.3, 2.0, 2.7, 4.0, 6.5, 40.0]]).expand(2, -1)

    def windows_and_gradients(tokens):
        inputs = [one[:, tokens].clone().requires_grad_() for one in (coordinates, scales)]
        windows = sample_windows(images, inputs[0], 8, inputs[1])
        return windows, *torch.autograd.grad((windows * windows).sum(), inputs)

    together = windows_and_gradients(slice(None))
    assert torch.equal(together[0], sample_windows(images, coordinates, 8, scales))  # without gradients, fewer levels
    for token in range(8):
        alone = windows_and_gradients(slice(token, token + 1))
        assert torch.equal(alone[0], together[0][:, token : token + 1])
        assert torch.equal(sample_windows(images, coordinates[:, [token]], 8, scales[:, [token]]), alone[0])
        for ours, theirs in zip(alone[1:], together[1:], strict=True):
            torch.testing.assert_close(ours[:, 0], theirs[:, token], rtol=0, atol=1e-6 * theirs.abs().max().item())


def test_doubled_windows_are_windows_of_the_halved_image():
    image = random_images(1, 64, 64)
    halved = torch.nn.functional.avg_pool2d(image, 2)
    coordinates = 0.3 + 0.4 * random_coordinates(1, 9)
    doubled = sample_windows(image, coordinates, 8, torch.full((1, 9), 2.0))
    # The same positions in both: rounding of positions in float32, times differences between neighbouring pixels.
    torch.testing.assert_close(doubled, sample_windows(halved, coordinates, 8), rtol=0, atol=1e-4)


def test_large_windows_are_anti_aliased():
    checkerboard = (torch.arange(64)[:, None] + torch.arange(64)).remainder(2).float().expand(1, 3, 64, 64)
    window = sample_windows(checkerboard, torch.tensor([[[0.5, 0.5]]]), 8, torch.tensor([[4.0]]))
    assert (window - 0.5).abs().max() < 1e-6  # the mean of black and white; without a pyramid, one of the two
    assert sample_windows(checkerboard, torch.tensor([[[0.5, 0.5]]]), 8).std() > 0.4


def test_a_window_as_large_as_the_image_sees_its_mean():
    image = random_images(1, 64, 64)
    window = sample_windows(image, torch.tensor([[[0.5, 0.5]]]), 8, torch.tensor([[8.0]]))[0, 0]
    expected = torch.nn.functional.avg_pool2d(image[0], 8)
    torch.testing.assert_close(window, expected, rtol=0, atol=1e-5)  # sums of 64 float32


@pytest.mark.parametrize(("rows", "columns"), [(14, 14), (3, 5), (1, 4), (37, 37)])
@pytest.mark.parametrize("sigma", [0.6, 1.0])
def test_position_embeddings_reproduce_the_table(rows, columns, sigma):
    table = torch.randn(rows, columns, 6, generator=torch.Generator().manual_seed(0))
    config = tiny_config(hidden_size=6, num_attention_heads=1, position_grid_size=[rows, columns], position_kernel_sigma=sigma)
    module = SpotViTPositionEmbeddings(config)
    module.weight.data = solve_kernel_weights(table, sigma)
    embeddings = module(grid(rows, columns, 1)[None], rows, columns)[0]
    # float32 weights; a wider kernel is worse conditioned (about 1e3 at 1.0, 10 at 0.6).
    torch.testing.assert_close(embeddings, table.flatten(0, 1), rtol=0, atol=1e-5 if sigma == 0.6 else 2e-3)


@pytest.mark.parametrize("sigma", [0.6, 1.0])
def test_kernel_weights_and_table_are_inverses(sigma):
    table = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = solve_kernel_weights(table, sigma)
    torch.testing.assert_close(evaluate_kernel_weights(weights, sigma), table, rtol=0, atol=1e-12)  # float64


def test_kernel_weights_on_a_device_without_float64():
    with FakeTensorMode(), NoFloat64():
        table = torch.rand(3, 5, 6, device="mps")
        for values in (solve_kernel_weights(table, 0.6), evaluate_kernel_weights(table, 0.6)):
            assert (values.device.type, values.dtype, values.shape) == ("mps", torch.float32, table.shape)


def test_a_grid_that_covers_a_part_of_the_image():
    """A table of 3 × 5 cells of 8 pixels in an image of 31 × 47: at their centres, only with the extent, the table."""
    table = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(0))
    config = {"hidden_size": 6, "num_attention_heads": 1, "position_grid_size": [3, 5]}
    for extent, equal in (([24 / 31, 40 / 47], True), (None, False)):
        module = SpotViTPositionEmbeddings(tiny_config(**config, position_grid_extent=extent))
        module.weight.data = solve_kernel_weights(table, 0.6)
        embeddings = module(grid(31, 47, 8)[None], 31, 47)[0]
        assert torch.allclose(embeddings, table.flatten(0, 1), rtol=0, atol=1e-5) == equal  # float32


def test_position_embeddings_follow_the_formula():
    generator = torch.Generator().manual_seed(0)
    module = SpotViTPositionEmbeddings(tiny_config(hidden_size=4, num_attention_heads=1, position_grid_size=[3, 5]))
    module.weight.data = torch.randn(3, 5, 4, generator=generator)
    x, y = 0.37, 0.81
    expected = sum(
        torch.exp(torch.tensor(-((x * 5 - j - 0.5) ** 2 + (y * 3 - i - 0.5) ** 2) / (2 * 0.6**2))) * module.weight[i, j]
        for i in range(3)
        for j in range(5)
    )
    torch.testing.assert_close(module(torch.tensor([[[x, y]]]), 48, 48)[0, 0], expected, rtol=1e-5, atol=1e-6)  # float32


def test_position_gradients_agree_with_finite_differences():
    module = SpotViTPositionEmbeddings(tiny_config(position_grid_size=[3, 5])).double()
    torch.nn.init.normal_(module.weight)
    coordinates = random_coordinates(1, 4, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda c: module(c, 48, 48), (coordinates,), eps=1e-6, atol=1e-6)


def test_kernel_is_one_at_a_centre_and_falls_with_distance():
    kernel = gaussian_kernel(torch.tensor([0.125, 0.375]), 4, 0.6, size=48)
    assert kernel[0, 0] == 1 and kernel[1, 1] == 1
    assert kernel[0, 1] == pytest.approx(torch.exp(torch.tensor(-1 / (2 * 0.36))).item(), rel=1e-6)
    assert (kernel[0].diff() < 0).all()
