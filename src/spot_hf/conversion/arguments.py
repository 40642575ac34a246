"""Arguments of a conversion, and of `spot-hf convert`."""

from dataclasses import dataclass, field, fields
from typing import Any

from ..placement import check_placement, get_placement


@dataclass(kw_only=True)
class ConversionArguments:
    """How a checkpoint is converted: what [`convert_checkpoint`] takes beside the source and the place of the result."""

    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a Hub id."})
    num_tokens: int | None = field(default=None, metadata={"help": "Saved default: tokens per image (default: all cells)."})
    placement: str | None = field(default=None, metadata={"help": "Saved default: the prior that places them."})
    image_size: list[int] | None = field(
        default=None,
        metadata={
            "help": "Height and width of the images in pixels, or one number for both (default: the source's). The position "
            "table is interpolated as the source does."
        },
    )
    num_labels: int | None = field(
        default=None, metadata={"help": "Give a source without a classifier a new one with so many labels."}
    )
    num_attention_heads: int | None = field(
        default=None, metadata={"help": "Of a file without a config, where its heads are not 64 wide."}
    )
    architecture: str | None = field(
        default=None, metadata={"help": "timm's name of a convolutional network, of a file without a config (needs timm)."}
    )
    patch_size: int | None = field(
        default=None,
        metadata={"help": "Of a convolutional network: pixels of a window's side, a multiple of 32 (default: 32)."},
    )
    seed: int = field(default=0, metadata={"help": "Seed of a new classifier."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Replace what is in --output_dir."})

    @property
    def height_width(self) -> tuple[int, int] | None:
        """`(height, width)` of `image_size`, where it is given."""
        return None if self.image_size is None else (self.image_size[0], self.image_size[-1])

    def check(self) -> None:
        """`ValueError` that names the argument that no conversion can have. Needs no source."""
        if self.num_tokens is not None or self.placement is not None:
            check_placement(self.placement or "isotropic", self.num_tokens)
        if self.placement is not None and get_placement(self.placement).saliency:
            raise ValueError(
                f"`placement` {self.placement!r} cannot be a saved default: it needs a saliency map with every image"
            )
        for name in ("num_labels", "num_attention_heads", "patch_size"):
            if getattr(self, name) is not None and not _is_count(getattr(self, name)):
                raise ValueError(f"`{name}` must be a positive integer; got {getattr(self, name)!r}")
        size = self.image_size
        if size is not None and not (len(size) in (1, 2) and all(_is_count(pixels) for pixels in size)):
            raise ValueError(f"`image_size` must be a number of pixels, or height and width; got {size!r}")

    def check_image_size(self, patch_size: int) -> None:
        """`ValueError` where not even one patch of the source fits into the images."""
        if self.height_width is not None and min(self.height_width) < patch_size:
            raise ValueError(f"`image_size` must be at least the source's patch_size={patch_size}; got {self.image_size}")


@dataclass(kw_only=True)
class ConvertArguments(ConversionArguments):
    """Arguments of `spot-hf convert`."""

    source_model: str = field(
        metadata={"help": "The checkpoint: a Hub id, a directory, or a file (.safetensors, .bin, .pth)."}
    )
    output_dir: str = field(metadata={"help": "Where to write the SpotViT."})
    push_to_hub: bool = field(default=False, metadata={"help": "Also upload the result to --hub_model_id."})
    hub_model_id: str | None = field(default=None, metadata={"help": "Repository to push to, such as user/name."})
    hub_private: bool = field(default=False, metadata={"help": "Create that repository as a private one."})

    def conversion(self) -> dict[str, Any]:
        """The keywords of [`convert_checkpoint`] among these."""
        return {one.name: getattr(self, one.name) for one in fields(ConversionArguments)}


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
