"""transformers' model and configuration suites on SpotViT; copied to `tests/models/spot_vit/test_modeling_spot_vit.py`.

Four variants of the same suite: a plain ViT on its full grid, few tokens at given coordinates, everything else that the
inputs and the configuration can have, and rotary positions; masked pre-training; and segmentation. The test images are not
square, nor are their grids.
"""

import copy
import inspect
import unittest
from unittest import mock

import torch
from transformers.testing_utils import torch_device

from spot_hf import (
    SpotViTConfig,
    SpotViTForImageClassification,
    SpotViTForPreTraining,
    SpotViTForSemanticSegmentation,
    SpotViTModel,
)

from ...test_configuration_common import ConfigTester
from ...test_modeling_common import ModelTesterMixin, floats_tensor
from .reasons import replaces, skip


class SpotViTModelTester:
    """A tiny model and its inputs: images `(batch_size, 3, 30, 36)` on a grid of 5 × 6 cells."""

    batch_size = 13
    num_channels = 3
    image_size: int | tuple[int, int] = (30, 36)
    patch_size = 6
    hidden_size = 32
    num_hidden_layers = 2
    num_attention_heads = 4
    intermediate_size = 37
    num_labels = 10
    is_training = True

    def __init__(self, parent, num_tokens=None, with_mask=False, with_window_scales=False, **config):
        self.parent = parent
        self.num_tokens = num_tokens
        self.with_mask, self.with_window_scales = with_mask, with_window_scales
        self.config = config
        self.seq_length = 1 + config.get("num_register_tokens", 0) + (num_tokens or 5 * 6)

    def get_config(self):
        return SpotViTConfig(
            image_size=self.image_size,
            patch_size=self.patch_size,
            num_channels=self.num_channels,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            intermediate_size=self.intermediate_size,
            num_labels=self.num_labels,
            **self.config,
        )

    def prepare_config_and_inputs_for_common(self):
        size = self.get_config().image_height_width
        inputs = {"pixel_values": floats_tensor([self.batch_size, self.num_channels, *size])}
        if self.num_tokens is not None:
            inputs["coordinates"] = floats_tensor([self.batch_size, self.num_tokens, 2])  # in [0, 1]
        if self.with_mask:  # image i lacks its last i % 4 tokens
            counts = self.num_tokens - torch.arange(self.batch_size, device=torch_device) % 4
            inputs["coordinates_mask"] = (torch.arange(self.num_tokens, device=torch_device) < counts[:, None]).long()
        if self.with_window_scales:
            inputs["window_scales"] = 0.5 + floats_tensor([self.batch_size, self.num_tokens], scale=2.0)
        return self.get_config(), inputs


class SpotViTSuite(ModelTesterMixin):
    """The suite with what all variants share. Not a TestCase: only its subclasses are collected."""

    all_model_classes = (SpotViTModel, SpotViTForImageClassification)
    test_resize_embeddings = False  # there is no vocabulary

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
        # The suite casts every float input to the model's dtype. Coordinates stay float32, as the image processor's `to`
        # and the pipeline keep them; the model refuses any other.
        for name in ("coordinates", "window_scales"):
            if name in inputs:
                inputs[name] = inputs[name].float()
        return inputs

    def test_config(self):
        self.config_tester.run_common_tests()

    @replaces("the suite leaves out models of before 2023, by the year in the licence header, which our files do not have")
    def test_can_init_all_missing_weights(self):
        this_year = mock.mock_open(read_data="# Copyright 2025")
        with mock.patch(f"{ModelTesterMixin.__module__}.open", this_year, create=True):
            super().test_can_init_all_missing_weights()

    @replaces("the suite expects an nn.Embedding; a vision model embeds pixels, by a linear layer")
    def test_model_get_set_embeddings(self):
        for model_class in self.all_model_classes:
            model = model_class(self.model_tester.get_config())
            self.assertIsInstance(model.get_input_embeddings(), torch.nn.Linear)
            output = model.get_output_embeddings()
            self.assertTrue(output is None or isinstance(output, torch.nn.Linear))

    def test_forward_signature(self):
        for model_class in self.all_model_classes:
            names = list(inspect.signature(model_class.forward).parameters)
            self.assertEqual(names[1:5], ["pixel_values", "coordinates", "coordinates_mask", "window_scales"])

    def test_output_shapes(self):
        tester = self.model_tester
        config, inputs = tester.prepare_config_and_inputs_for_common()
        with torch.no_grad():
            features = SpotViTModel(config).to(torch_device).eval()(**inputs)
            logits = SpotViTForImageClassification(config).to(torch_device).eval()(**inputs).logits
        self.assertEqual(features.last_hidden_state.shape, (tester.batch_size, tester.seq_length, tester.hidden_size))
        self.assertEqual(features.pooler_output.shape, (tester.batch_size, config.pooled_size))
        self.assertEqual(logits.shape, (tester.batch_size, tester.num_labels))


class SpotViTCoordinatesSuite(SpotViTSuite):
    """The suite, less the two tests that have no place to give coordinates their dtype back."""

    @skip("with a GPU, it gives the model coordinates in half precision, which the model refuses; SpotViTModelTest runs it")
    def test_sdpa_can_dispatch_on_flash(self):
        pass

    @skip("with a GPU, it gives the model coordinates in half precision, which the model refuses; SpotViTModelTest runs it")
    def test_sdpa_can_compile_dynamic(self):
        pass


class SpotViTModelTest(SpotViTSuite, unittest.TestCase):
    """A plain ViT: no coordinates, the full grid."""

    def setUp(self):
        self.model_tester = SpotViTModelTester(self)
        self.config_tester = ConfigTester(self, config_class=SpotViTConfig, has_text_modality=False, hidden_size=36)


class SpotViTSparseModelTest(SpotViTCoordinatesSuite, unittest.TestCase):
    """Eight tokens per image, anywhere."""

    additional_model_inputs = ["coordinates"]

    def setUp(self):
        self.model_tester = SpotViTModelTester(self, num_tokens=8)
        self.config_tester = ConfigTester(
            self, config_class=SpotViTConfig, has_text_modality=False, position_grid_size=[5, 7], pooling="mean"
        )


class SpotViTEveryOptionModelTest(SpotViTCoordinatesSuite, unittest.TestCase):
    """Token counts that differ between images, window scales, and a DINOv2 giant's configuration with registers."""

    additional_model_inputs = ["coordinates", "coordinates_mask", "window_scales"]
    options = {
        "num_register_tokens": 2,
        "use_layer_scale": True,
        "layerscale_value": 0.5,
        "use_swiglu_ffn": True,
        "pooling": "cls_mean",
        "qkv_bias": False,
    }

    def setUp(self):
        self.model_tester = SpotViTModelTester(self, num_tokens=8, with_mask=True, with_window_scales=True, **self.options)
        self.config_tester = ConfigTester(
            self, config_class=SpotViTConfig, has_text_modality=False, **copy.deepcopy(self.options)
        )


class SpotViTRotaryModelTest(SpotViTCoordinatesSuite, unittest.TestCase):
    """Eight tokens per image under a configuration like DINOv3's: rotary positions and registers."""

    additional_model_inputs = ["coordinates", "coordinates_mask"]
    options = {"use_position_table": False, "rope_theta": 100.0, "num_register_tokens": 2, "use_layer_scale": True}

    def setUp(self):
        self.model_tester = SpotViTModelTester(self, num_tokens=8, with_mask=True, **self.options)
        self.config_tester = ConfigTester(
            self, config_class=SpotViTConfig, has_text_modality=False, **copy.deepcopy(self.options)
        )


class SpotViTPreTrainingTest(SpotViTSuite, unittest.TestCase):
    """The masked autoencoder on its full grid of 36 cells, of which the encoder sees 9. The noise is fixed, or two calls would
    differ. The suite knows the noise of square images only."""

    all_model_classes = (SpotViTForPreTraining,)
    options = {
        "decoder_hidden_size": 24,
        "decoder_num_hidden_layers": 2,
        "decoder_num_attention_heads": 3,
        "decoder_intermediate_size": 40,
    }

    def setUp(self):
        self.model_tester = SpotViTModelTester(self, **self.options)
        self.model_tester.image_size, self.model_tester.seq_length = 36, 1 + 9
        self.config_tester = ConfigTester(self, config_class=SpotViTConfig, has_text_modality=False, **self.options)

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
        noise = torch.rand(len(inputs["pixel_values"]), 36, generator=torch.Generator().manual_seed(0))
        return {**inputs, "noise": noise.to(torch_device)}

    def test_output_shapes(self):
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        with torch.no_grad():
            outputs = SpotViTForPreTraining(config).to(torch_device).eval()(**inputs)
        self.assertEqual(outputs.logits.shape, (self.model_tester.batch_size, 36, 3 * 6 * 6))
        self.assertEqual(outputs.loss.shape, ())


class SpotViTSegmentationTest(SpotViTCoordinatesSuite, unittest.TestCase):
    """Semantic segmentation by eight tokens per image, each with the scores of four points."""

    all_model_classes = (SpotViTForSemanticSegmentation,)
    additional_model_inputs = ["coordinates"]
    options = {"segmentation_scores_per_side": 2, "segmentation_hidden_size": 20}

    def setUp(self):
        self.model_tester = SpotViTModelTester(self, num_tokens=8, **self.options)
        self.config_tester = ConfigTester(self, config_class=SpotViTConfig, has_text_modality=False, **self.options)

    def test_output_shapes(self):
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        with torch.no_grad():
            logits = SpotViTForSemanticSegmentation(config).to(torch_device).eval()(**inputs).logits
        self.assertEqual(logits.shape, (self.model_tester.batch_size, self.model_tester.num_labels, 30 // 4, 36 // 4))
