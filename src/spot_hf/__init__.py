"""Vision Transformers whose patch tokens sit at continuous, subpixel positions (SPoT, arXiv 2507.01654).

Importing this package registers SpotViT with transformers' Auto classes and `pipeline`. A saved model needs neither: it
carries the same files as remote code.
"""

from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, AutoModelForPreTraining

# Before transformers 5.18, the one of the top level is a placeholder where torchvision is absent.
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_spot_vit import SpotViTConfig
from .conversion.convert import ConversionReport, convert_checkpoint
from .conversion.errors import ConversionError
from .coordinates.joining import join_coordinates
from .coordinates.loading import load_coordinates
from .coordinates.official import convert_official_coordinates, coordinates_from_official, coordinates_to_official
from .hub.cards import write_model_card
from .image_processing_spot_vit import SpotViTImageProcessor, SpotViTImageProcessorPil
from .modeling_spot_vit import SpotViTForImageClassification, SpotViTModel, SpotViTPreTrainedModel
from .oracle.search import OracleResult, SpotOracle
from .pipeline_spot_vit import SpotImageClassificationPipeline
from .placement import PLACEMENTS, place
from .pretraining_spot_vit import SpotViTForPreTraining
from .version import __version__


def _register() -> None:
    AutoConfig.register("spot_vit", SpotViTConfig, exist_ok=True)
    AutoModel.register(SpotViTConfig, SpotViTModel, exist_ok=True)
    AutoModelForImageClassification.register(SpotViTConfig, SpotViTForImageClassification, exist_ok=True)
    AutoModelForPreTraining.register(SpotViTConfig, SpotViTForPreTraining, exist_ok=True)
    image_processors = {"pil": SpotViTImageProcessorPil}
    if SpotViTImageProcessor is not SpotViTImageProcessorPil:
        image_processors["torchvision"] = SpotViTImageProcessor
    AutoImageProcessor.register(SpotViTConfig, image_processor_classes=image_processors, exist_ok=True)
    PIPELINE_REGISTRY.register_pipeline(
        "spot-image-classification",
        pipeline_class=SpotImageClassificationPipeline,
        pt_model=AutoModelForImageClassification,
        type="image",
    )
    # Saving copies the code of a class that is registered for an Auto class.
    SpotViTConfig.register_for_auto_class()
    SpotViTModel.register_for_auto_class("AutoModel")
    SpotViTForImageClassification.register_for_auto_class("AutoModelForImageClassification")
    SpotViTForPreTraining.register_for_auto_class("AutoModelForPreTraining")
    SpotViTImageProcessor.register_for_auto_class("AutoImageProcessor")
    SpotViTImageProcessorPil.register_for_auto_class("AutoImageProcessor")
    SpotViTPreTrainedModel._write_model_card = write_model_card


_register()

__all__ = [
    "PLACEMENTS",
    "ConversionError",
    "ConversionReport",
    "SpotImageClassificationPipeline",
    "SpotViTConfig",
    "SpotViTForImageClassification",
    "SpotViTForPreTraining",
    "SpotViTImageProcessor",
    "SpotViTImageProcessorPil",
    "SpotViTModel",
    "SpotViTPreTrainedModel",
    "__version__",
    "OracleResult",
    "SpotOracle",
    "convert_checkpoint",
    "convert_official_coordinates",
    "coordinates_from_official",
    "coordinates_to_official",
    "join_coordinates",
    "load_coordinates",
    "place",
]
