"""Image processor of SpotViT: an ordinary one that also takes, or makes, coordinates, and maps them between frames.

Two frames of relative coordinates `(x, y)`, 0 and 1 being an image's edges:

- *image frame*: relative to the original image. What people write and data sets store, as it does not depend on a model's
  resize and crop.
- *model frame*: relative to `pixel_values`. What the model receives. Points that the crop removes lie outside [0, 1] here.
"""

import os
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn.utils.rnn import pad_sequence
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

from .batch_feature import SpotViTBatchFeature, filled_in, policy_scales, stack_tokens
from .budgets import check_looks, looks_of
from .decoding import LOCAL_FILTERS, DecodedImage, are_few, content_id, decode_image, is_plain, pillow_filter
from .drawing import draw_tokens, tokens_of
from .frames import Frame
from .input_checks import (
    FARTHEST,
    boxes_to_map,
    check_boxes,
    check_coordinates,
    check_decode,
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
)
from .segmentation_maps import SegmentationMapMixin, check_segmentation_maps
from .windows import WindowRegions, sample_windows


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
        One id per image for random placements; by default a digest of the image's pixels, as they were decoded.
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
    decode (`str`, *optional*, defaults to `"exact"`):
        How much of a file is decoded: `"exact"`: all pixels; or `"scaled"`: a JPEG at 1/2, 1/4 or 1/8 of its size, as small as
        is no smaller than what it is resized to. Images that were decoded before stay as they are.
    segmentation_maps (`PIL.Image`, `torch.Tensor`, `np.ndarray` or a list of these, *optional*):
        One map of class numbers `(height, width)` per image, of the image's size.
    return_windows (`bool`, *optional*, defaults to `False`):
        Return the tokens' `windows` in place of `pixel_values`: where they are few and of one patch's size, the rest of the
        image is not resized. Windows of samples one pixel apart that repeat border pixels, as of all models but those from
        released SPoT checkpoints.
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
    decode: str
    return_windows: bool | None
    segmentation_maps: Any


# ---------------------------------------------------------------------------------------------------------- processor


class SpotViTImageProcessorMixin(SegmentationMapMixin, BaseImageProcessor):
    """What both backends share: all that concerns coordinates."""

    valid_kwargs = SpotViTImageProcessorKwargs
    model_input_names = ["pixel_values", "coordinates", "coordinates_mask", "window_scales", "windows"]
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
    decode = "exact"
    return_windows = None

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
        check_decode(self.decode)
        if self.window_scales is not None:
            check_scale_policy(self.window_scales)

    def preprocess(self, images, segmentation_maps=None, *args, **kwargs) -> SpotViTBatchFeature:
        """
        Prepares images, and their coordinates.

        Args:
            images: an image or a list of images: `PIL.Image`, `np.ndarray`, `torch.Tensor`, path, URL, or what [`open_image`]
                returns.
            segmentation_maps, coordinates, num_tokens, placement, seed, image_ids, saliency, boxes, window_scales, outside,
                patch_size, decode, return_windows: see [`SpotViTImageProcessorKwargs`]. `num_tokens`, `placement`, `seed`,
                `window_scales` (a number or `"cover"`), `outside`, `patch_size` and `decode` default to what
                `preprocessor_config.json` says. Without any of them the model uses its full grid.
            return_tensors (`str`, *optional*): `"pt"` or `"np"`.
            kwargs: any other keyword of a transformers image processor (`size`, `do_center_crop`, ...).

        Returns:
            [`SpotViTBatchFeature`]: `pixel_values` `(batch_size, 3, height, width)`; where tokens are placed, `coordinates`
            `(batch_size, num_tokens, 2)`, float32, `(x, y)`, model frame; where counts differ between images,
            `coordinates_mask` `(batch_size, num_tokens)`, bool, false for padding; and where not all of them are 1,
            `window_scales` `(batch_size, num_tokens)`, float32. With `return_windows`, in place of `pixel_values`, `windows`
            `(batch_size, num_tokens, 3, patch_size, patch_size)`, float32. With `segmentation_maps`, `labels` `(batch_size,
            height, width)`, int64: the class under each pixel of `pixel_values`.

        Raises:
            `ValueError`: any input that is not as described, by name, before any image is processed.
        """
        check_outside(kwargs.get("outside", self.outside))
        if segmentation_maps is not None:
            kwargs["segmentation_maps"] = check_segmentation_maps(segmentation_maps)
        if kwargs.get("decode") is None:
            kwargs.pop("decode", None)  # the saved one
        else:
            check_decode(kwargs["decode"])
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
            if placement is None and (kwargs.get("return_windows", self.return_windows) or scales not in (None, COVER)):
                kwargs["placement"] = "grid"  # all of its windows are cut out, or have a size, too
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
        decode="exact",
        return_windows=False,
        segmentation_maps=None,
        return_tensors=None,
        **kwargs,
    ) -> SpotViTBatchFeature:
        images = self._prepare(images, decode, **kwargs)
        sizes = [one.size if isinstance(one, DecodedImage) else (one.shape[-1], one.shape[-2]) for one in images]
        is_placed = coordinates is not None or placement is not None or segmentation_maps is not None
        frames = [self._frame(size, **kwargs) for size in sizes] if is_placed or not kwargs.get("do_pad") else []
        if image_ids is not None and (isinstance(image_ids, str) or len(image_ids) != len(images)):
            raise ValueError(f"`image_ids` must hold one id per image, {len(images)}; got {shorten(image_ids)}")
        labels = [] if segmentation_maps is None else self._crop_segmentation_maps(segmentation_maps, sizes, frames)
        sets = scales = maps = None
        pixel_values: list[Any] = []
        policy = window_scales if isinstance(window_scales, (int, float, str)) else None  # of all tokens
        if coordinates is not None:
            sets = self._map_sets(coordinates, frames)
            if policy is not None:
                scales = [policy_scales(policy, len(one), frame, patch_size) for one, frame in zip(sets, frames, strict=True)]
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
            maps = self._crop_saliency(saliency, boxes, sizes, frames, placement)

        if not return_windows or (maps is not None and get_placement(placement).pixels):
            pixel_values = self._pixel_values(images, frames, **kwargs)
        if maps is not None:
            prior = get_placement(placement)
            sets, placed_scales = [], []
            for i, frame in enumerate(frames):
                image_id: Any = None
                if prior.random:
                    image_id = image_ids[i] if image_ids is not None else content_id(images[i])
                if prior.pixels:  # on the CPU, as the generator is: a draw is the same on every device
                    looked_at = torch.as_tensor(pixel_values[i]).cpu()
                else:
                    looked_at = torch.zeros(()).expand(3, *frame.model_size[::-1])  # nothing but its size is read
                looks, own_scales = [], []
                for count in looks_of(num_tokens):  # each as it would be alone
                    generator = None
                    if image_id is not None:
                        generator = generator_for(seed, image_id) if seed is not None else new_generator()
                    placed, own = place_windows(placement, count, looked_at, patch_size, generator, maps[i], policy)
                    looks.append(placed.numpy())
                    own_scales.append(filled_in(own, len(placed)))
                sets.append(np.concatenate(looks))
                placed_scales.append(np.concatenate(own_scales))
            scales = placed_scales if scales is None else scales
        data: dict[str, Any] = {} if return_windows else {"pixel_values": pixel_values}
        if return_windows:
            assert sets is not None
            windows = []
            for i, (one, frame) in enumerate(zip(sets, frames, strict=True)):
                seen = torch.as_tensor(pixel_values[i]) if pixel_values else None
                windows.append(self._windows(images[i], seen, frame, one, scales[i] if scales else None, patch_size, **kwargs))
            data["windows"] = pad_sequence(windows, batch_first=True)
        if segmentation_maps is not None:
            data["labels"] = labels
        if sets is not None:
            data.update(stack_tokens(sets, scales, like=next(iter(data.values()))[0]))
        return SpotViTBatchFeature(data=data, tensor_type=return_tensors)

    # ------------------------------------------------------------------------------------------------------- pixels

    def open_image(self, image: Any, timeout: float | None = None, decode: str | None = None) -> Image.Image | DecodedImage:
        """
        Reads and decodes an image, upright and in RGB, as this processor's recipe needs it.

        Args:
            image (`str`, `Path`, `bytes` or file object): a path, URL or base64 text, or an image file's content.
            timeout (`float`, *optional*): of a URL, in seconds.
            decode (`str`, *optional*): see [`SpotViTImageProcessorKwargs`].

        Returns:
            `PIL.Image`: all of it; or, of a file with `decode="scaled"`, [`DecodedImage`], which knows the size of the whole.
        """
        decode = self.decode if decode is None else decode
        check_decode(decode)
        return self._open(image, timeout, decode, self._recipe())

    def _open(self, image: Any, timeout: float | None, decode: str, recipe: dict[str, Any]) -> Image.Image | DecodedImage:
        is_text = isinstance(image, (str, Path))
        is_url = is_text and str(image).startswith(("http://", "https://"))
        # Not `Path.is_file`, which base64 text is too long for.
        is_file = os.path.isfile(image) if is_text else isinstance(image, bytes) or hasattr(image, "read")
        if is_url or not is_file:
            return load_image(str(image) if is_text else image, timeout=timeout)
        opened = Image.open(BytesIO(image) if isinstance(image, bytes) else image)
        if decode == "exact":
            return decode_image(opened).pixels

        def resized_size(size: tuple[int, int]) -> tuple[int, int]:
            frame = self._frame(size, **recipe)
            return size if frame.pads else frame.resized_size

        return decode_image(opened, resized_size)

    def _prepare(self, images: Any, decode: str, **kwargs) -> list[Any]:
        """Each image as it came from its file, where there is nothing to convert; or as the backend prepares it,
        `(num_channels, height, width)`."""
        given = images if isinstance(images, (list, tuple)) else [images]
        if given and all(isinstance(one, (list, tuple)) for one in given):
            given = [one for several in given for one in several]
        if decode == "scaled":
            given = [self._open(one, None, decode, kwargs) if isinstance(one, str) else one for one in given]
        if all(isinstance(one, DecodedImage) or is_plain(one) for one in given):
            return [one if isinstance(one, DecodedImage) else DecodedImage.of(one) for one in given]
        if any(isinstance(one, DecodedImage) for one in given):
            return [self._prepare(one, decode, **kwargs)[0] for one in given]
        return self._prepare_image_like_inputs(given if decode == "scaled" else images, **kwargs)

    def _pixel_values(self, images: list[Any], frames: list[Frame], **kwargs) -> list[Any]:
        """Of each image `(num_channels, height, width)`, as the model sees it. What is Pillow's and is resized by Pillow in
        any case, or was not decoded whole, never becomes an array of all of its pixels."""
        found: list[Any] = [None] * len(images)
        resized = [i for i, one in enumerate(images) if frames and self._is_resized_by_pillow(one, frames[i])]
        rest = sorted({*range(len(images))} - {*resized})
        if resized:
            seen = [images[i].resize(frames[i], pillow_filter(kwargs.get("resample"))) for i in resized]
            for i, one in zip(resized, self._normalized(seen, **kwargs), strict=True):
                found[i] = one
        if rest:
            arrays = [
                self.process_image(one.pixels, **kwargs) if isinstance(one, DecodedImage) else one
                for one in (images[i] for i in rest)
            ]
            for i, one in zip(rest, self._preprocess(arrays, return_tensors=None, **kwargs)["pixel_values"], strict=True):
                found[i] = one
        return found

    def _is_resized_by_pillow(self, image: Any, frame: Frame) -> bool:
        return isinstance(image, DecodedImage) and not frame.pads and (image.is_scaled or self.backend == "pil")

    def _normalized(self, images: list[np.ndarray], **kwargs) -> list[Any]:
        """8-bit images of the model's size, rescaled and normalized, in the backend's own way."""
        arrays = [self.process_image(one, **{**kwargs, "input_data_format": "channels_first"}) for one in images]
        kwargs |= {"do_resize": False, "do_center_crop": False}
        return self._preprocess(arrays, return_tensors=None, **kwargs)["pixel_values"]

    def _windows(
        self,
        image: Any,
        seen: torch.Tensor | None,
        frame: Frame,
        coordinates: np.ndarray,
        scales: np.ndarray | None,
        patch_size: int,
        **kwargs,
    ) -> torch.Tensor:
        """The tokens' windows `(num_tokens, num_channels, patch_size, patch_size)` of an image as [`_prepare`] gives it, or of
        its pixel values `seen`, where these are known."""
        width, height = frame.model_size
        has_scales = scales is not None and bool((scales != 1).any())
        resample = pillow_filter(kwargs.get("resample"))
        is_local = seen is None and isinstance(image, DecodedImage) and not (frame.pads or has_scales)
        if is_local and resample in LOCAL_FILTERS and are_few(len(coordinates), patch_size, width, height):
            regions = WindowRegions(torch.from_numpy(coordinates), patch_size, height, width)
            column = image.regions(frame, resample, regions.left.tolist(), regions.top.tolist(), regions.side)
            normalized = torch.as_tensor(self._normalized([column], **kwargs)[0])
            return regions.sample(normalized.unflatten(1, (-1, regions.side)).transpose(0, 1))
        if seen is None:
            seen = torch.as_tensor(self._pixel_values([image], [frame], **kwargs)[0])
        tokens = torch.from_numpy(coordinates)[None].to(seen.device)
        sizes = torch.from_numpy(scales)[None].to(seen.device) if has_scales else None  # type: ignore[arg-type]
        return sample_windows(seen[None], tokens, patch_size, sizes)[0]

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
        saliency: Any, boxes: Any, sizes: list[tuple[int, int]], frames: list["Frame"], placement: Any
    ) -> list[torch.Tensor | None]:
        """The saliency map of each image over what the model sees of it; none where the placement needs none."""
        if not get_placement(placement).saliency:
            return [None] * len(sizes)
        if boxes is not None:
            name, given = "boxes", check_boxes(boxes, len(sizes))
            maps = [boxes_to_map(one, sizes[i], f"`boxes` of image {i}") for i, one in enumerate(given)]
        elif saliency is not None:
            name, maps = "saliency", check_saliency(saliency, len(sizes))
        else:
            raise ValueError(f"`saliency` is needed by placement={placement!r}: one map per image, or `boxes`; got none")
        cropped: list[torch.Tensor | None] = []
        for i, (one, size, frame) in enumerate(zip(maps, sizes, frames, strict=True)):
            seen = _crop_saliency_of(i, one, size, frame)
            if not seen.any():
                raise ValueError(f"`{name}` of image {i} must not be zero in all of the model's crop")
            cropped.append(seen)
        return cropped

    # ------------------------------------------------------------------------------------------- pictures and other recipes

    def draw(self, image: Any, inputs: Any = None, *, index: int = 0) -> Image.Image:
        """
        A picture of what the model sees: the image, dimmed where no token looks, with windows and their centres.

        Args:
            image: the original one: `PIL.Image`, path, URL, or what [`open_image`] returned.
            inputs (`dict`, *optional*): what this processor returned for it; without coordinates, or where not given, the full
                grid.
            index (`int`, *optional*, defaults to 0): which image of `inputs` it is.

        Returns:
            `PIL.Image`: all of the image, also what the crop removes; an image below 448 pixels is enlarged. A file is shown
            upright, as its EXIF orientation says, and an image as it is: as the processor takes them.

        Raises:
            `ValueError`: `inputs` has no such index.
        """
        if not isinstance(image, (Image.Image, DecodedImage)):
            image = load_image(str(image))
        frame = self._frame(image.size, **self._recipe())
        image = image.pixels if isinstance(image, DecodedImage) else image
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
