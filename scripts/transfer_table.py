"""What the positions that one model's oracle finds are worth to another model, both ways, at several token counts:

    python scripts/transfer_table.py --model runs/spot-vit-tiny-imagenette runs/spot-deit-tiny-imagenette \
        --dataset_name ../shared/data/imagenette160 --dataset_split validation --among_labels --num_tokens 16 25 49 \
        --steps 10 --learning_rate 1e-2 --output_dir runs/transfer

About 10 minutes for 494 images on 2 CPU cores. The objective is the label: a ceiling of the model that searches; that another
model gains from it says how much of the gain is the image's. Runs that are there already are not repeated.
"""

import json
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser

from spot_hf.cli import DatasetArguments
from spot_hf.evaluation.transfer import evaluate_transfer
from spot_hf.jobs.files import write_atomically
from spot_hf.jobs.versions import public_name
from spot_hf.oracle.arguments import OracleRunArguments
from spot_hf.oracle.run import run_oracle


@dataclass(kw_only=True)
class TransferTableArguments(DatasetArguments):
    model: list[str] = field(metadata={"help": "Two SpotViT classifiers that were trained apart."})
    output_dir: str = field(metadata={"help": "Where coordinates and tables are written."})
    num_tokens: list[int] = field(default_factory=lambda: [16, 25, 49], metadata={"help": "Token counts."})
    steps: int = field(default=10, metadata={"help": "Of the oracle."})
    learning_rate: float = field(default=1e-2, metadata={"help": "Of the oracle, in units of the image's size."})
    among_labels: bool = field(default=False, metadata={"help": "Among the classes that occur in the split only."})


def main() -> None:
    (arguments,) = HfArgumentParser(TransferTableArguments).parse_args_into_dataclasses()
    if len(arguments.model) != 2:
        sys.exit(f"transfer_table.py: error: --model must be two models; got {len(arguments.model)}")
    directory = Path(arguments.output_dir)
    results = [
        measure(arguments, directory, finder, user, num_tokens)
        for finder, user in (arguments.model, reversed(arguments.model))
        for num_tokens in arguments.num_tokens
    ]
    with write_atomically(directory / "transfer_table.json") as file:
        file.write((json.dumps(results, indent=2) + "\n").encode())
    text = "\n".join([*table(arguments, results), "", "```", shlex.join(["python", *sys.argv]), "```", ""])
    with write_atomically(directory / "transfer_table.md") as file:
        file.write(text.encode())
    print(f"\n{text}\nwritten to {directory}: transfer_table.md, transfer_table.json")


def measure(arguments: TransferTableArguments, directory: Path, finder: str, user: str, num_tokens: int) -> dict[str, Any]:
    """Searches with one model, and classifies with it and with the other at what it found."""
    coordinates = directory / public_name(finder) / f"n{num_tokens}"
    names = ("dataset_config_name", "dataset_split", "image_column_name", "label_column_name", "among_labels")
    images: dict[str, Any] = {name: getattr(arguments, name) for name in names}
    search = OracleRunArguments(
        model=finder,
        dataset_name=arguments.dataset_name,
        max_samples=arguments.max_samples,
        num_tokens=[num_tokens],
        steps=arguments.steps,
        learning_rate=arguments.learning_rate,
        **images,
    )
    run_oracle(search, coordinates, command=shlex.join(["python", *sys.argv]))
    found: dict[str, Any] = {"finder": public_name(finder), "user": public_name(user), "num_tokens": num_tokens}
    for role, model in (("own", finder), ("transfer", user)):
        found[role] = evaluate_transfer(
            model,
            str(coordinates),
            arguments.dataset_name,
            **images,
            say=lambda _: None,
        )
    return found


def table(arguments: TransferTableArguments, results: list[dict[str, Any]]) -> list[str]:
    """Markdown: A searches, B looks where A found."""
    images = results[0]["own"]["num_images"]
    among = ", among the classes that occur" if arguments.among_labels else ""
    names = [
        "A", "tokens", "A before → after", "A snapped to grid", "B", "B before → on A's positions", "gain of B",
        "B on them snapped", "B with another image's moves", "B, own against another's moves",
    ]  # fmt: skip
    lines = [
        f"`{public_name(arguments.dataset_name)}`, {images} images{among}; isotropic start, label objective, "
        f"{arguments.steps} steps of AdamW at {arguments.learning_rate:g}. Top-1 in percent, differences in points with "
        "paired 95 % intervals (bootstrap over images).",
        "",
        f"| {' | '.join(names)} |",
        "|---|---:|---:|---:|---|---:|---:|---:|---:|---:|",
    ]
    for result in results:
        own, other = ({name: one["value"] for name, one in result[role]["accuracy"].items()} for role in ("own", "transfer"))
        cells = [
            result["finder"],
            str(result["num_tokens"]),
            f"{own['initial']:.1f} → {own['shared']:.1f}",
            f"{own['snapped']:.1f}",
            result["user"],
            f"{other['initial']:.1f} → {other['shared']:.1f}",
            interval(result["transfer"]["difference_to_initial"]["shared"]),
            f"{other['snapped']:.1f}",
            f"{other['control']:.1f}",
            interval(result["transfer"]["difference_to_control"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def interval(difference: dict[str, Any]) -> str:
    return f"{difference['value']:+.1f} ({difference['low']:+.1f} to {difference['high']:+.1f})"


if __name__ == "__main__":  # workers that decode import this file
    main()
