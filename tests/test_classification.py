"""`spot-hf classify`: folders, boxes, coordinates with window scales, pictures."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from coordinate_runs import write_pictures
from PIL import Image

from spot_hf import convert_checkpoint
from spot_hf.cli import main
from spot_hf.coordinates.own import read_own_coordinates
from spot_hf.data.files import IMAGE_SUFFIXES


@pytest.fixture(scope="module")
def spot(tiny_vit, tmp_path_factory) -> str:
    directory = tmp_path_factory.mktemp("classification") / "spot"
    convert_checkpoint(tiny_vit, directory)
    return str(directory)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Twelve, in folders of folders."""
    directory = tmp_path_factory.mktemp("pictures")
    write_pictures(directory)
    return directory


@pytest.fixture
def classify(spot, capsys):
    def run(*words) -> list[dict]:
        assert main(["classify", "--model", spot, *map(str, words), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return run


def test_folders_in_folders(classify, pictures, tmp_path):
    answers = classify(pictures)
    found = [answer["image"] for answer in answers]
    assert found == sorted(str(path) for path in pictures.rglob("*") if path.suffix in IMAGE_SUFFIXES) and len(found) == 12
    (tmp_path / "empty").mkdir()


def test_a_directory_without_images(spot, tmp_path, capsys):
    (tmp_path / "empty" / "deep").mkdir(parents=True)
    assert main(["classify", "--model", spot, str(tmp_path)]) == 2
    assert "holds no image files" in capsys.readouterr().err


def test_pictures_of_what_is_seen(classify, pictures, tmp_path):
    """One for each image, also where two have one name: as large as the image, or enlarged."""
    shutil.copytree(pictures / "test" / "ant", tmp_path / "in" / "a")
    shutil.copytree(pictures / "test" / "ant", tmp_path / "in" / "b")
    answers = classify(tmp_path / "in", "--num_tokens", 4, "--draw", tmp_path / "out")
    drawn = [Path(answer["picture"]) for answer in answers]
    assert len(set(drawn)) == 6 and sorted(drawn) == sorted((tmp_path / "out").iterdir())
    assert [path.name for path in drawn] == [f"ant{i}{end}.png" for end in ("", "_2") for i in range(3)]
    for path in drawn:
        picture = Image.open(path)
        amber = (np.abs(np.asarray(picture).astype(int) - (255, 176, 0)).max(-1) < 3).sum()
        assert max(picture.size) >= 448 and amber > 200
    larger = tmp_path / "larger.json"
    larger.write_text(json.dumps({"coordinates": [[0.5, 0.5]], "window_scales": [3]}))
    (answer,) = classify(drawn[0], "--coordinates", larger, "--draw", tmp_path / "scaled")
    assert answer["window_scales"] == [3.0] and answer["num_tokens"] == 1


def test_scales_of_own_coordinates(classify, pictures, tmp_path):
    image = next(pictures.rglob("*.jpg"))
    (tmp_path / "plain.json").write_text("[[0.5, 0.5]]")
    (tmp_path / "scaled.json").write_text(json.dumps({image.name: {"coordinates": [[0.5, 0.5]], "window_scales": [2.5]}}))
    plain, scaled = (classify(image, "--coordinates", tmp_path / f"{name}.json")[0] for name in ("plain", "scaled"))
    assert "window_scales" not in plain and scaled["window_scales"] == [2.5]
    assert plain["predictions"] != scaled["predictions"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"a.png": {"coordinates": [[0.5, 0.5]], "scales": [1]}}, "must have coordinates and perhaps window_scales; got"),
        ({"a.png": {"window_scales": [1]}}, "must have coordinates"),
        ({"coordinates": [[0.5, 0.5]], "window_scales": [0]}, "`window_scales` must be finite and above 0"),
        ({"a.png": [[[0.5, 0.5]]]}, "must be one list of"),
        ({"b.png": [[0.5, 0.5]]}, "has no entry for 'x/a.png'"),
        (7, "must be a list or an object; got int"),
    ],
)
def test_own_coordinates_that_cannot_be(content, words, tmp_path):
    (tmp_path / "own.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=words):
        read_own_coordinates(str(tmp_path / "own.json"), ["x/a.png"])


def test_boxes_from_a_file(classify, spot, pictures, tmp_path, capsys):
    images = sorted(pictures.rglob("*.jpg"))[:2]
    file = tmp_path / "boxes.csv"
    file.write_text(f"image,x_min,y_min,x_max,y_max,note\n{images[0].name},0,0,12,12,a\n{images[1]},10,20,30,40,b\n")
    answers = classify(*images, "--boxes_csv", file, "--num_tokens", 20)
    points = np.array(answers[0]["coordinates"]) * Image.open(images[0]).size
    assert points.max() <= 13 and len(points) == 20  # to a pixel of the model's
    for words, message in (
        (["--placement", "isotropic", "--num_tokens", "4"], "`boxes_csv` is for the placements salient"),
        (["--coordinates", "x.json"], "`boxes_csv` is for the placements salient"),
        ([], "needs `num_tokens`"),
    ):
        assert main(["classify", "--model", spot, str(images[0]), "--boxes_csv", str(file), *words]) == 2
        assert message in capsys.readouterr().err
    others = str(sorted(pictures.rglob("*.jpg"))[3])
    assert main(["classify", "--model", spot, others, "--boxes_csv", str(file), "--num_tokens", "4"]) == 2
    assert "has none for 1 of 1, such as" in capsys.readouterr().err


def test_tokens_outside_of_the_crop(other_model, pictures, tmp_path, capsys):
    """A warning counts them in one line, without a traceback's look."""
    wide = tmp_path / "wide.png"
    Image.new("RGB", (200, 60)).save(wide)
    (tmp_path / "own.json").write_text("[[0.02, 0.5], [0.5, 0.5]]")
    words = ["classify", "--model", other_model, str(wide), "--coordinates", str(tmp_path / "own.json")]
    assert main(words) == 0
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("spot-hf classify: warning: 1 of 2 tokens lie outside")
    assert main([*words, "--outside", "error"]) == 2
    assert main([*words, "--outside", "nowhere"]) == 2
    assert "`outside` must be one of warn, drop, error" in capsys.readouterr().err
    assert main([*words, "--outside", "drop", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["num_tokens"] == 1
