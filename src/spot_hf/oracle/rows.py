"""From the oracle's results to the rows of a coordinate data set."""

from typing import Any

import datasets
import numpy as np
import torch

from ..coordinates.schema import coordinate_features
from ..coordinates.shards import Shard
from ..data.batches import Batch, Start
from .arguments import OracleRunArguments
from .search import OracleResult, SpotOracle


def _features(arguments: OracleRunArguments, images: Any, num_tokens: int) -> datasets.Features:
    """The columns of a budget's config."""
    label = images.features.get("label", datasets.Value("int64"))
    trajectory_length = arguments.steps + 1 if arguments.save_trajectories else None
    return coordinate_features(label, num_tokens, trajectory_length, arguments.optimize_window_scales)


def _optimize(oracle: SpotOracle, batch: Batch, device: torch.device) -> dict[Start, OracleResult]:
    """Runs the oracle on a batch, for each budget."""
    if batch.pixel_values is None:
        return {}
    pixel_values, labels, targets = batch.pixel_values.to(device), None, None
    if oracle.objective == "label":
        advice = ". The objectives 'distill' and 'feature' need no labels"
        labels = batch.labels(oracle.model.config.num_labels, advice).to(device)
    else:
        targets = oracle.full_grid_targets(pixel_values)
    return {
        start: oracle.optimize(pixel_values, labels, coordinates.to(device), targets)
        for start, coordinates in batch.starts.items()
    }


def _add_rows(shard: Shard, batch: Batch, result: OracleResult, image_processor: Any) -> None:
    """Appends a batch's rows to a shard."""

    def image_frame(coordinates: torch.Tensor) -> np.ndarray:
        mapped = [
            image_processor.to_image_frame(one, size)
            for one, size in zip(coordinates.cpu().numpy(), batch.image_size, strict=True)
        ]
        return np.stack(mapped).clip(0, 1)  # float32's rounding at the edge

    missing = [None] * len(batch.image_index)
    columns: dict[str, Any] = {
        "image_id": batch.image_id,
        "image_index": batch.image_index,
        "image_sha256": batch.image_sha256,
        "image_size": np.array(batch.image_size, dtype=np.int32),
        "label": batch.label,
        "coordinates": image_frame(result.coordinates),
        "initial_coordinates": image_frame(result.trajectory[:, 0]),
        "losses": result.losses.cpu().numpy(),
        "initial_prediction": missing,
        "prediction": missing,
        "trajectory": image_frame(result.trajectory).astype(np.float16),
    }
    if result.predictions is not None:
        predictions = result.predictions.cpu()
        columns["initial_prediction"] = predictions[:, 0].numpy()
        columns["prediction"] = predictions.gather(1, result.best_steps.cpu()[:, None])[:, 0].numpy()
        labelled = torch.tensor([label is not None for label in batch.label])
        shard.num_labelled += int(labelled.sum())
        truth = torch.tensor([-1 if label is None else label for label in batch.label])
        right = (predictions == truth[:, None]) & labelled[:, None]
        shard.correct_per_step = shard.correct_per_step + right.sum(0).numpy()
    if result.window_scales is not None:
        columns["window_scales"] = result.window_scales.cpu().numpy()
    shard.num_steps += int(result.num_steps.sum())
    shard.add(columns)
