"""Images for training: each decoded once, cropped, flipped and augmented in worker processes, sent to the device as bytes.

Which images come when, and what is done to each of them, is a function of the seed, the epoch and the image: the same on any
number of processes and workers, and after an interruption.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import datasets
import numpy as np
import torch
from kornia.augmentation.random_generator import ResizedCropGenerator
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from ..data.encoded import EncodedImage, encoded, encoded_image
from ..data.failures import FailedImage, TooManyFailedImagesError, UnreadableImageError, check_failures
from ..data.labels import LabelMapping
from .augmentation import Augmentation
from .draws import PIXELS, hashed_seed, seeded_by


NO_LABEL = -100  # of an image that could not be read: cross-entropy and accuracy ignore it


class DrawSampler(Sampler[int]):
    """
    All images of a data set in a new order each epoch. Yields *draws*, `epoch * num_images + index`: what an image looks like,
    and where its tokens sit, is drawn by that number.

    Args:
        num_images (`int`): of the data set.
        seed (`int`): of the run.
    """

    def __init__(self, num_images: int, seed: int):
        self.num_images, self.seed, self.epoch = num_images, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_images

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(hashed_seed(self.seed, self.epoch))
        order = torch.randperm(self.num_images, generator=generator)
        yield from (order + self.epoch * self.num_images).tolist()


class TrainingImages(Dataset):
    """
    Images by draw. One that cannot be read is replaced by the next one that can.

    Args:
        images (`datasets.Dataset`): with the columns `image`; `label`, where there are labels; and `coordinates`, `(x, y)`,
            image frame, where images bring their own.
        image_processor: of the model, for the size and the resampling of its images.
        crop_scale (`(float, float)`): range of a crop's share of the image's area; crop_ratio: of its width / height.
        flip (`float`): share of the images that are mirrored left to right.
        augmentation ([`Augmentation`], *optional*): what else is done to pixels.
        seed (`int`): of the run.
        max_failed_share (`float`): where more of the images than this share turn out unreadable in a row,
            [`TooManyFailedImagesError`].
        mapping ([`LabelMapping`], *optional*): from the labels to the model's classes, where these are others.
    """

    def __init__(
        self,
        images: datasets.Dataset,
        image_processor: Any,
        *,
        crop_scale: tuple[float, float] = (0.35, 1.0),
        crop_ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: float = 0.5,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        max_failed_share: float = 0.01,
        mapping: LabelMapping | None = None,
    ):
        if not 0 < crop_scale[0] <= crop_scale[1] <= 1:
            raise ValueError(f"`crop_scale` must be the lowest and the highest share, in (0, 1]; got {list(crop_scale)}")
        if not 0 < crop_ratio[0] <= crop_ratio[1]:
            raise ValueError(f"`crop_ratio` must be the lowest and the highest, above 0; got {list(crop_ratio)}")
        if not 0 <= flip <= 1:
            raise ValueError(f"`flip` must lie in [0, 1]; got {flip}")
        self.images, self.split = encoded(images), str(images.split)
        width, height = image_processor.model_size((1000, 1000))
        self.size, self.resample = (width, height), Image.Resampling(int(image_processor.resample))
        self.crop = ResizedCropGenerator((height, width), crop_scale, crop_ratio)
        self.flip, self.seed = flip, seed
        self.augmentation = augmentation or Augmentation()
        self.max_failed_share, self.mapping = max_failed_share, mapping

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, draw: int) -> dict[str, Any]:
        """
        Returns:
            `dict`: `pixels`, uint8 `(3, height, width)`; `draw`; `failed`, a list of [`FailedImage`]; where given, `labels`
            and `coordinates` `(num_tokens, 2)`, float32, model frame, outside [0, 1] where the crop cut them off. Where
            `augmentation` mixes images with labels also `other_labels`, `mixed_weight` and `mixed_box` `(4,)`, float32: see
            [`Mixing`].
        """
        row, view, pixels, failed = self.view(draw)
        found: dict[str, Any] = {"pixels": pixels, "draw": draw, "failed": failed}
        if row.get("label") is not None:
            found["labels"] = _class_of(row["label"], self.mapping)
        if "coordinates" in row:
            found["coordinates"] = view.positions(torch.tensor(row["coordinates"]))
        if self.augmentation.mixes:
            mixing = self.augmentation.mixing(draw, len(self), *self.size)
            if mixing is not None:
                row, _, others, more = self.view(mixing.partner)
                found.update(pixels=mixing(pixels, others), failed=[*failed, *more])
            if "labels" in found:
                box = (0, 0, 0, 0) if mixing is None else mixing.box
                found["other_labels"] = _class_of(row["label"], self.mapping)
                found["mixed_weight"] = 0.0 if mixing is None else mixing.weight
                found["mixed_box"] = torch.tensor(box, dtype=torch.float32)
        return found

    def view(self, draw: int) -> tuple[dict[str, Any], "View", torch.Tensor, list[FailedImage]]:
        """The row of a draw, how its image is cropped, its pixels, and which images failed."""
        row, image, failed = self._readable(draw % len(self))
        with seeded_by(self.seed, draw, stream=PIXELS):  # the library draws from the global generator
            corners = self.crop(torch.Size((1, 3, image.height, image.width)))["src"][0].tolist()
            flipped = torch.rand(()).item() < self.flip
        # Corners name pixels: the crop ends at the last one's far edges.
        box = (corners[0][0], corners[0][1], corners[2][0] + 1, corners[2][1] + 1)
        view = View(box, flipped, image.size)
        seen = np.asarray(image.resize(self.size, self.resample, box=box))
        seen = seen[:, ::-1] if flipped else seen
        pixels = torch.from_numpy(seen.transpose(2, 0, 1).copy())
        return row, view, self.augmentation.augmented(pixels, draw), failed

    def _readable(self, index: int) -> tuple[dict[str, Any], Image.Image, list[FailedImage]]:
        """The row and the image at an index or, where that cannot be read, the next that can; and which images failed."""
        failed: list[FailedImage] = []
        for step in range(len(self)):
            row = self.images[(index + step) % len(self)]
            image = encoded_image(row, (index + step) % len(self), self.split)
            try:
                return row, image.decode().convert("RGB"), failed
            except UnreadableImageError as error:
                # Rows joined with coordinates are a part of their split, and bring their ids.
                failed.append(replace(image.failed(error), image_id=row.get("image_id", image.image_id)))
                check_failures(failed, len(self), self.max_failed_share)
        raise TooManyFailedImagesError(f"none of {len(self)} images could be read, such as {failed[0]}")


@dataclass(frozen=True)
class View:
    """What of an image is seen: a crop, perhaps mirrored."""

    box: tuple[float, float, float, float]  # left, top, right, bottom in pixels of the image
    flipped: bool
    image_size: tuple[int, int]  # width, height

    def positions(self, positions: torch.Tensor) -> torch.Tensor:
        """`(num_tokens, 2)`, `(x, y)`, image frame to model frame: a position moves with the pixels that it points at."""
        left, top, right, bottom = self.box
        positions = positions * torch.tensor(self.image_size, dtype=torch.float32)
        positions = (positions - torch.tensor([left, top])) / torch.tensor([right - left, bottom - top])
        return torch.stack([1 - positions[:, 0], positions[:, 1]], 1) if self.flipped else positions


class EvaluationImages(Dataset):
    """
    Images as the image processor prepares them, with the tokens of one placement. One that cannot be read is blank and has no
    label: it does not count.

    Args:
        images (`datasets.Dataset`): with the columns `image` and `label`.
        image_processor: of the model.
        num_tokens (`int`), placement (`str`), window_scales (`float` or `str`): as the image processor takes them.
        max_failed_share (`float`): an evaluation that cannot read more of the images than this share fails.
        mapping ([`LabelMapping`], *optional*): from the labels to the model's classes, where these are others.
    """

    def __init__(
        self,
        images: datasets.Dataset,
        image_processor: Any,
        num_tokens: int,
        placement: str,
        max_failed_share: float = 0.01,
        mapping: LabelMapping | None = None,
        window_scales: float | str | None = None,
    ):
        self.images, self.split, self.image_processor = encoded(images), str(images.split), image_processor
        self.num_tokens, self.placement, self.max_failed_share = num_tokens, placement, max_failed_share
        self.mapping, self.window_scales = mapping, window_scales

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """
        Returns:
            `dict`: `pixel_values` `(3, height, width)`, `coordinates` `(num_tokens, 2)` and, where they are not all 1,
            `window_scales` `(num_tokens,)`, float32; `failed`, a list of
            [`FailedImage`]; where given, `labels`, -100 for an image that could not be read.
        """
        image = encoded_image(self.images[index], index, self.split)
        decoded, failed = self.decoded(image)
        inputs = {**self.inputs_of(image, decoded), "failed": failed}
        if image.label is not None:
            inputs["labels"] = NO_LABEL if failed else _class_of(image.label, self.mapping)
        return inputs

    def decoded(self, image: EncodedImage) -> tuple[Image.Image, list[FailedImage]]:
        """The image; a blank one where it cannot be read, and why."""
        try:
            return image.decode(), []
        except UnreadableImageError as error:
            return Image.new("RGB", self.image_processor.model_size((1000, 1000))), [image.failed(error)]

    def inputs_of(self, image: EncodedImage, decoded: Image.Image, **further: Any) -> dict[str, Any]:
        """Of the model, without their dimension of a batch; `further` is for the image processor."""
        inputs = self.image_processor(
            decoded,
            num_tokens=self.num_tokens,
            placement=self.placement,
            image_ids=[image.image_id],
            window_scales=self.window_scales,
            return_tensors="pt",
            **further,
        )
        names = ("pixel_values", "coordinates", "window_scales", "labels")
        return {name: inputs[name][0] for name in names if name in inputs}


def _class_of(label: int, mapping: LabelMapping | None) -> int:
    number = label if mapping is None else mapping(label)
    return NO_LABEL if number is None else number


def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Rows of [`TrainingImages`] or [`EvaluationImages`] to a batch of tensors, and one list of what failed."""
    batch: dict[str, Any] = {}
    for name, first in rows[0].items():
        values = [row[name] for row in rows]
        if name == "failed":
            batch[name] = [one for failed in values for one in failed]
        else:
            batch[name] = torch.stack(values) if isinstance(first, torch.Tensor) else torch.tensor(values)
    return batch


@dataclass(frozen=True)
class InputRate:
    """Of the input pipeline alone."""

    images_per_second: float
    num_images: int  # that were counted
    num_workers: int

    def __str__(self) -> str:
        return (
            f"input pipeline alone: {self.images_per_second:.0f} images/s with {self.num_workers} workers, "
            f"over {self.num_images} images"
        )


def benchmark_input(images: TrainingImages, batch_size: int, num_workers: int, num_batches: int = 50) -> InputRate:
    """
    How many images per second the workers deliver when nothing else is done. The first batch, for which workers start, is not
    counted.

    Args:
        images ([`TrainingImages`]): what is read.
        batch_size (`int`), num_workers (`int`): of the loader; num_batches (`int`): that are counted.
    """
    loader = DataLoader(
        images,
        batch_size=batch_size,
        sampler=DrawSampler(len(images), images.seed),
        num_workers=num_workers,
        collate_fn=collate,
    )
    count, began = 0, time.perf_counter()
    for number, batch in enumerate(tqdm(loader, total=min(num_batches + 1, len(loader)), desc="input", unit="batch")):
        if number == 0:
            began = time.perf_counter()
        else:
            count += len(batch["draw"])
        if number == num_batches:
            break
    if count == 0:
        raise ValueError(
            f"`per_device_train_batch_size` must leave more than one batch; got {batch_size} of {len(images)} images"
        )
    return InputRate(count / (time.perf_counter() - began), count, num_workers)
