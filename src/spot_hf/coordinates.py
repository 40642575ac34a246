"""Coordinate data sets: token positions per image, that people share and use with models of their own.

A directory, locally and on the Hub:

    README.md                              the card, with the `configs` and `dataset_info` that `load_dataset` needs
    CONFIG/SPLIT-IIIII-of-NNNNN.parquet    one config per model and number of tokens, such as vit-tiny-patch16-224_n25
    CONFIG/SPLIT.json                      the record of the run that found them: parameters, versions, results
    CONFIG/SPLIT.png                       how the search went, and where tokens were and are

Images are not part of it: rows point at them, by name and by the hash of their bytes. Positions are `(x, y)` relative to the
original image, so that models with other crops can use them.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .data import DIGITS, encoded, encoded_image
from .output_dirs import write_atomically


# ------------------------------------------------------------------------------------------------------------ schema


def coordinate_features(
    label: Any, num_tokens: int, trajectory_length: int | None = None, window_scales: bool = False
) -> datasets.Features:
    """
    The columns of a coordinate data set; positions are `(x, y)` in the image frame.

    Args:
        label (`datasets.ClassLabel`): the feature of the source's labels.
        num_tokens (`int`): tokens per image.
        trajectory_length (`int`, *optional*): positions per token in `trajectory`, steps + 1; without it there is no such
            column.
        window_scales (`bool`): whether there is a column of each token's window scale, in the model that found it.
    """
    point = datasets.List(datasets.Value("float32"), length=2)
    columns = {
        "image_id": datasets.Value("string"),
        "image_index": datasets.Value("int64"),
        "image_sha256": datasets.Value("string"),
        "image_size": datasets.List(datasets.Value("int32"), length=2),  # (width, height)
        "label": label,
        "coordinates": datasets.List(point, length=num_tokens),
        "initial_coordinates": datasets.List(point, length=num_tokens),
        "losses": datasets.List(datasets.Value("float32")),
        "initial_prediction": datasets.Value("int64"),
        "prediction": datasets.Value("int64"),
    }
    if window_scales:
        columns["window_scales"] = datasets.List(datasets.Value("float32"), length=num_tokens)
    if trajectory_length is not None:
        coarse_point = datasets.List(datasets.Value("float16"), length=2)
        columns["trajectory"] = datasets.List(datasets.List(coarse_point, length=num_tokens), length=trajectory_length)
    return datasets.Features(columns)


def check_config_name(argument: str, name: str) -> None:
    """`ValueError` where `name` can be no config of a data set. In brackets, it would be read as a pattern of file names."""
    if not name or name == "data" or set(name) & set('<>:/\\|?*"[]') or name.startswith("."):
        raise ValueError(f"`{argument}` must be a name without any of <>:/\\|?*\"[], and not 'data'; got {name!r}")


# ------------------------------------------------------------------------------------------------------------ shards

FACTS = b"spot_hf"  # key of the footer's metadata
TEMPORARY = ".*.tmp"


@dataclass
class Shard:
    """A shard in the making: rows as columns, and what the rows do not say."""

    features: datasets.Features
    tables: list[pa.Table] = field(default_factory=list)
    failed: list[dict[str, Any]] = field(default_factory=list)  # images that could not be read
    num_steps: int = 0  # that were taken, over all images
    num_labelled: int = 0
    correct_per_step: np.ndarray | int = 0  # of the labelled images

    def add(self, columns: Mapping[str, Any]) -> None:
        """Appends a batch: for each column a list or an array, whose first dimension is the batch."""
        schema = self.features.arrow_schema
        self.tables.append(
            pa.Table.from_arrays([_to_arrow(columns[name], schema.field(name).type) for name in schema.names], schema=schema)
        )

    def write(self, path: Path) -> None:
        """All at once, under a temporary name until it is complete."""
        schema = self.features.arrow_schema
        facts = {
            "failed": self.failed,
            "num_steps": self.num_steps,
            "num_labelled": self.num_labelled,
            "correct_per_step": np.atleast_1d(self.correct_per_step).tolist(),
        }
        table = pa.concat_tables(self.tables) if self.tables else schema.empty_table()
        table = table.replace_schema_metadata({**(schema.metadata or {}), FACTS: json.dumps(facts).encode()})
        with write_atomically(path) as file, pq.ParquetWriter(file, table.schema) as writer:
            if len(table):  # `datasets` cannot read an empty row group
                writer.write_table(table)


def _to_arrow(values: Any, kind: pa.DataType) -> pa.Array:
    """Arrays without a Python object per number."""
    if not isinstance(values, np.ndarray) or values.ndim == 1:
        return pa.array(values, type=kind)
    flat = _to_arrow(values.reshape(-1, *values.shape[2:]), kind.value_type)
    if isinstance(kind, pa.FixedSizeListType):
        return pa.FixedSizeListArray.from_arrays(flat, kind.list_size)
    offsets = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
    return pa.ListArray.from_arrays(offsets, flat)


def shard_facts(path: Path) -> dict[str, Any]:
    """What a shard's footer says: `num_images`, `num_bytes` (in memory), and the facts of [`Shard`]."""
    metadata = pq.read_metadata(path)
    facts = json.loads(metadata.metadata[FACTS])
    num_bytes = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    return {"num_images": metadata.num_rows, "num_bytes": num_bytes, **facts}


# ------------------------------------------------------------------------------------------------------------ ledger

LEDGER = "run.json"
SHARD_NAME = re.compile(r"(?P<split>.+?)-(?P<index>\d{5})(-of-(?P<total>\d{5}))?\.parquet")


class RunDirectory:
    """
    A directory that a run fills with shards. The directory is the ledger: a shard whose file is there is done. `run.json`
    holds the parameters that all of them share, and, when all is done, the results.

    Args:
        directory (`str`): where.
    """

    def __init__(self, directory: str | Path):
        self.directory = Path(directory)

    @property
    def ledger(self) -> dict[str, Any]:
        """What `run.json` holds; `ValueError` where it is no such ledger."""
        try:
            ledger = json.loads((self.directory / LEDGER).read_text(encoding="utf-8"))
            if not isinstance(ledger["parameters"], dict):
                raise ValueError
        except (OSError, ValueError, KeyError, TypeError):
            raise ValueError(f"`output_dir` {str(self.directory)!r} holds no run of `spot-hf oracle`: no {LEDGER}") from None
        return ledger

    def open(self, parameters: dict[str, Any], facts: dict[str, Any]) -> None:
        """
        Begins a run, or goes on with one.

        Args:
            parameters (`dict`): on which the rows depend.
            facts (`dict`): of this run, for the record: versions, command.

        Raises:
            `ValueError`: the directory holds something else, or a run with other parameters.
        """
        self.check(parameters)
        if not (self.directory / LEDGER).exists():
            self.directory.mkdir(parents=True, exist_ok=True)
            self.write_ledger({"parameters": parameters, **facts})

    def check(self, parameters: dict[str, Any]) -> None:
        """The same checks, without writing."""
        if not self.directory.exists():
            return
        if not self.directory.is_dir():
            raise ValueError(f"`output_dir` must be a directory; {str(self.directory)!r} is a file")
        if not (self.directory / LEDGER).exists():
            # A run that was killed in its first instant has left a temporary file.
            if any(not path.match(TEMPORARY) for path in self.directory.iterdir()):
                raise ValueError(
                    f"`output_dir` {str(self.directory)!r} is not empty and holds no run to go on with; give another one, or "
                    "`overwrite_output_dir` to replace it"
                )
            return
        there = self.ledger["parameters"]
        # What the Hub could not be asked for is not known to differ.
        unknown = {name for name in ("dataset_revision",) if there.get(name) is None or parameters.get(name) is None}
        differing = [
            f"{name} {there.get(name)!r} there, {parameters.get(name)!r} here"
            for name in sorted({*there, *parameters} - unknown)
            if there.get(name) != parameters.get(name)
        ]
        if differing:
            raise ValueError(
                f"`output_dir` {str(self.directory)!r} holds a run with other parameters: {'; '.join(differing)}. Give the "
                "same ones to go on with it, another directory, or `overwrite_output_dir` to replace it"
            )

    def write_ledger(self, ledger: dict[str, Any]) -> None:
        with write_atomically(self.directory / LEDGER) as file:
            file.write((json.dumps(ledger, indent=2) + "\n").encode())

    def shards(self, config: str, split: str) -> dict[int, Path]:
        """The shards that are done, by their number."""
        found = {}
        for path in sorted((self.directory / config).glob("*.parquet")):
            match = SHARD_NAME.fullmatch(path.name)
            if match and match["split"] == split:
                found[int(match["index"])] = path
        return dict(sorted(found.items()))

    def shard_path(self, config: str, split: str, index: int, total: int | None) -> Path:
        """Where a shard goes. Until the end of a source of unknown length, names do not say of how many it is."""
        suffix = "" if total is None else f"-of-{total:05d}"
        return self.directory / config / f"{split}-{index:05d}{suffix}.parquet"

    def name_totals(self, config: str, split: str, total: int) -> None:
        """Gives shards of what was a source of unknown length their final names. May be interrupted, and repeated."""
        for index, path in self.shards(config, split).items():
            path.rename(self.shard_path(config, split, index, total))

    def records(self) -> dict[tuple[str, str], dict[str, Any]]:
        """Of all finished configs: `(config, split)` → record."""
        found = {}
        for path in sorted(self.directory.glob("*/*.json")):
            found[path.parent.name, path.stem] = json.loads(path.read_text(encoding="utf-8"))
        return found

    def clean(self) -> None:
        """Removes what killed processes left half-written."""
        for path in [*self.directory.glob(TEMPORARY), *self.directory.glob("*/" + TEMPORARY)]:
            path.unlink(missing_ok=True)


# ----------------------------------------------------------------------------------------------------------- results

DENSITY_CELLS = 56  # per axis


@dataclass
class Summary:
    """
    Of all shards of a config's split, read one at a time.

    Attributes:
        num_images, num_labelled, num_steps (`int`): rows; those with a label and a prediction; steps taken, over all images.
        num_bytes, download_size (`int`): of the shards, in memory and on disk.
        failed (`list`): images that could not be read: `image_index`, `image_id`, `error`.
        accuracy_per_step (`list[float]`): percent, of iterates 0 to `steps`. The last iterate need not be the best one.
        accuracy_before, accuracy_after (`float`): percent, at the initial and at the best positions. `None` without labels.
        loss_per_step (`list[float]`): means of the objective.
        start_density, end_density (`np.ndarray`): tokens per cell of the image, `(rows, columns)`, summing to 1.
    """

    num_images: int
    num_labelled: int
    num_steps: int
    num_bytes: int
    download_size: int
    failed: list[dict[str, Any]]
    accuracy_per_step: list[float]
    accuracy_before: float | None
    accuracy_after: float | None
    loss_per_step: list[float]
    start_density: np.ndarray
    end_density: np.ndarray

    def to_json(self) -> dict[str, Any]:
        left_out = ("start_density", "end_density")
        return {name: value for name, value in vars(self).items() if name not in left_out}


def summarize(shards: Iterable[Path]) -> Summary:
    """Reads a config's shards, one at a time."""
    totals = dict.fromkeys(("num_images", "num_labelled", "num_steps", "num_bytes", "download_size"), 0)
    failed: list[dict[str, Any]] = []
    correct: np.ndarray | int = 0
    losses: np.ndarray | int = 0
    before = after = 0
    densities = {name: np.zeros((DENSITY_CELLS, DENSITY_CELLS)) for name in ("initial_coordinates", "coordinates")}
    for path in shards:
        facts = shard_facts(path)
        facts["download_size"] = path.stat().st_size
        for name in totals:
            totals[name] += facts[name]
        failed += facts["failed"]
        correct = correct + np.array(facts["correct_per_step"])
        table = pq.read_table(path, columns=["label", "initial_prediction", "prediction", "losses", *densities])
        if not len(table):
            continue
        losses = losses + np.stack(table["losses"].to_numpy()).astype(np.float64).sum(0)
        label, initial, final = (table[name].to_numpy() for name in ("label", "initial_prediction", "prediction"))
        before, after = before + int((initial == label).sum()), after + int((final == label).sum())
        for name, density in densities.items():
            points = _points(table[name])
            density += np.histogram2d(points[:, 1], points[:, 0], bins=DENSITY_CELLS, range=[[0, 1], [0, 1]])[0]
    labelled = totals["num_labelled"]
    return Summary(
        **totals,
        failed=failed,
        accuracy_per_step=[round(100 * float(x) / labelled, 3) for x in np.atleast_1d(correct)] if labelled else [],
        accuracy_before=round(100 * before / labelled, 3) if labelled else None,
        accuracy_after=round(100 * after / labelled, 3) if labelled else None,
        loss_per_step=[float(x) / totals["num_images"] for x in np.atleast_1d(losses)] if totals["num_images"] else [],
        start_density=densities["initial_coordinates"] / max(1.0, densities["initial_coordinates"].sum()),
        end_density=densities["coordinates"] / max(1.0, densities["coordinates"].sum()),
    )


def _points(column: pa.ChunkedArray) -> np.ndarray:
    """`(num_points, 2)` of a column of lists of points."""
    return column.combine_chunks().flatten().flatten().to_numpy(zero_copy_only=False).reshape(-1, 2)


# ----------------------------------------------------------------------------------------------------------- loading

MAX_SLICES = 1000  # that a joined data set is made of


def load_coordinates(
    path: str | Path, config: str | None = None, split: str | None = None, *, revision: str | None = None
) -> datasets.Dataset:
    """
    Loads a coordinate data set.

    Args:
        path (`str`): a directory that `spot-hf oracle` wrote, or a Hub id.
        config (`str`, *optional*): such as `"vit-tiny-patch16-224_n25"`; needed where there are several.
        split (`str`, *optional*): needed where there are several.
        revision (`str`, *optional*): branch, tag or commit of a Hub id.

    Returns:
        `datasets.Dataset`: one row per image, with `coordinates` `(num_tokens, 2)`, `(x, y)` in the image frame, and the other
        columns of [`coordinate_features`].

    Raises:
        `ValueError`: no such config or split, or several and none named. `OSError`: no such data set.
    """
    local = Path(path).expanduser()
    if local.is_dir():
        if not (local / "README.md").exists():
            hint = ": its run is not finished, go on with the same command" if (local / LEDGER).exists() else ""
            raise OSError(f"{str(path)!r} holds no coordinate data set{hint}")
    elif local.exists() or str(path).count("/") != 1 or str(path).startswith((".", "/", "~")):
        raise OSError(f"{str(path)!r} is neither a directory with a coordinate data set nor a Hub id such as user/name")
    source = str(local) if local.is_dir() else str(path)
    revision = None if local.is_dir() else revision
    try:
        config = _one_of("config", config, datasets.get_dataset_config_names(source, revision=revision), path)
        # What its card says, before all of something else is downloaded.
        _check_columns(datasets.load_dataset_builder(source, config, revision=revision).info.features, path)
        splits = datasets.load_dataset(source, config, revision=revision)
    except datasets.exceptions.DatasetNotFoundError as error:
        raise OSError(f"{str(path)!r}: {str(error).splitlines()[0]}") from None
    except datasets.exceptions.DatasetGenerationError as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise OSError(f"{str(path)!r} holds no coordinate data set that can be read: {reason}") from error
    dataset = splits[_one_of("split", split, list(splits), path)]
    _check_columns(dataset.features, path)
    return dataset


def _check_columns(features: datasets.Features | None, path: str | Path) -> None:
    if features is not None and "coordinates" not in features:
        raise ValueError(f"{str(path)!r} is no coordinate data set: it has the columns {', '.join(features)}")


def _one_of(argument: str, value: str | None, accepted: list[str], path: str | Path) -> str:
    if value is None and len(accepted) == 1:
        return accepted[0]
    if value not in accepted:
        raise ValueError(f"`{argument}` must be one of {', '.join(accepted)} in {str(path)!r}; got {value!r}")
    return value


def load_record(path: str | Path, config: str, split: str, *, revision: str | None = None) -> dict[str, Any]:
    """The record of the run that found a config's coordinates: what `CONFIG/SPLIT.json` holds."""
    file = Path(path).expanduser() / config / f"{split}.json"
    if not Path(path).expanduser().is_dir():
        from huggingface_hub import hf_hub_download

        file = Path(hf_hub_download(str(path), f"{config}/{split}.json", repo_type="dataset", revision=revision))
    return json.loads(file.read_text(encoding="utf-8"))


def source_of(record: dict[str, Any]) -> tuple[str, str | None]:
    """Name and config of the data set whose images a record's rows point at; `ValueError` where it lay in a directory."""
    name = record["parameters"]["dataset_name"]
    if name != DIGITS and name.count("/") != 1:
        raise ValueError(f"`dataset_name` is needed: the images lay in a local directory, {name!r}; got none")
    return name, record["parameters"]["dataset_config_name"]


def join_coordinates(
    images: datasets.Dataset | datasets.IterableDataset,
    coordinates: datasets.Dataset,
    *,
    image_column_name: str = "image",
    split: str | None = None,
) -> datasets.Dataset | datasets.IterableDataset:
    """
    Puts coordinates beside their images, by `image_id`, and compares the hash of every image's bytes.

    Args:
        images (`datasets.Dataset` or `datasets.IterableDataset`): the source, or a part of it, with images as they were
            loaded: after `map` or `cast` to another form their bytes are others.
        coordinates (`datasets.Dataset`): rows of [`load_coordinates`].
        image_column_name (`str`): the column of the images.
        split (`str`, *optional*): the source's split, for images without file names, whose ids are `SPLIT/INDEX`; by default
            what `images` says. Join such images before you shuffle, select or filter them.

    Returns:
        The rows of `images` that have coordinates, in their order, with the columns of `coordinates` that `images` does not
        have. A stream stays a stream.

    Raises:
        `ValueError`: images whose bytes are not those that the coordinates were found for, with their number and examples;
        or no image has coordinates. Of a stream, while it is read; one without any image that has coordinates is empty.
    """
    split = split or str(images.split or "")
    if images.features is None:
        images = images._resolve_features()  # of a stream that does not state them: reads its first rows
    if image_column_name not in images.features:
        raise ValueError(f"`image_column_name` must be one of {', '.join(images.features)}; got {image_column_name!r}")
    finder = _Finder(coordinates, split)
    new = [name for name in coordinates.column_names if name not in images.features]
    undecoded = encoded(images, image_column_name)
    if isinstance(images, datasets.IterableDataset):
        return _join_stream(undecoded, coordinates, finder, new, image_column_name)
    stored = (row[image_column_name] for row in undecoded.select_columns([image_column_name]))
    kept, found = finder.find(stored, range(len(images)))
    if not kept:
        raise ValueError(f"`coordinates` hold none of the {len(images)} images: are they of this data set and split?")
    columns = coordinates.select_columns(new)
    table = datasets.table.InMemoryTable(columns.with_format("arrow")[found])
    beside = datasets.Dataset(table, info=datasets.DatasetInfo(features=columns.features))
    return datasets.concatenate_datasets([_select_without_copy(images, np.array(kept)), beside], axis=1)


def _select_without_copy(images: datasets.Dataset, kept: np.ndarray) -> datasets.Dataset:
    """Rows of it, as slices that follow each other: from a list of numbers, joining columns would copy all images."""
    slices = np.split(kept, np.flatnonzero(np.diff(kept) != 1) + 1)
    if len(slices) > MAX_SLICES:
        return images.select(kept)
    return datasets.concatenate_datasets([images.select(range(part[0], part[-1] + 1)) for part in slices])


class _Finder:
    """Finds the coordinates of images, by their ids and the hashes of their bytes."""

    def __init__(self, coordinates: datasets.Dataset, split: str):
        self.split = split
        self.hashes = list(coordinates["image_sha256"])
        self.rows_of: dict[str, list[int]] = {}
        for row, image_id in enumerate(coordinates["image_id"]):
            self.rows_of.setdefault(image_id, []).append(row)
        self.used: set[int] = set()  # rows whose image was there

    def find(self, stored: Iterable[dict[str, Any]], indices: Sequence[int]) -> tuple[list[int], list[int]]:
        """Which of these undecoded images have coordinates, by their place among them, and which rows those are."""
        kept, found, differing = [], [], []
        for place, (one, index) in enumerate(zip(stored, indices, strict=True)):
            image = encoded_image({"image": one}, index, self.split)
            if image.image_id.startswith("/"):
                raise ValueError("`split` is needed: images without file names are known by their split; got none")
            rows = self.rows_of.get(image.image_id, [])
            digest = image.sha256 if rows else ""
            matching = [row for row in rows if self.hashes[row] == digest]
            if matching:
                kept.append(place)
                found.append(matching[0])
            elif rows:
                differing.append((image.image_id, rows))
        self.used.update(found)
        # Several images may have one name, not all of them coordinates.
        wrong = [image_id for image_id, rows in differing if not self.used.issuperset(rows)]
        if wrong:
            more = ", ..." if len(wrong) > 3 else ""
            raise ValueError(
                f"`coordinates` were found for other images: the bytes of {len(wrong)} of {len(indices)} differ, such as "
                f"{', '.join(wrong[:3])}{more}. The source may be another one or resized, or, where names are numbers, "
                "shuffled"
            )
        return kept, found


def _join_stream(undecoded, coordinates, finder, new, image_column_name) -> datasets.IterableDataset:
    image = {image_column_name: datasets.Image()}
    features = datasets.Features({**undecoded.features, **image, **{name: coordinates.features[name] for name in new}})
    beside = coordinates.select_columns(new)

    def join(rows: dict[str, list], indices: list[int]) -> dict[str, list]:
        kept, found = finder.find(rows[image_column_name], indices)
        return {**{name: [values[i] for i in kept] for name, values in rows.items()}, **beside[found]}

    # Not `map(features=...)`: its images would stay undecoded.
    return undecoded.map(join, batched=True, batch_size=100, with_indices=True).cast(features)


__all__ = ["coordinate_features", "join_coordinates", "load_coordinates"]
