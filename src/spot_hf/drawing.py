"""Drawing what a model sees: an image, dimmed where no token looks, with windows and their centres. Needs Pillow alone."""

from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance

from .frames import Frame


WINDOW_COLOR = (255, 176, 0)
CENTER_COLOR = (220, 38, 127)
DIMMED = 0.4  # brightness where no token looks
SHORTEST = 448  # pixels of the picture's longer side: a smaller image is enlarged, so that lines are thin


def draw_tokens(
    image: Image.Image,
    coordinates: np.ndarray,
    frame: Frame,
    patch_size: int,
    window_scales: np.ndarray | None = None,
) -> Image.Image:
    """
    Args:
        image (`PIL.Image`): the original one.
        coordinates (`np.ndarray` of shape `(num_tokens, 2)`): `(x, y)`, model frame.
        frame ([`Frame`]): of the image in the model.
        patch_size (`int`): side of a window of scale 1, in pixels of the model's input.
        window_scales (`np.ndarray` of shape `(num_tokens,)`, *optional*): in patches.

    Returns:
        `PIL.Image`: all of the original image, enlarged where it is small.
    """
    factor = max(1, -(-SHORTEST // max(image.size)))
    size = (image.width * factor, image.height * factor)
    picture = image.convert("RGB").resize(size, Image.Resampling.LANCZOS) if factor > 1 else image.convert("RGB")
    scales = np.ones(len(coordinates)) if window_scales is None else np.asarray(window_scales)
    half = patch_size / 2 * scales[:, None] / np.array(frame.model_size)
    low, high = (frame.to_image(coordinates.astype(np.float64) + sign * half) * size for sign in (-1, 1))
    centers = frame.to_image(coordinates.astype(np.float64)) * size
    seen = Image.new("L", size)
    draw = ImageDraw.Draw(seen)
    corners = np.concatenate([low, np.maximum(low, high - 1)], axis=1).tolist()  # the last pixel is drawn, too
    for one in corners:
        draw.rectangle(one, fill=255)
    picture = Image.composite(picture, ImageEnhance.Brightness(picture).enhance(DIMMED), seen)
    draw = ImageDraw.Draw(picture)
    width = max(1, round(max(size) / 400))
    for one in corners:
        draw.rectangle(one, outline=WINDOW_COLOR, width=width)
    for x, y in centers:
        draw.ellipse((x - 1.5 * width, y - 1.5 * width, x + 1.5 * width, y + 1.5 * width), fill=CENTER_COLOR)
    return picture


def tokens_of(inputs: Any, index: int) -> tuple[np.ndarray | None, np.ndarray | None]:
    """
    The tokens of an image, of what an image processor returned.

    Args:
        inputs (`dict`): with `coordinates`, and perhaps `coordinates_mask` and `window_scales`.
        index (`int`): which image of the batch.

    Returns:
        `tuple`: coordinates `(num_tokens, 2)` and window scales `(num_tokens,)`; each `None` where there are none.
    """

    def of(name: str) -> np.ndarray | None:
        value = inputs.get(name)
        if value is None:
            return None
        if not 0 <= index < len(value):
            raise ValueError(f"`index` must be that of one of {len(value)} images; got {index}")
        one = value[index]
        return np.asarray(one.detach().cpu().float() if hasattr(one, "detach") else one)

    coordinates, mask, scales = of("coordinates"), of("coordinates_mask"), of("window_scales")
    if coordinates is None or mask is None:
        return coordinates, scales
    kept = mask.astype(bool)
    return coordinates[kept], None if scales is None else scales[kept]
