"""Vision Transformers whose patch tokens sit at continuous, subpixel positions (SPoT, arXiv 2507.01654).

Importing this package registers SpotViT with transformers' Auto classes and `pipeline`: a model then loads without
`trust_remote_code`. A saved model does not need this package: it carries the same files as remote code. Since it also names
its own pipeline, `pipeline("spot-image-classification", model=...)` takes `trust_remote_code=True` in any case, or
`pipeline_class=spot_hf.SpotImageClassificationPipeline`.

Names are imported when they are first used, and registration waits until transformers is imported: `spot-hf --help` needs
neither it nor torch.
"""

import sys
from importlib import import_module
from typing import Any

import wrapt

from .version import __version__


_HOMES = {
    "configuration_spot_vit": ["SpotViTConfig"],
    "configuration_spot_cnn": ["SpotCNNConfig"],
    "modeling_spot_cnn": ["SpotCNNForImageClassification", "SpotCNNModel", "SpotCNNPreTrainedModel"],
    "modeling_spot_vit": ["SpotViTForImageClassification", "SpotViTModel", "SpotViTPreTrainedModel"],
    "pretraining_spot_vit": ["SpotViTForPreTraining"],
    "backbone_spot_vit": ["SpotViTBackbone"],
    "segmentation_spot_vit": ["SpotViTForSemanticSegmentation"],
    "segmentation_pipeline": ["SpotImageSegmentationPipeline"],
    "zero_shot_spot_vit": ["SpotViTForZeroShotImageClassification"],
    "zero_shot_pipeline": ["SpotZeroShotImageClassificationPipeline"],
    "image_processing_spot_vit": ["SpotViTImageProcessor", "SpotViTImageProcessorPil"],
    "pipeline_spot_vit": ["SpotImageClassificationPipeline"],
    "placement": ["PLACEMENTS", "place", "place_windows", "register_placement"],
    "foveation": ["foveate"],
    "conversion.convert": ["ConversionReport", "convert_checkpoint"],
    "conversion.errors": ["ConversionError"],
    "conversion.networks": ["wrap_network"],
    "export.export": ["export_model"],
    "export.runtime": ["OnnxSpotViT"],
    "oracle.search": ["OracleResult", "SpotOracle"],
    "oracle.arguments": ["OracleArguments"],
    "oracle.run": ["run_oracle"],
    "evaluation.arguments": ["EvaluationArguments", "TransferArguments"],
    "evaluation.run": ["run_evaluation"],
    "evaluation.transfer": ["evaluate_transfer"],
    "training.trainer": ["SpotTrainer"],
    "training.trainer_arguments": ["SpotTrainingArguments"],
    "training.data": ["EvaluationImages", "TrainingImages"],
    "training.batches": ["BatchPreparation"],
    "training.placements": ["TrainingPlacements"],
    "hub.models": ["push_model"],
    "hub.uploads": ["push_coordinates"],
    "hub.verification": ["verify_model"],
    "golden": ["Verification"],
    "coordinates.joining": ["join_coordinates"],
    "coordinates.loading": ["load_coordinates"],
    "conversion.official_coordinates": [
        "convert_official_coordinates",
        "coordinates_from_official",
        "coordinates_to_official",
    ],
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = ["__version__", *_HOME_OF]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME_OF[name]}", __name__), name)
    globals()[name] = value  # found without this function from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


# ----------------------------------------------------------------------------------------------------------- registration

# Modules that registration imports. While one of them is being imported, it has to wait for its end.
_REGISTERED = {
    f"{__name__}.{name}"
    for name in (
        "configuration_spot_vit", "modeling_spot_vit", "pretraining_spot_vit", "image_processing_spot_vit",
        "pipeline_spot_vit", "windows", "positions", "placement", "frames", "drawing", "foveation", "input_checks", "decoding",
        "batch_feature", "budgets", "merging", "placer", "segmentation_spot_vit", "segmentation_pipeline", "segmentation_maps",
        "zero_shot_spot_vit", "zero_shot_pipeline", "configuration_spot", "configuration_spot_cnn", "modeling_spot",
        "modeling_spot_cnn", "golden", "backbone_spot_vit",
    )
}  # fmt: skip
_imported: set[str] = set()


def _register(module: Any) -> None:
    """Registers SpotViT as soon as transformers is imported; at once, where it is imported already."""
    _imported.add(module.__name__)
    unfinished = (_REGISTERED & set(sys.modules)) - _imported
    if "transformers" in _imported and not unfinished and f"{__name__}.registration" not in sys.modules:
        from .registration import register

        register()


for _name in ("transformers", *_REGISTERED):
    wrapt.register_post_import_hook(_register, _name)
