"""The processes of a job: what Accelerate, torchrun or nobody started, their device, and what makes results repeatable."""

import os
import shutil
from datetime import timedelta
from typing import Any

import torch
from accelerate import InitProcessGroupKwargs, PartialState
from accelerate.utils import broadcast_object_list

from .directory import RunDirectory
from .files import check_output_dir


def process_state() -> PartialState:
    """A process waits for the slowest, which may have a shard more: longer than collectives wait by default."""
    cpu = not torch.accelerator.is_available()
    if not cpu:
        # Attention's backward pass on a GPU adds in any order unless it is told not to: rows are to be the same every time.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    return PartialState(cpu=cpu, **InitProcessGroupKwargs(timeout=timedelta(days=1)).to_kwargs())


def device_of(state: PartialState) -> torch.device:
    """A distributed CPU is called "cpu:0", and tensors that move there from "cpu" are copied: at other addresses, products
    round otherwise, and results would depend on the number of processes."""
    return torch.device("cpu") if state.device.type == "cpu" else state.device


def open_run(
    state: PartialState,
    run: RunDirectory,
    parameters: dict[str, Any],
    facts: dict[str, Any],
    overwrite: bool,
    inputs: list[str],
) -> None:
    """Begins a run in a directory, or goes on with one, on the first process; its error is every process's."""
    outcome: list[Any] = [None]
    if state.is_main_process:
        try:
            if overwrite:
                check_output_dir(run.directory, True, inputs=inputs)
                if run.directory.exists():
                    shutil.rmtree(run.directory)
            run.open(parameters, facts)
        except (ValueError, OSError) as error:
            outcome = [error]
    if state.num_processes > 1:
        broadcast_object_list(outcome)
    if outcome[0] is not None:
        raise outcome[0]
