"""A placement of your own: any function of the number of tokens, and of what else it declares.

    python examples/own_placement.py [MODEL]

On the command line, from the directory of this file: `spot-hf classify ... --placement own_placement:spiral`.
"""

import math
import sys

import torch

from spot_hf import SpotImageClassificationPipeline, register_placement


def spiral(num_tokens: int, aspect_ratio: float) -> torch.Tensor:
    """From the centre outwards, evenly spread (a sunflower's)."""
    number = torch.arange(num_tokens) + 0.5
    radius, angle = 0.5 * (number / num_tokens).sqrt(), number * math.pi * (3 - math.sqrt(5))
    return 0.5 + radius[:, None] * torch.stack(
        [angle.cos() / max(1, aspect_ratio), angle.sin() * min(1, aspect_ratio)], dim=-1
    )


def ink(num_tokens: int, generator: torch.Generator, pixel_values: torch.Tensor) -> torch.Tensor:
    """Where it is bright: random, from the generator, so that a draw depends on the seed and the image alone."""
    brightness = pixel_values.mean(0)
    pixels = torch.multinomial((brightness - brightness.min() + 1e-3).flatten(), num_tokens, generator=generator)
    height, width = brightness.shape
    return torch.stack([(pixels % width + 0.5) / width, (pixels // width + 0.5) / height], dim=-1)


if __name__ == "__main__":
    from transformers import pipeline

    from spot_hf.data.digits import load_digits

    model = sys.argv[1] if len(sys.argv) > 1 else "runs/quickstart/spot-a"
    register_placement("ink", ink)  # by name, in all of this process: evaluation, oracle and training, too
    classifier = pipeline("spot-image-classification", model=model, pipeline_class=SpotImageClassificationPipeline)
    digits = load_digits()["test"].select(range(50))
    for placement in ("isotropic", spiral, "ink"):
        answers = classifier(digits["image"][:], num_tokens=9, placement=placement, top_k=1, batch_size=50)
        correct = sum(answer[0]["label"] == str(label) for answer, label in zip(answers, digits["label"], strict=True))
        print(f"{getattr(placement, '__name__', placement)}: {correct} of 50")
