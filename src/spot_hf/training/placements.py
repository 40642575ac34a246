"""Where tokens sit during training: each step has a number of tokens, and each image a prior drawn from a mixture.

The priors are those of `placement.py`, for a whole batch at once on its device. Random numbers come from a hash of the seed
and the image's *draw*, a number that identifies an epoch and an image: see `draws.py`.
"""

import math
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate

import torch

from ..foveation import STRENGTH, bump, covering_scale, foveate
from ..placement import (
    BUILT_IN,
    COVER,
    center,
    check_placement,
    edge_saliency,
    generator_for,
    get_placement,
    grid,
    isotropic_cells,
    place_windows,
)
from .draws import (
    CELLS,
    CHOICE,
    COUNT,
    FOVEATION,
    JITTER,
    OWN,
    POSITIONS,
    SCALE_CHOICE,
    SCALES,
    normals,
    uniforms,
)


ScaleRule = tuple[float, float] | str  # a range, or "cover"


@dataclass(kw_only=True)
class TrainingPlacements:
    """
    Draws coordinates for batches of images.

    Attributes:
        num_tokens (`list[int]`): every batch has one of these counts, so that a compiled model sees no other shapes.
        num_tokens_weights (`list[float]`, *optional*): relative frequency of each count; equal by default.
        placement (`list[str]`): priors; each image of a batch is placed by one of them.
        placement_weights (`list[float]`, *optional*): relative frequency of each prior; equal by default.
        jitter (`float`): standard deviation of the normal noise that is added to each position, in patches.
        window_scales (`(float, float)` or `list`, *optional*): range from which each token's window scale is drawn,
            log-uniformly; or several such ranges and `"cover"`, of which each image has one. Foveated images keep their own.
        window_scales_weights (`list[float]`, *optional*): relative frequency of each of these; equal by default.
        coordinates_share (`float`): share of the images that use their own coordinates, where they have any.
        height, width, patch_size (`int`): of `pixel_values` and of the model, in pixels.
        seed (`int`): of the run.

    Raises:
        `ValueError`: a value out of its range.
    """

    num_tokens: list[int]
    num_tokens_weights: list[float] | None = None
    placement: list[str] = field(default_factory=lambda: ["isotropic", "center", "uniform", "gaussian"])
    placement_weights: list[float] | None = None
    jitter: float = 0.0
    window_scales: tuple[float, float] | list[ScaleRule] | None = None
    window_scales_weights: list[float] | None = None
    coordinates_share: float = 0.5
    height: int = 224
    width: int = 224
    patch_size: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        num_cells = (self.height // self.patch_size) * (self.width // self.patch_size)
        self.scale_rules: list[ScaleRule] = []
        if self.window_scales is not None:
            self.scale_rules = [self.window_scales] if isinstance(self.window_scales, tuple) else list(self.window_scales)
        elif self.window_scales_weights is not None:
            raise ValueError("`window_scales_weights` are of `window_scales`, which are needed too; got none")
        lists: dict[str, list] = {"num_tokens": self.num_tokens, "placement": self.placement}
        if self.window_scales is not None:
            lists["window_scales"] = self.scale_rules
        for name, values in lists.items():
            weights = getattr(self, f"{name}_weights")
            if not values or len(set(values)) != len(values):
                raise ValueError(f"`{name}` must be one or several different values; got {values}")
            if weights is not None and (len(weights) != len(values) or min(weights) < 0 or not sum(weights) > 0):
                raise ValueError(
                    f"`{name}_weights` must be {len(values)} numbers of at least 0, one per value of `{name}`, not all 0; "
                    f"got {weights}"
                )
        for name in self.placement:
            for num_tokens in self.num_tokens:
                check_placement(name, num_tokens, None if name == "grid" else num_cells)
            if name == "grid" or (get_placement(name).saliency and name != "foveated"):
                reason = "needs a saliency map per image" if name != "grid" else f"is isotropic with {num_cells} tokens"
                raise ValueError(f"`placement` {name!r} is not for training: it {reason}")
        if not 0 <= self.jitter < math.inf:
            raise ValueError(f"`jitter` must be at least 0, in patches; got {self.jitter}")
        if not 0 <= self.coordinates_share <= 1:
            raise ValueError(f"`coordinates_share` must lie in [0, 1]; got {self.coordinates_share}")
        for rule in self.scale_rules:
            if rule != COVER and not (isinstance(rule, tuple) and 0 < rule[0] <= rule[1] < math.inf):
                raise ValueError(f"`window_scales` must be {COVER!r}, or the lowest and the highest, above 0; got {rule!r}")

    def num_tokens_at(self, step: int) -> int:
        """The token count of all images of a step, on every process."""
        uniform = uniforms(self.seed, torch.tensor([step]), COUNT, 1)[:, 0]
        return self.num_tokens[int(_choose(uniform, self.num_tokens_weights, self.num_tokens))]

    def __call__(
        self,
        draws: torch.Tensor,
        num_tokens: int,
        pixel_values: torch.Tensor,
        own_coordinates: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """
        Args:
            draws (`torch.LongTensor` of shape `(batch_size,)`): which draw each image is; on the device of the result.
            num_tokens (`int`): per image.
            pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`): for the prior `"edge"`.
            own_coordinates (`torch.Tensor` of shape `(batch_size, own_num_tokens, 2)`, *optional*): of each image, `(x, y)`,
                model frame. Used where their number is `num_tokens`, by `coordinates_share` of the images. Tokens that a
                crop has cut off are placed by the prior.

        Returns:
            `dict`: `coordinates` `(batch_size, num_tokens, 2)`, float32, `(x, y)` in [0, 1], model frame; and `window_scales`
            `(batch_size, num_tokens)`, float32, in patches, where they are not all 1.
        """
        images = torch.arange(len(draws), device=draws.device)
        placed_by = [self._prior(name, draws, num_tokens, pixel_values) for name in self.placement]
        chosen = _choose(uniforms(self.seed, draws, CHOICE, 1)[:, 0], self.placement_weights, self.placement)
        coordinates = torch.stack([one for one, _ in placed_by])[chosen, images]
        scales = rules = self._scales(draws, num_tokens)
        if any(own is not None for _, own in placed_by):
            rules = torch.ones(len(draws), num_tokens, device=draws.device) if rules is None else rules
            scales = torch.stack([rules if own is None else own for _, own in placed_by])[chosen, images]
        if own_coordinates is not None and own_coordinates.shape[1] == num_tokens:
            use = uniforms(self.seed, draws, OWN, 1) < self.coordinates_share
            inside = ((own_coordinates >= 0) & (own_coordinates <= 1)).all(-1)
            coordinates = torch.where((use & inside)[..., None], own_coordinates, coordinates)
            if scales is not None and rules is not None:
                scales = torch.where(use & inside, rules, scales)
        if self.jitter:
            patch = torch.tensor([self.patch_size / self.width, self.patch_size / self.height], device=draws.device)
            steps = normals(uniforms(self.seed, draws, JITTER, 2 * num_tokens)).unflatten(1, (num_tokens, 2))
            coordinates = coordinates + self.jitter * patch * steps
        placed = {"coordinates": coordinates.clamp(0, 1)}
        return placed if scales is None else {**placed, "window_scales": scales}

    def _scales(self, draws: torch.Tensor, num_tokens: int) -> torch.Tensor | None:
        """`(batch_size, num_tokens)`, by `window_scales`; none where there are no such."""
        if not self.scale_rules:
            return None
        numbers, drawn = uniforms(self.seed, draws, SCALES, num_tokens), []
        for rule in self.scale_rules:
            if isinstance(rule, tuple):
                low, high = (math.log(scale) for scale in rule)
                drawn.append((low + (high - low) * numbers).exp())
            else:
                drawn.append(torch.full_like(numbers, covering_scale(num_tokens, self.height, self.width, self.patch_size)))
        if len(drawn) == 1:
            return drawn[0]
        chosen = _choose(uniforms(self.seed, draws, SCALE_CHOICE, 1)[:, 0], self.window_scales_weights, self.scale_rules)
        return torch.stack(drawn)[chosen, torch.arange(len(draws), device=draws.device)]

    def _prior(
        self, name: str, draws: torch.Tensor, num_tokens: int, pixel_values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The prior of that name in `placement.py`, for each image: coordinates `(batch_size, num_tokens, 2)`, and window
        scales `(batch_size, num_tokens)` where it has its own."""
        if name == "foveated":
            return foveate(self._densities(draws), num_tokens, self.height, self.width, self.patch_size)
        if name not in BUILT_IN or name in ("foveated_edge", "foveated_center"):  # of one image, on the CPU
            images, numbers = pixel_values.cpu(), draws.tolist()
            sets, scales = zip(
                *(
                    place_windows(name, num_tokens, image, self.patch_size, generator_for(self.seed, draw))
                    for image, draw in zip(images, numbers, strict=True)
                ),
                strict=True,
            )
            own = None if scales[0] is None else torch.stack(scales).to(draws.device)
            return torch.stack(sets).to(draws.device), own
        return self._coordinates(name, draws, num_tokens, pixel_values), None

    def _densities(self, draws: torch.Tensor) -> torch.Tensor:
        """Of random foveations, `(batch_size, 14, 14)`: a bump or two, of random place, width and height; a fifth are flat."""
        flat, two, *shape = uniforms(self.seed, draws, FOVEATION, 10).unbind(1)

        def one_bump(x: torch.Tensor, y: torch.Tensor, width: torch.Tensor, height: torch.Tensor) -> torch.Tensor:
            return bump(14, 14, torch.stack([x, y], dim=-1), 0.08 + 0.3 * width, STRENGTH * height)

        first, second = one_bump(*shape[:4]), one_bump(*shape[4:])
        density = torch.where((two < 0.25)[:, None, None], torch.maximum(first, second), first)
        return torch.where((flat < 0.2)[:, None, None], 1.0, density)

    def _coordinates(self, name: str, draws: torch.Tensor, num_tokens: int, pixel_values: torch.Tensor) -> torch.Tensor:
        device, aspect_ratio = draws.device, self.width / self.height

        def random(count: int, size: int = 2) -> torch.Tensor:
            return uniforms(self.seed, draws, POSITIONS, count * size).unflatten(1, (count, size))

        centers, sizes = (part.to(device) for part in _cells(num_tokens, aspect_ratio))
        if name == "isotropic":
            return centers.expand(len(draws), -1, -1)
        if name == "center":
            return _center(num_tokens, aspect_ratio).to(device).expand(len(draws), -1, -1)
        if name == "uniform":
            return random(num_tokens)
        if name == "gaussian":
            return (normals(random(num_tokens)) / torch.pi + 0.5).clamp(0, 1)
        if name == "sobol":
            # One sequence whose binary digits are flipped at random per image (a digital shift): as even as a scrambled one.
            sequence = _sobol(num_tokens).to(device)
            return ((sequence * 2**24).long() ^ (random(1) * 2**24).long()) * 2**-24
        if name == "uniform_perturb":
            return centers + sizes * (random(num_tokens) - 0.5)
        if name == "gaussian_perturb":
            return (centers + sizes / 4 * normals(random(num_tokens))).clamp(0, 1)
        if name == "grid_subset":
            cells = grid(self.height, self.width, self.patch_size).to(device)
            return cells[random(len(cells), 1)[..., 0].argsort(1)[:, :num_tokens].sort(1).values]
        assert name == "edge"
        # Without replacement in proportion to the weights, as `salient`: the largest of log weight + Gumbel noise.
        weights = edge_saliency(pixel_values).flatten(1)
        noise = uniforms(self.seed, draws, CELLS, weights.shape[1]).clamp_min(2**-25)
        pixels = (weights.log() - (-noise.log()).log()).topk(num_tokens, dim=1).indices
        corners = torch.stack([pixels % self.width, pixels // self.width], dim=-1)
        return (corners + random(num_tokens)) / torch.tensor([self.width, self.height], device=device)


# Computed by loops in Python and needed at every step: once per number of tokens.
_cells, _center = cache(isotropic_cells), cache(center)


@cache
def _sobol(num_tokens: int) -> torch.Tensor:
    return torch.quasirandom.SobolEngine(2).draw(num_tokens)


def _choose(uniform: torch.Tensor, weights: list[float] | None, values: list) -> torch.Tensor:
    """Indices into `values`, int64 `(batch_size,)`, in proportion to their weights, by the numbers that [`uniforms`] gives."""
    edges = list(accumulate(map(float, weights or [1.0] * len(values))))
    # The numbers are multiples of 2^-24: integers compare exactly, where float32 would round the edges and MPS lacks float64.
    thresholds = torch.tensor([math.ceil(edge / edges[-1] * 2**24) for edge in edges], device=uniform.device)
    return ((uniform * 2**24).long()[:, None] >= thresholds).sum(1).clamp_max(len(values) - 1)


def token_buckets(lowest: int, highest: int, num_buckets: int) -> list[int]:
    """Token counts from `lowest` to `highest`, in about equal ratios."""
    if not 1 <= lowest <= highest or num_buckets < 1:
        raise ValueError(
            f"`num_tokens_range` must be the lowest and the highest, at least 1, in at least one bucket; "
            f"got {[lowest, highest]} in {num_buckets}"
        )
    if num_buckets == 1 or lowest == highest:
        return [highest]
    factor = (highest / lowest) ** (1 / (num_buckets - 1))
    return sorted({round(lowest * factor**i) for i in range(num_buckets)})


def scale_rule(text: str) -> ScaleRule:
    """`cover`, a number, or a range such as `0.5-2`."""
    low, dash, high = text.partition("-")
    try:
        return text if text == COVER else (float(low), float(high if dash else low))
    except ValueError:
        raise ValueError(f"`window_scales` must be cover, numbers above 0, or ranges such as 0.5-2; got {text!r}") from None
