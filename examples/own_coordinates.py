"""Say yourself where the tokens sit: relative, in pixels, as a block of patches, and with windows of other sizes.

    python examples/own_coordinates.py [MODEL]

Coordinates are (x, y) relative to the original image: 0 and 1 are its edges. Resize and crop of the model do not matter.
"""

import sys

import numpy as np
import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification

import spot_hf  # noqa: F401 (makes SpotViT known to the Auto classes; elsewhere, trust_remote_code=True does)
from spot_hf.data.digits import load_digits


model_name = sys.argv[1] if len(sys.argv) > 1 else "runs/quickstart/spot-a"
model = AutoModelForImageClassification.from_pretrained(model_name).eval()
processor = AutoImageProcessor.from_pretrained(model_name)
image = load_digits()["test"][3]["image"]
width, height = image.size


def classify(**placed):
    inputs = processor(image, return_tensors="pt", **placed)
    with torch.no_grad():
        probabilities = model(**inputs).logits[0].softmax(-1)
    best = int(probabilities.argmax())
    return f"{model.config.id2label[best]} ({probabilities[best]:.2f})"


print("three tokens on a line:", classify(coordinates=[[0.3, 0.5], [0.5, 0.5], [0.7, 0.5]]))

points = [[12, 24], [24, 12], [24, 36], [36, 24]]  # pixels of the image, such as a detector's or a click's
print("four tokens at pixels:", classify(coordinates=processor.coordinates_from_pixels(points, (width, height))))

block = processor.block(center=(0.5, 0.5), rows=3, columns=3, image_size=(width, height))  # windows that touch
print("a block of 3 × 3 windows:", classify(coordinates=block))
print("the same, each twice as wide:", classify(coordinates=block, window_scales=2))
print("the middle one larger:", classify(coordinates=block, window_scales=np.where(np.arange(9) == 4, 3, 1)))

try:
    classify(coordinates=points)
except ValueError as error:
    print("pixels where coordinates belong:", error)
