"""timm's Vision Transformers, its EVA and its BEiT: names in their files, and what their shapes and configs say."""

import re
from typing import Any

import torch

from .errors import ConversionError
from .family import Family, count_layers, square, stated_heads
from .recipes import timm_pretrained_cfg
from .sources import Source
from .timm_architectures import architecture_arguments


# timm's names; also those of the original DeiT, DINO, DINOv2 and MAE releases.
TIMM_VIT = {
    "cls_token": "cls_token",
    "dist_token": "distillation_token",
    "reg_token": "register_tokens",
    "register_tokens": "register_tokens",
    "pos_embed": "position_table",
    "patch_embed.proj": "embeddings.patch_projection",
    "norm_pre": "embeddings.layernorm",
    "blocks.{i}.norm1": "layers.{i}.norm1",
    "blocks.{i}.attn.qkv": "layers.{i}.attention.qkv",
    "blocks.{i}.attn.q_norm": "layers.{i}.attention.q_norm",
    "blocks.{i}.attn.k_norm": "layers.{i}.attention.k_norm",
    "blocks.{i}.attn.norm": "layers.{i}.attention.norm",
    "blocks.{i}.attn.proj": "layers.{i}.attention.o_proj",
    "blocks.{i}.ls1.gamma": "layers.{i}.layer_scale1.scale",
    "blocks.{i}.norm2": "layers.{i}.norm2",
    "blocks.{i}.mlp.fc1": "layers.{i}.mlp.fc1",
    "blocks.{i}.mlp.norm": "layers.{i}.mlp.norm",
    "blocks.{i}.mlp.fc2": "layers.{i}.mlp.fc2",
    "blocks.{i}.mlp.w12": "layers.{i}.mlp.gate_up_proj",
    "blocks.{i}.mlp.w3": "layers.{i}.mlp.down_proj",
    "blocks.{i}.ls2.gamma": "layers.{i}.layer_scale2.scale",
    "norm": "layernorm",
    "attn_pool.latent": "pooler.probe",
    "attn_pool.q": "pooler.q_proj",
    "attn_pool.kv": "pooler.kv",
    "attn_pool.proj": "pooler.o_proj",
    "attn_pool.norm": "pooler.layernorm",
    "attn_pool.mlp.fc1": "pooler.mlp.fc1",
    "attn_pool.mlp.fc2": "pooler.mlp.fc2",
    "fc_norm": "layernorm",
    "head": "classifier",
    "head_dist": "distillation_classifier",
}


# What Eva and BEiT call otherwise, or have beside.
TIMM_EVA = {
    "blocks.{i}.attn.q_bias": "layers.{i}.attention.q_proj.bias",
    "blocks.{i}.attn.v_bias": "layers.{i}.attention.v_proj.bias",
    "blocks.{i}.attn.q_proj": "layers.{i}.attention.q_proj",
    "blocks.{i}.attn.k_proj": "layers.{i}.attention.k_proj",
    "blocks.{i}.attn.v_proj": "layers.{i}.attention.v_proj",
    "blocks.{i}.gamma_1": "layers.{i}.layer_scale1.scale",
    "blocks.{i}.mlp.fc1_g": "layers.{i}.mlp.gate_proj",
    "blocks.{i}.mlp.fc1_x": "layers.{i}.mlp.up_proj",
    "blocks.{i}.gamma_2": "layers.{i}.layer_scale2.scale",
    "blocks.{i}.attn.relative_position_bias_table": "layers.{i}.attention.position_bias_table",
    "rel_pos_bias.relative_position_bias_table": "shared_position_bias_table",
}


TIMM_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


def _arguments(source: Source) -> dict[str, Any]:
    """Those of timm's class: what its architecture is made with, and what the config states over that."""
    config = source.config or {}
    stated = {name: value for name, value in (config.get("model_args") or {}).items() if value is not None}
    found = {**architecture_arguments(config.get("architecture")), **stated}
    if "norm_layer" in stated:
        found.pop("norm_eps", None)
    return found


def _has(source: Source, *parts: str) -> bool:
    return any(part in f".{name}" for name in source.tensors for part in parts)


def _describe_timm(source: Source) -> dict[str, Any]:
    """From the tensors' shapes; config and architecture add what these do not tell."""
    tensors, arguments = source.tensors, _arguments(source)
    _refuse(source, arguments)
    hidden_size, num_channels, patch_height, patch_width = source.shape("patch_embed.proj.weight", 4)
    patch_size = square("patch_size", [patch_height, patch_width])
    has_table = _is_stated(
        source, "pos_embed", arguments.get("use_abs_pos_emb", arguments.get("pos_embed") not in ("", "none"))
    )
    image_size = _image_size(source, arguments, patch_size, has_table)
    has_class_token = _is_stated(source, "cls_token", arguments.get("class_token", True))
    num_registers = _count_registers(source, arguments)
    intermediate_size, swiglu = _describe_mlp(source)
    two_heads = any(name.startswith("head_dist.") for name in tensors)
    distilled = "dist_token" in tensors or two_heads
    num_heads = arguments.get("num_heads") or stated_heads(source, hidden_size)
    activation = _activation(arguments, swiglu)
    pooling = _pooling(source, arguments, has_class_token, num_heads)
    return {
        "hidden_size": hidden_size,
        "num_hidden_layers": count_layers(source, "blocks"),
        "num_attention_heads": num_heads,
        "intermediate_size": intermediate_size,
        "hidden_act": activation,
        "layer_norm_eps": arguments.get("norm_eps", 1e-6),
        "image_size": image_size[0] if image_size[0] == image_size[1] else image_size,
        "patch_size": patch_size,
        "num_channels": num_channels,
        "qkv_bias": _has(source, ".attn.qkv.bias", ".attn.q_bias", ".attn.q_proj.bias"),
        "use_qk_norm": _has(source, ".attn.q_norm.", ".attn.k_norm."),
        "use_attention_norm": _has(source, ".attn.norm."),
        "use_mlp_norm": any(re.match(r"blocks\.\d+\.mlp\.norm\.", name) for name in tensors),
        "use_pre_norm": _has(source, ".norm_pre."),
        "use_final_norm": any(name.startswith(("norm.", "fc_norm.")) for name in tensors),
        "use_class_token": has_class_token,
        "num_register_tokens": 1 if distilled else num_registers,
        "use_layer_scale": _has(source, ".ls1.gamma", ".ls2.gamma", ".gamma_1", ".gamma_2"),
        "use_swiglu_ffn": swiglu,
        "pooling": "cls_distillation" if pooling == "cls" and two_heads else pooling,
        "norm_after_pooling": "fc_norm.weight" in tensors,
        "use_position_table": has_table,
        "use_relative_position_bias": _has(source, ".relative_position_bias_table"),
        **_describe_rotary(source, arguments),
    }


def _is_stated(source: Source, name: str, expected: bool) -> bool:
    """Whether a source has a tensor: as its architecture and config say, or, of a file without a config, as it is."""
    return expected if source.config else name in source.tensors


def _image_size(source: Source, arguments: dict[str, Any], patch_size: int, has_table: bool) -> list[int]:
    num_positions = source.shape("pos_embed", 3)[1] if has_table else None
    recommended = (timm_pretrained_cfg(source.config or {}).get("input_size") or (None,))[1:]
    # A table has the size that the model was made for, which another one may be recommended for.
    stated = (arguments.get("img_size") if has_table else None) or recommended or arguments.get("img_size")
    stated = stated or (224 if num_positions is None else int(num_positions**0.5) * patch_size)
    return list(stated) if isinstance(stated, (list, tuple)) else [stated] * 2


def _count_registers(source: Source, arguments: dict[str, Any]) -> int:
    """As the architecture's name says, or the config, or else the tensor."""
    named = re.search(r"_reg(\d+)_", (source.config or {}).get("architecture") or "")
    found = [source.tensors[name] for name in ("reg_token", "register_tokens") if name in source.tensors]
    stated = arguments.get("reg_tokens", arguments.get("num_reg_tokens")) or (int(named[1]) if named else None)
    return int(stated or (found[0].shape[1] if found else 0))


def _describe_mlp(source: Source) -> tuple[int, bool]:
    """`(intermediate_size, use_swiglu_ffn)`; two gates may lie in one tensor."""
    if _has(source, ".mlp.fc1_g.", ".mlp.fc1_x."):
        return source.shape("blocks.0.mlp.fc1_g.weight")[0], True
    if "blocks.0.mlp.w12.weight" in source.tensors:
        return source.shape("blocks.0.mlp.w12.weight")[0] // 2, True
    width = source.shape("blocks.0.mlp.fc1.weight")[0]
    swiglu = width == 2 * source.shape("blocks.0.mlp.fc2.weight")[1]
    return width // (2 if swiglu else 1), swiglu


def _activation(arguments: dict[str, Any], swiglu: bool) -> str:
    if arguments.get("of_eva"):  # its attention pooling has one, whatever its layers have
        return "gelu"
    activation = TIMM_ACTIVATIONS.get(arguments.get("act_layer") or ("silu" if swiglu else "gelu"))
    if activation is None or (swiglu and activation != "silu"):
        raise ConversionError(f"`act_layer` of the timm config is not supported: got {arguments['act_layer']!r}")
    return activation


def _pooling(source: Source, arguments: dict[str, Any], has_class_token: bool, num_heads: int) -> str:
    stated = (source.config or {}).get("global_pool") or arguments.get("global_pool")
    if _has(source, ".attn_pool."):
        stated = stated or "map"
    usual = "avg" if "fc_norm.weight" in source.tensors or not has_class_token else "token"
    pooling = stated or usual
    if pooling not in ("avg", "token", "map", ""):
        raise ConversionError(f"`global_pool` of the timm config must be token, avg or map; got {pooling!r}")
    if pooling != "map":
        return "mean" if pooling == "avg" or not has_class_token else "cls"
    pooling_heads = arguments.get("attn_pool_num_heads") or num_heads
    if pooling_heads != num_heads:
        raise _refusal(source, f"its attention pooling has {pooling_heads} heads, where its layers have {num_heads}")
    if arguments.get("of_eva") and (has_class_token or "reg_token" in source.tensors):
        raise _refusal(source, "its attention pooling looks at class token and registers, too")
    if _has(source, ".fc_norm."):
        raise _refusal(source, "a norm follows its attention pooling")
    return "attention"


def _describe_rotary(source: Source, arguments: dict[str, Any]) -> dict[str, Any]:
    if not arguments.get("use_rot_pos_emb"):
        return {}
    theta, offset = float(arguments.get("rope_temperature", 10000.0)), float(arguments.get("rope_grid_offset", 0.0))
    if arguments.get("rope_type", "cat") == "dinov3":
        if offset:
            raise _refusal(source, f"its rotary positions are DINOv3's with a rope_grid_offset of {offset}")
        return {"rope_theta": theta, "rope_coordinates": "centered"}
    grid = arguments.get("ref_feat_shape")
    return {
        "rope_theta": theta,
        "rope_coordinates": "cells",
        "rope_grid_size": [grid] * 2 if isinstance(grid, int) else grid,
        "rope_grid_offset": offset,
    }


def _order_within_heads(source: Source, head_dim: int) -> torch.Tensor | None:
    """Where each of a head's numbers lies in the source, whose rotary positions may turn neighbours, and x before y."""
    arguments = _arguments(source)
    half, is_xy = arguments.get("rope_rotate_half", False), arguments.get("rope_grid_indexing", "ij") == "xy"
    if not arguments.get("use_rot_pos_emb") or (half and not is_xy):
        return None
    pairs = torch.arange(head_dim // 2)
    pairs = pairs.roll(-(head_dim // 4)) if is_xy else pairs
    return torch.cat([pairs, pairs + head_dim // 2] if half else [2 * pairs, 2 * pairs + 1])


def _refusal(source: Source, reason: str) -> ConversionError:
    return ConversionError(f"`source_model` {source.name!r} cannot be converted: {reason}")


# Of the timm config: what SpotViT computes.
SUPPORTED = {"norm_layer": (None, "layernorm"), "pool_include_prefix": (None, False)}


def _refuse(source: Source, arguments: dict[str, Any]) -> None:
    """[`ConversionError`] for what SpotViT has not, and for a file that does not say what it is."""
    for name, supported in SUPPORTED.items():
        if arguments.get(name) not in supported:
            raise ConversionError(f"`{name}` of the timm config is not supported: got {arguments[name]!r}")
    shapes = {name: tensor.shape for name, tensor in source.tensors.items()}
    queries = {name: shape[0] for name, shape in shapes.items() if name.endswith(".attn.q_proj.weight")}
    keys = {name: shapes.get(name.replace("q_proj", "k_proj"), (rows,))[0] for name, rows in queries.items()}
    rope_type = arguments.get("rope_type", "cat")
    reasons = {
        "its rotary frequencies are learned, for each layer and head": rope_type == "mixed" or "rope.freqs" in shapes,
        f"its rotary positions are of rope_type {rope_type!r}": rope_type not in ("cat", "dinov3", "mixed"),
        "its layers' norms come after attention and feed-forward layer": arguments.get("use_post_norm", False),
        "its attention has gates": _has(source, ".attn.gate."),
        "its norms are RMS norms": _has(source, ".norm1.weight") and not _has(source, ".norm1.bias"),
        "several of its queries share a key": any(
            queries[name] in range(2 * rows, queries[name] + 1, rows) for name, rows in keys.items()
        ),
        "only its attention has a layer scale": arguments.get("attn_only_layer_scale", False)
        or (_has(source, ".gamma_1") and not _has(source, ".gamma_2")),
    }
    for reason, holds in reasons.items():
        if holds:
            raise _refusal(source, reason)
    names = (".attn.q_bias", ".attn.q_proj.", ".gamma_1", ".mlp.fc1_g.")
    if not {"of_eva", "use_rot_pos_emb"} & set(arguments) and _has(source, *names):
        raise _refusal(source, "it is of timm's class Eva, and only an architecture of timm's says its rotary positions")
    if not source.config and ("cls_token" not in shapes or _has(source, ".norm_pre.", ".attn_pool.")):
        raise _refusal(source, "without a config.json that names an architecture of timm's, its activation is not known")


def _without_bias(source: Source) -> tuple[str, ...]:
    modules = [] if _has(source, ".attn.qkv.bias", ".attn.k_proj.bias") else ["attention.k_proj"]
    if _has(source, ".norm_pre."):
        modules.append("embeddings.patch_projection")
    return tuple(modules)


# By the names under which `families.py` finds them; positions are interpolated as timm's `resample_abs_pos_embed` does.
TIMM_FAMILIES = {
    "timm": Family(
        {**TIMM_VIT, **TIMM_EVA},
        _describe_timm,
        "blocks",
        interpolation={"mode": "bicubic", "antialias": True},
        varied_positions=True,
        without_bias=_without_bias,
        unused=lambda source: {"*.relative_position_index": "numbers that are counted"},
        order_within_heads=_order_within_heads,
    ),
}
