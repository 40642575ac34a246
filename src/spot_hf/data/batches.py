"""What the oracle and the evaluation work through: the shards that a run lacks, cut into batches, read and decoded ahead of
the model."""

import itertools
import logging
import queue
import threading
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

import datasets
import torch
from accelerate import PartialState

from ..placement import generator_for, get_placement, place_windows
from .corruptions import Corruption, of_views
from .encoded import EncodedImage, encoded, encoded_image, iterate_encoded
from .failures import FailedImage, UnreadableImageError, check_failures
from .labels import LabelMapping
from .parquet import ParquetImages
from .saliency import read_saliency


logger = logging.getLogger(__name__)

READ_AHEAD = 256  # images of a stream that wait in memory


@dataclass(frozen=True)
class PlacementRequest:
    """Where tokens are to be placed: a prior, how many, the seed of a random one, and the scale of all windows, in patches or
    `"cover"`, where it is not to be the prior's own."""

    placement: str
    num_tokens: int
    seed: int = 0
    window_scales: float | str | None = None


class Shards:
    """
    Which shards of a source a run has, and which it lacks, over all tasks: what is to be done with every image.

    Args:
        done (`dict`): task → the shards that are done for it.
        split (`str`): of the source.
        num_images (`int`, *optional*): in the source; `None` for a stream whose source does not say.
        shard_size (`int`): images per shard.
    """

    def __init__(self, done: Mapping[Any, Set[int]], split: str, num_images: int | None, shard_size: int):
        self.done, self.split, self.num_images, self.shard_size = done, split, num_images, shard_size
        self.total = None if num_images is None else -(-num_images // self.shard_size)
        self.missing = [shard for shard in range(self.total or 0) if self.lacks(shard)]

    def lacks(self, shard: int) -> list[Any]:
        """The tasks that a shard is missing for."""
        return [task for task, done in self.done.items() if shard not in done]

    def placements(self, shard: int) -> list[PlacementRequest]:
        """Where tokens are to be placed for them. Here, that is what a task is."""
        return self.lacks(shard)

    def of_length(self, num_images: int) -> "Shards":
        """The same of a source whose length is known by now."""
        return type(self)(self.done, self.split, num_images, self.shard_size)

    def rows_of(self, shard: int) -> range:
        stop = (shard + 1) * self.shard_size
        return range(shard * self.shard_size, stop if self.num_images is None else min(stop, self.num_images))


@dataclass
class Work:
    """A batch of the source: consecutive images of one shard."""

    shard: int
    images: list[int] | list[EncodedImage]  # rows of a data set, or what was read from a stream
    placements: list[PlacementRequest]  # what is to be done with them
    closes_shard: bool


def work_of(rows: range, batch_size: int, placements: Iterable[PlacementRequest] = ()) -> Iterator[Work]:
    """Rows of a data set, in batches, for who keeps no shards."""
    for start in range(0, len(rows), batch_size):
        yield Work(0, list(rows[start : start + batch_size]), list(placements), False)


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
    coordinates: dict[PlacementRequest, torch.Tensor] = field(default_factory=dict)  # (batch_size, num_tokens, 2), model frame
    # (batch_size, num_tokens), where they are not all 1
    window_scales: dict[PlacementRequest, torch.Tensor] = field(default_factory=dict)
    shrunken: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)  # the images at other (height, width)
    failed: list[FailedImage] = field(default_factory=list)
    refused: str | None = None  # why the run cannot go on with it

    @property
    def num_images(self) -> int:
        """Those that could not be read included."""
        return len(self.image_index) + len(self.failed)

    def tokens(self, request: PlacementRequest, device: torch.device) -> dict[str, torch.Tensor]:
        """Where a request has placed them, as a model takes it: `coordinates` and, where not all are 1, `window_scales`."""
        found = {"coordinates": self.coordinates[request].to(device)}
        if request in self.window_scales:
            found["window_scales"] = self.window_scales[request].to(device)
        return found

    def labels(self, mapping: LabelMapping) -> torch.Tensor:
        """The model's classes, `(batch_size,)`, int64; `ValueError` where an image has none of them."""
        classes = [mapping(label) for label in self.label]
        for image_id, label, number in zip(self.image_id, self.label, classes, strict=True):
            if number is None:
                raise ValueError(f"`label_column_name`: image {image_id!r} has the label {label!r}; {mapping.accepted}")
        return torch.tensor(classes)


@dataclass
class _Prepared:
    """One image, as far as its batch needs it."""

    image_size: tuple[int, int]
    pixel_values: torch.Tensor
    placed: dict[PlacementRequest, tuple[torch.Tensor, torch.Tensor | None]]  # coordinates, window scales
    shrunken: dict[tuple[int, int], torch.Tensor]


class Preparation(torch.utils.data.Dataset):
    """
    What the workers do: read, hash and decode images, prepare them for the model, place their tokens.

    Args:
        images (`datasets.Dataset` or `datasets.IterableDataset`): of which work names rows; a stream's work brings its images.
        image_processor: of the model.
        shrinking (`dict`, *optional*): `(height, width)` → a processor that also gives the images at that size.
        corruption ([`Corruption`], *optional*): what is done to the images before.
    """

    def __init__(
        self,
        images: datasets.Dataset | datasets.IterableDataset,
        image_processor: Any,
        shrinking: dict[tuple[int, int], Any] | None = None,
        corruption: Corruption | None = None,
    ):
        self.images = encoded(images) if isinstance(images, datasets.Dataset) else None
        self.split, self.image_processor, self.corruption = str(images.split), image_processor, corruption
        self.of_seen, self.shrinking = image_processor, shrinking or {}  # of what the model is to see
        if corruption is not None:
            self.of_seen = of_views(image_processor)
            self.shrinking = {size: of_views(image_processor, size) for size in self.shrinking}

    def __getitem__(self, work: Work) -> Batch:
        batch = Batch(work)
        prepared: list[_Prepared] = []
        try:
            for one in work.images:
                image = self._read(one)
                try:
                    prepared.append(self._prepare(image, work.placements))
                except UnreadableImageError as error:
                    batch.failed.append(image.failed(error))
                    continue
                batch.image_index.append(image.index)
                batch.image_id.append(image.image_id)
                batch.image_sha256.append(image.sha256)
                batch.image_size.append(prepared[-1].image_size)
                batch.label.append(image.label)
        except ValueError as error:
            batch.refused = str(error)  # raised where the batch arrives: a worker would wrap it in its own traceback
            return batch
        if prepared:
            batch.pixel_values = torch.stack([one.pixel_values for one in prepared])
            for request in work.placements:
                placed, scales = zip(*(one.placed[request] for one in prepared), strict=True)
                batch.coordinates[request] = torch.stack(placed)
                if any(one is not None for one in scales):
                    ones = torch.ones(request.num_tokens)
                    batch.window_scales[request] = torch.stack([ones if one is None else one for one in scales])
            batch.shrunken = {size: torch.stack([one.shrunken[size] for one in prepared]) for size in self.shrinking}
        return batch

    def _read(self, one: int | EncodedImage) -> EncodedImage:
        if isinstance(one, EncodedImage):
            return one
        assert self.images is not None
        return encoded_image(self.images[one], one, self.split)

    def _prepare(self, image: EncodedImage, placements: list[PlacementRequest]) -> _Prepared:
        """[`UnreadableImageError`] where it cannot be read, or the model sees nothing of what is salient in it."""
        decoded = image.decode(self.image_processor)
        seen = decoded
        if self.corruption is not None:
            seen = self.corruption.view(self.image_processor, decoded, image.image_id)
        pixel_values = _pixel_values(self.of_seen, seen)
        saliency = None
        if any(get_placement(request.placement).saliency for request in placements):
            saliency = model_saliency(image.saliency, decoded.size, image.image_id, self.image_processor)
            if not saliency.any():
                raise UnreadableImageError("all that is salient lies outside of what the model sees")
        placed = {}
        for request in placements:
            random = get_placement(request.placement).random
            generator = generator_for(request.seed, image.image_id) if random else None
            patch_size = self.image_processor.patch_size
            placed[request] = place_windows(
                request.placement,
                request.num_tokens,
                pixel_values,
                patch_size,
                generator,
                saliency,
                request.window_scales,
            )
        shrunken = {size: _pixel_values(processor, seen) for size, processor in self.shrinking.items()}
        return _Prepared(decoded.size, pixel_values, placed, shrunken)


def model_saliency(value: Any, image_size: tuple[int, int], image_id: str, image_processor: Any) -> torch.Tensor:
    """What the model sees of the saliency that a data set states, as [`read_saliency`] takes it: `(height, width)`."""
    saliency = read_saliency(value, image_size, image_id)
    try:
        return image_processor.saliency_to_model_frame(saliency, image_size)
    except ValueError as error:
        raise ValueError(f"`saliency_column_name`, image {image_id!r}: {error}") from None


def _pixel_values(image_processor: Any, image: Any) -> torch.Tensor:
    return image_processor(image, placement="grid", return_tensors="pt")["pixel_values"][0]


class FailureCount:
    """
    Those of one process so far: stops a job as soon as they are too many of all images.

    Args:
        max_failed_share (`float`): of the images, that may fail.
        num_images (`int`, *optional*): of which that share is; of a stream of unknown length only its end can tell.
    """

    def __init__(self, max_failed_share: float, num_images: int | None):
        self.max_failed_share, self.num_images = max_failed_share, num_images
        self.failed: list[FailedImage] = []

    def add(self, batch: Batch) -> None:
        self.failed += batch.failed
        if batch.failed and self.num_images is not None:
            check_failures(self.failed, self.num_images, self.max_failed_share)


def batches_of(preparation: Preparation, work: Iterable[Work], num_workers: int, count: FailureCount) -> Iterator[Batch]:
    """Prepares work in worker processes, ahead of whoever iterates."""
    batches = torch.utils.data.DataLoader(
        preparation,
        sampler=work,  # type: ignore[arg-type]
        batch_size=None,
        collate_fn=_as_it_is,  # type: ignore[arg-type]
        num_workers=num_workers,
        generator=torch.Generator(),  # or it draws the workers' seeds from everybody's
    )
    for batch in batches:
        if batch.refused is not None:
            raise ValueError(batch.refused)
        count.add(batch)
        yield batch


def _as_it_is(batch: Batch) -> Batch:
    return batch


class Plan:
    """
    Iterates the work of this process: batches of the shards that are missing.

    Args:
        shards ([`Shards`]): which there are.
        images (`datasets.Dataset` or `datasets.IterableDataset`): what [`load_images`] loaded.
        state (`PartialState`): which process this is.
        batch_size (`int`): images of a batch.
        parquet ([`ParquetImages`], *optional*): the images of a stream, where these can be read by their rows.
    """

    def __init__(
        self, shards: Shards, images: Any, state: PartialState, batch_size: int, parquet: ParquetImages | None = None
    ):
        self.shards, self.images, self.batch_size, self.parquet = shards, images, batch_size, parquet
        self.process_index, self.num_processes = state.process_index, state.num_processes
        self.num_seen: int | None = None  # images of a stream that was read to its end
        is_stream = not isinstance(images, datasets.Dataset)
        if is_stream and parquet is None and self.num_processes > 1 and self.process_index == 0:
            logger.info("each of the %d processes reads the whole stream: it is not one of Parquet files", self.num_processes)

    def __iter__(self) -> Iterator[Work]:
        if isinstance(self.images, datasets.Dataset):
            return self._rows()
        return self._stream() if self.parquet is None else self._row_groups(self.parquet)

    def my_shards(self) -> list[int]:
        """Of a source of known length. Of a Parquet stream consecutive ones, as two of them may have a row group in common."""
        missing = list(self.shards.missing)
        if self.parquet is None:
            return missing[self.process_index :: self.num_processes]
        first, after = (len(missing) * (self.process_index + i) // self.num_processes for i in (0, 1))
        return missing[first:after]

    def _batches(self, shard: int, images: list) -> Iterator[Work]:
        for start in range(0, len(images), self.batch_size):
            part = images[start : start + self.batch_size]
            yield Work(shard, part, self.shards.placements(shard), start + self.batch_size >= len(images))

    def _rows(self) -> Iterator[Work]:
        for shard in self.my_shards():
            yield from self._batches(shard, list(self.shards.rows_of(shard)))

    def _row_groups(self, parquet: ParquetImages) -> Iterator[Work]:
        """Of a stream, the rows of this process's shards and no others."""
        if self.shards.total is None:
            self.shards = self.shards.of_length(parquet.num_rows)
            self.num_seen = parquet.num_rows
        elif parquet.num_rows < (self.shards.num_images or 0):
            raise OSError(_too_short(parquet.num_rows, self.shards.num_images))
        mine = self.my_shards()
        rows = _read_ahead((row for shard in mine for row in parquet.rows(self.shards.rows_of(shard))), READ_AHEAD)
        for shard in mine:
            yield from self._batches(shard, list(itertools.islice(rows, len(self.shards.rows_of(shard)))))

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
                raise OSError(_too_short(shard * size + len(images), self.shards.num_images))
            wanted = shard in mine if mine is not None else shard % self.num_processes == self.process_index
            if images and wanted and self.shards.lacks(shard):
                yield from self._batches(shard, images)
            if len(images) < size:
                self.num_seen = shard * size + len(images)
                break


def _too_short(num_images: int, stated: int | None) -> str:
    return f"the stream ended after {num_images} images; its source says that it has {stated}"


def _read_ahead(rows: Iterable[EncodedImage], size: int) -> Iterator[EncodedImage]:
    """Reads in a thread, so that the network and the model work at the same time."""
    waiting: queue.Queue = queue.Queue(maxsize=size)
    end, stopped = object(), threading.Event()

    def put(value: Any) -> bool:
        """Whether somebody still waits for it: who has stopped makes no room any more."""
        while not stopped.is_set():
            try:
                waiting.put(value, timeout=0.5)
                return True
            except queue.Full:
                continue
        return False

    def read() -> None:
        try:
            for row in rows:
                if not put(row):
                    return
            put(end)
        except BaseException as error:
            put(error)

    threading.Thread(target=read, daemon=True).start()
    try:
        while (row := waiting.get()) is not end:
            if isinstance(row, BaseException):
                raise row
            yield row
    finally:
        stopped.set()
