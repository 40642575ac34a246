"""The oracle over a data set: `spot-hf oracle`. Decodes ahead, runs on every process that Accelerate was given, and writes a
coordinate data set; a killed run resumes.

The unit of work and of resume is the shard: `shard_size` images that follow each other in the source, cut into the same
batches whichever process computes them and however often. Its rows are bit-equal on the same kind of machine, with the same
number of threads.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import PartialState

from ..coordinates.pictures import save_run_picture
from ..coordinates.records import Record
from ..coordinates.schema import coordinate_features
from ..coordinates.shards import CoordinateDirectory, Shard
from ..coordinates.summary import Summary, summarize
from ..data.batches import Batch, FailureCount, PlacementRequest, Plan, Preparation, Shards, batches_of
from ..data.corruptions import PACKAGE, check_view_size
from ..data.encoded import check_image_ids
from ..data.failures import check_failures, describe_failures
from ..data.labels import ForeignLabelsError, LabelMapping, check_label_column, match_labels
from ..data.masks import SEGMENTATION
from ..data.parquet import parquet_images
from ..data.source import count_images, load_images, pinned
from ..hub.cards import coordinates_card
from ..hub.loading import ModelSource, open_model
from ..hub.uploads import run_push
from ..jobs.directory import Ledger
from ..jobs.files import LEDGER, write_atomically
from ..jobs.process import device_of, job_processes, open_directory
from ..jobs.versions import device_name, versions
from .arguments import OracleArguments
from .masks import OracleMasks
from .progress import OracleProgress
from .rows import add_rows
from .search import OracleResult, SpotOracle


NO_LABELS_NEEDED = ". The objectives 'distill' and 'feature' need no labels"

logger = logging.getLogger(__name__)


def run_oracle(arguments: OracleArguments, *, command: str | None = None) -> dict[str, Summary]:
    """
    Finds positions for every image of a data set, and writes them as a coordinate data set. Run on several processes by
    `torchrun` or `accelerate launch`, they share the shards; `output_dir` must be one that all of them see. Run again after it
    was killed, it resumes.

    Args:
        arguments ([`OracleArguments`]): what to do.
        command (`str`, *optional*): how this run was started, for the record.

    Returns:
        `dict`: config → [`Summary`].

    Raises:
        `ValueError`: an argument that no run can have, or the directory holds a run with other parameters. `OSError`: no such
            model or data set, no access to it, or too many images that cannot be read.
    """
    arguments.check()
    with job_processes() as state:
        return OracleRun(arguments, state, command).run()


class OracleRun:
    """A run of the oracle, on one of its processes. Arguments as [`run_oracle`] takes them, and `state`, its processes."""

    def __init__(self, arguments: OracleArguments, state: PartialState, command: str | None):
        self.state = state
        self.arguments = arguments = pinned(arguments)
        self.model = open_model(arguments.model, arguments.revision)
        _check_objective(arguments, self.model)
        self.image_processor = self.model.load_image_processor(arguments.decode)
        _check_processor(self.image_processor)
        self.model.check_token_counts(arguments.num_tokens, self.image_processor)
        if arguments.corruption is not None:
            check_view_size(self.image_processor.model_size((1000, 1000)), self.model.config.num_channels)
        self.masks = OracleMasks(arguments, self.model) if self.model.segments else None
        self.images = load_images(arguments.source())
        self.split = str(self.images.split)
        self.num_images = count_images(self.images, arguments.max_samples)
        self.model = self.model.among(arguments, self.images.features.get("label"))
        if arguments.objective != "feature":
            self.model.check_candidates()
        self.directory = CoordinateDirectory(arguments.output_dir)
        self.labels = self._check_images()
        parameters = {
            **arguments.recorded(),
            **self.model.recorded(),
            "dataset_split": self.split,
            "num_images": self.num_images,
            **(self.labels.recorded() if self.labels is not None else {}),
            **({"task": SEGMENTATION} if self.model.segments else {}),
        }
        ledger = Ledger(
            parameters=parameters,
            command=command,
            versions=versions(*([PACKAGE] if arguments.corruption is not None else [])),
            device=device_name(state.device),
            labels=self.labels.description if self.labels is not None else None,
        )
        inputs = [arguments.model, arguments.dataset_name]
        open_directory(state, self.directory, ledger, overwrite=arguments.overwrite_output_dir, inputs=inputs)
        if self.labels is not None:
            logger.info(self.labels.description)
        # A budget's search begins where its tokens are placed.
        self.configs = {
            arguments.request(num_tokens): name
            for num_tokens, name in zip(arguments.num_tokens, arguments.config_names, strict=True)
        }

    def run(self) -> dict[str, Summary]:
        """All that is missing, and the result."""
        shards = self._shards()
        num_seen: int | None = None
        self.state.wait_for_everyone()  # all have seen the same shards, before the first writes another
        if shards.missing or shards.total is None:
            num_seen = self._search(shards)
        else:
            logger.info("all %d shards of %s are done", shards.total, ", ".join(self.configs.values()))
        self.state.wait_for_everyone()
        summaries: dict[str, Summary] = {}
        if self.state.is_main_process:
            self._complete(num_seen)
            summaries = self._write_results()
            logger.info(_report(self.directory.directory, self.arguments, summaries))
            if self.arguments.push is not None:
                run_push(self.arguments.push)
        self.state.wait_for_everyone()
        return summaries

    def _check_images(self) -> LabelMapping | None:
        """
        From the labels to the model's classes, where there are both. `ValueError` where the rows could not be told apart, or
        their labels are none of the model's classes and yet are needed.
        """
        arguments = self.arguments
        begins = arguments.overwrite_output_dir or not (self.directory.directory / LEDGER).exists()
        if begins and isinstance(self.images, datasets.Dataset):
            check_image_ids(self.images)
        if self.masks is not None:
            self.images = self.masks.beside(self.images, check=begins)
            return None
        if arguments.label_column_name is None:
            return None
        check_label_column(self.images.features["label"], arguments.label_column_name)
        if not self.model.has_classifier:
            return None
        try:
            mapping = match_labels(self.images.features["label"], self.model.config, arguments, advice=NO_LABELS_NEEDED)
        except ForeignLabelsError as error:
            if arguments.objective == "label" or arguments.among_labels:
                raise
            logger.info("accuracy is not measured: %s", error)
            return None
        if arguments.objective == "label" and isinstance(self.images, datasets.Dataset):
            mapping.of(self.images)
        return mapping

    def _shards(self) -> Shards:
        """Which are done. A task is where a budget's search begins."""
        done = {request: set(self.directory.shards(config, self.split)) for request, config in self.configs.items()}
        return Shards(done, self.split, self.num_images, self.arguments.shard_size)

    def _search(self, shards: Shards) -> int | None:
        """Computes the missing shards of this process, and says how many images a stream of unknown length had."""
        arguments, device = self.arguments, device_of(self.state)
        image_processor = self.image_processor
        oracle = SpotOracle(
            self.model.load().to(device),
            classes=self._classes(),
            **arguments.search(),
        )
        source = arguments if "label" in self.images.features else arguments.source(label_column_name=None)
        plan = Plan(shards, self.images, self.state, arguments.batch_size, parquet_images(source, self.images))
        failures = FailureCount(arguments.max_failed_share, self.num_images)
        progress = OracleProgress(arguments.num_tokens, plan, self.state)
        open_shards: dict[PlacementRequest, Shard] = {}
        preparation = Preparation(self.images, image_processor, corruption=arguments.chosen_corruption)
        with progress.bar:
            for batch in batches_of(preparation, plan, arguments.num_workers, failures):
                results = _optimize(oracle, batch, device, self._labels_of(batch, image_processor))
                for request in batch.work.placements:
                    shard = open_shards.setdefault(request, Shard(self._features(request.num_tokens)))
                    shard.failed += batch.failed
                    if request in batch.window_scales and not self.arguments.begins_scaled:
                        raise ValueError(
                            f"`placement` {request.placement!r} gives windows sizes of its own, which the rows would lack: "
                            "give `window_scales`, a number or cover, too"
                        )
                    if request in results:
                        add_rows(shard, batch, results[request], image_processor, self.labels)
                    if batch.work.closes_shard:
                        path = self.directory.shard_path(self.configs[request], self.split, batch.work.shard, shards.total)
                        shard.write(path)
                        del open_shards[request]
                    progress.show(request.num_tokens, shard, finished=batch.work.closes_shard)
                progress.bar.update(batch.num_images)
        return plan.num_seen

    def _labels_of(self, batch: Batch, image_processor: Any) -> torch.Tensor | None:
        """What the objective `"label"` takes, of the images that could be read."""
        if self.arguments.objective != "label" or batch.pixel_values is None:
            return None
        if self.masks is not None:
            return self.masks.seen(batch, image_processor)
        assert self.labels is not None
        return batch.labels(self.labels)

    def _classes(self) -> list[int] | None:
        """Among which images are classified."""
        return self.labels.classes_of(self.images) if self.arguments.among_labels and self.labels is not None else None

    def _features(self, num_tokens: int) -> datasets.Features:
        """The columns of a budget's config."""
        without = datasets.Value("int64")
        label = without if self.model.segments else self.images.features.get("label", without)
        trajectory_length = self.arguments.steps + 1 if self.arguments.save_trajectories else None
        begins_scaled = self.arguments.begins_scaled
        has_scales = begins_scaled or self.arguments.optimize_window_scales
        return coordinate_features(label, num_tokens, trajectory_length, has_scales, begins_scaled)

    def _complete(self, num_seen: int | None) -> None:
        """Names the shards of a stream whose length is known by now; `OSError` where shards are missing."""
        left = self._shards()
        if left.missing:
            raise OSError(
                f"{len(left.missing)} shards are missing in {self.directory.directory}, such as number {left.missing[0]}: run "
                "the same command again"
            )
        if left.total is None:
            assert num_seen is not None
            for config in self.configs.values():
                self.directory.name_totals(config, self.split, -(-num_seen // self.arguments.shard_size))

    def _write_results(self) -> dict[str, Summary]:
        """Reads all shards back, and writes the records, the pictures, the card and the ledger's results."""
        directory, ledger, split = self.directory, self.directory.ledger, self.split
        directory.clean()
        image_processor = self.image_processor.to_dict()
        summaries, records = {}, {}
        for request, config in self.configs.items():
            summary = summarize(directory.shards(config, split).values(), self.labels)
            check_failures(summary.failed, summary.num_images + len(summary.failed), self.arguments.max_failed_share)
            record = Record(
                parameters={**ledger.parameters, "num_tokens": request.num_tokens},
                command=ledger.command,
                versions=ledger.versions or {},
                device=ledger.device or "",
                split=split,
                features=self._features(request.num_tokens)._to_yaml_list(),
                patch_size=self.model.config.patch_size,
                image_processor=image_processor,
                results=summary,
            )
            summaries[config], records[config, split] = summary, record
            directory.write_json(f"{config}/{split}.json", record.to_json())
            with write_atomically(directory.directory / config / f"{split}.png") as file:
                save_run_picture(file, config, summary)
        readme = directory.directory / "README.md"
        there = readme.read_text(encoding="utf-8") if readme.exists() else None
        with write_atomically(readme) as file:
            file.write(coordinates_card(there, records, license=self.arguments.license).encode())
        ledger.results = {name: summary.to_json() for name, summary in summaries.items()}
        directory.write_ledger(ledger)
        return summaries


def _optimize(
    oracle: SpotOracle, batch: Batch, device: torch.device, labels: torch.Tensor | None
) -> dict[PlacementRequest, OracleResult]:
    """Runs the oracle on a batch, for each budget."""
    if batch.pixel_values is None:
        return {}
    pixel_values, targets = batch.pixel_values.to(device), None
    if labels is not None:
        labels = labels.to(device)
    else:
        targets = oracle.full_grid_targets(pixel_values)
    scales = {request: one.to(device) for request, one in batch.window_scales.items()}
    return {
        request: oracle.optimize(pixel_values, labels, coordinates.to(device), targets, window_scales=scales.get(request))
        for request, coordinates in batch.coordinates.items()
    }


def _check_objective(arguments: OracleArguments, model: ModelSource) -> None:
    answers = model.has_classifier or model.segments or model.is_zero_shot
    if not answers and arguments.objective != "feature":
        raise ValueError(
            f"`objective` must be 'feature': `model` {arguments.model!r} has no classifier; got {arguments.objective!r}"
        )


def _check_processor(image_processor: Any) -> None:
    """All images must come out alike, to make batches."""
    sizes = {image_processor.model_size(size) for size in ((500, 375), (375, 500), (300, 300))}
    if len(sizes) > 1:
        raise ValueError(
            "`model`: its image processor gives images of different sizes, which make no batches; save it with "
            "do_center_crop=True or a fixed height and width"
        )


def _report(directory: Path, arguments: OracleArguments, summaries: Mapping[str, Summary]) -> str:
    """What was written where, for a person."""
    lines = [f"written to {directory}:"]
    for name, summary in summaries.items():
        line = f"  {name}: {summary.num_images} images"
        if summary.accuracy_before is not None:
            line += f", accuracy {summary.accuracy_before:.1f} -> {summary.accuracy_after:.1f} %"
        if summary.loss_per_step:
            line += f", loss {summary.loss_per_step[0]:.3f} -> {summary.loss_per_step[-1]:.3f}"
        if arguments.early_stop is not None and summary.num_images:
            line += f", {summary.num_steps / summary.num_images:.1f} steps per image"
        lines.append(line + f", {summary.download_size / 2**20:.1f} MiB")
        if summary.failed:
            lines.append(f"  {describe_failures(summary.failed)}; all are listed in run.json")
    lines.append("  and README.md; load_coordinates(DIR, CONFIG) reads them back, `spot-hf push` publishes them")
    return "\n".join(lines)
