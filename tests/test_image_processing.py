"""The image processor: coordinates in, coordinates out, in the right frame. (The torchvision backend has its own file.)"""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_processor

from spot_hf import SpotViTImageProcessorPil
from spot_hf.placement import center, grid, isotropic


def picture(width=60, height=45, mode="RGB", seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


RECIPES = {
    "size": {"size": {"height": 48, "width": 48}},
    "size, not square": {"size": {"height": 32, "width": 64}},
    "short side and crop": {"size": {"shortest_edge": 56}, "do_center_crop": True, "crop_size": {"height": 48, "width": 48}},
    "odd crop": {"size": {"shortest_edge": 57}, "do_center_crop": True, "crop_size": {"height": 48, "width": 40}},
    "crop alone": {"do_resize": False, "do_center_crop": True, "crop_size": {"height": 30, "width": 30}},
    "crop that pads": {"do_resize": False, "do_center_crop": True, "crop_size": {"height": 64, "width": 71}},
    "short and long side": {"size": {"shortest_edge": 40, "longest_edge": 50}},
    "nothing": {"do_resize": False},
}
recipes = pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())


def test_without_coordinates_it_is_an_ordinary_processor():
    features = tiny_processor()(picture(), return_tensors="pt")
    assert list(features) == ["pixel_values"] and features["pixel_values"].shape == (1, 3, 48, 48)


@recipes
@pytest.mark.parametrize("size", [(60, 45), (45, 60), (48, 48), (101, 67)])
def test_frames_follow_the_pixels(recipe, size):
    """A bright pixel of the original is found, in `pixel_values`, where its mapped coordinate says."""
    width, height = size
    processor = SpotViTImageProcessorPil(**{"resample": 2, "do_normalize": False, "patch_size": 8, **recipe})
    for spot in ((width // 2, height // 2), (width // 2 - 6, height // 2 + 5)):
        pixels = np.zeros((height, width, 3), dtype=np.uint8)
        pixels[spot[1], spot[0]] = 255
        point = torch.tensor([(spot[0] + 0.5) / width, (spot[1] + 0.5) / height])
        features = processor(Image.fromarray(pixels), coordinates=point[None], return_tensors="pt")
        values = features["pixel_values"][0, 0]
        rows, columns = torch.meshgrid(*(torch.arange(n) + 0.5 for n in values.shape), indexing="ij")
        found = torch.stack([(values * columns).sum(), (values * rows).sum()]) / values.sum()  # centre of brightness
        expected = features["coordinates"][0, 0] * torch.tensor([values.shape[1], values.shape[0]])
        # 8-bit rounding of a blurred pixel moves its centre of brightness by a few hundredths.
        torch.testing.assert_close(found, expected, rtol=0, atol=0.15)
        torch.testing.assert_close(
            processor.to_model_frame(point, (width, height)), features["coordinates"][0, 0], rtol=0, atol=1e-6
        )


@recipes
def test_the_frames_are_inverses(recipe):
    processor = SpotViTImageProcessorPil(**recipe)
    points = torch.rand(3, 50, 2, generator=torch.Generator().manual_seed(0))
    there = processor.to_model_frame(points, (60, 45))
    torch.testing.assert_close(processor.to_image_frame(there, (60, 45)), points, rtol=0, atol=3e-7)  # float32 rounding, twice
    array = processor.to_model_frame(points.numpy(), (60, 45))
    assert isinstance(array, np.ndarray) and array.dtype == np.float32 and np.array_equal(array, there.numpy())
    doubled = points.double()
    exact = processor.to_image_frame(processor.to_model_frame(doubled, (60, 45)), (60, 45))
    torch.testing.assert_close(exact, doubled, rtol=0, atol=1e-14)


ONE, TWO = [[0.25, 0.5], [0.75, 0.5]], [[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]]


@pytest.mark.parametrize("convert", [list, np.array, torch.tensor], ids=["list", "array", "tensor"])
def test_one_set_serves_all_images(convert):
    features = tiny_processor()([picture(), picture(45, 60)], coordinates=convert(ONE), return_tensors="pt")
    assert torch.equal(features["coordinates"], torch.tensor([ONE, ONE])) and "coordinates_mask" not in features


@pytest.mark.parametrize("convert", [list, np.array, torch.tensor], ids=["list", "array", "tensor"])
def test_one_set_per_image(convert):
    other = [[0.2, 0.5], [0.7, 0.5]]
    features = tiny_processor()([picture(), picture()], coordinates=convert([ONE, other]), return_tensors="pt")
    assert torch.equal(features["coordinates"], torch.tensor([ONE, other]))


@pytest.mark.parametrize("convert", [list, np.array, torch.tensor], ids=["list", "array", "tensor"])
def test_ragged_sets_are_padded_with_a_mask(convert):
    features = tiny_processor()([picture(), picture()], coordinates=[convert(ONE), convert(TWO)], return_tensors="pt")
    assert features["coordinates_mask"].tolist() == [[True, True, False], [True, True, True]]
    assert torch.equal(features["coordinates"][0, :2], torch.tensor(ONE))
    assert torch.equal(features["coordinates"][1], torch.tensor(TWO))


def test_placements_are_made_in_the_models_frame():
    processor = tiny_processor(size={"shortest_edge": 56}, do_center_crop=True, crop_size={"height": 48, "width": 48})
    images = [picture(), picture(45, 60)]
    for inputs, expected in (
        ({"placement": "grid"}, grid(48, 48, 8)),
        ({"num_tokens": 9}, isotropic(9)),
        ({"num_tokens": 9, "placement": "center"}, center(9)),
    ):
        features = processor(images, return_tensors="pt", **inputs)
        assert torch.equal(features["coordinates"], expected.expand(2, -1, -1))


def test_random_placements_do_not_depend_on_the_batch():
    processor, images = tiny_processor(), [picture(seed=i) for i in range(3)]
    for placement in ("uniform", "sobol", "grid_subset", "edge"):
        together = processor(images, num_tokens=5, placement=placement, return_tensors="pt")["coordinates"]
        assert not torch.equal(together[0], together[1])
        for i, image in enumerate(images):
            alone = processor(image, num_tokens=5, placement=placement, return_tensors="pt")["coordinates"]
            assert torch.equal(alone[0], together[i])
    other = processor(images, num_tokens=5, placement="uniform", seed=1, return_tensors="pt")["coordinates"]
    assert not torch.equal(other, processor(images, num_tokens=5, placement="uniform", return_tensors="pt")["coordinates"])


def test_ids_take_the_place_of_the_content():
    processor = tiny_processor()
    one = processor(picture(seed=0), num_tokens=5, placement="uniform", image_ids=["x"], return_tensors="pt")
    two = processor(picture(seed=1), num_tokens=5, placement="uniform", image_ids=["x"], return_tensors="pt")
    assert torch.equal(one["coordinates"], two["coordinates"])


def test_saliency_is_over_the_original_image():
    """Only the right end of a wide image is salient: after the crop, tokens lie where that end is."""
    processor = tiny_processor(size={"shortest_edge": 48}, do_center_crop=True, crop_size={"height": 48, "width": 48})
    saliency = np.zeros((4, 9))
    saliency[1, 5] = 1.0  # columns 5/9 to 6/9 of the image
    features = processor(picture(96, 48), num_tokens=50, placement="salient", saliency=saliency, return_tensors="pt")
    points = processor.to_image_frame(features["coordinates"][0], (96, 48))
    assert (points[:, 0] > 5 / 9 - 0.01).all() and (points[:, 0] < 6 / 9 + 0.01).all()  # to a pixel of 96
    assert (points[:, 1] > 0.24).all() and (points[:, 1] < 0.51).all()


def test_defaults_are_saved(tmp_path):
    tiny_processor(num_tokens=9, placement="center", seed=7).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert (saved["num_tokens"], saved["placement"], saved["seed"], saved["patch_size"]) == (9, "center", 7, 8)
    assert set(saved["auto_map"]["AutoImageProcessor"]) == {"torchvision", "pil"}
    assert not {"coordinates", "saliency", "image_ids"} & set(saved)
    loaded = SpotViTImageProcessorPil.from_pretrained(tmp_path)
    assert torch.equal(loaded(picture(), return_tensors="pt")["coordinates"][0], center(9))
    # What a call says comes before what was saved.
    assert torch.equal(loaded(picture(), num_tokens=4, return_tensors="pt")["coordinates"][0], center(4))
    assert torch.equal(loaded(picture(), placement="grid", return_tensors="pt")["coordinates"][0], grid(48, 48, 8))
    assert torch.equal(loaded(picture(), coordinates=ONE, return_tensors="pt")["coordinates"][0], torch.tensor(ONE))


def test_casting_leaves_positions_alone():
    features = tiny_processor()(picture(), num_tokens=9, return_tensors="pt").to(torch.bfloat16)
    assert features["pixel_values"].dtype == torch.bfloat16 and features["coordinates"].dtype == torch.float32
    assert torch.equal(features["coordinates"][0], isotropic(9))


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "P", "1"])
def test_other_modes_than_rgb(mode):
    assert tiny_processor()(picture(mode=mode), num_tokens=4, return_tensors="pt")["pixel_values"].shape == (1, 3, 48, 48)


def test_numpy_output():
    features = tiny_processor()([picture()] * 2, num_tokens=4, return_tensors="np")
    assert features["coordinates"].shape == (2, 4, 2) and features["coordinates"].dtype == np.float32
