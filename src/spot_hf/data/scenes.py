"""Scenes: an image of a class, small, somewhere in a picture of something else. Where it is has to be found.

On most image-classification data sets objects fill the frame, and there is little to look for. Here the class is that of a
ninth to a quarter of the picture, and where that lies is known: a ceiling for any placement, and a check of what one looks at.
"""

import io
import math
from dataclasses import dataclass
from typing import Any

import datasets
import torch
from PIL import Image

from ..placement import generator_for
from .encoded import encoded, encoded_image


@dataclass(frozen=True)
class SceneRule:
    """
    How scenes are made. The same images, backgrounds, rule and versions of Pillow give the same scenes.

    Attributes:
        size (`int`): of the square scene, in pixels.
        smallest, largest (`float`): share of the scene's area that the image gets; between them uniform.
        seed (`int`): with an image's id, decides its scene.
    """

    size: int = 224
    smallest: float = 1 / 9
    largest: float = 1 / 4
    seed: int = 0

    def __post_init__(self) -> None:
        if self.size < 16:
            raise ValueError(f"`size` must be at least 16 pixels; got {self.size}")
        if not 0 < self.smallest <= self.largest <= 1:
            raise ValueError(
                f"`smallest` and `largest` must be shares above 0, at most 1; got {self.smallest} and {self.largest}"
            )

    def __call__(
        self, image: Image.Image, image_id: str, backgrounds: datasets.Dataset
    ) -> tuple[Image.Image, tuple[int, int, int, int]]:
        """
        Makes a scene.

        Args:
            image (`PIL.Image`): what is to be found.
            image_id (`str`): its id.
            backgrounds (`datasets.Dataset`): of pictures, `image`, no smaller than the scene, of which one is cut out.

        Returns:
            `tuple`: the scene, and the box `(x_min, y_min, x_max, y_max)` of the image in it, in pixels.
        """
        share, left, top, mirrored, x, y, which = torch.rand(7, generator=generator_for(self.seed, image_id)).tolist()
        background = backgrounds[int(which * len(backgrounds))]["image"].convert("RGB")
        if min(background.size) < self.size:
            raise ValueError(f"backgrounds must be of at least {self.size} pixels; one is of {background.size}")
        left, top = int(left * (background.width - self.size + 1)), int(top * (background.height - self.size + 1))
        scene = background.crop((left, top, left + self.size, top + self.size))
        if mirrored < 0.5:
            scene = scene.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        area = (self.smallest + (self.largest - self.smallest) * share) * self.size**2
        factor = math.sqrt(area / (image.width * image.height))
        width, height = (min(self.size, max(1, round(side * factor))) for side in image.size)
        x, y = int(x * (self.size - width + 1)), int(y * (self.size - height + 1))
        scene.paste(image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS), (x, y))
        return scene, (x, y, x + width, y + height)


def make_scenes(images: datasets.Dataset, backgrounds: datasets.Dataset, rule: SceneRule) -> datasets.Dataset:
    """
    A data set of scenes, one per image.

    Args:
        images (`datasets.Dataset`): with the columns `image` and `label`, as [`load_images`] gives them.
        backgrounds (`datasets.Dataset`): with the column `image`.
        rule ([`SceneRule`]): how.

    Returns:
        `datasets.Dataset`: `image` (JPEG), `label`, and `box`, `[x_min, y_min, x_max, y_max]` in pixels, which jobs take as
        `--saliency_column_name box`. An image keeps its id, and its place in the split.
    """
    split, rows = str(images.split), encoded(images)

    def scene(row: dict[str, Any], index: int) -> dict[str, Any]:
        image = encoded_image(row, index, split)
        picture, box = rule(image.decode(), image.image_id, backgrounds)
        file = io.BytesIO()
        picture.save(file, format="JPEG", quality=95)
        return {"image": {"bytes": file.getvalue(), "path": image.image_id}, "label": row["label"], "box": list(box)}

    features = datasets.Features({
        "image": datasets.Image(decode=False),
        "label": images.features["label"],
        "box": datasets.List(datasets.Value("int32"), length=4),
    })  # fmt: skip
    made = rows.map(scene, with_indices=True, features=features, remove_columns=rows.column_names, desc=f"scenes, {split}")
    return made.cast_column("image", datasets.Image())
