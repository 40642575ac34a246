"""The record of the run that found a config's coordinates: `CONFIG/SPLIT.json`."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import datasets
from huggingface_hub import hf_hub_download

from ..data.digits import DIGITS
from .summary import Summary


@dataclass(kw_only=True)
class Record:
    """
    Attributes:
        parameters (`dict`): of the run, with the one `num_tokens` of this config.
        command, versions, device: as in [`Ledger`].
        split (`str`): of the source.
        features (`list`): the columns, as [`datasets.Features`] writes them to YAML.
        patch_size (`int`), image_processor (`dict`): of the model: with these, `spot-hf show` needs no model.
        results ([`Summary`]): of all shards.
    """

    parameters: dict[str, Any]
    command: str | None
    versions: dict[str, str]
    device: str
    split: str
    features: list[dict[str, Any]]
    patch_size: int
    image_processor: dict[str, Any]
    results: Summary

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "results": self.results.to_json()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Record":
        known = {one.name: values[one.name] for one in fields(cls)}
        return cls(**{**known, "results": Summary.from_json(values["results"])})

    @property
    def dataset_features(self) -> datasets.Features:
        return datasets.Features._from_yaml_list(self.features)

    @property
    def class_names(self) -> list[str]:
        """Of the source's labels; none where it has no names."""
        return getattr(self.dataset_features["label"], "names", None) or []

    @property
    def source(self) -> tuple[str, str | None]:
        """Name and config of the data set whose images the rows point at."""
        return self.parameters["dataset_name"], self.parameters["dataset_config_name"]

    @property
    def dataset(self) -> tuple[str, str | None]:
        """The same, for loading it; `ValueError` where it lay in a directory."""
        name, config = self.source
        if name != DIGITS and name.count("/") != 1:
            raise ValueError(f"`dataset_name` is needed: the images lay in a local directory, {name!r}; got none")
        return name, config


def load_record(path: str | Path, config: str, split: str, *, revision: str | None = None) -> Record:
    """
    Args:
        path (`str`): of the coordinate data set: a directory or a Hub id.
        config, split (`str`): which.
        revision (`str`, *optional*): branch, tag or commit of a Hub id.
    """
    directory = Path(path).expanduser()
    if directory.is_dir():
        file = directory / config / f"{split}.json"
    else:
        file = Path(hf_hub_download(str(path), f"{config}/{split}.json", repo_type="dataset", revision=revision))
    return Record.from_json(json.loads(file.read_text(encoding="utf-8")))
