"""Masked pre-training of SpotViT: an autoencoder (MAE; He et al. 2021, arXiv 2111.06377) whose windows sit anywhere."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import initialization as init
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .configuration_spot_vit import SpotViTConfig
from .input_checks import check_model_inputs
from .modeling_spot_vit import SpotViTLayer, SpotViTModel, SpotViTPreTrainedModel
from .placement import grid
from .positions import SpotViTPositionEmbeddings
from .windows import sample_windows


@dataclass
class SpotViTForPreTrainingOutput(ModelOutput):
    """
    What [`SpotViTForPreTraining`] returns.

    Args:
        loss (`torch.Tensor` of shape `()`, float32): mean squared error over the masked windows.
        logits (`torch.Tensor` of shape `(batch_size, num_tokens, num_channels * patch_size²)`): predicted windows, in the
            order of `coordinates`, flattened as [`sample_windows`] orders them: channels, rows, columns. With
            `config.norm_pix_loss`, in standard deviations from the mean of their window.
        mask (`torch.Tensor` of shape `(batch_size, num_tokens)`, float32): 1 for masked tokens, 0 for those that the
            encoder saw.
        ids_restore (`torch.Tensor` of shape `(batch_size, num_tokens)`, int64): each token's rank by `noise`; the lowest are
            seen.
        hidden_states, attentions: of the encoder, on request.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    ids_restore: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class SpotViTDecoder(SpotViTPreTrainedModel):
    """MAE's decoder: encoded tokens and mask tokens, each with the embedding of its position, to the pixels of all windows."""

    def __init__(self, config: SpotViTConfig):
        super().__init__(config.decoder_config())
        width = config.decoder_hidden_size
        self.embed = nn.Linear(config.hidden_size, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position_embeddings = SpotViTPositionEmbeddings(self.config)
        self.layers = nn.ModuleList([SpotViTLayer(self.config, i) for i in range(config.decoder_num_hidden_layers)])
        self.layernorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.prediction = nn.Linear(width, config.num_channels * config.patch_size**2)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, SpotViTDecoder):
            init.normal_(module.mask_token, std=self.config.initializer_range)

    def forward(
        self, hidden_states: torch.Tensor, coordinates: torch.Tensor, ids_restore: torch.Tensor, height: int, width: int
    ) -> torch.Tensor:
        """Encoded tokens `(batch_size, num_prefix_tokens + num_visible, hidden_size)`, the coordinates and ranks of all
        tokens, and the image's size in pixels, to `(batch_size, num_tokens, num_channels * patch_size²)`."""
        hidden_states = self.embed(hidden_states)
        num_prefix_tokens = self.config.num_prefix_tokens
        prefix_tokens, visible = hidden_states[:, :num_prefix_tokens], hidden_states[:, num_prefix_tokens:]
        num_masked = coordinates.shape[1] - visible.shape[1]
        masked = self.mask_token.to(visible.dtype).expand(visible.shape[0], num_masked, -1)
        tokens = torch.cat([visible, masked], dim=1)  # (batch_size, num_tokens, decoder_hidden_size), by rank
        tokens = tokens.gather(1, ids_restore[..., None].expand_as(tokens))
        tokens = tokens + self.position_embeddings(coordinates, height, width).to(tokens.dtype)
        hidden_states = torch.cat([prefix_tokens, tokens], dim=1)
        for layer in self.layers:
            hidden_states = layer(hidden_states)
        return self.prediction(self.layernorm(hidden_states[:, num_prefix_tokens:]))


class SpotViTForPreTraining(SpotViTPreTrainedModel):
    """Masked autoencoder (MAE; He et al. 2021, arXiv 2111.06377) with continuous positions: the encoder sees a few windows
    of each image, a light decoder predicts the others from their positions. The encoder is what one keeps: loading a saved
    model as [`SpotViTModel`] or [`SpotViTForImageClassification`] leaves the decoder behind. A pooling with weights of
    its own is left out here, and becomes the mean."""

    def __init__(self, config: SpotViTConfig):
        config = config.without_pooling_head()
        super().__init__(config)
        self.spot_vit = SpotViTModel(config)
        self.decoder = SpotViTDecoder(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        coordinates: torch.Tensor | None = None,
        coordinates_mask: torch.Tensor | None = None,
        window_scales: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SpotViTForPreTrainingOutput:
        r"""
        Args:
            pixel_values, coordinates: as in [`SpotViTModel.forward`]; the coordinates are those of all tokens, of which the
                encoder sees a share of `1 - config.mask_ratio`. Windows that overlap show some of each other's pixels: the
                more they do, the easier the task.
            coordinates_mask, window_scales: not supported; must be `None`. All images have the same number of tokens, and
                the decoder would not know how large a masked window is.
            noise (`torch.Tensor` of shape `(batch_size, num_tokens)`, *optional*): the tokens with the lowest values in
                their image are seen. Drawn anew by default, also in evaluation mode; given, it repeats a mask.

        Returns:
            [`SpotViTForPreTrainingOutput`].

        Raises:
            `ValueError`: a tensor's shape or dtype is not as above; too few tokens to mask some and see some.
        """
        check_model_inputs(self.config, pixel_values, coordinates, coordinates_mask, window_scales)
        for name, value in {"coordinates_mask": coordinates_mask, "window_scales": window_scales}.items():
            if value is not None:
                raise ValueError(f"`{name}` must be None in pre-training; got a tensor of shape {tuple(value.shape)}")
        assert pixel_values is not None  # or the check has raised
        batch_size, _, height, width = pixel_values.shape
        if coordinates is None:
            coordinates = grid(height, width, self.config.patch_size).to(pixel_values.device)[None]
        coordinates = coordinates.expand(batch_size, -1, -1)
        num_tokens = coordinates.shape[1]
        num_visible = num_tokens - round(num_tokens * self.config.mask_ratio)
        if not 0 < num_visible < num_tokens:
            raise ValueError(
                f"`coordinates` must hold enough tokens that mask_ratio={self.config.mask_ratio} masks at least one and "
                f"leaves at least one; got {num_tokens} per image"
            )
        if noise is None:
            noise = torch.rand(batch_size, num_tokens, device=pixel_values.device)
        if not isinstance(noise, torch.Tensor) or noise.shape != (batch_size, num_tokens):
            got = tuple(noise.shape) if isinstance(noise, torch.Tensor) else type(noise).__name__
            raise ValueError(
                f"`noise` must be a torch.Tensor of shape (batch_size, num_tokens) = ({batch_size}, {num_tokens}); got {got}"
            )

        ids_shuffle = noise.argsort(dim=1)
        ids_restore = ids_shuffle.argsort(dim=1)
        mask = (ids_restore >= num_visible).float()
        visible = coordinates.gather(1, ids_shuffle[:, :num_visible, None].expand(-1, -1, 2))
        # No token merges: each is restored to its place.
        outputs = self.spot_vit(pixel_values, visible, **{**kwargs, "merge_tokens": 0.0}, return_dict=True)
        hidden_states = outputs.last_hidden_state
        if self.config.norm_after_pooling:  # There is no pooled token here: the norm is part of every token.
            hidden_states = self.spot_vit.layernorm(hidden_states)
        logits = self.decoder(hidden_states, coordinates, ids_restore, height, width)
        loss = (logits.float() - self.targets(pixel_values, coordinates)).square().mean(dim=2)
        return SpotViTForPreTrainingOutput(
            loss=(loss * mask).sum() / mask.sum(),
            logits=logits,
            mask=mask,
            ids_restore=ids_restore,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def golden_inputs(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor] | None:
        """With a mask by a rule, and windows of one size, see [`SpotPreTrainedModel.golden_inputs`]."""
        height, width = inputs["pixel_values"].shape[-2:]
        cells = (height // self.config.patch_size) * (width // self.config.patch_size)
        num_tokens = inputs["coordinates"].shape[1] if "coordinates" in inputs else cells
        if not 0 < round(num_tokens * self.config.mask_ratio) < num_tokens:
            return None
        ranks = (torch.arange(num_tokens) * 37 + 11) % 101 + torch.arange(num_tokens) / num_tokens  # all different
        given = {name: one for name, one in inputs.items() if name != "window_scales"}
        return {**given, "noise": torch.stack([ranks, ranks.flip(0)]).to(inputs["pixel_values"].device)}

    def windows(self, pixel_values: torch.Tensor, coordinates: torch.Tensor) -> torch.Tensor:
        """Of all tokens, `(batch_size, num_tokens, num_channels, patch_size, patch_size)`: as [`sample_windows`] cuts them."""
        config = self.config
        return sample_windows(
            pixel_values, coordinates, config.patch_size, spacing=config.window_spacing, border=config.window_border
        )

    @torch.no_grad()
    def targets(self, pixel_values: torch.Tensor, coordinates: torch.Tensor) -> torch.Tensor:
        """What `logits` are compared with, of the same shape, float32. Without gradient: positions that are optimised cannot
        make the task easier by moving to flat parts of the image."""
        windows = self.windows(pixel_values, coordinates).flatten(2)
        if self.config.norm_pix_loss:
            variance, mean = torch.var_mean(windows, dim=2, keepdim=True)
            windows = (windows - mean) / (variance + 1e-6).sqrt()
        return windows.float()


__all__ = ["SpotViTForPreTraining", "SpotViTForPreTrainingOutput"]
