"""Pictures: the windows that a model sees, and what the oracle did. Drawn on `Figure` objects: no state of pyplot changes."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import Normal, Stroke
from PIL import Image


if TYPE_CHECKING:
    from .summary import Summary


def draw_windows(
    axes: Axes,
    image: Image.Image,
    coordinates: np.ndarray,
    patch_size: float,
    title: str,
    window_scales: np.ndarray | None = None,
) -> None:
    """
    Draws an image, dimmed where no token looks.

    Args:
        axes: where to draw.
        image: as the model sees it: resized and cropped.
        coordinates (`np.ndarray` of shape `(num_tokens, 2)`): window centres `(x, y)`, relative to that image.
        patch_size: side of a window of scale 1, in pixels of that image.
        title: written above.
        window_scales (`np.ndarray` of shape `(num_tokens,)`, *optional*): in patches.
    """
    width, height = image.size
    pixels = np.asarray(image.convert("RGB")).astype(np.float32) / 255
    sides = patch_size * (np.ones(len(coordinates)) if window_scales is None else np.asarray(window_scales))
    corners = coordinates * (width, height) - sides[:, None] / 2
    seen = np.zeros((height, width), dtype=bool)
    for (x, y), side in zip(corners, sides, strict=True):
        left, top = max(0, round(x)), max(0, round(y))
        seen[top : max(0, round(y + side)), left : max(0, round(x + side))] = True
    axes.imshow(np.where(seen[..., None], pixels, 0.25 * pixels), interpolation="nearest", extent=(0, width, height, 0))
    for corner, side in zip(corners, sides, strict=True):
        axes.add_patch(Rectangle(corner, side, side, fill=False, edgecolor="#ffb000", linewidth=0.7))
    axes.set_xlim(0, width)  # windows may reach out of the image
    axes.set_ylim(height, 0)
    axes.set_title(title, fontsize=8)
    axes.set_axis_off()


def save_windows_picture(path: str | Path, rows: Sequence[Sequence[tuple[Image.Image, np.ndarray, float, str]]]) -> None:
    """Writes a PNG of a table of [`draw_windows`] pictures, one `(image, coordinates, patch_size, title)` per cell."""
    num_rows, num_columns = len(rows), max(len(row) for row in rows)
    figure = Figure(figsize=(1.7 * num_columns, 1.9 * num_rows))
    axes = figure.subplots(num_rows, num_columns, squeeze=False)
    for i, row in enumerate(rows):
        for j in range(num_columns):
            if j < len(row):
                draw_windows(axes[i][j], *row[j])
            else:
                axes[i][j].set_axis_off()
    figure.tight_layout(pad=0.4)
    figure.savefig(path, dpi=150)


def save_reconstruction_picture(
    file: str | Path | BinaryIO,
    originals: Sequence[Image.Image],
    visible: Sequence[np.ndarray],
    reconstructed: Sequence[np.ndarray],
    patch_size: float,
) -> None:
    """
    Writes a PNG of masked pre-training: per image what the encoder sees, the reconstruction, and the original.

    Args:
        file: a path, or what to write to.
        originals: the images as the model sees them, of one size.
        visible (each an `np.ndarray` of shape `(num_visible, 2)`): window centres `(x, y)`, relative to them.
        reconstructed (each an `np.ndarray` of shape `(height, width, 3)`): in [0, 1]; NaN, drawn white, where no window is.
        patch_size: side of a window in pixels.
    """
    # Two images side by side: six columns.
    num_rows = -(-len(originals) // 2)
    figure = Figure(figsize=(11.4, 2.2 * num_rows))
    axes = figure.subplots(num_rows, 6, squeeze=False)
    for one in axes.flat:
        one.set_axis_off()
    for i, (original, coordinates, pixels) in enumerate(zip(originals, visible, reconstructed, strict=True)):
        row = axes[i // 2][3 * (i % 2) :]
        draw_windows(row[0], original, coordinates, patch_size, f"seen: {len(coordinates)} windows")
        row[1].imshow(np.where(np.isnan(pixels), 1.0, pixels), interpolation="nearest")
        row[1].set_title("reconstruction", fontsize=8)
        row[2].imshow(original, interpolation="nearest")
        row[2].set_title("original", fontsize=8)
    figure.tight_layout(pad=0.4)
    figure.savefig(file, dpi=150, format="png")


def draw_trajectories(axes: Axes, image: Image.Image, trajectory: np.ndarray, title: str) -> None:
    """
    Draws the path of every token over the image in grey: dark where the search began, bright where it ended; with a legend.

    Args:
        axes: where to draw.
        image: the original image.
        trajectory (`np.ndarray` of shape `(steps + 1, num_tokens, 2)`): positions `(x, y)` relative to that image.
        title: written above.
    """
    width, height = image.size
    points = trajectory.astype(np.float32) * (width, height)
    axes.imshow(np.asarray(image.convert("L")), cmap="gray", vmin=0, vmax=255, extent=(0, width, height, 0))
    segments = np.stack([points[:-1], points[1:]], axis=2).transpose(1, 0, 2, 3)  # (num_tokens, steps, 2 ends, 2)
    shade = np.linspace(0, 0.85, max(1, len(points) - 1))
    colors = matplotlib.colormaps["inferno"](np.tile(shade, len(segments)))
    halo = [Stroke(linewidth=2.8, foreground="white"), Normal()]  # on dark and on bright images alike
    lines = LineCollection(list(segments.reshape(-1, 2, 2)), colors=colors, linewidths=1.4, capstyle="round")
    lines.set_path_effects(halo)
    axes.add_collection(lines)
    for at, shade_at, name in ((0, 0.0, "start"), (-1, 0.85, "last step")):
        color = matplotlib.colormaps["inferno"](shade_at)
        axes.scatter(
            points[at][:, 0], points[at][:, 1], s=6, color=[color], edgecolors="white", linewidths=0.4, zorder=3, label=name
        )
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 0), ncol=2, fontsize=7, frameon=False, borderpad=0.1)
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_title(title, fontsize=8)
    axes.set_axis_off()


def save_oracle_picture(
    file: BinaryIO,
    image: Image.Image,
    trajectory: np.ndarray,
    seen: Image.Image,
    initial: np.ndarray,
    final: np.ndarray,
    patch_size: float,
    titles: Sequence[str],
    final_scales: np.ndarray | None = None,
    initial_scales: np.ndarray | None = None,
) -> None:
    """
    Writes a PNG of what the oracle did on one image: the paths of the tokens, and the windows at start and end.

    Args:
        file: to write to.
        image: the original image.
        trajectory (`np.ndarray` of shape `(steps + 1, num_tokens, 2)`): positions relative to it.
        seen: the image as the model sees it: resized and cropped.
        initial, final (`np.ndarray` of shape `(num_tokens, 2)`): window centres relative to that.
        patch_size: side of a window in pixels of that.
        titles: of the three parts.
        final_scales, initial_scales (`np.ndarray` of shape `(num_tokens,)`, *optional*): of the windows at the end and start.
    """
    figure = Figure(figsize=(10.5, 3.8))
    axes = figure.subplots(1, 3, squeeze=False)
    draw_trajectories(axes[0][0], image, trajectory, titles[0])
    draw_windows(axes[0][1], seen, initial, patch_size, titles[1], initial_scales)
    draw_windows(axes[0][2], seen, final, patch_size, titles[2], final_scales)
    figure.tight_layout(pad=0.6)
    figure.savefig(file, dpi=150, format="png")


def save_run_picture(file: BinaryIO, title: str, summary: "Summary") -> None:
    """Writes a PNG of a run of the oracle: loss and accuracy per step, and where tokens were and are."""
    has_accuracy = bool(summary.accuracy_per_step)
    assert summary.start_density is not None and summary.end_density is not None  # those of a run are
    figure = Figure(figsize=(13 if has_accuracy else 10, 3.3), layout="constrained")
    axes = figure.subplots(1, 4 if has_accuracy else 3)
    curves = [("mean loss", summary.loss_per_step)]
    if has_accuracy:
        curves.append(("top-1 accuracy, %", summary.accuracy_per_step))
    for one, (name, values) in zip(axes, curves, strict=False):
        one.plot(range(len(values)), values, color="#0072b2", marker="o", markersize=4)
        one.set_xlabel("step")
        one.set_ylabel(name)
        one.set_ylim(0, 101 if "accuracy" in name else None)
        one.set_xticks(range(0, len(values), max(1, len(values) // 6)))
        one.grid(alpha=0.3)
    densities = {"start": summary.start_density, "best found": summary.end_density}
    # A lattice has all its tokens in few cells: the scale is that of what was found.
    highest = max(float(np.quantile(summary.end_density, 0.999)), 1e-9) * summary.end_density.size
    for one, (name, density) in zip(axes[-2:], densities.items(), strict=True):
        shown = one.imshow(density * density.size, extent=(0, 1, 1, 0), cmap="viridis", vmin=0, vmax=highest)
        one.set_title(f"positions: {name}", fontsize=9)
        one.set_xlabel("x")
        one.set_ylabel("y")
    figure.colorbar(shown, ax=list(axes[-2:]), label="density, uniform = 1", extend="max")
    figure.suptitle(f"{title}, {summary.num_images} images", fontsize=10)
    figure.savefig(file, dpi=130, format="png", bbox_inches="tight")
