"""Tables and plots of an evaluation's results."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..data.failures import FailedImage
from ..jobs.directory import Ledger
from ..jobs.files import write_atomically
from .cells import is_placed
from .results import Result


# Okabe and Ito's colours, which the colour-blind tell apart, without their yellow, which is lost on paper.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#7f7f7f", "#8c564b")
MARKERS = "osD^v<>pPX*h"
# ViT-B/16 on ImageNet-1k, top-1 in percent, fine-tuned with random placements: arXiv 2507.01654, table of results.
PUBLISHED = {
    "published, ViT-B IN21k: PatchDropout": {25: 24.72, 49: 56.29, 100: 78.75, 196: 85.11},
    "published, ViT-B IN21k: SPoT isotropic": {25: 46.85, 49: 70.61, 100: 82.20, 196: 85.15},
    "published, ViT-B MAE: PatchDropout": {25: 55.43, 49: 70.69, 100: 79.53, 196: 83.60},
    "published, ViT-B MAE: SPoT isotropic": {25: 61.72, 49: 76.84, 100: 82.76, 196: 83.89},
}


@dataclass
class EvaluationResults:
    """What `results.json` holds: the run's ledger, a result per method and number of tokens, those of the oracle, and the
    images that could not be read."""

    ledger: Ledger
    results: list[Result]
    oracle: list[Result]
    failed: list[FailedImage]

    def to_json(self) -> dict[str, Any]:
        rows = {"results": [row.to_json() for row in self.results], "oracle": [row.to_json() for row in self.oracle]}
        return {**self.ledger.to_json(), **rows, "failed": [asdict(image) for image in self.failed]}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "EvaluationResults":
        """Those of 0.1.0 name no failed images."""
        facts = {name: values.get(name) for name in ("command", "versions", "device")}
        rows, oracle = ([Result.from_json(row) for row in values[name]] for name in ("results", "oracle"))
        failed = [FailedImage(**one) for one in values.get("failed", [])]
        return cls(Ledger(parameters=values["parameters"], **facts), rows, oracle, failed)


def write_report(directory: Path, results: EvaluationResults, published: bool = False, sections: Iterable[str] = ()) -> str:
    """Writes `README.md`, with further lines before the tables, and the plots into a directory, and returns the tables."""
    ledger, parameters = results.ledger, results.ledger.parameters
    text, pictures = list(sections), []
    for key in dict.fromkeys(row.key for row in [*results.results, *results.oracle]):
        own, oracle = (
            [row for row in part if row.key == key and row.num_images] for part in (results.results, results.oracle)
        )
        title = key.title
        text += [f"## {title}", "", *tables(own), ""]
        if key.corruption is not None:  # its tables alone
            text += [*oracle_table(oracle), ""] if oracle else []
            continue
        stem = title.replace("/", "_").replace(", ", "_").replace(" ", "")
        pictures += [f"{stem}_tokens.png", f"{stem}_speed.png"]
        with write_atomically(directory / pictures[-2]) as file:
            plot(file, own, "cost", "tokens per image", title, PUBLISHED if published else {})
        with write_atomically(directory / pictures[-1]) as file:
            plot(file, own, "images_per_second", f"images/s, {ledger.device}", title)
        if oracle:
            text += [*oracle_table(oracle), ""]
            pictures.append(f"{stem}_oracle.png")
            with write_atomically(directory / pictures[-1]) as file:
                plot_oracle(file, oracle, next((row for row in own if row.method == "full_grid"), None), title)
    failed = f" Could not be read, and listed in `results.json`: {len(results.failed)}." if results.failed else ""
    head = [
        "# Evaluation",
        "",
        f"`{parameters['dataset_name']}`, split `{parameters['dataset_split']}`, {parameters['num_images']} images.{failed} "
        "Top-1 accuracy in percent; ± is the half width of its 95 % interval over images (Wilson), of random placements for "
        "the mean over seeds. Bold: the highest at that number of tokens. Peak MiB: the tensors of one pass over "
        f"{parameters['batch_size']} images that live at the same time, without weights and inputs; counted, not sampled.",
        "",
    ]
    tail = [f"![{picture}]({picture})\n" for picture in pictures]
    if ledger.command:
        tail += ["```", ledger.command, "```", ""]
    tail.append(", ".join(f"{name} {version}" for name, version in (ledger.versions or {}).items()) + f"; {ledger.device}")
    with write_atomically(directory / "README.md") as file:
        file.write("\n".join([*head, *text, *tail, ""]).encode())
    return "\n".join([*text, f"written to {directory}: README.md, results.json, {', '.join(pictures)}"])


def tables(rows: list[Result]) -> list[str]:
    """Accuracy as the paper lays it out, kNN in brackets; budgets per image; then what else was measured."""
    every, rows = rows, [row for row in rows if row.looks is None]
    counts = sorted({row.num_tokens for row in rows if row.method != "full_grid"})
    by_method: dict[str, dict[int, Result]] = {}
    for row in rows:
        by_method.setdefault(row.method, {})[row.num_tokens] = row
    full = next((row for row in rows if row.method == "full_grid"), None)
    best = {
        count: max(
            (points[count].top_1 or 0 for name, points in by_method.items() if count in points and name != "full_grid"),
            default=None,
        )
        for count in counts
    }
    lines = ["| | " + " | ".join(f"{count} tokens" for count in counts) + " |", "|---|" + "---:|" * len(counts)]
    for method, points in by_method.items():
        if method != "full_grid":
            lines.append(f"| {method} | " + " | ".join(_accuracy(points.get(count), best[count]) for count in counts) + " |")
    if full is not None:
        lines += ["", f"Full grid ({full.num_tokens} tokens): {_accuracy(full, None)}."]
    if any(row.knn is not None for row in rows):
        lines += ["", "In brackets: accuracy of the nearest neighbours among the features of a training split."]
    budgets = [row for row in every if row.looks is not None]
    return [*lines, *(_budget_table(budgets) if budgets else []), *_details(every)]


def _budget_table(rows: list[Result]) -> list[str]:
    """A budget per image, by the confidence with which it stops."""
    lines = [
        "",
        f"Budget per image: looks with {', '.join(map(str, rows[0].looks or []))} tokens in turn, until the model is sure; an "
        "image costs all of its looks.",
        "",
        "| | sure at | tokens per image | top-1, % (95 %) | speed-up |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in rows:
        sure = row.confidence if isinstance(row.confidence, str) else f"{row.confidence:g}"
        speed = f"{row.speed_up:.2f}×" if row.speed_up is not None else ""
        lines.append(f"| {row.method} | {sure} | {row.mean_tokens:.1f} | {_interval(row)} | {speed} |")
    return lines


def _details(rows: list[Result]) -> list[str]:
    """All that was measured, folded away."""
    measured = [
        ("top_5", "top-5, %", ".1f"), ("loss", "loss", ".2f"), ("ece", "ECE, %", ".1f"), ("speed_up", "speed-up", ".2f"),
        ("top_1_spread", "spread over seeds", ".2f"), ("peak_mib", "peak MiB", ".0f"),
    ]  # fmt: skip
    measured = [one for one in measured if any(getattr(row, one[0]) is not None for row in rows)]
    is_paired = any(row.difference_to_grid_subset is not None for row in rows)
    names = ["tokens", "top-1, % (95 %)", *(["to grid_subset, points (95 %, paired)"] if is_paired else [])]
    names += [name for _, name, _ in measured]
    lines = [
        "",
        "<details><summary>All that was measured</summary>",
        "",
        f"| | {' | '.join(names)} |",
        "|---|" + "---:|" * len(names),
    ]
    for row in rows:
        cells = [str(row.num_tokens) if row.looks is None else f"{row.cost:.1f}", _interval(row)]
        if is_paired:
            difference = row.difference_to_grid_subset
            cells.append(f"{difference.value:+.1f} ({difference.low:+.1f} to {difference.high:+.1f})" if difference else "")
        values = [(getattr(row, name), spec) for name, _, spec in measured]
        cells += [format(value, spec) if value is not None else "" for value, spec in values]
        lines.append(f"| {row.method} | {' | '.join(cells)} |")
    return [*lines, "", "</details>"]


def oracle_table(rows: list[Result]) -> list[str]:
    """What more steps give, and what they cost."""
    lines = [
        "**The oracle by its steps. It uses the label: a ceiling, not a method.** From isotropic positions; each image's best "
        "iterate. S steps cost at least 2 S + 1 forward passes; the slow-down to none was measured.",
        "",
        "| tokens | steps | forward passes | top-1, % (95 %) | loss | slow-down | images/s | peak MiB |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        lines.append(
            f"| {row.num_tokens} | {row.steps} | {row.forward_passes} | {_interval(row)} | {row.loss:.2f} | "
            f"{row.slow_down:.1f}× | {row.images_per_second:.1f} | {row.peak_mib:.0f} |"
        )
    return lines


def _interval(row: Result) -> str:
    return f"{row.top_1:.1f} ({row.top_1_low:.1f} to {row.top_1_high:.1f})"


def _half_width(row: Result) -> float:
    return ((row.top_1_high or 0) - (row.top_1_low or 0)) / 2


def _accuracy(row: Result | None, best: float | None) -> str:
    if row is None:
        return ""
    value = f"{row.top_1:.1f}"
    value = f"**{value}**" if best is not None and row.top_1 == best else value
    return f"{value} ±{_half_width(row):.1f}" + (f" ({row.knn:.1f})" if row.knn is not None else "")


def plot(
    file: Any,
    rows: Iterable[Result],
    x: str,
    label: str,
    title: str,
    published: Mapping[str, Mapping[int, float]] | None = None,
) -> None:
    """
    Writes a PNG of accuracy against `x`, on a logarithmic axis; placements drawn through, baselines dashed.

    Args:
        file: to write to.
        rows: results of one model at one image size.
        x (`str`): a field of [`Result`]; label (`str`): of its axis.
        title (`str`): written above.
        published (`dict`, *optional*): further lines: name → number of tokens → accuracy.
    """
    by_method: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if getattr(row, x):
            by_method.setdefault(row.method, []).append((getattr(row, x), row.top_1 or 0.0))
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    ticks: set[float] = set()
    for i, (method, points) in enumerate(by_method.items()):
        points.sort()
        across, up = zip(*points, strict=True)
        if method == "full_grid" and x == "cost":
            axes.axhline(up[0], color="black", linewidth=1, linestyle=":", label=f"full grid, {int(across[0])} tokens")
            continue
        ticks.update(across if x != "cost" or not method.endswith("until sure") else [])
        baseline = not is_placed(method)
        axes.plot(
            across,
            up,
            linestyle="--" if baseline else "-" if i < len(COLORS) else "-.",  # where colours begin anew
            label=f"{method} (baseline)" if baseline else method,
            markerfacecolor="white" if baseline else None,
            **line_style(i),
        )
    for name, values in (published or {}).items():
        axes.plot(
            list(values),
            list(values.values()),
            color="#777777",
            marker="x" if "PatchDropout" in name else "+",
            linestyle="-." if "IN21k" in name else ":",
            linewidth=0.9,
            label=name,
        )
    axes.set_xscale("log")
    chosen = sorted(ticks) if x == "cost" else _round_ticks(min(ticks), max(ticks))
    axes.set_xticks(chosen, [f"{tick:g}" for tick in chosen])
    axes.minorticks_off()
    axes.set_xlabel(label)
    _finish(file, figure, axes, title, max((up for points in by_method.values() for _, up in points), default=100))


def line_style(i: int) -> dict[str, Any]:
    """Of the line with number `i`: its colour and marker, of which no two neighbours share any."""
    return {"color": COLORS[i % len(COLORS)], "marker": MARKERS[i % len(MARKERS)], "markersize": 5, "linewidth": 1.3}


def _round_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, ... between two numbers."""
    chosen = [base * 10**power for power in range(-1, 6) for base in (1, 2, 5)]
    return [tick for tick in chosen if low * 0.9 <= tick <= high * 1.1] or [low, high]


def plot_oracle(file: Any, rows: Iterable[Result], full: Result | None, title: str) -> None:
    """Writes a PNG of accuracy against what the oracle costs, a line per number of tokens; `full`: the full grid's result."""
    by_count: dict[int, list[tuple[int, float]]] = {}
    for row in rows:
        by_count.setdefault(row.num_tokens, []).append((row.forward_passes or 0, row.top_1 or 0.0))
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for i, (count, points) in enumerate(sorted(by_count.items())):
        axes.plot(*zip(*sorted(points), strict=True), label=f"{count} tokens", **line_style(i))
    if full is not None:
        text = f"full grid without oracle, {full.num_tokens} tokens"
        axes.axhline(full.top_1 or 0.0, color="black", linewidth=1, linestyle=":", label=text)
    costs = sorted({cost for points in by_count.values() for cost, _ in points})
    axes.set_xticks(costs, [f"{cost}\n({(cost - 1) // 2})" for cost in costs])
    axes.set_xlabel("forward passes (steps of the oracle)")
    highest = max(top for points in by_count.values() for _, top in points)
    _finish(file, figure, axes, f"{title}: positions found with the label, a ceiling, not a method", highest)


def _finish(file: Any, figure: Figure, axes: Any, title: str, highest: float) -> None:
    """What all plots share: an axis of accuracy from 0 to above the `highest`, title, legend; writes the PNG."""
    axes.set_ylabel("top-1 accuracy, %")
    axes.set_ylim(0, min(101, 5 * math.ceil(highest / 5) + 5))
    axes.grid(alpha=0.3)
    axes.set_title(title, fontsize=10)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    figure.savefig(file, dpi=150, format="png", bbox_inches="tight")
