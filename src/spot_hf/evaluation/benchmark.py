"""`spot-hf benchmark`: SpotViT at several token counts against the ordinary ViT, in one run.

Shared machines are noisy: every round runs each model once, one after the other, and what is reported are medians over the
rounds and ratios of them.
"""

import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from tqdm import tqdm
from transformers import AutoModelForImageClassification, ViTConfig, ViTForImageClassification

from ..configuration_spot_vit import SpotViTConfig
from ..export.files import check_runtime
from ..export.timing import export_for_timing
from ..hub.loading import load_weights, open_model
from ..jobs.files import write_json
from ..jobs.process import default_device, synchronize
from ..jobs.versions import device_name, public_name
from ..modeling_spot_vit import SpotViTForImageClassification
from ..oracle.arguments import DTYPES, check_dtype
from ..placement import grid, isotropic
from ..placer import NEW
from ..windows import sample_windows
from .end_to_end import run_end_to_end
from .memory import PeakMemory


logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class BenchmarkArguments:
    """Which models are timed, and how."""

    model: str | None = field(
        default=None, metadata={"help": "A SpotViT directory or Hub id (default: a ViT-B/16 with random weights)."}
    )
    baseline: str | None = field(
        default=None, metadata={"help": "The ordinary model beside it (default: transformers' ViT of the same size)."}
    )
    num_tokens: list[int] = field(
        default_factory=lambda: [25, 49, 100, 196],
        metadata={"help": "Token counts, each placed isotropically, off the pixel lattice."},
    )
    batch_size: int = field(default=8, metadata={"help": "Images per forward pass; with --end_to_end, 1 and 16."})
    num_threads: int = field(default=2, metadata={"help": "Threads of torch on a CPU."})
    repeats: int = field(default=9, metadata={"help": "Rounds; each runs every model once. Medians are reported."})
    device: str = field(default="cpu", metadata={"help": "cpu, or an accelerator that is there, such as cuda."})
    dtype: str = field(default="float32", metadata={"help": "float32, bfloat16 or float16."})
    runtime: str = field(
        default="torch",
        metadata={"help": "onnx: beside PyTorch also ONNX Runtime, in float32 and with int8 weights, exported for this."},
    )
    compile: bool = field(default=False, metadata={"help": "Compile both models with torch.compile(fullgraph=True)."})
    end_to_end: list[str] | None = field(
        default=None,
        metadata={
            "help": "Image files or directories: time whole pipelines, from files to answers, at batch sizes 1 and 16, on "
            "these and on the same enlarged to 12 megapixels, against transformers' image classification."
        },
    )
    num_images: int = field(default=64, metadata={"help": "Of --end_to_end, so many."})
    num_large_images: int = field(default=16, metadata={"help": "Of these, so many enlarged."})
    output_file: str | None = field(default=None, metadata={"help": "Also write the figures to this JSON file."})

    def check(self) -> None:
        """`ValueError` for what no benchmark can have."""
        check_dtype(self.dtype)
        accelerator = default_device().type
        if self.device not in ("cpu", accelerator):
            accepted = "cpu" if accelerator == "cpu" else f"cpu or {accelerator}"
            raise ValueError(f"`device` must be {accepted} here; got {self.device!r}")
        if not self.num_tokens or min(self.num_tokens) < 1:
            raise ValueError(f"`num_tokens` must be positive integers; got {self.num_tokens}")
        if self.end_to_end is not None and self.compile:
            raise ValueError("`compile` is not for `end_to_end`, which times pipelines as they are; got both")
        check_runtime(self.runtime)
        if self.runtime == "onnx":
            given = {"device": self.device, "dtype": self.dtype, "compile": self.compile, "end_to_end": self.end_to_end}
            for name, expected in {"device": "cpu", "dtype": "float32", "compile": False, "end_to_end": None}.items():
                if given[name] != expected:
                    raise ValueError(f"`{name}` must be {expected} with `runtime` onnx; got {given[name]!r}")
        for name in ("batch_size", "num_threads", "repeats", "num_images", "num_large_images"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1; got {getattr(self, name)}")

    def conditions(self) -> dict[str, Any]:
        """For the record: which models, on what."""
        ordinary = f"transformers {transformers.__version__} ViTForImageClassification, the same size"
        return {
            "model": public_name(self.model) if self.model else "ViT-B/16, random weights",
            "baseline": public_name(self.baseline) if self.baseline else ordinary,
            "device": device_name(self.device),
            "dtype": self.dtype,
            "num_threads": self.num_threads,
            "repeats": self.repeats,
            "torch": torch.__version__,
        }

    def spot_vit(self) -> SpotViTForImageClassification:
        if self.model is not None:
            source = open_model(self.model)
            source.check_vit()
            source.check_classifier()
            model = load_weights(SpotViTForImageClassification, source)
        else:
            model = SpotViTForImageClassification(SpotViTConfig(num_labels=1000, placer=NEW))
        return model.to(self.device, DTYPES[self.dtype]).eval()

    def ordinary(self, config: SpotViTConfig) -> nn.Module:
        if self.baseline is not None:
            model = AutoModelForImageClassification.from_pretrained(self.baseline)
        else:
            height, width = config.image_height_width
            names = (
                "hidden_size",
                "num_hidden_layers",
                "num_attention_heads",
                "intermediate_size",
                "patch_size",
                "num_channels",
            )
            shape = {name: getattr(config, name) for name in names}
            model = ViTForImageClassification(ViTConfig(**shape, image_size=[height, width], num_labels=config.num_labels))
        return model.to(self.device, DTYPES[self.dtype]).eval()

    def pixel_values(self, config: SpotViTConfig) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        shape = (self.batch_size, config.num_channels, *config.image_height_width)
        return torch.randn(shape, generator=generator).to(self.device, DTYPES[self.dtype])

    def coordinates(self, num_tokens: int) -> torch.Tensor:
        # Off the pixel lattice, as any placement is.
        return (isotropic(num_tokens) + 0.3 / 224).clamp(0, 1)[None].expand(self.batch_size, -1, -1).to(self.device)


@dataclass(kw_only=True)
class BenchmarkRow:
    """Of a model at a number of tokens."""

    name: str
    num_tokens: int
    ms: float  # per batch: the ordinary model's median, by the speed-up
    images_per_second: float
    speedup: (
        float  # to the ordinary model: median of each round's own ratio, as what slows the machine slows both halves of it
    )
    sampling_share: float | None = None  # of the time, that windows and position embeddings take
    to_torch: float | None = None  # in ONNX Runtime, the speed-up to the same in PyTorch, likewise
    placer_share: float | None = None  # how much a placer adds to the time, where the model has one
    peak_mib: float | None = None  # of the tensors that live at the same time, without weights and inputs; counted


def run_benchmark(arguments: BenchmarkArguments) -> dict[str, Any]:
    """
    Times forward passes and prints a table.

    Args:
        arguments ([`BenchmarkArguments`]): what to time.

    Returns:
        `dict`: what the JSON holds; times in milliseconds, memory in MiB.
    """
    arguments.check()
    torch.set_num_threads(arguments.num_threads)
    if arguments.end_to_end is not None:
        return run_end_to_end(arguments)
    spot: Any = arguments.spot_vit()
    config = spot.config
    pixel_values = arguments.pixel_values(config)
    passes: dict[str, partial] = {
        "ordinary": partial(arguments.ordinary(config), pixel_values=pixel_values),
        "spot full grid": partial(spot, pixel_values=pixel_values),
    }
    samplings: dict[str, Callable[[], Any]] = {}
    exported: dict[str, Any] = {}
    for count in arguments.num_tokens:
        coordinates = arguments.coordinates(count)
        passes[f"spot {count}"] = partial(spot, pixel_values=pixel_values, coordinates=coordinates)
        samplings[f"sampling {count}"] = partial(_sampling_and_positions, spot, pixel_values, coordinates)
        if spot.placer is not None:
            samplings[f"placing {count}"] = partial(spot.place, pixel_values, count, "learned")
    peaks = {name: _peak_mib(run) for name, run in passes.items()}
    if arguments.runtime == "onnx":
        with tempfile.TemporaryDirectory() as folder:  # what a session has read it keeps
            exported = export_for_timing(spot, Path(folder), arguments.num_threads)
        for count in arguments.num_tokens:
            inputs = {"pixel_values": pixel_values, "coordinates": arguments.coordinates(count)}
            passes |= {f"{name} {count}": partial(model, **inputs) for name, model in exported.items()}
    if arguments.compile:
        compiled = {model: torch.compile(model, fullgraph=True) for model in {run.func for run in passes.values()}}
        passes = {name: partial(compiled[run.func], **run.keywords) for name, run in passes.items()}
    times = _alternate({**passes, **samplings}, arguments.repeats, arguments.device)

    counts = {"ordinary": _num_cells(config), "spot full grid": _num_cells(config)}
    counts |= {f"{name} {count}": count for count in arguments.num_tokens for name in ("spot", *exported)}
    rows = [_row(name, count, times, arguments.batch_size) for name, count in counts.items()]
    for row in rows:
        row.peak_mib = peaks.get(row.name)
    result = {
        **arguments.conditions(),
        "batch_size": arguments.batch_size,
        "image_size": list(config.image_height_width),
        "compile": arguments.compile,
        "rows": [{name: value for name, value in vars(row).items() if value is not None} for row in rows],
    }
    logger.info(_table(result, rows))
    if arguments.output_file is not None:
        write_json(arguments.output_file, result)
        logger.info("written to %s", arguments.output_file)
    return result


def _row(name: str, num_tokens: int, times: dict[str, list[float]], batch_size: int) -> BenchmarkRow:
    def median_ratio(upper: str, lower: str) -> float:
        return statistics.median(a / b for a, b in zip(times[upper], times[lower], strict=True))

    def share(part: str) -> float | None:
        timed = name.replace("spot", part)
        return median_ratio(timed, name) if timed != name and timed in times else None

    speedup = median_ratio("ordinary", name)
    kind, _, count = name.rpartition(" ")
    ms = statistics.median(times["ordinary"]) / speedup  # so that a table's times and speed-ups agree
    return BenchmarkRow(
        name=name,
        num_tokens=num_tokens,
        ms=ms,
        images_per_second=1000 * batch_size / ms,
        speedup=speedup,
        to_torch=median_ratio(f"spot {count}", name) if kind.startswith("onnx") else None,
        sampling_share=share("sampling"),
        placer_share=share("placing"),
    )


@torch.inference_mode()
def _peak_mib(run: Callable[[], Any]) -> float:
    with PeakMemory() as memory:
        run()
    return memory.peak / 2**20


def _sampling_and_positions(
    model: SpotViTForImageClassification, pixel_values: torch.Tensor, coordinates: torch.Tensor
) -> None:
    """What a SpotViT does that a ViT does not: cut the windows out, and compute what attention is told of positions."""
    sample_windows(pixel_values, coordinates, model.config.patch_size)
    table, (height, width) = model.spot_vit.embeddings.position_embeddings, pixel_values.shape[-2:]
    if table is not None:
        table(coordinates, height, width)
    model.spot_vit.attention_positions(coordinates, height, width, pixel_values.dtype)


@torch.inference_mode()
def _alternate(runs: dict[str, Callable[[], Any]], repeats: int, device: str) -> dict[str, list[float]]:
    """Milliseconds of each run in each round, after one round of warm-up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    with tqdm(total=(repeats + 1) * len(runs), unit="run", desc="timing") as progress:
        for round_ in range(repeats + 1):
            for name, run in runs.items():
                synchronize(device)
                start = time.perf_counter()
                run()
                synchronize(device)
                if round_ > 0:
                    times[name].append(1000 * (time.perf_counter() - start))
                progress.update()
    return times


def _num_cells(config: SpotViTConfig) -> int:
    height, width = config.image_height_width
    return len(grid(height, width, config.patch_size))


def _table(result: dict[str, Any], rows: list[BenchmarkRow]) -> str:
    has_onnx = any(row.to_torch is not None for row in rows)
    lines = [
        f"{result['model']}, batch {result['batch_size']}, {result['dtype']}, {result['device']}, {result['num_threads']} "
        f"threads{', compiled' if result['compile'] else ''}; medians of {result['repeats']} alternating rounds",
        "",
        f"| model | tokens | ms | images/s | speed-up |{' to PyTorch |' if has_onnx else ''} sampling and positions | "
        "a placer adds | peak MiB |",
        f"|---|---:|---:|---:|---:|{'---:|' if has_onnx else ''}---:|---:|---:|",
    ]
    for row in rows:
        shares = [f"{100 * one:.1f} %" if one is not None else "" for one in (row.sampling_share, row.placer_share)]
        to_torch = "" if not has_onnx else f"{row.to_torch:.2f}× | " if row.to_torch is not None else " | "
        lines.append(
            f"| {row.name} | {row.num_tokens} | {row.ms:.1f} | {row.images_per_second:.1f} | {row.speedup:.2f}× | "
            f"{to_torch}{' | '.join(shares)} | {'' if row.peak_mib is None else f'{row.peak_mib:.0f}'} |"
        )
    return "\n".join(lines)
