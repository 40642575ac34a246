"""Finished runs of the oracle, for the tests of what their coordinates are used for.

`made`: 12 pictures with file names, some of them turned by their EXIF orientation, of 4 and of 9 tokens. `nameless`: the same
pictures without names in a parquet file, with window scales. `conftest.py` makes each once.
"""

import hashlib
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import torch
from PIL import Image
from tiny import tiny_model, tiny_processor

from spot_hf import convert_checkpoint, load_coordinates
from spot_hf.coordinates.schema import coordinate_features
from spot_hf.data.source import DatasetSource, load_images
from spot_hf.oracle.arguments import OracleArguments
from spot_hf.oracle.run import run_oracle


CLASSES = ["ant", "bee", "cat", "dog", "eel"]  # of the model `tiny_vit`
COUNT = 12


def picture(seed: int, size: tuple[int, int]) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def write_pictures(directory: Path) -> list[Path]:
    """`DIRECTORY/test/CLASS/NAME`, as `load_dataset` orders them; of all EXIF orientations, and one in grey."""
    files = []
    for label, name in enumerate(CLASSES):
        (directory / "test" / name).mkdir(parents=True)
        for i in range(3 if label < 2 else 2):
            number = len(files)
            image = picture(number, (40 + 3 * number, 60 - 2 * number))
            exif = Image.Exif()
            exif[0x0112] = number % 8 + 1
            files.append(directory / "test" / name / f"{name}{i}.{'png' if number == 9 else 'jpg'}")
            image.convert("L" if number == 9 else "RGB").save(files[-1], exif=exif)
    assert len(files) == COUNT
    return files


def images_of(directory, split: str | None = None, streaming: bool = False):
    """The images of a directory, as a job loads them."""
    return load_images(DatasetSource(dataset_name=str(directory), dataset_split=split).source(streaming=streaming))


def make_run(tiny_vit: Path, root: Path) -> SimpleNamespace:
    """Model, pictures and finished run, of 4 and of 9 tokens."""
    convert_checkpoint(tiny_vit, root / "spot")
    files = write_pictures(root / "pictures")
    arguments = OracleArguments(
        model=str(root / "spot"), dataset_name=str(root / "pictures"), output_dir=str(root / "run"), num_tokens=[4, 9],
        steps=2, learning_rate=0.03, shard_size=5, batch_size=4, num_workers=0, save_trajectories=True,
    )  # fmt: skip
    run_oracle(arguments)
    return SimpleNamespace(
        model=str(root / "spot"), pictures=str(root / "pictures"), files=files, run=str(root / "run"), config="spot_n9",
        images=images_of(root / "pictures", split="test"), rows=load_coordinates(root / "run", "spot_n9"),
    )  # fmt: skip


def make_nameless_run(made: SimpleNamespace, root: Path) -> SimpleNamespace:
    """The same pictures as bytes without names, and positions with window scales."""
    stored = [{"bytes": file.read_bytes(), "path": None} for file in made.files]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)})
    dataset = datasets.Dataset.from_dict({"image": stored, "label": made.images["label"]}, features=features)
    (root / "pictures").mkdir()
    dataset.to_parquet(root / "pictures" / "validation-00000-of-00001.parquet")
    arguments = OracleArguments(
        model=made.model, dataset_name=str(root / "pictures"), output_dir=str(root / "run"), num_tokens=[5], steps=2,
        learning_rate=0.03, batch_size=5, num_workers=0, run_name="scaled", optimize_window_scales=True,
        window_scale_learning_rate=0.2,
    )  # fmt: skip
    run_oracle(arguments)
    return SimpleNamespace(
        pictures=str(root / "pictures"), run=str(root / "run"), images=images_of(root / "pictures"),
        rows=load_coordinates(root / "run"),
    )  # fmt: skip


def save_cropping_model(made: SimpleNamespace, directory: Path) -> str:
    """Another model, which sees a crop of 48 × 48 pixels."""
    model = tiny_model(seed=3)
    processor = tiny_processor(size={"shortest_edge": 56}, do_center_crop=True, crop_size={"height": 48, "width": 48})
    with torch.no_grad():  # random weights prefer one class: no more
        inputs = processor(made.images["image"][:], num_tokens=9, return_tensors="pt")
        model.classifier.bias -= model(**inputs).logits.mean(0)
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return str(directory)


def coordinates_of(images, indices) -> datasets.Dataset:
    """Coordinates that say, by a single token's position, for which of `images` they were made."""
    rows = []
    for index in indices:
        stored = images.cast_column("image", datasets.Image(decode=False))[index]["image"]
        content = stored["bytes"] or Path(stored["path"]).read_bytes()
        here = [[index / 100, 0.5]]
        rows.append({
            "image_id": Path(stored["path"]).name if stored["path"] else f"{images.split}/{index}", "image_index": index,
            "image_sha256": hashlib.sha256(content).hexdigest(), "image_size": [1, 1], "label": 0, "coordinates": here,
            "initial_coordinates": here, "losses": [0.0], "initial_prediction": 0, "prediction": 0,
        })  # fmt: skip
    return datasets.Dataset.from_list(rows, features=coordinate_features(datasets.Value("int64"), 1))


def contents(images) -> list[bytes]:
    """The encoded bytes of a data set's images."""
    stored = images.cast_column("image", datasets.Image(decode=False))["image"]
    return [one["bytes"] or Path(one["path"]).read_bytes() for one in stored]
