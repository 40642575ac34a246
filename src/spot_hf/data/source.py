"""Labelled images by the name of their data set: the Hub's, a directory's, or scikit-learn's digits, which need no network."""

from copy import copy
from dataclasses import dataclass, field, fields
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import datasets
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import GatedRepoError

from ..input_checks import check_decode
from ..jobs.versions import hub_commit, public_name
from ..placement import get_placement
from .digits import DIGITS, load_digits
from .encoded import encoded, image_ids, image_paths, rows_of_part
from .failures import check_max_failed_share
from .saliency import boxes_of_images, check_saliency_column, read_boxes_csv


@dataclass(kw_only=True)
class DatasetSource:
    """
    Which images. Jobs' arguments inherit these; those that can stream, or that use saliency, declare `streaming` and
    `saliency_column_name` as fields of their own.
    """

    dataset_name: str = field(
        default=DIGITS, metadata={"help": "digits (embedded), a Hub id, or a directory that load_dataset reads."}
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Config of that data set."})
    dataset_split: str | None = field(
        default=None,
        metadata={"help": "Split to use, or a part, as train[:9000] (default: test, or validation where there is no test)."},
    )
    dataset_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the data set's Hub id."})
    image_column_name: str = field(default="image", metadata={"help": "Column of the images."})
    label_column_name: str | None = field(default="label", metadata={"help": "Column of the labels; none: without labels."})
    max_samples: int | None = field(default=None, metadata={"help": "Use the first so many images only."})
    max_failed_share: float = field(
        default=0.01,
        metadata={"help": "Images that cannot be read are skipped and listed; above this share of them, stop."},
    )

    # Without annotation: no fields, and so no options of jobs that lack them.
    saliency_column_name = None
    boxes_csv = None
    streaming = False
    label_names = None
    labels_by_number = False

    def __post_init__(self) -> None:
        if self.label_column_name is not None and self.label_column_name.lower() == "none":
            self.label_column_name = None

    def check_source(self, needs_labels: bool = False) -> None:
        """`ValueError` for what no data set can have, before anything is loaded; or for labels that a job needs and lacks."""
        if self.max_samples is not None and self.max_samples < 1:
            raise ValueError(f"`max_samples` must be at least 1; got {self.max_samples}")
        check_max_failed_share(self.max_failed_share)
        if needs_labels and self.label_column_name is None:
            raise ValueError("`label_column_name` is needed to measure accuracy; got none")

    def source(self, **changes: Any) -> "DatasetSource":
        """Which images alone, of a job's arguments; with `changes`, such as of the split."""
        values = {one.name: getattr(self, one.name) for one in fields(DatasetSource)}
        found = DatasetSource(**{**values, **{name: value for name, value in changes.items() if name in values}})
        for name in ("saliency_column_name", "boxes_csv", "streaming", "label_names", "labels_by_number"):
            setattr(found, name, changes.get(name, getattr(self, name)))
        return found

    @property
    def columns(self) -> dict[str, str]:
        """Our names of the columns that are asked for → the source's."""
        named = {"image": self.image_column_name, "label": self.label_column_name, "saliency": self.saliency_column_name}
        return {ours: theirs for ours, theirs in named.items() if theirs is not None}

    @property
    def loaded_from(self) -> dict[str, Any]:
        """Path, config and revision, as `load_dataset` takes them."""
        local = Path(self.dataset_name).expanduser()
        path, revision = (str(local), None) if local.exists() else (self.dataset_name, self.dataset_revision)
        return {"path": path, "name": self.dataset_config_name, "revision": revision}

    def recorded_source(self) -> dict[str, Any]:
        """For a job's record: of what lies on this machine the name, not the path. Not how it is read."""
        values = {one.name: getattr(self, one.name) for one in fields(DatasetSource) if one.name != "max_failed_share"}
        return {**values, "dataset_name": public_name(self.dataset_name)}


@dataclass(kw_only=True)
class SalientSource(DatasetSource):
    """Which images, and where these are salient: for jobs that place tokens by it."""

    saliency_column_name: str | None = field(  # type: ignore[assignment]
        default=None,
        metadata={
            "help": "Column of saliency maps (greyscale images, arrays) or boxes [x_min, y_min, x_max, y_max] in pixels: what "
            "is salient, for the placements salient and inverse_salient, and where positions are described."
        },
    )
    boxes_csv: str | None = field(  # type: ignore[assignment]
        default=None,
        metadata={"help": "Instead, a CSV file of boxes with the columns image, x_min, y_min, x_max, y_max, in pixels."},
    )

    def check_source(self, needs_labels: bool = False) -> None:
        super().check_source(needs_labels)
        if self.boxes_csv is None:
            return
        if self.saliency_column_name is not None or self.streaming:
            other = "streaming" if self.saliency_column_name is None else "saliency_column_name"
            raise ValueError(f"`boxes_csv` and `{other}` exclude each other; got both")
        read_boxes_csv(self.boxes_csv)

    @property
    def has_saliency(self) -> bool:
        """Whether it is known where images are salient."""
        return self.saliency_column_name is not None or self.boxes_csv is not None

    def check_saliency_of(self, placement: str) -> None:
        """`ValueError` where a placement needs to know what is salient, and nothing says it."""
        if get_placement(placement).saliency and not self.has_saliency:
            raise ValueError(
                f"`placement` {placement!r} needs the saliency of each image: give `saliency_column_name`, a column of maps "
                "or boxes, or `boxes_csv`; got none"
            )

    def recorded_saliency(self) -> dict[str, Any]:
        """For a job's record: of a file its name and digest. Nothing where there is none, as before there were such files."""
        if self.boxes_csv is None:
            return {}
        digest = sha256(Path(self.boxes_csv).expanduser().read_bytes()).hexdigest()
        return {"boxes_csv": public_name(self.boxes_csv), "boxes_csv_sha256": digest}


# Of jobs that have the option: what they read is the image processor's to say.
DECODE_HELP = (
    "exact: decode images as a whole; scaled: JPEGs at 1/2, 1/4 or 1/8 of their size where the model's recipe shrinks them as "
    "much (default: what the image processor saved)."
)


def check_decode_option(decode: str | None) -> None:
    """`ValueError` where it is given and is none."""
    if decode is not None:
        check_decode(decode)


Source = TypeVar("Source", bound=DatasetSource)


def load_images(source: DatasetSource) -> datasets.Dataset | datasets.IterableDataset:
    """
    Loads a split of an image-classification data set.

    Args:
        source ([`DatasetSource`]): which. Without a label column the data set has images only. `saliency_column_name`: a
            column of saliency maps (greyscale images, or two-dimensional arrays) or of boxes `[x_min, y_min, x_max, y_max]`
            in pixels of the original image, one or a list: see [`read_saliency`]; `boxes_csv`: such boxes in a file.
            `streaming`: the source is read as it is iterated, and nothing stored. Digits, and what `save_to_disk` wrote, are
            there anyway. A column of class names becomes a `ClassLabel`. Where an ImageFolder has a file of metadata, for
            which `load_dataset` drops the labels, the folders' names still are the labels.

    Returns:
        `datasets.Dataset`, or, streaming, `datasets.IterableDataset`, with the columns `image` (decoded to `PIL.Image`),
        `label` and, as it is stored, `saliency`, where these are asked for. Its `split` names the split.

    Raises:
        `ValueError`: no such config, split or column. `OSError`: no such data set, or no access to it.
    """
    dataset = _load_split(source)
    _check_columns(source, dataset.features)
    columns = source.columns
    for column in ("saliency", "image"):
        # Undecoded: renaming the columns of a stream of images would decode and encode them again, without their file names.
        if column in columns and isinstance(dataset.features[columns[column]], datasets.Image):
            dataset = encoded(dataset, columns[column])
    dataset = dataset.select_columns(list(columns.values()))
    dataset = dataset.rename_columns({old: new for new, old in columns.items() if old != new})
    dataset = dataset.cast_column("image", datasets.Image())
    if source.max_samples is not None and isinstance(dataset, datasets.IterableDataset):
        dataset = dataset.take(source.max_samples)
    elif source.max_samples is not None:
        dataset = dataset.select(range(min(source.max_samples, len(dataset))))
    if source.boxes_csv is not None:
        dataset = with_boxes(dataset, source.boxes_csv)
    return dataset


def with_boxes(images: datasets.Dataset, boxes_csv: str) -> datasets.Dataset:
    """With the boxes that a file has for each image, as the column `saliency`; `ValueError` as of [`boxes_of_images`]."""
    names = [path or image_id for path, image_id in zip(image_paths(images), image_ids(images), strict=True)]
    return images.add_column("saliency", boxes_of_images(boxes_csv, names))


def _load_split(source: DatasetSource) -> datasets.Dataset | datasets.IterableDataset:
    """The split that is asked for, or the default one, with features that are known."""
    splits = load_digits() if source.dataset_name == DIGITS else _load_splits(source)
    split = source.dataset_split
    if split is None:
        split = next((name for name in ("test", "validation") if name in splits), next(iter(splits)))
    name, bracket, _ = split.partition("[")
    if name not in splits:
        raise ValueError(f"`dataset_split` must be one of {', '.join(splits)}; got {split!r}")
    dataset = splits[name]
    if bracket:
        if isinstance(dataset, datasets.IterableDataset):
            raise ValueError(f"`dataset_split` must be a whole split with `streaming`; got {split!r}")
        return _slice(_with_class_labels(dict(splits), name, source), split)
    if isinstance(dataset, datasets.IterableDataset):
        # Of a stream whose source does not state them: reads its first rows.
        return dataset if dataset.features is not None else dataset._resolve_features()
    return _with_class_labels(dict(splits), split, source)


def _slice(dataset: datasets.Dataset, split: str) -> datasets.Dataset:
    """A part of a split, as `datasets` writes it, such as `train[:90%]`; it is called by its rows, as `train[0:900]`."""
    try:
        (part,) = datasets.ReadInstruction.from_spec(split).to_absolute({split.partition("[")[0]: len(dataset)})
    except (ValueError, AssertionError):
        raise ValueError(f"`dataset_split` must be a split or a part of one, such as train[:90%]; got {split!r}") from None
    start, stop = part.from_ or 0, len(dataset) if part.to is None else part.to
    selected = dataset.select(range(start, stop)).flatten_indices()
    return datasets.Dataset(selected.data, info=selected.info, split=datasets.NamedSplit(f"{part.splitname}[{start}:{stop}]"))


def parts_overlap(first: str, second: str) -> bool:
    """Whether two splits, or parts of splits as [`load_images`] calls them, can have images in common."""
    (name, low, high), (other, other_low, other_high) = rows_of_part(first), rows_of_part(second)
    return name == other and low < other_high and other_low < high


def _with_class_labels(splits: dict[str, datasets.Dataset], split: str, source: DatasetSource) -> datasets.Dataset:
    """A split, with labels as class numbers that have names, where they are names, or the names of the images' folders. A
    class has the same number in every split."""
    dataset, column = splits[split], source.label_column_name
    if column is None:
        return dataset
    named = _named_labels(dataset, source)
    if named is None:
        return dataset
    others = [_named_labels(other, source) or [] for name, other in splits.items() if name != split]
    names = sorted({value for values in (named, *others) for value in values if value is not None})
    numbers = {name: number for number, name in enumerate(names)}
    labels = [None if value is None else numbers[value] for value in named]
    if column in dataset.features:
        dataset = dataset.remove_columns(column)
    return dataset.add_column(column, labels, feature=datasets.ClassLabel(names=names))


def _named_labels(dataset: datasets.Dataset, source: DatasetSource) -> list[str | None] | None:
    """Where labels are names, these; `None` where they are numbers, or there are none."""
    column, image_column = str(source.label_column_name), source.image_column_name
    if column in dataset.features:
        is_named = getattr(dataset.features[column], "dtype", None) in ("string", "large_string")
        return dataset.with_format("arrow")[column][:].to_pylist() if is_named else None
    if column == "label" and isinstance(dataset.features.get(image_column), datasets.Image):
        return _folders_of(dataset, image_column, Path(source.dataset_name).expanduser())
    return None


def _folders_of(dataset: datasets.Dataset, image_column: str, local: Path) -> list[str | None] | None:
    """Of an ImageFolder with a file of metadata, the folder of each image; `None` where folders are no classes."""
    if not local.is_dir() or not any(local.rglob("metadata.*")):
        return None
    paths = [Path(path) for path in image_paths(dataset, image_column) if path]
    folders = {path.parent for path in paths}
    same_depth = len({len(folder.parts) for folder in folders}) == 1
    if len(paths) != len(dataset) or not same_depth or len(folders) < 2 or any(one == local.resolve() for one in folders):
        return None
    return [path.parent.name for path in paths]


def _check_columns(source: DatasetSource, features: datasets.Features) -> None:
    """`ValueError` where one that is asked for is not there or of another kind."""
    for new, old in source.columns.items():
        if old not in features:
            raise ValueError(f"`{new}_column_name` must be one of {', '.join(features)}; got {old!r}")
    image_column_name = source.image_column_name
    if not isinstance(features[image_column_name], datasets.Image):
        kind = type(features[image_column_name]).__name__
        raise ValueError(f"`image_column_name` must name a column of images; {image_column_name!r} is of type {kind}")
    if source.label_column_name == image_column_name:
        raise ValueError(f"`label_column_name` must be a column of its own; got {image_column_name!r}, which has the images")
    if source.saliency_column_name is not None:
        if source.saliency_column_name in (image_column_name, source.label_column_name):
            raise ValueError(f"`saliency_column_name` must be a column of its own; got {source.saliency_column_name!r}")
        check_saliency_column(features[source.saliency_column_name], source.saliency_column_name)


def _load_splits(source: DatasetSource) -> Any:
    dataset_name = source.dataset_name
    local = Path(dataset_name).expanduser()
    if (local / "dataset_dict.json").is_file() or (local / "state.json").is_file():
        return _load_from_disk(local)
    try:
        splits = datasets.load_dataset(**source.loaded_from, streaming=source.streaming)
        if source.streaming and not local.exists():
            HfApi().auth_check(dataset_name, repo_type="dataset")  # a stream may be refused at its first row only
        return splits
    except Exception as error:
        if _is_gated(error):
            page = f"{constants.ENDPOINT}/datasets/{dataset_name}"
            raise OSError(
                f"`dataset_name` {dataset_name!r} is a gated data set, and your token, if any, has no access to it: ask for "
                f"access at {page}, then log in with `hf auth login`"
            ) from None
        if isinstance(error, datasets.exceptions.DatasetNotFoundError):
            raise OSError(f"`dataset_name` {dataset_name!r}: {str(error).splitlines()[0]}") from None
        if isinstance(error, ValueError) and "corresponds to no data" in str(error):
            raise ValueError(f"`dataset_split` must have images; {dataset_name!r} has a split without any") from None
        if isinstance(error, ValueError) and "BuilderConfig" in str(error):
            raise ValueError(f"`dataset_config_name`: {str(error).splitlines()[0]}") from None
        raise


def _load_from_disk(local: Path) -> Any:
    """The splits of what `save_to_disk` wrote."""
    try:
        found = datasets.load_from_disk(str(local))
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise OSError(f"`dataset_name` {str(local)!r}: {str(error).splitlines()[0]}") from None
    return found if isinstance(found, datasets.DatasetDict) else {str(found.split or "train"): found}


def _is_gated(error: BaseException | None) -> bool:
    """The client says so by its error's class, and `datasets` by a message: for what it found first, card or data."""
    while error is not None:
        not_found = isinstance(error, datasets.exceptions.DatasetNotFoundError)
        if isinstance(error, GatedRepoError) or (not_found and "gated" in str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def pinned(source: Source) -> Source:
    """
    The same source or job at the commit that its revision names now, so that all that is read of a Hub data set is of one
    commit. Unchanged where there is none, or where the Hub cannot be asked.
    """
    found = copy(source)
    found.dataset_revision = (
        None if source.dataset_name == DIGITS else hub_commit(source.dataset_name, source.dataset_revision, "dataset")
    )
    return found


def count_images(images: datasets.Dataset | datasets.IterableDataset, max_samples: int | None) -> int | None:
    """Of what [`load_images`] loaded; `None` for a stream whose source does not say. `ValueError` where there is none."""
    split = str(images.split)
    count: int | None
    if isinstance(images, datasets.Dataset):
        count = len(images)
    else:
        splits = images.info.splits or {}
        count = splits[split].num_examples if split in splits and splits[split].num_examples else None
        if count is not None and max_samples is not None:
            count = min(count, max_samples)
    if count == 0:
        raise ValueError(f"`dataset_split` must have images; {split!r} has none")
    return count
