"""What the oracle minimizes: a loss per image."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn


UNLABELLED = -100  # a pixel that does not count: what torch's cross-entropy leaves out


@dataclass(frozen=True)
class Objective:
    """A loss per image, of what the model says with few tokens and what it is to say."""

    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    target: str  # "labels", or which output of the full grid: "logits" or "features"


def label_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy, as in the paper: `(batch_size, num_labels)` and int64 `(batch_size,)` to `(batch_size,)`. Of maps
    `(batch_size, num_labels, height, width)` and `(batch_size, height, width)`: the mean over an image's labelled pixels, 0
    where it has none."""
    losses = nn.functional.cross_entropy(logits, labels, reduction="none", ignore_index=UNLABELLED)
    counted = (labels != UNLABELLED).reshape(len(labels), -1).sum(1)
    return losses.reshape(len(labels), -1).sum(1) / counted.clamp_min(1)


def distill_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Kullback-Leibler divergence from the full grid's prediction: logits `(batch_size, num_labels)` to `(batch_size,)`. Of
    maps `(batch_size, num_labels, height, width)`: the mean over their pixels."""
    divergence = nn.functional.kl_div(
        logits.log_softmax(1), targets.to(logits.dtype).log_softmax(1), reduction="none", log_target=True
    ).sum(1)
    return divergence.reshape(len(logits), -1).mean(1)


def feature_loss(features: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """1 - cosine similarity to the full grid's pooled feature: two `(batch_size, pooled_size)` to `(batch_size,)`."""
    return 1 - nn.functional.cosine_similarity(features, targets.to(features.dtype), dim=-1)


# Described in `coordinates/schema.py`, for cards.
OBJECTIVES = {
    "label": Objective(label_loss, "labels"),
    "distill": Objective(distill_loss, "logits"),
    "feature": Objective(feature_loss, "features"),
}
