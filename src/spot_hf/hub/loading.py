"""Loading SpotViTs by directory or Hub id, with this package's own classes, and with errors that say what to do instead."""

from pathlib import Path
from typing import Any

from transformers import AutoConfig
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from ..configuration_spot_vit import SpotViTConfig
from ..modeling_spot_vit import SpotViTForImageClassification, SpotViTModel, SpotViTPreTrainedModel


def load_spot_vit_config(model: str, revision: str | None = None) -> SpotViTConfig:
    """
    Args:
        model (`str`): directory or Hub id.
        revision (`str`, *optional*): of a Hub id.

    Raises:
        `ValueError`: it is no SpotViT. `OSError`: there is no such model.
    """
    if not Path(model).is_dir() and (Path(model).exists() or model.count("/") != 1):
        raise OSError(f"`model` must be a directory or a Hub id such as user/name; got {model!r}")
    config = AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=False)
    if config.model_type != "spot_vit":
        raise ValueError(
            f"`model` {model!r} is a {config.model_type!r}, not a SpotViT: convert it with `spot-hf convert` first"
        )
    return config


def has_classifier(config: SpotViTConfig) -> bool:
    return any("Classification" in name for name in config.architectures or []) and config.num_labels > 0


def check_classifier(model: str, config: SpotViTConfig) -> None:
    """`ValueError` where a saved model has none."""
    if not has_classifier(config):
        raise ValueError(f"`model` {model!r} has no classifier: convert it with --num_labels and train it first")


def load_spot_vit(model: str, revision: str | None = None) -> SpotViTPreTrainedModel:
    """The model that was saved: [`SpotViTForImageClassification`], or [`SpotViTModel`] where it has no classifier."""
    kind = SpotViTForImageClassification if has_classifier(load_spot_vit_config(model, revision)) else SpotViTModel
    return kind.from_pretrained(model, revision=revision).eval()


def load_image_processor(model: str, revision: str | None = None) -> Any:
    """The image processor that was saved with a SpotViT."""
    return AutoImageProcessor.from_pretrained(model, revision=revision, trust_remote_code=False)
