"""From an image's file to the pixels that a model reads, and no more: a JPEG is decoded at a fraction of its size where the
recipe shrinks it, and a region of the resized image is resized alone. Both are Pillow's own work."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from transformers.image_utils import PILImageResampling

from .frames import Frame


# EXIF orientations: those that swap width and height, and those that flip what is then the width, or the height.
SIDEWAYS, FLIPPED_X, FLIPPED_Y = (5, 6, 7, 8), (2, 3, 6, 7), (3, 4, 7, 8)
# Filters that give a region's pixels whatever box it lies in: with the others, rounding decides whether they read a pixel.
LOCAL_FILTERS = (
    PILImageResampling.BILINEAR,
    PILImageResampling.BICUBIC,
    PILImageResampling.LANCZOS,
    PILImageResampling.HAMMING,
)


@dataclass(frozen=True)
class DecodedImage:
    """
    An upright RGB image, perhaps decoded at a fraction of its size. An image processor and a pipeline take it like any other.

    Attributes:
        pixels (`PIL.Image`): what was decoded.
        size (`tuple[int, int]`): `(width, height)` of the image in its file, upright, in pixels: what boxes, saliency maps and
            coordinates are of.
        extent (`tuple[float, float]`): width and height of the whole image in `pixels`: `size` divided by the fraction, which
            the last row and column of `pixels` can exceed.
        origin (`tuple[float, float]`): `(left, top)` of the whole image in `pixels`: not 0 where turning it upright has put
            these before it.
    """

    pixels: Image.Image
    size: tuple[int, int]
    extent: tuple[float, float]
    origin: tuple[float, float] = (0.0, 0.0)

    @classmethod
    def of(cls, image: Image.Image) -> "DecodedImage":
        return cls(image, image.size, image.size)

    @property
    def is_scaled(self) -> bool:
        return self.extent != self.size

    def resize(self, frame: Frame, resample: int) -> np.ndarray:
        """What the model sees of it, `(num_channels, height, width)`, 8 bits: for a frame whose crop lies in the image. As
        Pillow resizes and crops the whole, to the last bit where it is not scaled."""
        (width, height), (left, top) = frame.model_size, frame.crop_offset
        if self.is_scaled:
            return _channels_first(self._box(frame, resample, left, top, width, height))
        image = self.pixels
        if frame.resized_size != self.size:
            image = image.resize(frame.resized_size, resample=resample)
        return _channels_first(image)[:, top : top + height, left : left + width]

    def regions(self, frame: Frame, resample: int, left: list[int], top: list[int], side: int) -> np.ndarray:
        """
        Parts of what the model sees of it, without the rest: of 8-bit pixels, one in 10,000 differs, by 1, from what
        Pillow makes of the whole.

        Args:
            frame: as in [`resize`].
            resample (`int`): of `LOCAL_FILTERS`.
            left, top (`list[int]`): each region's first column and row, in pixels of what the model sees.
            side (`int`): of a region, in these pixels.

        Returns:
            `np.ndarray` of shape `(num_channels, num_regions * side, side)`, 8 bits: the regions, one below the other.
        """
        column = Image.new(self.pixels.mode, (side, len(left) * side))
        x, y = frame.crop_offset
        for i, (first_column, first_row) in enumerate(zip(left, top, strict=True)):
            column.paste(self._box(frame, resample, first_column + x, first_row + y, side, side), (0, i * side))
        return _channels_first(column)

    def _box(self, frame: Frame, resample: int, left: int, top: int, width: int, height: int) -> Image.Image:
        """Of the resized image, the `width` × `height` pixels from `(left, top)` on."""
        (full_width, full_height), (resized_width, resized_height) = self.extent, frame.resized_size
        (origin_x, origin_y), x, y = self.origin, full_width / resized_width, full_height / resized_height
        right, bottom = min((left + width) * x, full_width), min((top + height) * y, full_height)
        box = (origin_x + left * x, origin_y + top * y, origin_x + right, origin_y + bottom)
        return self.pixels.resize((width, height), resample=resample, box=box)


def pillow_filter(resample: Any) -> int:
    """Of what both backends take: a filter's number, a mode of torchvision's, or none, which is bilinear."""
    if resample is None:
        return PILImageResampling.BILINEAR
    if isinstance(resample, int):
        return resample
    # Exists beside torchvision alone, as its modes do.
    from transformers.image_utils import torch_pil_interpolation_mapping

    return torch_pil_interpolation_mapping.get(resample, PILImageResampling.NEAREST)


def are_few(num_tokens: int, patch_size: int, width: int, height: int) -> bool:
    """Whether resizing so many windows alone, of an image that the model sees with `width` × `height` pixels, takes less time
    than resizing the whole: below half of its area."""
    return patch_size < min(width, height) and 2 * num_tokens * patch_size**2 <= width * height


def is_plain(image: Any) -> bool:
    """Whether it is Pillow's, in RGB, with nothing transparent: there is nothing to convert."""
    return isinstance(image, Image.Image) and image.mode == "RGB" and "transparency" not in image.info


def decode_image(image: Image.Image, resized_size: Callable[[tuple[int, int]], tuple[int, int]] | None = None) -> DecodedImage:
    """
    Decodes an image, upright and in RGB, as `transformers.image_utils.load_image` does.

    Args:
        image (`PIL.Image`): opened and not decoded yet. Nobody else's: it changes.
        resized_size (*optional*): `(width, height)` of an upright image in pixels to what the model's recipe resizes it to: a
            JPEG is decoded at the smallest of libjpeg's fractions, 1/8, 1/4 or 1/2, that is no smaller. Else it is whole.
    """
    size = extent = image.size
    orientation = image.getexif().get(ExifTags.Base.Orientation)
    is_sideways = orientation in SIDEWAYS
    upright = size[::-1] if is_sideways else size
    if resized_size is not None:
        wanted = resized_size(upright)
        drafted = image.draft(None, wanted[::-1] if is_sideways else wanted)  # type: ignore[arg-type]
        extent = size if drafted is None else drafted[1][2:]  # type: ignore[assignment]
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    pixels = image if image.mode == "RGB" else image.convert("RGB")
    width, height = extent[::-1] if is_sideways else extent
    left = pixels.width - width if orientation in FLIPPED_X else 0.0
    top = pixels.height - height if orientation in FLIPPED_Y else 0.0
    return DecodedImage(pixels, upright, (width, height), (left, top))


def content_id(image: np.ndarray | torch.Tensor | DecodedImage) -> str:
    """An image's id where none is given: a digest of its decoded pixels, the same in both backends."""
    if isinstance(image, DecodedImage):
        image = np.moveaxis(np.asarray(image.pixels), -1, 0)
    array = np.ascontiguousarray(image.cpu().numpy() if isinstance(image, torch.Tensor) else image)
    return hashlib.blake2b(array.tobytes(), digest_size=16, person=str(array.shape).encode()[:16]).hexdigest()


def _channels_first(image: Image.Image) -> np.ndarray:
    return np.moveaxis(np.array(image), -1, 0)


__all__ = ["DecodedImage"]
