"""What SpotViT's image processor does with torchvision. A script: see `test_image_processing_torchvision.py`.

    python tests/torchvision_shim.py tests/torchvision_processing.py DIRECTORY

DIRECTORY holds `cases.json`, saved processors and pictures; `results.safetensors` and `results.json` are written beside them.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers.models.auto.image_processing_auto import AutoImageProcessor


def origin(processor) -> list[str]:
    """Class, and the first part of its module: the package's, or the folder of remote code's."""
    return [type(processor).__name__, type(processor).__module__.partition(".")[0]]


def check_windows(processor, picture) -> None:
    """Of an image in any form, those of the pixels that the model would be given: one window of few is Pillow's to resize, and
    torchvision rounds 8-bit pixels otherwise, by a few steps of 2 / 255 at most."""
    from torchvision.transforms import InterpolationMode

    from spot_hf.windows import sample_windows

    array = np.array(picture.convert("RGB"))
    forms = [picture.convert("RGB"), picture.convert("L"), picture.convert("RGBA"), array, torch.from_numpy(array)]
    for form in forms:
        for options in ({"num_tokens": 1}, {"placement": "grid"}, {"num_tokens": 1, "resample": InterpolationMode.NEAREST}):
            pixels = processor(form, return_tensors="pt", **options)
            windows = processor(form, return_windows=True, return_tensors="pt", **options)["windows"]
            expected = sample_windows(pixels["pixel_values"], pixels["coordinates"], processor.patch_size)
            assert (windows - expected).abs().max() <= 8 * 2 / 255 / min(processor.image_std)


def main(directory: Path) -> None:
    cases = json.loads((directory / "cases.json").read_text())
    first = directory / next(iter(cases["recipes"]))
    loaded = {
        "remote": origin(AutoImageProcessor.from_pretrained(first, trust_remote_code=True)),
        "remote_pil": origin(AutoImageProcessor.from_pretrained(first, trust_remote_code=True, backend="pil")),
    }
    assert "spot_hf" not in sys.modules

    import spot_hf  # from here on its own classes are taken

    loaded["package"] = origin(AutoImageProcessor.from_pretrained(first))
    loaded["package_pil"] = origin(AutoImageProcessor.from_pretrained(first, backend="pil"))
    loaded["name"] = origin(spot_hf.SpotViTImageProcessor())

    pictures = [Image.open(directory / name) for name in cases["pictures"]]
    points = torch.tensor(cases["points"])
    results = {}
    for recipe in cases["recipes"]:
        processor = AutoImageProcessor.from_pretrained(directory / recipe)
        for i, picture in enumerate(pictures):
            features = processor(picture, coordinates=points, return_tensors="pt")
            results |= {f"{recipe}/{i}/{key}": tensor for key, tensor in features.items()}
            results[f"{recipe}/{i}/to_model_frame"] = processor.to_model_frame(points, picture.size)
            results[f"{recipe}/{i}/to_image_frame"] = processor.to_image_frame(points, picture.size)
    processor = AutoImageProcessor.from_pretrained(first)
    for name, arguments in cases["placements"].items():
        results[f"placement/{name}"] = processor(pictures, **arguments, return_tensors="pt")["coordinates"]
    batch = processor(pictures, return_tensors="pt")["pixel_values"]
    singly = torch.cat([processor(picture, return_tensors="pt")["pixel_values"] for picture in pictures])
    assert torch.equal(batch, singly)  # torchvision's backend groups images by size
    for picture in pictures:
        check_windows(processor, picture)
    processor.save_pretrained(directory / "saved_with_torchvision")
    save_file({key: tensor.contiguous() for key, tensor in results.items()}, directory / "results.safetensors")
    (directory / "results.json").write_text(json.dumps(loaded))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
