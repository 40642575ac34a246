"""Families of transformers: names in their files, and what their configs say."""

from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from .errors import ConversionError
from .family import Family, square
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


TRANSFORMERS_DINOV3 = {
    "embeddings.cls_token": "cls_token",
    "embeddings.register_tokens": "register_tokens",
    "embeddings.patch_embeddings": "embeddings.patch_projection",
    "layer.{i}.norm1": "layers.{i}.norm1",
    "layer.{i}.attention.q_proj": "layers.{i}.attention.q_proj",
    "layer.{i}.attention.k_proj": "layers.{i}.attention.k_proj",
    "layer.{i}.attention.v_proj": "layers.{i}.attention.v_proj",
    "layer.{i}.attention.o_proj": "layers.{i}.attention.o_proj",
    "layer.{i}.layer_scale1.lambda1": "layers.{i}.layer_scale1.scale",
    "layer.{i}.norm2": "layers.{i}.norm2",
    "layer.{i}.mlp.gate_proj": "layers.{i}.mlp.gate_proj",
    "layer.{i}.mlp.up_proj": "layers.{i}.mlp.up_proj",
    "layer.{i}.mlp.down_proj": "layers.{i}.mlp.down_proj",
    "layer.{i}.layer_scale2.lambda1": "layers.{i}.layer_scale2.scale",
    "norm": "layernorm",
}


# CLIP's, MetaCLIP 2's and SigLIP's, which have no class token, but a pooling head.
TRANSFORMERS_CLIP = {
    "embeddings.class_embedding": "cls_token",
    "embeddings.position_embedding.weight": "position_table",
    "embeddings.patch_embedding": "embeddings.patch_projection",
    "pre_layrnorm": "embeddings.layernorm",
    "encoder.layers.{i}.layer_norm1": "layers.{i}.norm1",
    "encoder.layers.{i}.self_attn.q_proj": "layers.{i}.attention.q_proj",
    "encoder.layers.{i}.self_attn.k_proj": "layers.{i}.attention.k_proj",
    "encoder.layers.{i}.self_attn.v_proj": "layers.{i}.attention.v_proj",
    "encoder.layers.{i}.self_attn.out_proj": "layers.{i}.attention.o_proj",
    "encoder.layers.{i}.layer_norm2": "layers.{i}.norm2",
    "encoder.layers.{i}.mlp.fc1": "layers.{i}.mlp.fc1",
    "encoder.layers.{i}.mlp.fc2": "layers.{i}.mlp.fc2",
    "post_layernorm": "layernorm",
    "head.probe": "pooler.probe",
    "head.attention.in_proj_weight": "pooler.qkv.weight",
    "head.attention.in_proj_bias": "pooler.qkv.bias",
    "head.attention.out_proj": "pooler.o_proj",
    "head.layernorm": "pooler.layernorm",
    "head.mlp.fc1": "pooler.mlp.fc1",
    "head.mlp.fc2": "pooler.mlp.fc2",
    "classifier": "classifier",
}


# BEiT's and data2vec's.
TRANSFORMERS_BEIT = {
    **TRANSFORMERS_VIT,
    "encoder.relative_position_bias.relative_position_bias_table": "shared_position_bias_table",
    "encoder.layer.{i}.attention.attention.relative_position_bias.relative_position_bias_table": (
        "layers.{i}.attention.position_bias_table"
    ),
    "encoder.layer.{i}.lambda_1": "layers.{i}.layer_scale1.scale",
    "encoder.layer.{i}.lambda_2": "layers.{i}.layer_scale2.scale",
    "pooler.layernorm": "layernorm",
}


def _config(source: Source, **defaults: Any) -> dict[str, Any]:
    """The source's config over the defaults of its class; of a model of images and texts, the part that is about images."""
    config = source.config or {}
    if config.get("model_type") in ACTIVATIONS:
        config = read_both_configs(source).vision_config.to_dict()
    return {**defaults, **{name: value for name, value in config.items() if value is not None}}


def read_both_configs(source: Source) -> Any:
    """transformers' own config of a model of images and texts, with its `vision_config` and `text_config`."""
    try:
        return AutoConfig.for_model(**(source.config or {}))
    except (TypeError, ValueError, AttributeError, StrictDataclassError) as error:
        reason = str(error.__cause__ or error).strip().splitlines()[-1].strip()
        raise ConversionError(f"config.json of {source.name}: {reason}") from None


def _describe_transformers(source: Source, **defaults: Any) -> dict[str, Any]:
    """What transformers' ViT-like configs share; `defaults` are those of the family's config class."""
    config = _config(source, **defaults)
    hidden_size = config.get("hidden_size", 768)
    return {
        "hidden_size": hidden_size,
        "num_hidden_layers": config.get("num_hidden_layers", 12),
        "num_attention_heads": config.get("num_attention_heads", 12),
        "hidden_act": config.get("hidden_act", "gelu"),
        "hidden_dropout_prob": config.get("hidden_dropout_prob", 0.0),
        "attention_probs_dropout_prob": config.get("attention_probs_dropout_prob", config.get("attention_dropout", 0.0)),
        "initializer_range": config.get("initializer_range", 0.02),
        "layer_norm_eps": config["layer_norm_eps"],
        "image_size": _image_size(config.get("image_size", 224)),
        "patch_size": square("patch_size", config["patch_size"]),
        "num_channels": config.get("num_channels", 3),
        "qkv_bias": config.get("qkv_bias", True),
    }


def _image_size(size: Any) -> Any:
    return list(size) if isinstance(size, (list, tuple)) else size


def _describe_vit(source: Source, layer_norm_eps: float = 1e-12) -> dict[str, Any]:
    described = _describe_transformers(source, layer_norm_eps=layer_norm_eps, patch_size=16)
    return {**described, "intermediate_size": _config(source).get("intermediate_size", 3072)}


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


def _describe_ijepa(source: Source) -> dict[str, Any]:
    return {**_describe_vit(source), "use_class_token": False, "pooling": "mean"}


def _describe_dinov3(source: Source) -> dict[str, Any]:
    config = _config(source, patch_size=16, layer_norm_eps=1e-5, hidden_size=384, num_attention_heads=6, rope_theta=100.0)
    gated = bool(config.get("use_gated_mlp", False))
    activation = config.get("hidden_act", "gelu")
    if gated and activation not in ("silu", "swish"):
        raise ConversionError(f"`hidden_act` of a gated MLP must be silu in config.json of {source.name}; got {activation!r}")
    return {
        **_describe_transformers(source, **config),
        "intermediate_size": config.get("intermediate_size", 1536),
        "qkv_bias": any(config.get(f"{name}_bias", default) for name, default in DINOV3_BIASES.items()),
        "num_register_tokens": config.get("num_register_tokens", 0),
        "use_layer_scale": True,
        "layerscale_value": config.get("layerscale_value", 1.0),
        "use_swiglu_ffn": gated,
        "use_position_table": False,
        "rope_theta": config["rope_theta"],
    }


# Which of its attention's projections have a bias, where the config does not say so.
DINOV3_BIASES = {"query": True, "key": False, "value": True}


def _dinov3_without_bias(source: Source) -> tuple[str, ...]:
    config = _config(source)
    attention = [f"attention.{name[0]}_proj" for name, has in DINOV3_BIASES.items() if not config.get(f"{name}_bias", has)]
    output = [] if config.get("proj_bias", True) else ["attention.o_proj"]
    mlp = [] if config.get("mlp_bias", True) else ["mlp.fc1", "mlp.fc2", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    return (*attention, *output, *mlp)


def _is_classifier(source: Source) -> bool:
    return "classifier.weight" in source.tensors


def _describe_clip(source: Source) -> dict[str, Any]:
    config = _config(source, patch_size=32, layer_norm_eps=1e-5, hidden_act="quick_gelu")
    described = {
        **_describe_transformers(source, **config),
        "intermediate_size": config.get("intermediate_size", 3072),
        "use_pre_norm": True,
    }
    # The family's classifier sees the mean of the patches, without a norm.
    pooled = {"pooling": "mean", "use_final_norm": False} if _is_classifier(source) else {"norm_after_pooling": True}
    return {**described, **pooled}


def _describe_siglip(source: Source) -> dict[str, Any]:
    config = _config(source, patch_size=16, layer_norm_eps=1e-6, hidden_act="gelu_pytorch_tanh")
    return {
        **_describe_transformers(source, **config),
        "intermediate_size": config.get("intermediate_size", 3072),
        "use_class_token": False,
        "pooling": "attention" if config.get("vision_use_head", True) and not _is_classifier(source) else "mean",
    }


# Of models of images and texts: by transformers' `model_type`, what makes scores of their logits; and parts of texts.
ACTIVATIONS = {"clip": "softmax", "metaclip_2": "softmax", "siglip": "sigmoid"}
PARTS_OF_TEXTS = ("text_model.", "text_projection.", "visual_projection.", "logit_scale", "logit_bias")
TEXTS = "of texts, or of the space that images share with them: an encoder of images is converted"


def _unused_beside_images(source: Source) -> dict[str, str]:
    unused = {**dict.fromkeys((f"{part}*" for part in PARTS_OF_TEXTS), TEXTS), "*position_ids": "numbers that are counted"}
    if _is_classifier(source):
        left_out = "head.*" if "head.probe" in source.tensors else "post_layernorm.*"
        unused[left_out] = "the family's classifier sees the mean of the patches"
    return unused


def _describe_beit(source: Source) -> dict[str, Any]:
    config = _config(source, patch_size=16, layer_norm_eps=1e-12)
    size = config.get("image_size", 224)
    layer_scale = config.get("layer_scale_init_value", 0.1)
    mean_pooled = bool(config.get("use_mean_pooling", True))
    return {
        **_describe_transformers(source, **config),
        "image_size": square("image_size", size),
        "intermediate_size": config.get("intermediate_size", 3072),
        "qkv_bias": True,
        "use_layer_scale": bool(layer_scale),
        "layerscale_value": layer_scale,
        "pooling": "mean" if mean_pooled else "cls",
        "norm_after_pooling": mean_pooled,
        "use_position_table": bool(config.get("use_absolute_position_embeddings", False)),
        "use_relative_position_bias": any(config.get(f"use_{kind}relative_position_bias", False) for kind in ("", "shared_")),
    }


def _unused_of_beit(source: Source) -> dict[str, str]:
    return {
        "*.relative_position_index": "numbers that are counted",
        "lm_head.*": "predicts the visual tokens of pre-training",
    }


# What transformers' classes do for `interpolate_pos_encoding`.
BICUBIC = {"mode": "bicubic", "antialias": False}
BICUBIC_ANTIALIASED = {"mode": "bicubic", "antialias": True}


def _clip() -> Family:
    return Family(
        TRANSFORMERS_CLIP,
        _describe_clip,
        "encoder.layers",
        interpolation=BICUBIC,
        without_bias=lambda source: ("embeddings.patch_projection",),
        unused=_unused_beside_images,
    )


def _siglip() -> Family:
    return Family(TRANSFORMERS_CLIP, _describe_siglip, "encoder.layers", interpolation=BICUBIC, unused=_unused_beside_images)


def _beit() -> Family:
    return Family(
        TRANSFORMERS_BEIT,
        _describe_beit,
        "encoder.layer",
        without_bias=lambda source: ("attention.k_proj",),
        unused=_unused_of_beit,
    )


# By transformers' `model_type`.
TRANSFORMERS_FAMILIES = {
    "vit": Family(TRANSFORMERS_VIT, _describe_vit, "encoder.layer", interpolation=BICUBIC),
    "deit": Family(TRANSFORMERS_VIT, _describe_deit, "encoder.layer", interpolation=BICUBIC),
    "vit_mae": Family(TRANSFORMERS_VIT, _describe_vit_mae, "encoder.layer", interpolation=BICUBIC),
    "vit_msn": Family(
        TRANSFORMERS_VIT, lambda source: _describe_vit(source, layer_norm_eps=1e-6), "encoder.layer", interpolation=BICUBIC
    ),
    "ijepa": Family(TRANSFORMERS_VIT, _describe_ijepa, "encoder.layer", interpolation=BICUBIC),
    "dinov2": Family(TRANSFORMERS_DINOV2, _describe_dinov2, "encoder.layer", interpolation=BICUBIC, follows_recipe=True),
    "dinov2_with_registers": Family(
        TRANSFORMERS_DINOV2,
        _describe_dinov2_with_registers,
        "encoder.layer",
        interpolation=BICUBIC_ANTIALIASED,
        follows_recipe=True,
    ),
    "dinov3_vit": Family(
        TRANSFORMERS_DINOV3, _describe_dinov3, "layer", follows_recipe=True, without_bias=_dinov3_without_bias
    ),
    "clip": _clip(),
    "clip_vision_model": _clip(),
    "metaclip_2": _clip(),
    "metaclip_2_vision_model": _clip(),
    "siglip": _siglip(),
    "siglip_vision_model": _siglip(),
    "beit": _beit(),
    "data2vec-vision": _beit(),
}


# Encoders of images that cannot be converted, and why.
REFUSED = {
    "siglip2": (
        "its images keep their shape, each with a position table of its own size; SigLIP 2 of a fixed resolution, whose "
        "config says siglip, can be converted"
    ),
}
REFUSED["siglip2_vision_model"] = REFUSED["siglip2"]
