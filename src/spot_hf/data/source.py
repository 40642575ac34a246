"""Labelled images by the name of their data set: the Hub's, a directory's, or scikit-learn's digits, which need no network."""

from pathlib import Path
from typing import Any

import datasets
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled

from .digits import DIGITS, load_digits
from .encoded import encoded
from .saliency import check_saliency_column


def load_images(
    dataset_name: str,
    *,
    config_name: str | None = None,
    split: str | None = None,
    revision: str | None = None,
    image_column_name: str = "image",
    label_column_name: str | None = "label",
    saliency_column_name: str | None = None,
    max_samples: int | None = None,
    streaming: bool = False,
) -> datasets.Dataset | datasets.IterableDataset:
    """
    Loads a split of an image-classification data set.

    Args:
        dataset_name (`str`): `"digits"`, a Hub id, or a directory in any form that `load_dataset` reads.
        config_name (`str`, *optional*): the data set's config.
        split (`str`, *optional*): by default `test`, or `validation` where there is no test split.
        revision (`str`, *optional*): branch, tag or commit of a Hub id.
        image_column_name, label_column_name (`str`): the columns' names in the source. Without a label column the data set has
            images only.
        saliency_column_name (`str`, *optional*): a column of saliency maps (greyscale images, or two-dimensional arrays) or of
            boxes `[x_min, y_min, x_max, y_max]` in pixels of the original image, one or a list: see [`read_saliency`].
        max_samples (`int`, *optional*): the first so many rows only.
        streaming (`bool`): read the source as it is iterated, and store nothing. Digits are in memory anyway.

    Returns:
        `datasets.Dataset`, or, streaming, `datasets.IterableDataset`, with the columns `image` (decoded to `PIL.Image`),
        `label` and, as it is stored, `saliency`, where these are asked for. Its `split` names the split.

    Raises:
        `ValueError`: no such config, split or column. `OSError`: no such data set, or no access to it.
    """
    splits = load_digits() if dataset_name == DIGITS else _load_splits(dataset_name, config_name, revision, streaming)
    if split is None:
        split = next((name for name in ("test", "validation") if name in splits), next(iter(splits)))
    if split not in splits:
        raise ValueError(f"`dataset_split` must be one of {', '.join(splits)}; got {split!r}")
    dataset = splits[split]
    if dataset.features is None:
        dataset = dataset._resolve_features()  # of a stream whose source does not state them: reads its first rows
    asked_for = {"image": image_column_name, "label": label_column_name, "saliency": saliency_column_name}
    names = {new: old for new, old in asked_for.items() if old is not None}
    for new, old in names.items():
        if old not in dataset.features:
            raise ValueError(f"`{new}_column_name` must be one of {', '.join(dataset.features)}; got {old!r}")
    if not isinstance(dataset.features[image_column_name], datasets.Image):
        kind = type(dataset.features[image_column_name]).__name__
        raise ValueError(f"`image_column_name` must name a column of images; {image_column_name!r} is of type {kind}")
    if label_column_name == image_column_name:
        raise ValueError(f"`label_column_name` must be a column of its own; got {label_column_name!r}, which has the images")
    if saliency_column_name is not None:
        if saliency_column_name in (image_column_name, label_column_name):
            raise ValueError(f"`saliency_column_name` must be a column of its own; got {saliency_column_name!r}")
        check_saliency_column(dataset.features[saliency_column_name], saliency_column_name)
        if isinstance(dataset.features[saliency_column_name], datasets.Image):
            dataset = encoded(dataset, saliency_column_name)
    # Undecoded: renaming the columns of a stream of images would decode and encode them again, without their file names.
    dataset = encoded(dataset, image_column_name).select_columns(list(names.values()))
    dataset = dataset.rename_columns({old: new for new, old in names.items() if old != new})
    dataset = dataset.cast_column("image", datasets.Image())
    if max_samples is None:
        return dataset
    if isinstance(dataset, datasets.IterableDataset):
        return dataset.take(max_samples)
    return dataset.select(range(min(max_samples, len(dataset))))


def _load_splits(dataset_name: str, config_name: str | None, revision: str | None, streaming: bool) -> Any:
    local = Path(dataset_name).expanduser()
    try:
        splits = datasets.load_dataset(
            str(local) if local.exists() else dataset_name,
            config_name,
            revision=None if local.exists() else revision,
            streaming=streaming,
        )
        if streaming and not local.exists():
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


def _is_gated(error: BaseException | None) -> bool:
    """The client says so by its error's class, and `datasets` by a message: for what it found first, card or data."""
    while error is not None:
        not_found = isinstance(error, datasets.exceptions.DatasetNotFoundError)
        if isinstance(error, GatedRepoError) or (not_found and "gated" in str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def resolve_revision(dataset_name: str, revision: str | None = None) -> str | None:
    """The commit of a Hub data set, for the record; what was asked for where the Hub cannot be asked."""
    if dataset_name == DIGITS or Path(dataset_name).expanduser().exists():
        return None
    try:
        return HfApi().dataset_info(dataset_name, revision=revision).sha
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError):
        return revision


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


# --------------------------------------------------------------------------------------------------- encoded images


# ------------------------------------------------------------------------------------------------------------ digits
