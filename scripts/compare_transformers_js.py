"""What transformers.js makes of photographs in Node, and `examples/transformers_js/spot_vit.mjs`, beside Python.

```
python scripts/compare_transformers_js.py --model spot-vit-tiny-onnx --images photos/ --output_file transformers_js.json
```

A second for ten photographs. The npm package is that of `make test-node`.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from spot_hf import SpotViTImageProcessorPil
from spot_hf.export import OnnxSpotViT


ROOT = Path(__file__).resolve().parents[1]


def in_node(model: str, files: list[str], num_tokens: int, node: Path) -> list[dict[str, dict[str, list[float]]]]:
    """Of each file, `pixel_values` and `logits` by each maker of pixels."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "node_modules").symlink_to(node.resolve() / "node_modules")
        page = ROOT / "src/spot_hf/demo/page"
        for path in (
            ROOT / "scripts/compare_transformers_js.mjs",
            ROOT / "examples/transformers_js/spot_vit.mjs",
            page / "placements.mjs",
            page / "preprocess.mjs",
        ):
            shutil.copy(path, folder)
        given = json.dumps({"directory": str(Path(model).resolve()), "files": files, "num_tokens": num_tokens})
        command = ["node", "compare_transformers_js.mjs"]
        done = subprocess.run(command, cwd=folder, input=given, stdout=subprocess.PIPE, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def compare(model: str, files: list[str], num_tokens: int, node: Path) -> dict[str, dict[str, float]]:
    """Differences by maker of pixels: pixels are of 255."""
    processor, reference = SpotViTImageProcessorPil.from_pretrained(model), OnnxSpotViT.from_pretrained(model)
    step = processor.rescale_factor / np.array(processor.image_std)[:, None, None]
    rows: dict[str, list[tuple[float, float, float, bool]]] = {}
    for file, answer in zip(files, in_node(model, files, num_tokens, node), strict=True):
        inputs = processor(file, num_tokens=num_tokens, placement="isotropic", return_tensors="pt")
        pixels, logits = inputs["pixel_values"][0].numpy(), reference(**inputs).logits[0].numpy()
        for name, found in answer.items():
            of_pixels = np.abs(np.reshape(found["pixel_values"], pixels.shape) - pixels) / step
            of_logits, same = np.abs(found["logits"] - logits).max(), np.argmax(found["logits"]) == logits.argmax()
            rows.setdefault(name, []).append((of_pixels.mean(), of_pixels.max(), of_logits, bool(same)))
    names = ("mean_pixel_difference", "max_pixel_difference", "max_logit_difference", "same_class")
    reduce: tuple[Callable[..., Any], ...] = (np.mean, np.max, np.max, np.mean)
    return {
        maker: {name: float(one(values)) for name, one, values in zip(names, reduce, zip(*of, strict=True), strict=True)}
        for maker, of in rows.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="A directory that `spot-hf export` wrote.")
    parser.add_argument("--images", required=True, nargs="+", help="Folders of photographs: a row each.")
    parser.add_argument("--num_tokens", type=int, default=25)
    parser.add_argument("--node", type=Path, default=Path(sys.prefix) / "node", help="Where `node_modules` is.")
    parser.add_argument("--output_file", type=Path)
    arguments = parser.parse_args()
    report = {}
    for folder in arguments.images:
        files = sorted(str(path.resolve()) for path in Path(folder).iterdir())
        differences = compare(arguments.model, files, arguments.num_tokens, arguments.node)
        report[Path(folder).name] = {"num_images": len(files), **differences}
    text = json.dumps(report, indent=2) + "\n"
    print(text, end="")
    if arguments.output_file is not None:
        arguments.output_file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
