"""The `spot-image-segmentation` pipeline: image segmentation that takes, places and returns token positions."""

from typing import Any

import torch
from transformers import ImageSegmentationPipeline

from .input_checks import check_decode
from .pipeline_spot_vit import OWN_KEYS, PLACEMENT_PARAMETERS, check_keys, image_size_of, open_input
from .placement import COVER, check_takes_saliency


class SpotImageSegmentationPipeline(ImageSegmentationPipeline):
    """
    Semantic segmentation with few, freely placed tokens.

    ```python
    >>> from transformers import pipeline

    >>> segmenter = pipeline("spot-image-segmentation", model="user/spot-vit", trust_remote_code=True)
    >>> segmenter("street.jpg", num_tokens=165, placement="isotropic", window_scales="cover")
    >>> segmenter({"image": "street.jpg", "coordinates": [[0.25, 0.5], [0.75, 0.5]]}, return_coordinates=True)
    ```

    Batches (`batch_size=`) may mix token counts: shorter sets are padded with a mask.
    """

    def _sanitize_parameters(
        self,
        num_tokens=None,
        placement=None,
        coordinates=None,
        seed=None,
        saliency=None,
        boxes=None,
        window_scales=None,
        outside=None,
        decode=None,
        return_coordinates=None,
        **kwargs,
    ):
        preprocess, forward, postprocess = super()._sanitize_parameters(**kwargs)
        given = (num_tokens, placement, coordinates, seed, saliency, boxes, window_scales, outside)
        preprocess.update({name: value for name, value in zip(PLACEMENT_PARAMETERS, given, strict=True) if value is not None})
        for name, value in (("saliency", saliency), ("boxes", boxes)):
            if value is not None and placement is not None:
                check_takes_saliency(name, placement)
        if isinstance(num_tokens, (list, tuple)):
            raise ValueError(f"`num_tokens` must be one number in segmentation; got {list(num_tokens)}")
        if coordinates is not None:
            for name, value in (("num_tokens", num_tokens), ("placement", placement)):
                if value is not None:
                    raise ValueError(f"`coordinates` and `{name}` exclude each other; got both ({name}={value!r})")
            preprocess.update(num_tokens=None, placement=None)  # of the pipeline: those of a call override them
        elif num_tokens is not None or placement is not None:
            preprocess["coordinates"] = None
        if decode is not None:
            check_decode(decode)
            preprocess["decode"] = decode
        if return_coordinates is not None:
            postprocess["return_coordinates"] = return_coordinates
        return preprocess, forward, postprocess

    def __call__(self, inputs: Any, **kwargs: Any):
        """
        Segments images.

        Args:
            inputs: an image (`PIL.Image`, path, URL, `np.ndarray`, `torch.Tensor`, or what the image processor's `open_image`
                returned), a dict `{"image": ..., "coordinates": ...}` (also `"saliency"`, `"boxes"`, `"image_id"` and
                `"window_scales"`), or a list, generator or data set of either.
            num_tokens (`int`, *optional*): number of tokens; the saved default where not given, and else the full grid.
            placement (`str`, *optional*): the spatial prior, such as `"isotropic"`; the saved default where not given.
            coordinates (*optional*): positions `(x, y)` relative to the original image, in [0, 1], `(num_tokens, 2)`, for all
                images. A dict has those of one image.
            seed (`int`, *optional*): of random placements.
            saliency, boxes (*optional*): of a single image, as the image processor takes them.
            window_scales (*optional*): sizes of the windows in patches: one for all tokens, one per token, or `"cover"`.
            outside (`str`, *optional*): what becomes of coordinates that the model's crop removes.
            decode (`str`, *optional*): `"exact"` or `"scaled"`, see the image processor.
            return_coordinates (`bool`, *optional*, defaults to `False`): also return the positions that were used.
            subtask, threshold, timeout, batch_size: as in transformers' image-segmentation pipeline.

        Returns:
            For each image a list of `{"score": None, "label", "mask"}`, one for each class that occurs, as transformers'
            pipeline does; `mask` is a `PIL.Image` of the original image's size. With `return_coordinates` instead a dict of
            `"segments"` (that list), `"coordinates"` (`[[x, y], ...]`, relative to the original image) and, where they are not
            all 1, `"window_scales"`.

        Raises:
            `ValueError`: as the image processor, before the model runs; a dict without `"image"`, or with a misspelt key.
        """
        return super().__call__(inputs, **kwargs)

    def preprocess(self, inputs: Any, subtask: Any = None, timeout: float | None = None, **parameters) -> dict[str, Any]:
        if isinstance(inputs, dict):
            check_keys(inputs)
            own = {key: inputs[key] for key in OWN_KEYS if inputs.get(key) is not None}
            if "coordinates" in own:  # an image's own positions override the call's placement
                own.update(num_tokens=None, placement=None, saliency=None, boxes=None)
            if inputs.get("image_id") is not None:
                own["image_ids"] = [inputs["image_id"]]
            parameters, inputs = {**parameters, **own}, inputs["image"]
        image = open_input(inputs, self.image_processor, timeout, parameters.get("decode"))
        names = ("coordinates", "num_tokens", "placement", "saliency", "boxes")
        asked = [parameters.get(name) for name in names] + [self.image_processor.num_tokens, self.image_processor.placement]
        config = self.model.config
        if all(value is None for value in asked) and isinstance(config.num_tokens, int):  # as the model places them itself
            parameters.update(num_tokens=config.num_tokens, placement=config.placement)
            parameters.setdefault("window_scales", COVER)
        elif all(value is None for value in asked):
            parameters["placement"] = "grid"  # a batch may mix placed and full-grid images
        features = self.image_processor(images=image, return_tensors="pt", **parameters)
        width, height = image_size_of(image)
        num_tokens = features["coordinates"].shape[1]
        return {
            "pixel_values": features["pixel_values"].to(self.dtype),  # positions stay float32
            "coordinates": features["coordinates"],
            "window_scales": features.get("window_scales", torch.ones(1, num_tokens)),
            # Ragged batches are padded with zeros: false is padding.
            "coordinates_mask": torch.ones(1, num_tokens, dtype=torch.bool),
            "target_size": torch.tensor([[height, width]]),
        }

    def _forward(self, model_inputs: dict[str, Any]) -> dict[str, Any]:
        target_size = model_inputs.pop("target_size")
        mask = model_inputs["coordinates_mask"]
        model_inputs["window_scales"] = model_inputs["window_scales"].masked_fill(~mask, 1.0)  # padding was filled with zeros
        unneeded = {"coordinates_mask": bool(mask.all()), "window_scales": bool((model_inputs["window_scales"] == 1).all())}
        outputs = self.model(**{name: one for name, one in model_inputs.items() if not unneeded.get(name)})
        used = {name: model_inputs[name] for name in ("coordinates", "coordinates_mask", "window_scales")}
        return {"logits": outputs.logits, "target_size": target_size, **used}

    def postprocess(self, model_outputs: dict[str, Any], return_coordinates: bool = False, **parameters) -> Any:
        sizes = [tuple(size) for size in model_outputs["target_size"].tolist()]
        segments = super().postprocess({"logits": model_outputs["logits"], "target_size": sizes}, **parameters)
        if not return_coordinates:
            return segments
        used = model_outputs["coordinates_mask"][0]
        coordinates, scales = (model_outputs[name][0][used] for name in ("coordinates", "window_scales"))
        height, width = sizes[0]
        return {
            "segments": segments,
            "coordinates": self.image_processor.to_image_frame(coordinates, (width, height)).tolist(),
            **({} if bool((scales == 1).all()) else {"window_scales": scales.tolist()}),
        }


__all__ = ["SpotImageSegmentationPipeline"]
