"""SpotViT: a Vision Transformer whose patch tokens sit at continuous, subpixel positions (SPoT, arXiv 2507.01654).

Conventions, for every function here:

- `coordinates`: float32, `(batch_size, num_tokens, 2)`, order `(x, y)`, relative to `pixel_values`: 0 is the left or top
  edge of the image, 1 its right or bottom edge. Pixel `i` of a row of `width` pixels has its centre at
  `(i + 0.5) / width`.
- A token is a window of `patch_size` × `patch_size` samples, one pixel (`config.window_spacing`) apart, centred on its
  coordinate.
- With the centres of all grid cells as coordinates, a converted model gives its source model's outputs.
"""

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_spot_vit import AUTO_MAP, SpotViTConfig
from .input_checks import check_attention, check_model_inputs
from .merging import merge_tokens, schedule_of
from .modeling_spot import SpotForImageClassification, SpotPreTrainedModel, SpotViTImageClassifierOutput
from .placement import grid
from .placer import SpotViTPlacer
from .positions import (
    Displacements,
    Rotation,
    SpotViTPositionEmbeddings,
    SpotViTRelativePositionBias,
    SpotViTRotaryEmbeddings,
)
from .windows import sample_windows


if TYPE_CHECKING:
    # Saving a model copies the files that this one imports: these, so that a saved model has its processor and pipelines,
    # and its classes for other tasks.
    from .backbone_spot_vit import SpotViTBackbone  # noqa: F401
    from .image_processing_spot_vit import SpotViTImageProcessor  # noqa: F401
    from .pipeline_spot_vit import SpotImageClassificationPipeline  # noqa: F401
    from .pretraining_spot_vit import SpotViTForPreTraining  # noqa: F401
    from .segmentation_spot_vit import SpotViTForSemanticSegmentation  # noqa: F401
    from .zero_shot_spot_vit import SpotViTForZeroShotImageClassification  # noqa: F401


class SpotViTEmbeddings(nn.Module):
    """Turns images and coordinates into the encoder's input: class token and registers, then one token per window."""

    def __init__(self, config: SpotViTConfig):
        super().__init__()
        self.config = config
        # Position embeddings of the class and distillation tokens are part of these.
        prefix_shape = (1, config.num_prefix_tokens, config.hidden_size)
        self.prefix_tokens = nn.Parameter(torch.zeros(prefix_shape)) if config.num_prefix_tokens else None
        self.patch_projection = nn.Linear(config.num_channels * config.patch_size**2, config.hidden_size)
        self.position_embeddings = SpotViTPositionEmbeddings(config) if config.use_position_table else None
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if config.use_pre_norm else None
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        pixel_values: torch.Tensor | None,
        coordinates: torch.Tensor,
        window_scales: torch.Tensor | None = None,
        coordinates_mask: torch.Tensor | None = None,
        windows: torch.Tensor | None = None,
        *,
        height: int,
        width: int,
    ) -> torch.Tensor:
        """As [`SpotViTModel`] takes them, of images of `height` × `width` pixels, to `(batch_size, sequence, hidden_size)`."""
        config = self.config
        if windows is None:
            assert pixel_values is not None
            windows = sample_windows(
                pixel_values, coordinates, config.patch_size, window_scales, config.window_spacing, config.window_border
            )
        windows = windows.flatten(2)  # (batch_size, num_tokens, num_channels * patch_size²)
        embeddings = self.patch_projection(windows.to(self.patch_projection.weight.dtype))
        if self.position_embeddings is not None:
            positions = self.position_embeddings(coordinates, height, width, coordinates_mask)
            embeddings = embeddings + positions.to(embeddings.dtype)
        if self.prefix_tokens is not None:
            prefix_tokens = self.prefix_tokens.expand(embeddings.shape[0], -1, -1).to(embeddings.dtype)
            embeddings = torch.cat([prefix_tokens, embeddings], dim=1)
        embeddings = self.dropout(embeddings)
        return embeddings if self.layernorm is None else self.layernorm(embeddings)


# ----------------------------------------------------------------------------------------------------------- encoder


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention in plain operations, of `(batch_size, num_heads, num_tokens, head_dim)`; also returns its weights."""
    weights = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = nn.functional.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class SpotViTAttention(nn.Module):
    def __init__(self, config: SpotViTConfig):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_probs_dropout_prob
        self.is_causal = False
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.q_norm = nn.LayerNorm(self.head_dim, eps=config.layer_norm_eps) if config.use_qk_norm else None
        self.k_norm = nn.LayerNorm(self.head_dim, eps=config.layer_norm_eps) if config.use_qk_norm else None
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if config.use_attention_norm else None
        self.position_bias = SpotViTRelativePositionBias(config) if config.use_relative_position_bias else None

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        rotation: Rotation | None = None,
        displacements: Displacements | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """Returns the output, the weights where the implementation gives them, and the keys."""
        batch_size, num_tokens, hidden_size = hidden_states.shape
        heads = (batch_size, num_tokens, -1, self.head_dim)
        query = self.q_proj(hidden_states).view(heads)
        key = self.k_proj(hidden_states).view(heads)
        value = self.v_proj(hidden_states).view(heads)
        if self.q_norm is not None and self.k_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        if rotation is not None:
            query, key = rotation(query), rotation(key)
        query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        if self.position_bias is not None and displacements is not None:
            bias = self.position_bias(displacements).to(query.dtype)
            attention_mask = bias if attention_mask is None else attention_mask + bias
        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        output, weights = attention(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        output = output.reshape(batch_size, num_tokens, hidden_size)
        return self.o_proj(output if self.norm is None else self.norm(output)), weights, key


class SpotViTMLP(nn.Module):
    def __init__(self, config: SpotViTConfig):
        super().__init__()
        self.activation_fn = ACT2FN[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.norm = nn.LayerNorm(config.intermediate_size, eps=config.layer_norm_eps) if config.use_mlp_norm else None
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        activated = self.activation_fn(self.fc1(hidden_states))
        return self.fc2(activated if self.norm is None else self.norm(activated))


class SpotViTSwiGLU(nn.Module):
    def __init__(self, config: SpotViTConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.norm = nn.LayerNorm(config.intermediate_size, eps=config.layer_norm_eps) if config.use_mlp_norm else None
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        gated = nn.functional.silu(self.gate_proj(hidden_states)) * self.up_proj(hidden_states)
        return self.down_proj(gated if self.norm is None else self.norm(gated))


class SpotViTLayerScale(nn.Module):
    def __init__(self, config: SpotViTConfig):
        super().__init__()
        self.scale = nn.Parameter(torch.full((config.hidden_size,), float(config.layerscale_value)))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states * self.scale


class SpotViTDropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): while training, leaves a residual branch out for a share `drop_prob` of the
    images, and scales it up for the others."""

    def __init__(self, drop_prob: float):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if not self.training or self.drop_prob == 0:
            return hidden_states
        kept = torch.rand(hidden_states.shape[0], 1, 1, device=hidden_states.device) >= self.drop_prob
        return hidden_states * kept.to(hidden_states.dtype) / (1 - self.drop_prob)

    def extra_repr(self) -> str:
        return f"drop_prob={self.drop_prob}"


class SpotViTLayer(GradientCheckpointingLayer):
    def __init__(self, config: SpotViTConfig, layer_index: int):
        super().__init__()
        self.num_prefix_tokens = config.num_prefix_tokens
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = SpotViTAttention(config)
        self.layer_scale1 = SpotViTLayerScale(config) if config.use_layer_scale else None
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = SpotViTSwiGLU(config) if config.use_swiglu_ffn else SpotViTMLP(config)
        self.layer_scale2 = SpotViTLayerScale(config) if config.use_layer_scale else None
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.drop_path = SpotViTDropPath(config.drop_path_rate * layer_index / max(1, config.num_hidden_layers - 1))

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        sizes: torch.Tensor | None = None,
        num_merged: int = 0,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """`sizes` `(batch_size, sequence)`: how many tokens each stands for. Where `num_merged` pairs merge, there are as many
        tokens fewer, and their sizes are returned, too."""
        attended, _, keys = self.attention(self.norm1(hidden_states), attention_mask, **kwargs)
        hidden_states = hidden_states + self._branch(attended, self.layer_scale1)
        if num_merged:
            sizes = torch.ones_like(hidden_states[..., 0]) if sizes is None else sizes
            hidden_states, sizes = merge_tokens(hidden_states, sizes, keys.mean(1), num_merged, self.num_prefix_tokens)
        transformed = self.mlp(self.norm2(hidden_states))
        hidden_states = hidden_states + self._branch(transformed, self.layer_scale2)
        return (hidden_states, sizes) if num_merged else hidden_states  # type: ignore[return-value]

    def _branch(self, output: torch.Tensor, layer_scale: nn.Module | None) -> torch.Tensor:
        """What a branch adds. For one image a call of a module takes as long as a small layer's arithmetic: none that does
        nothing."""
        if layer_scale is not None:
            output = layer_scale(output)
        return self.drop_path(self.dropout(output)) if self.training else output


class SpotViTAttentionPooling(nn.Module):
    """A learned query's attention to the patch tokens, and a feed-forward layer (SigLIP; Zhai et al. 2023, arXiv 2303.15343),
    with the heads and widths of the encoder's layers."""

    def __init__(self, config: SpotViTConfig):
        super().__init__()
        width = config.hidden_size
        self.head_dim = width // config.num_attention_heads
        self.probe = nn.Parameter(torch.zeros(1, 1, width))
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(width, width) for _ in range(4))
        self.layernorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.mlp = SpotViTMLP(config)

    def forward(self, patches: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
        """`(batch_size, num_tokens, hidden_size)` to `(batch_size, hidden_size)`; `weights` `(batch_size, num_tokens)`: how
        many tokens each stands for, 0 for padding."""
        batch_size = patches.shape[0]
        heads = (batch_size, -1, patches.shape[-1] // self.head_dim, self.head_dim)
        query = self.q_proj(self.probe.to(patches.dtype)).expand(batch_size, -1, -1).view(heads).transpose(1, 2)
        key, value = (proj(patches).view(heads).transpose(1, 2) for proj in (self.k_proj, self.v_proj))
        bias = None if weights is None else weights.to(patches.dtype).log()[:, None, None, :]
        attended = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        pooled = self.o_proj(attended.transpose(1, 2).flatten(1))
        return pooled + self.mlp(self.layernorm(pooled))


# ------------------------------------------------------------------------------------------------------------ models


class SpotViTPreTrainedModel(SpotPreTrainedModel):
    config: SpotViTConfig
    config_class = SpotViTConfig
    base_model_prefix = "spot_vit"
    auto_map = AUTO_MAP
    supports_gradient_checkpointing = True
    _no_split_modules = ["SpotViTEmbeddings", "SpotViTLayer", "SpotViTAttentionPooling"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": SpotViTLayer, "attentions": SpotViTAttention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, SpotViTEmbeddings) and module.prefix_tokens is not None:
            init.trunc_normal_(module.prefix_tokens, mean=0.0, std=self.config.initializer_range)
        elif isinstance(module, SpotViTPositionEmbeddings):
            init.trunc_normal_(module.weight, mean=0.0, std=self.config.initializer_range)
        elif isinstance(module, SpotViTRelativePositionBias):
            init.zeros_(module.weight)
            if module.prefix_weight is not None:
                init.zeros_(module.prefix_weight)
        elif isinstance(module, SpotViTAttentionPooling):
            init.trunc_normal_(module.probe, mean=0.0, std=self.config.initializer_range)
        elif isinstance(module, SpotViTLayerScale):
            init.constant_(module.scale, self.config.layerscale_value)

    def resize_position_embeddings(self, height: int, width: int) -> None:
        """
        Makes the model, on the full grid of images of another size, equal to its source model with
        `interpolate_pos_encoding=True`: the position table is interpolated as the source's family does
        (`config.position_interpolation`). In place; updates `image_size` and `position_grid_size` of the config. Without it,
        images of another size get the embeddings of their positions from the Gaussian kernel.

        A table that was interpolated before (`config.position_source_grid_size`, which DINOv2's has from its conversion on)
        is no longer the source's: interpolated once more it only approximates the source, and a `UserWarning` says so.
        `spot-hf convert --image_size` starts from the source's own table.

        A model from a released SPoT checkpoint keeps its weights: its kernel follows the image's size by itself, at square
        sizes as the released code's does. So do rotary positions, as their source's do. Relative positions keep the source's
        grid, relative to the image: there, the model only approximates its source.

        Args:
            height (`int`), width (`int`): of the images, in pixels, at least `config.patch_size`.

        Raises:
            `ValueError`: a size is no integer, or smaller than a patch.
        """
        config = self.config
        for name, size in {"height": height, "width": width}.items():
            if isinstance(size, bool) or not isinstance(size, int) or size < config.patch_size:
                raise ValueError(f"`{name}` must be an integer of at least patch_size={config.patch_size}; got {size!r}")
        if (height, width) == config.image_height_width:
            return
        source_grid, old_grid = config.position_source_grid_size, config.position_rows_columns
        modules = list(self.modules())
        for module in modules:
            if isinstance(module, SpotViTPositionEmbeddings):
                module.resize(height, width)
        # Not by `isinstance`: as remote code, the config's class can be loaded twice.
        for each in {id(one.config): one.config for one in modules if hasattr(one, "config")}.values():
            if each.model_type == config.model_type:  # and not that of a text tower
                each.set_image_size(height, width)
        if source_grid is not None and config.position_rows_columns != old_grid:
            warnings.warn(
                f"the position table of {old_grid[0]} × {old_grid[1]} was itself interpolated, from the source's of "
                f"{source_grid[0]} × {source_grid[1]}: at {height} × {width} pixels the model only approximates its source. "
                "`spot-hf convert --image_size` starts from the source's own table",
                stacklevel=2,
            )


class SpotViTModel(SpotViTPreTrainedModel):
    """The encoder: images and coordinates to token features, and one pooled feature per image (`config.pooling`)."""

    def __init__(self, config: SpotViTConfig):
        super().__init__(config)
        self.embeddings = SpotViTEmbeddings(config)
        self.layers = nn.ModuleList([SpotViTLayer(config, i) for i in range(config.num_hidden_layers)])
        self.layernorm: nn.Module = nn.Identity()
        if config.use_final_norm:
            self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.rotary_embeddings = SpotViTRotaryEmbeddings(config) if config.rope_theta is not None else None
        self.pooler = SpotViTAttentionPooling(config) if config.pooling == "attention" else None
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.patch_projection

    def attention_positions(
        self, coordinates: torch.Tensor, height: int, width: int, dtype: torch.dtype
    ) -> dict[str, Rotation | Displacements]:
        """What each layer's attention is told of the tokens' positions, for all layers."""
        positions: dict[str, Rotation | Displacements] = {}
        if self.rotary_embeddings is not None:
            positions["rotation"] = self.rotary_embeddings(coordinates, height, width, dtype)
        if self.config.use_relative_position_bias:
            positions["displacements"] = SpotViTRelativePositionBias.displacements(self.config, coordinates, height, width)
        return positions

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        coordinates: torch.Tensor | None = None,
        coordinates_mask: torch.Tensor | None = None,
        window_scales: torch.Tensor | None = None,
        merge_tokens: float | list[int] | None = None,
        windows: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        r"""
        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`): any height and width of
                at least `patch_size`.
            coordinates (`torch.Tensor` of shape `(batch_size or 1, num_tokens, 2)`, float32, *optional*): centre `(x, y)`
                of each token's window, relative to `pixel_values`; 0 and 1 are the image's edges. A batch of 1 holds
                for all images. By default the centres of all grid cells, as in the source model.
            coordinates_mask (`torch.Tensor` of shape `(batch_size or 1, num_tokens)`, bool or integer, *optional*): 1 for
                tokens, 0 for padding, which no token attends to and no mean includes. At least one token per image.
            window_scales (`torch.Tensor` of shape `(batch_size or 1, num_tokens)`, float32, *optional*): multiples of
                the distance between a window's samples (`config.window_spacing`, one pixel), above 0; 1 by default. At 2, a
                token sees twice the width and height.
            merge_tokens (`float` or `list[int]`, *optional*): share of the patch tokens that is merged away by the last layer,
                or tokens to merge in each layer; `config.merge_tokens` by default. See [`merging.py`].
            windows (`torch.Tensor` of shape `(batch_size, num_tokens, num_channels, patch_size, patch_size)`, *optional*): in
                place of `pixel_values`, the windows that are cut out of them at `coordinates`, as the image processor returns
                them. The image then has the size that `config.image_size` says.

        Returns:
            `BaseModelOutputWithPooling`: `last_hidden_state` `(batch_size, num_prefix_tokens + num_tokens, hidden_size)`,
            fewer where tokens merge, and `pooler_output` `(batch_size, pooled_size)`. The final layer norm is in
            `last_hidden_state`, or, with `config.norm_after_pooling`, only in `pooler_output`.

        Raises:
            `ValueError`: a tensor's shape or dtype is not as above; on the CPU, or with `config.check_inputs`, also a position
                that is not finite or given in pixels, and a scale that is not above 0.
        """
        check_model_inputs(self.config, pixel_values, coordinates, coordinates_mask, window_scales, windows)
        if coordinates_mask is not None:
            coordinates_mask = coordinates_mask.bool()
        merge_tokens = self.config.merge_tokens if merge_tokens is None else merge_tokens  # type: ignore[assignment]
        check_attention(self.config, merge_tokens, coordinates_mask)
        height, width = self.config.image_height_width if pixel_values is None else pixel_values.shape[-2:]
        if coordinates is None:
            coordinates = grid(height, width, self.config.patch_size).to(pixel_values.device)[None]  # type: ignore[union-attr]
        hidden_states = self.embeddings(
            pixel_values, coordinates, window_scales, coordinates_mask, windows, height=height, width=width
        )
        positions = self.attention_positions(coordinates, height, width, hidden_states.dtype)
        attention_mask = sizes = None
        if coordinates_mask is not None:
            coordinates_mask = coordinates_mask.expand(hidden_states.shape[0], -1)
            prefix_mask = coordinates_mask.new_ones(hidden_states.shape[0], self.config.num_prefix_tokens)
            sequence_mask = torch.cat([prefix_mask, coordinates_mask], dim=1)
            if self.config.use_relative_position_bias:  # to add to the bias
                attention_mask = torch.zeros_like(sequence_mask, dtype=hidden_states.dtype)[:, None, None, :]
                lowest = torch.finfo(hidden_states.dtype).min
                attention_mask = attention_mask.masked_fill(~sequence_mask[:, None, None, :], lowest)
            else:
                attention_mask = create_bidirectional_mask(
                    config=self.config, inputs_embeds=hidden_states, attention_mask=sequence_mask
                )
        num_tokens = hidden_states.shape[1] - self.config.num_prefix_tokens
        schedule = schedule_of(merge_tokens, num_tokens, len(self.layers)) if merge_tokens else [0] * len(self.layers)
        for layer, num_merged in zip(self.layers, schedule, strict=True):
            output = layer(hidden_states, attention_mask, sizes=sizes, num_merged=num_merged, **positions, **kwargs)
            if num_merged:
                hidden_states, sizes = output
                attention_mask = sizes.log()[:, None, None, :]  # to count s times in the softmax is to add log s
            else:
                hidden_states = output
        weights = coordinates_mask if sizes is None else sizes[:, self.config.num_prefix_tokens :]
        if self.config.norm_after_pooling:
            pooled = self.layernorm(self._pool(hidden_states, weights))
        else:
            hidden_states = self.layernorm(hidden_states)
            pooled = self._pool(hidden_states, weights)
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=pooled)

    def _pool(self, hidden_states: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
        """`(batch_size, sequence, hidden_size)` to `(batch_size, pooled_size)`; `weights` `(batch_size, num_tokens)`: of patch
        tokens in a mean."""
        pooling = self.config.pooling
        if pooling == "cls":
            return hidden_states[:, 0]
        if pooling == "cls_distillation":
            return hidden_states[:, :2].flatten(1)
        patches = hidden_states[:, self.config.num_prefix_tokens :]
        if self.pooler is not None:
            return self.pooler(patches, weights)
        if weights is None:
            mean = patches.mean(dim=1)
        else:
            weights = weights[..., None].to(patches.dtype)
            mean = (patches * weights).sum(dim=1) / weights.sum(dim=1)
        return mean if pooling == "mean" else torch.cat([hidden_states[:, 0], mean], dim=1)


class SpotViTForImageClassification(SpotForImageClassification, SpotViTPreTrainedModel):
    """SpotViT with a linear classifier on its pooled feature."""

    def __init__(self, config: SpotViTConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.spot_vit = SpotViTModel(config)
        self.classifier = nn.Linear(config.pooled_size, config.num_labels) if config.num_labels > 0 else nn.Identity()
        self.placer = SpotViTPlacer(config) if config.placer is not None else None
        self.post_init()


__all__ = ["SpotViTForImageClassification", "SpotViTImageClassifierOutput", "SpotViTModel", "SpotViTPreTrainedModel"]
