"""Images as a worse camera, weather or file would give them: the corruptions of ImageNet-C, by its names and severities.

Both are Hendrycks and Dietterich's (2019, arXiv 1903.12261), computed by the package `imagecorruptions-imaug`, an extra. As in
ImageNet-C, what is corrupted is what the model sees: 8-bit pixels after resize and crop. So a severity means the same for
photographs of any size, and coordinates, boxes and saliency, which are of the original image, stay as they are. What is random
in it is drawn from the seed and the image's id alone, and is the same at every severity.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np
from PIL import Image

from ..placement import generator_for


PACKAGE = "imagecorruptions-imaug"
# Those of the benchmark, and the four that it holds out.
CORRUPTIONS = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow", "frost",
    "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression",
    "speckle_noise", "gaussian_blur", "spatter", "saturate",
)  # fmt: skip
SEVERITIES = (1, 2, 3, 4, 5)
DEFAULT_SEVERITY = 3
LEAST_SIZE = 32  # pixels per side that the package takes
SEEDED = ("impulse_noise", "glass_blur")  # draw from a generator of their own; the others from NumPy's global one

CORRUPTION_HELP = (
    f"what the model sees is corrupted first, as in ImageNet-C: {', '.join(CORRUPTIONS)}. Needs pip install "
    "'spot_hf[corruptions]'"
)
SEVERITY_HELP = f"1 to 5 (default: {DEFAULT_SEVERITY})"


@dataclass(frozen=True)
class Corruption:
    """
    Attributes:
        name (`str`): of `CORRUPTIONS`.
        severity (`int`): 1 to 5.
        seed (`int`): of what is random in it, with each image's id.
    """

    name: str
    severity: int
    seed: int = 0

    def __str__(self) -> str:
        return f"{self.name} {self.severity}"

    def view(self, image_processor: Any, image: Any, image_id: str) -> Image.Image:
        """
        What a model sees of an image, corrupted: for a processor as [`of_views`] makes it.

        Args:
            image_processor: of the model, whose resize and crop come first.
            image (`PIL.Image` or [`DecodedImage`]): the original one.
            image_id (`str`): its id.

        Returns:
            `PIL.Image`: RGB, of the size that the model sees.
        """
        seen = image_processor(image, placement="grid", do_rescale=False, do_normalize=False, return_tensors="pt")
        return Image.fromarray(self(seen["pixel_values"][0].permute(1, 2, 0).numpy(), image_id))

    def __call__(self, pixels: np.ndarray, image_id: str) -> np.ndarray:
        """Corrupts `pixels`, uint8 `(height, width, 3)`, of at least 32 pixels per side, into new ones."""
        from imagecorruptions import corrupt  # seconds, of OpenCV and numba

        seed = generator_for(self.seed, image_id).initial_seed() % 2**32
        options = {"seed": seed} if self.name in SEEDED else {}
        with _seeded(seed):
            return corrupt(pixels, corruption_name=self.name, severity=self.severity, **options)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """NumPy's global generator, from which the package draws; restored afterwards."""
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)


def _check_package() -> None:
    """`ImportError` where it is not there, or cannot be imported."""
    try:
        version(PACKAGE)  # an older package, whose corruptions take no seed, has the same module
        import imagecorruptions  # noqa: F401
    except ImportError as error:
        reason = str(error).partition("\n")[0]
        raise ImportError(f"`corruption` needs {PACKAGE}: pip install 'spot_hf[corruptions]' ({reason})") from None


def of_views(image_processor: Any, size: tuple[int, int] | None = None) -> Any:
    """An image processor's recipe for what [`Corruption.view`] gives: without resize and crop; or, with `size`, resized to
    that `(height, width)` in pixels alone."""
    recipe: dict[str, Any] = {"do_resize": size is not None, "do_center_crop": False}
    if size is not None:
        recipe["size"] = dict(zip(("height", "width"), size, strict=True))
    return type(image_processor).from_dict({**image_processor.to_dict(), **recipe})


def check_corruptions(names: Sequence[str] | None, severities: Sequence[int] | None) -> None:
    """`ValueError` for what no job can have; `ImportError` where there is something to corrupt, and nothing to do it."""
    if not names:
        if severities is not None:
            raise ValueError("`severity` goes with `corruption`; got no `corruption`")
        return
    for name in names:
        if name not in CORRUPTIONS:
            raise ValueError(f"`corruption` must be of {', '.join(CORRUPTIONS)}; got {name!r}")
    for severity in severities or ():
        if severity not in SEVERITIES:
            raise ValueError(f"`severity` must be 1 to 5; got {severity}")
    for argument, values in (("corruption", names), ("severity", severities or ())):
        if len(set(values)) != len(values):
            raise ValueError(f"`{argument}` must be different ones; got {', '.join(map(str, values))}")
    _check_package()


def check_view_size(size: tuple[int, int], num_channels: int) -> None:
    """`ValueError` where what a model sees, of `size` `(width, height)` in pixels, cannot be corrupted."""
    width, height = size
    if min(width, height) < LEAST_SIZE or num_channels != 3:
        raise ValueError(
            f"`corruption` needs a model of RGB images of at least {LEAST_SIZE} × {LEAST_SIZE} pixels; got {num_channels} "
            f"channels of {width} × {height}"
        )


@dataclass(kw_only=True)
class CorruptionArguments:
    """Of a job that corrupts its images in one way, or not at all. It has a `seed`."""

    corruption: str | None = field(default=None, metadata={"help": f"How {CORRUPTION_HELP} (default: not at all)."})
    severity: int | None = field(default=None, metadata={"help": f"Of the corruption: {SEVERITY_HELP}."})

    seed = 0  # without annotation: the job's own field

    def check_corruption(self) -> None:
        """`ValueError` for what is none, and `ImportError` where the package is not there."""
        names = None if self.corruption is None else [self.corruption]
        check_corruptions(names, None if self.severity is None else [self.severity])

    @property
    def chosen_corruption(self) -> Corruption | None:
        """What is done to the images."""
        if self.corruption is None:
            return None
        severity = DEFAULT_SEVERITY if self.severity is None else self.severity
        return Corruption(self.corruption, severity, self.seed)

    def recorded_corruption(self) -> dict[str, Any]:
        """For a job's record: nothing where there is none, as before there were these options."""
        chosen = self.chosen_corruption
        return {} if chosen is None else {"corruption": chosen.name, "severity": chosen.severity}
