"""The `spot-image-classification` pipeline: image classification that takes, places and returns token positions."""

from typing import Any

import torch
from transformers import ImageClassificationPipeline
from transformers.image_utils import load_image


PLACEMENT_PARAMETERS = ("num_tokens", "placement", "coordinates", "seed", "saliency")
# Of a dict input: what one image can have of its own.
INPUT_KEYS = ("image", "coordinates", "saliency", "image_id")


class SpotImageClassificationPipeline(ImageClassificationPipeline):
    """
    Image classification with few, freely placed tokens.

    ```python
    >>> from transformers import pipeline

    >>> classifier = pipeline("spot-image-classification", model="user/spot-vit", trust_remote_code=True)
    >>> classifier("photo.jpg", num_tokens=49, placement="isotropic", top_k=2)
    >>> classifier({"image": "photo.jpg", "coordinates": [[0.25, 0.5], [0.75, 0.5]]}, return_coordinates=True)
    ```

    Batches (`batch_size=`) may mix token counts: shorter sets are padded with a mask.
    """

    def _sanitize_parameters(
        self,
        top_k=None,
        function_to_apply=None,
        timeout=None,
        num_tokens=None,
        placement=None,
        coordinates=None,
        seed=None,
        saliency=None,
        return_coordinates=None,
    ):
        preprocess, forward, postprocess = super()._sanitize_parameters(
            top_k=top_k, function_to_apply=function_to_apply, timeout=timeout
        )
        if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1):
            raise ValueError(f"`top_k` must be a positive integer; got {top_k!r}")
        given = (num_tokens, placement, coordinates, seed, saliency)
        preprocess.update({name: value for name, value in zip(PLACEMENT_PARAMETERS, given, strict=True) if value is not None})
        if return_coordinates is not None:
            postprocess["return_coordinates"] = return_coordinates
        return preprocess, forward, postprocess

    def __call__(self, inputs: Any, **kwargs: Any):
        """
        Classifies images.

        Args:
            inputs: an image (`PIL.Image`, path or URL), a dict `{"image": ..., "coordinates": ...}` (also `"saliency"` and
                `"image_id"`), or a list, generator or data set of either.
            num_tokens (`int`, *optional*): number of tokens; the saved default where not given.
            placement (`str`, *optional*): the spatial prior, such as `"isotropic"` or `"center"`; the saved default where
                not given.
            coordinates (*optional*): positions `(x, y)` relative to the original image, in [0, 1]: one set
                `(num_tokens, 2)` for all images, or, for a list of images, one set per image.
            seed (`int`, *optional*): seed of random placements.
            saliency (*optional*): for a list of images, one map `(rows, columns)` per image; one map for a single image.
            top_k (`int`, *optional*, defaults to 5): number of classes returned.
            return_coordinates (`bool`, *optional*, defaults to `False`): also return the positions that were used.
            function_to_apply, timeout, batch_size: as in transformers' image-classification pipeline.

        Returns:
            For each image a list of `{"label", "score"}`, best first. With `return_coordinates` instead a dict of
            `"predictions"` (that list) and `"coordinates"` (`[[x, y], ...]`, relative to the original image).

        Raises:
            `ValueError`: as the image processor, before the model runs.
        """
        if "images" in kwargs:
            inputs = kwargs.pop("images")
        if isinstance(inputs, list):
            inputs = self._give_each_its_own(inputs, kwargs)
        return super().__call__(inputs, **kwargs)

    def _give_each_its_own(self, inputs: list, kwargs: dict[str, Any]) -> list:
        """Moves what the call gives per image (coordinates, saliency) into that image's input."""
        for name, single_ndim in (("coordinates", 2), ("saliency", None)):
            value = kwargs.get(name)
            if value is None or (single_ndim is not None and _ndim(value) == single_ndim):
                continue
            if not hasattr(value, "__len__") or len(value) != len(inputs):
                accepted = (
                    "one set (num_tokens, 2) for all images or one set per image" if single_ndim else "one map per image"
                )
                count = len(value) if hasattr(value, "__len__") else value
                raise ValueError(f"`{name}` must be {accepted}, {len(inputs)}; got {count}")
            kwargs.pop(name)
            inputs = [
                {**(one if isinstance(one, dict) else {"image": one}), name: own}
                for one, own in zip(inputs, value, strict=True)
            ]
        return inputs

    def preprocess(self, inputs: Any, timeout: float | None = None, **parameters) -> dict[str, torch.Tensor]:
        image_ids = None
        if isinstance(inputs, dict):
            unknown = sorted(set(inputs) - set(INPUT_KEYS))
            if "image" not in inputs or unknown:
                raise ValueError(
                    f"an input dict must have the keys {', '.join(INPUT_KEYS)}; got {', '.join(map(str, inputs))}"
                )
            own = {key: inputs[key] for key in ("coordinates", "saliency") if inputs.get(key) is not None}
            if "coordinates" in own:  # one image's positions take the place of the call's placement
                parameters = {k: v for k, v in parameters.items() if k not in ("num_tokens", "placement")}
            parameters = {**parameters, **own}
            image_ids = [inputs["image_id"]] if inputs.get("image_id") is not None else None
            inputs = inputs["image"]
        image = load_image(inputs, timeout=timeout)
        features = self.image_processor(images=image, image_ids=image_ids, return_tensors="pt", **parameters)
        if "coordinates" not in features:  # a batch may mix placed and full-grid images
            features = self.image_processor(images=image, placement="grid", return_tensors="pt")
        num_tokens = features["coordinates"].shape[1]
        return {
            # Only pixels are cast: positions stay float32.
            "pixel_values": features["pixel_values"].to(self.dtype),
            "coordinates": features["coordinates"],
            # Ragged batches are padded with zeros: false is padding.
            "coordinates_mask": torch.ones(1, num_tokens, dtype=torch.bool),
            "image_size": torch.tensor([image.size]),
        }

    def _forward(self, model_inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        image_size = model_inputs.pop("image_size")
        coordinates, mask = model_inputs["coordinates"], model_inputs["coordinates_mask"]
        if bool(mask.all()):
            model_inputs = {name: value for name, value in model_inputs.items() if name != "coordinates_mask"}
        logits = self.model(**model_inputs).logits
        return {"logits": logits, "coordinates": coordinates, "coordinates_mask": mask, "image_size": image_size}

    def postprocess(self, model_outputs, function_to_apply=None, top_k=5, return_coordinates=False):
        predictions = super().postprocess(model_outputs, function_to_apply=function_to_apply, top_k=top_k)
        if not return_coordinates:
            return predictions
        used = model_outputs["coordinates"][0][model_outputs["coordinates_mask"][0]]
        width, height = model_outputs["image_size"][0].tolist()
        return {
            "predictions": predictions,
            "coordinates": self.image_processor.to_image_frame(used, (width, height)).tolist(),
        }

    def _upload_modified_files(self, working_dir, repo_id, *args, **kwargs):
        """The last step of a push: by now transformers has put an empty card in the place of a missing one."""
        if self.model._write_model_card is not None:
            defaults = {name: getattr(self.image_processor, name) for name in ("num_tokens", "placement")}
            self.model._write_model_card(working_dir, repo_id=repo_id, **defaults)
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)


def _ndim(value: Any) -> int:
    if hasattr(value, "ndim"):
        return value.ndim
    return 1 + _ndim(value[0]) if isinstance(value, (list, tuple)) and len(value) else 0


__all__ = ["SpotImageClassificationPipeline"]
