"""What the positions that one model's oracle finds are worth to another model, both ways, at several token counts:

    python scripts/transfer_table.py --model runs/spot-vit-tiny-imagenette runs/spot-deit-tiny-imagenette \
        --dataset_name DATA/imagenette160 --dataset_split validation --among_labels --num_tokens 16 25 49 \
        --steps 10 --learning_rate 1e-2 --output_dir runs/transfer

About 10 minutes for 494 images on 2 CPU cores. The objective is the label: a ceiling of the model that searches; that another
model gains from it says how much of the gain is the image's. Runs that are there already are not repeated.
"""

import logging
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser

from spot_hf.data.source import DatasetSource
from spot_hf.evaluation.arguments import TransferArguments
from spot_hf.evaluation.intervals import Difference
from spot_hf.evaluation.transfer import TransferResult, evaluate_transfer
from spot_hf.jobs.files import write_atomically, write_json
from spot_hf.jobs.versions import public_command, public_name
from spot_hf.oracle.arguments import OracleArguments
from spot_hf.oracle.run import run_oracle


@dataclass(kw_only=True)
class TransferTableArguments(DatasetSource):
    model: list[str] = field(metadata={"help": "Two SpotViT classifiers that were trained apart."})
    output_dir: str = field(metadata={"help": "Where coordinates and tables are written."})
    num_tokens: list[int] = field(default_factory=lambda: [16, 25, 49], metadata={"help": "Token counts."})
    steps: int = field(default=10, metadata={"help": "Of the oracle."})
    learning_rate: float = field(default=1e-2, metadata={"help": "Of the oracle, in units of the image's size."})
    among_labels: bool = field(default=False, metadata={"help": "Among the classes that occur in the split only."})


@dataclass
class Row:
    """What the positions that `finder` found with so many tokens are worth, to itself and to `user`."""

    finder: str
    user: str
    num_tokens: int
    own: TransferResult
    transfer: TransferResult

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "own": self.own.to_json(), "transfer": self.transfer.to_json()}


def main() -> None:
    (arguments,) = HfArgumentParser(TransferTableArguments).parse_args_into_dataclasses()
    if len(arguments.model) != 2:
        sys.exit(f"transfer_table.py: error: --model must be two models; got {len(arguments.model)}")
    logging.basicConfig(level=logging.WARNING)
    command = public_command(["python", *sys.argv])
    directory = Path(arguments.output_dir)
    rows = [
        measure(arguments, directory / public_name(finder) / f"n{num_tokens}", finder, user, num_tokens, command)
        for finder, user in (arguments.model, reversed(arguments.model))
        for num_tokens in arguments.num_tokens
    ]
    write_json(directory / "transfer_table.json", [row.to_json() for row in rows])
    text = "\n".join([*table(arguments, rows), "", "```", command, "```", ""])
    with write_atomically(directory / "transfer_table.md") as file:
        file.write(text.encode())
    print(f"\n{text}\nwritten to {directory}: transfer_table.md, transfer_table.json")


def measure(
    arguments: TransferTableArguments, coordinates: Path, finder: str, user: str, num_tokens: int, command: str
) -> Row:
    """Searches with one model, and classifies with it and with the other at what it found."""
    images = {one.name: getattr(arguments, one.name) for one in fields(DatasetSource)}
    search = OracleArguments(
        model=finder,
        num_tokens=[num_tokens],
        steps=arguments.steps,
        learning_rate=arguments.learning_rate,
        among_labels=arguments.among_labels,
        output_dir=str(coordinates),
        **images,
    )
    run_oracle(search, command=command)
    found = [
        evaluate_transfer(
            TransferArguments(
                model=model,
                coordinates=str(coordinates),
                among_labels=arguments.among_labels,
                **{**images, "max_samples": None},
            )
        )
        for model in (finder, user)
    ]
    own, transferred = found
    if not (isinstance(own, TransferResult) and isinstance(transferred, TransferResult)):
        raise ValueError(f"`model` must be two classifiers; got {finder} and {user}")
    return Row(public_name(finder), public_name(user), num_tokens, own, transferred)


def table(arguments: TransferTableArguments, rows: list[Row]) -> list[str]:
    """Markdown: A searches, B looks where A found."""
    images = rows[0].own.num_images
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
    for row in rows:
        own, other = ({name: one.value for name, one in part.accuracy.items()} for part in (row.own, row.transfer))
        cells = [
            row.finder,
            str(row.num_tokens),
            f"{own['initial']:.1f} → {own['shared']:.1f}",
            f"{own['snapped']:.1f}",
            row.user,
            f"{other['initial']:.1f} → {other['shared']:.1f}",
            interval(row.transfer.difference_to_initial["shared"]),
            f"{other['snapped']:.1f}",
            f"{other['control']:.1f}",
            interval(row.transfer.difference_to_control),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def interval(difference: Difference) -> str:
    return f"{difference.value:+.1f} ({difference.low:+.1f} to {difference.high:+.1f})"


if __name__ == "__main__":  # workers that decode import this file
    main()
