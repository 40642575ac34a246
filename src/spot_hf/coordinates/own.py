"""Coordinates that a person wrote by hand: a JSON file, for `spot-hf classify` and `spot-hf show`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..input_checks import check_coordinates, check_window_scales


OWN_COORDINATES = (
    "JSON file of positions (x, y) relative to the image: a list of [x, y] for all images, or an object from image name to "
    'such a list. Instead of a list, {"coordinates": [[x, y], ...], "window_scales": [s, ...]}, with sizes in patches.'
)


def read_own_coordinates(file: str, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """
    Reads such a file.

    Args:
        file (`str`): as `OWN_COORDINATES` says.
        names: of the images: paths or URLs, which the file may name in full or by their last part.

    Returns:
        `dict`: name → `coordinates` `(num_tokens, 2)` and perhaps `window_scales` `(num_tokens,)`, as in a pipeline's input.

    Raises:
        `ValueError`: the file is not of that form, or lacks an image.
    """
    try:
        value = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"`coordinates` must be a JSON file; {file!r}: {error}") from None
    if isinstance(value, list) or (isinstance(value, dict) and "coordinates" in value):
        return dict.fromkeys(names, _tokens_of(value, file))
    if not isinstance(value, dict):
        raise ValueError(f"`coordinates` {file!r} must be a list or an object; got {type(value).__name__}")
    found = {name: value.get(name, value.get(Path(name).name)) for name in names}
    absent = [name for name, own in found.items() if own is None]
    if absent:
        more = f" and {len(absent) - 1} more" if absent[1:] else ""
        raise ValueError(f"`coordinates` {file!r} has no entry for {absent[0]!r}{more}")
    return {name: _tokens_of(own, file) for name, own in found.items()}


def _tokens_of(value: Any, file: str) -> dict[str, Any]:
    """Of one image, checked."""
    tokens = dict(value) if isinstance(value, dict) else {"coordinates": value}
    unknown = set(tokens) - {"coordinates", "window_scales"}
    if unknown or "coordinates" not in tokens:
        raise ValueError(f"`coordinates` {file!r} must have coordinates and perhaps window_scales; got {', '.join(tokens)}")
    sets, one_set = check_coordinates(tokens["coordinates"])
    if not one_set:
        raise ValueError(f"`coordinates` {file!r} must be one list of [x, y], or an object from image name to such a list")
    found: dict[str, Any] = {"coordinates": sets[0].tolist()}
    if tokens.get("window_scales") is not None:
        check_window_scales(tokens["window_scales"])
        found["window_scales"] = tokens["window_scales"]
    return found
