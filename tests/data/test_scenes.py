"""Scenes in which an object has to be found."""

import subprocess
import sys

import datasets
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from spot_hf.data.scenes import SceneRule, make_scenes
from spot_hf.data.source import DatasetSource, SalientSource, load_images


RED = (220, 20, 20)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Red images of two classes and of three shapes; grey backgrounds."""
    directory = tmp_path_factory.mktemp("scenes")
    for split in ("train", "validation"):
        for number in range(6):
            path = directory / "images" / split / ("ant" if number % 2 else "bee") / f"{split}{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", [(60, 60), (80, 40), (30, 60)][number % 3], RED).save(path)
        for number in range(3):
            path = directory / "backgrounds" / split / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (300, 240), (60 * number,) * 3).save(path)
    return directory


def load(directory, split, **options):
    return load_images(DatasetSource(dataset_name=str(directory), dataset_split=split, **options))


def scenes_of(folders, split, rule):
    backgrounds = load(folders / "backgrounds", split, label_column_name=None)
    return make_scenes(load(folders / "images", split), backgrounds, rule)


def test_the_image_lies_in_its_box(folders):
    images, scenes = load(folders / "images", "train"), scenes_of(folders, "train", SceneRule())
    assert scenes["label"][:] == images["label"][:] and scenes.features["label"] == images.features["label"]
    for row, image in zip(scenes, images, strict=True):
        x_min, y_min, x_max, y_max = row["box"]
        assert 0 <= x_min < x_max <= 224 and 0 <= y_min < y_max <= 224
        share = (x_max - x_min) * (y_max - y_min) / 224**2
        assert 1 / 9 - 0.01 <= share <= 1 / 4 + 0.01  # sides are whole pixels
        width, height = image["image"].size
        assert (x_max - x_min) / (y_max - y_min) == pytest.approx(width / height, rel=0.05)
        pixels = np.asarray(row["image"]).astype(int)
        red = np.abs(pixels - RED).max(-1) < 60
        assert red[y_min + 3 : y_max - 3, x_min + 3 : x_max - 3].all()
        red[y_min:y_max, x_min:x_max] = False
        assert red.mean() < 0.02  # JPEG blurs the edge


def test_scenes_are_the_same_again_and_others_with_another_seed(folders):
    first, again, other = (scenes_of(folders, "train", SceneRule(seed=seed)) for seed in (0, 0, 1))
    assert first["box"][:] == again["box"][:] != other["box"][:]
    ids = [scenes.cast_column("image", datasets.Image(decode=False))["image"][0]["path"] for scenes in (first, other)]
    assert ids[0] == ids[1] == "train1.png"


def test_the_script_writes_what_jobs_read(folders, tmp_path):
    words = ["--dataset_name", folders / "images", "--backgrounds", folders / "backgrounds", "--output_dir", tmp_path / "out"]
    command = [sys.executable, str(ROOT / "scripts/make_scenes.py"), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    source = SalientSource(dataset_name=str(tmp_path / "out"), dataset_split="validation", saliency_column_name="box")
    found = load_images(source)
    assert len(found) == 6 and found[0]["image"].size == (224, 224) and len(found[0]["saliency"]) == 4
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0  # nothing is replaced unasked


def test_what_scenes_refuse(folders):
    for wrong in ({"size": 8}, {"smallest": 0.0}, {"smallest": 0.5, "largest": 0.2}):
        with pytest.raises(ValueError, match="must be"):
            SceneRule(**wrong)
    with pytest.raises(ValueError, match="backgrounds must be of at least 400 pixels"):
        scenes_of(folders, "train", SceneRule(size=400))
