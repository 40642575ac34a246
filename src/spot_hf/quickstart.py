"""`spot-hf quickstart`: the whole story on embedded data, offline, in minutes on 2 cores.

Train two small ordinary ViTs on handwritten digits; convert them; show that on the full grid they are what they were;
classify the held-out digits with fewer tokens under every placement; save, and load again by remote code in a process that
cannot import this package; let the oracle find the best positions for one model, and measure what they are worth to the
other; fine-tune one for few tokens, with windows that cover the image, and let it decide how many each image needs; write
tables, plots, pictures, and a data set of coordinates.
"""

import json
import logging
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch
from PIL import Image
from torch import nn
from tqdm import tqdm
from transformers import AutoModelForImageClassification, ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from .configuration_spot_vit import SpotViTConfig
from .conversion.convert import convert_checkpoint
from .coordinates.loading import load_coordinates
from .coordinates.show import ShowArguments, show_coordinates
from .data.digits import DIGITS, DIGITS_SIZE
from .data.labels import LabelledSource, match_labels
from .data.source import DatasetSource, load_images
from .evaluation.arguments import TransferArguments, default_placements
from .evaluation.calibration import CalibrateArguments, run_calibration
from .evaluation.transfer import evaluate_transfer
from .hub.loading import open_model
from .jobs.files import is_written_by_quickstart, replaced_directory
from .modeling_spot_vit import SpotViTForImageClassification
from .oracle.arguments import OracleArguments
from .oracle.run import run_oracle
from .quickstart_report import place_all, write_report
from .training.arguments import TrainArguments
from .training.fine_tuning import run_training
from .training.trainer_arguments import SpotTrainingArguments


logger = logging.getLogger(__name__)

# Full-grid logits of a converted model equal its source's to this, in float32: the rounding of a dozen layers.
GRID_TOLERANCE = 1e-4
EPOCHS, BATCH_SIZE, LEARNING_RATE, PATCH_SIZE = 16, 32, 3e-3, 8
# Of the oracle. Windows are a sixth of a digit's width, and may move further than those of a photograph.
ORACLE_STEPS, ORACLE_LEARNING_RATE = 10, 1e-2
COVERED = "isotropic, cover"  # windows as large as makes them cover the image
# Of fine-tuning for few tokens, and of the budgets: as shares of the grid, and tokens per image, of all looks, likewise.
FEW_EPOCHS, FEW_LEARNING_RATE = 12, 1e-3
LOOKS, MEAN_TOKENS = (1 / 9, 1 / 4, 1), 1 / 2


@dataclass(kw_only=True)
class QuickstartArguments(LabelledSource):
    output_dir: str = field(default="runs/quickstart", metadata={"help": "Where results and models are written."})
    model: list[str] = field(
        default_factory=list,
        metadata={"help": "One or two checkpoints to convert instead of training small ones (anything `convert` takes)."},
    )
    batch_size: int = field(default=64, metadata={"help": "Images per forward pass."})
    seed: int = field(default=0, metadata={"help": "Seed of training and of random placements."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Replace what a command wrote to --output_dir."})

    def check(self) -> None:
        """`ValueError` for what no quickstart can have, before anything is loaded."""
        self.check_source(needs_labels=True)
        if self.batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1; got {self.batch_size}")
        if len(self.model) > 2:
            raise ValueError(f"`model` takes one or two checkpoints; got {len(self.model)}")
        if not self.model and self.dataset_name != DIGITS:
            raise ValueError(
                f"`model` is needed with `dataset_name` {self.dataset_name!r}: small models are trained on digits only"
            )


def run_quickstart(arguments: QuickstartArguments) -> dict[str, Any]:
    """
    Runs the story and writes it to `output_dir`: `README.md`, `results.json`, `accuracy.png`, `windows.png`, `oracle.png`, the
    models, and the coordinate data set `coordinates/`. A finished quickstart of this command may always be replaced.

    Args:
        arguments ([`QuickstartArguments`]): which images; and which checkpoints, or none: then two small ones are trained.

    Returns:
        `dict`: what `results.json` holds.

    Raises:
        `ValueError`, `OSError`: bad input, before anything is written.
    """
    arguments.check()
    start = time.time()
    dataset: Any = load_images(arguments.source())
    overwrite = arguments.overwrite_output_dir or is_written_by_quickstart(Path(arguments.output_dir))
    with replaced_directory(arguments.output_dir, overwrite, inputs=arguments.model) as directory:
        name = arguments.dataset_name
        results: dict[str, Any] = {
            "dataset": name if name == DIGITS else Path(name).name,
            "num_images": len(dataset),
            "seed": arguments.seed,
            "models": {
                name: _one_model(name, source, dataset, directory, arguments)
                for name, source in _sources(arguments, directory).items()
            },
        }
        few = [row["image"] for row in dataset.select(range(min(4, len(dataset))))]
        results["remote_code"] = check_remote_code(directory / "spot-a", few)
        logger.info("loaded by remote code in a process without spot_hf: %s", results["remote_code"]["labels"])
        results["oracle"] = _oracle(directory, results["models"], dataset, arguments)
        if not arguments.model:
            results["budgets"] = _budgets(directory, results["models"]["a"], arguments)
        for row in results["models"].values():
            row["source"] = Path(row["source"]).name
        results["seconds"] = round(time.time() - start, 1)
        write_report(results, dataset, directory, arguments.seed)
    logger.info((Path(arguments.output_dir) / "README.md").read_text(encoding="utf-8"))
    written = "README.md, results.json, pictures, the models, and the coordinates in coordinates/"
    logger.info("written to %s: %s", arguments.output_dir, written)
    return results


def _sources(arguments: QuickstartArguments, directory: Path) -> dict[str, str]:
    """The checkpoints to convert, `a` and, where there is a second, `b`."""
    if arguments.model:
        return dict(zip("ab", arguments.model, strict=False))
    train: Any = load_images(DatasetSource(dataset_split="train"))
    return {name: train_digits_vit(train, directory / f"source-{name}", arguments.seed + i) for i, name in enumerate("ab")}


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
    name: str, source: str, dataset: datasets.Dataset, directory: Path, arguments: QuickstartArguments
) -> dict[str, Any]:
    """Converts one source and classifies the images with all tokens and with fewer."""
    batch_size = arguments.batch_size
    report = convert_checkpoint(source, directory / f"spot-{name}", repo_id=f"spot-{name}")
    report.output_dir = None  # a temporary one, until all is done
    logger.info("\n%s", report.summary())
    if not isinstance(report.model, SpotViTForImageClassification):
        raise ValueError(f"`model` {source!r} has no classifier: the quickstart needs one")
    model, processor = report.model.eval(), report.image_processor
    mapping = match_labels(dataset.features["label"], model.config, arguments)
    logger.info(mapping.description)
    labels = torch.from_numpy(mapping.of(dataset))
    pixel_values = torch.cat([
        processor([row.convert("RGB") for row in dataset[i : i + batch_size]["image"]], return_tensors="pt")["pixel_values"]
        for i in tqdm(range(0, len(dataset), batch_size), desc="decoding", unit="batch", leave=False)
    ])  # fmt: skip
    patch_size = model.config.patch_size
    grid_logits = _logits(model, pixel_values, None, batch_size)
    result: dict[str, Any] = {"source": source, "full_grid": _percent(grid_logits, labels)}
    if report.model_type is not None:  # in its own class, to compare with; timm's and bare files have none in transformers
        result.update(_compare_with_source(source, grid_logits, pixel_values, labels, batch_size))
    result.update(
        num_cells=(pixel_values.shape[-2] // patch_size) * (pixel_values.shape[-1] // patch_size),
        patch_size=patch_size,
        num_labels=model.config.num_labels,
    )
    accuracies: dict[str, dict[int, float]] = {name: {} for name in default_placements(with_saliency=True)}
    counts = _token_counts(result["num_cells"])
    accuracies[COVERED] = {}
    with tqdm(total=len(accuracies) * len(counts), desc="classifying with few tokens", unit="run") as progress:
        for placement, points in accuracies.items():
            for num_tokens in counts:
                if placement == COVERED:
                    logits = _logits(model, pixel_values, None, batch_size, num_tokens=num_tokens)
                else:
                    coordinates = place_all(placement, num_tokens, pixel_values, patch_size, arguments.seed)
                    logits = _logits(model, pixel_values, coordinates, batch_size)
                points[num_tokens] = _percent(logits, labels)
                progress.set_postfix_str(f"{placement} {num_tokens}: {points[num_tokens]:.1f} %")
                progress.update()
    return {**result, "accuracies": accuracies}


def _compare_with_source(
    source: str, grid_logits: torch.Tensor, pixel_values: torch.Tensor, labels: torch.Tensor, batch_size: int
) -> dict[str, float]:
    """What the source's own class says of the same images; `RuntimeError` where the converted model says something else."""
    original = AutoModelForImageClassification.from_pretrained(source).eval()
    reference = _logits(original, pixel_values, None, batch_size)
    difference = (grid_logits - reference).abs().max().item()
    found = {"max_logit_difference": difference, "source_accuracy": _percent(reference, labels)}
    if difference > GRID_TOLERANCE:
        raise RuntimeError(f"the converted model's logits differ from its source's by {difference}")
    logger.info(
        f"full grid: {_percent(grid_logits, labels):.1f} %, the source {found['source_accuracy']:.1f} %; largest difference "
        f"of a logit {difference:.1e}: equal within {GRID_TOLERANCE:.0e}"
    )
    return found


def _token_counts(num_cells: int) -> list[int]:
    """A sixteenth to all of the grid, a quarter among them."""
    return sorted({max(1, round(num_cells * share)) for share in (1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1)})


@torch.inference_mode()
def _logits(
    model: nn.Module, pixel_values: torch.Tensor, coordinates: torch.Tensor | None, batch_size: int, **options: Any
) -> torch.Tensor:
    outputs: list[torch.Tensor] = []
    for i in range(0, len(pixel_values), batch_size):
        placed = {} if coordinates is None else {"coordinates": coordinates[i : i + batch_size]}
        outputs.append(model(pixel_values=pixel_values[i : i + batch_size], **placed, **options).logits)
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


def _oracle(
    directory: Path, models: dict[str, Any], dataset: datasets.Dataset, arguments: QuickstartArguments
) -> dict[str, Any]:
    """Positions for model a, what they are worth to model b, and a picture of one image."""
    coordinates = directory / "coordinates"
    images = {**vars(arguments.source()), "dataset_split": str(dataset.split)}
    images = {name: value for name, value in images.items() if name not in ("streaming", "saliency_column_name", "boxes_csv")}
    search = OracleArguments(
        model=str(directory / "spot-a"),
        objective="label",
        num_tokens=[max(1, models["a"]["num_cells"] // 4)],
        steps=ORACLE_STEPS,
        learning_rate=ORACLE_LEARNING_RATE,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
        num_workers=0,
        save_trajectories=True,
        output_dir=str(coordinates),
        **images,
    )
    with quiet():
        (summary,) = run_oracle(search, command="spot-hf quickstart").values()
    rows = load_coordinates(coordinates)
    logger.info(
        f"\noracle ({search.objective}), {search.num_tokens[0]} tokens: accuracy of model a {summary.accuracy_before:.1f} -> "
        f"{summary.accuracy_after:.1f} %; {len(rows)} rows reloaded from coordinates/\n"
    )
    result: dict[str, Any] = {
        "objective": search.objective,
        "num_tokens": search.num_tokens[0],
        "steps": search.steps,
        "learning_rate": search.learning_rate,
        "accuracy_before": summary.accuracy_before,
        "accuracy_after": summary.accuracy_after,
    }
    if "b" in models:
        transfer = TransferArguments(
            model=str(directory / "spot-b"), coordinates=str(coordinates), batch_size=arguments.batch_size, **images
        )
        found = evaluate_transfer(transfer)
        result["transfer"], result["transfer_table"] = found.to_json(), found.table()
    _draw_one(rows, coordinates, directory, arguments)
    return result


def _draw_one(rows: datasets.Dataset, coordinates: Path, directory: Path, arguments: QuickstartArguments) -> None:
    """`oracle.png`: an image that the positions made right, if there is one."""
    model = open_model(str(directory / "spot-a"))
    class_of = match_labels(rows.features["label"], model.config, arguments)
    made_right = [
        row["image_id"] for row in rows.select_columns(["image_id", "label", "initial_prediction", "prediction"])
        if row["prediction"] == class_of(row["label"]) != row["initial_prediction"]
    ]  # fmt: skip
    show = ShowArguments(
        coordinates=str(coordinates),
        image_id=[(made_right or [rows[0]["image_id"]])[0]],
        output_dir=str(directory),
        dataset_name=arguments.dataset_name,
        dataset_config_name=arguments.dataset_config_name,
    )
    with quiet():
        (picture, *others) = show_coordinates(show)
    picture.rename(directory / "oracle.png")
    for other in others:  # of further images with that name
        other.unlink()


def _budgets(directory: Path, first: dict[str, Any], arguments: QuickstartArguments) -> dict[str, Any]:
    """Fine-tunes model a for few tokens that cover the image, and calibrates when it is sure."""
    num_cells, few = first["num_cells"], directory / "spot-a-few"
    looks = [max(1, round(num_cells * share)) for share in LOOKS]
    train = TrainArguments(
        model=str(directory / "spot-a"),
        dataset_name=DIGITS,
        num_tokens=looks,
        placement=["isotropic", "foveated"],
        window_scales=["cover"],
        crop_scale=[0.7, 1.0],
        flip=0.0,
    )
    training = SpotTrainingArguments(
        str(few), learning_rate=FEW_LEARNING_RATE, num_train_epochs=FEW_EPOCHS, per_device_train_batch_size=BATCH_SIZE,
        eval_strategy="no", save_strategy="no", dataloader_num_workers=0, report_to="none", seed=arguments.seed,
    )  # fmt: skip
    calibrate = CalibrateArguments(
        model=str(few), dataset_name=DIGITS, num_tokens=looks, mean_tokens=MEAN_TOKENS * num_cells, num_workers=0
    )
    with quiet():
        run_training(train, training)
        calibration = run_calibration(calibrate)
    config = SpotViTConfig.from_pretrained(few)
    chosen = [point["confidence"] for point in calibration["points"]].index(config.confidence)
    measured = calibration["evaluation"]
    result = {
        "num_tokens": looks,
        "fixed": [one["value"] for one in measured["fixed"]],
        "num_images": measured["num_images"],
        **{name: measured["points"][chosen][name] for name in ("mean_tokens", "accuracy", "accuracy_low", "accuracy_high")},
    }
    logger.info(
        f"\nfine-tuned for {', '.join(map(str, looks))} tokens, with windows that cover: {result['accuracy']:.1f} % at "
        f"{result['mean_tokens']:.1f} tokens per image, where it looks again until it is sure\n"
    )
    return result


@contextmanager
def quiet() -> Iterator[None]:
    """Without what jobs log while they run inside of this one."""
    jobs = [logging.getLogger(f"{__package__}.{name}") for name in ("oracle", "coordinates", "training", "evaluation")]
    levels = [job.level for job in jobs]
    for job in jobs:
        job.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for job, level in zip(jobs, levels, strict=True):
            job.setLevel(level)
