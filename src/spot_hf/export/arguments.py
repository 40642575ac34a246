"""Arguments of `spot-hf export`."""

from dataclasses import dataclass, field
from typing import Any

from ..data.labels import LabelledSource
from ..hub.uploads import check_push
from .files import check_quantize


FORMATS = ("onnx", "torch_export", "executorch")


@dataclass(kw_only=True)
class ExportArguments(LabelledSource):
    """Which model, in which format, and on which images its export is measured."""

    model: str = field(metadata={"help": "A SpotViT: a directory or a Hub id."})
    output_dir: str = field(metadata={"help": "Where to write. May be the model's own directory: files are added to it."})
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a Hub id."})
    format: str = field(default="onnx", metadata={"help": f"One of {', '.join(FORMATS)}."})
    quantize: list[str] = field(
        default_factory=list,
        metadata={"help": "Also write the model with smaller weights: int8, float16, or both. Of format onnx."},
    )
    with_mask: bool = field(
        default=False, metadata={"help": "The graph takes coordinates_mask, for images with different numbers of tokens."}
    )
    with_window_scales: bool = field(
        default=False,
        metadata={"help": "The graph takes window_scales, as it does anyway where the model places its tokens."},
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace the files of an earlier export."})
    dataset_name: str | None = field(  # type: ignore[assignment]
        default=None,
        metadata={
            "help": "Images on which the exported models are measured beside PyTorch: digits (embedded), a Hub id, or a "
            "directory that load_dataset reads (default: none, only the outputs on two photographs are compared)."
        },
    )
    num_tokens: list[int] = field(
        default_factory=lambda: [25], metadata={"help": "Tokens per image of that measurement, or of format executorch."}
    )
    batch_size: int = field(default=16, metadata={"help": "Images per forward pass of that measurement."})
    num_workers: int = field(default=1, metadata={"help": "Processes that decode its images."})
    push_to_hub: bool = field(default=False, metadata={"help": "Also upload the result to --hub_model_id."})
    hub_model_id: str | None = field(default=None, metadata={"help": "Repository to push to, such as user/name."})
    hub_private: bool = field(default=False, metadata={"help": "Create that repository as a private one."})

    def check(self) -> None:
        """`ValueError` for what no export can have, before anything is loaded."""
        check_options(self.format, self.quantize)
        check_push(self.push_to_hub, "hub_model_id", self.hub_model_id)
        for name in ("batch_size", "num_workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1; got {getattr(self, name)}")
        if not self.num_tokens or min(self.num_tokens) < 1:
            raise ValueError(f"`num_tokens` must be positive integers; got {self.num_tokens}")
        if self.dataset_name is None:
            for name in ("dataset_split", "max_samples"):
                if getattr(self, name) is not None:
                    raise ValueError(f"`{name}` needs `dataset_name`; got {getattr(self, name)!r} alone")
        else:
            if self.format != "onnx":
                raise ValueError(f"`dataset_name` is for `format` onnx; got format={self.format!r}")
            self.check_source()


def check_options(format: Any, quantize: Any) -> None:
    """`ValueError` for a format that there is not, or one that its weights cannot be kept in."""
    if format not in FORMATS:
        raise ValueError(f"`format` must be one of {', '.join(FORMATS)}; got {format!r}")
    for one in quantize:
        check_quantize(one)
    if quantize and format != "onnx":
        raise ValueError(f"`quantize` is for `format` onnx; got {list(quantize)} with format={format!r}")
