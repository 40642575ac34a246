"""Ways to place tokens for semantic segmentation without labels, beyond those of `spot-hf evaluate`, each at the same number of
tokens as the image shrunk to as many cells:

- `prior`: foveated by where the model is unsure on the mean over training images: one map for all images, which costs nothing;
- `two looks`: foveated by where the model is unsure about this image, after a look with a few tokens that cover it; the first
  look's tokens are counted.

    python scripts/dense_placements.py --model runs/spot-vit-tiny-camvid --dataset_name DATA/camvid --split validation \
        --output_file dense_placements.json

How peaked the foveation is (`floor`: what is added to the uncertainty, in multiples of its mean) was chosen on training images,
with `--split train`. About 5 minutes on a CPU core.
"""

import argparse
import json
import logging
from collections.abc import Callable

import datasets
import numpy as np
import torch

from spot_hf import SpotViTForSemanticSegmentation, SpotViTImageProcessor
from spot_hf.data.masks import MaskClasses, with_encoded_masks
from spot_hf.data.source import DatasetSource, load_images
from spot_hf.evaluation.baselines import shrink, shrunken_size
from spot_hf.evaluation.confusion import bootstrap, confusions_of_logits, mean_iou_of
from spot_hf.foveation import foveate
from spot_hf.placement import place_images


CELLS = (18, 24)  # of the maps of uncertainty
FIRST_LOOK = 41  # tokens
BATCH = 16

Placed = tuple[torch.Tensor, torch.Tensor | None]


def load(name: str, split: str, every: int, processor, classes: MaskClasses) -> tuple[torch.Tensor, torch.Tensor, list]:
    """Pixel values, masks over what the model sees, and the images themselves, of every so many images of a split."""
    images = load_images(DatasetSource(dataset_name=name, dataset_split=split))
    images = with_encoded_masks(images, "label")
    chosen = images.select(range(0, len(images), every))
    pixels, masks, pictures = [], [], []
    for i, row in enumerate(datasets.Dataset.__iter__(chosen)):
        image = row["image"].convert("RGB")
        mask = classes.read(row["label"], image.size, f"{split}/{i}")
        inputs = processor(image, segmentation_maps=mask, placement="grid", return_tensors="pt")
        pixels.append(inputs["pixel_values"])
        masks.append(inputs["labels"])
        pictures.append(image)
    return torch.cat(pixels), torch.cat(masks), pictures


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--dataset_name", required=True)
    parser.add_argument("--split", default="validation", help="Where it is measured.")
    parser.add_argument("--num_tokens", type=int, nargs="+", default=[82, 165, 330])
    parser.add_argument("--floor", type=float, nargs="+", default=[2.0])
    parser.add_argument("--output_file")
    arguments = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)

    model = SpotViTForSemanticSegmentation.from_pretrained(arguments.model).eval()
    processor = SpotViTImageProcessor.from_pretrained(arguments.model)
    config = model.config
    (height, width), patch_size = config.image_height_width, config.patch_size
    classes = MaskClasses(config.num_labels, config.semantic_loss_ignore_index)

    def uncertainty(pixel_values: torch.Tensor) -> torch.Tensor:
        """Entropy of the classes after a first look, averaged over cells, `(batch_size, *CELLS)`."""
        coordinates, scales = place_images("isotropic", FIRST_LOOK, pixel_values, patch_size)
        shares = model(pixel_values, coordinates, window_scales=scales).logits.softmax(1)
        entropy = -(shares * shares.clamp_min(1e-9).log()).sum(1, keepdim=True)
        return torch.nn.functional.adaptive_avg_pool2d(entropy, CELLS)[:, 0]

    def peaked(uncertain: torch.Tensor, floor: float, num_tokens: int) -> Placed:
        density = floor + uncertain / uncertain.mean((1, 2), keepdim=True)
        return foveate(density, num_tokens, height, width, patch_size)

    def measure(place: Callable[[torch.Tensor], Placed]) -> np.ndarray:
        found = []
        for start in range(0, len(pixels), BATCH):
            seen = pixels[start : start + BATCH]
            coordinates, scales = place(seen)
            logits = model(seen, coordinates, window_scales=scales).logits
            found.append(confusions_of_logits(logits, masks[start : start + BATCH], classes.ignore_index))
        return torch.cat(found).numpy()

    pixels, _, _ = load(arguments.dataset_name, "train", 6, processor, classes)
    prior = torch.cat([uncertainty(pixels[start : start + BATCH]) for start in range(0, len(pixels), BATCH)]).mean(0)[None]
    every = 6 if arguments.split == "train" else 1
    pixels, masks, pictures = load(arguments.dataset_name, arguments.split, every, processor, classes)
    rows = []
    for num_tokens in arguments.num_tokens:
        size = shrunken_size(num_tokens, height, width, patch_size)
        small_model, small_processor = shrink(model, *size), processor.resized(*size)
        small = [
            small_model(
                small_processor(pictures[start : start + BATCH], placement="grid", return_tensors="pt")["pixel_values"]
            )
            for start in range(0, len(pictures), BATCH)
        ]
        shrunken = torch.cat(
            [
                confusions_of_logits(one.logits, masks[BATCH * i : BATCH * (i + 1)], classes.ignore_index)
                for i, one in enumerate(small)
            ]
        ).numpy()
        measured = {
            "shrunken image": shrunken,
            "isotropic, cover": measure(lambda seen, n=num_tokens: place_images("isotropic", n, seen, patch_size)),
        }
        for floor in arguments.floor:
            measured[f"prior, floor {floor:g}"] = measure(lambda seen, n=num_tokens, f=floor: peaked(prior, f, n))
            if num_tokens > 2 * FIRST_LOOK:
                name = f"two looks, floor {floor:g}"
                measured[name] = measure(lambda seen, n=num_tokens, f=floor: peaked(uncertainty(seen), f, n - FIRST_LOOK))
        for name, matrices in measured.items():
            difference = bootstrap(matrices, shrunken)
            row = {"num_tokens": num_tokens, "placement": name, "mean_iou": float(mean_iou_of(matrices.sum(0)))}
            rows.append({**row, "difference_to_shrunken": vars(difference)})
            print(f"{num_tokens:4d} tokens  {name:24s} mean IoU {row['mean_iou']:.1f} %, to the shrunken image {difference}")
    if arguments.output_file:
        with open(arguments.output_file, "w", encoding="utf-8") as file:
            json.dump({"split": arguments.split, "num_images": len(masks), "results": rows}, file, indent=2)


if __name__ == "__main__":
    main()
