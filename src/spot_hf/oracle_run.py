"""The oracle over a data set: `spot-hf oracle`. Decodes ahead, runs on every process that Accelerate was given, and writes a
coordinate data set that a killed run goes on with.

The unit of work and of resume is the shard: `shard_size` images that follow each other in the source, cut into the same
batches whichever process computes them and however often. Its rows are bit-equal on the same kind of machine, with the same
number of threads.
"""

import json
import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import accelerate
import datasets
import numpy as np
import torch
import transformers
from accelerate import InitProcessGroupKwargs, PartialState
from accelerate.utils import broadcast_object_list
from tqdm import tqdm

from .cards import coordinates_card
from .configuration_spot_vit import SpotViTConfig
from .coordinates import (
    RunDirectory,
    Shard,
    Summary,
    check_config_name,
    coordinate_features,
    summarize,
)
from .data import classes_of, count_images, label_numbers, load_images, outside_of, resolve_revision
from .loading import has_classifier, load_image_processor, load_spot_vit, load_spot_vit_config, public_name
from .oracle import OracleResult, SpotOracle, check_oracle_arguments
from .oracle_batches import Batch, Plan, Preparation, Shards, Start, batches_of
from .output_dirs import check_output_dir, write_atomically
from .pictures import save_run_picture
from .placement import PLACEMENTS, check_placement
from .version import __version__


@dataclass(kw_only=True)
class OracleRunArguments:
    """
    What a run of the oracle does. Its rows depend on all of these but `num_workers`.

    Attributes:
        model (`str`): directory or Hub id of a SpotViT; revision (`str`, *optional*): of a Hub id.
        dataset_name, dataset_config_name, dataset_split, dataset_revision, image_column_name, label_column_name, max_samples,
            streaming: as in [`load_images`].
        num_tokens (`list[int]`): budgets, each a config of the result.
        placement (`str`): where the search begins; seed (`int`): of random ones, which are drawn per image.
        among_labels (`bool`): classify among the classes that occur in the split only: the loss, too, knows no others.
        objective, steps, learning_rate, optimizer, optimizer_arguments, optimize_window_scales, window_scale_learning_rate,
            early_stop, dtype, compile: as in [`SpotOracle`].
        run_name (`str`, *optional*): configs are called `RUN_NAME_nTOKENS`; by default the model's name.
        batch_size (`int`): images per forward pass; shard_size (`int`): images per shard.
        save_trajectories (`bool`): also write every step's positions.
        num_workers (`int`): processes that decode ahead, per process of the run.
    """

    model: str
    revision: str | None = None
    dataset_name: str
    dataset_config_name: str | None = None
    dataset_split: str | None = None
    dataset_revision: str | None = None
    image_column_name: str = "image"
    label_column_name: str | None = "label"
    max_samples: int | None = None
    streaming: bool = False
    num_tokens: list[int] = field(default_factory=lambda: [49])
    placement: str = "isotropic"
    seed: int = 0
    objective: str = "label"
    steps: int = 5
    learning_rate: float = 3e-3
    optimizer: str = "adamw"
    optimizer_arguments: dict[str, Any] | None = None
    optimize_window_scales: bool = False
    window_scale_learning_rate: float = 0.05
    early_stop: float | None = None
    among_labels: bool = False
    dtype: str = "float32"
    compile: bool = False
    run_name: str | None = None
    batch_size: int = 32
    shard_size: int = 1000
    save_trajectories: bool = False
    num_workers: int = 2

    def check(self) -> None:
        """`ValueError` for what no run can have, before anything is loaded."""
        check_oracle_arguments(
            objective=self.objective,
            steps=self.steps,
            learning_rate=self.learning_rate,
            optimizer=self.optimizer,
            optimizer_arguments=self.optimizer_arguments,
            window_scale_learning_rate=self.window_scale_learning_rate,
            early_stop=self.early_stop,
            dtype=self.dtype,
        )
        if not self.num_tokens or len(set(self.num_tokens)) != len(self.num_tokens):
            raise ValueError(f"`num_tokens` must be one or several different numbers; got {self.num_tokens}")
        for num_tokens in self.num_tokens:
            check_placement(self.placement, num_tokens)
        if PLACEMENTS[self.placement].saliency:
            raise ValueError(
                f"`placement` {self.placement!r} needs a saliency map per image, which data sets do not have here"
            )
        for name in ("batch_size", "shard_size", "max_samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1; got {value}")
        if self.num_workers < 0:
            raise ValueError(f"`num_workers` must be at least 0; got {self.num_workers}")
        if self.objective == "label" and self.label_column_name is None:
            raise ValueError("`label_column_name` is needed by objective='label'; got none")
        if self.among_labels and (self.label_column_name is None or self.streaming):
            missing = "`label_column_name`" if self.label_column_name is None else "all of the data set: not `streaming`"
            raise ValueError(f"`among_labels` needs {missing}, to know which classes occur")
        check_config_name("run_name", self.config_names[0])

    @property
    def config_names(self) -> list[str]:
        """Of the result: one per budget."""
        name = self.run_name or Path(self.model.rstrip("/")).name
        return [f"{name}_n{num_tokens}" for num_tokens in self.num_tokens]

    def recorded(self) -> dict[str, Any]:
        """On which the rows depend. Of what lies on this machine the name, not the path."""
        parameters = asdict(self)
        del parameters["num_workers"], parameters["streaming"]
        for name in ("model", "dataset_name"):
            parameters[name] = public_name(parameters[name])
        return parameters


# ---------------------------------------------------------------------------------------------------------- the run


def run_oracle(
    arguments: OracleRunArguments,
    output_dir: str | Path,
    *,
    overwrite_output_dir: bool = False,
    license: str = "cc-by-4.0",
    command: str | None = None,
    say: Any = print,
) -> dict[str, Summary]:
    """
    Finds positions for every image of a data set, and writes them as a coordinate data set. Run on several processes by
    `torchrun` or `accelerate launch`, they share the shards; `output_dir` must be one that all of them see. Run again after it
    was killed, it goes on.

    Args:
        arguments ([`OracleRunArguments`]): what to do.
        output_dir (`str`): where.
        overwrite_output_dir (`bool`): replace what is there instead of going on with it.
        license (`str`): of the coordinates, for the card.
        command (`str`, *optional*): how this run was started, for the record.
        say: is called with lines that tell what happens; on the first process alone.

    Returns:
        `dict`: config → [`Summary`].

    Raises:
        `ValueError`: an argument that no run can have, or the directory holds a run with other parameters. `OSError`: no such
            model or data set, or no access to it.
    """
    arguments.check()
    state = process_state()
    say = say if state.is_main_process else (lambda *_: None)
    config = load_spot_vit_config(arguments.model, arguments.revision)
    _check_model(arguments, config)
    images = load_images(
        arguments.dataset_name,
        config_name=arguments.dataset_config_name,
        split=arguments.dataset_split,
        revision=arguments.dataset_revision,
        image_column_name=arguments.image_column_name,
        label_column_name=arguments.label_column_name,
        max_samples=arguments.max_samples,
        streaming=arguments.streaming,
    )
    split = str(images.split)
    num_images = count_images(images, arguments.max_samples)
    _check_labels(arguments, images, config)
    parameters = {
        **arguments.recorded(),
        "dataset_split": split,
        "dataset_revision": resolve_revision(arguments.dataset_name, arguments.dataset_revision),
        "revision": getattr(config, "_commit_hash", None) or arguments.revision,
        "model_sha256": weights_digest(arguments.model),
        "num_images": num_images,
    }
    run = RunDirectory(Path(output_dir).expanduser().resolve())
    facts = {"command": command, "versions": versions(), "device": device_name(state.device)}
    open_run(state, run, parameters, facts, overwrite_output_dir, [arguments.model, arguments.dataset_name])

    starts = [Start(arguments.placement, num_tokens, arguments.seed) for num_tokens in arguments.num_tokens]
    configs = dict(zip(starts, arguments.config_names, strict=True))
    shards = RunShards(run, configs, split, num_images, arguments.shard_size)
    state.wait_for_everyone()  # all have seen the same shards, before the first writes another
    if shards.missing or shards.total is None:
        image_processor = load_image_processor(arguments.model, arguments.revision)
        _check_processor(image_processor)
        num_seen = _search(arguments, state, images, shards, image_processor, say)
    else:
        say(f"all {shards.total} shards of {', '.join(arguments.config_names)} are there")
    state.wait_for_everyone()
    summaries: dict[str, Summary] = {}
    if state.is_main_process:
        left = RunShards(run, configs, split, num_images, arguments.shard_size).missing
        if left:
            raise OSError(
                f"{len(left)} shards are missing in {run.directory}, such as number {left[0]}: run the same command again"
            )
        if shards.total is None:
            assert num_seen is not None
            for config_name in arguments.config_names:
                run.name_totals(config_name, split, -(-num_seen // arguments.shard_size))
        summaries = _finish(run, arguments, split, images, config, license)
        say(_report(run, arguments, summaries))
    state.wait_for_everyone()
    return summaries


def process_state() -> PartialState:
    """A process waits for the slowest, which may have a shard more: longer than collectives wait by default."""
    cpu = not torch.accelerator.is_available()
    if not cpu:
        # Attention's backward pass on a GPU adds in any order unless it is told not to: rows are to be the same every time.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    return PartialState(cpu=cpu, **InitProcessGroupKwargs(timeout=timedelta(days=1)).to_kwargs())


def device_of(state: PartialState) -> torch.device:
    """A distributed CPU is called "cpu:0", and tensors that move there from "cpu" are copied: at other addresses, products
    round otherwise, and results would depend on the number of processes."""
    return torch.device("cpu") if state.device.type == "cpu" else state.device


def open_run(
    state: PartialState,
    run: RunDirectory,
    parameters: dict[str, Any],
    facts: dict[str, Any],
    overwrite: bool,
    inputs: list[str],
) -> None:
    """Begins a run in a directory, or goes on with one, on the first process; its error is every process's."""
    outcome: list[Any] = [None]
    if state.is_main_process:
        try:
            if overwrite:
                check_output_dir(run.directory, True, inputs=inputs)
                if run.directory.exists():
                    shutil.rmtree(run.directory)
            run.open(parameters, facts)
        except (ValueError, OSError) as error:
            outcome = [error]
    if state.num_processes > 1:
        broadcast_object_list(outcome)
    if outcome[0] is not None:
        raise outcome[0]


class RunShards(Shards):
    """
    Those of a coordinate data set: files. A task is where a budget's search begins.

    Args:
        run ([`RunDirectory`]): where they are.
        configs (`dict`): [`Start`] of each budget → config.
        split, num_images, shard_size: as in [`Shards`].
    """

    def __init__(self, run: RunDirectory, configs: dict[Start, str], split: str, num_images: int | None, shard_size: int):
        self.run, self.configs = run, configs
        done = {start: set(run.shards(config, split)) for start, config in configs.items()}
        super().__init__(done, split, num_images, shard_size)

    def path(self, start: Start, shard: int) -> Path:
        return self.run.shard_path(self.configs[start], self.split, shard, self.total)


def _search(
    arguments: OracleRunArguments, state: PartialState, images: Any, shards: RunShards, image_processor: Any, say: Any
) -> int | None:
    """Computes the missing shards of this process, and says how many images a stream of unknown length had."""
    device = device_of(state)
    oracle = SpotOracle(
        load_spot_vit(arguments.model, arguments.revision).to(device),
        arguments.objective,
        steps=arguments.steps,
        learning_rate=arguments.learning_rate,
        optimizer=arguments.optimizer,
        optimizer_arguments=arguments.optimizer_arguments,
        optimize_window_scales=arguments.optimize_window_scales,
        window_scale_learning_rate=arguments.window_scale_learning_rate,
        early_stop=arguments.early_stop,
        classes=classes_of(images) if arguments.among_labels else None,
        dtype=arguments.dtype,
        compile=arguments.compile,
    )
    plan = Plan(shards, images, state, arguments.batch_size)
    preparation = Preparation(images, image_processor)
    features = {start: _features(arguments, images, start.num_tokens) for start in shards.configs}
    progress = _Progress(shards, plan, arguments, state, say)
    open_shards: dict[Start, Shard] = {}
    with progress.bar:
        for batch in batches_of(preparation, plan, arguments.num_workers):
            results = _optimize(oracle, batch, device)
            for start in batch.work.starts:
                shard = open_shards.setdefault(start, Shard(features[start]))
                shard.failed += batch.failed
                if start in results:
                    _add_rows(shard, batch, results[start], image_processor)
                if batch.work.closes_shard:
                    shard.write(shards.path(start, batch.work.shard))
                    del open_shards[start]
                    progress.count(start.num_tokens, shard)
                else:
                    progress.show(start.num_tokens, shard)
            progress.bar.update(len(batch.image_index) + len(batch.failed))
    return plan.num_seen


def _features(arguments: OracleRunArguments, images: Any, num_tokens: int) -> datasets.Features:
    """The columns of a budget's config."""
    label = images.features.get("label", datasets.Value("int64"))
    trajectory_length = arguments.steps + 1 if arguments.save_trajectories else None
    return coordinate_features(label, num_tokens, trajectory_length, arguments.optimize_window_scales)


def _optimize(oracle: SpotOracle, batch: Batch, device: torch.device) -> dict[Start, OracleResult]:
    """Runs the oracle on a batch, for each budget."""
    if batch.pixel_values is None:
        return {}
    pixel_values, labels, targets = batch.pixel_values.to(device), None, None
    if oracle.objective == "label":
        advice = ". The objectives 'distill' and 'feature' need no labels"
        labels = batch.labels(oracle.model.config.num_labels, advice).to(device)
    else:
        targets = oracle.full_grid_targets(pixel_values)
    return {
        start: oracle.optimize(pixel_values, labels, coordinates.to(device), targets)
        for start, coordinates in batch.starts.items()
    }


def _add_rows(shard: Shard, batch: Batch, result: OracleResult, image_processor: Any) -> None:
    """Appends a batch's rows to a shard."""

    def image_frame(coordinates: torch.Tensor) -> np.ndarray:
        mapped = [
            image_processor.to_image_frame(one, size)
            for one, size in zip(coordinates.cpu().numpy(), batch.image_size, strict=True)
        ]
        return np.stack(mapped).clip(0, 1)  # float32's rounding at the edge

    missing = [None] * len(batch.image_index)
    columns: dict[str, Any] = {
        "image_id": batch.image_id,
        "image_index": batch.image_index,
        "image_sha256": batch.image_sha256,
        "image_size": np.array(batch.image_size, dtype=np.int32),
        "label": batch.label,
        "coordinates": image_frame(result.coordinates),
        "initial_coordinates": image_frame(result.trajectory[:, 0]),
        "losses": result.losses.cpu().numpy(),
        "initial_prediction": missing,
        "prediction": missing,
        "trajectory": image_frame(result.trajectory).astype(np.float16),
    }
    if result.predictions is not None:
        predictions = result.predictions.cpu()
        columns["initial_prediction"] = predictions[:, 0].numpy()
        columns["prediction"] = predictions.gather(1, result.best_steps.cpu()[:, None])[:, 0].numpy()
        labelled = torch.tensor([label is not None for label in batch.label])
        shard.num_labelled += int(labelled.sum())
        truth = torch.tensor([-1 if label is None else label for label in batch.label])
        right = (predictions == truth[:, None]) & labelled[:, None]
        shard.correct_per_step = shard.correct_per_step + right.sum(0).numpy()
    if result.window_scales is not None:
        columns["window_scales"] = result.window_scales.cpu().numpy()
    shard.num_steps += int(result.num_steps.sum())
    shard.add(columns)


class _Progress:
    """A bar with images/s, time left, and the accuracy so far before and after; of the first process's share."""

    def __init__(self, shards: RunShards, plan: Plan, arguments: OracleRunArguments, state: PartialState, say: Any):
        self.before_after = {num_tokens: np.zeros(3) for num_tokens in arguments.num_tokens}  # images, right, right
        self.texts = dict.fromkeys(arguments.num_tokens, "")
        total = None
        resumed = 0
        if shards.total is not None:
            mine = plan.my_shards()
            total = sum(len(shards.rows_of(shard)) for shard in mine)
            resumed = shards.total - len(shards.missing)
        if resumed:
            say(f"going on: {resumed} of {shards.total} shards are there")
        name = "oracle, " + "/".join(map(str, arguments.num_tokens)) + " tokens"
        if state.num_processes > 1:
            name += f" (the share of process 0 of {state.num_processes})"
        self.bar = tqdm(total=total, desc=name, unit="image", disable=not state.is_main_process, smoothing=0.05)

    def count(self, num_tokens: int, shard: Shard) -> None:
        self.before_after[num_tokens] += self._counts(shard)
        self._write(num_tokens, self.before_after[num_tokens])

    def show(self, num_tokens: int, shard: Shard) -> None:
        self._write(num_tokens, self.before_after[num_tokens] + self._counts(shard))

    @staticmethod
    def _counts(shard: Shard) -> np.ndarray:
        steps = np.atleast_1d(shard.correct_per_step)
        return np.array([shard.num_labelled, steps[0], steps[-1]], dtype=float)

    def _write(self, num_tokens: int, counts: np.ndarray) -> None:
        if counts[0]:
            before, after = 100 * counts[1:] / counts[0]
            self.texts[num_tokens] = f"{num_tokens}: {before:.1f} -> {after:.1f} %"
            self.bar.set_postfix_str(", ".join(filter(None, self.texts.values())), refresh=False)


# -------------------------------------------------------------------------------------------------------- the result


def _finish(
    run: RunDirectory,
    arguments: OracleRunArguments,
    split: str,
    images: Any,
    config: SpotViTConfig,
    license: str,
) -> dict[str, Summary]:
    """Reads all shards back, and writes the records, the pictures, the card and the ledger's results."""
    run.clean()
    ledger = run.ledger
    summaries, records = {}, {}
    processor = load_image_processor(arguments.model, arguments.revision)
    for num_tokens, config_name in zip(arguments.num_tokens, arguments.config_names, strict=True):
        summary = summarize(run.shards(config_name, split).values())
        record = {
            **{name: value for name, value in ledger.items() if name != "results"},
            "parameters": {**ledger["parameters"], "num_tokens": num_tokens},
            "split": split,
            "features": _features(arguments, images, num_tokens)._to_yaml_list(),
            # With these, `spot-hf show` needs no model.
            "patch_size": config.patch_size,
            "image_processor": processor.to_dict(),
            "results": summary.to_json(),
        }
        summaries[config_name], records[config_name, split] = summary, record
        with write_atomically(run.directory / config_name / f"{split}.json") as file:
            file.write(_json(record))
        with write_atomically(run.directory / config_name / f"{split}.png") as file:
            save_run_picture(file, config_name, summary)
    with write_atomically(run.directory / "README.md") as file:
        readme = run.directory / "README.md"
        there = readme.read_text(encoding="utf-8") if readme.exists() else None
        file.write(coordinates_card(there, records, license=license).encode())
    run.write_ledger({**ledger, "results": {name: summary.to_json() for name, summary in summaries.items()}})
    return summaries


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, default=str) + "\n").encode()


def _report(run: RunDirectory, arguments: OracleRunArguments, summaries: Mapping[str, Summary]) -> str:
    lines = [f"written to {run.directory}:"]
    for name, summary in summaries.items():
        line = f"  {name}: {summary.num_images} images"
        if summary.failed:
            line += f" ({len(summary.failed)} more could not be read, listed in run.json)"
        if summary.accuracy_before is not None:
            line += f", accuracy {summary.accuracy_before:.1f} -> {summary.accuracy_after:.1f} %"
        if summary.loss_per_step:
            line += f", loss {summary.loss_per_step[0]:.3f} -> {summary.loss_per_step[-1]:.3f}"
        if arguments.early_stop is not None and summary.num_images:
            line += f", {summary.num_steps / summary.num_images:.1f} steps per image"
        lines.append(line + f", {summary.download_size / 2**20:.1f} MiB")
    lines.append("  and README.md; load_coordinates(DIR, CONFIG) reads them back, `spot-hf push` publishes them")
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------------------- checks


def _check_model(arguments: OracleRunArguments, config: SpotViTConfig) -> None:
    if not has_classifier(config) and arguments.objective != "feature":
        raise ValueError(
            f"`objective` must be 'feature': `model` {arguments.model!r} has no classifier; got {arguments.objective!r}"
        )


def _check_labels(arguments: OracleRunArguments, images: Any, config: SpotViTConfig) -> None:
    feature = images.features.get("label")
    names = getattr(feature, "names", None)
    if arguments.objective == "label" and names and len(names) > config.num_labels:
        raise ValueError(
            f"`label_column_name`: {arguments.label_column_name!r} has {len(names)} classes, the model {config.num_labels}: "
            "its labels mean something else. The objectives 'distill' and 'feature' need no labels"
        )
    kind = getattr(feature, "dtype", None)
    if feature is not None and kind != "int64" and not (kind or "").startswith(("int", "uint")):
        raise ValueError(
            f"`label_column_name` must name a column of class numbers; {arguments.label_column_name!r} is {feature}"
        )
    if arguments.objective == "label" and isinstance(images, datasets.Dataset):
        labels = label_numbers(images)
        wrong = outside_of(labels, config.num_labels)
        if len(wrong):
            raise ValueError(
                f"`label_column_name`: row {wrong[0]} and {len(wrong) - 1} more have labels that the model does not know: "
                f"{labels[wrong[0]]:g}, not 0 to {config.num_labels - 1}. The objectives 'distill' and 'feature' need none"
            )


def _check_processor(image_processor: Any) -> None:
    """All images must come out alike, to make batches."""
    sizes = {image_processor.model_size(size) for size in ((500, 375), (375, 500), (300, 300))}
    if len(sizes) > 1:
        raise ValueError(
            "`model`: its image processor gives images of different sizes, which make no batches; save it with "
            "do_center_crop=True or a fixed height and width"
        )


def weights_digest(model: str) -> str | None:
    """Of a local model, whose files may change between two runs; a Hub model has its commit."""
    directory = Path(model).expanduser()
    if not directory.is_dir():
        return None
    digest = sha256()
    for path in sorted([*directory.glob("*.safetensors"), directory / "config.json", directory / "preprocessor_config.json"]):
        if path.exists():
            with path.open("rb") as file:
                while chunk := file.read(2**20):
                    digest.update(chunk)
    return digest.hexdigest()


def versions() -> dict[str, str]:
    return {
        "spot_hf": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "datasets": datasets.__version__,
        "accelerate": accelerate.__version__,
        "python": platform.python_version(),
    }


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({platform.machine()})"
