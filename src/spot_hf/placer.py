"""A placer: from a thumbnail of the image, where to look closely. It makes a model's placement `"learned"`.

It scores a family of foveations: the flat one, and bumps at the places of a grid. The likeliest is taken, for any number of
tokens: positions cannot collapse, and windows always cover the image. It costs an eighth of a ViT-Ti's look with 25 tokens.
What it is trained on: which foveation agrees best with the model's own full-grid answer (`spot-hf train-placer`).
"""

from typing import Any

import torch
from torch import nn

from .foveation import bump, foveate


# Of `config.placer`: side of the thumbnail in pixels, places per side, width and height of a bump (see `bump`), channels.
DEFAULTS = {"thumbnail_size": 56, "grid_size": 5, "width": 0.18, "height": 2.2, "hidden_size": 32}
DENSITY_SIZE = 14  # cells per side of a density


def check_placer(placer: Any) -> dict[str, Any]:
    """`config.placer`, with defaults filled in; `ValueError` where it is something else."""
    if not isinstance(placer, dict) or not set(placer) <= set(DEFAULTS):
        raise ValueError(f"`placer` must be a dict with keys of {', '.join(DEFAULTS)}; got {placer!r}")
    filled = {**DEFAULTS, **placer}
    for name, least in (("thumbnail_size", 16), ("grid_size", 1), ("hidden_size", 8)):
        if not isinstance(filled[name], int) or filled[name] < least:
            raise ValueError(f"`placer`: {name} must be an integer of at least {least}; got {filled[name]!r}")
    if filled["hidden_size"] % 8:
        raise ValueError(f"`placer`: hidden_size must be a multiple of 8; got {filled['hidden_size']}")
    for name in ("width", "height"):
        if not isinstance(filled[name], (int, float)) or not 0 < filled[name] < float("inf"):
            raise ValueError(f"`placer`: {name} must be a number above 0; got {filled[name]!r}")
    return filled


def densities(placer: dict[str, Any], device: torch.device | str | None = None) -> torch.Tensor:
    """The densities of a placer's foveations, `(grid_size² + 1, 14, 14)`, float32: the flat one, then bumps row by row."""
    side = placer["grid_size"]
    places = (torch.arange(side, device=device) + 0.5) / side
    centers = torch.cartesian_prod(places, places).reshape(-1, 2).flip(-1)  # (x, y), row by row
    width, height = (torch.full((len(centers),), float(placer[name]), device=device) for name in ("width", "height"))
    bumps = bump(DENSITY_SIZE, DENSITY_SIZE, centers, width, height)
    return torch.cat([torch.ones_like(bumps[:1]), bumps])


def mirrored(placer: dict[str, Any]) -> torch.Tensor:
    """Of each foveation, the number of its mirror image, left to right: int64 `(grid_size² + 1,)`."""
    side = placer["grid_size"]
    bumps = torch.arange(side * side).reshape(side, side).flip(1).flatten() + 1
    return torch.cat([torch.zeros(1, dtype=torch.int64), bumps])


class SpotViTPlacer(nn.Module):
    """
    Scores foveations of an image by a thumbnail: four convolutions and a linear layer.

    Args:
        config ([`SpotViTConfig`]): with `placer`.
    """

    def __init__(self, config: Any):
        super().__init__()
        self.placer = check_placer(config.placer)
        self.patch_size = config.patch_size
        width, size = self.placer["hidden_size"], self.placer["thumbnail_size"]
        channels = [config.num_channels, width // 2, width, 2 * width, 2 * width]
        strides = [2, 2, 2, 1]
        layers: list[nn.Module] = []
        for i, stride in enumerate(strides):
            layers += [nn.Conv2d(channels[i], channels[i + 1], 3, stride, 1), nn.GroupNorm(4, channels[i + 1]), nn.ReLU()]
            size = -(-size // stride)
        self.features = nn.Sequential(*layers)
        self.scores = nn.Linear(channels[-1] * size * size, self.placer["grid_size"] ** 2 + 1)

    def thumbnails(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """`(batch_size, num_channels, height, width)` to as many of `thumbnail_size` pixels per side, float32: means."""
        size = self.placer["thumbnail_size"]
        return nn.functional.adaptive_avg_pool2d(pixel_values.float(), (size, size))

    def forward(self, thumbnails: torch.Tensor) -> torch.Tensor:
        """Scores `(batch_size, grid_size² + 1)` of thumbnails, as [`thumbnails`] makes them."""
        return self.scores(self.features(thumbnails.to(self.scores.weight.dtype)).flatten(1))

    def place(self, pixel_values: torch.Tensor, num_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Coordinates `(batch_size, num_tokens, 2)`, window scales `(batch_size, num_tokens)`, as [`foveate`] gives them."""
        best = self(self.thumbnails(pixel_values)).argmax(-1)
        height, width = pixel_values.shape[-2:]
        return foveate(densities(self.placer, pixel_values.device)[best], num_tokens, height, width, self.patch_size)
