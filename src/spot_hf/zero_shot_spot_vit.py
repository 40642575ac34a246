"""Zero-shot classification by freely placed tokens: a SpotViT and the text tower of the CLIP or SigLIP model that it is from.

On the full grid, images and texts are compared as the source does.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import nn
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .budgets import check_num_tokens
from .configuration_spot_vit import ZERO_SHOT_PIPELINES, SpotViTConfig
from .input_checks import check_model_inputs, check_texts
from .modeling_spot import SpotPlacing
from .modeling_spot_vit import SpotViTForImageClassification, SpotViTModel, SpotViTPreTrainedModel


if TYPE_CHECKING:
    # Saving a model copies the files that this one imports.
    from .zero_shot_pipeline import SpotZeroShotImageClassificationPipeline  # noqa: F401


# By the `model_type` of `text_config`: transformers' class. Its Auto classes know the first alone.
TEXT_MODELS = {
    "clip_text_model": "CLIPTextModel",
    "metaclip_2_text_model": "MetaClip2TextModel",
    "siglip_text_model": "SiglipTextModel",
    "siglip2_text_model": "Siglip2TextModel",
}
STOCK_TASK = "zero-shot-image-classification"


def text_model_class(model_type: str | None) -> Any:
    """transformers' class of a text tower; `ValueError` for none that is known here."""
    if model_type not in TEXT_MODELS:
        raise ValueError(f"`text_config` must have a `model_type` of {', '.join(TEXT_MODELS)}; got {model_type!r}")
    return getattr(transformers, TEXT_MODELS[model_type])


@dataclass
class SpotViTZeroShotOutput(ModelOutput):
    """
    Args:
        loss (`torch.FloatTensor` of shape `()`, *optional*): where `return_loss`.
        logits_per_image (`torch.FloatTensor` of shape `(num_images, num_texts)`), logits_per_text (the same, transposed).
        text_embeds (`torch.FloatTensor` of shape `(num_texts, width)`), image_embeds (`(num_images, width)`): of length 1.
        text_model_output, vision_model_output (`BaseModelOutputWithPooling`): of the towers; `pooler_output` is projected.
    """

    loss: torch.Tensor | None = None
    logits_per_image: torch.Tensor | None = None
    logits_per_text: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    text_model_output: BaseModelOutputWithPooling | None = None
    vision_model_output: BaseModelOutputWithPooling | None = None

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(one.to_tuple() if isinstance(one, ModelOutput) else one for one in self.values())


def compare_embeds(
    embeds: torch.Tensor, others: torch.Tensor, logit_scale: torch.Tensor, logit_bias: torch.Tensor | None
) -> torch.Tensor:
    """Logits `(num_embeds, num_others)`: scaled cosines, with a bias where there is one. `others` are of length 1."""
    logits = unit(embeds) @ others.to(embeds.dtype).t() * logit_scale.exp()
    return logits if logit_bias is None else logits + logit_bias


def unit(embeds: torch.Tensor) -> torch.Tensor:
    """Of length 1."""
    return embeds / embeds.norm(dim=-1, keepdim=True)


def contrastive_loss(logits: torch.Tensor, activation: str) -> torch.Tensor:
    """
    Of logits `(batch_size, batch_size)`, a scalar; row `i` and column `i` belong together. `"softmax"`: the mean of the
    cross-entropies over rows and over columns (CLIP, arXiv 2103.00020); `"sigmoid"`: each pair alone is told to match or not,
    a sum over a row's pairs (SigLIP, arXiv 2303.15343).
    """
    if logits.shape[0] != logits.shape[1]:
        raise ValueError(f"`return_loss` needs one text per image; got {logits.shape[1]} images and {logits.shape[0]} texts")
    if activation == "sigmoid":
        signs = 2 * torch.eye(len(logits), dtype=logits.dtype, device=logits.device) - 1
        return -nn.functional.logsigmoid(signs * logits).sum(dim=-1).mean()
    own = torch.arange(len(logits), device=logits.device)
    return (nn.functional.cross_entropy(logits, own) + nn.functional.cross_entropy(logits.t(), own)) / 2


class SpotViTTextClassifier(nn.Module):
    """A SpotViT's pooled features `(batch_size, pooled_size)` to logits `(batch_size, num_texts)` of texts that were embedded
    before."""

    def __init__(self, model: "SpotViTForZeroShotImageClassification", text_embeds: torch.Tensor):
        super().__init__()
        self.visual_projection = model.visual_projection
        self.logit_scale, self.logit_bias = model.logit_scale, model.logit_bias
        self.text_embeds: torch.Tensor
        self.register_buffer("text_embeds", text_embeds)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        if self.visual_projection is not None:
            features = self.visual_projection(features)
        return compare_embeds(features, self.text_embeds, self.logit_scale, self.logit_bias)


class SpotViTAmongTexts(SpotViTForImageClassification):
    """A zero-shot model as a classifier among texts: its weights are that model's."""

    def save_pretrained(self, *args, **kwargs):
        raise ValueError("a classifier among texts is made of a zero-shot model: save that, and its tokenizer")


class SpotViTForZeroShotImageClassification(SpotPlacing, SpotViTPreTrainedModel):
    """A SpotViT, a text tower of transformers, and what compares their features, as CLIP's and SigLIP's own classes do."""

    main_input_name = "input_ids"  # as of transformers' CLIP
    input_modalities = ("image", "text")
    accepts_loss_kwargs = False  # the loss is a mean over a batch: Trainer divides by its steps of accumulation
    _no_split_modules = [
        *SpotViTPreTrainedModel._no_split_modules,
        "CLIPTextEmbeddings", "CLIPEncoderLayer", "MetaClip2TextEmbeddings", "MetaClip2EncoderLayer",
        "SiglipTextEmbeddings", "SiglipEncoderLayer", "Siglip2TextEmbeddings", "Siglip2EncoderLayer",
    ]  # fmt: skip

    def __init__(self, config: SpotViTConfig):
        super().__init__(config)
        if config.text_config is None:
            raise ValueError("`text_config` is needed by a zero-shot model: that of its text tower; got none")
        text_config: Any = config.text_config
        self.spot_vit = SpotViTModel(config)
        self.text_model = text_model_class(text_config.model_type)(text_config)
        self.visual_projection = self.text_projection = None
        if config.projection_dim is not None:
            self.visual_projection = nn.Linear(config.pooled_size, config.projection_dim, bias=False)
            self.text_projection = nn.Linear(text_config.hidden_size, config.projection_dim, bias=False)
        is_sigmoid = config.text_activation == "sigmoid"
        # Of shapes as the sources have them.
        self.logit_scale = nn.Parameter(torch.full((1,) if is_sigmoid else (), float(config.logit_scale_init_value)))
        self.logit_bias = nn.Parameter(torch.zeros(1)) if is_sigmoid else None
        self.placer = None
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if module is self:
            init.constant_(self.logit_scale, self.config.logit_scale_init_value)
            if self.logit_bias is not None:
                init.zeros_(self.logit_bias)

    @property
    def custom_pipelines(self) -> dict[str, dict[str, Any]]:  # type: ignore[override]
        """The stock pipeline knows by the model's type alone that SigLIP's scores are sigmoids and its texts of one length: of
        such a model, the pipeline of that name is ours, too."""
        entry = ZERO_SHOT_PIPELINES["spot-zero-shot-image-classification"]
        return {**ZERO_SHOT_PIPELINES, STOCK_TASK: entry} if self.config.text_activation == "sigmoid" else ZERO_SHOT_PIPELINES

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.embeddings.token_embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text_model.embeddings.token_embedding = value

    def golden_inputs(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """With three texts, each as long as texts can be, and ended."""
        text_config: Any = self.config.text_config
        length, text = text_config.max_position_embeddings, torch.arange(3)[:, None]
        input_ids = (7 * torch.arange(length) + 5 * text * text + 3 * text + 11) % text_config.vocab_size
        if isinstance(text_config.eos_token_id, int) and text_config.eos_token_id < text_config.vocab_size:
            input_ids[:, -1] = text_config.eos_token_id
        return {**inputs, "input_ids": input_ids.to(inputs["pixel_values"].device)}

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """
        Args:
            input_ids (`torch.LongTensor` of shape `(num_texts, sequence)`), attention_mask, position_ids (of the same shape,
                *optional*): as the source's text tower takes them, padded as `config.text_padding` says.

        Returns:
            `BaseModelOutputWithPooling`: `pooler_output` `(num_texts, width)` is projected, and not yet of length 1.
        """
        outputs = self.text_model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, return_dict=True, **kwargs
        )
        if self.text_projection is not None:
            outputs.pooler_output = self.text_projection(outputs.pooler_output)
        return outputs

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.Tensor | None = None,
        coordinates: torch.Tensor | None = None,
        coordinates_mask: torch.Tensor | None = None,
        window_scales: torch.Tensor | None = None,
        num_tokens: int | None = None,
        windows: torch.Tensor | None = None,
        merge_tokens: float | list[int] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """
        Args:
            pixel_values, coordinates, coordinates_mask, window_scales, windows, merge_tokens: as in [`SpotViTModel.forward`].
            num_tokens (`int`, *optional*): instead of `coordinates`, how many tokens the model places itself, by
                `config.placement`; `config.num_tokens` by default, and where that is none, all cells of the grid.

        Returns:
            `BaseModelOutputWithPooling`: `pooler_output` `(num_images, width)` is projected, and not yet of length 1.
        """
        if coordinates is None and windows is None:
            num_tokens = self.config.num_tokens if num_tokens is None else num_tokens  # type: ignore[assignment]
        elif num_tokens is not None:
            raise ValueError(f"`coordinates` and `num_tokens` exclude each other; got both (num_tokens={num_tokens!r})")
        if num_tokens is not None:
            check_num_tokens(num_tokens)
            check_model_inputs(self.config, pixel_values, coordinates, coordinates_mask, window_scales)
            assert pixel_values is not None
            placed = self._place(pixel_values, num_tokens)
            coordinates, window_scales = placed["coordinates"], placed.get("window_scales")
        outputs = self.spot_vit(
            pixel_values,
            coordinates,
            coordinates_mask,
            window_scales,
            merge_tokens=merge_tokens,
            windows=windows,
            return_dict=True,
            **kwargs,
        )
        if self.visual_projection is not None:
            outputs.pooler_output = self.visual_projection(outputs.pooler_output)
        return outputs

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        coordinates: torch.Tensor | None = None,
        coordinates_mask: torch.Tensor | None = None,
        window_scales: torch.Tensor | None = None,
        return_loss: bool | None = None,
        num_tokens: int | None = None,
        windows: torch.Tensor | None = None,
        merge_tokens: float | list[int] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SpotViTZeroShotOutput:
        r"""
        Args:
            input_ids, attention_mask, position_ids: as in [`get_text_features`].
            pixel_values, coordinates, coordinates_mask, window_scales, num_tokens, windows, merge_tokens: as in
                [`get_image_features`].
            return_loss (`bool`, *optional*): also the [`contrastive_loss`], of as many texts as images, in the same order.

        Returns:
            [`SpotViTZeroShotOutput`].

        Raises:
            `ValueError`: a tensor's shape or dtype is not as above, or there are no texts.
        """
        check_texts(self.config, input_ids)
        vision_outputs = self.get_image_features(
            pixel_values,
            coordinates=coordinates,
            coordinates_mask=coordinates_mask,
            window_scales=window_scales,
            num_tokens=num_tokens,
            windows=windows,
            merge_tokens=merge_tokens,
            return_dict=True,
            **kwargs,
        )
        text_outputs = self.get_text_features(
            input_ids, attention_mask=attention_mask, position_ids=position_ids, return_dict=True, **kwargs
        )
        image_embeds, text_embeds = unit(vision_outputs.pooler_output), unit(text_outputs.pooler_output)
        logits_per_text = compare_embeds(text_outputs.pooler_output, image_embeds, self.logit_scale, self.logit_bias)
        return SpotViTZeroShotOutput(
            loss=contrastive_loss(logits_per_text, self.config.text_activation) if return_loss else None,
            logits_per_image=logits_per_text.t(),
            logits_per_text=logits_per_text,
            text_embeds=text_embeds,
            image_embeds=image_embeds,
            text_model_output=text_outputs,
            vision_model_output=vision_outputs,
        )

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str], tokenizer: Any, batch_size: int = 64) -> torch.Tensor:
        """
        Embeds texts, for [`as_classifier`].

        Args:
            texts (`list[str]`): whole ones, such as `"This is a photo of a cat."`.
            tokenizer: the one that was saved with the model.
            batch_size (`int`): texts per forward pass.

        Returns:
            `torch.FloatTensor` of shape `(num_texts, width)`, of length 1.
        """
        embeds = []
        for start in range(0, len(texts), batch_size):
            some = list(texts[start : start + batch_size])
            inputs = tokenizer(some, return_tensors="pt", **self.config.text_padding).to(self.device)
            embeds.append(unit(self.get_text_features(**inputs).pooler_output))
        return torch.cat(embeds)

    def as_classifier(self, text_embeds: torch.Tensor, labels: Sequence[str]) -> SpotViTForImageClassification:
        """
        A classifier among texts, which does with images what any SpotViT's does: its tower and this model's are one, and its
        logits are `logits_per_image`. It cannot be saved by itself.

        Args:
            text_embeds (`torch.FloatTensor` of shape `(num_texts, width)`): from [`embed_texts`].
            labels (`list[str]`): what the texts stand for, as `id2label` of the classifier's config.
        """
        config = copy.deepcopy(self.config)
        config.text_config = config.projection_dim = None
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: number for number, label in enumerate(labels)}
        with torch.device("meta"):  # its own weights are those of this model
            model = SpotViTAmongTexts(config)
        model.spot_vit, model.classifier = self.spot_vit, SpotViTTextClassifier(self, text_embeds)
        return model.train(self.training)


__all__ = ["SpotViTForZeroShotImageClassification", "SpotViTTextClassifier", "SpotViTZeroShotOutput", "text_model_class"]
