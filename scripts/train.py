"""Fine-tunes a SpotViT for few tokens, on every process that is started:

    torchrun --nproc_per_node 8 scripts/train.py --config scripts/recipes/vit-base-in21k.yaml --output_dir runs/spot-vit-base
    accelerate launch scripts/train.py --model spot-vit-tiny --dataset_name imagenette --output_dir runs/train
    ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 scripts/train.py ...    # on a CPU

The options are those of `spot-hf train`. After a run was killed, the same command resumes it from the last checkpoint.
"""

import sys

from spot_hf.cli import main


if __name__ == "__main__":  # workers that decode import this file
    sys.exit(main(["train", *sys.argv[1:]]))
