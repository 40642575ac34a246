"""What a model is worth at how many tokens, under which placement, against what one would use otherwise: `spot-hf evaluate`.

A *cell* is a method (a placement, a baseline, or the oracle), a number of tokens, and the seed of a random placement or the
oracle's steps, at an image size, on images as they are or corrupted. There, images are decoded once, and each batch is
classified under every cell, one after the other, so that what slows the machine slows all of them. The unit of work and of
resume is a shard of images under a cell: a line of `lines-PROCESS.jsonl`.
"""

import copy
import logging
from dataclasses import dataclass, replace
from typing import Any

import datasets
import numpy as np
from accelerate import PartialState
from tqdm import tqdm

from ..data.batches import FailureCount, Plan, Preparation, batches_of
from ..data.corruptions import PACKAGE, Corruption, check_view_size
from ..data.failures import FailedImage, check_failures, describe_failures
from ..data.labels import LabelMapping, match_labels
from ..data.parquet import parquet_images
from ..data.source import count_images, load_images, pinned
from ..hub.loading import ModelSource, open_model
from ..jobs.directory import JobDirectory, Ledger
from ..jobs.process import device_of, job_processes, open_directory
from ..jobs.versions import device_name, versions
from .arguments import SAVED, EvaluationArguments
from .cells import Cell, CellShards, Line, Lines, Measurement, SettingKey, cells_of, left_out, saved_looks
from .corrupted import corruption_tables
from .measuring import Meter
from .methods import Methods
from .neighbors import Neighbors
from .pareto import points_of, write_pareto
from .report import EvaluationResults, write_report
from .results import summarize_lines, summarize_oracle


RESULTS = "results.json"

logger = logging.getLogger(__name__)


def run_evaluation(arguments: EvaluationArguments, *, command: str | None = None) -> EvaluationResults | None:
    """
    Classifies a split under every cell, and writes tables and plots. Run on several processes by `torchrun` or `accelerate
    launch`, they share the shards. Run again after it was killed, it resumes.

    Args:
        arguments ([`EvaluationArguments`]): what to do.
        command (`str`, *optional*): how this run was started, for the record.

    Returns:
        [`EvaluationResults`]: what `results.json` holds; on the first process alone.

    Raises:
        `ValueError`: an argument that no run can have, or the directory holds a run with other parameters. `OSError`: no such
            model or data set, no access to it, or too many images that cannot be read.
    """
    arguments.check()
    from .segmentation import SegmentationRun  # which is an EvaluationRun itself

    models = {name: open_model(one, arguments.revision_of(name)) for name, one in arguments.named_models.items()}
    segmenting = [name for name, model in models.items() if model.segments]
    if segmenting and len(segmenting) < len(models):
        raise ValueError(f"`model` must be all of one task; only {', '.join(segmenting)} of {', '.join(models)} segments")
    kind = SegmentationRun if segmenting else EvaluationRun
    with job_processes() as state:
        return kind(arguments, models, state, command).run()


@dataclass(frozen=True)
class Setting:
    """A model at an image size, with the processor that makes it, what corrupts the images, and its cells."""

    name: str  # of the model, in the results
    model: ModelSource
    image_size: int | None
    image_processor: Any
    height: int
    width: int
    cells: list[Cell]
    corruption: Corruption | None = None

    @property
    def key(self) -> SettingKey:
        done = self.corruption
        return SettingKey(self.name, self.image_size, *((done.name, done.severity) if done is not None else ()))


class EvaluationRun:
    """An evaluation, on one of its processes. Arguments as [`run_evaluation`] takes them, the `models` by their names, and
    `state`, its processes."""

    methods_class = Methods

    def __init__(
        self, arguments: EvaluationArguments, models: dict[str, ModelSource], state: PartialState, command: str | None
    ):
        self.state = state
        self.arguments = arguments = pinned(arguments)
        self.check_models(models)
        if SAVED in arguments.confidences and not any(saved_looks(model.config) for model in models.values()):
            raise ValueError(
                f"`confidence` {SAVED!r} needs a model whose config has several `num_tokens` and a `confidence`, as `spot-hf "
                f"calibrate` saves them; got {', '.join(arguments.model)}"
            )
        sizes: list[int | None] = [*arguments.image_size] if arguments.image_size else [None]
        settings = [_setting(name, model, size, arguments) for name, model in models.items() for size in sizes]
        self.settings = [replace(setting, corruption=one) for setting in settings for one in arguments.corruptions]
        self.images = load_images(arguments.source())
        self.parquet = parquet_images(arguments, self.images)
        self.num_images = count_images(self.images, arguments.max_samples)
        models = self._among(models)
        self.settings = [replace(setting, model=models[setting.name]) for setting in self.settings]
        self.labels = self.match_labels(models)
        self.directory = JobDirectory(arguments.output_dir)
        commits = {name: model.revision for name, model in models.items() if model.revision is not None}
        parameters = {
            **arguments.recorded(),
            "dataset_split": str(self.images.split),
            "num_images": self.num_images,
            **({"revision": commits} if commits else {}),
            **_recorded_labels(self.labels),
            **_recorded_candidates(models),
        }
        descriptions = {name: mapping.description for name, mapping in self.labels.items()}
        ledger = Ledger(
            parameters=parameters,
            command=command,
            versions=versions(*([PACKAGE] if arguments.corruption else [])),
            device=device_name(state.device),
            labels=descriptions,
        )
        inputs = [*arguments.named_models.values(), arguments.dataset_name]
        open_directory(state, self.directory, ledger, overwrite=arguments.overwrite_output_dir, inputs=inputs)
        for name, description in descriptions.items():
            logger.info("%s: %s", name, description)

    def check_models(self, models: dict[str, ModelSource]) -> None:
        """`ValueError` where one cannot be evaluated."""
        for model in models.values():
            if not model.is_zero_shot:
                model.check_classifier()

    def _among(self, models: dict[str, ModelSource]) -> dict[str, ModelSource]:
        """Zero-shot models with the texts among which they classify. Beside these, texts do not concern the others."""
        some = any(model.is_zero_shot for model in models.values())
        asked = {name: model for name, model in models.items() if model.is_zero_shot or not some}
        found = {name: model.among(self.arguments, self.images.features["label"]) for name, model in asked.items()}
        for model in found.values():
            model.check_candidates()
        return {**models, **found}

    def match_labels(self, models: dict[str, ModelSource]) -> dict[str, Any]:
        """By the model's name, from the data set's labels to its classes."""
        return {name: _labels_of(model, self.images, self.arguments) for name, model in models.items()}

    def classes_of(self, name: str) -> list[int] | None:
        """Among which a model classifies."""
        return self.labels[name].classes_of(self.images) if self.arguments.among_labels else None

    def meter_of(self, methods: Methods, setting: "Setting", shrinking: dict, device: Any) -> Meter:
        neighbors = None
        if self.arguments.knn_dataset_split:
            neighbors = Neighbors(self.arguments, methods, setting.image_processor, shrinking, device)
            if neighbors.failed:
                logger.info("`knn_dataset_split`: %s", describe_failures(neighbors.failed))
        return Meter(methods, neighbors, device)

    def figure_of(self, measured: Measurement) -> str:
        """What a shard says, for the progress bar."""
        return f"{100 * np.mean(measured.correct):.1f} %"

    def run(self) -> EvaluationResults | None:
        """All that is missing, and the results."""
        lines = Lines(self.directory.directory, self.state.process_index)
        done = lines.read()
        self.state.wait_for_everyone()  # all have read the same lines, before the first appends another
        for setting in self.settings:
            self._measure(setting, lines, done)
        self.state.wait_for_everyone()
        results = self._write_results(lines.read()) if self.state.is_main_process else None
        self.state.wait_for_everyone()
        return results

    def _measure(self, setting: Setting, lines: Lines, done: list[Line]) -> None:
        """Appends the lines that a model lacks at an image size; `done` are those that were there."""
        arguments, name, device = self.arguments, setting.name, device_of(self.state)
        done_by_cell: dict[Cell, set[int]] = {cell: set() for cell in setting.cells}
        for line in done:
            if line.setting == setting.key:
                done_by_cell[line.cell].add(line.shard)
        shards = CellShards(done_by_cell, str(self.images.split), self.num_images, arguments.shard_size)
        plan = Plan(shards, self.images, self.state, arguments.batch_size, self.parquet)
        cells, total = setting.cells, None
        if shards.total is not None:
            cells = list(dict.fromkeys(cell for shard in plan.my_shards() for cell in shards.lacks(shard)))
            total = sum(len(shards.rows_of(shard)) for shard in plan.my_shards())
            if not cells:
                return
        saved = setting.model.load().to(device)
        model: Any = _resized(saved, setting)
        classes = self.classes_of(name)
        methods = self.methods_class(model, saved, setting.height, setting.width, cells, arguments, classes, self.labels[name])
        shrinking = {size: setting.image_processor.resized(*size) for size in set(methods.shrunken_sizes.values())}
        meter = self.meter_of(methods, setting, shrinking, device)
        preparation = Preparation(self.images, setting.image_processor, shrinking, setting.corruption)
        failures = FailureCount(arguments.max_failed_share, self.num_images)
        parts: dict[Cell, list[Measurement]] = {}
        with tqdm(total=total, desc=setting.key.title, unit="image", disable=not self.state.is_main_process) as progress:
            for number, batch in enumerate(batches_of(preparation, plan, arguments.num_workers, failures)):
                shard = batch.work.shard
                missing = shards.lacks(shard)
                # Each cell comes first in turn: while the next batch is decoded, the first ones of a batch are slowed.
                turn = number % len(missing)
                for cell in missing[turn:] + missing[:turn]:
                    parts.setdefault(cell, []).append(meter(cell, batch))
                for cell in missing if batch.work.closes_shard else []:
                    measured = Measurement.concatenated(parts.pop(cell))
                    lines.append(Line(setting.key, cell, shard, measured))
                    if measured.image_index:
                        text = f"{cell.method} {cell.num_tokens}: {self.figure_of(measured)}"
                        progress.set_postfix_str(text, refresh=False)
                progress.update(batch.num_images)

    def _write_results(self, lines: list[Line]) -> EvaluationResults:
        if not lines:  # a stream that did not say so
            split = str(self.images.split)
            raise ValueError(f"`dataset_split` must have images; {split!r} of {self.arguments.dataset_name!r} has none")
        return self.summarize(lines, _failed(lines))

    def summarize(self, lines: list[Line], failed: list[FailedImage]) -> Any:
        """The results, written."""
        arguments, ledger = self.arguments, self.directory.ledger
        rows, oracle_rows = summarize_lines(lines, arguments), summarize_oracle(lines)
        first = [*rows, *oracle_rows][0]
        num_images = first.num_images + first.num_failed
        check_failures(failed, num_images, arguments.max_failed_share)
        ledger.parameters["num_images"] = num_images  # of a stream, known by now
        results = EvaluationResults(ledger, rows, oracle_rows, failed)
        self.directory.write_json(RESULTS, results.to_json())
        sections = self._pareto(results, lines) if arguments.pareto else corruption_tables(rows)
        logger.info(write_report(self.directory.directory, results, arguments.published, sections))
        if failed:
            logger.info("%s; all are listed in %s", describe_failures(failed), RESULTS)
        return results

    def _pareto(self, results: EvaluationResults, lines: list[Line]) -> list[str]:
        """Of a model of another shape, the full grid's speed is compared by the clock: it was measured at another time."""
        full = {row.model: row for row in results.results if row.method == "full_grid" and row.image_size is None}
        first = self.settings[0]
        speeds = {}
        for setting in self.settings:
            if _shape(setting.model.config) == _shape(first.model.config):
                speeds[setting.name] = 1.0
            else:
                ours, theirs = (full[name].images_per_second or 1.0 for name in (first.name, setting.name))
                speeds[setting.name] = theirs / ours
        points = points_of(results.results, lines, first.name, speeds)
        return write_pareto(self.directory.directory, points, first.name, results.ledger.device)


def _shape(config: Any) -> tuple[Any, ...]:
    """What a forward pass costs."""
    if config.model_type != "spot_vit":
        return config.model_type, config.network_config.to_json_string(), config.image_height_width
    sizes = (config.hidden_size, config.num_hidden_layers, config.num_attention_heads, config.intermediate_size)
    others = (config.patch_size, config.num_channels, config.image_height_width, config.num_prefix_tokens)
    positions = (config.use_position_table, config.rope_theta is not None, config.use_relative_position_bias)
    norms = (config.use_pre_norm, config.use_qk_norm, config.use_attention_norm, config.use_mlp_norm)
    pooled = config.pooling == "attention"
    return *sizes, *others, *positions, *norms, pooled, config.use_swiglu_ffn, config.use_layer_scale


def _failed(lines: list[Line]) -> list[FailedImage]:
    """Each image once: it fails under every cell."""
    found = {image.image_index: image for line in lines for image in line.measured.failed}
    return [found[index] for index in sorted(found)]


def _setting(name: str, model: ModelSource, image_size: int | None, arguments: EvaluationArguments) -> Setting:
    """`ValueError` where a model can have nothing at that size. Loads no weights."""
    image_processor, patch_size = model.load_image_processor(arguments.decode), model.config.patch_size
    if image_size is not None:
        if image_size < patch_size:
            raise ValueError(f"`image_size` must be at least {patch_size}, the patch size of {model.name!r}; got {image_size}")
        image_processor = image_processor.resized(image_size, image_size)
    model.check_token_counts(arguments.num_tokens, image_processor)
    width, height = image_processor.model_size((1000, 1000))
    if any(arguments.merge_shares) and getattr(model.config, "positions_in_attention", False):
        raise ValueError(
            f"`merge_tokens` is not for models with rotary or relative positions, as {model.name!r} is; got "
            f"{arguments.merge_tokens}"
        )
    if arguments.corruption:
        check_view_size((width, height), model.config.num_channels)
    if without := left_out(arguments, model.config):
        logger.info("%s: without %s, which are for ViTs whose attention knows no positions", name, " and ".join(without))
    cells = cells_of(arguments, (height // patch_size) * (width // patch_size), model.config)
    if not cells:
        raise ValueError(
            f"`placement` and `baselines` leave nothing to measure with `num_tokens` {arguments.num_tokens} on the "
            f"{height // patch_size} × {width // patch_size} cells of {model.name!r}"
        )
    return Setting(name, model, image_size, image_processor, height, width, cells)


def _labels_of(model: ModelSource, images: Any, arguments: EvaluationArguments) -> LabelMapping:
    """`ValueError` for labels that are none of the model's classes; in a stream, batch by batch."""
    mapping = match_labels(images.features["label"], model.config, arguments)
    if isinstance(images, datasets.Dataset):
        mapping.of(images)
    return mapping


def _recorded_labels(labels: dict[str, Any]) -> dict[str, Any]:
    """By the model's name, of those whose numbers are others."""
    every = {name: mapping.recorded() for name, mapping in labels.items()}
    recorded = {name: one["label_mapping"] for name, one in every.items() if "label_mapping" in one}
    return {"label_mapping": recorded} if recorded else {}


def _recorded_candidates(models: dict[str, ModelSource]) -> dict[str, Any]:
    """Of the zero-shot models, which all have the same."""
    return next((model.candidates.recorded() for model in models.values() if model.candidates is not None), {})


def _resized(model: Any, setting: Setting) -> Any:
    """The model with a position table for a setting's image size; itself at the size that it was saved for."""
    if setting.image_size is None or model.config.image_height_width == (setting.height, setting.width):
        return model
    resized = copy.deepcopy(model)
    resized.resize_position_embeddings(setting.height, setting.width)
    return resized
