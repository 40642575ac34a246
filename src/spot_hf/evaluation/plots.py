"""Plots of accuracy."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt


def save_accuracy_plot(
    path: str | Path,
    accuracies: Mapping[str, Mapping[int, float]],
    full_grid: float,
    title: str,
) -> None:
    """
    Writes a PNG of accuracy against the number of tokens, one line per placement.

    Args:
        path: of the file.
        accuracies: placement → number of tokens → accuracy in percent.
        full_grid: accuracy of the full grid in percent, drawn as a level.
        title: written above.
    """
    figure, axes = plt.subplots(figsize=(7.5, 4.6))
    axes.axhline(full_grid, color="black", linewidth=1, linestyle="--", label="full grid")
    colors: Any = plt.get_cmap("tab20")
    markers = "osD^v<>pPX*h"
    for i, (placement, points) in enumerate(accuracies.items()):
        counts = sorted(points)
        values = [points[count] for count in counts]
        axes.plot(counts, values, label=placement, color=colors(i), marker=markers[i % 12], markersize=4, linewidth=1.2)
    counts = sorted({count for points in accuracies.values() for count in points})
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.minorticks_off()
    axes.set_xlabel("tokens")
    axes.set_ylabel("top-1 accuracy, %")
    axes.set_ylim(0, 101)
    axes.grid(alpha=0.3)
    axes.set_title(title, fontsize=10)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)
