"""From the oracle's results to the rows of a coordinate data set."""

from typing import Any

import numpy as np
import torch

from ..coordinates.shards import Shard
from ..data.batches import Batch
from ..data.labels import LabelMapping
from .search import OracleResult


def add_rows(shard: Shard, batch: Batch, result: OracleResult, image_processor: Any, mapping: LabelMapping | None) -> None:
    """Appends a batch's rows to a shard. `mapping` knows the classes of their labels, where these are the model's. A mask is
    no label of a row."""

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
        "label": [None if isinstance(label, dict) else label for label in batch.label],
        "coordinates": image_frame(result.coordinates),
        "initial_coordinates": image_frame(result.trajectory[:, 0]),
        "losses": result.losses.cpu().numpy(),
        "initial_prediction": missing,
        "prediction": missing,
        "trajectory": image_frame(result.trajectory).astype(np.float16),
    }
    if result.predictions is not None and result.initial_prediction is not None and result.prediction is not None:
        columns["initial_prediction"] = result.initial_prediction.cpu().numpy()
        columns["prediction"] = result.prediction.cpu().numpy()
        classes = [mapping(label) if mapping is not None else None for label in batch.label]
        labelled = torch.tensor([number is not None for number in classes])
        shard.num_labelled += int(labelled.sum())
        truth = torch.tensor([-1 if number is None else number for number in classes])
        right = (result.predictions.cpu() == truth[:, None]) & labelled[:, None]
        shard.correct_per_step = shard.correct_per_step + right.sum(0).numpy()
    if result.window_scales is not None:
        columns["window_scales"] = result.window_scales.cpu().numpy()
    if result.initial_window_scales is not None:
        columns["initial_window_scales"] = result.initial_window_scales.cpu().numpy()
    shard.num_steps += int(result.num_steps.sum())
    shard.add(columns)
