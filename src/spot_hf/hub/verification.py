"""Whether a model computes here what it did where it was saved: `spot-hf verify`."""

import logging
from dataclasses import dataclass, field

import torch

from ..backbone_spot_vit import SpotViTBackbone
from ..golden import Verification
from ..modeling_spot import SpotPreTrainedModel
from ..modeling_spot_cnn import SpotCNNForImageClassification, SpotCNNModel
from ..modeling_spot_vit import SpotViTForImageClassification, SpotViTModel
from ..pretraining_spot_vit import SpotViTForPreTraining
from ..segmentation_spot_vit import SpotViTForSemanticSegmentation
from ..zero_shot_spot_vit import SpotViTForZeroShotImageClassification
from .loading import MODEL_CLASSES, open_model


logger = logging.getLogger(__name__)

CLASSES: dict[str, type[SpotPreTrainedModel]] = {
    one.__name__: one
    for one in (
        SpotViTModel,
        SpotViTForImageClassification,
        SpotViTForPreTraining,
        SpotViTForSemanticSegmentation,
        SpotViTForZeroShotImageClassification,
        SpotViTBackbone,
        SpotCNNModel,
        SpotCNNForImageClassification,
    )
}


@dataclass(kw_only=True)
class VerifyArguments:
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a Hub id."})


def verify_model(model: str, revision: str | None = None) -> Verification:
    """
    Loads a model and compares what it computes, in float32 on the CPU, with the `golden.safetensors` that was saved with it.

    Args:
        model (`str`): directory or Hub id.
        revision (`str`, *optional*): branch, tag or commit of a Hub id.

    Returns:
        [`Verification`]: its `equal` says whether they are the same; `str` of it is one line, for a person.

    Raises:
        `OSError`: there is no such model, or it has no golden outputs, or broken ones. `ValueError`: it is no SpotViT.
    """
    source = open_model(model, revision)
    names = source.config.architectures or []
    model_class = next((CLASSES[name] for name in names if name in CLASSES), MODEL_CLASSES[source.config.model_type][1])
    loaded, report = model_class.from_pretrained(
        model, revision=source.revision, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
    )
    found = loaded.eval().verify(model, source.revision)
    for what, keys in {
        "newly initialised, as the weights lack them": sorted(report["missing_keys"]),
        "newly initialised, as the weights have other shapes": sorted(name for name, *_ in report["mismatched_keys"]),
        "of the weights, not of the model": sorted(report["unexpected_keys"]),
    }.items():
        if keys:
            found.problems.append(f"`{keys[0]}`{f' and {len(keys) - 1} more' if len(keys) > 1 else ''} {what}")
    return found


def run_verification(arguments: VerifyArguments, model: str) -> int:
    """`spot-hf verify`: [`verify_model`] by its arguments; exit status 1 where it is not equal."""
    found = verify_model(model, arguments.revision)
    logger.info(str(found))
    return 0 if found.equal else 1
