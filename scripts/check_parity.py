"""A converted model against its source on a data set: both accuracies, and every image whose top-1 class differs.

    python scripts/check_parity.py --source_model MODELS/vit-tiny-patch16-224 --dataset_name DATA/nips2017

About 2 minutes on one CPU core (1,000 images, ViT-Ti/16): 88.5 % for both and no image that differs; with
`--source_model MODELS/deit-tiny-patch16-224`, 85.0 %. The source is any classifier of transformers that `spot-hf
convert` takes, in one folder or Hub id with its image processor; the data set is any that `load_dataset` reads, labelled with
the classes of the source. Each side uses its own image processor. Exit status 1 where a top-1 class differs.
"""

import sys
from dataclasses import dataclass, field

import torch
from tqdm import tqdm
from transformers import AutoModelForImageClassification, HfArgumentParser
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from spot_hf import ConversionError, convert_checkpoint
from spot_hf.data.source import DatasetSource, load_images


@dataclass(kw_only=True)
class ParityArguments(DatasetSource):
    source_model: str = field(metadata={"help": "A classifier of transformers: a Hub id or a directory."})
    dataset_name: str = field(metadata={"help": "A Hub id, or a directory that load_dataset reads."})
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the source's Hub id."})
    batch_size: int = field(default=50, metadata={"help": "Images per forward pass."})
    device: str = field(default="cpu", metadata={"help": "cpu or cuda."})


def main(argv: list[str] | None = None) -> int:
    (arguments,) = HfArgumentParser(ParityArguments, description=__doc__).parse_args_into_dataclasses(argv)
    try:
        report = convert_checkpoint(arguments.source_model, revision=arguments.revision)
        images = load_images(arguments.source())
        source = AutoModelForImageClassification.from_pretrained(arguments.source_model, revision=arguments.revision)
        processor = AutoImageProcessor.from_pretrained(arguments.source_model, revision=arguments.revision)
    except (ConversionError, OSError, ValueError) as error:
        print(f"check_parity: {error}", file=sys.stderr)
        return 2
    models = (source.eval().to(arguments.device), report.model.to(arguments.device))
    processors = (processor, report.image_processor)

    largest, differing, correct = 0.0, [], [0, 0]
    with tqdm(total=len(images), unit="image") as bar:
        for batch in images.iter(arguments.batch_size):
            logits = []
            for model, processor in zip(models, processors, strict=True):
                inputs = processor([image.convert("RGB") for image in batch["image"]], return_tensors="pt")
                with torch.inference_mode():
                    logits.append(model(**inputs.to(arguments.device)).logits.cpu())
            classes = [one.argmax(dim=-1) for one in logits]
            largest = max(largest, (logits[0] - logits[1]).abs().max().item())
            differing += [bar.n + i for i in (classes[0] != classes[1]).nonzero().flatten().tolist()]
            for side in (0, 1):
                correct[side] += int((classes[side] == torch.tensor(batch["label"])).sum())
            bar.update(len(batch["label"]))
            bar.set_postfix(source=f"{correct[0] / bar.n:.1%}", spot=f"{correct[1] / bar.n:.1%}")

    print(f"images              {len(images)}")
    print(f"top-1 of the source {correct[0] / len(images):.2%}")
    print(f"top-1 converted     {correct[1] / len(images):.2%}")
    print(f"top-1 differs on    {len(differing)} images{': ' + ', '.join(map(str, differing[:10])) if differing else ''}")
    print(f"largest difference  {largest:.1e} (logits)")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
