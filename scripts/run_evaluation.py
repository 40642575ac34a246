r"""Accuracy by tokens and placement beside baselines, on as many processes and machines as there are. The same as
`spot-hf evaluate`.

    accelerate launch scripts/run_evaluation.py --model user/spot-vit-base --dataset_name ILSVRC/imagenet-1k \
        --dataset_split validation --num_tokens 25 49 100 196 --output_dir runs/evaluation

Two processes on a CPU, 1,000 photographs, ViT-Ti/16, isotropic tokens beside the full grid: 37.1 % with 49 tokens, 88.5 % on
the full grid:

    torchrun --nproc_per_node 2 scripts/run_evaluation.py --model spot-vit-tiny --dataset_name DATA/nips2017 \
        --placement isotropic --baselines full_grid --output_dir runs/evaluation

All processes must see --output_dir. Killed at any time, the same command goes on. (Not called evaluate.py: Python
imports from a script's directory first, and would find it instead of the library of that name.)
"""

import sys

from spot_hf.cli import main


if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
