"""Placements while training: the same priors as everywhere else, a whole batch at once, each image by its own draw."""

import math

import pytest
import torch
from scipy.stats import kstest, norm
from torch.utils._python_dispatch import TorchDispatchMode

from spot_hf.placement import PLACEMENTS, center, edge_saliency, grid, isotropic, isotropic_cells
from spot_hf.training import placements as placements_module
from spot_hf.training.draws import hash_integers, hashed_seed, normals, uniforms
from spot_hf.training.placements import TrainingPlacements, token_buckets


RANDOM = ["uniform", "gaussian", "sobol", "uniform_perturb", "gaussian_perturb", "grid_subset", "edge"]
PIXELS = torch.randn(1, 3, 48, 32, generator=torch.Generator().manual_seed(0))


def placements(**changes) -> TrainingPlacements:
    return TrainingPlacements(**{"num_tokens": [9], "height": 48, "width": 32, "patch_size": 8, **changes})


def place(made: TrainingPlacements, draws: torch.Tensor, num_tokens: int = 9, **own) -> torch.Tensor:
    return made(draws, num_tokens, PIXELS.expand(len(draws), -1, -1, -1), **own)["coordinates"]


def test_hash_is_splitmix64():
    """Against its definition (Steele, Lea and Flood 2014) in Python's integers, which do not overflow."""

    def reference(x: int) -> int:
        x = (x + 0x9E3779B97F4A7C15) % 2**64
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        return x ^ (x >> 31)

    values = [0, 1, 2, 12345, 2**62, 2**63 - 1]
    assert [int(v) % 2**64 for v in hash_integers(torch.tensor(values))] == [reference(v) for v in values]


def test_uniforms_are_uniform_and_streams_are_independent():
    """Kolmogorov-Smirnov at 1e-4, of fixed numbers: fails not by chance, but when the numbers change for the worse.
    A correlation of 40,000 independent pairs is below 5 / sqrt(40,000) = 0.025."""
    draws = torch.arange(2000)
    first, second = uniforms(3, draws, 0, 20), uniforms(3, draws, 1, 20)
    assert first.min() >= 0 and first.max() < 1
    for numbers in (first.flatten(), first[:, 0], first[0], second.flatten()):
        assert kstest(numbers.numpy(), "uniform").pvalue > 1e-4
    pairs = {
        "streams": (first, second),
        "seeds": (first, uniforms(4, draws, 0, 20)),
        "draws": (first[:-1], first[1:]),
        "numbers of a draw": (first[:, :-1], first[:, 1:]),
    }
    for name, (a, b) in pairs.items():
        assert abs(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]) < 0.025, name


def test_seed_of_a_library_depends_on_all_that_it_is_for():
    seeds = {hashed_seed(seed, draw, stream=stream) for seed in range(3) for draw in range(50) for stream in (0, 7)}
    assert len(seeds) == 300 and min(seeds) >= 0


def test_normals_of_all_uniforms_are_finite():
    """Between the extremes, and against the quantiles in float64: float32's erfinv is wrong by 2e-3 at its ends."""
    numbers = torch.cat([torch.arange(1000), torch.arange(0, 2**24, 4099), torch.arange(2**24 - 1000, 2**24)]).unique()
    uniform = numbers * 2**-24
    found = normals(uniform)
    assert found.isfinite().all() and found.abs().max() < 5.5
    assert (found.diff() >= 0).all() and found[-1] == -found[0]
    expected = torch.from_numpy(norm.ppf(uniform.double().numpy() + 2**-25)).float()
    assert (found - expected)[1000:-1000].abs().max() < 1e-4


def test_nothing_needs_float64():
    """Which Apple's MPS does not have."""

    class NoFloat64(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), kwargs=None):
            results = function(*arguments, **(kwargs or {}))
            for one in results if isinstance(results, tuple | list) else [results]:
                assert not isinstance(one, torch.Tensor) or one.dtype != torch.float64, function
            return results

    for cached in (placements_module._cells, placements_module._center, placements_module._sobol):
        cached.cache_clear()
    made = placements(placement=["isotropic", "center", *RANDOM], placement_weights=[1, 2, 3, 1, 1, 1, 1, 1, 1], jitter=0.3,
                      window_scales=(0.5, 2.0), num_tokens=[9, 4], num_tokens_weights=[1, 2])  # fmt: skip
    draws = torch.arange(3)
    with NoFloat64():
        made(draws, made.num_tokens_at(3), PIXELS.expand(3, -1, -1, -1), torch.rand(3, 9, 2))


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [3, 1, 4], [0.1, 0.2, 0.7], [0.0, 1e-7, 1.0], [1 / 3, 1 / 7, 1 / 9]])
def test_choices_are_exact(weights):
    """As in float64, in which releases before 0.2.0 compared: also next to the edges."""
    edges = torch.tensor(weights, dtype=torch.float64).cumsum(0)
    near = ((edges / edges[-1] * 2**24).long()[:, None] + torch.arange(-2, 3)).clamp(0, 2**24 - 1).flatten()
    uniform = torch.cat([near * 2**-24, uniforms(0, torch.arange(1000), 0, 1)[:, 0]])
    expected = torch.searchsorted(edges / edges[-1], uniform.double(), right=True).clamp_max(2)
    assert torch.equal(placements_module._choose(uniform, weights, [1, 2, 3]), expected)


@pytest.mark.parametrize("name", ["isotropic", "center", *RANDOM])
def test_a_draw_is_its_own(name):
    """Whatever else is in the batch, and however often."""
    made = placements(placement=[name], jitter=0.2, seed=5)
    together = place(made, torch.tensor([4, 70000, 5]))
    assert torch.equal(place(made, torch.tensor([70000]))[0], together[1])
    assert ((together >= 0) & (together <= 1)).all()
    assert together.dtype == torch.float32 and together.shape == (3, 9, 2)
    assert not torch.equal(together[0], together[1])
    assert not torch.equal(place(placements(placement=[name], jitter=0.2, seed=6), torch.tensor([4]))[0], together[0])


def test_deterministic_priors_are_those_of_placement():
    draws = torch.arange(2)
    assert torch.equal(place(placements(placement=["isotropic"]), draws)[1], isotropic(9, 32 / 48))
    assert torch.equal(place(placements(placement=["center"]), draws)[1], center(9, 32 / 48))


@pytest.mark.parametrize("name", [name for name in RANDOM if name not in ("edge", "grid_subset")])
def test_random_priors_have_the_distribution_of_placement(name):
    """Two-sample comparison of each token's position with what `placement.py` draws from a generator: means and standard
    deviations of 3,000 draws, to 5 standard errors of the mean (0.29 / sqrt(3000) each, of two samples)."""
    ours = place(placements(placement=[name]), torch.arange(3000))
    generator = torch.Generator().manual_seed(0)
    arguments = {"aspect_ratio": 32 / 48} if PLACEMENTS[name].aspect_ratio else {}
    theirs = torch.stack([PLACEMENTS[name].function(9, generator=generator, **arguments) for _ in range(3000)])
    tolerance = 5 * 0.29 * math.sqrt(2 / 3000)
    assert (ours.mean(0) - theirs.mean(0)).abs().max() < tolerance
    assert (ours.std(0) - theirs.std(0)).abs().max() < tolerance


def test_sobol_is_evenly_spread():
    """Of 16 points of a Sobol sequence, each cell of every 4 × 4, 2 × 8 and 8 × 2 lattice has one; and no two draws agree."""
    points = place(placements(placement=["sobol"], num_tokens=[16]), torch.arange(500), 16)
    for columns, rows in ((4, 4), (2, 8), (8, 2)):
        cells = (points * torch.tensor([columns, rows])).floor().long()
        index = cells[..., 1] * columns + cells[..., 0]
        assert (index.sort(1).values == torch.arange(16)).all()
    assert len(points[:, 0].unique(dim=0)) == 500


def test_uniform_perturb_stays_in_its_cell():
    centers, sizes = isotropic_cells(9, 32 / 48)
    moved = (place(placements(placement=["uniform_perturb"]), torch.arange(200)) - centers) / sizes
    assert moved.abs().max() <= 0.5 + 1e-6 and moved.abs().max() > 0.45


def test_grid_subset_is_different_cells_each_as_often():
    cells = grid(48, 32, 8)
    chosen = place(placements(placement=["grid_subset"]), torch.arange(2000))
    index = torch.cdist(chosen, cells).argmin(-1)
    assert torch.equal(cells[index], chosen)
    assert all(len(set(row)) == 9 for row in index.tolist())
    # 2000 × 9 / 24 = 750 of each, binomial with standard deviation 22: 5 of them.
    assert (index.flatten().bincount(minlength=24) - 750).abs().max() < 110


def test_edge_is_where_the_image_has_edges():
    """In proportion: half of the edge strength lies on the left square's border, and no token where nothing is."""
    image = torch.zeros(1, 3, 48, 32)
    image[..., 10:14, 6:10] = 1.0
    image[..., 30:34, 20:24] = 1.0
    made = placements(placement=["edge"])
    points = made(torch.arange(400), 9, image.expand(400, -1, -1, -1))["coordinates"]
    pixels = (points * torch.tensor([32, 48])).floor().long()
    assert (edge_saliency(image[0])[pixels[..., 1], pixels[..., 0]] > 0).all()
    assert len({tuple(pixel) for pixel in pixels[0].tolist()}) == 9  # without replacement
    assert abs((points[..., 1] < 0.5).float().mean() - 0.5) < 5 * 0.5 / math.sqrt(3600)


def test_edge_saliency_of_a_batch_is_that_of_each_image():
    images = torch.stack([PIXELS[0], torch.ones(3, 48, 32), PIXELS[0].flip(-1)])
    together = edge_saliency(images)
    assert all(torch.equal(together[i], edge_saliency(image)) for i, image in enumerate(images))
    assert (together[1] == 1).all()  # flat


def test_mixture_and_counts_have_their_weights():
    """A fifth isotropic: 4,000 draws, 5 standard deviations of a binomial."""
    made = placements(
        placement=["isotropic", "uniform"], placement_weights=[1, 4], num_tokens=[9, 4], num_tokens_weights=[3, 1]
    )
    lattice = (place(made, torch.arange(4000)) == isotropic(9, 32 / 48)).flatten(1).all(1)
    assert abs(lattice.float().mean() - 0.2) < 5 * math.sqrt(0.16 / 4000)
    counts = [made.num_tokens_at(step) for step in range(2000)]
    assert abs(counts.count(9) / 2000 - 0.75) < 5 * math.sqrt(0.1875 / 2000) and set(counts) == {9, 4}
    assert placements(num_tokens=[9, 4], num_tokens_weights=[1, 0]).num_tokens_at(3) == 9


def test_jitter_is_in_patches():
    """Of the middle token, which never meets the border. The deviation of 4,000 draws is known to 1.1 %: 5 times that."""
    moved = place(placements(placement=["isotropic"], jitter=0.5), torch.arange(4000))[:, 4] - isotropic(9, 32 / 48)[4]
    in_patches = moved * torch.tensor([32 / 8, 48 / 8])
    assert (in_patches.std(0) / 0.5 - 1).abs().max() < 0.055


def test_window_scales_are_log_uniform():
    made = placements(window_scales=(0.5, 4.0))
    scales = made(torch.arange(500), 9, PIXELS.expand(500, -1, -1, -1))["window_scales"]
    assert scales.shape == (500, 9) and scales.dtype == torch.float32
    assert kstest((scales.log2().flatten() + 1).numpy() / 3, "uniform").pvalue > 1e-4
    assert "window_scales" not in placements()(torch.arange(2), 9, PIXELS.expand(2, -1, -1, -1))


def test_own_coordinates_are_used_by_their_share():
    """And a token outside of what the crop left is where the prior puts it."""
    own = torch.full((1000, 9, 2), 0.25)
    own[:, 0] = torch.tensor([1.2, 0.5])
    placed = place(placements(placement=["isotropic"], coordinates_share=0.3), torch.arange(1000), own_coordinates=own)
    used = (placed[:, 1:] == 0.25).flatten(1).all(1)
    assert abs(used.float().mean() - 0.3) < 5 * math.sqrt(0.21 / 1000)
    assert torch.equal(placed[used][:, 0], isotropic(9, 32 / 48)[0].expand(int(used.sum()), -1))
    assert torch.equal(placed[~used], isotropic(9, 32 / 48).expand(int((~used).sum()), -1, -1))
    # Where the batch has another number of tokens, they do not fit.
    four = place(
        placements(placement=["isotropic"], coordinates_share=1.0, num_tokens=[4]), torch.arange(3), 4, own_coordinates=own[:3]
    )
    assert torch.equal(four[0], isotropic(4, 32 / 48))


def test_token_buckets():
    assert token_buckets(16, 196, 4) == [16, 37, 85, 196]
    assert token_buckets(4, 6, 10) == [4, 5, 6]  # no count twice
    assert token_buckets(9, 9, 3) == [9]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_tokens": []}, "`num_tokens`"),
        ({"num_tokens": [9, 9]}, "`num_tokens`"),
        ({"num_tokens": [0]}, "`num_tokens`"),
        ({"num_tokens_weights": [1.0, 2.0]}, "`num_tokens_weights`"),
        ({"placement": ["isotropc"]}, "`placement`"),
        ({"placement": ["grid"]}, "isotropic with 24 tokens"),
        ({"placement": ["salient"]}, "saliency map"),
        ({"placement": ["grid_subset"], "num_tokens": [25]}, "at most 24"),
        ({"placement_weights": [0.0, 0.0, 0.0, 0.0]}, "`placement_weights`"),
        ({"jitter": -0.1}, "`jitter`"),
        ({"jitter": math.nan}, "`jitter`"),
        ({"coordinates_share": 1.5}, "`coordinates_share`"),
        ({"window_scales": (2.0, 1.0)}, "`window_scales`"),
        ({"window_scales": (0.0, 1.0)}, "`window_scales`"),
    ],
)
def test_bad_input_is_named(changes, named):
    with pytest.raises(ValueError, match=named):
        placements(**changes)


@pytest.mark.parametrize("arguments", [(0, 5, 3), (6, 5, 3), (1, 5, 0)])
def test_bad_range_is_named(arguments):
    with pytest.raises(ValueError, match="`num_tokens_range`"):
        token_buckets(*arguments)
