"""Tiny, random sources of every family of transformers, and what their converted forms are."""

from dataclasses import dataclass
from typing import Any

from transformers import (
    BeitConfig,
    BeitForImageClassification,
    BeitModel,
    BitImageProcessor,
    CLIPConfig,
    CLIPForImageClassification,
    CLIPVisionConfig,
    CLIPVisionModel,
    Data2VecVisionConfig,
    Data2VecVisionForImageClassification,
    DeiTConfig,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DeiTModel,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersForImageClassification,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    IJepaConfig,
    IJepaForImageClassification,
    IJepaModel,
    MetaClip2Config,
    MetaClip2ForImageClassification,
    MetaClip2VisionConfig,
    MetaClip2VisionModel,
    PreTrainedModel,
    SiglipConfig,
    SiglipForImageClassification,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    ViTImageProcessor,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTModel,
    ViTMSNConfig,
    ViTMSNForImageClassification,
    ViTMSNModel,
)


LABELS = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu"]
CLASSES = {"id2label": dict(enumerate(LABELS)), "label2id": {name: i for i, name in enumerate(LABELS)}}
BODY = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
VIT = {**BODY, "intermediate_size": 80}
DINOV2 = {**BODY, "image_size": 80, "mlp_ratio": 2}  # a 10 × 10 table; the recipe below makes 32 × 32 images
REGISTERS = {**DINOV2, "num_register_tokens": 3}
DINOV3 = {**VIT, "layerscale_value": 0.5}
TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 64}


@dataclass
class Case:
    """A source model, the image processor beside it, and what its converted form is."""

    model: type[PreTrainedModel]
    config: Any
    size: tuple[int, int] = (32, 32)
    image_processor: Any = None
    skipped: set[str] = frozenset()
    pooler: bool = False  # whether the headless source's pooler_output is the converted model's

    @property
    def has_classifier(self) -> bool:
        return "Classification" in self.model.__name__


def vit_recipe(height: int = 32, width: int = 32) -> ViTImageProcessor:
    return ViTImageProcessor(size={"height": height, "width": width})


def dinov2_recipe(height: int = 32, width: int = 32) -> BitImageProcessor:
    return BitImageProcessor(size={"shortest_edge": 36}, crop_size={"height": height, "width": width}, resample=3)


POOLER = {"pooler.dense.weight", "pooler.dense.bias"}
MASK_TOKEN = {"mask_token"}
SIGLIP_HEAD = (
    "probe", "attention.in_proj_weight", "attention.in_proj_bias", "attention.out_proj.weight", "attention.out_proj.bias",
    "layernorm.weight", "layernorm.bias", "mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias",
)  # fmt: skip
CASES = {
    "vit": Case(ViTForImageClassification, ViTConfig(**VIT, **CLASSES), image_processor=vit_recipe()),
    "vit_headless_with_pooler": Case(ViTModel, ViTConfig(**VIT), image_processor=vit_recipe(), skipped=POOLER),
    "vit_without_qkv_bias": Case(ViTForImageClassification, ViTConfig(**VIT, **CLASSES, qkv_bias=False)),
    "vit_other_activation_and_epsilon": Case(
        ViTForImageClassification, ViTConfig(**VIT, **CLASSES, hidden_act="quick_gelu", layer_norm_eps=1e-2)
    ),
    "vit_not_square": Case(
        ViTForImageClassification,
        ViTConfig(**{**VIT, "image_size": [24, 56]}, **CLASSES),
        size=(24, 56),
        image_processor=vit_recipe(24, 56),
    ),
    "vit_masked_image_modeling": Case(
        ViTForMaskedImageModeling,
        ViTConfig(**VIT, encoder_stride=8),
        skipped={*MASK_TOKEN, "decoder.0.weight", "decoder.0.bias"},
    ),
    "deit": Case(DeiTForImageClassification, DeiTConfig(**VIT, **CLASSES)),
    "deit_headless": Case(DeiTModel, DeiTConfig(**VIT), skipped=POOLER),
    "deit_distilled": Case(DeiTForImageClassificationWithTeacher, DeiTConfig(**VIT, **CLASSES)),
    "dino": Case(ViTModel, ViTConfig(**{**VIT, "patch_size": 4}, qkv_bias=True, layer_norm_eps=1e-6), skipped=POOLER),
    "dinov2": Case(
        Dinov2ForImageClassification, Dinov2Config(**DINOV2, **CLASSES), image_processor=dinov2_recipe(), skipped=MASK_TOKEN
    ),
    "dinov2_headless": Case(
        Dinov2Model, Dinov2Config(**DINOV2), image_processor=dinov2_recipe(), skipped=MASK_TOKEN, pooler=True
    ),
    "dinov2_at_its_own_size": Case(Dinov2Model, Dinov2Config(**DINOV2), size=(80, 80), skipped=MASK_TOKEN, pooler=True),
    "dinov2_larger": Case(
        Dinov2Model,
        Dinov2Config(**{**DINOV2, "image_size": 24}),
        size=(40, 40),
        image_processor=vit_recipe(40, 40),
        skipped=MASK_TOKEN,
        pooler=True,
    ),
    "dinov2_not_square": Case(
        Dinov2Model,
        Dinov2Config(**DINOV2),
        size=(24, 56),
        image_processor=dinov2_recipe(24, 56),
        skipped=MASK_TOKEN,
        pooler=True,
    ),
    "dinov2_swiglu": Case(
        Dinov2ForImageClassification,
        Dinov2Config(**DINOV2, **CLASSES, use_swiglu_ffn=True),
        image_processor=dinov2_recipe(),
        skipped=MASK_TOKEN,
    ),
    "registers": Case(
        Dinov2WithRegistersForImageClassification,
        Dinov2WithRegistersConfig(**REGISTERS, **CLASSES),
        image_processor=dinov2_recipe(),
        skipped=MASK_TOKEN,
    ),
    "registers_headless": Case(
        Dinov2WithRegistersModel,
        Dinov2WithRegistersConfig(**REGISTERS),
        image_processor=dinov2_recipe(),
        skipped=MASK_TOKEN,
        pooler=True,
    ),
    "registers_not_square": Case(
        Dinov2WithRegistersModel,
        Dinov2WithRegistersConfig(**REGISTERS),
        size=(24, 56),
        image_processor=dinov2_recipe(24, 56),
        skipped=MASK_TOKEN,
        pooler=True,
    ),
    "registers_swiglu": Case(
        Dinov2WithRegistersForImageClassification,
        Dinov2WithRegistersConfig(**REGISTERS, **CLASSES, use_swiglu_ffn=True),
        image_processor=dinov2_recipe(),
        skipped=MASK_TOKEN,
    ),
    "mae": Case(
        ViTMAEForPreTraining,
        ViTMAEConfig(
            **VIT,
            decoder_hidden_size=16,
            decoder_num_attention_heads=2,
            decoder_num_hidden_layers=1,
            decoder_intermediate_size=24,
            mask_ratio=0.0,
        ),
    ),
    # ViTs by name, and one without class token.
    "ijepa": Case(IJepaForImageClassification, IJepaConfig(**VIT, **CLASSES)),
    "ijepa_headless": Case(IJepaModel, IJepaConfig(**VIT)),
    "msn": Case(ViTMSNForImageClassification, ViTMSNConfig(**VIT, **CLASSES)),
    "msn_headless": Case(ViTMSNModel, ViTMSNConfig(**VIT)),
    # Rotary positions.
    "dinov3": Case(DINOv3ViTModel, DINOv3ViTConfig(**DINOV3), skipped=MASK_TOKEN, pooler=True),
    "dinov3_registers": Case(
        DINOv3ViTModel, DINOv3ViTConfig(**DINOV3, num_register_tokens=3, rope_theta=30.0), skipped=MASK_TOKEN, pooler=True
    ),
    "dinov3_all_biases": Case(DINOv3ViTModel, DINOv3ViTConfig(**DINOV3, key_bias=True), skipped=MASK_TOKEN, pooler=True),
    "dinov3_no_biases": Case(
        DINOv3ViTModel,
        DINOv3ViTConfig(**DINOV3, query_bias=False, value_bias=False, proj_bias=False, mlp_bias=False),
        skipped=MASK_TOKEN,
        pooler=True,
    ),
    "dinov3_gated": Case(
        DINOv3ViTModel,
        DINOv3ViTConfig(**DINOV3, num_register_tokens=2, use_gated_mlp=True, hidden_act="silu", mlp_bias=False),
        skipped=MASK_TOKEN,
        pooler=True,
    ),
    "dinov3_not_square": Case(
        DINOv3ViTModel,
        DINOv3ViTConfig(**DINOV3),
        size=(24, 56),
        image_processor=vit_recipe(24, 56),
        skipped=MASK_TOKEN,
        pooler=True,
    ),
    "dinov3_of_no_whole_patches": Case(
        DINOv3ViTModel,
        DINOv3ViTConfig(**DINOV3),
        size=(29, 35),
        image_processor=vit_recipe(29, 35),
        skipped=MASK_TOKEN,
        pooler=True,
    ),
    # Encoders that share a space with texts.
    "clip_vision": Case(CLIPVisionModel, CLIPVisionConfig(**VIT), pooler=True),
    "clip_vision_other_activation": Case(
        CLIPVisionModel, CLIPVisionConfig(**VIT, hidden_act="gelu", layer_norm_eps=1e-2), pooler=True
    ),
    "clip_classifier": Case(
        CLIPForImageClassification,
        CLIPConfig(text_config=TEXT, vision_config=VIT, **CLASSES),
        skipped={"post_layernorm.weight", "post_layernorm.bias"},
    ),
    "metaclip_2_vision": Case(MetaClip2VisionModel, MetaClip2VisionConfig(**VIT), pooler=True),
    "metaclip_2_classifier": Case(
        MetaClip2ForImageClassification,
        MetaClip2Config(text_config=TEXT, vision_config=VIT, **CLASSES),
        skipped={"post_layernorm.weight", "post_layernorm.bias"},
    ),
    "siglip_vision": Case(SiglipVisionModel, SiglipVisionConfig(**VIT), pooler=True),
    "siglip_vision_without_head": Case(SiglipVisionModel, SiglipVisionConfig(**VIT, vision_use_head=False)),
    "siglip_classifier": Case(
        SiglipForImageClassification,
        SiglipConfig(text_config=TEXT, vision_config=VIT, **CLASSES),
        skipped={f"head.{part}" for part in SIGLIP_HEAD},
    ),
    # Relative positions.
    "beit": Case(BeitForImageClassification, BeitConfig(**VIT, **CLASSES, use_relative_position_bias=True)),
    "beit_shared_and_absolute": Case(
        BeitModel,
        BeitConfig(
            **VIT, use_shared_relative_position_bias=True, use_absolute_position_embeddings=True, use_mean_pooling=False
        ),
        pooler=True,
    ),
    "beit_of_no_whole_patches": Case(
        BeitForImageClassification,
        BeitConfig(**{**VIT, "image_size": 36}, **CLASSES, use_relative_position_bias=True),
        size=(36, 36),
    ),
    "beit_without_layer_scale": Case(
        BeitModel, BeitConfig(**VIT, use_relative_position_bias=True, layer_scale_init_value=0.0), pooler=True
    ),
    "data2vec": Case(
        Data2VecVisionForImageClassification, Data2VecVisionConfig(**VIT, **CLASSES, use_relative_position_bias=True)
    ),
}
