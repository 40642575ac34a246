"""Pre-trains a SpotViT by predicting masked windows (SPoT-MAE), on every process that is started:

    torchrun --nproc_per_node 8 scripts/pretrain.py --dataset_name ILSVRC/imagenet-1k --output_dir runs/spot-mae-base
    accelerate launch scripts/pretrain.py --model spot-vit-tiny --dataset_name imagenette --output_dir runs/pretrain

The options are those of `spot-hf pretrain`. After a run was killed, the same command resumes it from the last checkpoint. A
short run on two CPU cores, with its command, time and loss: docs/results/pretraining.md.
"""

import sys

from spot_hf.cli import main


if __name__ == "__main__":  # workers that decode import this file
    sys.exit(main(["pretrain", *sys.argv[1:]]))
