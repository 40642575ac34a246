"""Checkpoints that people already have → SpotViT. One rename table per family; tensors are read by the names that stand in
the checkpoint's files, so that no class of the source model is needed.

A table maps the source's names to SpotViT's, with `{i}` for the layer. A few targets are not parameters of the model but
parts of one, put together by `_Assembly`: `cls_token`, `distillation_token`, `register_tokens`, `position_table`, `qkv`,
`gate_up_proj`, the two heads of distilled DeiT, and the position channel of the released SPoT checkpoints.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers.activations import ACT2FN
from transformers.utils import is_timm_available

from .cards import measured_by_conversion, write_model_card
from .checkpoints import (
    ConversionError,
    Source,
    Tensors,
    default_recipe,
    load_source,
    recipe_size,
    timm_pretrained_cfg,
)
from .configuration_spot_vit import SpotViTConfig
from .image_processing_spot_vit import SpotViTImageProcessor
from .modeling_spot_vit import SpotViTForImageClassification, SpotViTModel, solve_kernel_weights
from .output_dirs import check_output_dir, replaced_directory
from .placement import PLACEMENTS, check_placement


# ----------------------------------------------------------------------------------------------------- rename tables

TRANSFORMERS_VIT = {
    "embeddings.cls_token": "cls_token",
    "embeddings.distillation_token": "distillation_token",
    "embeddings.position_embeddings": "position_table",
    "embeddings.patch_embeddings.projection": "embeddings.patch_projection",
    "encoder.layer.{i}.layernorm_before": "layers.{i}.norm1",
    "encoder.layer.{i}.attention.attention.query": "layers.{i}.attention.q_proj",
    "encoder.layer.{i}.attention.attention.key": "layers.{i}.attention.k_proj",
    "encoder.layer.{i}.attention.attention.value": "layers.{i}.attention.v_proj",
    "encoder.layer.{i}.attention.output.dense": "layers.{i}.attention.o_proj",
    "encoder.layer.{i}.layernorm_after": "layers.{i}.norm2",
    "encoder.layer.{i}.intermediate.dense": "layers.{i}.mlp.fc1",
    "encoder.layer.{i}.output.dense": "layers.{i}.mlp.fc2",
    "layernorm": "layernorm",
    "classifier": "classifier",
    "cls_classifier": "classifier",
    "distillation_classifier": "distillation_classifier",
}

TRANSFORMERS_DINOV2 = {
    "embeddings.cls_token": "cls_token",
    "embeddings.register_tokens": "register_tokens",
    "embeddings.position_embeddings": "position_table",
    "embeddings.patch_embeddings.projection": "embeddings.patch_projection",
    "encoder.layer.{i}.norm1": "layers.{i}.norm1",
    "encoder.layer.{i}.attention.attention.query": "layers.{i}.attention.q_proj",
    "encoder.layer.{i}.attention.attention.key": "layers.{i}.attention.k_proj",
    "encoder.layer.{i}.attention.attention.value": "layers.{i}.attention.v_proj",
    "encoder.layer.{i}.attention.output.dense": "layers.{i}.attention.o_proj",
    "encoder.layer.{i}.layer_scale1.lambda1": "layers.{i}.layer_scale1.scale",
    "encoder.layer.{i}.norm2": "layers.{i}.norm2",
    "encoder.layer.{i}.mlp.fc1": "layers.{i}.mlp.fc1",
    "encoder.layer.{i}.mlp.fc2": "layers.{i}.mlp.fc2",
    "encoder.layer.{i}.mlp.weights_in": "layers.{i}.mlp.gate_up_proj",
    "encoder.layer.{i}.mlp.weights_out": "layers.{i}.mlp.down_proj",
    "encoder.layer.{i}.layer_scale2.lambda1": "layers.{i}.layer_scale2.scale",
    "layernorm": "layernorm",
    "classifier": "classifier",
}

# timm's names; also those of the original DeiT, DINO, DINOv2 and MAE releases.
TIMM_VIT = {
    "cls_token": "cls_token",
    "dist_token": "distillation_token",
    "reg_token": "register_tokens",
    "register_tokens": "register_tokens",
    "pos_embed": "position_table",
    "patch_embed.proj": "embeddings.patch_projection",
    "blocks.{i}.norm1": "layers.{i}.norm1",
    "blocks.{i}.attn.qkv": "layers.{i}.attention.qkv",
    "blocks.{i}.attn.proj": "layers.{i}.attention.o_proj",
    "blocks.{i}.ls1.gamma": "layers.{i}.layer_scale1.scale",
    "blocks.{i}.norm2": "layers.{i}.norm2",
    "blocks.{i}.mlp.fc1": "layers.{i}.mlp.fc1",
    "blocks.{i}.mlp.fc2": "layers.{i}.mlp.fc2",
    "blocks.{i}.mlp.w12": "layers.{i}.mlp.gate_up_proj",
    "blocks.{i}.mlp.w3": "layers.{i}.mlp.down_proj",
    "blocks.{i}.ls2.gamma": "layers.{i}.layer_scale2.scale",
    "norm": "layernorm",
    "fc_norm": "layernorm",
    "head": "classifier",
    "head_dist": "distillation_classifier",
}

# The released SPoT checkpoints. Position embeddings are a fourth channel of their windows: `embedder.emb` holds both.
SPOT = {
    "tokenizer._n_sigma": "position_kernel_sigma",
    "embedder.cls_token": "cls_token",
    "embedder.emb": "embeddings.patch_projection",
    "blocks.{i}.norm1": "layers.{i}.norm1",
    "blocks.{i}.att.qkv": "layers.{i}.attention.qkv",
    "blocks.{i}.att.proj": "layers.{i}.attention.o_proj",
    "blocks.{i}.ls1.lambda_": "layers.{i}.layer_scale1.scale",
    "blocks.{i}.norm2": "layers.{i}.norm2",
    "blocks.{i}.mlp.L1": "layers.{i}.mlp.fc1",
    "blocks.{i}.mlp.L2": "layers.{i}.mlp.fc2",
    "blocks.{i}.ls2.lambda_": "layers.{i}.layer_scale2.scale",
    "norm": "layernorm",
    "fc_norm": "layernorm",
    "head": "classifier",
}

# Parameters of their own; every other entry of a table is a module with a weight and a bias.
BARE_PARAMETERS = (
    "cls_token", "distillation_token", "register_tokens", "position_table", "position_kernel_sigma", ".scale",
)  # fmt: skip

# Tensors that stay behind, by how their names begin, and why.
SKIPPED = {
    "pooler.": "the source's tanh pooler: no classifier of the family uses it",
    "embeddings.mask_token": "mask token of pre-training",
    "mask_token": "mask token of pre-training",
    "decoder.": "decoder of masked pre-training: the encoder alone is converted",
    "decoder_": "decoder of masked pre-training: the encoder alone is converted",
    "head.mlp.": "projection head of DINO pre-training",
    "head.last_layer.": "projection head of DINO pre-training",
    "dino_head.": "projection head of DINO pre-training",
}


# ---------------------------------------------------------------------------------------------------------- families


@dataclass(frozen=True)
class Family:
    """How one family's files become SpotViT: its names, and what its config says."""

    table: dict[str, str]
    describe: Callable[[Source], dict[str, Any]]
    layer_name: str  # of the source, up to the layer's number
    # Whether position embeddings are a channel of the windows, beside the image's, rather than a table.
    position_channel: bool = False
    # Resampling of a position table that the source interpolates from its own size to its recipe's.
    interpolation: dict[str, Any] | None = None
    # Whether the table may have no position for the class token (timm's `no_embed_class`), or one for each register.
    varied_positions: bool = False


def _square(name: str, value: Any) -> int:
    if isinstance(value, (list, tuple)):
        if len(set(value)) != 1:
            raise ConversionError(f"`{name}` must be square; got {list(value)}")
        value = value[0]
    return int(value)


def _describe_transformers(source: Source, **defaults: Any) -> dict[str, Any]:
    """What transformers' ViT-like configs share; `defaults` are those of the family's config class."""
    config = {**defaults, **{k: v for k, v in (source.config or {}).items() if v is not None}}
    hidden_size = config.get("hidden_size", 768)
    return {
        "hidden_size": hidden_size,
        "num_hidden_layers": config.get("num_hidden_layers", 12),
        "num_attention_heads": config.get("num_attention_heads", 12),
        "hidden_act": config.get("hidden_act", "gelu"),
        "hidden_dropout_prob": config.get("hidden_dropout_prob", 0.0),
        "attention_probs_dropout_prob": config.get("attention_probs_dropout_prob", 0.0),
        "initializer_range": config.get("initializer_range", 0.02),
        "layer_norm_eps": config["layer_norm_eps"],
        "image_size": config.get("image_size", 224),
        "patch_size": _square("patch_size", config["patch_size"]),
        "num_channels": config.get("num_channels", 3),
        "qkv_bias": config.get("qkv_bias", True),
    }


def _describe_vit(source: Source) -> dict[str, Any]:
    described = _describe_transformers(source, layer_norm_eps=1e-12, patch_size=16)
    return {**described, "intermediate_size": (source.config or {}).get("intermediate_size", 3072)}


def _describe_deit(source: Source) -> dict[str, Any]:
    both_heads = any(name.startswith("distillation_classifier.") for name in source.tensors)
    return {
        **_describe_vit(source),
        "num_register_tokens": 1,
        "pooling": "cls_distillation" if both_heads else "cls",
    }


def _describe_vit_mae(source: Source) -> dict[str, Any]:
    return {**_describe_vit(source), "pooling": "mean"}


def _describe_dinov2(source: Source, patch_size: int = 14) -> dict[str, Any]:
    config = source.config or {}
    swiglu = bool(config.get("use_swiglu_ffn", False))
    # SwiGLU's width is rounded by the source: its tensors say what it is.
    first = f"encoder.layer.0.mlp.{'weights_in' if swiglu else 'fc1'}.weight"
    return {
        **_describe_transformers(source, layer_norm_eps=1e-6, patch_size=patch_size),
        "intermediate_size": source.shape(first)[0] // (2 if swiglu else 1),
        "use_layer_scale": True,
        "layerscale_value": float(config.get("layerscale_value", 1.0)),
        "use_swiglu_ffn": swiglu,
        # The family's classifier sees the class token and the mean of the patches; its headless model pools the former.
        "pooling": "cls_mean" if "classifier.weight" in source.tensors else "cls",
    }


def _describe_dinov2_with_registers(source: Source) -> dict[str, Any]:
    return {
        **_describe_dinov2(source, patch_size=16),
        "num_register_tokens": (source.config or {}).get("num_register_tokens", 4),
    }


# Heads of timm's ViTs are 64 wide, but for these hidden sizes (64: `test_vit`).
TIMM_HEADS = {64: 2, 1152: 16, 1280: 16, 1408: 16, 1664: 16}
TIMM_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


def _describe_timm(source: Source) -> dict[str, Any]:
    """From the tensors' shapes; the config, where there is one, adds image size, pooling and heads."""
    config, tensors = source.config or {}, source.tensors
    arguments, pretrained = config.get("model_args") or {}, timm_pretrained_cfg(config)
    hidden_size, num_channels, patch_height, patch_width = source.shape("patch_embed.proj.weight", 4)
    patch_size = _square("patch_size", [patch_height, patch_width])
    num_layers = _count_layers(source, "blocks")
    num_positions = source.shape("pos_embed", 3)[1]
    if pretrained.get("input_size"):
        image_size = list(pretrained["input_size"][1:])
    else:
        image_size = [int(num_positions**0.5) * patch_size] * 2
    mean_pooled = "fc_norm.weight" in tensors
    pooling = config.get("global_pool") or arguments.get("global_pool") or ("avg" if mean_pooled else "token")
    if pooling not in ("avg", "token", ""):
        raise ConversionError(f"`global_pool` of the timm config must be token or avg; got {pooling!r}")
    registers = next((tensors[name] for name in ("reg_token", "register_tokens") if name in tensors), None)
    stated = re.search(r"_reg(\d+)_", config.get("architecture") or "")
    num_registers = arguments.get("reg_tokens") or int(stated[1] if stated else 0 if registers is None else registers.shape[1])
    if "blocks.0.mlp.w12.weight" in tensors:
        gate_up, swiglu = source.shape("blocks.0.mlp.w12.weight")[0], True
    else:
        gate_up = source.shape("blocks.0.mlp.fc1.weight")[0]
        swiglu = gate_up == 2 * source.shape("blocks.0.mlp.fc2.weight")[1]
    two_heads = any(name.startswith("head_dist.") for name in tensors)
    distilled = "dist_token" in tensors or two_heads
    num_heads = arguments.get("num_heads") or _stated_heads(source, hidden_size)
    activation = TIMM_ACTIVATIONS.get(arguments.get("act_layer") or ("silu" if swiglu else "gelu"))
    if activation is None or (swiglu and activation != "silu"):
        raise ConversionError(f"`act_layer` of the timm config is not supported: got {arguments['act_layer']!r}")
    for name, supported in {"norm_layer": (None, "layernorm"), "pool_include_prefix": (None, False)}.items():
        if arguments.get(name) not in supported:
            raise ConversionError(f"`{name}` of the timm config is not supported: got {arguments[name]!r}")
    return {
        "hidden_size": hidden_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        "intermediate_size": gate_up // (2 if swiglu else 1),
        "hidden_act": activation,
        "layer_norm_eps": 1e-6,
        "image_size": image_size[0] if image_size[0] == image_size[1] else image_size,
        "patch_size": patch_size,
        "num_channels": num_channels,
        "qkv_bias": any(name.endswith(".attn.qkv.bias") for name in tensors),
        "num_register_tokens": 1 if distilled else num_registers,
        "use_layer_scale": any(name.endswith((".ls1.gamma", ".ls2.gamma")) for name in tensors),
        "use_swiglu_ffn": swiglu,
        "pooling": "mean" if pooling == "avg" else "cls_distillation" if two_heads else "cls",
        "norm_after_pooling": mean_pooled,
    }


def _describe_spot(source: Source) -> dict[str, Any]:
    """From the tensors' shapes, and from how the released code samples and embeds, which its checkpoints do not state."""
    hidden_size, num_inputs = source.shape("embedder.emb.weight")
    num_channels = 3
    patch_size = round((num_inputs / (num_channels + 1)) ** 0.5)
    if (num_channels + 1) * patch_size**2 != num_inputs or patch_size < 2:
        raise ConversionError(
            f"wrong shape of tensor `embedder.emb.weight` in {source.name}: expected 4 · patch_size² inputs, got {num_inputs}"
        )
    # Its kernel's width is `softplus(_n_sigma) · patch_size / (height + width)` of the image: of a square one, this in pixels.
    n_sigma = nn.functional.softplus(source.tensors["tokenizer._n_sigma"].double().flatten())
    if len(n_sigma) != 1:
        raise ConversionError(
            f"wrong shape of tensor `tokenizer._n_sigma` in {source.name}: expected one number, got {len(n_sigma)}"
        )
    mean_pooled = "fc_norm.weight" in source.tensors
    return {
        "hidden_size": hidden_size,
        "num_hidden_layers": _count_layers(source, "blocks"),
        "num_attention_heads": _stated_heads(source, hidden_size),
        "intermediate_size": source.shape("blocks.0.mlp.L1.weight")[0],
        "layer_norm_eps": 1e-6,
        "image_size": 224,
        "patch_size": patch_size,
        "num_channels": num_channels,
        "qkv_bias": any(name.endswith(".att.qkv.bias") for name in source.tensors),
        "use_layer_scale": any(name.endswith(".lambda_") for name in source.tensors),
        "pooling": "mean" if mean_pooled else "cls",
        "norm_after_pooling": mean_pooled,
        "position_grid_size": [patch_size, patch_size],
        "position_kernel_sigma": n_sigma[0].item() * patch_size / 2,
        "position_kernel_unit": "pixels",
        "position_kernel_centers": "mesh",
        "position_kernel_normalization": "image",
        # `patch_size` samples from one end to the other of a window of `patch_size` pixels.
        "window_spacing": patch_size / (patch_size - 1),
        "window_border": "zero",
    }


def _stated_heads(source: Source, hidden_size: int) -> int:
    """The number of attention heads of a checkpoint whose config does not say it: as stated by the caller, or of width 64."""
    if source.num_attention_heads is not None:
        return source.num_attention_heads
    if hidden_size not in TIMM_HEADS and hidden_size % 64:
        raise ConversionError(
            f"{source.name} does not say its number of heads, and {hidden_size} is no multiple of 64: give "
            "`num_attention_heads`"
        )
    return TIMM_HEADS.get(hidden_size, hidden_size // 64)


FAMILIES = {
    "vit": Family(TRANSFORMERS_VIT, _describe_vit, "encoder.layer"),
    "deit": Family(TRANSFORMERS_VIT, _describe_deit, "encoder.layer"),
    "vit_mae": Family(TRANSFORMERS_VIT, _describe_vit_mae, "encoder.layer"),
    "dinov2": Family(
        TRANSFORMERS_DINOV2, _describe_dinov2, "encoder.layer", interpolation={"mode": "bicubic", "align_corners": False}
    ),
    "dinov2_with_registers": Family(
        TRANSFORMERS_DINOV2,
        _describe_dinov2_with_registers,
        "encoder.layer",
        interpolation={"mode": "bicubic", "align_corners": False, "antialias": True},
    ),
    "timm": Family(TIMM_VIT, _describe_timm, "blocks", varied_positions=True),
    "spot": Family(SPOT, _describe_spot, "blocks", position_channel=True),
}


def detect_family(source: Source) -> str:
    """Name of the source's family in `FAMILIES`, or [`ConversionError`]."""
    config = source.config or {}
    model_type = config.get("model_type")
    if model_type in FAMILIES and model_type not in ("timm", "spot"):
        return model_type
    if model_type is None and {"tokenizer._n_sigma", "embedder.emb.weight"} <= set(source.tensors):
        return "spot"
    if model_type in (None, "timm_wrapper") and "blocks.0.attn.qkv.weight" in source.tensors:
        return "timm"
    found = (
        f"model_type {model_type!r}"
        if model_type
        else f"architecture {config.get('architecture')!r}"
        if config
        else "no config.json"
    )
    some = ", ".join(sorted(source.tensors)[:3])
    raise ConversionError(
        f"`source_model` {source.name!r} is of no known family ({', '.join(FAMILIES)}); found {found} and "
        f"{len(source.tensors)} tensors such as {some}"
    )


def _count_layers(source: Source, layer_name: str) -> int:
    numbers = {name.split(".")[layer_name.count(".") + 1] for name in source.tensors if name.startswith(layer_name + ".")}
    return 1 + max((int(number) for number in numbers if number.isdecimal()), default=-1)


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


def _match_names(source: Source, family: Family) -> tuple[dict[str, str], dict[str, str]]:
    """`(source name → target, skipped source name → reason)`; a name that is in neither is an error."""
    num_layers = _count_layers(source, family.layer_name)
    expected: dict[str, str] = {}
    for pattern, target in family.table.items():
        for i in range(num_layers) if "{i}" in pattern else [0]:
            name, to = pattern.format(i=i), target.format(i=i)
            if to.endswith(BARE_PARAMETERS):
                expected[name] = to
            else:
                expected.update({f"{name}.{kind}": f"{to}.{kind}" for kind in ("weight", "bias")})
    used, skipped, unexpected = {}, {}, []
    for name in source.tensors:
        reason = next((reason for start, reason in SKIPPED.items() if name.startswith(start)), None)
        if reason is not None:
            skipped[name] = reason
        elif name in expected:
            used[name] = expected[name]
        else:
            unexpected.append(source.file_names[name])
    if unexpected:
        more = f" and {len(unexpected) - 3} more" if len(unexpected) > 3 else ""
        raise ConversionError(
            f"unexpected tensor `{'`, `'.join(unexpected[:3])}`{more} in {source.name}: the family has no such part, so the "
            f"converted model would not compute what its source does"
        )
    doubled = [source.file_names[name] for name, target in used.items() if list(used.values()).count(target) > 1]
    if doubled:
        raise ConversionError(f"tensors `{'`, `'.join(doubled)}` in {source.name} stand for the same parameter")
    return used, skipped


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


class _Assembly:
    """Turns a source's tensors, under the targets of its table, into the state of a SpotViT, part by part.

    `state` holds what is done and what is left; `origins` says for each key what it was made of, for messages.
    """

    def __init__(self, parts: Tensors, names: dict[str, str], config: SpotViTConfig, family: Family, source: Source):
        self.state, self.origins = dict(parts), dict(names)
        self.config, self.family, self.source = config, family, source

    def take(self, target: str, shape: tuple[int | None, ...]) -> torch.Tensor:
        """Removes a part from the state, and checks its shape; `None` is any size."""
        if target not in self.state:
            raise ConversionError(f"missing tensor `{_source_name(target, self.source)}` in {self.source.name}")
        tensor = self.state.pop(target)
        if len(shape) != tensor.ndim or any(b is not None and a != b for a, b in zip(tensor.shape, shape, strict=True)):
            expected = tuple("any" if size is None else size for size in shape)
            raise ConversionError(
                f"wrong shape of tensor `{self.origins[target]}` in {self.source.name}: expected {expected}, "
                f"got {tuple(tensor.shape)}"
            )
        return tensor

    def put(self, target: str, tensor: torch.Tensor, *parts: str) -> None:
        """Adds a parameter of the model that was made of `parts`."""
        self.origins[target] = " + ".join(dict.fromkeys(self.origins[part] for part in parts))
        self.state[target] = tensor.contiguous()

    def run(self, table_size: tuple[int, int]) -> None:
        """`table_size`: `(rows, columns)` of the position table as it lies in the source."""
        if self.family.position_channel:
            self.split_position_channel()
        else:
            self.add_table_and_prefix(table_size)
            self.flatten_patch_projection()
        if self.config.use_swiglu_ffn:
            self.rename_packed_gates()
        self.split_fused_projections()
        if self.config.pooling == "cls_distillation":
            self.join_heads()

    def split_position_channel(self) -> None:
        """SPoT's one projection of pixels and position kernel, into a projection of each. Class tokens have no position."""
        width, patch_size, channels = self.config.hidden_size, self.config.patch_size, self.config.num_channels
        self.state.pop("position_kernel_sigma")  # in the config
        name = "embeddings.patch_projection.weight"
        projection = self.take(name, (width, (channels + 1) * patch_size**2))
        pixels, positions = projection.split([channels * patch_size**2, patch_size**2], dim=1)
        self.put("embeddings.position_embeddings.weight", positions.T.unflatten(0, (patch_size, patch_size)), name)
        self.put(name, pixels, name)
        self.put("embeddings.prefix_tokens", self.take("cls_token", (1, 1, width)), "cls_token")

    def add_table_and_prefix(self, table_size: tuple[int, int]) -> None:
        """Class and register tokens with their own positions, and kernel weights that reproduce the position table."""
        width, rows, columns = self.config.hidden_size, *table_size
        table = self.take("position_table", (1, None, width))[0]
        num_leading = len(table) - rows * columns
        prefix_tokens = {"cls_token": 1}
        if self.config.num_register_tokens:
            prefix_tokens[self.extra_token()] = self.config.num_register_tokens
        prefix = torch.cat([self.take(name, (1, count, width))[0] for name, count in prefix_tokens.items()])
        # A distillation token has a position in the table, registers have none.
        positions = {2 if "distillation_token" in prefix_tokens else 1}
        if self.family.varied_positions:
            positions = {0, len(prefix)} if "reg_token" in self.source.tensors else {0, *positions}
        if num_leading not in positions:
            raise ConversionError(
                f"wrong shape of tensor `{self.origins['position_table']}` in {self.source.name}: expected {rows} × {columns} "
                f"positions and {' or '.join(map(str, sorted(positions)))} before them, got {len(table)}"
            )
        prefix[:num_leading] += table[:num_leading]
        self.put("embeddings.prefix_tokens", prefix[None], *prefix_tokens)
        cells = table[num_leading:].unflatten(0, (rows, columns))
        if self.config.position_rows_columns != (rows, columns) and self.family.interpolation is not None:
            size = self.config.position_rows_columns
            resized = nn.functional.interpolate(cells.permute(2, 0, 1)[None], size=size, **self.family.interpolation)
            cells = resized[0].permute(1, 2, 0)
        weights = solve_kernel_weights(cells, self.config.position_kernel_sigma)
        self.put("embeddings.position_embeddings.weight", weights, "position_table")

    def extra_token(self) -> str:
        """Which kind of token stands between class token and patches."""
        distilled = "distillation_token" in self.state or self.config.pooling == "cls_distillation"
        has_registers = "register_tokens" in self.family.table.values()
        return "distillation_token" if distilled or not has_registers else "register_tokens"

    def flatten_patch_projection(self) -> None:
        """A convolution with the stride of its kernel is a linear map of patches."""
        config, name = self.config, "embeddings.patch_projection.weight"
        shape = (config.hidden_size, config.num_channels, config.patch_size, config.patch_size)
        self.put(name, self.take(name, shape).flatten(1), name)

    def rename_packed_gates(self) -> None:
        """timm calls the packed gates of SwiGLU `fc1`, as it does the first layer of a perceptron."""
        for name in [name for name in self.state if ".mlp.fc" in name]:
            new = name.replace("mlp.fc1", "mlp.gate_up_proj").replace("mlp.fc2", "mlp.down_proj")
            self.origins[new] = self.origins[name]
            self.state[new] = self.state.pop(name)

    def split_fused_projections(self) -> None:
        for name in [name for name in self.state if ".qkv." in name or ".gate_up_proj." in name]:
            layer, _, kind = name.rsplit(".", 2)
            targets = ("q_proj", "k_proj", "v_proj") if ".qkv." in name else ("gate_proj", "up_proj")
            for target, chunk in zip(targets, self.state.pop(name).chunk(len(targets)), strict=False):
                self.put(f"{layer}.{target}.{kind}", chunk, name)

    def join_heads(self) -> None:
        """The mean of two linear heads is one linear head of both tokens."""
        width, num_labels = self.config.hidden_size, self.config.num_labels
        names = ("classifier", "distillation_classifier")
        weights = [self.take(f"{name}.weight", (num_labels, width)) / 2 for name in names]
        biases = [self.take(f"{name}.bias", (num_labels,)) / 2 for name in names]
        self.put("classifier.weight", torch.cat(weights, dim=1), *(f"{name}.weight" for name in names))
        self.put("classifier.bias", biases[0] + biases[1], *(f"{name}.bias" for name in names))


def _load(model: nn.Module, state: Tensors, origins: dict[str, str], source: Source, fresh_head: bool) -> dict[str, str]:
    """Loads `state` into the model, checks every name and shape, and returns what stays newly initialised."""
    inner = "spot_vit." if isinstance(model, SpotViTForImageClassification) else ""
    state = {name if name.startswith("classifier.") else inner + name: tensor for name, tensor in state.items()}
    expected = model.state_dict()
    missing = [name for name in expected if name not in state]
    fresh = {name: "the source has no classifier" for name in missing if fresh_head and name.startswith("classifier.")}
    lost = [name for name in missing if name not in fresh]
    if lost:
        more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
        wanted = "`, `".join(_source_name(name.removeprefix(inner), source) for name in lost[:3])
        raise ConversionError(f"missing tensor `{wanted}`{more} in {source.name}")
    for name, tensor in state.items():
        if name not in expected:
            raise ConversionError(
                f"unexpected tensor `{origins[name.removeprefix(inner)]}` in {source.name}: its config has no such part"
            )
        if tensor.shape != expected[name].shape:
            raise ConversionError(
                f"wrong shape of tensor `{origins[name.removeprefix(inner)]}` in {source.name}: "
                f"{tuple(tensor.shape)} where its config says {tuple(expected[name].shape)}"
            )
    model.load_state_dict({**expected, **state})
    return fresh


# Parts of a layer that a source may hold as one.
WHOLES = {
    "q_proj": ["qkv"],
    "k_proj": ["qkv"],
    "v_proj": ["qkv"],
    "gate_proj": ["gate_up_proj", "fc1"],
    "up_proj": ["gate_up_proj", "fc1"],
    "down_proj": ["fc2"],
}


def _source_name(target: str, source: Source) -> str:
    """What a parameter is called in the source's files, for a message."""
    module, _, kind = target.rpartition(".")
    parent, _, leaf = module.rpartition(".")
    modules = [module, *(f"{parent}.{whole}" for whole in WHOLES.get(leaf, []))]
    layer = next((part for part in module.split(".") if part.isdecimal()), "0")
    candidates = []
    for name, to in FAMILIES[detect_family(source)].table.items():
        name, to = name.format(i=layer), to.format(i=layer)
        if to == target:
            candidates.append(name)
        elif to in modules:
            candidates.append(f"{name}.{kind}")
    # Of several possible names, one whose sibling is there: a bias has its weight.
    siblings = [name for name in candidates if any(one.startswith(name.rpartition(".")[0] + ".") for one in source.tensors)]
    return next(iter([*siblings, *candidates, target]))


__all__ = [
    "FAMILIES",
    "ConversionError",
    "ConversionReport",
    "convert_checkpoint",
    "detect_family",
    "load_source",
]
