"""The priors: where tokens go, and that a draw is a matter of the seed and the image alone."""

import pytest
import torch
from scipy.stats import kstest

from spot_hf.placement import (
    PLACEMENTS,
    center,
    edge_saliency,
    gaussian,
    generator_for,
    grid,
    grid_subset,
    isotropic,
    place,
    salient,
    uniform_perturb,
)


IMAGE = torch.randn(3, 48, 64, generator=torch.Generator().manual_seed(0))
SALIENCY = torch.rand(6, 8, generator=torch.Generator().manual_seed(1))


def put(name, num_tokens, seed=0, image_id="a"):
    return place(name, None if name == "grid" else num_tokens, IMAGE, 8, generator_for(seed, image_id), SALIENCY)


@pytest.mark.parametrize("num_tokens", [1, 2, 25, 48])
@pytest.mark.parametrize("name", PLACEMENTS)
def test_every_placement_gives_its_tokens_inside_the_image(name, num_tokens):
    coordinates = put(name, num_tokens)
    assert coordinates.shape == (48 if name == "grid" else num_tokens, 2)
    assert coordinates.dtype == torch.float32
    assert coordinates.min() >= 0 and coordinates.max() <= 1


@pytest.mark.parametrize("name", [name for name, spec in PLACEMENTS.items() if spec.random])
def test_random_placements_depend_on_seed_and_image_alone(name):
    first = put(name, 9)
    torch.rand(5)  # global state is not used
    assert torch.equal(put(name, 9), first)
    assert not torch.equal(put(name, 9, seed=1), first)
    assert not torch.equal(put(name, 9, image_id="b"), first)


@pytest.mark.parametrize("name", [name for name, spec in PLACEMENTS.items() if not spec.random])
def test_the_others_never_change(name):
    assert torch.equal(put(name, 9), put(name, 9, seed=1, image_id="b"))


def test_the_grid_is_the_cells_of_a_strided_convolution():
    image = torch.stack(torch.meshgrid(torch.arange(40.0), torch.arange(51.0), indexing="ij"))[None]  # (y, x) of each pixel
    centres = torch.nn.functional.avg_pool2d(image, 8)[0].flatten(1).T.flip(-1) + 0.5  # (x, y) in pixels
    assert torch.allclose(grid(40, 51, 8) * torch.tensor([51, 40]), centres)


@pytest.mark.parametrize("num_tokens", [1, 2, 3, 5, 7, 25, 26, 49, 97, 100, 196, 1000])
@pytest.mark.parametrize("aspect_ratio", [0.25, 1.0, 16 / 9])
def test_isotropic_takes_any_count_and_covers_evenly(num_tokens, aspect_ratio):
    coordinates = isotropic(num_tokens, aspect_ratio)
    assert coordinates.shape == (num_tokens, 2) and len(coordinates.unique(dim=0)) == num_tokens
    rows = coordinates[:, 1].unique(return_counts=True)[1]
    assert rows.max() - rows.min() <= 1
    # Every cell has the same area: the mean position is the centre.
    torch.testing.assert_close(coordinates.mean(0), torch.tensor([0.5, 0.5]), rtol=0, atol=0.5 / num_tokens + 1e-5)


@pytest.mark.parametrize("side", [1, 5, 7, 10, 14])
def test_isotropic_squares_are_lattices(side):
    assert torch.equal(isotropic(side**2), grid(side, side, 1))


def test_center_is_contracted_symmetrically():
    even, contracted = isotropic(49) - 0.5, center(49) - 0.5
    assert (contracted.abs() <= even.abs()).all() and contracted.abs().sum() < even.abs().sum()
    torch.testing.assert_close(contracted.flip(0), -contracted, rtol=0, atol=1e-6)  # float32
    # Of 4 × 4, offsets 0.375 and 0.125: 0.375 · (1 - exp(-3.515625)) = 0.363852, 0.125 · (1 - exp(-0.390625)) = 0.040421.
    assert center(16)[:, 0].unique().tolist() == pytest.approx([0.136148, 0.459579, 0.540421, 0.863852], abs=1e-6)


@pytest.mark.parametrize(("name", "distribution"), [("uniform", ("uniform", ())), ("sobol", ("uniform", ()))])
def test_uniform_distributions(name, distribution):
    coordinates = put(name, 4096)
    for axis in (0, 1):
        # A false alarm once in a thousand seeds, and the seed is fixed.
        assert kstest(coordinates[:, axis].numpy(), distribution[0], args=distribution[1]).pvalue > 1e-3


def test_gaussian_has_the_papers_spread():
    coordinates = gaussian(20000, generator_for(0, 0))
    inside = coordinates[(coordinates > 0).all(-1) & (coordinates < 1).all(-1)]
    assert kstest(gaussian(20000, generator_for(0, 0))[:, 0].numpy(), "norm", args=(0.5, 1 / torch.pi)).statistic < 0.07
    assert len(inside) < len(coordinates)  # what falls outside is clamped to the border


def test_sobol_is_more_even_than_uniform():
    def discrepancy(coordinates):
        cells = (coordinates * 8).long().clamp(max=7)
        return torch.bincount(cells[:, 0] * 8 + cells[:, 1], minlength=64).float().var()

    assert discrepancy(put("sobol", 256)) < 0.3 * discrepancy(put("uniform", 256))


def test_grid_subset_draws_different_cells():
    cells = grid(48, 64, 8)
    chosen = put("grid_subset", 20)
    assert len(chosen.unique(dim=0)) == 20
    assert all((cells == one).all(-1).any() for one in chosen)
    counts = sum(
        (grid_subset(12, generator_for(0, i), torch.arange(48.0)[:, None]).long().flatten() == 7).sum() for i in range(800)
    )
    assert 150 < counts < 250  # each cell in a quarter of 800 draws; five standard deviations are 61


def test_uniform_perturb_stays_in_its_cell():
    distance = (uniform_perturb(25, generator_for(0, 0)) - isotropic(25)).abs()
    assert (distance <= 0.1).all() and (distance > 0).all() and distance.max() > 0.09  # cells of 5 × 5 are 0.2 wide
    distance = (uniform_perturb(5, generator_for(0, 0)) - isotropic(5)).abs()  # rows of two and three, each as high as it has
    cells = torch.tensor([[0.5, 0.4]] * 2 + [[1 / 3, 0.6]] * 3)
    assert (distance <= cells / 2).all() and (distance > 0).all()


def test_salient_follows_the_map():
    saliency = torch.zeros(4, 4)
    saliency[1, 2] = 3.0
    saliency[3, 0] = 1.0
    drawn = salient(4000, generator_for(0, 0), saliency)
    cells = (drawn * 4).long()
    right = ((cells[:, 0] == 2) & (cells[:, 1] == 1)).float().mean()
    assert 0.72 < right < 0.78  # three quarters; four standard deviations are 0.027
    assert set(map(tuple, cells.tolist())) == {(2, 1), (0, 3)}


def test_inverse_salient_avoids_the_map():
    saliency = torch.zeros(4, 4)
    saliency[1, 2] = 3.0
    cells = (PLACEMENTS["inverse_salient"].function(500, generator_for(0, 0), saliency) * 4).long()
    assert not ((cells[:, 0] == 2) & (cells[:, 1] == 1)).any()


def test_edges_draw_tokens():
    image = torch.zeros(3, 48, 48)
    image[:, :, 24:] = 1.0
    coordinates = place("edge", 40, image, 8, generator_for(0, 0))
    assert ((coordinates[:, 0] - 0.5).abs() <= 1.5 / 48).all()  # the step is seen from one pixel away on both sides
    assert edge_saliency(torch.ones(3, 8, 8)).min() == 1  # a flat image: anywhere
