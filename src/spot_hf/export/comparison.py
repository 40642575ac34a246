"""An export beside PyTorch: the same outputs on photographs, and the same classes on a split of a data set."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_sample_images
from torch import nn
from tqdm import tqdm

from ..data.batches import FailureCount, PlacementRequest, Preparation, batches_of, work_of
from ..data.labels import match_labels
from ..data.source import load_images
from ..golden import golden_images
from .arguments import ExportArguments


# Of an output's largest value, where that is above 1. Float32 rounds to 6e-8; sums in another order, through dozens of layers,
# differ by up to 1e-5 of it.
TOLERANCE = 1e-4
MOST_TOKENS = 196

Call = Callable[..., dict[str, torch.Tensor]]


def photographs(image_processor: Any, config: Any) -> torch.Tensor:
    """Two, as the model sees them, `(2, num_channels, height, width)`; two patterns where it does not see colours."""
    if image_processor is None or config.num_channels != 3:
        return golden_images(config.num_channels, *config.image_height_width)
    images = load_sample_images().images  # scikit-learn's own
    return torch.cat([image_processor(one, placement="grid", return_tensors="pt")["pixel_values"] for one in images])


def cases(images: torch.Tensor, config: Any, inputs: list[str]) -> dict[str, dict[str, torch.Tensor]]:
    """
    Inputs of several sizes, by a description.

    Args:
        images (`torch.Tensor` of shape `(2, num_channels, height, width)`): as a model sees them.
        config ([`SpotViTConfig`]): of that model.
        inputs (`list[str]`): of the graph.
    """
    side, (height, width) = config.patch_size, images.shape[-2:]
    larger = nn.functional.interpolate(images, (height + 3 * side + 1, width + side), mode="bilinear", align_corners=False)
    cells = min(MOST_TOKENS, (height // side) * (width // side))
    generator = torch.Generator().manual_seed(0)
    found = {}
    for pixels, batch_size, num_tokens in ((images, 1, 1), (images, 2, 25), (images, 1, cells), (larger, 2, 9)):
        own = {"pixel_values": pixels[:batch_size], "coordinates": torch.rand(batch_size, num_tokens, 2, generator=generator)}
        if "coordinates_mask" in inputs:
            own["coordinates_mask"] = torch.rand(batch_size, num_tokens, generator=generator) < 0.7
            own["coordinates_mask"][:, 0] = True
        if "window_scales" in inputs:
            own["window_scales"] = 0.8 + 3 * torch.rand(batch_size, num_tokens, generator=generator)
        size = " × ".join(map(str, pixels.shape[-2:]))
        found[f"batch {batch_size}, {num_tokens} tokens, {size} pixels"] = own
    return found


@torch.no_grad()
def largest_difference(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Over all outputs: of each, relative to its largest value where that is above 1. Infinite where shapes differ."""
    if found.keys() != expected.keys():
        return float("inf")
    largest = 0.0
    for name, value in expected.items():
        if found[name].shape != value.shape:
            return float("inf")
        difference = (found[name] - value).abs().max().item()
        if np.isnan(difference):
            return float("inf")
        largest = max(largest, difference / max(1.0, value.abs().max().item()))
    return largest


@torch.no_grad()
def differences(exported: Call, reference: Call, inputs: dict[str, dict[str, torch.Tensor]]) -> dict[str, float]:
    """[`largest_difference`] of each case."""
    return {name: largest_difference(exported(**own), reference(**own)) for name, own in inputs.items()}


@torch.no_grad()
def measure_split(
    arguments: ExportArguments, calls: dict[str, Call], image_processor: Any, config: Any, is_classifier: bool
) -> dict[str, Any]:
    """
    Classes of several exports on a split, isotropic tokens, beside those of the first.

    Args:
        arguments ([`ExportArguments`]): which split, and numbers of tokens.
        calls (`dict`): by name, functions of `pixel_values` and `coordinates`; the first is PyTorch.
        is_classifier (`bool`): whether logits are of images' classes, which are compared with the split's labels.

    Returns:
        `dict`: the split, and by number of tokens and name the shares of `agreement` with the first, and of right answers
        (`accuracy`), where there are labels. Without logits, `agreement` is the mean cosine of pooled features.
    """
    has_labels = is_classifier and arguments.label_column_name is not None
    source = arguments.source(**({} if has_labels else {"label_column_name": None}))
    images: Any = load_images(source)
    mapping = match_labels(images.features["label"], config, arguments) if has_labels else None
    requests = {count: PlacementRequest("isotropic", count) for count in arguments.num_tokens}
    failures = FailureCount(arguments.max_failed_share, len(images))
    work = work_of(range(len(images)), arguments.batch_size, requests.values())
    agreed = {(count, name): 0.0 for count in requests for name in calls}
    right, total = dict.fromkeys(agreed, 0), 0
    with tqdm(total=len(images), desc=f"measuring on {images.split}", unit="image") as progress:
        for batch in batches_of(Preparation(images, image_processor), work, arguments.num_workers, failures):
            progress.update(batch.num_images)
            if batch.pixel_values is None:
                continue
            total += len(batch.pixel_values)
            truth = None if mapping is None else batch.labels(mapping)
            for count, request in requests.items():
                reference = None
                for name, call in calls.items():
                    outputs = call(pixel_values=batch.pixel_values, coordinates=batch.coordinates[request])
                    reference = outputs if reference is None else reference
                    agreed[count, name] += _agreement(outputs, reference)
                    if truth is not None:
                        right[count, name] += int((outputs["logits"].argmax(-1) == truth).sum())
    if not total:
        raise ValueError(f"`dataset_split` must have images that can be read; {str(images.split)!r} has none")
    figures: dict[str, dict[str, dict[str, float]]] = {}
    for (count, name), value in agreed.items():
        figures.setdefault(str(count), {})[name] = {
            "agreement": value / total,
            **({"accuracy": right[count, name] / total} if has_labels else {}),
        }
    return {
        "split": {**source.recorded_source(), "dataset_split": str(images.split)},
        "num_images": total,
        "num_tokens": figures,
    }


def _agreement(outputs: dict[str, torch.Tensor], reference: dict[str, torch.Tensor]) -> float:
    """A sum over images."""
    if "logits" in outputs:
        same = outputs["logits"].argmax(1) == reference["logits"].argmax(1)
        return same.flatten(1).double().mean(1).sum().item() if same.ndim > 1 else float(same.sum())
    name = "pooler_output" if "pooler_output" in outputs else "last_hidden_state"
    return nn.functional.cosine_similarity(outputs[name].flatten(1), reference[name].flatten(1)).sum().item()
