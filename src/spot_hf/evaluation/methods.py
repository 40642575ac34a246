"""What is compared: placements of a SpotViT's tokens, baselines, the oracle; each turns a batch into logits."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ..budgets import Budgets, look_until_sure, resolve_budgets
from ..data.batches import Batch
from ..data.labels import LabelMapping
from ..merging import merge_schedule
from ..oracle.arguments import DTYPES
from ..oracle.search import OracleResult, SpotOracle
from .arguments import EvaluationArguments
from .baselines import merge_schedule_of_cost, shrink, shrunken_size
from .cells import CALIBRATED, LEARNED, Cell


@dataclass(frozen=True)
class Outputs:
    """Of a batch."""

    logits: torch.Tensor  # (batch_size, num_labels)
    features: torch.Tensor | None = None  # (batch_size, pooled_size)
    num_tokens: torch.Tensor | None = None  # (batch_size,), of all looks, of a budget per image


class Methods:
    """
    For each cell, what is done with a batch.

    Args:
        model ([`SpotViTForImageClassification`] or [`SpotCNNForImageClassification`]): that is evaluated.
        saved: the same as it was saved, with the position table that images are shrunk
            for; another one where `image_size` is not the model's own.
        height, width (`int`): of `pixel_values`.
        cells (`list[Cell]`): to be measured.
        arguments ([`EvaluationArguments`]): of the evaluation.
        classes (`list[int]`, *optional*): among which images are classified.
        labels ([`LabelMapping`]): from the images' labels to the model's classes.
    """

    def __init__(
        self,
        model: Any,
        saved: Any,
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
            return partial(self._run, partial(self.encode, shrink(self.saved, *size), merge_tokens=0.0))
        if cell.method.startswith("token_merging"):
            num_cells = (self.height // config.patch_size) * (self.width // config.patch_size)
            if cell.method == "token_merging":
                schedule = merge_schedule(num_cells, cell.num_tokens, config.num_hidden_layers)
            else:
                schedule = merge_schedule_of_cost(num_cells, cell.num_tokens, config.hidden_size, config.num_hidden_layers)
            return partial(self._run, partial(self.encode, self.model, merge_tokens=schedule))
        if cell.method in LEARNED and self.model.placer is None:
            raise ValueError(f"`placement` {cell.method!r} needs a model with a placer, which `spot-hf train-placer` trains")
        merging = {} if cell.merge_tokens is None else {"merge_tokens": cell.merge_tokens}
        if cell.looks is not None:
            return partial(self._run, partial(self._until_sure, cell, merging))
        if cell.method in LEARNED:
            return partial(self._run, partial(self._learned, cell, merging))
        if cell.method == "full_grid":  # of which speeds are multiples
            merging = {"merge_tokens": 0.0}
        return partial(self._run, partial(self.encode, self.model, **merging))

    def _learned(self, cell: Cell, merging: dict[str, float], pixel_values: torch.Tensor) -> Outputs:
        """At the placer's positions, which are a part of what is timed."""
        return self.encode(
            self.model, pixel_values=pixel_values, **self._place(cell, pixel_values, cell.num_tokens), **merging
        )

    def _place(self, cell: Cell, pixel_values: torch.Tensor, num_tokens: int) -> dict[str, torch.Tensor]:
        """Where the model does, by its config or its placer; to compare, as that says of another image of the batch."""
        placed = self.model.place(pixel_values, num_tokens, None if cell.method == CALIBRATED else "learned")
        return {name: one.roll(1, 0) for name, one in placed.items()} if cell.method == "learned_control" else placed

    def _until_sure(
        self,
        cell: Cell,
        merging: dict[str, float],
        pixel_values: torch.Tensor,
        looks: list[dict[str, torch.Tensor]] | None = None,
    ) -> Outputs:
        """Several looks, where `looks` says or else the model does; sure among the classes that count."""
        assert cell.looks is not None
        confidence = None if isinstance(cell.confidence, str) else cell.confidence  # or what was calibrated
        budgets = resolve_budgets(self.model.config, cell.looks, confidence)
        assert isinstance(budgets, Budgets)

        def classify(number: int, images: torch.Tensor) -> torch.Tensor:
            seen = pixel_values[images]
            inputs = self._place(cell, seen, budgets.num_tokens[number]) if looks is None else _take(looks[number], images)
            return among(self.encode(self.model, pixel_values=seen, **inputs, **merging).logits, self.classes)

        images = torch.arange(len(pixel_values), device=pixel_values.device)
        logits, spent = look_until_sure(classify, images, budgets)
        return Outputs(logits, num_tokens=spent)

    def prepare(
        self, cell: Cell, batch: Batch, device: torch.device, full: bool = False
    ) -> Callable[[], Outputs | OracleResult]:
        """What is done with a batch, ready to be timed: its inputs are where they are needed. `full`: with as many images as
        the largest batch has, whose first ones are repeated."""
        assert batch.pixel_values is not None
        size = self.shrunken_sizes.get(cell)
        inputs: dict[str, Any] = {"pixel_values": (batch.pixel_values if size is None else batch.shrunken[size]).to(device)}
        placed = [batch.tokens(request, device) for request in cell.placements]
        if placed:
            inputs.update(placed[0] if cell.looks is None else {"looks": placed})
        if cell.steps is not None:
            inputs["labels"] = self.targets(batch).to(device)
        if full:
            repeated = torch.arange(self.arguments.batch_size, device=device) % len(batch.image_index)
            inputs = _take(inputs, repeated)
        return partial(self.functions[cell], **inputs)

    def at(self, batch: Batch, coordinates: torch.Tensor) -> Outputs:
        """Logits and features at given positions, `(batch_size, num_tokens, 2)`, model frame."""
        assert batch.pixel_values is not None
        pixel_values = batch.pixel_values.to(coordinates.device)
        return self._run(partial(self.encode, self.model), pixel_values=pixel_values, coordinates=coordinates)

    @staticmethod
    def encode(model: Any, **inputs: Any) -> Outputs:
        """What a model says of a batch's inputs."""
        features = model.base_model(**inputs).pooler_output
        return Outputs(model.classifier(features), features)

    def targets(self, batch: Batch) -> torch.Tensor:
        """What the oracle is told of a batch."""
        return batch.labels(self.labels)

    def _run(self, function: Callable[..., Outputs], **inputs: Any) -> Outputs:
        device = inputs["pixel_values"].device.type
        with torch.inference_mode(), torch.autocast(device, dtype=self.dtype, enabled=self.dtype != torch.float32):
            return function(**inputs)


def _take(values: Any, images: torch.Tensor) -> Any:
    """Those images of a tensor, or of all tensors in lists and dicts."""
    if isinstance(values, dict):
        return {name: _take(one, images) for name, one in values.items()}
    return [_take(one, images) for one in values] if isinstance(values, list) else values[images]


def among(logits: torch.Tensor, classes: list[int] | None) -> torch.Tensor:
    """`(batch_size, num_labels)`, with -inf for all but `classes`."""
    if classes is None:
        return logits
    outside = torch.ones(logits.shape[-1], dtype=torch.bool, device=logits.device)
    outside[classes] = False
    return logits.masked_fill(outside, -torch.inf)
