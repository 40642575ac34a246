"""Speed and memory of SpotViT against the ordinary ViT.

    python scripts/benchmark.py --num_tokens 25 49 100 196 --output_file docs/results/benchmark_cpu.json

About 4 minutes on 2 CPU cores with the defaults (ViT-B/16 with random weights, batch 8). The same as `spot-hf benchmark`.
"""

import sys

from spot_hf.cli import main


if __name__ == "__main__":
    sys.exit(main(["benchmark", *sys.argv[1:]]))
