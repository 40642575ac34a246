"""From files to what a model sees: scaled decoding, and windows that are cut out of the image itself."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import nearly, tiny_model, tiny_processor
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import load_image

from spot_hf import SpotImageClassificationPipeline
from spot_hf.decoding import LOCAL_FILTERS, DecodedImage
from spot_hf.frames import Frame
from spot_hf.placement import grid, isotropic
from spot_hf.windows import WindowRegions, sample_windows


def photograph(width=301, height=200, seed=0) -> Image.Image:
    """Smooth, as photographs are: noise of a tenth of the size, enlarged."""
    pixels = np.random.default_rng(seed).integers(0, 256, (max(2, height // 10), max(2, width // 10), 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def jpeg(image: Image.Image, orientation: int | None = None) -> bytes:
    content, exif = io.BytesIO(), Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    image.save(content, format="JPEG", quality=95, exif=exif)
    return content.getvalue()


CROPPING = {"size": {"shortest_edge": 56}, "do_center_crop": True, "crop_size": {"height": 48, "width": 48}}
RECIPES = {
    "size": {},
    "short side and crop": CROPPING,
    "bicubic": {**CROPPING, "resample": 3},
    "lanczos": {**CROPPING, "resample": 1},
    "crop alone": {"do_resize": False, "do_center_crop": True, "crop_size": {"height": 48, "width": 48}},
}
recipes = pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())


# ---------------------------------------------------------------------------------------------------------------- exact


@recipes
def test_pixels_are_those_of_the_librarys_own_backend(recipe):
    """Bit for bit: an image that Pillow resizes need not become an array before."""

    class Ordinary(PilBackend):
        resample, image_mean, image_std = 3, [0.5] * 3, [0.5] * 3
        do_resize = do_rescale = do_normalize = do_convert_rgb = True

    processor = tiny_processor(**recipe)
    names = ("do_resize", "size", "resample", "do_center_crop", "crop_size", "image_mean", "image_std")
    ordinary = Ordinary(**{name: getattr(processor, name) for name in names})
    images = [photograph(*size) for size in ((301, 200), (90, 110), (60, 60))]
    ours, theirs = (one(images, return_tensors="pt")["pixel_values"] for one in (processor, ordinary))
    assert torch.equal(ours, theirs)


# --------------------------------------------------------------------------------------------------------------- scaled


def test_a_jpeg_is_decoded_as_small_as_its_recipe_allows(tmp_path):
    processor = tiny_processor(**CROPPING)  # to 84 × 56 pixels
    sizes = {(301, 200): (151, 100), (700, 500): (88, 63), (650, 420): (163, 105), (150, 100): (150, 100)}
    for size, decoded in sizes.items():
        (tmp_path / "photo.jpg").write_bytes(jpeg(photograph(*size)))
        found = processor.open_image(tmp_path / "photo.jpg", decode="scaled")
        assert (found.size, found.pixels.size) == (size, decoded)
        assert found.extent == pytest.approx([n / round(n / m) for n, m in zip(size, decoded, strict=True)])
    photograph().save(tmp_path / "photo.png")
    assert processor.open_image(tmp_path / "photo.png", decode="scaled").pixels.size == (301, 200)  # libjpeg's alone


@pytest.mark.parametrize("size", [(301, 200), (333, 517), (1201, 799)])
@pytest.mark.parametrize("options", [{}, {"num_tokens": 4}, {"num_tokens": 4, "return_windows": True}], ids=str)
def test_what_is_decoded_scaled_looks_the_same(size, options):
    """Nothing moves: not by the cut at the last block, and not by half a pixel of the smaller image."""
    processor, content = tiny_processor(**CROPPING, resample=3), jpeg(photograph(*size))
    exact, scaled = (processor.open_image(content, decode=decode) for decode in ("exact", "scaled"))
    assert isinstance(exact, Image.Image) and scaled.is_scaled
    first, second = (processor(one, return_tensors="pt", **options) for one in (exact, scaled))
    if options:  # positions are of the whole image
        assert torch.equal(first["coordinates"], second["coordinates"])
    name = "windows" if options.get("return_windows") else "pixel_values"
    difference = (first[name] - second[name]).abs()
    # Two filters one after the other for one: of pictures whose details span ten pixels, a few of 255 steps (of 2 / 255).
    assert difference.mean() < 3 * 2 / 255 and difference.max() < 14 * 2 / 255
    if name == "pixel_values":  # moved by a pixel of the model's, it would differ by more
        moved = (first[name][..., 1:] - second[name][..., :-1]).abs()
        assert difference.mean() < moved.mean() / 4


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(304, 208), (460, 457)], ids=str)  # whole blocks, and not
def test_upright_as_exif_says(orientation, size):
    content, processor = jpeg(photograph(*size), orientation), tiny_processor(**CROPPING)
    expected = load_image(Image.open(io.BytesIO(content)))
    exact, scaled = (processor.open_image(content, decode=decode) for decode in ("exact", "scaled"))
    assert np.array_equal(np.asarray(exact), np.asarray(expected)) and exact.mode == "RGB"
    assert scaled.size == expected.size == (size[::-1] if orientation > 4 else size) and scaled.is_scaled
    # Where the last blocks are cut, turning puts them before the image: it must not move.
    first, second = (torch.from_numpy(processor(one)["pixel_values"][0]) for one in (exact, scaled))
    difference = (first - second).abs().mean()
    for axis in (1, 2):
        moved = (first.roll(1, axis) - second).abs().mean()
        assert difference < moved / 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_upright_image_begins_where_it_is_said_to(orientation):
    """A ramp over the whole image, of which a position's value is known: to a tenth of a pixel of 450 × 437, 1/1000 of it."""
    ramp = np.linspace(0, 255, 450)[None].repeat(437, 0), np.linspace(0, 255, 437)[:, None].repeat(450, 1)
    image = Image.fromarray(np.stack([*ramp, np.zeros((437, 450))], -1).round().astype(np.uint8))
    processor = tiny_processor(size={"height": 48, "width": 48}, do_normalize=False)
    exact, scaled = (processor.open_image(jpeg(image, orientation), decode=decode) for decode in ("exact", "scaled"))
    first, second = (np.asarray(processor(one)["pixel_values"][0])[:2, 8:-8, 8:-8] for one in (exact, scaled))
    # JPEG's own loss is noise of mean 0; a shift by half a pixel of 1/8 would be a mean of 0.01.
    assert np.abs((first - second).mean((1, 2))).max() < 2e-3


def test_boxes_and_maps_are_of_the_whole_image():
    processor, content = tiny_processor(**CROPPING), jpeg(photograph(300, 200))
    scaled = processor.open_image(content, decode="scaled")
    assert scaled.pixels.size == (150, 100)
    inputs = {"num_tokens": 5, "boxes": [180, 100, 230, 200], "image_ids": ["one"]}  # outside of the smaller image
    whole = processor.open_image(content)
    first, second = (processor(one, return_tensors="pt", **inputs) for one in (whole, scaled))
    assert torch.equal(first["coordinates"], second["coordinates"])
    with pytest.raises(ValueError, match=r"`boxes` of image 0 .* 300 wide and 200 high"):
        processor(scaled, num_tokens=5, boxes=[0, 0, 301, 200])


def test_an_image_of_somebody_else_stays_as_it_is():
    """Scaled decoding changes the opened file's object: only ours."""
    opened = Image.open(io.BytesIO(jpeg(photograph(300, 200))))
    tiny_processor(**CROPPING)(opened, decode="scaled")
    assert opened.size == (300, 200)


def test_the_recipe_of_a_call_says_how_much_is_decoded(tmp_path):
    file, processor = str(tmp_path / "photo.jpg"), tiny_processor(**CROPPING)
    Path(file).write_bytes(jpeg(photograph(600, 400)))
    for options in (
        {"size": {"height": 400, "width": 400}, "do_center_crop": False},
        {"do_resize": False, "crop_size": {"height": 300, "width": 300}},
        {"size": {"shortest_edge": 40}, "crop_size": {"height": 48, "width": 48}},  # pads
    ):
        exact, scaled = (processor(file, decode=decode, **options)["pixel_values"][0] for decode in ("exact", "scaled"))
        assert np.array_equal(exact, scaled)
    nested, flat = processor([[file]], decode="scaled"), processor([file], decode="scaled")
    assert np.array_equal(nested["pixel_values"][0], flat["pixel_values"][0])


def test_a_broken_file_is_one_when_it_is_opened():
    content = jpeg(photograph(300, 200))
    for decode in ("exact", "scaled"):
        with pytest.raises(OSError, match="truncated"):
            tiny_processor(**CROPPING).open_image(content[: len(content) // 2], decode=decode)


def test_a_path_is_decoded_as_the_processor_says(tmp_path):
    file = str(tmp_path / "photo.jpg")
    Path(file).write_bytes(jpeg(photograph(300, 200)))
    saved = tiny_processor(**CROPPING, decode="scaled")
    saved.save_pretrained(tmp_path / "saved")
    loaded = type(saved).from_pretrained(tmp_path / "saved")
    assert loaded.decode == "scaled"
    scaled, exact = loaded(file), loaded(file, decode="exact")
    assert np.array_equal(scaled["pixel_values"][0], loaded([loaded.open_image(file)])["pixel_values"][0])
    assert np.array_equal(exact["pixel_values"][0], tiny_processor(**CROPPING)(file)["pixel_values"][0])
    assert not np.array_equal(scaled["pixel_values"][0], exact["pixel_values"][0])
    for make in (lambda: loaded(file, decode="half"), lambda: loaded.open_image(file, decode="half")):
        with pytest.raises(ValueError, match="`decode` must be one of exact, scaled; got 'half'"):
            make()
    with pytest.raises(ValueError, match="`decode` must be one of exact, scaled; got 'half'"):
        tiny_processor(decode="half")


# -------------------------------------------------------------------------------------------------------------- windows


@pytest.mark.parametrize("resample", LOCAL_FILTERS)
def test_regions_are_parts_of_the_resized_image(resample):
    """In floating point, without the rounding of 8-bit pixels that a sample more or less would fall on: to 1e-4 of 255."""
    channel = photograph().convert("F")
    for size, resized in (((301, 200), (97, 64)), ((301, 200), (400, 300)), ((60, 45), (60, 45))):
        image = channel.resize(size)
        frame = Frame(resized, (48, 40), (7, 3))
        whole = np.asarray(image.resize(resized, resample=resample))[3:43, 7:55]
        for left, top in ((0, 0), (31, 23), (12, 5)):
            region = DecodedImage.of(image)._box(frame, resample, left + 7, top + 3, 17, 17)
            assert np.abs(np.asarray(region) - whole[top : top + 17, left : left + 17]).max() < 1e-4 * 255


COORDINATES = {
    "isotropic": isotropic(9),
    "a cell of the grid": grid(48, 48, 8)[8:9],
    "borders": torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.001, 0.5], [0.5, 0.999], [1.0, 0.0]]),
    "anywhere": torch.rand(8, 2, generator=torch.Generator().manual_seed(0)),
}


@pytest.mark.parametrize("coordinates", COORDINATES.values(), ids=COORDINATES.keys())
def test_regions_give_the_same_windows(coordinates):
    """Two steps for one, on the same pixels: float32 rounds a position by at most 48 * eps pixels, 6e-6."""
    image = torch.rand(3, 48, 40, generator=torch.Generator().manual_seed(1))
    regions = WindowRegions(coordinates, 8, 48, 40)
    cut = torch.stack([
        image[:, top : top + regions.side, left : left + regions.side]
        for left, top in zip(regions.left.tolist(), regions.top.tolist(), strict=True)
    ])  # fmt: skip
    torch.testing.assert_close(regions.sample(cut), sample_windows(image[None], coordinates[None], 8)[0], rtol=0, atol=2e-5)


@recipes
@pytest.mark.parametrize("coordinates", COORDINATES.values(), ids=COORDINATES.keys())
def test_windows_are_those_that_the_model_would_cut_out(recipe, coordinates):
    processor = tiny_processor(**recipe)
    images = [photograph(301, 200, seed=1), photograph(90, 110, seed=2)]
    # Given positions in the image frame that are these in the model's.
    given = [processor.to_image_frame(coordinates, one.size) for one in images]
    inside = [((one >= 0) & (one <= 1)).all(-1) for one in given]
    given = [one[keep] for one, keep in zip(given, inside, strict=True)]
    pixels, windows = (
        processor(images, coordinates=given, return_windows=flag, return_tensors="pt") for flag in (False, True)
    )
    assert set(windows) == {*pixels, "windows"} - {"pixel_values"}
    for i, one in enumerate(given):
        expected = sample_windows(pixels["pixel_values"][i : i + 1], pixels["coordinates"][i : i + 1, : len(one)], 8)[0]
        difference = (windows["windows"][i, : len(one)] - expected).abs()
        # One 8-bit step of a pixel, 2 / 255, here and there; else rounding.
        assert difference.max() <= 2 / 255 + 1e-5 and (difference > 1e-5).float().mean() < 0.01
        assert not windows["windows"][i, len(one) :].any()


@pytest.mark.parametrize(
    "options",
    [
        {"num_tokens": 30},  # so many that the whole image is resized
        {"num_tokens": 4, "window_scales": 2.0},
        {"num_tokens": 4, "window_scales": "cover"},
        {"num_tokens": 5, "placement": "edge", "image_ids": ["a", "b"]},
        {"num_tokens": 5, "placement": "foveated_center"},
        {"placement": "grid"},
        {},
        {"num_tokens": 30, "do_rescale": False, "do_normalize": False},
        {"num_tokens": 4, "resample": 0},  # the nearest pixel: by another rule in a region
    ],
    ids=str,
)
def test_windows_of_other_kinds_come_from_the_resized_image(options):
    """Exactly: the same pixels, the same function."""
    processor, images = tiny_processor(**CROPPING), [photograph(90, 110), photograph(301, 200)]
    pixels, windows = (processor(images, return_windows=flag, return_tensors="pt", **options) for flag in (None, True))
    coordinates = pixels.get("coordinates", grid(48, 48, 8)[None])
    expected = sample_windows(pixels["pixel_values"], coordinates, 8, pixels.get("window_scales"))
    assert torch.equal(windows["windows"], expected) and "pixel_values" not in windows
    assert torch.equal(windows["coordinates"], coordinates.expand(2, -1, -1))


def test_windows_of_what_is_no_picture_of_pillows():
    processor, image = tiny_processor(**CROPPING), photograph()
    array = np.asarray(image)
    expected = processor(image, num_tokens=4, return_tensors="pt")
    for one in (array, torch.from_numpy(array.copy()), image.convert("RGBA")):
        windows = processor(one, num_tokens=4, return_windows=True, return_tensors="pt")["windows"]
        assert torch.equal(windows, sample_windows(expected["pixel_values"], expected["coordinates"], 8))


def test_windows_of_pixels_as_they_are():
    processor, image = tiny_processor(do_rescale=False, do_normalize=False), photograph()
    pixels, windows = (processor(image, num_tokens=4, return_windows=flag, return_tensors="pt") for flag in (False, True))
    expected = sample_windows(pixels["pixel_values"], pixels["coordinates"], 8)
    assert windows["windows"].dtype == torch.float32 and (windows["windows"] - expected).abs().max() < 1.01


def test_windows_may_be_saved(tmp_path):
    tiny_processor(return_windows=True).save_pretrained(tmp_path)
    processor = type(tiny_processor()).from_pretrained(tmp_path)
    assert set(processor(photograph())) == {"windows", "coordinates"}
    classifier = SpotImageClassificationPipeline(model=tiny_model(), image_processor=processor)
    ordinary = SpotImageClassificationPipeline(model=tiny_model(), image_processor=tiny_processor())
    assert classifier(photograph()) == ordinary(photograph())


def test_a_random_draw_is_the_images_whether_windows_are_asked_for_or_not():
    processor, image = tiny_processor(**CROPPING), photograph()
    first, second = (processor(image, num_tokens=4, placement="uniform", return_windows=flag) for flag in (False, True))
    assert np.array_equal(first["coordinates"], second["coordinates"])


def test_a_model_takes_windows():
    model, processor, images = tiny_model(), tiny_processor(**CROPPING), [photograph(90, 110), photograph(301, 200)]
    pixels, windows = (processor(images, num_tokens=4, return_windows=flag, return_tensors="pt") for flag in (False, True))
    with torch.no_grad():
        expected = model(**pixels).logits
        # A step of an 8-bit pixel here and there, of weights of 0.3 and logits of order 1.
        torch.testing.assert_close(model(**windows).logits, expected, rtol=0, atol=2e-2)
        torch.testing.assert_close(
            model.spot_vit(**windows).pooler_output, model.spot_vit(**pixels).pooler_output, rtol=0, atol=2e-2
        )
        cut = sample_windows(pixels["pixel_values"], pixels["coordinates"], 8)
        assert torch.equal(model(windows=cut, coordinates=pixels["coordinates"]).logits, expected)


WINDOWS, PLACES = torch.zeros(2, 4, 3, 8, 8), torch.full((2, 4, 2), 0.5)


@pytest.mark.parametrize(
    ("inputs", "config", "message"),
    [
        ({"windows": WINDOWS}, {}, "`windows` needs `coordinates`"),
        ({"windows": WINDOWS, "coordinates": PLACES, "pixel_values": torch.zeros(2, 3, 48, 48)}, {}, "exclude each other"),
        ({"windows": WINDOWS[:, :3], "coordinates": PLACES}, {}, "one for each of the 4 coordinates"),
        ({"windows": WINDOWS[..., :7], "coordinates": PLACES}, {}, r"`windows` must have shape .*\(2, 4, 3, 8, 7\)"),
        ({"windows": WINDOWS.tolist(), "coordinates": PLACES}, {}, "`windows` must have shape .* got list"),
        ({"windows": WINDOWS, "coordinates": PLACES, "num_tokens": 4}, {}, "`windows` excludes `num_tokens`"),
        ({"windows": WINDOWS}, {"num_tokens": 4}, "`windows` needs `coordinates`"),
        ({"windows": WINDOWS, "coordinates": PLACES}, {"window_border": "zero"}, "needs `pixel_values`.*'zero'"),
        ({"windows": WINDOWS, "coordinates": PLACES}, {"window_spacing": 1.5}, "needs `pixel_values`.*1.5"),
    ],
)
def test_windows_that_cannot_be(inputs, config, message):
    with pytest.raises(ValueError, match=message):
        tiny_model(**config)(**inputs)


# ------------------------------------------------------------------------------------------------------------- pipeline


@pytest.fixture(scope="module")
def classifier():
    return SpotImageClassificationPipeline(model=tiny_model(), image_processor=tiny_processor(**CROPPING))


def seen_by(classifier, monkeypatch) -> list[str]:
    """What the model was given, call by call."""
    seen, forward = [], classifier.model.forward

    def record(**inputs):
        seen.append("windows" if "windows" in inputs else "pixel_values")
        return forward(**inputs)

    monkeypatch.setattr(classifier.model, "forward", record)
    return seen


def test_few_tokens_travel_as_windows(classifier, monkeypatch):
    images, seen = [photograph(90, 110), photograph(301, 200)], seen_by(classifier, monkeypatch)
    for options, what in (
        ({"num_tokens": 4}, "windows"),
        ({"num_tokens": 4, "placement": "uniform"}, "windows"),
        ({"num_tokens": 30}, "pixel_values"),
        ({}, "pixel_values"),
        ({"num_tokens": 4, "placement": "edge"}, "pixel_values"),
        ({"num_tokens": 4, "window_scales": "cover"}, "pixel_values"),
        ({"coordinates": [[0.5, 0.5]]}, "pixel_values"),
    ):
        seen.clear()
        classifier(images, batch_size=2, **options)
        assert seen == [what], options
    # In a batch whose images differ, too: a call's images have all of them windows, or none.
    mixed = [{"image": images[0], "coordinates": [[0.4, 0.5]] * 3}, images[1], {"image": images[1], "window_scales": 2.0}]
    seen.clear()
    together = classifier(mixed, num_tokens=4, batch_size=3, return_coordinates=True)
    assert seen == ["windows"]
    assert together == nearly([classifier(one, num_tokens=4, return_coordinates=True) for one in mixed])


def test_answers_with_windows_are_those_with_pixels(classifier, monkeypatch):
    images = [photograph(200 + 7 * i, 150, seed=i) for i in range(8)]
    found = classifier(images, num_tokens=4, batch_size=3)
    monkeypatch.setattr(classifier, "cuts_windows", lambda parameters: False)
    for one, other in zip(found, classifier(images, num_tokens=4, batch_size=3), strict=True):
        scores = [{entry["label"]: entry["score"] for entry in answer} for answer in (one, other)]
        assert scores[0] == pytest.approx(scores[1], abs=5e-3)  # an 8-bit step here and there


def test_a_pipeline_decodes_as_it_is_told(classifier, tmp_path):
    files = []
    for i in range(3):
        files.append(str(tmp_path / f"{i}.jpg"))
        Path(files[-1]).write_bytes(jpeg(photograph(300 + i, 200, seed=i)))
    scaled = [classifier.image_processor.open_image(one, decode="scaled") for one in files]
    answers = classifier(files, num_tokens=4, decode="scaled", return_coordinates=True)
    assert answers == classifier(scaled, num_tokens=4, return_coordinates=True)
    exact = classifier(files, num_tokens=4, return_coordinates=True)
    assert [one["coordinates"] for one in answers] == [one["coordinates"] for one in exact] and answers != exact
    with pytest.raises(ValueError, match="`decode` must be one of exact, scaled; got 'fast'"):
        classifier(files, decode="fast")


def test_a_compiled_pipeline_gives_the_same_answers(classifier):
    images = [photograph(90, 110, seed=i) for i in range(3)]
    compiled = SpotImageClassificationPipeline(model=tiny_model(), image_processor=classifier.image_processor, compile=True)
    assert compiled(images, num_tokens=4, batch_size=2) == nearly(classifier(images, num_tokens=4, batch_size=2))


def test_whatever_an_image_comes_as(classifier, tmp_path):
    image = photograph(300, 200)
    (tmp_path / "photo.png").parent.mkdir(exist_ok=True)
    image.save(tmp_path / "photo.png")
    encoded = base64.b64encode((tmp_path / "photo.png").read_bytes()).decode()
    expected = classifier(image, num_tokens=4)
    given = [str(tmp_path / "photo.png"), encoded, f"data:image/png;base64,{encoded}", image]
    for decode in ("exact", "scaled"):  # which is libjpeg's
        for one in given:
            assert classifier(one, num_tokens=4, decode=decode) == expected
    for array in (np.asarray(image), torch.from_numpy(np.array(image))):
        assert classifier(array, num_tokens=4) == nearly(expected)
    with pytest.raises(TypeError, match="url linking to an image"):
        classifier({"image": 5})


def test_windows_of_ones_own_sizes_are_numbers_of_any_kind(classifier):
    image = photograph(300, 200)
    expected = classifier(image, num_tokens=4, window_scales=[2.0] * 4, return_coordinates=True)
    for scales in (torch.full((4,), 2.0), np.full(4, 2.0)):
        assert classifier(image, num_tokens=4, window_scales=scales, return_coordinates=True) == expected
