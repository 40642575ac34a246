"""Cutting windows out of images at continuous positions."""

import torch
from torch import nn


# Of the pyramid in a graph for images of any size: windows of up to 128 patches, or 2048 pixels of a ViT/16.
LEVELS_OF_ANY_SIZE = 7


def _snap_to_pixels(positions: torch.Tensor, size: int | torch.Tensor) -> torch.Tensor:
    """Moves positions within float rounding of a pixel's centre onto it, so that a grid cell's window is exactly its patch.

    A relative coordinate in [0, 1] is rounded to `eps / 2`, and its product with `size` again: `size * eps` pixels at
    the most. The gradient passes through unchanged.
    """
    nearest = positions.detach().round()
    on_pixel = (positions.detach() - nearest).abs() <= size * torch.finfo(positions.dtype).eps
    return torch.where(on_pixel, nearest + (positions - positions.detach()), positions)


def _sample_bilinear(
    pixels: torch.Tensor,
    x: torch.Tensor,
    y: torch.Tensor,
    height: int | torch.Tensor,
    width: int | torch.Tensor,
    border: str,
    start: int | torch.Tensor = 0,
) -> torch.Tensor:
    """
    Bilinear samples of images on the lattice of columns `x` and rows `y` of each token.

    Args:
        pixels: `(batch_size, num_channels, num_pixels)`, images row by row, perhaps several behind one another.
        x, y: `(batch_size or 1, num_tokens, patch_size)`, in pixels, pixel centres at whole numbers.
        height, width, start: of the image that is sampled, and where it begins in `pixels`; one for all tokens, or
            `(batch_size or 1, num_tokens, 1)`, int64.
        border: beyond the centres of the border pixels, these are replicated (`"repeat"`), or samples are 0 (`"zero"`).

    Returns:
        `(batch_size, num_tokens, num_channels, patch_size, patch_size)`, rows before columns.
    """
    batch_size, num_channels = pixels.shape[:2]
    num_tokens, patch_size = x.shape[1:]
    x, y = _snap_to_pixels(x, width), _snap_to_pixels(y, height)
    left, top = x.detach().floor(), y.detach().floor()
    weight_right, weight_bottom = x - left, y - top
    columns = [_clamp((left + i).long(), width - 1) for i in (0, 1)]
    rows = [_clamp((top + i).long(), height - 1) * width + start for i in (0, 1)]

    def corner(row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
        index = (row[..., :, None] + column[..., None, :]).flatten(1)  # (batch_size or 1, tokens * patch²)
        index = index[:, None].expand(batch_size, num_channels, -1)
        return pixels.gather(2, index).unflatten(2, (num_tokens, patch_size, patch_size))

    weight_right = weight_right[:, None, :, None, :]  # (batch_size or 1, 1, num_tokens, 1, patch_size)
    weight_bottom = weight_bottom[:, None, :, :, None]
    upper = torch.lerp(corner(rows[0], columns[0]), corner(rows[0], columns[1]), weight_right)
    lower = torch.lerp(corner(rows[1], columns[0]), corner(rows[1], columns[1]), weight_right)
    samples = torch.lerp(upper, lower, weight_bottom).transpose(1, 2)
    if border == "zero":
        inside_x, inside_y = (x >= 0) & (x <= width - 1), (y >= 0) & (y <= height - 1)
        samples = samples * (inside_y[..., :, None] & inside_x[..., None, :])[:, :, None]
    return samples


def _clamp(indices: torch.Tensor, last: int | torch.Tensor) -> torch.Tensor:
    """Into [0, last], one number or a tensor, which `clamp` does not take beside a number."""
    indices = indices.clamp_min(0)
    return torch.minimum(indices, last) if isinstance(last, torch.Tensor) else indices.clamp_max(last)


def sample_windows(
    pixel_values: torch.Tensor,
    coordinates: torch.Tensor,
    patch_size: int,
    window_scales: torch.Tensor | None = None,
    spacing: float = 1.0,
    border: str = "repeat",
) -> torch.Tensor:
    """
    Cuts each token's window out of its image. Differentiable in all three tensors.

    Args:
        pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`): computed in float32 at least.
        coordinates (`torch.Tensor` of shape `(batch_size or 1, num_tokens, 2)`): window centres `(x, y)`, relative to
            the image, 0 and 1 being its edges.
        patch_size (`int`): samples per side.
        window_scales (`torch.Tensor` of shape `(batch_size or 1, num_tokens)`, *optional*): multiples of `spacing`, above
            0, 1 where not given. Above 1 the source is anti-aliased: the window reads a pyramid of 2 × 2 means, linearly
            between the two levels whose pixels are nearest to the scale.
        spacing (`float`): distance between samples in pixels.
        border (`str`): outside the image, border pixels are replicated (`"repeat"`), or samples are 0 (`"zero"`).

    Returns:
        `torch.Tensor` of shape `(batch_size, num_tokens, num_channels, patch_size, patch_size)`, float32 (or float64).
    """
    dtype = torch.promote_types(torch.promote_types(pixel_values.dtype, coordinates.dtype), torch.float32)
    image, coordinates = pixel_values.to(dtype), coordinates.to(dtype)
    height, width = image.shape[-2:]
    center_x = coordinates[..., 0:1] * width - 0.5  # (batch_size, num_tokens, 1), pixel centres at whole numbers
    center_y = coordinates[..., 1:2] * height - 0.5
    offsets = spacing * (torch.arange(patch_size, dtype=dtype, device=coordinates.device) - (patch_size - 1) / 2)
    if window_scales is None:
        pixels = image.flatten(2)
        return _sample_bilinear(pixels, center_x + offsets, center_y + offsets, height, width, border)

    offsets = offsets * window_scales.to(dtype)[..., None]
    level = window_scales.to(dtype).log2().clamp_min(0)[..., None]
    if isinstance(height, torch.SymInt) or isinstance(width, torch.SymInt):  # of an exported graph, for images of any size
        first, last = 0, LEVELS_OF_ANY_SIZE
        powers = 2 ** torch.arange(last, device=image.device)
        highest = (powers < torch.sym_max(height, width) // patch_size).sum().clamp_min(1)
        level = level.minimum(highest.to(dtype))
    else:
        highest = max(1, (max(height, width) // patch_size - 1).bit_length())  # the level at which a window is the whole image
        level = level.clamp_max(highest)
        first, last = _levels_read(level, highest)
    pyramid = [image]
    for _ in range(last):
        pyramid.append(_halve(pyramid[-1]))
    reads: list[tuple] = []  # level, its pixels, and of the level: height, width, first pixel, how many times smaller
    if last - first <= 1:  # The same for all windows.
        reads = [(k, pyramid[k].flatten(2), *pyramid[k].shape[-2:], 0, 2**k) for k in range(first, last + 1)]
    else:  # For each window its two, out of all levels behind one another.
        pixels = torch.cat([one.flatten(2) for one in pyramid[first:]], dim=2)
        lower = level.detach().floor().long().clamp(first, last - 1)
        # Made on the device, which nothing has to be sent to.
        shrunk = 2 ** torch.arange(first, last + 1, device=image.device)
        level_height, level_width = ((side + shrunk - 1) // shrunk for side in (height, width))
        level_start = (level_height * level_width).cumsum(0) - level_height * level_width
        of_level = (level_height, level_width, level_start, shrunk)
        reads = [(k, pixels, *(one[k - first] for one in of_level)) for k in (lower, lower + 1)]
    windows = None
    for k, pixels, heights, widths, starts, shrinking in reads:
        # A pixel of level k is the mean of 2^k × 2^k pixels of the image.
        x, y = ((center + offsets) / shrinking + (0.5 / shrinking - 0.5) for center in (center_x, center_y))
        weight = (1 - (level - k).abs()).clamp(min=0)[..., None, None]
        part = weight * _sample_bilinear(pixels, x, y, heights, widths, border, starts)
        windows = part if windows is None else windows + part
    assert windows is not None
    return windows


class WindowRegions:
    """
    The pixels that windows read, where there is no image to cut them out of: [`sample_windows`] in two steps, with the same
    result to float32's rounding of a position.

    Args:
        coordinates (`torch.Tensor` of shape `(num_tokens, 2)`): window centres `(x, y)`, float32, relative to an image.
        patch_size (`int`): samples per side, one pixel apart.
        height (`int`), width (`int`): of the image, in pixels, at least `side`.

    Attributes:
        side (`int`): of a region, in pixels: one more than samples lie between.
        left, top (`torch.Tensor` of shape `(num_tokens,)`): the first column and row of each window's region, int64.
    """

    def __init__(self, coordinates: torch.Tensor, patch_size: int, height: int, width: int):
        self.side = patch_size + 1
        sizes = torch.tensor([width, height])
        corners = _snap_to_pixels(coordinates * sizes - 0.5 - (patch_size - 1) / 2, sizes)  # (x, y) of the first samples
        first = corners.floor()
        self.fractions = corners - first
        start = first.long().minimum(sizes - self.side).clamp_min(0)
        self.left, self.top = start.unbind(1)
        # Of the columns and rows that a window reads, which of the region's they are: replicated beyond the image's border.
        self.shift = first.long() - start

    def sample(self, regions: torch.Tensor) -> torch.Tensor:
        """The regions' pixels `(num_tokens, num_channels, side, side)` to windows `(num_tokens, num_channels, patch_size,
        patch_size)`."""
        regions = regions.to(torch.promote_types(regions.dtype, torch.float32))
        steps = torch.arange(self.side)
        beyond = self.shift.any(1).nonzero()[:, 0].tolist()
        regions = regions.clone() if beyond else regions
        for i in beyond:
            columns, rows = ((steps + shift).clamp(0, self.side - 1) for shift in self.shift[i].tolist())
            regions[i] = regions[i][:, rows][:, :, columns]
        right, bottom = self.fractions.to(regions.device)[:, :, None, None, None].unbind(1)
        upper, lower = regions[..., :-1, :], regions[..., 1:, :]
        across = torch.lerp(upper, lower, bottom)
        return torch.lerp(across[..., :-1], across[..., 1:], right)


def _levels_read(level: torch.Tensor, highest: int) -> tuple[int, int]:
    """The first and the last level of the pyramid that any window reads. All of them where to ask would make a device wait or
    a graph depend on its input."""
    if level.device.type != "cpu" or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return 0, highest
    first = int(level.floor().long().clamp(0, highest - 1).min())
    # The level above has no weight in a window of a level's own scale, but a part in the scale's gradient.
    upper = level.floor() + 1 if level.requires_grad else level.ceil()
    return first, int(upper.long().clamp(0, highest).max())


def _halve(image: torch.Tensor) -> torch.Tensor:
    """Means of 2 × 2 pixels. An odd last row or column is averaged alone, as if it were replicated."""
    if any(isinstance(side, torch.SymInt) for side in image.shape[-2:]):  # even or odd: to ask would fix it in a graph
        for axis in (-2, -1):
            even = torch.arange(0, image.shape[axis], 2, device=image.device)
            odd = (even + 1).clamp_max(image.shape[axis] - 1)
            image = (image.index_select(axis, even) + image.index_select(axis, odd)) * 0.5
        return image
    if image.device.type != "cpu" or image.shape[-2] % 2 or image.shape[-1] % 2:
        return nn.functional.avg_pool2d(image, 2, ceil_mode=True, count_include_pad=False)
    cells = image.unflatten(-2, (-1, 2)).unflatten(-1, (-1, 2))  # on a CPU 2.5 times as fast, and the same to the last bit
    return (cells[..., 0, :, 0] + cells[..., 0, :, 1] + cells[..., 1, :, 0] + cells[..., 1, :, 1]) * 0.25
