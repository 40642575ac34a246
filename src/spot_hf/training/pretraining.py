"""Masked pre-training (SPoT-MAE): the job of `spot-hf pretrain`.

As MAE (He et al. 2021, arXiv 2111.06377), except for positions: those of all tokens are drawn anew for each step and image,
the encoder sees a quarter of the windows, and the decoder predicts the others. No labels. The result is a SpotViT directory,
whose encoder `spot-hf train --classifier new` fine-tunes.
"""

from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import set_seed

from ..configuration_spot_vit import SpotViTConfig
from ..coordinates.pictures import save_reconstruction_picture
from ..data.encoded import iterate_encoded
from ..data.failures import UnreadableImageError
from ..data.source import load_images
from ..hub.loading import ModelSource, load_weights, open_model
from ..image_processing_spot_vit import SpotViTImageProcessor
from ..pretraining_spot_vit import SpotViTForPreTraining
from .arguments import PretrainArguments
from .batches import BatchPreparation
from .draws import MASK, uniforms
from .placements import TrainingPlacements
from .report import save_learning_curves
from .run import TrainingResults, TrainingRun
from .trainer import SpotTrainer
from .trainer_arguments import SpotPretrainingArguments


RESULTS = "pretraining.json"  # is written last
PICTURED = 4  # images in the picture of a run


class SpotPretrainer(SpotTrainer):
    """Trainer for [`SpotViTForPreTraining`]: on batches of [`TrainingImages`], whose tokens it places and masks, by draw."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, compute_metrics=None, **kwargs)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        given = dict(inputs)
        self.failed_images += given.pop("failed", [])
        num_tokens = self.preparation.placements.num_tokens_at(self.state.global_step)
        noise = uniforms(self.preparation.placements.seed, given["draw"], MASK, num_tokens)
        outputs = model(**self.preparation(given, num_tokens).inputs, noise=noise)
        return (outputs.loss, outputs) if return_outputs else outputs.loss


# ----------------------------------------------------------------------------------------------------------- the run


def run_pretraining(
    arguments: PretrainArguments, training: SpotPretrainingArguments, *, command: str | None = None
) -> TrainingResults:
    """
    Pre-trains a model, and writes it to `training.output_dir`: with its decoder, card, `pretraining.json` (the log),
    `pretraining.png` (the loss), `reconstruction.png` (images of the data set's test or validation split) and the last
    checkpoints. Run again after it was killed, it resumes from the last whole one.

    Args:
        arguments ([`PretrainArguments`]): what is trained on what.
        training ([`SpotPretrainingArguments`]): how.
        command (`str`, *optional*): how this run was started, for the record.

    Returns:
        [`TrainingResults`]: what `pretraining.json` holds.

    Raises:
        `ValueError`: an argument that no run can have, or the directory holds a run with other parameters. `OSError`: no such
            model or data set, no access to it, or too many images that cannot be read.
    """
    arguments.check(training)
    source = None if arguments.model is None else open_model(arguments.model, arguments.revision)
    if source is not None:
        source.check_vit()
    arguments = arguments.pinned()
    config: Any = SpotViTConfig(**_overrides(arguments)) if source is None else source.config
    processor = _image_processor(config) if source is None else source.load_image_processor()
    width, height = processor.model_size((1000, 1000))
    placements = arguments.placements(height, width, config.patch_size, training.seed)
    images = arguments.training_images(load_images(arguments.source()), processor, training.seed)

    run = TrainingRun(training, RESULTS, pretraining_summary)
    pins = {} if source is None else source.recorded()
    finished = run.open(arguments, pins, len(images), [arguments.model, arguments.dataset_name], command)
    if finished is not None:
        return finished
    set_seed(training.seed)
    model = SpotViTForPreTraining(config) if source is None else _load_model(source, arguments)
    trainer = SpotPretrainer(
        model=model,
        args=training,
        train_dataset=images,
        processing_class=processor,
        preparation=BatchPreparation(placements, processor),
    )
    results = run.train(trainer)

    def reconstructions(picture: BinaryIO) -> None:
        save_reconstructions(picture, model, processor, _pictured_images(arguments), placements)

    pictures = {
        "reconstruction.png": reconstructions,
        "pretraining.png": lambda picture: save_learning_curves(picture, results),
    }
    run.save(trainer, results, {"measured": pretraining_summary(results)}, pictures)
    return results


def _overrides(arguments: PretrainArguments) -> dict[str, Any]:
    return {**arguments.overrides, "mask_ratio": arguments.mask_ratio, "norm_pix_loss": arguments.norm_pix_loss}


def _image_processor(config: SpotViTConfig) -> Any:
    height, width = config.image_height_width
    return SpotViTImageProcessor(size={"height": height, "width": width}, patch_size=config.patch_size)


def _load_model(source: ModelSource, arguments: PretrainArguments) -> SpotViTForPreTraining:
    """A decoder that the source lacks, or has in another shape, begins anew."""
    return load_weights(SpotViTForPreTraining, source, anew=["decoder."], **_overrides(arguments))


def _pictured_images(arguments: PretrainArguments) -> list[Image.Image]:
    """Some of the data set's test or validation split, evenly spread; those that cannot be read are left out."""
    images: Any = load_images(arguments.source(dataset_split=None, max_samples=None))
    count = min(PICTURED, len(images))
    found = []
    for one in iterate_encoded(images.select([i * len(images) // count for i in range(count)]), str(images.split)):
        try:
            found.append(one.decode())
        except UnreadableImageError:
            continue
    return found


def pretraining_summary(results: TrainingResults) -> str:
    """One paragraph: what was trained on what, how, and what came out."""
    parameters = results.parameters
    losses = [entry["loss"] for entry in results.log if "loss" in entry]
    curve = f"Its loss went from {losses[0]:.3f} to {losses[-1]:.3f}. " if losses else ""
    resumed = f" from step {results.resumed_at} on" if results.resumed_at else ""
    failed = f", of which {len(results.failed)} could not be read" if results.failed else ""
    start = f"`{parameters['model']}`" if parameters["model"] else "random weights"
    return (
        f"Pre-trained by masked windows, from {start}, on {parameters['num_images']} images of "
        f"`{parameters['dataset_name']}`, split `{parameters['dataset_split']}`{failed}: {results.steps} steps of "
        f"{parameters['total_train_batch_size']} images, {parameters['mask_ratio']:.0%} of their tokens masked, seed "
        f"{parameters['seed']}, {results.seconds / 60:.1f} minutes{resumed} on {results.ledger.device}. {curve}"
        "It has no classifier, and its features have not been evaluated."
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
