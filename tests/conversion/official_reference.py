"""The released SPoT code's documented behaviour, in a few lines, and checkpoints in its format with random weights."""

import torch
from torch.nn import functional as F


HEADS, DEPTH, PATCH = 4, 2, 8


def random_checkpoint(mean_pooled: bool, width: int = 32, num_labels: int = 5) -> dict[str, torch.Tensor]:
    shapes = {
        "tokenizer._n_sigma": (1,),
        "embedder.emb.weight": (width, 4 * PATCH**2),
        "embedder.emb.bias": (width,),
        "embedder.cls_token": (1, 1, width),
        "head.weight": (num_labels, width),
        "head.bias": (num_labels,),
    }
    for norm in ("fc_norm" if mean_pooled else "norm", *(f"blocks.{i}.norm{j}" for i in range(DEPTH) for j in (1, 2))):
        shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    for i in range(DEPTH):
        shapes |= {f"blocks.{i}.ls{j}.lambda_": (width,) for j in (1, 2)}
        for name, (rows, columns) in {
            "att.qkv": (3 * width, width), "att.proj": (width, width), "mlp.L1": (48, width), "mlp.L2": (width, 48),
        }.items():  # fmt: skip
            shapes |= {f"blocks.{i}.{name}.weight": (rows, columns), f"blocks.{i}.{name}.bias": (rows,)}
    generator = torch.Generator().manual_seed(int(mean_pooled))
    return {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def reference(state, images, mu, mean_pooled):
    """`(images, channels, height, width)`, `(images, tokens, 2)` → logits, each image by itself."""
    height, width = images.shape[-2:]
    side = PATCH / (height + width)
    steps = torch.linspace(-side, side, PATCH, dtype=mu.dtype)
    y, x = mu[..., 0, None] + steps, mu[..., 1, None] + steps  # (images, tokens, PATCH)
    # torch's sampler with aligned corners: -1 and 1 are the centres of the first and last pixel. Of what lies outside, the
    # part that it would fade over one pixel is nothing here.
    lattice = torch.stack(torch.broadcast_tensors(x[..., None, :], y[..., :, None]), dim=-1)
    size = torch.tensor([width, height])
    indices = lattice * size
    inside = ((indices >= 0) & (indices <= size - 1)).all(-1)
    sampled = F.grid_sample(
        images.to(mu.dtype), (2 * indices / (size - 1) - 1).flatten(2, 3), mode="bilinear", align_corners=True
    )  # (images, channels, tokens, PATCH²)
    sampled = sampled.unflatten(3, (PATCH, PATCH)).transpose(1, 2) * inside[:, :, None]
    mesh = torch.linspace(0, 1, PATCH, dtype=mu.dtype)
    sigma = F.softplus(state["tokenizer._n_sigma"].to(mu.dtype)) * side
    d_y, d_x = mesh[:, None] - mu[..., 0, None, None], mesh - mu[..., 1, None, None]
    channel = torch.exp(-(d_y**2 + d_x**2) / (2 * sigma**2))
    channel = channel / channel.amax((1, 2, 3), keepdim=True)
    tokens = torch.cat([sampled, channel[:, :, None]], dim=2).flatten(2)

    def linear(name, inputs):
        return F.linear(inputs, state[f"{name}.weight"].to(mu.dtype), state[f"{name}.bias"].to(mu.dtype))

    def norm(name, inputs):
        weight, bias = (state[f"{name}.{kind}"].to(mu.dtype) for kind in ("weight", "bias"))
        return F.layer_norm(inputs, inputs.shape[-1:], weight, bias, eps=1e-6)

    hidden = linear("embedder.emb", tokens)
    hidden = torch.cat([state["embedder.cls_token"].to(mu.dtype).expand(len(images), -1, -1), hidden], dim=1)
    for i in range(DEPTH):
        query, key, value = linear(f"blocks.{i}.att.qkv", norm(f"blocks.{i}.norm1", hidden)).chunk(3, dim=-1)
        heads = [part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (query, key, value)]
        attended = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        hidden = hidden + linear(f"blocks.{i}.att.proj", attended) * state[f"blocks.{i}.ls1.lambda_"]
        inner = F.gelu(linear(f"blocks.{i}.mlp.L1", norm(f"blocks.{i}.norm2", hidden)))
        hidden = hidden + linear(f"blocks.{i}.mlp.L2", inner) * state[f"blocks.{i}.ls2.lambda_"]
    pooled = norm("fc_norm", hidden[:, 1:].mean(1)) if mean_pooled else norm("norm", hidden)[:, 0]
    return linear("head", pooled)
