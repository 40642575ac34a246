"""The job of `spot-hf train-placer`: teaches a model where to look, without labels.

A search tries every foveation of the placer's family on each training image, and its mirror image, and measures how far the
model's answer then is from its own full-grid answer (Kullback-Leibler divergence). The placer learns to tell from a thumbnail
which one agrees best. What is peculiar to one view is averaged out over the two.
"""

import json
import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import nn
from tqdm import tqdm

from ..data.batches import FailureCount, Preparation, batches_of, work_of
from ..data.failures import describe_failures
from ..data.source import DatasetSource, load_images, pinned
from ..foveation import foveate
from ..hub.loading import load_weights, open_model
from ..hub.models import save_model
from ..jobs.arguments import json_object
from ..jobs.directory import JobDirectory, Ledger
from ..jobs.files import write_atomically
from ..jobs.process import job_processes, open_directory
from ..jobs.versions import device_name, versions
from ..modeling_spot_vit import SpotViTForImageClassification
from ..oracle.arguments import DTYPES, check_dtype
from ..oracle.objectives import distill_loss
from ..placer import DEFAULTS, NEW, check_placer, densities, mirrored
from .draws import CHOICE, PIXELS, uniforms


RESULTS = "placer.json"  # is written last
SHARD = 500  # images of a file of the search

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class TrainPlacerArguments(DatasetSource):
    model: str = field(metadata={"help": "The SpotViT classifier that gets a placer: a directory or a Hub id."})
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of its Hub id."})
    dataset_name: str = field(metadata={"help": "digits, a Hub id, or a directory that load_dataset reads."})
    dataset_split: str = field(default="train", metadata={"help": "Split to train on, or a part, as train[:9000]."})  # type: ignore[assignment]
    label_column_name: None = field(init=False, default=None)  # no option: labels are not used
    num_tokens: int = field(default=25, metadata={"help": "Tokens with which foveations are tried; it serves any number."})
    placer: str | None = field(
        default=None, metadata={"help": "JSON of the placer's sizes, such as '{\"grid_size\": 7}', see SpotViTPlacer."}
    )
    sharpness: float = field(
        default=2.0, metadata={"help": "Targets are softmax(-sharpness * log(divergence + 0.01)) over the foveations."}
    )
    num_train_epochs: int = field(default=40, metadata={"help": "Passes over the thumbnails."})
    learning_rate: float = field(default=2e-3, metadata={"help": "Of AdamW, with a cosine schedule."})
    weight_decay: float = field(default=0.05, metadata={"help": "Of matrices."})
    max_shift: int = field(
        default=3, metadata={"help": "Thumbnails are mirrored at random, and moved by at most so many pixels."}
    )
    train_batch_size: int = field(default=64, metadata={"help": "Thumbnails per step."})
    batch_size: int = field(default=50, metadata={"help": "Images per forward pass of the search."})
    dtype: str = field(default="float32", metadata={"help": "Of the search: float32, or bfloat16 or float16 for autocast."})
    num_workers: int = field(default=1, metadata={"help": "Processes that decode ahead."})
    seed: int = field(default=0, metadata={"help": "Of the placer's weights and of the order."})
    output_dir: str = field(metadata={"help": "Where the model with its placer is written. The same command resumes."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Delete the run in --output_dir and start again."})

    def check(self) -> None:
        """`ValueError` for what cannot be, before anything is loaded."""
        self.check_source()
        check_dtype(self.dtype)
        check_placer(self.sizes)
        for name, least in (
            ("num_tokens", 1), ("num_train_epochs", 1), ("train_batch_size", 1), ("batch_size", 1), ("num_workers", 0),
            ("max_shift", 0),
        ):  # fmt: skip
            if getattr(self, name) < least:
                raise ValueError(f"`{name}` must be at least {least}; got {getattr(self, name)}")
        for name in ("sharpness", "learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be above 0; got {getattr(self, name)}")

    @property
    def sizes(self) -> dict[str, Any]:
        """Of the new placer."""
        return {**NEW, **json_object("placer", self.placer or "{}", example='{"grid_size": 7}')}

    def recorded(self) -> dict[str, Any]:
        """On which the weights depend."""
        not_recorded = ("num_workers", "max_failed_share", "output_dir", "overwrite_output_dir", "label_column_name")
        values = {name: value for name, value in asdict(self).items() if name not in not_recorded}
        sizes = {name: value for name, value in self.sizes.items() if value != DEFAULTS[name]}
        values["placer"] = json.dumps(sizes) if sizes else None
        return {**values, **{name: one for name, one in self.recorded_source().items() if name != "label_column_name"}}


def run_placer_training(arguments: TrainPlacerArguments, *, command: str | None = None) -> dict[str, Any]:
    """
    Searches, trains a placer, and writes the model that has it, with the placement `"learned"`, to `output_dir`. Run again
    after it was killed, it goes on with the search.

    Args:
        arguments ([`TrainPlacerArguments`]): what to do.
        command (`str`, *optional*): how this was started, for the record.

    Returns:
        `dict`: what `placer.json` holds.

    Raises:
        `ValueError`: an argument that cannot be, or the directory holds a run with other parameters. `OSError`: no such model
            or data set, or too many images that cannot be read.
    """
    arguments.check()
    arguments = pinned(arguments)
    source = open_model(arguments.model, arguments.revision)
    source.check_vit()
    source.check_classifier()
    images: Any = load_images(arguments.source())
    if len(images) == 0:
        raise ValueError(f"`dataset_split` must have images; {arguments.dataset_split!r} has none")
    directory = JobDirectory(arguments.output_dir)
    with job_processes() as state:
        parameters = {**arguments.recorded(), **source.recorded(), "num_images": len(images)}
        ledger = Ledger(parameters=parameters, command=command, versions=versions(), device=device_name(state.device))
        inputs = [arguments.model, arguments.dataset_name]
        open_directory(state, directory, ledger, overwrite=arguments.overwrite_output_dir, inputs=inputs)
        torch.manual_seed(arguments.seed)
        model: Any = load_weights(
            SpotViTForImageClassification, source, anew=["placer."], placer=arguments.sizes, placement="learned"
        )
        model = model.to(state.device).eval().requires_grad_(False)
        processor = source.load_image_processor()
        found = _Search(arguments, model, processor, images, directory.directory / "search").run()
        losses = _train(arguments, model, *found)
        chosen = _agreement(model, *found)
        results = {**directory.ledger.to_json(), "losses": losses, "divergence": chosen}
        measured = _summary(arguments, results)
        save_model(model, processor, directory.directory, repo_id=Path(arguments.output_dir).name, measured=measured)
        directory.write_json(RESULTS, results)
    logger.info("%s\nwritten to %s: the model, %s", measured, arguments.output_dir, RESULTS)
    return results


class _Search:
    """What every foveation is worth on every image: shards in files, of which a killed search has some."""

    def __init__(self, arguments: TrainPlacerArguments, model: Any, image_processor: Any, images: Any, directory: Path):
        self.arguments, self.model, self.directory = arguments, model, directory
        self.preparation = Preparation(images, image_processor)
        self.num_images = len(images)
        self.mirrored = mirrored(model.placer.placer)

    def run(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Thumbnails `(num_images, num_channels, size, size)`, and divergences `(num_images, num_foveations)`."""
        self.directory.mkdir(exist_ok=True)
        failures = FailureCount(self.arguments.max_failed_share, self.num_images)
        parts = []
        with tqdm(total=self.num_images, desc="search", unit="image") as progress:
            for start in range(0, self.num_images, SHARD):
                rows = range(start, min(start + SHARD, self.num_images))
                path = self.directory / f"{start // SHARD:05d}.safetensors"
                if not path.exists():
                    self._write(path, rows, failures)
                parts.append(load_file(path))
                progress.update(len(rows))
        if failures.failed:
            logger.info(describe_failures(failures.failed))
        return tuple(torch.cat([part[name] for part in parts]) for name in ("thumbnails", "divergence"))  # type: ignore[return-value]

    def _write(self, path: Path, rows: range, failures: FailureCount) -> None:
        work = work_of(rows, self.arguments.batch_size)
        found: dict[str, list[torch.Tensor]] = {"thumbnails": [], "divergence": []}
        for batch in batches_of(self.preparation, work, self.arguments.num_workers, failures):
            if batch.pixel_values is None:
                continue
            pixel_values = batch.pixel_values.to(self.model.device)
            mirror = self._divergence(pixel_values.flip(-1))[:, self.mirrored]
            found["divergence"].append((self._divergence(pixel_values) + mirror) / 2)
            found["thumbnails"].append(self.model.placer.thumbnails(pixel_values).half().cpu())
        if not found["divergence"]:
            raise OSError(f"none of the images {rows.start} to {rows.stop - 1} can be read")
        with write_atomically(path) as file:
            file.write(save({name: torch.cat(values).contiguous() for name, values in found.items()}))

    @torch.inference_mode()
    def _divergence(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Of each foveation from the full grid, `(batch_size, num_foveations)`, float32."""
        model, device = self.model, pixel_values.device
        height, width = pixel_values.shape[-2:]
        candidates = densities(model.placer.placer, device)
        coordinates, scales = foveate(candidates, self.arguments.num_tokens, height, width, model.config.patch_size)
        dtype = DTYPES[self.arguments.dtype]
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            encode = model.spot_vit  # by the encoder: without coordinates it sees the full grid, whatever the config says
            target = model.classifier(encode(pixel_values).pooler_output).float()
            answers = [
                model.classifier(encode(pixel_values, coordinates=one[None], window_scales=scale[None]).pooler_output)
                for one, scale in zip(coordinates, scales, strict=True)
            ]
        return torch.stack([distill_loss(answer.float(), target) for answer in answers], dim=1).cpu()


def _train(arguments: TrainPlacerArguments, model: Any, thumbnails: torch.Tensor, divergence: torch.Tensor) -> list[float]:
    """Trains the placer, and returns the mean loss of each epoch."""
    placer, device = model.placer.requires_grad_(True).train(), model.device
    targets = (-arguments.sharpness * (divergence + 0.01).log()).softmax(-1)
    mirror = mirrored(placer.placer)
    decayed = [one for one in placer.parameters() if one.ndim > 1]
    others = [one for one in placer.parameters() if one.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": arguments.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=arguments.learning_rate,
    )
    per_epoch = -(-len(thumbnails) // arguments.train_batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, arguments.learning_rate, total_steps=arguments.num_train_epochs * per_epoch
    )
    losses = []
    with tqdm(total=arguments.num_train_epochs * per_epoch, desc="training the placer", unit="step") as progress:
        for epoch in range(arguments.num_train_epochs):
            draws = epoch * len(thumbnails) + torch.arange(len(thumbnails))
            order, flipped = uniforms(arguments.seed, draws, CHOICE, 2).unbind(1)
            total = 0.0
            for step, rows in enumerate(order.argsort().split(arguments.train_batch_size)):
                flip = flipped[rows] < 0.5
                seen = torch.where(flip[:, None, None, None], thumbnails[rows].flip(-1), thumbnails[rows]).to(device)
                seen = _shifted(seen.float(), arguments.max_shift, arguments.seed, epoch * per_epoch + step)
                wanted = torch.where(flip[:, None], targets[rows][:, mirror], targets[rows]).to(device)
                loss = nn.functional.cross_entropy(placer(seen), wanted)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                total += loss.item() * len(rows)
                progress.update()
            losses.append(total / len(thumbnails))
            progress.set_postfix(loss=f"{losses[-1]:.3f}")
    placer.requires_grad_(False).eval()
    return losses


def _shifted(thumbnails: torch.Tensor, max_shift: int, seed: int, step: int) -> torch.Tensor:
    """A batch of thumbnails, moved by at most so many pixels; border pixels are repeated."""
    moves = (uniforms(seed, torch.tensor([step]), PIXELS, 2)[0] * (2 * max_shift + 1)).long().tolist()
    height, width = thumbnails.shape[-2:]
    padded = nn.functional.pad(thumbnails, (max_shift,) * 4, mode="replicate")
    return padded[..., moves[0] : moves[0] + height, moves[1] : moves[1] + width]


@torch.inference_mode()
def _agreement(model: Any, thumbnails: torch.Tensor, divergence: torch.Tensor) -> dict[str, float]:
    """Mean divergences from the full grid on the training images: of the flat foveation, of the best single one for all, of
    the placer's choice, and of each image's best."""
    chosen = torch.cat([model.placer(part.to(model.device)).argmax(-1).cpu() for part in thumbnails.split(500)])
    return {
        "flat": divergence[:, 0].mean().item(),
        "best_for_all": divergence.mean(0).min().item(),
        "placer": divergence.gather(1, chosen[:, None]).mean().item(),
        "best": divergence.min(1).values.mean().item(),
    }


def _summary(arguments: TrainPlacerArguments, results: dict[str, Any]) -> str:
    found = results["divergence"]
    return (
        f"It has a placer, trained without labels on {results['parameters']['num_images']} images of "
        f"`{results['parameters']['dataset_name']}`, split `{arguments.dataset_split}`, seed {arguments.seed}. With "
        f"{arguments.num_tokens} tokens, the mean divergence from the full grid's answer on these images is "
        f"{found['flat']:.3f} with windows that just cover, {found['best_for_all']:.3f} with the best foveation for all, "
        f"{found['placer']:.3f} with the placer's, and {found['best']:.3f} with each image's best. Accuracy was not measured "
        "here."
    )
