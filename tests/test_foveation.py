"""Windows that cover the image, and foveations: the isotropic lattice, warped by a density."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_model, tiny_processor

from spot_hf import SpotImageClassificationPipeline, foveate, place_windows
from spot_hf.foveation import bump, covering_scale, density_of
from spot_hf.placement import isotropic


SIZES = [(224, 224, 16), (96, 160, 8), (48, 40, 8)]
COUNTS = [1, 2, 5, 9, 13, 25, 49, 196]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("num_tokens", COUNTS)
def test_a_flat_density_is_isotropic_and_covers_exactly(num_tokens, size):
    height, width, patch_size = size
    for density in (torch.ones(2, 14, 14), torch.full((2, 3, 7), 0.2)):
        coordinates, scales = foveate(density, num_tokens, height, width, patch_size)
        assert torch.equal(coordinates, isotropic(num_tokens, width / height).expand(2, -1, -1))
        assert torch.equal(scales, torch.full((2, num_tokens), covering_scale(num_tokens, height, width, patch_size)))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("num_tokens", COUNTS)
def test_windows_of_any_density_have_the_area_of_the_image(num_tokens, size):
    height, width, patch_size = size
    density = torch.rand(5, 9, 12, generator=torch.Generator().manual_seed(0)) ** 4 + 1e-3
    coordinates, scales = foveate(density, num_tokens, height, width, patch_size)
    areas = (scales.double() * patch_size) ** 2
    # Cells tile the image; scales are stored in float32.
    torch.testing.assert_close(areas.sum(1), torch.full((5,), height * width).double(), rtol=1e-6, atol=0)
    assert (coordinates > 0).all() and (coordinates < 1).all()
    if num_tokens > 1:  # tokens cannot collapse
        distance = torch.cdist(coordinates, coordinates) + torch.eye(num_tokens)
        assert distance.min() > 1e-3


def test_each_cell_has_its_share():
    """Of a density that is a product, the warp is that of each axis: the inverse of its cumulative distribution."""
    across, down = torch.tensor([1.0, 3, 1, 1]), torch.tensor([2.0, 1, 1])
    coordinates, scales = foveate((down[:, None] * across)[None], 16, 64, 64, 8)

    def inverse(mass, share):
        mass = mass.numpy()
        cumulative = np.concatenate([[0], np.cumsum(mass) / np.sum(mass)])
        return np.interp(share, cumulative, np.linspace(0, 1, len(mass) + 1))

    centers = (np.arange(4) + 0.5) / 4
    expected = np.stack(np.meshgrid(inverse(across, centers), inverse(down, centers)), axis=-1).reshape(-1, 2)
    np.testing.assert_allclose(coordinates[0], expected, atol=1e-7)
    edges = np.arange(5) / 4
    wide, high = np.diff(inverse(across, edges)), np.diff(inverse(down, edges))
    np.testing.assert_allclose(scales[0], np.sqrt(np.outer(high, wide)).reshape(-1) * 64 / 8, rtol=1e-6)


def test_the_peak_is_looked_at_closely():
    density = bump(14, 14, torch.tensor([[0.25, 0.7]]), torch.tensor([0.15]), torch.tensor([2.2]))
    coordinates, scales = foveate(density, 25, 224, 224, 16)
    near = (coordinates[0] - torch.tensor([0.25, 0.7])).norm(dim=1) < 0.2
    assert near.sum() > 1.5 * (isotropic(25) - torch.tensor([0.25, 0.7])).norm(dim=1).lt(0.2).sum()
    assert scales[0][near].max() < covering_scale(25, 224, 224, 16) < scales[0].max()


def test_gradients_reach_the_density():
    density = (torch.rand(2, 4, 5, generator=torch.Generator().manual_seed(1)) + 0.2).double().requires_grad_()
    coordinates, scales = foveate(density, 7, 48, 64, 8)
    weights = torch.randn(coordinates.shape, generator=torch.Generator().manual_seed(2))
    (gradient,) = torch.autograd.grad((coordinates * weights).sum() + scales.sum(), density)
    step = 1e-3
    for index in [(0, 1, 2), (1, 3, 0), (1, 0, 4)]:
        ends = []
        for sign in (-1, 1):
            moved = density.detach().clone()
            moved[index] += sign * step
            coordinates, scales = foveate(moved, 7, 48, 64, 8)
            ends.append(((coordinates * weights).sum() + scales.sum()).item())
        # float32 results: 1e-6 over a step of 2e-3.
        assert gradient[index].item() == pytest.approx((ends[1] - ends[0]) / (2 * step), abs=5e-3)


def test_an_images_foveation_is_its_own():
    densities = torch.rand(4, 6, 6, generator=torch.Generator().manual_seed(3)) + 0.1
    together = foveate(densities, 11, 48, 48, 8)
    for i in range(4):
        alone = foveate(densities[i : i + 1], 11, 48, 48, 8)
        assert all(torch.equal(one[0], other[i]) for one, other in zip(alone, together, strict=True))


def test_density_of_saliency():
    saliency = torch.tensor([[0.0, 3.0], [1.5, 0.0]])
    torch.testing.assert_close(density_of(saliency), torch.tensor([[1, math.exp(2.2)], [math.exp(1.1), 1]]))
    assert torch.equal(density_of(torch.zeros(2, 2)), torch.ones(2, 2))


# ------------------------------------------------------------------------------------------------ processor, pipeline


def image(left: int = 0) -> Image.Image:
    pixels = np.zeros((48, 48, 3), dtype=np.uint8)
    pixels[:, 24:] = np.random.default_rng(0).integers(0, 256, (48, 24, 3))
    pixels[:, :24] = left
    return Image.fromarray(pixels)


def test_covering_windows_in_the_processor(tmp_path):
    processor = tiny_processor()
    for num_tokens in (4, 9, 5):
        scale = pytest.approx(math.sqrt(36 / num_tokens))
        for placed in ({"num_tokens": num_tokens}, {"num_tokens": num_tokens, "placement": "uniform"},
                       {"coordinates": np.random.rand(num_tokens, 2)}):  # fmt: skip
            features = processor([image(), image(9)], window_scales="cover", return_tensors="pt", **placed)
            assert features["window_scales"].shape == (2, num_tokens) and features["window_scales"][1, 0].item() == scale
    # All cells cover at scale 1.
    assert "window_scales" not in processor(image(), placement="grid", window_scales="cover", return_tensors="pt")
    # Saved, and overridden.
    tiny_processor(num_tokens=4, window_scales="cover").save_pretrained(tmp_path)
    loaded = type(processor).from_pretrained(tmp_path)
    assert loaded(image(), return_tensors="pt")["window_scales"].tolist() == [[3.0] * 4]
    assert "window_scales" not in loaded(image(), window_scales=1, return_tensors="pt")
    assert loaded(image(), window_scales=[2, 2, 2, 1], return_tensors="pt")["window_scales"].tolist() == [[2, 2, 2, 1]]
    for wrong in ("large", 0, -1.0, [1, 2], True):
        with pytest.raises(ValueError, match="`window_scales` must be a number above 0, in patches, or 'cover'"):
            type(processor).from_pretrained(tmp_path, window_scales=wrong)
    with pytest.raises(ValueError, match="`window_scales` must be numbers above 0, or 'cover'; got 'large'"):
        processor(image(), num_tokens=4, window_scales="large")


def test_foveated_in_the_processor():
    processor = tiny_processor()
    flat = processor(image(), num_tokens=9, placement="foveated", saliency=np.ones((3, 3)), return_tensors="pt")
    assert torch.equal(flat["coordinates"][0], isotropic(9)) and flat["window_scales"].tolist() == [[2.0] * 9]
    right = processor(image(), num_tokens=9, placement="foveated", boxes=[30, 0, 48, 48], return_tensors="pt")
    assert (right["coordinates"][0, :, 0] > isotropic(9)[:, 0]).all()
    edges = processor(image(), num_tokens=9, placement="foveated_edge", return_tensors="pt")
    assert edges["coordinates"][0, :, 0].mean() > 0.55  # where the noise is
    center = processor(image(), num_tokens=9, placement="foveated_center", return_tensors="pt")
    assert center["window_scales"][0, 4] == center["window_scales"].min()
    with pytest.raises(ValueError, match="`saliency` is needed by placement='foveated'"):
        processor(image(), num_tokens=9, placement="foveated")
    # A scale that is asked for takes the place of the placement's own, which cover.
    covering = processor(image(), num_tokens=9, placement="foveated_center", window_scales="cover", return_tensors="pt")
    assert torch.equal(covering["window_scales"], center["window_scales"])
    unit = processor(image(), num_tokens=9, placement="foveated_center", window_scales=1, return_tensors="pt")
    assert "window_scales" not in unit and torch.equal(unit["coordinates"], center["coordinates"])


def test_in_the_pipeline():
    processor, model = tiny_processor(), tiny_model()
    classifier = SpotImageClassificationPipeline(model=model, image_processor=processor)
    covering = classifier(image(), num_tokens=4, window_scales="cover", return_coordinates=True)
    assert covering["window_scales"] == [3.0] * 4
    answers = classifier([image(), image(90)], num_tokens=9, placement="foveated_edge", return_coordinates=True, batch_size=2)
    for one, answer in zip([image(), image(90)], answers, strict=True):
        inputs = processor(one, num_tokens=9, placement="foveated_edge", return_tensors="pt")
        np.testing.assert_allclose(answer["window_scales"], inputs["window_scales"][0])
        with torch.no_grad():
            best = model(**inputs).logits[0].softmax(-1).max().item()
        assert answer["predictions"][0]["score"] == pytest.approx(best, abs=1e-6)
    # A batch may mix it with images of other sizes of windows, and of none.
    rows = [{"image": image(), "coordinates": [[0.5, 0.5]]}, {"image": image(90)}]
    mixed = classifier(rows, num_tokens=9, placement="foveated_center", return_coordinates=True, batch_size=2)
    assert "window_scales" not in mixed[0] and len(mixed[1]["window_scales"]) == 9


def test_a_function_of_ones_own_may_give_scales():
    def two_sizes(num_tokens):
        return isotropic(num_tokens), torch.arange(1.0, num_tokens + 1)

    coordinates, scales = place_windows(two_sizes, 3, torch.zeros(3, 48, 48), 8)
    assert torch.equal(coordinates, isotropic(3)) and scales.tolist() == [1, 2, 3]
    features = tiny_processor()(image(), num_tokens=3, placement=two_sizes, return_tensors="pt")
    assert features["window_scales"].tolist() == [[1, 2, 3]]
    with pytest.raises(ValueError, match=r"must return scales \(3,\), finite and above 0"):
        place_windows(lambda num_tokens: (isotropic(num_tokens), [1, 0, 1]), 3, torch.zeros(3, 48, 48), 8)

    def sized(num_tokens, height, width):
        return isotropic(num_tokens, width / height)

    assert torch.equal(place_windows(sized, 6, torch.zeros(3, 48, 96), 8)[0], isotropic(6, 2.0))
