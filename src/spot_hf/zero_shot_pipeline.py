"""The `spot-zero-shot-image-classification` pipeline: classes by their names, with positions taken, placed and returned."""

from typing import Any

import torch
from transformers.pipelines.image_classification import ClassificationFunction

from .input_checks import check_candidate_labels, check_hypothesis_template
from .pipeline_spot_vit import SpotImageClassificationPipeline


HYPOTHESIS_TEMPLATE = "This is a photo of {}."  # the stock pipeline's


class SpotZeroShotImageClassificationPipeline(SpotImageClassificationPipeline):
    """
    Zero-shot image classification with few, freely placed tokens.

    ```python
    >>> from transformers import pipeline

    >>> classifier = pipeline("spot-zero-shot-image-classification", model="user/spot-clip", trust_remote_code=True)
    >>> classifier("photo.jpg", candidate_labels=["a cat", "a dog"], num_tokens=49, placement="isotropic")
    ```

    Texts are embedded once for all images. All else is as in [`SpotImageClassificationPipeline`].
    """

    _load_tokenizer = True
    _classifier: Any = None
    _texts: tuple[Any, ...] | None = None  # of that classifier, and the weights that embedded them

    def check_model_type(self, supported_models: Any) -> None:
        super().check_model_type(["SpotViTForZeroShotImageClassification"])

    @property
    def classifier(self) -> Any:
        """The model among the texts of the present call."""
        return self._classifier

    def _sanitize_parameters(self, candidate_labels=None, hypothesis_template=None, **kwargs):  # type: ignore[override]
        preprocess, forward, postprocess = super()._sanitize_parameters(**kwargs)
        if candidate_labels is not None:
            forward["candidate_labels"] = check_candidate_labels(candidate_labels)
            postprocess["candidate_labels"] = forward["candidate_labels"]
        if hypothesis_template is not None:
            check_hypothesis_template(hypothesis_template)
            forward["hypothesis_template"] = hypothesis_template
        return preprocess, forward, postprocess

    def __call__(self, inputs: Any, candidate_labels: list[str] | None = None, **kwargs: Any):
        """
        Classifies images among texts.

        Args:
            inputs: images, as [`SpotImageClassificationPipeline`] takes them.
            candidate_labels (`list[str]`): what may be seen.
            hypothesis_template (`str`, *optional*, defaults to `"This is a photo of {}."`): the text of a label, in its place.
            num_tokens, placement, coordinates, window_scales, seed and others: as in [`SpotImageClassificationPipeline`].
            function_to_apply (`str`, *optional*): `"softmax"` over the labels, `"sigmoid"` for each alone, or `"none"`; by
                default as the model was trained: CLIP's by softmax, SigLIP's by sigmoid.
            top_k (`int`, *optional*): number of labels returned; all by default.

        Returns:
            As [`SpotImageClassificationPipeline`].

        Raises:
            `ValueError`: the same, and where there are no labels, or the template has no place for one.
        """
        if candidate_labels is None:
            candidate_labels = self._forward_params.get("candidate_labels")
        check_candidate_labels(candidate_labels)
        return super().__call__(inputs, candidate_labels=candidate_labels, **kwargs)

    def _forward(  # type: ignore[override]
        self, model_inputs: dict[str, torch.Tensor], candidate_labels=(), hypothesis_template=HYPOTHESIS_TEMPLATE, **parameters
    ) -> dict[str, torch.Tensor]:
        present = (candidate_labels, hypothesis_template, self._text_weights())
        if self._texts != present:
            texts = [hypothesis_template.format(label) for label in candidate_labels]
            embeds = self.model.embed_texts(texts, self.tokenizer)
            self._classifier, self._is_compiled = self.model.as_classifier(embeds, candidate_labels), False
            self._texts = present
        return super()._forward(model_inputs, **parameters)

    def _text_weights(self) -> tuple[Any, ...]:
        """What changes where the weights that embed texts do: their places in memory, and how often each was written."""
        towers = [one for one in (self.model.text_model, self.model.text_projection) if one is not None]
        weights = [weight for tower in towers for weight in tower.parameters()]
        return tuple((one.data_ptr(), 0 if one.is_inference() else one._version) for one in weights)

    def postprocess(  # type: ignore[override]
        self, model_outputs, candidate_labels=(), function_to_apply=None, top_k=None, return_coordinates=False
    ):
        function = function_to_apply or ClassificationFunction(self.model.config.text_activation)
        predictions = self._best_classes(model_outputs["logits"][0], function, top_k, candidate_labels)
        return self._with_coordinates(predictions, model_outputs) if return_coordinates else predictions


__all__ = ["SpotZeroShotImageClassificationPipeline"]
