"""Boxes as saliency: tokens where a detector, or a person, has drawn a box.

    python examples/boxes.py [MODEL]

From the command line: `spot-hf classify ... --boxes_csv boxes.csv --num_tokens 9`.
"""

import sys

import numpy as np
from transformers import pipeline

import spot_hf
from spot_hf.data.digits import load_digits


model = sys.argv[1] if len(sys.argv) > 1 else "runs/quickstart/spot-a"
classifier = pipeline("spot-image-classification", model=model, pipeline_class=spot_hf.SpotImageClassificationPipeline)
digits = load_digits()["test"].select(range(50))


def box_around_ink(image):
    """[x_min, y_min, x_max, y_max] in pixels of the original image."""
    rows, columns = np.nonzero(np.asarray(image.convert("L")) > 100)
    return [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]


images, labels = digits["image"][:], digits["label"][:]
boxes = [box_around_ink(image) for image in images]  # one per image; an image may also have several
for name, placed in {
    "uniform": {"placement": "uniform"},
    "in the box": {"boxes": boxes},
    "outside of it": {"boxes": boxes, "placement": "inverse_salient"},
}.items():
    answers = classifier(images, num_tokens=9, top_k=1, batch_size=50, **placed)
    correct = sum(answer[0]["label"] == str(label) for answer, label in zip(answers, labels, strict=True))
    print(f"{name}: {correct} of 50")
