"""The page's state in its address, and what it makes of logits: by Node, beside Python's."""

import numpy as np
import pytest
import torch

from spot_hf.budgets import look_until_sure, resolve_budgets
from spot_hf.configuration_spot_vit import SpotViTConfig


def call(run_node, module, name, *given):
    return run_node("node_state.mjs", [{"module": module, "name": name, "given": list(given)}])[0]


STATE = {"image": "2", "placement": "isotropic", "numTokens": 25, "windows": "cover", "step": None, "tokens": None}


@pytest.mark.parametrize(
    ("changes", "hash"),
    [
        ({}, "#image=2&placement=isotropic&tokens=25&windows=cover"),
        ({"image": None}, "#placement=isotropic&tokens=25&windows=cover"),
        ({"step": 3, "tokens": [{"x": 0, "y": 0, "scale": 1}]}, "#image=2&step=3"),
        ({"tokens": [{"x": 0, "y": 1, "scale": 1}]}, "#image=2&at=AAD__wEA"),
    ],
)
def test_a_state_is_in_the_address(changes, hash, run_node):
    assert call(run_node, "address", "toHash", {**STATE, **changes}) == hash
    found = call(run_node, "address", "fromHash", hash)
    wanted = {"image", "placement", "numTokens", "windows"} if not set(changes) & {"step", "tokens"} else set(changes)
    for name in wanted - ({"tokens"} if "step" in changes else set()):
        value = {**STATE, **changes}[name]
        assert found.get(name) == value


def test_tokens_are_packed_to_what_is_said(run_node):
    generator = np.random.default_rng(0)
    tokens = [{"x": x, "y": y, "scale": s} for x, y, s in generator.random((196, 3)) * [1, 1, 14]]
    text = call(run_node, "address", "packTokens", tokens)
    assert len(text) == 196 * 8
    for found, token in zip(call(run_node, "address", "unpackTokens", text), tokens, strict=True):
        assert abs(found["x"] - token["x"]) <= 0.5 / 65535 and abs(found["y"] - token["y"]) <= 0.5 / 65535
        assert abs(found["scale"] - token["scale"]) <= 0.5 / 256


@pytest.mark.parametrize("text", ["", "AAAA", "%%%", "A" * 8 * 1025])
def test_what_is_no_packing(text, run_node):
    assert call(run_node, "address", "unpackTokens", text) is None


def test_probabilities(run_node):
    logits = torch.randn(1000, generator=torch.Generator().manual_seed(0)).double() * 40
    found = call(run_node, "answers", "softmax", logits.tolist(), 1.7)
    torch.testing.assert_close(torch.tensor(found, dtype=torch.float64), (logits / 1.7).softmax(0), rtol=1e-12, atol=1e-15)
    assert call(run_node, "answers", "likeliest", found, 5) == logits.topk(5).indices.tolist()


def test_names_are_short_where_they_stay_different(run_node):
    given = {"0": "tench, Tinca tinca", "1": "crane", "2": "crane, bird", "3": ", none", "4": 5}
    found = call(run_node, "answers", "shortNames", given)
    assert {index: name["short"] for index, name in found.items()} == {**given, "0": "tench", "4": "5"}
    assert found["0"]["whole"] == "tench, Tinca tinca"


def test_tokens_beyond_the_edge_are_packed_at_it(run_node):
    text = call(run_node, "address", "packTokens", [{"x": -0.2, "y": 1.2, "scale": 1e9}])
    assert call(run_node, "address", "unpackTokens", text) == [{"x": 0, "y": 1, "scale": 65535 / 256}]


def test_costs(run_node):
    assert call(run_node, "answers", "costOf", [3, 20, 100], 7) == 3 + 20 * 7 + 100 * 49


@pytest.mark.parametrize("confidence", [0.5, [0.9, 0.6]])
@pytest.mark.parametrize("seed", range(4))
def test_looks_are_pythons(confidence, seed, run_node):
    calibration = {"num_tokens": [4, 9, 16], "temperature": [1.5, 0.7, 1.1], "points": []}
    config = SpotViTConfig(num_tokens=[4, 9, 16], confidence=confidence, calibration=calibration)
    looks = call(run_node, "answers", "looksOf", config.to_dict())
    assert [look["numTokens"] for look in looks] == [4, 9, 16]
    logits = 1.5 * torch.randn(3, 5, generator=torch.Generator().manual_seed(seed)).double()
    by_count = {str(count): row.tolist() for count, row in zip((4, 9, 16), logits, strict=True)}
    found = run_node("node_state.mjs", [{"given": looks, "logits": by_count}])[0]
    expected, spent = look_until_sure(
        lambda number, left: logits[number][None], torch.arange(1), resolve_budgets(config, None)
    )
    assert sum(look["numTokens"] for look in found["looks"]) == spent.item()
    probabilities = torch.tensor(found["probabilities"], dtype=torch.float64)
    torch.testing.assert_close(probabilities, expected.softmax(-1)[0], rtol=1e-12, atol=1e-15)


def test_a_model_without_budgets_has_no_looks(run_node):
    for config in (SpotViTConfig(), SpotViTConfig(num_tokens=25)):
        assert call(run_node, "answers", "looksOf", config.to_dict()) is None


def test_of_many_calls_the_latest_counts(run_node):
    assert run_node("node_state.mjs", [{"calls": [1, 2, 3, 4]}]) == [[1, 4, "after"]]
