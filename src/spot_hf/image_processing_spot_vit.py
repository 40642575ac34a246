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
from PIL import Image
from transformers import BatchFeature
from transformers.image_processing_backends import PilBackend, TorchvisionBackend
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import (
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    PILImageResampling,
    load_image,
)
from transformers.processing_utils import ImagesKwargs
from transformers.utils import is_torchvision_available

from .budgets import check_looks, looks_of
from .drawing import draw_tokens, tokens_of
from .frames import Frame, coordinates_from_pixels, resized_size
from .input_checks import (
    FARTHEST,
    boxes_to_map,
    check_boxes,
    check_coordinates,
    check_outside,
    check_saliency,
    check_window_scales,
    expand_window_scales,
    inside_image,
    shorten,
)
from .placement import (
    COVER,
    PLACEMENTS,
    check_placement,
    check_scale_policy,
    check_takes_saliency,
    generator_for,
    get_placement,
    grid,
    new_generator,
    place_windows,
    scales_of,
)


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
    num_tokens (`int` or `list[int]`, *optional*):
        Number of tokens to place, where no coordinates are given. Several, ascending: for a look with each in turn, placed one
        after another, as a model takes them with the same `num_tokens`.
    placement (`str` or `Callable`, *optional*):
        The spatial prior that places them: a name of `PLACEMENTS`, `module:function`, or a function, as
        [`register_placement`] takes it. Where only `num_tokens` is given, `"isotropic"`, or, with a saliency map or boxes,
        `"salient"`.
    seed (`int` or `None`, *optional*, defaults to 0):
        Seed of random placements. A draw depends on the seed and the image's id alone: **the same image gets the same
        positions each time**, also in every epoch of a training. There, give `seed=epoch`; or `seed=None`: a new draw at each
        call, from torch's global generator.
    image_ids (`list` of `str` or `int`, *optional*):
        One id per image for random placements; by default a digest of the image's pixels.
    saliency (`torch.Tensor`, `np.ndarray` or nested list, *optional*):
        One map `(rows, columns)` per image over the whole original image, no larger than it: not negative, not all zero.
        For the placements `"salient"`, `"inverse_salient"` and `"foveated"`.
    boxes (`torch.Tensor`, `np.ndarray` or nested list, *optional*):
        Instead of a saliency map, `[x_min, y_min, x_max, y_max]` in pixels of the original image, 0 being its left or top
        edge: for one image a box `(4,)` or several `(num_boxes, 4)`, for a list of images as many of these. What lies in a
        box is salient.
    window_scales (`float`, `str`, `torch.Tensor`, `np.ndarray` or nested list, *optional*):
        Sizes of the tokens' windows in patches, above 0: one for all, one per token `(num_tokens,)`, or one such list per
        image; or `"cover"`: as large as makes the windows' areas sum to the image's. Where not given, those of the
        placement, which the foveated ones have, or 1. With `"cover"`, a foveated placement keeps its own, which cover.
    outside (`str`, *optional*, defaults to `"warn"`):
        What becomes of `coordinates` that the centre crop removes: `"warn"`: they stay, see repeated border pixels, and a
        warning counts them; `"drop"`; or `"error"`.
    patch_size (`int`, *optional*, defaults to 16):
        The model's patch size in pixels: its grid.
    """

    coordinates: Any
    num_tokens: int | list[int] | None
    placement: Any
    seed: int | None
    image_ids: Any
    saliency: Any
    boxes: Any
    window_scales: Any
    outside: str
    patch_size: int


# ---------------------------------------------------------------------------------------------------------- processor


class SpotViTImageProcessorMixin(BaseImageProcessor):
    """What both backends share: all that concerns coordinates."""

    valid_kwargs = SpotViTImageProcessorKwargs
    model_input_names = ["pixel_values", "coordinates", "coordinates_mask", "window_scales"]
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
    outside = "warn"
    window_scales = None

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        # What is saved, or given to `from_pretrained`. Names alone: a config from the Hub must not import anything.
        if self.placement is not None and self.placement not in PLACEMENTS:
            raise ValueError(
                f"`placement` must be one of {', '.join(PLACEMENTS)}, or registered by `register_placement` before it is "
                f"loaded; got {self.placement!r}"
            )
        if self.num_tokens is not None:
            check_placement("isotropic", self.num_tokens)
        check_outside(self.outside)
        if self.window_scales is not None:
            check_scale_policy(self.window_scales)

    def preprocess(self, images, *args, **kwargs) -> SpotViTBatchFeature:
        """
        Prepares images, and their coordinates.

        Args:
            images: an image or a list of images: `PIL.Image`, `np.ndarray`, `torch.Tensor`, path or URL.
            coordinates, num_tokens, placement, seed, image_ids, saliency, boxes, window_scales, outside, patch_size: see
                [`SpotViTImageProcessorKwargs`]. `num_tokens`, `placement`, `seed`, `window_scales` (a number or `"cover"`),
                `outside` and `patch_size` default to what `preprocessor_config.json` says. Without any of them the model
                uses its full grid.
            return_tensors (`str`, *optional*): `"pt"` or `"np"`.
            kwargs: any other keyword of a transformers image processor (`size`, `do_center_crop`, ...).

        Returns:
            [`SpotViTBatchFeature`]: `pixel_values` `(batch_size, 3, height, width)`; where tokens are placed, `coordinates`
            `(batch_size, num_tokens, 2)`, float32, `(x, y)`, model frame; where counts differ between images,
            `coordinates_mask` `(batch_size, num_tokens)`, bool, false for padding; and where not all of them are 1,
            `window_scales` `(batch_size, num_tokens)`, float32.

        Raises:
            `ValueError`: any input that is not as described, by name, before any image is processed.
        """
        check_outside(kwargs.get("outside", self.outside))
        if kwargs.get("window_scales") is None:
            kwargs.pop("window_scales", None)  # the saved one
        else:
            kwargs["window_scales"] = check_window_scales(kwargs["window_scales"])
        salient = [name for name in ("saliency", "boxes") if kwargs.get(name) is not None]
        if len(salient) == 2:
            raise ValueError("`saliency` and `boxes` exclude each other; got both")
        if kwargs.get("coordinates") is not None:
            for name in ("num_tokens", "placement"):
                if kwargs.get(name) is not None:
                    raise ValueError(f"`coordinates` and `{name}` exclude each other; got both ({name}={kwargs[name]!r})")
            if salient:
                raise ValueError(f"`coordinates` and `{salient[0]}` exclude each other; got both")
            kwargs["coordinates"] = check_coordinates(kwargs["coordinates"])
        else:
            kwargs.update(self._resolve_placement(kwargs.get("num_tokens"), kwargs.get("placement"), bool(salient)))
            placement = kwargs["placement"]
            if salient:
                check_takes_saliency(salient[0], placement)
            scales = kwargs.get("window_scales", self.window_scales)
            if placement is None and scales is not None and scales != COVER:
                kwargs["placement"] = "grid"  # all of its windows have a size, too
        return super().preprocess(images, *args, **kwargs)

    def _resolve_placement(self, num_tokens: int | list[int] | None, placement: Any, salient: bool) -> dict[str, Any]:
        """Fills in the saved defaults, and checks the result as far as it can be without an image."""
        if placement is None:
            placement = self.placement
            if salient and (placement is None or not get_placement(placement).saliency):
                placement = "salient"
            elif placement is None and (num_tokens is not None or self.num_tokens is not None):
                placement = "isotropic"
        if num_tokens is None and placement != "grid":
            num_tokens = self.num_tokens
        if placement is not None:
            if isinstance(num_tokens, (list, tuple)):
                check_looks(num_tokens)
            for count in looks_of(num_tokens):
                check_placement(placement, count)
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
        boxes=None,
        window_scales=None,
        outside="warn",
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
        sets = scales = maps = None
        policy = window_scales if isinstance(window_scales, (int, float, str)) else None  # of all tokens
        if coordinates is not None:
            sets = self._map_sets(coordinates, frames)
            if policy is not None:
                scales = [_scales_of(policy, len(one), frame, patch_size) for one, frame in zip(sets, frames, strict=True)]
            elif window_scales is not None:
                scales = expand_window_scales(window_scales, list(map(len, sets)))
            kept = inside_image(sets, outside)
            # Beyond a crop of an extreme image, the border's pixels go on and on.
            sets = [one[keep].clip(-FARTHEST, FARTHEST) for one, keep in zip(sets, kept, strict=True)]
            scales = None if scales is None else [one[keep] for one, keep in zip(scales, kept, strict=True)]
        elif placement is not None:
            cells = [(frame.model_size[1] // patch_size) * (frame.model_size[0] // patch_size) for frame in frames]
            for num_cells in cells:
                for count in looks_of(num_tokens):
                    check_placement(placement, count, num_cells)
            if window_scales is not None and policy is None:
                total = sum(filter(None, looks_of(num_tokens)))
                scales = expand_window_scales(window_scales, [total or num_cells for num_cells in cells])
            maps = self._crop_saliency(saliency, boxes, images, frames, placement)

        data = dict(self._preprocess(images, *args, return_tensors=None, **kwargs))
        if maps is not None:
            sets, placed_scales = [], []
            for i, image in enumerate(images):
                image_id: Any = None
                if get_placement(placement).random:
                    image_id = image_ids[i] if image_ids is not None else _content_id(image)
                # On the CPU, as the generator is: a draw is the same on every device.
                pixel_values = torch.as_tensor(data["pixel_values"][i]).cpu()
                looks, own_scales = [], []
                for count in looks_of(num_tokens):  # each as it would be alone
                    generator = None
                    if image_id is not None:
                        generator = generator_for(seed, image_id) if seed is not None else new_generator()
                    placed, own = place_windows(placement, count, pixel_values, patch_size, generator, maps[i], policy)
                    looks.append(placed.numpy())
                    own_scales.append(_filled_in(own, len(placed)))
                sets.append(np.concatenate(looks))
                placed_scales.append(np.concatenate(own_scales))
            scales = placed_scales if scales is None else scales
        if sets is not None:
            data.update(_stack(sets, scales, like=data["pixel_values"][0]))
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
    def _crop_saliency(
        saliency: Any, boxes: Any, images: list, frames: list["Frame"], placement: Any
    ) -> list[torch.Tensor | None]:
        """The saliency map of each image over what the model sees of it; none where the placement needs none."""
        if not get_placement(placement).saliency:
            return [None] * len(images)
        sizes = [(image.shape[-1], image.shape[-2]) for image in images]
        if boxes is not None:
            name, given = "boxes", check_boxes(boxes, len(images))
            maps = [boxes_to_map(one, sizes[i], f"`boxes` of image {i}") for i, one in enumerate(given)]
        elif saliency is not None:
            name, maps = "saliency", check_saliency(saliency, len(images))
        else:
            raise ValueError(f"`saliency` is needed by placement={placement!r}: one map per image, or `boxes`; got none")
        cropped: list[torch.Tensor | None] = []
        for i, (one, size, frame) in enumerate(zip(maps, sizes, frames, strict=True)):
            seen = _crop_saliency_of(i, one, size, frame)
            if not seen.any():
                raise ValueError(f"`{name}` of image {i} must not be zero in all of the model's crop")
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
        return coordinates_from_pixels(points, image_size)

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

    def draw(self, image: Any, inputs: Any = None, *, index: int = 0) -> Image.Image:
        """
        A picture of what the model sees: the image, dimmed where no token looks, with windows and their centres.

        Args:
            image: the original one: `PIL.Image`, path or URL.
            inputs (`dict`, *optional*): what this processor returned for it; without coordinates, or where not given, the full
                grid.
            index (`int`, *optional*, defaults to 0): which image of `inputs` it is.

        Returns:
            `PIL.Image`: all of the image, also what the crop removes; an image below 448 pixels is enlarged. A file is shown
            upright, as its EXIF orientation says, and an image as it is: as the processor takes them.

        Raises:
            `ValueError`: `inputs` has no such index.
        """
        image = image if isinstance(image, Image.Image) else load_image(str(image))
        frame = self._frame(image.size, **self._recipe())
        coordinates, scales = tokens_of(inputs or {}, index)
        if coordinates is None:
            width, height = frame.model_size
            coordinates = grid(height, width, self.patch_size).numpy()
        return draw_tokens(image, coordinates, frame, self.patch_size, scales)

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


def _scales_of(policy: float | str, num_tokens: int, frame: Frame, patch_size: int) -> np.ndarray:
    """Of all tokens of an image, by a number or `"cover"`: float32 `(num_tokens,)`."""
    width, height = frame.model_size
    return _filled_in(scales_of(policy, num_tokens, height, width, patch_size), num_tokens)


def _filled_in(scales: torch.Tensor | None, num_tokens: int) -> np.ndarray:
    """1 where no scales are given."""
    return np.ones(num_tokens, dtype=np.float32) if scales is None else scales.numpy()


def _content_id(image: np.ndarray | torch.Tensor) -> str:
    """An image's id where none is given: a digest of its decoded pixels, the same in both backends."""
    array = np.ascontiguousarray(image.cpu().numpy() if isinstance(image, torch.Tensor) else image)
    return hashlib.blake2b(array.tobytes(), digest_size=16, person=str(array.shape).encode()[:16]).hexdigest()


def _stack(sets: list[np.ndarray], scales: list[np.ndarray] | None, like: Any) -> dict[str, Any]:
    """One array, padded with a mask where token counts differ; on the device of `like`, where that is a tensor. Window scales
    where they are not all 1."""
    counts = np.array([len(one) for one in sets])
    coordinates = np.full((len(sets), counts.max(), 2), 0.5, dtype=np.float32)
    mask = np.arange(counts.max())[None] < counts[:, None]
    coordinates[mask] = np.concatenate(sets)
    arrays = {"coordinates": coordinates} if mask.all() else {"coordinates": coordinates, "coordinates_mask": mask}
    if scales is not None and any((one != 1).any() for one in scales):
        arrays["window_scales"] = np.ones(mask.shape, dtype=np.float32)
        arrays["window_scales"][mask] = np.concatenate(scales)
    if isinstance(like, torch.Tensor):
        return {name: torch.from_numpy(array).to(like.device) for name, array in arrays.items()}
    return arrays


class SpotViTImageProcessorPil(SpotViTImageProcessorMixin, PilBackend):
    """SpotViT's image processor on PIL and NumPy: needs no torchvision."""

    def _preprocess(self, images, *args, do_rescale, rescale_factor, do_normalize, image_mean, image_std, **kwargs):
        scaling = {"do_rescale": do_rescale, "rescale_factor": rescale_factor}
        normalizing = {"do_normalize": do_normalize, "image_mean": image_mean, "image_std": image_std}
        if not (do_rescale or do_normalize) or any(image.dtype != np.uint8 for image in images):
            return super()._preprocess(images, *args, **scaling, **normalizing, **kwargs)
        # Of 8-bit pixels there are 256 values per channel to compute, and the rest is looking up: the same to the last bit.
        return_tensors = kwargs.pop("return_tensors", None)
        scaling["do_rescale"] = normalizing["do_normalize"] = False
        prepared = super()._preprocess(images, *args, **scaling, **normalizing, **kwargs, return_tensors=None)["pixel_values"]
        values = np.arange(256, dtype=np.uint8)[None]
        tables = {}
        for num_channels in {len(image) for image in prepared}:
            table = np.broadcast_to(values, (num_channels, 1, 256))
            if do_rescale:
                table = self.rescale(table, rescale_factor)
            if do_normalize:
                table = self.normalize(table, image_mean, image_std)
            tables[num_channels] = table[:, 0]
        pixel_values = [
            np.stack([np.take(of_channel, channel) for of_channel, channel in zip(tables[len(image)], image, strict=True)])
            for image in prepared
        ]
        return BatchFeature(data={"pixel_values": pixel_values}, tensor_type=return_tensors)


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
