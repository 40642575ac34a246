"""`spot-hf export`: a SpotViT as a file that ONNX Runtime, torch or ExecuTorch runs, compared with PyTorch before it is kept.

```
spot-hf export --model runs/tiny --output_dir runs/tiny-onnx --quantize int8 --dataset_name digits
```
"""

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ..golden import versions_here
from ..hub.loading import ModelSource, open_model
from ..hub.models import check_whole_model
from ..hub.uploads import push_folder
from ..jobs.files import write_json
from ..jobs.versions import public_name, weights_digest
from .arguments import ExportArguments, check_options
from .comparison import TOLERANCE, cases, differences, measure_split, photographs
from .errors import ExportError
from .executorch import check_executorch, run_executorch, write_executorch
from .files import (
    EXECUTORCH,
    FILES,
    FOLDER,
    JS_CONFIG,
    PLACER,
    REPORT,
    TORCH_EXPORT,
    check_installed,
    external_data,
)
from .graph import PlacerFunction, example_inputs, fixed_inputs, function_of, torch_program, write_onnx
from .quantization import quantize_int8
from .runtime import OnnxSpotViT, open_session


logger = logging.getLogger(__name__)

# How transformers.js calls the files.
JS_DTYPES = {None: "fp32", "int8": "q8", "float16": "fp16"}


def export_model(
    model: Any,
    output_dir: str | Path,
    *,
    image_processor: Any = None,
    format: str = "onnx",
    quantize: Sequence[str] = (),
    with_mask: bool = False,
    with_window_scales: bool = False,
    num_tokens: int = 25,
    overwrite: bool = False,
    arguments: ExportArguments | None = None,
) -> dict[str, Any]:
    """
    Writes a model in another format, with its config and image processor, and `export_report.json`. What is written is
    compared with PyTorch first, on photographs, at several numbers of tokens, images and pixels.

    Args:
        model (`str` or [`SpotViTPreTrainedModel`]): a directory, a Hub id, or a model.
        output_dir (`str`): where; made where there is none. Files of others stay.
        image_processor ([`SpotViTImageProcessor`], *optional*): of a model that is given as such.
        format (`str`): `"onnx"`, `"torch_export"` (`.pt2`) or `"executorch"` (`.pte`).
        quantize (`list[str]`): `"int8"`, `"float16"`: also written, of format onnx.
        with_mask (`bool`), with_window_scales (`bool`): whether the graph takes `coordinates_mask` and `window_scales`, as it
            does anyway where the model places tokens by itself: has a placer, or `config.num_tokens`.
        num_tokens (`int`): of format executorch, whose program is for one image of the model's size and so many tokens.
        overwrite (`bool`): replace the files of an earlier export.
        arguments ([`ExportArguments`], *optional*): of the command: which split to measure on.

    Returns:
        `dict`: what `export_report.json` holds.

    Raises:
        `ValueError`: an argument is wrong, or no SpotViT. [`ExportError`]: a model that cannot be exported, or whose export
            computes something else. `ImportError`: a package is not installed.
    """
    check_options(format, quantize)
    if format == "executorch" and (with_mask or with_window_scales):
        given = "with_mask" if with_mask else "with_window_scales"
        raise ValueError(f"`{given}` is not for `format` executorch, which takes pixel_values and coordinates alone")
    if format == "onnx":
        check_installed("onnx", "onnxscript", "onnxruntime")
    elif format == "executorch":
        check_executorch()
    directory = Path(output_dir).expanduser()
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"`output_dir` must be a directory; {str(output_dir)!r} is a file")
    target = {"onnx": f"{FOLDER}/{FILES[None]}", "torch_export": TORCH_EXPORT, "executorch": EXECUTORCH}[format]
    if (directory / target).exists() and not overwrite:
        raise ValueError(f"`output_dir` {str(output_dir)!r} holds {target}; give `overwrite` to replace it")
    name, source = None, None
    if isinstance(model, (str, os.PathLike)):
        name = str(model)
        source = open_model(name, arguments.revision if arguments is not None else None)
        model, image_processor = _load(source)
    else:
        check_whole_model(model, "model")
        if model.config.model_type != "spot_vit" or hasattr(model, "text_model"):
            raise ExportError(
                f"`model` must be a SpotViT classifier, encoder or segmentation model; got {type(model).__name__}"
            )
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder)
        export = _Export(model, image_processor, written, with_mask, with_window_scales, num_tokens)
        report = {
            "model": public_name(name) if name else type(model).__name__,
            "revision": source.revision if source else None,
            "model_sha256": weights_digest(name) if name else None,
            "architecture": type(model).__name__,
            "format": format,
            "inputs": list(export.inputs),
            "outputs": export.output_names,
            "tolerance": TOLERANCE,
            **getattr(export, f"write_{format}")(*([quantize] if format == "onnx" else [])),
            "versions": versions_here(),
        }
        if arguments is not None and arguments.dataset_name is not None:
            is_classifier = hasattr(model, "classifier")
            report["measured"] = measure_split(arguments, export.calls, image_processor, model.config, is_classifier)
        report["files"] = {
            path.relative_to(written).as_posix(): path.stat().st_size for path in sorted(written.rglob("*")) if path.is_file()
        }
        write_json(written / REPORT, report)
        _write_beside(model, image_processor, written, directory, name, arguments, format)
        for path in sorted(written.rglob("*")):
            if path.is_file():
                goal = directory / path.relative_to(written)
                goal.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(path, goal)
    return report


def _load(source: ModelSource) -> tuple[Any, Any]:
    source.check_vit()
    if source.is_zero_shot:
        raise ExportError(
            f"`model` {source.name!r} is a zero-shot model: save what `model.as_classifier` gives, and export that"
        )
    return source.load(), source.load_image_processor()


class _Export:
    """
    A model's way into files.

    Args:
        model, image_processor: what is exported.
        directory (`Path`): where to write.
        with_mask, with_window_scales, num_tokens: of [`export_model`].
    """

    def __init__(
        self, model: Any, image_processor: Any, directory: Path, with_mask: bool, with_window_scales: bool, num_tokens: int
    ):
        self.model, self.image_processor, self.directory = model, image_processor, directory
        self.reference = function_of(model)
        # Windows of a model that places its tokens by itself cover the image: they have scales.
        places = getattr(model, "placer", None) is not None or model.config.num_tokens is not None
        with_window_scales = with_window_scales or places
        self.inputs = example_inputs(model.config, with_mask, with_window_scales)
        with torch.no_grad():
            self.output_names = list(self.reference(**self.inputs))
        self.cases = cases(photographs(image_processor, model.config), model.config, list(self.inputs))
        self.num_tokens = num_tokens
        self.calls: dict[str, Callable[..., dict[str, torch.Tensor]]] = {"pytorch": self.reference}

    def write_onnx(self, quantize: Sequence[str]) -> dict[str, Any]:
        folder = self.directory / FOLDER
        folder.mkdir()
        path = folder / FILES[None]
        write_onnx(self.reference, self.inputs, path)
        found: dict[str, Any] = {"differences": {"float32": self._compare(path, "float32")}}
        _check_equal(found["differences"]["float32"])
        for kind in dict.fromkeys(quantize):
            smaller = folder / FILES[kind]
            if kind == "int8":
                quantize_int8(path, smaller)
            else:
                write_onnx(function_of(self.model, torch.float16), self.inputs, smaller)
            found["differences"][kind] = self._compare(smaller, kind)
        if getattr(self.model, "placer", None) is not None:
            found["placer"] = self._write_placer(folder / PLACER)
        return found

    def _compare(self, path: Path, kind: str) -> dict[str, float]:
        exported = OnnxSpotViT(path, self.model.config)
        self.calls[f"onnx {kind}"] = exported.compute
        return differences(exported.compute, self.reference, self.cases)

    def _write_placer(self, path: Path) -> dict[str, Any]:
        placer = PlacerFunction(self.reference.model)
        config = self.model.config
        images = photographs(self.image_processor, config)
        images = torch.nn.functional.interpolate(images, config.image_height_width, mode="bilinear", align_corners=False)
        images = torch.cat([images, images.flip(-1)])
        write_onnx(placer, {"pixel_values": images[:3]}, path)
        session = open_session(path)
        with torch.no_grad():
            expected = placer(images)["densities"]
        difference = (torch.from_numpy(session.run(None, {"pixel_values": images.numpy()})[0]) - expected).abs().max().item()
        difference /= expected.abs().max().item()
        _check_equal({"the placer's densities": difference})
        return {"inputs": ["pixel_values"], "outputs": ["densities"], "difference": difference}

    def write_torch_export(self) -> dict[str, Any]:
        program = torch_program(self.reference, self.inputs)
        path = self.directory / TORCH_EXPORT
        torch.export.save(program, path)
        loaded = torch.export.load(path).module()
        found = differences(loaded, self.reference, self.cases)
        _check_equal(found)
        return {"differences": {"float32": found}}

    def write_executorch(self) -> dict[str, Any]:
        path = self.directory / EXECUTORCH
        inputs = fixed_inputs(self.model.config, self.num_tokens)
        write_executorch(torch_program(self.reference, inputs, is_fixed=True), path)
        photograph = photographs(self.image_processor, self.model.config)[:1]
        photograph = torch.nn.functional.interpolate(photograph, inputs["pixel_values"].shape[-2:], mode="bilinear")
        case = f"batch 1, {self.num_tokens} tokens"
        own = {case: {**inputs, "pixel_values": photograph}}
        found = differences(run_executorch(path, self.output_names), self.reference, own)
        _check_equal(found)
        return {"inputs": list(inputs), "num_tokens": self.num_tokens, "differences": {"float32": found}}


def _check_equal(found: dict[str, float]) -> None:
    for case, difference in found.items():
        if not difference <= TOLERANCE:
            raise ExportError(
                f"the export differs from PyTorch by {difference:.2g} at {case}, more than {TOLERANCE}: nothing is kept"
            )


def _write_beside(
    model: Any,
    image_processor: Any,
    written: Path,
    directory: Path,
    name: str | None,
    arguments: ExportArguments | None,
    format: str,
) -> None:
    """Config, image processor and card."""
    values = model.config.to_dict()
    values["architectures"] = [type(model).__name__]
    if format == "onnx":
        values[JS_CONFIG] = _js_config(written / FOLDER)
    pushed_to = arguments.hub_model_id if arguments is not None else None
    if not (directory / "modeling_spot_vit.py").is_file() and (pushed_to is None or pushed_to != name):
        for key in ("auto_map", "custom_pipelines"):  # name code that is not there
            values.pop(key, None)
    write_json(written / "config.json", values)
    if image_processor is not None:
        image_processor.save_pretrained(written)
        saved = json.loads((written / "preprocessor_config.json").read_text(encoding="utf-8"))
        if "auto_map" not in values:
            saved.pop("auto_map", None)
        write_json(written / "preprocessor_config.json", saved)
        for path in written.glob("*.py"):
            path.unlink()
    if not (directory / "README.md").exists():
        (written / "README.md").write_text(card_text(pushed_to or str(directory.name), model, format), encoding="utf-8")


def _js_config(folder: Path) -> dict[str, Any]:
    """What transformers.js reads of a config: its default file, and which have weights beside them."""
    found: dict[str, Any] = {"dtype": JS_DTYPES[None]}
    if (folder / FILES["int8"]).exists():
        # WebGPU has no kernels for products of integers.
        found = {"dtype": JS_DTYPES["int8"], "device_config": {"webgpu": found}}
    external = {file: 1 for file in FILES.values() if external_data(folder / file).exists()}
    return {**found, **({"use_external_data_format": external} if external else {})}


def card_text(name: str, model: Any, format: str) -> str:
    """A short card, of an export that lies where there is none."""
    library = {"onnx": "onnxruntime", "torch_export": "torch.export", "executorch": "ExecuTorch"}[format]
    lines = ["---", "library_name: spot_hf", f"tags: [spot, {format}]", "---", "", f"# {name}", ""]
    lines += [f"A {type(model).__name__} for {library}, exported by `spot-hf export` (see `{REPORT}`).", ""]
    if format == "onnx":
        lines += [
            "```python",
            "from spot_hf.export import OnnxSpotViT",
            "",
            f'model = OnnxSpotViT.from_pretrained("{name}")',
            "outputs = model(pixel_values, coordinates=coordinates)  # (batch_size, num_tokens, 2): (x, y) in [0, 1]",
            "```",
            "",
        ]
    return "\n".join(lines)


def run_export(arguments: ExportArguments) -> None:
    """`spot-hf export`: [`export_model`] by its arguments, and a push."""
    arguments.check()
    report = export_model(
        arguments.model,
        arguments.output_dir,
        format=arguments.format,
        quantize=arguments.quantize,
        with_mask=arguments.with_mask,
        with_window_scales=arguments.with_window_scales,
        num_tokens=arguments.num_tokens[0],
        overwrite=arguments.overwrite,
        arguments=arguments,
    )
    logger.info(_summary(report, arguments.output_dir))
    if arguments.push_to_hub and arguments.hub_model_id:
        url = push_folder(
            arguments.output_dir, arguments.hub_model_id, private=arguments.hub_private, message=f"Export: {arguments.format}"
        )
        logger.info("published at %s", url)


def _summary(report: dict[str, Any], output_dir: str) -> str:
    lines = [
        f"written to {output_dir}: {', '.join(f'{name} ({size / 1e6:.1f} MB)' for name, size in report['files'].items())}"
    ]
    for kind, found in report.get("differences", {}).items():
        lines.append(f"{kind}: differs from PyTorch by {max(found.values()):.1e} at most, on {len(found)} sets of inputs")
    measured = report.get("measured", {})
    for count, figures in measured.get("num_tokens", {}).items():
        for name, one in figures.items():
            parts = [f"{key} {100 * value:.2f} %" for key, value in one.items()]
            lines.append(f"{count} tokens, {name}: {', '.join(parts)} of {measured['num_images']} images")
    return "\n".join(lines)


__all__ = ["ExportError", "export_model"]
