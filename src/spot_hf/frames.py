"""The map between the two frames of relative coordinates, which `image_processing_spot_vit.py` describes."""

import numpy as np
import torch
from transformers.image_transforms import get_resize_output_image_size, get_size_with_aspect_ratio
from transformers.image_utils import SizeDict, get_image_size_for_max_height_width


DEVICES_WITHOUT_FLOAT64 = ("mps",)


class Frame:
    """`model = image * scale + offset`, per axis `(x, y)`, in relative units; computed in float64, on the CPU for tensors on
    devices that have none."""

    def __init__(self, model_size: tuple[int, int], scale: np.ndarray, offset: np.ndarray):
        self.model_size, self.scale, self.offset = model_size, scale, offset

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


def coordinates_from_pixels(points, image_size: tuple[int, int]) -> np.ndarray:
    """Of [`SpotViTImageProcessor.coordinates_from_pixels`]."""
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
