"""What a training run says of itself: the learning curves, and a summary for the terminal and the model's card."""

import re
from typing import Any, BinaryIO

from matplotlib.figure import Figure

from ..data.masks import SEGMENTATION
from ..evaluation.report import COLORS, MARKERS
from .run import TrainingResults


MEASURED = r"eval_n(\d+)_(?:accuracy|mean_iou)"  # at how many tokens
LOSSES = ("cross_entropy_weight", "distill_weight", "feature_weight")


def save_learning_curves(file: BinaryIO, results: TrainingResults) -> None:
    """Writes a PNG of the loss and of the accuracies that were measured during training, against the step."""
    learning_curves(results).savefig(file, dpi=150, format="png")


def learning_curves(results: TrainingResults) -> Figure:
    log = results.log
    steps = [(entry["step"], entry["loss"]) for entry in log if "loss" in entry]
    measured: dict[str, list[tuple[int, float]]] = {}
    for entry in log:
        for name, value in entry.items():
            found = re.fullmatch(MEASURED, name)
            if found:
                measured.setdefault(f"{found[1]} tokens", []).append((entry["step"], value))
    figure = Figure(figsize=(7.5, 4.4), layout="constrained")
    left = figure.subplots()
    if steps:
        left.plot(*zip(*steps, strict=True), color=COLORS[0], linewidth=1, label="training loss")
    left.set_xlabel("step")
    left.set_ylabel("training loss")
    left.set_ylim(bottom=0)
    left.grid(alpha=0.3)
    if measured:
        right = left.twinx()
        for i, (name, points) in enumerate(measured.items()):
            style: dict[str, Any] = {
                "color": COLORS[(i + 1) % len(COLORS)],  # the first is the loss's
                "marker": MARKERS[i % len(MARKERS)],
                "markersize": 4,
                "linewidth": 1.3,
            }
            right.plot(*zip(*points, strict=True), label=f"{name}, {results.parameters['eval_placement']}", **style)
        right.set_ylabel("mean IoU, %" if _segments(results) else "top-1 accuracy, %")
    if steps or measured:
        figure.legend(loc="outside upper center", ncols=3, fontsize=8, frameon=False)
    return figure


def _segments(results: TrainingResults) -> bool:
    return results.parameters.get("task") == SEGMENTATION


def training_summary(results: TrainingResults) -> str:
    """Markdown: what was trained on what, how, and what came out."""
    parameters = results.parameters
    losses = [
        f"{name.removesuffix('_weight').replace('_', ' ')} ({parameters[name]:g})" for name in LOSSES if parameters[name]
    ]
    low_high = parameters["num_tokens_range"]
    counts = ", ".join(map(str, parameters["num_tokens"])) if low_high is None else f"{low_high[0]} to {low_high[1]}"
    resumed = f" from step {results.resumed_at} on" if results.resumed_at else ""
    among = ", among the classes of that data" if parameters["among_labels"] else ""
    failed = f", of which {len(results.failed)} could not be read" if results.failed else ""
    lines = [
        f"Fine-tuned from `{parameters['model']}` on {parameters['num_images']} images of `{parameters['dataset_name']}`, "
        f"split `{parameters['dataset_split']}`{failed}: {results.steps} steps of {parameters['total_train_batch_size']} "
        f"images, seed {parameters['seed']}, {results.seconds / 60:.1f} minutes{resumed} on {results.ledger.device}. "
        f"Batches of {counts} tokens; placements {', '.join(parameters['placement'])}. Loss: {', '.join(losses)}{among}.",
    ]
    evaluated = results.evaluated_on or {}
    num_images = evaluated.get("num_images", 0) - len(evaluated.get("failed", []))
    on = f", on {num_images} images of split `{evaluated['split']}`" if evaluated else ""
    for name, value in results.evaluation.items():
        found = re.fullmatch(MEASURED, name)
        if found:
            measure = "mean IoU" if _segments(results) else "top-1"
            lines.append(f"- {measure} at {found[1]} tokens, {parameters['eval_placement']}{on}: {value:.1f} %")
    return "\n".join(lines)


def training_card(results: TrainingResults) -> str:
    """The same for the model's card: with the command."""
    command = results.ledger.command
    return training_summary(results) + (f"\n\n```\n{command}\n```" if command else "")
