"""Image processor of SpotViT: an ordinary one that also takes, or makes, coordinates, and maps them between frames.

Two frames of relative coordinates `(x, y)`, 0 and 1 being an image's edges:

- *image frame*: relative to the original image. What people write and data sets store, as it does not depend on a model's
  resize and crop.
- *model frame*: relative to `pixel_values`. What the model receives. Points that the crop removes lie outside [0, 1] here.
"""

import hashlib
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature
from transformers.image_processing_backends import PilBackend, TorchvisionBackend
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import (
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    PILImageResampling,
)
from transformers.processing_utils import ImagesKwargs
from transformers.utils import is_torchvision_available

from .frames import Frame, resized_size
from .input_checks import check_coordinates, check_saliency, shorten
from .placement import PLACEMENTS, check_placement, generator_for, place


# Coordinates keep this precision wherever a model's inputs are cast: bfloat16 moves a position by almost a pixel.
FLOAT32_INPUTS = ("coordinates", "window_scales")


class SpotViTBatchFeature(BatchFeature):
    """A `BatchFeature` whose `to(dtype)` leaves coordinates in float32."""

    def to(self, *args, **kwargs) -> "SpotViTBatchFeature":
        precise = {name: self.data[name] for name in FLOAT32_INPUTS if isinstance(self.data.get(name), torch.Tensor)}
        super().to(*args, **kwargs)
        for name, tensor in precise.items():
            self.data[name] = tensor.to(self.data[name].device)
        return self


class SpotViTImageProcessorKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]
    """
    coordinates (`torch.Tensor`, `np.ndarray` or nested list, *optional*):
        Token positions `(x, y)` in the image frame, in [0, 1]: one set `(num_tokens, 2)` for all images, or one set per
        image, whose token counts may differ.
    num_tokens (`int`, *optional*):
        Number of tokens to place, where no coordinates are given.
    placement (`str`, *optional*):
        The spatial prior that places them, a name of `PLACEMENTS`; `"isotropic"` where only `num_tokens` is given.
    seed (`int`, *optional*, defaults to 0):
        Seed of random placements. A draw depends on the seed and the image's id alone.
    image_ids (`list` of `str` or `int`, *optional*):
        One id per image for random placements; by default a digest of the image's pixels.
    saliency (`torch.Tensor`, `np.ndarray` or nested list, *optional*):
        One map `(rows, columns)` per image over the whole original image, no larger than it: not negative, not all zero.
        For the placements `"salient"` and `"inverse_salient"`.
    patch_size (`int`, *optional*, defaults to 16):
        The model's patch size in pixels: its grid.
    """

    coordinates: Any
    num_tokens: int | None
    placement: str | None
    seed: int | None
    image_ids: Any
    saliency: Any
    patch_size: int


# ---------------------------------------------------------------------------------------------------------- processor


class SpotViTImageProcessorMixin(BaseImageProcessor):
    """What both backends share: all that concerns coordinates."""

    valid_kwargs = SpotViTImageProcessorKwargs
    model_input_names = ["pixel_values", "coordinates", "coordinates_mask"]
    resample = PILImageResampling.BICUBIC
    image_mean = IMAGENET_STANDARD_MEAN
    image_std = IMAGENET_STANDARD_STD
    size = {"height": 224, "width": 224}
    crop_size = {"height": 224, "width": 224}
    do_resize = True
    do_center_crop = False
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True  # or greyscale, CMYK and RGBA files, which ImageNet has, fail
    patch_size = 16
    num_tokens = None
    placement = None
    seed = 0

    def preprocess(self, images, *args, **kwargs) -> SpotViTBatchFeature:
        """
        Prepares images, and their coordinates.

        Args:
            images: an image or a list of images: `PIL.Image`, `np.ndarray`, `torch.Tensor`, path or URL.
            coordinates, num_tokens, placement, seed, image_ids, saliency, patch_size: see
                [`SpotViTImageProcessorKwargs`]. `num_tokens`, `placement`, `seed` and `patch_size` default to what
                `preprocessor_config.json` says. Without any of them the model uses its full grid.
            return_tensors (`str`, *optional*): `"pt"` or `"np"`.
            kwargs: any other keyword of a transformers image processor (`size`, `do_center_crop`, ...).

        Returns:
            [`SpotViTBatchFeature`]: `pixel_values` `(batch_size, 3, height, width)`; where tokens are placed, `coordinates`
            `(batch_size, num_tokens, 2)`, float32, `(x, y)`, model frame; and, where counts differ between images,
            `coordinates_mask` `(batch_size, num_tokens)`, bool, false for padding.

        Raises:
            `ValueError`: any input that is not as described, by name, before any image is processed.
        """
        if kwargs.get("coordinates") is not None:
            for name in ("num_tokens", "placement"):
                if kwargs.get(name) is not None:
                    raise ValueError(f"`coordinates` and `{name}` exclude each other; got both ({name}={kwargs[name]!r})")
            kwargs["coordinates"] = check_coordinates(kwargs["coordinates"])
        else:
            kwargs.update(self._resolve_placement(kwargs.get("num_tokens"), kwargs.get("placement")))
        return super().preprocess(images, *args, **kwargs)

    def _resolve_placement(self, num_tokens: int | None, placement: str | None) -> dict[str, Any]:
        """Fills in the saved defaults, and checks the result as far as it can be without an image."""
        if placement is None:
            placement = self.placement
            if placement is None and (num_tokens is not None or self.num_tokens is not None):
                placement = "isotropic"
        if num_tokens is None and placement != "grid":
            num_tokens = self.num_tokens
        if placement is not None:
            check_placement(placement, num_tokens)
        return {"num_tokens": num_tokens, "placement": placement}

    def _preprocess_image_like_inputs(
        self,
        images,
        *args,
        coordinates=None,
        num_tokens=None,
        placement=None,
        seed=None,
        image_ids=None,
        saliency=None,
        patch_size=None,
        return_tensors=None,
        **kwargs,
    ) -> SpotViTBatchFeature:
        images = self._prepare_image_like_inputs(images, **kwargs)  # each (num_channels, height, width)
        frames = []
        if coordinates is not None or placement is not None:
            frames = [self._frame((image.shape[-1], image.shape[-2]), **kwargs) for image in images]
        if image_ids is not None and (isinstance(image_ids, str) or len(image_ids) != len(images)):
            raise ValueError(f"`image_ids` must hold one id per image, {len(images)}; got {shorten(image_ids)}")
        sets = maps = None
        if coordinates is not None:
            sets = self._map_sets(coordinates, frames)
        elif placement is not None:
            for frame in frames:
                width, height = frame.model_size
                check_placement(placement, num_tokens, (height // patch_size) * (width // patch_size))
            maps = self._crop_saliency(saliency, images, frames, placement)

        data = dict(self._preprocess(images, *args, return_tensors=None, **kwargs))
        if maps is not None:
            sets = []
            for i, image in enumerate(images):
                generator = None
                if PLACEMENTS[placement].random:
                    image_id = image_ids[i] if image_ids is not None else _content_id(image)
                    generator = generator_for(seed if seed is not None else self.seed, image_id)
                # On the CPU, as the generator is: a draw is the same on every device.
                pixel_values = torch.as_tensor(data["pixel_values"][i]).cpu()
                sets.append(place(placement, num_tokens, pixel_values, patch_size, generator, maps[i]).numpy())
        if sets is not None:
            data.update(_stack(sets, like=data["pixel_values"][0]))
        return SpotViTBatchFeature(data=data, tensor_type=return_tensors)

    @staticmethod
    def _map_sets(coordinates: tuple[list[np.ndarray], bool], frames: list["Frame"]) -> list[np.ndarray]:
        """What a person gave, as [`check_coordinates`] read it: one set per image, in the model frame."""
        sets, one_set = coordinates
        if one_set:
            sets = sets * len(frames)
        elif len(sets) != len(frames):
            raise ValueError(
                f"`coordinates` must be one set (num_tokens, 2) for all images or one set per image, {len(frames)}; "
                f"got {len(sets)} sets"
            )
        return [frame.to_model(one) for frame, one in zip(frames, sets, strict=True)]

    @staticmethod
    def _crop_saliency(saliency: Any, images: list, frames: list["Frame"], placement: str) -> list[torch.Tensor | None]:
        """The saliency map of each image over what the model sees of it; none where the placement needs none."""
        if not PLACEMENTS[placement].saliency:
            return [None] * len(images)
        if saliency is None:
            raise ValueError(f"`saliency` is needed by placement={placement!r}: one map per image; got none")
        cropped: list[torch.Tensor | None] = []
        for i, (one, image, frame) in enumerate(zip(check_saliency(saliency, len(images)), images, frames, strict=True)):
            height, width = image.shape[-2:]
            seen = _crop_saliency_of(i, one, (width, height), frame)
            if not seen.any():
                raise ValueError(f"`saliency` of image {i} must not be zero in all of the model's crop")
            cropped.append(seen)
        return cropped

    # ------------------------------------------------------------------------------------------------------- frames

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

    def saliency_to_model_frame(self, saliency: Any, image_size: tuple[int, int]) -> torch.Tensor:
        """
        What the model sees of a saliency map, through this processor's resize and crop.

        Args:
            saliency (`torch.Tensor`, `np.ndarray` or nested list of shape `(rows, columns)`): over the whole original image,
                no larger than it: not negative, not all zero.
            image_size (`tuple[int, int]`): `(width, height)` of the original image in pixels.

        Returns:
            `torch.Tensor` of shape `(height, width)` of `pixel_values`, float64; zero everywhere where the crop removes all
            that is salient.

        Raises:
            `ValueError`: the map is not as described.
        """
        return _crop_saliency_of(0, check_saliency(saliency, 1)[0], image_size, self._frame(image_size, **self._recipe()))

    def model_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """`(width, height)` in pixels of `pixel_values` for an original image of `(width, height)` pixels."""
        return self._frame(image_size, **self._recipe()).model_size

    def resized(self, height: int, width: int) -> "SpotViTImageProcessorMixin":
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

    def _recipe(self) -> dict[str, Any]:
        names = ("do_resize", "size", "do_center_crop", "crop_size", "do_pad")
        return {name: getattr(self, name, None) for name in names}

    def _frame(self, image_size: tuple[int, int], **recipe) -> "Frame":
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
        return Frame(
            model_size=(model_width, model_height),
            scale=np.array([resized_width / model_width, resized_height / model_height]),
            offset=np.array([-left / model_width, -top / model_height]),
        )

    @staticmethod
    def _crop_offset(size: int, crop: int) -> int:
        """Where the centre crop begins in an axis of `size` pixels; below 0 where it pads. The PIL backend's rule."""
        return (size - crop) // 2

    def to_dict(self) -> dict[str, Any]:
        result = super().to_dict()
        result["auto_map"] = {"AutoImageProcessor": dict(AUTO_MAP)}
        return result


def _crop_saliency_of(i: int, saliency: np.ndarray, image_size: tuple[int, int], frame: Frame) -> torch.Tensor:
    """The checked map of image number `i`, over what the model sees of it."""
    width, height = image_size
    if saliency.shape[0] > height or saliency.shape[1] > width:
        raise ValueError(
            f"`saliency` of image {i} must be no larger than the image, (rows, columns) {(height, width)}; "
            f"got {saliency.shape}"
        )
    return frame.crop_map(saliency)


def _content_id(image: np.ndarray | torch.Tensor) -> str:
    """An image's id where none is given: a digest of its decoded pixels, the same in both backends."""
    array = np.ascontiguousarray(image.cpu().numpy() if isinstance(image, torch.Tensor) else image)
    return hashlib.blake2b(array.tobytes(), digest_size=16, person=str(array.shape).encode()[:16]).hexdigest()


def _stack(sets: list[np.ndarray], like: Any) -> dict[str, Any]:
    """One array, padded with a mask where token counts differ; on the device of `like`, where that is a tensor."""
    counts = np.array([len(one) for one in sets])
    coordinates = np.full((len(sets), counts.max(), 2), 0.5, dtype=np.float32)
    mask = np.arange(counts.max())[None] < counts[:, None]
    coordinates[mask] = np.concatenate(sets)
    arrays = {"coordinates": coordinates} if mask.all() else {"coordinates": coordinates, "coordinates_mask": mask}
    if isinstance(like, torch.Tensor):
        return {name: torch.from_numpy(array).to(like.device) for name, array in arrays.items()}
    return arrays


class SpotViTImageProcessorPil(SpotViTImageProcessorMixin, PilBackend):
    """SpotViT's image processor on PIL and NumPy: needs no torchvision."""


if is_torchvision_available():

    class SpotViTImageProcessor(SpotViTImageProcessorMixin, TorchvisionBackend):
        """SpotViT's image processor on torchvision: batched, on any device."""

        @staticmethod
        def _crop_offset(size: int, crop: int) -> int:
            return int((size - crop) / 2)  # rounds towards 0 where it pads

else:
    SpotViTImageProcessor = SpotViTImageProcessorPil  # type: ignore[misc]

AUTO_MAP = {
    "torchvision": "image_processing_spot_vit.SpotViTImageProcessor",
    "pil": "image_processing_spot_vit.SpotViTImageProcessorPil",
}

__all__ = ["SpotViTImageProcessor", "SpotViTImageProcessorPil"]
