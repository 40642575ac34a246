"""What is compared: placements of a SpotViT's tokens, baselines, the oracle; each turns a batch into logits."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from ..data.batches import Batch
from ..modeling_spot_vit import SpotViTForImageClassification
from ..oracle.search import DTYPES, SpotOracle
from .arguments import EvaluationArguments
from .baselines import TokenMerging, covering_scale, merge_schedule, merge_schedule_of_cost, shrink, shrunken_size
from .cells import Cell


Way = Callable[[Batch], tuple[torch.Tensor, torch.Tensor]]


class Ways:
    """
    For each cell, what turns a batch into logits `(batch_size, num_labels)` and features `(batch_size, pooled_size)`; the
    oracle's gives its result instead, which [`Ways.look`] turns into these.
    """

    def __init__(
        self,
        model: SpotViTForImageClassification,
        height: int,
        width: int,
        cells: list[Cell],
        arguments: EvaluationArguments,
        among: list[int] | None,
    ):
        self.model, self.height, self.width, self.dtype = model, height, width, DTYPES[arguments.dtype]
        self.batch_size = arguments.batch_size
        config = model.config
        num_cells = (height // config.patch_size) * (width // config.patch_size)
        self.sizes: dict[Cell, tuple[int, int]] = {}  # of a shrunken image
        self.ways: dict[Cell, Callable[..., Any]] = {}
        for cell in cells:
            if cell.way == "shrunken_image":
                self.sizes[cell] = shrunken_size(cell.num_tokens, height, width, config.patch_size)
                self.ways[cell] = partial(self._encode, shrink(model, *self.sizes[cell]))
            elif cell.way.startswith("token_merging"):
                layers = config.num_hidden_layers
                if cell.way == "token_merging":
                    schedule = merge_schedule(num_cells, cell.num_tokens, layers)
                else:
                    schedule = merge_schedule_of_cost(num_cells, cell.num_tokens, config.hidden_size, layers)
                self.ways[cell] = partial(self._merge, TokenMerging(model, schedule))
            elif cell.steps is not None:
                self.ways[cell] = SpotOracle(
                    model,
                    "label",
                    steps=cell.steps,
                    learning_rate=arguments.oracle_learning_rate,
                    classes=among,
                    dtype=arguments.dtype,
                ).optimize
            else:
                self.ways[cell] = partial(self._encode, model)

    def __call__(self, cell: Cell, batch: Batch, device: torch.device, full: bool = False) -> Callable[[], Any]:
        """What is done with a batch, ready to be timed: its inputs are where they are needed. `full`: with as many images as
        the largest batch has, whose first ones are repeated."""
        assert batch.pixel_values is not None
        inputs = {"pixel_values": (batch.smaller[self.sizes[cell]] if cell in self.sizes else batch.pixel_values).to(device)}
        if cell.start is not None:
            inputs["coordinates"] = batch.starts[cell.start].to(device)
        if cell.way == "larger_windows":
            scale = covering_scale(cell.num_tokens, self.height, self.width, self.model.config.patch_size)
            inputs["window_scales"] = torch.full(inputs["coordinates"].shape[:2], scale, device=device)
        if cell.steps is not None:
            inputs["labels"] = batch.labels(self.model.config.num_labels).to(device)
        if full:
            repeated = torch.arange(self.batch_size, device=device) % len(batch.image_index)
            inputs = {name: values[repeated] for name, values in inputs.items()}
        return partial(self.ways[cell] if cell.steps is not None else partial(self._run, self.ways[cell]), **inputs)

    def look(self, cell: Cell, batch: Batch, coordinates: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits and features at given positions, `(batch_size, num_tokens, 2)`, model frame."""
        assert batch.pixel_values is not None
        pixel_values = batch.pixel_values.to(coordinates.device)
        return self._run(partial(self._encode, self.model), pixel_values=pixel_values, coordinates=coordinates)

    def _run(self, way: Callable, **inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        device = inputs["pixel_values"].device.type
        with torch.inference_mode(), torch.autocast(device, dtype=self.dtype, enabled=self.dtype != torch.float32):
            return way(**inputs)

    @staticmethod
    def _encode(model: SpotViTForImageClassification, **inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = model.spot_vit(**inputs).pooler_output
        return model.classifier(features), features

    @staticmethod
    def _merge(merging: TokenMerging, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = merging.features(pixel_values)
        return merging.model.classifier(features), features


def scaled_processor(image_processor: Any, height: int, width: int) -> Any:
    """The same recipe for other sizes of `pixel_values`: resize and crop keep their proportions."""
    settings = image_processor.to_dict()
    old_width, old_height = image_processor.model_size((1000, 1000))
    size = dict(settings["size"])
    if "shortest_edge" in size:
        size["shortest_edge"] = round(size["shortest_edge"] * min(height / old_height, width / old_width))
    else:
        size = {
            "height": round(size["height"] * height / old_height),
            "width": round(size["width"] * width / old_width),
        }
    return type(image_processor).from_dict({**settings, "size": size, "crop_size": {"height": height, "width": width}})
