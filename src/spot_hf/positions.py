"""Position embeddings at continuous positions."""

import torch
from torch import nn

from .configuration_spot_vit import SpotViTConfig


def gaussian_kernel(
    positions: torch.Tensor, num_centers: int, sigma: float, size: int, unit: str = "cells", centers: str = "cells"
) -> torch.Tensor:
    """
    `exp(-d² / 2σ²)` of the distances `d` of relative positions to the centres of a table's entries along one axis.

    Args:
        positions: `(...)`, relative: 0 and 1 are the edges of the image.
        num_centers: entries along the axis.
        sigma: bandwidth, in `unit`.
        size: of the image along the axis, in pixels. Matters to the units and centres that are counted in pixels.
        unit: `"cells"`, equal parts of the image, or `"pixels"`.
        centers: of the entries: those of `"cells"`, or a `"mesh"` from the centre of the first pixel to one pixel past the
            last.

    Returns:
        `(..., num_centers)`.
    """
    index = torch.arange(num_centers, dtype=positions.dtype, device=positions.device)
    if centers == "cells":
        scaled_positions, scaled_centers, cell = positions[..., None] * num_centers, index + 0.5, 1 / num_centers
    else:
        cell = 1 / max(1, num_centers - 1)
        scaled_positions, scaled_centers = (positions[..., None] - 0.5 / size) / cell, index
    distances = scaled_positions - scaled_centers
    if unit == "pixels":
        distances = distances * (cell * size)
    return torch.exp(distances.square() / (-2 * sigma**2))


def solve_kernel_weights(table: torch.Tensor, sigma: float) -> torch.Tensor:
    """
    Weights of the Gaussian kernel interpolation that reproduces a position table at the centres of its cells.

    Args:
        table (`torch.Tensor` of shape `(rows, columns, hidden_size)`): the source model's position embeddings.
        sigma (`float`): bandwidth of the kernel, in cells.

    Returns:
        `torch.Tensor` of the same shape and dtype; solved in float64, axis by axis, as the kernel is separable.
    """
    weights = table.double()
    for axis in (0, 1):
        count = table.shape[axis]
        centers = (torch.arange(count, dtype=torch.float64, device=table.device) + 0.5) / count
        kernel = gaussian_kernel(centers, count, sigma, size=count)
        weights = torch.linalg.solve(kernel, weights.movedim(axis, 0).flatten(1)).unflatten(
            1, weights.movedim(axis, 0).shape[1:]
        )
        weights = weights.movedim(0, axis)
    return weights.to(table.dtype)


class SpotViTPositionEmbeddings(nn.Module):
    """Position embedding at any point of the image: `e(s) = Σ_j exp(-|s - c_j|² / 2σ²) w_j` over the entries `c_j` of the
    source model's table. Computed in float32, whatever the model's dtype."""

    def __init__(self, config: SpotViTConfig):
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.zeros(*config.position_rows_columns, config.hidden_size))

    def kernel(
        self, coordinates: torch.Tensor, height: int, width: int, coordinates_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """`(batch_size, num_tokens, 2)` in an image of `height` × `width` pixels to `(batch_size, num_tokens, rows *
        columns)`. Padding has no part in the normalization."""
        config = self.config
        rows, columns = config.position_rows_columns
        kind = {"unit": config.position_kernel_unit, "centers": config.position_kernel_centers}
        kernel_x = gaussian_kernel(coordinates[..., 0], columns, config.position_kernel_sigma, width, **kind)
        kernel_y = gaussian_kernel(coordinates[..., 1], rows, config.position_kernel_sigma, height, **kind)
        kernel = (kernel_y[..., :, None] * kernel_x[..., None, :]).flatten(-2)
        if config.position_kernel_normalization is None:
            return kernel
        counted = kernel if coordinates_mask is None else kernel * coordinates_mask[..., None]
        over = (-2, -1) if config.position_kernel_normalization == "image" else (-3, -2, -1)
        # Where all tokens are far outside the image, the largest value is 0.
        return kernel / counted.amax(over, keepdim=True).clamp_min(torch.finfo(kernel.dtype).tiny)

    def forward(
        self, coordinates: torch.Tensor, height: int, width: int, coordinates_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        # Autocast would round the kernel, and with it the position, to bfloat16.
        with torch.autocast(coordinates.device.type, enabled=False):
            kernel = self.kernel(coordinates, height, width, coordinates_mask)
            return kernel @ self.weight.flatten(0, 1).to(kernel.dtype)
