"""Results of an evaluation on a model's card."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard

from ..hub.cards import _with_section
from ..jobs.files import write_atomically


def add_results(model_dir: str | Path, results_dir: str | Path, model_name: str | None = None) -> Path:
    """
    Puts the results of [`run_evaluation`] on a model's card: as `model-index` metadata, which the Hub reads, and as a table
    with the command. What a person wrote stays; a section of earlier results is replaced.

    Args:
        model_dir (`str`): of a saved model, with its `README.md`.
        results_dir (`str`): what `spot-hf evaluate` wrote.
        model_name (`str`, *optional*): the model's name in the results; that of the directory by default.

    Returns:
        `Path` of the card.

    Raises:
        `ValueError`: no card there, no results there, or none of this model.
    """
    card_path, results_path = Path(model_dir) / "README.md", Path(results_dir) / "results.json"
    if not card_path.is_file():
        raise ValueError(f"`model` must be the directory of a model with a card; {str(model_dir)!r} holds no README.md")
    try:
        results = json.loads(results_path.read_text(encoding="utf-8"))
        rows = results["results"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(f"`results` must be what `spot-hf evaluate` wrote; {str(results_dir)!r} holds no results") from None
    name = model_name or Path(model_dir).resolve().name
    own = [row for row in rows if row["model"] == name and row["num_images"]]
    if not own:
        known = ", ".join(dict.fromkeys(row["model"] for row in rows))
        raise ValueError(f"`results` must hold the model {name!r}; {str(results_dir)!r} has {known}")
    from ..evaluation.report import tables

    parameters = results["parameters"]
    card = ModelCard.load(card_path)
    card.data.model_name = name
    card.data.eval_results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=parameters["dataset_name"],
            dataset_name=parameters["dataset_name"],
            dataset_split=parameters["dataset_split"],
            dataset_revision=parameters["dataset_revision"],
            metric_type="accuracy",
            metric_name=f"top-1, {row['way']}, {row['num_tokens']} tokens{_pixels(row)}",
            metric_value=round(row["top_1"], 3),
        )
        for row in own
    ]
    text = ["## Accuracy by tokens and placement", ""]
    text.append(
        f"Top-1 accuracy in percent on {parameters['num_images']} images of `{parameters['dataset_name']}`, split "
        f"`{parameters['dataset_split']}`; ± half its 95 % interval."
    )
    for image_size in dict.fromkeys(row["image_size"] for row in own):
        of_size = [row for row in own if row["image_size"] == image_size]
        text += ["", *([f"At {image_size} pixels:", ""] if image_size is not None else []), *tables(of_size)]
    if results.get("command"):
        text += ["", "```", results["command"], "```"]
    card.text = _with_section(card.text.strip(), "results", "\n".join(text))
    with write_atomically(card_path) as file:
        file.write(f"---\n{card.data.to_yaml()}\n---\n\n{card.text}\n".encode())
    return card_path


def _pixels(row: Mapping[str, Any]) -> str:
    return "" if row["image_size"] is None else f", {row['image_size']} pixels"
