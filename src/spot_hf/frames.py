"""The map between the two frames of relative coordinates, which `image_processing_spot_vit.py` describes."""

from typing import Any

import numpy as np
import torch
from transformers.image_transforms import get_resize_output_image_size, get_size_with_aspect_ratio
from transformers.image_utils import SizeDict, get_image_size_for_max_height_width


DEVICES_WITHOUT_FLOAT64 = ("mps",)


class Frame:
    """`model = image * scale + offset`, per axis `(x, y)`, in relative units; computed in float64, on the CPU for tensors on
    devices that have none.

    Args:
        resized_size (`tuple[int, int]`): `(width, height)` in pixels of the image after the recipe's resize.
        model_size (`tuple[int, int]`): of the part of it that the model sees.
        crop_offset (`tuple[int, int]`): `(left, top)`, in the same pixels, where it begins; below 0 where the crop pads.
    """

    def __init__(self, resized_size: tuple[int, int], model_size: tuple[int, int], crop_offset: tuple[int, int]):
        self.resized_size, self.model_size, self.crop_offset = resized_size, model_size, crop_offset
        (width, height), (left, top) = model_size, crop_offset
        self.scale = np.array([resized_size[0] / width, resized_size[1] / height])
        self.offset = np.array([-left / width, -top / height])

    @property
    def pads(self) -> bool:
        """Whether the model sees more than the image."""
        axes = zip(self.crop_offset, self.model_size, self.resized_size, strict=True)
        return any(offset < 0 or offset + crop > size for offset, crop, size in axes)

    def to_model(self, coordinates):
        return self._apply(coordinates, lambda c, scale, offset: c * scale + offset)

    def to_image(self, coordinates):
        return self._apply(coordinates, lambda c, scale, offset: (c - offset) / scale)

    def _apply(self, coordinates, function):
        if isinstance(coordinates, torch.Tensor):
            device = "cpu" if coordinates.device.type in DEVICES_WITHOUT_FLOAT64 else coordinates.device
            scale, offset = torch.tensor(self.scale, device=device), torch.tensor(self.offset, device=device)
            mapped = function(coordinates.to(device).double(), scale, offset)
            return mapped.to(coordinates.dtype).to(coordinates.device)
        coordinates = np.asarray(coordinates)
        dtype = coordinates.dtype if coordinates.dtype.kind == "f" else np.float32
        return function(coordinates.astype(np.float64), self.scale, self.offset).astype(dtype)

    def crop_map(self, saliency: np.ndarray) -> torch.Tensor:
        """A map over the original image to a map `(height, width)` over the model's: the value under each pixel."""
        width, height = self.model_size
        x = self.to_image(np.stack([(np.arange(width) + 0.5) / width, np.zeros(width)], axis=-1))[:, 0]
        y = self.to_image(np.stack([np.zeros(height), (np.arange(height) + 0.5) / height], axis=-1))[:, 1]
        rows = np.floor(y * saliency.shape[0]).clip(0, saliency.shape[0] - 1).astype(int)
        columns = np.floor(x * saliency.shape[1]).clip(0, saliency.shape[1] - 1).astype(int)
        return torch.from_numpy(saliency[rows[:, None], columns[None]])


def resized_size(height: int, width: int, size: SizeDict) -> tuple[int, int]:
    """`(height, width)` after the backends' resize, from the functions that they call."""
    if size.shortest_edge and size.longest_edge:
        return get_size_with_aspect_ratio((height, width), size.shortest_edge, size.longest_edge)
    if size.shortest_edge:
        image = np.broadcast_to(np.uint8(0), (3, height, width))  # only its shape is read
        return get_resize_output_image_size(
            image, size=size.shortest_edge, default_to_square=False, input_data_format="channels_first"
        )
    if size.max_height and size.max_width:
        return get_image_size_for_max_height_width((height, width), size.max_height, size.max_width)
    return size.height, size.width


class FrameMixin:
    """What an image processor knows of frames by its recipe: resize and centre crop."""

    patch_size: int
    do_resize: bool
    do_center_crop: bool
    size: Any
    to_dict: Any
    from_dict: Any

    def to_model_frame(self, coordinates: Any, image_size: tuple[int, int]) -> Any:
        """
        Maps coordinates from the image frame to the model frame, through this processor's resize and crop.

        Args:
            coordinates (`torch.Tensor` or `np.ndarray` of shape `(..., 2)`): `(x, y)` relative to the original image.
            image_size (`tuple[int, int]`): `(width, height)` of the original image in pixels.

        Returns:
            `coordinates`' type and shape: `(x, y)` relative to `pixel_values`; outside [0, 1] where the crop removes them.
        """
        return self._frame(image_size, **self._recipe()).to_model(coordinates)

    def to_image_frame(self, coordinates: Any, image_size: tuple[int, int]) -> Any:
        """The inverse of [`to_model_frame`]: `(x, y)` relative to `pixel_values` in, relative to the original image out."""
        return self._frame(image_size, **self._recipe()).to_image(coordinates)

    @staticmethod
    def coordinates_from_pixels(points: Any, image_size: tuple[int, int]) -> np.ndarray:
        """
        Coordinates of points that are given in pixels of the original image.

        Args:
            points (`torch.Tensor`, `np.ndarray` or nested list of shape `(..., 2)`): `(x, y)` in pixels; 0 is the left or top
                edge, `width` or `height` the other one, as of boxes: the centre of the pixel in column `i` is `i + 0.5`.
            image_size (`tuple[int, int]`): `(width, height)` of the original image in pixels: `PIL.Image.size`.

        Returns:
            `np.ndarray` of shape `(..., 2)`: float32, `(x, y)` in [0, 1], image frame: what [`preprocess`] takes.

        Raises:
            `ValueError`: another shape, or a point outside of the image.
        """
        try:
            array = np.asarray(points, dtype=np.float64)
        except (TypeError, ValueError):
            array = np.empty(0)
        if array.shape[-1:] != (2,) or array.size == 0:
            raise ValueError(f"`points` must have shape (..., 2), as (x, y) in pixels; got {np.shape(array)}")
        flat = array.reshape(-1, 2)
        outside = ~((flat >= 0) & (flat <= np.array(image_size))).all(-1)  # also of NaN
        if outside.any():
            raise ValueError(
                f"`points` must lie in the image, which is {image_size[0]} wide and {image_size[1]} high; got "
                f"{flat[outside.argmax()].tolist()}"
            )
        return (array / np.array(image_size)).astype(np.float32)

    @staticmethod
    def coordinates_to_pixels(coordinates: Any, image_size: tuple[int, int]) -> np.ndarray:
        """The inverse of [`coordinates_from_pixels`]: `(x, y)` in the image frame in, in pixels of the original image out."""
        return np.asarray(coordinates, dtype=np.float32) * np.array(image_size, dtype=np.float32)

    def block(self, center: tuple[float, float], rows: int, columns: int, image_size: tuple[int, int]) -> np.ndarray:
        """
        A block of windows that touch each other: a small grid around a point. A window is `patch_size` pixels *of the model's
        input*, more of a photograph that is shrunk for it: 27 of 375 pixels where the short side becomes 224.

        Args:
            center (`tuple[float, float]`): of the block, `(x, y)`, image frame.
            rows (`int`), columns (`int`): of windows.
            image_size (`tuple[int, int]`): `(width, height)` of the original image in pixels.

        Returns:
            `np.ndarray` of shape `(rows * columns, 2)`: float32, `(x, y)` in the image frame, row by row.

        Raises:
            `ValueError`: a number below 1, or a block of which a window's centre lies outside of the image.
        """
        for name, count in (("rows", rows), ("columns", columns)):
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise ValueError(f"`{name}` must be an integer of at least 1; got {count!r}")
        frame = self._frame(image_size, **self._recipe())
        x, y = ((np.arange(count) - (count - 1) / 2) * self.patch_size for count in (columns, rows))
        offsets = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2) / np.array(frame.model_size)
        points = frame.to_image(frame.to_model(np.array(center, dtype=np.float64)) + offsets)
        if points.min() < 0 or points.max() > 1:
            size = (self.patch_size / np.array(frame.model_size) / frame.scale * image_size).tolist()
            raise ValueError(
                f"`center` {tuple(center)} leaves no room for {rows} rows and {columns} columns of windows, each "
                f"{size[0]:.1f} × {size[1]:.1f} pixels of this image"
            )
        return points.astype(np.float32)

    def resized(self, height: int, width: int) -> Any:
        """
        The same recipe for another size of `pixel_values`: resize and crop keep their proportions.

        Args:
            height (`int`), width (`int`): of `pixel_values`, in pixels.

        Returns:
            A new image processor of the same class.

        Raises:
            `ValueError`: the recipe cannot make square images that size: it neither resizes nor crops, or keeps an image's
                proportions.
        """
        settings = self.to_dict()
        old_width, old_height = self.model_size((1000, 1000))
        factors = {"height": height / old_height, "width": width / old_width}
        either = min(factors.values())
        size = {name: round(pixels * factors.get(name, either)) for name, pixels in dict(settings["size"]).items()}
        settings |= {"size": size, "crop_size": {"height": height, "width": width}}
        image_processor = type(self).from_dict(settings)
        if image_processor.model_size((1000, 1000)) != (width, height):
            raise ValueError(
                f"the image processor cannot make images of {height} × {width} pixels: it has do_resize={self.do_resize}, "
                f"size={dict(self.size)} and do_center_crop={self.do_center_crop}"
            )
        return image_processor

    def resized_whole(self, height: int, width: int) -> Any:
        """The same normalization for images of `height` × `width` pixels that show all of the original: squeezed to that size,
        and not cropped. Returns a new image processor of the same class."""
        whole = {"do_resize": True, "do_center_crop": False, "size": {"height": height, "width": width}}
        return type(self).from_dict({**self.to_dict(), **whole})

    def model_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """`(width, height)` in pixels of `pixel_values` for an original image of `(width, height)` pixels."""
        return self._frame(image_size, **self._recipe()).model_size

    def _recipe(self) -> dict[str, Any]:
        names = ("do_resize", "size", "do_center_crop", "crop_size", "do_pad")
        return {name: getattr(self, name, None) for name in names}

    def _frame(self, image_size: tuple[int, int], **recipe) -> Frame:
        width, height = image_size
        if recipe.get("do_pad"):
            raise ValueError("`do_pad` must be false: a padded image has no frame of its own; got true")
        resized_height, resized_width = height, width
        if recipe.get("do_resize"):
            resized_height, resized_width = resized_size(height, width, recipe["size"])
        model_height, model_width, top, left = resized_height, resized_width, 0, 0
        if recipe.get("do_center_crop"):
            model_height, model_width = recipe["crop_size"].height, recipe["crop_size"].width
            top = self._crop_offset(resized_height, model_height)
            left = self._crop_offset(resized_width, model_width)
        return Frame((resized_width, resized_height), (model_width, model_height), (left, top))

    @staticmethod
    def _crop_offset(size: int, crop: int) -> int:
        """Where the centre crop begins in an axis of `size` pixels; below 0 where it pads. The PIL backend's rule."""
        return (size - crop) // 2
