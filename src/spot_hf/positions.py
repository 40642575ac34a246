"""Where tokens are, at continuous positions. A model has any of three kinds, each a function of the tokens' own coordinates:

- a table of embeddings, interpolated by a Gaussian kernel and added to the tokens ([`SpotViTPositionEmbeddings`]);
- rotary positions, which turn each attention's queries and keys ([`SpotViTRotaryEmbeddings`]);
- relative positions, a bias of each attention's scores ([`SpotViTRelativePositionBias`]).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

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
        resizes = config.has_position_table and not config.use_relative_position_bias
        if not resizes or config.position_rows_columns == (rows, columns):
            return
        table = evaluate_kernel_weights(self.weight.cpu().double(), config.position_kernel_sigma)
        table = interpolate_table(table, rows, columns, **(config.position_interpolation or {}))
        weight = solve_kernel_weights(table, config.position_kernel_sigma)
        self.weight = nn.Parameter(weight.to(self.weight), requires_grad=self.weight.requires_grad)


class Rotation(NamedTuple):
    """What turns the heads' queries and keys: both `(batch_size, sequence, 1, head_dim)`, 1 and 0 for class token and
    registers. Each number in the first half of a head's width turns with one in the second; `sin` has the signs."""

    cos: torch.Tensor
    sin: torch.Tensor

    def __call__(self, heads: torch.Tensor) -> torch.Tensor:
        """`(batch_size, sequence, num_heads, head_dim)` to the same shape."""
        # In place, and before the heads are transposed: a CPU takes several times as long for another large tensor.
        return (heads.roll(heads.shape[-1] // 2, dims=-1) * self.sin).addcmul_(heads, self.cos)


class SpotViTRotaryEmbeddings(nn.Module):
    """Rotary positions along both axes (RoPE; Su et al. 2021, arXiv 2104.09864): half of a head's periods are for y, the
    others for x. Angles are computed in float32, whatever the model's dtype. Without parameters."""

    def __init__(self, config: SpotViTConfig):
        super().__init__()
        self.config = config

    def angles(self, coordinates: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """`(batch_size, num_tokens, 2)` in an image of `height` × `width` pixels to `(batch_size, num_tokens, head_dim // 2)`,
        in radians."""
        config = self.config
        assert config.rope_theta is not None
        periods = config.hidden_size // config.num_attention_heads // 4
        exponents = torch.arange(periods, dtype=coordinates.dtype, device=coordinates.device) / periods
        frequencies = config.rope_theta**-exponents
        positions = []
        for axis, size in ((1, height), (0, width)):
            cells = size / config.patch_size
            relative = coordinates[..., axis]
            if config.rope_coordinates == "centered":
                # Of the whole patches, which the source's grid covers.
                relative = relative * (cells / (size // config.patch_size))
                positions.append((2 * math.pi) * (2 * relative - 1))
            else:
                unit = 1 if config.rope_grid_size is None else config.rope_grid_size[1 - axis] / (size // config.patch_size)
                positions.append((relative * cells + (config.rope_grid_offset - 0.5)) * unit)
        return (torch.stack(positions, dim=-1)[..., None] * frequencies).flatten(-2)

    def forward(self, coordinates: torch.Tensor, height: int, width: int, dtype: torch.dtype) -> Rotation:
        with torch.autocast(coordinates.device.type, enabled=False):
            angles = self.angles(coordinates, height, width)
            # Class token and registers stay as they are.
            angles = nn.functional.pad(angles, (0, 0, self.config.num_prefix_tokens, 0))[:, :, None]
            cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
        return Rotation(torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1))


class Displacements(NamedTuple):
    """Between all pairs of tokens: the four entries of a table that lie around each, and how much each of them counts, both
    `(batch_size, num_tokens, num_tokens, 4)`."""

    entries: torch.Tensor
    shares: torch.Tensor


class SpotViTRelativePositionBias(nn.Module):
    """
    Bias of one attention's scores by the displacement between two tokens, bilinear in a table with one entry per whole number
    of cells (BEiT; Bao et al. 2021, arXiv 2106.08254). Class token and registers have a bias of their own: of their attention
    to patches, of the patches' to them, and of theirs to each other.
    """

    def __init__(self, config: SpotViTConfig):
        super().__init__()
        self.config = config
        rows, columns = config.position_rows_columns
        self.weight = nn.Parameter(torch.zeros((2 * rows - 1) * (2 * columns - 1), config.num_attention_heads))
        self.prefix_weight = nn.Parameter(torch.zeros(3, config.num_attention_heads)) if config.num_prefix_tokens else None

    @staticmethod
    def displacements(config: SpotViTConfig, coordinates: torch.Tensor, height: int, width: int) -> Displacements:
        """Of tokens at `(batch_size, num_tokens, 2)` in an image of `height` × `width` pixels, the same for all layers;
        float32."""
        entries, shares = [], []
        for axis, count, size in zip((1, 0), config.position_rows_columns, (height, width), strict=True):
            # Of the whole patches, which the source's grid covers.
            cells = coordinates[..., axis] * (count * size / (size // config.patch_size * config.patch_size))
            where = (cells[:, :, None] - cells[:, None, :] + (count - 1)).clamp(0, 2 * count - 2)
            low = where.detach().floor().clamp(max=max(0, 2 * count - 3))
            high_share = where - low
            index = low.long()
            entries.append(torch.stack([index, (index + 1).clamp(max=2 * count - 2)], dim=-1))
            shares.append(torch.stack([1 - high_share, high_share], dim=-1))
        stride = 2 * config.position_rows_columns[1] - 1
        return Displacements(
            (entries[0][..., :, None] * stride + entries[1][..., None, :]).flatten(-2),
            (shares[0][..., :, None] * shares[1][..., None, :]).flatten(-2),
        )

    def forward(self, displacements: Displacements) -> torch.Tensor:
        """`(batch_size, num_heads, sequence, sequence)`, of the table's dtype."""
        values = self.weight[displacements.entries]  # (batch_size, num_tokens, num_tokens, 4, num_heads)
        between = (values * displacements.shares[..., None].to(values.dtype)).sum(-2).permute(0, 3, 1, 2)
        if self.prefix_weight is None:
            return between
        prefix = self.config.num_prefix_tokens
        batch_size, num_heads, num_tokens, _ = between.shape
        from_prefix, to_prefix, among = (one[None, :, None, None] for one in self.prefix_weight)
        top = torch.cat(
            [
                among.expand(batch_size, num_heads, prefix, prefix),
                from_prefix.expand(batch_size, num_heads, prefix, num_tokens),
            ],
            dim=-1,
        )
        bottom = torch.cat([to_prefix.expand(batch_size, num_heads, num_tokens, prefix), between], dim=-1)
        return torch.cat([top, bottom], dim=-2)
