"""Accuracy against tokens before and after training, from what `spot-hf evaluate` wrote for both models:

    python scripts/plot_before_after.py --results runs/evaluation-imagenette --before spot-vit-tiny \
        --after spot-vit-tiny-imagenette --placement isotropic center --output_file docs/results/training_before_after.png
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from transformers import HfArgumentParser

from spot_hf.evaluation.report import COLORS
from spot_hf.jobs.files import write_atomically


@dataclass(kw_only=True)
class PlotArguments:
    results: str = field(metadata={"help": "What `spot-hf evaluate` wrote."})
    before: str = field(metadata={"help": "A model in it."})
    after: str = field(metadata={"help": "The same, trained."})
    output_file: str = field(metadata={"help": "The PNG to write."})
    placement: list[str] = field(default_factory=lambda: ["isotropic", "center"], metadata={"help": "Lines to draw."})
    baselines: list[str] = field(
        default_factory=lambda: ["shrunken_image", "token_merging_same_cost"], metadata={"help": "Lines of the model before."}
    )


def main() -> None:
    (arguments,) = HfArgumentParser(PlotArguments).parse_args_into_dataclasses()
    results = json.loads((Path(arguments.results) / "results.json").read_text(encoding="utf-8"))
    rows = results["results"]
    lines = [(arguments.after, method, "-", "after") for method in arguments.placement]
    lines += [(arguments.before, method, ":", "before") for method in arguments.placement]
    lines += [(arguments.before, method, "--", "baseline, before") for method in arguments.baselines]
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.subplots()
    methods = [*arguments.placement, *arguments.baselines]
    ticks: set[int] = set()
    for model, method, style, label in lines:
        points = sorted((row["num_tokens"], row["top_1"]) for row in rows if (row["model"], row["way"]) == (model, method))
        if not points:
            sys.exit(f"plot_before_after.py: error: --results {arguments.results!r} has no {method!r} of {model!r}")
        across, up = zip(*points, strict=True)
        ticks.update(across)
        appearance: dict[str, Any] = {"color": COLORS[methods.index(method)], "marker": "osD^v<>p"[methods.index(method)]}
        appearance["markerfacecolor"] = appearance["color"] if label == "after" else "white"
        axes.plot(across, up, linestyle=style, label=f"{method}, {label}", markersize=5, linewidth=1.4, **appearance)
    for model, style in ((arguments.before, ":"), (arguments.after, "-")):
        (full,) = [row for row in rows if (row["model"], row["way"]) == (model, "full_grid")]
        axes.axhline(full["top_1"], color="black", linewidth=0.8, linestyle=style, label=f"full grid, {model}")
    axes.set_xscale("log")
    axes.set_xticks(sorted(ticks), [str(tick) for tick in sorted(ticks)])
    axes.minorticks_off()
    axes.set_xlabel("tokens")
    axes.set_ylabel("top-1 accuracy, %")
    axes.set_ylim(0, 101)
    axes.grid(alpha=0.3)
    axes.set_title(f"{results['parameters']['dataset_name']}, {results['parameters']['num_images']} images", fontsize=10)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    with write_atomically(arguments.output_file) as file:
        figure.savefig(file, dpi=150, format="png")
    print(f"written to {arguments.output_file}")


if __name__ == "__main__":
    main()
