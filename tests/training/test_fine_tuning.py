"""Training: `spot-hf train` and its Trainer. Real runs of tiny models, killed for real."""

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
import pytest
import torch
from conftest import ROOT
from oracle_runs import LABELS, files_of, picture, save_images
from PIL import Image
from random_weights import randomise
from safetensors.torch import load_file
from tiny import tiny_config, tiny_model, tiny_processor
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers import AutoModelForImageClassification, TrainerCallback

from spot_hf import SpotViTForImageClassification, load_coordinates, verify_model
from spot_hf.cli import main
from spot_hf.data.failures import TooManyFailedImagesError
from spot_hf.data.source import DatasetSource, load_images
from spot_hf.oracle.objectives import distill_loss, feature_loss
from spot_hf.positions import SpotViTPositionEmbeddings
from spot_hf.training.arguments import TrainArguments
from spot_hf.training.batches import BatchPreparation
from spot_hf.training.data import DrawSampler, EvaluationImages, TrainingImages, collate
from spot_hf.training.placements import TrainingPlacements
from spot_hf.training.report import learning_curves
from spot_hf.training.run import TrainingResults
from spot_hf.training.trainer import SpotTrainer, layers_above
from spot_hf.training.trainer_arguments import SpotTrainingArguments


NUM_IMAGES = 40  # to train on: 5 batches of 8
NUM_EVAL_IMAGES = 15
KILLS = 6


# ---------------------------------------------------------------------------------------------------------- small runs


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A classifier of five classes."""
    directory = tmp_path_factory.mktemp("model") / "tiny"
    config = {"id2label": dict(enumerate(LABELS)), "label2id": {label: i for i, label in enumerate(LABELS)}}
    tiny_model(**config).save_pretrained(directory)
    tiny_processor().save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("images") / "pictures"
    save_images(directory, NUM_IMAGES, split="train")
    return save_images(directory, NUM_EVAL_IMAGES)


@pytest.fixture(scope="module")
def options(model, images) -> dict[str, list[str]]:
    """The command line of a run of two epochs, without its output directory."""
    return {
        "--model": [str(model)],
        "--dataset_name": [str(images)],
        "--num_tokens": ["4", "6"],
        "--num_train_epochs": ["2"],
        "--per_device_train_batch_size": ["8"],
        "--per_device_eval_batch_size": ["4"],
        "--dataloader_num_workers": ["0"],
        "--learning_rate": ["1e-3"],
        "--logging_steps": ["1"],
        "--disable_tqdm": ["True"],
    }


# Everything that draws random numbers, and ends in the middle of an epoch.
DISTURBABLE = {"max_steps": 12, "save_strategy": "steps", "save_steps": 3, "drop_path_rate": 0.3, "mixup": 0.4, "cutmix": 0.4,
               "rand_augment_num_ops": 1, "ema_decay": 0.8, "window_scales": "0.5 2"}  # fmt: skip


def command(options: dict[str, list[str]], output_dir, *more: str, **changes) -> list[str]:
    changed = {**options, **{f"--{name}": str(value).split() for name, value in changes.items()}}
    return [
        "train",
        *(word for name, values in changed.items() for word in (name, *values)),
        "--output_dir",
        str(output_dir),
        *more,
    ]


def log_of(directory: Path, name: str = "loss") -> list[float]:
    """What a finished run has logged."""
    return [one[name] for one in json.loads((directory / "training.json").read_text())["log"] if name in one]


def weights_of(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


@pytest.fixture(scope="module")
def finished(options, tmp_path_factory) -> Path:
    """A run of two epochs, from a recipe whose values the command line replaces."""
    directory = tmp_path_factory.mktemp("finished")
    (directory / "recipe.yaml").write_text("jitter: 0.5\nnum_tokens: [9]\nadam_beta2: 0.99\nflip: 0\n")
    assert main(command(options, directory / "run", f"--config={directory / 'recipe.yaml'}")) == 0
    return directory / "run"


def split_of(images: Path, split: str) -> datasets.Dataset:
    return load_images(DatasetSource(dataset_name=str(images), dataset_split=split))


def parts(model_directory: Path, images: Path, **allowed):
    """A model, what prepares its batches, and the images: of a [`SpotTrainer`] by hand."""
    model = SpotViTForImageClassification.from_pretrained(model_directory)
    placements = TrainingPlacements(num_tokens=[6], placement=["uniform"], height=48, width=48, patch_size=8)
    train = TrainingImages(split_of(images, "train"), tiny_processor(), **allowed)
    evaluation = EvaluationImages(split_of(images, "validation"), tiny_processor(), 6, "isotropic", **allowed)
    preparation = BatchPreparation(placements, tiny_processor())
    return {"model": model, "preparation": preparation, "train_dataset": train, "eval_dataset": evaluation}


def trainer_of(given: dict, output_dir: Path, training: dict | None = None, **kwargs) -> SpotTrainer:
    arguments = {"max_steps": 5, "per_device_train_batch_size": 8, "dataloader_num_workers": 0, "logging_steps": 1,
                 "learning_rate": 1e-3, "disable_tqdm": True, "save_strategy": "no", "eval_strategy": "no"}  # fmt: skip
    settings = SpotTrainingArguments(output_dir=str(output_dir), **{**arguments, **(training or {})})
    return SpotTrainer(args=settings, **given, **kwargs)


def losses_of(trainer: SpotTrainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


# -------------------------------------------------------------------------------------------------------- what is left


def test_a_run_leaves_a_model_that_loads_and_says_how_it_was_trained(finished, options):
    assert {"README.md", "training.json", "training.png", "run.json", "model.safetensors", "config.json",
            "preprocessor_config.json", "modeling_spot_vit.py", "checkpoint-10"} <= {
        path.name for path in finished.iterdir()
    }  # fmt: skip
    assert verify_model(str(finished)).equal
    card = (finished / "README.md").read_text()
    assert "Fine-tuned from `tiny` on 40 images of `pictures`, split `train`: 10 steps of 8 images, seed 42" in card
    assert "Batches of 4, 6 tokens" in card and "Loss: cross entropy (1)" in card and "spot-hf train --model" in card
    assert "[More Information Needed]" not in card and "Nothing was measured" not in card
    results = json.loads((finished / "training.json").read_text())
    for num_tokens in (4, 6):
        accuracy = results["evaluation"][f"eval_n{num_tokens}_accuracy"]
        assert f"top-1 at {num_tokens} tokens, isotropic, on 15 images of split `validation`: {accuracy:.1f} %" in card
    assert results["steps"] == 10 and len(log_of(finished)) == 10
    with Image.open(finished / "training.png") as picture:
        assert picture.format == "PNG" and picture.size == (1125, 660)  # 7.5 × 4.4 inches at 150 dots per inch
    loaded = AutoModelForImageClassification.from_pretrained(finished)
    assert type(loaded) is SpotViTForImageClassification and loaded.config.id2label == dict(enumerate(LABELS))
    before = SpotViTForImageClassification.from_pretrained(options["--model"][0])
    assert not torch.equal(loaded.classifier.weight, before.classifier.weight)


def test_the_picture_shows_what_was_logged(finished):
    """Loss and accuracies against the step, each with its name."""
    results = TrainingResults.read(finished / "training.json")
    left, right = learning_curves(results).axes
    (loss,) = left.get_lines()
    assert loss.get_xydata().tolist() == [[one["step"], one["loss"]] for one in results.log if "loss" in one]
    names = [line.get_label() for line in right.get_lines()]
    assert names == ["4 tokens, isotropic", "6 tokens, isotropic"]
    for line, num_tokens in zip(right.get_lines(), (4, 6), strict=True):
        name = f"eval_n{num_tokens}_accuracy"
        measured = [[one["step"], one[name]] for one in results.log if name in one]
        # After each of the two epochs, and of the model that is saved.
        assert line.get_xydata().tolist() == measured and [step for step, _ in measured] == [5, 10, 10]


def test_no_path_of_this_machine_is_published(finished, model):
    """Only the command, which the user typed, may name one."""
    for name in ("README.md", "run.json", "training.json", "config.json"):
        text = re.sub(r'"command": .*|spot-hf train .*', "", (finished / name).read_text())
        assert str(model.parent) not in text and str(finished.parent) not in text and "/pictures" not in text, name


def test_results_of_the_version_before_can_be_read():
    """Which had no list of failed images. What is written again has all that was there."""
    file = ROOT / "tests/fixtures/0.1.0/training/training.json"
    results, written = TrainingResults.read(file), json.loads(file.read_text())
    assert results.failed == [] and results.steps == 7 and results.parameters["num_images"] == 24
    assert {name: value for name, value in results.to_json().items() if name in written} == written


def test_the_trainer_is_found_where_it_is_documented():
    import spot_hf.training

    assert spot_hf.training.SpotTrainer is SpotTrainer
    assert spot_hf.training.SpotTrainingArguments is SpotTrainingArguments
    with pytest.raises(AttributeError):
        _ = spot_hf.training.SpotTrainers


def test_options_on_the_line_replace_the_recipes(finished):
    parameters = json.loads((finished / "run.json").read_text())["parameters"]
    assert parameters["num_tokens"] == [4, 6] and parameters["jitter"] == 0.5 and parameters["adam_beta2"] == 0.99


def test_evaluations_are_of_all_images(finished, images):
    """Also of the last, smaller batch, which training leaves out."""
    loaded = SpotViTForImageClassification.from_pretrained(finished).eval()
    rows = EvaluationImages(split_of(images, "validation"), tiny_processor(), 4, "isotropic")
    batch = collate([rows[i] for i in range(NUM_EVAL_IMAGES)])
    labels = batch.pop("labels")
    with torch.no_grad():
        logits = loaded(**batch).logits
    measured = json.loads((finished / "training.json").read_text())["evaluation"]
    assert measured["eval_n4_accuracy"] == pytest.approx(100 * (logits.argmax(-1) == labels).float().mean().item())
    # float32, in batches of another size
    assert measured["eval_n4_loss"] == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)


# --------------------------------------------------------------------------------------------------- kills and resuming


@pytest.fixture(scope="module")
def undisturbed(options, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("undisturbed") / "run"
    assert main(command(options, directory, **DISTURBABLE)) == 0
    return directory


def trained(directory: Path) -> dict[str, bytes]:
    """Of a finished run, bit for bit: the averaged weights, and at the last step the others and the averages."""
    names = ("model.safetensors", "checkpoint-12/model.safetensors", "checkpoint-12/ema.safetensors")
    return {name: (directory / name).read_bytes() for name in names}


def run_in_child(arguments: list[str], log: str) -> None:
    """In a process of its own: the command line."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    torch.set_num_threads(1)
    sys.exit(main(arguments))


def test_killed_at_any_instant_it_ends_with_the_same_weights(options, undisturbed, tmp_path):
    """SIGKILLs at random instants. Where a run got through before its kill, its result is compared, and the next begins
    anew."""
    # A server that has imported everything forks the processes: a kill then hits the run, and not its imports.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["spot_hf.training.fine_tuning", "spot_hf.cli", "test_fine_tuning"])
    output, log = tmp_path / "run", tmp_path / "log"
    expected, arguments = trained(undisturbed), command(options, output, **DISTURBABLE)
    generator = random.Random(0)

    def start():
        process = context.Process(target=run_in_child, args=(arguments, str(log)))
        process.start()
        return process

    def finish(process):
        process.join()
        assert process.exitcode == 0, log.read_text()[-3000:]
        assert trained(output) == expected

    finish(start())  # the server's start, and how long a run takes
    began = time.monotonic()
    shutil.rmtree(output)
    finish(start())
    duration = time.monotonic() - began
    shutil.rmtree(output)
    checkpoints_at_kill = []
    while len(checkpoints_at_kill) < KILLS:
        process = start()
        process.join(timeout=generator.uniform(0.3, 1) * duration)
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            checkpoints_at_kill.append(len(list(output.glob("checkpoint-*"))))
        else:
            finish(process)
            shutil.rmtree(output)
    finish(start())
    assert any(checkpoints_at_kill), "no kill hit the training"


@pytest.mark.parametrize("left", ["no state", "half a state", "no result"])
def test_it_goes_on_from_the_last_whole_checkpoint(options, undisturbed, tmp_path, capsys, left):
    """As a kill leaves it: while the last checkpoint was written, or after that, which is in the middle of an epoch."""
    output = tmp_path / "run"
    shutil.copytree(undisturbed, output)
    state = output / "checkpoint-12" / "trainer_state.json"
    if left == "no state":
        state.unlink()
        (output / "checkpoint-12" / "model.safetensors").write_bytes(b"")
    elif left == "half a state":
        state.write_bytes(state.read_bytes()[:200])
    for name in ("training.json", "model.safetensors", "README.md"):
        (output / name).unlink()
    workers = 1 if left == "no state" else 0  # they change nothing
    assert main(command(options, output, **DISTURBABLE, dataloader_num_workers=workers)) == 0
    assert f"resuming from {output}/checkpoint-{12 if left == 'no result' else 9}" in capsys.readouterr().out
    assert trained(output) == trained(undisturbed)
    assert "step 12 on" in (output / "README.md").read_text() or left != "no result"
    assert log_of(output) == log_of(undisturbed)


def test_a_finished_run_is_not_repeated(options, undisturbed, capsys):
    before = files_of(undisturbed)
    assert main(command(options, undisturbed, **DISTURBABLE)) == 0
    assert "this run is finished" in capsys.readouterr().out
    assert files_of(undisturbed) == before


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"learning_rate": 0.1}, "learning_rate 0.001 there, 0.1 here"),
        ({"num_tokens": "4 9"}, "num_tokens [4, 6] there, [4, 9] here"),
        ({"seed": 1, "mixup": 0.1}, "mixup 0.4 there, 0.1 here; seed 42 there, 1 here"),
        ({"per_device_train_batch_size": 4}, "total_train_batch_size 8 there, 4 here"),
        ({"max_samples": 16}, "max_samples None there, 16 here; num_images 40 there, 16 here"),
    ],
    ids=str,
)
def test_other_parameters_are_refused_by_name(options, undisturbed, capsys, changes, said):
    before = files_of(undisturbed)
    assert main(command(options, undisturbed, **{**DISTURBABLE, **changes})) == 2
    error = capsys.readouterr().err.strip()
    assert said in error and "output_dir" in error and "\n" not in error
    assert files_of(undisturbed) == before


def test_other_weights_under_the_same_name_are_refused(options, undisturbed, tmp_path, capsys):
    shutil.copytree(options["--model"][0], tmp_path / "tiny")
    weights = bytearray((tmp_path / "tiny/model.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "tiny/model.safetensors").write_bytes(weights)
    assert main(command(options, undisturbed, **DISTURBABLE, model=tmp_path / "tiny")) == 2
    assert "model_sha256" in capsys.readouterr().err


def test_overwriting_begins_anew(options, undisturbed, tmp_path):
    output = tmp_path / "run"
    shutil.copytree(undisturbed, output)
    (output / "README.md").write_text("of the old run")
    assert main(command(options, output, "--overwrite_output_dir", max_steps=1, eval_strategy="no")) == 0
    assert json.loads((output / "training.json").read_text())["steps"] == 1
    assert not (output / "checkpoint-12").exists() and "of the old run" not in (output / "README.md").read_text()


# ------------------------------------------------------------------------------------- the same training in other ways


@pytest.fixture(scope="module")
def spoilt_images(tmp_path_factory) -> Path:
    """Of those for training, two cannot be read, and one of those to evaluate on."""
    directory = tmp_path_factory.mktemp("spoilt") / "pictures"
    save_images(directory, NUM_IMAGES, broken=(3, 17), split="train")
    return save_images(directory, NUM_EVAL_IMAGES, broken=(6,))


@pytest.fixture(scope="module")
def twenty_steps(options, spoilt_images) -> dict[str, list[str]]:
    """In 4 epochs, with everything that draws numbers per image, and images that cannot be read."""
    changes = {"num_train_epochs": 4, "save_strategy": "steps", "save_steps": 8, "save_total_limit": 5, "mixup": 0.4,
               "cutmix": 0.4, "rand_augment_num_ops": 2, "dataset_name": spoilt_images, "max_failed_share": 0.1}  # fmt: skip
    return {**options, **{f"--{name}": [str(value)] for name, value in changes.items()}}


@pytest.fixture(scope="module")
def one_process(twenty_steps, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("one") / "run"
    assert main(command(twenty_steps, directory)) == 0
    return directory


def in_two_processes(options, output, script="scripts/train.py") -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    arguments = command(options, output, per_device_train_batch_size=4)[1:]
    done = subprocess.run([*launch, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_two_processes_and_one_have_the_same_losses(twenty_steps, one_process, tmp_path):
    """With mixup, cutmix and RandAugment. Also where two go on, in the middle of an epoch, with what one began."""
    said = in_two_processes(twenty_steps, tmp_path / "run")
    assert said.count("written to") == 1  # the first process alone speaks
    expected = log_of(one_process)
    # float32: gradients are summed in another order, and 20 steps of Adam carry that on.
    assert len(expected) == 20 and log_of(tmp_path / "run") == pytest.approx(expected, rel=1e-4)
    # Of all images that can be read, also in two times two batches of 4, of which Trainer's loss counts an image twice.
    for name in ("eval_n4_accuracy", "eval_n6_accuracy"):
        assert log_of(tmp_path / "run", name) == log_of(one_process, name)
    assert np.std(expected) > 0.01  # the tolerance is far below what steps differ by
    found, alone = (TrainingResults.read(run / "training.json") for run in (tmp_path / "run", one_process))
    for results in (found, alone):
        assert [one.image_id for one in results.failed] == ["picture_3.png", "picture_17.png"]
        assert [one["image_id"] for one in results.evaluated_on["failed"]] == ["picture_6.png"]

    shutil.copytree(one_process, tmp_path / "resumed")
    (tmp_path / "resumed/training.json").unlink()
    shutil.rmtree(tmp_path / "resumed/checkpoint-16")
    shutil.rmtree(tmp_path / "resumed/checkpoint-20")
    assert "checkpoint-8" in in_two_processes(twenty_steps, tmp_path / "resumed")
    assert log_of(tmp_path / "resumed") == pytest.approx(expected, rel=1e-4)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the names of threads from /proc")
def test_no_thread_of_gloo_is_left_at_exit(options, tmp_path):
    """One that is can abort its process, by chance (pytorch/pytorch#179291): the exit status is no test."""
    script = tmp_path / "train_and_list_threads.py"
    script.write_text(
        "import pathlib, sys\n"
        "from spot_hf.cli import main\n"
        "status = main(['train', *sys.argv[1:]])\n"
        "names = {file.read_text().strip() for file in pathlib.Path('/proc/self/task').glob('*/comm')}\n"
        "sys.stdout.write(f\"threads: {' '.join(names)}\\n\")\n"  # in one piece, or two processes' lines become one
        "sys.exit(status)\n"
    )
    said = in_two_processes({**options, "--num_train_epochs": ["1"]}, tmp_path / "run", script)
    threads = [line for line in said.splitlines() if line.startswith("threads:")]
    assert len(threads) == 2 and all("python" in line and "gloo" not in line for line in threads)


class RecordTokens(TrainerCallback):
    """How many tokens each forward pass has had, by step."""

    def __init__(self, model):
        self.step, self.seen = 0, []
        model.register_forward_pre_hook(self.note, with_kwargs=True)

    def note(self, module, args, kwargs):
        self.seen.append((self.step, kwargs["coordinates"].shape[1]))

    def on_step_end(self, args, state, control, **kwargs):
        self.step = state.global_step


def test_accumulated_gradients_are_those_of_a_larger_batch(model, images, tmp_path):
    found = {}
    # SGD: Adam would make of a gradient of 0 with its rounding a whole step.
    for name, settings in {
        "one": {"per_device_train_batch_size": 8},
        "accumulated": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
    }.items():
        given = parts(model, images)
        given["preparation"].placements.num_tokens = [4, 6, 9]
        record = RecordTokens(given["model"])
        trainer = trainer_of(given, tmp_path / name, {"max_steps": 8, "optim": "sgd", "learning_rate": 0.05, **settings},
                             callbacks=[record])  # fmt: skip
        trainer.train()
        found[name] = trainer, record.seen
    (one, counts), (accumulated, twice) = found["one"], found["accumulated"]
    # float32: sums in another order.
    assert losses_of(accumulated) == pytest.approx(losses_of(one), rel=1e-5)
    for ours, theirs in zip(accumulated.model.parameters(), one.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert len({count for _, count in counts}) > 1
    assert twice == [one for one in counts for _ in range(2)]  # both parts of a step have as many tokens


def test_checkpointed_activations_change_nothing(model, images, tmp_path):
    weights = []
    for checkpointed in (False, True):
        given = parts(model, images)
        given["model"] = SpotViTForImageClassification.from_pretrained(model, drop_path_rate=0.5)
        counter = []
        given["model"].spot_vit.layers[0].mlp.register_forward_pre_hook(lambda *_, counter=counter: counter.append(1))
        torch.manual_seed(0)
        trainer = trainer_of(given, tmp_path, {"max_steps": 3, "activation_checkpointing": checkpointed})
        trainer.train()
        assert len(counter) == (6 if checkpointed else 3)
        weights.append(list(trainer.model.parameters()))
    # What is dropped is drawn once: the second forward pass has the first one's random numbers.
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))


def test_bfloat16(options, finished, tmp_path):
    settings = ["--config", str(finished.parent / "recipe.yaml"), "--bf16"]
    assert main(command(options, tmp_path / "run", *settings)) == 0
    # 8 bits: 0.4 % per operation, a few per cent through two layers.
    assert log_of(tmp_path / "run") == pytest.approx(log_of(finished), rel=0.05) and log_of(tmp_path / "run") != log_of(
        finished
    )
    assert {weight.dtype for weight in weights_of(tmp_path / "run").values()} == {torch.float32}
    assert verify_model(str(tmp_path / "run")).equal


def test_compiled(options, finished, tmp_path):
    torch._dynamo.reset()
    settings = ["--config", str(finished.parent / "recipe.yaml"), "--torch_compile", "--torch_compile_backend", "aot_eager"]
    assert main(command(options, tmp_path / "run", *settings)) == 0
    assert torch._dynamo.utils.counters["frames"]["ok"] > 0
    # Its operations are composed otherwise: rounding of float32.
    assert log_of(tmp_path / "run") == pytest.approx(log_of(finished), rel=1e-4)
    assert list(weights_of(tmp_path / "run")) == list(weights_of(finished))


# --------------------------------------------------------------------------------------------- images that cannot be read


def test_unreadable_images_are_skipped_named_and_listed(one_process, spoilt_images, capsys):
    """In training and in its evaluations, in the record and in what it says of itself."""
    results = json.loads((one_process / "training.json").read_text())
    failed = [(one["image_index"], one["image_id"]) for one in results["failed"]]
    assert (
        failed == [(3, "picture_3.png"), (17, "picture_17.png")] and "UnidentifiedImageError" in results["failed"][0]["error"]
    )
    on = results["evaluated_on"]
    assert on["split"] == "validation" and on["num_images"] == 15
    assert [one["image_id"] for one in on["failed"]] == ["picture_6.png"]
    card = (one_process / "README.md").read_text()
    assert "on 40 images of `pictures`, split `train`, of which 2 could not be read: 20 steps" in card
    assert "on 14 images of split `validation`" in card
    # Accuracy and loss are those of the images that can be read, to rounding in batches of another size.
    model = SpotViTForImageClassification.from_pretrained(one_process).eval()
    rows = EvaluationImages(split_of(spoilt_images, "validation"), tiny_processor(), 4, "isotropic")
    batch = collate([rows[i] for i in range(NUM_EVAL_IMAGES) if i != 6])
    labels = batch["labels"]
    with torch.no_grad():
        logits = model(batch["pixel_values"], batch["coordinates"]).logits
    accuracy = 100 * (logits.argmax(-1) == labels).float().mean().item()
    assert results["evaluation"]["eval_n4_accuracy"] == pytest.approx(accuracy)
    assert results["evaluation"]["eval_n4_loss"] == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)


def test_a_resumed_run_lists_what_failed_before_it(twenty_steps, one_process, tmp_path):
    """Its last four steps read neither of the two."""
    shutil.copytree(one_process, tmp_path / "run")
    (tmp_path / "run/training.json").unlink()
    shutil.rmtree(tmp_path / "run/checkpoint-20")
    images = TrainingImages(split_of(Path(twenty_steps["--dataset_name"][0]), "train"), tiny_processor(), seed=42)
    sampler = DrawSampler(len(images), 42)
    sampler.set_epoch(3)
    assert {draw % NUM_IMAGES for draw in list(sampler)[8:]} & {3, 17}  # some are read again, so the file is what is tested:
    listed = tmp_path / "run/checkpoint-16/failed_images.json"
    assert [one["image_index"] for one in json.loads(listed.read_text())] == [3, 17]
    listed.write_text(listed.read_text().replace("picture_3.png", "as it was called"))
    assert main(command(twenty_steps, tmp_path / "run")) == 0
    failed = json.loads((tmp_path / "run/training.json").read_text())["failed"]
    assert "as it was called" in [one["image_id"] for one in failed]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_too_many_unreadable_images_stop_a_run(options, spoilt_images, tmp_path, capsys, num_workers):
    """Two of forty: at the next line of the log. In a row, at once, also in a worker process, whose error is a traceback."""
    run = command(options, tmp_path / "run", dataset_name=spoilt_images, max_failed_share=0.03, eval_strategy="no",
                  dataloader_num_workers=num_workers)  # fmt: skip
    assert main(run) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("spot-hf train: error: 2 of 40 images could not be read, more than `max_failed_share` 0.03 allows")
    assert not (tmp_path / "run/training.json").exists()
    assert main([*run, "--max_failed_share", "0.01"]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("spot-hf train: error: 1 of 40 images could not be read") and "picture_" in error


def test_too_many_unreadable_images_stop_an_evaluation(model, spoilt_images, tmp_path):
    trainer = trainer_of(parts(model, spoilt_images, max_failed_share=0.05), tmp_path)
    with pytest.raises(TooManyFailedImagesError, match=r"1 of 15 images .* picture_6.png"):
        trainer.evaluate()


# --------------------------------------------------------------------------------------------------------------- losses


@pytest.fixture
def batch(model, images):
    """Of training, prepared: eight images of the classes 1, 2 and 4."""
    given = parts(model, images)
    rows = [given["train_dataset"][i] for i in range(NUM_IMAGES)]
    prepared = given["preparation"](collate([row for row in rows if row["labels"] in (1, 2, 4)][:8]), 6)
    assert prepared.labels is not None and set(prepared.labels.tolist()) == {1, 2, 4}
    return prepared


def loss_and_logits(trainer: SpotTrainer, batch) -> tuple[torch.Tensor, torch.Tensor]:
    trainer.model.train()
    logits = trainer.model(**batch.inputs).logits
    return trainer.loss_of(logits, batch), logits


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_among_classes(model, images, tmp_path, batch, smoothing):
    trainer = trainer_of(parts(model, images), tmp_path, {"label_smoothing_factor": smoothing}, classes=[1, 2, 4])
    loss, logits = loss_and_logits(trainer, batch)
    places = torch.tensor([[1, 2, 4].index(label) for label in batch.labels.tolist()])
    expected = nn.functional.cross_entropy(logits[:, [1, 2, 4]], places, label_smoothing=smoothing)
    torch.testing.assert_close(loss, expected)
    assert not torch.isclose(loss, nn.functional.cross_entropy(logits, batch.labels, label_smoothing=smoothing), rtol=0.01)
    loss.backward()
    assert not trainer.model.classifier.bias.grad[[0, 3]].any()  # the other classes are left as they are


def test_label_smoothing_is_for_training_alone(model, images, tmp_path):
    losses = []
    for smoothing in (0.0, 0.3):
        trainer = trainer_of(parts(model, images), tmp_path, {"label_smoothing_factor": smoothing})
        losses.append((trainer.evaluate()["eval_loss"], trainer.compute_loss(trainer.model.train(), next(iter(
            trainer.get_train_dataloader()))).item()))  # fmt: skip
    assert losses[0][0] == losses[1][0] and losses[0][1] != losses[1][1]


def test_mixed_labels_count_by_their_share(model, images, tmp_path, batch):
    trainer = trainer_of(parts(model, images), tmp_path)
    batch.other_labels, batch.other_weights = batch.labels.roll(1), torch.linspace(0, 1, 8)
    loss, logits = loss_and_logits(trainer, batch)
    own, other = (nn.functional.cross_entropy(logits, one, reduction="none") for one in (batch.labels, batch.other_labels))
    torch.testing.assert_close(loss, ((1 - batch.other_weights) * own + batch.other_weights * other).mean())


@pytest.mark.parametrize("weights", [(0.5, 2.0, 0.0), (0.0, 0.0, 3.0), (1.0, 1.0, 0.5)], ids=str)
@pytest.mark.parametrize("classes", [None, [1, 2, 4]], ids=["all classes", "some"])
def test_losses_are_those_of_the_oracle_on_the_teachers_full_grid(model, images, tmp_path, batch, weights, classes):
    cross_entropy, distill, feature = weights
    teacher = randomise(SpotViTForImageClassification(tiny_config()), seed=7)
    trainer = trainer_of(
        parts(model, images), tmp_path, teacher=teacher, classes=classes, cross_entropy_weight=cross_entropy,
        distill_weight=distill, distill_temperature=2.0, feature_weight=feature,
    )  # fmt: skip
    loss, logits = loss_and_logits(trainer, batch)
    chosen = classes or list(range(5))
    with torch.no_grad():
        targets = teacher(batch.inputs["pixel_values"])
        features = teacher.spot_vit(batch.inputs["pixel_values"]).pooler_output
    student = trainer.model.spot_vit(**batch.inputs).pooler_output
    places = torch.tensor([chosen.index(label) for label in batch.labels.tolist()])
    expected = cross_entropy * nn.functional.cross_entropy(logits[:, chosen], places)
    expected = expected + distill * 4 * distill_loss(logits[:, chosen] / 2, targets.logits[:, chosen] / 2).mean()
    expected = expected + feature * feature_loss(student, features).mean()
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_without_labels(options, images, tmp_path):
    """The source model teaches: what is learnt is what it says of the full grid."""
    unlabelled = tmp_path / "unlabelled"
    unlabelled.mkdir()
    split_of(images, "train").remove_columns("label").to_parquet(unlabelled / "train.parquet")
    run = command(options, tmp_path / "run", dataset_name=unlabelled, label_column_name="none", cross_entropy_weight=0,
                  distill_weight=1, feature_weight=1, eval_strategy="no", num_train_epochs=20, learning_rate=3e-3,
                  crop_scale="1 1", flip=0)  # fmt: skip
    assert main(run) == 0
    losses = log_of(tmp_path / "run")
    # 5 batches per epoch. Half of the loss of the first epoch: noise of batches is a tenth of it.
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
    card = (tmp_path / "run/README.md").read_text()
    assert "Loss: distill (1), feature (1)" in card and "top-1" not in card


# ----------------------------------------------------------------------------------------------------------- optimizer


def test_rates_fall_from_layer_to_layer_and_weights_decay_where_they_are_matrices(model, images, tmp_path):
    given = parts(model, images)
    given["model"] = SpotViTForImageClassification(tiny_config(num_hidden_layers=3, use_layer_scale=True))
    frozen = given["model"].spot_vit.layers[0].mlp.requires_grad_(False)
    trainer = trainer_of(given, tmp_path, {"learning_rate": 1e-3, "weight_decay": 0.1}, layer_decay=0.5)
    groups = trainer.create_optimizer().param_groups
    found = {id(parameter): (group["lr"], group["weight_decay"]) for group in groups for parameter in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(found)
    names = {name: found.get(id(parameter)) for name, parameter in given["model"].named_parameters()}
    assert {name for name, value in names.items() if value is None} == {
        name for name, parameter in given["model"].named_parameters() if any(parameter is one for one in frozen.parameters())
    }
    expected = {
        "classifier.weight": (1e-3, 0.1), "classifier.bias": (1e-3, 0.0), "spot_vit.layernorm.weight": (1e-3, 0.0),
        "spot_vit.layers.2.attention.q_proj.weight": (5e-4, 0.1), "spot_vit.layers.2.attention.q_proj.bias": (5e-4, 0.0),
        "spot_vit.layers.1.norm1.weight": (2.5e-4, 0.0), "spot_vit.layers.1.layer_scale1.scale": (2.5e-4, 0.0),
        "spot_vit.layers.0.attention.o_proj.weight": (1.25e-4, 0.1),
        "spot_vit.embeddings.patch_projection.weight": (6.25e-5, 0.1),
        "spot_vit.embeddings.prefix_tokens": (6.25e-5, 0.0),
        "spot_vit.embeddings.position_embeddings.weight": (6.25e-5, 0.0),
    }  # fmt: skip
    assert {name: names[name] for name in expected} == expected
    for name, value in names.items():
        if value is not None:
            matrix = given["model"].get_parameter(name).ndim > 1 and "prefix" not in name and "position" not in name
            assert value == (1e-3 * 0.5 ** layers_above(name, 3), 0.1 if matrix else 0.0), name


# ------------------------------------------------------------------------------------------------------------ averages


class Remember(TrainerCallback):
    """The weights after each step, and after each evaluation."""

    def __init__(self):
        self.steps, self.evaluated = [], []

    def on_step_end(self, args, state, control, model, **kwargs):
        self.steps.append([parameter.detach().clone() for parameter in model.parameters()])

    def on_evaluate(self, args, state, control, model, metrics, **kwargs):
        weights = [parameter.detach().clone() for parameter in model.parameters()]
        self.evaluated.append((state.global_step, weights, metrics["eval_loss"]))


def averages(steps: list[list[torch.Tensor]], decay: float) -> list[list[torch.Tensor]]:
    """After each step, by hand, in float64."""
    found = [[one.double() for one in steps[0]]]
    for weights in steps[1:]:
        found.append([decay * a + (1 - decay) * w.double() for a, w in zip(found[-1], weights, strict=True)])
    return found


def assert_same_weights(ours, theirs) -> None:
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=1e-5, atol=1e-6)  # float32


def test_averaged_weights_are_evaluated_and_saved_and_the_others_trained(model, images, tmp_path):
    remember, plain = Remember(), Remember()
    trainer_of(parts(model, images), tmp_path / "plain", callbacks=[plain]).train()
    trainer = trainer_of(parts(model, images), tmp_path / "run", {"eval_strategy": "steps", "eval_steps": 2},
                         ema_decay=0.6, callbacks=[remember])  # fmt: skip
    trainer.train()
    # An evaluation leaves the weights that are trained, to the bit.
    for ours, theirs in zip(remember.steps, plain.steps, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
    expected = averages(remember.steps, 0.6)
    assert [step for step, _, _ in remember.evaluated] == [2, 4, 5]
    for step, seen, _ in remember.evaluated:
        assert_same_weights(seen, expected[step - 1])
    assert not torch.allclose(expected[-1][0].float(), remember.steps[-1][0], rtol=1e-3)

    trainer.save_model(str(tmp_path / "saved"))
    saved = SpotViTForImageClassification.from_pretrained(tmp_path / "saved")
    assert_same_weights(saved.parameters(), expected[-1])
    assert verify_model(str(tmp_path / "saved")).equal
    assert all(torch.equal(one, other) for one, other in zip(trainer.model.parameters(), remember.steps[-1], strict=True))
    # `predict` is of the averaged weights too, of all images, and with their labels.
    predicted = trainer.predict(trainer.eval_dataset)
    rows = collate([trainer.eval_dataset[i] for i in range(NUM_EVAL_IMAGES)])
    labels = rows.pop("labels")
    with torch.no_grad():
        logits = saved.eval()(**rows).logits
    np.testing.assert_allclose(predicted.predictions, logits, rtol=0, atol=1e-5)  # another batch size
    assert predicted.label_ids.tolist() == labels.tolist()
    assert predicted.metrics["test_accuracy"] == pytest.approx(100 * (logits.argmax(-1) == labels).float().mean().item())


@pytest.mark.parametrize("ema_decay", [None, 0.6])
def test_the_best_checkpoint_is_loaded_at_the_end(model, images, tmp_path, ema_decay):
    remember = Remember()
    # A rate at which it becomes worse before the end.
    settings = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "max_steps": 6,
                "load_best_model_at_end": True, "metric_for_best_model": "loss", "learning_rate": 0.05,
                "save_total_limit": 1}  # fmt: skip
    trainer = trainer_of(parts(model, images), tmp_path, settings, ema_decay=ema_decay, callbacks=[remember])
    trainer.train()
    losses = [loss for _, _, loss in remember.evaluated]
    best = int(np.argmin(losses))
    assert best < 5 and trainer.state.best_model_checkpoint.endswith(f"checkpoint-{best + 1}")
    assert trainer.evaluate()["eval_loss"] == losses[best]
    trainer.save_model(str(tmp_path / "saved"))
    seen = remember.evaluated[best][1]
    saved = SpotViTForImageClassification.from_pretrained(tmp_path / "saved")
    assert all(torch.equal(one, other) for one, other in zip(saved.parameters(), seen, strict=True))


def test_early_stopping_counts_the_mean_and_goes_on_counting(options, tmp_path, capsys):
    """At a rate of almost 0, no evaluation is better than the first."""
    settings = {"num_train_epochs": 8, "learning_rate": 1e-12, "early_stopping_patience": 3, "save_total_limit": 4}
    assert main(command(options, tmp_path / "run", **settings)) == 0
    steps = json.loads((tmp_path / "run/training.json").read_text())["steps"]
    assert steps == 20  # the first epoch, and three that are no better
    for removed in (("training.json", "checkpoint-20"), ("training.json",)):
        for name in removed:
            path = tmp_path / "run" / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        before = weights_of(tmp_path / "run")
        assert main(command(options, tmp_path / "run", **settings)) == 0
        assert f"checkpoint-{15 if len(removed) == 2 else 20}" in capsys.readouterr().out
        assert json.loads((tmp_path / "run/training.json").read_text())["steps"] == 20
        assert all(torch.equal(value, before[name]) for name, value in weights_of(tmp_path / "run").items())


# ------------------------------------------------------------------------------------------------- adapters and the Hub


def test_adapters(model, images, tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model

    given = parts(model, images)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_alpha=16, init_lora_weights=False)
    given["model"] = get_peft_model(given["model"], config)
    before = {name: parameter.detach().clone() for name, parameter in given["model"].named_parameters()}
    trainer = trainer_of(given, tmp_path / "run", {"save_strategy": "steps", "save_steps": 3}, layer_decay=0.5,
                         ema_decay=0.5, feature_weight=1.0, teacher=tiny_model())  # fmt: skip
    groups = trainer.create_optimizer().param_groups
    assert {group["lr"] for group in groups} == {5e-4, 2.5e-4}  # both layers, nothing else
    trainer.train()
    for name, parameter in given["model"].named_parameters():
        assert ("lora_" in name) == (not torch.equal(parameter, before[name])), name
    trainer.save_model(str(tmp_path / "saved"))
    assert "model.safetensors" not in {path.name for path in (tmp_path / "saved").iterdir()}
    fresh = PeftModel.from_pretrained(SpotViTForImageClassification.from_pretrained(model), tmp_path / "saved").eval()
    rows = collate([trainer.eval_dataset[i] for i in range(NUM_EVAL_IMAGES)])
    del rows["labels"]
    with torch.no_grad():
        logits = fresh(**rows).logits
        plain = SpotViTForImageClassification.from_pretrained(model).eval()(**rows).logits
    np.testing.assert_allclose(trainer.predict(trainer.eval_dataset).predictions, logits, rtol=0, atol=1e-5)
    assert (logits - plain).abs().max() > 0.01
    # From a checkpoint it goes on, to the same adapters.
    again = parts(model, images)
    again["model"] = get_peft_model(again["model"], config)
    resumed = trainer_of(again, tmp_path / "again", layer_decay=0.5, ema_decay=0.5, feature_weight=1.0, teacher=tiny_model())
    resumed.train(resume_from_checkpoint=str(tmp_path / "run/checkpoint-3"))
    for (name, ours), theirs in zip(again["model"].named_parameters(), given["model"].parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def train_and_push(arguments):
    """In its process: the command line."""
    from spot_hf.cli import main

    return main(arguments)


def load_trained(repo_id, photos):
    """In a process without the package: what the pipeline says."""
    from transformers import AutoModelForImageClassification, pipeline

    classifier = pipeline("spot-image-classification", model=repo_id, trust_remote_code=True)
    model = AutoModelForImageClassification.from_pretrained(repo_id, trust_remote_code=True)
    answers = classifier(photos, num_tokens=4, placement="isotropic")
    return {"module": type(model).__module__, "labels": sorted(one["label"] for one in answers[0]), "first": answers[0][0],
            "total": sum(parameter.double().sum().item() for parameter in model.parameters())}  # fmt: skip


def test_pushed_to_the_hub_it_loads_by_remote_code(hub, options, photos, tmp_path, fresh_process):
    more = ["--push_to_hub", "--hub_model_id", "alice/trained", "--hub_private_repo", "False"]
    run = command(options, tmp_path / "run", *more, num_train_epochs=1, ema_decay=0.5)
    assert fresh_process(train_and_push, run, hub=hub, token="hf_alice") == 0
    repo = hub.repos["model", "alice/trained"]
    tree, _ = repo.tree(repo.resolve("main")[1])
    assert not [name for name in tree if re.search(r"checkpoint|optimizer|scheduler|rng_state|ema", name)]
    card = repo.get(tree["README.md"][1]).decode()
    assert "Fine-tuned from `tiny`" in card and 'model="alice/trained"' in card and "generated from Trainer" not in card
    assert {"model.safetensors", "golden.safetensors", "modeling_spot_vit.py", "training.json", "training.png"} <= set(tree)
    # Until the end there is nothing: the first commit is the Hub's.
    assert len(list(repo.history(repo.resolve("main")[1]))) == 2
    loaded = fresh_process(load_trained, "alice/trained", photos, hub=hub, without_spot_hf=True)
    assert loaded["module"].startswith("transformers_modules.") and loaded["labels"] == LABELS
    total = sum(weight.double().sum().item() for weight in weights_of(tmp_path / "run").values())
    assert loaded["total"] == pytest.approx(total, rel=1e-12)


def upload_and_train(folders, arguments):
    """In its process: what lies in folders becomes repositories, and a run uses them. Returns its status and the commits."""
    from huggingface_hub import HfApi

    from spot_hf.cli import main

    commits = {}
    for repo_id, folder in folders.items():
        kind = "model" if "model" in repo_id or "teacher" in repo_id else "dataset"
        HfApi().create_repo(repo_id, repo_type=kind, exist_ok=True)
        HfApi().upload_folder(repo_id=repo_id, folder_path=folder, repo_type=kind)
        commits[repo_id] = HfApi().repo_info(repo_id, repo_type=kind).sha
    return {"status": main(arguments), "commits": commits}


def test_what_comes_from_the_hub_is_of_one_commit(hub, options, model, images, tmp_path, fresh_process):
    """Each commit is recorded; where one has changed since, the run is another."""
    oracle = ["--model", str(model), "--dataset_name", str(images), "--dataset_split", "train", "--num_tokens", "6", "--steps",
              "1", "--num_workers", "0", "--output_dir", str(tmp_path / "oracle")]  # fmt: skip
    assert main(["oracle", *oracle]) == 0
    folders = {"alice/model": model, "alice/teacher": model, "alice/pictures": images, "alice/positions": tmp_path / "oracle"}
    run = command(options, tmp_path / "run", model="alice/model", teacher_model="alice/teacher", dataset_name="alice/pictures",
                  coordinates="alice/positions", feature_weight=1, max_steps=1, eval_strategy="no")  # fmt: skip
    given = {name: str(folder) for name, folder in folders.items()}
    done = fresh_process(upload_and_train, given, run, hub=hub, token="hf_alice")
    assert done["status"] == 0
    parameters = json.loads((tmp_path / "run/run.json").read_text())["parameters"]
    names = {"revision": "alice/model", "teacher_revision": "alice/teacher", "dataset_revision": "alice/pictures",
             "coordinates_revision": "alice/positions"}  # fmt: skip
    assert {name: parameters[name] for name in names} == {name: done["commits"][repo] for name, repo in names.items()}

    (tmp_path / "run/training.json").unlink()
    shutil.copytree(model, tmp_path / "changed")
    (tmp_path / "changed/NOTES.md").write_text("another commit")
    again = fresh_process(upload_and_train, {"alice/teacher": str(tmp_path / "changed")}, run, hub=hub, token="hf_alice")
    assert again["status"] == 2 and not (tmp_path / "run/training.json").exists()
    earlier = [*run, "--teacher_revision", done["commits"]["alice/teacher"]]
    assert fresh_process(upload_and_train, {}, earlier, hub=hub, token="hf_alice")["status"] == 0


# ---------------------------------------------------------------------------------------------- classifiers, coordinates


def test_a_new_classifier_has_the_data_sets_classes(options, tmp_path):
    data, names = tmp_path / "fruit", ["apple", "fig", "kiwi"]
    data.mkdir()
    features = datasets.Features({"picture": datasets.Image(), "kind": datasets.ClassLabel(names=names)})
    for split, count in (("train", 16), ("test", 6)):
        rows = {"picture": [{"bytes": picture(i), "path": None} for i in range(count)], "kind": [i % 3 for i in range(count)]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(data / f"{split}.parquet")
    run = command(options, tmp_path / "run", classifier="new", dataset_name=data, image_column_name="picture",
                  label_column_name="kind", feature_weight=0.5)  # fmt: skip
    assert main(run) == 0
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "run")
    assert loaded.config.id2label == dict(enumerate(names)) and loaded.classifier.out_features == 3


def test_a_new_classifier_is_untrained_also_for_as_many_classes(options, tmp_path):
    new = []
    for seed in range(2):
        torch.manual_seed(seed)  # of the process: the run has its own
        run = command(options, tmp_path / str(seed), classifier="new", learning_rate=1e-12, max_steps=1, eval_strategy="no")
        assert main(run) == 0
        new.append(weights_of(tmp_path / str(seed)))
    old = weights_of(Path(options["--model"][0]))
    assert new[0]["classifier.bias"].abs().max() < 1e-6 and new[0]["classifier.weight"].std() < 0.05
    assert old["classifier.weight"].std() > 0.2
    torch.testing.assert_close(new[0]["spot_vit.layernorm.weight"], old["spot_vit.layernorm.weight"])
    assert torch.equal(new[0]["classifier.weight"], new[1]["classifier.weight"])


def test_positions_of_a_coordinate_data_set(options, model, tmp_path, capsys):
    """Of twelve images, found by the oracle: all of each image's tokens are where it has put them."""
    pictures = {"image": [{"bytes": picture(i, (40, 40)), "path": f"{i}.png"} for i in range(20)], "label": [0] * 20}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    (tmp_path / "data").mkdir()
    datasets.Dataset.from_dict(pictures, features=features).to_parquet(tmp_path / "data/train.parquet")
    oracle = ["--model", str(model), "--dataset_name", str(tmp_path / "data"), "--num_tokens", "6", "--max_samples", "12",
              "--steps", "2", "--num_workers", "0", "--output_dir", str(tmp_path / "oracle")]  # fmt: skip
    assert main(["oracle", *oracle]) == 0
    exactly = {"coordinates_share": 1, "jitter": 0, "placement": "center", "crop_scale": "1 1", "crop_ratio": "1 1", "flip": 0,
               "num_tokens": "6 4", "num_tokens_weights": "1 0", "max_steps": 1, "eval_strategy": "no"}  # fmt: skip
    given = {**exactly, "dataset_name": tmp_path / "data", "coordinates": tmp_path / "oracle"}
    run = command(options, tmp_path / "run", **given)
    seen = []

    def note(module, inputs):
        if isinstance(module, SpotViTPositionEmbeddings):
            seen.append(inputs[0])

    handle = register_module_forward_pre_hook(note)
    try:
        assert main(run) == 0
    finally:
        handle.remove()
    ledger = json.loads((tmp_path / "run/run.json").read_text())["parameters"]
    assert ledger["num_images"] == 12 and ledger["coordinates"] == "oracle"
    placed = seen[0]  # of one step; saving looks at images of its own
    found = torch.tensor(load_coordinates(tmp_path / "oracle")["coordinates"])
    for one in placed:
        assert (found - one).abs().flatten(1).max(1).values.min() < 1e-5  # float32, through two frames
    capsys.readouterr()
    assert main(command(options, tmp_path / "bad", **{**given, "num_tokens": "4 9"})) == 2
    assert "`num_tokens` must include 6, which `coordinates` have; got [4, 9]" in capsys.readouterr().err
    assert not (tmp_path / "bad").exists()


def test_a_range_of_tokens_scales_of_windows_and_a_part_of_the_images(options, tmp_path):
    run = command(options, tmp_path / "run", num_tokens_range="3 12", num_token_buckets=3, window_scales="0.5 2",
                  max_samples=17, max_eval_samples=6, num_train_epochs=1)  # fmt: skip
    assert main(run) == 0
    results = json.loads((tmp_path / "run/training.json").read_text())
    assert results["steps"] == 2 and results["parameters"]["num_images"] == 17  # the last image is no batch
    assert {"eval_n3_accuracy", "eval_n12_accuracy"} <= set(results["evaluation"])
    assert "Batches of 3 to 12 tokens" in (tmp_path / "run/README.md").read_text()


def test_batches_have_the_counts_and_scales_that_were_asked_for(model, images, tmp_path):
    arguments = TrainArguments(model=str(model), dataset_name=str(images), num_tokens_range=[3, 12], num_token_buckets=3,
                               window_scales=[0.5, 2.0])  # fmt: skip
    given, seen = parts(model, images), []
    given["preparation"].placements = arguments.placements(48, 48, 8, seed=0)
    given["model"].register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs), with_kwargs=True)
    trainer_of(given, tmp_path, {"max_steps": 12}).train()
    assert {kwargs["coordinates"].shape[1] for kwargs in seen} == {3, 6, 12}
    scales = torch.cat([kwargs["window_scales"].flatten() for kwargs in seen])
    assert 0.5 <= scales.min() < 0.6 and 1.8 < scales.max() <= 2


def test_the_input_alone_is_timed_and_nothing_written(options, tmp_path, capsys):
    assert main(command(options, tmp_path / "run", "--benchmark_input")) == 0
    said = capsys.readouterr().out
    rate = re.search(r"input pipeline alone: (\d+) images/s with 0 workers, over 32 images", said)
    assert rate and int(rate[1]) > 0 and not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"placement": "spiral"}, "`placement` must be one of"),
        ({"placement": "salient"}, "`placement` 'salient' is not for training"),
        ({"placement": "isotropic isotropic"}, "`placement`"),
        ({"placement_weights": "1 2"}, "`placement_weights`"),
        ({"num_tokens": 0}, "`num_tokens`"),
        ({"num_tokens_weights": "1 2 3"}, "`num_tokens_weights`"),
        ({"num_tokens_weights": "0 0"}, "`num_tokens_weights`"),
        ({"num_tokens_range": 4}, "`num_tokens_range`"),
        ({"num_tokens_range": "9 4"}, "`num_tokens_range`"),
        ({"window_scales": "0 2"}, "`window_scales`"),
        ({"jitter": -1}, "`jitter`"),
        ({"crop_scale": 0.5}, "`crop_scale` must be two numbers"),
        ({"classifier": "fresh"}, "`classifier` must be one of keep, new"),
        ({"max_samples": 0}, "`max_samples`"),
        ({"cross_entropy_weight": 0}, "weights must be at least 0, not all 0"),
        ({"cross_entropy_weight": -1}, "weights must be at least 0"),
        ({"label_column_name": "none"}, "`label_column_name`"),
        ({"label_column_name": "none", "cross_entropy_weight": 0, "distill_weight": 1}, "`eval_strategy`"),
        ({"classifier": "new", "distill_weight": 1}, "`distill_weight`"),
        ({"distill_temperature": 0}, "`distill_temperature`"),
        ({"ema_decay": 1}, "`ema_decay`"),
        ({"layer_decay": 0}, "`layer_decay`"),
        ({"early_stopping_patience": 0}, "`early_stopping_patience`"),
        ({"early_stopping_patience": 2, "eval_strategy": "no"}, "`early_stopping_patience`"),
        ({"metric_for_best_model": "n9_accuracy"}, "`metric_for_best_model`"),
        ({"eval_placement": "spiral"}, "`eval_placement`"),
        ({"eval_placement": "salient"}, "`eval_placement`"),
        ({"eval_num_tokens": 0}, "`eval_num_tokens`"),
        ({"remove_unused_columns": True}, "`remove_unused_columns`"),
        ({"learning_rate": -1}, "`learning_rate`"),
        ({"learning_rate": "nan"}, "`learning_rate`"),
        ({"resume_from_checkpoint": "nowhere"}, "`resume_from_checkpoint`"),
        ({"per_device_train_batch_size": 0}, "`per_device_train_batch_size`"),
        ({"lr_scheduler_type": "spiral"}, "spiral"),
        ({"num_train_epochs": "many"}, "num_train_epochs"),
        ({"no_such_option": 1}, "no_such_option"),
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
        ({"dataset_split": "holdout"}, "`dataset_split` must be one of train, validation", 2),
        ({"eval_dataset_split": "holdout"}, "`eval_dataset_split` must be one of train, validation", 2),
        ({"dataset_split": "validation"}, "`eval_dataset_split` must be named, or `eval_strategy` be no", 2),
        ({"image_column_name": "picture"}, "`image_column_name` must be one of image, label", 2),
        ({"label_column_name": "class"}, "`label_column_name` must be one of image, label", 2),
        ({"label_column_name": "image"}, "`label_column_name`", 2),
        ({"dataset_name": "digits"}, "10 of the 10 classes of 'label' are none of the model's", 2),
        ({"per_device_train_batch_size": 41}, "`per_device_train_batch_size`", 2),
        ({"per_device_train_batch_size": 21, "gradient_accumulation_steps": 2}, "`per_device_train_batch_size`", 2),
        ({"crop_scale": "0.9 0.3"}, "`crop_scale`", 2),
        ({"crop_ratio": "-1 1"}, "`crop_ratio`", 2),
        ({"flip": 2}, "`flip`", 2),
        ({"mixup": 0.7, "cutmix": 0.7}, "`mixup` and `cutmix`", 2),
        ({"rand_augment_num_ops": -1}, "`rand_augment_num_ops`", 2),
        ({"placement": "grid_subset", "num_tokens": 37}, "`num_tokens` must be at most 36", 2),
        ({"eval_placement": "grid", "eval_num_tokens": 25}, "`eval_placement`", 2),
        ({"coordinates": "no/such_coordinates"}, "no/such_coordinates", 1),
        ({"among_labels": True, "max_samples": 3, "per_device_train_batch_size": 2}, "`among_labels`", 2),
        ({"teacher_model": "{other}", "distill_weight": 1}, "`teacher_model` must know the model's 5 classes", 2),
        ({"teacher_model": "{other}", "feature_weight": 1}, "`teacher_model` must have features of the model's size", 2),
        ({"teacher_model": "{bright}", "feature_weight": 1}, "`teacher_model` must normalize images", 2),
    ],
    ids=str,
)
def test_what_does_not_fit_is_said_in_one_line(options, tmp_path, capsys, changes, named, status):
    if "other" in str(changes):
        tiny_model(hidden_size=16, num_labels=3).save_pretrained(tmp_path / "other")
        tiny_processor().save_pretrained(tmp_path / "other")
    if "bright" in str(changes):
        tiny_model().save_pretrained(tmp_path / "bright")
        tiny_processor(image_mean=[0.1, 0.2, 0.3]).save_pretrained(tmp_path / "bright")
    changes = {
        name: str(value).format(other=tmp_path / "other", bright=tmp_path / "bright") for name, value in changes.items()
    }
    assert main(command(options, tmp_path / "run", **changes)) == status
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("spot-hf")]
    assert len(lines) == 1 and named in lines[0]
    assert not (tmp_path / "run").exists()


def test_weights_without_a_classifier(options, model, tmp_path, capsys):
    SpotViTForImageClassification.from_pretrained(model).spot_vit.save_pretrained(tmp_path / "headless")
    tiny_processor().save_pretrained(tmp_path / "headless")
    assert main(command(options, tmp_path / "run", model=tmp_path / "headless")) == 2
    assert "has no classifier" in capsys.readouterr().err
    changes = {"teacher_model": tmp_path / "headless", "distill_weight": 1}
    assert main(command(options, tmp_path / "run", **changes)) == 2
    assert "`teacher_model` must have a classifier" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    run = command(options, tmp_path / "run", model=tmp_path / "headless", classifier="new", feature_weight=1, max_steps=1)
    assert main(run) == 0
    assert AutoModelForImageClassification.from_pretrained(tmp_path / "run").config.id2label == dict(enumerate(LABELS))


@pytest.mark.parametrize("option", ["model", "teacher_model"])
def test_weights_that_do_not_fit_their_config_are_named(options, tmp_path, capsys, option):
    tiny_model(num_labels=5).save_pretrained(tmp_path / "odd")
    tiny_processor().save_pretrained(tmp_path / "odd")
    config = json.loads((tmp_path / "odd/config.json").read_text())
    (tmp_path / "odd/config.json").write_text(json.dumps({**config, "intermediate_size": 40}))
    assert main(command(options, tmp_path / "run", **{option: tmp_path / "odd", "feature_weight": 1})) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "odd': the weights do not fit" in error and "mlp.fc1.bias` has shape (48,), the config says (40,)" in error


@pytest.mark.parametrize(
    "recipe, named",
    [
        ("learning_rate: 1e-3\nno_such_option: 1\n", "no_such_option"),
        ("learning_rate: [1e-3\n", "--config must be a YAML file"),
        ("just words\n", "--config must be a YAML file of options"),
        ("placement: [spiral]\n", "`placement`"),
        (None, "--config"),
    ],
    ids=["unknown option", "no YAML", "no options", "wrong value", "no file"],
)
def test_recipes_that_are_none(options, tmp_path, capsys, recipe, named):
    if recipe is not None:
        (tmp_path / "recipe.yaml").write_text(recipe)
    assert main(command(options, tmp_path / "run", "--config", str(tmp_path / "recipe.yaml"))) == 2
    error = capsys.readouterr().err.strip()
    assert named in error and "\n" not in error and not (tmp_path / "run").exists()


@pytest.mark.parametrize("recipe", sorted((ROOT / "scripts/recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_are_arguments_that_a_run_can_have(recipe, tmp_path, capsys):
    """Beyond them only the model is missed, which is looked for next. What begins a recipe is its command."""
    name = re.search(r"(?:spot-hf |scripts/)((?:pre)?train)", recipe.read_text())[1]
    given = ["--config", str(recipe), "--model", str(tmp_path / "absent"), "--dataset_name", str(tmp_path / "absent")]
    assert main([name, *given, "--output_dir", str(tmp_path / "run")]) == 1
    assert "`model` must be a directory or a Hub id" in capsys.readouterr().err
