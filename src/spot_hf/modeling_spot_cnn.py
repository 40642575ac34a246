"""SpotCNN: a convolutional network that sees an image through windows at continuous positions, laid out as a mosaic.

`coordinates` are as in [`SpotViTModel`]. A token is a window of `patch_size` × `patch_size` pixels, as large as one or more
cells of the network's last feature map. In the order in which they are given, row by row, the windows are laid side by side,
and the unchanged network runs on that mosaic as if it were an image. Unlike to a Vision Transformer, order matters: what lies
side by side in the mosaic the network takes for neighbours. With the centres of all grid cells as coordinates the mosaic is
the image, and a converted model gives its source model's outputs.
"""

from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import AutoModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import can_return_tuple

from .configuration_spot_cnn import AUTO_MAP, SpotCNNConfig
from .input_checks import check_model_inputs
from .modeling_spot import SpotForImageClassification, SpotPreTrainedModel
from .windows import sample_windows


if TYPE_CHECKING:
    # Saving a model copies the files that this one imports: these, so that a saved model also has its processor and pipeline.
    from .image_processing_spot_vit import SpotViTImageProcessor  # noqa: F401
    from .pipeline_spot_vit import SpotImageClassificationPipeline  # noqa: F401


def lay_mosaic(windows: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Windows side by side, row by row: `(batch_size, rows * columns, num_channels, patch_size, patch_size)` to
    `(batch_size, num_channels, rows * patch_size, columns * patch_size)`."""
    tiles = windows.unflatten(1, (rows, columns))  # (batch_size, rows, columns, num_channels, patch_size, patch_size)
    return tiles.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


class SpotCNNPreTrainedModel(SpotPreTrainedModel):
    config: SpotCNNConfig
    config_class = SpotCNNConfig
    base_model_prefix = "spot_cnn"
    auto_map = AUTO_MAP
    _no_split_modules = ["SpotCNNModel"]

    def resize_position_embeddings(self, height: int, width: int) -> None:
        """As [`SpotViTPreTrainedModel.resize_position_embeddings`]: a CNN has none, and takes images of any size, so that only
        `config.image_size` changes."""
        self.config.set_image_size(height, width)


class SpotCNNModel(SpotCNNPreTrainedModel):
    """The network without its classifier: windows to a feature map, and one pooled feature per image."""

    def __init__(self, config: SpotCNNConfig):
        super().__init__(config)
        # Not of the dtype that the network was saved in, but of that in which all of this is made.
        self.network = AutoModel.from_config(config.network_config, dtype=torch.get_default_dtype())
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        coordinates: torch.Tensor | None = None,
        coordinates_mask: torch.Tensor | None = None,
        window_scales: torch.Tensor | None = None,
        merge_tokens: float | list[int] | None = None,
        windows: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        r"""
        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`): any height and width of at
                least `patch_size`.
            coordinates (`torch.Tensor` of shape `(batch_size or 1, num_tokens, 2)`, float32, *optional*): centre `(x, y)` of
                each token's window, relative to `pixel_values`, in the order of the mosaic, row by row, as many as
                [`SpotCNNConfig.mosaic_shape`] has rows and columns for. Without them the network sees the image as it is: the
                same as with all cells of the grid, where these leave no pixels over.
            coordinates_mask (`torch.Tensor` of shape `(batch_size or 1, num_tokens)`, bool or integer, *optional*): 1 for
                tokens, 0 for padding, which is left out: images with the same number of tokens run together.
            window_scales (`torch.Tensor` of shape `(batch_size or 1, num_tokens)`, float32, *optional*): multiples of the
                distance of one pixel between a window's samples, above 0; 1 by default.
            merge_tokens (*optional*): must be none or 0, as a CNN has no tokens that could merge.
            windows (`torch.Tensor` of shape `(batch_size, num_tokens, num_channels, patch_size, patch_size)`, *optional*): in
                place of `pixel_values`, the windows that are cut out of them at `coordinates`, as the image processor returns
                them. The image then has the size that `config.image_size` says.
            output_hidden_states (`bool`, *optional*): whether to return the network's feature maps.

        Returns:
            `BaseModelOutputWithPooling`: `pooler_output` `(batch_size, hidden_size)`; `last_hidden_state`
            `(batch_size, hidden_size, rows, columns)`, the feature map of the mosaic, and `hidden_states`, as the network
            gives them, unless numbers of tokens differ within the batch.

        Raises:
            `ValueError`: a tensor's shape or dtype is not as above, a number of tokens makes no mosaic; on the CPU, or with
                `config.check_inputs`, also a position that is not finite or given in pixels, and a scale that is not above 0.
        """
        config = self.config
        check_model_inputs(config, pixel_values, coordinates, coordinates_mask, window_scales, windows)
        if merge_tokens:
            raise ValueError(f"`merge_tokens` must be 0, as a CNN has no tokens that could merge; got {merge_tokens!r}")
        options = {} if output_hidden_states is None else {"output_hidden_states": output_hidden_states}
        if coordinates is None:
            assert pixel_values is not None
            return self._run(pixel_values, **options)
        height, width = config.image_height_width if pixel_values is None else pixel_values.shape[-2:]
        mask = counts = None
        if coordinates_mask is not None:
            batch_size = len(pixel_values if windows is None else windows)  # type: ignore[arg-type]
            mask = coordinates_mask.bool().expand(batch_size, -1)
            counts = mask.sum(1)
        different = [coordinates.shape[1]] if counts is None else counts.unique().tolist()
        shapes = {count: config.mosaic_shape(count, height, width) for count in different}
        if windows is None:
            assert pixel_values is not None
            windows = sample_windows(pixel_values, coordinates, config.patch_size, window_scales)
        if mask is None or counts is None:
            return self._run(lay_mosaic(windows, *shapes[different[0]]), **options)
        pooled = None
        for count, shape in shapes.items():
            images = (counts == count).nonzero()[:, 0]
            kept = windows[images][mask[images]].unflatten(0, (len(images), count))
            outputs = self._run(lay_mosaic(kept, *shape), **options)
            if len(shapes) == 1:
                return outputs
            features = outputs.pooler_output
            pooled = features.new_zeros(len(mask), features.shape[1]) if pooled is None else pooled
            pooled = pooled.index_copy(0, images, features)
        return BaseModelOutputWithPooling(pooler_output=pooled)

    def _run(self, pixels: torch.Tensor, **options: bool) -> BaseModelOutputWithPooling:
        """The network on an image, or a mosaic, `(batch_size, num_channels, height, width)`."""
        if pixels.device.type == "cpu":  # where convolutions are faster so: 1.6 times those of an EfficientNet-Lite0
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        outputs = self.network(pixels.to(self.dtype), **options)
        return BaseModelOutputWithPooling(
            last_hidden_state=outputs.last_hidden_state,
            pooler_output=outputs.pooler_output.flatten(1),
            hidden_states=outputs.hidden_states,
        )


class SpotCNNForImageClassification(SpotForImageClassification, SpotCNNPreTrainedModel):
    """SpotCNN with a linear classifier on its pooled feature."""

    def __init__(self, config: SpotCNNConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.spot_cnn = SpotCNNModel(config)
        self.classifier = nn.Linear(config.pooled_size, config.num_labels) if config.num_labels > 0 else nn.Identity()
        self.placer = None
        self.post_init()


__all__ = ["SpotCNNForImageClassification", "SpotCNNModel", "SpotCNNPreTrainedModel"]
