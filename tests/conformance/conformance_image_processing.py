"""transformers' image processing suite on SpotViT's image processor, with whichever backends are installed; copied to
`tests/models/spot_vit/test_image_processing_spot_vit.py`.

Two variants: an ordinary image processor, and one that is saved with a default placement, so that every call places tokens.
"""

import io
import unittest
from types import SimpleNamespace
from unittest import mock

import torch
from PIL import Image
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.utils import is_torchvision_available

from spot_hf import SpotViTImageProcessor, SpotViTImageProcessorPil

from ...test_image_processing_common import (
    ImageProcessingTestMixin,
    PostProcessSemanticSegmentationTestMixin,
    prepare_image_inputs,
)
from .reasons import SKIP_PREFIX, replaces, skip


class SpotViTImageProcessingTester:
    """What the suite asks of a model's tester: how to make the processor, images for it, and what shape comes out."""

    batch_size = 7
    num_channels = 3

    def __init__(self, parent, **processor):
        self.parent = parent
        self.processor = processor

    def prepare_image_processor_dict(self):
        return dict(self.processor)

    def prepare_image_inputs(self, **kwargs):
        return prepare_image_inputs(
            batch_size=self.batch_size, num_channels=self.num_channels, min_resolution=30, max_resolution=400, **kwargs
        )

    def prepare_processor_inputs(self, **kwargs):
        return {"images": self.prepare_image_inputs(**kwargs)}

    def prepare_post_process_semantic_segmentation_inputs(self):
        shape = {"num_labels": 4, "height": 6, "width": 8}
        return {"outputs": SemanticSegmenterOutput(logits=torch.rand(self.batch_size, *shape.values()))}, shape

    def expected_output_image_shape(self, images):
        size = self.processor["crop_size"] if self.processor.get("do_center_crop") else self.processor["size"]
        return self.num_channels, size["height"], size["width"]


class SpotViTImageProcessingSuite(PostProcessSemanticSegmentationTestMixin, ImageProcessingTestMixin):
    """The suite with what both variants share. Not a TestCase: only its subclasses are collected."""

    test_cast_dtype = True
    processor: dict

    def setUp(self):
        self.image_processor_tester = SpotViTImageProcessingTester(self, **self.processor)

    @property
    def image_processing_classes(self):
        backends = {"pil": SpotViTImageProcessorPil}
        if SpotViTImageProcessor is not SpotViTImageProcessorPil:
            backends["torchvision"] = SpotViTImageProcessor
        return backends

    @property
    def image_processor_dict(self):
        return self.image_processor_tester.prepare_image_processor_dict()

    @replaces("in some releases the suite downloads a photograph; nothing here may reach the network, so a picture is drawn")
    def test_backends_equivalence(self):
        file = io.BytesIO()
        Image.radial_gradient("L").resize((640, 480)).convert("RGB").save(file, format="PNG")
        downloads = SimpleNamespace(get=lambda *args, **kwargs: SimpleNamespace(content=file.getvalue()))
        with mock.patch(f"{ImageProcessingTestMixin.__module__}.httpx", downloads, create=True):
            super().test_backends_equivalence()

    @replaces(
        "before 5.18 and without torchvision, transformers.AutoImageProcessor is a placeholder; here it is the class itself"
    )
    def test_image_processor_save_load_with_autoimageprocessor(self):
        with mock.patch(f"{ImageProcessingTestMixin.__module__}.AutoImageProcessor", AutoImageProcessor):
            super().test_image_processor_save_load_with_autoimageprocessor()

    @replaces("the suite fails where torchvision is not installed; the backend is there where it is")
    def test_new_models_require_torchvision_backend(self):
        if not is_torchvision_available():
            self.skipTest(f"{SKIP_PREFIX}needs torchvision, which is not installed (--torchvision names a folder with it)")
        super().test_new_models_require_torchvision_backend()

    @skip("it loads the processor without this package and without trust_remote_code; all else here runs without torchvision")
    def test_pil_can_run_without_torchvision(self):
        pass


class SpotViTImageProcessingTest(SpotViTImageProcessingSuite, unittest.TestCase):
    """As it comes: resize, rescale, normalise."""

    processor = {
        "size": {"height": 18, "width": 20},
        "do_resize": True,
        "do_normalize": True,
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.5, 0.6, 0.7],
        "do_convert_rgb": True,
    }


class SpotViTPlacingImageProcessingTest(SpotViTImageProcessingSuite, unittest.TestCase):
    """Saved with a placement: every call also returns coordinates, which go through resize and crop."""

    processor = {
        "size": {"shortest_edge": 20},
        "do_center_crop": True,
        "crop_size": {"height": 18, "width": 18},
        "patch_size": 6,
        "num_tokens": 5,
        "placement": "uniform",
        "seed": 3,
    }
