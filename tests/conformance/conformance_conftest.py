"""conftest.py of the unpacked suite: nothing of it reaches the network, and our classes are where it looks for a model's."""

import os
import sys


os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

# A folder with torchvision beside the environment, not in it (see the Makefile): torchvision has no CPU build here, and
# its import needs two operators to be declared. No image transform uses them.
if "SPOT_CONFORMANCE_TORCHVISION" in os.environ:
    import torch

    sys.path.append(os.environ["SPOT_CONFORMANCE_TORCHVISION"])
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from transformers.models.auto import modeling_auto


# The suite goes by these names: it trains what is not a base model, and gives labels to what classifies images or pixels.
modeling_auto.MODEL_MAPPING_NAMES["spot_vit"] = "SpotViTModel"
modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES["spot_vit"] = "SpotViTForImageClassification"
modeling_auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES["spot_vit"] = "SpotViTForSemanticSegmentation"
modeling_auto.MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES["spot_vit"] = "SpotViTForZeroShotImageClassification"


def pytest_collection_modifyitems(items):
    for item in items:
        reason = getattr(item.obj, "replaces_because", None)
        if reason:
            item.user_properties.append(("replaces_because", reason))
