"""Scaled decoding, and windows that are cut out of the image itself, beside decoding and resizing whole images.

    python scripts/compare_decoding.py --model spot-vit-tiny --dataset_name DATA/nips2017 --output_file decoding.json

About 10 minutes on 2 CPU cores with ViT-Ti and 1,000 photographs. Each is also enlarged to 12 megapixels, by the rule of
`spot-hf benchmark --end_to_end`: there, scaled decoding reads an eighth of the width and height. Top-1 at the tokens of the
isotropic lattice and on the full grid, how often the likeliest class is another one, and how far logits are apart.
"""

import logging
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import HfArgumentParser

from spot_hf.data.encoded import encoded, encoded_image
from spot_hf.data.labels import LabelledSource, match_labels
from spot_hf.data.source import load_images
from spot_hf.evaluation.end_to_end import enlarge
from spot_hf.evaluation.intervals import Difference
from spot_hf.hub.loading import open_model
from spot_hf.input_checks import DECODE
from spot_hf.jobs.files import write_json


@dataclass(kw_only=True)
class CompareArguments(LabelledSource):
    model: str = field(metadata={"help": "A SpotViT classifier: a directory or a Hub id."})
    dataset_name: str = field(metadata={"help": "A Hub id, or a directory that load_dataset reads: JPEGs."})
    num_tokens: list[int] = field(default_factory=lambda: [25, 49], metadata={"help": "Tokens per image."})
    output_file: str | None = field(default=None, metadata={"help": "Also write the figures to this JSON file."})


@dataclass(frozen=True)
class Way:
    """Of reading an image."""

    num_tokens: int | None  # all cells of the grid
    decode: str
    return_windows: bool = False

    @property
    def name(self) -> str:
        return f"{self.num_tokens or 'full grid'}, {self.decode}{', windows' if self.return_windows else ''}"


def _ways(num_tokens: list[int]) -> list[Way]:
    few = [Way(count, decode, windows) for count in num_tokens for decode in DECODE for windows in (False, True)]
    return few + [Way(None, decode) for decode in DECODE]


@torch.inference_mode()
def main() -> int:
    (arguments,) = HfArgumentParser(CompareArguments, description=__doc__).parse_args_into_dataclasses()
    logging.disable(logging.INFO)
    source = open_model(arguments.model)
    model: Any = source.load()
    processor = source.load_image_processor()
    images: Any = load_images(arguments.source())
    labels = match_labels(images.features["label"], model.config, arguments)
    logits: dict[tuple[str, Way], list[np.ndarray]] = {}
    right: list[int] = []
    for kind, content, label in tqdm(_files(images), total=2 * len(images), unit="image"):
        if kind == "as given":
            number = labels(label)
            right.append(-1 if number is None else number)  # none of the model's classes: never right
        decoded = {decode: processor.open_image(content, decode=decode) for decode in DECODE}
        for way in _ways(arguments.num_tokens):
            placed = {"placement": "grid"} if way.num_tokens is None else {"num_tokens": way.num_tokens}
            inputs = processor(decoded[way.decode], return_windows=way.return_windows, return_tensors="pt", **placed)
            logits.setdefault((kind, way), []).append(model(**inputs).logits[0].double().numpy())
    rows = [_row(kind, way, logits, np.array(right)) for kind, way in logits]
    result = {"arguments": {**asdict(arguments), "output_file": None}, "num_images": len(right), "rows": rows}
    print(_table(rows))
    if arguments.output_file is not None:
        write_json(arguments.output_file, result)
    return 0


def _files(images: Any) -> Iterator[tuple[str, bytes, Any]]:
    """Each image as it is stored, and enlarged: what it is, its file's content, its label."""
    with tempfile.TemporaryDirectory() as directory:
        for index, row in enumerate(encoded(images)):
            image = encoded_image(row, index, str(images.split))
            yield "as given", image.content, image.label
            given, large = Path(directory) / "given", Path(directory) / "large.jpg"
            given.write_bytes(image.content)
            yield "12 megapixels", Path(enlarge(str(given), large)).read_bytes(), image.label


def _row(kind: str, way: Way, logits: dict[tuple[str, Way], list[np.ndarray]], right: np.ndarray) -> dict[str, Any]:
    """Beside decoding the same file exactly and resizing all of it, with as many tokens."""
    found, exact = (np.stack(logits[kind, one]) for one in (way, Way(way.num_tokens, "exact")))
    top, top_exact = found.argmax(-1), exact.argmax(-1)
    difference = np.abs(found - exact).max(-1)
    return {
        "files": kind,
        "way": way.name,
        "top_1": 100 * float((top == right).mean()),
        "to_exact": asdict(Difference.of(top_exact == right, top == right)),
        "same_class": 100 * float((top == top_exact).mean()),
        "logits_median": float(np.median(difference)),
        "logits_max": float(difference.max()),
    }


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| files | tokens, decoding | top-1, % | to exact, points (95 %, paired) | same class, % | logits: median | maximum |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        one = row["to_exact"]
        change = f"{one['value']:+.1f} ({one['low']:+.1f} to {one['high']:+.1f})"
        lines.append(
            f"| {row['files']} | {row['way']} | {row['top_1']:.1f} | {change} | {row['same_class']:.1f} | "
            f"{row['logits_median']:.2g} | {row['logits_max']:.2g} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
