"""Pictures: the windows that a model sees, and accuracy against the number of tokens."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image


matplotlib.use("Agg")  # files, never a screen

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle


def draw_windows(axes: Axes, image: Image.Image, coordinates: np.ndarray, patch_size: float, title: str) -> None:
    """
    Draws an image, dimmed where no token looks.

    Args:
        axes: where to draw.
        image: as the model sees it: resized and cropped.
        coordinates (`np.ndarray` of shape `(num_tokens, 2)`): window centres `(x, y)`, relative to that image.
        patch_size: side of a window in pixels of that image.
        title: written above.
    """
    width, height = image.size
    pixels = np.asarray(image.convert("RGB")).astype(np.float32) / 255
    seen = np.zeros((height, width), dtype=bool)
    for x, y in coordinates * (width, height) - patch_size / 2:
        left, top = max(0, round(x)), max(0, round(y))
        seen[top : max(0, round(y + patch_size)), left : max(0, round(x + patch_size))] = True
    axes.imshow(np.where(seen[..., None], pixels, 0.25 * pixels), interpolation="nearest", extent=(0, width, height, 0))
    for x, y in coordinates * (width, height) - patch_size / 2:
        axes.add_patch(Rectangle((x, y), patch_size, patch_size, fill=False, edgecolor="#ffb000", linewidth=0.7))
    axes.set_title(title, fontsize=8)
    axes.set_axis_off()


def save_windows_picture(path: str | Path, rows: Sequence[Sequence[tuple[Image.Image, np.ndarray, float, str]]]) -> None:
    """Writes a PNG of a table of [`draw_windows`] pictures, one `(image, coordinates, patch_size, title)` per cell."""
    num_rows, num_columns = len(rows), max(len(row) for row in rows)
    figure, axes = plt.subplots(num_rows, num_columns, figsize=(1.7 * num_columns, 1.9 * num_rows), squeeze=False)
    for i, row in enumerate(rows):
        for j in range(num_columns):
            if j < len(row):
                draw_windows(axes[i][j], *row[j])
            else:
                axes[i][j].set_axis_off()
    figure.tight_layout(pad=0.4)
    figure.savefig(path, dpi=150)
    plt.close(figure)


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
