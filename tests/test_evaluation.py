"""`spot-hf evaluate`: metrics, baselines, a run that is killed and goes on, and what it refuses."""

import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import datasets
import evaluate
import numpy as np
import pytest
import torch
from oracle_runs import LABELS, picture, save_images
from sklearn.metrics import accuracy_score, log_loss, top_k_accuracy_score
from tiny import random_images, tiny_model

from spot_hf import SpotViTImageProcessorPil, convert_checkpoint
from spot_hf.baselines import (
    TokenMerging,
    bipartite_soft_matching,
    merge_at_rate,
    merge_schedule,
    merge_schedule_of_cost,
    merge_tokens,
    shrink,
    shrunken_size,
)
from spot_hf.cli import main
from spot_hf.evaluation import METRICS, EvaluationArguments, Neighbors, scaled_processor


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


# ------------------------------------------------------------------------------------------------------- token merging


@pytest.mark.parametrize("pooling", ["cls", "mean", "cls_mean"])
def test_merging_nothing_is_the_model(pooling):
    """To 1e-5: another order of the same sums."""
    model, images = tiny_model(pooling=pooling, norm_after_pooling=pooling == "mean"), random_images(3)
    with torch.no_grad():
        ours, theirs = TokenMerging(model, [0, 0])(images).logits, model(images).logits
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_merging_nothing_is_the_model_on_real_weights(vit_tiny, tmp_path):
    model = convert_checkpoint(vit_tiny, tmp_path / "model").model.eval()
    images = random_images(2, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(TokenMerging(model, [0] * 12)(images).logits, model(images).logits, rtol=0, atol=1e-5)


def test_matching_is_that_of_a_plain_loop():
    keys = torch.randn(2, 9, 6, generator=torch.Generator().manual_seed(0))
    kept, source, target = bipartite_soft_matching(keys, 3)
    for b in range(2):
        unit = keys[b] / keys[b].norm(dim=-1, keepdim=True)
        edges = []
        for i in range(0, 9, 2):
            partner = max(range(1, 9, 2), key=lambda j, i=i: float(unit[i] @ unit[j]))
            edges.append((float(unit[i] @ unit[partner]), i, partner))
        edges.sort(reverse=True)
        assert {(i, j) for _, i, j in edges[:3]} == set(zip(source[b].tolist(), target[b].tolist(), strict=True))
        assert kept[b].tolist() == sorted(i for _, i, _ in edges[3:])


def test_merged_tokens_are_weighted_means():
    generator = torch.Generator().manual_seed(0)
    states, keys = torch.randn(2, 11, 4, generator=generator), torch.randn(2, 11, 6, generator=generator)
    sizes = torch.randint(1, 4, (2, 11), generator=generator).float()
    sizes[:, 0] = 1
    merged, new_sizes = merge_tokens(states, sizes, keys, 4, num_prefix_tokens=1)
    assert merged.shape == (2, 7, 4)
    torch.testing.assert_close(merged[:, 0], states[:, 0])  # the class token
    # Nothing is lost: sizes and weighted sums are what they were. float32 sums.
    torch.testing.assert_close(new_sizes[:, 1:].sum(1), sizes[:, 1:].sum(1))
    torch.testing.assert_close(
        (merged[:, 1:] * new_sizes[:, 1:, None]).sum(1), (states[:, 1:] * sizes[:, 1:, None]).sum(1), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("kept", [1, 9, 25, 49, 100, 195, 196])
def test_schedules_end_where_they_should(kept):
    schedule, left = merge_schedule(196, kept, 12), 196
    for merged in schedule:
        assert 0 <= merged <= left // 2
        left -= merged
    assert left == kept and len(schedule) == 12


def test_schedules_that_cannot_be():
    with pytest.raises(ValueError, match="`num_kept` must be 49 to 196"):
        merge_schedule(196, 10, 2)
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
    scaled = scaled_processor(processor, 112, 112)
    assert scaled.size["shortest_edge"] == 124 and scaled.model_size((500, 375)) == (112, 112)
    assert processor.size["shortest_edge"] == 248
    plain = scaled_processor(SpotViTImageProcessorPil(size={"height": 48, "width": 48}), 24, 24)
    assert plain.model_size((500, 375)) == (24, 24)


# -------------------------------------------------------------------------------------------------------------- a run


@pytest.fixture(scope="module")
def model(tiny_vit, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("model") / "tiny"
    convert_checkpoint(tiny_vit, directory)
    return directory


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return save_images(tmp_path_factory.mktemp("images") / "pictures", 26, broken=(7,))


def command(model, images, output, /, **changes) -> list[str]:
    options = {
        "model": model, "dataset_name": images, "num_tokens": "4 9 16", "num_seeds": 2, "shard_size": 6, "batch_size": 4,
        "num_workers": 0, "output_dir": output, **changes,
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
    from spot_hf.evaluation import BASELINES, default_placements

    found = {(row["way"], row["num_tokens"]) for row in figures(finished)}
    expected = {(way, count) for way in default_placements() for count in (4, 9, 16)} | {("full_grid", 16)}
    expected |= {(way, count) for way in BASELINES if way != "full_grid" for count in (4, 9)}
    assert found == expected
    report = (finished / "README.md").read_text()
    assert all(f"| {way} |" in report for way, _ in found if way != "full_grid")
    for name in ("tiny_tokens.png", "tiny_speed.png"):
        assert (finished / name).read_bytes()[:4] == b"\x89PNG"


def test_all_tokens_are_the_full_grid(finished):
    rows = {(row["way"], row["num_tokens"]): row for row in figures(finished)}
    # A different order of tokens, or none: the same predictions.
    for way in ("isotropic", "grid_subset"):
        assert rows[way, 16]["top_1"] == rows["full_grid", 16]["top_1"]


def test_a_second_run_repeats_every_figure(finished, model, images, tmp_path):
    assert main(command(model, images, tmp_path / "run", num_workers=1)) == 0
    assert figures(tmp_path / "run") == figures(finished)


def run_in_child(arguments: list[str]) -> None:
    sys.exit(main(arguments))


def test_killed_half_way_it_goes_on(finished, model, images, tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["spot_hf.evaluation", "spot_hf.cli", "test_evaluation"])
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
    assert Neighbors.__doc__


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
    datasets.Dataset.from_list(rows, features=features).to_parquet(directory / f"{split}.parquet")
    return directory


def test_data_sets_that_do_not_fit(model, images, tmp_path, capsys):
    row = {"image": {"bytes": picture(0), "path": "a.png"}, "label": 3}
    cases = {
        "`label_column_name` must be one of": ({"label_column_name": "class"}, images),
        "row 1 of 'label' has 5": ({}, save(tmp_path / "outside", [row, {**row, "label": 5}])),
        "row 0 of 'label' has None": ({}, save(tmp_path / "none", [{**row, "label": None}])),
        "`dataset_split` must be one of": ({"dataset_split": "train"}, images),
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
        EvaluationArguments(model=["a/b", "a/b"], dataset_name="x").check()


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
