"""Images that cannot be read: the one policy of all jobs. They are skipped, named, counted and listed in the record; where
they are too many, the job stops.

Only an error of reading or decoding is such a failure: an error of our own is an error.
"""

from collections.abc import Sequence
from dataclasses import dataclass


class UnreadableImageError(OSError):
    """An image whose bytes cannot be read or decoded; the message says why."""


class TooManyFailedImagesError(OSError):
    """More images than `max_failed_share` allows could not be read."""


@dataclass(frozen=True)
class FailedImage:
    """An image that was skipped."""

    image_index: int  # in the source's split
    image_id: str
    error: str

    def __str__(self) -> str:
        return f"{self.image_id}: {self.error}"


def check_max_failed_share(max_failed_share: float) -> None:
    """`ValueError` where it is no share."""
    if not 0 <= max_failed_share <= 1:
        raise ValueError(f"`max_failed_share` must lie in [0, 1]; got {max_failed_share}")


def check_failures(failed: Sequence[FailedImage], num_images: int, max_failed_share: float) -> None:
    """[`TooManyFailedImagesError`] where more than that share of `num_images`, the readable ones included, have failed."""
    if len(failed) > max_failed_share * num_images:
        raise TooManyFailedImagesError(
            f"{len(failed)} of {num_images} images could not be read, more than `max_failed_share` {max_failed_share:g} "
            f"allows, such as {failed[0]}"
        )


def describe_failures(failed: Sequence[FailedImage]) -> str:
    """For the log: how many, and the first of them."""
    more = f", and {len(failed) - 3} more" if len(failed) > 3 else ""
    subject = "1 image could not be read and was" if len(failed) == 1 else f"{len(failed)} images could not be read and were"
    return f"{subject} skipped: {'; '.join(map(str, failed[:3]))}{more}"
