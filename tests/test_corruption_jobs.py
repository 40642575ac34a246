"""`--corruption` of the oracle, of evaluations and of transfers: on real files and runs."""

import json
import shutil
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from oracle_runs import rows_of, save_images
from transformers import AutoModelForImageClassification
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from spot_hf import load_coordinates
from spot_hf.cli import main
from spot_hf.data.corruptions import Corruption, of_views
from spot_hf.placement import generator_for, isotropic, place_windows


COUNT = 11
FOG = ["--corruption", "fog", "--severity", "4"]


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return save_images(tmp_path_factory.mktemp("images") / "pictures", COUNT)


def oracle(model, images, output, *more: str) -> int:
    argv = ["oracle", "--model", str(model), "--dataset_name", str(images), "--num_tokens", "4", "--steps", "2"]
    argv += ["--learning_rate", "0.03", "--shard_size", "4", "--batch_size", "3", "--num_workers", "0"]
    return main([*argv, "--run_name", "tiny", "--output_dir", str(output), *more])


def evaluate(model, images, output, *more: str) -> int:
    argv = ["evaluate", "--model", str(model), "--dataset_name", str(images), "--num_tokens", "4", "9", "--shard_size", "4"]
    argv += ["--placement", "isotropic", "edge", "--baselines", "full_grid", "shrunken_image", "--num_workers", "0"]
    return main([*argv, "--num_seeds", "1", "--output_dir", str(output), *more])


@pytest.fixture(scope="module")
def runs(model, images, tmp_path_factory) -> dict[str, Path]:
    """Of the oracle, on images as they are and in fog."""
    directory = tmp_path_factory.mktemp("runs")
    assert oracle(model, images, directory / "clean") == 0 and oracle(model, images, directory / "fog", *FOG) == 0
    return {name: directory / name for name in ("clean", "fog")}


@pytest.fixture(scope="module")
def evaluated(model, images, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("evaluated") / "run"
    assert evaluate(model, images, directory, "--corruption", "fog", "gaussian_noise", "--severity", "2", "5") == 0
    return directory


def seen(model, images, corruption: Corruption | None) -> tuple[torch.Tensor, list[int], list[str]]:
    """What a model sees of all images, one by one; their labels and ids."""
    processor = AutoImageProcessor.from_pretrained(model)
    pixels, labels = [], []
    table = datasets.load_dataset(str(images), split="validation")
    names = table.cast_column("image", datasets.Image(decode=False))["image"]
    for row, stored in zip(table, names, strict=True):
        image, recipe = row["image"], processor
        if corruption is not None:
            image, recipe = corruption.view(processor, image, stored["path"]), of_views(processor)
        pixels.append(recipe(image, placement="grid", return_tensors="pt")["pixel_values"][0])
        labels.append(row["label"])
    return torch.stack(pixels), labels, [stored["path"] for stored in names]


def classes_at(model, pixels: torch.Tensor, coordinates) -> list[int]:
    """In one batch; the jobs have others, which may change logits by 1e-6, and no class here."""
    spot = AutoModelForImageClassification.from_pretrained(model).eval()
    with torch.no_grad():
        return spot(pixels, coordinates=torch.as_tensor(coordinates)).logits.argmax(-1).tolist()


# ------------------------------------------------------------------------------------------------------------ the oracle


def test_the_oracle_searches_on_corrupted_images(model, images, runs):
    clean, fog = (load_coordinates(runs[name]) for name in ("clean", "fog"))
    for column in ("image_id", "image_sha256", "image_size", "initial_coordinates"):  # of the image as it is stored
        assert clean[column] == fog[column]
    assert clean["losses"] != fog["losses"] and clean["coordinates"] != fog["coordinates"]
    pixels, _, _ = seen(model, images, Corruption("fog", 4))
    assert classes_at(model, pixels, fog["initial_coordinates"]) == fog["initial_prediction"]
    assert classes_at(model, pixels, fog["coordinates"]) == fog["prediction"]


@pytest.mark.parametrize("more", [["--num_workers", "2"], ["--batch_size", "4"], ["--streaming", "true"]], ids=" ".join)
def test_corrupted_rows_are_the_same_however_they_are_computed(model, images, runs, tmp_path, more):
    assert oracle(model, images, tmp_path / "run", *FOG, *more) == 0
    if "--batch_size" not in more:
        assert rows_of(tmp_path / "run") == rows_of(runs["fog"])
        return
    there, here = load_coordinates(runs["fog"]), load_coordinates(tmp_path / "run")
    # Batches of another size round float32 otherwise, as without corruption; other noise would change losses by tenths.
    np.testing.assert_allclose(here["losses"], there["losses"], atol=1e-4)


def test_a_corrupted_run_goes_on(model, images, runs, tmp_path, capsys):
    shutil.copytree(runs["fog"], tmp_path / "run")
    sorted((tmp_path / "run" / "tiny_n4").glob("*.parquet"))[1].unlink()
    assert oracle(model, images, tmp_path / "run", *FOG) == 0
    assert rows_of(tmp_path / "run") == rows_of(runs["fog"])
    capsys.readouterr()
    for more, named in (([], "corruption 'fog' there, None here"), ([*FOG[:3], "3"], "severity 4 there, 3 here")):
        assert oracle(model, images, tmp_path / "run", *more) == 2
        assert named in capsys.readouterr().err


def test_a_corruption_is_recorded_where_it_is_given(runs):
    records = {name: json.loads((path / "run.json").read_text()) for name, path in runs.items()}
    assert records["fog"]["parameters"]["corruption"] == "fog" and records["fog"]["parameters"]["severity"] == 4
    assert not {"corruption", "severity"} & set(records["clean"]["parameters"])
    assert "imagecorruptions-imaug" in records["fog"]["versions"]
    assert "imagecorruptions-imaug" not in records["clean"]["versions"]
    cards = {name: (path / "README.md").read_text() for name, path in runs.items()}
    assert "| images | corrupted as in ImageNet-C: `fog`, severity 4, seed 0" in cards["fog"]
    assert "corrupted" not in cards["clean"]


def test_without_a_severity_it_is_3(model, images, tmp_path):
    assert oracle(model, images, tmp_path / "run", "--corruption", "contrast", "--max_samples", "2") == 0
    assert json.loads((tmp_path / "run" / "run.json").read_text())["parameters"]["severity"] == 3
    assert oracle(model, images, tmp_path / "run", "--corruption", "contrast", "--severity", "3", "--max_samples", "2") == 0


# -------------------------------------------------------------------------------------------------------- the evaluation


def results_of(directory: Path) -> dict[tuple, dict]:
    """Without what a clock measured."""
    rows = json.loads((directory / "results.json").read_text())["results"]
    return {
        (row.get("corruption"), row.get("severity"), row["way"], row["num_tokens"]): {
            name: value for name, value in row.items() if name not in ("images_per_second", "speed_up")
        }
        for row in rows
    }


def test_every_method_is_measured_on_every_corruption(model, images, evaluated):
    rows = results_of(evaluated)
    kinds = [(None, None), *((name, severity) for name in ("fog", "gaussian_noise") for severity in (2, 5))]
    methods = [("full_grid", 16), *((name, count) for name in ("isotropic", "edge", "shrunken_image") for count in (4, 9))]
    assert set(rows) == {(*kind, *method) for kind in kinds for method in methods}
    assert len({rows[(*kind, "isotropic", 9)]["loss"] for kind in kinds}) == len(kinds)
    processor = AutoImageProcessor.from_pretrained(model)
    for name, severity in kinds:
        pixels, labels, ids = seen(model, images, None if name is None else Corruption(name, severity))
        edges = torch.stack([  # of what is corrupted
            place_windows("edge", 9, one, processor.patch_size, generator_for(0, image_id))[0]
            for one, image_id in zip(pixels, ids, strict=True)
        ])  # fmt: skip
        for method, coordinates in (("isotropic", isotropic(9).expand(COUNT, -1, -1)), ("edge", edges)):
            right = np.array(classes_at(model, pixels, coordinates)) == labels
            assert rows[name, severity, method, 9]["top_1"] == pytest.approx(100 * right.mean())


def test_images_as_they_are_are_measured_as_without_corruptions(model, images, evaluated, tmp_path):
    assert evaluate(model, images, tmp_path / "run") == 0
    assert results_of(tmp_path / "run") == {key: row for key, row in results_of(evaluated).items() if key[0] is None}
    parameters = [json.loads((path / "run.json").read_text())["parameters"] for path in (evaluated, tmp_path / "run")]
    assert parameters[0]["corruption"] == ["fog", "gaussian_noise"] and parameters[0]["severity"] == [2, 5]
    assert not {"corruption", "severity"} & set(parameters[1])


def test_an_evaluation_goes_on_and_ends_with_the_same_figures(model, images, evaluated, tmp_path):
    shutil.copytree(evaluated, tmp_path / "run")
    (lines,) = (tmp_path / "run").glob("*.jsonl")
    kept = lines.read_text().splitlines()[:40]
    assert {json.loads(line).get("corruption") for line in kept} == {None, "fog"}
    lines.write_text("\n".join(kept) + "\n")
    more = ["--corruption", "fog", "gaussian_noise", "--severity", "2", "5"]
    assert evaluate(model, images, tmp_path / "run", *more, "--num_workers", "2") == 0
    assert lines.read_text().splitlines()[:40] == kept
    assert results_of(tmp_path / "run") == results_of(evaluated)


def test_the_report_has_a_table_of_corruptions(evaluated):
    text, rows = (evaluated / "README.md").read_text(), results_of(evaluated)
    kinds = [("fog", 2), ("fog", 5), ("gaussian_noise", 2), ("gaussian_noise", 5)]
    assert "| 4 tokens | as they are | fog 2 | fog 5 | gaussian_noise 2 | gaussian_noise 5 | mean |" in text
    corrupted = [rows[(*kind, "isotropic", 4)]["top_1"] for kind in kinds]
    values = [rows[None, None, "isotropic", 4]["top_1"], *corrupted, np.mean(corrupted)]
    assert f"| isotropic | {' | '.join(f'{value:.1f}' for value in values)} |" in text
    assert all(f"\n## tiny, {name} {severity}\n" in text for name, severity in kinds)
    assert text.count("| full_grid, 16 tokens |") == 2


def test_corrupted_accuracies_stay_off_the_models_card(model, evaluated, tmp_path):
    shutil.copytree(model, tmp_path / "tiny")
    assert main(["card", "--results", str(evaluated), "--model", str(tmp_path / "tiny")]) == 0
    card = (tmp_path / "tiny" / "README.md").read_text()
    assert card.count("name: top-1, isotropic, 4 tokens") == 1


# ---------------------------------------------------------------------------------------------------------- the transfer


@pytest.mark.parametrize("found, more, corruption", [("clean", FOG, Corruption("fog", 4)), ("fog", [], None)])
def test_positions_are_transferred_both_ways(model, images, runs, tmp_path, found, more, corruption):
    argv = ["evaluate", "--coordinates", str(runs[found]), "--model", str(model), "--dataset_name", str(images)]
    assert main([*argv, *more, "--output_dir", str(tmp_path / "out")]) == 0
    result = json.loads((tmp_path / "out" / "transfer.json").read_text())
    pixels, labels, _ = seen(model, images, corruption)
    rows = load_coordinates(runs[found])
    start, best = torch.tensor(rows["initial_coordinates"]), torch.tensor(rows["coordinates"])
    moved = (start + (best - start).roll(-(COUNT // 2), 0)).clamp(0, 1)
    for name, coordinates in {"initial": start, "shared": best, "control": moved}.items():
        right = np.array(classes_at(model, pixels, coordinates)) == labels
        assert result["accuracy"][name]["value"] == pytest.approx(100 * right.mean())
    assert result["corruption"] == (None if corruption is None else "fog 4")
    assert result["found_under"] == ("fog 4" if found == "fog" else None)
    kinds = ["images as they are", "images under fog 4"]
    text = "positions found on {}, measured on {}".format(*(kinds if found == "clean" else kinds[::-1]))
    assert text in (tmp_path / "out" / "transfer.md").read_text()


# ---------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "more, said",
    [
        (["--corruption", "rain"], "`corruption` must be of gaussian_noise, shot_noise"),
        (["--corruption", "fog", "--severity", "0"], "`severity` must be 1 to 5; got 0"),
        (["--corruption", "fog", "--severity", "6"], "`severity` must be 1 to 5; got 6"),
        (["--severity", "3"], "`severity` goes with `corruption`; got no `corruption`"),
    ],
)
@pytest.mark.parametrize("job", ["evaluate", "oracle", "transfer"])
def test_what_is_no_corruption_is_said_in_one_line(model, images, runs, tmp_path, capsys, job, more, said):
    output = tmp_path / "out"
    if job == "transfer":
        argv = ["evaluate", "--coordinates", str(runs["clean"]), "--model", str(model), "--dataset_name", str(images)]
        assert main([*argv, "--output_dir", str(output), *more]) == 2
    else:
        assert {"evaluate": evaluate, "oracle": oracle}[job](model, images, output, *more) == 2
    error = capsys.readouterr().err.strip()
    assert said in error and "\n" not in error and not output.exists()


@pytest.mark.parametrize(
    "more, said",
    [
        (["--corruption", "fog", "fog"], "`corruption` must be different ones; got fog, fog"),
        (["--corruption", "fog", "--severity", "2", "2"], "`severity` must be different ones; got 2, 2"),
        (["--corruption", "fog", "--pareto", "true"], "no `image_size` or `corruption`"),
        (["--corruption", "fog", "--image_size", "24"], "images of at least 32 × 32 pixels; got 3 channels of 24 × 24"),
    ],
)
def test_what_no_evaluation_can_corrupt(model, images, tmp_path, capsys, more, said):
    assert evaluate(model, images, tmp_path / "out", *more) == 2
    error = capsys.readouterr().err.strip()
    assert said in error and "\n" not in error and not (tmp_path / "out").exists()


def test_the_oracle_corrupts_in_one_way(model, images, tmp_path, capsys):
    assert oracle(model, images, tmp_path / "out", "--corruption", "fog", "contrast") == 2
    error = capsys.readouterr().err.strip()
    assert "contrast" in error and "\n" not in error and not (tmp_path / "out").exists()


@pytest.mark.parametrize("job", [evaluate, oracle])
def test_a_missing_library_is_said_in_one_line(model, images, tmp_path, capsys, monkeypatch, job):
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    assert job(model, images, tmp_path / "out", *FOG) == 1
    error = capsys.readouterr().err.strip()
    assert "needs imagecorruptions-imaug: pip install 'spot_hf[corruptions]'" in error and "\n" not in error
    assert not (tmp_path / "out").exists()
    assert job(model, images, tmp_path / "out", "--max_samples", "2") == 0  # nothing else needs it
