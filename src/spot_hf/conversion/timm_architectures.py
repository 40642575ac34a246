"""What timm's architectures are made with, where neither their tensors nor their repositories say so."""

from fnmatch import fnmatchcase
from typing import Any


# Of timm's class Eva, by the names of its arguments.
EVA = {"of_eva": True, "global_pool": "avg"}
EVA02 = {**EVA, "use_rot_pos_emb": True, "ref_feat_shape": 16}
DINOV3 = {
    **EVA,
    "norm_eps": 1e-5,
    "num_reg_tokens": 4,
    "use_abs_pos_emb": False,
    "use_rot_pos_emb": True,
    "rope_type": "dinov3",
    "rope_temperature": 100.0,
    "rope_rotate_half": True,
}
ROPE_VIT = {
    **EVA,
    "global_pool": "token",
    "use_abs_pos_emb": False,
    "use_rot_pos_emb": True,
    "rope_grid_indexing": "xy",
    "rope_temperature": 100.0,
}
PERCEPTION = {
    **EVA,
    "norm_eps": 1e-5,
    "use_rot_pos_emb": True,
    "ref_feat_shape": 32,
    "rope_grid_offset": 1.0,
    "rope_grid_indexing": "xy",
}


# Patterns of names, and arguments of timm's classes; of several that fit, a later one counts.
ARCHITECTURES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("*_gap_*", {"class_token": False, "global_pool": "avg"}),
    ("*_siglip_*", {"class_token": False}),
    ("*_map_*", {"class_token": False}),
    ("test_vit[23]", {"class_token": False}),
    ("test_vit3", {"pool_include_prefix": True}),
    ("vit_*_clip_*", {"norm_eps": 1e-5}),
    ("vit_*_quickgelu_*", {"act_layer": "quick_gelu"}),
    ("beit3_*", {"norm_eps": 1e-5, "global_pool": "avg"}),
    ("vit_base_patch32_siglip_*", {"act_layer": "gelu_tanh"}),
    ("vit_large_patch16_siglip_*512", {"act_layer": "gelu_tanh"}),
    ("vit_so400m_patch16_siglip_*", {"act_layer": "gelu_tanh"}),
    ("vit_giantopt_*", {"act_layer": "gelu_tanh", "num_heads": 16}),
    ("vit_base_patch16_gap_224", {"num_heads": 16}),
    ("vit_*_rpn_*", {"use_post_norm": True}),
    ("test_vit3", {"num_heads": 3}),
    ("eva02_*", EVA02),
    ("eva02_enormous_*", {"use_post_norm": True, "use_rot_pos_emb": False, "num_heads": 16}),
    ("eva_giant_*", EVA),
    ("vit_*_rope_*", ROPE_VIT),
    ("vit_*_rope_ape_*", {"use_abs_pos_emb": True}),
    ("vit_*_rope_mixed_*", {"rope_type": "mixed"}),
    ("vit_*_rope_mixed_ape_*", {"use_abs_pos_emb": True}),
    ("vit_*_rope_reg*_gap_*", {**EVA02, "rope_grid_indexing": "ij", "rope_temperature": 10000.0}),
    ("vit_*_dinov3*", DINOV3),
    ("vit_*_lingbot", {**DINOV3, "global_pool": "token"}),
    ("vit_huge_plus_*_dinov3*", {"num_heads": 20}),
    ("vit_7b_*_dinov3", {"num_heads": 32}),
    ("vit_pe_*", PERCEPTION),
    ("vit_pe_core_*", {"global_pool": "map", "ref_feat_shape": 24, "attn_pool_num_heads": 8}),
    ("vit_pe_core_base_*", {"ref_feat_shape": 14}),
    ("vit_pe_*_gigantic_*", {"class_token": False, "num_heads": 16, "ref_feat_shape": 32, "rope_grid_offset": 0.0}),
    ("vit_*_sapiens2", {**DINOV3, "num_reg_tokens": 8, "global_pool": "token", "attn_only_layer_scale": True}),
    ("beit_*", {**EVA, "use_abs_pos_emb": False}),
    ("beitv2_*", {**EVA, "use_abs_pos_emb": False}),
)


def architecture_arguments(architecture: str | None) -> dict[str, Any]:
    """Arguments of a class of timm, as far as its defaults and tensors do not tell: `of_eva`, whether it is Eva's or BEiT's,
    and `norm_eps` among them. Empty for a usual ViT, and for a name that timm has not."""
    name = (architecture or "").split(".")[0]
    found: dict[str, Any] = {}
    for pattern, arguments in ARCHITECTURES:
        if fnmatchcase(name, pattern):
            found.update(arguments)
    return found
