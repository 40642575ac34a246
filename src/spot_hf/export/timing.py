"""Exports of a model that are timed and thrown away."""

from pathlib import Path
from typing import Any

from .files import FILES, check_installed
from .graph import example_inputs, function_of, write_onnx
from .quantization import quantize_int8
from .runtime import OnnxSpotViT


def export_for_timing(model: Any, directory: Path, num_threads: int) -> dict[str, OnnxSpotViT]:
    """A model in ONNX Runtime, in float32 (`"onnx"`) and with int8 weights (`"onnx int8"`), through files in a directory."""
    check_installed("onnx", "onnxscript", "onnxruntime")
    path, smaller = directory / FILES[None], directory / FILES["int8"]
    write_onnx(function_of(model), example_inputs(model.config), path)
    quantize_int8(path, smaller)
    files = {"onnx": path, "onnx int8": smaller}
    return {name: OnnxSpotViT(file, model.config, num_threads=num_threads) for name, file in files.items()}
