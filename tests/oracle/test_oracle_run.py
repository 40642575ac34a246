"""The oracle over a data set: `spot-hf oracle`. Real processes, killed for real."""

import hashlib
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import ROOT
from oracle_runs import files_of, rows_of, save_images

from spot_hf import convert_checkpoint, load_coordinates
from spot_hf.cli import main
from spot_hf.coordinates.shards import Shard
from spot_hf.oracle.arguments import OracleArguments
from spot_hf.oracle.run import run_oracle


NUM_IMAGES = 30
BROKEN = (3, 17)
KILLS = 20


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return save_images(tmp_path_factory.mktemp("images") / "pictures", NUM_IMAGES, BROKEN)


@pytest.fixture(scope="module")
def options(model, images) -> dict[str, list[str]]:
    """The command line of one run, without its output directory."""
    return {
        "--model": [str(model)],
        "--dataset_name": [str(images)],
        "--num_tokens": ["4", "6"],
        "--placement": ["uniform"],
        "--steps": ["3"],
        "--batch_size": ["3"],
        "--shard_size": ["4"],
        "--num_workers": ["0"],
        "--max_failed_share": ["0.1"],
    }


def command(options: dict[str, list[str]], output_dir, *more: str, **changes) -> list[str]:
    changed = {**options, **{f"--{name}": [str(value)] for name, value in changes.items()}}
    return [
        "oracle",
        *(word for name, values in changed.items() for word in (name, *values)),
        "--output_dir",
        str(output_dir),
        *more,
    ]


@pytest.fixture(scope="module")
def undisturbed(options, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("undisturbed") / "run"
    assert main(command(options, directory)) == 0
    return directory


# ------------------------------------------------------------------------------------------------------------- rows


def test_every_readable_image_has_a_row_and_every_other_is_listed(undisturbed):
    ledger = json.loads((undisturbed / "run.json").read_text())
    for config in ("tiny_n4", "tiny_n6"):
        rows = load_coordinates(undisturbed, config, "validation")
        assert rows["image_index"] == [i for i in range(NUM_IMAGES) if i not in BROKEN]
        failed = ledger["results"][config]["failed"]
        assert [one["image_index"] for one in failed] == list(BROKEN)
        assert all("picture_" in one["image_id"] and "UnidentifiedImageError" in one["error"] for one in failed)


def test_random_starts_depend_on_seed_and_image_alone(undisturbed):
    starts = np.array(load_coordinates(undisturbed, "tiny_n4")["initial_coordinates"])
    assert len(np.unique(starts.reshape(len(starts), -1), axis=0)) == len(starts)
    from spot_hf import SpotViTImageProcessorPil
    from spot_hf.placement import generator_for, uniform

    rows = load_coordinates(undisturbed, "tiny_n4")
    drawn = uniform(4, generator_for(0, rows[5]["image_id"]))
    processor = SpotViTImageProcessorPil.from_dict(
        json.loads((undisturbed / "tiny_n4/validation.json").read_text())["image_processor"]
    )
    expected = processor.to_image_frame(drawn, tuple(rows[5]["image_size"]))
    # float32 through two frames: a rounding of each coordinate.
    np.testing.assert_allclose(rows[5]["initial_coordinates"], expected, atol=1e-6)


def test_the_summary_is_that_of_the_rows(undisturbed):
    rows = load_coordinates(undisturbed, "tiny_n6").with_format("numpy")
    results = json.loads((undisturbed / "run.json").read_text())["results"]["tiny_n6"]
    label = np.array(rows["label"])
    assert results["accuracy_before"] == pytest.approx(100 * np.mean(np.array(rows["initial_prediction"]) == label), abs=1e-3)
    assert results["accuracy_after"] == pytest.approx(100 * np.mean(np.array(rows["prediction"]) == label), abs=1e-3)
    assert results["accuracy_per_step"][0] == results["accuracy_before"]
    np.testing.assert_allclose(results["loss_per_step"], np.mean(np.stack(rows["losses"]), axis=0), rtol=1e-5)


def test_no_temporary_file_is_left(undisturbed):
    names = files_of(undisturbed)
    assert not [name for name in names if name.endswith(".tmp")]
    assert {"README.md", "run.json", "tiny_n4/validation.json", "tiny_n4/validation.png"} < set(names)


def test_no_path_of_this_machine_is_published(undisturbed):
    """Only the command, which the user typed, may name one. Of what lay there a card says PATH/TO/ITS NAME."""
    for name, content in files_of(undisturbed).items():
        if name.endswith((".json", ".md")):
            without_command = re.sub(r'"command": .*|spot-hf oracle .*|PATH/TO/', "", content.decode())
            assert str(ROOT) not in without_command and "/pictures" not in without_command, name


# ------------------------------------------------------------------------------------- the same rows in any other way


@pytest.mark.parametrize("ways", [{"num_workers": 2}, {"streaming": True}, {"streaming": True, "num_workers": 1}], ids=str)
def test_workers_and_streams_give_the_same_rows(options, undisturbed, tmp_path, ways):
    flags = ["--streaming"] if ways.get("streaming") else []
    changes = {name: value for name, value in ways.items() if name != "streaming"}
    assert main(command(options, tmp_path / "run", *flags, **changes)) == 0
    assert rows_of(tmp_path / "run") == rows_of(undisturbed)


def test_a_stream_of_unknown_length(options, undisturbed, images, tmp_path, monkeypatch):
    """Its shards get their final names at its end, also where the run was stopped before the last of them."""
    unknown = tmp_path / "unknown"
    (unknown / "validation").mkdir(parents=True)
    rows = pq.read_table(images / "validation.parquet")
    # Files of images beside a table of labels: a source that says nothing of its length.
    lines = []
    for row in rows.to_pylist():
        name = row["image"]["path"]
        (unknown / "validation" / name).write_bytes(row["image"]["bytes"])
        lines.append(json.dumps({"file_name": name, "label": row["label"]}))
    (unknown / "validation" / "metadata.jsonl").write_text("\n".join(lines))
    run = command(options, tmp_path / "run", "--streaming", dataset_name=unknown, placement="isotropic")
    assert main(run) == 0
    names = sorted(path.name for path in (tmp_path / "run/tiny_n4").glob("*.parquet"))
    assert names == [f"validation-{i:05d}-of-00008.parquet" for i in range(8)]
    assert sorted(load_coordinates(tmp_path / "run", "tiny_n4")["image_index"]) == [
        i for i in range(NUM_IMAGES) if i not in BROKEN
    ]
    before = rows_of(tmp_path / "run")
    for path in (tmp_path / "run/tiny_n4").glob("*-0000[25]-*"):
        path.unlink()
    for path in (tmp_path / "run/tiny_n6").glob("*-0000[67]-*"):
        path.unlink()
    assert main(run) == 0
    assert rows_of(tmp_path / "run") == before


def stream_a_folder(images, repo_id):
    """In its process: uploads a folder of images, streams it back, and says what came."""
    from huggingface_hub import HfApi

    from spot_hf.data.encoded import iterate_encoded
    from spot_hf.data.source import DatasetSource, load_images

    HfApi().create_repo(repo_id, repo_type="dataset")
    HfApi().upload_folder(repo_id=repo_id, repo_type="dataset", folder_path=images)
    found = {}
    for streaming in (True, False):
        source = DatasetSource(dataset_name=repo_id, dataset_split="validation")
        loaded = load_images(source.source(streaming=streaming))
        found[str(streaming)] = [
            (image.image_id, image.sha256, image.label) for image in iterate_encoded(loaded, "validation")
        ]
        assert next(iter(loaded))["image"].size
    return found


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_streams_from_the_hub_bring_the_stored_bytes(hub, fresh_process, tmp_path, kind):
    data = save_images(tmp_path / "data", 6)
    rows = pq.read_table(data / "validation.parquet").to_pylist()
    if kind == "folder":
        for row in rows:
            directory = tmp_path / "folder/validation" / str(row["label"])
            directory.mkdir(parents=True, exist_ok=True)
            (directory / row["image"]["path"]).write_bytes(row["image"]["bytes"])
    uploaded = data if kind == "parquet" else tmp_path / "folder"
    found = fresh_process(stream_a_folder, uploaded, f"alice/{kind}", hub=hub, token="hf_alice")
    expected = {row["image"]["path"]: hashlib.sha256(row["image"]["bytes"]).hexdigest() for row in rows}
    for one in found.values():
        assert {image_id: digest for image_id, digest, _ in one} == expected


def test_two_processes_and_one_give_the_same_rows(options, undisturbed, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "scripts/run_oracle.py"]
    done = subprocess.run(
        [*launch, *command(options, tmp_path / "run")[1:]], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert rows_of(tmp_path / "run") == rows_of(undisturbed)
    assert done.stdout.count("written to") == 1 and "process 0 of 2" in done.stderr


def test_batch_sizes_give_the_same_rows(options, undisturbed, tmp_path):
    """To 1e-5 in position: matrix products of other shapes round otherwise, and the optimizer carries that on."""
    for batch_size in (1, 7, 32):
        directory = tmp_path / str(batch_size)
        assert main(command(options, directory, batch_size=batch_size)) == 0
        for config in ("tiny_n4", "tiny_n6"):
            ours, theirs = load_coordinates(directory, config), load_coordinates(undisturbed, config)
            for name in ("image_id", "image_sha256", "label", "prediction", "initial_prediction", "initial_coordinates"):
                assert ours[name] == theirs[name]
            np.testing.assert_allclose(ours["coordinates"], theirs["coordinates"], rtol=0, atol=1e-5)


def test_batch_sizes_give_the_same_rows_on_real_weights(vit_tiny, tmp_path):
    """Products round otherwise in batches of other sizes, on some CPUs more than on others. AdamW divides a gradient by its
    own size: where that is nearly zero, a position moves by more than rounding, a fiftieth of a pixel at the most."""
    from conftest import shared

    convert_checkpoint(vit_tiny, tmp_path / "vit-tiny")
    found = {}
    for batch_size in (1, 7, 32):
        arguments = OracleArguments(
            model=str(tmp_path / "vit-tiny"), dataset_name=str(shared("data/nips2017")), max_samples=32, num_tokens=[25],
            batch_size=batch_size, num_workers=0, output_dir=str(tmp_path / str(batch_size)),
        )  # fmt: skip
        run_oracle(arguments)
        found[batch_size] = load_coordinates(tmp_path / str(batch_size)).with_format("numpy")
    for batch_size in (7, 32):
        moved = np.abs(np.stack(found[batch_size]["coordinates"]) - np.stack(found[1]["coordinates"]))
        assert (moved <= 1e-5).mean() > 0.99 and moved.max() < 1e-4
        # A loss moves by its gradient, up to a thousand per image width, times as much.
        losses = [np.stack(found[size]["losses"]) for size in (batch_size, 1)]
        np.testing.assert_allclose(*losses, rtol=0, atol=1e-1)


# ------------------------------------------------------------------------------------------------------------- kills


def run_in_child(arguments: list[str], log: str, kill_after: int | None) -> None:
    """In a process of its own: the command line. Killed as soon as it has written so many shards, where that is given."""
    if kill_after is not None:
        write, written = Shard.write, []

        def write_and_die(shard, path):
            write(shard, path)
            written.append(path)
            if len(written) == kill_after:
                os.kill(os.getpid(), signal.SIGKILL)

        Shard.write = write_and_die
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.exit(main(arguments))


def test_killed_at_any_instant_it_ends_with_the_same_rows(options, undisturbed, tmp_path):
    """Twenty SIGKILLs: a quarter in the search on any machine, however fast or busy, as each comes when so many shards are
    written; the others at random instants: of the search, a write, the end. Where a run got through before its kill, its
    result is compared, and the next begins anew."""
    # A server that has imported everything forks the processes: a kill then hits the run, and not its imports.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["spot_hf.oracle.run", "spot_hf.cli", "test_oracle_run"])
    output, log = tmp_path / "run", tmp_path / "log"
    expected, arguments = rows_of(undisturbed), command(options, output)
    generator = random.Random(0)

    def start(kill_after=None):
        process = context.Process(target=run_in_child, args=(arguments, str(log), kill_after))
        process.start()
        return process

    start().join()  # the server's start, and how long a run takes
    began = time.monotonic()
    shutil.rmtree(output)
    process = start()
    process.join()
    duration = time.monotonic() - began
    assert process.exitcode == 0, log.read_text()[-3000:]

    shutil.rmtree(output)
    kills, shards_at_kill = 0, []
    for kill_after in (1, 3, 3, 3, 3):
        process = start(kill_after)
        process.join()
        assert process.exitcode == -signal.SIGKILL, log.read_text()[-3000:]
        kills += 1
        shards_at_kill.append(len(list(output.glob("*/*.parquet"))))
    assert shards_at_kill == [1, 4, 7, 10, 13]
    while kills < KILLS:
        process = start()
        process.join(timeout=generator.uniform(0, duration))
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            kills += process.exitcode == -signal.SIGKILL
            shards_at_kill.append(len(list(output.glob("*/*.parquet"))))
        else:
            assert process.exitcode == 0, log.read_text()[-3000:]
            assert rows_of(output) == expected
            shutil.rmtree(output)
    process = start()
    process.join()
    assert process.exitcode == 0, log.read_text()[-3000:]
    assert rows_of(output) == expected
    assert not list(output.rglob("*.tmp"))
    assert any(0 < count < 16 for count in shards_at_kill), shards_at_kill  # kills did hit the search


def test_it_goes_on_without_repeating_what_is_done(options, undisturbed, tmp_path, capsys):
    output = tmp_path / "run"
    shutil.copytree(undisturbed, output)
    removed = [output / "tiny_n4/validation-00002-of-00008.parquet", output / "tiny_n6/validation-00005-of-00008.parquet"]
    times = {path: path.stat().st_mtime_ns for path in output.glob("*/*.parquet") if path not in removed}
    for path in removed:
        path.unlink()
    assert main(command(options, output)) == 0
    assert rows_of(output) == rows_of(undisturbed)
    assert times == {path: path.stat().st_mtime_ns for path in times}
    assert "resuming: 6 of 8 shards are done" in capsys.readouterr().out


def test_a_finished_run_is_not_repeated(options, undisturbed, tmp_path, capsys):
    output = tmp_path / "run"
    shutil.copytree(undisturbed, output)
    before = files_of(output)
    assert main(command(options, output)) == 0
    assert files_of(output) == before
    assert "all 8 shards" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"steps": 4}, "steps 3 there, 4 here"),
        ({"learning_rate": 0.01}, "learning_rate 0.003 there, 0.01 here"),
        ({"num_tokens": 4}, "num_tokens [4, 6] there, [4] here"),
        ({"seed": 1, "batch_size": 2}, "batch_size 3 there, 2 here; seed 0 there, 1 here"),
        ({"max_samples": 8}, "max_samples None there, 8 here"),
    ],
    ids=str,
)
def test_other_parameters_are_refused_by_name(options, undisturbed, capsys, changes, said):
    before = files_of(undisturbed)
    assert main(command(options, undisturbed, **changes)) == 2
    error = capsys.readouterr().err.strip()
    assert said in error and "output_dir" in error and "\n" not in error
    assert files_of(undisturbed) == before


def test_other_weights_under_the_same_name_are_refused(options, undisturbed, model, tmp_path, capsys):
    changed = tmp_path / "tiny"
    shutil.copytree(model, changed)
    weights = bytearray((changed / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (changed / "model.safetensors").write_bytes(weights)
    assert main(command(options, undisturbed, model=changed)) == 2
    assert "model_sha256" in capsys.readouterr().err


def test_overwriting_begins_anew(options, undisturbed, tmp_path):
    output = tmp_path / "run"
    shutil.copytree(undisturbed, output)
    assert main(command(options, output, "--overwrite_output_dir", steps=1, num_tokens=4)) == 0
    assert set(rows_of(output)) == {"tiny_n4"}
    assert len(load_coordinates(output, "tiny_n4")[0]["losses"]) == 2


def test_a_directory_of_something_else_is_refused(options, tmp_path, capsys):
    (tmp_path / "precious.txt").write_text("mine")
    assert main(command(options, tmp_path)) == 2
    assert "holds no run" in capsys.readouterr().err
    assert files_of(tmp_path) == {"precious.txt": b"mine"}


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"steps": -1}, "steps"),
        ({"learning_rate": 0}, "learning_rate"),
        ({"objective": "labels"}, "objective"),
        ({"optimizer": "adamm"}, "optimizer"),
        ({"optimizer": "lbfgs"}, "optimizer"),
        ({"optimizer_arguments": "momentum=0.9"}, "optimizer_arguments"),
        ({"optimizer_arguments": '{"momentum": 0.9}'}, "optimizer_arguments"),
        ({"placement": "spiral"}, "placement"),
        ({"placement": "salient"}, "placement"),
        ({"num_tokens": 0}, "num_tokens"),
        ({"batch_size": 0}, "batch_size"),
        ({"shard_size": 0}, "shard_size"),
        ({"num_workers": -1}, "num_workers"),
        ({"max_samples": 0}, "max_samples"),
        ({"early_stop": -0.5}, "early_stop"),
        ({"dtype": "int8"}, "dtype"),
        ({"run_name": "a/b"}, "run_name"),
        ({"run_name": "a[1]"}, "run_name"),
        ({"hub_dataset_id": "user/name"}, "push_to_hub"),
        ({"label_column_name": "none"}, "label_column_name"),
    ],
    ids=str,
)
def test_bad_arguments_stop_before_anything_is_loaded(options, tmp_path, capsys, changes, named):
    """The model and the data set do not exist: whoever looks for them says so instead."""
    absent = {"model": tmp_path / "no_model", "dataset_name": tmp_path / "no_data"}
    assert main(command(options, tmp_path / "run", **{**absent, **changes})) == 2
    error = capsys.readouterr().err.strip()
    assert named in error and "\n" not in error and "Traceback" not in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "changes, named, status",
    [
        ({"model": "no/such/model"}, "`model`", 1),
        ({"dataset_split": "train"}, "`dataset_split` must be one of validation", 2),
        ({"image_column_name": "picture"}, "`image_column_name` must be one of image, label", 2),
        ({"image_column_name": "label"}, "`image_column_name` must name a column of images", 2),
        ({"label_column_name": "class"}, "`label_column_name` must be one of image, label", 2),
        ({"dataset_name": "digits"}, "10 of the 10 classes of 'label' are none of the model's", 2),
    ],
    ids=str,
)
def test_what_does_not_fit_is_said_in_one_line(options, tmp_path, capsys, changes, named, status):
    assert main(command(options, tmp_path / "run", **changes)) == status
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("spot-hf")]
    assert len(lines) == 1 and named in lines[0]
    assert not (tmp_path / "run").exists()


def test_a_label_that_the_model_does_not_know(options, images, tmp_path, capsys):
    table = pq.read_table(images / "validation.parquet").to_pylist()
    table[20]["label"] = -1  # as in ImageNet's test split
    (tmp_path / "data").mkdir()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    datasets.Dataset.from_list(table, features=features).to_parquet(tmp_path / "data/test.parquet")
    assert main(command(options, tmp_path / "run", dataset_name=tmp_path / "data")) == 2
    assert "row 20 of 'test' has the label -1, and 0 more rows have such; the model knows 0 to 4" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    # A stream is read while it is used.
    assert main(command(options, tmp_path / "run", "--streaming", dataset_name=tmp_path / "data")) == 2
    assert "'picture_20.png' has the label -1" in capsys.readouterr().err


def test_an_ordinary_vit_is_refused(options, tiny_vit, tmp_path, capsys):
    assert main(command(options, tmp_path / "run", model=tiny_vit)) == 2
    assert "convert it" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------- other objectives and data


def test_without_labels(options, images, tmp_path):
    assert main(command(options, tmp_path / "run", objective="distill", label_column_name="none", num_tokens=4)) == 0
    rows = load_coordinates(tmp_path / "run")
    assert set(rows["label"]) == {None} and None not in rows["prediction"]
    losses = np.array(rows["losses"])
    assert (losses.min(1) < losses[:, 0]).mean() > 0.8
    results = json.loads((tmp_path / "run/run.json").read_text())["results"]["tiny_n4"]
    assert results["accuracy_before"] is None and results["num_labelled"] == 0
    card = (tmp_path / "run/README.md").read_text()
    assert "uses no label" in card and "ceiling" not in card


def test_a_model_without_a_classifier(model, options, tmp_path, capsys):
    from spot_hf import SpotViTForImageClassification, SpotViTImageProcessorPil

    SpotViTForImageClassification.from_pretrained(model).spot_vit.save_pretrained(tmp_path / "headless")
    SpotViTImageProcessorPil.from_pretrained(model).save_pretrained(tmp_path / "headless")
    assert main(command(options, tmp_path / "run", model=tmp_path / "headless")) == 2
    assert "`objective` must be 'feature'" in capsys.readouterr().err
    assert main(command(options, tmp_path / "run", model=tmp_path / "headless", objective="feature")) == 0
    rows = load_coordinates(tmp_path / "run", "headless_n4")
    assert set(rows["prediction"]) == {None} and None not in rows["label"]


def test_window_scales_and_trajectories_are_columns(options, tmp_path):
    flags = ["--optimize_window_scales", "--save_trajectories"]
    assert main(command(options, tmp_path / "run", *flags, num_tokens=4)) == 0
    rows = load_coordinates(tmp_path / "run").with_format("numpy")
    assert np.array(rows["window_scales"]).shape == (28, 4)
    assert np.array(rows["trajectory"]).shape == (28, 4, 4, 2)
    # float16 in [0, 1]: half a unit in the last place is 2.5e-4.
    np.testing.assert_allclose(np.array(rows["trajectory"])[:, 0], np.array(rows["initial_coordinates"]), atol=2.5e-4)


def test_a_shard_of_broken_images(model, options, tmp_path):
    data = save_images(tmp_path / "data", 6, broken=(0, 1, 2, 3))
    assert main(command(options, tmp_path / "run", dataset_name=data, max_failed_share=1)) == 0
    assert load_coordinates(tmp_path / "run", "tiny_n4")["image_index"] == [4, 5]


# -------------------------------------------------------------------------------------------------------- real weights


def reproduce(repo_id, config, model, images):
    """In its process, without this package: the published rows, through AutoModel."""
    import torch
    from datasets import load_dataset
    from transformers import AutoModelForImageClassification, pipeline

    rows = load_dataset(repo_id, config, split="validation")
    source = load_dataset(images, split="validation").select(rows["image_index"])
    # By the pipeline, which loads model and processor as remote code.
    classifier = pipeline("spot-image-classification", model=model, trust_remote_code=True)
    auto = AutoModelForImageClassification.from_pretrained(model, trust_remote_code=True)
    differing = []
    for row, image in zip(rows, source, strict=True):
        inputs = classifier.image_processor(image["image"], coordinates=row["coordinates"], return_tensors="pt")
        with torch.no_grad():
            if auto(**inputs).logits.argmax(-1).item() != row["prediction"]:
                differing.append(row["image_id"])
    accuracies = [
        sum(a == b for a, b in zip(rows["label"], rows[name], strict=True)) / len(rows)
        for name in ("initial_prediction", "prediction")
    ]
    return {"num_rows": len(rows), "differing": differing, "accuracies": accuracies}


def publish(arguments):
    """In its process: the command line."""
    from spot_hf.cli import main

    return main(arguments)


def test_published_rows_reproduce_their_predictions_on_real_weights(hub, vit_tiny, fresh_process, tmp_path):
    from conftest import shared

    convert_checkpoint(vit_tiny, tmp_path / "vit-tiny")
    data = str(shared("data/nips2017"))
    arguments = [
        "oracle", "--model", tmp_path / "vit-tiny", "--dataset_name", data, "--num_tokens", "49", "--max_samples", "60",
        "--shard_size", "25", "--output_dir", tmp_path / "run", "--push_to_hub", "--hub_dataset_id", "alice/real",
    ]  # fmt: skip
    assert fresh_process(publish, [str(word) for word in arguments], hub=hub, token="hf_alice") == 0
    result = fresh_process(reproduce, "alice/real", "vit-tiny_n49", tmp_path / "vit-tiny", data, hub=hub, without_spot_hf=True)
    assert result["num_rows"] == 60 and not result["differing"]
    before, after = result["accuracies"]
    assert after - before >= 0.4  # the bound, on the first 200 images: 35.0 to 84.0 %
