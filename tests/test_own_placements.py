"""Placements of one's own: in processor, pipeline, evaluation, oracle and training, in Python and on the command line."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import own_placement
import pytest
import torch
from own_placement import bright, diagonal
from PIL import Image
from tiny import tiny_model, tiny_processor

from spot_hf import (
    PLACEMENTS,
    EvaluationArguments,
    OracleArguments,
    SpotImageClassificationPipeline,
    load_coordinates,
    register_placement,
)
from spot_hf.cli import main
from spot_hf.placement import OTHER_METHODS, Placement, generator_for, place
from spot_hf.training.placements import TrainingPlacements


EXPECTED = [[0.0, 0.0], [0.5, 0.5], [1.0, 1.0]]


@pytest.fixture
def registered():
    """By the name `diagonal`, for the duration of a test."""
    yield register_placement("diagonal", diagonal)
    del PLACEMENTS["diagonal"]


def image(right: int = 255) -> Image.Image:
    """Black, but for its right half."""
    pixels = np.zeros((48, 48, 3), dtype=np.uint8)
    pixels[:, 24:] = right
    return Image.fromarray(pixels)


def test_what_a_function_takes_says_what_it_is(registered):
    assert registered == Placement(diagonal)

    def all_of_it(num_tokens, generator, aspect_ratio, saliency, cells, pixel_values, scale=2):
        return cells[:num_tokens]

    try:
        spec = register_placement("all_of_it", all_of_it)
        assert spec == Placement(all_of_it, random=True, aspect_ratio=True, saliency=True, on_grid=True, pixels=True)
        pixel_values = torch.zeros(3, 48, 96)
        found = place("all_of_it", 5, pixel_values, 8, generator_for(0, 0), torch.ones(2, 2))
        assert found.shape == (5, 2)
        with pytest.raises(ValueError, match="at most 72 with placement='all_of_it'"):
            place("all_of_it", 73, pixel_values, 8, generator_for(0, 0), torch.ones(2, 2))
        with pytest.raises(ValueError, match="`saliency` is needed by placement='all_of_it'"):
            place("all_of_it", 5, pixel_values, 8)
    finally:
        del PLACEMENTS["all_of_it"]


@pytest.mark.parametrize("name", ["isotropic", "a-b", "", "a:b", 3])
def test_names_that_cannot_be_registered(name):
    with pytest.raises(ValueError, match="`name` must be a Python identifier"):
        register_placement(name, diagonal)


@pytest.mark.parametrize("function", [lambda: None, lambda n: None, lambda num_tokens, other: None, "diagonal", None])
def test_functions_that_cannot_be_registered(function):
    with pytest.raises(ValueError, match="`function` of 'mine' must"):
        register_placement("mine", function)
    assert "mine" not in PLACEMENTS


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (torch.zeros(2, 2), r"must return \(3, 2\), \(x, y\) in \[0, 1\]; got shape \(2, 2\)"),
        (torch.full((3, 2), 7.0), r"token 0 is \[7.0, 7.0\]"),
        (torch.full((3, 2), torch.nan), "token 0 is"),
        ("here", "got str"),
    ],
)
def test_what_a_function_may_return(result, words):
    with pytest.raises(ValueError, match=words):
        place(lambda num_tokens: result, 3, torch.zeros(3, 48, 48), 8)


@pytest.mark.parametrize("placement", [diagonal, "diagonal", "own_placement:diagonal"])
def test_in_the_processor_and_the_pipeline(placement, registered):
    processor = tiny_processor()
    placed = processor([image(), image()], num_tokens=3, placement=placement, return_tensors="pt")["coordinates"]
    assert placed.tolist() == [EXPECTED, EXPECTED]
    classifier = SpotImageClassificationPipeline(model=tiny_model(), image_processor=processor)
    answer = classifier(image(), num_tokens=3, placement=placement, return_coordinates=True)
    np.testing.assert_allclose(answer["coordinates"], EXPECTED, atol=1e-6)


def test_numpy_will_do_and_randomness_is_by_image():
    processor = tiny_processor()
    same = processor(image(), num_tokens=3, placement=lambda num_tokens: np.array(EXPECTED), return_tensors="pt")
    assert same["coordinates"][0].tolist() == EXPECTED
    first, second = (
        processor([image(), image(200)], num_tokens=20, placement=bright, return_tensors="pt")["coordinates"] for _ in "ab"
    )
    assert torch.equal(first, second) and not torch.equal(first[0], first[1]) and first[..., 0].min() > 0.5


def test_a_registered_name_can_be_saved(registered, tmp_path):
    tiny_processor(num_tokens=3, placement="diagonal").save_pretrained(tmp_path)
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["placement"] == "diagonal"
    loaded = type(tiny_processor()).from_pretrained(tmp_path)
    assert loaded(image(), return_tensors="pt")["coordinates"][0].tolist() == EXPECTED


def test_in_training(registered):
    made = TrainingPlacements(
        num_tokens=[3], placement=["diagonal", "own_placement:bright"], height=48, width=48, patch_size=8
    )
    pixel_values = torch.zeros(40, 3, 48, 48)
    pixel_values[..., 24:] = 1
    draws = torch.arange(40)
    placed = made(draws, 3, pixel_values)["coordinates"]
    lattice = (placed == torch.tensor(EXPECTED)).flatten(1).all(1)
    assert 8 < lattice.sum() < 32 and placed[~lattice][..., 0].min() > 0.5
    assert torch.equal(made(draws, 3, pixel_values)["coordinates"], placed)
    # By draw: the same in any batch, another in the next epoch.
    assert torch.equal(made(draws[7:8], 3, pixel_values[7:8])["coordinates"][0], placed[7])
    assert not torch.equal(made(draws + 40, 3, pixel_values)["coordinates"], placed)


@pytest.fixture(scope="module")
def jobs(tmp_path_factory, tiny_vit):
    """A model and pictures, and a directory in which the command line is used: the file with the placement lies there."""
    from coordinate_runs import write_pictures

    from spot_hf import convert_checkpoint

    root = tmp_path_factory.mktemp("jobs")
    convert_checkpoint(tiny_vit, root / "spot")
    write_pictures(root / "pictures")
    (root / "own_placement.py").write_text(Path(own_placement.__file__).read_text())
    return root


def test_on_the_command_line(jobs):
    """The console script does not look for modules where it is started, Python's `-m` does."""
    program = Path(sys.executable).with_name("spot-hf")
    words = ["classify", "--model", "spot", "pictures", "--num_tokens", "3", "--placement", "own_placement:diagonal", "--json"]
    for command in ([program], [sys.executable, "-m", "spot_hf"]):
        done = subprocess.run([*command, *words], cwd=jobs, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        answers = json.loads(done.stdout)
        assert len(answers) == 12 and all(one["num_tokens"] == 3 for one in answers)
        np.testing.assert_allclose(answers[0]["coordinates"], EXPECTED, atol=1e-6)
    wrong = [*words[:-2], "own_placement:nothing"]
    done = subprocess.run([program, *wrong], cwd=jobs, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "`placement` 'own_placement:nothing' cannot be imported" in done.stderr


def test_in_evaluation_and_oracle_and_train(jobs, tmp_path):
    source = ["--model", str(jobs / "spot"), "--dataset_name", str(jobs / "pictures"), "--num_tokens", "4"]
    own = ["--placement", "own_placement:diagonal"]
    words = [
        "evaluate",
        *source,
        *own,
        "own_placement:bright",
        "--num_seeds",
        "2",
        "--baselines",
        "none",
        "--num_workers",
        "1",
    ]
    assert main([*words, "--output_dir", str(tmp_path / "evaluation")]) == 0
    results = json.loads((tmp_path / "evaluation/results.json").read_text())["results"]
    assert {row["way"]: row["num_seeds"] for row in results} == {"own_placement:diagonal": 1, "own_placement:bright": 2}
    assert main(["oracle", *source, *own, "--steps", "1", "--num_workers", "1", "--output_dir", str(tmp_path / "oracle")]) == 0
    rows = load_coordinates(tmp_path / "oracle")
    expected = diagonal(4).numpy()
    np.testing.assert_allclose(np.array(rows["initial_coordinates"][:]), np.broadcast_to(expected, (12, 4, 2)), atol=1e-6)
    words = [*source, *own, "--dataset_split", "test", "--eval_strategy", "no", "--per_device_train_batch_size", "4"]
    assert main(["train", *words, "--num_train_epochs", "1", "--output_dir", str(tmp_path / "train")]) == 0
    assert json.loads((tmp_path / "train/training.json").read_text())["parameters"]["placement"] == [own[1]]


def test_names_of_other_methods_are_taken():
    from spot_hf.evaluation.baselines import BASELINES
    from spot_hf.evaluation.cells import CALIBRATED, LEARNED, ORACLE

    assert set(OTHER_METHODS) == {*BASELINES, *LEARNED, CALIBRATED, ORACLE}
    for name in OTHER_METHODS:
        with pytest.raises(ValueError, match="`name` must be a Python identifier, and none of"):
            register_placement(name, diagonal)


def test_a_job_records_names_and_versions_of_functions(jobs, tmp_path, capsys, registered):
    source = {"model": str(jobs / "spot"), "dataset_name": str(jobs / "pictures"), "num_tokens": [4]}
    for arguments in (
        EvaluationArguments(**{**source, "model": [source["model"]]}, placement=[diagonal], output_dir=str(tmp_path / "e")),
        OracleArguments(**source, placement=diagonal, output_dir=str(tmp_path / "o")),
    ):
        with pytest.raises(ValueError, match="`placement` of a job must be a name"):
            arguments.check()
    (tmp_path / "changing.py").write_text("def f(num_tokens):\n    return [[0.2, 0.5]] * num_tokens\n")
    words = ["evaluate", "--model", source["model"], "--dataset_name", source["dataset_name"], "--num_tokens", "4"]
    words += ["--placement", "changing:f", "--baselines", "none", "--num_workers", "0", "--output_dir", str(tmp_path / "e")]
    for content, status in (("0.2", 0), ("0.2", 0), ("0.7", 2)):
        (tmp_path / "changing.py").write_text(f"def f(num_tokens):\n    return [[{content}, 0.5]] * num_tokens\n")
        done = subprocess.run(
            [sys.executable, "-m", "spot_hf", *words], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == status, done.stderr
    assert "placement_sha256" in done.stderr  # names what differs
