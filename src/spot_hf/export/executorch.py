"""ExecuTorch: a program for phones, by XNNPACK's kernels."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .errors import ExportError
from .graph import quiet


def check_executorch() -> None:
    """`ImportError`, in one line, where it is not installed."""
    if importlib.util.find_spec("executorch") is None:
        raise ImportError("`format` executorch needs the package executorch, which is not installed: pip install executorch")


def write_executorch(program: torch.export.ExportedProgram, path: Path) -> None:
    """Lowers a program to XNNPACK and writes it. [`ExportError`] where it cannot be lowered."""
    check_executorch()
    try:
        with quiet():
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower

            lowered: Any = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
    except ImportError as error:
        raise ImportError(f"`format` executorch needs the package executorch with all that it requires: {error}") from None
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ExportError(f"executorch cannot lower the model: {type(error).__name__}: {reason[0]}") from error
    path.write_bytes(lowered.buffer)


def run_executorch(path: Path, output_names: list[str]) -> Callable[..., dict[str, torch.Tensor]]:
    """A program's call: inputs by name, in the program's order, to outputs by name."""
    from executorch.runtime import Runtime

    runtime = Runtime.get()
    program = runtime.load_program(path)
    method = program.load_method("forward")

    def call(**inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        outputs = method.execute(list(inputs.values()))
        return {name: value.clone() for name, value in zip(output_names, outputs, strict=True)}

    return call
