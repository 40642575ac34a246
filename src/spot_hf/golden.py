"""Golden outputs: what a saved model computed where it was saved, in a small file beside its weights, to be compared with what
it computes where it is used. Remote code that initialises weights anew without a word, another config, other weights, a
library's release that changes what is computed: all of them show.

Inputs are made by a rule of integer arithmetic, the same everywhere: two images of the model's size, as the model sees them by
default, on the full grid, and through windows of several sizes off the grid. Outputs are in float32, as if weights were.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from .placement import grid
from .version import __version__


GOLDEN_FILE = "golden.safetensors"
RULE = "waves-1"  # a file of another rule is read by the code that wrote it
METADATA = "spot_hf"  # the only key: several would be in another order in each process, and files not the same
NUM_IMAGES = 2
NUM_TOKENS = (9, 6, 4, 2, 1)  # off the grid: the first that a model can have
NUM_VALUES = 1000  # kept per image of an output, evenly: all logits of ImageNet, and files below 100 kB

# Of the largest value of an output. Float32 rounds to 6e-8; sums of a few thousand terms in another order, as of another
# processor or release, through some dozens of layers, differ by up to 1e-5 of it. What is wrong differs by more than 1e-3.
TOLERANCE = 1e-4


# ---------------------------------------------------------------------------------------------------------------- inputs


def golden_images(num_channels: int, height: int, width: int) -> torch.Tensor:
    """Two images of smooth waves and a checker, `(2, num_channels, height, width)`, float32, multiples of 1/64 in [-2, 2)."""
    y, x = torch.arange(height)[:, None], torch.arange(width)[None]

    def wave(places: torch.Tensor, period: int) -> torch.Tensor:
        """A triangle, between 0 and 255."""
        return (places % (2 * period) - period).abs() * 255 // period

    images = []
    for number in range(NUM_IMAGES * num_channels):
        image, channel = divmod(number, num_channels)
        across = wave(x + (image + 1) * y // 3, max(2, width * (3 + 2 * channel % 5) // (9 + 2 * image)))
        down = wave(y + 2 * x // (5 + channel), max(2, height * (2 + image + channel % 3) // 7))
        side = max(1, min(height, width) // (6 + image))
        checker = ((x + 3 * image) // side + y // side + channel) % 2 * 64
        images.append((across + down) * 191 // 510 + checker)
    return (torch.stack(images).unflatten(0, (NUM_IMAGES, num_channels)) - 128) / 64


def golden_tokens(num_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Off the grid: coordinates `(2, num_tokens, 2)`, multiples of 1/64 in [0, 1), some of them near the image's edges; and
    window scales `(2, num_tokens)`, from 1 to 2.5; float32."""
    image, token = torch.arange(NUM_IMAGES)[:, None], torch.arange(num_tokens)[None]
    x, y = 29 * token + 5 * image + 7, 11 * token * token + 5 * token + 13 * image + 3
    return torch.stack([x, y], dim=-1) % 64 / 64, (4 + (3 * token + image) % 7) / 4


def _token_count(config: Any, height: int, width: int) -> int:
    for count in NUM_TOKENS:
        try:
            config.check_token_count(count, height, width)
        except ValueError:
            continue
        return count
    return NUM_TOKENS[-1]


# --------------------------------------------------------------------------------------------------------------- outputs


class _Cases(nn.Module):
    """A model with all golden inputs, by its class's own forward pass: what Accelerate or a compiler put in its place is not
    the model's."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor, tokens: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        model: Any = self.model
        config = model.config
        found: dict[str, torch.Tensor] = {}
        cases: dict[str, Mapping[str, torch.Tensor]] = {"default": {}, "off_grid": tokens}
        if config.num_tokens is not None:  # or it is the default
            height, width = images.shape[-2:]
            cases["grid"] = {"coordinates": grid(height, width, config.patch_size).to(images.device)[None]}
        for case, placed in cases.items():
            inputs = model.golden_inputs({"pixel_values": images, **placed})
            if inputs is None:
                continue
            # Which tokens merge hangs on the last bit of a similarity.
            options = {"merge_tokens": 0.0} if config.merge_tokens else {}
            outputs = type(model).forward(model, **inputs, **options, return_dict=True)
            found |= {f"{case}/{name}": tensor for name, tensor in _tensors_of(outputs)}
        if getattr(model, "placer", None) is not None:
            placed = type(model).place(model, images, tokens["coordinates"].shape[1], "learned")
            found |= {f"placed/{name}": tensor for name, tensor in placed.items()}
            found["placed/scores"] = model.placer(model.placer.thumbnails(images))  # the likeliest of which is all that counts
        return found


def _tensors_of(outputs: Any) -> Iterator[tuple[str, torch.Tensor]]:
    for name, value in outputs.items():
        if isinstance(value, torch.Tensor):
            yield name, value
        elif name == "feature_maps":
            yield from ((f"{name}.{number}", one) for number, one in enumerate(value))


@torch.no_grad()
def golden_outputs(
    model: Any,
    images: torch.Tensor,
    tokens: Mapping[str, torch.Tensor],
    state_dict: Mapping[str, torch.Tensor] | None = None,
) -> dict[str, torch.Tensor]:
    """
    What a model computes of golden inputs, in float32 and evaluation mode, whatever its own dtype and mode are.

    Args:
        model ([`SpotPreTrainedModel`]): of this package. It stays as it is.
        images (`torch.Tensor` of shape `(2, num_channels, height, width)`).
        tokens (`dict`): `coordinates` and `window_scales`, as [`golden_tokens`] gives them.
        state_dict (`dict`, *optional*): weights in the place of its own.

    Returns:
        `dict`: by case and output, such as `off_grid/logits`: of each image at most 1000 values, evenly, float32 on the CPU.
    """
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    weights = {name: (state_dict or {}).get(name, tensor) for name, tensor in own.items()}
    weights = {f"model.{name}": one.float() if one.is_floating_point() else one for name, one in weights.items()}
    device = next(iter(weights.values())).device
    with _in_float32(model, device):
        found = torch.func.functional_call(
            _Cases(model), weights, (images.to(device), {name: one.to(device) for name, one in tokens.items()})
        )
    return {name: _sample(tensor) for name, tensor in found.items()}


def _sample(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach().cpu()
    tensor = tensor.float() if tensor.is_floating_point() else tensor
    if tensor.dim() < 2:
        return tensor.clone()
    tensor = tensor.flatten(1)
    kept = min(NUM_VALUES, tensor.shape[1])
    return tensor[:, torch.arange(kept) * tensor.shape[1] // kept].contiguous()


@contextmanager
def _in_float32(model: Any, device: torch.device) -> Iterator[None]:
    """Evaluation mode, an attention that has float32, and no shortcut that rounds more."""
    modes = [(module, module.training) for module in model.modules()]
    attention = getattr(model.config, "_attn_implementation", None)
    precision = torch.get_float32_matmul_precision()
    convolutions = torch.backends.cudnn.allow_tf32
    try:
        model.eval()
        if attention is not None and "flash" in attention:
            model.set_attn_implementation("sdpa")
        if device.type == "cuda":
            torch.set_float32_matmul_precision("highest")
            torch.backends.cudnn.allow_tf32 = False
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        if attention is not None and "flash" in attention:
            model.set_attn_implementation(attention)
        if device.type == "cuda":
            torch.set_float32_matmul_precision(precision)
            torch.backends.cudnn.allow_tf32 = convolutions


# -------------------------------------------------------------------------------------------------------------- the file


def versions_here() -> dict[str, str]:
    return {"spot_hf": __version__, "torch": torch.__version__, "transformers": transformers.__version__}


def golden_bytes(model: Any, state_dict: Mapping[str, torch.Tensor] | None = None) -> bytes:
    """The content of a golden file of a model, as [`golden_outputs`] computes it."""
    config = model.config
    height, width = config.image_height_width
    coordinates, window_scales = golden_tokens(_token_count(config, height, width))
    tokens = {"coordinates": coordinates, "window_scales": window_scales}
    outputs = golden_outputs(model, golden_images(config.num_channels, height, width), tokens, state_dict)
    about = {
        "rule": RULE,
        "image_size": [height, width],
        "num_channels": config.num_channels,
        "model_class": type(model).__name__,
        "dtype": str(model.dtype).removeprefix("torch."),
        "versions": versions_here(),
    }
    tensors = {f"inputs/{name}": one for name, one in tokens.items()}
    tensors |= {f"outputs/{name}": one for name, one in outputs.items()}
    return save(tensors, metadata={METADATA: json.dumps(about)})


def is_whole(model: Any, state_dict: Mapping[str, Any] | None = None) -> bool:
    """Whether a model's weights, or those of `state_dict`, lie in this process and as they are, not sharded, quantised or
    elsewhere: so that it can compute on its own."""
    parameters = dict(model.named_parameters())
    plain = all(type(one) in (nn.Parameter, torch.Tensor) and not one.is_meta for one in parameters.values())
    kept = all(one.is_floating_point() and one.numel() > 0 and not hasattr(one, "ds_id") for one in parameters.values())
    if not parameters or not plain or not kept:
        return False
    given = parameters if state_dict is None else state_dict
    return all(name in given and given[name].shape == one.shape for name, one in parameters.items())


# ---------------------------------------------------------------------------------------------------------- verification


@dataclass
class Verification:
    """
    How what a model computes compares with its golden file.

    Attributes:
        name (`str`): of the model.
        equal (`bool`): whether all outputs are within their tolerance, and nothing is amiss.
        differences (`dict[str, float]`): the largest, by case and output, such as `off_grid/logits`.
        tolerances (`dict[str, float]`): what is allowed of each: 1e-4 of its largest value.
        problems (`list[str]`): what else is amiss, or cannot be compared.
        written (`dict[str, str]`), here (`dict[str, str]`): versions of `spot_hf`, `torch` and `transformers`, then and now.
    """

    name: str
    differences: dict[str, float] = field(default_factory=dict)
    tolerances: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    written: dict[str, str] = field(default_factory=dict)
    here: dict[str, str] = field(default_factory=versions_here)

    @property
    def equal(self) -> bool:
        within = [self.differences[name] <= allowed for name, allowed in self.tolerances.items()]  # not so of nan
        return bool(within) and all(within) and not self.problems

    def __str__(self) -> str:
        """One line for a person."""
        now = "the same here" if self.written == self.here else f"here {_line(self.here)}"
        versions = f"written with {_line(self.written)}; {now}"
        shares = {name: self.differences[name] / (self.tolerances[name] or 1) for name in self.differences}
        worst = [name for name in sorted(shares, key=lambda name: -shares[name]) if not shares[name] <= 1]
        if self.equal:
            name = max(shares, key=lambda name: shares[name])
            return (
                f"{self.name}: equal: largest difference {self.differences[name]:.1e} ({name}), tolerance "
                f"{self.tolerances[name]:.1e}, what float32 rounds otherwise on another processor or release; {versions}"
            )
        lines = [f"{name} by {self.differences[name]:.1e} (tolerance {self.tolerances[name]:.1e})" for name in worst]
        more = [f"{len(lines) - 3} more outputs"] if len(lines) > 3 else []
        return f"{self.name}: DIFFERENT: {', '.join([*self.problems, *lines[:3], *more])}; {versions}"


def _line(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def read_golden(name: str, revision: str | None = None) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Metadata and tensors of the golden file of a directory or Hub id; `OSError`, of one line, where there is none, or it is
    broken."""
    lacks = (
        f"{name!r} has no {GOLDEN_FILE} to compare with: it was saved before there were any, or where its weights were not "
        "whole; `save_pretrained` writes one"
    )
    path = Path(name).expanduser() / GOLDEN_FILE
    if not path.is_file():
        if path.parent.is_dir() or name.count("/") != 1:
            raise FileNotFoundError(lacks)
        try:
            path = Path(hf_hub_download(name, GOLDEN_FILE, revision=revision))
        except LocalEntryNotFoundError:
            raise FileNotFoundError(f"{GOLDEN_FILE} of {name!r} is not in the cache, and the Hub cannot be reached") from None
        except EntryNotFoundError:
            raise FileNotFoundError(lacks) from None
    content = path.read_bytes()
    try:
        length = int.from_bytes(content[:8], "little")
        about = json.loads(json.loads(content[8 : 8 + length])["__metadata__"][METADATA])
        tensors = load(content)
        known = about["rule"] == RULE and {"inputs/coordinates", "inputs/window_scales"} <= set(tensors)
        images = golden_images(about["num_channels"], *about["image_size"]) if known else None
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise OSError(f"{GOLDEN_FILE} of {name!r} is broken ({type(error).__name__}: {reason})") from None
    if images is None:
        raise OSError(f"{GOLDEN_FILE} of {name!r} is of another rule, {about['rule']!r}: this version of spot_hf has {RULE!r}")
    return about, {**tensors, "images": images}


def verify(model: Any, name: str, revision: str | None = None) -> Verification:
    """
    Compares what a loaded model computes with the golden file of `name`.

    Args:
        model ([`SpotPreTrainedModel`]): as it was loaded from there.
        name (`str`): directory or Hub id.
        revision (`str`, *optional*): branch, tag or commit of a Hub id.

    Raises:
        `OSError`: no golden file, or a broken one. `ValueError`: the model's dtype has fewer bits than that it was saved in.
    """
    about, tensors = read_golden(name, revision)
    saved = getattr(torch, about["dtype"])
    if torch.finfo(model.dtype).eps > max(torch.finfo(saved).eps, torch.finfo(torch.float32).eps):
        raise ValueError(
            f"`dtype` of the model must be {about['dtype']}, as it was saved, or float32, to be compared; got "
            f"{str(model.dtype).removeprefix('torch.')}: its weights were rounded"
        )
    found = Verification(name, written=about["versions"])
    if type(model).__name__ != about["model_class"]:
        found.problems.append(f"a {type(model).__name__}, saved as a {about['model_class']}")
    expected = {key.removeprefix("outputs/"): one for key, one in tensors.items() if key.startswith("outputs/")}
    tokens = {key: tensors[f"inputs/{key}"] for key in ("coordinates", "window_scales")}
    try:
        outputs = golden_outputs(model, tensors["images"], tokens)
    except (ValueError, RuntimeError) as error:
        found.problems.append(f"it does not run: {str(error).splitlines()[0]}")
        return found
    for key in sorted({*expected, *outputs}):
        if key not in outputs or key not in expected:
            found.problems.append(f"{key} is {'new' if key in outputs else 'missing'}")
        elif outputs[key].shape != expected[key].shape:
            found.problems.append(f"{key} has shape {tuple(outputs[key].shape)}, not {tuple(expected[key].shape)}")
        elif expected[key].numel():
            here, then = outputs[key], expected[key]
            found.differences[key] = (here.double() - then.double()).abs().max().item()
            found.tolerances[key] = TOLERANCE * then.abs().max().item() if then.is_floating_point() else 0.0
    return found


def write_golden(model: Any, directory: str | os.PathLike, state_dict: Mapping[str, torch.Tensor] | None = None) -> None:
    """Writes a model's golden file into the directory where it is saved, which is made. The one that is there goes first."""
    path = Path(directory) / GOLDEN_FILE
    path.unlink(missing_ok=True)
    content = golden_bytes(model, state_dict)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)


__all__ = ["GOLDEN_FILE", "Verification", "golden_outputs", "verify", "write_golden"]
