"""Images for training: decoded once each, cropped and flipped in worker processes, sent to the device as bytes.

Which images come when, and how each is cropped, is a function of the seed, the epoch and the image: the same on any number of
processes and workers, and after an interruption.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from kornia.augmentation.random_generator import ResizedCropGenerator
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from ..data.encoded import encoded, encoded_image
from .draws import hashed_seed


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
    Images by draw.

    Args:
        images (`datasets.Dataset`): with the columns `image`; `label`, where there are labels; and `coordinates`, `(x, y)`,
            image frame, where images bring their own.
        image_processor: of the model, for the size and the resampling of its images.
        crop_scale (`(float, float)`): share of the image's area that a crop has; `crop_ratio`: its width / height.
        flip (`float`): how many of the images are mirrored left to right.
        seed (`int`): of the run.
    """

    def __init__(
        self,
        images: datasets.Dataset,
        image_processor: Any,
        *,
        crop_scale: tuple[float, float] = (0.35, 1.0),
        crop_ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: float = 0.5,
        seed: int = 0,
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

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, draw: int) -> dict[str, Any]:
        """`pixels`, uint8 `(3, height, width)`; `draw`; where given, `labels` and `coordinates` `(num_tokens, 2)`, float32,
        model frame, outside [0, 1] where the crop left them out."""
        index = draw % len(self.images)
        row = self.images[index]
        image = encoded_image(row, index, self.split).decode().convert("RGB")
        with torch.random.fork_rng(devices=[]):  # the library draws from the global generator
            torch.manual_seed(hashed_seed(self.seed, draw))
            corners = self.crop(torch.Size((1, 3, image.height, image.width)))["src"][0].tolist()
            flipped = torch.rand(()).item() < self.flip
        left, top = corners[0]
        right, bottom = corners[2][0] + 1, corners[2][1] + 1  # of the pixels that the last corner names, the far edges
        pixels = np.asarray(image.resize(self.size, self.resample, box=(left, top, right, bottom)))
        pixels = pixels[:, ::-1] if flipped else pixels
        found: dict[str, Any] = {"pixels": torch.from_numpy(pixels.transpose(2, 0, 1).copy()), "draw": draw}
        if row.get("label") is not None:
            found["labels"] = row["label"]
        if "coordinates" in row:
            # A position on the image moves with the pixels that it points at.
            positions = torch.tensor(row["coordinates"]) * torch.tensor([image.width, image.height], dtype=torch.float32)
            positions = (positions - torch.tensor([left, top])) / torch.tensor([right - left, bottom - top])
            found["coordinates"] = torch.stack([1 - positions[:, 0], positions[:, 1]], 1) if flipped else positions
        return found


class EvaluationImages(Dataset):
    """
    Images as the image processor prepares them, with the tokens of one placement.

    Args:
        images (`datasets.Dataset`): with the columns `image` and `label`.
        image_processor: of the model.
        num_tokens (`int`), placement (`str`): as the image processor takes them.
    """

    def __init__(self, images: datasets.Dataset, image_processor: Any, num_tokens: int, placement: str):
        self.images, self.split, self.image_processor = encoded(images), str(images.split), image_processor
        self.num_tokens, self.placement = num_tokens, placement

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = encoded_image(self.images[index], index, self.split)
        inputs = self.image_processor(
            image.decode(),
            num_tokens=self.num_tokens,
            placement=self.placement,
            image_ids=[image.image_id],
            return_tensors="pt",
        )
        found = {"pixel_values": inputs["pixel_values"][0], "coordinates": inputs["coordinates"][0]}
        return {**found, "labels": image.label} if image.label is not None else found


def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Rows of [`TrainingImages`] or [`EvaluationImages`] to a batch of tensors."""
    return {
        name: torch.stack([row[name] for row in rows])
        if isinstance(rows[0][name], torch.Tensor)
        else torch.tensor([row[name] for row in rows])
        for name in rows[0]
    }


@dataclass(frozen=True)
class InputRate:
    """Of the input pipeline alone."""

    images_per_second: float
    num_images: int
    num_workers: int


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
