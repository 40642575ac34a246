"""The processes of a job leave everything as it was."""

import os

import pytest
import torch
from accelerate import PartialState

from spot_hf.jobs.process import default_device, device_of, job_processes, synchronize


def settings() -> tuple:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.benchmark,
        torch.get_rng_state().tolist(),
    )


@pytest.fixture
def accelerator(monkeypatch):
    """A machine that says that it has one. Nothing is computed there: what depends on it is what torch is asked for."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda *args, **options: True)
    # Or Accelerate would look for the device of the processes that other tests have begun on the CPU.
    monkeypatch.setattr("spot_hf.jobs.process.PartialState", lambda **options: PartialState())
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    yield
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


def test_without_an_accelerator_nothing_is_asked_for(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda *args, **options: False)
    before = settings()
    with job_processes() as state:
        assert settings() == before and state.device.type == "cpu"
    assert settings() == before


def test_deterministic_algorithms_last_as_long_as_the_job(accelerator):
    before = settings()
    assert before[0] is False
    with job_processes():
        assert torch.are_deterministic_algorithms_enabled() and torch.is_deterministic_algorithms_warn_only_enabled()
    assert settings() == before
    with pytest.raises(RuntimeError, match="the job's"), job_processes():
        raise RuntimeError("the job's")
    assert settings() == before


@pytest.mark.parametrize("warn_only", [False, True])
def test_who_has_asked_for_them_keeps_them(accelerator, warn_only):
    torch.use_deterministic_algorithms(True, warn_only=warn_only)
    try:
        with job_processes():
            assert torch.are_deterministic_algorithms_enabled()
        assert settings()[:2] == (True, warn_only)
    finally:
        torch.use_deterministic_algorithms(False)


def test_devices():
    state = PartialState(cpu=True)
    if state.device.type == "cpu":
        assert device_of(state) == torch.device("cpu") and device_of(state).index is None
    accelerator = torch.accelerator.current_accelerator()
    assert default_device() == (accelerator if torch.accelerator.is_available() else torch.device("cpu"))
    synchronize("cpu")  # nothing to wait for


def run_a_job(source, output):
    """In its process: the command line. Returns its status, and what torch is set to otherwise than before."""
    import torch

    from spot_hf import convert_checkpoint
    from spot_hf.cli import main

    def settings():
        return {
            "deterministic": [
                torch.are_deterministic_algorithms_enabled(),
                torch.is_deterministic_algorithms_warn_only_enabled(),
            ],
            "gradients": [torch.is_grad_enabled(), torch.is_inference_mode_enabled()],
            "threads": torch.get_num_threads(),
            "dtype": str(torch.get_default_dtype()),
            "random numbers": torch.get_rng_state().tolist(),
        }

    report = convert_checkpoint(source, output + "/spot")
    assert report is not None
    before = settings()
    words = ["oracle", "--model", output + "/spot", "--dataset_name", output + "/data", "--num_tokens", "4", "--steps", "1"]
    status = main([*words, "--placement", "uniform", "--num_workers", "0", "--output_dir", output + "/run"])
    return [status, [name for name, value in settings().items() if value != before[name]]]


def test_a_run_of_the_oracle_leaves_torch_as_it_was(tiny_vit, tmp_path, fresh_process):
    from oracle_runs import save_images

    save_images(tmp_path / "data", 4)
    assert fresh_process(run_a_job, tiny_vit, tmp_path) == [0, []]
