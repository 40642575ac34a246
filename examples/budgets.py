"""Let a model decide how many tokens each image needs.

    python examples/budgets.py [MODEL]

MODEL is a SpotViT that was trained for few tokens: a directory or a Hub id. By default the one that `make quickstart` has
fine-tuned on digits. Prints accuracy, and tokens per image, of fixed budgets and of looks until the model is so sure.
"""

import sys

from transformers import pipeline

import spot_hf
from spot_hf.data.digits import load_digits


model = sys.argv[1] if len(sys.argv) > 1 else "runs/quickstart/spot-a-few"
digits = load_digits()["test"].select(range(100))
images, labels = [row["image"] for row in digits], [str(row["label"]) for row in digits]
classifier = pipeline("spot-image-classification", model=model, pipeline_class=spot_hf.SpotImageClassificationPipeline)


def measure(name, **budget):
    answers = classifier(images, batch_size=20, top_k=1, return_coordinates=True, **budget)
    right = [answer["predictions"][0]["label"] == label for answer, label in zip(answers, labels, strict=True)]
    tokens = [len(answer["coordinates"]) for answer in answers]  # of all looks
    print(f"{name:<20} {100 * sum(right) / len(right):5.1f} %  {sum(tokens) / len(tokens):5.1f} tokens per image")


for count in (4, 9, 36):
    measure(f"{count} tokens", num_tokens=count, window_scales="cover")
for confidence in (0.6, 0.8, 0.95):
    measure(f"until {confidence:g} sure", num_tokens=[4, 9, 36], confidence=confidence)
