"""`spot-hf evaluate`: metrics, baselines, a run that is killed and goes on, and what it refuses."""

import io
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import evaluate
import numpy as np
import PIL.Image
import pytest
import torch
from conftest import ROOT, shared
from oracle_runs import LABELS, picture, save_images
from sklearn.metrics import accuracy_score, log_loss, top_k_accuracy_score
from tiny import random_images, tiny_model

from spot_hf import SpotOracle, SpotViTImageProcessorPil, convert_checkpoint
from spot_hf.cli import main
from spot_hf.evaluation.arguments import EvaluationArguments
from spot_hf.evaluation.baselines import merge_schedule_of_cost, shrink, shrunken_size
from spot_hf.evaluation.memory import PeakMemory
from spot_hf.evaluation.results import METRICS
from spot_hf.merging import merge_at_rate
from spot_hf.placement import isotropic


# --------------------------------------------------------------------------------------------------------- the metrics


def test_top_k_accuracy_is_scikit_learns():
    scores = np.random.default_rng(0).normal(size=(200, 10))
    labels = np.random.default_rng(1).integers(0, 10, 200)
    ranked = np.argsort(-scores, axis=1)[:, :5]
    metric = evaluate.load(str(METRICS / "top_k_accuracy"))
    for k in (1, 2, 5):
        ours = metric.compute(predictions=ranked.tolist(), references=labels.tolist(), k=k)[f"top_{k}_accuracy"]
        assert ours == pytest.approx(top_k_accuracy_score(labels, scores, k=k, labels=range(10)), abs=1e-12)
    assert metric.compute(predictions=ranked.tolist(), references=labels.tolist(), k=1)["top_1_accuracy"] == pytest.approx(
        accuracy_score(labels, scores.argmax(1)), abs=1e-12
    )
    with pytest.raises(ValueError, match="`k` must be 1 to 5"):
        metric.compute(predictions=ranked.tolist(), references=labels.tolist(), k=6)


def test_calibration_error_is_the_sum_over_bins():
    generator = np.random.default_rng(0)
    confidences, predictions, labels = generator.random(500), generator.integers(0, 3, 500), generator.integers(0, 3, 500)
    metric = evaluate.load(str(METRICS / "expected_calibration_error"))
    ours = metric.compute(predictions=predictions, references=labels, confidences=confidences, num_bins=10)
    expected = 0.0
    for low in np.arange(10) / 10:
        inside = (confidences > low) & (confidences <= low + 0.1)
        if inside.any():
            accuracy = (predictions[inside] == labels[inside]).mean()
            expected += inside.mean() * abs(confidences[inside].mean() - accuracy)
    assert ours["expected_calibration_error"] == pytest.approx(expected, abs=1e-12)


# ------------------------------------------------------------------------------------------------------- baselines


def test_the_schedule_of_a_cost():
    assert sum(merge_schedule_of_cost(196, 196, 192, 12)) == 0
    assert merge_schedule_of_cost(196, 1, 192, 12) == merge_at_rate(196, 98, 12)  # as cheap as it can be


def test_a_shrunken_model_is_transformers_own(tiny_vit, tmp_path):
    """transformers interpolates the table bicubically too. To 1e-4, as the conversion."""
    from transformers import ViTForImageClassification

    source = ViTForImageClassification.from_pretrained(tiny_vit).eval()
    model = convert_checkpoint(tiny_vit, tmp_path / "model").model.eval()
    for num_tokens in (4, 6, 9):
        height, width = shrunken_size(num_tokens, 32, 32, 8)
        images = random_images(2, height, width)
        with torch.no_grad():
            theirs = source(images, interpolate_pos_encoding=True).logits
            torch.testing.assert_close(shrink(model, height, width)(images).logits, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("num_tokens, expected", [(25, (80, 80)), (49, (112, 112)), (100, (160, 160)), (1, (16, 16))])
def test_sizes_of_shrunken_images(num_tokens, expected):
    assert shrunken_size(num_tokens, 224, 224, 16) == expected


def test_a_scaled_recipe_keeps_its_proportions():
    processor = SpotViTImageProcessorPil(
        size={"shortest_edge": 248}, crop_size={"height": 224, "width": 224}, do_center_crop=True
    )
    scaled = processor.resized(112, 112)
    assert scaled.size["shortest_edge"] == 124 and scaled.model_size((500, 375)) == (112, 112)
    assert processor.size["shortest_edge"] == 248
    plain = SpotViTImageProcessorPil(size={"height": 48, "width": 48}).resized(24, 24)
    assert plain.model_size((500, 375)) == (24, 24)


# -------------------------------------------------------------------------------------------------------------- a run


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return save_images(tmp_path_factory.mktemp("images") / "pictures", 26, broken=(7,))


def command(model, images, output, /, **changes) -> list[str]:
    options = {
        "model": model, "dataset_name": images, "num_tokens": "4 9 16", "num_seeds": 2, "shard_size": 6, "batch_size": 4,
        "num_workers": 0, "max_failed_share": 0.1, "output_dir": output, **changes,
    }  # fmt: skip
    words = ["evaluate"]
    for name, value in options.items():
        words += [f"--{name}", *str(value).split()]
    return words


@pytest.fixture(scope="module")
def finished(model, images, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("finished") / "run"
    assert main(command(model, images, directory)) == 0
    return directory


def assert_drawn(file: Path) -> None:
    """A plot: a picture of its size, mostly paper, with lines of several colours."""
    pixels = np.asarray(PIL.Image.open(file).convert("RGB")).reshape(-1, 3)
    assert len(pixels) > 500_000
    assert 0.8 < (pixels == 255).all(1).mean() < 0.99
    saturated = pixels[pixels.max(1).astype(int) - pixels.min(1) > 100] // 32
    assert len(np.unique(saturated, axis=0)) >= 3


def run_on(num_processes: int, words: list[str]) -> None:
    if num_processes == 1:
        assert main(words) == 0
        return
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(num_processes)]
    script = [*launch, "scripts/run_evaluation.py", *words[1:]]
    done = subprocess.run(script, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def figures(directory: Path) -> list[dict]:
    """Results without what a clock measured."""
    rows = json.loads((directory / "results.json").read_text())["results"]
    return [{k: v for k, v in row.items() if k not in ("images_per_second", "speed_up")} for row in rows]


def test_accuracy_is_that_of_a_plain_loop(finished, model, images):
    from spot_hf import SpotViTForImageClassification
    from spot_hf.placement import generator_for, isotropic, uniform

    spot = SpotViTForImageClassification.from_pretrained(model).eval()
    processor = SpotViTImageProcessorPil.from_pretrained(model)
    table = datasets.load_dataset(str(images), split="validation").cast_column("image", datasets.Image(decode=False))
    right: dict[str, list[bool]] = {"full_grid": [], "isotropic": [], "uniform": []}
    losses, tops = [], []
    for i, row in enumerate(table):
        if i == 7:
            continue
        image = datasets.Image().decode_example(row["image"])
        pixels = processor(image, return_tensors="pt")["pixel_values"]
        sets = {
            "full_grid": [None],
            "isotropic": [isotropic(9)[None]],
            "uniform": [uniform(9, generator_for(seed, row["image"]["path"]))[None] for seed in (0, 1)],
        }
        with torch.no_grad():
            for way, several in sets.items():
                for coordinates in several:
                    logits = spot(pixels, coordinates=coordinates).logits[0]
                    right[way].append(logits.argmax().item() == row["label"])
                    if way == "isotropic":
                        losses.append(logits.double().softmax(-1).numpy())
                        tops.append(row["label"])
    rows = {(row["way"], row["num_tokens"]): row for row in figures(finished)}
    for way, num_tokens in (("full_grid", 16), ("isotropic", 9), ("uniform", 9)):
        assert rows[way, num_tokens]["top_1"] == pytest.approx(100 * np.mean(right[way]), abs=1e-9)
    # Rounded to six digits in the ledger; batches round float32 logits otherwise.
    assert rows["isotropic", 9]["loss"] == pytest.approx(log_loss(tops, losses, labels=range(5)), abs=1e-4)
    assert rows["isotropic", 9]["num_images"] == 25 and rows["isotropic", 9]["num_failed"] == 1
    assert rows["uniform", 9]["num_seeds"] == 2 and rows["uniform", 9]["top_1_spread"] is not None


def test_every_way_is_in_the_table(finished):
    from spot_hf.evaluation.arguments import default_placements
    from spot_hf.evaluation.baselines import BASELINES

    found = {(row["way"], row["num_tokens"]) for row in figures(finished)}
    expected = {(way, count) for way in default_placements() for count in (4, 9, 16)} | {("full_grid", 16)}
    expected |= {(way, count) for way in BASELINES if way != "full_grid" for count in (4, 9)}
    assert found == expected
    report = (finished / "README.md").read_text()
    assert all(f"| {way} |" in report for way, _ in found if way != "full_grid")
    for name in ("tiny_tokens.png", "tiny_speed.png"):
        assert_drawn(finished / name)


def lines_of(directory: Path) -> dict[tuple, dict]:
    """Of the ledger: (way, number of tokens, seed, shard) → line."""
    lines = [json.loads(line) for line in (directory / "lines-0.jsonl").read_text().splitlines()]
    return {(*(line["cell"][name] for name in ("way", "num_tokens", "seed")), line["shard"]): line for line in lines}


def test_all_tokens_are_the_full_grid(finished):
    """A different order of tokens, or none: every image's loss and probability to 1e-5, which float32's sums in another order
    leave of logits of this size."""
    lines = lines_of(finished)
    full = {key[3]: line for key, line in lines.items() if key[0] == "full_grid"}
    for way, seed in (("isotropic", None), ("grid_subset", 0), ("grid_subset", 1)):
        for shard, line in full.items():
            ours = lines[way, 16, seed, shard]
            assert [top[0] for top in ours["top"]] == [top[0] for top in line["top"]]
            for name in ("loss", "confidence"):
                np.testing.assert_allclose(ours[name], line[name], rtol=1e-5, atol=1e-5)
    # The test would see tokens that are elsewhere.
    assert not np.allclose(lines["uniform", 16, 0, 0]["loss"], full[0]["loss"], rtol=1e-2, atol=1e-2)


def test_a_second_run_repeats_every_figure(finished, model, images, tmp_path):
    assert main(command(model, images, tmp_path / "run", num_workers=1)) == 0
    assert figures(tmp_path / "run") == figures(finished)


def run_in_child(arguments: list[str]) -> None:
    sys.exit(main(arguments))


def test_killed_half_way_it_goes_on(finished, model, images, tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["spot_hf.evaluation.segmentation", "spot_hf.cli", "test_evaluation"])
    output = tmp_path / "run"
    process = context.Process(target=run_in_child, args=(command(model, images, output),))
    process.start()
    lines = output / "lines-0.jsonl"
    deadline = time.monotonic() + 120
    while not (lines.exists() and lines.read_bytes().count(b"\n") > 60) and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL and not (output / "results.json").exists()
    before = lines.read_bytes()
    # As if the kill had come in the middle of a line.
    lines.write_bytes(before[: before.rindex(b"\n") - 20])
    whole = [line for line in lines.read_bytes().splitlines() if line.endswith(b"}")]
    assert main(command(model, images, output)) == 0
    assert figures(output) == figures(finished)
    after = lines.read_bytes().splitlines()
    assert after[: len(whole)] == whole
    keys = []
    for line in after:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        keys.append((json.dumps(row["cell"]), row["shard"]))
    assert len(keys) == len(set(keys))  # nothing was done twice


def test_other_parameters_are_refused(finished, model, images, capsys):
    assert main(command(model, images, finished, num_seeds=1)) == 2
    assert "num_seeds 2 there, 1 here" in capsys.readouterr().err


def test_several_models_and_sizes(model, images, tmp_path):
    second = tmp_path / "second"
    shutil.copytree(model, second)
    changes = {
        "model": f"{model} {second}",
        "image_size": "24 32",
        "num_tokens": 4,
        "placement": "isotropic",
        "baselines": "full_grid",
    }
    assert main(command(model, images, tmp_path / "run", **changes)) == 0
    rows = figures(tmp_path / "run")
    assert {(row["model"], row["image_size"]) for row in rows} == {(m, s) for m in ("tiny", "second") for s in (24, 32)}
    by_model = [[{**row, "model": ""} for row in rows if row["model"] == name] for name in ("tiny", "second")]
    assert by_model[0] == by_model[1]


def test_neighbors_are_those_of_brute_force(model, images, tmp_path):
    arguments = ["--knn_dataset_split", "validation", "--placement", "isotropic", "--baselines", "full_grid"]
    assert main([*command(model, images, tmp_path / "run", num_tokens=4), *arguments]) == 0
    from spot_hf import SpotViTForImageClassification
    from spot_hf.placement import isotropic

    spot = SpotViTForImageClassification.from_pretrained(model).eval()
    processor = SpotViTImageProcessorPil.from_pretrained(model)
    pictures = [
        datasets.Image().decode_example({"bytes": picture(i, (40 + i % 3, 32)), "path": None}) for i in range(26) if i != 7
    ]
    labels = np.array([i % len(LABELS) for i in range(26) if i != 7])
    with torch.no_grad():
        pixels = processor(pictures, return_tensors="pt")["pixel_values"]
        features = spot.spot_vit(pixels, coordinates=isotropic(4)[None]).pooler_output.double().numpy()
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    right = []
    for i in range(len(unit)):
        nearest = np.argsort(-(unit @ unit[i]), kind="stable")[:20]
        right.append(np.bincount(labels[nearest], minlength=5).argmax() == labels[i])
    row = next(row for row in figures(tmp_path / "run") if row["way"] == "isotropic")
    assert row["knn"] == pytest.approx(100 * np.mean(right), abs=1e-9)
    assert f"({row['knn']:.1f}) |" in (tmp_path / "run" / "README.md").read_text()


# -------------------------------------------------------------------------------------------------------------- memory


def test_peak_memory_of_what_can_be_counted_by_hand():
    size = 4 * 1000  # bytes of 1000 numbers in float32
    x, weight = torch.ones(1000), torch.ones(1000, requires_grad=True)
    with PeakMemory() as memory, torch.inference_mode():
        a = x + 1
        b = a * 2  # a and b
        del a
        b += 1  # in place
        c = b.view(10, 100)[:5]
        d = b + 1  # b and d; c is b's
    assert memory.peak == memory.now == 2 * size and c.shape == d.view(10, 100)[:5].shape
    with PeakMemory() as memory:
        y = (weight * x).exp().sin()  # exp and sin keep what their gradients need: the result of exp, once
        assert memory.now == 2 * size
        y.sum().backward()
    # y, the result of exp, its cosine, and the gradient that this makes; the sum and its gradient, a number each.
    assert memory.peak == 4 * size + 2 * 4


def test_peak_memory_is_the_same_whichever_images_were_first(finished, model, tmp_path):
    """A broken image makes the first batch smaller; a killed run may begin with it, or with the last batch."""
    data = save_images(tmp_path / "broken", 9, broken=(0, 1))
    assert main(command(model, data, tmp_path / "run", max_failed_share=0.3)) == 0
    expected = {(row["way"], row["num_tokens"]): row["peak_mib"] for row in figures(finished)}
    assert {(row["way"], row["num_tokens"]): row["peak_mib"] for row in figures(tmp_path / "run")} == expected
    assert expected["isotropic", 4] < expected["isotropic", 9] < expected["isotropic", 16]


# --------------------------------------------------------------------------------------------- images that cannot be read


@pytest.mark.parametrize("num_processes", [1, 2])
def test_an_image_that_fails_alone_in_its_batch_is_counted_and_listed(model, tmp_path, num_processes):
    data = save_images(tmp_path / "data", 5, broken=(2,))
    words = command(model, data, tmp_path / "run", batch_size=1, shard_size=2, max_failed_share=0.2, placement="center")
    run_on(num_processes, words)
    assert {(row["num_images"], row["num_failed"]) for row in figures(tmp_path / "run")} == {(4, 1)}
    results = json.loads((tmp_path / "run/results.json").read_text())
    (failed,) = results["failed"]
    assert (failed["image_index"], failed["image_id"]) == (2, "picture_2.png")
    assert failed["error"] == "UnidentifiedImageError: cannot identify image file"
    assert results["parameters"]["num_images"] == 5
    assert "Could not be read, and listed in `results.json`: 1." in (tmp_path / "run/README.md").read_text()


def test_too_many_broken_images_stop_it(model, tmp_path, capsys):
    data = save_images(tmp_path / "data", 10, broken=(2, 5))
    words = command(model, data, tmp_path / "run", max_failed_share=0.1)
    assert main(words) == 1
    assert "2 of 10 images could not be read, more than `max_failed_share` 0.1 allows" in capsys.readouterr().err
    assert not (tmp_path / "run/results.json").exists()
    # What was measured stays, and another share goes on with it.
    assert main([*words, "--max_failed_share", "0.2"]) == 0
    assert {(row["num_images"], row["num_failed"]) for row in figures(tmp_path / "run")} == {(8, 2)}


def test_an_error_of_our_own_is_no_broken_image(model, images, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("ours")

    monkeypatch.setattr("spot_hf.data.batches.place_windows", fail)
    with pytest.raises(RuntimeError, match="ours"):
        main(command(model, images, tmp_path / "run"))


def test_broken_neighbors_are_skipped(model, tmp_path, capsys):
    data = save_images(tmp_path / "data", 6)
    save_images(tmp_path / "data", 30, broken=(4,), split="train")
    options = {"knn_dataset_split": "train", "placement": "center", "dataset_split": "validation"}
    assert main(command(model, data, tmp_path / "run", **options)) == 0
    assert "`knn_dataset_split`: 1 image could not be read" in capsys.readouterr().out
    assert all(0 <= row["knn"] <= 100 for row in figures(tmp_path / "run"))


# ------------------------------------------------------------------------------------------------------------ streams


@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_stream_and_two_processes_give_the_same_figures(finished, model, images, tmp_path, num_processes):
    run_on(num_processes, [*command(model, images, tmp_path / "run"), "--streaming"])
    if num_processes == 2:
        shards = [
            {json.loads(line)["shard"] for line in (tmp_path / "run" / f"lines-{i}.jsonl").read_text().splitlines()}
            for i in range(2)
        ]
        assert shards == [{0, 1}, {2, 3, 4}]  # consecutive ones of a stream of Parquet files
    assert figures(tmp_path / "run") == figures(finished)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["parameters"]["num_images"] == 26  # which the stream did not say


def test_a_stream_that_does_not_fit(model, tmp_path, capsys):
    row = {"image": {"bytes": picture(0), "path": "a.png"}, "label": 3}
    data = save(tmp_path / "outside", [row, {**row, "label": 5}])
    assert main([*command(model, data, tmp_path / "run"), "--streaming"]) == 2
    assert "image 'a.png' has the label 5; the model knows 0 to 4" in capsys.readouterr().err
    assert main([*command(model, save(tmp_path / "empty", []), tmp_path / "none"), "--streaming"]) == 2
    assert "`dataset_split` must have images; 'test'" in capsys.readouterr().err
    for more in (["--among_labels"], ["--knn_dataset_split", "test"]):
        assert main([*command(model, data, tmp_path / "other"), "--streaming", *more]) == 2
        assert f"`{more[0][2:]}` needs a data set as a whole" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------ the oracle's steps


@pytest.fixture(scope="module")
def stepped(model, images, tmp_path_factory) -> Path:
    """With 0, 1 and 3 steps."""
    directory = tmp_path_factory.mktemp("stepped") / "run"
    changes = {"num_tokens": "4 9", "placement": "isotropic", "baselines": "full_grid", "max_samples": 13}
    words = [*command(model, images, directory, **changes), "--oracle_steps", "3", "1", "--oracle_learning_rate", "0.05"]
    assert main(words) == 0
    return directory


def test_oracle_steps_are_those_of_the_oracle(stepped, model, images):
    from spot_hf import SpotViTForImageClassification

    spot = SpotViTForImageClassification.from_pretrained(model).eval()
    processor = SpotViTImageProcessorPil.from_pretrained(model)
    kept = [i for i in range(13) if i != 7]
    pictures = [datasets.Image().decode_example({"bytes": picture(i, (40 + i % 3, 32)), "path": None}) for i in kept]
    labels = torch.tensor([i % len(LABELS) for i in kept])
    results = json.loads((stepped / "results.json").read_text())
    rows = {(row["num_tokens"], row["steps"]): row for row in results["oracle"]}
    assert set(rows) == {(count, steps) for count in (4, 9) for steps in (0, 1, 3)}  # none is measured along
    for (count, steps), row in rows.items():
        inputs = processor(pictures, num_tokens=count, placement="isotropic", return_tensors="pt")
        found = SpotOracle(spot, steps=steps, learning_rate=0.05).optimize(**inputs, labels=labels)
        assert row["top_1"] == pytest.approx(100 * (found.prediction == labels).double().mean().item())
        # Batches of another size round otherwise, and the search carries that on.
        assert row["loss"] == pytest.approx(found.losses.min(1).values.mean().item(), abs=1e-4)
        assert row["forward_passes"] == 2 * steps + 1 and row["uses_label"]
    for count in (4, 9):
        losses = [rows[count, steps]["loss"] for steps in (0, 1, 3)]
        assert losses[0] > losses[1] > losses[2]
        assert rows[count, 0]["slow_down"] == 1 and rows[count, 3]["slow_down"] > 1
        assert rows[count, 3]["peak_mib"] > rows[count, 0]["peak_mib"]
        ordinary = next(row for row in results["results"] if (row["way"], row["num_tokens"]) == ("isotropic", count))
        for name in ("top_1", "top_5", "ece", "num_images", "num_failed", "peak_mib"):
            # The oracle keeps what it needs to tell which positions were the best.
            assert rows[count, 0][name] == pytest.approx(ordinary[name], rel=0.1 if name == "peak_mib" else 1e-6), name


def test_oracle_steps_among_the_labels_are_a_search_among_them(model, images, tmp_path):
    from spot_hf import SpotViTForImageClassification

    changes = {"num_tokens": 9, "placement": "isotropic", "baselines": "none", "max_samples": 3}  # 3 of 5 classes
    words = [*command(model, images, tmp_path / "run", **changes), "--among_labels", "--oracle_steps", "3"]
    assert main([*words, "--oracle_learning_rate", "0.05"]) == 0
    spot = SpotViTForImageClassification.from_pretrained(model).eval()
    pictures = [datasets.Image().decode_example({"bytes": picture(i, (40 + i, 32)), "path": None}) for i in range(3)]
    processor = SpotViTImageProcessorPil.from_pretrained(model)
    inputs = processor(pictures, num_tokens=9, placement="isotropic", return_tensors="pt")
    losses = []
    for classes in ([0, 1, 2], None):
        oracle = SpotOracle(spot, steps=3, learning_rate=0.05, classes=classes)
        found = oracle.optimize(**inputs, labels=torch.arange(3))
        with torch.no_grad():
            logits = spot(inputs["pixel_values"], coordinates=found.coordinates).logits[:, :3].double()
        losses.append(torch.nn.functional.cross_entropy(logits, torch.arange(3)).item())
    rows = json.loads((tmp_path / "run" / "results.json").read_text())["oracle"]
    assert rows[-1]["loss"] == pytest.approx(losses[0], abs=1e-5)  # rounded to six digits; the rest is float32
    assert abs(losses[0] - losses[1]) > 1e-3, "it makes no difference"


def test_oracle_steps_are_marked_as_a_ceiling_and_stay_off_the_card(stepped, model, tmp_path):
    report = (stepped / "README.md").read_text()
    assert "It uses the label: a ceiling, not a method" in report and "![tiny_oracle.png](tiny_oracle.png)" in report
    assert_drawn(stepped / "tiny_oracle.png")
    results = json.loads((stepped / "results.json").read_text())
    assert all(row["way"] in ("full_grid", "isotropic") for row in results["results"])
    shutil.copytree(model, tmp_path / "tiny")
    assert main(["card", "--results", str(stepped), "--model", str(tmp_path / "tiny")]) == 0
    card = (tmp_path / "tiny" / "README.md").read_text()
    assert "isotropic, 9 tokens" in card and "ceiling" not in card and "top-1, oracle" not in card


def test_an_oracle_among_classes_knows_no_others(model):
    spot, images = tiny_model(), random_images(4)
    coordinates, labels = isotropic(7)[None], torch.tensor([0, 2, 0, 2])
    found = SpotOracle(spot, steps=2, classes=[0, 2]).optimize(images, labels, coordinates)
    assert set(found.predictions.flatten().tolist()) <= {0, 2}
    with torch.no_grad():
        logits = spot(images, coordinates=coordinates).logits[:, [0, 2]].double()
    expected = torch.nn.functional.cross_entropy(logits, labels // 2, reduction="none").float()
    torch.testing.assert_close(found.losses[:, 0], expected, rtol=0, atol=1e-5)  # batched as one, and float32
    # The gradient is that of a model which has these classes only.
    own = tiny_model(num_labels=2)
    own.spot_vit.load_state_dict(spot.spot_vit.state_dict())
    own.classifier.load_state_dict({name: value[[0, 2]] for name, value in spot.classifier.state_dict().items()})
    theirs = SpotOracle(own, steps=2).optimize(images, labels // 2, coordinates)
    torch.testing.assert_close(found.coordinates, theirs.coordinates, rtol=0, atol=1e-6)
    for objective in ("distill", "feature"):
        losses = SpotOracle(spot, objective, steps=1, classes=[0, 2]).optimize(images, coordinates=coordinates).losses
        assert losses.isfinite().all()
    with pytest.raises(ValueError, match="`labels` must be of `classes`; got 1"):
        SpotOracle(spot, classes=[0, 2]).optimize(images, torch.tensor([0, 1, 2, 0]), coordinates)
    with pytest.raises(ValueError, match="`classes` must be class numbers"):
        SpotOracle(spot, classes=[5])


def test_oracle_steps_on_photographs(vit_tiny, tmp_path):
    """ViT-Ti/16 and real photographs; among their own 8 classes, so that few images already tell."""
    convert_checkpoint(vit_tiny, tmp_path / "vit-tiny")
    words = command(
        tmp_path / "vit-tiny", shared("data/nips2017"), tmp_path / "run", num_tokens=49, placement="isotropic",
        baselines="none", max_samples=8, batch_size=8,
    )  # fmt: skip
    assert main([*words, "--among_labels", "--oracle_steps", "5"]) == 0
    none, five = json.loads((tmp_path / "run" / "results.json").read_text())["oracle"]
    assert (none["steps"], five["steps"]) == (0, 5)
    # Towards certainty: 5 steps take the cross-entropy of 49 tokens from about 1 to nearly 0.
    assert five["loss"] < none["loss"] / 3 and five["top_1"] >= none["top_1"]


# ----------------------------------------------------------------------------------------------------------- saliency


BOXES = [[[4.0, 2.0, 20.0, 12.0]], [[0.0, 0.0, 40.0, 32.0]], [[6.5, 5.0, 12.0, 30.0], [20.0, 8.0, 24.25, 20.0]]]


def map_of(boxes: list[list[float]]) -> np.ndarray:
    """`(32, 40)`: 1 in pixels that a box touches; by looking at every pixel."""
    return np.array([
        [float(any(x0 < j + 1 and j < x1 and y0 < i + 1 and i < y1 for x0, y0, x1, y1 in boxes)) for j in range(40)]
        for i in range(32)
    ])  # fmt: skip


def png_of(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def salient_images(tmp_path_factory) -> Path:
    """Pictures, and for each the same saliency in every form that a column may have."""
    directory = tmp_path_factory.mktemp("salient") / "pictures"
    directory.mkdir()
    maps = [map_of(boxes) for boxes in BOXES] * 3
    rows = {
        "image": [{"bytes": picture(i), "path": f"picture_{i}.png"} for i in range(9)],
        "label": [i % len(LABELS) for i in range(9)],
        "boxes": BOXES * 3,
        "box": [boxes[0] for boxes in BOXES] * 3,
        "array": maps,
        "rows": [one.tolist() for one in maps],
        "greyscale": [{"bytes": png_of((255 * one).astype(np.uint8)), "path": None} for one in maps],
        "colour": [{"bytes": picture(i), "path": None} for i in range(9)],
        "nothing": [[] for _ in range(9)],
        "outside": [[[4.0, 2.0, 41.0, 12.0]]] * 9,
        "empty": [[[4.0, 2.0, 4.0, 12.0]]] * 9,
        "corner": [[[0.0, 0.0, 2.0, 32.0]]] + [BOXES[0]] * 8,
        "name": ["a"] * 9,
    }
    value = datasets.Value("float32")
    features = datasets.Features({
        "image": datasets.Image(), "label": datasets.ClassLabel(names=LABELS), "boxes": datasets.List(datasets.List(value)),
        "box": datasets.List(value, length=4), "array": datasets.Array2D((32, 40), "float32"),
        "rows": datasets.List(datasets.List(value)), "greyscale": datasets.Image(), "colour": datasets.Image(),
        "nothing": datasets.List(datasets.List(value)), "outside": datasets.List(datasets.List(value)),
        "empty": datasets.List(datasets.List(value)), "corner": datasets.List(datasets.List(value)),
        "name": datasets.Value("string"),
    })  # fmt: skip
    datasets.Dataset.from_dict(rows, features=features).to_parquet(directory / "validation.parquet")
    return directory


@pytest.fixture(scope="module")
def cropping(model, tmp_path_factory) -> Path:
    """The tiny model behind a processor that crops: saliency must go through the same crop."""
    directory = tmp_path_factory.mktemp("cropping") / "tiny"
    shutil.copytree(model, directory)
    settings = {"size": {"shortest_edge": 36}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}}
    SpotViTImageProcessorPil.from_pretrained(model, **settings).save_pretrained(directory)
    return directory


def salient_command(cropping, salient_images, output, column: str, **changes) -> list[str]:
    changes = {"num_tokens": 5, "placement": "salient inverse_salient", "baselines": "none", **changes}
    return [*command(cropping, salient_images, output, **changes), "--saliency_column_name", column]


def test_salient_placements_are_those_of_the_processor(cropping, salient_images, tmp_path):
    from spot_hf import SpotViTForImageClassification

    assert main(salient_command(cropping, salient_images, tmp_path / "boxes", "boxes")) == 0
    spot = SpotViTForImageClassification.from_pretrained(cropping).eval()
    processor = SpotViTImageProcessorPil.from_pretrained(cropping)
    losses: dict[str, list[float]] = {"salient": [], "inverse_salient": []}
    for way, found in losses.items():
        for seed in (0, 1):
            for i in range(9):
                image = datasets.Image().decode_example({"bytes": picture(i), "path": None})
                inputs = processor(
                    image, num_tokens=5, placement=way, seed=seed, image_ids=[f"picture_{i}.png"],
                    saliency=map_of(BOXES[i % 3]), return_tensors="pt",
                )  # fmt: skip
                with torch.no_grad():
                    found.append(torch.nn.functional.cross_entropy(spot(**inputs).logits, torch.tensor([i % 5])).item())
    rows = {row["way"]: row for row in figures(tmp_path / "boxes")}
    for way, found in losses.items():
        assert rows[way]["loss"] == pytest.approx(np.mean(found), abs=1e-5)  # rounded; batches round otherwise
    assert abs(rows["salient"]["loss"] - rows["inverse_salient"]["loss"]) > 1e-3
    # The same saliency in other forms, read by workers or from a stream.
    for column, more in (("array", []), ("rows", ["--num_workers", "1"]), ("greyscale", []), ("greyscale", ["--streaming"])):
        output = tmp_path / f"{column}{len(more)}"
        assert main([*salient_command(cropping, salient_images, output, column), *more]) == 0
        assert figures(output) == figures(tmp_path / "boxes"), (column, more)


def test_without_what_is_salient_in_the_crop_an_image_is_left_out(cropping, salient_images, tmp_path):
    assert main(salient_command(cropping, salient_images, tmp_path / "run", "corner", max_failed_share=0.2)) == 0
    assert {(row["num_images"], row["num_failed"]) for row in figures(tmp_path / "run")} == {(8, 1)}


@pytest.mark.parametrize(
    "column, said",
    [
        ("absent", "`saliency_column_name` must be one of image, label"),
        ("label", "`saliency_column_name` must be a column of its own; got 'label'"),
        ("name", "`saliency_column_name` must name a column of greyscale images"),
        ("colour", "the saliency of image 'picture_0.png' must be a greyscale image; got one of mode 'RGB'"),
        ("nothing", "the saliency of image 'picture_0.png' must be of greyscale images or"),
        ("outside", "which is 40 wide and 32 high; got [4.0, 2.0, 41.0, 12.0]"),
        ("empty", "are not empty and lie inside of the image, which is 40 wide and 32 high; got [4.0, 2.0, 4.0, 12.0]"),
    ],
)
@pytest.mark.parametrize("num_workers", [0, 1])
def test_saliency_that_cannot_be(cropping, salient_images, tmp_path, capsys, column, said, num_workers):
    words = salient_command(cropping, salient_images, tmp_path / "run", column, num_workers=num_workers)
    assert main(words) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert said in error and error.startswith("spot-hf evaluate: error: `saliency_column_name`")


@pytest.mark.parametrize("column, name", [("boxes", "saliency by `boxes`"), (None, "edge saliency")])
def test_the_analysis_tells_how_salient_positions_are(cropping, salient_images, tmp_path, column, name):
    run = tmp_path / "oracle"
    words = ["oracle", "--model", str(cropping), "--dataset_name", str(salient_images), "--num_tokens", "5", "--steps", "2"]
    assert main([*words, "--learning_rate", "0.05", "--num_workers", "0", "--output_dir", str(run)]) == 0
    words = ["evaluate", "--model", str(cropping), "--dataset_name", str(salient_images), "--coordinates", str(run)]
    words += ["--output_dir", str(tmp_path / "out"), *(["--saliency_column_name", column] if column else [])]
    assert main(words) == 0
    result = json.loads((tmp_path / "out" / "transfer.json").read_text())
    assert result["saliency"] == name and f"| grid bias | {name} |" in (tmp_path / "out" / "transfer.md").read_text()
    if column is None:
        return
    # By the maps themselves: the value under each position, over its mean in the crop, 2 to 38 of 40 columns wide.
    rows = datasets.load_dataset(str(run), split="validation")
    processor = SpotViTImageProcessorPil.from_pretrained(cropping)
    expected = {"initial": [], "shared": []}
    for row, boxes in zip(rows, BOXES * 3, strict=True):
        whole = map_of(boxes)
        centres = (np.arange(32) + 0.5) / 32
        crop = np.stack(np.meshgrid(centres, centres), -1).reshape(-1, 2)
        for set_name, stored in (("initial", row["initial_coordinates"]), ("shared", row["coordinates"])):
            pixels = (np.floor(processor.to_model_frame(np.array(stored), (40, 32)) * 32).clip(0, 31) + 0.5) / 32
            at, everywhere = (
                [whole[int(y * 32), int(x * 40)] for x, y in processor.to_image_frame(points, (40, 32))]
                for points in (pixels, crop)
            )
            expected[set_name].append(np.mean(at) / np.mean(everywhere))
    for set_name, values in expected.items():
        assert result["analysis"][set_name]["saliency"] == pytest.approx(np.mean(values), abs=1e-9)
    assert 0 < result["analysis"]["random"]["saliency"] < 3


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"placement": "spiral"}, "placement"),
        ({"placement": "salient"}, "saliency"),
        ({"placement": "grid"}, "full_grid"),
        ({"baselines": "resnet"}, "baselines"),
        ({"num_tokens": "4 4"}, "num_tokens"),
        ({"num_tokens": 0}, "num_tokens"),
        ({"num_seeds": 0}, "num_seeds"),
        ({"dtype": "int8"}, "dtype"),
        ({"max_samples": 0}, "max_samples"),
        ({"shard_size": 0}, "shard_size"),
        ({"oracle_steps": -1}, "steps"),
        ({"oracle_steps": 1, "oracle_learning_rate": 0}, "learning_rate"),
    ],
    ids=str,
)
def test_bad_arguments_stop_before_anything_is_loaded(tmp_path, capsys, changes, named):
    assert main(command(tmp_path / "no_model", tmp_path / "no_data", tmp_path / "run", **changes)) == 2
    error = capsys.readouterr().err.strip()
    assert named in error and "\n" not in error and not (tmp_path / "run").exists()


def save(directory: Path, rows: list[dict], split: str = "test", label=None) -> Path:
    directory.mkdir(parents=True)
    features = datasets.Features({"image": datasets.Image(), "label": label or datasets.Value("int64")})
    columns = {name: [row[name] for row in rows] for name in features}
    datasets.Dataset.from_dict(columns, features=features).to_parquet(directory / f"{split}.parquet")
    return directory


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"image_size": "7"}, "`image_size` must be at least 8, the patch size of"),
        ({"placement": "grid_subset", "num_tokens": "17", "baselines": "none"}, "leave nothing to measure"),
        ({"revision": "a b"}, "`revision` must be one for all models or one per model, 1"),
        ({"config": "spot_n9"}, "--config goes with --coordinates"),
        ({"label_column_name": "none"}, "`label_column_name` is needed"),
    ],
    ids=str,
)
def test_what_no_run_can_have_stops_before_a_directory_is_made(model, images, tmp_path, capsys, changes, named):
    assert main(command(model, images, tmp_path / "run", **changes)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert named in error and not (tmp_path / "run").exists()


def test_nothing_to_measure_is_no_empty_split():
    with pytest.raises(ValueError, match="leave nothing to measure"):
        EvaluationArguments(model=["a/b"], dataset_name="x", output_dir="y", placement=[], baselines=["none"]).check()


@pytest.mark.parametrize(
    "option", ["num_tokens 4", "image_size 32", "knn_dataset_split train", "streaming true", "num_seeds 1"]
)
def test_options_that_do_not_suit_a_transfer_are_refused_by_name(option, capsys):
    words = ["evaluate", "--model", "a/b", "--coordinates", "c/d", *f"--{option}".split()]
    assert main(words) == 2
    assert f"--{option.split()[0]} goes without --coordinates" in capsys.readouterr().err


def test_weights_that_do_not_fit_their_config_are_named(model, images, tmp_path, capsys):
    copied = shutil.copytree(model, tmp_path / "model")
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, "intermediate_size": 32}))
    picture_file = str(ROOT / "docs/results/quickstart_windows.png")
    for words in (command(copied, images, tmp_path / "run"), ["classify", "--model", str(copied), picture_file]):
        assert main(words) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert str(copied) in error and "`spot_vit.layers.0.mlp.fc1.bias` has shape (64,), the config says (32,)" in error


def test_data_sets_that_do_not_fit(model, images, tmp_path, capsys):
    row = {"image": {"bytes": picture(0), "path": "a.png"}, "label": 3}
    cases = {
        "`label_column_name` must be one of": ({"label_column_name": "class"}, images),
        "row 1 of 'test' has the label 5": ({}, save(tmp_path / "outside", [row, {**row, "label": 5}])),
        "row 0 of 'test' has no label": ({}, save(tmp_path / "none", [{**row, "label": None}])),
        "`dataset_split` must be one of": ({"dataset_split": "train"}, images),
        "`dataset_split` must have images": ({}, save(tmp_path / "empty", [])),
    }
    for said, (changes, data) in cases.items():
        assert main(command(model, data, tmp_path / "run", **changes)) == 2, said
        assert said in capsys.readouterr().err
        assert not (tmp_path / "run").exists()


def test_one_image_only(model, tmp_path):
    data = save(tmp_path / "one", [{"image": {"bytes": picture(0), "path": "a.png"}, "label": 3}])
    assert main(command(model, data, tmp_path / "run", num_tokens=4)) == 0
    assert all(row["top_1"] in (0, 50, 100) and row["num_images"] == 1 for row in figures(tmp_path / "run"))


def test_the_library_checks_too():
    with pytest.raises(ValueError, match="different names"):
        EvaluationArguments(model=["a/b", "a/b"], dataset_name="x", output_dir="y").check()


# ------------------------------------------------------------------------------------------------------------ on a card


def test_results_land_on_the_card(finished, model, tmp_path):
    from huggingface_hub import ModelCard

    copy = tmp_path / "tiny"
    shutil.copytree(model, copy)
    own_text = "\n\nWhat I found out about it.\n"
    (copy / "README.md").write_text((copy / "README.md").read_text() + own_text)
    for _ in range(2):  # the second time, in the place of the first
        assert main(["card", "--results", str(finished), "--model", str(copy)]) == 0
        card = ModelCard.load(copy / "README.md")
        found = {result.metric_name: result.metric_value for result in card.data.eval_results}
        expected = {f"top-1, {row['way']}, {row['num_tokens']} tokens": round(row["top_1"], 3) for row in figures(finished)}
        assert found == expected and card.data.model_name == "tiny"
        assert card.text.count("## Accuracy by tokens and placement") == 1
        assert own_text.strip() in card.text and "spot-hf evaluate" in card.text
    original = ModelCard.load(model / "README.md")
    assert card.data.license == original.data.license and card.data.tags == original.data.tags


def test_cards_that_cannot_be(finished, model, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    shutil.copytree(model, tmp_path / "other")
    for arguments, said in (
        ([str(finished), str(tmp_path / "empty")], "`model` must be"),
        ([str(tmp_path / "empty"), str(model)], "`results` must be"),
        ([str(finished), str(tmp_path / "other")], "must hold the model 'other'"),
    ):
        assert main(["card", "--results", arguments[0], "--model", arguments[1]]) == 2
        assert said in capsys.readouterr().err
