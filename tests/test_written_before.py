"""What an earlier version wrote, in `tests/fixtures/`: it loads, and its killed runs go on, by the same commands, to the same
end.

Of this package, only what its users have is used here, the command line and public names: modules may move.

Results are promised bit for bit on the same kind of machine with as many threads. Elsewhere float32 is rounded otherwise, and
a search or a training of a few steps carries that on: there, figures are compared to 1e-4. With the kernels of another CPU
(`MKL_CBWR=COMPATIBLE ATEN_CPU_CAPABILITY=default`), losses differed by up to 3e-6, weights and positions by less than 2e-6,
and a calibration error, in percent, by 2.5e-5.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from fixtures.write_0_1_0 import CHECKPOINT, FEW, FIXTURES, NUM_IMAGES, WRITTEN, command, machine
from oracle_runs import files_of, rows_of
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification
from transformers.models.auto.image_processing_auto import AutoImageProcessor

import spot_hf
from spot_hf.cli import main


TOLERANCE = 1e-4  # see above
# A clock's, the memory's, and the machine's.
MEASURED = {"images_per_second", "speed_up", "slow_down", "peak_mib", "seconds"}
MODEL = WRITTEN / "model"


@pytest.fixture(scope="module")
def same_machine() -> bool:
    return json.loads((WRITTEN / "machine.json").read_text()) == machine()


@pytest.fixture
def go_on(tmp_path, capsys):
    """Copies what a killed run has left, gives the same command, and returns the directory and what was said."""

    def run(name: str, half: str) -> tuple[Path, str]:
        directory = tmp_path / half
        shutil.copytree(WRITTEN / half, directory)
        status = main(command(name, directory, WRITTEN))
        captured = capsys.readouterr()
        assert status == 0, captured.err[-3000:]
        return directory, captured.out

    return run


def assert_same(found: Any, expected: Any, same_machine: bool, where: str = "") -> None:
    """Equal, or, on another machine, numbers to the tolerance. Names and counts are equal anywhere."""
    if isinstance(expected, dict):
        assert set(found) == set(expected), where
        for name, value in expected.items():
            assert_same(found[name], value, same_machine, f"{where}.{name}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for i, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
            assert_same(ours, theirs, same_machine, f"{where}[{i}]")
    elif isinstance(expected, float) and not same_machine:
        assert found == pytest.approx(expected, rel=0, abs=TOLERANCE), where
    else:
        assert found == expected, where


# -------------------------------------------------------------------------------------------------------------- model


def test_a_model_gives_the_same_logits():
    model = AutoModelForImageClassification.from_pretrained(MODEL)
    assert type(model) is spot_hf.SpotViTForImageClassification
    processor = AutoImageProcessor.from_pretrained(MODEL)
    assert isinstance(processor, spot_hf.SpotViTImageProcessorPil | spot_hf.SpotViTImageProcessor)
    expected = load_file(WRITTEN / "expected.safetensors")
    inputs = processor(first_images(WRITTEN / "images"), num_tokens=FEW, placement="center", return_tensors="pt")
    torch.testing.assert_close(inputs["coordinates"], expected["coordinates"], rtol=0, atol=1e-6)  # float32's rounding
    with torch.no_grad():
        grid, few = model(inputs["pixel_values"]).logits, model(**inputs).logits
    # Two layers in float32, logits of about 10: other kernels and other machines round otherwise.
    torch.testing.assert_close(grid, expected["grid_logits"], rtol=0, atol=1e-5)
    torch.testing.assert_close(few, expected["few_logits"], rtol=0, atol=1e-5)


def first_images(directory):
    """The four that `expected.safetensors` is of, as PIL images."""
    import datasets

    return datasets.load_dataset(str(directory), split="train")[:4]["image"]


def logits_by_remote_code(directory, file, num_tokens):
    """In its process, without this package: the code beside the weights."""
    import io

    import pyarrow.parquet as pq
    import torch
    from PIL import Image
    from transformers import AutoModelForImageClassification
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    rows = pq.read_table(file)["image"].to_pylist()[:4]
    images = [Image.open(io.BytesIO(row["bytes"])) for row in rows]
    model = AutoModelForImageClassification.from_pretrained(directory, trust_remote_code=True)
    processor = AutoImageProcessor.from_pretrained(directory, trust_remote_code=True)
    inputs = processor(images, num_tokens=num_tokens, placement="center", return_tensors="pt")
    with torch.no_grad():
        return {
            "grid_logits": model(inputs["pixel_values"]).logits.tolist(),
            "few_logits": model(**inputs).logits.tolist(),
        }


def test_a_models_own_code_gives_the_same_logits(fresh_process):
    """It was saved beside the weights, and the libraries of today run it."""
    file = WRITTEN / "images/train.parquet"
    found = fresh_process(logits_by_remote_code, MODEL, file, FEW, without_spot_hf=True)
    expected = load_file(WRITTEN / "expected.safetensors")
    for name, logits in found.items():
        torch.testing.assert_close(torch.tensor(logits), expected[name], rtol=0, atol=1e-5)  # as above


def test_the_trained_vit_still_converts(tmp_path, capsys):
    """On the full grid, its logits are its source's to 1e-5: the rounding of three layers in float32."""
    assert main(["convert", "--source_model", str(FIXTURES / "digits-vit"), "--output_dir", str(tmp_path / "spot")]) == 0
    images = first_images(WRITTEN / "images")
    inputs = AutoImageProcessor.from_pretrained(tmp_path / "spot")(images, return_tensors="pt")
    with torch.no_grad():
        found, expected = (
            AutoModelForImageClassification.from_pretrained(directory)(inputs["pixel_values"]).logits
            for directory in (tmp_path / "spot", FIXTURES / "digits-vit")
        )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


# -------------------------------------------------------------------------------------------------------- coordinates


@pytest.mark.parametrize("num_tokens", [4, 9])
def test_coordinates_load_and_join(num_tokens, tmp_path, monkeypatch):
    import datasets

    # Files that were changed were read from the user's cache as they had been.
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    rows = spot_hf.load_coordinates(WRITTEN / "coordinates", f"model_n{num_tokens}")
    assert rows["image_id"] == [f"digit_{i:02d}.png" for i in range(NUM_IMAGES)]
    assert np.array(rows["coordinates"]).shape == (NUM_IMAGES, num_tokens, 2)
    assert np.array(rows["trajectory"]).shape == (NUM_IMAGES, 4, num_tokens, 2)
    assert np.array(rows["window_scales"]).shape == (NUM_IMAGES, num_tokens)
    images = datasets.load_dataset(str(WRITTEN / "images"), split="train")
    joined = spot_hf.join_coordinates(images, rows)
    assert [row["coordinates"] for row in joined] == rows["coordinates"]  # and every image's hash is right


def test_a_killed_oracle_goes_on_to_the_same_rows(go_on, same_machine):
    shards = {name: content for name, content in files_of(WRITTEN / "oracle-half").items() if name.endswith(".parquet")}
    assert 0 < len(shards) < 8
    directory, said = go_on("oracle", "oracle-half")
    assert "resuming: " in said
    found = files_of(directory)
    assert {name: found[name] for name in shards} == shards
    names = {str(path.relative_to(WRITTEN / "coordinates")) for path in (WRITTEN / "coordinates").glob("*/*.parquet")}
    assert {name for name in found if name.endswith(".parquet")} == names and len(names) == 8
    if same_machine:
        assert rows_of(directory) == rows_of(WRITTEN / "coordinates")
    for name in sorted(names):
        ours, theirs = (pq.read_table(one / name) for one in (directory, WRITTEN / "coordinates"))
        assert ours.schema.equals(theirs.schema, check_metadata=False)
        columns = [column for column in theirs.column_names if column != "trajectory"]
        assert_same(ours.select(columns).to_pylist(), theirs.select(columns).to_pylist(), same_machine, name)
        # float16 in [0, 1]: a rounding to the next is 4.9e-4.
        steps = [np.array(table["trajectory"].to_pylist()) for table in (ours, theirs)]
        np.testing.assert_allclose(*steps, rtol=0, atol=6e-4)
    results = [json.loads((one / "run.json").read_text())["results"] for one in (directory, WRITTEN / "coordinates")]
    # Sizes of files are of the writer's version too.
    for one in [summary for result in results for summary in result.values()]:
        one.pop("download_size", None), one.pop("num_bytes", None)
    assert_same(*results, same_machine, "run.json")


def test_a_finished_oracle_is_not_repeated(go_on):
    before = {name: content for name, content in files_of(WRITTEN / "coordinates").items() if name.endswith(".parquet")}
    directory, said = go_on("oracle", "coordinates")
    assert "all 4 shards" in said
    assert {name: content for name, content in files_of(directory).items() if name.endswith(".parquet")} == before


# --------------------------------------------------------------------------------------------------------- evaluation


def lines_of(directory: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """Cell and shard → what was found, but for time and memory."""
    lines = [json.loads(line) for line in (directory / "lines-0.jsonl").read_text().splitlines()]
    found = {
        (json.dumps(line["cell"]), line["shard"]): {name: value for name, value in line.items() if name not in MEASURED}
        for line in lines
    }
    assert len(found) == len(lines)  # nothing was done twice
    return found


def test_a_killed_evaluation_goes_on_to_the_same_figures(go_on, same_machine):
    there = (WRITTEN / "evaluation-half/lines-0.jsonl").read_bytes()
    directory, _ = go_on("evaluate", "evaluation-half")
    assert (directory / "lines-0.jsonl").read_bytes().startswith(there)
    ours, theirs = lines_of(directory), lines_of(WRITTEN / "evaluation")
    assert 0 < there.count(b"\n") < len(theirs)
    if not same_machine:  # the order of what is nearly equal is no promise
        for line in [*ours.values(), *theirs.values()]:
            line["top"] = [top[0] for top in line["top"]]
    # Since 0.2.0 a shrunken image's position table is interpolated in float64: it rounds otherwise.
    shrunken = {key for key in theirs if "shrunken_image" in key[0]}
    assert set(ours) == set(theirs) and shrunken
    for key, line in theirs.items():
        assert_same(ours[key], line, same_machine and key not in shrunken, str(key))
    results = [json.loads((one / "results.json").read_text()) for one in (directory, WRITTEN / "evaluation")]
    for name in ("parameters", "results", "oracle"):
        found, expected = (without_measured(result[name]) for result in results)
        if name == "results":
            for i, row in enumerate(expected):
                assert_same(found[i], row, same_machine and row["way"] != "shrunken_image", row["way"])
            assert len(found) == len(expected)
        else:
            assert_same(found, expected, same_machine, name)


def without_measured(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_measured(one) for name, one in value.items() if name not in MEASURED}
    return [without_measured(one) for one in value] if isinstance(value, list) else value


# ----------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize(
    "name, half, whole", [("train", "training-half", "training"), ("pretrain", "pretraining-half", "pretraining")]
)
def test_a_killed_training_goes_on_to_the_same_weights(go_on, same_machine, name, half, whole):
    checkpoint = {file: content for file, content in files_of(WRITTEN / half).items() if file.startswith(CHECKPOINT)}
    directory, said = go_on(name, half)
    assert f"resuming from {directory}/{CHECKPOINT}" in said
    after = files_of(directory)
    assert {file: after[file] for file in checkpoint} == checkpoint
    found, expected = (load_file(one / "model.safetensors") for one in (directory, WRITTEN / whole))
    assert set(found) == set(expected)
    for tensor_name, tensor in expected.items():
        if same_machine:
            assert torch.equal(found[tensor_name], tensor), tensor_name
        else:
            torch.testing.assert_close(found[tensor_name], tensor, rtol=0, atol=TOLERANCE)
    # The three steps since have changed more than that, or the comparison says nothing.
    start = load_file(WRITTEN / half / CHECKPOINT / ("ema.safetensors" if name == "train" else "model.safetensors"))
    start = {tensor_name.removeprefix("module."): tensor for tensor_name, tensor in start.items()}
    assert max((start[tensor_name] - tensor).abs().max().item() for tensor_name, tensor in expected.items()) > 3 * TOLERANCE
    logs = [json.loads((one / f"{whole}.json").read_text())["log"] for one in (directory, WRITTEN / whole)]
    losses = [[(entry["step"], entry["loss"]) for entry in log if "loss" in entry] for log in logs]
    assert len(losses[0]) == 7
    assert_same([list(pair) for pair in losses[0]], [list(pair) for pair in losses[1]], same_machine, "losses")


@pytest.mark.parametrize(
    "name, half", [("oracle", "oracle-half"), ("evaluate", "evaluation-half"), ("train", "training-half")]
)
def test_other_parameters_are_still_refused(name, half, tmp_path, capsys):
    """What `run.json` holds is compared, and not just read."""
    shutil.copytree(WRITTEN / half, tmp_path / half)
    before = files_of(tmp_path / half)
    assert main([*command(name, tmp_path / half, WRITTEN), "--seed", "7"]) == 2
    assert "there, 7 here" in capsys.readouterr().err
    assert files_of(tmp_path / half) == before
