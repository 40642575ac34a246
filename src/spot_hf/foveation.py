"""Foveation: looking closely somewhere and coarsely elsewhere, with windows that always tile the image.

A density says how much of the looking each part of an image deserves. The isotropic lattice, for any number of tokens, is
warped by it: rows by the inverse cumulative distribution of the density's marginal, the tokens of a row by that of the density
within the row. Each token's cell has the same share of the density, and its window has the area of its cell. So a flat density
gives isotropic tokens whose windows just cover the image, and a peaked one small windows at the peak and large ones elsewhere.
However peaked, tokens cannot collapse: cells are disjoint.
"""

import math

import torch


# What a saliency map counts at its peak, as an exponent: the density there is exp(2.2), nine times that elsewhere.
STRENGTH = 2.2


def covering_scale(num_tokens: int, height: int, width: int, patch_size: int) -> float:
    """The window scale, in patches, with which `num_tokens` windows have the area of the whole image."""
    return math.sqrt(height * width / num_tokens) / patch_size


def row_counts(num_tokens: int, aspect_ratio: float) -> list[int]:
    """Tokens per row of the isotropic lattice: as many rows as make cells nearly square, counts that differ by at most one."""
    num_rows = min(num_tokens, max(1, round((num_tokens / aspect_ratio) ** 0.5)))
    return [(num_tokens * (i + 1)) // num_rows - (num_tokens * i) // num_rows for i in range(num_rows)]


def foveate(
    density: torch.Tensor, num_tokens: int, height: int, width: int, patch_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The isotropic lattice, warped by a density. Differentiable in the density.

    Args:
        density (`torch.Tensor` of shape `(batch_size, rows, columns)`): above 0, over the image that the model sees; piecewise
            constant, and of any size. Only its proportions count.
        num_tokens (`int`): at least 1.
        height (`int`), width (`int`): of the image, in pixels: the lattice's cells are nearly square there.
        patch_size (`int`): of the model, in pixels.

    Returns:
        `tuple`: coordinates `(batch_size, num_tokens, 2)`, float32, `(x, y)` in (0, 1), relative to that image; and window
        scales `(batch_size, num_tokens)`, float32, in patches: a window has the area of its token's cell.
    """
    # Not every device has float64; where there is, a flat density gives the isotropic lattice to float32's last bit.
    density = density.float() if density.device.type == "mps" else density.double()
    marginal = density.sum(2)
    points, areas = [], []
    done = 0
    for count in row_counts(num_tokens, width / height):
        quantiles = [done / num_tokens, (done + count / 2) / num_tokens, (done + count) / num_tokens]
        top, y, bottom = _inverse_cdf(marginal, density.new_tensor(quantiles)).unbind(1)
        edges = density.new_tensor([j / (2 * count) for j in range(2 * count + 1)])
        along = _inverse_cdf(_band(density, top, bottom), edges)  # edges and centres of the cells, by turns
        points.append(torch.stack([along[:, 1::2], y[:, None].expand(-1, count)], dim=-1))
        areas.append((along[:, 2::2] - along[:, :-2:2]) * (bottom - top)[:, None])
        done += count
    scales = (torch.cat(areas, dim=1) * (height * width)).sqrt() / patch_size
    return torch.cat(points, dim=1).float(), scales.float()


def _inverse_cdf(mass: torch.Tensor, quantiles: torch.Tensor) -> torch.Tensor:
    """Where a piecewise constant density over [0, 1], of `mass` `(batch_size, num_cells)`, has each of `(num_quantiles,)` of
    its mass before it: `(batch_size, num_quantiles)`."""
    mass = mass / mass.sum(1, keepdim=True)
    cumulative = torch.nn.functional.pad(mass.cumsum(1), (1, 0))
    wanted = quantiles.expand(mass.shape[0], -1).contiguous()
    last = mass.shape[1] - 1
    cell = (torch.searchsorted(cumulative.detach(), wanted, right=True) - 1).clamp(0, last)
    within = (wanted - cumulative.gather(1, cell)) / mass.gather(1, cell)
    return ((cell + within.clamp(0, 1)) / mass.shape[1]).clamp(0, 1)


def _band(density: torch.Tensor, top: torch.Tensor, bottom: torch.Tensor) -> torch.Tensor:
    """The mass of each column `(batch_size, columns)` between two heights `(batch_size,)`."""
    edges = torch.arange(density.shape[1] + 1, device=density.device, dtype=density.dtype) / density.shape[1]
    overlap = torch.minimum(bottom[:, None], edges[1:]) - torch.maximum(top[:, None], edges[:-1])
    return (overlap.clamp_min(0)[:, None] @ density)[:, 0]


def density_of(saliency: torch.Tensor, strength: float = STRENGTH) -> torch.Tensor:
    """
    A density from saliency: `exp(strength * saliency / its maximum)`, which is above 0 everywhere.

    Args:
        saliency (`torch.Tensor` of shape `(..., rows, columns)`): not negative, of any unit; zero everywhere counts as flat.
        strength (`float`): the logarithm of how much more is looked at the peak than at what is not salient.
    """
    highest = saliency.amax((-2, -1), keepdim=True)
    return (strength * saliency / highest.clamp_min(torch.finfo(saliency.dtype).tiny)).exp()


def bump(rows: int, columns: int, center: torch.Tensor, width: torch.Tensor, height: torch.Tensor) -> torch.Tensor:
    """
    Densities with one Gaussian peak: `exp(height * exp(-distance² / (2 width²)))`.

    Args:
        rows, columns (`int`): of the densities.
        center (`torch.Tensor` of shape `(batch_size, 2)`): `(x, y)` of the peak, relative to the image.
        width (`torch.Tensor` of shape `(batch_size,)`): standard deviation, in image widths and heights.
        height (`torch.Tensor` of shape `(batch_size,)`): logarithm of the density at the peak; far away it is 0.

    Returns:
        `torch.Tensor` of shape `(batch_size, rows, columns)`.
    """
    y = (torch.arange(rows, device=center.device) + 0.5) / rows
    x = (torch.arange(columns, device=center.device) + 0.5) / columns
    across, down = x - center[:, :1], y - center[:, 1:]
    squared = down[:, :, None] ** 2 + across[:, None, :] ** 2
    return (height[:, None, None] * (-squared / (2 * width[:, None, None] ** 2)).exp()).exp()
