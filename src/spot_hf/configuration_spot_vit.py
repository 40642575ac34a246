"""Configuration of SpotViT: a Vision Transformer whose patch tokens sit at continuous positions (arXiv 2507.01654)."""

import copy
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneConfigMixin

from .configuration_spot import CUSTOM_PIPELINES, SpotConfigMixin, check_names
from .merging import check_merge_tokens
from .placement import COVERING_PLACEMENTS
from .placer import check_placer


WINDOW_BORDERS = ("repeat", "zero")
KERNEL_CENTERS = ("cells", "mesh")
KERNEL_UNITS = ("cells", "pixels")
KERNEL_NORMALIZATIONS = (None, "image", "batch")
MODEL_PLACEMENTS = (*COVERING_PLACEMENTS, "learned")  # with which a model can place tokens by itself
POOLINGS = ("cls", "mean", "cls_mean", "cls_distillation", "attention")
ROPE_COORDINATES = ("centered", "cells")

# What `AutoX.from_pretrained(..., trust_remote_code=True)` and `pipeline` look up in a saved config. Saving a model adds
# only the entry of its own class, so the config names them all.
AUTO_MAP = {
    "AutoConfig": "configuration_spot_vit.SpotViTConfig",
    "AutoModel": "modeling_spot_vit.SpotViTModel",
    "AutoModelForImageClassification": "modeling_spot_vit.SpotViTForImageClassification",
    "AutoBackbone": "backbone_spot_vit.SpotViTBackbone",
    "AutoModelForPreTraining": "pretraining_spot_vit.SpotViTForPreTraining",
    "AutoModelForSemanticSegmentation": "segmentation_spot_vit.SpotViTForSemanticSegmentation",
    "AutoModelForZeroShotImageClassification": "zero_shot_spot_vit.SpotViTForZeroShotImageClassification",
}
# Of models that segment. Only one pipeline is in a config: `pipeline(model=...)` without a task takes the only one.
SEGMENTATION_PIPELINES = {
    "spot-image-segmentation": {
        "impl": "segmentation_pipeline.SpotImageSegmentationPipeline",
        "pt": ["AutoModelForSemanticSegmentation"],
        "type": "image",
    }
}
# Of zero-shot models.
ZERO_SHOT_PIPELINES = {
    "spot-zero-shot-image-classification": {
        "impl": "zero_shot_pipeline.SpotZeroShotImageClassificationPipeline",
        "pt": ["AutoModelForZeroShotImageClassification"],
        "type": "multimodal",
    }
}
TEXT_ACTIVATIONS = ("softmax", "sigmoid")


@strict
class SpotViTConfig(SpotConfigMixin, BackboneConfigMixin, PreTrainedConfig):
    r"""
    Configuration of a [`SpotViTModel`]. The defaults give a ViT-B/16 at 224 pixels.

    Args:
        hidden_size (`int`, defaults to 768): width of the token embeddings.
        num_hidden_layers (`int`, defaults to 12): number of encoder layers.
        num_attention_heads (`int`, defaults to 12): attention heads per layer; must divide `hidden_size`.
        intermediate_size (`int`, defaults to 3072): width of the feed-forward layer (of one gate where
            `use_swiglu_ffn`).
        hidden_act (`str`, defaults to `"gelu"`): activation of the feed-forward layer, a name of `ACT2FN`. Not used by
            SwiGLU, which is always gated by SiLU.
        hidden_dropout_prob (`float`, defaults to 0.0): dropout after the embeddings and each sub-layer.
        attention_probs_dropout_prob (`float`, defaults to 0.0): dropout of the attention probabilities.
        drop_path_rate (`float`, defaults to 0.0): stochastic depth while training: how often the last layer's residual
            branches are left out for an image; from 0 in the first layer, linearly.
        initializer_range (`float`, defaults to 0.02): standard deviation of freshly initialised weights.
        layer_norm_eps (`float`, defaults to 1e-12): epsilon of the layer norms.
        image_size (`int` or `[height, width]`, defaults to 224): image size in pixels at which the position table
            has one entry per patch. Images of any size are accepted.
        patch_size (`int`, defaults to 16): a token is a window of `patch_size` × `patch_size` samples.
        num_channels (`int`, defaults to 3): channels of `pixel_values`.
        qkv_bias (`bool`, defaults to `True`): whether query, key and value projections have a bias.
        use_qk_norm (`bool`, defaults to `False`): layer norm of each head's queries and keys (timm's `qk_norm`).
        use_attention_norm (`bool`, defaults to `False`): layer norm of what attention gives, before its output projection
            (timm's `scale_attn_inner`: EVA-02 of EVA-CLIP).
        use_mlp_norm (`bool`, defaults to `False`): layer norm before the last linear map of the feed-forward layer (timm's
            `scale_mlp`: EVA-02).
        use_pre_norm (`bool`, defaults to `False`): layer norm of all tokens before the first layer (CLIP).
        use_final_norm (`bool`, defaults to `True`): layer norm after the last layer, see `norm_after_pooling`.
        use_class_token (`bool`, defaults to `True`): whether a class token comes first; SigLIP and I-JEPA have none.
        num_register_tokens (`int`, defaults to 0): learned tokens between the class token and the patch tokens:
            DINOv2's registers, DeiT's distillation token.
        use_layer_scale (`bool`, defaults to `False`): learned per-channel factors on both residual branches (DINOv2).
        layerscale_value (`float`, defaults to 1.0): initial value of those factors.
        use_swiglu_ffn (`bool`, defaults to `False`): SwiGLU instead of a two-layer perceptron (DINOv2 giant).
        pooling (`str`, defaults to `"cls"`): what the classifier sees. `"cls"`: the class token; `"mean"`: the mean of
            the patch tokens; `"cls_mean"`: both, concatenated (DINOv2); `"cls_distillation"`: class token and first
            register token, concatenated (distilled DeiT, whose two heads are one linear map of that); `"attention"`: a
            learned query's attention to the patch tokens, and a feed-forward layer (SigLIP).
        norm_after_pooling (`bool`, defaults to `False`): the final layer norm is applied to the pooled token instead
            of every token (`fc_norm` of fine-tuned MAE).
        use_position_table (`bool`, defaults to `True`): whether tokens get an embedding of their position from a table. This,
            rotary positions and relative ones are independent of each other; EVA-02 has the first two.
        rope_theta (`float`, *optional*): base of the periods of rotary positions: each attention's queries and keys are turned
            by angles that are linear in a token's own coordinate; class token and registers are not. None by default.
        rope_coordinates (`str`, defaults to `"centered"`): in which unit: `"centered"`, 2π from -1 at one edge of the image to
            1 at the other (DINOv3); or `"cells"` of `patch_size` pixels, from 0 at the centre of the first (EVA-02).
        rope_grid_size (`[rows, columns]`, *optional*): of `"cells"`: an image of any size counts as one of so many.
        rope_grid_offset (`float`, defaults to 0.0): of `"cells"`: added before that.
        use_relative_position_bias (`bool`, defaults to `False`): whether each attention's scores get a bias from a table of
            the displacement between two tokens, in cells of a grid of `position_grid_size`, interpolated bilinearly (BEiT).
        position_grid_size (`[rows, columns]`, *optional*): size of the position table; defaults to
            `image_size // patch_size`.
        position_grid_extent (`[height, width]`, *optional*): the share of the image's height and width that the table's cells
            cover, where that is less than 1: the whole patches of an image whose size is no multiple of `patch_size`.
        position_interpolation (`dict`, *optional*): how the source's family interpolates its table for images of another
            size: `mode` (`"bilinear"` or `"bicubic"`) and `antialias` (`bool`) of `torch.nn.functional.interpolate`. Used by
            [`SpotViTPreTrainedModel.resize_position_embeddings`]; bicubic without antialiasing where not given.
        position_source_grid_size (`[rows, columns]`, *optional*): size of the source's own table, where the present one was
            interpolated from it. Informative only.
        position_kernel_sigma (`float`, defaults to 0.6): bandwidth of the Gaussian kernel that interpolates the
            position table.
        position_kernel_unit (`str`, defaults to `"cells"`): unit of that bandwidth: cells of the table, or `"pixels"` of the
            image at any size.
        position_kernel_centers (`str`, defaults to `"cells"`): where the table's entries lie: at the centres of equal cells,
            or, `"mesh"`, evenly from the centre of the first pixel to one pixel past that of the last (the released SPoT
            checkpoints).
        position_kernel_normalization (`str`, *optional*): the kernel is divided by its largest value over all tokens of an
            `"image"`, as the released SPoT checkpoints need; or of the `"batch"`, as their own code does: images then
            depend on their batch mates. Only for comparisons with that code.
        window_spacing (`float`, defaults to 1.0): pixels between a window's samples, where `window_scales` are 1.
        window_border (`str`, defaults to `"repeat"`): samples outside the image: border pixels are replicated (`"repeat"`),
            or they are 0 (`"zero"`).
        check_inputs (`bool`, *optional*): whether the values of `coordinates` and `window_scales` are checked; by default on
            the CPU, as an accelerator has to be waited for.
        decoder_hidden_size (`int`, defaults to 512): width of the decoder of masked pre-training, which
            [`SpotViTForPreTraining`] alone has. This and the following as in transformers' `ViTMAEConfig`.
        decoder_num_hidden_layers (`int`, defaults to 8): number of decoder layers.
        decoder_num_attention_heads (`int`, defaults to 16): attention heads per decoder layer; must divide
            `decoder_hidden_size`.
        decoder_intermediate_size (`int`, defaults to 2048): width of the decoder's feed-forward layer.
        mask_ratio (`float`, defaults to 0.75): share of an image's tokens that the encoder does not see in pre-training;
            between 0 and 1.
        norm_pix_loss (`bool`, defaults to `True`): the decoder predicts each window's pixels less their mean, divided by their
            standard deviation (He et al. 2021, section 3), rather than the pixels themselves.
        num_tokens (`int` or `list[int]`, *optional*): tokens per image where a classifier is given no `coordinates`: it
            then places them itself. Several, ascending: a look with each in turn, until it is sure. By default all cells of
            the grid.
        placement (`str`, defaults to `"isotropic"`): how it does: `"isotropic"`, `"foveated_edge"`, `"foveated_center"`, or
            `"learned"`, by its placer. Windows always cover the image.
        placer (`dict`, *optional*): of a classifier's own placer, which `spot-hf train-placer` trains: `thumbnail_size`,
            `grid_size`, `width`, `height`, `hidden_size` and `head`, see [`SpotViTPlacer`]. By default it has none.
        confidence (`float` or `list[float]`, *optional*): with several `num_tokens`, the probability of the likeliest class
            with which an image needs no further look: one, or one for each look but the last.
        calibration (`dict`, *optional*): what `spot-hf calibrate` has measured for `num_tokens`: `temperature`, one per
            look; `points`, each with `confidence`, `mean_tokens` and `accuracy`; and on which images.
        merge_tokens (`float` or `list[int]`, defaults to 0.0): share of the patch tokens that is merged away by the last
            layer, evenly over the layers; or tokens to merge in each layer (ToMe, arXiv 2210.09461).
        segmentation_scores_per_side (`int`, defaults to 1): of [`SpotViTForSemanticSegmentation`]: a token has class scores
            for as many points per side of its window; 1 is the usual linear head.
        segmentation_hidden_size (`int`, *optional*): width of a hidden layer of its head; by default it is linear.
        out_features (`list[str]`, *optional*), out_indices (`list[int]`, *optional*): of a [`SpotViTBackbone`], the stages
            whose features it gives, one or the other: `"stem"`, the embeddings, or 0; `"stage1"`, the first layer, or 1; and
            so on. The last layer by default.
        apply_layernorm (`bool`, defaults to `True`): whether the final layer norm is applied to a backbone's features.
        reshape_hidden_states (`bool`, defaults to `True`): whether a backbone's features of the full grid are maps,
            `(batch_size, hidden_size, rows, columns)`; or else sequences with their class and register tokens.
        semantic_loss_ignore_index (`int`, defaults to 255): the label of pixels that do not count in its loss.
        source_model (`dict`, *optional*): where the weights were converted from, as `spot-hf convert` records it
            (`name`, `revision`, `family`, `license`). Informative only.
        text_config (`dict` or `PreTrainedConfig`, *optional*): of a zero-shot model's text tower, with its `model_type`:
            `"clip_text_model"`, `"metaclip_2_text_model"`, `"siglip_text_model"` or `"siglip2_text_model"`. This and the
            following of [`SpotViTForZeroShotImageClassification`] alone.
        projection_dim (`int`, *optional*): width of the space of images and texts into which both towers' features are
            projected (CLIP); by default they are compared as they are (SigLIP).
        text_activation (`str`, defaults to `"softmax"`): what makes scores of an image's logits: `"softmax"` over the texts
            (CLIP), or `"sigmoid"` for each text alone, whose logits have a bias (SigLIP). It also says which loss is trained.
        logit_scale_init_value (`float`, defaults to 2.6592): the logarithm of the logits' scale, freshly initialised.
    """

    model_type = "spot_vit"
    sub_configs = {"text_config": AutoConfig}

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    drop_path_rate: float | int = 0.0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    image_size: int | list[int] | tuple[int, int] = 224
    patch_size: int = 16
    num_channels: int = 3
    qkv_bias: bool = True
    use_qk_norm: bool = False
    use_attention_norm: bool = False
    use_mlp_norm: bool = False
    use_pre_norm: bool = False
    use_final_norm: bool = True
    use_class_token: bool = True
    num_register_tokens: int = 0
    use_layer_scale: bool = False
    layerscale_value: float = 1.0
    use_swiglu_ffn: bool = False
    pooling: str = "cls"
    norm_after_pooling: bool = False
    use_position_table: bool = True
    rope_theta: float | int | None = None
    rope_coordinates: str = "centered"
    rope_grid_size: list[int] | tuple[int, int] | None = None
    rope_grid_offset: float | int = 0.0
    use_relative_position_bias: bool = False
    position_grid_size: list[int] | tuple[int, int] | None = None
    position_grid_extent: list[float] | tuple[float, float] | None = None
    position_interpolation: dict[str, Any] | None = None
    position_source_grid_size: list[int] | tuple[int, int] | None = None
    position_kernel_sigma: float = 0.6
    position_kernel_unit: str = "cells"
    position_kernel_centers: str = "cells"
    position_kernel_normalization: str | None = None
    window_spacing: float = 1.0
    window_border: str = "repeat"
    check_inputs: bool | None = None
    decoder_hidden_size: int = 512
    decoder_num_hidden_layers: int = 8
    decoder_num_attention_heads: int = 16
    decoder_intermediate_size: int = 2048
    mask_ratio: float = 0.75
    norm_pix_loss: bool = True
    num_tokens: int | list[int] | tuple[int, ...] | None = None
    placement: str = "isotropic"
    placer: dict[str, Any] | None = None
    confidence: float | int | list[float] | tuple[float, ...] | None = None
    calibration: dict[str, Any] | None = None
    merge_tokens: float | int | list[int] | tuple[int, ...] = 0.0
    segmentation_scores_per_side: int = 1
    segmentation_hidden_size: int | None = None
    semantic_loss_ignore_index: int = 255
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None
    apply_layernorm: bool = True
    reshape_hidden_states: bool = True
    text_config: dict[str, Any] | PreTrainedConfig | None = None
    projection_dim: int | None = None
    text_activation: str = "softmax"
    logit_scale_init_value: float | int = 2.6592
    source_model: dict[str, Any] | None = None

    def __post_init__(self, **kwargs):
        if isinstance(self.text_config, dict):
            self.text_config = text_config_of(self.text_config)
        if self.position_grid_size is None:
            height, width = self.image_height_width
            self.position_grid_size = [height // self.patch_size, width // self.patch_size]
        out_features, out_indices = kwargs.pop("out_features", None), kwargs.pop("out_indices", None)
        if out_features is not None or out_indices is not None:
            self.set_output_features_output_indices(out_features=out_features, out_indices=out_indices)
        kwargs.setdefault("auto_map", dict(AUTO_MAP))
        kwargs.setdefault("custom_pipelines", {task: dict(entry) for task, entry in CUSTOM_PIPELINES.items()})
        super().__post_init__(**kwargs)

    @property
    def text_padding(self) -> dict[str, Any]:
        """How a zero-shot model's tokenizer pads texts. SigLIP, whose text feature is that of the last token, was trained on
        texts of one length."""
        length = self.text_config.max_position_embeddings  # type: ignore[union-attr]
        padding = "max_length" if self.text_activation == "sigmoid" else True
        return {"padding": padding, "max_length": length, "truncation": True}

    @property
    def stage_names(self) -> list[str]:
        """Of the stages whose features a backbone can give: the embeddings, and each layer."""
        return ["stem", *(f"stage{number}" for number in range(1, self.num_hidden_layers + 1))]

    @property
    def has_plain_windows(self) -> bool:
        """Whether a token is its window's pixels and its relative place, and nothing else of its image: then an image
        processor can cut windows out. Not so with another spacing or border, or positions in pixels or in cells."""
        is_plain = self.window_spacing == 1 and self.window_border == "repeat"
        is_plain = is_plain and (self.rope_theta is None or self.rope_coordinates == "centered")
        return is_plain and self.position_kernel_unit == "cells" and self.position_kernel_centers == "cells"

    @property
    def position_rows_columns(self) -> tuple[int, int]:
        """`(rows, columns)` of the position table."""
        rows, columns = self.position_grid_size or (1, 1)  # never None after `__post_init__`
        return rows, columns

    @property
    def has_position_table(self) -> bool:
        """Whether the position embeddings reproduce a table with one entry per cell. Those of the released SPoT checkpoints
        are a kernel of the position, which follows an image's size by itself."""
        kernel = (self.position_kernel_unit, self.position_kernel_centers, self.position_kernel_normalization)
        return self.use_position_table and kernel == ("cells", "cells", None)

    @property
    def positions_in_attention(self) -> bool:
        """Whether attention needs the tokens' positions, not only their embeddings."""
        return self.rope_theta is not None or self.use_relative_position_bias

    @property
    def num_prefix_tokens(self) -> int:
        """Number of tokens before the patch tokens: the class token, if there is one, and the registers."""
        return int(self.use_class_token) + self.num_register_tokens

    @property
    def pooled_size(self) -> int:
        """Width of `pooler_output`, and of what the classifier takes."""
        return self.hidden_size * (2 if self.pooling in ("cls_mean", "cls_distillation") else 1)

    def set_image_size(self, height: int, width: int) -> None:
        """
        For images of another size: `image_size`, and the size of a position table, which has an entry per cell. Weights of
        that size come from [`SpotViTPreTrainedModel.resize_position_embeddings`] or from a conversion. Beside relative
        positions, a table keeps its size.
        """
        self.image_size = height if height == width else [height, width]
        if not self.has_position_table:
            return
        grid_size = [height // self.patch_size, width // self.patch_size]
        extent = [grid_size[0] * self.patch_size / height, grid_size[1] * self.patch_size / width]
        self.position_grid_extent = None if extent == [1, 1] else extent
        if self.use_relative_position_bias:  # whose table has that size, too
            return
        if list(self.position_rows_columns) != grid_size and self.position_source_grid_size is None:
            self.position_source_grid_size = list(self.position_rows_columns)
        self.position_grid_size = grid_size

    def without_pooling_head(self) -> "SpotViTConfig":
        """For a model that pools nothing: the same config; or, where pooling has weights of its own, one that pools by the
        mean, so that these are not there, and not missing where the encoder alone is loaded."""
        if self.pooling != "attention":
            return self
        config = copy.deepcopy(self)
        config.pooling = "mean"
        return config

    def decoder_config(self) -> "SpotViTConfig":
        """Config of the decoder of masked pre-training: a plain ViT's layers and position table, whatever the encoder has."""
        return SpotViTConfig(
            hidden_size=self.decoder_hidden_size,
            num_hidden_layers=self.decoder_num_hidden_layers,
            num_attention_heads=self.decoder_num_attention_heads,
            intermediate_size=self.decoder_intermediate_size,
            hidden_act=self.hidden_act,
            initializer_range=self.initializer_range,
            layer_norm_eps=self.layer_norm_eps,
            image_size=self.image_size,
            patch_size=self.patch_size,
            num_channels=self.num_channels,
            use_class_token=self.use_class_token,
            num_register_tokens=self.num_register_tokens,
            pooling="cls" if self.use_class_token else "mean",
            attn_implementation=self._attn_implementation,
        )

    def validate_architecture(self):
        """Part of `@strict`: raises `ValueError` for a combination that no model can have."""
        check_names(
            self,
            pooling=POOLINGS,
            rope_coordinates=ROPE_COORDINATES,
            position_kernel_unit=KERNEL_UNITS,
            position_kernel_centers=KERNEL_CENTERS,
            position_kernel_normalization=KERNEL_NORMALIZATIONS,
            window_border=WINDOW_BORDERS,
            placement=MODEL_PLACEMENTS,
            text_activation=TEXT_ACTIVATIONS,
        )
        if self.pooling == "cls_distillation" and self.num_register_tokens < 1:
            raise ValueError("`pooling='cls_distillation'` needs `num_register_tokens` of at least 1; got 0")
        if not self.use_class_token and self.pooling.startswith("cls"):
            raise ValueError(f"`pooling` {self.pooling!r} needs a class token; got use_class_token=False")
        if self.pooling == "attention" and self.norm_after_pooling:
            raise ValueError("`norm_after_pooling` is not for `pooling='attention'`, which has a norm of its own; got True")
        self._check_rotary()
        for part in ("", "decoder_"):
            width, heads = getattr(self, f"{part}hidden_size"), getattr(self, f"{part}num_attention_heads")
            if width % heads:
                raise ValueError(f"`{part}hidden_size` ({width}) must be a multiple of `{part}num_attention_heads` ({heads})")
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"`mask_ratio` must be above 0 and below 1; got {self.mask_ratio}")
        least_of = {"patch_size": 1, "num_channels": 1, "num_register_tokens": 0, "segmentation_scores_per_side": 1}
        for name in ("segmentation_hidden_size", "projection_dim"):
            if getattr(self, name) is not None:
                least_of[name] = 1
        for name, least in least_of.items():
            if getattr(self, name) < least:
                raise ValueError(f"`{name}` must be at least {least}; got {getattr(self, name)}")
        self.check_own_tokens()
        if self.placer is not None:
            check_placer(self.placer)
        elif self.placement == "learned":
            raise ValueError("`placement` 'learned' needs a `placer`, which `spot-hf train-placer` trains; got none")
        check_merge_tokens(self.merge_tokens, self.num_hidden_layers)
        if self.merge_tokens and self.positions_in_attention:
            raise ValueError(f"`merge_tokens` is not for models with rotary or relative positions; got {self.merge_tokens}")
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"`hidden_act` must be a name of transformers' ACT2FN; got {self.hidden_act!r}")
        if self.position_grid_size is None or len(self.position_grid_size) != 2 or min(self.position_grid_size) < 1:
            raise ValueError(
                f"`position_grid_size` must be [rows, columns], each at least 1; got {self.position_grid_size} "
                f"(by default `image_size // patch_size`: {self.image_size} and {self.patch_size})"
            )
        interpolation = {"mode": "bicubic", "antialias": False, **(self.position_interpolation or {})}
        known = interpolation["mode"] in ("bilinear", "bicubic") and isinstance(interpolation["antialias"], bool)
        if len(interpolation) > 2 or not known:
            raise ValueError(
                "`position_interpolation` must have `mode`, bilinear or bicubic, and `antialias`, true or false; "
                f"got {self.position_interpolation}"
            )
        if not 0 <= self.drop_path_rate < 1:
            raise ValueError(f"`drop_path_rate` must be at least 0 and below 1; got {self.drop_path_rate}")
        extent = self.position_grid_extent
        if extent is not None and not (len(extent) == 2 and all(0 < share <= 1 for share in extent)):
            raise ValueError(f"`position_grid_extent` must be two numbers above 0 and at most 1; got {extent}")
        for name in ("position_kernel_sigma", "window_spacing"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be above 0; got {getattr(self, name)}")

    def _check_rotary(self) -> None:
        if self.rope_theta is None:
            if self.rope_grid_size is not None or self.rope_grid_offset:
                raise ValueError(
                    "`rope_grid_size` and `rope_grid_offset` are for `rope_theta`; got "
                    f"{self.rope_grid_size} and {self.rope_grid_offset} without"
                )
            return
        if not self.rope_theta > 0:
            raise ValueError(f"`rope_theta` must be above 0; got {self.rope_theta}")
        if self.hidden_size // self.num_attention_heads % 4:
            raise ValueError(
                "with `rope_theta`, a head's width must be a multiple of 4, for sine and cosine along both axes; got "
                f"hidden_size={self.hidden_size} and num_attention_heads={self.num_attention_heads}"
            )
        grid = self.rope_grid_size
        if grid is not None and (len(grid) != 2 or min(grid) < 1):
            raise ValueError(f"`rope_grid_size` must be [rows, columns], each at least 1; got {list(grid)}")
        if self.rope_coordinates == "centered" and (grid is not None or self.rope_grid_offset):
            raise ValueError(
                "`rope_grid_size` and `rope_grid_offset` are for `rope_coordinates='cells'`; got "
                f"{grid} and {self.rope_grid_offset} with 'centered'"
            )


def text_config_of(text_config: dict[str, Any]) -> PreTrainedConfig:
    """The text tower's own configuration; `ValueError` where its `model_type` is none that transformers knows."""
    fields = dict(text_config)
    model_type = fields.pop("model_type", None)
    if model_type is None:
        raise ValueError(f"`text_config` must have a `model_type`, such as 'clip_text_model'; got {sorted(fields)}")
    try:
        return AutoConfig.for_model(model_type, **fields)
    except ValueError:
        raise ValueError(f"`text_config` must have a `model_type` that transformers knows; got {model_type!r}") from None


__all__ = ["SpotViTConfig"]
