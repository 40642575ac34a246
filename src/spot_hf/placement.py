"""Placements: the spatial priors that say where tokens sit (SPoT, arXiv 2507.01654, section on spatial priors).

Pure functions of the number of tokens that return coordinates: float32, `(num_tokens, 2)`, order `(x, y)`, in [0, 1],
relative to the image that the model sees (0 and 1 are its edges). Random ones take a `torch.Generator` from
[`generator_for`], so that a draw depends on the seed and the image alone, never on batch mates or on the process.
"""

import hashlib
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from numbers import Integral
from typing import Any

import torch

from .foveation import bump, covering_scale, density_of, foveate, row_counts


# ------------------------------------------------------------------------------------------------------ deterministic


def grid(height: int, width: int, patch_size: int) -> torch.Tensor:
    """Centres of all grid cells, row by row: the tokens of an ordinary ViT. `height`, `width`, `patch_size` in pixels;
    pixels beyond the last whole patch belong to no cell, as in a convolution with that stride."""
    x = (torch.arange(width // patch_size) + 0.5) * patch_size / width
    y = (torch.arange(height // patch_size) + 0.5) * patch_size / height
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).reshape(-1, 2)


def isotropic_cells(num_tokens: int, aspect_ratio: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Centres and sizes `(num_tokens, 2)` of cells of equal area that tile the image in rows."""
    centers, sizes = [], []
    done = 0
    for count in row_counts(num_tokens, aspect_ratio):
        y, cell_height = (done + count / 2) / num_tokens, count / num_tokens
        centers += [((j + 0.5) / count, y) for j in range(count)]
        sizes += [(1 / count, cell_height)] * count
        done += count
    return torch.tensor(centers), torch.tensor(sizes)


def isotropic(num_tokens: int, aspect_ratio: float = 1.0) -> torch.Tensor:
    """
    Even coverage by any number of tokens: centres of `num_tokens` cells of equal area, in rows. A square number gives the
    regular lattice; as many tokens as the model's grid has cells give that grid.

    Args:
        num_tokens (`int`): at least 1.
        aspect_ratio (`float`): width / height of the image.
    """
    return isotropic_cells(num_tokens, aspect_ratio)[0]


def center(num_tokens: int, aspect_ratio: float = 1.0) -> torch.Tensor:
    """Isotropic, contracted towards the centre: `0.5 + d (1 - exp(-(d / 0.2)²))` for each offset `d` from the centre."""
    offsets = isotropic(num_tokens, aspect_ratio) - 0.5
    return 0.5 + offsets * (1 - torch.exp(-((offsets / 0.2) ** 2)))


# ------------------------------------------------------------------------------------------------------------- random


def generator_for(seed: int, image_id: str | int) -> torch.Generator:
    """A CPU generator whose stream is a function of the run's seed and the image alone."""
    digest = hashlib.sha256(f"{seed}/{image_id}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def new_generator() -> torch.Generator:
    """A CPU generator that is new at each call, seeded from torch's global one."""
    return torch.Generator().manual_seed(int(torch.randint(2**62, ())))


def uniform(num_tokens: int, generator: torch.Generator) -> torch.Tensor:
    """Independent and uniform over the image."""
    return torch.rand(num_tokens, 2, generator=generator)


def gaussian(num_tokens: int, generator: torch.Generator) -> torch.Tensor:
    """Independent and normal around the centre, standard deviation 1/π of the image, clamped to the image."""
    return (torch.randn(num_tokens, 2, generator=generator) / torch.pi + 0.5).clamp(0, 1)


def sobol(num_tokens: int, generator: torch.Generator) -> torch.Tensor:
    """A scrambled Sobol sequence: random, yet evenly spread."""
    seed = int(torch.randint(2**62, (), generator=generator))
    return torch.quasirandom.SobolEngine(2, scramble=True, seed=seed).draw(num_tokens)


def uniform_perturb(num_tokens: int, generator: torch.Generator, aspect_ratio: float = 1.0) -> torch.Tensor:
    """Isotropic, each token uniform within its own cell (stratified sampling)."""
    centers, sizes = isotropic_cells(num_tokens, aspect_ratio)
    return centers + sizes * (torch.rand(num_tokens, 2, generator=generator) - 0.5)


def gaussian_perturb(num_tokens: int, generator: torch.Generator, aspect_ratio: float = 1.0) -> torch.Tensor:
    """Isotropic, each token moved by a normal step of a quarter of its cell, clamped to the image."""
    centers, sizes = isotropic_cells(num_tokens, aspect_ratio)
    return (centers + sizes / 4 * torch.randn(num_tokens, 2, generator=generator)).clamp(0, 1)


def grid_subset(num_tokens: int, generator: torch.Generator, cells: torch.Tensor) -> torch.Tensor:
    """`num_tokens` different cells of the grid `cells` (`(num_cells, 2)`), in grid order: PatchDropout at inference."""
    chosen = torch.randperm(len(cells), generator=generator)[:num_tokens].sort().values
    return cells[chosen]


def salient(num_tokens: int, generator: torch.Generator, saliency: torch.Tensor) -> torch.Tensor:
    """
    Cells of a saliency map drawn with probability proportional to it, and a uniform point within each. Without
    replacement while cells with saliency last.

    Args:
        num_tokens (`int`): at least 1.
        generator (`torch.Generator`): of the draw.
        saliency (`torch.Tensor` of shape `(rows, columns)`): not negative, not all zero, over the image that the model
            sees.
    """
    rows, columns = saliency.shape
    weights = saliency.flatten().cpu().double()  # where the generator is; and not every device has float64
    replacement = num_tokens > int((weights > 0).sum())
    # torch.multinomial takes at most 2^24 categories: far more than a saliency map at image size has.
    cells = torch.multinomial(weights, num_tokens, replacement=replacement, generator=generator)
    corners = torch.stack([cells % columns, cells // columns], dim=-1).float()
    points = corners + torch.rand(num_tokens, 2, generator=generator)
    return points / torch.tensor([columns, rows])


def inverse_salient(num_tokens: int, generator: torch.Generator, saliency: torch.Tensor) -> torch.Tensor:
    """As [`salient`], of the map's complement `max - saliency`: where the map points away from. Uniform for a flat map."""
    complement = saliency.max() - saliency
    return salient(num_tokens, generator, complement if complement.any() else torch.ones_like(saliency))


def edge_saliency(pixel_values: torch.Tensor) -> torch.Tensor:
    """Edge strength of an image, a saliency map for [`salient`]: magnitude of the brightness gradient.

    Args:
        pixel_values (`torch.Tensor` of shape `(..., num_channels, height, width)`): an image as the model sees it, or more.

    Returns:
        `torch.Tensor` of shape `(..., height, width)`; all ones where an image is flat.
    """
    brightness = pixel_values.float().mean(dim=-3)
    d_y, d_x = torch.gradient(brightness, dim=(-2, -1))
    strength = torch.hypot(d_x, d_y)
    return torch.where((strength > 0).flatten(-2).any(-1)[..., None, None], strength, 1.0)


def edge(num_tokens: int, generator: torch.Generator, pixel_values: torch.Tensor) -> torch.Tensor:
    """As [`salient`], of the strength of the image's edges."""
    return salient(num_tokens, generator, edge_saliency(pixel_values))


# ----------------------------------------------------------------------------------------------------------- foveated


def foveated(
    num_tokens: int, saliency: torch.Tensor, height: int, width: int, patch_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Looks closely where a saliency map is high, coarsely elsewhere: [`foveate`] by the density `exp(2.2 saliency / maximum)`.

    Returns:
        `tuple`: coordinates `(num_tokens, 2)` and window scales `(num_tokens,)`, with which the windows tile the image.
    """
    coordinates, scales = foveate(density_of(saliency.cpu().double())[None], num_tokens, height, width, patch_size)
    return coordinates[0], scales[0]


def foveated_edge(
    num_tokens: int, pixel_values: torch.Tensor, height: int, width: int, patch_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """As [`foveated`], where the image's edges are strong: their strength, averaged over patches."""
    coordinates, scales = foveate(edge_density(pixel_values[None], patch_size), num_tokens, height, width, patch_size)
    return coordinates[0], scales[0]


def edge_density(pixel_values: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Of images `(batch_size, num_channels, height, width)`, as the model sees them, the density `(batch_size, rows, columns)`
    of the strength of their edges, averaged over patches."""
    height, width = pixel_values.shape[-2:]
    size = max(1, height // patch_size), max(1, width // patch_size)
    strength = torch.nn.functional.adaptive_avg_pool2d(edge_saliency(pixel_values)[:, None], size)[:, 0]
    return density_of(strength if strength.device.type == "mps" else strength.double())


def foveated_center(num_tokens: int, height: int, width: int, patch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """As [`foveated`], towards the centre: a Gaussian of a quarter of the image."""
    middle, quarter, peak = torch.tensor([[0.5, 0.5]]).double(), torch.tensor([0.25]).double(), torch.tensor([2.2]).double()
    coordinates, scales = foveate(bump(56, 56, middle, quarter, peak), num_tokens, height, width, patch_size)
    return coordinates[0], scales[0]


# ----------------------------------------------------------------------------------------------------------- registry


@dataclass(frozen=True)
class Placement:
    """
    A prior, and what its function takes beside `num_tokens`, by keyword.

    Attributes:
        function: returns positions `(num_tokens, 2)`, `(x, y)` in [0, 1], relative to the image that the model sees; or a
            tuple of these and the scales `(num_tokens,)` of their windows, in patches.
        random (`bool`): takes `generator`, a CPU `torch.Generator` whose stream is a function of the seed and the image.
            Evaluations repeat such a placement with several seeds.
        aspect_ratio (`bool`): takes `aspect_ratio`, width / height of the image.
        saliency (`bool`): takes `saliency`, a map `(rows, columns)` of the image, which the caller must then give.
        on_grid (`bool`): takes `cells`, the centres `(num_cells, 2)` of the model's grid, and has no more tokens than these.
        pixels (`bool`): takes `pixel_values`, the image `(num_channels, height, width)` as the model sees it, on the CPU.
        sized (`bool`): takes `height`, `width` and `patch_size`, of that image and of the model, in pixels.
        scaled (`bool`): returns window scales, too, for every image. Of a person's own, only what it returns tells.
    """

    function: Callable[..., Any]
    random: bool = False
    aspect_ratio: bool = False
    saliency: bool = False
    on_grid: bool = False
    pixels: bool = False
    sized: bool = False
    scaled: bool = False


PLACEMENTS = {
    "grid": Placement(grid, on_grid=True),
    "isotropic": Placement(isotropic, aspect_ratio=True),
    "center": Placement(center, aspect_ratio=True),
    "uniform": Placement(uniform, random=True),
    "gaussian": Placement(gaussian, random=True),
    "sobol": Placement(sobol, random=True),
    "edge": Placement(edge, random=True, pixels=True),
    "salient": Placement(salient, random=True, saliency=True),
    "inverse_salient": Placement(inverse_salient, random=True, saliency=True),
    "grid_subset": Placement(grid_subset, random=True, on_grid=True),
    "uniform_perturb": Placement(uniform_perturb, random=True, aspect_ratio=True),
    "gaussian_perturb": Placement(gaussian_perturb, random=True, aspect_ratio=True),
    "foveated": Placement(foveated, saliency=True, sized=True, scaled=True),
    "foveated_edge": Placement(foveated_edge, pixels=True, sized=True, scaled=True),
    "foveated_center": Placement(foveated_center, sized=True, scaled=True),
}
BUILT_IN = tuple(PLACEMENTS)
# Those that [`place_images`] knows: no random numbers, nothing but the image.
COVERING_PLACEMENTS = ("isotropic", "foveated_edge", "foveated_center")
# Of other methods, beside which an evaluation names placements.
OTHER_METHODS = (
    "learned", "learned_control", "calibrated", "full_grid", "shrunken_image", "larger_windows", "token_merging",
    "token_merging_same_cost", "oracle",
)  # fmt: skip
MAX_TOKENS = 65536
COVER = "cover"  # window scales with which the windows' areas sum to the image's
# What a function's parameters say of it.
FLAG_OF = {
    "generator": "random",
    "aspect_ratio": "aspect_ratio",
    "saliency": "saliency",
    "cells": "on_grid",
    "pixel_values": "pixels",
    "height": "sized",
    "width": "sized",
    "patch_size": "sized",
}


def register_placement(name: str, function: Callable[..., torch.Tensor]) -> Placement:
    """
    Makes a prior of your own known by a name: to image processors, pipelines, evaluation, oracle and training in this process.
    On the command line, and in other processes, `module:function` names a function without registering it.

    Args:
        name (`str`): a Python identifier that is not built in. An earlier function of that name is replaced.
        function: takes `num_tokens` and, of the following, those that it declares as parameters: `generator` (for random
            numbers, so that a draw depends on the seed and the image alone), `aspect_ratio`, `saliency`, `cells`,
            `pixel_values`, `height`, `width` and `patch_size`: see [`Placement`]. Returns positions, a tensor or array
            `(num_tokens, 2)`: `(x, y)` in [0, 1], relative to the image that the model sees; or a tuple of these and window
            scales `(num_tokens,)`.

    Returns:
        [`Placement`]: with the flags that follow from the function's parameters.

    Raises:
        `ValueError`: a name that there cannot be, or a function with other parameters.
    """
    taken = (*BUILT_IN, *OTHER_METHODS)
    if not isinstance(name, str) or not name.isidentifier() or name in taken:
        raise ValueError(f"`name` must be a Python identifier, and none of {', '.join(taken)}; got {name!r}")
    PLACEMENTS[name] = _placement_of(function, f"`function` of {name!r}")
    return PLACEMENTS[name]


def _placement_of(function: Any, subject: str) -> Placement:
    if not callable(function):
        raise ValueError(f"{subject} must be a function; got {type(function).__name__}")
    accepted = f"num_tokens and, as needed, {', '.join(FLAG_OF)}"
    flags = {}
    parameters = inspect.signature(function).parameters
    for name, parameter in parameters.items():
        if name in FLAG_OF:
            flags[FLAG_OF[name]] = True
        elif name != "num_tokens" and parameter.default is inspect.Parameter.empty:
            raise ValueError(f"{subject} must take {accepted}; it takes {', '.join(parameters) or 'nothing'}")
    if "num_tokens" not in parameters:
        raise ValueError(f"{subject} must take {accepted}; it takes {', '.join(parameters) or 'nothing'}")
    return Placement(function, **flags)


def get_placement(placement: str | Callable[..., torch.Tensor]) -> Placement:
    """
    A prior by its name.

    Args:
        placement (`str` or `Callable`): a name of `PLACEMENTS`; `module:function`, which is imported; or a function, as
            [`register_placement`] takes it.

    Raises:
        `ValueError`: there is no such prior.
    """
    if callable(placement):
        return _placement_of(placement, "`placement`")
    if isinstance(placement, str) and placement in PLACEMENTS:
        return PLACEMENTS[placement]
    if isinstance(placement, str) and is_import(placement):
        module, _, function = placement.partition(":")
        try:
            return _placement_of(getattr(import_module(module), function), f"`placement` {placement!r}")
        except (ImportError, AttributeError) as error:
            raise ValueError(f"`placement` {placement!r} cannot be imported: {error}") from None
    raise ValueError(f"`placement` must be one of {', '.join(PLACEMENTS)}, or module:function; got {placement!r}")


def check_takes_saliency(argument: str, placement: Any) -> None:
    """`ValueError` where what is salient was given as `argument`, and the placement does not use it."""
    if not get_placement(placement).saliency:
        takers = ", ".join(name for name in BUILT_IN if PLACEMENTS[name].saliency)
        raise ValueError(f"`{argument}` is for the placements {takers}; got placement={placement!r}")


def check_placement_name(placement: Any, argument: str = "placement") -> None:
    """`ValueError` where it is no name: a job records what it does, and a function's object is none."""
    if not isinstance(placement, str):
        raise ValueError(
            f"`{argument}` of a job must be a name; got {placement!r:.60}. `register_placement` gives a function one, and "
            "module:function is one"
        )


def recorded_placements(placements: Iterable[str]) -> dict[str, Any]:
    """For a job's record: of those that are a person's own, the SHA-256 of the function's source by its name, which tells its
    versions apart. Nothing where all are built in."""
    digests = {}
    for name in placements:
        if name not in BUILT_IN:
            try:
                source = inspect.getsource(get_placement(name).function)
            except (OSError, TypeError):  # typed at a prompt, or no Python
                source = ""
            digests[name] = hashlib.sha256(source.encode()).hexdigest()
    return {"placement_sha256": digests} if digests else {}


def is_placement(name: str) -> bool:
    """Whether it names a prior, as far as that can be told without importing anything."""
    return name in PLACEMENTS or is_import(name)


def is_import(placement: str) -> bool:
    """Whether it is of the form `module:function`."""
    module, colon, function = placement.partition(":")
    return bool(colon) and function.isidentifier() and all(part.isidentifier() for part in module.split("."))


def check_placement(
    placement: str | Callable[..., torch.Tensor], num_tokens: int | None, num_cells: int | None = None
) -> None:
    """
    Raises `ValueError` for a placement that does not exist, and for a number of tokens that it cannot place.

    Args:
        placement (`str` or `Callable`): as [`get_placement`] takes it.
        num_tokens (`int`, *optional*): needed by all placements but `grid`.
        num_cells (`int`, *optional*): number of the model's grid cells, where it is known already.
    """
    spec = get_placement(placement)
    if num_tokens is None:
        if placement != "grid":
            raise ValueError(f"`placement={placement!r}` needs `num_tokens`, a positive integer; got none")
        return
    if isinstance(num_tokens, bool) or not isinstance(num_tokens, Integral) or not 1 <= num_tokens <= MAX_TOKENS:
        raise ValueError(f"`num_tokens` must be an integer from 1 to {MAX_TOKENS}; got {num_tokens!r}")
    if num_cells is not None:
        if placement == "grid" and num_tokens != num_cells:
            raise ValueError(f"`num_tokens` must be {num_cells} (all cells) with placement='grid'; got {num_tokens}")
        if spec.on_grid and num_tokens > num_cells:
            raise ValueError(f"`num_tokens` must be at most {num_cells} with placement={placement!r}; got {num_tokens}")


def place(
    placement: str | Callable[..., torch.Tensor],
    num_tokens: int | None,
    pixel_values: torch.Tensor,
    patch_size: int,
    generator: torch.Generator | None = None,
    saliency: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Coordinates for one image by the name of the prior: the first of what [`place_windows`] returns.

    Returns:
        `torch.Tensor` of shape `(num_tokens, 2)`: float32, `(x, y)` in [0, 1], relative to `pixel_values`.
    """
    return place_windows(placement, num_tokens, pixel_values, patch_size, generator, saliency)[0]


def place_windows(
    placement: str | Callable[..., torch.Tensor],
    num_tokens: int | None,
    pixel_values: torch.Tensor,
    patch_size: int,
    generator: torch.Generator | None = None,
    saliency: torch.Tensor | None = None,
    window_scales: float | str | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """
    Coordinates and window scales for one image by the name of the prior.

    Args:
        placement (`str` or `Callable`): as [`get_placement`] takes it.
        num_tokens (`int`, *optional*): number of tokens; not needed by `grid`.
        pixel_values (`torch.Tensor` of shape `(num_channels, height, width)`): the image as the model sees it. Its size
            gives grid and aspect ratio, its content the `edge` placement.
        patch_size (`int`): of the model, in pixels.
        generator (`torch.Generator`, *optional*): for the random ones, from [`generator_for`].
        saliency (`torch.Tensor` of shape `(rows, columns)`, *optional*): for those that need it, over the image that the model
            sees.
        window_scales (`float` or `str`, *optional*): of all tokens, in patches, or `"cover"`: as large as makes their areas
            sum to the image's. A number takes the place of the prior's own scales, which `"cover"` leaves as they are.

    Returns:
        `tuple`: coordinates `(num_tokens, 2)`, float32, `(x, y)` in [0, 1], relative to `pixel_values`; and scales
        `(num_tokens,)`, float32, or `None` where all are 1.

    Raises:
        `ValueError`: as [`check_placement`]; a saliency map that is needed and not given; a function of your own that does not
            return what it has to.
    """
    height, width = pixel_values.shape[-2:]
    num_cells = (height // patch_size) * (width // patch_size)
    check_placement(placement, num_tokens, num_cells)
    if placement == "grid":
        coordinates = grid(height, width, patch_size)
        return coordinates, scales_of(window_scales, len(coordinates), height, width, patch_size)
    spec = get_placement(placement)
    inputs: dict = {"num_tokens": num_tokens}
    if spec.random:
        inputs["generator"] = generator if generator is not None else generator_for(0, "")
    if spec.aspect_ratio:
        inputs["aspect_ratio"] = width / height
    if spec.on_grid:
        inputs["cells"] = grid(height, width, patch_size)
    if spec.pixels:
        inputs["pixel_values"] = pixel_values
    if spec.saliency:
        if saliency is None:
            raise ValueError(f"`saliency` is needed by placement={placement!r}: one map per image; got none")
        inputs["saliency"] = saliency
    if spec.sized:
        given = {"height": height, "width": width, "patch_size": patch_size}
        declared = inspect.signature(spec.function).parameters
        inputs.update({name: value for name, value in given.items() if name in declared})
    result = spec.function(**inputs)
    coordinates, own_scales = result if isinstance(result, tuple) else (result, None)
    if placement not in BUILT_IN:
        coordinates = _checked(coordinates, placement, inputs["num_tokens"])
        own_scales = own_scales if own_scales is None else _checked_scales(own_scales, placement, inputs["num_tokens"])
    if own_scales is None or window_scales not in (None, COVER):
        own_scales = scales_of(window_scales, len(coordinates), height, width, patch_size)
    return coordinates.float(), own_scales


def place_images(
    placement: str, num_tokens: int, pixel_values: torch.Tensor, patch_size: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """
    For images, with windows that cover them, on their device: what a model does that places by itself.

    Args:
        placement (`str`): of `COVERING_PLACEMENTS`.
        num_tokens (`int`): at least 1.
        pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`): the images as the model sees them.
        patch_size (`int`): of the model, in pixels.

    Returns:
        `tuple`: coordinates `(batch_size or 1, num_tokens, 2)`, float32, `(x, y)` in [0, 1], relative to `pixel_values`; and
        scales `(batch_size or 1, num_tokens)`, float32, in patches, or `None` where all are 1.
    """
    (height, width), device = pixel_values.shape[-2:], pixel_values.device
    if placement not in COVERING_PLACEMENTS:
        raise ValueError(f"`placement` must be {', '.join(COVERING_PLACEMENTS)} or learned; got {placement!r}")
    if placement == "foveated_edge":
        return foveate(edge_density(pixel_values, patch_size), num_tokens, height, width, patch_size)
    if placement == "foveated_center":
        coordinates, scales = foveated_center(num_tokens, height, width, patch_size)
        return coordinates.to(device)[None], scales.to(device)[None]
    scale = covering_scale(num_tokens, height, width, patch_size)
    coordinates = isotropic(num_tokens, width / height).to(device)[None]
    return coordinates, None if scale == 1 else torch.full((1, num_tokens), scale, device=device)


def scales_of(
    window_scales: float | str | None, num_tokens: int, height: int, width: int, patch_size: int
) -> torch.Tensor | None:
    """Of all tokens `(num_tokens,)`, float32, by a number or `"cover"`; `None` where they are 1."""
    if window_scales is None or window_scales == 1:
        return None
    scale = covering_scale(num_tokens, height, width, patch_size) if window_scales == COVER else float(window_scales)
    return torch.full((num_tokens,), scale, dtype=torch.float32)


def scale_policy(text: str, argument: str = "window_scales") -> float | str:
    """A number or `"cover"`, of an option; `ValueError` where it is neither."""
    try:
        value: float | str = text if text == COVER else float(text)
    except ValueError:
        value = text
    check_scale_policy(value, argument)
    return value


def check_scale_policy(window_scales: Any, argument: str = "window_scales") -> None:
    """`ValueError` where it is neither a number above 0 nor `"cover"`."""
    is_number = isinstance(window_scales, (int, float)) and not isinstance(window_scales, bool)
    if window_scales != COVER and not (is_number and 0 < window_scales < float("inf")):
        raise ValueError(f"`{argument}` must be a number above 0, in patches, or {COVER!r}; got {window_scales!r}")


def _checked(coordinates: Any, placement: Any, num_tokens: int) -> torch.Tensor:
    """What a person's own function has returned."""
    accepted = f"({num_tokens}, 2), (x, y) in [0, 1]"
    try:
        coordinates = torch.as_tensor(coordinates).detach().cpu().float()
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"`placement` {placement!r} must return {accepted}; got {type(coordinates).__name__}") from None
    if coordinates.shape != (num_tokens, 2):
        raise ValueError(f"`placement` {placement!r} must return {accepted}; got shape {tuple(coordinates.shape)}")
    outside = ~((coordinates >= 0) & (coordinates <= 1)).all(-1)  # also of NaN
    if outside.any():
        token = int(outside.nonzero()[0])
        raise ValueError(f"`placement` {placement!r} must return {accepted}; token {token} is {coordinates[token].tolist()}")
    return coordinates


def _checked_scales(scales: Any, placement: Any, num_tokens: int) -> torch.Tensor:
    """What a person's own function has returned beside positions."""
    accepted = f"scales ({num_tokens},), finite and above 0"
    try:
        scales = torch.as_tensor(scales).detach().cpu().float()
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"`placement` {placement!r} must return {accepted}; got {type(scales).__name__}") from None
    if scales.shape != (num_tokens,) or not (scales.isfinite() & (scales > 0)).all():
        raise ValueError(f"`placement` {placement!r} must return {accepted}; got {scales.tolist()!r:.60}")
    return scales
