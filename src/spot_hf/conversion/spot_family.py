"""The released SPoT checkpoints: names in their files, and what their shapes say."""

from typing import Any

from torch import nn

from .errors import ConversionError
from .family import Family, count_layers, stated_heads
from .sources import Source


# The released SPoT checkpoints. Position embeddings are a fourth channel of their windows: `embedder.emb` holds both.
SPOT = {
    "tokenizer._n_sigma": "position_kernel_sigma",
    "embedder.cls_token": "cls_token",
    "embedder.emb": "embeddings.patch_projection",
    "blocks.{i}.norm1": "layers.{i}.norm1",
    "blocks.{i}.att.qkv": "layers.{i}.attention.qkv",
    "blocks.{i}.att.proj": "layers.{i}.attention.o_proj",
    "blocks.{i}.ls1.lambda_": "layers.{i}.layer_scale1.scale",
    "blocks.{i}.norm2": "layers.{i}.norm2",
    "blocks.{i}.mlp.L1": "layers.{i}.mlp.fc1",
    "blocks.{i}.mlp.L2": "layers.{i}.mlp.fc2",
    "blocks.{i}.ls2.lambda_": "layers.{i}.layer_scale2.scale",
    "norm": "layernorm",
    "fc_norm": "layernorm",
    "head": "classifier",
}


def _describe_spot(source: Source) -> dict[str, Any]:
    """From the tensors' shapes, and from how the released code samples and embeds, which its checkpoints do not state."""
    hidden_size, num_inputs = source.shape("embedder.emb.weight")
    num_channels = 3
    patch_size = round((num_inputs / (num_channels + 1)) ** 0.5)
    if (num_channels + 1) * patch_size**2 != num_inputs or patch_size < 2:
        raise ConversionError(
            f"wrong shape of tensor `embedder.emb.weight` in {source.name}: expected 4 · patch_size² inputs, got {num_inputs}"
        )
    # Its kernel's width is `softplus(_n_sigma) · patch_size / (height + width)` of the image: of a square one, this in pixels.
    n_sigma = nn.functional.softplus(source.tensors["tokenizer._n_sigma"].double().flatten())
    if len(n_sigma) != 1:
        raise ConversionError(
            f"wrong shape of tensor `tokenizer._n_sigma` in {source.name}: expected one number, got {len(n_sigma)}"
        )
    mean_pooled = "fc_norm.weight" in source.tensors
    return {
        "hidden_size": hidden_size,
        "num_hidden_layers": count_layers(source, "blocks"),
        "num_attention_heads": stated_heads(source, hidden_size),
        "intermediate_size": source.shape("blocks.0.mlp.L1.weight")[0],
        "layer_norm_eps": 1e-6,
        "image_size": 224,
        "patch_size": patch_size,
        "num_channels": num_channels,
        "qkv_bias": any(name.endswith(".att.qkv.bias") for name in source.tensors),
        "use_layer_scale": any(name.endswith(".lambda_") for name in source.tensors),
        "pooling": "mean" if mean_pooled else "cls",
        "norm_after_pooling": mean_pooled,
        "position_grid_size": [patch_size, patch_size],
        "position_kernel_sigma": n_sigma[0].item() * patch_size / 2,
        "position_kernel_unit": "pixels",
        "position_kernel_centers": "mesh",
        "position_kernel_normalization": "image",
        # `patch_size` samples from one end to the other of a window of `patch_size` pixels.
        "window_spacing": patch_size / (patch_size - 1),
        "window_border": "zero",
    }


SPOT_FAMILY = Family(SPOT, _describe_spot, "blocks", position_channel=True)
