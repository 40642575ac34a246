"""`spot-hf show`: pictures of what the oracle did on single images."""

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from coordinate_runs import picture
from PIL import Image

from spot_hf.coordinates.show import ShowArguments, show_coordinates
from spot_hf.oracle.arguments import OracleArguments
from spot_hf.oracle.run import run_oracle


def read_picture(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The three parts side by side, without titles: paths, windows at the start, windows at the end."""
    picture = Image.open(path)
    pixels = np.asarray(picture.convert("RGB")).astype(int)
    assert picture.format == "PNG" and pixels.shape == (570, 1575, 3)
    paths, *windows = (pixels[60:, left : left + 525] for left in (0, 525, 1046))
    for i, part in enumerate(windows):  # from edge to edge of what is drawn on white
        drawn = (part < 250).any(-1)
        rows, columns = np.flatnonzero(drawn.mean(1) > 0.5), np.flatnonzero(drawn.mean(0) > 0.5)
        windows[i] = part[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height, width = np.minimum(windows[0].shape[:2], windows[1].shape[:2])  # they may be rounded to other pixels
    assert height > 300 and width > 300
    return paths, windows[0][:height, :width], windows[1][:height, :width]


def changed(path: Path) -> float:
    """The share of pixels that differ between windows at the start and at the end."""
    _, start, end = read_picture(path)
    return (abs(start - end).max(-1) > 60).mean()


def coloured(path: Path) -> int:
    """The number of pixels of the paths that are not grey, as the image below them is."""
    return (np.ptp(read_picture(path)[0], axis=-1) > 60).sum()


def show(coordinates, image_id, output_dir, **options) -> list[Path]:
    return show_coordinates(
        ShowArguments(coordinates=str(coordinates), image_id=list(image_id), output_dir=str(output_dir), **options)
    )


def test_pictures(made, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="spot_hf")
    ids = [made.files[6].name, made.files[1].name]
    written = show(made.run, ids, tmp_path / "out", config=made.config, dataset_name=made.pictures)
    assert [path.name for path in written] == [f"{Path(one).stem}_n9.png" for one in ids]
    assert sorted(tmp_path.glob("out/*")) == sorted(written) and all(path.stat().st_size > 10_000 for path in written)
    assert caplog.messages == [f"written to {path}" for path in written]
    # Beside the same pictures of a search that took no step.
    arguments = OracleArguments(
        model=made.model,
        dataset_name=made.pictures,
        num_tokens=[9],
        steps=0,
        num_workers=0,
        output_dir=str(tmp_path / "still"),
    )
    run_oracle(arguments)
    still = show(tmp_path / "still", ids, tmp_path / "out2", dataset_name=made.pictures)
    for moved, unmoved in zip(written, still, strict=True):
        assert changed(unmoved) < 0.02  # lines that are rounded to the next pixel
        assert changed(moved) > 0.2  # windows of 8 pixels of 32, which move by 1 or 2
        assert coloured(moved) > 2 * coloured(unmoved) > 0  # a path beside a dot


def test_pictures_of_images_without_names(nameless, tmp_path):
    written = show(nameless.run, ["validation/7", "validation/2"], tmp_path, dataset_name=nameless.pictures)
    assert {path.name for path in written} == {"validation_7_n5.png", "validation_2_n5.png"}
    assert all(path.exists() for path in written)


def test_pictures_from_a_copy_in_another_order(made, tmp_path):
    for i, file in enumerate(reversed(made.files)):
        (tmp_path / "data" / "test" / f"{i:02d}").mkdir(parents=True)
        shutil.copy(file, tmp_path / "data" / "test" / f"{i:02d}")
    # At their places in the copy are none of these images, or two of these three.
    for case, indices in enumerate([(0, 10), (0, 11, 3)]):
        ids = [made.files[i].name for i in indices]
        pictures = [
            show(made.run, ids, tmp_path / f"out{case}" / source.name, config=made.config, dataset_name=str(source))
            for source in (tmp_path / "data", Path(made.pictures))
        ]
        found, expected = ({path.name: path.read_bytes() for path in written} for written in pictures)
        assert found == expected and len(found) == len(indices)
    shutil.rmtree(tmp_path / "data" / "test" / "00")  # the last image's
    absent = made.files[11].name
    with pytest.raises(ValueError, match=f"`dataset_name` must hold the images of `image_id`; {absent} are not there"):
        show(made.run, ids, tmp_path / "out", config=made.config, dataset_name=str(tmp_path / "data"))


def test_pictures_of_images_of_one_name(made, tmp_path, monkeypatch):
    """In two classes, or of two formats: each has a picture of its own. Such runs began before ids were checked."""
    for name in ("ant/0.png", "bee/0.png", "bee/0.jpg"):
        (tmp_path / "data" / "test" / name).parent.mkdir(parents=True, exist_ok=True)
        picture(len(name) + ord(name[0]), (40, 40)).save(tmp_path / "data" / "test" / name)
    arguments = OracleArguments(
        model=made.model, dataset_name=str(tmp_path / "data"), num_tokens=[4], steps=1, num_workers=0, objective="distill",
        output_dir=str(tmp_path / "run"),
    )  # fmt: skip
    monkeypatch.setattr("spot_hf.oracle.run.check_image_ids", lambda images: None)
    run_oracle(arguments)
    written = show(tmp_path / "run", ["0.png", "0.jpg"], tmp_path / "out", dataset_name=str(tmp_path / "data"))
    assert len(set(written)) == 3 and len({path.read_bytes() for path in written}) == 3


def test_what_cannot_be_shown(made, tmp_path):
    options = {"config": made.config, "output_dir": tmp_path / "out"}
    with pytest.raises(ValueError, match=r"`image_id` must be ids of .*, such as ant0.jpg, .*; got 'absent.jpg', 'no.png'"):
        show(made.run, ["absent.jpg", "ant0.jpg", "no.png"], dataset_name=made.pictures, **options)
    with pytest.raises(ValueError, match="`dataset_name` is needed: the images lay in a local directory, 'pictures'"):
        show(made.run, ["ant0.jpg"], **options)
    with pytest.raises(ValueError, match="`config` must be one of spot_n4, spot_n9"):
        show(made.run, ["ant0.jpg"], **{**options, "config": None})
    with pytest.raises(ValueError, match="`image_column_name` must be one of image, label; got 'picture'"):
        show(made.run, ["ant0.jpg"], dataset_name=made.pictures, image_column_name="picture", **options)
    with pytest.raises(OSError, match="holds no coordinate data set"):
        show(tmp_path, ["ant0.jpg"], **options)
    assert not (tmp_path / "out").exists()
