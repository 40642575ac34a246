"""Preprocessing recipes: transformers' and timm's, as keywords of SpotViT's image processor."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.utils import is_torchvision_available

from .errors import ConversionError


RECIPE_NAMES = (
    "do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor", "do_normalize",
    "image_mean", "image_std",
)  # fmt: skip


# Steps of other image processors that SpotViT's does not have.
UNSUPPORTED_STEPS = ("do_pad", "do_thumbnail", "do_flip_channel_order")


TIMM_RESAMPLE = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}


IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def read_recipe(directory: Path, config: dict[str, Any], notes: list[str]) -> dict[str, Any] | None:
    """Keywords of an image processor: from transformers' `preprocessor_config.json` or timm's `pretrained_cfg`."""
    if "architecture" in config:
        return timm_recipe(timm_pretrained_cfg(config), notes)
    names = ("preprocessor_config.json", "processor_config.json")  # the second of a processor of images and texts
    name = next((name for name in names if (directory / name).exists()), None)
    if name is None:
        return None
    try:
        source = AutoImageProcessor.from_pretrained(
            directory, backend="torchvision" if is_torchvision_available() else "pil", trust_remote_code=False
        )
    except ImportError:  # such as DINOv3's, which there is for torchvision alone
        source = _recipe_as_written(directory / name)
    except (ValueError, OSError) as error:
        raise ConversionError(f"cannot read {name}: {str(error).strip().splitlines()[0]}") from None
    if getattr(source, "image_processor_type", type(source).__name__).startswith("DINOv3"):
        notes.append("the source rescales images before it resizes them, and the image processor after it: pixels are rounded")
    for step in UNSUPPORTED_STEPS:
        if getattr(source, step, None):
            raise ConversionError(f"{name} asks for `{step}`, which SpotViT's image processor does not do")
    recipe = {name: getattr(source, name, None) for name in RECIPE_NAMES}
    recipe = {name: dict(v) if name in ("size", "crop_size") and v else v for name, v in recipe.items() if v is not None}
    return _as_usual_steps(source, recipe)


def _recipe_as_written(file: Path) -> SimpleNamespace:
    """The entries of a file whose class cannot be had; one that leaves out what the class would add is refused."""
    written = json.loads(file.read_text(encoding="utf-8"))
    written = written.get("image_processor") or written
    for name in ("size", "crop_size"):
        if isinstance(written.get(name), int):  # as old files have it
            written[name] = {"height": written[name], "width": written[name]}
    lacking = [name for name in ("do_resize", "size", "resample", "image_mean", "image_std") if written.get(name) is None]
    if lacking:
        raise ConversionError(
            f"{file.name} lacks `{'`, `'.join(lacking)}`, which {written.get('image_processor_type')} has by default; it "
            "needs torchvision: pip install torchvision"
        )
    return SimpleNamespace(**written)


def _as_usual_steps(source: Any, recipe: dict[str, Any]) -> dict[str, Any]:
    """Steps that image processors of convolutional networks have, by those that every one has."""
    edge = (recipe.get("size") or {}).get("shortest_edge")
    if getattr(source, "crop_pct", None) and recipe.get("do_resize") and edge:  # ConvNeXT's
        whole = edge >= 384  # then the whole image is squeezed
        size = {"height": edge, "width": edge} if whole else {"shortest_edge": int(edge / source.crop_pct)}
        recipe.update(size=size)
        if not whole:
            recipe.update(do_center_crop=True, crop_size={"height": edge, "width": edge})
    is_offset, is_divided = (
        recipe.get("do_rescale") and getattr(source, "rescale_offset", False),
        getattr(source, "include_top", 0),
    )
    if (
        is_offset or is_divided
    ):  # EfficientNet's: less 1 after rescaling, by the standard deviation once more after normalizing
        own_std = recipe.get("image_std", IMAGENET_STD)
        mean, std = (
            (recipe.get("image_mean", IMAGENET_MEAN), own_std) if recipe.get("do_normalize") else ([0.0] * 3, [1.0] * 3)
        )
        mean = [value + 1 for value in mean] if is_offset else mean
        std = [one * other for one, other in zip(std, own_std, strict=True)] if is_divided else std
        recipe.update(do_normalize=True, image_mean=list(mean), image_std=list(std))
    return recipe


def timm_pretrained_cfg(config: dict[str, Any]) -> dict[str, Any]:
    """timm's description of a checkpoint; in its older files it lies at the top level."""
    return config.get("pretrained_cfg") or config


def timm_recipe(pretrained: dict[str, Any], notes: list[str]) -> dict[str, Any]:
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
            "timm crops images to the aspect ratio of its model's input, which is not square; the image processor has no "
            "such step and squeezes them"
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
    return timm_recipe({"input_size": (3, height, width)}, notes=[])


def recipe_size(recipe: dict[str, Any] | None) -> tuple[int, int] | None:
    """`(height, width)` of `pixel_values` under a recipe, where it is the same for every image."""
    if recipe is None:
        return None
    size = recipe.get("crop_size") if recipe.get("do_center_crop") else recipe.get("size") if recipe.get("do_resize") else None
    return (size["height"], size["width"]) if size and size.get("height") and size.get("width") else None
