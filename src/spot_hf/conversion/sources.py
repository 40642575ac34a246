"""Reads checkpoints as people have them: tensors by the names in their files, config, preprocessing recipe, licence.

From a Hub id, a directory or a file; in transformers' layout, timm's, or weights alone. Nothing that is read can run code, and
an index of shards cannot name files outside its directory.
"""

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
from huggingface_hub import HfApi, ModelCard, hf_hub_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..jobs.network import is_connection_error
from .errors import ConversionError
from .recipes import read_recipe


Tensors = dict[str, torch.Tensor]


# What wrappers put before the names that the tables know, outermost first.
PREFIXES = (
    "module.", "backbone.", "timm_model.", "vit.", "deit.", "dinov2.", "dinov2_with_registers.", "ijepa.", "beit.",
    "data2vec_vision.", "vision_model.",
)  # fmt: skip


@dataclass
class Source:
    """A checkpoint as it was found: tensors under the names of its table, and what stands beside them."""

    name: str
    revision: str | None
    license: str | None
    config: dict[str, Any] | None
    recipe: dict[str, Any] | None
    tensors: Tensors
    file_names: dict[str, str]  # what the tensors are called in the files, wrappers' prefixes included
    notes: list[str]
    num_attention_heads: int | None = None  # given by the caller, as tensors do not tell
    directory: Path | None = None  # of the files that a config describes

    def shape(self, name: str, num_dimensions: int = 2) -> tuple[int, ...]:
        if name not in self.tensors:
            raise ConversionError(f"missing tensor `{name}` in {self.name}")
        shape = tuple(self.tensors[name].shape)
        if len(shape) != num_dimensions:
            raise ConversionError(
                f"wrong shape of tensor `{self.file_names[name]}` in {self.name}: expected {num_dimensions} dimensions, "
                f"got {shape}"
            )
        return shape


def load_source(source_model: str, revision: str | None = None, token: str | None = None) -> Source:
    """
    Reads a checkpoint: tensors by name, `config.json`, preprocessing recipe, licence.

    Args:
        source_model (`str`): a Hub id, a local directory, or a file (`.safetensors`, `.bin`, `.pth`, `.pt`; with the
            `config.json` beside it, where there is one).
        revision (`str`, *optional*): branch, tag or commit of a Hub id.
        token (`str`, *optional*): of the Hub, for private and gated repositories; the logged-in one by default.

    Raises:
        [`ConversionError`]: nothing there, no access, or no weights that can be read safely.
    """
    path = Path(source_model).expanduser()
    local = path.exists()
    if local and revision is not None:
        raise ConversionError(
            f"`revision` goes with a Hub id; `source_model` {source_model!r} is local, `revision` {revision!r}"
        )
    if local:
        directory = path if path.is_dir() else path.parent
        weights = _weight_files(directory) if path.is_dir() else [path]
        if not weights:
            raise ConversionError(f"`source_model` {source_model!r} holds no model.safetensors and no pytorch_model.bin")
        license_name = _license_of(directory / "README.md")
        # The config beside a file describes it only if the file holds that model's weights.
        described = path.is_dir() or path.name in WEIGHT_NAMES
    else:
        directory, weights, revision, license_name = _download(source_model, revision, token)
        described = True
    config = _read_json(directory / "config.json") if described and (directory / "config.json").exists() else None
    if config is None and not (local and path.is_file()):
        raise ConversionError(f"`source_model` {source_model!r} holds no config.json")
    tensors: Tensors = {}
    for file in weights:
        tensors.update(_read_tensors(file))
    file_names = _strip_prefixes(list(tensors))
    notes: list[str] = []
    recipe = read_recipe(directory, config, notes) if config is not None else None
    return Source(
        name=str(source_model) if not local else path.resolve().name,
        revision=revision,
        license=license_name,
        config=config,
        recipe=recipe,
        tensors={name: tensors[file_name] for name, file_name in file_names.items()},
        file_names=file_names,
        notes=notes,
        directory=None if config is None else directory,
    )


# Those of a tokenizer's vocabulary, of which it has one at least; and what else belongs to it.
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")
BESIDE_TOKENIZERS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt")
WEIGHT_NAMES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def _weight_files(directory: Path) -> list[Path]:
    for name in WEIGHT_NAMES:
        file = directory / name
        if file.exists():
            if not name.endswith(".index.json"):
                return [file]
            weight_map = _read_json(file).get("weight_map")
            if not isinstance(weight_map, dict) or not weight_map:
                raise ConversionError(f"{name} holds no `weight_map` from tensors to files")
            return [directory / _inside(str(shard), name) for shard in sorted(set(weight_map.values()))]
    return []


def _inside(shard: str, index: str) -> PurePosixPath:
    """The path of a shard, as an index gives it, where that is a path below the index' directory on any system."""
    path = PurePosixPath(shard)
    if path.is_absolute() or ".." in path.parts or PureWindowsPath(shard).drive or "\\" in shard:
        raise ConversionError(f"{index} names the file {shard!r}, which must be below the directory of {index}")
    return path


def _download(repo_id: str, revision: str | None, token: str | None) -> tuple[Path, list[Path], str | None, str | None]:
    """The needed files of a Hub repository, in the cache, all of one commit."""
    try:
        info = HfApi(token=token).model_info(repo_id, revision=revision)
        names = {sibling.rfilename for sibling in info.siblings or []}

        def fetch(name: str) -> Path:
            return Path(hf_hub_download(repo_id, name, revision=info.sha, token=token))

        found = next((name for name in WEIGHT_NAMES if name in names), None)
        if found is None:
            raise ConversionError(f"`source_model` {repo_id!r} holds no model.safetensors and no pytorch_model.bin")
        if "config.json" not in names:
            raise ConversionError(f"`source_model` {repo_id!r} holds no config.json")
        directory = fetch("config.json").parent
        for name in ("preprocessor_config.json", "processor_config.json"):
            if name in names:
                fetch(name)
        if "text_config" in _read_json(directory / "config.json"):
            for name in names.intersection((*TOKENIZER_FILES, *BESIDE_TOKENIZERS)):
                fetch(name)
        fetch(found)
        weights = _weight_files(directory)
        for shard in weights:
            name = shard.relative_to(directory).as_posix()
            if name not in names:
                raise ConversionError(f"`source_model` {repo_id!r} holds no {name}, which {found} names")
            fetch(name)
    except GatedRepoError:
        raise ConversionError(
            f"`source_model` {repo_id!r} is gated: ask for access on its page, then log in with `hf auth login`"
        ) from None
    except RevisionNotFoundError:
        raise ConversionError(f"`revision` {revision!r} does not exist in {repo_id!r}") from None
    except (RepositoryNotFoundError, HFValidationError):
        raise ConversionError(
            f"`source_model` {repo_id!r} is neither a local path nor a repository on the Hub that you can read "
            f"(a private one needs a token: `hf auth login`)"
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConversionError(f"`source_model` {repo_id!r} is no local path, and the Hub did not answer: {reason}") from None
    except Exception as error:  # the HTTP client's own connection errors
        if not is_connection_error(error):
            raise
        raise ConversionError(f"`source_model` {repo_id!r} is no local path, and the Hub did not answer: {error}") from None
    license_name = info.card_data.get("license") if info.card_data else None
    return directory, weights, info.sha, license_name if isinstance(license_name, str) else None


def _license_of(readme: Path) -> str | None:
    if not readme.exists():
        return None
    try:
        license_name = ModelCard.load(readme).data.get("license")
    except Exception:  # a card that is no valid card says nothing about a licence
        return None
    return license_name if isinstance(license_name, str) else None


def _read_json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConversionError(f"cannot read {file.name}: {error}") from None
    if not isinstance(value, dict):
        raise ConversionError(f"{file.name} must hold a JSON object; got {type(value).__name__}")
    return value


def _read_tensors(file: Path) -> Tensors:
    if file.suffix == ".safetensors":
        try:
            return load_file(file)
        except (SafetensorError, OSError) as error:
            raise ConversionError(f"cannot read {file.name} as safetensors: {error}") from None
    if file.suffix not in (".bin", ".pth", ".pt"):
        raise ConversionError(f"`source_model` must be .safetensors, .bin, .pth or .pt; got {file.name}")
    loaded = load_safely(file)
    for key in ("model", "state_dict", "teacher"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    tensors = {k: v for k, v in loaded.items() if isinstance(v, torch.Tensor)} if isinstance(loaded, dict) else {}
    if not tensors:
        raise ConversionError(f"{file.name} holds no tensors by name")
    return tensors


def load_safely(file: Path) -> Any:
    """What `torch.save` wrote, as far as it is tensors and plain containers: nothing that could run code."""
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConversionError(
            f"cannot read {file.name} with weights_only=True, and a pickle that needs more could run any code: load it "
            f"where you trust it, and save its tensors as safetensors ({reason})"
        ) from None


def _strip_prefixes(file_names: list[str]) -> dict[str, str]:
    """Names in the files, by the names that a table knows."""
    stripped: dict[str, str] = {}
    for file_name in file_names:
        name = file_name
        for prefix in PREFIXES:
            name = name.removeprefix(prefix)
        if name in stripped:
            raise ConversionError(f"tensors `{stripped[name]}` and `{file_name}` stand for the same parameter")
        stripped[name] = file_name
    return stripped
