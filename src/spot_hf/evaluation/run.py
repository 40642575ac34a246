"""What a model is worth at how many tokens, under which placement, against what one would use otherwise: `spot-hf evaluate`.

A *cell* is a way to look (a placement, a baseline, or the oracle), a number of tokens, and the seed of a random placement or
the oracle's steps, at an image size.
Images are decoded once, and each batch is classified under every cell, one after the other, so that what slows the machine
slows all of them. The unit of work and of resume is a shard of images under a cell: a line of `lines-PROCESS.jsonl`.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from ..data.batches import Batch, Plan, Preparation, batches_of
from ..data.source import count_images, resolve_revision
from ..hub.loading import check_classifier, load_image_processor, load_spot_vit, load_spot_vit_config
from ..jobs.directory import RunDirectory
from ..jobs.files import write_atomically
from ..jobs.process import device_of, open_run, process_state
from ..jobs.versions import device_name, public_name, versions
from ..modeling_spot_vit import SpotViTForImageClassification
from ..oracle.search import OracleResult
from .arguments import EvaluationArguments
from .cells import Cell, CellShards, Lines, cells_of, joined
from .images import labels_of, load_evaluated
from .memory import PeakMemory
from .methods import Ways, scaled_processor
from .neighbors import Neighbors
from .report import write_report
from .results import summarize_lines, summarize_oracle


# ------------------------------------------------------------------------------------------------------------- cells


# ----------------------------------------------------------------------------------------------------------- the run


def run_evaluation(
    arguments: EvaluationArguments,
    output_dir: str | Path,
    *,
    overwrite_output_dir: bool = False,
    published: bool = False,
    command: str | None = None,
    say: Callable[[str], Any] = print,
) -> dict[str, Any]:
    """
    Classifies a split under every cell, and writes tables and plots. Run on several processes by `torchrun` or `accelerate
    launch`, they share the shards. Run again after it was killed, it goes on.

    Args:
        arguments ([`EvaluationArguments`]): what to do.
        output_dir (`str`): where `results.json`, `README.md` and the plots are written.
        overwrite_output_dir (`bool`): replace what is there instead of going on with it.
        published (`bool`): also draw the paper's figures, marked as published.
        command (`str`, *optional*): how this run was started, for the record.
        say: is called with lines that tell what happens; on the first process alone.

    Returns:
        `dict`: what `results.json` holds.

    Raises:
        `ValueError`: an argument that no run can have, or the directory holds a run with other parameters. `OSError`: no such
            model or data set, or no access to it.
    """
    arguments.check()
    state = process_state()
    say = say if state.is_main_process else (lambda _: None)
    configs = {model: load_spot_vit_config(model) for model in arguments.model}
    for model, config in configs.items():
        check_classifier(model, config)
    images = load_evaluated(arguments, arguments.dataset_split, arguments.max_samples)
    num_images = count_images(images, arguments.max_samples)
    among = None
    if isinstance(images, datasets.Dataset):  # of a stream, batch by batch
        labels = labels_of(images, arguments, min(config.num_labels for config in configs.values()))
        among = np.unique(labels).tolist() if arguments.among_labels else None
    parameters = {
        **arguments.recorded(),
        "dataset_split": str(images.split),
        "dataset_revision": resolve_revision(arguments.dataset_name, arguments.dataset_revision),
        "num_images": num_images,
    }
    run = RunDirectory(Path(output_dir).expanduser().resolve())
    facts = {"command": command, "versions": versions(), "device": device_name(state.device)}
    open_run(state, run, parameters, facts, overwrite_output_dir, [*arguments.model, arguments.dataset_name])

    device = device_of(state)
    lines = Lines(run.directory, state.process_index)
    done = lines.read()
    state.wait_for_everyone()  # all have read the same lines, before the first appends another
    for model in arguments.model:
        sizes: list[int | None] = list(arguments.image_size) if arguments.image_size else [None]
        for image_size in sizes:
            evaluate_model(model, image_size, images, num_images, arguments, among, lines, done, device, state)
    state.wait_for_everyone()
    results: dict[str, Any] = {}
    if state.is_main_process:
        done = lines.read()
        if not done:  # a stream that did not say so
            raise ValueError(f"`dataset_split` must have images; {str(images.split)!r} of {arguments.dataset_name!r} has none")
        results = {**run.ledger, "results": summarize_lines(done, arguments), "oracle": summarize_oracle(done)}
        row = [*results["results"], *results["oracle"]][0]
        results["parameters"]["num_images"] = row["num_images"] + row["num_failed"]  # of a stream, known by now
        with write_atomically(run.directory / "results.json") as file:
            file.write((json.dumps(results, indent=2) + "\n").encode())
        say(write_report(run.directory, results, published))
    state.wait_for_everyone()
    return results


def evaluate_model(
    model: str,
    image_size: int | None,
    images: datasets.Dataset | datasets.IterableDataset,
    num_images: int | None,
    arguments: EvaluationArguments,
    among: list[int] | None,
    lines: Lines,
    done: list[dict[str, Any]],
    device: torch.device,
    state: Any,
) -> None:
    """Appends the lines that a model lacks at an image size; `done` are those that were there."""
    processor = load_image_processor(model)
    if image_size is not None:
        processor = scaled_processor(processor, image_size, image_size)
    width, height = processor.model_size((1000, 1000))
    config = load_spot_vit_config(model)
    cells = cells_of(arguments, (height // config.patch_size) * (width // config.patch_size))
    name = public_name(model)
    done_by_cell: dict[Cell, set[int]] = {cell: set() for cell in cells}
    for line in done:
        if line["model"] == name and line["image_size"] == image_size:
            done_by_cell[Cell(**line["cell"])].add(line["shard"])
    shards = CellShards(done_by_cell, str(images.split), num_images, arguments.shard_size)
    plan = Plan(shards, images, state, arguments.batch_size)
    total = None
    if shards.total is not None:
        cells = list(dict.fromkeys(cell for shard in plan.my_shards() for cell in shards.lacks(shard)))
        total = sum(len(shards.rows_of(shard)) for shard in plan.my_shards())
        if not cells:
            return
    spot = load_spot_vit(model).to(device)
    assert isinstance(spot, SpotViTForImageClassification)
    ways = Ways(spot, height, width, cells, arguments, among)
    smaller = {size: scaled_processor(processor, *size) for size in set(ways.sizes.values())}
    knn = Neighbors(arguments, ways, processor, smaller, device) if arguments.knn_dataset_split else None

    loader = batches_of(Preparation(images, processor, smaller), plan, arguments.num_workers)
    title = name if image_size is None else f"{name}, {image_size} px"
    parts: dict[Cell, list[dict[str, Any]]] = {}
    warm: set[Cell] = set()
    with tqdm(total=total, desc=title, unit="image", disable=not state.is_main_process) as progress:
        for number, batch in enumerate(loader):
            cells = shards.lacks(batch.work.shard)
            # Each cell comes first in turn: while the next batch is decoded, the first ones of a batch are slowed.
            turn = number % len(cells)
            for cell in cells[turn:] + cells[:turn] if batch.pixel_values is not None else []:
                parts.setdefault(cell, []).append(measure(cell, ways, batch, among, knn, device, cell not in warm))
                warm.add(cell)
            for cell in cells if batch.work.closes_shard else []:
                record = joined(parts.pop(cell, []))
                line = {"model": name, "image_size": image_size, "cell": asdict(cell), "shard": batch.work.shard}
                lines.append({**line, **record})
                if record["label"]:
                    right = np.mean([top[0] == label for top, label in zip(record["top"], record["label"], strict=True)])
                    progress.set_postfix_str(f"{cell.way} {cell.num_tokens}: {100 * right:.1f} %", refresh=False)
            progress.update(len(batch.image_index) + len(batch.failed))


def measure(
    cell: Cell,
    ways: Ways,
    batch: Batch,
    among: list[int] | None,
    knn: "Neighbors | None",
    device: torch.device,
    first: bool,
) -> dict[str, Any]:
    """Classifies a batch under a cell; the first time also without a clock, and counting memory."""
    labels = batch.labels(ways.model.config.num_labels)
    peak_mib = []
    if first:
        # Libraries allocate and choose once. Of a full batch: the figure is the same whichever batch is the first.
        with PeakMemory() as memory:
            ways(cell, batch, device, full=True)()
        peak_mib = [memory.peak / 2**20]
    forward = ways(cell, batch, device)
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    result = forward()
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    # Where the oracle went, it has looked: to look again is no part of its cost.
    logits, features = ways.look(cell, batch, result.coordinates) if isinstance(result, OracleResult) else result
    logits = logits.double().cpu()
    if among is not None:
        outside = torch.ones(logits.shape[-1], dtype=torch.bool)
        outside[among] = False
        logits[:, outside] = -torch.inf
    probabilities = logits.softmax(-1)
    top = logits.topk(min(5, logits.shape[-1] if among is None else len(among)), dim=-1).indices
    found = {
        "image_index": batch.image_index,
        "label": labels.tolist(),
        "top": top.tolist(),
        "confidence": [round(value, 6) for value in probabilities.gather(1, top[:, :1])[:, 0].tolist()],
        "loss": [round(value, 6) for value in nn.functional.cross_entropy(logits, labels, reduction="none").tolist()],
        "num_failed": [len(batch.failed)],
        "seconds": [round(seconds, 6)],
        "num_timed": [len(labels)],
        "peak_mib": peak_mib,
    }
    if knn is not None and cell.steps is None:
        found["knn"] = knn.predict(cell, features)
    return found


# ----------------------------------------------------------------------------------------------------------- results
