"""The image processor: coordinates in, coordinates out, in the right frame. (The torchvision backend has its own file.)"""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_processor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

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


@pytest.mark.parametrize(
    ("recipe", "size", "resized"),
    [
        ({"size": {"height": 48, "width": 48}}, (24, 24), {"height": 24, "width": 24}),
        ({"size": {"height": 48, "width": 64}}, (24, 96), {"height": 24, "width": 96}),
        (
            {"size": {"shortest_edge": 248}, "crop_size": {"height": 224, "width": 224}, "do_center_crop": True},
            (112, 112),
            {"shortest_edge": 124},
        ),
        (
            {"size": {"height": 256, "width": 240}, "crop_size": {"height": 224, "width": 200}, "do_center_crop": True},
            (112, 400),
            {"height": 128, "width": 480},
        ),
        ({"size": {"shortest_edge": 48}}, (96, 96), {"shortest_edge": 96}),
        ({"size": {"max_height": 48, "max_width": 48}}, (24, 24), {"max_height": 24, "max_width": 24}),
    ],
)
def test_a_recipe_for_another_size_keeps_its_proportions(recipe, size, resized):
    height, width = size
    processor = SpotViTImageProcessorPil(**recipe, patch_size=8, num_tokens=5, placement="center", image_mean=[0.1, 0.2, 0.3])
    before = processor.to_dict()
    other = processor.resized(height, width)
    assert dict(other.size) == resized and other.model_size((500, 500)) == (width, height)
    assert processor.to_dict() == before and type(other) is type(processor)
    unchanged = set(before) - {"size", "crop_size"}
    assert {name: other.to_dict()[name] for name in unchanged} == {name: before[name] for name in unchanged}
    features = other(picture(50, 50), return_tensors="pt")
    assert features["pixel_values"].shape == (1, 3, height, width) and features["coordinates"].shape == (1, 5, 2)


@pytest.mark.parametrize(
    ("recipe", "size"), [({"do_resize": False}, (48, 48)), ({"size": {"shortest_edge": 48}}, (48, 96))], ids=str
)
def test_a_recipe_that_cannot_make_that_size(recipe, size):
    with pytest.raises(ValueError, match=f"cannot make images of {size[0]} × {size[1]} pixels"):
        SpotViTImageProcessorPil(**recipe).resized(*size)


class NoFloat64(TorchDispatchMode):
    """As Apple's MPS, whose tensors cannot be float64."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and (tensor.device.type, tensor.dtype) == ("mps", torch.float64):
                raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64.")
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_frames_on_a_device_without_float64(dtype):
    """Tensors without data stand for a device that this machine does not have."""
    processor = tiny_processor(size={"shortest_edge": 56}, do_center_crop=True, crop_size={"height": 48, "width": 48})
    with FakeTensorMode(), NoFloat64():
        points = torch.rand(3, 2, device="mps", dtype=dtype)
        with pytest.raises(TypeError, match="float64"):
            points.double()
        for mapped in (processor.to_model_frame(points, (60, 45)), processor.to_image_frame(points, (60, 45))):
            assert (mapped.device.type, mapped.dtype, mapped.shape) == ("mps", dtype, points.shape)


def test_frames_give_the_same_bits_as_before():
    """Computed in float64 where the tensor is, and rounded once."""
    processor = tiny_processor(size={"shortest_edge": 56}, do_center_crop=True, crop_size={"height": 48, "width": 48})
    points = torch.rand(50, 2, generator=torch.Generator().manual_seed(0))
    # 60 × 45 becomes 74 × 56, of which 13 columns and 4 rows are cut off before the crop.
    scale = torch.tensor([74 / 48, 56 / 48], dtype=torch.float64)
    offset = torch.tensor([-13 / 48, -4 / 48], dtype=torch.float64)
    assert torch.equal(processor.to_model_frame(points, (60, 45)), (points.double() * scale + offset).float())
    assert torch.equal(processor.to_image_frame(points, (60, 45)), ((points.double() - offset) / scale).float())


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
