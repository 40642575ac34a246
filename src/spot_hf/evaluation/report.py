"""Tables and plots of an evaluation's results."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..coordinates.pictures import plt
from ..jobs.files import write_atomically
from ..placement import PLACEMENTS


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


def write_report(directory: Path, results: Mapping[str, Any], published: bool = False) -> str:
    """Writes `README.md` and the plots into a directory, and returns the tables."""
    rows, oracle_rows = results["results"], results["oracle"]
    groups = list(dict.fromkeys((row["model"], row["image_size"]) for row in [*rows, *oracle_rows]))
    text, pictures = [], []
    for model, image_size in groups:
        own, oracle = (
            [row for row in part if (row["model"], row["image_size"]) == (model, image_size) and row["num_images"]]
            for part in (rows, oracle_rows)
        )
        title = model if image_size is None else f"{model}, {image_size} px"
        text += [f"## {title}", "", *tables(own), ""]
        stem = title.replace("/", "_").replace(", ", "_").replace(" ", "")
        pictures += [f"{stem}_tokens.png", f"{stem}_speed.png"]
        with write_atomically(directory / pictures[-2]) as file:
            plot(file, own, "num_tokens", "tokens", title, PUBLISHED if published else {})
        with write_atomically(directory / pictures[-1]) as file:
            plot(file, own, "images_per_second", f"images/s, {results['device']}", title, {})
        if oracle:
            text += [*oracle_table(oracle), ""]
            pictures.append(f"{stem}_oracle.png")
            with write_atomically(directory / pictures[-1]) as file:
                plot_oracle(file, oracle, next((row for row in own if row["way"] == "full_grid"), None), title)
    head = [
        "# Evaluation",
        "",
        f"`{results['parameters']['dataset_name']}`, split `{results['parameters']['dataset_split']}`, "
        f"{results['parameters']['num_images']} images. Top-1 accuracy in percent; ± is the half width of its 95 % interval "
        "over images (Wilson), of random placements for the mean over seeds. Bold: above the others at that number of tokens. "
        f"Peak MiB: the tensors of one pass over {results['parameters']['batch_size']} images that live at the same time, "
        "without weights and inputs; counted, not sampled.",
        "",
    ]
    tail = [f"![{picture}]({picture})\n" for picture in pictures]
    if results.get("command"):
        tail += ["```", results["command"], "```", ""]
    tail.append(", ".join(f"{name} {version}" for name, version in results["versions"].items()) + f"; {results['device']}")
    with write_atomically(directory / "README.md") as file:
        file.write("\n".join([*head, *text, *tail, ""]).encode())
    return "\n".join([*text, f"written to {directory}: README.md, results.json, {', '.join(pictures)}"])


def tables(rows: list[dict[str, Any]]) -> list[str]:
    """Accuracy as the paper lays it out, kNN in brackets; then what else was measured."""
    counts = sorted({row["num_tokens"] for row in rows if row["way"] != "full_grid"})
    by_way: dict[str, dict[int, dict[str, Any]]] = {}
    for row in rows:
        by_way.setdefault(row["way"], {})[row["num_tokens"]] = row
    full = next((row for row in rows if row["way"] == "full_grid"), None)
    best = {
        count: max(
            (ways[count]["top_1"] for way, ways in by_way.items() if count in ways and way != "full_grid"), default=None
        )
        for count in counts
    }
    lines = ["| | " + " | ".join(f"{count} tokens" for count in counts) + " |", "|---|" + "---:|" * len(counts)]
    for way, ways in by_way.items():
        if way != "full_grid":
            lines.append(f"| {way} | " + " | ".join(_accuracy(ways.get(count), best[count]) for count in counts) + " |")
    if full is not None:
        lines += ["", f"Full grid ({full['num_tokens']} tokens), the source model: {_accuracy(full, None)}."]
    if any("knn" in row for row in rows):
        lines += ["", "In brackets: accuracy of the nearest neighbours among the features of a training split."]
    measured = [
        ("top_5", "top-5, %", ".1f"), ("loss", "loss", ".2f"), ("ece", "ECE, %", ".1f"), ("speed_up", "speed-up", ".2f"),
        ("top_1_spread", "spread over seeds", ".2f"), ("peak_mib", "peak MiB", ".0f"),
    ]  # fmt: skip
    measured = [one for one in measured if any(row.get(one[0]) is not None for row in rows)]
    lines += [
        "",
        "<details><summary>All that was measured</summary>",
        "",
        "| | tokens | top-1, % (95 %) | to grid_subset, points (95 %, paired) | "
        + " | ".join(name for _, name, _ in measured)
        + " |",
        "|---|---:|---:|---:|" + "---:|" * len(measured),
    ]
    for row in rows:
        difference = row.get("difference_to_grid_subset")
        paired = f"{difference['value']:+.1f} ({difference['low']:+.1f} to {difference['high']:+.1f})" if difference else ""
        cells = [format(row[key], spec) if row.get(key) is not None else "" for key, _, spec in measured]
        interval = f"{row['top_1']:.1f} ({row['top_1_low']:.1f} to {row['top_1_high']:.1f})"
        lines.append(f"| {row['way']} | {row['num_tokens']} | {interval} | {paired} | {' | '.join(cells)} |")
    return [*lines, "", "</details>"]


def oracle_table(rows: list[dict[str, Any]]) -> list[str]:
    """What more steps give, and what they cost."""
    lines = [
        "**The oracle by its steps. It uses the label: a ceiling, not a method.** From isotropic positions; each image's best "
        "iterate. S steps cost at least 2 S + 1 forward passes; the slow-down to none was measured.",
        "",
        "| tokens | steps | forward passes | top-1, % (95 %) | loss | slow-down | images/s | peak MiB |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        interval = f"{row['top_1']:.1f} ({row['top_1_low']:.1f} to {row['top_1_high']:.1f})"
        lines.append(
            f"| {row['num_tokens']} | {row['steps']} | {row['forward_passes']} | {interval} | {row['loss']:.2f} | "
            f"{row['slow_down']:.1f}× | {row['images_per_second']:.1f} | {row['peak_mib']:.0f} |"
        )
    return lines


def _accuracy(row: Mapping[str, Any] | None, best: float | None) -> str:
    if row is None:
        return ""
    value = f"{row['top_1']:.1f}"
    value = f"**{value}**" if best is not None and row["top_1"] == best else value
    value += f" ±{(row['top_1_high'] - row['top_1_low']) / 2:.1f}"
    return value + (f" ({row['knn']:.1f})" if "knn" in row else "")


def plot(
    file: Any,
    rows: Iterable[Mapping[str, Any]],
    x: str,
    label: str,
    title: str,
    published: Mapping[str, Mapping[int, float]],
) -> None:
    """Writes a PNG of accuracy against `x`, on a logarithmic axis; placements drawn through, baselines dashed."""
    by_way: dict[str, list[tuple[float, float, float]]] = {}
    for row in rows:
        if row.get(x):
            by_way.setdefault(row["way"], []).append((row[x], row["top_1"], (row["top_1_high"] - row["top_1_low"]) / 2))
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    ticks: set[float] = set()
    for i, (way, points) in enumerate(by_way.items()):
        points.sort()
        across, up, _ = zip(*points, strict=True)
        ticks.update(across)
        baseline = way not in PLACEMENTS or way == "grid_subset"
        style: dict[str, Any] = {
            "color": COLORS[i % len(COLORS)],
            "marker": MARKERS[i % len(MARKERS)],
            "markersize": 5,
            "linewidth": 1.3,
        }
        name = f"{way} (baseline)" if baseline else way
        if way == "full_grid" and x == "num_tokens":
            axes.axhline(up[0], color="black", linewidth=1, linestyle=":", label=f"full grid, {int(across[0])} tokens")
            continue
        axes.plot(
            across, up, linestyle="--" if baseline else "-", label=name, markerfacecolor="white" if baseline else None, **style
        )
    for name, values in published.items():
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
    if x == "num_tokens":
        axes.set_xticks(sorted(ticks), [f"{tick:g}" for tick in sorted(ticks)])
    else:
        low, high = min(ticks), max(ticks)
        chosen = [base * 10**power for power in range(-1, 6) for base in (1, 2, 5)]
        chosen = [tick for tick in chosen if low * 0.9 <= tick <= high * 1.1] or [low, high]
        axes.set_xticks(chosen, [f"{tick:g}" for tick in chosen])
    axes.minorticks_off()
    axes.set_xlabel(label)
    _finish(file, figure, axes, title, max((point[1] for points in by_way.values() for point in points), default=100))


def plot_oracle(file: Any, rows: Iterable[Mapping[str, Any]], full: Mapping[str, Any] | None, title: str) -> None:
    """Writes a PNG of accuracy against what the oracle costs, a line per number of tokens; `full`: the full grid's result."""
    by_count: dict[int, list[tuple[int, float]]] = {}
    for row in rows:
        by_count.setdefault(row["num_tokens"], []).append((row["forward_passes"], row["top_1"]))
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for i, (count, points) in enumerate(sorted(by_count.items())):
        style: dict[str, Any] = {"color": COLORS[i % len(COLORS)], "marker": MARKERS[i % len(MARKERS)]}
        axes.plot(*zip(*sorted(points), strict=True), markersize=5, linewidth=1.3, label=f"{count} tokens", **style)
    if full is not None:
        text = f"full grid without oracle, {full['num_tokens']} tokens"
        axes.axhline(full["top_1"], color="black", linewidth=1, linestyle=":", label=text)
    costs = sorted({cost for points in by_count.values() for cost, _ in points})
    axes.set_xticks(costs, [f"{cost}\n({(cost - 1) // 2})" for cost in costs])
    axes.set_xlabel("forward passes (steps of the oracle)")
    highest = max(top for points in by_count.values() for _, top in points)
    _finish(file, figure, axes, f"{title}: positions found with the label, a ceiling, not a method", highest)


def _finish(file: Any, figure: Any, axes: Any, title: str, highest: float) -> None:
    """What all plots share: an axis of accuracy from 0 to above the `highest`, title, legend; writes the PNG."""
    axes.set_ylabel("top-1 accuracy, %")
    axes.set_ylim(0, min(101, 5 * math.ceil(highest / 5) + 5))
    axes.grid(alpha=0.3)
    axes.set_title(title, fontsize=10)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    figure.savefig(file, dpi=150, format="png", bbox_inches="tight")
    plt.close(figure)
