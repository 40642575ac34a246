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
from transformers.image_processing_backends import PilBackend

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


@pytest.mark.parametrize("kind", ["RGB", "L", "bytes", "floats"])
@pytest.mark.parametrize(
    "recipe",
    [{}, {"do_rescale": False}, {"do_normalize": False}, {"do_center_crop": True, "crop_size": {"height": 64, "width": 70}}],
)
def test_pixels_are_those_of_the_backend(recipe, kind):
    """To the last bit, though 8-bit pixels are looked up. A crop of more than there is pads."""
    array = np.random.default_rng(0).integers(0, 256, (45, 60, 3), dtype=np.uint8)
    images: list = [Image.fromarray(array), Image.fromarray(array[:30])]
    if kind == "L":
        images = [one.convert("L") for one in images]
        recipe = {**recipe, "do_convert_rgb": False, "image_mean": 0.4, "image_std": 0.3}
    elif kind in ("bytes", "floats"):
        images = [np.asarray(one) / (255 if kind == "floats" else 1) for one in images]
        images = [one.astype(np.float32 if kind == "floats" else np.uint8) for one in images]
    ours = SpotViTImageProcessorPil(size={"height": 48, "width": 48}, **recipe)
    names = ("do_resize", "do_center_crop", "crop_size", "do_rescale", "do_normalize", "do_convert_rgb")
    names += ("rescale_factor", "size", "resample", "image_mean", "image_std")
    theirs = PilBackend(**{name: getattr(ours, name) for name in names})
    for one, expected in zip(*(processor(images)["pixel_values"] for processor in (ours, theirs)), strict=True):
        np.testing.assert_array_equal(one, expected)
        assert one.dtype == expected.dtype


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


# -------------------------------------------------------------------------------------------- boxes, scales, the crop

CROPPING = {"size": {"shortest_edge": 48}, "do_center_crop": True, "crop_size": {"height": 48, "width": 48}}


def in_box(points, box, size) -> float:
    """The share of points in a box, to a pixel of the model's 48 per side: that is how fine its map is."""
    x, y = (np.asarray(points) * np.array(size)).T
    wide, high = size[0] / 48, size[1] / 48
    return ((x >= box[0] - wide) & (x <= box[2] + wide) & (y >= box[1] - high) & (y <= box[3] + high)).mean()


@pytest.mark.parametrize("convert", [list, np.array, torch.tensor], ids=["list", "array", "tensor"])
def test_tokens_lie_in_boxes(convert):
    """A box that was given as a saliency map of one row was a map of four columns."""
    box, size, processor = [10, 8, 26, 20], (60, 45), tiny_processor()
    for boxes in (box, [box], [[box]]):
        placed = processor(picture(*size), boxes=convert(boxes), num_tokens=40, return_tensors="pt")["coordinates"]
        assert in_box(placed[0], box, size) == 1
    away = processor(picture(*size), boxes=box, placement="inverse_salient", num_tokens=40, return_tensors="pt")
    assert in_box(away["coordinates"][0], box, size) == 0
    # Two boxes, and one or several for each of two images.
    other = [40, 30, 50, 44]
    both = processor(picture(*size), boxes=[box, other], num_tokens=40, return_tensors="pt")["coordinates"][0]
    shares = in_box(both, box, size), in_box(both, other, size)
    assert sum(shares) == 1 and min(shares) > 0.1
    placed = processor([picture(*size)] * 2, boxes=[[box, other], other], num_tokens=40, return_tensors="pt")["coordinates"]
    assert in_box(placed[1], other, size) == 1 and in_box(placed[0], box, size) > 0.1


def test_saliency_alone_says_how_to_place():
    processor, saliency = tiny_processor(num_tokens=9, placement="center"), np.eye(3)
    here = processor(picture(), saliency=saliency, return_tensors="pt")["coordinates"]
    named = processor(picture(), saliency=saliency, placement="salient", return_tensors="pt")["coordinates"]
    assert torch.equal(here, named)


def test_window_scales_go_along():
    processor = tiny_processor()
    for given, expected in (
        (2, [[2.0, 2.0], [2.0, 2.0]]),
        ([0.5, 1.5], [[0.5, 1.5], [0.5, 1.5]]),
        (np.array([[0.5, 1.5], [1, 2]]), [[0.5, 1.5], [1.0, 2.0]]),
        ([torch.tensor([0.5, 1.5]), [1, 2]], [[0.5, 1.5], [1.0, 2.0]]),
    ):
        features = processor([picture(), picture()], coordinates=ONE, window_scales=given, return_tensors="pt")
        assert features["window_scales"].dtype == torch.float32 and features["window_scales"].tolist() == expected
        assert features.to(torch.bfloat16)["window_scales"].dtype == torch.float32
    assert "window_scales" not in processor(picture(), coordinates=ONE, window_scales=[1, 1], return_tensors="pt")
    placed = processor(picture(), num_tokens=4, window_scales=3, return_tensors="pt")
    assert placed["window_scales"].tolist() == [[3.0] * 4] and torch.equal(placed["coordinates"][0], isotropic(4))
    assert processor(picture(), window_scales=0.5, return_tensors="pt")["window_scales"].shape == (1, 36)
    # Padding has the scale 1, which no token sees.
    ragged = processor([picture(), picture()], coordinates=[ONE, TWO], window_scales=[[2, 3], [4, 5, 6]], return_tensors="np")
    assert ragged["window_scales"].tolist() == [[2, 3, 1], [4, 5, 6]]


def test_tokens_that_the_crop_removes():
    """Of a wide image, the model sees the middle: positions at its ends would see the border's pixels, repeated."""
    processor, wide = tiny_processor(**CROPPING), picture(96, 48)
    points, scales = [[0.02, 0.5], [0.5, 0.5], [0.98, 0.5], [0.25, 0.5]], [2, 3, 4, 5]
    inputs = {"coordinates": points, "window_scales": scales, "return_tensors": "pt"}
    with pytest.warns(UserWarning, match="2 of 4 tokens lie outside of what the model sees"):
        kept = processor(wide, **inputs)
    assert kept["coordinates"].shape == (1, 4, 2) and kept["coordinates"][0, 0, 0] < -0.4
    dropped = processor(wide, outside="drop", **inputs)
    assert dropped["coordinates"][0].tolist() == [[0.5, 0.5], [0.0, 0.5]] and dropped["window_scales"].tolist() == [[3.0, 5.0]]
    with pytest.raises(ValueError, match=r"2 of 4 tokens lie outside .* the crop removes them"):
        processor(wide, outside="error", **inputs)
    with pytest.raises(ValueError, match="all tokens of image 0 lie outside"):
        processor(wide, coordinates=points[:1], outside="drop")
    # Two images lose different tokens: a mask says so.
    both = processor([wide, picture(48, 48)], coordinates=points, outside="drop", return_tensors="pt")
    assert both["coordinates_mask"].sum(1).tolist() == [2, 4]
    dropping = tiny_processor(**CROPPING, outside="drop")
    assert dropping(wide, coordinates=points, return_tensors="pt")["coordinates"].shape[1] == 2


def test_a_misspelt_default_is_refused(tmp_path):
    tiny_processor().save_pretrained(tmp_path)
    for wrong, words in (
        ({"placement": "centre"}, "`placement` must be one of grid, .*got 'centre'"),
        ({"placement": "os:getcwd"}, "registered by `register_placement`"),  # a config must not import anything
        ({"num_tokens": 0}, "`num_tokens` must be an integer from 1"),
        ({"outside": "keep"}, "`outside` must be one of"),
    ):
        with pytest.raises(ValueError, match=words):
            SpotViTImageProcessorPil.from_pretrained(tmp_path, **wrong)


def test_random_placements_of_epochs():
    processor, image = tiny_processor(), picture()

    def draw(**seed):
        return processor(image, num_tokens=5, placement="uniform", return_tensors="pt", **seed)["coordinates"]

    assert torch.equal(draw(), draw()) and torch.equal(draw(seed=3), draw(seed=3))
    assert not torch.equal(draw(seed=3), draw(seed=4))  # an epoch's number
    torch.manual_seed(0)
    first, second = draw(seed=None), draw(seed=None)
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(draw(seed=None), first)  # from torch's global generator
    processor = tiny_processor(seed=None)
    assert not torch.equal(draw(), draw())


# --------------------------------------------------------------------------------------------------- pixels and blocks


def test_pixels_and_back():
    processor, size = tiny_processor(), (60, 45)
    points = [[0, 0], [60, 45], [30, 9], [0.5, 44.5]]
    coordinates = processor.coordinates_from_pixels(points, size)
    assert coordinates.dtype == np.float32
    np.testing.assert_allclose(coordinates[:3], [[0, 0], [1, 1], [0.5, 0.2]], rtol=0, atol=1e-7)
    np.testing.assert_allclose(processor.coordinates_to_pixels(coordinates, size), points, rtol=1e-6)
    assert processor.coordinates_from_pixels(np.zeros((2, 3, 2)), size).shape == (2, 3, 2)
    for wrong, words in (
        ([[61, 3]], "60 wide and 45 high; got [61.0, 3.0]"),
        ([[1, float("nan")]], "must lie in the image"),
        ([1, 2, 3], "(..., 2)"),
        ("here", "(..., 2)"),
    ):
        with pytest.raises(ValueError, match="`points`") as error:
            processor.coordinates_from_pixels(wrong, size)
        assert words in str(error.value)


@recipes
def test_windows_of_a_block_touch_in_the_models_frame(recipe):
    processor, size = SpotViTImageProcessorPil(**{"patch_size": 8, **recipe}), (90, 80)
    block = processor.block((0.5, 0.5), 3, 2, size)
    assert block.shape == (6, 2) and block.dtype == np.float32
    width, height = processor.model_size(size)
    pixels = processor.to_model_frame(block, size).reshape(3, 2, 2) * np.array([width, height])
    np.testing.assert_allclose(np.diff(pixels[..., 0], axis=1), 8, atol=1e-3)  # float32, of 100 pixels
    np.testing.assert_allclose(np.diff(pixels[..., 1], axis=0), 8, atol=1e-3)
    np.testing.assert_allclose(block.mean(0), [0.5, 0.5], atol=1e-6)


def test_a_block_that_leaves_no_room():
    processor = tiny_processor()
    with pytest.raises(ValueError, match=r"no room for 3 rows and 3 columns of windows, each 16\.0 × 10\.0 pixels"):
        processor.block((0.05, 0.5), 3, 3, (96, 60))
    with pytest.raises(ValueError, match="`rows` must be an integer of at least 1; got 0"):
        processor.block((0.5, 0.5), 0, 3, (96, 60))


# ------------------------------------------------------------------------------------------------------------- drawing


def test_a_picture_shows_what_is_seen():
    """White in the windows, darker elsewhere, at the original image's size."""
    processor, image = tiny_processor(**CROPPING), Image.new("RGB", (960, 480), (255, 255, 255))
    inputs = processor(image, coordinates=[[0.5, 0.5], [0.7, 0.25]], window_scales=[1, 2], return_tensors="pt")
    drawn = processor.draw(image, inputs)
    assert drawn.size == (960, 480) and drawn.mode == "RGB"
    pixels = np.asarray(drawn).astype(int)
    white, dark = (pixels == 255).all(-1), (pixels == round(0.4 * 255)).all(-1)
    # Windows of 8 of 48 pixels: 80 of 480; the second is twice as wide. Lines of two pixels and dots lie inside.
    assert white.sum() == pytest.approx(80**2 + 160**2, rel=0.08) and (white | dark).mean() > 0.95
    assert white[260, 480] and white[120, 740] and dark[120, 770] and dark[300, 480]
    # A small image is enlarged; without coordinates, the full grid; of a batch, the image that is named, without its padding.
    assert processor.draw(picture(), None).size == (480, 360)
    batch = processor([image, image], coordinates=[ONE, TWO], return_tensors="pt")
    alone = processor(image, coordinates=ONE, return_tensors="pt")
    assert np.array_equal(processor.draw(image, batch, index=0), processor.draw(image, alone))
    with pytest.raises(ValueError, match="`index` must be that of one of 2 images; got 2"):
        processor.draw(image, batch, index=2)


def test_it_draws_what_it_took(tmp_path):
    """A file upright, an image that was opened as it is; and windows of less than a pixel."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    picture(80, 40).save(tmp_path / "turned.jpg", exif=exif)
    processor, opened = tiny_processor(), Image.open(tmp_path / "turned.jpg")
    assert processor.draw(opened, processor(opened, num_tokens=4)).width > processor.draw(tmp_path / "turned.jpg").width
    assert processor.draw(Image.new("RGB", (1000, 5))).size == (1000, 5)
    assert processor.draw(picture(), processor(picture(), num_tokens=4, window_scales=0.01)).size == (480, 360)


def test_far_outside_of_the_crop_of_an_extreme_image():
    from tiny import tiny_model

    processor = tiny_processor(**CROPPING)
    with pytest.warns(UserWarning, match="1 of 1 tokens lie outside"):
        inputs = processor(Image.new("RGB", (1000, 5)), coordinates=[[0.01, 0.5]], return_tensors="pt")
    assert tiny_model()(**inputs).logits.isfinite().all()
