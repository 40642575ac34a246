"""Tables and pictures of an evaluation of segmentation."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from ..data.failures import FailedImage
from ..data.masks import MaskClasses
from ..jobs.directory import Ledger
from ..jobs.files import write_atomically
from .cells import ORACLE, is_placed
from .report import line_style
from .segmentation_results import SegmentationResult


PICTURED = 3  # images of which predictions are drawn


@dataclass
class SegmentationResults:
    """What `results.json` holds: the run's ledger, a result per method and number of tokens, the images that could not be
    read, and the classes' names."""

    ledger: Ledger
    results: list[SegmentationResult]
    failed: list[FailedImage]
    classes: list[str]

    def to_json(self) -> dict[str, Any]:
        rows = [row.to_json() for row in self.results]
        failed = [asdict(image) for image in self.failed]
        return {**self.ledger.to_json(), "classes": self.classes, "results": rows, "failed": failed}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "SegmentationResults":
        facts = {name: values.get(name) for name in ("command", "versions", "device")}
        rows = [SegmentationResult.from_json(row) for row in values["results"]]
        failed = [FailedImage(**one) for one in values["failed"]]
        return cls(Ledger(parameters=values["parameters"], **facts), rows, failed, values["classes"])


def write_segmentation_report(directory: Path, results: SegmentationResults, pictures: Sequence[str]) -> str:
    """Writes `README.md` and a plot into a directory, and returns the tables."""
    ledger, parameters, text = results.ledger, results.ledger.parameters, []
    drawn = list(pictures)
    for key in dict.fromkeys(row.key for row in results.results):
        rows = [row for row in results.results if row.key == key and row.mean_iou is not None]
        text += [f"## {key.title}", "", *tables(rows), "", *per_class_table(rows, results.classes), ""]
        drawn.insert(0, f"{_file_name(key.title)}_tokens.png")
        with write_atomically(directory / drawn[0]) as file:
            plot(file, rows, key.title)
    failed = f" Could not be read, and listed in `results.json`: {len(results.failed)}." if results.failed else ""
    head = [
        "# Evaluation",
        "",
        f"`{parameters['dataset_name']}`, split `{parameters['dataset_split']}`, {parameters['num_images']} images.{failed} "
        "Mean IoU in percent over the pixels of all images, with its 95 % interval (bootstrap over images). In brackets: "
        "percent of the full grid's. Bold: the highest at that number of tokens.",
        "",
    ]
    tail = [f"![{picture}]({picture})\n" for picture in drawn]
    if ledger.command:
        tail += ["```", ledger.command, "```", ""]
    tail.append(", ".join(f"{name} {version}" for name, version in (ledger.versions or {}).items()) + f"; {ledger.device}")
    with write_atomically(directory / "README.md") as file:
        file.write("\n".join([*head, *text, *tail, ""]).encode())
    return "\n".join([*text, f"written to {directory}: README.md, results.json, {', '.join(drawn)}"])


def tables(rows: list[SegmentationResult]) -> list[str]:
    """Mean IoU by method and number of tokens; then what else was measured."""
    counts = sorted({row.num_tokens for row in rows if row.method != "full_grid"})
    full = next((row for row in rows if row.method == "full_grid"), None)
    by_method: dict[str, dict[int, SegmentationResult]] = {}
    for row in rows:
        if row.method != "full_grid":
            by_method.setdefault(_title(row), {})[row.num_tokens] = row
    honest = [row for row in rows if row.method not in ("full_grid", ORACLE)]
    best = {count: max((_value(row) for row in honest if row.num_tokens == count), default=None) for count in counts}
    lines = ["| | " + " | ".join(f"{count} tokens" for count in counts) + " |", "|---|" + "---:|" * len(counts)]
    for name, points in by_method.items():
        lines.append(f"| {name} | " + " | ".join(_cell(points.get(count), best[count]) for count in counts) + " |")
    if full is not None:
        lines += ["", f"Full grid ({full.num_tokens} tokens): {_value(full):.1f} ({_interval(full)})."]
    if any(row.method == ORACLE for row in rows):
        lines += ["", "The oracle uses the masks: a ceiling, not a method."]
    lines += [
        "",
        "<details><summary>All that was measured</summary>",
        "",
        "| | tokens | mean IoU, % (95 %) | to the shrunken image, points (95 %, paired) | pixel accuracy, % | loss | speed-up "
        "| images/s | peak MiB |",
        "|---|" + "---:|" * 8,
    ]
    for row in rows:
        difference = row.difference_to_shrunken
        to_shrunken = f"{difference.value:+.1f} ({difference.low:+.1f} to {difference.high:+.1f})" if difference else ""
        speed = f"{row.speed_up:.2f}×" if row.speed_up else ""
        rate = f"{row.images_per_second:.1f}" if row.images_per_second else ""
        lines.append(
            f"| {_title(row)} | {row.num_tokens} | {_value(row):.1f} ({_interval(row)}) | {to_shrunken} | "
            f"{row.pixel_accuracy:.1f} | {row.loss:.2f} | {speed} | {rate} | {row.peak_mib:.0f} |"
        )
    return [*lines, "", "</details>"]


def per_class_table(rows: list[SegmentationResult], classes: list[str]) -> list[str]:
    """IoU of each class."""
    lines = [
        "<details><summary>IoU of each class, %</summary>",
        "",
        f"| | tokens | {' | '.join(classes)} |",
        "|---|" + "---:|" * (len(classes) + 1),
    ]
    for row in rows:
        values = ["" if value is None else f"{value:.1f}" for value in row.per_class or []]
        lines.append(f"| {_title(row)} | {row.num_tokens} | {' | '.join(values)} |")
    return [*lines, "", "</details>"]


def _title(row: SegmentationResult) -> str:
    return row.method if row.steps is None else f"{row.method}, {row.steps} steps"


def _value(row: SegmentationResult) -> float:
    return row.mean_iou.value if row.mean_iou else 0.0


def _interval(row: SegmentationResult) -> str:
    return f"{row.mean_iou.low:.1f} to {row.mean_iou.high:.1f}" if row.mean_iou else ""


def _cell(row: SegmentationResult | None, best: float | None) -> str:
    if row is None or row.mean_iou is None:
        return ""
    text = f"{row.mean_iou.value:.1f}"
    text = f"**{text}**" if best is not None and _value(row) == best and row.method != ORACLE else text
    text += f" ±{(row.mean_iou.high - row.mean_iou.low) / 2:.1f}"
    return text + (f" ({row.share_of_full_grid:.0f} %)" if row.share_of_full_grid is not None else "")


def plot(file: Any, rows: list[SegmentationResult], title: str) -> None:
    """Writes a PNG of mean IoU against the number of tokens, on a logarithmic axis."""
    by_method: dict[str, list[SegmentationResult]] = {}
    for row in rows:
        by_method.setdefault(_title(row), []).append(row)
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for i, (name, points) in enumerate(by_method.items()):
        points.sort(key=lambda row: row.num_tokens)
        if points[0].method == "full_grid":
            label = f"full grid, {points[0].num_tokens} tokens"
            axes.axhline(_value(points[0]), color="black", linewidth=1, linestyle=":", label=label)
            continue
        style = "-" if is_placed(points[0].method) else "-." if points[0].method == ORACLE else "--"
        label = f"{name} (a ceiling)" if points[0].method == ORACLE else name
        axes.plot([row.num_tokens for row in points], [_value(row) for row in points], style, label=label, **line_style(i))
    counts = sorted({row.num_tokens for row in rows})
    axes.set_xscale("log")
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.minorticks_off()
    axes.set_xlabel("tokens per image")
    axes.set_ylabel("mean IoU, %")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.set_title(title, fontsize=10)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    figure.savefig(file, dpi=150, format="png", bbox_inches="tight")


def save_predictions(
    directory: Path,
    model: str,
    images: Sequence[Image.Image],
    truth: Sequence[torch.Tensor],
    predicted: Mapping[int, Mapping[str, Sequence[torch.Tensor]]],
    id2label: Mapping[int, str],
    classes: MaskClasses,
) -> list[str]:
    """Writes a PNG per number of tokens, an image per row: image, truth, predictions by method. Returns the files' names."""
    colors = class_colors(classes.num_labels)
    names = []
    for num_tokens, by_method in sorted(predicted.items()):
        columns = ["image", "truth", *by_method]
        figure = Figure(figsize=(2.4 * len(columns), 2.0 * len(images) + 0.8), layout="constrained")
        grid = figure.subplots(len(images), len(columns), squeeze=False)
        for i, image in enumerate(images):
            maps = [truth[i], *(maps[i] for maps in by_method.values())]
            shown = [
                np.asarray(image),
                *(colors[np.minimum(one.numpy(), classes.num_labels)] for one in map(_marked(classes), maps)),
            ]
            for axes, picture, title in zip(grid[i], shown, columns, strict=True):
                axes.imshow(picture)
                axes.set_axis_off()
                if i == 0:
                    axes.set_title(title, fontsize=8)
        patches = [Patch(color=colors[i] / 255, label=id2label[i]) for i in range(classes.num_labels)]
        figure.legend(handles=patches, loc="outside lower center", ncols=min(12, len(patches)), fontsize=7, frameon=False)
        figure.suptitle(f"{model}, {num_tokens} tokens", fontsize=10)
        names.append(f"{_file_name(model)}_predictions_n{num_tokens}.png")
        with write_atomically(directory / names[-1]) as file:
            figure.savefig(file, dpi=110, format="png")
    return names


def _marked(classes: MaskClasses) -> Any:
    """Pixels that do not count get the number after the last class."""

    def mark(mask: torch.Tensor) -> torch.Tensor:
        return torch.where(mask == classes.ignore_index, classes.num_labels, mask)

    return mark


def class_colors(num_labels: int) -> np.ndarray:
    """uint8 `(num_labels + 1, 3)`: a colour per class, and white for pixels that do not count."""
    palette = matplotlib.colormaps["tab20"]
    colors = [palette((2 * i + i // 10) % 20)[:3] for i in range(num_labels)]
    return (255 * np.array([*colors, (1.0, 1.0, 1.0)])).round().astype(np.uint8)


def _file_name(model: str) -> str:
    return model.replace("/", "_").replace(", ", "_").replace(" ", "")
