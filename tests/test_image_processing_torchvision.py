"""The image processor's torchvision backend against its PIL backend: the same pixels up to rounding, the same coordinates.

torchvision runs in a process of its own (`torchvision_processing.py`), PIL here.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torchvision_shim import run_beside_torchvision
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from spot_hf import SpotViTImageProcessorPil


RECIPES = {
    "size": {"size": {"height": 48, "width": 32}, "resample": 2},
    "enlarged": {"size": {"height": 96, "width": 96}, "resample": 3},
    "short_side_and_crop": {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}, "do_center_crop": True},
    "odd_crop": {"size": {"shortest_edge": 37}, "crop_size": {"height": 32, "width": 24}, "do_center_crop": True},
    "crop_that_pads": {"do_resize": False, "crop_size": {"height": 65, "width": 70}, "do_center_crop": True},
    "nothing": {"do_resize": False, "do_rescale": False, "do_normalize": False},
}
SIZES_AND_MODES = [((60, 45), "RGB"), ((45, 61), "RGB"), ((50, 50), "L"), ((47, 39), "RGBA"), ((61, 47), "CMYK")]
# Placements that do not look at the pixels: their coordinates depend on the image's id alone, a digest of its pixels.
PLACEMENTS = {
    "isotropic": {"placement": "isotropic", "num_tokens": 9},
    "uniform": {"placement": "uniform", "num_tokens": 9},
    "sobol": {"placement": "sobol", "num_tokens": 9, "seed": 3},
    "grid_subset": {"placement": "grid_subset", "num_tokens": 5},
    "salient": {"placement": "salient", "num_tokens": 4, "saliency": [[[0, 1, 2], [3, 4, 5]]] * len(SIZES_AND_MODES)},
}


def pictures() -> list[Image.Image]:
    """Smooth ones, as photographs are."""
    generator = np.random.default_rng(0)
    coarse = [generator.integers(0, 256, (6, 6, 3), dtype=np.uint8) for _ in SIZES_AND_MODES]
    return [
        Image.fromarray(one).resize(size, Image.Resampling.BICUBIC).convert(mode)
        for one, (size, mode) in zip(coarse, SIZES_AND_MODES, strict=True)
    ]


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    """The directory that the other process has filled."""
    directory = tmp_path_factory.mktemp("torchvision")
    names = []
    for i, picture in enumerate(pictures()):
        names.append(f"{i}.tiff")  # holds every mode, without loss
        picture.save(directory / names[-1])
    for name, recipe in RECIPES.items():
        SpotViTImageProcessorPil(**recipe, patch_size=8).save_pretrained(directory / name)
    points = torch.rand(7, 2, generator=torch.Generator().manual_seed(0)).tolist()
    cases = {"pictures": names, "recipes": list(RECIPES), "points": points, "placements": PLACEMENTS}
    (directory / "cases.json").write_text(json.dumps(cases))
    run_beside_torchvision("torchvision_processing.py", directory, HF_HOME=directory / "huggingface")
    return directory


def moved(recipe: str, size: tuple[int, int]) -> tuple[int, int]:
    """By how many rows and columns torchvision's picture lies further down and right. Where a crop pads an odd number of
    pixels, PIL's backend puts the odd one before the image, torchvision's behind it."""
    if recipe != "crop_that_pads":
        return 0, 0
    (width, height), crop = size, RECIPES[recipe]["crop_size"]
    return -((crop["height"] - height) % 2), -((crop["width"] - width) % 2)


@pytest.mark.parametrize("recipe", RECIPES)
def test_pixel_values_are_those_of_pil(recipe, results):
    """To two grey levels of 255: both resize 8-bit images with the same anti-aliased kernels, and round on their own. Where
    nothing is resized, to float32 rounding."""
    theirs = load_file(results / "results.safetensors")
    processor = AutoImageProcessor.from_pretrained(results / recipe)
    level = 1 / 255 / processor.image_std[0]
    tolerance = 1e-6 if RECIPES[recipe].get("do_resize") is False else 2.001 * level
    for i, picture in enumerate(pictures()):
        ours = processor(picture, return_tensors="pt")["pixel_values"].float()
        ours = torch.roll(ours, moved(recipe, picture.size), dims=(-2, -1))
        difference = (theirs[f"{recipe}/{i}/pixel_values"].float() - ours).abs()
        assert difference.max() <= tolerance, difference.max() / level
        assert difference.mean() <= level / 4, difference.mean() / level


@pytest.mark.parametrize("recipe", RECIPES)
def test_coordinates_and_frames_are_those_of_pil(recipe, results):
    theirs, points = load_file(results / "results.safetensors"), json.loads((results / "cases.json").read_text())["points"]
    processor, points = AutoImageProcessor.from_pretrained(results / recipe), torch.tensor(points)
    for i, picture in enumerate(pictures()):
        ours = {
            "coordinates": processor(picture, coordinates=points, return_tensors="pt")["coordinates"][0],
            "to_model_frame": processor.to_model_frame(points, picture.size),
            "to_image_frame": processor.to_image_frame(points, picture.size),
        }
        down, right = moved(recipe, picture.size)
        if (down, right) == (0, 0):
            assert all(torch.equal(theirs[f"{recipe}/{i}/{key}"].view(-1, 2), one) for key, one in ours.items())
        else:  # the frames differ by what the pixels do
            crop = RECIPES[recipe]["crop_size"]
            expected = ours["coordinates"] + torch.tensor([right / crop["width"], down / crop["height"]])
            torch.testing.assert_close(theirs[f"{recipe}/{i}/coordinates"][0], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", PLACEMENTS)
def test_random_placements_are_the_same_draws(name, results):
    processor = AutoImageProcessor.from_pretrained(results / "size")
    ours = processor(pictures(), **PLACEMENTS[name], return_tensors="pt")["coordinates"]
    theirs = load_file(results / "results.safetensors")[f"placement/{name}"]
    assert torch.equal(theirs, ours)
    if name != "isotropic":
        assert len({tuple(one.flatten().tolist()) for one in ours}) == len(ours)  # each image has its own


def test_torchvision_is_taken_where_it_is(results):
    loaded = json.loads((results / "results.json").read_text())
    assert loaded == {
        "remote": ["SpotViTImageProcessor", "transformers_modules"],
        "remote_pil": ["SpotViTImageProcessorPil", "transformers_modules"],
        "package": ["SpotViTImageProcessor", "spot_hf"],
        "package_pil": ["SpotViTImageProcessorPil", "spot_hf"],
        "name": ["SpotViTImageProcessor", "spot_hf"],
    }


def test_what_torchvision_saved_is_loaded_without_it(results):
    saved = AutoImageProcessor.from_pretrained(results / "saved_with_torchvision")
    original = AutoImageProcessor.from_pretrained(results / "size")
    assert type(saved) is SpotViTImageProcessorPil
    assert torch.equal(*(one(pictures()[0], return_tensors="pt")["pixel_values"] for one in (saved, original)))
