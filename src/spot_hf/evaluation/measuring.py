"""Measures a cell on a batch: classes, losses, time, memory."""

import time
from typing import Any

import torch
from torch import nn

from ..data.batches import Batch
from ..jobs.process import synchronize
from ..oracle.search import OracleResult
from .cells import Cell, Measurement
from .memory import PeakMemory
from .methods import Methods, Outputs, among
from .neighbors import Neighbors


class Meter:
    """
    Args:
        methods ([`Methods`]): what is measured.
        neighbors ([`Neighbors`], *optional*): for kNN accuracy.
        device (`torch.device`): of the model.
    """

    def __init__(self, methods: Methods, neighbors: Neighbors | None, device: torch.device):
        self.methods, self.neighbors, self.device = methods, neighbors, device
        self.warm: set[Cell] = set()

    def __call__(self, cell: Cell, batch: Batch) -> Measurement:
        """Runs a batch under a cell; the first time also without a clock, and counting memory."""
        found = Measurement(num_failed=[len(batch.failed)], failed=batch.failed)
        if batch.pixel_values is None:  # nothing to look at
            return found
        truth = self.truth_of(batch)
        if cell not in self.warm:
            # Libraries allocate and choose once. Of a full batch: the figure is the same whichever batch is the first.
            with PeakMemory() as memory:
                self.methods.prepare(cell, batch, self.device, full=True)()
            found.peak_mib = [memory.peak / 2**20]
            self.warm.add(cell)
        forward = self.methods.prepare(cell, batch, self.device)
        synchronize(self.device)
        began = time.perf_counter()
        result = forward()
        synchronize(self.device)
        seconds = time.perf_counter() - began
        # The oracle has looked at its best positions already: to look again is no part of its cost.
        outputs = self.methods.at(batch, result.coordinates) if isinstance(result, OracleResult) else result
        found.image_index = batch.image_index
        found.seconds, found.num_timed = [round(seconds, 6)], [len(batch.image_index)]
        self.compare(found, cell, batch, outputs, truth)
        return found

    def truth_of(self, batch: Batch) -> Any:
        """What outputs are compared with; `ValueError` where an image has none."""
        return batch.labels(self.methods.labels)

    def compare(self, found: Measurement, cell: Cell, batch: Batch, outputs: Outputs, truth: Any) -> None:
        """Fills in what is measured of each image, by [`truth_of`] the batch."""
        logits = among(outputs.logits.cpu().double(), self.methods.classes)  # not every device has float64
        num_top = min(5, logits.shape[-1] if self.methods.classes is None else len(self.methods.classes))
        top = logits.topk(num_top, dim=-1).indices
        confidence = logits.softmax(-1).gather(1, top[:, :1])[:, 0]
        loss = nn.functional.cross_entropy(logits, truth, reduction="none")
        found.label, found.top = truth.tolist(), top.tolist()
        found.confidence = [round(value, 6) for value in confidence.tolist()]
        found.loss = [round(value, 6) for value in loss.tolist()]
        if outputs.num_tokens is not None:
            found.num_tokens = outputs.num_tokens.tolist()
        if self.neighbors is not None and cell.steps is None and outputs.features is not None:
            found.knn = self.neighbors.predict(cell, outputs.features)
