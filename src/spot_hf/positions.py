"""Position embeddings at continuous positions."""

from collections.abc import Callable

import torch
from torch import nn

from .configuration_spot_vit import SpotViTConfig


# Of a kernel whose largest value is 1: products of two of these are normal numbers in float32.
NEGLIGIBLE = 1e-18


def gaussian_kernel(
    positions: torch.Tensor, num_centers: int, sigma: float, size: int, unit: str = "cells", centers: str = "cells"
) -> torch.Tensor:
    """
    `exp(-d² / 2σ²)` of the distances `d` of relative positions to the centres of a table's entries along one axis.

    Args:
        positions: `(...)`, relative: 0 and 1 are the edges of the image.
        num_centers: entries along the axis.
        sigma: bandwidth, in `unit`.
        size: of the image along the axis, in pixels; needed where the unit is pixels or the centres are a mesh.
        unit: `"cells"`, equal parts of the image, or `"pixels"`.
        centers: where the entries lie: at the centres of `"cells"`, or on a `"mesh"` from the centre of the first pixel to one
            pixel past the last.

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
        `torch.Tensor` of the same shape, dtype and device; solved in float64, axis by axis, as the kernel is separable.
    """
    return _by_axis(torch.linalg.solve, table, sigma)


def evaluate_kernel_weights(weights: torch.Tensor, sigma: float) -> torch.Tensor:
    """The inverse of [`solve_kernel_weights`]: kernel weights in, the position table out."""
    return _by_axis(torch.matmul, weights, sigma)


def _by_axis(
    function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], values: torch.Tensor, sigma: float
) -> torch.Tensor:
    """`function(kernel between an axis' cells, values with that axis first)`, along one axis after the other."""
    result = values.cpu().double()  # not every device has float64
    for axis in (0, 1):
        count = values.shape[axis]
        centers = (torch.arange(count, dtype=torch.float64) + 0.5) / count
        kernel = gaussian_kernel(centers, count, sigma, size=count)
        moved = result.movedim(axis, 0)
        result = function(kernel, moved.flatten(1)).unflatten(1, moved.shape[1:]).movedim(0, axis)
    return result.to(values)


def interpolate_table(
    table: torch.Tensor, rows: int, columns: int, mode: str = "bicubic", antialias: bool = False
) -> torch.Tensor:
    """
    A position table for another grid, as the families of source models interpolate theirs.

    Args:
        table (`torch.Tensor` of shape `(old_rows, old_columns, hidden_size)`).
        rows (`int`), columns (`int`): of the new grid.
        mode (`str`), antialias (`bool`): as in `torch.nn.functional.interpolate`.

    Returns:
        `torch.Tensor` of shape `(rows, columns, hidden_size)`, of the same dtype; `table` itself where the grid is the same.
    """
    if table.shape[:2] == (rows, columns):
        return table
    channels_first = table.permute(2, 0, 1)[None].float()
    resized = nn.functional.interpolate(
        channels_first, size=(rows, columns), mode=mode, align_corners=False, antialias=antialias
    )
    return resized[0].permute(1, 2, 0).to(table.dtype)


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
        columns)`. Padding does not count in the normalization."""
        config = self.config
        rows, columns = config.position_rows_columns
        kind = {"unit": config.position_kernel_unit, "centers": config.position_kernel_centers}
        if config.position_grid_extent is not None:
            extent_y, extent_x = config.position_grid_extent
            coordinates = torch.stack([coordinates[..., 0] / extent_x, coordinates[..., 1] / extent_y], dim=-1)
        kernel_x = gaussian_kernel(coordinates[..., 0], columns, config.position_kernel_sigma, width, **kind)
        kernel_y = gaussian_kernel(coordinates[..., 1], rows, config.position_kernel_sigma, height, **kind)
        if config.position_kernel_normalization is None:
            # Below what changes a sum. A CPU takes ten times as long for a product with numbers that are almost 0.
            kernel_x, kernel_y = (one.masked_fill(one < NEGLIGIBLE, 0.0) for one in (kernel_x, kernel_y))
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

    @torch.no_grad()
    def resize(self, height: int, width: int) -> None:
        """
        Replaces `weight` by that for images of `height` × `width` pixels, as the source model would interpolate its table:
        see [`SpotViTPreTrainedModel.resize_position_embeddings`], which also updates the config.
        """
        config = self.config
        rows, columns = height // config.patch_size, width // config.patch_size
        if not config.has_position_table or config.position_rows_columns == (rows, columns):
            return
        table = evaluate_kernel_weights(self.weight.cpu().double(), config.position_kernel_sigma)
        table = interpolate_table(table, rows, columns, **(config.position_interpolation or {}))
        weight = solve_kernel_weights(table, config.position_kernel_sigma)
        self.weight = nn.Parameter(weight.to(self.weight), requires_grad=self.weight.requires_grad)
