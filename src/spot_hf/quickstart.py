"""`spot-hf quickstart`: the whole story on embedded data, offline, in minutes on 2 cores.

Train two small ordinary ViTs on handwritten digits; convert them; show that on the full grid they are what they were;
classify the held-out digits with fewer tokens under every placement; save, and load again by remote code in a process that
cannot import this package; let the oracle find the best positions for one model, and measure what they are worth to the
other; write tables, plots, pictures, and a data set of coordinates.
"""

import json
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from torch import nn
from tqdm import tqdm
from transformers import AutoModelForImageClassification, ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from .conversion.convert import convert_checkpoint
from .coordinates.loading import load_coordinates
from .coordinates.pictures import save_windows_picture
from .coordinates.show import show_coordinates
from .data.digits import DIGITS, DIGITS_SIZE
from .data.source import load_images
from .evaluation.plots import save_accuracy_plot
from .evaluation.transfer import evaluate_transfer, transfer_table
from .jobs.files import replaced_directory
from .modeling_spot_vit import SpotViTForImageClassification
from .oracle.arguments import OracleRunArguments
from .oracle.run import run_oracle
from .placement import PLACEMENTS, generator_for, place


# Full-grid logits of a converted model equal its source's to this, in float32: the rounding of a dozen layers.
GRID_TOLERANCE = 1e-4
EPOCHS, BATCH_SIZE, LEARNING_RATE, PATCH_SIZE = 16, 32, 3e-3, 8
# Of the oracle. Windows are a sixth of a digit's width, and may move further than those of a photograph.
ORACLE_STEPS, ORACLE_LEARNING_RATE = 10, 1e-2


def run_quickstart(
    *,
    output_dir: str,
    model: list[str],
    dataset_name: str,
    dataset_config_name: str | None = None,
    dataset_split: str | None = None,
    image_column_name: str = "image",
    label_column_name: str = "label",
    max_samples: int | None = None,
    batch_size: int = 64,
    seed: int = 0,
    overwrite_output_dir: bool = False,
) -> dict[str, Any]:
    """
    Runs the story and writes it to `output_dir`: `README.md`, `results.json`, `accuracy.png`, `windows.png`, `oracle.png`, the
    models, and the coordinate data set `coordinates/`.

    Args:
        output_dir (`str`): where to write.
        model (`list[str]`): one or two checkpoints to convert; none: train two small ones, which needs `digits`.
        dataset_name, dataset_config_name, dataset_split, image_column_name, label_column_name, max_samples: the images to
            classify, as in [`load_images`].
        batch_size (`int`): images per forward pass.
        seed (`int`): of training and of random placements.
        overwrite_output_dir (`bool`): replace what is there. A finished quickstart of this command may always be replaced.

    Returns:
        `dict`: what `results.json` holds.

    Raises:
        `ValueError`, `OSError`: bad input, before anything is written.
    """
    start = time.time()
    if len(model) > 2:
        raise ValueError(f"`model` takes one or two checkpoints; got {len(model)}")
    if not model and dataset_name != DIGITS:
        raise ValueError(f"`model` is needed with `dataset_name` {dataset_name!r}: small models are trained on digits only")
    dataset = load_images(
        dataset_name,
        config_name=dataset_config_name,
        split=dataset_split,
        image_column_name=image_column_name,
        label_column_name=label_column_name,
        max_samples=max_samples,
    )
    overwrite = overwrite_output_dir or _is_quickstart(Path(output_dir))
    with replaced_directory(output_dir, overwrite, inputs=model) as directory:
        if model:
            sources = dict(zip("ab", model, strict=False))
        else:
            train = load_images(DIGITS, split="train")
            sources = {name: train_digits_vit(train, directory / f"source-{name}", seed + i) for i, name in enumerate("ab")}
        results: dict[str, Any] = {
            "dataset": dataset_name if dataset_name == DIGITS else Path(dataset_name).name,
            "num_images": len(dataset),
            "seed": seed,
            "models": {},
        }
        for name, source in sources.items():
            results["models"][name] = _one_model(name, source, dataset, directory, batch_size, seed)
        first = directory / "spot-a"
        results["remote_code"] = check_remote_code(
            first, [row["image"] for row in dataset.select(range(min(4, len(dataset))))]
        )
        print(f"loaded by remote code in a process without spot_hf: {results['remote_code']['labels']}")
        results["oracle"] = _run_oracle(
            directory,
            results["models"],
            dataset,
            OracleRunArguments(
                model=str(first),
                dataset_name=dataset_name,
                dataset_config_name=dataset_config_name,
                dataset_split=str(dataset.split),
                image_column_name=image_column_name,
                label_column_name=label_column_name,
                max_samples=max_samples,
                num_tokens=[max(1, results["models"]["a"]["num_cells"] // 4)],
                steps=ORACLE_STEPS,
                learning_rate=ORACLE_LEARNING_RATE,
                batch_size=batch_size,
                seed=seed,
                num_workers=0,
                save_trajectories=True,
            ),
        )
        for row in results["models"].values():
            row["source"] = Path(row["source"]).name
        results["seconds"] = round(time.time() - start, 1)
        _write(results, dataset, directory, seed)
    print((Path(output_dir) / "README.md").read_text(encoding="utf-8"))
    print(f"written to {output_dir}: README.md, results.json, pictures, the models, and the coordinates in coordinates/")
    return results


def _is_quickstart(directory: Path) -> bool:
    """Whether an earlier run of this command wrote the directory: it may be replaced unasked."""
    try:
        results = json.loads((directory / "results.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(results, dict) and {"models", "remote_code", "num_images"} <= set(results)


def train_digits_vit(train: datasets.Dataset, directory: Path, seed: int) -> str:
    """Trains a small ordinary `ViTForImageClassification` (36 tokens of 8 × 8 pixels) and saves it as anyone would."""
    torch.manual_seed(seed)
    names = train.features["label"].names
    config = ViTConfig(
        hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128, initializer_range=0.06,
        image_size=DIGITS_SIZE, patch_size=PATCH_SIZE,
        id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)},
    )  # fmt: skip
    model = ViTForImageClassification(config).train()
    processor = ViTImageProcessorPil(size={"height": DIGITS_SIZE, "width": DIGITS_SIZE})
    pixel_values = processor(list(train["image"]), return_tensors="pt")["pixel_values"]
    labels = torch.tensor(train["label"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
    steps = EPOCHS * (len(labels) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    with tqdm(total=steps, desc=f"training an ordinary ViT on digits, seed {seed}", unit="step") as progress:
        for _ in range(EPOCHS):
            order = torch.randperm(len(labels))
            for index in order[: len(labels) // BATCH_SIZE * BATCH_SIZE].split(BATCH_SIZE):
                # A digit stays what it is when it moves by a few pixels.
                shift = torch.randint(-3, 4, (2,)).tolist()
                images = pixel_values[index].roll(shift, dims=(2, 3))
                loss = model(pixel_values=images, labels=labels[index]).loss
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                progress.update()
            progress.set_postfix(loss=f"{loss.item():.3f}")
    model.eval().save_pretrained(directory)
    processor.save_pretrained(directory)
    return str(directory)


def _one_model(
    name: str, source: str, dataset: datasets.Dataset, directory: Path, batch_size: int, seed: int
) -> dict[str, Any]:
    """Converts one source and classifies the images with all tokens and with fewer."""
    report = convert_checkpoint(source, directory / f"spot-{name}", repo_id=f"spot-{name}")
    report.output_dir = None  # a temporary one, until all is done
    print(f"\n{report.summary()}")
    if not isinstance(report.model, SpotViTForImageClassification):
        raise ValueError(f"`model` {source!r} has no classifier: the quickstart needs one")
    model, processor = report.model.eval(), report.image_processor
    labels = torch.tensor(dataset["label"])
    pixel_values = torch.cat([
        processor([row.convert("RGB") for row in dataset[i : i + batch_size]["image"]], return_tensors="pt")["pixel_values"]
        for i in tqdm(range(0, len(dataset), batch_size), desc="decoding", unit="batch", leave=False)
    ])  # fmt: skip

    grid_logits = _logits(model, pixel_values, None, batch_size)
    full_grid = _percent(grid_logits, labels)
    result: dict[str, Any] = {"source": source, "full_grid": full_grid}
    if report.model_type is not None:  # in its own class, to compare with; timm's and bare files have none in transformers
        original = AutoModelForImageClassification.from_pretrained(source).eval()
        reference = _logits(original, pixel_values, None, batch_size)
        result["max_logit_difference"] = (grid_logits - reference).abs().max().item()
        result["source_accuracy"] = _percent(reference, labels)
        verdict = "equal" if result["max_logit_difference"] <= GRID_TOLERANCE else "NOT EQUAL"
        print(
            f"full grid: {full_grid:.1f} %, the source {result['source_accuracy']:.1f} %; largest difference of a logit "
            f"{result['max_logit_difference']:.1e}: {verdict} within {GRID_TOLERANCE:.0e}"
        )
        if verdict != "equal":
            raise RuntimeError(f"the converted model's logits differ from its source's by {result['max_logit_difference']}")

    num_cells = (pixel_values.shape[-2] // model.config.patch_size) * (pixel_values.shape[-1] // model.config.patch_size)
    accuracies: dict[str, dict[int, float]] = {}
    placements = [placement for placement in PLACEMENTS if placement != "grid"]
    counts = _token_counts(num_cells)
    with tqdm(total=len(placements) * len(counts), desc="classifying with few tokens", unit="run") as progress:
        for placement in placements:
            accuracies[placement] = {}
            for num_tokens in counts:
                coordinates = _place_all(placement, num_tokens, pixel_values, model.config.patch_size, seed)
                accuracies[placement][num_tokens] = _percent(_logits(model, pixel_values, coordinates, batch_size), labels)
                progress.set_postfix_str(f"{placement} {num_tokens}: {accuracies[placement][num_tokens]:.1f} %")
                progress.update()
    result.update(num_cells=num_cells, patch_size=model.config.patch_size, num_labels=model.config.num_labels)
    result["accuracies"] = accuracies
    return result


def _token_counts(num_cells: int) -> list[int]:
    """A sixteenth to all of the grid, a quarter among them."""
    return sorted({max(1, round(num_cells * share)) for share in (1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1)})


def _place_all(placement: str, num_tokens: int, pixel_values: torch.Tensor, patch_size: int, seed: int) -> torch.Tensor:
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


@torch.inference_mode()
def _logits(model: nn.Module, pixel_values: torch.Tensor, coordinates: torch.Tensor | None, batch_size: int) -> torch.Tensor:
    outputs: list[torch.Tensor] = []
    for i in range(0, len(pixel_values), batch_size):
        placed = {} if coordinates is None else {"coordinates": coordinates[i : i + batch_size]}
        outputs.append(model(pixel_values=pixel_values[i : i + batch_size], **placed).logits)
    return torch.cat(outputs)


def _percent(logits: torch.Tensor, labels: torch.Tensor) -> float:
    return round(100 * (logits.argmax(-1) == labels).double().mean().item(), 2)


# In a fresh process where this package cannot be imported: only what was saved, and transformers.
REMOTE_SCRIPT = """
    import importlib.abc, json, sys

    class Refuse(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] == "spot_hf":
                raise ModuleNotFoundError(name)

    sys.meta_path.insert(0, Refuse())
    from transformers import pipeline

    directory, *images = sys.argv[1:]
    stock = pipeline("image-classification", model=directory, trust_remote_code=True)
    spot = pipeline("spot-image-classification", model=directory, trust_remote_code=True)
    rows, columns = spot.model.config.position_rows_columns
    quarter = max(1, rows * columns // 4)
    few = spot(images, num_tokens=quarter, return_coordinates=True, top_k=1)
    assert "spot_hf" not in sys.modules
    print(json.dumps({
        "full_grid_labels": [answer[0]["label"] for answer in stock(images, top_k=1)],
        "labels": [answer["predictions"][0]["label"] for answer in few],
        "num_tokens": [len(answer["coordinates"]) for answer in few],
    }))
"""


def check_remote_code(directory: Path, images: list[Image.Image]) -> dict[str, Any]:
    """Loads a saved model as someone without this package would, runs both pipelines, and returns what they said."""
    folder = directory.parent / "images"
    folder.mkdir()
    files = []
    for i, image in enumerate(images):
        files.append(str(folder / f"{i}.png"))
        image.convert("RGB").save(files[-1])
    command = [sys.executable, "-c", textwrap.dedent(REMOTE_SCRIPT), str(directory), *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"loading {directory} by remote code failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def _run_oracle(
    directory: Path, models: dict[str, Any], dataset: datasets.Dataset, arguments: OracleRunArguments
) -> dict[str, Any]:
    """Positions for model a, what they are worth to model b, and a picture of one image."""
    coordinates = directory / "coordinates"
    if len(dataset.features["label"].names) > models["a"]["num_labels"]:
        arguments.objective = "distill"  # the labels are not those of the model
    (summary,) = run_oracle(arguments, coordinates, command="spot-hf quickstart", say=lambda _: None).values()
    rows = load_coordinates(coordinates)
    print(
        f"\noracle ({arguments.objective}), {arguments.num_tokens[0]} tokens: accuracy of model a "
        f"{summary.accuracy_before:.1f} % -> {summary.accuracy_after:.1f} %; {len(rows)} rows reloaded from coordinates/\n"
    )
    result = {
        "objective": arguments.objective,
        "num_tokens": arguments.num_tokens[0],
        "steps": arguments.steps,
        "learning_rate": arguments.learning_rate,
        "accuracy_before": summary.accuracy_before,
        "accuracy_after": summary.accuracy_after,
    }
    if "b" in models:
        result["transfer"] = evaluate_transfer(
            str(directory / "spot-b"),
            str(coordinates),
            arguments.dataset_name,
            dataset_config_name=arguments.dataset_config_name,
            image_column_name=arguments.image_column_name,
            label_column_name=str(arguments.label_column_name),
            batch_size=arguments.batch_size,
        )
    # An image that the positions made right, if there is one.
    made_right = [
        row["image_id"] for row in rows.select_columns(["image_id", "label", "initial_prediction", "prediction"])
        if row["prediction"] == row["label"] != row["initial_prediction"]
    ]  # fmt: skip
    (picture,) = show_coordinates(
        str(coordinates),
        [(made_right or [rows[0]["image_id"]])[0]],
        directory,
        dataset_name=arguments.dataset_name,
        dataset_config_name=arguments.dataset_config_name,
        say=lambda _: None,
    )
    picture.rename(directory / "oracle.png")
    return result


def _write(results: dict[str, Any], dataset: datasets.Dataset, directory: Path, seed: int) -> None:
    first = results["models"]["a"]
    (directory / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    save_accuracy_plot(
        directory / "accuracy.png",
        first["accuracies"],
        first["full_grid"],
        f"{results['dataset']}, {results['num_images']} images: converted, not yet fine-tuned for few tokens",
    )
    save_windows_picture(directory / "windows.png", list(_window_rows(first, dataset, directory, seed)))
    (directory / "README.md").write_text(_markdown(results), encoding="utf-8")


def _window_rows(result: dict[str, Any], dataset: datasets.Dataset, directory: Path, seed: int) -> Iterator[list[Any]]:
    """Three images, each with the windows of several placements at a quarter of the tokens."""
    from .image_processing_spot_vit import SpotViTImageProcessorPil

    processor = SpotViTImageProcessorPil.from_pretrained(directory / "spot-a", do_rescale=False, do_normalize=False)
    quarter, patch_size = max(1, result["num_cells"] // 4), result["patch_size"]
    images = [row["image"] for row in dataset.select(range(min(3, len(dataset))))]
    pixel_values = torch.as_tensor(np.stack(processor(images, return_tensors="np")["pixel_values"])).float()
    placed = {
        placement: _place_all(placement, quarter, pixel_values, patch_size, seed)
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
        lines += [*transfer_table(oracle["transfer"]).splitlines()[2:], ""]
    return [*lines, "![oracle](oracle.png)", ""]


def _markdown(results: dict[str, Any]) -> str:
    models = results["models"]
    counts = [int(count) for count in next(iter(models["a"]["accuracies"].values()))]
    lines = [
        "# Quickstart",
        "",
        f"Top-1 accuracy in percent on {results['num_images']} held-out images of `{results['dataset']}` (seed "
        f"{results['seed']}), of models that were converted and never trained on few or off-grid tokens. `salient` and "
        "`inverse_salient` use the contrast to the image's border as saliency.",
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
        f"{results['seconds']:.0f} seconds in all.",
        "",
    ]
    return "\n".join(lines)
