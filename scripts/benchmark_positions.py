r"""What each kind of position costs: the same encoder with a table, rotary or relative positions, and transformers' DINOv3.

    python scripts/benchmark_positions.py --output_file docs/results/positions.json

About 5 minutes on 2 CPU cores. Random weights. Every round runs each model once, one after the other; reported are medians
over the rounds, and of the rounds' own ratios. Expected: rotary within 1.05 of the table, and within 1.05 of `DINOv3ViTModel`
on the full grid.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from tqdm import tqdm
from transformers import DINOv3ViTConfig, DINOv3ViTModel, HfArgumentParser

from spot_hf import SpotViTConfig, SpotViTModel
from spot_hf.jobs.process import synchronize
from spot_hf.jobs.versions import device_name
from spot_hf.placement import isotropic


SIZES: dict[str, dict[str, Any]] = {
    "small": {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536},
    "base": {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
}
KINDS: dict[str, dict[str, Any]] = {
    "table": {},
    "rotary": {"use_position_table": False, "rope_theta": 100.0},
    "relative": {"use_position_table": False, "use_relative_position_bias": True},
}
# As DINOv3 has them; so has its reference, or the ratio would compare other things too.
COMMON: dict[str, Any] = {"num_register_tokens": 4, "use_layer_scale": True, "layer_norm_eps": 1e-5}


@dataclass(kw_only=True)
class PositionBenchmarkArguments:
    size: str = field(default="base", metadata={"help": f"Of the encoder: {' or '.join(SIZES)}, with patches of 16 pixels."})
    num_tokens: list[int] = field(default_factory=lambda: [25, 196], metadata={"help": "Token counts, placed isotropically."})
    batch_size: list[int] = field(default_factory=lambda: [1, 8], metadata={"help": "Images per forward pass."})
    repeats: int = field(default=15, metadata={"help": "Rounds; each runs every model once."})
    num_threads: int = field(default=2, metadata={"help": "Threads of torch on a CPU."})
    device: str = field(default="cpu", metadata={"help": "cpu or cuda."})
    output_file: str | None = field(default=None, metadata={"help": "Also write the figures to this JSON file."})


def rounds(runs: dict[str, Callable[[], Any]], repeats: int, device: str) -> dict[str, list[float]]:
    """Milliseconds of each run in each round, after two rounds of warm-up; every other round backwards, as the first to run
    finds other caches than the last."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(repeats + 2):
        for name, run in list(runs.items())[:: 1 if round_ % 2 else -1]:
            synchronize(device)
            start = time.perf_counter()
            run()
            synchronize(device)
            if round_ >= 2:
                times[name].append(1000 * (time.perf_counter() - start))
    return times


def ratio(times: dict[str, list[float]], name: str, to: str) -> float:
    return statistics.median(one / other for one, other in zip(times[name], times[to], strict=True))


@torch.inference_mode()
def main() -> int:
    (arguments,) = HfArgumentParser(PositionBenchmarkArguments, description=__doc__).parse_args_into_dataclasses()
    if arguments.size not in SIZES:
        print(f"error: `size` must be one of {', '.join(SIZES)}; got {arguments.size!r}", file=sys.stderr)
        return 2
    torch.set_num_threads(arguments.num_threads)
    device, shape = arguments.device, SIZES[arguments.size]
    models = {
        kind: SpotViTModel(SpotViTConfig(**shape, **COMMON, **options)).to(device).eval() for kind, options in KINDS.items()
    }
    common = {name: COMMON[name] for name in ("num_register_tokens", "layer_norm_eps")}
    dinov3 = DINOv3ViTModel(DINOv3ViTConfig(**shape, **common, num_hidden_layers=12, key_bias=True)).to(device).eval()
    rows = []
    settings = [(batch, count) for batch in arguments.batch_size for count in (*arguments.num_tokens, None)]
    for batch_size, num_tokens in tqdm(settings, unit="setting"):
        images = torch.randn(batch_size, 3, 224, 224, device=device)
        coordinates = None if num_tokens is None else isotropic(num_tokens)[None].to(device) * 0.997
        runs: dict[str, Callable[[], Any]] = {kind: partial(model, images, coordinates) for kind, model in models.items()}
        if num_tokens is None:
            runs["DINOv3ViTModel"] = partial(dinov3, images)
        times = rounds(runs, arguments.repeats, device)
        rows.append(
            {
                "batch_size": batch_size,
                "num_tokens": "full grid" if num_tokens is None else num_tokens,
                "milliseconds": {name: round(statistics.median(found), 2) for name, found in times.items()},
                "to_table": {name: round(ratio(times, name, "table"), 3) for name in ("rotary", "relative")},
                **({"to_dinov3": round(ratio(times, "rotary", "DINOv3ViTModel"), 3)} if num_tokens is None else {}),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    if arguments.output_file is not None:
        versions = {"torch": torch.__version__, "transformers": transformers.__version__, "device": device_name(device)}
        text = json.dumps({"arguments": {**asdict(arguments), "output_file": None}, **versions, "rows": rows}, indent=2)
        Path(arguments.output_file).write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
