"""What positions are like: how much of the image they see, whether they collapse onto each other, whether they stick to the
grid, whether they lie where the image is salient."""

from dataclasses import dataclass

import numpy as np
import torch


COLLAPSED = 0.25  # patches: tokens nearer than this see nearly the same


def describe_positions(
    coordinates: torch.Tensor, height: int, width: int, patch_size: int, saliency: torch.Tensor | None = None
) -> dict[str, torch.Tensor]:
    """
    Figures of each image's positions.

    Args:
        coordinates (`torch.Tensor` of shape `(batch_size, num_tokens, 2)`): `(x, y)`, model frame.
        height (`int`), width (`int`): of `pixel_values`.
        patch_size (`int`): of the model, in pixels.
        saliency (`torch.Tensor` of shape `(batch_size, height, width)`, *optional*): not negative.

    Returns:
        `dict` of `torch.Tensor` of shape `(batch_size,)`, float64:

        - `coverage`: share of the image's pixels inside of at least one window.
        - `nearest`: mean distance of a token to its nearest other, in patches; NaN for a single token.
        - `collapsed`: share of tokens within a quarter patch of another: the failure that the paper names.
        - `grid_bias`: how much positions repeat modulo the patch, 0 (evenly spread) to 1 (all at one phase, as a grid's are):
          the length of the mean of `exp(2πi x / patch)`, averaged over both axes.
        - `saliency`: mean saliency at the positions over the map's mean: 1 is what random positions have; NaN where
          the map is zero everywhere.
    """
    pixels = coordinates.double() * torch.tensor([width, height], dtype=torch.float64, device=coordinates.device)
    distances = torch.cdist(pixels, pixels) / patch_size
    distances.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    nearest = distances.amin(-1)
    phase = torch.polar(torch.ones_like(pixels), 2 * torch.pi * pixels / patch_size).mean(1)
    found = {
        "coverage": _coverage(pixels, height, width, patch_size),
        "nearest": torch.where(nearest.isfinite(), nearest, torch.nan).mean(-1),
        "collapsed": (nearest < COLLAPSED).double().mean(-1),
        "grid_bias": phase.abs().mean(-1),
    }
    if saliency is not None:
        column = pixels[..., 0].floor().long().clamp(0, width - 1)
        row = pixels[..., 1].floor().long().clamp(0, height - 1)
        at = saliency.double().flatten(1).gather(1, row * width + column)
        mean = saliency.double().mean((1, 2))
        found["saliency"] = torch.where(mean > 0, at.mean(1) / mean, torch.nan)
    return found


def _coverage(pixels: torch.Tensor, height: int, width: int, patch_size: int) -> torch.Tensor:
    """Share of pixels whose centre lies in at least one window."""
    half = patch_size / 2
    across = torch.arange(width, device=pixels.device) + 0.5
    down = torch.arange(height, device=pixels.device) + 0.5
    inside_x = ((pixels[..., 0:1] - across).abs() <= half).double()  # (batch_size, num_tokens, width)
    inside_y = ((pixels[..., 1:2] - down).abs() <= half).double()
    return ((inside_y.transpose(1, 2) @ inside_x) > 0).double().mean((1, 2))


@dataclass(frozen=True)
class PositionFigures:
    """Means over images of what [`describe_positions`] gives."""

    coverage: float
    nearest: float
    collapsed: float
    grid_bias: float
    saliency: float


def means(parts: list[dict[str, torch.Tensor]]) -> PositionFigures:
    """Over all images of several batches, each described with a saliency map."""
    return PositionFigures(**{name: float(np.nanmean(torch.cat([part[name] for part in parts]).numpy())) for name in parts[0]})


def analysis_table(analysis: dict[str, PositionFigures], saliency: str = "edge saliency") -> list[str]:
    """Markdown lines, a row per set of positions; `saliency` says which."""
    lines = [
        f"| positions | coverage, % | nearest token, patches | collapsed, % | grid bias | {saliency} |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, row in analysis.items():
        lines.append(
            f"| {name} | {100 * row.coverage:.1f} | {row.nearest:.2f} | {100 * row.collapsed:.1f} | "
            f"{row.grid_bias:.2f} | {row.saliency:.2f} |"
        )
    return lines
