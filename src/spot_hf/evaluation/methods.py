"""What is compared: placements of a SpotViT's tokens, baselines, the oracle; each turns a batch into logits."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from ..data.batches import Batch
from ..data.labels import LabelMapping
from ..modeling_spot_vit import SpotViTForImageClassification
from ..oracle.arguments import DTYPES
from ..oracle.search import OracleResult, SpotOracle
from .arguments import EvaluationArguments
from .baselines import TokenMerging, merge_schedule, merge_schedule_of_cost, shrink, shrunken_size
from .cells import Cell


@dataclass(frozen=True)
class Outputs:
    """Of a batch."""

    logits: torch.Tensor  # (batch_size, num_labels)
    features: torch.Tensor  # (batch_size, pooled_size)


class Methods:
    """
    For each cell, what is done with a batch.

    Args:
        model ([`SpotViTForImageClassification`]): that is evaluated.
        saved ([`SpotViTForImageClassification`]): the same as it was saved, with the position table that images are shrunk
            for; another one where `image_size` is not the model's own.
        height, width (`int`): of `pixel_values`.
        cells (`list[Cell]`): to be measured.
        arguments ([`EvaluationArguments`]): of the evaluation.
        classes (`list[int]`, *optional*): among which images are classified.
        labels ([`LabelMapping`]): from the images' labels to the model's classes.
    """

    def __init__(
        self,
        model: SpotViTForImageClassification,
        saved: SpotViTForImageClassification,
        height: int,
        width: int,
        cells: list[Cell],
        arguments: EvaluationArguments,
        classes: list[int] | None,
        labels: LabelMapping,
    ):
        self.model, self.saved, self.height, self.width = model, saved, height, width
        self.dtype = DTYPES[arguments.dtype]
        self.arguments, self.classes, self.labels = arguments, classes, labels
        self.shrunken_sizes: dict[Cell, tuple[int, int]] = {}
        self.functions: dict[Cell, Callable[..., Outputs | OracleResult]] = {cell: self._function(cell) for cell in cells}

    def _function(self, cell: Cell) -> Callable[..., Outputs | OracleResult]:
        """From inputs of a cell to outputs; the oracle's gives its result instead, which [`Methods.at`] turns into these."""
        config = self.model.config
        if cell.steps is not None:
            return SpotOracle(self.model, classes=self.classes, **vars(self.arguments.search(cell.steps))).optimize
        if cell.method == "shrunken_image":
            size = shrunken_size(cell.num_tokens, self.height, self.width, config.patch_size)
            self.shrunken_sizes[cell] = size
            return partial(self._run, partial(_encode, shrink(self.saved, *size)))
        if cell.method.startswith("token_merging"):
            num_cells = (self.height // config.patch_size) * (self.width // config.patch_size)
            if cell.method == "token_merging":
                schedule = merge_schedule(num_cells, cell.num_tokens, config.num_hidden_layers)
            else:
                schedule = merge_schedule_of_cost(num_cells, cell.num_tokens, config.hidden_size, config.num_hidden_layers)
            return partial(self._run, partial(_merge, TokenMerging(self.model, schedule)))
        return partial(self._run, partial(_encode, self.model))

    def prepare(
        self, cell: Cell, batch: Batch, device: torch.device, full: bool = False
    ) -> Callable[[], Outputs | OracleResult]:
        """What is done with a batch, ready to be timed: its inputs are where they are needed. `full`: with as many images as
        the largest batch has, whose first ones are repeated."""
        assert batch.pixel_values is not None
        size = self.shrunken_sizes.get(cell)
        inputs = {"pixel_values": (batch.pixel_values if size is None else batch.shrunken[size]).to(device)}
        if cell.placement is not None:
            inputs["coordinates"] = batch.coordinates[cell.placement].to(device)
            if cell.placement in batch.window_scales:
                inputs["window_scales"] = batch.window_scales[cell.placement].to(device)
        if cell.steps is not None:
            inputs["labels"] = batch.labels(self.labels).to(device)
        if full:
            repeated = torch.arange(self.arguments.batch_size, device=device) % len(batch.image_index)
            inputs = {name: values[repeated] for name, values in inputs.items()}
        return partial(self.functions[cell], **inputs)

    def at(self, batch: Batch, coordinates: torch.Tensor) -> Outputs:
        """Logits and features at given positions, `(batch_size, num_tokens, 2)`, model frame."""
        assert batch.pixel_values is not None
        pixel_values = batch.pixel_values.to(coordinates.device)
        return self._run(partial(_encode, self.model), pixel_values=pixel_values, coordinates=coordinates)

    def _run(self, function: Callable[..., Outputs], **inputs: torch.Tensor) -> Outputs:
        device = inputs["pixel_values"].device.type
        with torch.inference_mode(), torch.autocast(device, dtype=self.dtype, enabled=self.dtype != torch.float32):
            return function(**inputs)


def _encode(model: SpotViTForImageClassification, **inputs: torch.Tensor) -> Outputs:
    features = model.spot_vit(**inputs).pooler_output
    return Outputs(model.classifier(features), features)


def _merge(merging: TokenMerging, pixel_values: torch.Tensor) -> Outputs:
    features = merging.features(pixel_values)
    return Outputs(merging.model.classifier(features), features)
