"""Writes sources of timm, in timm's own layout, with what timm computes from them. A script: see `test_conversion_timm.py`.

    python tests/torchvision_shim.py tests/conversion/timm_sources.py OUTPUT_DIR

Each folder of OUTPUT_DIR is a repository as `timm.models.push_to_hf_hub` fills it, or one that transformers' wrapper saved;
`OUTPUT_DIR/NAME.safetensors` holds its inputs and outputs.
"""

import json
import sys
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from random_weights import randomise
from safetensors.torch import save_file
from timm.data import create_transform, resolve_data_config
from timm.models import save_for_hf
from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

from spot_hf import convert_checkpoint


LABELS = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu"]
TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 4, "num_classes": len(LABELS)}
SCALED = {**TINY, "init_values": 1e-5}
HEADLESS, NOT_SQUARE = {"num_classes": 0}, {"img_size": (24, 56)}
SHORT = {"img_size": (32, 48), "depth": 2, "num_classes": len(LABELS)}  # of a real architecture

# name → (architecture, arguments of timm.create_model)
MODELS = {
    "vit": ("vit_tiny_patch16_224", TINY),
    "vit_headless": ("vit_tiny_patch16_224", TINY | HEADLESS),
    "vit_without_qkv_bias": ("vit_base_patch16_224_miil", TINY | {"qkv_bias": False}),
    "vit_not_square": ("vit_tiny_patch16_224", TINY | {"img_size": (24, 56)}),
    "vit_one_channel": ("vit_tiny_patch16_224", TINY | {"in_chans": 1}),
    "quick_gelu": ("vit_tiny_patch16_224", TINY | {"act_layer": "quick_gelu"}),
    "mean": ("vit_tiny_patch16_224", TINY | {"global_pool": "avg"}),
    "mean_of_normed": ("vit_tiny_patch16_224", TINY | {"global_pool": "avg", "fc_norm": False}),
    "token_normed_late": ("vit_tiny_patch16_224", TINY | {"fc_norm": True}),
    "deit": ("deit_tiny_patch16_224", TINY),
    "deit_distilled": ("deit_tiny_distilled_patch16_224", TINY),
    "deit3": ("deit3_small_patch16_224", SCALED),
    "dinov2": ("vit_small_patch14_dinov2", SCALED | HEADLESS),
    "registers": ("vit_small_patch14_reg4_dinov2", SCALED | HEADLESS),
    "registers_classifier": ("vit_small_patch14_reg4_dinov2", SCALED | {"reg_tokens": 3}),
    "registers_mean": ("vit_small_patch14_reg4_dinov2", SCALED | {"global_pool": "avg"}),
    "registers_with_positions": ("vit_small_patch14_reg4_dinov2", SCALED | {"no_embed_class": False}),
    "swiglu": ("vit_giant_patch14_reg4_dinov2", TINY | {"mlp_ratio": 4.0}),
    "flexivit": ("flexivit_small", TINY),
    "test_vit": ("test_vit", {}),  # a real architecture: 1,000 classes, heads of 32
    "clip": ("vit_base_patch16_clip_224", TINY),
    "clip_quickgelu": ("vit_base_patch32_clip_quickgelu_224", TINY | HEADLESS),
    "clip_mean": ("vit_base_patch16_clip_224", TINY | {"global_pool": "avg"}),
    "norm_of_queries": ("vit_tiny_patch16_224", TINY | {"qk_norm": True}),
    "norms_inside": ("beit3_base_patch16_224", TINY),
    "siglip": ("vit_base_patch16_siglip_224", TINY | HEADLESS),
    "siglip_classifier": ("vit_so400m_patch16_siglip_256", TINY | NOT_SQUARE),
    "siglip_mean": ("vit_base_patch16_siglip_gap_224", TINY | HEADLESS),
    "map_with_registers": ("vit_so150m_patch16_reg4_map_256", TINY),
    "map_with_class_token": ("vit_tiny_patch16_224", TINY | {"global_pool": "map"}),
    "no_class_token": ("vit_medium_patch16_gap_240", TINY),
    "registers_without_class_token": ("vit_betwixt_patch16_reg4_gap_256", TINY),
    "test_vit2": ("test_vit2", HEADLESS),
    "without_final_norm": ("vit_base_patch16_radio_v3", TINY | HEADLESS),
    "without_table": ("vit_tiny_patch16_224", TINY | {"pos_embed": "none"}),
    "eva": ("eva_giant_patch14_224", TINY | {"mlp_ratio": 3.0}),
    "eva_clip": ("eva_giant_patch14_clip_224", TINY | HEADLESS),
    "eva02": ("eva02_tiny_patch14_224", TINY | HEADLESS),
    "eva02_separate": ("eva02_base_patch14_224", TINY | NOT_SQUARE),
    "eva02_clip": ("eva02_base_patch16_clip_224", TINY),
    "eva02_without_bias": ("eva02_base_patch14_224", TINY | {"qkv_bias": False, "init_values": 1e-5}),
    "eva02_norm_of_queries": ("eva02_base_patch14_224", TINY | {"qk_norm": True}),
    "rotary_and_register": ("vit_mediumd_patch16_rope_reg1_gap_256", TINY),
    "rotary_x_first": ("vit_small_patch16_rope_224", TINY | NOT_SQUARE),
    "rotary_and_table": ("vit_small_patch16_rope_ape_224", TINY | NOT_SQUARE),
    "dinov3": ("vit_small_patch16_dinov3", TINY | HEADLESS),
    "dinov3_classifier": ("vit_small_patch16_dinov3_qkvb", TINY | NOT_SQUARE | {"global_pool": "token", "num_reg_tokens": 2}),
    "dinov3_swiglu": ("vit_small_plus_patch16_dinov3_qkvb", TINY | {"num_reg_tokens": 0}),
    "dinov3_other_layout": ("vit_small_patch16_dinov3", TINY | {"rope_rotate_half": False, "rope_grid_indexing": "xy"}),
    "dinov3_x_first": ("vit_small_patch16_dinov3", TINY | NOT_SQUARE | {"rope_grid_indexing": "xy"}),
    "lingbot": ("vit_base_patch16_lingbot", TINY | HEADLESS),
    "pe_core": ("vit_pe_core_gigantic_patch14_448", TINY | HEADLESS | {"attn_pool_num_heads": 4, "mlp_ratio": 4.0}),
    "pe_spatial": ("vit_pe_spatial_tiny_patch16_512", TINY | HEADLESS),
    "pe_lang": ("vit_pe_lang_large_patch14_448", TINY | HEADLESS | NOT_SQUARE),
    "small_clip": ("vit_xsmall_patch16_clip_224", SHORT),
    "small_eva02": ("eva02_tiny_patch14_224", SHORT | {"img_size": (42, 28)}),
    "small_dinov3": ("vit_tiny_patch16_dinov3_qkvb", SHORT),
    "small_pe": ("vit_pe_spatial_tiny_patch16_512", SHORT),
    "beit": ("beit_base_patch16_224", TINY),
    "beit_and_table": ("beitv2_base_patch16_224", TINY | NOT_SQUARE | {"use_abs_pos_emb": True}),
    "beit_shared": ("beit_base_patch16_224", TINY | HEADLESS | {"use_rel_pos_bias": False, "use_shared_rel_pos_bias": True}),
}

# Also as timm resizes them, to 48 × 40 pixels.
RESIZED = (
    "vit", "deit_distilled", "registers_classifier", "vit_not_square", "clip", "siglip_classifier", "without_table", "eva",
    "eva02", "eva02_separate", "rotary_x_first", "rotary_and_table", "dinov3", "dinov3_classifier", "pe_lang",
)  # fmt: skip

# name → (architecture, arguments): each has a part that SpotViT has not.
UNSUPPORTED = {
    "rms_norm": ("vit_tiny_patch16_224", TINY | {"norm_layer": "rmsnorm"}),
    "rms_norm_of_an_architecture": ("vit_base_patch16_sapiens2", TINY | {"num_kv_heads": [4, 4, 4]}),
    "max_pooling": ("vit_tiny_patch16_224", TINY | {"global_pool": "max"}),
    "registers_in_the_mean": ("vit_tiny_patch16_224", TINY | {"global_pool": "avg", "pool_include_prefix": True}),
    "registers_in_the_map": ("test_vit3", {}),
    "class_token_in_the_map": ("vit_pe_core_tiny_patch16_384", TINY | {"attn_pool_num_heads": 4}),
    "more_heads_in_the_map": ("vit_pe_core_gigantic_patch14_448", TINY),
    "both_norms": ("eva02_base_patch14_224", TINY | {"use_fc_norm": True, "use_post_transformer_norm": True}),
    "map_normed_late": ("vit_base_patch16_siglip_224", TINY | {"fc_norm": True}),
    "geglu": ("vit_giant_patch14_dinov2", TINY | {"act_layer": "gelu"}),
    "mish": ("vit_tiny_patch16_224", TINY | {"act_layer": "mish"}),
    "hybrid": ("vit_base_r50_s16_224", {"img_size": 32, "embed_dim": 48, "depth": 1, "num_heads": 4, "num_classes": 7}),
    "differential": ("vit_dwee_patch16_reg1_gap_256", TINY),
    "learned_frequencies": ("vit_small_patch16_rope_mixed_224", TINY),
    "three_axes": ("eva02_base_patch14_224", TINY | {"rope_type": "mrope", "rope_mrope_section": (2, 2, 2)}),
    "dinov3_offset": ("vit_small_patch16_dinov3", TINY | {"rope_grid_offset": 0.5}),
    "norms_after": ("eva02_enormous_patch14_clip_224", TINY),
    "shared_keys": ("vit_small_patch16_rope_224", TINY | {"num_kv_heads": 2, "qkv_fused": False}),
    "scaled_attention_alone": ("vit_small_patch16_dinov3", TINY | {"attn_only_layer_scale": True}),
    "convolutions": ("test_resnet", {}),
}

# name → entries of `pretrained_cfg` for the evaluation transform of a 32 × 32 model
TRANSFORMS = {
    "center": {"crop_pct": 0.9, "interpolation": "bicubic", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
    "center_whole": {"crop_pct": 1.0, "interpolation": "bilinear"},
    "squash": {"crop_pct": 0.875, "crop_mode": "squash", "interpolation": "bicubic"},
    "test_size": {"crop_pct": 0.9, "test_input_size": [3, 64, 64], "test_crop_pct": 1.0, "interpolation": "lanczos"},
    "nothing_said": {"crop_pct": None, "interpolation": None, "mean": None, "std": None},
}


def save(name: str, architecture: str, arguments: dict, output_dir: Path) -> None:
    model = randomise(timm.create_model(architecture, **arguments))
    label_names = {"label_names": LABELS} if model.num_classes == len(LABELS) else {}
    save_for_hf(model, output_dir / name, model_config=label_names, safe_serialization=True)
    if name in UNSUPPORTED:
        return
    channels, height, width = model.pretrained_cfg["input_size"][0], *model.patch_embed.img_size
    pixel_values = torch.randn(
        3, arguments.get("in_chans", channels), height, width, generator=torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        features = model.forward_features(pixel_values)
        outputs = {"last_hidden_state": features, "pooler_output": model.forward_head(features, pre_logits=True)}
        if model.num_classes:
            outputs["logits"] = model(pixel_values)
    tensors = {"pixel_values": pixel_values} | {key: tensor.contiguous() for key, tensor in outputs.items()}
    save_file(tensors, output_dir / f"{name}.safetensors")
    if name in RESIZED:
        model.set_input_size(img_size=(48, 40))
        pixel_values = torch.randn(3, 3, 48, 40, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            resized = {"logits" if model.num_classes else "pooler_output": model(pixel_values)}
        save_file({"pixel_values": pixel_values} | resized, output_dir / f"{name}_resized.safetensors")


def save_wrapped(output_dir: Path) -> None:
    """The same, saved by transformers."""
    arguments = {k: v for k, v in TINY.items() if k != "num_classes"}
    config = TimmWrapperConfig.from_dict(
        {
            "architecture": "vit_tiny_patch16_224",
            "num_classes": len(LABELS),
            "label_names": LABELS,
            "model_args": arguments | {"act_layer": "gelu_tanh"},
            "pretrained_cfg": {"input_size": [3, 32, 32], "crop_pct": 0.9, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
        }
    )
    model = TimmWrapperForImageClassification(config)
    randomise(model.timm_model)
    model.eval().save_pretrained(output_dir / "wrapped")
    pixel_values = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model(pixel_values).logits
    save_file({"pixel_values": pixel_values, "logits": logits}, output_dir / "wrapped.safetensors")


def save_transformed(output_dir: Path) -> None:
    """Pictures, and what timm's evaluation transforms make of them."""
    generator = np.random.default_rng(0)
    transformed = {}
    for i, size in enumerate([(60, 44), (44, 61), (50, 50), (30, 33)]):
        coarse = Image.fromarray(generator.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        picture = coarse.resize(size, Image.Resampling.BICUBIC)
        picture.save(output_dir / f"{i}.png")
        for name, entries in TRANSFORMS.items():
            transform = create_transform(**resolve_data_config(pretrained_cfg={"input_size": (3, 32, 32), **entries}))
            transformed[f"{name}/{i}"] = transform(picture)
    save_file(transformed, output_dir / "transformed.safetensors")


ACTIVATIONS = {"GELU": "gelu", "GELUTanh": "gelu_pytorch_tanh", "QuickGELU": "quick_gelu", "SiLU": "silu"}


def architectures() -> dict[str, dict]:
    """Of timm's ViTs, its EVAs and its BEiTs, by name: the shapes of their tensors, what their repositories on the Hub say,
    and what they compute with beside the tensors."""
    found = {}
    for name in timm.list_models(module=["vision_transformer", "deit", "eva", "beit"]):
        try:
            with torch.device("meta"):
                model = timm.create_model(name, depth=1)
        except AssertionError:  # Sapiens 2 has a number of keys for each layer
            continue
        attention = getattr(model.blocks[0], "attn", None)
        rope = getattr(model, "rope", None)
        facts = {"class": type(model.blocks[0]).__name__, "attention": type(attention).__name__}
        if "NoneType" not in facts["attention"]:
            facts |= {
                "hidden_size": model.embed_dim,
                "num_attention_heads": attention.num_heads,
                "layer_norm_eps": model.blocks[0].norm1.eps,
                "hidden_act": ACTIVATIONS[type(model.blocks[0].mlp.act).__name__],
                "use_class_token": model.cls_token is not None,
                "num_register_tokens": model.num_prefix_tokens - (model.cls_token is not None),
                "use_position_table": model.pos_embed is not None,
                "use_pre_norm": not isinstance(getattr(model, "norm_pre", torch.nn.Identity()), torch.nn.Identity),
                "norm_after_pooling": not isinstance(model.fc_norm, torch.nn.Identity),
                "image_size": list(model.patch_embed.img_size),
                "rms_norm": "Rms" in type(model.blocks[0].norm1).__name__,
                "pool_heads": getattr(getattr(model, "attn_pool", None), "num_heads", attention.num_heads),
                "pool_prefix": getattr(
                    model, "pool_include_prefix", type(model).__name__ == "Eva" and model.num_prefix_tokens > 0
                ),
            }
        if rope is not None:
            facts["rope"] = {
                "kind": type(rope).__name__,
                "theta": rope.temperature,
                "half": getattr(rope, "rotate_half", False),
                "indexing": rope.grid_indexing,
                "offset": getattr(rope, "grid_offset", 0.0),
                "grid": getattr(rope, "ref_feat_shape", None),
            }
        config = {
            "architecture": name,
            "num_classes": model.num_classes,
            "global_pool": model.global_pool,
            "pretrained_cfg": {"input_size": [3, *model.patch_embed.img_size]},
        }
        shapes = {key: list(tensor.shape) for key, tensor in model.state_dict().items()}
        found[name] = {"config": config, "shapes": shapes, "facts": facts}
    return found


def main(output_dir: Path) -> None:
    for name, (architecture, arguments) in {**MODELS, **UNSUPPORTED}.items():
        save(name, architecture, arguments, output_dir)
    save_wrapped(output_dir)
    save_transformed(output_dir)
    (output_dir / "transforms.json").write_text(json.dumps(TRANSFORMS))
    (output_dir / "architectures.json").write_text(json.dumps(architectures()))
    # With timm at hand, a classifier of 1,000 labels without names has those of ImageNet-1k.
    labels = convert_checkpoint(output_dir / "test_vit").model.config.id2label
    (output_dir / "imagenet_labels.json").write_text(json.dumps(labels))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
