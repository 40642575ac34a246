"""What the quickstart writes: tables, plots, pictures."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image

from .coordinates.pictures import save_windows_picture
from .evaluation.report import plot
from .evaluation.results import Result
from .image_processing_spot_vit import SpotViTImageProcessorPil
from .jobs.files import QUICKSTART_RESULTS
from .placement import PLACEMENTS, generator_for, place


def place_all(placement: str, num_tokens: int, pixel_values: torch.Tensor, patch_size: int, seed: int) -> torch.Tensor:
    """Coordinates `(num_images, num_tokens, 2)`. Saliency is the contrast to the image's border: of digits, the ink."""
    spec = PLACEMENTS[placement]
    if not spec.random:
        return place(placement, num_tokens, pixel_values[0], patch_size)[None].expand(len(pixel_values), -1, -1)
    sets = []
    for i, image in enumerate(pixel_values):
        saliency = _contrast_to_border(image) if spec.saliency else None
        sets.append(place(placement, num_tokens, image, patch_size, generator_for(seed, i), saliency))
    return torch.stack(sets)


def _contrast_to_border(image: torch.Tensor) -> torch.Tensor:
    """`(num_channels, height, width)` to a saliency map: what differs from the mean of the border is no background."""
    border = torch.cat([image[:, 0], image[:, -1], image[:, :, 0], image[:, :, -1]], dim=1).mean(1)
    contrast = (image - border[:, None, None]).abs().mean(0)
    return contrast if contrast.any() else torch.ones_like(contrast)


def write_report(results: dict[str, Any], dataset: datasets.Dataset, directory: Path, seed: int) -> None:
    """
    Writes `results.json`, `README.md` and the pictures but the oracle's.

    Args:
        results (`dict`): of the quickstart, plain values.
        dataset (`datasets.Dataset`): the images; directory (`Path`): where the models are, too.
        seed (`int`): of random placements.
    """
    first = results["models"]["a"]
    (directory / QUICKSTART_RESULTS).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    with (directory / "accuracy.png").open("wb") as file:
        title = f"{results['dataset']}, {results['num_images']} images: converted, not yet fine-tuned for few tokens"
        plot(file, _as_results(first, results["num_images"]), "cost", "tokens per image", title)
    save_windows_picture(directory / "windows.png", list(_window_rows(first, dataset, directory, seed)))
    (directory / "README.md").write_text(_markdown(results), encoding="utf-8")


def _as_results(result: dict[str, Any], num_images: int) -> list[Result]:
    """Accuracies of a model, for the evaluation's plot."""
    points = {("full_grid", result["num_cells"]): result["full_grid"]}
    points |= {(name, count): value for name, row in result["accuracies"].items() for count, value in row.items()}
    same: dict[str, Any] = {"model": "a", "image_size": None, "num_images": num_images, "num_failed": 0, "num_seeds": 1}
    return [Result(method=name, num_tokens=count, top_1=value, **same) for (name, count), value in points.items()]


def _window_rows(result: dict[str, Any], dataset: datasets.Dataset, directory: Path, seed: int) -> Iterator[list[Any]]:
    """Three images, each with the windows of several placements at a quarter of the tokens."""
    processor = SpotViTImageProcessorPil.from_pretrained(directory / "spot-a", do_rescale=False, do_normalize=False)
    quarter, patch_size = max(1, result["num_cells"] // 4), result["patch_size"]
    images = [row["image"] for row in dataset.select(range(min(3, len(dataset))))]
    pixel_values = torch.as_tensor(np.stack(processor(images, return_tensors="np")["pixel_values"])).float()
    placed = {
        placement: place_all(placement, quarter, pixel_values, patch_size, seed)
        for placement in ("isotropic", "center", "sobol", "grid_subset", "salient", "edge")
    }
    for i, pixels in enumerate(pixel_values):
        image = Image.fromarray(pixels.clamp(0, 255).byte().permute(1, 2, 0).numpy())
        yield [(image, sets[i].numpy(), patch_size, f"{placement}, {quarter}") for placement, sets in placed.items()]


def _oracle_lines(oracle: dict[str, Any]) -> list[str]:
    uses = "which knows the answer: a ceiling, not a method" if oracle["objective"] == "label" else "which uses no label"
    lines = [
        "## Oracle",
        "",
        f"{oracle['num_tokens']} isotropic tokens, {oracle['steps']} steps of AdamW with learning rate "
        f"{oracle['learning_rate']} on the positions of each image, objective `{oracle['objective']}`, {uses}. Model a: "
        f"{oracle['accuracy_before']:.1f} % before, {oracle['accuracy_after']:.1f} % after. "
        "`coordinates/` holds the positions, as a data set with its card.",
        "",
    ]
    if "transfer" in oracle:
        lines += ["Model b, which was trained from another seed, at the positions found for model a:", ""]
        lines += [*oracle["transfer_table"].splitlines()[2:], ""]
    return [*lines, "![oracle](oracle.png)", ""]


def _budget_lines(budgets: dict[str, Any]) -> list[str]:
    counts = budgets["num_tokens"]
    fixed = ", ".join(f"{count} tokens {value:.1f} %" for count, value in zip(counts, budgets["fixed"], strict=True))
    return [
        "## A budget per image",
        "",
        f"Model a, fine-tuned for few tokens with windows that cover the image (`spot-a-few/`), on {budgets['num_images']} of "
        f"the images: {fixed}. Looks with {', '.join(map(str, counts))} tokens in turn, until it is sure, as calibrated on "
        f"the other images: {budgets['accuracy']:.1f} % ({budgets['accuracy_low']:.1f} to {budgets['accuracy_high']:.1f}) at "
        f"{budgets['mean_tokens']:.1f} tokens per image, of all looks.",
        "",
    ]


def _markdown(results: dict[str, Any]) -> str:
    models = results["models"]
    counts = [int(count) for count in next(iter(models["a"]["accuracies"].values()))]
    lines = [
        "# Quickstart",
        "",
        f"Top-1 accuracy in percent on {results['num_images']} held-out images of `{results['dataset']}` (seed "
        f"{results['seed']}), of models that were converted and never trained on few or off-grid tokens. `salient` and "
        "`inverse_salient` use the contrast to the image's border as saliency; windows of `isotropic, cover` are as large as "
        "makes them cover the image.",
    ]
    for name, result in models.items():
        checked = "not compared with its source's class"
        if "max_logit_difference" in result:
            checked = (
                f"source {result['source_accuracy']:.1f} %, largest difference of a logit {result['max_logit_difference']:.1e}"
            )
        lines += [
            "",
            f"## Model {name}: `{result['source']}`",
            "",
            f"Full grid ({result['num_cells']} tokens): {result['full_grid']:.1f} % ({checked}).",
            "",
            "| placement | " + " | ".join(f"{count} tokens" for count in counts) + " |",
            "|---|" + "---:|" * len(counts),
        ]
        for placement, points in result["accuracies"].items():
            lines.append(f"| {placement} | " + " | ".join(f"{points[count]:.1f}" for count in counts) + " |")
    remote = results["remote_code"]
    lines += [
        "",
        f"Loaded by remote code in a process without `spot_hf`: {', '.join(remote['labels'])} with "
        f"{remote['num_tokens'][0]} tokens, {', '.join(remote['full_grid_labels'])} with all.",
        "",
        "![accuracy](accuracy.png)",
        "",
        "![windows](windows.png)",
        "",
        *_oracle_lines(results["oracle"]),
        *(_budget_lines(results["budgets"]) if "budgets" in results else []),
        f"{results['seconds']:.0f} seconds in all.",
        "",
    ]
    return "\n".join(lines)
