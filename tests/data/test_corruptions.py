"""Corruptions: the benchmark's names and severities, drawn by seed and image id alone, on what the model sees."""

import sys

import imagecorruptions
import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_processor

from spot_hf.data.corruptions import CORRUPTIONS, SEVERITIES, Corruption, check_corruptions, check_view_size, of_views


CROPPING = {"size": {"shortest_edge": 56}, "do_center_crop": True, "crop_size": {"height": 48, "width": 40}}
WITHOUT_DRAWS = {
    "defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression", "gaussian_blur", "saturate",
}  # fmt: skip


class Nothing(Corruption):
    def __call__(self, pixels, image_id):
        return pixels


def photograph(size: tuple[int, int] = (96, 80)) -> Image.Image:
    """Smooth shapes and fine grain, as photographs have."""
    generator = np.random.default_rng(0)
    coarse = Image.fromarray(generator.integers(0, 256, (6, 7, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    grain = generator.normal(0, 12, (size[1], size[0], 1))
    return Image.fromarray((np.asarray(coarse) + grain).clip(0, 255).astype(np.uint8))


def test_the_names_are_the_librarys():
    assert set(CORRUPTIONS) == set(imagecorruptions.get_corruption_names("all"))
    assert list(CORRUPTIONS[:15]) == imagecorruptions.get_corruption_names("common")


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_draw_is_the_seeds_and_the_images(name):
    pixels, corruption = np.asarray(photograph()), Corruption(name, 3, seed=1)
    before = pixels.copy()
    np.random.seed(5)
    first, after = corruption(pixels, "a.png"), np.random.random()
    np.random.seed(6)
    assert np.array_equal(corruption(pixels, "a.png"), first)
    assert np.array_equal(pixels, before) and first.shape == pixels.shape and first.dtype == np.uint8
    assert not np.array_equal(first, pixels)
    np.random.seed(5)
    assert np.random.random() == after, "the global generator was left elsewhere"
    others = [corruption(pixels, "b.png"), Corruption(name, 3, seed=2)(pixels, "a.png")]
    assert all(np.array_equal(other, first) == (name in WITHOUT_DRAWS) for other in others)


@pytest.mark.parametrize("name", ["gaussian_noise", "defocus_blur", "fog", "contrast", "jpeg_compression", "pixelate"])
def test_a_higher_severity_leaves_less(name):
    """Of the image: by the correlation of the pixels before and after, as fog also changes how bright they are."""
    pixels = np.asarray(photograph())
    left = [np.corrcoef(pixels.ravel(), Corruption(name, one)(pixels, "a").ravel())[0, 1] for one in SEVERITIES]
    assert left[0] < 1 and left == sorted(left, reverse=True) and len(set(left)) == 5


def test_severities_are_the_benchmarks():
    """By the tables of Hendrycks and Dietterich's code: standard deviations of noise, and what contrast is multiplied by."""
    grey = np.full((200, 200, 3), 127, np.uint8)
    ramp = np.broadcast_to(np.arange(64, 192, dtype=np.uint8)[:, None], (128, 128))[..., None].repeat(3, axis=2)
    for severity, noise, contrast in ((1, 0.08, 0.4), (2, 0.12, 0.3)):
        found = Corruption("gaussian_noise", severity)(grey, "a").std() / 255
        assert found == pytest.approx(noise, rel=0.02)  # of 120,000 draws; none is clipped
        span = np.ptp(Corruption("contrast", severity)(ramp, "a").astype(float))
        assert span == pytest.approx(127 * contrast, abs=1)  # rounded down to 8 bits


@pytest.mark.parametrize("recipe", [{}, CROPPING], ids=["size", "crop"])
def test_a_view_is_what_the_model_sees(recipe):
    """Without a corruption, pixel values are the same bits, through the view and without it."""
    processor, image = tiny_processor(**recipe), photograph()
    view = Nothing("fog", 1).view(processor, image, "a")
    direct = processor(image, placement="grid", return_tensors="pt")["pixel_values"]
    assert view.size == (direct.shape[-1], direct.shape[-2])
    assert torch.equal(of_views(processor)(view, placement="grid", return_tensors="pt")["pixel_values"], direct)
    small = of_views(processor, (24, 20))(view, placement="grid", return_tensors="pt")["pixel_values"]
    expected = tiny_processor()(view.resize((20, 24), Image.Resampling.BICUBIC), do_resize=False, return_tensors="pt")
    assert torch.equal(small, expected["pixel_values"])
    corrupted = Corruption("contrast", 5).view(processor, image, "a")
    assert np.array_equal(np.asarray(corrupted), Corruption("contrast", 5)(np.asarray(view), "a"))


def test_what_cannot_be_corrupted():
    with pytest.raises(ValueError, match="images of at least 32 × 32 pixels; got 3 channels of 48 × 31"):
        check_view_size((48, 31), 3)
    with pytest.raises(ValueError, match="got 1 channels of 48 × 48"):
        check_view_size((48, 48), 1)
    check_view_size((32, 32), 3)


def test_the_library_is_asked_for_where_it_is_needed(monkeypatch):
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    check_corruptions(None, None)
    with pytest.raises(ImportError, match=r"needs imagecorruptions-imaug: pip install 'spot_hf\[corruptions\]'"):
        check_corruptions(["fog"], [3])
