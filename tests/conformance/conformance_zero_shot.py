"""transformers' model and configuration suites on the zero-shot model; copied to
`tests/models/spot_vit/test_zero_shot_spot_vit.py`.

With CLIP's text tower, and with SigLIP's: its loss, its pooling head, and no projections.
"""

import inspect
import json
import re
import unittest

import torch
from transformers.testing_utils import torch_device

from spot_hf import SpotViTConfig, SpotViTForZeroShotImageClassification

from ...test_configuration_common import ConfigTester
from ...test_modeling_common import ids_tensor
from .reasons import replaces, skip
from .test_modeling_spot_vit import SpotViTCoordinatesSuite, SpotViTModelTester


TEXT = {
    "vocab_size": 99,
    "hidden_size": 28,
    "intermediate_size": 37,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 12,
    "bos_token_id": 0,
    "eos_token_id": 98,
    "pad_token_id": 1,
}
NO_STATES = "two towers, each with states in `vision_model_output` and `text_model_output`, as of transformers' CLIP"


class SpotViTZeroShotTester(SpotViTModelTester):
    """As many texts of nine tokens as images, padded by ones."""

    def prepare_config_and_inputs_for_common(self):
        config, inputs = super().prepare_config_and_inputs_for_common()
        input_ids = ids_tensor([self.batch_size, 9], 97)
        input_ids[:, -2] = 98
        attention_mask = torch.ones_like(input_ids)
        attention_mask[:, -1] = 0
        return config, {"input_ids": input_ids, "attention_mask": attention_mask, **inputs}


class SpotViTZeroShotSuite(SpotViTCoordinatesSuite):
    """Eight tokens per image, anywhere."""

    all_model_classes = (SpotViTForZeroShotImageClassification,)
    additional_model_inputs = ["coordinates", "pixel_values"]
    options: dict

    def setUp(self):
        self.model_tester = SpotViTZeroShotTester(self, num_tokens=8, **self.options)
        written = json.loads(SpotViTConfig(**self.options).to_json_string())["text_config"]  # with all defaults
        options = {**self.options, "text_config": written}
        self.config_tester = ConfigTester(self, config_class=SpotViTConfig, has_text_modality=False, **options)

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
        return {**inputs, "return_loss": True} if return_labels else inputs

    @replaces("texts come first, as in transformers' CLIP")
    def test_forward_signature(self):
        names = list(inspect.signature(SpotViTForZeroShotImageClassification.forward).parameters)
        self.assertEqual(names[1:5], ["input_ids", "pixel_values", "attention_mask", "position_ids"])

    @replaces("the suite expects an nn.Embedding; here texts have one, and pixels a linear layer")
    def test_model_get_set_embeddings(self):
        model = SpotViTForZeroShotImageClassification(self.model_tester.get_config())
        self.assertIsInstance(model.get_input_embeddings(), torch.nn.Embedding)
        model.set_input_embeddings(torch.nn.Embedding(10, 28))
        self.assertEqual(model.get_input_embeddings().num_embeddings, 10)

    @replaces(
        "the suite leaves out models of before 2023, as whose the text towers initialise their weights in their own order"
    )
    def test_can_init_all_missing_weights(self):
        try:
            super().test_can_init_all_missing_weights()
        except AssertionError as error:
            callers = set(re.findall(r"called from `(\w+)`", str(error)))
            self.assertTrue(callers and callers <= {"CLIPPreTrainedModel", "SiglipPreTrainedModel"}, str(error))

    @skip(NO_STATES)
    def test_hidden_states_output(self):
        pass

    @skip(NO_STATES)
    def test_attention_outputs(self):
        pass

    @skip(NO_STATES)
    def test_retain_grad_hidden_states_attentions(self):
        pass

    def test_states_of_both_towers(self):
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        model = SpotViTForZeroShotImageClassification(config).to(torch_device).eval()
        model.set_attn_implementation("eager")
        with torch.no_grad():
            outputs = model(**inputs, output_hidden_states=True, output_attentions=True)
        prefix = int(config.use_class_token)
        for tower, length in ((outputs.vision_model_output, prefix + 8), (outputs.text_model_output, 9)):
            self.assertEqual([states.shape[1] for states in tower.hidden_states], [length] * 3)
            self.assertEqual([weights.shape[1:] for weights in tower.attentions], [(4, length, length)] * 2)

    def test_output_shapes(self):
        tester = self.model_tester
        config, inputs = tester.prepare_config_and_inputs_for_common()
        with torch.no_grad():
            outputs = SpotViTForZeroShotImageClassification(config).to(torch_device).eval()(**inputs)
        self.assertEqual(outputs.logits_per_image.shape, (tester.batch_size, tester.batch_size))
        self.assertEqual(outputs.image_embeds.shape, (tester.batch_size, config.projection_dim or 32))
        self.assertEqual(outputs.text_embeds.shape, outputs.image_embeds.shape)


class SpotViTZeroShotModelTest(SpotViTZeroShotSuite, unittest.TestCase):
    """With CLIP's texts."""

    options = {"text_config": {"model_type": "clip_text_model", **TEXT}, "projection_dim": 20}


class SpotViTSigmoidZeroShotModelTest(SpotViTZeroShotSuite, unittest.TestCase):
    """With SigLIP's texts, and its tower's head."""

    options = {
        "text_config": {"model_type": "siglip_text_model", **TEXT, "projection_size": 32},
        "text_activation": "sigmoid",
        "use_class_token": False,
        "pooling": "attention",
    }
