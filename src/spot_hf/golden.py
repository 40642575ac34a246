"""Golden outputs: what a saved model computed where it was saved, in a small file beside its weights, to be compared with what
it computes where it is used. Remote code that initialises weights anew without a word, another config, other weights, a
library's release that changes what is computed: all of them show.

Inputs are made by a rule of integer arithmetic, the same everywhere: two images of the model's size, as the model sees them by
default, on the full grid, and through windows of several sizes off the grid. Outputs are in float32, as if weights were.
"""

import hashlib
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
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
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
MAX_BYTES = 2**24  # of a file that is read: it may be anybody's
MAPS = "/feature_maps."

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
        if _looks_by_scores(config):
            del cases["default"]
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
            found |= {f"{case}/{name}": tensor for name, tensor in _tensors_of(outputs, model)}
        if getattr(model, "placer", None) is not None:
            found["placed/scores"] = model.placer(model.placer.thumbnails(images))
        return found


def _looks_by_scores(config: Any) -> bool:
    """Whether by default a model looks where its placer's scores are highest: which one is, may hang on the last bit."""
    return getattr(config, "placement", None) == "learned" and config.num_tokens is not None


def _tensors_of(outputs: Any, model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    for name, value in outputs.items():
        if isinstance(value, torch.Tensor):
            yield name, value
        elif name == "feature_maps":
            yield from ((f"{name}.{stage}", one) for stage, one in zip(model.out_features, value, strict=True))


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
    tensor = tensor.detach()
    if tensor.dim() >= 2:
        tensor = tensor.flatten(1)
        kept = min(NUM_VALUES, tensor.shape[1])
        tensor = tensor[:, torch.arange(kept, device=tensor.device) * tensor.shape[1] // kept]
    tensor = tensor.float() if tensor.is_floating_point() else tensor
    return tensor.cpu().clone(memory_format=torch.contiguous_format)


def weights_digest(model: Any, state_dict: Mapping[str, torch.Tensor] | None = None) -> str:
    """Of names, shapes and at most 1000 values of each weight, in float32: the same in any dtype with as many bits."""
    digest = hashlib.sha256()
    for name, own in sorted(model.state_dict().items()):
        tensor = (state_dict or {}).get(name, own)
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(_sample(tensor.reshape(1, -1)).float().numpy().tobytes())
    return digest.hexdigest()[:16]


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
        "weights": weights_digest(model, state_dict),
    }
    tensors = {f"inputs/{name}": one for name, one in tokens.items()}
    tensors |= {f"outputs/{name}": one for name, one in outputs.items()}
    return save(tensors, metadata={METADATA: json.dumps(about)})


def _has_adapters(model: Any) -> bool:
    return getattr(model, "_hf_peft_config_loaded", False)


def is_whole(model: Any, state_dict: Mapping[str, Any] | None = None) -> bool:
    """Whether a model's weights, or those of `state_dict`, lie in this process and as they are, not sharded, quantised or
    elsewhere, and without adapters: so that it can compute on its own."""
    if _has_adapters(model):
        return False
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
        other_weights (`bool`): whether outputs differ and the model's weights are others than those that they were of.
    """

    name: str
    differences: dict[str, float] = field(default_factory=dict)
    tolerances: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    written: dict[str, str] = field(default_factory=dict)
    here: dict[str, str] = field(default_factory=versions_here)
    other_weights: bool = False

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
        if self.other_weights and not self.problems:
            return (
                f"{self.name}: OTHER WEIGHTS: golden outputs are of other weights than the model has: {GOLDEN_FILE} was not "
                f"pushed or copied with them, or they were initialised anew in loading, or changed since; {versions}"
            )
        lines = [f"{name} by {self.differences[name]:.1e} (tolerance {self.tolerances[name]:.1e})" for name in worst]
        more = [f"{len(lines) - 3} more outputs"] if len(lines) > 3 else []
        return f"{self.name}: DIFFERENT: {', '.join([*self.problems, *lines[:3], *more])}; {versions}"


def _line(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


@dataclass
class GoldenSource:
    """From where a model was loaded: `name`, and of `options` those of `from_pretrained` that say where a file lies. A copy,
    and what is pickled, has no token."""

    name: str
    options: dict[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, name: str | os.PathLike, arguments: Mapping[str, Any]) -> "GoldenSource":
        names = ("revision", "subfolder", "token", "cache_dir", "local_files_only")
        return cls(str(name), {one: arguments[one] for one in names if arguments.get(one) is not None})

    def __getstate__(self) -> dict[str, Any]:
        return {"name": self.name, "options": {name: one for name, one in self.options.items() if name != "token"}}


def _reason(error: Exception) -> str:
    """In one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _golden_path(source: GoldenSource) -> Path:
    name, options = source.name, source.options
    if not name:
        raise ValueError("`name` must be a directory or a Hub id, as the model was not loaded from one; got ''")
    lacks = (
        f"{name!r} has no {GOLDEN_FILE} to compare with: it was saved before there were any, or where its weights were not "
        "whole; `save_pretrained` writes one"
    )
    directory = Path(name).expanduser()
    path = directory / options.get("subfolder", "") / GOLDEN_FILE
    if path.is_file():
        return path
    if directory.is_dir() or name.count("/") != 1:
        raise FileNotFoundError(lacks)
    try:
        return Path(hf_hub_download(name, GOLDEN_FILE, **options))
    except LocalEntryNotFoundError:
        raise FileNotFoundError(f"{GOLDEN_FILE} of {name!r} is not in the cache, and the Hub cannot be reached") from None
    except EntryNotFoundError:
        raise FileNotFoundError(lacks) from None
    except (HfHubHTTPError, HFValidationError) as error:
        raise OSError(f"{GOLDEN_FILE} of {name!r} cannot be had ({_reason(error)})") from None


def _check_golden(about: Any, tensors: Mapping[str, torch.Tensor]) -> None:
    """`ValueError`, `KeyError` or `TypeError` where a file of this rule does not hold what it should."""

    def is_text(value: Any) -> bool:
        return isinstance(value, str) and value.isprintable() and len(value) < 100

    size, versions = about["image_size"], about["versions"]
    dtype = getattr(torch, about["dtype"], None)
    coordinates, scales = tensors["inputs/coordinates"], tensors["inputs/window_scales"]
    right = {
        "image_size": isinstance(size, list) and len(size) == 2 and all(type(one) is int and one > 0 for one in size),
        "num_channels": type(about["num_channels"]) is int and about["num_channels"] > 0,
        "model_class": is_text(about["model_class"]),
        "dtype": isinstance(dtype, torch.dtype) and dtype.is_floating_point,
        "versions": isinstance(versions, dict) and all(map(is_text, [*versions, *versions.values()])),
        "weights": about.get("weights") is None or is_text(about["weights"]),
    }
    for name, fine in right.items():
        if not fine:
            raise ValueError(f"its {name} is {repr(about[name])[:100]}")
    if coordinates.dim() != 3 or coordinates.shape != (NUM_IMAGES, scales.shape[-1], 2) or scales.shape[:-1] != (NUM_IMAGES,):
        raise ValueError(f"its inputs have the shapes {tuple(coordinates.shape)} and {tuple(scales.shape)}")
    if not coordinates.dtype == scales.dtype == torch.float32:
        raise ValueError(f"its inputs are {coordinates.dtype} and {scales.dtype}, not float32")
    if not all(map(is_text, tensors)) or not any(name.startswith("outputs/") for name in tensors):
        raise ValueError("it holds no outputs, or some without a name")


def read_golden(source: GoldenSource) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Metadata and tensors of the golden file of a directory or Hub id; `OSError`, of one line, where there is none, or it is
    broken. `ValueError`: the source has no name."""
    path, name = _golden_path(source), source.name
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"it has {path.stat().st_size} bytes, of at most {MAX_BYTES}")
        content = path.read_bytes()
        length = int.from_bytes(content[:8], "little")
        about = json.loads(json.loads(content[8 : 8 + length])["__metadata__"][METADATA])
        tensors = load(content)
        known = about["rule"] == RULE
        if known:
            _check_golden(about, tensors)
    except (SafetensorError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise OSError(f"{GOLDEN_FILE} of {name!r} is broken ({_reason(error)})") from None
    if not known:
        rule = repr(about["rule"])[:100]
        raise OSError(f"{GOLDEN_FILE} of {name!r} is of another rule, {rule}: this version of spot_hf has {RULE!r}")
    return about, tensors


def _check_comparable(model: Any, about: Mapping[str, Any]) -> None:
    if _has_adapters(model):
        raise ValueError("golden outputs are of a model without adapters; got one with adapters of PEFT: verify it without")
    if type(model).__name__ != about["model_class"]:
        raise ValueError(
            f"golden outputs are those of a {about['model_class']}; load it with that class to compare; got a "
            f"{type(model).__name__}"
        )
    saved = getattr(torch, about["dtype"])
    if torch.finfo(model.dtype).eps > max(torch.finfo(saved).eps, torch.finfo(torch.float32).eps):
        raise ValueError(
            f"`dtype` of the model must be {about['dtype']}, as it was saved, or float32, to be compared; got "
            f"{str(model.dtype).removeprefix('torch.')}: its weights were rounded"
        )


def _numbered(outputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Feature maps by number, as the first files have them, not by their stage."""
    numbered: dict[str, torch.Tensor] = {}
    for key, one in outputs.items():
        case, maps, _ = key.partition(MAPS)
        number = sum(name.startswith(case + MAPS) for name in numbered)
        numbered[f"{case}{MAPS}{number}" if maps else key] = one
    return numbered


def _compare(found: Verification, outputs: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    if any(MAPS in key and key.rpartition(".")[2].isdigit() for key in expected):
        outputs = _numbered(outputs)
    shared = set(outputs) & set(expected)
    maps = {key for key in {*outputs, *expected} if MAPS in key}  # of a backbone's `out_features`, which may be others
    if maps and not maps & shared:
        found.problems.append("no feature map is of a stage that the golden outputs have")
    for key in sorted({*expected, *outputs} - (maps - shared)):
        if key not in shared:
            found.problems.append(f"{key} is {'new' if key in outputs else 'missing'}")
        elif outputs[key].shape != expected[key].shape:
            found.problems.append(f"{key} has shape {tuple(outputs[key].shape)}, not {tuple(expected[key].shape)}")
        elif expected[key].numel():
            here, then = outputs[key].double(), expected[key].double()
            found.differences[key] = (here - then).abs().max().item()
            found.tolerances[key] = TOLERANCE * then.abs().max().item() if expected[key].is_floating_point() else 0.0
    if not found.differences and not found.problems:
        found.problems.append("no output has a value to compare")


def verify(model: Any, source: GoldenSource) -> Verification:
    """
    Compares what a loaded model computes with a golden file.

    Args:
        model ([`SpotPreTrainedModel`]): as it was loaded from there.
        source ([`GoldenSource`]): where the file lies.

    Raises:
        `OSError`: no golden file, or a broken one. `ValueError`: the model is of another class than it was saved with, has
        adapters, or a dtype of fewer bits than it was saved in; or the source has no name.
    """
    about, tensors = read_golden(source)
    _check_comparable(model, about)
    found, config = Verification(source.name, written=about["versions"]), model.config
    shape = [config.num_channels, *config.image_height_width]
    saved_shape = [about["num_channels"], *about["image_size"]]
    if shape != saved_shape:
        found.problems.append(f"images have the shape {shape}, those of the golden outputs {saved_shape}")
        return found
    expected = {key.removeprefix("outputs/"): one for key, one in tensors.items() if key.startswith("outputs/")}
    for key in list(expected):  # what the first files have, and hangs on the last bit
        case = key.partition("/")[0]
        if (case == "placed" and key != "placed/scores") or (case == "default" and _looks_by_scores(config)):
            del expected[key]
    tokens = {key: tensors[f"inputs/{key}"] for key in ("coordinates", "window_scales")}
    try:
        outputs = golden_outputs(model, golden_images(*shape), tokens)
    except Exception as error:  # of whatever code is beside the weights
        found.problems.append(f"it does not run: {_reason(error)}")
        return found
    _compare(found, outputs, expected)
    found.other_weights = not found.equal and about.get("weights") not in (None, weights_digest(model))
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


__all__ = ["GOLDEN_FILE", "GoldenSource", "Verification", "golden_outputs", "verify", "write_golden"]
