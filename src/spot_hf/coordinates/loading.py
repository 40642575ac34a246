"""Coordinate data sets: token positions per image, that people share and use with models of their own.

A directory, locally and on the Hub:

    README.md                              the card, with the `configs` and `dataset_info` that `load_dataset` needs
    CONFIG/SPLIT-IIIII-of-NNNNN.parquet    one config per model and number of tokens, such as vit-tiny-patch16-224_n25
    CONFIG/SPLIT.json                      the record of the run that found them: parameters, versions, results
    CONFIG/SPLIT.png                       how the search went, and where tokens were and are

Images are not part of it: rows point at them, by name and by the hash of their bytes. Positions are `(x, y)` relative to the
original image, so that models with other crops can use them.
"""

from hashlib import sha256
from pathlib import Path

import datasets

from ..jobs.directory import LEDGER


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
        builder = datasets.load_dataset_builder(source, config, revision=revision)
        # What its card says, before all of something else is downloaded.
        _check_columns(builder.info.features, path)
        files = [Path(file) for found in builder.config.data_files.values() for file in found] if local.is_dir() else []
        splits = datasets.load_dataset(source, config, revision=revision, cache_dir=_cache_of(files) if files else None)
    except datasets.exceptions.DatasetNotFoundError as error:
        raise OSError(f"{str(path)!r}: {str(error).splitlines()[0]}") from None
    except datasets.exceptions.DatasetGenerationError as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise OSError(f"{str(path)!r} holds no coordinate data set that can be read: {reason}") from error
    dataset = splits[_one_of("split", split, list(splits), path)]
    _check_columns(dataset.features, path)
    return dataset


def _cache_of(files: list[Path]) -> str:
    """
    Where `datasets` prepares local files. Of a directory with a card it knows what it has prepared by the card alone, and
    would give rows of files that have changed since: so each state of the files has a place of its own.
    """
    state = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(files)]
    return str(Path(datasets.config.HF_DATASETS_CACHE) / "spot_hf" / sha256(repr(state).encode()).hexdigest()[:16])


def _check_columns(features: datasets.Features | None, path: str | Path) -> None:
    if features is not None and "coordinates" not in features:
        raise ValueError(f"{str(path)!r} is no coordinate data set: it has the columns {', '.join(features)}")


def _one_of(argument: str, value: str | None, accepted: list[str], path: str | Path) -> str:
    if value is None and len(accepted) == 1:
        return accepted[0]
    if value not in accepted:
        raise ValueError(f"`{argument}` must be one of {', '.join(accepted)} in {str(path)!r}; got {value!r}")
    return value
