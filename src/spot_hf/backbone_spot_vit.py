"""SpotViT as a backbone of other models' heads: on the full grid, feature maps of any layer, as DINOv2's backbone gives them;
of freely placed tokens, their features."""

from dataclasses import dataclass

import torch
from transformers.backbone_utils import BackboneMixin, filter_output_hidden_states
from transformers.modeling_outputs import BackboneOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .configuration_spot_vit import SpotViTConfig
from .modeling_spot_vit import SpotViTModel, SpotViTPreTrainedModel


@dataclass
class SpotViTBackboneOutput(BackboneOutput):
    """
    What [`SpotViTBackbone`] returns.

    Args:
        feature_maps (`tuple[torch.Tensor]`): of each of `out_features`, on the full grid, `(batch_size, hidden_size, rows,
            columns)`, or with `config.reshape_hidden_states=False` the sequence with its prefix tokens, `(batch_size,
            num_prefix_tokens + num_tokens, hidden_size)`; of placed tokens `(batch_size, num_tokens, hidden_size)`.
        hidden_states, attentions: on request.
        coordinates (`torch.Tensor` of shape `(batch_size, num_tokens, 2)`, float32, *optional*), coordinates_mask
            (`torch.Tensor` of shape `(batch_size, num_tokens)`, bool, *optional*), window_scales (`torch.Tensor` of shape
            `(batch_size, num_tokens)`, float32, *optional*): of placed tokens, as they were given, for every image.
    """

    coordinates: torch.Tensor | None = None
    coordinates_mask: torch.Tensor | None = None
    window_scales: torch.Tensor | None = None


class SpotViTBackbone(BackboneMixin, SpotViTPreTrainedModel):
    """A SpotViT without its pooling, for heads such as UPerNet, DPT and Depth Anything."""

    def __init__(self, config: SpotViTConfig):
        config = config.without_pooling_head()
        if config.out_features is None:  # only a backbone has any
            config.set_output_features_output_indices(out_features=None, out_indices=None)
        super().__init__(config)
        self.num_features = [config.hidden_size] * len(config.stage_names)
        self.spot_vit = SpotViTModel(config)
        self.post_init()

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.spot_vit.get_input_embeddings()

    @can_return_tuple
    @filter_output_hidden_states
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        coordinates: torch.Tensor | None = None,
        coordinates_mask: torch.Tensor | None = None,
        window_scales: torch.Tensor | None = None,
        windows: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SpotViTBackboneOutput:
        """
        Args:
            pixel_values, coordinates, coordinates_mask, window_scales, windows: as in [`SpotViTModel.forward`]. Without
                `coordinates` the features of the full grid are laid out as maps. Tokens do not merge here.

        Returns:
            [`SpotViTBackboneOutput`].

        Raises:
            `ValueError`: a tensor's shape or dtype is not as above, or tokens are asked to merge.
        """
        if kwargs.pop("merge_tokens", None):
            raise ValueError("`merge_tokens` must be 0 in a backbone: a merged token has no place of its own")
        outputs = self.spot_vit(
            pixel_values,
            coordinates,
            coordinates_mask,
            window_scales,
            windows=windows,
            **{**kwargs, "merge_tokens": 0.0, "output_hidden_states": True, "return_dict": True},
        )
        feature_maps = tuple(
            self._feature_map(hidden_state, None if coordinates is not None else pixel_values)
            for stage, hidden_state in zip(self.stage_names, outputs.hidden_states, strict=True)
            if stage in self.out_features
        )
        placed = {"coordinates": coordinates, "coordinates_mask": coordinates_mask, "window_scales": window_scales}
        count = feature_maps[0].shape[0]  # `len` would be a constant of an exported graph
        return SpotViTBackboneOutput(
            feature_maps=feature_maps,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **{name: one if one is None else one.expand(count, *one.shape[1:]) for name, one in placed.items()},
        )

    def _feature_map(self, hidden_state: torch.Tensor, pixel_values: torch.Tensor | None) -> torch.Tensor:
        """Of one layer's `(batch_size, sequence, hidden_size)`; of placed tokens, without `pixel_values`."""
        if self.config.apply_layernorm:
            hidden_state = self.spot_vit.layernorm(hidden_state)
        if pixel_values is not None and not self.config.reshape_hidden_states:
            return hidden_state
        hidden_state = hidden_state[:, self.config.num_prefix_tokens :]
        if pixel_values is None:
            return hidden_state
        rows, columns = (size // self.config.patch_size for size in pixel_values.shape[-2:])
        return hidden_state.transpose(1, 2).unflatten(2, (rows, columns)).contiguous()


__all__ = ["SpotViTBackbone", "SpotViTBackboneOutput"]
