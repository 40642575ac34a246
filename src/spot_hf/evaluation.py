"""What a model is worth at how many tokens, under which placement, against what one would use otherwise: `spot-hf evaluate`.

A *cell* is a way to look (a placement, a baseline, or the oracle), a number of tokens, and the seed of a random placement or
the oracle's steps, at an image size.
Images are decoded once, and each batch is classified under every cell, one after the other, so that what slows the machine
slows all of them. The unit of work and of resume is a shard of images under a cell: a line of `lines-PROCESS.jsonl`.
"""

import json
import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import evaluate
import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from .baselines import TokenMerging, covering_scale, merge_schedule, merge_schedule_of_cost, shrink, shrunken_size
from .coordinates import RunDirectory
from .data import count_images, label_numbers, load_images, outside_of, resolve_revision
from .evaluation_report import write_report
from .intervals import Accuracy, Difference
from .loading import check_classifier, load_image_processor, load_spot_vit, load_spot_vit_config, public_name
from .memory import PeakMemory
from .modeling_spot_vit import SpotViTForImageClassification
from .oracle import DTYPES, OracleResult, SpotOracle, check_oracle_arguments
from .oracle_batches import Batch, Plan, Preparation, Shards, Start, Work, batches_of
from .oracle_run import device_name, device_of, open_run, process_state, versions, weights_digest
from .output_dirs import write_atomically
from .placement import PLACEMENTS, check_placement


METRICS = Path(__file__).parent / "metrics"
KNN_NEIGHBORS = 20  # as the paper
# Ways to look that are no placement.
BASELINES = {
    "full_grid": "the source model, all cells",
    "shrunken_image": "the source model on an image shrunk to that many cells, position table interpolated bicubically",
    "larger_windows": "isotropic, with windows so large that they cover the image",
    "token_merging": "ToMe, merging down to that many tokens by the last layer",
    "token_merging_same_cost": "ToMe, merging as much as makes it as cheap as that many tokens",
}
ORACLE = "oracle"  # the way that uses the label: a ceiling, not a method


def default_placements(with_saliency: bool = False) -> list[str]:
    """All priors but `grid`, which is the baseline `full_grid`; with saliency, those that need it too."""
    return [name for name, one in PLACEMENTS.items() if name != "grid" and (with_saliency or not one.saliency)]


@dataclass(frozen=True)
class Cell:
    """What is measured."""

    way: str  # a placement, a baseline, or `ORACLE`
    num_tokens: int
    seed: int | None = None  # of a random placement
    steps: int | None = None  # of the oracle

    @property
    def start(self) -> Start | None:
        """Where tokens are to be placed for it."""
        if self.way in PLACEMENTS:
            return Start(self.way, self.num_tokens, self.seed or 0)
        return Start("isotropic", self.num_tokens) if self.way in ("larger_windows", ORACLE) else None


@dataclass(kw_only=True)
class EvaluationArguments:
    """
    What is evaluated. Results depend on all of these but `num_workers` and `streaming`.

    Attributes:
        model (`list[str]`): directories or Hub ids of SpotViT classifiers.
        dataset_name, dataset_config_name, dataset_split, dataset_revision, image_column_name, label_column_name,
            saliency_column_name, max_samples, streaming: as in [`load_images`].
        num_tokens (`list[int]`): token counts; a number of tokens above the grid's is left out where a way cannot have it.
        placement (`list[str]`): priors; those that need no saliency map by default. `salient` and `inverse_salient` draw from
            what `saliency_column_name` says: a map over the image, or boxes in pixels (see [`read_saliency`]).
        baselines (`list[str]`): of `BASELINES`.
        image_size (`list[int]`, *optional*): pixels per side; the model's own by default.
        num_seeds (`int`): draws of each random placement; seed (`int`): of the first.
        oracle_steps (`list[int]`): also find positions with the label, from isotropic ones, in so many steps: a ceiling, not a
            method. What 0 steps give, to which costs are compared, is measured along.
        oracle_learning_rate (`float`): of these steps.
        among_labels (`bool`): classify among the classes that occur in the split, where these are fewer than the model's.
        knn_dataset_split (`str`, *optional*): also measure kNN accuracy, with the features of this split.
        knn_samples (`int`): images of that split, drawn by the seed.
        batch_size (`int`): images per forward pass; shard_size (`int`): images per line.
        dtype (`str`): `"float32"`, or `"bfloat16"` or `"float16"` for autocast.
        num_workers (`int`): processes that decode ahead.
    """

    model: list[str]
    dataset_name: str
    dataset_config_name: str | None = None
    dataset_split: str | None = None
    dataset_revision: str | None = None
    image_column_name: str = "image"
    label_column_name: str = "label"
    saliency_column_name: str | None = None
    max_samples: int | None = None
    streaming: bool = False
    num_tokens: list[int] = field(default_factory=lambda: [25, 49, 100, 196])
    placement: list[str] = field(default_factory=default_placements)
    baselines: list[str] = field(default_factory=lambda: list(BASELINES))
    image_size: list[int] | None = None
    num_seeds: int = 3
    seed: int = 0
    oracle_steps: list[int] = field(default_factory=list)
    oracle_learning_rate: float = 3e-3
    among_labels: bool = False
    knn_dataset_split: str | None = None
    knn_samples: int = 5000
    batch_size: int = 50
    shard_size: int = 250
    dtype: str = "float32"
    num_workers: int = 1

    def check(self) -> None:
        """`ValueError` for what no run can have, before anything is loaded."""
        for name in self.placement:
            for num_tokens in self.num_tokens:
                check_placement(name, num_tokens)
            if PLACEMENTS[name].saliency and self.saliency_column_name is None:
                raise ValueError(
                    f"`placement` {name!r} needs the saliency of each image: give `saliency_column_name`, a column of maps or "
                    "boxes; got none"
                )
            if name == "grid":
                raise ValueError("`placement` 'grid' is the baseline 'full_grid'; got it as a placement")
        for name in self.baselines:
            if name not in BASELINES:
                raise ValueError(f"`baselines` must be of {', '.join(BASELINES)}; got {name!r}")
        for name in ("num_seeds", "batch_size", "shard_size", "max_samples", "knn_samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1; got {value}")
        for steps in self.oracle_steps:
            check_oracle_arguments(
                objective="label",
                steps=steps,
                learning_rate=self.oracle_learning_rate,
                optimizer="adamw",
                optimizer_arguments=None,
                window_scale_learning_rate=self.oracle_learning_rate,
                early_stop=None,
                dtype=self.dtype,
            )
        for name in ("among_labels", "knn_dataset_split"):
            if self.streaming and getattr(self, name):
                raise ValueError(f"`{name}` needs a data set as a whole; got `streaming`")
        if self.num_workers < 0:
            raise ValueError(f"`num_workers` must be at least 0; got {self.num_workers}")
        if self.dtype not in DTYPES:
            raise ValueError(f"`dtype` must be one of {', '.join(DTYPES)}; got {self.dtype!r}")
        names = [public_name(model) for model in self.model]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"`model` must be one or several models with different names; got {', '.join(names) or 'none'}")
        if not self.num_tokens or len(set(self.num_tokens)) != len(self.num_tokens):
            raise ValueError(f"`num_tokens` must be one or several different numbers; got {self.num_tokens}")

    def recorded(self) -> dict[str, Any]:
        """On which results depend. Of what lies on this machine the name, not the path."""
        parameters = asdict(self)
        del parameters["num_workers"], parameters["streaming"]
        parameters["model"] = {public_name(model): weights_digest(model) for model in self.model}
        parameters["dataset_name"] = public_name(self.dataset_name)
        return parameters


# ------------------------------------------------------------------------------------------------------------- cells


def cells_of(arguments: EvaluationArguments, num_cells: int) -> list[Cell]:
    """All cells of a model whose grid has `num_cells`."""
    cells = [Cell("full_grid", num_cells)] if "full_grid" in arguments.baselines else []
    for num_tokens in arguments.num_tokens:
        for name in arguments.placement:
            if PLACEMENTS[name].on_grid and num_tokens > num_cells:
                continue
            seeds = range(arguments.seed, arguments.seed + arguments.num_seeds) if PLACEMENTS[name].random else [None]
            cells += [Cell(name, num_tokens, seed) for seed in seeds]
        if num_tokens < num_cells:
            cells += [Cell(name, num_tokens) for name in arguments.baselines if name != "full_grid"]
        if arguments.oracle_steps:
            cells += [Cell(ORACLE, num_tokens, steps=steps) for steps in sorted({0, *arguments.oracle_steps})]
    return cells


class CellShards(Shards):
    """Those of an evaluation: lines of its ledger. A task is a cell."""

    def starts(self, shard: int) -> list[Start]:
        return list(dict.fromkeys(cell.start for cell in self.lacks(shard) if cell.start is not None))


Way = Callable[[Batch], tuple[torch.Tensor, torch.Tensor]]


class Ways:
    """
    For each cell, what turns a batch into logits `(batch_size, num_labels)` and features `(batch_size, pooled_size)`; the
    oracle's gives its result instead, which [`Ways.look`] turns into these.
    """

    def __init__(
        self,
        model: SpotViTForImageClassification,
        height: int,
        width: int,
        cells: list[Cell],
        arguments: EvaluationArguments,
        among: list[int] | None,
    ):
        self.model, self.height, self.width, self.dtype = model, height, width, DTYPES[arguments.dtype]
        self.batch_size = arguments.batch_size
        config = model.config
        num_cells = (height // config.patch_size) * (width // config.patch_size)
        self.sizes: dict[Cell, tuple[int, int]] = {}  # of a shrunken image
        self.ways: dict[Cell, Callable[..., Any]] = {}
        for cell in cells:
            if cell.way == "shrunken_image":
                self.sizes[cell] = shrunken_size(cell.num_tokens, height, width, config.patch_size)
                self.ways[cell] = partial(self._encode, shrink(model, *self.sizes[cell]))
            elif cell.way.startswith("token_merging"):
                layers = config.num_hidden_layers
                if cell.way == "token_merging":
                    schedule = merge_schedule(num_cells, cell.num_tokens, layers)
                else:
                    schedule = merge_schedule_of_cost(num_cells, cell.num_tokens, config.hidden_size, layers)
                self.ways[cell] = partial(self._merge, TokenMerging(model, schedule))
            elif cell.steps is not None:
                self.ways[cell] = SpotOracle(
                    model,
                    "label",
                    steps=cell.steps,
                    learning_rate=arguments.oracle_learning_rate,
                    classes=among,
                    dtype=arguments.dtype,
                ).optimize
            else:
                self.ways[cell] = partial(self._encode, model)

    def __call__(self, cell: Cell, batch: Batch, device: torch.device, full: bool = False) -> Callable[[], Any]:
        """What is done with a batch, ready to be timed: its inputs are where they are needed. `full`: with as many images as
        the largest batch has, whose first ones are repeated."""
        assert batch.pixel_values is not None
        inputs = {"pixel_values": (batch.smaller[self.sizes[cell]] if cell in self.sizes else batch.pixel_values).to(device)}
        if cell.start is not None:
            inputs["coordinates"] = batch.starts[cell.start].to(device)
        if cell.way == "larger_windows":
            scale = covering_scale(cell.num_tokens, self.height, self.width, self.model.config.patch_size)
            inputs["window_scales"] = torch.full(inputs["coordinates"].shape[:2], scale, device=device)
        if cell.steps is not None:
            inputs["labels"] = batch.labels(self.model.config.num_labels).to(device)
        if full:
            repeated = torch.arange(self.batch_size, device=device) % len(batch.image_index)
            inputs = {name: values[repeated] for name, values in inputs.items()}
        return partial(self.ways[cell] if cell.steps is not None else partial(self._run, self.ways[cell]), **inputs)

    def look(self, cell: Cell, batch: Batch, coordinates: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits and features at given positions, `(batch_size, num_tokens, 2)`, model frame."""
        assert batch.pixel_values is not None
        pixel_values = batch.pixel_values.to(coordinates.device)
        return self._run(partial(self._encode, self.model), pixel_values=pixel_values, coordinates=coordinates)

    def _run(self, way: Callable, **inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        device = inputs["pixel_values"].device.type
        with torch.inference_mode(), torch.autocast(device, dtype=self.dtype, enabled=self.dtype != torch.float32):
            return way(**inputs)

    @staticmethod
    def _encode(model: SpotViTForImageClassification, **inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = model.spot_vit(**inputs).pooler_output
        return model.classifier(features), features

    @staticmethod
    def _merge(merging: TokenMerging, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = merging.features(pixel_values)
        return merging.model.classifier(features), features


def scaled_processor(image_processor: Any, height: int, width: int) -> Any:
    """The same recipe for other sizes of `pixel_values`: resize and crop keep their proportions."""
    settings = image_processor.to_dict()
    old_width, old_height = image_processor.model_size((1000, 1000))
    size = dict(settings["size"])
    if "shortest_edge" in size:
        size["shortest_edge"] = round(size["shortest_edge"] * min(height / old_height, width / old_width))
    else:
        size = {
            "height": round(size["height"] * height / old_height),
            "width": round(size["width"] * width / old_width),
        }
    return type(image_processor).from_dict({**settings, "size": size, "crop_size": {"height": height, "width": width}})


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


def load_evaluated(arguments: EvaluationArguments, split: str | None, max_samples: int | None) -> Any:
    return load_images(
        arguments.dataset_name,
        config_name=arguments.dataset_config_name,
        split=split,
        revision=arguments.dataset_revision,
        image_column_name=arguments.image_column_name,
        label_column_name=arguments.label_column_name,
        saliency_column_name=arguments.saliency_column_name,
        max_samples=max_samples,
        streaming=arguments.streaming,
    )


def labels_of(images: datasets.Dataset, arguments: EvaluationArguments, num_labels: int) -> np.ndarray:
    """`(num_images,)` of class numbers; `ValueError` where there are none, or some that the model does not know."""
    try:
        labels = label_numbers(images)
    except (TypeError, ValueError):
        labels = np.full(len(images), np.nan)
    wrong = outside_of(labels, num_labels)
    if len(wrong):
        raise ValueError(
            f"`label_column_name` must name a column of class numbers from 0 to {num_labels - 1}; row {wrong[0]} of "
            f"{arguments.label_column_name!r} has {images[int(wrong[0])]['label']!r}, and {len(wrong) - 1} more are not either"
        )
    return labels.astype(int)


class Lines:
    """The ledger: a JSON line per shard and cell, appended when it is done. A line that a killed process left half is none."""

    def __init__(self, directory: Path, process_index: int):
        self.directory, self.path = directory, directory / f"lines-{process_index}.jsonl"
        if self.path.exists() and not self.path.read_bytes().endswith(b"\n"):
            with self.path.open("a", encoding="utf-8") as file:
                file.write("\n")

    def read(self) -> list[dict[str, Any]]:
        found = {}
        for path in sorted(self.directory.glob("lines-*.jsonl")):
            for text in path.read_text(encoding="utf-8").splitlines():
                try:
                    line = json.loads(text)
                except ValueError:
                    continue
                found[line["model"], line["image_size"], json.dumps(line["cell"]), line["shard"]] = line
        return list(found.values())

    def append(self, line: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())


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


def joined(parts: list[dict[str, list]]) -> dict[str, list]:
    lists = [name for name, value in parts[0].items() if isinstance(value, list)] if parts else []
    names = lists or ("image_index", "label", "top", "confidence", "loss", "num_failed", "seconds", "num_timed", "peak_mib")
    return {name: [value for part in parts for value in part[name]] for name in names}


class Neighbors:
    """kNN classification (k = 20, cosine, one vote each) by the features of a training split, under each cell."""

    def __init__(
        self,
        arguments: EvaluationArguments,
        ways: Ways,
        processor: Any,
        smaller: dict[tuple[int, int], Any],
        device: torch.device,
    ):
        images = load_evaluated(arguments, arguments.knn_dataset_split, None)
        labels_of(images, arguments, ways.model.config.num_labels)
        if len(images) > arguments.knn_samples:
            chosen = np.random.default_rng(arguments.seed).choice(len(images), arguments.knn_samples, replace=False)
            images = images.select(np.sort(chosen))
        if len(images) < KNN_NEIGHBORS:
            raise ValueError(f"`knn_dataset_split` must have at least {KNN_NEIGHBORS} images; got {len(images)}")
        cells = [cell for cell in ways.ways if cell.steps is None]  # the oracle would have to know the labels
        starts = list(dict.fromkeys(cell.start for cell in cells if cell.start is not None))
        rows = [
            list(range(i, min(i + arguments.batch_size, len(images)))) for i in range(0, len(images), arguments.batch_size)
        ]
        preparation = Preparation(images, processor, smaller)
        work = (Work(0, part, starts, False) for part in rows)
        features: dict[Cell, list[np.ndarray]] = {cell: [] for cell in cells}
        labels: list[int] = []
        with tqdm(total=len(images), desc="features for kNN", unit="image") as progress:
            for batch in batches_of(preparation, work, arguments.num_workers):
                progress.update(len(batch.image_index) + len(batch.failed))
                if batch.pixel_values is None:
                    continue
                labels += batch.labels(ways.model.config.num_labels).tolist()
                for cell in cells:
                    features[cell].append(ways(cell, batch, device)()[1].float().cpu().numpy())
        from sklearn.neighbors import KNeighborsClassifier

        self.classifiers = {
            cell: KNeighborsClassifier(KNN_NEIGHBORS, metric="cosine").fit(np.concatenate(parts), labels)
            for cell, parts in features.items()
        }

    def predict(self, cell: Cell, features: torch.Tensor) -> list[int]:
        return self.classifiers[cell].predict(features.float().cpu().numpy()).tolist()


# ----------------------------------------------------------------------------------------------------------- results


def summarize_lines(lines: list[dict[str, Any]], arguments: EvaluationArguments) -> list[dict[str, Any]]:
    """One result per model, image size, way and number of tokens: means over seeds, with intervals and spread."""
    metrics = load_metrics()
    found = []
    for (model, image_size), every_cell in group_lines(lines):
        by_cell = {cell: parts for cell, parts in every_cell.items() if cell.way != ORACLE}
        full = next((parts for cell, parts in by_cell.items() if cell.way == "full_grid"), None)
        merged = {cell: joined([parts[shard] for shard in sorted(parts)]) for cell, parts in by_cell.items()}
        for way, num_tokens in dict.fromkeys((cell.way, cell.num_tokens) for cell in by_cell):
            seeds = sorted(
                (cell for cell in by_cell if (cell.way, cell.num_tokens) == (way, num_tokens)), key=lambda c: c.seed or 0
            )
            result = summarize_cells([merged[cell] for cell in seeds], metrics)
            against = Cell("grid_subset", num_tokens, arguments.seed)
            if against in merged and way != "grid_subset" and merged[against]["label"]:
                first, second = _right(merged[against]), _right(merged[seeds[0]])
                result["difference_to_grid_subset"] = vars(Difference.of(first, second))
            speeds = [timing(by_cell[cell], full) for cell in seeds]
            for name in ("images_per_second", "speed_up"):
                values = [value for speed in speeds if (value := speed[name]) is not None]
                result[name] = statistics.median(values) if values else None
            if result["speed_up"] is not None and full is not None:
                # By the ratio on the same batches: what slowed the machine for a while slowed both.
                base = timing(full, None)["images_per_second"]
                result["images_per_second"] = base * result["speed_up"] if base is not None else None
            found.append({"model": model, "image_size": image_size, "way": way, "num_tokens": num_tokens, **result})
    return found


def summarize_oracle(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One result per model, image size, number of tokens and steps of the oracle, of which every one uses the label."""
    metrics = load_metrics()
    found = []
    for (model, image_size), by_cell in group_lines(lines):
        for cell, parts in by_cell.items():
            if cell.way != ORACLE or cell.steps is None:
                continue
            speed = timing(parts, by_cell[Cell(ORACLE, cell.num_tokens, steps=0)])
            found.append({
                "model": model, "image_size": image_size, "way": ORACLE, "uses_label": True, "num_tokens": cell.num_tokens,
                "steps": cell.steps, "forward_passes": 2 * cell.steps + 1,
                **summarize_cells([joined([parts[shard] for shard in sorted(parts)])], metrics),
                "images_per_second": speed["images_per_second"],
                "slow_down": 1 / speed["speed_up"] if speed["speed_up"] else None,
            })  # fmt: skip
    return found


def load_metrics() -> dict[str, Any]:
    # In memory: in files, runs at the same time would wait for each other's locks.
    return {
        name: evaluate.load(str(METRICS / name), keep_in_memory=True)
        for name in ("top_k_accuracy", "expected_calibration_error")
    }


def group_lines(lines: list[dict[str, Any]]) -> list[tuple[tuple, dict[Cell, dict[int, dict[str, Any]]]]]:
    """`(model, image_size)`, and of it cell → shard → line."""
    shards: dict[tuple, dict[Cell, dict[int, dict[str, Any]]]] = {}
    for line in lines:
        shards.setdefault((line["model"], line["image_size"]), {}).setdefault(Cell(**line["cell"]), {})[line["shard"]] = line
    return sorted(shards.items(), key=str)


def _right(record: Mapping[str, Any]) -> np.ndarray:
    return np.array([top[0] == label for top, label in zip(record["top"], record["label"], strict=True)])


def summarize_cells(records: list[dict[str, Any]], metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Of one way and number of tokens, a record per seed."""
    num_images = len(records[0]["label"])
    result: dict[str, Any] = {"num_images": num_images, "num_failed": sum(records[0]["num_failed"]), "num_seeds": len(records)}
    if not num_images:
        return result
    per_seed: dict[str, list[float]] = {}
    for record in records:
        ranked = {"predictions": record["top"], "references": record["label"]}
        predictions = [top[0] for top in record["top"]]
        values = {"top_1": 100 * metrics["top_k_accuracy"].compute(**ranked, k=1)["top_1_accuracy"]}
        if len(record["top"][0]) >= 5:
            values["top_5"] = 100 * metrics["top_k_accuracy"].compute(**ranked, k=5)["top_5_accuracy"]
        values["loss"] = float(np.mean(record["loss"]))
        values["ece"] = (
            100
            * metrics["expected_calibration_error"].compute(
                predictions=predictions, references=record["label"], confidences=record["confidence"]
            )["expected_calibration_error"]
        )
        if "knn" in record:
            values["knn"] = 100 * float(np.mean(np.array(record["knn"]) == np.array(record["label"])))
        for name, value in values.items():
            per_seed.setdefault(name, []).append(value)
    result.update({name: statistics.fmean(values) for name, values in per_seed.items()})
    # The interval is over images; the spread is over seeds.
    interval = Accuracy.of_share(result["top_1"] / 100, num_images)
    result["top_1_low"], result["top_1_high"] = interval.low, interval.high
    result["top_1_spread"] = statistics.stdev(per_seed["top_1"]) if len(records) > 1 else None
    result["peak_mib"] = max(max(record["peak_mib"]) for record in records)
    return result


def timing(parts: Mapping[int, Mapping[str, Any]], full: Mapping[int, Mapping[str, Any]] | None) -> dict[str, float | None]:
    """Images/s, and the speed-up to another cell (the full grid) on the same batches: the median over batches."""
    rates, ratios = [], []
    for shard, part in parts.items():
        per_image = [seconds / count for seconds, count in zip(part["seconds"], part["num_timed"], strict=True)]
        rates += [1 / value for value in per_image]
        if full is not None and shard in full:
            base = [a / b for a, b in zip(full[shard]["seconds"], full[shard]["num_timed"], strict=True)]
            ratios += [a / b for a, b in zip(base, per_image, strict=False)]
    return {
        "images_per_second": statistics.median(rates) if rates else None,
        "speed_up": statistics.median(ratios) if ratios else None,
    }
