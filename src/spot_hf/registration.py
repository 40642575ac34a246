"""Makes SpotViT and SpotCNN known to transformers: Auto classes, `pipeline`, and the code that a saved model takes along."""

from pathlib import Path
from typing import Any

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    AutoModelForSemanticSegmentation,
    AutoModelForZeroShotImageClassification,
)

# Before transformers 5.18, the one of the top level is a placeholder where torchvision is absent.
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.pipelines import PIPELINE_REGISTRY

from .backbone_spot_vit import SpotViTBackbone
from .configuration_spot_cnn import SpotCNNConfig
from .configuration_spot_vit import SpotViTConfig
from .image_processing_spot_vit import SpotViTImageProcessor, SpotViTImageProcessorPil
from .modeling_spot import SpotPreTrainedModel
from .modeling_spot_cnn import SpotCNNForImageClassification, SpotCNNModel
from .modeling_spot_vit import SpotViTForImageClassification, SpotViTModel
from .pipeline_spot_vit import SpotImageClassificationPipeline
from .pretraining_spot_vit import SpotViTForPreTraining
from .segmentation_pipeline import SpotImageSegmentationPipeline
from .segmentation_spot_vit import SpotViTForSemanticSegmentation
from .zero_shot_pipeline import SpotZeroShotImageClassificationPipeline
from .zero_shot_spot_vit import SpotViTForZeroShotImageClassification


def register() -> None:
    """May be called again: nothing changes."""
    AutoConfig.register("spot_vit", SpotViTConfig, exist_ok=True)
    AutoModel.register(SpotViTConfig, SpotViTModel, exist_ok=True)
    AutoModelForImageClassification.register(SpotViTConfig, SpotViTForImageClassification, exist_ok=True)
    AutoBackbone.register(SpotViTConfig, SpotViTBackbone, exist_ok=True)
    AutoModelForPreTraining.register(SpotViTConfig, SpotViTForPreTraining, exist_ok=True)
    AutoModelForSemanticSegmentation.register(SpotViTConfig, SpotViTForSemanticSegmentation, exist_ok=True)
    AutoModelForZeroShotImageClassification.register(SpotViTConfig, SpotViTForZeroShotImageClassification, exist_ok=True)
    AutoConfig.register("spot_cnn", SpotCNNConfig, exist_ok=True)
    AutoModel.register(SpotCNNConfig, SpotCNNModel, exist_ok=True)
    AutoModelForImageClassification.register(SpotCNNConfig, SpotCNNForImageClassification, exist_ok=True)
    image_processors = {"pil": SpotViTImageProcessorPil}
    if SpotViTImageProcessor is not SpotViTImageProcessorPil:
        image_processors["torchvision"] = SpotViTImageProcessor
    for config_class in (SpotViTConfig, SpotCNNConfig):
        AutoImageProcessor.register(config_class, image_processor_classes=image_processors, exist_ok=True)
    PIPELINE_REGISTRY.register_pipeline(
        "spot-image-classification",
        pipeline_class=SpotImageClassificationPipeline,
        pt_model=AutoModelForImageClassification,
        type="image",
    )
    PIPELINE_REGISTRY.register_pipeline(
        "spot-image-segmentation",
        pipeline_class=SpotImageSegmentationPipeline,
        pt_model=AutoModelForSemanticSegmentation,
        type="image",
    )
    PIPELINE_REGISTRY.register_pipeline(
        "spot-zero-shot-image-classification",
        pipeline_class=SpotZeroShotImageClassificationPipeline,
        pt_model=AutoModelForZeroShotImageClassification,
        type="multimodal",
    )
    # Saving copies the code of a class that is registered for an Auto class.
    SpotViTConfig.register_for_auto_class()
    SpotViTModel.register_for_auto_class("AutoModel")
    SpotViTForImageClassification.register_for_auto_class("AutoModelForImageClassification")
    SpotViTBackbone.register_for_auto_class("AutoBackbone")
    SpotViTForPreTraining.register_for_auto_class("AutoModelForPreTraining")
    SpotViTForSemanticSegmentation.register_for_auto_class("AutoModelForSemanticSegmentation")
    SpotViTForZeroShotImageClassification.register_for_auto_class("AutoModelForZeroShotImageClassification")
    SpotCNNConfig.register_for_auto_class()
    SpotCNNModel.register_for_auto_class("AutoModel")
    SpotCNNForImageClassification.register_for_auto_class("AutoModelForImageClassification")
    SpotViTImageProcessor.register_for_auto_class("AutoImageProcessor")
    SpotViTImageProcessorPil.register_for_auto_class("AutoImageProcessor")
    SpotPreTrainedModel._write_model_card = _write_model_card


def _write_model_card(model: SpotPreTrainedModel, directory: str | Path, **fields: Any) -> Path | None:
    """Cards need templates and `datasets`: loaded when a model is saved."""
    from .hub.cards import write_model_card

    return write_model_card(model, directory, **fields)
