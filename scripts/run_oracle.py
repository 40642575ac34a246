r"""The oracle over a data set, on as many processes and machines as there are. The same as `spot-hf oracle`.

    accelerate launch scripts/run_oracle.py --model user/spot-vit-base --dataset_name ILSVRC/imagenet-1k \
        --dataset_split validation --num_tokens 25 49 --output_dir runs/oracle \
        --push_to_hub --hub_dataset_id user/spot-vit-base-coordinates

Two processes on a CPU, 200 photographs, 49 tokens, ViT-Ti/16: 35.0 to 84.0 % in 20 seconds:

    torchrun --nproc_per_node 2 scripts/run_oracle.py --model spot-vit-tiny --dataset_name DATA/nips2017 \
        --max_samples 200 --shard_size 50 --num_tokens 49 --output_dir runs/oracle

All processes must see --output_dir. Killed at any time, the same command goes on.
"""

import sys

from spot_hf.cli import main


if __name__ == "__main__":
    sys.exit(main(["oracle", *sys.argv[1:]]))
