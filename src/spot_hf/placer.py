"""A placer: from a thumbnail of the image, where to look closely. It makes a model's placement `"learned"`.

It scores a family of foveations: the flat one, and bumps at the places of a grid. The likeliest is taken, for any number of
tokens: positions cannot collapse, and windows always cover the image. It costs an eighth of a ViT-Ti's look with 25 tokens.
What it is trained on: which foveation agrees best with the model's own full-grid answer (`spot-hf train-placer`).

Places are scored by one of two heads. `"heatmap"`: all by the same weights, so that what is learnt at one place holds at every
other, and the bump sits between places as the likeliest and its neighbours are weighed. `"linear"`: each place has weights of
its own, and the bump sits at the likeliest.
"""

from typing import Any

import torch
from torch import nn

from .foveation import bump, foveate


# Of `config.placer`: side of the thumbnail in pixels, places per side, width and height of a bump (see `bump`), channels, and
# head. What a config leaves out is as the first placers had it.
DEFAULTS = {"thumbnail_size": 56, "grid_size": 5, "width": 0.18, "height": 2.2, "hidden_size": 32, "head": "linear"}
NEW = {"head": "heatmap", "width": 0.2, "height": 3.0}  # of a placer that is made now, besides these
HEADS = ("heatmap", "linear")
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
    if filled["head"] not in HEADS:
        raise ValueError(f"`placer`: head must be {' or '.join(HEADS)}; got {filled['head']!r}")
    for name in ("width", "height"):
        if not isinstance(filled[name], (int, float)) or not 0 < filled[name] < float("inf"):
            raise ValueError(f"`placer`: {name} must be a number above 0; got {filled[name]!r}")
    return filled


def densities(placer: dict[str, Any], device: torch.device | str | None = None) -> torch.Tensor:
    """The densities of a placer's foveations, `(grid_size² + 1, 14, 14)`, float32: the flat one, then bumps row by row."""
    bumps = bumps_at(places(placer, device), placer)
    return torch.cat([torch.ones_like(bumps[:1]), bumps])


def places(placer: dict[str, Any], device: torch.device | str | None = None) -> torch.Tensor:
    """Where the bumps of a placer sit, `(grid_size², 2)`, `(x, y)` relative to the image, row by row."""
    side = placer["grid_size"]
    along = (torch.arange(side, device=device) + 0.5) / side
    return torch.cartesian_prod(along, along).reshape(-1, 2).flip(-1)


def bumps_at(centers: torch.Tensor, placer: dict[str, Any]) -> torch.Tensor:
    """Densities `(batch_size, 14, 14)` with a placer's bump at `(batch_size, 2)`."""
    width, height = (torch.full_like(centers[:, 0], placer[name]) for name in ("width", "height"))
    return bump(DENSITY_SIZE, DENSITY_SIZE, centers, width, height)


def mirrored(placer: dict[str, Any]) -> torch.Tensor:
    """Of each foveation, the number of its mirror image, left to right: int64 `(grid_size² + 1,)`."""
    side = placer["grid_size"]
    bumps = torch.arange(side * side).reshape(side, side).flip(1).flatten() + 1
    return torch.cat([torch.zeros(1, dtype=torch.int64), bumps])


class SpotViTPlacer(nn.Module):
    """
    Scores foveations of an image by a thumbnail: four convolutions and a head.

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
        side = self.placer["grid_size"]
        self.scores: nn.Module
        if self.placer["head"] == "heatmap":
            self.scores = HeatmapHead(channels[-1], side)
        else:
            self.scores = nn.Linear(channels[-1] * size * size, side**2 + 1)

    def thumbnails(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """`(batch_size, num_channels, height, width)` to as many of `thumbnail_size` pixels per side, float32: means."""
        size, (height, width) = self.placer["thumbnail_size"], pixel_values.shape[-2:]
        if height % size == 0 and width % size == 0:  # the same, and faster on a CPU
            return nn.functional.avg_pool2d(pixel_values.float(), (height // size, width // size))
        return nn.functional.adaptive_avg_pool2d(pixel_values.float(), (size, size))

    def forward(self, thumbnails: torch.Tensor) -> torch.Tensor:
        """Scores `(batch_size, grid_size² + 1)` of thumbnails, as [`thumbnails`] makes them."""
        features = self.features(thumbnails.to(next(self.parameters()).dtype))
        return self.scores(features.flatten(1) if self.placer["head"] == "linear" else features)

    def densities(self, thumbnails: torch.Tensor) -> torch.Tensor:
        """Where to look, `(batch_size, 14, 14)`, float32."""
        scores = self(thumbnails).float()
        best = scores.argmax(-1)
        if self.placer["head"] == "linear":
            return densities(self.placer, scores.device)[best]
        centers = places(self.placer, scores.device)
        peak = centers[(best - 1).clamp_min(0)]  # (batch_size, 2)
        near = (peak[:, None] - centers).abs().amax(-1) < 1.5 / self.placer["grid_size"]
        weights = scores[:, 1:].masked_fill(~near, -torch.inf).softmax(-1)
        bumps = bumps_at(weights @ centers, self.placer)
        return torch.where((best == 0)[:, None, None], 1.0, bumps)

    def place(self, pixel_values: torch.Tensor, num_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Coordinates `(batch_size, num_tokens, 2)`, window scales `(batch_size, num_tokens)`, as [`foveate`] gives them."""
        height, width = pixel_values.shape[-2:]
        return foveate(self.densities(self.thumbnails(pixel_values)), num_tokens, height, width, self.patch_size)


class HeatmapHead(nn.Module):
    """Scores all places of a grid by the same weights, of the features there and of their mean."""

    def __init__(self, num_channels: int, grid_size: int):
        super().__init__()
        self.grid_size = grid_size
        self.context = nn.Linear(num_channels, num_channels)
        self.place = nn.Conv2d(num_channels, 1, 1)
        self.flat = nn.Linear(num_channels, 1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """`(batch_size, num_channels, rows, columns)` to `(batch_size, grid_size² + 1)`."""
        mean = features.mean((2, 3))
        heat = self.place(features + self.context(mean)[:, :, None, None])
        heat = nn.functional.interpolate(heat, size=(self.grid_size, self.grid_size), mode="bilinear", align_corners=False)
        return torch.cat([self.flat(mean), heat.flatten(1)], dim=1)
