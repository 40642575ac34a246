"""The `spot-image-classification` pipeline: image classification that takes, places and returns token positions."""

import difflib
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import ImageClassificationPipeline
from transformers.image_utils import get_image_size, infer_channel_dimension_format, load_image
from transformers.pipelines.image_classification import ClassificationFunction, sigmoid, softmax

from .budgets import check_no_budget, check_one_budget, looks_of
from .decoding import DecodedImage, are_few
from .input_checks import check_decode
from .placement import check_takes_saliency, get_placement


PLACEMENT_PARAMETERS = ("num_tokens", "placement", "coordinates", "seed", "saliency", "boxes", "window_scales", "outside")
# What one image, given as a dict, can have of its own. The row of a data set may have any other columns.
INPUT_KEYS = ("image", "coordinates", "saliency", "boxes", "image_id", "window_scales")
OWN_KEYS = ("coordinates", "saliency", "boxes", "window_scales")
# How much of a key's letters must be those of one of these, in order, to be taken for its misspelling: `coordinate` and
# `image_ids` are (0.94 and more), `image_index`, `coordinates_mask` and `saliency_map` are not (0.84 and less).
MISSPELT = 0.85
COMMON_COLUMNS = ("image_idx", "bboxes")  # as near to one of these, but a usual name of a column


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

    A saved model names its own pipeline, so that transformers asks for `trust_remote_code=True` also where `spot_hf` is
    imported. There, `pipeline_class=SpotImageClassificationPipeline` instead runs the installed code alone.
    """

    _is_compiled = False

    @property
    def classifier(self) -> Any:
        """The model that gives logits of classes."""
        return self.model

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
        boxes=None,
        window_scales=None,
        outside=None,
        confidence=None,
        max_mean_tokens=None,
        merge_tokens=None,
        decode=None,
        compile=None,
        return_coordinates=None,
    ):
        preprocess, forward, postprocess = super()._sanitize_parameters(
            top_k=top_k, function_to_apply=function_to_apply, timeout=timeout
        )
        if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1):
            raise ValueError(f"`top_k` must be a positive integer; got {top_k!r}")
        forward.update(self._budget_of(num_tokens, confidence, max_mean_tokens))
        if merge_tokens is not None:
            forward["merge_tokens"] = merge_tokens
        placed = {name: value for name, value in (("num_tokens", num_tokens), ("placement", placement)) if value is not None}
        if coordinates is not None and (saliency is not None or boxes is not None):
            name = "saliency" if saliency is not None else "boxes"
            raise ValueError(f"`coordinates` and `{name}` exclude each other; got both")
        if coordinates is not None and placed:
            name, value = next(iter(placed.items()))
            raise ValueError(f"`coordinates` and `{name}` exclude each other; got both ({name}={value!r})")
        for name, value in (("saliency", saliency), ("boxes", boxes)):
            if value is not None and placement is not None:
                check_takes_saliency(name, placement)
        given = (num_tokens, placement, coordinates, seed, saliency, boxes, window_scales, outside)
        preprocess.update({name: value for name, value in zip(PLACEMENT_PARAMETERS, given, strict=True) if value is not None})
        if placement is not None:
            forward["placement"] = placement
        if compile is not None:
            forward["compile"] = compile
        if decode is not None:
            check_decode(decode)
            preprocess["decode"] = decode
        # Arguments of a call override those that the pipeline was made with.
        if coordinates is not None:
            preprocess.update(num_tokens=None, placement=None)
            forward.update(num_tokens=None, confidence=None, max_mean_tokens=None)
        elif placed:
            preprocess["coordinates"] = None
        if return_coordinates is not None:
            postprocess["return_coordinates"] = return_coordinates
        return preprocess, forward, postprocess

    @staticmethod
    def _budget_of(num_tokens: Any, confidence: Any, max_mean_tokens: Any) -> dict[str, Any]:
        """How many tokens, and when they are enough, of a call: what it names takes the place of what the pipeline was made
        with, also where one excludes the other."""
        check_one_budget(confidence, max_mean_tokens)
        given = {"confidence": confidence, "max_mean_tokens": max_mean_tokens}
        if num_tokens is None:
            named = any(value is not None for value in given.values())
            return given if named else {}
        if not isinstance(num_tokens, (list, tuple)):
            check_no_budget(num_tokens, confidence, max_mean_tokens)
        return {"num_tokens": num_tokens, **given}

    def __call__(self, inputs: Any, **kwargs: Any):
        """
        Classifies images.

        Args:
            inputs: an image (`PIL.Image`, path, URL, `np.ndarray`, `torch.Tensor`, or what the image processor's `open_image`
                returned), a dict `{"image": ...,
                "coordinates": ...}` (also `"saliency"`, `"boxes"`, `"image_id"` and `"window_scales"`), or a list, generator
                or data set of either. The row of a data set is such a dict, in particular that of a coordinate data set
                joined with its images: other columns are ignored, and so are saliency and boxes where the placement that is
                named, or saved, needs none.
            num_tokens (`int` or `list[int]`, *optional*): number of tokens; the saved default where not given. Several,
                ascending: a look with each in turn, until the model is sure. Without a `placement` the model then places them
                itself.
            confidence, max_mean_tokens, merge_tokens (*optional*): when the model is sure, and how many of its tokens merge:
                as [`SpotViTForImageClassification.forward`] takes them.
            placement (`str`, *optional*): the spatial prior, such as `"isotropic"` or `"center"`, or `"learned"`, by the
                model's placer; the saved default where not given.
            coordinates (*optional*): positions `(x, y)` relative to the original image, in [0, 1]: one set
                `(num_tokens, 2)` for all images, or, for a list of images, one set per image.
            seed (`int`, *optional*): seed of random placements.
            saliency, boxes (*optional*): for a list of images, one map `(rows, columns)`, or one or several boxes
                `[x_min, y_min, x_max, y_max]` in pixels, per image; one map, or the boxes, of a single image.
            window_scales (*optional*): sizes of the windows in patches, above 0: one for all tokens, one per token, or, for a
                list of images, one such list per image; or `"cover"`: the windows' areas sum to the image's.
            outside (`str`, *optional*): what becomes of coordinates that the model's crop removes: `"warn"`, `"drop"` or
                `"error"`.
            decode (`str`, *optional*): how much of a file is decoded, `"exact"`, all of it, or `"scaled"`, as little as the
                model's recipe needs; the saved default where not given. An image that was decoded before stays as it is.
            compile (`bool`, *optional*, defaults to `False`): run the model through `torch.compile`, from then on: for many
                images, as the first batches take up to a minute.
            top_k (`int`, *optional*, defaults to 5): number of classes returned.
            return_coordinates (`bool`, *optional*, defaults to `False`): also return the positions that were used, of all
                looks, and the windows' scales where these are not all 1.
            function_to_apply, timeout, batch_size: as in transformers' image-classification pipeline.

        Returns:
            For each image a list of `{"label", "score"}`, best first. With `return_coordinates` instead a dict of
            `"predictions"` (that list), `"coordinates"` (`[[x, y], ...]`, relative to the original image) and, where they are
            not all 1, `"window_scales"`.

        Raises:
            `ValueError`: as the image processor, before the model runs; a dict without `"image"`, or with a misspelt key.
        """
        if isinstance(inputs, list):
            inputs = self._split_by_image(inputs, kwargs)
        elif (kwargs.get("boxes") is not None or kwargs.get("saliency") is not None) and _are_several(inputs):
            name = "boxes" if kwargs.get("boxes") is not None else "saliency"
            raise ValueError(f"`{name}` of several images need a list of images; got {type(inputs).__name__}")
        elif _ndim(kwargs.get("coordinates")) == 3 and len(kwargs["coordinates"]) > 1:
            count = len(kwargs["coordinates"])
            raise ValueError(f"`coordinates` with one set per image need a list of images; got {count} sets and no list")
        return super().__call__(inputs, **kwargs)

    def _split_by_image(self, inputs: list, kwargs: dict[str, Any]) -> list:
        """Moves arguments with one value per image into the images' own inputs."""
        self._sanitize_parameters(**{name: kwargs[name] for name in PLACEMENT_PARAMETERS if name in kwargs})  # or raises
        # How deep a value is that holds for all images, and what is accepted.
        several = {
            "coordinates": (2, "one set (num_tokens, 2) for all images or one set per image"),
            "saliency": (None, "one map per image"),
            "boxes": (None, "one or several boxes per image"),
            "window_scales": (1, "one scale, one per token, or one list per image"),
        }
        for name, (single_ndim, accepted) in several.items():
            value = kwargs.get(name)
            if value is None or (single_ndim is not None and _ndim(value) <= single_ndim):
                continue
            if not hasattr(value, "__len__") or len(value) != len(inputs):
                count = len(value) if hasattr(value, "__len__") else value
                raise ValueError(f"`{name}` must be {accepted}, {len(inputs)}; got {count}")
            kwargs.pop(name)
            if name in ("saliency", "boxes") and not self._uses_saliency({**self._preprocess_params, **kwargs}):
                named = self._preprocess_params.get("placement") or kwargs.get("placement")
                if named is not None:  # or else the saved one, which what is salient takes the place of
                    check_takes_saliency(name, named)
                kwargs["placement"] = "salient"
            inputs = [
                {**(one if isinstance(one, dict) else {"image": one}), name: own}
                for one, own in zip(inputs, value, strict=True)
            ]
        return inputs

    def preprocess(self, inputs: Any, timeout: float | None = None, **parameters) -> dict[str, torch.Tensor]:
        return_windows = self.cuts_windows(parameters)
        if isinstance(inputs, dict):
            check_keys(inputs)
            own = {key: inputs[key] for key in OWN_KEYS if inputs.get(key) is not None}
            if "coordinates" in own:  # an image's own positions override the call's placement
                if isinstance(parameters.get("num_tokens"), (list, tuple)):
                    raise ValueError(
                        f"an input's `coordinates` and several `num_tokens` exclude each other; got {parameters['num_tokens']}"
                    )
                own.update(num_tokens=None, placement=None, saliency=None, boxes=None)
            elif not self._uses_saliency(parameters):
                own.pop("saliency", None)
                own.pop("boxes", None)
            if inputs.get("image_id") is not None:
                own["image_ids"] = [inputs["image_id"]]
            parameters, inputs = {**parameters, **own}, inputs["image"]
        image = open_input(inputs, self.image_processor, timeout, parameters.get("decode"))
        if parameters.get("placement") == "learned" and parameters.get("window_scales") is not None:
            raise ValueError("`window_scales` excludes `placement='learned'`, whose windows cover the image; got both")
        is_free = self._is_free(parameters)
        if is_free or parameters.get("placement") == "learned":
            parameters["num_tokens"] = parameters.get("num_tokens") or self.model.config.num_tokens
        several = torch.tensor([isinstance(parameters.get("num_tokens"), (list, tuple))])
        if is_free and parameters.get("window_scales") is not None:  # the model's own would cover the image
            parameters["placement"] = "isotropic"
        elif is_free or parameters.get("placement") == "learned":
            parameters.update(num_tokens=None, placement="grid", return_windows=False)
            pixel_values = self.image_processor(images=image, return_tensors="pt", **parameters)["pixel_values"]
            return {
                "window_scales": torch.ones(1, 1),
                "pixel_values": pixel_values.to(self.dtype),
                "coordinates": torch.full((1, 1, 2), 0.5),
                "coordinates_mask": torch.zeros(1, 1, dtype=torch.bool),  # no token yet: to be placed in a batch
                "several": several,
                "image_size": torch.tensor([image_size_of(image)]),
            }
        asked = [parameters.get(name) for name in ("coordinates", "num_tokens", "placement")]
        saved = [self.image_processor.num_tokens, self.image_processor.placement]
        salient = [parameters.get(name) for name in ("saliency", "boxes")]
        if all(value is None for value in asked + saved + salient):
            parameters["placement"] = "grid"  # a batch may mix placed and full-grid images
        features = self.image_processor(images=image, return_tensors="pt", return_windows=return_windows, **parameters)
        num_tokens = features["coordinates"].shape[1]
        seen = {"windows": features["windows"].flatten(2)} if return_windows else {"pixel_values": features["pixel_values"]}
        return {
            "window_scales": features.get("window_scales", torch.ones(1, num_tokens)),
            # Only pixels are cast: positions stay float32.
            **{name: one.to(self.dtype) for name, one in seen.items()},
            "coordinates": features["coordinates"],
            # Ragged batches are padded with zeros: false is padding.
            "coordinates_mask": torch.ones(1, num_tokens, dtype=torch.bool),
            "several": several,  # whether they are those of several looks
            "image_size": torch.tensor([image_size_of(image)]),
        }

    def cuts_windows(self, parameters: dict[str, Any]) -> bool:
        """Whether the image processor cuts out the windows of a call: where it then leaves most of an image alone. By what the
        call says, and not by what an image says of itself: the images of a batch have all of them windows or none."""
        processor = self.image_processor
        num_tokens, placement = (parameters.get(name) or getattr(processor, name) for name in ("num_tokens", "placement"))
        scales = parameters.get("window_scales", processor.window_scales)
        has_own_scales = scales is not None and not (isinstance(scales, (int, float)) and scales == 1)
        if parameters.get("coordinates") is not None or not isinstance(num_tokens, int) or has_own_scales:
            return False
        takes_windows = getattr(self.model, "takes_windows", True) and self.model.config.has_plain_windows
        if placement in ("learned", "grid") or not takes_windows:
            return False
        prior = get_placement(placement or "isotropic")
        if prior.pixels or prior.scaled:
            return False
        height, width = self.model.config.image_height_width
        # Of an odd shape, so that a recipe that keeps proportions gives another size.
        is_same_size = processor.model_size((1000, 617)) == (width, height)
        return is_same_size and are_few(num_tokens, processor.patch_size, width, height)

    def _is_free(self, parameters: dict[str, Any]) -> bool:
        """Whether nobody says where tokens sit, and the call, which then names several numbers, or the config how many."""
        given = ("coordinates", "placement", "saliency", "boxes")
        if any(parameters.get(name) is not None for name in given):
            return False
        num_tokens = parameters.get("num_tokens")
        if num_tokens is not None:
            return isinstance(num_tokens, (list, tuple))
        saved = (self.image_processor.num_tokens, self.image_processor.placement)
        return saved == (None, None) and getattr(self.model.config, "num_tokens", None) is not None

    def _forward(
        self, model_inputs: dict[str, torch.Tensor], num_tokens=None, placement=None, compile=False, **budget
    ) -> dict[str, torch.Tensor]:
        if compile and not self._is_compiled:
            self.classifier.compile()
            self._is_compiled = True
        image_size = model_inputs.pop("image_size")
        if "windows" in model_inputs:  # a batch pads what has three dimensions
            patch_size = self.image_processor.patch_size
            model_inputs["windows"] = model_inputs["windows"].unflatten(2, (-1, patch_size, patch_size))
        own = ~model_inputs["coordinates_mask"].any(1)  # images whose tokens the model places
        several = model_inputs.pop("several")
        looks: Any = num_tokens or getattr(self.model.config, "num_tokens", None)
        if bool(several.any()):
            budget["num_tokens"] = list(looks)
            if not bool(several.all()):
                raise ValueError(f"an input's `coordinates` and several `num_tokens` exclude each other; got {list(looks)}")
        else:
            check_no_budget(looks, budget.pop("confidence", None), budget.pop("max_mean_tokens", None))
        if bool(own.any()):
            self._place(model_inputs, own, looks_of(looks), "learned" if placement == "learned" else None)
        coordinates, mask = model_inputs["coordinates"], model_inputs["coordinates_mask"]
        scales = model_inputs["window_scales"].masked_fill(~mask, 1.0)  # padding was filled with zeros
        model_inputs["window_scales"] = scales
        # Without a mask and without scales there is less to compute.
        unneeded = {"coordinates_mask": bool(mask.all()), "window_scales": bool((scales == 1).all())}
        inputs = {name: one for name, one in model_inputs.items() if not unneeded.get(name)}
        outputs = self.classifier(**inputs, **budget)
        if "num_tokens" in budget:  # an image's later looks were not all needed
            mask = torch.arange(mask.shape[1], device=mask.device) < outputs.num_tokens[:, None]
        return {
            "logits": outputs.logits,
            "coordinates": coordinates,
            "coordinates_mask": mask,
            "window_scales": scales,
            "image_size": image_size,
        }

    def _place(self, inputs: dict[str, torch.Tensor], own: torch.Tensor, looks: list[int], placement: str | None) -> None:
        """Fills in where the model looks in the images `own` `(batch_size,)` of a batch; the others keep their tokens."""
        placed = [self.model.place(inputs["pixel_values"][own], count, placement) for count in looks]
        coordinates = torch.cat([one["coordinates"] for one in placed], dim=1)
        ones = torch.ones_like(coordinates[..., 0])
        scales = [one.get("window_scales", ones[:, :count]) for one, count in zip(placed, looks, strict=True)]
        found = {"coordinates": coordinates, "window_scales": torch.cat(scales, dim=1), "coordinates_mask": ones.bool()}
        longest = max(coordinates.shape[1], inputs["coordinates"].shape[1])
        for name, value in found.items():
            before = inputs[name]
            after = before.new_zeros(len(own), longest, *before.shape[2:])
            after[:, : before.shape[1]] = before
            after[own] = 0
            after[own, : value.shape[1]] = value.to(after.dtype)
            inputs[name] = after

    def postprocess(self, model_outputs, function_to_apply=None, top_k=5, return_coordinates=False):
        predictions = self._best_classes(model_outputs["logits"][0], function_to_apply, top_k, self.model.config.id2label)
        return self._with_coordinates(predictions, model_outputs) if return_coordinates else predictions

    def _with_coordinates(self, predictions: list[dict[str, Any]], model_outputs: dict[str, Any]) -> dict[str, Any]:
        """Predictions, and the positions that were used, in the image's own frame."""
        used = model_outputs["coordinates_mask"][0]
        coordinates, scales = (model_outputs[name][0][used] for name in ("coordinates", "window_scales"))
        width, height = model_outputs["image_size"][0].tolist()
        return {
            "predictions": predictions,
            "coordinates": self.image_processor.to_image_frame(coordinates, (width, height)).tolist(),
            **({} if bool((scales == 1).all()) else {"window_scales": scales.tolist()}),
        }

    def _best_classes(
        self, logits: torch.Tensor, function_to_apply: Any, top_k: int | None, labels: Any
    ) -> list[dict[str, Any]]:
        """As transformers' pipeline gives them, but only those that are asked for: with a small model, a list of all 1,000
        classes took a fifth of the time."""
        config = self.model.config
        if function_to_apply is None:
            if config.problem_type == "regression":
                function_to_apply = ClassificationFunction.NONE
            elif config.problem_type == "multi_label_classification" or config.num_labels == 1:
                function_to_apply = ClassificationFunction.SIGMOID
            else:
                function_to_apply = ClassificationFunction.SOFTMAX
        scores = (logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits).numpy()
        if function_to_apply == ClassificationFunction.SIGMOID:
            scores = sigmoid(scores)
        elif function_to_apply == ClassificationFunction.SOFTMAX:
            scores = softmax(scores)
        best = np.argsort(-scores, kind="stable")[:top_k]
        return [{"label": labels[i], "score": scores[i].item()} for i in best.tolist()]

    def _uses_saliency(self, parameters: dict[str, Any]) -> bool:
        """Whether the placement of a call, or else the saved one, takes what is salient; where neither is named, whether a
        number of tokens is, which is then placed by it."""
        placement = parameters.get("placement") or self.image_processor.placement
        if placement == "learned":
            return False
        if placement is None:
            return parameters.get("num_tokens") is not None
        return get_placement(placement).saliency

    def _upload_modified_files(self, working_dir, repo_id, *args, **kwargs):
        """The last step of a push: by now transformers has put an empty card in the place of a missing one."""
        if self.model._write_model_card is not None:
            defaults = {name: getattr(self.image_processor, name) for name in ("num_tokens", "placement")}
            self.model._write_model_card(working_dir, repo_id=repo_id, **defaults)
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)


def open_input(image: Any, image_processor: Any, timeout: float | None, decode: str | None) -> Any:
    """An image in any form that a pipeline takes, as the image processor takes it."""
    if isinstance(image, (np.ndarray, torch.Tensor, DecodedImage)):
        return image
    if isinstance(image, Image.Image):
        return load_image(image)
    return image_processor.open_image(image, timeout, decode)


def check_keys(row: dict[str, Any]) -> None:
    """`ValueError` for a row without an image, or with what looks like a misspelling of a key that it lacks."""
    lacking = [key for key in INPUT_KEYS if key not in row]
    for key in row:
        similar = difflib.get_close_matches(str(key).lower(), lacking, n=1, cutoff=MISSPELT)
        if similar and key not in COMMON_COLUMNS:
            raise ValueError(f"an input dict must not have the key {key!r}: is it {similar[0]!r}?")
    if "image" not in row:
        got = ", ".join(map(str, row))
        raise ValueError(f"an input dict must have the key image, and may have {', '.join(INPUT_KEYS[1:])}; got {got}")


def _are_several(inputs: Any) -> bool:
    """Whether it is a data set, a generator or the like."""
    return not isinstance(inputs, (str, dict, np.ndarray, torch.Tensor)) and (
        hasattr(inputs, "__iter__") or hasattr(inputs, "__getitem__")
    )


def image_size_of(image: Any) -> tuple[int, int]:
    """`(width, height)` of an image in any form that the pipeline takes."""
    if not isinstance(image, (np.ndarray, torch.Tensor)):
        return image.size
    if image.ndim == 2:
        return image.shape[1], image.shape[0]
    height, width = get_image_size(image, infer_channel_dimension_format(image, num_channels=(1, 3, 4)))
    return width, height


def _ndim(value: Any) -> int:
    if hasattr(value, "ndim"):
        return value.ndim
    return 1 + _ndim(value[0]) if isinstance(value, (list, tuple)) and len(value) else 0


__all__ = ["SpotImageClassificationPipeline"]
