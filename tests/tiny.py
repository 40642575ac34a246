"""Tiny SpotViTs for unit tests: every parameter random, so that each one matters to the result."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from spot_hf import SpotViTConfig, SpotViTForImageClassification, SpotViTImageProcessorPil


TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 48,
    "patch_size": 8,
    "layer_norm_eps": 1e-6,
    "num_labels": 5,
}

# Every way in which a model knows where its tokens are.
POSITION_KINDS: dict[str, dict[str, Any]] = {
    "table": {},
    "rotary": {"use_position_table": False, "rope_theta": 100.0},
    "table and rotary": {
        "rope_theta": 10000.0, "rope_coordinates": "cells", "rope_grid_size": [4, 5], "rope_grid_offset": 0.25
    },
    "relative": {"use_position_table": False, "use_relative_position_bias": True},
    "none": {"use_position_table": False},
}  # fmt: skip


def tiny_config(**changes) -> SpotViTConfig:
    return SpotViTConfig(**{**TINY, **changes})


def tiny_model(seed: int = 0, model_class=SpotViTForImageClassification, **changes):
    """A model with random weights, in eval mode."""
    model = model_class(tiny_config(**changes)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def tiny_processor(**changes) -> SpotViTImageProcessorPil:
    return SpotViTImageProcessorPil(**{"size": {"height": 48, "width": 48}, "patch_size": 8, **changes})


def random_images(count: int = 2, height: int = 48, width: int = 48, seed: int = 0, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def random_coordinates(count: int = 2, num_tokens: int = 7, seed: int = 1, dtype=torch.float32) -> torch.Tensor:
    return torch.rand(count, num_tokens, 2, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def nearly(answers: Any) -> Any:
    """Answers of a pipeline, to compare with another's. Of few tokens the spot pipeline's image processor cuts the windows out
    of the image itself: of their 8-bit pixels, one in 10,000 is another by a step, and a position's rounding is another."""
    if isinstance(answers, dict):
        return {key: nearly(value) for key, value in answers.items()}
    if isinstance(answers, list):
        return [nearly(value) for value in answers]
    return pytest.approx(answers, abs=5e-3) if isinstance(answers, float) else answers


def pictures(count: int) -> list[Image.Image]:
    """Of random pixels, 48 × 48."""
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 255, (48, 48, 3), dtype=np.uint8)) for _ in range(count)]


def save_pictures(directory: Path, count: int) -> list[str]:
    """The same as files in a directory, which is made."""
    directory.mkdir(exist_ok=True)
    files = [str(directory / f"{number}.png") for number in range(count)]
    for picture, file in zip(pictures(count), files, strict=True):
        picture.save(file)
    return files
