"""Tiny convolutional classifiers of transformers, of stride 32, with random weights and statistics."""

from pathlib import Path

import torch
from random_weights import randomise
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    EfficientNetConfig,
    EfficientNetForImageClassification,
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    PreTrainedModel,
    RegNetConfig,
    RegNetForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    ViTImageProcessorPil,
)


LABELS = ["ant", "bee", "cat", "dog", "eel"]
NAMED = {"id2label": dict(enumerate(LABELS)), "label2id": {label: i for i, label in enumerate(LABELS)}}
STAGES = {"hidden_sizes": [8, 12, 16, 24], "depths": [1, 2, 1, 1]}
# family → its class and a small config; `image_size` only says for which images.
NETWORKS = {
    "resnet": (ResNetForImageClassification, ResNetConfig(embedding_size=8, **STAGES, **NAMED)),
    "convnext": (ConvNextForImageClassification, ConvNextConfig(**STAGES, **NAMED)),
    "mobilenet_v2": (MobileNetV2ForImageClassification, MobileNetV2Config(depth_multiplier=0.25, **NAMED)),
    "efficientnet": (
        EfficientNetForImageClassification,
        EfficientNetConfig(width_coefficient=0.25, depth_coefficient=0.1, hidden_dim=320, image_size=96, **NAMED),
    ),
    "regnet": (RegNetForImageClassification, RegNetConfig(embedding_size=8, groups_width=4, **STAGES, **NAMED)),
}


def tiny_network(family: str = "resnet", seed: int = 0) -> PreTrainedModel:
    """In eval mode."""
    network_class, config = NETWORKS[family]
    network = network_class(config)
    randomise(network, seed)
    generator = torch.Generator().manual_seed(seed)
    for name, buffer in network.named_buffers():
        if name.endswith("running_var"):
            buffer.copy_(1 + torch.rand(buffer.shape, generator=generator))
        elif name.endswith("running_mean"):
            buffer.copy_(0.3 * torch.randn(buffer.shape, generator=generator))
    return network.eval()


def save_network(directory: Path, family: str = "resnet", size: int = 96) -> Path:
    """A repository of one, with an image processor for square images, and a card."""
    tiny_network(family).save_pretrained(directory)
    ViTImageProcessorPil(size={"height": size, "width": size}).save_pretrained(directory)
    (directory / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n\n# A tiny network\n")
    return directory
