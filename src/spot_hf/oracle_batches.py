"""What the oracle works through: the shards that a run lacks, cut into batches, read and decoded ahead of the model."""

import itertools
import queue
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch

from .coordinates import RunDirectory
from .data import EncodedImage, encoded_image, image_id_of, iterate_encoded
from .placement import PLACEMENTS, generator_for, place


READ_AHEAD = 256  # images of a stream that wait in memory


@dataclass(frozen=True)
class Start:
    """Where tokens are to be placed: a prior, how many, and the seed of a random one."""

    placement: str
    num_tokens: int
    seed: int = 0


class Shards:
    """
    Which shards a run has, and which it lacks, over all budgets.

    Args:
        run ([`RunDirectory`]): where they are.
        configs (`dict`): [`Start`] of each budget → config.
        split (`str`): of the source.
        num_images (`int`, *optional*): in the source; `None` for a stream whose source does not say.
        shard_size (`int`): images per shard.
    """

    def __init__(self, run: RunDirectory, configs: dict[Start, str], split: str, num_images: int | None, shard_size: int):
        self.run, self.configs, self.split, self.num_images = run, configs, split, num_images
        self.shard_size = shard_size
        self.total = None if num_images is None else -(-num_images // self.shard_size)
        self.done = {start: set(run.shards(config, split)) for start, config in self.configs.items()}
        self.missing = [shard for shard in range(self.total or 0) if self.lacks(shard)]

    def lacks(self, shard: int) -> list[Start]:
        """The budgets that a shard is missing for."""
        return [start for start, done in self.done.items() if shard not in done]

    def rows_of(self, shard: int) -> range:
        stop = (shard + 1) * self.shard_size
        return range(shard * self.shard_size, stop if self.num_images is None else min(stop, self.num_images))

    def path(self, start: Start, shard: int) -> Path:
        return self.run.shard_path(self.configs[start], self.split, shard, self.total)


@dataclass
class Work:
    """A batch of the source: consecutive images of one shard."""

    shard: int
    images: list[int] | list[EncodedImage]  # rows of a data set, or what was read from a stream
    starts: list[Start]  # what is to be done with them
    closes_shard: bool


@dataclass
class Batch:
    """The images of a batch that could be read, ready for the model."""

    work: Work
    image_index: list[int] = field(default_factory=list)
    image_id: list[str] = field(default_factory=list)
    image_sha256: list[str] = field(default_factory=list)
    image_size: list[tuple[int, int]] = field(default_factory=list)
    label: list[int | None] = field(default_factory=list)
    pixel_values: torch.Tensor | None = None
    starts: dict[Start, torch.Tensor] = field(default_factory=dict)  # (batch_size, num_tokens, 2), model frame
    smaller: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)  # the images at other (height, width)
    failed: list[dict[str, Any]] = field(default_factory=list)


class Preparation(torch.utils.data.Dataset):
    """
    What the workers do: read, hash and decode images, prepare them for the model, place their tokens.

    Args:
        images (`datasets.Dataset`, *optional*): encoded, of which work names rows; a stream's work brings its images.
        split (`str`): for the ids of images without file names.
        image_processor: of the model.
        smaller (`dict`, *optional*): `(height, width)` → a processor that also gives the images at that size.
    """

    def __init__(
        self,
        images: datasets.Dataset | None,
        split: str,
        image_processor: Any,
        smaller: dict[tuple[int, int], Any] | None = None,
    ):
        self.images, self.split, self.image_processor, self.smaller = images, split, image_processor, smaller or {}

    def __getitem__(self, work: Work) -> Batch:
        batch = Batch(work)
        pixel_values: list[torch.Tensor] = []
        starts: dict[Start, list[torch.Tensor]] = {start: [] for start in work.starts}
        smaller: dict[tuple[int, int], list[torch.Tensor]] = {size: [] for size in self.smaller}
        for one in work.images:
            image = self._read(one)
            try:
                decoded = image.decode()
                pixels = _pixels(self.image_processor, decoded)
                for size, processor in self.smaller.items():
                    smaller[size].append(_pixels(processor, decoded))
            except Exception as error:  # whatever a decoder makes of a broken file
                reason = str(error).strip().splitlines()
                batch.failed.append({
                    "image_index": image.index, "image_id": image.image_id,
                    "error": f"{type(error).__name__}: {reason[0] if reason else 'no reason given'}",
                })  # fmt: skip
                continue
            batch.image_index.append(image.index)
            batch.image_id.append(image.image_id)
            batch.image_sha256.append(image.sha256)
            batch.image_size.append(decoded.size)
            batch.label.append(image.label)
            pixel_values.append(pixels)
            for start, sets in starts.items():
                generator = generator_for(start.seed, image.image_id) if PLACEMENTS[start.placement].random else None
                patch_size = self.image_processor.patch_size
                sets.append(place(start.placement, start.num_tokens, pixels, patch_size, generator))
        if pixel_values:
            batch.pixel_values = torch.stack(pixel_values)
            batch.starts = {start: torch.stack(sets) for start, sets in starts.items()}
            batch.smaller = {size: torch.stack(images) for size, images in smaller.items()}
        return batch

    def _read(self, one: int | EncodedImage) -> EncodedImage:
        if isinstance(one, EncodedImage):
            return one
        assert self.images is not None
        try:
            return encoded_image(self.images[one], one, self.split)
        except OSError:  # a file that is gone: an image without content, which cannot be decoded
            return EncodedImage(one, image_id_of(None, one, self.split), b"", None)


def _pixels(image_processor: Any, image: Any) -> torch.Tensor:
    return image_processor(image, placement="grid", return_tensors="pt")["pixel_values"][0]


def batches_of(preparation: Preparation, work: Iterable[Work], num_workers: int) -> torch.utils.data.DataLoader:
    """Prepares work in worker processes, ahead of whoever iterates."""
    return torch.utils.data.DataLoader(
        preparation,
        sampler=work,  # type: ignore[arg-type]
        batch_size=None,
        collate_fn=_as_it_is,  # type: ignore[arg-type]
        num_workers=num_workers,
    )


def _as_it_is(batch: Batch) -> Batch:
    return batch


class Plan:
    """Iterates the work of this process: batches of the shards that are missing."""

    def __init__(self, shards: "Shards", images: Any, process_index: int, num_processes: int, batch_size: int):
        self.shards, self.images, self.batch_size = shards, images, batch_size
        self.process_index, self.num_processes = process_index, num_processes
        self.num_seen: int | None = None  # images of a stream that was read to its end

    def __iter__(self) -> Iterator[Work]:
        return self._rows() if isinstance(self.images, datasets.Dataset) else self._stream()

    def my_shards(self) -> list[int]:
        """Of a source of known length."""
        return list(self.shards.missing)[self.process_index :: self.num_processes]

    def _batches(self, shard: int, images: list) -> Iterator[Work]:
        for start in range(0, len(images), self.batch_size):
            part = images[start : start + self.batch_size]
            yield Work(shard, part, self.shards.lacks(shard), start + self.batch_size >= len(images))

    def _rows(self) -> Iterator[Work]:
        for shard in self.my_shards():
            yield from self._batches(shard, list(self.shards.rows_of(shard)))

    def _stream(self) -> Iterator[Work]:
        """Every process reads the stream, from its first missing shard on, and computes its own shards."""
        size = self.shards.shard_size
        known = self.shards.total is not None
        mine = set(self.my_shards()) if known else None
        if mine is not None and not mine:
            return
        first = min(mine) if mine else 0
        rows = _read_ahead(iterate_encoded(self.images, self.shards.split, first * size), READ_AHEAD)
        for shard in itertools.count(first):
            if mine is not None and shard > max(mine):
                break
            images = list(itertools.islice(rows, size))
            if known and len(images) < len(self.shards.rows_of(shard)):
                raise OSError(
                    f"the stream ended after {shard * size + len(images)} images; its source says that it has "
                    f"{self.shards.num_images}"
                )
            wanted = shard in mine if mine is not None else shard % self.num_processes == self.process_index
            if images and wanted and self.shards.lacks(shard):
                yield from self._batches(shard, images)
            if len(images) < size:
                self.num_seen = shard * size + len(images)
                break


def _read_ahead(rows: Iterable[EncodedImage], size: int) -> Iterator[EncodedImage]:
    """Reads in a thread, so that the network and the model work at the same time."""
    waiting: queue.Queue = queue.Queue(maxsize=size)
    end, stopped = object(), threading.Event()

    def read() -> None:
        last: Any = end
        try:
            for row in rows:
                while not stopped.is_set():
                    try:
                        waiting.put(row, timeout=0.5)
                        break
                    except queue.Full:
                        continue
                if stopped.is_set():
                    return
        except BaseException as error:
            last = error
        waiting.put(last)

    threading.Thread(target=read, daemon=True).start()
    try:
        while (row := waiting.get()) is not end:
            if isinstance(row, BaseException):
                raise row
            yield row
    finally:
        stopped.set()
