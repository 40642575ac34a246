r"""Scenes in which an object has to be found: images of a data set, small, over cut-outs of other pictures.

    python scripts/make_scenes.py --dataset_name DATA/imagenette160 --backgrounds DATA/camvid \
        --output_dir runs/imagenette-scenes

About a minute for 13,388 images on a CPU; 320 MB. Training scenes have training images and backgrounds, validation scenes
those of validation. The box of each image is the column `box`: `--saliency_column_name box`.
"""

import logging
import sys
from dataclasses import dataclass, field

from transformers import HfArgumentParser

from spot_hf.data.scenes import SceneRule, make_scenes
from spot_hf.data.source import DatasetSource, load_images
from spot_hf.jobs.files import replaced_directory


@dataclass(kw_only=True)
class SceneArguments(DatasetSource):
    backgrounds: str = field(metadata={"help": "A data set of pictures, with the column image: a Hub id or a directory."})
    split: list[str] = field(
        default_factory=lambda: ["train", "validation"], metadata={"help": "Splits to make, which both data sets have."}
    )
    size: int = field(default=224, metadata={"help": "Of the scenes, in pixels."})
    smallest: float = field(default=1 / 9, metadata={"help": "Smallest share of a scene's area that an image gets."})
    largest: float = field(default=1 / 4, metadata={"help": "Largest share."})
    seed: int = field(default=0, metadata={"help": "With an image's id, decides its scene."})
    output_dir: str = field(metadata={"help": "Where a Parquet file per split is written."})


def main() -> int:
    (arguments,) = HfArgumentParser(SceneArguments).parse_args_into_dataclasses()
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    rule = SceneRule(arguments.size, arguments.smallest, arguments.largest, arguments.seed)
    pictures = DatasetSource(dataset_name=arguments.backgrounds, label_column_name=None)
    with replaced_directory(arguments.output_dir, False, inputs=[arguments.dataset_name, arguments.backgrounds]) as directory:
        for split in arguments.split:
            backgrounds = load_images(pictures.source(dataset_split=split))
            scenes = make_scenes(load_images(arguments.source(dataset_split=split)), backgrounds, rule)
            scenes.to_parquet(directory / f"{split}.parquet")
            logging.info("%s: %d scenes", split, len(scenes))
    logging.info("written to %s", arguments.output_dir)
    return 0


if __name__ == "__main__":
    sys.exit(main())
