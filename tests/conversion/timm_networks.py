"""Converts timm's convolutional networks, and compares them with timm. A script: see `test_conversion_cnn_timm.py`.

python tests/torchvision_shim.py tests/conversion/timm_networks.py OUTPUT_DIR
"""

import json
import sys
from pathlib import Path

import timm
import torch
from random_weights import randomise
from safetensors.torch import save_file
from timm.models import save_for_hf
from transformers import AutoModelForImageClassification, TimmWrapperConfig, TimmWrapperForImageClassification

from spot_hf import ConversionError, convert_checkpoint, wrap_network
from spot_hf.placement import grid


SAME = 1e-5  # the same operations
LABELS = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu"]
NETWORKS = ("tf_efficientnet_lite0", "resnet18", "convnext_atto", "mobilenetv3_small_050", "regnetx_002")
# Architecture and arguments, and what the refusal says.
REFUSED = {
    "stride": ("resnet10t", {"output_stride": 16}, "a SpotCNN needs a network of stride 32, with 2 × 3 cells"),
    "windows": ("swin_tiny_patch4_window7_224", {"embed_dim": 24, "depths": (1, 1, 1, 1)}, "a SpotCNN needs a network"),
    "unknown": ("resnet1", {}, "resnet1"),
}


@torch.no_grad()
def main(output_dir: str) -> None:
    directory = Path(output_dir)
    pixel_values = torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(0))
    for number, name in enumerate(NETWORKS):
        network = randomise(timm.create_model(name, num_classes=len(LABELS)), seed=number)
        expected = network(pixel_values)
        assert expected.std() > 1e-2, name
        save_for_hf(network, directory / name, safe_serialization=True)
        source = directory / name
        config = json.loads((source / "config.json").read_text()) | {"label_names": LABELS}
        (source / "config.json").write_text(json.dumps(config))
        report = convert_checkpoint(str(source), directory / f"spot-{name}")
        assert len(report.used) == len(network.state_dict()) and not report.skipped and not report.missing, name
        converted = AutoModelForImageClassification.from_pretrained(directory / f"spot-{name}")
        converted.save_pretrained(directory / "again")
        again = AutoModelForImageClassification.from_pretrained(directory / "again")
        scale = max(1, expected.abs().max())
        for model in (report.model, converted, again):
            for coordinates in (None, grid(96, 64, 32)[None]):
                assert (model(pixel_values, coordinates=coordinates).logits - expected).abs().max() <= SAME * scale, name
            assert list(model.config.id2label.values()) == LABELS

    # As transformers' wrapper saves it, and in memory.
    wrapper = TimmWrapperForImageClassification(TimmWrapperConfig(architecture="resnet18", num_labels=7))
    randomise(wrapper)
    wrapper.save_pretrained(directory / "wrapped")
    expected = wrapper(pixel_values).logits
    for model in (wrap_network(wrapper), convert_checkpoint(str(directory / "wrapped")).model):
        assert (model(pixel_values).logits - expected).abs().max() <= SAME * max(1, expected.abs().max())

    # Weights alone, under an architecture's name.
    network = randomise(timm.create_model("tf_efficientnet_lite0", num_classes=7))
    save_file(network.state_dict(), directory / "weights.safetensors")
    report = convert_checkpoint(str(directory / "weights.safetensors"), architecture="tf_efficientnet_lite0")
    expected = network(pixel_values)
    assert (report.model(pixel_values).logits - expected).abs().max() <= SAME * max(1, expected.abs().max())
    assert tuple(report.image_processor.image_mean) == (0.5, 0.5, 0.5) and report.image_processor.size["shortest_edge"] == 256
    for architecture, kind in (("resnet18", ConversionError), ("none_such", ValueError)):
        try:
            convert_checkpoint(str(directory / "weights.safetensors"), directory / "nothing", architecture=architecture)
        except kind as error:
            assert "\n" not in str(error), error
        else:
            raise AssertionError(architecture)

    for architecture, arguments, message in REFUSED.values():
        source = directory / "refused"
        source.mkdir(exist_ok=True)
        config = {"architecture": architecture, "num_classes": 7, "model_args": arguments, "label_names": LABELS}
        (source / "config.json").write_text(json.dumps(config))
        save_file({"fc.weight": torch.zeros(7, 8)}, source / "model.safetensors")
        try:
            convert_checkpoint(str(source), directory / "nothing")
        except ConversionError as error:
            assert message in str(error) and "\n" not in str(error), error
        else:
            raise AssertionError(architecture)
    assert not (directory / "nothing").exists()


if __name__ == "__main__":
    main(*sys.argv[1:])
