"""What changes an image's pixels beyond its crop: RandAugment, mixup and cutmix, each drawn by the image's draw.

An image is mixed with another one of the same epoch as that image's own draw shows it, so that a training step is the same on
any number of processes and in batches of any size.
"""

import math
from dataclasses import dataclass

import torch
from kornia.augmentation.auto import RandAugment

from .draws import AUGMENTATION, MIXING, seeded_by


@dataclass(frozen=True)
class Mixing:
    """
    How another image is mixed into an image.

    Attributes:
        partner (`int`): the draw of the other image.
        weight (`float`): of the other image's pixels in the box: 1 in cutmix.
        box (`(int, int, int, int)`): left, top, right, bottom in pixels of the model's input; all of it in mixup.
    """

    partner: int
    weight: float
    box: tuple[int, int, int, int]

    def __call__(self, pixels: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        """Mixes `pixels` and the partner's, uint8 `(3, height, width)`."""
        left, top, right, bottom = self.box
        inside = (slice(None), slice(top, bottom), slice(left, right))
        mixed = pixels.clone()
        mixed[inside] = torch.lerp(pixels[inside].float(), others[inside].float(), self.weight).round().byte()
        return mixed


@dataclass(kw_only=True)
class Augmentation:
    """
    Draws what is done to each image.

    Attributes:
        mixup (`float`): share of the images that are blended with another (Zhang et al. 2018).
        cutmix (`float`): share of the images that get a rectangle of another (Yun et al. 2019).
        mixup_alpha, cutmix_alpha (`float`): the share of the other image is drawn from Beta(alpha, alpha): of the pixels'
            values in mixup, of the area in cutmix, before the rectangle is clipped to the image.
        rand_augment_num_ops (`int`): operations of RandAugment (Cubuk et al. 2020) per image, 0 for none.
        rand_augment_magnitude (`float`): their magnitude, between 0 and 30, rounded down.
        seed (`int`): of the run.

    Raises:
        `ValueError`: a value out of its range.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    mixup_alpha: float = 0.8
    cutmix_alpha: float = 1.0
    rand_augment_num_ops: int = 0
    rand_augment_magnitude: float = 9.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.mixup >= 0 and self.cutmix >= 0 and self.mixup + self.cutmix <= 1):
            raise ValueError(
                f"`mixup` and `cutmix` must be shares of at least 0 and at most 1 in all; got {self.mixup} and {self.cutmix}"
            )
        for name in ("mixup_alpha", "cutmix_alpha"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"`{name}` must be above 0; got {getattr(self, name)}")
        if not 0 <= self.rand_augment_num_ops <= 15 or not 1 <= self.rand_augment_magnitude < 30:
            raise ValueError(
                "`rand_augment_num_ops` must be 0 to 15 and `rand_augment_magnitude` at least 1 and below 30; got "
                f"{self.rand_augment_num_ops} and {self.rand_augment_magnitude}"
            )
        self._rand_augment = None
        if self.rand_augment_num_ops:
            self._rand_augment = RandAugment(n=self.rand_augment_num_ops, m=int(self.rand_augment_magnitude))

    @property
    def mixes(self) -> bool:
        return self.mixup + self.cutmix > 0

    def augmented(self, pixels: torch.Tensor, draw: int) -> torch.Tensor:
        """RandAugment of one image, uint8 `(3, height, width)`."""
        if self._rand_augment is None:
            return pixels
        with seeded_by(self.seed, draw, stream=AUGMENTATION):  # the library draws from the global generator
            changed = self._rand_augment(pixels[None].float() / 255)[0]
        return (255 * changed.clamp(0, 1)).round().byte()

    def mixing(self, draw: int, num_images: int, width: int, height: int) -> Mixing | None:
        """
        Which image is mixed into a draw, and how; `None` where none is.

        Args:
            draw (`int`): `epoch * num_images + index`.
            num_images (`int`): of the data set.
            width, height (`int`): of the model's input, in pixels.
        """
        if not self.mixes or num_images == 1:
            return None
        with seeded_by(self.seed, draw, stream=MIXING):
            kind, x, y = torch.rand(3).tolist()
            if kind >= self.mixup + self.cutmix:
                return None
            alpha = self.mixup_alpha if kind < self.mixup else self.cutmix_alpha
            share = float(torch.distributions.Beta(alpha, alpha).sample())
            epoch, index = divmod(draw, num_images)
            partner = epoch * num_images + (index + int(torch.randint(1, num_images, ()))) % num_images
        if kind < self.mixup:
            return Mixing(partner, share, (0, 0, width, height))
        # A rectangle of the image's own shape around a uniform centre.
        half_width, half_height = (side * math.sqrt(share) / 2 for side in (width, height))
        horizontal, vertical = (
            [min(max(round(center * side + step), 0), side) for step in (-half, half)]
            for center, side, half in ((x, width, half_width), (y, height, half_height))
        )
        box = (horizontal[0], vertical[0], horizontal[1], vertical[1])
        return Mixing(partner, 1.0, box) if box[0] < box[2] and box[1] < box[3] else None
