"""`spot-hf show`: pictures of what the oracle did on single images."""

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers.image_utils import load_image

from ..data.source import DatasetSource, load_images
from ..hub.loading import open_model
from ..image_processing_spot_vit import SpotViTImageProcessorPil
from ..jobs.files import write_atomically
from .joining import join_coordinates
from .loading import load_coordinates
from .own import OWN_COORDINATES, read_own_coordinates
from .pictures import save_oracle_picture
from .records import Record, load_record


logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class RecordedImages:
    """Which part of a coordinate data set, and where its images lie."""

    config: str | None = field(default=None, metadata={"help": "Config of the coordinates, where there are several."})
    split: str | None = field(default=None, metadata={"help": "Split of the coordinates, where there are several."})
    dataset_name: str | None = field(
        default=None, metadata={"help": "Where the images lie (default: the Hub id that the coordinates name)."}
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Config of that data set."})
    image_column_name: str | None = field(default=None, metadata={"help": "Column of the images (default: as recorded)."})


@dataclass(kw_only=True)
class ShowArguments(RecordedImages):
    coordinates: str = field(
        metadata={"help": f"A coordinate data set: a directory or a Hub id. Or, with --image and --model, a {OWN_COORDINATES}"}
    )
    image_id: list[str] = field(default_factory=list, metadata={"help": "Images of a data set, by the column image_id."})
    image: list[str] = field(default_factory=list, metadata={"help": "Files, with coordinates that you wrote yourself."})
    model: str | None = field(
        default=None,
        metadata={"help": "For these: the SpotViT that sees them, a directory or a Hub id. Its weights are not read."},
    )
    output_dir: str = field(metadata={"help": "Where the pictures are written."})


def show_coordinates(arguments: ShowArguments) -> list[Path]:
    """
    Writes a PNG per image. Of a coordinate data set: the paths of its tokens over the image, and the windows that the model
    saw at start and end, with true label, predictions and losses; the record of the run knows the image processor, no model is
    needed. Of coordinates in a JSON file: the windows that `model` sees.

    Args:
        arguments ([`ShowArguments`]): which images, and whose coordinates.

    Returns:
        `list[Path]`: the files.

    Raises:
        `ValueError`: no such image. `OSError`: no such data set.
    """
    _check(arguments)
    if arguments.image:
        return _show_own(arguments)
    joined, record = joined_rows(arguments)
    processor = SpotViTImageProcessorPil.from_dict({**record.image_processor, "do_rescale": False, "do_normalize": False})
    written: list[Path] = []
    for row in joined:
        name, num_tokens = Path(row["image_id"].replace("/", "_")).stem, len(row["coordinates"])
        path = Path(arguments.output_dir) / f"{name}_n{num_tokens}.png"
        if path in written:
            path = path.with_name(f"{name}_{row['image_index']}_n{num_tokens}.png")
        _draw(path, row, processor, record)
        logger.info("written to %s", path)
        written.append(path)
    return written


def joined_rows(arguments: ShowArguments, first: int = 0) -> tuple[Any, Record]:
    """
    The rows of a coordinate data set, with their images, and the record of its run.

    Args:
        arguments ([`ShowArguments`]): of which images.
        first (`int`): where none are named, the first so many.

    Raises:
        `ValueError`: no such image. `OSError`: no such data set.
    """
    rows = load_coordinates(arguments.coordinates, arguments.config, arguments.split)
    chosen = _rows_of(rows, arguments) if arguments.image_id else list(range(min(first, len(rows))))
    record = load_record(arguments.coordinates, rows.info.config_name, str(rows.split))
    parameters = record.parameters
    is_recorded = arguments.dataset_name in (None, parameters["dataset_name"])  # another repository has other commits
    source = DatasetSource(
        dataset_name=arguments.dataset_name or record.dataset[0],
        dataset_config_name=arguments.dataset_config_name or parameters["dataset_config_name"],
        dataset_split=str(rows.split),
        dataset_revision=parameters["dataset_revision"] if is_recorded else None,
        image_column_name=arguments.image_column_name or parameters["image_column_name"],
        label_column_name=None,
    )
    return _join(load_images(source), rows.select(chosen)), record


def _check(arguments: ShowArguments) -> None:
    """`ValueError` where neither images of a data set are named, nor files."""
    is_file = Path(arguments.coordinates).is_file()
    if bool(arguments.image) == bool(arguments.image_id):
        given = "both" if arguments.image else "neither"
        raise ValueError(
            f"`image_id` names images of a coordinate data set, `image` files with your own: give one; got {given}"
        )
    if is_file != bool(arguments.image):
        kind = "a file" if is_file else "no file"
        raise ValueError(f"`image` goes with a JSON file of `coordinates`, `image_id` with a data set; got {kind}")
    if bool(arguments.image) != (arguments.model is not None):
        raise ValueError("`model` goes with `image`: it says what of the images is seen")


def _show_own(arguments: ShowArguments) -> list[Path]:
    tokens = read_own_coordinates(arguments.coordinates, arguments.image)
    processor = open_model(str(arguments.model)).load_image_processor()
    written: list[Path] = []
    for name, own in tokens.items():
        image = load_image(name)
        picture = processor.draw(image, processor(image, **own, return_tensors="np"))
        path = Path(arguments.output_dir) / f"{Path(name).stem}_n{len(own['coordinates'])}.png"
        if path in written:
            path = path.with_name(f"{path.stem}_{len(written) + 1}.png")
        with write_atomically(path) as file:
            picture.save(file, format="PNG")
        logger.info("written to %s", path)
        written.append(path)
    return written


def _rows_of(rows: Any, arguments: ShowArguments) -> list[int]:
    """Numbers of the rows that have the ids; several images may have one name."""
    found: dict[str, list[int]] = {}
    for row, image_id in enumerate(rows["image_id"]):
        found.setdefault(image_id, []).append(row)
    absent = [image_id for image_id in arguments.image_id if image_id not in found]
    if absent:
        known = ", ".join(list(found)[:3])
        raise ValueError(
            f"`image_id` must be ids of {arguments.coordinates!r}, such as {known}; got {', '.join(map(repr, absent))}"
        )
    return [row for image_id in arguments.image_id for row in found[image_id]]


def _join(images: Any, wanted: Any) -> Any:
    """The wanted images with their coordinates."""
    places = list(wanted["image_index"])
    if _has_file_names(wanted) and max(places) < len(images):
        with suppress(ValueError):  # another copy of the source may have another order
            joined = join_coordinates(images.select(places), wanted)  # no other image is read
            if len(joined) == len(wanted):
                return joined
    joined = join_coordinates(images, wanted)
    absent = sorted(set(wanted["image_id"]) - set(joined["image_id"]))
    if absent:
        raise ValueError(f"`dataset_name` must hold the images of `image_id`; {', '.join(absent)} are not there")
    return joined


def _has_file_names(rows: Any) -> bool:
    return all(row["image_id"] != f"{rows.split}/{row['image_index']}" for row in rows)


def _draw(path: Path, row: dict[str, Any], processor: SpotViTImageProcessorPil, record: Record) -> None:
    image = row["image"].convert("RGB")
    inputs = processor(image, coordinates=row["coordinates"], return_tensors="np")
    seen = Image.fromarray(inputs["pixel_values"][0].clip(0, 255).round().astype(np.uint8).transpose(1, 2, 0))
    initial = np.array(row["initial_coordinates"], dtype=np.float32)
    final = np.array(row["coordinates"], dtype=np.float32)
    # Without a saved trajectory, its ends.
    trajectory = np.array(row["trajectory"], dtype=np.float32) if "trajectory" in row else np.stack([initial, final])
    names = _predicted_names(record)
    scales = row.get("window_scales")
    titles = [
        f"{row['image_id'][-30:]}, {len(final)} tokens{_true_label(record, row['label'])}{_shift(record)}",
        f"start{_class(names, row['initial_prediction'])}, loss {row['losses'][0]:.3f}",
        f"best found{_class(names, row['prediction'])}, loss {min(row['losses']):.3f}",
    ]
    with write_atomically(path) as file:
        save_oracle_picture(
            file, image, trajectory, seen, processor.to_model_frame(initial, image.size), inputs["coordinates"][0],
            record.patch_size, titles, _as_array(scales), _as_array(row.get("initial_window_scales")),
        )  # fmt: skip


def _as_array(scales: list[float] | None) -> np.ndarray | None:
    return None if scales is None else np.array(scales)


def _shift(record: Record) -> str:
    """Where images were corrupted for the search, that they are shown as they are."""
    parameters = record.parameters
    return f", here without its {parameters['corruption']}" if parameters.get("corruption") else ""


def _true_label(record: Record, label: int | None) -> str:
    if label is None:
        return ""
    names = record.class_names
    return f", true label: {names[label].split(',')[0] if label < len(names) else label}"


def _predicted_names(record: Record) -> dict[int, str]:
    """Of the model's classes, those that the record knows: the data set's, by the model's numbers."""
    if not record.results.num_labelled:  # the labels were not the model's classes
        return {}
    mapping = record.parameters.get("label_mapping")
    return dict(enumerate(record.class_names)) if mapping is None else {number: name for name, number in mapping.items()}


def _class(names: Mapping[int, str], prediction: int | None) -> str:
    if prediction is None:
        return ""
    return f": seen as {names[prediction].split(',')[0] if prediction in names else f'class {prediction}'}"
