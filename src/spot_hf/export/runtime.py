"""A SpotViT in ONNX Runtime, behind the model's own call."""

from collections.abc import Sequence
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling, SemanticSegmenterOutput
from transformers.utils import ModelOutput

from ..foveation import foveate
from ..hub.loading import open_model
from ..input_checks import check_model_inputs
from ..modeling_spot import SpotForImageClassification
from ..placement import grid
from .files import FILES, FOLDER, PLACER, check_installed, check_quantize, external_data


class OnnxPlacer:
    """A placer in ONNX Runtime, called as [`SpotViTPlacer`] is."""

    def __init__(self, path: str | Path, config: Any, **options: Any):
        self.session, self.config = open_session(path, **options), config

    def place(self, pixel_values: torch.Tensor, num_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Coordinates `(batch_size, num_tokens, 2)`, window scales `(batch_size, num_tokens)`, as [`foveate`] gives them."""
        size = height, width = tuple(pixel_values.shape[-2:])
        if size != self.config.image_height_width:
            expected = " × ".join(map(str, self.config.image_height_width))
            raise ValueError(f"`pixel_values` must be of {expected} pixels for the exported placer; got {height} × {width}")
        (densities,) = self.session.run(None, {"pixel_values": _array(pixel_values)})
        return foveate(torch.from_numpy(densities).to(pixel_values.device), num_tokens, height, width, self.config.patch_size)


class OnnxSpotViT(SpotForImageClassification, nn.Module):
    """
    An exported SpotViT: takes what the model takes in PyTorch, and returns the same.

    ```python
    >>> model = OnnxSpotViT.from_pretrained("user/name")
    >>> classifier = pipeline("spot-image-classification", model=model, image_processor=image_processor)
    ```

    Args:
        path (`str`): of the ONNX file that [`export_model`] wrote.
        config ([`SpotViTConfig`]): of the model.
        placer_path (`str`, *optional*): of its placer's file.
        providers (`list[str]`, *optional*): of ONNX Runtime, in the order of preference; the CPU's by default.
        num_threads (`int`, *optional*): of an operation on the CPU; as many as torch uses by default.
    """

    # For the pipeline: an image processor's windows are no input of a graph.
    takes_windows = False
    _write_model_card = None

    def __init__(
        self,
        path: str | Path,
        config: Any,
        *,
        placer_path: str | Path | None = None,
        providers: Sequence[str] | None = None,
        num_threads: int | None = None,
    ):
        nn.Module.__init__(self)
        self.config = deepcopy(config)
        self.config.custom_pipelines = None  # the installed ones, which know this class
        self.num_labels = config.num_labels
        options: dict[str, Any] = {"providers": providers, "num_threads": num_threads}
        self.session = open_session(path, **options)
        self.input_names = [one.name for one in self.session.get_inputs()]
        self.output_names = [one.name for one in self.session.get_outputs()]
        if not {"pixel_values", "coordinates"} <= set(self.input_names):
            raise ValueError(f"{str(path)!r} is no exported SpotViT: its inputs are {', '.join(self.input_names)}")
        self.placer = OnnxPlacer(placer_path, config, **options) if placer_path is not None else None
        self.classifier = nn.Identity()  # is in the graph
        self.eval()

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        revision: str | None = None,
        quantize: str | None = None,
        providers: Sequence[str] | None = None,
        num_threads: int | None = None,
    ) -> "OnnxSpotViT":
        """
        Args:
            name (`str`): a directory that `spot-hf export` wrote, or a Hub id with such files.
            revision (`str`, *optional*): branch, tag or commit of a Hub id.
            quantize (`str`, *optional*): `"int8"` or `"float16"`: which of its files; float32's by default.
            providers, num_threads: see the class.

        Raises:
            `ValueError`: no SpotViT. `OSError`: no such model, or no such file in it, or one that is broken. `ImportError`:
                onnxruntime is not installed.
        """
        check_installed("onnxruntime")
        check_quantize(quantize)
        source = open_model(str(name), revision)
        source.check_vit()
        path = _find(str(name), source.revision, FILES[quantize])
        if path is None:
            option = f" --quantize {quantize}" if quantize else ""
            raise OSError(f"`model` {str(name)!r} has no {FOLDER}/{FILES[quantize]}: `spot-hf export{option}` writes it")
        placer = _find(str(name), source.revision, PLACER) if source.config.placer is not None else None
        return cls(path, source.config, placer_path=placer, providers=providers, num_threads=num_threads)

    # ------------------------------------------------------------------------------------ what a pipeline asks a model

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    @property
    def device(self) -> torch.device:
        """Of the tensors that are handed in; where they are computed is said by `providers`."""
        return torch.device("cpu")

    def can_generate(self) -> bool:
        return False

    # ------------------------------------------------------------------------------------------------------- the call

    def forward(self, pixel_values: torch.Tensor | None = None, *args: Any, **kwargs: Any) -> ModelOutput:
        """
        As of the exported class: [`SpotViTForImageClassification`], with several `num_tokens` too,
        [`SpotViTForSemanticSegmentation`] or [`SpotViTModel`]; but for `labels`, `windows`, `merge_tokens`, and what is no
        output of the graph.

        Raises:
            `ValueError`: as of that class, or for an argument that a graph cannot take.
        """
        for name in ("labels", "windows", "merge_tokens", "output_hidden_states", "output_attentions"):
            value = kwargs.pop(name, None)
            if value is not None and value is not False and value != 0:
                raise ValueError(f"`{name}` is not for a model in ONNX Runtime; got {value if name != 'labels' else 'some'!r}")
        if self.is_classifier:
            return SpotForImageClassification.forward(self, pixel_values, *args, **kwargs)
        return self._of_tokens(pixel_values, *args, **kwargs)

    @property
    def is_classifier(self) -> bool:
        return self.output_names == ["logits"] and not self.segments

    @property
    def segments(self) -> bool:
        return any("SemanticSegmentation" in name for name in self.config.architectures or [])

    def _of_tokens(
        self,
        pixel_values: torch.Tensor | None = None,
        coordinates: torch.Tensor | None = None,
        coordinates_mask: torch.Tensor | None = None,
        window_scales: torch.Tensor | None = None,
        num_tokens: int | None = None,
        **kwargs: Any,
    ) -> ModelOutput:
        """Of a model without a classifier of images."""
        if num_tokens is not None and coordinates is not None:
            raise ValueError(f"`coordinates` and `num_tokens` exclude each other; got both (num_tokens={num_tokens!r})")
        if self.segments and coordinates is None:
            num_tokens = self.config.num_tokens if num_tokens is None else num_tokens
        check_model_inputs(self.config, pixel_values, coordinates, coordinates_mask, window_scales)
        if num_tokens is not None:
            placed = self._place(pixel_values, num_tokens)  # type: ignore[arg-type]
            coordinates, window_scales = placed["coordinates"], placed.get("window_scales")
        outputs = self._run(pixel_values, coordinates, coordinates_mask, window_scales)
        if self.segments:
            return SemanticSegmenterOutput(**outputs)
        return BaseModelOutputWithPooling(**outputs)

    def base_model(self, pixel_values: torch.Tensor, **inputs: Any) -> BaseModelOutputWithPooling:
        """For [`SpotForImageClassification.forward`]: the graph has the classifier in it."""
        inputs.pop("windows", None)
        logits = self._run(
            pixel_values,
            inputs.pop("coordinates", None),
            inputs.pop("coordinates_mask", None),
            inputs.pop("window_scales", None),
        )["logits"]
        return BaseModelOutputWithPooling(pooler_output=logits)

    def _run(
        self,
        pixel_values: Any,
        coordinates: torch.Tensor | None,
        coordinates_mask: torch.Tensor | None,
        window_scales: torch.Tensor | None,
    ) -> dict[str, torch.Tensor]:
        check_model_inputs(self.config, pixel_values, coordinates, coordinates_mask, window_scales)
        if coordinates is None:
            coordinates = grid(pixel_values.shape[-2], pixel_values.shape[-1], self.config.patch_size)[None]
        batch_size = len(pixel_values)
        coordinates = coordinates.expand(batch_size, -1, -1)
        inputs = {"pixel_values": pixel_values, "coordinates": coordinates}
        if window_scales is not None and "window_scales" not in self.input_names and bool((window_scales != 1).any()):
            raise ValueError(
                "`window_scales` is no input of this file: `spot-hf export --with_window_scales` writes one that has it"
            )
        if "window_scales" in self.input_names:
            scales = torch.ones_like(coordinates[..., 0]) if window_scales is None else window_scales
            inputs["window_scales"] = scales.expand(batch_size, -1)
        mask = None if coordinates_mask is None else coordinates_mask.bool().expand(batch_size, -1)
        if "coordinates_mask" in self.input_names:
            inputs["coordinates_mask"] = torch.ones_like(coordinates[..., 0], dtype=torch.bool) if mask is None else mask
        elif mask is not None and not bool(mask.all()):
            return self._by_count(inputs, mask)
        return self._compute(inputs)

    def compute(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """Of inputs by the graph's names, its outputs by theirs."""
        return self._run(**{**dict.fromkeys(("coordinates_mask", "window_scales")), **inputs})

    def _by_count(self, inputs: dict[str, torch.Tensor], mask: torch.Tensor) -> dict[str, torch.Tensor]:
        """A batch of images with different numbers of tokens, where the graph has no mask: those with as many run together.
        Where an output has tokens, it is 0 for padding."""
        if self.config.position_kernel_normalization == "batch":
            raise ValueError(
                "`coordinates_mask` is no input of this file, and this model's positions depend on the batch: `spot-hf export "
                "--with_mask` writes one that has it"
            )
        prefix = self.config.num_prefix_tokens
        found: dict[str, torch.Tensor] = {}
        counts = mask.sum(1)
        for count in counts.unique().tolist():
            images = (counts == count).nonzero()[:, 0]
            kept = mask[images]
            own = {"pixel_values": inputs["pixel_values"][images]}
            for name in ("coordinates", "window_scales"):
                if name in inputs:
                    own[name] = inputs[name][images][kept].unflatten(0, (len(images), count))
            for name, value in self._compute(own).items():
                if name == "last_hidden_state":
                    whole = value.new_zeros(len(images), prefix + mask.shape[1], value.shape[2])
                    whole[:, :prefix] = value[:, :prefix]
                    whole[:, prefix:][kept] = value[:, prefix:].flatten(0, 1)
                    value = whole
                if name not in found:
                    found[name] = value.new_zeros(len(mask), *value.shape[1:])
                found[name][images] = value
        return found

    def _compute(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        device = inputs["pixel_values"].device
        outputs = self.session.run(None, {name: _array(inputs[name]) for name in self.input_names})
        return {name: torch.from_numpy(one).to(device) for name, one in zip(self.output_names, outputs, strict=True)}


def _array(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu()
    return (tensor if tensor.dtype == torch.bool else tensor.float()).contiguous().numpy()


def _find(name: str, revision: str | None, file: str) -> Path | None:
    """Of a directory or a Hub repository, a file in its folder `onnx`; `None` where there is none."""
    if Path(name).expanduser().is_dir():
        path = Path(name).expanduser() / FOLDER / file
        return path if path.is_file() else None
    try:
        path = Path(hf_hub_download(name, f"{FOLDER}/{file}", revision=revision))
    except EntryNotFoundError:
        return None
    with suppress(EntryNotFoundError):
        hf_hub_download(name, f"{FOLDER}/{external_data(Path(file)).name}", revision=revision)
    return path


def open_session(path: str | Path, *, providers: Sequence[str] | None = None, num_threads: int | None = None) -> Any:
    """
    A session of ONNX Runtime.

    Raises:
        `OSError`: a broken file. `ValueError`: a provider that is not there. `ImportError`: onnxruntime is not installed.
    """
    check_installed("onnxruntime")
    import onnxruntime

    if num_threads is not None and (isinstance(num_threads, bool) or not isinstance(num_threads, int) or num_threads < 1):
        raise ValueError(f"`num_threads` must be at least 1; got {num_threads!r}")
    there = onnxruntime.get_available_providers()
    wanted = ["CPUExecutionProvider"] if providers is None else list(providers)
    if not wanted or not set(wanted) <= set(there):
        raise ValueError(f"`providers` must be of {', '.join(there)} here; got {wanted}")
    if not Path(path).is_file():
        raise OSError(f"no such file: {str(path)!r}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads or torch.get_num_threads()
    options.log_severity_level = 3  # errors
    options.add_session_config_entry("session.force_spinning_stop", "1")  # between two calls, threads are torch's
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=wanted)
    except Exception as error:  # its classes have no common base but this one
        reason = str(error).splitlines()[0]
        raise OSError(f"{str(path)!r} is no ONNX file that ONNX Runtime reads: {reason}") from None


__all__ = ["OnnxSpotViT"]
