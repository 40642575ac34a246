"""The families of checkpoints that become a SpotViT: one table of names and one description each.

A table maps the source's names to SpotViT's, with `{i}` for the layer. A few targets are not parameters of the model but
parts of one, put together by `assembly.py`: `cls_token`, `distillation_token`, `register_tokens`, `position_table`, `qkv`,
`gate_up_proj`, the two heads of distilled DeiT, and the position channel of the released SPoT checkpoints.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from .errors import ConversionError
from .recipes import timm_pretrained_cfg
from .sources import Source


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


# Tensors that are skipped, by the beginning of their names, and why.
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


@dataclass(frozen=True)
class Family:
    """How one family's files become SpotViT: its names, and what its config says."""

    table: dict[str, str]
    describe: Callable[[Source], dict[str, Any]]
    layer_name: str  # of the source, up to the layer's number
    # Whether position embeddings are a channel of the windows, beside the image's, rather than a table.
    position_channel: bool = False
    # How the source interpolates its position table for images of another size: `config.position_interpolation`.
    interpolation: dict[str, Any] | None = None
    # Whether it always does, from the size in its config to that of its recipe.
    follows_recipe: bool = False
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
    num_layers = count_layers(source, "blocks")
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
        "num_hidden_layers": count_layers(source, "blocks"),
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


# `interpolate_pos_encoding` of transformers' classes and `resample_abs_pos_embed` of timm.
BICUBIC = {"mode": "bicubic", "antialias": False}
BICUBIC_ANTIALIASED = {"mode": "bicubic", "antialias": True}
FAMILIES = {
    "vit": Family(TRANSFORMERS_VIT, _describe_vit, "encoder.layer", interpolation=BICUBIC),
    "deit": Family(TRANSFORMERS_VIT, _describe_deit, "encoder.layer", interpolation=BICUBIC),
    "vit_mae": Family(TRANSFORMERS_VIT, _describe_vit_mae, "encoder.layer", interpolation=BICUBIC),
    "dinov2": Family(TRANSFORMERS_DINOV2, _describe_dinov2, "encoder.layer", interpolation=BICUBIC, follows_recipe=True),
    "dinov2_with_registers": Family(
        TRANSFORMERS_DINOV2,
        _describe_dinov2_with_registers,
        "encoder.layer",
        interpolation=BICUBIC_ANTIALIASED,
        follows_recipe=True,
    ),
    "timm": Family(TIMM_VIT, _describe_timm, "blocks", interpolation=BICUBIC_ANTIALIASED, varied_positions=True),
    "spot": Family(SPOT, _describe_spot, "blocks", position_channel=True),
}


def detect_family(source: Source) -> str:
    """Name of the source's family in `FAMILIES`, or [`ConversionError`]."""
    family = find_family(source)
    if family is not None:
        return family
    raise ConversionError(unknown_family(source))


def find_family(source: Source) -> str | None:
    """The same, or none."""
    model_type = (source.config or {}).get("model_type")
    if model_type in FAMILIES and model_type not in ("timm", "spot"):
        return model_type
    if model_type is None and {"tokenizer._n_sigma", "embedder.emb.weight"} <= set(source.tensors):
        return "spot"
    if model_type in (None, "timm_wrapper") and "blocks.0.attn.qkv.weight" in source.tensors:
        return "timm"
    return None


def unknown_family(source: Source) -> str:
    """What to say of a source that is of none."""
    config = source.config or {}
    model_type = config.get("model_type")
    found = (
        f"model_type {model_type!r}"
        if model_type
        else f"architecture {config.get('architecture')!r}"
        if config
        else "no config.json"
    )
    some = ", ".join(sorted(source.tensors)[:3])
    return (
        f"`source_model` {source.name!r} is of no known family ({', '.join(FAMILIES)}); found {found} and "
        f"{len(source.tensors)} tensors such as {some}"
    )


def count_layers(source: Source, layer_name: str) -> int:
    numbers = {name.split(".")[layer_name.count(".") + 1] for name in source.tensors if name.startswith(layer_name + ".")}
    return 1 + max((int(number) for number in numbers if number.isdecimal()), default=-1)
