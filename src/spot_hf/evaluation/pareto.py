"""`spot-hf evaluate --pareto`: accuracy against speed, of one model and of what a sceptic would use instead.

Ours are the placements, among them larger windows, and all budgets per image of the first model. Its other baselines, and all
that was measured of the other models, are the rivals: a ViT trained on shrunken images, token merging, a random subset of the
grid.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ..jobs.files import write_atomically
from .cells import Line, is_placed
from .intervals import Difference
from .report import COLORS, MARKERS
from .results import Result, group_lines, identity_of, in_order


PICTURE = "pareto.png"
DRAWN = 8  # rival methods in the figure


@dataclass(frozen=True)
class Point:
    """A way to use a model: how accurate, and how many times as fast as the first model's full grid."""

    result: Result
    speed: float
    correct: np.ndarray  # (num_images,), bool; of the first seed
    is_ours: bool

    @property
    def top_1(self) -> float:
        return self.result.top_1 or 0.0

    @property
    def series(self) -> str:
        """Of one line in the figure."""
        return self.result.method if self.is_ours else f"{self.result.model}: {self.result.method}"


def points_of(results: Sequence[Result], lines: list[Line], first: str, speeds: dict[str, float]) -> list[Point]:
    """
    Args:
        results: of an evaluation.
        lines: of its ledger, for what was right.
        first (`str`): the model that is ours.
        speeds (`dict`): model → how fast its full grid is, as a multiple of the first model's.
    """
    correct: dict[tuple, np.ndarray] = {}
    for setting, by_cell in group_lines(lines):
        for cell, parts in sorted(by_cell.items(), key=lambda item: item[0].seed or 0):
            correct.setdefault((setting, *identity_of(cell)), np.array(in_order(parts).correct))
    found = []
    for row in results:
        if row.speed_up is None or row.top_1 is None or row.image_size is not None:
            continue
        is_spot = is_placed(row.method) or row.confidence is not None or row.method in ("full_grid", "larger_windows")
        right = correct[row.key, row.method, row.num_tokens, row.confidence]
        found.append(Point(row, row.speed_up * speeds[row.model], right, is_ours=is_spot and row.model == first))
    return found


def frontier(points: Sequence[Point]) -> list[Point]:
    """Those of which no other is faster and as accurate, from the slowest on."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda point: (-point.speed, -point.top_1)):
        if not kept or point.top_1 > kept[-1].top_1:
            kept.append(point)
    return kept[::-1]


def height_at(curve: Sequence[Point], speed: float) -> float:
    """Of the curve through a frontier, straight in the logarithm of speed; beyond its ends, the end's, or nothing where there
    is none so fast."""
    if speed > curve[-1].speed:
        return 0.0
    return float(np.interp(np.log(speed), np.log([point.speed for point in curve]), [point.top_1 for point in curve]))


def write_pareto(directory: Path, points: Sequence[Point], first: str, device: str | None) -> list[str]:
    """Writes the figure into a directory, and returns Markdown lines. `ValueError` where there is nothing to compare."""
    ours, rivals = [one for one in points if one.is_ours], [one for one in points if not one.is_ours]
    if not ours or not rivals:
        raise ValueError(
            "`pareto` needs placements of the first model, and baselines or other models; got only one of the two"
        )
    curve, best_rivals = frontier(ours), frontier(rivals)
    with write_atomically(directory / PICTURE) as file:
        _figure(points, curve, first, device).savefig(file, dpi=150, format="png", bbox_inches="tight")
    above = [one for one in best_rivals if one.top_1 > height_at(curve, one.speed)]
    if above:
        named = ", ".join(f"{_name(one)} ({one.speed:.1f}×, {one.top_1:.1f} %)" for one in above)
        said = f"{len(above)} of the rivals' {len(best_rivals)} best points lie above the curve of `{first}`: {named}."
    else:
        said = f"No rival's point lies above the curve of `{first}`."
    lines = [
        "## Accuracy against speed",
        "",
        f"{said} Speed: images/s as a multiple of the full grid's, on the same batches. The curve: the Pareto-optimal points "
        f"of `{first}`, interpolated linearly.",
        "",
        f"![{PICTURE}]({PICTURE})",
        "",
        f"| `{first}` | tokens per image | speed | top-1, % (95 %) |",
        "|---|---:|---:|---:|",
    ]
    for one in curve:
        row = one.result
        interval = f"{one.top_1:.1f} ({row.top_1_low:.1f} to {row.top_1_high:.1f})"
        lines.append(f"| {_name(one)} | {row.cost:.4g} | {one.speed:.1f}× | {interval} |")
    lines += [
        "",
        "| the rivals' best | tokens per image | speed | top-1, % | the curve there | nearest point on the curve minus this "
        "(paired, 95 %) |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for one in best_rivals:
        nearest = min(curve, key=lambda other: abs(np.log(other.speed / one.speed)))
        there = height_at(curve, one.speed)
        difference = Difference.of(one.correct, nearest.correct)
        lines.append(
            f"| {_name(one)} | {one.result.cost:.4g} | {one.speed:.1f}× | {one.top_1:.1f} | {there:.1f} | "
            f"{difference.value:+.1f} ({difference.low:+.1f} to {difference.high:+.1f}) at {nearest.speed:.1f}× |"
        )
    return [*lines, ""]


def _name(point: Point) -> str:
    confidence = point.result.confidence
    sure = "" if confidence is None else f" {confidence}" if isinstance(confidence, str) else f" {confidence:g}"
    return f"{point.series}{sure}"


def _figure(points: Sequence[Point], curve: Sequence[Point], first: str, device: str | None) -> Figure:
    figure = Figure(figsize=(8.5, 5.2), layout="constrained")
    axes = figure.subplots()
    by_series: dict[str, list[Point]] = {}
    for one in points:
        if not one.is_ours:
            by_series.setdefault(one.series, []).append(one)
    best = sorted(by_series, key=lambda name: -max(one.top_1 * np.log(max(one.speed, 1.01)) for one in by_series[name]))
    for i, name in enumerate(best[:DRAWN]):
        found = sorted(by_series[name], key=lambda one: one.speed)
        axes.plot(
            [one.speed for one in found], [one.top_1 for one in found], linestyle="--", linewidth=1.1, markersize=5,
            color=COLORS[(i + 1) % len(COLORS)], marker=MARKERS[(i + 1) % len(MARKERS)], markerfacecolor="white", label=name,
        )  # fmt: skip
    ours = [one for one in points if one.is_ours]
    axes.scatter([one.speed for one in ours], [one.top_1 for one in ours], s=14, color=COLORS[0], alpha=0.35, linewidths=0)
    axes.plot(
        [one.speed for one in curve], [one.top_1 for one in curve], linewidth=2.2, markersize=6, color=COLORS[0], marker="o",
        label=f"{first}: placements and budgets",
    )  # fmt: skip
    axes.set_xscale("log")
    low, fast = min(one.speed for one in points), max(one.speed for one in points)
    ticks = [tick for tick in (0.1, 0.2, 0.5, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 48) if 0.9 * low <= tick <= 1.1 * fast]
    axes.set_xticks(ticks, [f"{tick:g}×" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlim(0.9 * low, 1.15 * fast)
    high = max(one.top_1 for one in points)
    axes.set_ylim(max(0, min(one.top_1 for one in curve) - 12), min(100, high + 2))
    axes.set_xlabel(f"speed, as a multiple of the full grid's{'' if device is None else f' ({device})'}")
    axes.set_ylabel("top-1 accuracy, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower left", frameon=False)
    return figure
