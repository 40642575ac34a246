"""What the page makes of an image is what the image processor makes of it in Python, on Pillow: to the last bit.

`float32` results are equal too, and compared exactly: both round each step, rescaling, subtraction, division, to float32.
"""

import numpy as np
import PIL
import pytest
from PIL import Image

from spot_hf import SpotViTImageProcessorPil
from spot_hf.frames import resized_size


IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
BYTES = {"do_rescale": False, "do_normalize": False}  # pixel values are then the resized image's bytes
SQUARE = {"size": {"height": 32, "width": 32}}
CROP_24 = {"do_center_crop": True, "crop_size": {"height": 24, "width": 24}}
RECIPES = {
    "squeezed": SQUARE,
    "cropped": {"size": {"shortest_edge": 37}, **CROP_24},
    "padded": {"size": {"shortest_edge": 21}, "do_center_crop": True, "crop_size": {"height": 40, "width": 30}},
    "padded by one": {"size": {"height": 23, "width": 27}, **CROP_24},
    "edges": {"size": {"shortest_edge": 30, "longest_edge": 45}},
    "bounded": {"size": {"max_height": 30, "max_width": 41}},
    "not resized": {"do_resize": False, **CROP_24},
    "as it is": {"do_resize": False},
    "not square": {"size": {"height": 48, "width": 20}, "do_center_crop": True, "crop_size": {"height": 31, "width": 17}},
    "one axis stays": {"size": {"height": 31, "width": 57}},
}
SIZES = [(57, 43), (43, 57), (8, 8), (37, 37), (301, 203), (400, 12), (12, 400), (33, 1)]  # (width, height)
NAMES = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth in parts, with hard edges and both extremes: what overshoots, and what is clipped."""
    rng = np.random.default_rng(seed + 1000 * width + height)
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    pixels[: height // 2] = np.where(pixels[: height // 2] > 127, 255, 0)
    return Image.fromarray(pixels)


@pytest.fixture
def compared(run_node, tmp_path):
    """Runs images through configs in the page's way and in Python's, and compares: what the page answered."""

    def compare(cases: list[tuple[Image.Image, dict]]) -> list[dict]:
        written = []
        cases = [(image, config) for image, config in cases if is_compared(config, image.size)]
        for i, (image, config) in enumerate(cases):
            (tmp_path / f"{i}.rgba").write_bytes(image.convert("RGBA").tobytes())
            config = SpotViTImageProcessorPil(**config).to_dict()
            size = {"width": image.width, "height": image.height}
            written.append({"pixels": f"{i}.rgba", "out": f"{i}.float32", "config": config, **size})
        answers = run_node("node_preprocess.mjs", written)
        for i, ((image, config), answer) in enumerate(zip(cases, answers, strict=True)):
            expected = SpotViTImageProcessorPil(**config)(image, return_tensors="np")["pixel_values"][0]
            case = f"{image.size} by {config}"
            assert "error" not in answer, f"{case}: {answer}"
            assert (answer["channels"], answer["height"], answer["width"]) == expected.shape, case
            found = np.fromfile(tmp_path / f"{i}.float32", dtype=np.float32).reshape(expected.shape)
            np.testing.assert_array_equal(found, expected.astype(np.float32), err_msg=case)
        return answers

    return compare


@pytest.mark.parametrize("resample", NAMES, ids=NAMES.values())
def test_bytes_are_pillows(resample, compared):
    recipes = [{**BYTES, **recipe, "resample": resample} for recipe in RECIPES.values()]
    compared([(noise(*size), recipe) for recipe in recipes for size in SIZES if is_possible(recipe, size)])


def is_possible(recipe: dict, size: tuple[int, int]) -> bool:
    """Pillow makes no image without pixels, nor does the page."""
    processor = SpotViTImageProcessorPil(**recipe)
    return not processor.do_resize or min(resized_size(size[1], size[0], processor.size)) > 0


def is_compared(recipe: dict, size: tuple[int, int]) -> bool:
    """Before version 13, Pillow resampled rows first also where the height shrinks more: one level apart, here and there."""
    processor = SpotViTImageProcessorPil(**recipe)
    if int(PIL.__version__.split(".")[0]) >= 13 or not processor.do_resize:
        return True
    (width, height), (rows, columns) = size, resized_size(size[1], size[0], processor.size)
    return height - rows <= max(0, 2 * (width - columns))


def test_pixel_values_are_those_of_the_image_processor(compared):
    normalizing = [
        {},
        IMAGENET,
        {"do_rescale": False, **IMAGENET},
        {"do_normalize": False},
        {"rescale_factor": 1 / 127.5, "image_mean": 1.0, "image_std": 0.7},
    ]
    recipes = [RECIPES[name] for name in ("squeezed", "cropped", "padded")]
    compared([(noise(61, 45), {**recipe, **one}) for recipe in recipes for one in normalizing])


def test_any_reduction(compared):
    """Filters of many widths, whose fractions round one way or the other."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 200, (60, 4)).tolist()
    compared(
        [
            (noise(width, height), {**BYTES, "size": {"height": rows, "width": columns}, "resample": i % 6})
            for i, (width, height, rows, columns) in enumerate(sizes)
        ]
    )


def test_photographs(compared):
    """Those that scikit-learn brings, and digits, which are enlarged."""
    from sklearn.datasets import load_digits, load_sample_images

    photographs = [Image.fromarray(one) for one in load_sample_images().images]
    digits = [Image.fromarray((one * 15).astype(np.uint8)).convert("RGB") for one in load_digits().images[:3]]
    crop = {"size": {"shortest_edge": 248}, "do_center_crop": True, "crop_size": {"height": 224, "width": 224}, **IMAGENET}
    compared([(image, recipe) for image in [*photographs, *digits] for recipe in (crop, {}, {**crop, "resample": 2})])


def test_photographs_of_models(vit_tiny, deit_tiny, nips2017, compared):
    for model in (vit_tiny, deit_tiny):
        recipe = SpotViTImageProcessorPil.from_pretrained(model).to_dict()
        compared([(nips2017[i]["image"].convert("RGB"), recipe) for i in range(3)])


def test_a_large_photograph_is_quick(compared):
    recipe = {"size": {"shortest_edge": 248}, "do_center_crop": True, "crop_size": {"height": 224, "width": 224}}
    tiles = np.tile(np.asarray(noise(500, 500)), (6, 8, 1))  # 4000 × 3000 pixels
    milliseconds = compared([(Image.fromarray(tiles), recipe)])[0]["milliseconds"]
    assert milliseconds < 3000  # 200 where a core is free; ten times that where several processes share it


def test_alpha_is_dropped(run_node, tmp_path):
    """As the image processor drops it from a file."""
    image = noise(40, 30)
    image.putalpha(Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40).astype(np.uint8)))
    image.save(tmp_path / "image.png")
    expected = SpotViTImageProcessorPil(**SQUARE)(str(tmp_path / "image.png"), return_tensors="np")["pixel_values"][0]
    (tmp_path / "image.rgba").write_bytes(image.tobytes())
    config = SpotViTImageProcessorPil(**SQUARE).to_dict()
    run_node("node_preprocess.mjs", [{"pixels": "image.rgba", "out": "out", "width": 40, "height": 30, "config": config}])
    np.testing.assert_array_equal(np.fromfile(tmp_path / "out", dtype=np.float32), expected.flatten())


def test_frames(run_node):
    """Sizes, and the maps between frames, over many sizes: of the recipes above, and where rounding decides."""
    recipes = [
        *RECIPES.values(),
        {"size": {"shortest_edge": 11, "longest_edge": 14}},
        {"size": {"shortest_edge": 248}, "do_center_crop": True, "crop_size": {"height": 224, "width": 225}},
    ]
    sizes = [(w, h) for w in (1, 2, 3, 5, 7, 10, 28, 33, 99, 500) for h in (1, 3, 4, 9, 21, 37, 64, 375)]
    points = np.random.default_rng(0).random((3, 2)).tolist()
    cases = [(recipe, size) for recipe in recipes for size in sizes]
    answers = run_node(
        "node_preprocess.mjs",
        [
            {"width": w, "height": h, "config": SpotViTImageProcessorPil(**recipe).to_dict(), "points": points}
            for recipe, (w, h) in cases
        ],
    )
    compared = 0
    for (recipe, size), answer in zip(cases, answers, strict=True):
        processor = SpotViTImageProcessorPil(**recipe)
        if not is_possible(recipe, size):
            assert "`size` must leave at least one pixel" in answer["error"]
            continue
        frame = processor._frame(size, **processor._recipe())
        found = answer["frame"]
        assert (found["resizedWidth"], found["resizedHeight"]) == frame.resized_size, (recipe, size)
        assert (found["width"], found["height"]) == frame.model_size, (recipe, size)
        assert (found["left"], found["top"]) == frame.crop_offset, (recipe, size)
        given = np.array(points)
        # Float64 both, with operations in another order; far outside of the image where the crop is a small part of it.
        np.testing.assert_allclose(answer["toImage"], processor.to_image_frame(given, size), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(answer["toModel"], processor.to_model_frame(given, size), rtol=1e-12, atol=1e-12)
        compared += 1
    assert compared > 0.9 * len(cases)


def test_what_a_config_leaves_out_is_the_image_processors_default(run_node, tmp_path):
    (tmp_path / "image.rgba").write_bytes(noise(50, 40).convert("RGBA").tobytes())
    case = {"pixels": "image.rgba", "width": 50, "height": 40}
    run_node(
        "node_preprocess.mjs",
        [{**case, "config": {}, "out": "short"}, {**case, "config": SpotViTImageProcessorPil().to_dict(), "out": "long"}],
    )
    assert (tmp_path / "short").read_bytes() == (tmp_path / "long").read_bytes()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"do_pad": True}, "`do_pad` must be false: a padded image has no frame of its own; got true"),
        ({"resample": 6}, "`resample` must be 0 (nearest), 1 (Lanczos)"),
        ({"size": {"longest_edge": 30}}, "`size` must have height and width, shortest_edge"),
        ({"do_center_crop": True, "crop_size": {"height": 8}}, '`crop_size` must have height and width; got {"height":8}'),
        ({"image_mean": [0.5]}, "`image_mean` must be a number or 3 of them; got [0.5]"),
    ],
)
def test_what_cannot_be_followed_is_an_error_that_names_the_key(config, message, run_node, tmp_path):
    (tmp_path / "image.rgba").write_bytes(bytes(4 * 5 * 3))
    case = {"pixels": "image.rgba", "out": "out", "width": 5, "height": 3, "config": config}
    assert message in run_node("node_preprocess.mjs", [case])[0]["error"]


def test_pixels_of_another_size_are_an_error(run_node, tmp_path):
    (tmp_path / "image.rgba").write_bytes(bytes(4 * 5 * 3))
    case = {"pixels": "image.rgba", "out": "out", "width": 5, "height": 4, "config": {}}
    assert run_node("node_preprocess.mjs", [case])[0]["error"] == "`rgba` must hold 4 × 5 × 4 values; got 60"
