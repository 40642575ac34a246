"""What the arguments of several jobs share."""

import json
from typing import Any


def json_object(name: str, text: str, example: str) -> dict[str, Any]:
    """The JSON object that argument `name` was given as text. `ValueError`, with an example, where it is none."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"`{name}` must be a JSON object, such as '{example}'; got {text!r}")
    return value
