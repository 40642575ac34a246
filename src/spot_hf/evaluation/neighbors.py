"""kNN accuracy, by the features of a training split."""

from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..data.batches import FailureCount, Preparation, batches_of, work_of
from ..data.labels import match_labels
from ..data.source import load_images
from .arguments import EvaluationArguments
from .methods import Cell, Methods, Outputs


KNN_NEIGHBORS = 20  # as the paper


class Neighbors:
    """
    kNN classification (k = 20, cosine, one vote each) by the features of a training split, under each cell.

    Args:
        arguments ([`EvaluationArguments`]): which split, and how many of its images.
        methods ([`Methods`]): how images are looked at.
        image_processor, shrinking: as [`Preparation`] takes them.
        device (`torch.device`): of the model.
    """

    def __init__(
        self,
        arguments: EvaluationArguments,
        methods: Methods,
        image_processor: Any,
        shrinking: dict[tuple[int, int], Any],
        device: torch.device,
    ):
        images: Any = load_images(arguments.source(dataset_split=arguments.knn_dataset_split, max_samples=None))
        mapping = match_labels(images.features["label"], methods.model.config, arguments)
        mapping.of(images)  # every image has a class
        if len(images) > arguments.knn_samples:
            chosen = np.random.default_rng(arguments.seed).choice(len(images), arguments.knn_samples, replace=False)
            images = images.select(np.sort(chosen))
        if len(images) < KNN_NEIGHBORS:
            raise ValueError(f"`knn_dataset_split` must have at least {KNN_NEIGHBORS} images; got {len(images)}")
        # The oracle would have to know the labels, and several looks have no one feature.
        cells = [cell for cell in methods.functions if cell.steps is None and cell.looks is None]
        placements = dict.fromkeys(request for cell in cells for request in cell.placements)
        work = work_of(range(len(images)), arguments.batch_size, placements)
        preparation = Preparation(images, image_processor, shrinking)
        failures = FailureCount(arguments.max_failed_share, len(images))
        features: dict[Cell, list[np.ndarray]] = {cell: [] for cell in cells}
        labels: list[int] = []
        with tqdm(total=len(images), desc="features for kNN", unit="image") as progress:
            for batch in batches_of(preparation, work, arguments.num_workers, failures):
                progress.update(batch.num_images)
                if batch.pixel_values is None:
                    continue
                labels += batch.labels(mapping).tolist()
                for cell in cells:
                    outputs = methods.prepare(cell, batch, device)()
                    assert isinstance(outputs, Outputs) and outputs.features is not None
                    features[cell].append(outputs.features.float().cpu().numpy())
        self.failed = failures.failed
        from sklearn.neighbors import KNeighborsClassifier

        self.classifiers = {
            cell: KNeighborsClassifier(KNN_NEIGHBORS, metric="cosine").fit(np.concatenate(parts), labels)
            for cell, parts in features.items()
        }

    def predict(self, cell: Cell, features: torch.Tensor) -> list[int]:
        """The classes of `features` `(batch_size, pooled_size)`."""
        return self.classifiers[cell].predict(features.float().cpu().numpy()).tolist()
