"""Configuration of SpotCNN: a convolutional classifier that sees windows at continuous positions, laid out as a mosaic."""

import itertools
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

from .budgets import check_num_tokens
from .configuration_spot import CUSTOM_PIPELINES, SpotConfigMixin, check_names
from .foveation import row_counts
from .placement import COVERING_PLACEMENTS


# Pixels of the image per cell of the network's last feature map, along each side.
STRIDE = 32

AUTO_MAP = {
    "AutoConfig": "configuration_spot_cnn.SpotCNNConfig",
    "AutoModel": "modeling_spot_cnn.SpotCNNModel",
    "AutoModelForImageClassification": "modeling_spot_cnn.SpotCNNForImageClassification",
}


@strict
class SpotCNNConfig(SpotConfigMixin, PreTrainedConfig):
    r"""
    Configuration of a [`SpotCNNModel`]. The defaults give a ResNet-50 at 224 pixels.

    Args:
        network_config (`PreTrainedConfig` or `dict`, *optional*): of the network that is wrapped, one of stride 32 that
            transformers' `AutoModel` builds, such as a ResNet, ConvNeXt or timm's; a ResNet-50 by default.
        hidden_size (`int`, defaults to 2048): width of the network's pooled feature.
        image_size (`int` or `[height, width]`, defaults to 224): of the images in pixels. Images of any size are accepted.
        patch_size (`int`, defaults to 32): a token is a window of `patch_size` × `patch_size` pixels, a multiple of 32.
        num_channels (`int`, defaults to 3): channels of `pixel_values`.
        check_inputs (`bool`, *optional*): whether the values of `coordinates` and `window_scales` are checked; by default on
            the CPU, as an accelerator has to be waited for.
        num_tokens (`int` or `list[int]`, *optional*): tokens per image where a classifier is given no `coordinates`: it
            then places them itself. Several, ascending: a look with each in turn, until it is sure. By default all cells of
            the grid.
        placement (`str`, defaults to `"isotropic"`): how it does: `"isotropic"`, `"foveated_edge"` or `"foveated_center"`.
        confidence (`float` or `list[float]`, *optional*): with several `num_tokens`, the probability of the likeliest class
            with which an image needs no further look: one, or one for each look but the last.
        calibration (`dict`, *optional*): what `spot-hf calibrate` has measured for `num_tokens`.
        source_model (`dict`, *optional*): where the weights were converted from, as `spot-hf convert` records it
            (`name`, `revision`, `family`, `license`). Informative only.
    """

    model_type = "spot_cnn"
    sub_configs = {"network_config": AutoConfig}

    network_config: dict[str, Any] | PreTrainedConfig | None = None
    hidden_size: int = 2048
    image_size: int | list[int] | tuple[int, int] = 224
    patch_size: int = STRIDE
    num_channels: int = 3
    check_inputs: bool | None = None
    num_tokens: int | list[int] | tuple[int, ...] | None = None
    placement: str = "isotropic"
    confidence: float | int | list[float] | tuple[float, ...] | None = None
    calibration: dict[str, Any] | None = None
    source_model: dict[str, Any] | None = None

    # What a ViT's configuration may say otherwise: windows are plain, of samples one pixel apart, and nothing merges.
    has_plain_windows = True
    window_spacing = 1.0
    merge_tokens = 0.0
    placer = None

    def __post_init__(self, **kwargs):
        if not isinstance(self.network_config, PreTrainedConfig):
            fields = dict(self.network_config or {})
            self.network_config = AutoConfig.for_model(fields.pop("model_type", "resnet"), **fields)
        kwargs.setdefault("auto_map", dict(AUTO_MAP))
        kwargs.setdefault("custom_pipelines", {task: dict(entry) for task, entry in CUSTOM_PIPELINES.items()})
        super().__post_init__(**kwargs)

    @property
    def pooled_size(self) -> int:
        """Width of `pooler_output`, and of what the classifier takes."""
        return self.hidden_size

    def mosaic_shape(self, num_tokens: int, height: int, width: int) -> tuple[int, int]:
        """
        `(rows, columns)` of the mosaic of so many windows of an image: those of the grid for as many as it has cells, and else
        those in which `isotropic` and `center` list their tokens, which are nearest to the image's shape.

        Args:
            num_tokens (`int`): at least 1.
            height (`int`), width (`int`): of the image, in pixels.

        Raises:
            `ValueError`: rows would have different numbers of windows.
        """
        check_num_tokens(num_tokens)
        grid = height // self.patch_size, width // self.patch_size
        num_cells = grid[0] * grid[1]
        if num_tokens == num_cells:
            return grid

        def lattice(count: int) -> tuple[int, int] | None:
            rows = row_counts(count, width / height)
            return (len(rows), rows[0]) if len(set(rows)) == 1 else None

        shape = lattice(num_tokens)
        if shape is None:
            below = next(filter(lattice, range(num_tokens, 0, -1)))
            above = next(filter(lattice, itertools.count(num_tokens)))
            few = sorted({*filter(lattice, range(1, min(num_cells, 100))), below, above, num_cells})
            raise ValueError(
                f"`num_tokens` must make a mosaic of equal rows for a CNN, of {height} × {width} pixels in windows of "
                f"{self.patch_size} one of {', '.join(map(str, few))}; got {num_tokens}"
            )
        return shape

    def check_token_count(self, num_tokens: int, height: int, width: int) -> None:
        """As [`mosaic_shape`]."""
        self.mosaic_shape(num_tokens, height, width)

    def set_image_size(self, height: int, width: int) -> None:
        """For images of another size."""
        self.image_size = height if height == width else [height, width]

    def validate_architecture(self):
        """Part of `@strict`: raises `ValueError` for a combination that no model can have."""
        check_names(self, placement=COVERING_PLACEMENTS)
        if self.patch_size < STRIDE or self.patch_size % STRIDE:
            raise ValueError(f"`patch_size` must be a multiple of the network's stride, {STRIDE}; got {self.patch_size}")
        for name in ("hidden_size", "num_channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1; got {getattr(self, name)}")
        self.check_own_tokens()


__all__ = ["SpotCNNConfig"]
