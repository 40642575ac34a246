"""`spot-hf card`: results of an evaluation on a model's card."""

import json
import logging
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard

from ..hub.cards import with_section, write_model_card
from ..hub.loading import ModelSource, open_model
from ..jobs.files import write_atomically
from ..jobs.versions import public_command
from .report import EvaluationResults, tables
from .results import Result
from .run import RESULTS
from .segmentation_report import SegmentationResults
from .segmentation_report import tables as segmentation_tables
from .segmentation_results import SegmentationResult


logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class CardArguments:
    model: str = field(metadata={"help": "Directory of the model. Where it holds no README.md, a card is written."})
    results: str | None = field(default=None, metadata={"help": "What `spot-hf evaluate` wrote (default: none)."})
    model_name: str | None = field(default=None, metadata={"help": "Its name in the results (default: the directory's)."})


def add_results(arguments: CardArguments) -> Path:
    """
    Writes the card of a model that has none, such as what a Trainer saved, and puts the results of [`run_evaluation`] on it:
    as `model-index` metadata, which the Hub reads, and as a table with the command. What a person wrote stays; a section of
    earlier results is replaced.

    Returns:
        `Path` of the card.

    Raises:
        `ValueError`: no SpotViT there, no results there, or none of this model; or neither is there anything to add nor a card
            to write.
    """
    directory = Path(arguments.model).expanduser()
    if not directory.is_dir():
        raise ValueError(f"`model` must be the directory of a SpotViT; got {arguments.model!r}")
    card_path, source = directory / "README.md", open_model(arguments.model)
    if arguments.results is None:
        if card_path.is_file():
            raise ValueError(f"`results` is needed: {arguments.model!r} has a card already; got none")
        return _write_card(source, card_path)
    results_path = Path(arguments.results) / RESULTS
    try:
        values = json.loads(results_path.read_text(encoding="utf-8"))
        kind = SegmentationResults if "classes" in values else EvaluationResults
        results: Any = kind.from_json(values)
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(f"`results` must be what `spot-hf evaluate` wrote; {arguments.results!r} holds no results") from None
    name = arguments.model_name or Path(arguments.model).resolve().name
    own = [row for row in results.results if row.model == name and row.num_images and row.corruption is None]
    if not own:
        known = ", ".join(dict.fromkeys(row.model for row in results.results))
        raise ValueError(f"`results` must hold the model {name!r}; {arguments.results!r} has {known}")
    if not card_path.is_file():
        _write_card(source, card_path)
    card = ModelCard.load(card_path)
    card.data.model_name = name
    segments = isinstance(results, SegmentationResults)
    honest = [row for row in own if row.steps is None]  # without the oracle, which has seen the answer
    card.data.eval_results = [(_segmentation_metadata if segments else _metadata)(row, results) for row in honest]
    lines = (_segmentation_section if segments else _section)(own, results)
    if results.ledger.command:
        lines += ["", "```", public_command(shlex.split(results.ledger.command)), "```"]
    card.text = with_section(card.text.strip(), "results", "\n".join(lines))
    with write_atomically(card_path) as file:
        file.write(f"---\n{card.data.to_yaml()}\n---\n\n{card.text}\n".encode())
    logger.info("written to %s", card_path)
    return card_path


def _write_card(source: ModelSource, card_path: Path) -> Path:
    image_processor = source.load_image_processor()
    write_model_card(
        source.load(),
        card_path.parent,
        repo_id=card_path.parent.resolve().name,
        num_tokens=image_processor.num_tokens,
        placement=image_processor.placement,
    )
    logger.info("written to %s", card_path)
    return card_path


def _metadata(row: Result, results: EvaluationResults) -> EvalResult:
    tokens = f"{row.num_tokens} tokens" if row.looks is None else f"{row.cost:.1f} tokens per image"
    pixels = "" if row.image_size is None else f", {row.image_size} pixels"
    name = f"top-1, {row.method}, {tokens}{pixels}"
    task = "zero-shot-image-classification" if "candidate_labels" in results.ledger.parameters else "image-classification"
    return _eval_result(results, task, "accuracy", name, row.top_1 or 0.0)


def _eval_result(results: Any, task: str, metric: str, name: str, value: float) -> EvalResult:
    parameters = results.ledger.parameters
    return EvalResult(
        task_type=task,
        dataset_type=parameters["dataset_name"],
        dataset_name=parameters["dataset_name"],
        dataset_split=parameters["dataset_split"],
        dataset_revision=parameters["dataset_revision"],
        metric_type=metric,
        metric_name=name,
        metric_value=round(value, 3),
    )


def _section(rows: list[Result], results: EvaluationResults) -> list[str]:
    """Markdown lines."""
    parameters = results.ledger.parameters
    lines = [
        "## Accuracy by tokens and placement",
        "",
        f"Top-1 accuracy in percent on {parameters['num_images']} images of `{parameters['dataset_name']}`, split "
        f"`{parameters['dataset_split']}`; ± half its 95 % interval.",
    ]
    if "candidate_labels" in parameters:
        count, template = len(parameters["candidate_labels"]), parameters["hypothesis_template"]
        lines += ["", f"Zero-shot, among {count} texts, each in the place of `{{}}` in `{template}`."]
    for image_size in dict.fromkeys(row.image_size for row in rows):
        of_size = [row for row in rows if row.image_size == image_size]
        lines += ["", *([f"At {image_size} pixels:", ""] if image_size is not None else []), *tables(of_size)]
    return lines


def _segmentation_metadata(row: SegmentationResult, results: SegmentationResults) -> EvalResult:
    assert row.mean_iou is not None
    return _eval_result(
        results, "image-segmentation", "mean_iou", f"mean IoU, {row.method}, {row.num_tokens} tokens", row.mean_iou.value
    )


def _segmentation_section(rows: list[SegmentationResult], results: SegmentationResults) -> list[str]:
    """Markdown lines."""
    parameters = results.ledger.parameters
    return [
        "## Mean IoU by tokens and placement",
        "",
        f"In percent on {parameters['num_images']} images of `{parameters['dataset_name']}`, split "
        f"`{parameters['dataset_split']}`; ± half its 95 % interval; in brackets percent of the full grid's.",
        "",
        *segmentation_tables(rows),
    ]
