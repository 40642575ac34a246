r"""What the oracle costs for a data set of ImageNet's size: operations, bytes, cores and minutes, from measured rates.

    python scripts/plan_oracle.py --images photos/ --num_images 1281167 --num_tokens 25 --steps 5 --output_file plan.json

Under a minute. Counted: the operations of the model's forward pass, by PyTorch's own counter; a step costs two forward passes
(the encoder is frozen: its backward pass computes no gradients of weights), the last look one more. Measured here: how
long a core takes to decode a JPEG and prepare it, for files of `--megapixels`, made from the given ones. Assumed: the
accelerator's peak, and the share of it that short sequences reach. Where there is an accelerator,
`scripts/benchmark_oracle.py --device cuda --dtype bfloat16 --compile` measures instead of assuming.
"""

import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import HfArgumentParser

from spot_hf import SpotViTConfig, SpotViTForImageClassification, SpotViTImageProcessor
from spot_hf.data.files import image_files
from spot_hf.evaluation.end_to_end import enlarge
from spot_hf.hub.loading import open_model
from spot_hf.jobs.files import write_json
from spot_hf.placement import isotropic


@dataclass(kw_only=True)
class PlanArguments:
    images: list[str] = field(metadata={"help": "Image files or directories, for the rate of decoding."})
    model: str | None = field(default=None, metadata={"help": "A SpotViT (default: a ViT-B/16 with random weights)."})
    num_images: int = field(default=1_281_167, metadata={"help": "Of the data set: ImageNet-1k's training set has so many."})
    image_bytes: float = field(default=110e3, metadata={"help": "Of a file, on average."})
    megapixels: float = field(default=0.18, metadata={"help": "Of an image, on average."})
    num_tokens: int = field(default=25, metadata={"help": "Tokens per image."})
    steps: int = field(default=5, metadata={"help": "Updates of the positions."})
    peak_tflops: float = field(default=989.0, metadata={"help": "Of an accelerator: an H100's, dense, in bfloat16."})
    utilization: float = field(default=0.25, metadata={"help": "Share of the peak that the oracle reaches."})
    num_accelerators: list[int] = field(default_factory=lambda: [1, 8, 64], metadata={"help": "Of a run."})
    accelerators_per_machine: int = field(default=8, metadata={"help": "Which share a network."})
    gigabits_per_second: float = field(default=10.0, metadata={"help": "That a machine reads, over the network."})
    cores_per_accelerator: int = field(default=16, metadata={"help": "Cores that decode for each."})
    output_file: str | None = field(default=None, metadata={"help": "Also write the figures to this JSON file."})


def main() -> int:
    (arguments,) = HfArgumentParser(PlanArguments, description=__doc__).parse_args_into_dataclasses()
    if arguments.model is not None:
        source = open_model(arguments.model)
        model: Any = source.load()
        processor = source.load_image_processor()
    else:
        model = SpotViTForImageClassification(SpotViTConfig(num_labels=1000)).eval()
        processor = SpotViTImageProcessor(size={"shortest_edge": 256}, do_center_crop=True)
    flops = _forward_flops(model, arguments.num_tokens) * (2 * arguments.steps + 1)
    seconds = _seconds_per_image(processor, arguments)
    # Positions before and after, losses, hash, id and the like.
    row_bytes = 2 * 8 * arguments.num_tokens + 4 * (arguments.steps + 1) + 150
    of_accelerator = arguments.peak_tflops * 1e12 * arguments.utilization / flops
    of_cores = arguments.cores_per_accelerator / seconds
    runs = []
    for count in arguments.num_accelerators:
        machines = -(-count // arguments.accelerators_per_machine)
        of_network = machines * arguments.gigabits_per_second * 1e9 / 8 / arguments.image_bytes
        rates = {"computing": count * of_accelerator, "decoding": count * of_cores, "reading": of_network}
        minutes = {part: arguments.num_images / rate / 60 for part, rate in rates.items()}
        runs.append({"num_accelerators": count, "minutes": minutes, "limit": max(minutes, key=lambda part: minutes[part])})
    result = {
        "arguments": {**asdict(arguments), "output_file": None},
        "gflops_per_image": flops / 1e9,
        "total_pflops": flops * arguments.num_images / 1e15,
        "read_gb": arguments.image_bytes * arguments.num_images / 1e9,
        "written_gb": row_bytes * arguments.num_images / 1e9,
        "decode_ms_per_image_and_core": 1000 * seconds,
        "images_per_second_of_an_accelerator": of_accelerator,
        "images_per_second_of_its_cores": of_cores,
        "cores_to_feed_an_accelerator": of_accelerator * seconds,
        "runs": runs,
    }
    print(_table(result))
    if arguments.output_file is not None:
        write_json(arguments.output_file, result)
    return 0


@torch.inference_mode()
def _forward_flops(model: Any, num_tokens: int) -> float:
    """Of an image. The kernel of the positions and the windows are part of it."""
    height, width = model.config.image_height_width
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, model.config.num_channels, height, width), coordinates=isotropic(num_tokens)[None])
    return counter.get_total_flops()


def _seconds_per_image(processor: Any, arguments: PlanArguments) -> float:
    """Of one core: decoding a file of the data set's size, and preparing it for the oracle, which needs all pixels."""
    torch.set_num_threads(1)
    names = list(image_files(arguments.images))[:64]
    with tempfile.TemporaryDirectory() as directory:
        pixels = round(1e6 * arguments.megapixels)
        files = [enlarge(one, Path(directory) / f"{i}.jpg", pixels) for i, one in enumerate(names)]
        contents = [Path(one).read_bytes() for one in files]
    taken = []
    for _ in range(4):  # the first warms up
        began = time.process_time()
        for content in contents:
            processor(processor.open_image(content), placement="grid", return_tensors="pt")
        taken.append((time.process_time() - began) / len(contents))
    return statistics.median(taken[1:])


def _table(result: dict[str, Any]) -> str:
    arguments = result["arguments"]
    lines = [
        f"{arguments['num_images']:,} images, {arguments['num_tokens']} tokens, {arguments['steps']} steps",
        "",
        "| | |",
        "|---|---:|",
        f"| operations per image | {result['gflops_per_image']:.0f} GFLOP |",
        f"| in all | {result['total_pflops']:.1f} PFLOP |",
        f"| read | {result['read_gb']:.0f} GB |",
        f"| written | {result['written_gb']:.1f} GB |",
        f"| decoding and preparing an image, one core | {result['decode_ms_per_image_and_core']:.1f} ms |",
        f"| one accelerator computes | {result['images_per_second_of_an_accelerator']:,.0f} images/s |",
        f"| {arguments['cores_per_accelerator']} cores decode | {result['images_per_second_of_its_cores']:,.0f} images/s |",
        f"| cores that would feed it | {result['cores_to_feed_an_accelerator']:.0f} |",
        "",
        "| accelerators | computing, minutes | decoding | reading | the limit |",
        "|---:|---:|---:|---:|---|",
    ]
    for run in result["runs"]:
        minutes = " | ".join(f"{one:.2g}" for one in run["minutes"].values())
        lines.append(f"| {run['num_accelerators']} | {minutes} | {run['limit']} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
