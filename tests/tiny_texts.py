"""Tiny tokenizers and CLIP-like models with random weights: every parameter random, so that each one matters to the result."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTokenizer,
    MetaClip2Config,
    MetaClip2Model,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
    ViTImageProcessor,
)

from spot_hf import SpotViTConfig


LABELS = ["ant", "bee", "cat", "dog", "eel"]
LETTERS = "abcdefghijklmnopqrstuvwxyz.,'"


def clip_tokenizer(directory: Path) -> CLIPTokenizer:
    """Of files of a vocabulary and merges: letters, and a few words' parts."""
    merges = ["a t</w>", "o f</w>", "i s</w>", "d o", "c at</w>", "p h", "o t", "ph ot", "phot o</w>"]
    letters = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
    words = [*letters, *(merge.replace(" ", "") for merge in merges), "<|startoftext|>", "<|endoftext|>"]
    vocab = {word: number for number, word in enumerate(words)}
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "vocab.json").write_text(json.dumps(vocab))
    (directory / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    return CLIPTokenizer.from_pretrained(directory, model_max_length=16)


def siglip_tokenizer() -> PreTrainedTokenizerFast:
    """A unigram model, as sentencepiece makes them, that ends texts and pads them, without a mask."""
    pieces = ["<pad>", "</s>", "<unk>", "▁", *LETTERS, "▁photo", "▁of", "▁cat", "▁dog"]
    tokenizer = Tokenizer(models.Unigram([(piece, -float(i)) for i, piece in enumerate(pieces)], unk_id=2))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=16, model_input_names=["input_ids"], **special)


TEXT = {"hidden_size": 24, "intermediate_size": 36, "num_hidden_layers": 2, "num_attention_heads": 3}
VISION = {"hidden_size": 36, "intermediate_size": 56, "num_hidden_layers": 2, "num_attention_heads": 3, "patch_size": 7}


def text_fields(family: str, tokenizer: Any) -> dict[str, Any]:
    """Of a tiny text tower for a tokenizer."""
    own = {"projection_dim": 20} if family != "siglip" else {"projection_size": VISION["hidden_size"]}
    tokens = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return {**TEXT, **own, **tokens, "vocab_size": len(tokenizer), "max_position_embeddings": 16}


SOURCES = {
    "clip": (CLIPConfig, CLIPModel),
    "metaclip_2": (MetaClip2Config, MetaClip2Model),
    "siglip": (SiglipConfig, SiglipModel),
}


def tokenizer_of(family: str, directory: Path) -> Any:
    return siglip_tokenizer() if family == "siglip" else clip_tokenizer(directory)


def randomise(model: torch.nn.Module, seed: int = 0) -> None:
    """Every parameter; of the texts' so large that texts differ, and a scale of the logits as the released models have."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            std = 2 if name.endswith("token_embedding.weight") else 0.5 if name.startswith("text_model") else 0.3
            parameter.copy_(std * torch.randn(parameter.shape, generator=generator) + (2 if name == "logit_scale" else 0))


def save_source(directory: Path, family: str = "clip", image_size: int = 31, **vision: Any) -> Path:
    """A repository as transformers saves it: model, tokenizer, image processor, and a card that names a licence."""
    config_class, model_class = SOURCES[family]
    tokenizer = tokenizer_of(family, directory)
    fields = {**VISION, "image_size": image_size, **vision}
    if family != "siglip":
        fields["projection_dim"] = 20
    config = config_class(
        text_config=text_fields(family, tokenizer),
        vision_config=fields,
        **({} if family == "siglip" else {"projection_dim": 20}),
    )
    model = model_class(config)
    randomise(model)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    size = {"height": image_size, "width": image_size}
    if family == "siglip":
        ViTImageProcessor(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(directory)
    else:
        CLIPImageProcessor(size={"shortest_edge": image_size}, crop_size=size).save_pretrained(directory)
    (directory / "README.md").write_text("---\nlicense: mit\n---\n\n# Tiny\n")
    return directory


def zero_shot_config(family: str, tokenizer: Any, **changes: Any) -> SpotViTConfig:
    """Of a tiny zero-shot SpotViT, not converted from anything."""
    from tiny import TINY

    text = {"model_type": f"{family}_text_model", **text_fields(family, tokenizer)}
    if family == "siglip":
        own = {"text_activation": "sigmoid"}
        text["projection_size"] = TINY["hidden_size"]
    else:
        own = {"projection_dim": 20}
    return SpotViTConfig(**{**TINY, "text_config": text, **own, **changes})


def zero_shot_model(family: str, tokenizer: Any, seed: int = 0, **changes: Any) -> Any:
    """The model of such a config, with random weights."""
    import spot_hf

    model = spot_hf.SpotViTForZeroShotImageClassification(zero_shot_config(family, tokenizer, **changes)).eval()
    randomise(model, seed)
    return model


def reference_logits(source: Path, texts: list[str], pixel_values: torch.Tensor, **padding: Any) -> torch.Tensor:
    """`logits_per_image` of the source's own class."""
    model = transformers.AutoModel.from_pretrained(source).eval()
    inputs = transformers.AutoTokenizer.from_pretrained(source)(texts, return_tensors="pt", **padding)
    with torch.no_grad():
        return model(pixel_values=pixel_values, **inputs).logits_per_image
