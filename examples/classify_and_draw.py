"""Classify images with few tokens, and look at what the model saw.

    python examples/classify_and_draw.py [MODEL]

MODEL is a SpotViT: a directory or a Hub id. By default the one that `make quickstart` has trained on digits. Prints the three
likeliest classes of an image under several placements, and writes `runs/examples/*.png`.
"""

import sys
from pathlib import Path

from transformers import pipeline

import spot_hf
from spot_hf.data.digits import load_digits


model = sys.argv[1] if len(sys.argv) > 1 else "runs/quickstart/spot-a"
output = Path("runs/examples")
output.mkdir(parents=True, exist_ok=True)

image = load_digits()["test"][3]["image"]
classifier = pipeline("spot-image-classification", model=model, pipeline_class=spot_hf.SpotImageClassificationPipeline)
processor = classifier.image_processor

print("all tokens:", [answer["label"] for answer in classifier(image, top_k=3)])
for placement in ("isotropic", "center", "edge"):
    answers = classifier(image, num_tokens=9, placement=placement, top_k=3)
    print(f"9 tokens, {placement}:", {answer["label"]: round(answer["score"], 3) for answer in answers})

    inputs = processor(image, num_tokens=9, placement=placement, return_tensors="pt")
    processor.draw(image, inputs).save(output / f"{placement}.png")  # what it did not look at is dimmed
print("pictures written to", output)
