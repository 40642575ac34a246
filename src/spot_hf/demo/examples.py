"""Example images of the page, and the recorded searches of a coordinate data set on theirs."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images
from transformers.image_utils import load_image

from ..coordinates.show import RecordedImages, ShowArguments, joined_rows
from ..data.digits import load_digits
from ..data.files import image_files
from .arguments import DemoArguments


# What is larger is made smaller: a page has to load. Files are PNG, without what a photograph's file knows of its owner.
LONGEST = 1024
FIRST_ROWS = 4
MOST_IMAGES = 32
DIGITS = [str(digit) for digit in range(10)]


@dataclass
class Example:
    """
    Attributes:
        name: what it is called, for those who cannot see it.
        image: the image.
        recording (*optional*): of a search on it: `steps`, positions `(num_steps, num_tokens, 2)`, image frame; `losses`, one
            per step; and `windowScales` `(num_tokens,)`, in patches.
    """

    name: str
    image: Image.Image
    recording: dict[str, Any] | None = None

    def png(self) -> bytes:
        image = self.image.convert("RGB")
        image.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
        file = io.BytesIO()
        image.save(file, format="PNG", optimize=True)
        return file.getvalue()


def examples_of(arguments: DemoArguments, class_names: Sequence[str]) -> list[Example]:
    """
    Those that a person names; or else some that scikit-learn brings: digits, for a model whose classes these are, and else
    photographs. And those of the coordinate data set, first.

    Raises:
        `ValueError`: no such image. `OSError`: no such file, or none that can be read.
    """
    found = list(_recorded(arguments)) if arguments.coordinates is not None else []
    files = list(image_files(arguments.image, "image"))
    if len(files) > MOST_IMAGES:
        raise ValueError(f"`image` may be at most {MOST_IMAGES} files, which a page shows all at once; got {len(files)}")
    found += [Example(Path(name).stem, _read(name)) for name in files]
    if found:
        return found
    if sorted(class_names) == DIGITS:
        test = load_digits()["test"]
        first = [test["label"].index(digit) for digit in range(10)]
        return [Example(f"a handwritten {test[row]['label']}", test[row]["image"]) for row in first[2:7]]
    photographs = load_sample_images()
    return [
        Example(Path(name).stem, Image.fromarray(pixels))
        for name, pixels in zip(photographs.filenames, photographs.images, strict=True)
    ]


def _read(name: str) -> Image.Image:
    try:
        return load_image(name)
    except Exception as error:  # a decoder raises anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise OSError(f"`image` {name!r} cannot be read: {reason}") from None


def _recorded(arguments: DemoArguments) -> Iterator[Example]:
    part = {one.name: getattr(arguments, one.name) for one in fields(RecordedImages)}
    wanted = ShowArguments(coordinates=str(arguments.coordinates), image_id=arguments.image_id, output_dir="", **part)
    joined, _ = joined_rows(wanted, first=FIRST_ROWS)
    for row in joined:
        # Without a saved trajectory, its ends.
        steps = row.get("trajectory") or [row["initial_coordinates"], row["coordinates"]]
        losses = row["losses"] if len(steps) == len(row["losses"]) else [row["losses"][0], min(row["losses"])]
        recording = {
            "steps": np.asarray(steps, dtype=np.float64).round(5).tolist(),
            "losses": [round(float(loss), 4) if isfinite(loss) else None for loss in losses],
        }
        if row.get("window_scales"):
            recording["windowScales"] = [round(float(scale), 4) for scale in row["window_scales"]]
        yield Example(f"{row['image_id']}, with a recorded search", row["image"], recording)
