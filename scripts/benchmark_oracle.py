r"""What the oracle costs: against its floor, with early stop, and in memory.

    python scripts/benchmark_oracle.py --model spot-vit-tiny --dataset_name DATA/nips2017 \
        --memory_dataset_name DATA/imagenette160 --output_file docs/results/oracle_benchmark_cpu.json

About 8 minutes on 2 CPU cores. Floor: a backward pass through a frozen encoder costs what a forward pass costs, so that S
steps and a last look cost at least 2 S + 1 forward passes. Both are timed alternately, on a ViT-B/16 with random weights;
medians of the rounds' own ratios are reported. Expected: at most 1.25 times the floor at 25 tokens. `--model` is a SpotViT
that was converted; early stop and memory are measured on it and on real images, and left out without it.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from tqdm import tqdm
from transformers import HfArgumentParser

from spot_hf import OracleResult, SpotOracle, SpotViTConfig, SpotViTForImageClassification
from spot_hf.data.source import DatasetSource, load_images
from spot_hf.hub.loading import open_model
from spot_hf.jobs.process import synchronize
from spot_hf.placement import isotropic


@dataclass(kw_only=True)
class OracleBenchmarkArguments:
    num_tokens: int = field(default=25, metadata={"help": "Tokens per image, for the floor."})
    steps: int = field(default=5, metadata={"help": "Steps of the oracle."})
    batch_size: int = field(default=8, metadata={"help": "Images per pass, for the floor."})
    repeats: int = field(default=5, metadata={"help": "Rounds; each times every way once."})
    num_threads: int = field(default=2, metadata={"help": "Threads of torch on a CPU."})
    device: str = field(default="cpu", metadata={"help": "cpu or cuda."})
    dtype: str = field(default="float32", metadata={"help": "float32, or bfloat16 or float16 for autocast."})
    compile: bool = field(default=False, metadata={"help": "Compile both with torch.compile."})
    model: str | None = field(default=None, metadata={"help": "A SpotViT with weights, for early stop and memory."})
    dataset_name: str | None = field(default=None, metadata={"help": "Its images: early stop on the first 128."})
    memory_dataset_name: str | None = field(default=None, metadata={"help": "At least 10,000 images in its split train."})
    output_file: str | None = field(default=None, metadata={"help": "Also write the figures to this JSON file."})


def main() -> int:
    (arguments,) = HfArgumentParser(OracleBenchmarkArguments, description=__doc__).parse_args_into_dataclasses()
    torch.set_num_threads(arguments.num_threads)
    results: dict[str, Any] = {"arguments": vars(arguments) | {"output_file": None}, "torch": torch.__version__}
    results["floor"] = against_floor(arguments)
    if arguments.model and arguments.dataset_name:
        results["early_stop"] = with_early_stop(arguments)
    if arguments.model and arguments.memory_dataset_name:
        results["memory"] = [peak_memory(arguments, num_images) for num_images in (1_000, 10_000)]
    for name in ("model", "dataset_name", "memory_dataset_name"):  # no paths of this machine
        results["arguments"][name] = Path(results["arguments"][name]).name if results["arguments"][name] else None
    print(json.dumps(results, indent=2))
    if arguments.output_file:
        Path(arguments.output_file).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return 0


def against_floor(arguments: OracleBenchmarkArguments) -> dict[str, float]:
    """Time of the oracle over that of 2 × steps + 1 forward passes."""
    model = SpotViTForImageClassification(SpotViTConfig(num_labels=1000)).to(arguments.device).eval()
    generator = torch.Generator().manual_seed(0)
    pixel_values = torch.randn(arguments.batch_size, 3, 224, 224, generator=generator).to(arguments.device)
    labels = torch.randint(1000, (arguments.batch_size,), generator=generator).to(arguments.device)
    # Off the pixel lattice, as any placement is.
    coordinates = (isotropic(arguments.num_tokens) + 0.3 / 224)[None].expand(arguments.batch_size, -1, -1)
    coordinates = coordinates.to(arguments.device).contiguous()
    oracle = SpotOracle(model, steps=arguments.steps, dtype=arguments.dtype, compile=arguments.compile)
    num_passes = 2 * arguments.steps + 1

    @torch.no_grad()
    def forward_passes() -> None:
        for _ in range(num_passes):
            oracle._run(pixel_values, coordinates, None, None)

    times = alternate(
        {"oracle": lambda: oracle.optimize(pixel_values, labels, coordinates), "floor": forward_passes}, arguments
    )
    ratios = [oracle_time / floor for oracle_time, floor in zip(times["oracle"], times["floor"], strict=True)]
    return {
        "forward_passes": num_passes,
        "ratio_to_floor": statistics.median(ratios),
        "lowest_ratio": min(ratios),
        "highest_ratio": max(ratios),
        "images_per_second": arguments.batch_size / statistics.median(times["oracle"]),
    }


def with_early_stop(arguments: OracleBenchmarkArguments) -> list[dict[str, Any]]:
    """The oracle with and without, on the same images: accuracy, steps per image, images/s."""
    assert arguments.model is not None and arguments.dataset_name is not None
    source = open_model(arguments.model)
    model, processor = source.load().to(arguments.device), source.load_image_processor()
    images: Any = load_images(DatasetSource(dataset_name=arguments.dataset_name, max_samples=128))
    inputs = processor([image.convert("RGB") for image in images["image"]], num_tokens=49, return_tensors="pt")
    labels = torch.tensor(images["label"]).to(arguments.device)
    inputs = {name: value.to(arguments.device) for name, value in inputs.items()}
    found = []
    for steps in (5, 10):
        oracles = {
            early_stop: SpotOracle(model, steps=steps, early_stop=early_stop, dtype=arguments.dtype, compile=arguments.compile)
            for early_stop in (None, 0.69)
        }
        results: dict[float | None, list[OracleResult]] = {}

        def run(early_stop: float | None, oracles=oracles, results=results) -> None:
            results[early_stop] = [
                oracles[early_stop].optimize(
                    **{name: value[i : i + 32] for name, value in inputs.items()}, labels=labels[i : i + 32]
                )
                for i in range(0, len(labels), 32)
            ]

        times = alternate({early_stop: partial(run, early_stop) for early_stop in oracles}, arguments)
        base = statistics.median(times[None])
        for early_stop in oracles:
            predictions = torch.cat([result.prediction for result in results[early_stop] if result.prediction is not None])
            num_steps = torch.cat([result.num_steps for result in results[early_stop]])
            ratios = [a / b for a, b in zip(times[None], times[early_stop], strict=True)]
            found.append({
                "steps": steps, "early_stop": early_stop, "accuracy": 100 * (predictions == labels).double().mean().item(),
                "steps_per_image": num_steps.double().mean().item(), "speed_up": statistics.median(ratios),
                "images_per_second": len(labels) / (base / statistics.median(ratios)),
            })  # fmt: skip
    return found


def alternate(runs: dict[Any, Callable[[], Any]], arguments: OracleBenchmarkArguments) -> dict[Any, list[float]]:
    """Seconds of each run in each round, one after the other, after a round of warm-up."""
    times: dict[Any, list[float]] = {name: [] for name in runs}
    for round_ in tqdm(range(arguments.repeats + 1), desc="timing", unit="round"):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            synchronize(arguments.device)
            if round_ > 0:
                times[name].append(time.perf_counter() - start)
    return times


def peak_memory(arguments: OracleBenchmarkArguments, num_images: int) -> dict[str, float]:
    """MiB that a whole run needs at its highest, without the pages of the data set's files that are mapped into it."""
    with tempfile.TemporaryDirectory() as directory:
        command = [
            sys.executable, "-m", "spot_hf", "oracle", "--model", str(arguments.model), "--dataset_name",
            str(arguments.memory_dataset_name), "--dataset_split", "train", "--max_samples", str(num_images),
            "--num_tokens", "25", "--steps", "1", "--batch_size", "64", "--num_workers", "0", "--save_trajectories",
            "--output_dir", f"{directory}/run",
        ]  # fmt: skip
        process = psutil.Popen(command, stdout=subprocess.DEVNULL)
        peak = 0
        while process.poll() is None:
            memory = process.memory_info()
            peak = max(peak, memory.rss - memory.shared)
            time.sleep(0.05)
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)} failed")
        return {"num_images": num_images, "peak_mib": peak / 2**20}


if __name__ == "__main__":
    sys.exit(main())
