"""What the configurations of this package have in common."""

from collections.abc import Sequence
from typing import Any

from .budgets import check_confidence, check_looks, check_num_tokens


# What `pipeline` looks up in a saved config.
CUSTOM_PIPELINES = {
    "spot-image-classification": {
        "impl": "pipeline_spot_vit.SpotImageClassificationPipeline",
        "pt": ["AutoModelForImageClassification"],
        "type": "image",
    }
}


class SpotConfigMixin:
    """Of a configuration with `image_size`, `num_tokens` and `confidence`."""

    @property
    def image_height_width(self) -> tuple[int, int]:
        """`(height, width)` of `image_size`, in pixels."""
        size: Any = self.image_size  # type: ignore[attr-defined]
        if not isinstance(size, int) and len(size) != 2:
            raise ValueError(f"`image_size` must be a number of pixels or [height, width]; got {size}")
        return (size, size) if isinstance(size, int) else (size[0], size[1])

    def check_token_count(self, num_tokens: int, height: int, width: int) -> None:
        """`ValueError` where a model cannot have so many tokens of images of `height` × `width` pixels: here, any will do."""

    def check_own_tokens(self) -> None:
        """`ValueError` where `num_tokens` and `confidence`, with which a classifier places tokens itself, are none."""
        num_tokens, confidence = self.num_tokens, self.confidence  # type: ignore[attr-defined]
        if isinstance(num_tokens, (list, tuple)):
            looks = check_looks(num_tokens)
            if confidence is not None:
                check_confidence(confidence, len(looks))
        elif num_tokens is not None:
            check_num_tokens(num_tokens)


def check_names(config: Any, **accepted: Sequence[Any]) -> None:
    """`ValueError` for a field whose value is none of those that are accepted."""
    for name, values in accepted.items():
        if getattr(config, name) not in values:
            raise ValueError(f"`{name}` must be one of {', '.join(map(str, values))}; got {getattr(config, name)!r}")


__all__ = ["CUSTOM_PIPELINES", "SpotConfigMixin", "check_names"]
