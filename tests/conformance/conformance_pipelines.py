"""transformers' pipeline suite on SpotViT; copied to `tests/models/spot_vit/test_pipelines_spot_vit.py`.

The suite loads a model and its image processors from a folder, makes a pipeline, and runs it on single images and in batches.
What goes into a task's pipeline, and what must come out, stands in `tests/pipelines/`, which transformers' source archive
lacks: it stands here.
"""

import tempfile
import unittest
from pathlib import Path
from unittest import mock

from PIL import Image
from transformers import pipeline
from transformers.testing_utils import is_pipeline_test

import spot_hf

from ... import test_pipeline_mixin as suite
from .reasons import replaces
from .test_modeling_spot_vit import SpotViTModelTester


def picture(width, height, mode="RGB"):
    """A gradient: no two columns or rows are alike."""
    return Image.linear_gradient("L").resize((width, height)).rotate(30).convert(mode)


PICTURES = [picture(40, 30), picture(31, 64, "L"), picture(48, 48, "RGBA")]
# One or two: without torchvision they are the same class.
PROCESSORS = {cls.__name__: cls for cls in (spot_hf.SpotViTImageProcessorPil, spot_hf.SpotViTImageProcessor)}
MODELS = {
    cls.__name__: cls
    for cls in (spot_hf.SpotViTModel, spot_hf.SpotViTForImageClassification, spot_hf.SpotViTForSemanticSegmentation)
}


class TaskTest:
    """What the suite asks of a task: a pipeline with examples for it, and a check of what it returns."""

    task: str
    examples = PICTURES

    def get_test_pipeline(self, model, tokenizer=None, image_processor=None, dtype="float32", **others):
        return pipeline(self.task, model=model, image_processor=image_processor, dtype=dtype), self.examples

    def run_pipeline_test(self, pipe, examples):
        for example in examples:
            self.check(pipe(example))
        for output in pipe(examples):
            self.check(output)

    def check(self, output):
        scores = [entry["score"] for entry in output]
        assert len(scores) == 5 and scores == sorted(scores, reverse=True) and 0 < sum(scores) < 1
        assert all(entry["label"].startswith("LABEL_") for entry in output)


class ImageClassification(TaskTest):
    task = "image-classification"


class SpotImageClassification(TaskTest):
    """Ours: token counts that differ between the images of a batch, given or placed."""

    task = "spot-image-classification"
    examples = [
        PICTURES[0],
        {"image": PICTURES[1], "coordinates": [[0.25, 0.5], [0.75, 0.5], [1.0, 0.0]]},
        {"image": PICTURES[2], "coordinates": [[0.5, 0.5]]},
    ]


class ImageFeatureExtraction(TaskTest):
    task = "image-feature-extraction"

    def check(self, output):
        ((*tokens,),) = output  # one image: (num_tokens, hidden_size)
        assert len(tokens) == 1 + 5 * 6 and {len(token) for token in tokens} == {32}


class ImageSegmentation(TaskTest):
    task = "image-segmentation"

    def check(self, output):
        assert output and all(entry["label"].startswith("LABEL_") and entry["mask"].mode == "L" for entry in output)


class SpotImageSegmentation(ImageSegmentation):
    """Ours: token counts that differ between the images of a batch, given or placed."""

    task = "spot-image-segmentation"
    examples = SpotImageClassification.examples


TASKS = {
    cls.task: cls
    for cls in (ImageClassification, SpotImageClassification, ImageFeatureExtraction, ImageSegmentation, SpotImageSegmentation)
}


class SpotViTPipelineTest(suite.PipelineTesterMixin, unittest.TestCase):
    pipeline_model_mapping = {
        "image-classification": spot_hf.SpotViTForImageClassification,
        "spot-image-classification": spot_hf.SpotViTForImageClassification,
        "image-feature-extraction": spot_hf.SpotViTModel,
        "image-segmentation": spot_hf.SpotViTForSemanticSegmentation,
        "spot-image-segmentation": spot_hf.SpotViTForSemanticSegmentation,
    }

    def setUp(self):
        folder = self.enterContext(tempfile.TemporaryDirectory())
        config, _ = SpotViTModelTester(self).prepare_config_and_inputs_for_common()
        for name, cls in MODELS.items():
            saved = Path(folder, "spot_vit", name)
            cls(config).save_pretrained(saved)
            spot_hf.SpotViTImageProcessorPil(size={"height": 30, "width": 36}, patch_size=6).save_pretrained(saved)
        # Releases of the suite name a task's class or hold it.
        by_name = isinstance(suite.pipeline_test_mapping["image-classification"]["test"], str)
        tasks = {task: {"test": f"{__name__}.{cls.__name__}" if by_name else cls} for task, cls in TASKS.items()}
        components = {"tokenizer_classes": [], "processor_classes": list(PROCESSORS)}
        self.enterContext(
            mock.patch.multiple(
                suite,
                TRANSFORMERS_TINY_MODEL_PATH=folder,
                tiny_model_summary=dict.fromkeys(MODELS, components),
                pipeline_test_mapping=tasks,
                transformers_module=spot_hf,  # where the suite looks up the processors' names
            )
        )

    @is_pipeline_test
    def test_pipeline_spot_image_classification(self):
        self.run_task_tests("spot-image-classification")

    @is_pipeline_test
    def test_pipeline_spot_image_classification_fp16(self):
        self.run_task_tests("spot-image-classification", dtype="float16")

    @is_pipeline_test
    def test_pipeline_spot_image_segmentation(self):
        self.run_task_tests("spot-image-segmentation")

    @is_pipeline_test
    def test_pipeline_spot_image_segmentation_fp16(self):
        self.run_task_tests("spot-image-segmentation", dtype="float16")

    @is_pipeline_test
    @replaces("the suite runs this task only where timm is installed, which SpotViT does not need")
    def test_pipeline_image_feature_extraction(self):
        self.run_task_tests("image-feature-extraction")

    @is_pipeline_test
    @replaces("the suite runs this task only where timm is installed, which SpotViT does not need")
    def test_pipeline_image_feature_extraction_fp16(self):
        self.run_task_tests("image-feature-extraction", dtype="float16")
