"""Embeddings for retrieval: the images that look most like one, by features of a few tokens.

    python examples/retrieval.py [MODEL]

Prints how often the nearest of 400 images shows the same digit, by the number of tokens.
"""

import sys

import torch
from transformers import AutoImageProcessor, AutoModel

import spot_hf  # noqa: F401
from spot_hf.data.digits import load_digits


model_name = sys.argv[1] if len(sys.argv) > 1 else "runs/quickstart/spot-a"
encoder = AutoModel.from_pretrained(model_name).eval()  # without its classifier
processor = AutoImageProcessor.from_pretrained(model_name)
digits = load_digits()
gallery, queries = digits["train"].select(range(400)), digits["test"].select(range(100))


@torch.inference_mode()
def embed(images, **placed):
    inputs = processor([image.convert("RGB") for image in images], return_tensors="pt", **placed)
    features = encoder(**inputs).pooler_output  # (num_images, hidden_size)
    return torch.nn.functional.normalize(features, dim=-1)


labels, wanted = torch.tensor(gallery["label"][:]), torch.tensor(queries["label"][:])
for name, placed in {"all": {}, "18": {"num_tokens": 18}, "9": {"num_tokens": 9}}.items():
    similarity = embed(queries["image"], **placed) @ embed(gallery["image"], **placed).T
    nearest = labels[similarity.argmax(-1)]
    print(f"{name} tokens: {100 * (nearest == wanted).float().mean():.0f} % of the nearest images show the same digit")
