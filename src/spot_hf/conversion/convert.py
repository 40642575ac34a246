"""Checkpoints that people already have → SpotViT. One rename table per family; tensors are read by the names that stand in
the checkpoint's files, so that no class of the source model is needed.

A table maps the source's names to SpotViT's, with `{i}` for the layer. A few targets are not parameters of the model but
parts of one, put together by `_Assembly`: `cls_token`, `distillation_token`, `register_tokens`, `position_table`, `qkv`,
`gate_up_proj`, the two heads of distilled DeiT, and the position channel of the released SPoT checkpoints.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers.activations import ACT2FN
from transformers.utils import is_timm_available

from ..configuration_spot_vit import SpotViTConfig
from ..hub.cards import measured_by_conversion, write_model_card
from ..image_processing_spot_vit import SpotViTImageProcessor
from ..jobs.files import check_output_dir, replaced_directory
from ..modeling_spot_vit import SpotViTForImageClassification, SpotViTModel
from ..placement import PLACEMENTS, check_placement
from .assembly import _Assembly, _load, _match_names
from .errors import ConversionError
from .families import FAMILIES, detect_family
from .recipes import default_recipe, recipe_size, timm_pretrained_cfg
from .sources import Source, Tensors, load_source


# ----------------------------------------------------------------------------------------------------- rename tables


# ---------------------------------------------------------------------------------------------------------- families


# --------------------------------------------------------------------------------------------------------- conversion


@dataclass
class ConversionReport:
    """What a conversion did with every tensor of the source."""

    source_model: str
    revision: str | None
    family: str
    model_type: str | None  # transformers' name of the source's own class, where it has one
    license: str | None
    architecture: str
    num_parameters: int
    used: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    output_dir: str | None = None
    model: Any = field(default=None, repr=False)
    image_processor: Any = field(default=None, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """All but the objects, as it is written to `conversion_report.json`."""
        return {k: v for k, v in self.__dict__.items() if k not in ("model", "image_processor", "output_dir")}

    def summary(self) -> str:
        """A few lines for a person."""
        revision = f" at {self.revision[:12]}" if self.revision else ""
        lines = [
            f"source      {self.source_model}{revision} ({self.family}, licence {self.license or 'not stated'})",
            f"model       {self.architecture}, {self.num_parameters / 1e6:.1f} M parameters",
            f"tensors     {len(self.used)} used, {len(self.skipped)} skipped, {len(self.missing)} newly initialised",
        ]
        lines += [f"  skipped   {name}: {reason}" for name, reason in self.skipped.items()]
        lines += [f"  new       {name}: {reason}" for name, reason in self.missing.items()]
        lines += [f"note        {note}" for note in self.notes]
        return "\n".join(lines + ([f"written to  {self.output_dir}"] if self.output_dir else []))


def convert_checkpoint(
    source_model: str,
    output_dir: str | Path | None = None,
    *,
    revision: str | None = None,
    token: str | None = None,
    num_tokens: int | None = None,
    placement: str | None = None,
    num_labels: int | None = None,
    num_attention_heads: int | None = None,
    seed: int = 0,
    overwrite_output_dir: bool = False,
    repo_id: str | None = None,
) -> ConversionReport:
    """
    Converts a ViT, DeiT, DINO, DINOv2 or MAE checkpoint into a SpotViT that gives the same logits on the full grid, or one of
    the released SPoT checkpoints into one that gives the same logits everywhere.

    Args:
        source_model (`str`): a Hub id, a local directory, or a file of weights.
        output_dir (`str`, *optional*): where to write the model, image processor, remote code, card and
            `conversion_report.json`; nothing is written without it, or on an error.
        revision (`str`, *optional*): branch, tag or commit of a Hub id.
        token (`str`, *optional*): of the Hub.
        num_tokens (`int`, *optional*), placement (`str`, *optional*): saved defaults of the image processor; the full grid
            where neither is given.
        num_labels (`int`, *optional*): gives a source without a classifier a freshly initialised one.
        num_attention_heads (`int`, *optional*): of a file without a config, where they are not 64 wide.
        seed (`int`): of that initialisation.
        overwrite_output_dir (`bool`): replace what is in `output_dir`.
        repo_id (`str`, *optional*): the name under which the card's examples load the result; `output_dir` by default.

    Returns:
        [`ConversionReport`], with `model` and `image_processor`.

    Raises:
        [`ConversionError`]: the source cannot be had, is of no known family, or lacks a tensor, has one too many or one of
            a wrong shape. `ValueError`: another argument is wrong.
    """
    if num_tokens is not None or placement is not None:
        check_placement(placement or "isotropic", num_tokens)
        if placement is not None and PLACEMENTS[placement].saliency:
            raise ValueError(f"`placement` {placement!r} cannot be a saved default: it needs a saliency map with every image")
    for name, count in {"num_labels": num_labels, "num_attention_heads": num_attention_heads}.items():
        if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
            raise ValueError(f"`{name}` must be a positive integer; got {count!r}")
    if output_dir is not None:
        check_output_dir(output_dir, overwrite_output_dir, inputs=[source_model])

    source = load_source(source_model, revision, token)
    if num_attention_heads is not None and source.config is not None:
        raise ValueError(f"`num_attention_heads` is for a file without a config; {source.name!r} has one")
    source.num_attention_heads = num_attention_heads
    family_name = detect_family(source)
    family = FAMILIES[family_name]
    described = family.describe(source)
    used, skipped = _match_names(source, family)
    parts = {target: source.tensors[name].float() for name, target in used.items()}
    names = {target: source.file_names[name] for name, target in used.items()}

    has_head = any(target.startswith("classifier.") for target in parts)
    if has_head and num_labels is not None:
        raise ValueError(
            f"`num_labels` is for a source without a classifier; {source.name!r} has one of "
            f"{parts['classifier.weight'].shape[0]} labels; got {num_labels}"
        )
    notes = list(source.notes)
    described.update(_describe_labels(source, parts, num_labels, notes))
    if not has_head and num_labels is not None and family_name.startswith("dinov2"):
        described["pooling"] = "cls_mean"  # what the family's own classifiers see
    table_size = _table_size(described)
    model_size = recipe_size(source.recipe)
    if family.interpolation is not None and model_size is not None:
        described["image_size"] = model_size[0] if model_size[0] == model_size[1] else list(model_size)
    config = _build_config(described, source, family_name)
    if num_tokens is not None or placement is not None:
        height, width = model_size or config.image_height_width
        num_cells = (height // config.patch_size) * (width // config.patch_size)
        check_placement(placement or "isotropic", num_tokens, num_cells)
    assembly = _Assembly(parts, names, config, family, source)
    assembly.run(table_size)

    with_classifier = has_head or num_labels is not None
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = SpotViTForImageClassification(config) if with_classifier else SpotViTModel(config)
    missing = _load(model, assembly.state, assembly.origins, source, fresh_head=with_classifier and not has_head)
    model.eval()

    if source.recipe is None:
        notes.append("no preprocessing recipe in the source: short side to size / 0.875, bicubic, ImageNet mean and std")
    image_processor = SpotViTImageProcessor(
        **(source.recipe or default_recipe(*config.image_height_width)),
        patch_size=config.patch_size,
        num_tokens=num_tokens,
        placement=placement,
    )
    report = ConversionReport(
        source_model=source.name,
        revision=source.revision,
        family=family_name,
        model_type=(source.config or {}).get("model_type"),
        license=source.license,
        architecture=type(model).__name__,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        used={source.file_names[name]: target for name, target in used.items()},
        skipped={source.file_names[name]: reason for name, reason in skipped.items()},
        missing=missing,
        notes=notes,
        model=model,
        image_processor=image_processor,
    )
    if output_dir is not None:
        with replaced_directory(output_dir, overwrite_output_dir, inputs=[source_model]) as temporary:
            write_model_card(
                model,
                temporary,
                repo_id=repo_id or str(output_dir),
                num_tokens=num_tokens,
                placement=placement,
                measured=measured_by_conversion(family_name, with_classifier, new_classifier=bool(missing)),
            )
            model.save_pretrained(temporary)
            image_processor.save_pretrained(temporary)
            (temporary / "conversion_report.json").write_text(json.dumps(report.to_dict(), indent=2) + "\n", encoding="utf-8")
        report.output_dir = str(output_dir)
    return report


def _describe_labels(source: Source, parts: Tensors, num_labels: int | None, notes: list[str]) -> dict[str, Any]:
    """`id2label` for the classifier's rows: the source's, timm's for ImageNet, or numbered."""
    if num_labels is None:
        heads = [part for name, part in parts.items() if name.startswith("classifier.")]
        if not heads:
            return {}
        num_labels = heads[0].shape[0]
    config = source.config or {}
    id2label = {int(i): str(label) for i, label in (config.get("id2label") or {}).items()}
    pretrained = timm_pretrained_cfg(config)
    label_names = config.get("label_names") or pretrained.get("label_names")
    if not id2label and label_names:
        descriptions = config.get("label_descriptions") or pretrained.get("label_descriptions") or {}
        numbered = label_names.items() if isinstance(label_names, dict) else enumerate(label_names)
        id2label = {int(i): str(descriptions.get(name, name)) for i, name in numbered}
    if not id2label and num_labels == 1000 and config.get("architecture") and is_timm_available():
        from timm.data import ImageNetInfo

        id2label = dict(enumerate(ImageNetInfo().label_descriptions()))
    if sorted(id2label) != list(range(num_labels)):
        notes.append(f"no names for the {num_labels} labels in the source: they are numbered")
        id2label = {i: f"LABEL_{i}" for i in range(num_labels)}
    return {"id2label": id2label, "label2id": {label: i for i, label in id2label.items()}}


def _table_size(described: dict[str, Any]) -> tuple[int, int]:
    """`(rows, columns)` of the position table as it lies in the source."""
    size = described["image_size"]
    height, width = (size, size) if isinstance(size, int) else size
    return height // described["patch_size"], width // described["patch_size"]


def _build_config(described: dict[str, Any], source: Source, family_name: str) -> SpotViTConfig:
    source_model = {"name": source.name, "revision": source.revision, "family": family_name, "license": source.license}
    try:
        config = SpotViTConfig(**described, source_model=source_model)
    except (TypeError, ValueError, StrictDataclassError) as error:
        reason = str(error.__cause__ or error).strip().splitlines()[-1].strip()
        raise ConversionError(f"config.json of {source.name}: {reason}") from None
    if config.hidden_act not in ACT2FN:
        raise ConversionError(f"config.json of {source.name}: `hidden_act` {config.hidden_act!r} is none of transformers'")
    return config


__all__ = [
    "FAMILIES",
    "ConversionError",
    "ConversionReport",
    "convert_checkpoint",
    "detect_family",
    "load_source",
]
