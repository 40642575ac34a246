"""timm's Vision Transformers: names in their files, and what their shapes and configs say."""

import re
from typing import Any

from .errors import ConversionError
from .family import Family, count_layers, square, stated_heads
from .recipes import timm_pretrained_cfg
from .sources import Source


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
    patch_size = square("patch_size", [patch_height, patch_width])
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
    num_heads = arguments.get("num_heads") or stated_heads(source, hidden_size)
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


# By the names under which `families.py` finds them; positions are interpolated as timm's `resample_abs_pos_embed` does.
TIMM_FAMILIES = {
    "timm": Family(
        TIMM_VIT, _describe_timm, "blocks", interpolation={"mode": "bicubic", "antialias": True}, varied_positions=True
    ),
}
