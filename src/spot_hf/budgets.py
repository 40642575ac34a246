"""Budget per image: a look with few tokens first, and a further one only at images of which the model is not yet sure.

The confidence of a look is the largest probability of its softmax, at a temperature that `spot-hf calibrate` has fitted. An
image whose confidence reaches the look's threshold leaves the batch; the rest go on. What an image costs is all of its looks.
Cascades of more and more tokens: Wang et al. 2021, "Not All Images are Worth 16x16 Words" (arXiv 2105.15075).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Integral, Real
from typing import Any

import torch


@dataclass(frozen=True)
class Budgets:
    """
    Several looks, from the cheapest to the most expensive.

    Attributes:
        num_tokens (`tuple[int, ...]`): of each look.
        confidence (`tuple[float, ...]`): for each look but the last, the confidence with which an image stops.
        temperature (`tuple[float, ...]`): by which the logits of each look are divided.
    """

    num_tokens: tuple[int, ...]
    confidence: tuple[float, ...]
    temperature: tuple[float, ...]


def look_until_sure(
    look: Callable[[int, torch.Tensor], torch.Tensor], images: torch.Tensor, budgets: Budgets
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Classifies images with as many looks as each needs.

    Args:
        look: of the number of a look, and of the images `(num_left,)` that it is for, gives logits `(num_left, num_labels)`.
        images (`torch.LongTensor` of shape `(batch_size,)`): 0, 1, ..., on the model's device.
        budgets ([`Budgets`]): what the looks are.

    Returns:
        `tuple`: logits `(batch_size, num_labels)` of each image's last look, divided by its temperature; and how many tokens
        all its looks had, int64 `(batch_size,)`.
    """
    logits, left = look(0, images) / budgets.temperature[0], images
    spent = torch.full_like(images, budgets.num_tokens[0])
    found = logits
    for number, confidence in enumerate(budgets.confidence, start=1):
        unsure = found.float().softmax(-1).amax(-1) < confidence
        left = left[unsure]
        if len(left) == 0:
            break
        found = look(number, left) / budgets.temperature[number]
        logits = logits.index_copy(0, left, found)
        spent = spent.index_add(0, left, torch.full_like(left, budgets.num_tokens[number]))
    return logits, spent


def resolve_budgets(
    config: Any,
    num_tokens: int | Sequence[int] | None,
    confidence: float | Sequence[float] | None = None,
    max_mean_tokens: float | None = None,
) -> int | Budgets | None:
    """
    What the arguments of a model say, or else its config.

    Args:
        config ([`SpotViTConfig`]): whose `num_tokens` and `confidence` are defaults, and whose `calibration` has temperatures
            and, by the mean number of tokens, thresholds.
        num_tokens (`int` or `list[int]`, *optional*): tokens per image, or of each look, ascending.
        confidence (`float` or `list[float]`, *optional*): with which an image stops: one for all looks, or one for each but
            the last.
        max_mean_tokens (`float`, *optional*): instead: the calibrated thresholds with which images had at most so many tokens
            on average.

    Returns:
        `int`, [`Budgets`] or `None`: a number of tokens, several looks, or nothing where neither says anything.

    Raises:
        `ValueError`: an argument that there cannot be, or several numbers without a confidence.
    """
    if num_tokens is None:
        num_tokens = config.num_tokens
    if num_tokens is None or isinstance(num_tokens, Integral):
        check_no_budget(num_tokens, confidence, max_mean_tokens)
        if num_tokens is None:
            return None
        check_num_tokens(num_tokens)
        return int(num_tokens)
    looks = check_looks(num_tokens)
    check_one_budget(confidence, max_mean_tokens)
    calibration = config.calibration or {}
    is_calibrated = tuple(calibration.get("num_tokens", ())) == looks
    temperature = tuple(calibration["temperature"]) if is_calibrated else (1.0,) * len(looks)
    if max_mean_tokens is not None:
        if not is_calibrated:
            raise ValueError(
                f"`max_mean_tokens` needs thresholds that were calibrated for num_tokens={list(looks)}: `spot-hf calibrate`"
            )
        confidence = _within(calibration["points"], max_mean_tokens)
    elif confidence is None and tuple(looks_of(config.num_tokens)) == looks:
        confidence = config.confidence
    if confidence is None:
        raise ValueError(
            f"`confidence` is needed with several `num_tokens`, {list(looks)}: a probability at which an image stops; got none"
        )
    return Budgets(looks, check_confidence(confidence, len(looks)), temperature)


def looks_of(num_tokens: Any) -> list[Any]:
    """The number of tokens of each look, of one number, or none, or of several."""
    return list(num_tokens) if isinstance(num_tokens, (list, tuple)) else [num_tokens]


def check_one_budget(confidence: Any, max_mean_tokens: Any) -> None:
    """`ValueError` where both say when an image stops."""
    if confidence is not None and max_mean_tokens is not None:
        raise ValueError("`confidence` and `max_mean_tokens` exclude each other; got both")


def check_no_budget(num_tokens: Any, confidence: Any, max_mean_tokens: Any) -> None:
    """`ValueError` where one says when an image stops, of one look, or none."""
    for name, value in (("confidence", confidence), ("max_mean_tokens", max_mean_tokens)):
        if value is not None:
            raise ValueError(f"`{name}` needs several `num_tokens`, such as [9, 25, 49]; got {name}={value!r}, {num_tokens}")


def check_looks(num_tokens: Any) -> tuple[int, ...]:
    """`ValueError` where they are not several numbers of tokens, ascending."""
    looks = tuple(num_tokens) if isinstance(num_tokens, (list, tuple)) else ()
    for one in looks:
        check_num_tokens(one)
    looks = tuple(map(int, looks))
    if len(looks) < 2 or any(low >= high for low, high in pairwise(looks)):
        raise ValueError(f"`num_tokens` must be one number, or several, ascending; got {num_tokens!r}")
    return looks


def check_num_tokens(num_tokens: Any) -> None:
    """`ValueError` where it is no number of tokens."""
    if isinstance(num_tokens, bool) or not isinstance(num_tokens, Integral) or num_tokens < 1:
        raise ValueError(f"`num_tokens` must be positive integers; got {num_tokens!r}")


def check_confidence(confidence: Any, num_looks: int) -> tuple[float, ...]:
    """One per look but the last; `ValueError` where it is something else, or no probability. Above 1, an image never stops."""
    values = tuple(confidence) if isinstance(confidence, (list, tuple)) else (confidence,) * (num_looks - 1)
    numbers = [isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) for value in values]
    if len(values) != num_looks - 1 or not all(numbers) or min(values) < 0:
        raise ValueError(
            f"`confidence` must be one number of at least 0, or {num_looks - 1}, one for each of {num_looks} looks but the "
            f"last; got {confidence!r}"
        )
    return tuple(map(float, values))


def _within(points: list[dict[str, Any]], max_mean_tokens: Any) -> list[float]:
    """The thresholds of the most expensive calibrated point within a mean number of tokens: the more expensive, the better."""
    if not isinstance(max_mean_tokens, Real) or isinstance(max_mean_tokens, bool):
        raise ValueError(f"`max_mean_tokens` must be a number; got {max_mean_tokens!r}")
    affordable = [point for point in points if point["mean_tokens"] <= max_mean_tokens]
    if not affordable:
        least = min(point["mean_tokens"] for point in points)
        raise ValueError(f"`max_mean_tokens` must be at least {least:.1f}, as calibrated; got {max_mean_tokens!r}")
    return max(affordable, key=lambda point: point["mean_tokens"])["confidence"]
