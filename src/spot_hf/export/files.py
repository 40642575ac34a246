"""Where an export's files lie, as the Hub and transformers.js expect them."""

import importlib.util
from pathlib import Path


FOLDER = "onnx"
FILES = {None: "model.onnx", "int8": "model_quantized.onnx", "float16": "model_fp16.onnx"}  # by how weights are kept
PLACER = "placer.onnx"
TORCH_EXPORT = "model.pt2"
EXECUTORCH = "model.pte"
REPORT = "export_report.json"
JS_CONFIG = "transformers.js_config"  # of a config.json

RUNTIMES = ("torch", "onnx")  # of commands that run a model
INSTALL = "pip install 'spot_hf[onnx]'"


def check_installed(*packages: str) -> None:
    """`ImportError`, in one line, where one is not."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ImportError(f"the package {package} is not installed: {INSTALL}")


def check_quantize(quantize: str | None) -> None:
    """`ValueError` where weights are not kept so."""
    if quantize not in FILES:
        raise ValueError(f"`quantize` must be {' or '.join(name for name in FILES if name)}; got {quantize!r}")


def check_runtime(runtime: str) -> None:
    """`ValueError` for one that there is not."""
    if runtime not in RUNTIMES:
        raise ValueError(f"`runtime` must be one of {', '.join(RUNTIMES)}; got {runtime!r}")


def external_data(path: Path) -> Path:
    """Where the weights of an ONNX file lie, where they are too large for it: where transformers.js looks for them."""
    return path.with_name(path.name + "_data")
