"""What a training run says of itself: the learning curves, and a summary for the terminal and the model's card."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from ..coordinates.pictures import plt
from ..evaluation.report import COLORS, MARKERS


LOSSES = ("cross_entropy_weight", "distill_weight", "feature_weight")


def save_learning_curves(file: BinaryIO, results: Mapping[str, Any]) -> None:
    """Writes a PNG of the loss and of the accuracies that were measured meanwhile, against the step."""
    log = results["log"]
    steps = [(entry["step"], entry["loss"]) for entry in log if "loss" in entry]
    measured: dict[str, list[tuple[int, float]]] = {}
    for entry in log:
        for name, value in entry.items():
            found = re.fullmatch(r"eval_n(\d+)_accuracy", name)
            if found:
                measured.setdefault(f"{found[1]} tokens", []).append((entry["step"], value))
    figure, left = plt.subplots(figsize=(7.5, 4.4), layout="constrained")
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
            right.plot(*zip(*points, strict=True), label=f"{name}, {results['parameters']['eval_placement']}", **style)
        right.set_ylabel("top-1 accuracy, %")
    figure.legend(loc="outside upper center", ncols=3, fontsize=8, frameon=False)
    figure.savefig(file, dpi=150, format="png")
    plt.close(figure)


def training_summary(directory: Path | None, results: Mapping[str, Any]) -> str:
    """
    Markdown: what was trained on what, how, and what came out.

    Args:
        directory (`Path`, *optional*): where it was written; not said on a card.
        results (`dict`): as `training.json` holds them.
    """
    parameters = results["parameters"]
    losses = [
        f"{name.removesuffix('_weight').replace('_', ' ')} ({parameters[name]:g})" for name in LOSSES if parameters[name]
    ]
    low_high = parameters["num_tokens_range"]
    counts = ", ".join(map(str, parameters["num_tokens"])) if low_high is None else f"{low_high[0]} to {low_high[1]}"
    resumed = f" from step {results['resumed_at']} on" if results.get("resumed_at") else ""
    among = ", among the classes of that data" if parameters["among_labels"] else ""
    lines = [
        f"Fine-tuned from `{parameters['model']}` on {parameters['num_images']} images of `{parameters['dataset_name']}`, "
        f"split `{parameters['dataset_split']}`: {results['steps']} steps of {parameters['total_train_batch_size']} images, "
        f"seed {parameters['seed']}, {results['seconds'] / 60:.1f} minutes{resumed} on {results['device']}. "
        f"Batches of {counts} tokens; placements {', '.join(parameters['placement'])}. Loss: {', '.join(losses)}{among}.",
    ]
    evaluated = results.get("evaluated_on")
    on = f", on {evaluated['num_images']} images of split `{evaluated['split']}`" if evaluated else ""
    for name, value in results["evaluation"].items():
        found = re.fullmatch(r"eval_n(\d+)_accuracy", name)
        if found:
            lines.append(f"- top-1 at {found[1]} tokens, {parameters['eval_placement']}{on}: {value:.1f} %")
    if results.get("command") and directory is None:
        lines += ["", "```", results["command"], "```"]
    if directory is not None:
        lines.append(f"written to {directory}: the model, README.md, training.json, training.png")
    return "\n".join(lines)
