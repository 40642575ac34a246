"""A checkpoint as people have it, read: tensors by the names in its files, config, preprocessing recipe, licence.

From a Hub id, a directory or a file; transformers' layout, timm's, or weights alone. Nothing that is read can run code.
"""

import json
from dataclasses import dataclass
from pathlib import Path
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
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.utils import is_torchvision_available

from .publishing import is_connection_error


Tensors = dict[str, torch.Tensor]


class ConversionError(ValueError):
    """A checkpoint that cannot be converted; the message names what stands in the way."""


# Wrappers around the names that a table knows, from the outside in.
PREFIXES = ("module.", "backbone.", "timm_model.", "vit.", "deit.", "dinov2.", "dinov2_with_registers.")


# ------------------------------------------------------------------------------------------------------------ source


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
    num_attention_heads: int | None = None  # as the caller states it: tensors do not say

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
        # A bare file is described by the config beside it only if it is that config's weights.
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
    recipe = _read_recipe(directory, config, notes) if config is not None else None
    return Source(
        name=str(source_model) if not local else path.resolve().name,
        revision=revision,
        license=license_name,
        config=config,
        recipe=recipe,
        tensors={name: tensors[file_name] for name, file_name in file_names.items()},
        file_names=file_names,
        notes=notes,
    )


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
            return [directory / str(shard) for shard in sorted(set(weight_map.values()))]
    return []


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
        if "preprocessor_config.json" in names:
            fetch("preprocessor_config.json")
        fetch(found)
        weights = _weight_files(directory)
        for shard in weights:
            fetch(shard.name)
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


# ----------------------------------------------------------------------------------------------- preprocessing recipe

RECIPE_NAMES = (
    "do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor", "do_normalize",
    "image_mean", "image_std",
)  # fmt: skip
# Steps of other image processors that SpotViT's has not.
UNSUPPORTED_STEPS = ("crop_pct", "do_pad", "do_thumbnail", "do_flip_channel_order")
TIMM_RESAMPLE = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}
IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def _read_recipe(directory: Path, config: dict[str, Any], notes: list[str]) -> dict[str, Any] | None:
    """Keywords of an image processor: from transformers' `preprocessor_config.json` or timm's `pretrained_cfg`."""
    if "architecture" in config:
        return _timm_recipe(timm_pretrained_cfg(config), notes)
    if not (directory / "preprocessor_config.json").exists():
        return None
    try:
        source = AutoImageProcessor.from_pretrained(
            directory, backend="torchvision" if is_torchvision_available() else "pil", trust_remote_code=False
        )
    except (ValueError, OSError, ImportError) as error:
        raise ConversionError(f"cannot read preprocessor_config.json: {str(error).strip().splitlines()[0]}") from None
    for name in UNSUPPORTED_STEPS:
        if getattr(source, name, None):
            raise ConversionError(f"preprocessor_config.json asks for `{name}`, which SpotViT's image processor does not do")
    recipe = {name: getattr(source, name, None) for name in RECIPE_NAMES}
    return {name: dict(v) if name in ("size", "crop_size") and v else v for name, v in recipe.items() if v is not None}


def timm_pretrained_cfg(config: dict[str, Any]) -> dict[str, Any]:
    """timm's account of a checkpoint; its older files hold it at the top."""
    return config.get("pretrained_cfg") or config


def _timm_recipe(pretrained: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    """timm's evaluation transform at the size of training: short side to `input_size / crop_pct`, centre crop."""
    _, height, width = pretrained.get("input_size") or (3, 224, 224)
    crop = pretrained.get("crop_pct") or 0.875
    mode = pretrained.get("crop_mode") or "center"
    if mode not in ("center", "squash"):
        raise ConversionError(f"`crop_mode` of the timm config must be center or squash; got {mode!r}")
    size = {"shortest_edge": int(height / crop)}
    if mode == "squash" or height != width:
        size = {"height": int(height / crop), "width": int(width / crop)}
    if mode == "center" and height != width:
        notes.append(
            "timm crops images to the aspect ratio of its model's input, which is not square; the image processor, which "
            "has no such step, squeezes them"
        )
    return {
        "do_resize": True,
        "size": size,
        "resample": TIMM_RESAMPLE.get(pretrained.get("interpolation") or "bicubic", 3),
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "image_mean": list(pretrained.get("mean") or IMAGENET_MEAN),
        "image_std": list(pretrained.get("std") or IMAGENET_STD),
    }


def default_recipe(height: int, width: int) -> dict[str, Any]:
    return _timm_recipe({"input_size": (3, height, width)}, notes=[])


def recipe_size(recipe: dict[str, Any] | None) -> tuple[int, int] | None:
    """`(height, width)` of `pixel_values` under a recipe, where it is the same for every image."""
    if recipe is None:
        return None
    size = recipe.get("crop_size") if recipe.get("do_center_crop") else recipe.get("size") if recipe.get("do_resize") else None
    return (size["height"], size["width"]) if size and size.get("height") and size.get("width") else None
