"""The oracle over a data set: `spot-hf oracle`. Decodes ahead, runs on every process that Accelerate was given, and writes a
coordinate data set that a killed run goes on with.

The unit of work and of resume is the shard: `shard_size` images that follow each other in the source, cut into the same
batches whichever process computes them and however often. Its rows are bit-equal on the same kind of machine, with the same
number of threads.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from accelerate import PartialState
from tqdm import tqdm

from ..configuration_spot_vit import SpotViTConfig
from ..coordinates.pictures import save_run_picture
from ..coordinates.shards import Shard
from ..coordinates.summary import Summary, summarize
from ..data.batches import Plan, Preparation, Shards, Start, batches_of
from ..data.labels import classes_of, label_numbers, outside_of
from ..data.source import count_images, load_images, resolve_revision
from ..hub.cards import coordinates_card
from ..hub.loading import has_classifier, load_image_processor, load_spot_vit, load_spot_vit_config
from ..jobs.directory import RunDirectory
from ..jobs.files import write_atomically
from ..jobs.process import device_of, open_run, process_state
from ..jobs.versions import device_name, versions, weights_digest
from .arguments import OracleRunArguments
from .rows import _add_rows, _features, _optimize
from .search import SpotOracle


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
