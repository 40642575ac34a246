"""What the tests of conversion share: comparing with a source, accounting for its tensors, and refusals that write nothing."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from spot_hf import ConversionError, ConversionReport, convert_checkpoint, verify_model


# What is promised (DESIGN.md: 1e-4 in float32, of real weights with logits up to 20), and what these small models reach.
PROMISED, REACHED = 1e-4, 1e-5


def images(height: int = 32, width: int = 32, batch_size: int = 3) -> torch.Tensor:
    return torch.randn(batch_size, 3, height, width, generator=torch.Generator().manual_seed(0))


def differences(expected: dict[str, torch.Tensor], model: PreTrainedModel, pixel_values: torch.Tensor) -> dict[str, float]:
    with torch.no_grad():
        outputs = model(pixel_values)
    assert all(outputs[key].shape == tensor.shape for key, tensor in expected.items())
    return {key: (outputs[key] - tensor).abs().max().item() for key, tensor in expected.items()}


def assert_accounted(report: ConversionReport, tensors: dict[str, torch.Tensor]) -> None:
    """Every tensor of the files is either used or skipped with a reason, under its own name."""
    assert sorted([*report.used, *report.skipped]) == sorted(tensors)
    assert all(report.used.values()), report.used
    assert all(report.skipped.values()), report.skipped


@torch.no_grad()
def assert_verified(directory: Path) -> None:
    """What a conversion wrote is told from the same with a weight that is another or initialised anew, and another config."""
    found = verify_model(str(directory))
    assert found.equal and (directory / "golden.safetensors").stat().st_size < 100_000, found
    copy = Path(shutil.copytree(directory, directory.with_name("tampered")))
    tensors = load_file(copy / "model.safetensors")
    name = next(name for name in reversed(tensors) if name.endswith("weight") and tensors[name].dim() > 1)
    noise = 0.05 * tensors[name].std() * torch.randn(tensors[name].shape, generator=torch.Generator().manual_seed(1))
    for changed in ({**tensors, name: tensors[name] + noise}, {key: one for key, one in tensors.items() if key != name}):
        save_file(changed, copy / "model.safetensors", metadata={"format": "pt"})
        found = verify_model(str(copy))
        assert not found.equal and found.differences, (name, found)
    assert name in str(found) and "newly initialised" in str(found)
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((copy / "config.json").read_text())
    for field, value in {"num_tokens": 4, "patch_size": 2 * config["patch_size"]}.items():
        if field in config and "architectures" in config and "Model" not in config["architectures"][0]:
            (copy / "config.json").write_text(json.dumps({**config, field: value}))
            assert not verify_model(str(copy)).equal, field
    shutil.rmtree(copy)


# ------------------------------------------------------------------------------------------------------------ refusals


def refused(source: Path | str, tmp_path: Path) -> str:
    """The message with which a conversion is refused, after which nothing was written: not even the parent's directory."""
    parent = tmp_path / "outputs"
    parent.mkdir(exist_ok=True)
    with pytest.raises(ConversionError) as error:
        convert_checkpoint(source, parent / "new" / "converted")
    assert list(parent.iterdir()) == []
    return str(error.value)


def edited(source: Path, directory: Path, tensors: dict[str, torch.Tensor] | None = None, **config: Any) -> Path:
    """A copy of a source with other tensors or config entries."""
    directory.mkdir(exist_ok=True)
    values = json.loads((source / "config.json").read_text()) | config
    (directory / "config.json").write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
    save_file(load_file(source / "model.safetensors") if tensors is None else tensors, directory / "model.safetensors")
    return directory


def without(tensor: torch.Tensor) -> None:
    """No tensor at all."""


def longer(tensor: torch.Tensor) -> torch.Tensor:
    axis = 1 if tensor.ndim == 3 else 0  # tokens lie along the second axis
    return torch.cat([tensor, tensor.narrow(axis, 0, 1)], dim=axis)


def shorter(tensor: torch.Tensor) -> torch.Tensor:
    axis = 1 if tensor.ndim == 3 else 0
    return tensor.narrow(axis, 0, tensor.shape[axis] - 1).contiguous()


def wider(tensor: torch.Tensor) -> torch.Tensor:
    return torch.cat([tensor, tensor.narrow(-1, 0, 1)], dim=-1)


def names(message: str, tensor: str) -> bool:
    """Whether a message names a tensor of a file first of all; without its wrapper's prefix where it is missing."""
    # Which of a classifier's weight and bias has one label too many, nobody can tell.
    classifier = "classifier" in tensor or tensor.startswith("head")
    accepted = [tensor.replace("bias", "weight"), tensor.replace("weight", "bias")] if classifier else [tensor]
    named = message.split("`")[1]
    return any(one == named or one.endswith(f".{named}") for one in accepted)
