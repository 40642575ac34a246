"""Positions of the released SPoT code, read into this package's coordinates and coordinate data sets."""

from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import torch
from PIL import Image

from ..coordinates.schema import coordinate_features
from ..data.encoded import encoded, encoded_image
from .errors import ConversionError
from .sources import load_safely


def coordinates_from_official(mu: torch.Tensor, image_size: tuple[int, int]) -> torch.Tensor:
    """
    Positions of the released SPoT code as coordinates of this package, in the model frame.

    Args:
        mu (`torch.Tensor` of shape `(..., 2)`): `(y, x)`, a pixel's index divided by the image's size: 0 is the *centre* of
            the first pixel.
        image_size (`tuple[int, int]`): `(width, height)` in pixels of the image that the model sees.

    Returns:
        `torch.Tensor` of shape `(..., 2)`: `(x, y)`, 0 and 1 being the image's edges. Computed in float64, returned in `mu`'s
        dtype.
    """
    half_pixel = 0.5 / torch.tensor(image_size, dtype=torch.float64, device=mu.device)
    return (mu.flip(-1).double() + half_pixel).to(mu.dtype)


def coordinates_to_official(coordinates: torch.Tensor, image_size: tuple[int, int]) -> torch.Tensor:
    """The inverse of [`coordinates_from_official`]: `(x, y)` relative to `pixel_values`, to the released code's `(y, x)`."""
    half_pixel = 0.5 / torch.tensor(image_size, dtype=torch.float64, device=coordinates.device)
    return (coordinates.double() - half_pixel).to(coordinates.dtype).flip(-1)


ORIENTATION = 0x0112  # EXIF


def upright(coordinates: torch.Tensor, orientation: int) -> torch.Tensor:
    """Relative `(x, y)` in an image as it is stored, to those in the image turned as its EXIF orientation (1 to 8) says."""
    x, y = coordinates.unbind(-1)
    turned = {
        2: (1 - x, y),
        3: (1 - x, 1 - y),
        4: (x, 1 - y),
        5: (y, x),
        6: (1 - y, x),
        7: (1 - y, 1 - x),
        8: (y, 1 - x),
    }.get(orientation, (x, y))
    return torch.stack(turned, dim=-1)


def convert_official_coordinates(
    file: str | Path, images: datasets.Dataset, image_processor: Any, split: str = "validation"
) -> datasets.Dataset:
    """
    A file of positions that the released SPoT code saved, as rows of a coordinate data set. What the file does not say
    (losses and predictions) is null.

    Args:
        file (`str`): a tensor `(num_images, steps + 1, num_tokens, 2)` written by `torch.save`: the positions `(y, x)` after
            each step of the oracle, of all images of a split in their order.
        images (`datasets.Dataset`): that split, with the columns `image` and `label`.
        image_processor ([`SpotViTImageProcessor`]): resize and crop of the images in that run.
        split (`str`): the split's name, for the ids of images without a file name.

    Returns:
        `datasets.Dataset`: `image_id`, `image_index`, `image_sha256`, `image_size`, `label`, `coordinates`,
        `initial_coordinates`, `losses`, `initial_prediction`, `prediction`, `trajectory`; positions in the image frame, those
        that left the image moved to its edge.

    Raises:
        [`ConversionError`]: a pickle that needs more than `weights_only=True`, or a tensor of another shape.
    """
    file = Path(file)
    if not file.is_file():
        raise ConversionError(f"`file` {str(file)!r} does not exist")
    positions = load_safely(file)
    if not isinstance(positions, torch.Tensor) or positions.ndim != 4 or positions.shape[-1] != 2 or 0 in positions.shape:
        found = tuple(positions.shape) if isinstance(positions, torch.Tensor) else type(positions).__name__
        raise ConversionError(f"{file.name} must hold a tensor (num_images, steps + 1, num_tokens, 2); got {found}")
    if len(positions) != len(images):
        raise ConversionError(f"{file.name} holds positions of {len(positions)} images; `images` has {len(images)}")
    num_steps, num_tokens = positions.shape[1:3]
    features = coordinate_features(images.features["label"], num_tokens, trajectory_length=num_steps)
    stored = encoded(images)

    def rows(start: int, stop: int) -> list[dict[str, Any]]:
        found = []
        for index, row in enumerate(stored.select(range(start, stop)), start):
            image = encoded_image(row, index, split)
            with Image.open(BytesIO(image.content)) as file_as_stored:
                stored_size, orientation = file_as_stored.size, file_as_stored.getexif().get(ORIENTATION, 1)
            # The processor says how large the image is that the model sees.
            mapped = coordinates_from_official(positions[index].float(), image_processor.model_size(stored_size))
            trajectory = image_processor.to_image_frame(mapped, stored_size).clamp(0, 1)
            # The released code reads an image as it is stored; `datasets` and the pipelines turn it upright.
            trajectory = upright(trajectory, orientation)
            image_size = stored_size[::-1] if orientation >= 5 else stored_size
            found.append({
                "image_id": image.image_id,
                "image_index": index,
                "image_sha256": image.sha256,
                "image_size": list(image_size),
                "label": image.label,
                "coordinates": trajectory[-1].tolist(),
                "initial_coordinates": trajectory[0].tolist(),
                "losses": None,
                "initial_prediction": None,
                "prediction": None,
                "trajectory": trajectory.half().tolist(),
            })  # fmt: skip
        return found

    # In parts: rows of Python lists are many times larger than the columns that they become.
    parts = [
        datasets.Dataset.from_list(rows(start, min(start + 1000, len(images))), features=features)
        for start in range(0, len(images), 1000)
    ]
    return datasets.concatenate_datasets(parts)
