"""The processes of a job: what Accelerate, torchrun or nobody started, their device, and what makes results repeatable."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from accelerate import InitProcessGroupKwargs, PartialState
from accelerate.utils import broadcast_object_list

from .directory import JobDirectory, Ledger


@contextmanager
def job_processes() -> Iterator[PartialState]:
    """
    The processes of a job, for as long as it lasts. On an accelerator torch is asked for deterministic algorithms, and
    afterwards for what it was asked for before.
    """
    cpu = not torch.accelerator.is_available()
    # A process waits for the slowest, which may have a shard more: longer than collectives wait by default.
    state = PartialState(cpu=cpu, **InitProcessGroupKwargs(timeout=timedelta(days=1)).to_kwargs())
    if cpu:
        yield state
        return
    # Attention's backward pass on a GPU adds in any order unless it is told not to: rows are to be the same every time.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # is read once, when CUDA starts
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield state
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def device_of(state: PartialState) -> torch.device:
    """A distributed CPU is called "cpu:0", and tensors that move there from "cpu" are copied: at other addresses, products
    round otherwise, and results would depend on the number of processes."""
    return torch.device("cpu") if state.device.type == "cpu" else state.device


def default_device() -> torch.device:
    """The accelerator where there is one, else the CPU."""
    return torch.accelerator.current_accelerator() or torch.device("cpu")


def synchronize(device: torch.device | str) -> None:
    """Waits until an accelerator has done what it was told: for timing."""
    if torch.device(device).type != "cpu":
        torch.accelerator.synchronize()


def open_directory(
    state: PartialState, run: JobDirectory, ledger: Ledger, *, overwrite: bool, inputs: Iterable[str | None]
) -> None:
    """Begins a job in a directory, or goes on with one, on the first process; its error is every process's."""
    outcome: list[Any] = [None]
    if state.is_main_process:
        try:
            run.open(ledger, overwrite=overwrite, inputs=[one for one in inputs if one])
        except (ValueError, OSError) as error:
            outcome = [error]
    if state.num_processes > 1:
        broadcast_object_list(outcome)
    if outcome[0] is not None:
        raise outcome[0]
