"""Masked pre-training (SPoT-MAE): `spot-hf pretrain`, on the Trainer of `training.py` and its data.

As MAE (He et al. 2021, arXiv 2111.06377), but for positions: those of all tokens are drawn anew each step and image, the
encoder sees a quarter of the windows, and the decoder predicts the others. No labels. What is written is a SpotViT directory;
`spot-hf train --classifier new` goes on with its encoder.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import TrainingArguments, set_seed
from transformers.trainer_utils import IntervalStrategy

from ..configuration_spot_vit import SpotViTConfig
from ..coordinates.pictures import save_reconstruction_picture
from ..data.source import load_images
from ..hub.loading import load_image_processor, load_spot_vit_config
from ..image_processing_spot_vit import SpotViTImageProcessor
from ..jobs.versions import public_name, weights_digest
from ..pretraining_spot_vit import SpotViTForPreTraining
from .arguments import OF_TRAINER, SpotTrainingArguments
from .batches import BatchPreparation
from .data import TrainingImages
from .draws import MASK, uniforms
from .placements import TrainingPlacements
from .report import save_learning_curves
from .run import TrainingRun
from .trainer import SpotTrainer


RESULTS = "pretraining.json"  # is written last
PICTURED = 4  # images in the picture of a run


# --------------------------------------------------------------------------------------------------------- arguments


@dataclass(kw_only=True)
class PretrainArguments:
    """What is trained on what. How, beyond this, is [`SpotPretrainingArguments`]."""

    model: str | None = field(
        default=None, metadata={"help": "The SpotViT to go on with: a directory or a Hub id (default: a new ViT-B/16)."}
    )
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a Hub id."})
    config_overrides: str | None = field(
        default=None,
        metadata={
            "help": "Fields of SpotViTConfig, as JSON: of a new model any, such as '{\"hidden_size\": 192}'; of --model those "
            "of the decoder."
        },
    )
    mask_ratio: float = field(default=0.75, metadata={"help": "Share of an image's tokens that the encoder does not see."})
    norm_pix_loss: bool = field(default=True, metadata={"help": "Predict pixels in standard deviations from a window's mean."})
    dataset_name: str = field(metadata={"help": "digits, a Hub id, or a directory that load_dataset reads."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Config of that data set."})
    dataset_split: str = field(default="train", metadata={"help": "Split to train on."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the data set's Hub id."})
    image_column_name: str = field(default="image", metadata={"help": "Column of the images."})
    max_samples: int | None = field(default=None, metadata={"help": "Train on the first so many images only."})
    num_tokens: list[int] | None = field(
        default=None,
        metadata={"help": "Tokens per image, seen and masked; every batch has one of these (default: all cells)."},
    )
    placement: list[str] = field(
        default_factory=lambda: ["isotropic", "sobol", "uniform"],
        metadata={"help": "Priors; every image is placed by one of them."},
    )
    jitter: float = field(default=0.25, metadata={"help": "Normal step that moves every token, in patches."})
    crop_scale: list[float] = field(
        default_factory=lambda: [0.2, 1.0],
        metadata={"help": "Random resized crop: lowest and highest share of the image's area."},
    )
    crop_ratio: list[float] = field(
        default_factory=lambda: [3 / 4, 4 / 3], metadata={"help": "Random resized crop: lowest and highest width / height."}
    )
    flip: float = field(default=0.5, metadata={"help": "How many of the images are mirrored."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Replace what is in --output_dir, and begin anew."})

    def check(self, training: TrainingArguments) -> None:
        """`ValueError` for what no run can have, before anything is loaded."""
        for name in ("crop_scale", "crop_ratio"):
            if len(getattr(self, name)) != 2:
                raise ValueError(f"`{name}` must be two numbers, the lowest and the highest; got {getattr(self, name)}")
        if self.max_samples is not None and self.max_samples < 1:
            raise ValueError(f"`max_samples` must be at least 1; got {self.max_samples}")
        given = training.to_dict()
        for name, value in (("eval_strategy", "no"), ("remove_unused_columns", False)):
            if given[name] != value:
                raise ValueError(f"`{name}` must be {value} in pre-training; got {given[name]}")
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"`mask_ratio` must be above 0 and below 1; got {self.mask_ratio}")
        known = [one for one in SpotViTConfig.__dataclass_fields__ if self.model is None or one.startswith("decoder_")]
        wrong = [one for one in self.overrides if one not in known]
        if wrong:
            accepted = "fields of SpotViTConfig" if self.model is None else "the decoder's fields, as `model` is given"
            raise ValueError(f"`config_overrides` must be {accepted}; got {', '.join(wrong)}")

    @property
    def overrides(self) -> dict[str, Any]:
        """What `config_overrides` says."""
        try:
            overrides = json.loads(self.config_overrides or "{}")
        except ValueError:
            overrides = None
        if not isinstance(overrides, dict):
            raise ValueError(
                f"`config_overrides` must be a JSON object, such as '{{\"hidden_size\": 192}}'; got {self.config_overrides!r}"
            )
        return overrides

    def recorded(self, training: TrainingArguments) -> dict[str, Any]:
        """On which the weights depend. Of what lies on this machine the name, not the path."""
        parameters = {**asdict(self), "dataset_name": public_name(self.dataset_name)}
        del parameters["overwrite_output_dir"]
        if self.model is not None:
            parameters.update(model=public_name(self.model), model_sha256=weights_digest(self.model))
        given = training.to_dict()
        return {**parameters, **{name: given[name] for name in OF_TRAINER}}


@dataclass(kw_only=True)
class SpotPretrainingArguments(SpotTrainingArguments):
    """Those of fine-tuning, with MAE's defaults (its appendix A)."""

    learning_rate: float = field(default=1.5e-4, metadata={"help": "MAE: 1.5e-4 per 256 images of a step."})
    adam_beta2: float = field(default=0.95, metadata={"help": "Of AdamW."})
    eval_strategy: IntervalStrategy | str = field(default="no", metadata={"help": "Must be no."})
    metric_for_best_model: str | None = field(default=None, metadata={"help": "None is measured."})


# ----------------------------------------------------------------------------------------------------------- trainer


class SpotPretrainer(SpotTrainer):
    """Trainer for [`SpotViTForPreTraining`]: on batches of [`TrainingImages`], whose tokens it places and masks, by draw."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, compute_metrics=None, **kwargs)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        num_tokens = self.preparation.placements.num_tokens_at(self.state.global_step)
        noise = uniforms(self.preparation.placements.seed, inputs["draw"], MASK, num_tokens)
        outputs = model(**self.preparation(inputs, num_tokens).inputs, noise=noise)
        return (outputs.loss, outputs) if return_outputs else outputs.loss


# ----------------------------------------------------------------------------------------------------------- the run


def run_pretraining(
    arguments: PretrainArguments,
    training: SpotPretrainingArguments,
    *,
    command: str | None = None,
    say: Callable[[str], Any] = print,
) -> dict[str, Any]:
    """
    Pre-trains a model, and writes it to `training.output_dir`: with its decoder, card, `pretraining.json` (the log),
    `pretraining.png` (the loss), `reconstruction.png` (images of the data set's test or validation split) and the last
    checkpoints. Run again after it was killed, it goes on from the last whole one.

    Args:
        arguments ([`PretrainArguments`]): what is trained on what.
        training ([`SpotPretrainingArguments`]): how.
        command (`str`, *optional*): how this run was started, for the record.
        say: is called with lines that tell what happens; on the first process alone.

    Returns:
        `dict`: what `pretraining.json` holds.

    Raises:
        `ValueError`: an argument that no run can have, or the directory holds a run with other parameters. `OSError`: no such
            model or data set, or no access to it.
    """
    arguments.check(training)
    overrides = {**arguments.overrides, "mask_ratio": arguments.mask_ratio, "norm_pix_loss": arguments.norm_pix_loss}
    say = say if training.process_index == 0 else (lambda _: None)
    if arguments.model is None:
        config = SpotViTConfig(**overrides)
        height, width = config.image_height_width
        processor: Any = SpotViTImageProcessor(size={"height": height, "width": width}, patch_size=config.patch_size)
    else:
        config = load_spot_vit_config(arguments.model, arguments.revision)
        processor = load_image_processor(arguments.model, arguments.revision)
        width, height = processor.model_size((1000, 1000))
    num_cells = (height // config.patch_size) * (width // config.patch_size)
    placements = TrainingPlacements(
        num_tokens=arguments.num_tokens or [num_cells],
        placement=arguments.placement,
        jitter=arguments.jitter,
        height=height,
        width=width,
        patch_size=config.patch_size,
        seed=training.seed,
    )
    source: dict[str, Any] = {
        "config_name": arguments.dataset_config_name,
        "revision": arguments.dataset_revision,
        "image_column_name": arguments.image_column_name,
        "label_column_name": None,
    }
    images: Any = load_images(
        arguments.dataset_name, split=arguments.dataset_split, max_samples=arguments.max_samples, **source
    )
    training_images = TrainingImages(
        images,
        processor,
        crop_scale=(arguments.crop_scale[0], arguments.crop_scale[1]),
        crop_ratio=(arguments.crop_ratio[0], arguments.crop_ratio[1]),
        flip=arguments.flip,
        seed=training.seed,
    )

    run = TrainingRun(training, RESULTS, say)
    run.open(arguments, len(images), [arguments.model, arguments.dataset_name], command)
    finished = run.results
    if finished is not None:
        say(f"this run is finished\n{pretraining_summary(finished)}")
        return finished

    set_seed(training.seed)
    if arguments.model is None:
        model = SpotViTForPreTraining(config)
    else:  # A decoder of another shape than the saved one's begins anew.
        model = SpotViTForPreTraining.from_pretrained(
            arguments.model, revision=arguments.revision, ignore_mismatched_sizes=True, **overrides
        )
    trainer = SpotPretrainer(
        model=model,
        args=training,
        train_dataset=training_images,
        processing_class=processor,
        preparation=BatchPreparation(placements, processor),
    )
    results = run.train(trainer)

    def reconstructions(picture: BinaryIO) -> None:
        others: Any = load_images(arguments.dataset_name, **source)
        shown = [others[i * len(others) // PICTURED]["image"] for i in range(min(PICTURED, len(others)))]
        save_reconstructions(picture, model, processor, shown, placements)

    pictures = {
        "reconstruction.png": reconstructions,
        "pretraining.png": lambda picture: save_learning_curves(picture, results),
    }
    run.save(trainer, results, {"measured": pretraining_summary(results)}, pictures)
    say(f"{pretraining_summary(results)}\nwritten to {run.directory}: the model, README.md, {RESULTS} and pictures")
    return results


def pretraining_summary(results: Mapping[str, Any]) -> str:
    """One paragraph: what was trained on what, how, and what came out. `results` as `pretraining.json` holds them."""
    parameters = results["parameters"]
    losses = [entry["loss"] for entry in results["log"] if "loss" in entry]
    curve = f"Its loss went from {losses[0]:.3f} to {losses[-1]:.3f}. " if losses else ""
    resumed = f" from step {results['resumed_at']} on" if results["resumed_at"] else ""
    begin = f"`{parameters['model']}`" if parameters["model"] else "random weights"
    return (
        f"Pre-trained by masked windows, from {begin}, on {parameters['num_images']} images of "
        f"`{parameters['dataset_name']}`, split `{parameters['dataset_split']}`: {results['steps']} steps of "
        f"{parameters['total_train_batch_size']} images, {parameters['mask_ratio']:.0%} of their tokens masked, seed "
        f"{parameters['seed']}, {results['seconds'] / 60:.1f} minutes{resumed} on {results['device']}. {curve}"
        "It has no classifier; what its features are worth was not measured."
    )


# ------------------------------------------------------------------------------------------------------------ picture


@torch.no_grad()
def reconstruct(
    model: SpotViTForPreTraining, pixel_values: torch.Tensor, coordinates: torch.Tensor, noise: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Puts predicted windows where they belong.

    Args:
        model ([`SpotViTForPreTraining`]): in eval mode.
        pixel_values, coordinates, noise: as its `forward` takes them; one set of coordinates per image.

    Returns:
        `torch.Tensor` of the shape of `pixel_values`: the pixels that a visible window reads as they are; those of masked
        windows as predicted, the mean where several overlap; NaN where no window is. With `config.norm_pix_loss` a window's
        mean and contrast, which the model does not predict, are the true ones. And `mask`, as `forward` gives it.
    """
    config = model.config
    outputs = model(pixel_values, coordinates, noise=noise)
    windows = outputs.logits.float()
    if config.norm_pix_loss:
        variance, mean = torch.var_mean(model.windows(pixel_values, coordinates).flatten(2), dim=2, keepdim=True)
        windows = windows * (variance + 1e-6).sqrt() + mean
    with torch.enable_grad():
        canvas = torch.zeros_like(pixel_values, dtype=torch.float32).requires_grad_()
        sampled = model.windows(canvas, coordinates)
        # The transpose of sampling: what each window says of each pixel, and with which weight.
        masked = outputs.mask[..., None, None, None].expand_as(sampled)
        parts = (windows.view_as(sampled) * masked, masked, 1 - masked)
        predicted, weight, seen = (torch.autograd.grad(sampled, canvas, part, retain_graph=True)[0] for part in parts)
    predicted = torch.where(weight > 0, predicted / weight, torch.nan)
    return torch.where(seen > 0, pixel_values.float(), predicted), outputs.mask


def save_reconstructions(
    file: str | Path | BinaryIO,
    model: SpotViTForPreTraining,
    processor: Any,
    images: list[Image.Image],
    placements: TrainingPlacements,
) -> None:
    """
    Writes a PNG with one row per image: the windows that the encoder sees, what the model makes of them, the original.

    Args:
        file: a path, or what to write to.
        model ([`SpotViTForPreTraining`]), processor: as they were saved.
        images (`list[PIL.Image.Image]`): any.
        placements ([`TrainingPlacements`]): draws the tokens' positions; image `i` is draw `i`, with the highest number.
    """
    model = model.eval()
    pixel_values = processor(images, return_tensors="pt")["pixel_values"].to(model.device)
    draws, num_tokens = torch.arange(len(images), device=model.device), max(placements.num_tokens)
    coordinates = placements(draws, num_tokens, pixel_values)["coordinates"]
    noise = uniforms(placements.seed, draws, MASK, num_tokens)
    reconstructed, mask = reconstruct(model, pixel_values, coordinates, noise)
    normalization = BatchPreparation(placements, processor)
    pixels = [
        (one.cpu() * normalization.std + normalization.mean).permute(0, 2, 3, 1).clamp(0, 1).numpy()
        for one in (pixel_values.float(), reconstructed)
    ]
    visible = [one[seen].cpu().numpy() for one, seen in zip(coordinates, mask == 0, strict=True)]
    originals = [Image.fromarray((255 * one).round().astype(np.uint8)) for one in pixels[0]]
    save_reconstruction_picture(file, originals, visible, list(pixels[1]), model.config.patch_size)
