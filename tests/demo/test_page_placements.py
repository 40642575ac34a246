"""The page's priors place tokens where Python's do."""

import json

import numpy as np
import pytest
import torch
from tiny import tiny_processor

from spot_hf.foveation import bump, covering_scale, density_of, foveate
from spot_hf.placement import PLACEMENTS, edge_density, place_windows


# Float32 of numbers up to 1, and of window scales up to 14: computed in double precision, rounded once or twice.
ROUNDING = {"rtol": 1e-6, "atol": 1e-6}
# Edges are float32 in Python, and double here: their strength differs in the seventh digit, and the lattice follows it.
EDGES = {"rtol": 1e-5, "atol": 1e-5}
SIZES = [(224, 224), (160, 224), (48, 64), (77, 51), (32, 320), (16, 16)]  # (height, width)
PATCH = 16
DETERMINISTIC = ["isotropic", "center", "grid", "foveated_center", "foveated_edge"]


def random_image(height: int, width: int) -> torch.Tensor:
    """Strong edges in one corner, weak ones elsewhere."""
    image = torch.rand(3, height, width, generator=torch.Generator().manual_seed(height + width))
    image[:, height // 2 :] *= 0.1
    image[:, :, width // 3 :] *= 0.2
    return image


def image_of(pixel_values: torch.Tensor, name: str, folder) -> dict:
    pixel_values.numpy().astype(np.float32).tofile(folder / name)
    channels, height, width = pixel_values.shape
    sizes = {"channels": channels, "height": height, "width": width, "patchSize": PATCH}
    return {"data": {"file": name, "type": "float32"}, **sizes}


def density_file(density: torch.Tensor, name: str, folder) -> dict:
    rows, columns = density.shape
    density.double().numpy().tofile(folder / name)
    return {"data": {"file": name, "type": "float64"}, "rows": rows, "columns": columns}


def assert_placed(found: dict, coordinates: torch.Tensor, scales: torch.Tensor | None, tolerance: dict, case: str) -> None:
    np.testing.assert_allclose(
        np.reshape(found["coordinates"], (-1, 2)), coordinates.numpy(), **tolerance, err_msg=f"positions of {case}"
    )
    expected = np.ones(len(coordinates)) if scales is None else scales.numpy()
    np.testing.assert_allclose(found["windowScales"], expected, **tolerance, err_msg=f"scales of {case}")


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_tokens_are_where_python_places_them(name, run_node, tmp_path):
    images = [random_image(*size) for size in SIZES]
    step = 1 if name in ("isotropic", "center") else 7  # the foveated ones cost milliseconds in Python, for each count
    counts = [None] if name == "grid" else [*range(1, 201, step), 200]
    cases = [(i, count) for i in range(len(images)) for count in counts]
    given = [image_of(image, f"{i}.float32", tmp_path) for i, image in enumerate(images)]
    answers = run_node(
        "node_placements.mjs", [{"placement": name, "numTokens": count, "image": given[i]} for i, count in cases]
    )
    for (i, count), answer in zip(cases, answers, strict=True):
        expected = place_windows(name, count, images[i], PATCH)
        tolerance = EDGES if name == "foveated_edge" else ROUNDING
        assert_placed(answer, *expected, tolerance, f"{count} tokens by {name} in {SIZES[i]}")


def test_halves_are_rounded_as_in_python(run_node):
    """Four times as wide as high: 1 token asks for half a row, 9 for 1.5, 25 for 2.5."""
    counts = [(2 * k + 1) ** 2 for k in range(12)]
    answers = run_node("node_placements.mjs", [{"function": "isotropic", "arguments": [count, 4.0]} for count in counts])
    for count, answer in zip(counts, answers, strict=True):
        expected = PLACEMENTS["isotropic"].function(count, 4.0)
        assert_placed(answer, expected, None, ROUNDING, f"{count} tokens")


def test_photographs_edges(nips2017, run_node, tmp_path):
    images = [tiny_processor()(nips2017[i]["image"].convert("RGB"), return_tensors="pt")["pixel_values"][0] for i in range(3)]
    images = [torch.nn.functional.interpolate(one[None], size=(224, 224), mode="bilinear")[0] for one in images]
    given = [image_of(one, f"{i}.float32", tmp_path) for i, one in enumerate(images)]
    answers = run_node("node_placements.mjs", [{"placement": "foveated_edge", "numTokens": 49, "image": one} for one in given])
    for i, (image, answer) in enumerate(zip(images, answers, strict=True)):
        assert_placed(answer, *place_windows("foveated_edge", 49, image, PATCH), EDGES, f"photograph {i}")


def test_a_flat_image_gives_the_isotropic_lattice(run_node, tmp_path):
    given = image_of(torch.full((3, 64, 80), 0.3), "flat.float32", tmp_path)
    edge, even = run_node(
        "node_placements.mjs",
        [{"placement": name, "numTokens": 23, "image": given} for name in ("foveated_edge", "isotropic")],
    )
    np.testing.assert_allclose(edge["coordinates"], even["coordinates"], **ROUNDING)
    np.testing.assert_allclose(edge["windowScales"], covering_scale(23, 64, 80, PATCH), **ROUNDING)


def test_densities(run_node, tmp_path):
    rng = torch.Generator().manual_seed(0)
    saliency = torch.rand(7, 11, generator=rng).double()
    image = random_image(50, 70)
    given = image_of(image, "image.float32", tmp_path)
    calls = [
        {"function": "densityOf", "arguments": [density_file(saliency, "saliency.float64", tmp_path)]},
        {"function": "densityOf", "arguments": [density_file(saliency, "saliency.float64", tmp_path), 5]},
        {"function": "densityOf", "arguments": [density_file(0 * saliency, "zero.float64", tmp_path)]},
        {"function": "bump", "arguments": [9, 13, {"x": 0.2, "y": 0.7}, 0.15, 3]},
        {"function": "edgeDensity", "arguments": [given["data"], 3, 50, 70, PATCH]},
    ]
    middle, width, height = torch.tensor([[0.2, 0.7]]).double(), torch.tensor([0.15]).double(), torch.tensor([3.0]).double()
    expected = [
        density_of(saliency),
        density_of(saliency, 5),
        torch.ones(7, 11),
        bump(9, 13, middle, width, height)[0],
        edge_density(image[None], PATCH)[0],
    ]
    for answer, density in zip(run_node("node_placements.mjs", calls), expected, strict=True):
        assert (answer["rows"], answer["columns"]) == density.shape
        # Logarithms up to 5 of float32 positions and edges, through `exp`.
        np.testing.assert_allclose(np.reshape(answer["data"], density.shape), density.numpy(), rtol=1e-5)


@pytest.mark.parametrize("strength", [0.5, 2.2, 30.0])
def test_any_density_warps_the_lattice_as_in_python(strength, run_node, tmp_path):
    """Up to one with nearly all of its mass in a cell: windows there are a thousandth of the others."""
    density = density_of(torch.rand(13, 9, generator=torch.Generator().manual_seed(3)).double(), strength)
    given = density_file(density, "density.float64", tmp_path)
    counts = [1, 2, 7, 49, 150]
    answers = run_node(
        "node_placements.mjs", [{"function": "foveate", "arguments": [given, count, 96, 160, 8]} for count in counts]
    )
    for count, answer in zip(counts, answers, strict=True):
        coordinates, scales = foveate(density[None], count, 96, 160, 8)
        assert_placed(answer, coordinates[0], scales[0], ROUNDING, f"{count} tokens by a density of {strength}")


@pytest.mark.parametrize("name", ["uniform", "gaussian"])
def test_random_priors_have_pythons_law(name, run_node):
    """Not torch's numbers: the same distribution, and a function of the seed."""
    from scipy.stats import ks_2samp

    draws = run_node("node_placements.mjs", [{"function": name, "arguments": [4000, seed]} for seed in (0, 0, 1)])
    first, again, other = (np.reshape(one["coordinates"], (-1, 2)) for one in draws)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any(1).mean() > 0.9
    assert set(draws[0]["windowScales"]) == {1}
    expected = PLACEMENTS[name].function(4000, torch.Generator().manual_seed(0)).numpy()
    for axis in (0, 1):  # fixed seeds: the test does not depend on luck
        assert ks_2samp(first[:, axis], expected[:, axis]).pvalue > 0.01
    inside = np.minimum(first, 1 - first).min(1) > 0
    assert abs(np.corrcoef(first[inside].T)[0, 1]) < 0.05


def test_the_table_has_pythons_names_and_flags(run_node):
    table = run_node("node_placements.mjs", [{"table": True}])[0]
    assert {*DETERMINISTIC, "uniform", "gaussian"} == set(table)
    for name, entry in table.items():
        assert (entry["scaled"], entry["random"]) == (PLACEMENTS[name].scaled, PLACEMENTS[name].random), name
    assert len({entry["label"] for entry in table.values()}) == len(table)


def test_seeds_reach_random_priors(run_node):
    image = {"height": 64, "width": 64, "patchSize": PATCH}
    calls = [{"placement": "uniform", "numTokens": 5, "image": image, **seed} for seed in ({}, {"seed": 0}, {"seed": 7})]
    default, zero, seven = (json.dumps(one) for one in run_node("node_placements.mjs", calls))
    assert default == zero != seven
