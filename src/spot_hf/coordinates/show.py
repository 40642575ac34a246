"""`spot-hf show`: pictures of what the oracle did on single images."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..data.source import load_images
from ..image_processing_spot_vit import SpotViTImageProcessorPil
from ..jobs.files import write_atomically
from .joining import join_coordinates
from .loading import load_coordinates, load_record, source_of
from .pictures import save_oracle_picture


def show_coordinates(
    coordinates: str,
    image_ids: Sequence[str],
    output_dir: str | Path,
    *,
    config: str | None = None,
    split: str | None = None,
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    image_column_name: str | None = None,
    say: Callable[[str], Any] = print,
) -> list[Path]:
    """
    Writes a PNG per image: the ways of its tokens over the image, and the windows that the model saw at start and end. Needs
    no model: the record of the run knows the image processor.

    Args:
        coordinates (`str`): directory or Hub id of a coordinate data set.
        image_ids: of the images, as in the column `image_id`.
        output_dir (`str`): where.
        config, split (`str`, *optional*): of the coordinate data set, where it has several.
        dataset_name (`str`, *optional*): where the images lie; by default the source that the record names.
        dataset_config_name, image_column_name (`str`, *optional*): likewise.
        say: is called with a line per picture.

    Returns:
        `list[Path]`: the files.

    Raises:
        `ValueError`: no such image. `OSError`: no such data set.
    """
    rows = load_coordinates(coordinates, config, split)
    found: dict[str, list[int]] = {}  # several images may have one name
    for row, image_id in enumerate(rows["image_id"]):
        found.setdefault(image_id, []).append(row)
    absent = [image_id for image_id in image_ids if image_id not in found]
    if absent:
        known = ", ".join(list(found)[:3])
        raise ValueError(f"`image_id` must be ids of {coordinates!r}, such as {known}; got {', '.join(map(repr, absent))}")
    record = load_record(coordinates, rows.info.config_name, str(rows.split))
    parameters = record["parameters"]
    source = dataset_name or source_of(record)[0]
    images = load_images(
        source,
        config_name=dataset_config_name or parameters["dataset_config_name"],
        split=str(rows.split),
        revision=parameters["dataset_revision"],
        image_column_name=image_column_name or parameters["image_column_name"],
        label_column_name=None,
    )
    joined = _join(images, rows.select([row for image_id in image_ids for row in found[image_id]]))
    processor = SpotViTImageProcessorPil.from_dict({**record["image_processor"], "do_rescale": False, "do_normalize": False})
    written = []
    for row in joined:
        name, num_tokens = Path(row["image_id"].replace("/", "_")).stem, len(row["coordinates"])
        path = Path(output_dir) / f"{name}_n{num_tokens}.png"
        if path in written:
            path = path.with_name(f"{name}_{row['image_index']}_n{num_tokens}.png")
        _draw(path, row, processor, record)
        say(f"written to {path}")
        written.append(path)
    return written


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


def _draw(path: Path, row: dict[str, Any], processor: SpotViTImageProcessorPil, record: dict[str, Any]) -> None:
    image = row["image"].convert("RGB")
    inputs = processor(image, coordinates=row["coordinates"], return_tensors="np")
    seen = Image.fromarray(inputs["pixel_values"][0].clip(0, 255).round().astype(np.uint8).transpose(1, 2, 0))
    initial = np.array(row["initial_coordinates"], dtype=np.float32)
    final = np.array(row["coordinates"], dtype=np.float32)
    # Without a saved trajectory, its ends.
    trajectory = np.array(row["trajectory"], dtype=np.float32) if "trajectory" in row else np.stack([initial, final])
    names = record_names(record)
    titles = [
        f"{row['image_id']}: the ways of {len(final)} tokens",
        "start" + _class(names, row["initial_prediction"]),
        "best found" + _class(names, row["prediction"]),
    ]
    with write_atomically(path) as file:
        save_oracle_picture(
            file, image, trajectory, seen, processor.to_model_frame(initial, image.size), inputs["coordinates"][0],
            record["patch_size"], titles,
        )  # fmt: skip


def record_names(record: dict[str, Any]) -> list[str]:
    """The classes' names, where the source has them."""
    import datasets

    label = datasets.Features._from_yaml_list(record["features"])["label"]
    return getattr(label, "names", None) or []


def _class(names: list[str], prediction: int | None) -> str:
    if prediction is None:
        return ""
    name = names[prediction].split(",")[0] if prediction < len(names) else str(prediction)
    return f": seen as {name}"
