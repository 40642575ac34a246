"""kNN accuracy, by the features of a training split."""

from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..data.batches import Preparation, Work, batches_of
from .arguments import EvaluationArguments
from .cells import Cell
from .images import labels_of, load_evaluated
from .methods import Ways


KNN_NEIGHBORS = 20  # as the paper


class Neighbors:
    """kNN classification (k = 20, cosine, one vote each) by the features of a training split, under each cell."""

    def __init__(
        self,
        arguments: EvaluationArguments,
        ways: Ways,
        processor: Any,
        smaller: dict[tuple[int, int], Any],
        device: torch.device,
    ):
        images = load_evaluated(arguments, arguments.knn_dataset_split, None)
        labels_of(images, arguments, ways.model.config.num_labels)
        if len(images) > arguments.knn_samples:
            chosen = np.random.default_rng(arguments.seed).choice(len(images), arguments.knn_samples, replace=False)
            images = images.select(np.sort(chosen))
        if len(images) < KNN_NEIGHBORS:
            raise ValueError(f"`knn_dataset_split` must have at least {KNN_NEIGHBORS} images; got {len(images)}")
        cells = [cell for cell in ways.ways if cell.steps is None]  # the oracle would have to know the labels
        starts = list(dict.fromkeys(cell.start for cell in cells if cell.start is not None))
        rows = [
            list(range(i, min(i + arguments.batch_size, len(images)))) for i in range(0, len(images), arguments.batch_size)
        ]
        preparation = Preparation(images, processor, smaller)
        work = (Work(0, part, starts, False) for part in rows)
        features: dict[Cell, list[np.ndarray]] = {cell: [] for cell in cells}
        labels: list[int] = []
        with tqdm(total=len(images), desc="features for kNN", unit="image") as progress:
            for batch in batches_of(preparation, work, arguments.num_workers):
                progress.update(len(batch.image_index) + len(batch.failed))
                if batch.pixel_values is None:
                    continue
                labels += batch.labels(ways.model.config.num_labels).tolist()
                for cell in cells:
                    features[cell].append(ways(cell, batch, device)()[1].float().cpu().numpy())
        from sklearn.neighbors import KNeighborsClassifier

        self.classifiers = {
            cell: KNeighborsClassifier(KNN_NEIGHBORS, metric="cosine").fit(np.concatenate(parts), labels)
            for cell, parts in features.items()
        }

    def predict(self, cell: Cell, features: torch.Tensor) -> list[int]:
        return self.classifiers[cell].predict(features.float().cpu().numpy()).tolist()
