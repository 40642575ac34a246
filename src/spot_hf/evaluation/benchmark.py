"""`spot-hf benchmark`: SpotViT at several token counts against the ordinary ViT, in one run.

Shared machines are noisy: every round runs each model once, one after the other, and what is reported are medians over the
rounds and ratios of them. Peak memory is measured in a process of its own for each row.
"""

import gc
import json
import multiprocessing
import platform
import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers
from torch import nn
from tqdm import tqdm
from transformers import AutoModelForImageClassification, ViTConfig, ViTForImageClassification

from ..configuration_spot_vit import SpotViTConfig
from ..modeling_spot_vit import SpotViTForImageClassification
from ..placement import grid, isotropic
from ..windows import sample_windows


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Setup:
    """Which models are timed, and how."""

    model: str | None
    baseline: str | None
    batch_size: int
    num_threads: int
    device: str
    dtype: str
    compile: bool

    def spot_vit(self) -> SpotViTForImageClassification:
        if self.model is not None:
            model = SpotViTForImageClassification.from_pretrained(self.model)
        else:
            model = SpotViTForImageClassification(SpotViTConfig(num_labels=1000))
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


def run_benchmark(
    *,
    model: str | None,
    baseline: str | None,
    num_tokens: list[int],
    batch_size: int,
    num_threads: int,
    repeats: int,
    device: str,
    dtype: str,
    compile: bool,
    output_file: str | None,
) -> dict[str, Any]:
    """
    Times forward passes and prints a table.

    Args:
        model (`str`, *optional*): a SpotViT; a ViT-B/16 with random weights by default.
        baseline (`str`, *optional*): the ordinary classifier beside it; transformers' ViT of the same size by default.
        num_tokens (`list[int]`): token counts, each placed isotropically, off the pixel lattice.
        batch_size (`int`): images per forward pass.
        num_threads (`int`): threads of torch.
        repeats (`int`): rounds.
        device (`str`), dtype (`str`): `"cpu"` or `"cuda"`; `"float32"`, `"bfloat16"` or `"float16"`.
        compile (`bool`): use `torch.compile(fullgraph=True)` on both.
        output_file (`str`, *optional*): JSON with all figures.

    Returns:
        `dict`: what the JSON holds; times in milliseconds, memory in MiB.
    """
    if dtype not in DTYPES:
        raise ValueError(f"`dtype` must be one of {', '.join(DTYPES)}; got {dtype!r}")
    if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        raise ValueError(f"`device` must be cpu, or cuda where there is one; got {device!r}")
    if not num_tokens or min(num_tokens) < 1:
        raise ValueError(f"`num_tokens` must be positive integers; got {num_tokens}")
    setup = Setup(model, baseline, batch_size, num_threads, device, dtype, compile)
    torch.set_num_threads(num_threads)
    spot = setup.spot_vit()
    config = spot.config
    ordinary = setup.ordinary(config)
    pixel_values = setup.pixel_values(config)

    runs: dict[str, Callable[[], Any]] = {"ordinary": _forward(ordinary, setup, pixel_values)}
    runs["spot full grid"] = _forward(spot, setup, pixel_values)
    for count in num_tokens:
        coordinates = setup.coordinates(count)
        runs[f"spot {count}"] = _forward(spot, setup, pixel_values, coordinates)
        runs[f"sampling {count}"] = partial(_sampling_and_positions, spot, pixel_values, coordinates)
    times = _alternate(runs, repeats, device)

    base = statistics.median(times["ordinary"])
    rows: list[dict[str, Any]] = [{"name": "ordinary", "num_tokens": _num_cells(config), "ms": base, "speedup": 1.0}]
    for name in ("spot full grid", *(f"spot {count}" for count in num_tokens)):
        count = _num_cells(config) if name == "spot full grid" else int(name.split()[1])
        row: dict[str, Any] = {"name": name, "num_tokens": count, "ms": statistics.median(times[name])}
        # The median of each round's own ratio: what slows the machine slows both halves of it.
        row["speedup"] = statistics.median(b / t for b, t in zip(times["ordinary"], times[name], strict=True))
        if f"sampling {count}" in times and name != "spot full grid":
            ratios = zip(times[f"sampling {count}"], times[name], strict=True)
            row["sampling_share"] = statistics.median(part / whole for part, whole in ratios)
        rows.append(row)
    for row in rows:
        row["peak_mib"] = _peak_memory(setup, row["name"], row["num_tokens"])
        row["images_per_second"] = 1000 * batch_size / row["ms"]
    result = {
        "model": model or "ViT-B/16, random weights",
        "baseline": baseline or f"transformers {transformers.__version__} ViTForImageClassification, the same size",
        "batch_size": batch_size,
        "image_size": list(config.image_height_width),
        "device": _device_name(device),
        "dtype": dtype,
        "compile": compile,
        "num_threads": num_threads,
        "repeats": repeats,
        "torch": torch.__version__,
        "rows": rows,
    }
    print(_table(result))
    if output_file is not None:
        Path(output_file).parent.mkdir(parents=True, exist_ok=True)
        Path(output_file).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        print(f"written to {output_file}")
    return result


def _forward(
    model: nn.Module, setup: Setup, pixel_values: torch.Tensor, coordinates: torch.Tensor | None = None
) -> Callable[[], Any]:
    function: Callable = torch.compile(model, fullgraph=True) if setup.compile else model
    inputs = (
        {"pixel_values": pixel_values} if coordinates is None else {"pixel_values": pixel_values, "coordinates": coordinates}
    )
    return lambda: function(**inputs)


def _sampling_and_positions(
    model: SpotViTForImageClassification, pixel_values: torch.Tensor, coordinates: torch.Tensor
) -> None:
    """What a SpotViT does that a ViT does not: cut the windows out, and compute position embeddings."""
    sample_windows(pixel_values, coordinates, model.config.patch_size)
    model.spot_vit.embeddings.position_embeddings(coordinates, *pixel_values.shape[-2:])


@torch.inference_mode()
def _alternate(runs: dict[str, Callable[[], Any]], repeats: int, device: str) -> dict[str, list[float]]:
    """Milliseconds of each run in each round, after one round of warm-up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    with tqdm(total=(repeats + 1) * len(runs), unit="run", desc="timing") as progress:
        for round_ in range(repeats + 1):
            for name, run in runs.items():
                _synchronize(device)
                start = time.perf_counter()
                run()
                _synchronize(device)
                if round_ > 0:
                    times[name].append(1000 * (time.perf_counter() - start))
                progress.update()
    return times


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _num_cells(config: SpotViTConfig) -> int:
    height, width = config.image_height_width
    return len(grid(height, width, config.patch_size))


def _peak_memory(setup: Setup, name: str, num_tokens: int) -> float:
    """MiB that a forward pass needs beyond the model and its inputs, in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_peak_memory_here, setup, name, num_tokens).result()


@torch.inference_mode()
def _peak_memory_here(setup: Setup, name: str, num_tokens: int) -> float:
    torch.set_num_threads(setup.num_threads)
    model: Any = setup.spot_vit()
    config = model.config
    if name == "ordinary":
        model = setup.ordinary(config)
    inputs = {"pixel_values": setup.pixel_values(config)}
    if name not in ("ordinary", "spot full grid"):
        inputs["coordinates"] = setup.coordinates(num_tokens)
    model(**{key: value[:1] for key, value in inputs.items()})  # libraries allocate once
    gc.collect()
    if setup.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        model(**inputs)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    # Peak resident size since the start would be that of loading: sample what is resident now, often.
    process, samples, stop = psutil.Process(), [], threading.Event()
    before = process.memory_info().rss

    def watch() -> None:
        while not stop.wait(0.001):
            samples.append(process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    model(**inputs)
    stop.set()
    watcher.join()
    return (max(samples, default=before) - before) / 2**20


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else f"cpu ({platform.machine()})"


def _table(result: dict[str, Any]) -> str:
    lines = [
        f"{result['model']}, batch {result['batch_size']}, {result['dtype']}, {result['device']}, {result['num_threads']} "
        f"threads{', compiled' if result['compile'] else ''}; medians of {result['repeats']} alternating rounds",
        "",
        "| model | tokens | ms | images/s | speed-up | sampling and positions | peak MiB |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in result["rows"]:
        share = f"{100 * row['sampling_share']:.1f} %" if "sampling_share" in row else ""
        lines.append(
            f"| {row['name']} | {row['num_tokens']} | {row['ms']:.1f} | {row['images_per_second']:.1f} | "
            f"{row['speedup']:.2f}× | {share} | {row['peak_mib']:.0f} |"
        )
    return "\n".join(lines)
