"""From a model to a graph: torch's own exporters, for any number of images and tokens and any size of image in one graph.

Windows are cut by gathers and lerps, as the model does in PyTorch: no GridSample, whose kernels are partial in browsers.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..modeling_spot import SpotPreTrainedModel
from .errors import ExportError
from .files import external_data


OPSET = 20  # the first with Gelu
# Of the example that is traced. None is 0 or 1, which torch would take for constants, and none is another's.
EXAMPLE_IMAGES, EXAMPLE_TOKENS = 3, 11
AXES = {
    "pixel_values": {0: "batch_size", 2: "height", 3: "width"},
    "coordinates": {0: "batch_size", 1: "num_tokens"},
    "coordinates_mask": {0: "batch_size", 1: "num_tokens"},
    "window_scales": {0: "batch_size", 1: "num_tokens"},
}


class Function(nn.Module):
    """
    A model as a function of the tensors of its graph, all of one batch size. Outputs are those of the model by name, float32,
    whatever its dtype; so are `pixel_values`, `coordinates` and `window_scales`. `coordinates_mask` is bool.
    """

    def __init__(self, model: SpotPreTrainedModel):
        super().__init__()
        self.model = model

    def forward(
        self,
        pixel_values: torch.Tensor,
        coordinates: torch.Tensor,
        coordinates_mask: torch.Tensor | None = None,
        window_scales: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        outputs = self.model(
            pixel_values, coordinates=coordinates, coordinates_mask=coordinates_mask, window_scales=window_scales
        )
        return {name: value.float() for name, value in outputs.items() if isinstance(value, torch.Tensor)}


class PlacerFunction(nn.Module):
    """A model's placer: `pixel_values` `(batch_size, num_channels, height, width)`, of the model's own size, to `densities`
    `(batch_size, 14, 14)`, which [`foveate`] turns into positions."""

    def __init__(self, model: Any):
        super().__init__()
        self.placer = model.placer

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"densities": self.placer.densities(self.placer.thumbnails(pixel_values))}


def function_of(model: SpotPreTrainedModel, dtype: torch.dtype = torch.float32) -> Function:
    """A copy of a model, to be exported, on the CPU. `ValueError` where its graph would depend on the number of tokens."""
    if model.config.merge_tokens:
        raise ExportError(
            f"`model` merges tokens, merge_tokens={model.config.merge_tokens}: how many is fixed in a graph, which is for any "
            "number of them. Set `config.merge_tokens` to 0 and save it first"
        )
    copied = deepcopy(model).to("cpu", dtype).eval()
    if copied.config._attn_implementation not in ("eager", "sdpa"):
        copied.set_attn_implementation("sdpa")
    return Function(copied)


def fixed_inputs(config: Any, num_tokens: int) -> dict[str, torch.Tensor]:
    """Of one image of the model's own size, for a program of fixed shapes."""
    generator = torch.Generator().manual_seed(0)
    return {
        "pixel_values": torch.randn(1, config.num_channels, *config.image_height_width, generator=generator),
        "coordinates": torch.rand(1, num_tokens, 2, generator=generator),
    }


def example_inputs(config: Any, with_mask: bool = False, with_window_scales: bool = False) -> dict[str, torch.Tensor]:
    """What a graph is traced with."""
    (height, width), side = config.image_height_width, config.patch_size
    generator = torch.Generator().manual_seed(0)
    size = (EXAMPLE_IMAGES, config.num_channels, height + 2 * side, width + 4 * side)
    inputs = {
        "pixel_values": torch.randn(size, generator=generator),
        "coordinates": torch.rand(EXAMPLE_IMAGES, EXAMPLE_TOKENS, 2, generator=generator),
    }
    if with_mask:
        inputs["coordinates_mask"] = torch.arange(EXAMPLE_TOKENS) < torch.tensor([[EXAMPLE_TOKENS], [5], [1]])
    if with_window_scales:
        inputs["window_scales"] = 1 + torch.rand(EXAMPLE_IMAGES, EXAMPLE_TOKENS, generator=generator)
    return inputs


@torch.no_grad()
def write_onnx(function: nn.Module, inputs: dict[str, torch.Tensor], path: Path) -> None:
    """Writes a module's graph as ONNX. Axes of `AXES` are free."""
    shapes = {name: AXES[name] for name in inputs}
    if isinstance(function, PlacerFunction):
        shapes = {"pixel_values": {0: "batch_size"}}
    with quiet():
        program = torch.onnx.export(
            function,
            (),
            kwargs=inputs,
            input_names=list(inputs),
            output_names=list(function(**inputs)),
            dynamic_shapes=shapes,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        program.save(path)
    rename_external_data(path)


def rename_external_data(path: Path) -> None:
    """Where torch put large weights beside the graph, under the name that they have on the Hub."""
    written, renamed = path.with_name(path.name + ".data"), external_data(path)
    if not written.exists():
        return
    import onnx

    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = renamed.name
    onnx.save(model, path)
    written.rename(renamed)


@torch.no_grad()
def torch_program(
    function: nn.Module, inputs: dict[str, torch.Tensor], is_fixed: bool = False
) -> torch.export.ExportedProgram:
    """A module's graph as torch has it. Axes of `AXES` are free, unless shapes are fixed."""
    shapes: dict[str, Any] | None = (
        None if is_fixed else {name: dict.fromkeys(AXES[name], torch.export.Dim.DYNAMIC) for name in inputs}
    )
    with quiet():
        return torch.export.export(function, (), kwargs=inputs, dynamic_shapes=shapes, strict=False)


@contextmanager
def quiet() -> Iterator[None]:
    """Without what torch's exporters, and those that build on them, say of themselves."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.utils._pytree")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
