"""What the models of this package have in common: how they are saved, and a classifier that can place its tokens itself."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, logging
from transformers.utils.generic import can_return_tuple

from .budgets import Budgets, check_num_tokens, look_until_sure, resolve_budgets
from .configuration_spot import CUSTOM_PIPELINES
from .golden import GOLDEN_FILE, GoldenSource, Verification, is_whole, verify, write_golden
from .input_checks import check_model_inputs
from .placement import place_images


if TYPE_CHECKING:
    # Saving a model copies the files that this one imports: also what an endpoint of the Hub runs.
    from .handler import EndpointHandler  # noqa: F401

logger = logging.get_logger(__name__)


def _is_first_process() -> bool:
    """Of those that torchrun or `accelerate launch` started, if they did."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank() == 0
    return os.environ.get("RANK", "0") == "0"


class SpotPreTrainedModel(PreTrainedModel):
    """A model that takes `pixel_values`, or `windows`, and `coordinates`, and gives `pooler_output`."""

    main_input_name = "pixel_values"
    input_modalities: tuple[str, ...] = ("image",)
    # What a saved config says of the code beside it: the own `AUTO_MAP` of each configuration.
    auto_map: dict[str, str] = {}
    # And of the pipeline: of one, as `pipeline(model=...)` without a task takes the only one.
    custom_pipelines: dict[str, dict[str, Any]] = CUSTOM_PIPELINES

    # Writes the README of a saved model. Set by the installed package (`registration.py`): remote code has no templates.
    _write_model_card: Callable | None = None

    golden_source: GoldenSource | None = None  # from where it was loaded

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        """As of any model of transformers. The model remembers where it is from, for [`verify`]."""
        loaded = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        if pretrained_model_name_or_path is not None:
            model = loaded[0] if isinstance(loaded, tuple) else loaded
            model.golden_source = GoldenSource.of(pretrained_model_name_or_path, kwargs)
        return loaded

    def save_pretrained(self, save_directory, is_main_process: bool = True, **kwargs):
        """Like any model's `save_pretrained`, and complete for the Hub: the code that a loader without this package
        needs, a model card where there is none, and always anew what these weights compute, for [`verify`]. Of several
        processes that save at once, the first writes the last two."""
        # A model loaded from a repository refers to that repository's code; its copy refers to its own.
        self.config.auto_map = dict(self.auto_map)
        self.config.custom_pipelines = {task: dict(entry) for task, entry in self.custom_pipelines.items()}
        if is_main_process and _is_first_process() and not os.path.isfile(save_directory):
            self._write_golden(save_directory, kwargs.get("state_dict"))
        super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)
        if self._write_model_card is not None and is_main_process and _is_first_process():
            self._write_model_card(save_directory)

    def _write_golden(self, directory: str | os.PathLike, state_dict: dict[str, torch.Tensor] | None) -> None:
        """Never outputs of other weights, and never a reason for weights not to be saved: none where these cannot be had."""
        try:
            if is_whole(self, state_dict):
                write_golden(self, directory, state_dict)
                return
            reason = "its weights are not whole in this process, or it has adapters"
        except Exception as error:  # of a subclass that needs other inputs, or for lack of memory
            reason = f"{type(error).__name__}: {error}"
        (Path(directory) / GOLDEN_FILE).unlink(missing_ok=True)
        logger.warning("no %s is saved with the %s: %s", GOLDEN_FILE, type(self).__name__, reason)

    def golden_inputs(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor] | None:
        """
        What this class's forward pass takes for golden outputs, see [`golden.py`]; `None` where it cannot take what is given.

        Args:
            inputs (`dict`): `pixel_values` `(2, num_channels, height, width)`, and where tokens are off the grid,
                `coordinates` `(2, num_tokens, 2)` and `window_scales` `(2, num_tokens)`.
        """
        return inputs

    def verify(self, name: str | None = None, revision: str | None = None) -> Verification:
        """
        Whether the model computes what it did where it was saved, to what float32 rounds otherwise elsewhere.

        ```python
        >>> model = AutoModelForImageClassification.from_pretrained("user/name", trust_remote_code=True)
        >>> print(model.verify())
        user/name: equal: largest difference 9.5e-07 ...
        ```

        Args:
            name (`str`, *optional*): directory or Hub id of the golden outputs; from where the model was loaded by default,
                with the same `revision`, `subfolder`, `token` and `cache_dir`.
            revision (`str`, *optional*): branch, tag or commit of a Hub id; by default that with which the model was loaded.

        Returns:
            [`Verification`]: its `equal` says whether; `str` of it is one line.

        Raises:
            `OSError`: there are none, or they are broken. `ValueError`: the model was not loaded from anywhere and no `name`
            is given; it is of another class than the saved one, has adapters, or a dtype of fewer bits.
        """
        source = self.golden_source or GoldenSource(self.name_or_path)
        if name is not None and name != source.name:
            source = GoldenSource(name)
        if revision is not None:
            source = GoldenSource(source.name, {**source.options, "revision": revision})
        return verify(self, source)

    def _upload_modified_files(self, working_dir, repo_id, files_timestamps, *args, **kwargs):
        """The last step of every push: by now transformers has put an empty card in the place of a missing one. Golden outputs
        were written before it looked which files are new."""
        files_timestamps = {name: time for name, time in files_timestamps.items() if name != GOLDEN_FILE}
        if self._write_model_card is not None:
            self._write_model_card(working_dir, repo_id=repo_id)
        return super()._upload_modified_files(working_dir, repo_id, files_timestamps, *args, **kwargs)


@dataclass
class SpotViTImageClassifierOutput(ImageClassifierOutput):
    """
    Of a classifier with several `num_tokens`.

    Args:
        num_tokens (`torch.LongTensor` of shape `(batch_size,)`): tokens of all looks that an image got.
    """

    num_tokens: torch.Tensor | None = None


class SpotPlacing:
    """Of a [`SpotPreTrainedModel`] that can place its tokens itself, with the attribute `placer`, which may be `None`."""

    if TYPE_CHECKING:  # or transformers would take `Any` for the configuration's class
        config: Any
        placer: Any

    def place(self, pixel_values: torch.Tensor, num_tokens: int, placement: str | None = None) -> dict[str, torch.Tensor]:
        """
        Where the model itself places tokens, for [`forward`].

        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`): the images.
            num_tokens (`int`): per image, at least 1.
            placement (`str`, *optional*): of `config.placement`, which is the default: `"learned"` asks the model's placer.

        Returns:
            `dict`: `coordinates` `(batch_size, num_tokens, 2)`, float32, `(x, y)` in [0, 1], model frame; and `window_scales`
            `(batch_size, num_tokens)`, float32, in patches, where they are not all 1: windows cover the image.
        """
        check_model_inputs(self.config, pixel_values, None, None, None)
        check_num_tokens(num_tokens)
        placed = self._place(pixel_values, num_tokens, placement)
        return {name: one.expand(len(pixel_values), *one.shape[1:]) for name, one in placed.items()}

    def _place(self, pixel_values: torch.Tensor, num_tokens: int, placement: str | None = None) -> dict[str, torch.Tensor]:
        """As [`place`]; a batch of 1 where it holds for all images."""
        placement = self.config.placement if placement is None else placement
        scales: torch.Tensor | None
        if placement != "learned":
            coordinates, scales = place_images(placement, num_tokens, pixel_values, self.config.patch_size)
        elif self.placer is not None:
            coordinates, scales = self.placer.place(pixel_values, num_tokens)
        else:
            raise ValueError(
                f"`placement` {placement!r} needs a placer, which `spot-hf train-placer` trains; got a model without one"
            )
        return {"coordinates": coordinates, **({} if scales is None else {"window_scales": scales})}


class SpotForImageClassification(SpotPlacing):
    """
    A classifier of a pooled feature, of a [`SpotPreTrainedModel`] with the attributes `classifier` and `placer`, which may be
    `None`.
    """

    if TYPE_CHECKING:  # or transformers would take `Any` for the configuration's class
        base_model: Any
        classifier: Any
        num_labels: int
        training: bool
        loss_function: Any

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        coordinates: torch.Tensor | None = None,
        coordinates_mask: torch.Tensor | None = None,
        window_scales: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_tokens: int | list[int] | None = None,
        confidence: float | list[float] | None = None,
        max_mean_tokens: float | None = None,
        windows: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ImageClassifierOutput:
        r"""
        Args:
            pixel_values, coordinates, coordinates_mask, window_scales, merge_tokens, windows: as the base model's forward
                pass takes them. Without `coordinates` the model places `num_tokens` itself, see [`place`].
            labels (`torch.LongTensor` of shape `(batch_size,)`, *optional*): class indices in
                `[0, config.num_labels)` for the cross-entropy loss; float values where `config.problem_type` says
                regression or multi-label classification.
            num_tokens (`int` or `list[int]`, *optional*): tokens per image; `config.num_tokens` by default, and where that is
                none, all cells of the grid. Several, ascending, such as `[9, 25, 49]`: an image gets a look with each in turn,
                until the model is sure. `coordinates`, and `window_scales`, are then those of the looks one after another,
                `sum(num_tokens)`. In inference only.
            confidence (`float` or `list[float]`, *optional*): with several `num_tokens`, the probability of the likeliest
                class with which an image needs no further look: one, or one for each look but the last; `config.confidence`
                by default.
            max_mean_tokens (`float`, *optional*): instead, the thresholds with which images had at most so many tokens on
                average when the model was calibrated.

        Returns:
            `ImageClassifierOutput`: `logits` `(batch_size, num_labels)`, and `loss` where `labels` are given. With several
            `num_tokens` a [`SpotViTImageClassifierOutput`], which has `num_tokens` `(batch_size,)`, too; its logits are those
            of each image's last look, divided by the calibrated temperature.

        Raises:
            `ValueError`: a tensor's shape or dtype is not as above, or another argument is not.
        """
        chosen = None
        asks = num_tokens is not None or confidence is not None or max_mean_tokens is not None
        if asks and windows is not None:
            raise ValueError("`windows` excludes `num_tokens`, `confidence` and `max_mean_tokens`: its tokens were placed")
        if windows is None and (coordinates is None or asks):
            chosen = resolve_budgets(self.config, num_tokens, confidence, max_mean_tokens)
        placed: dict[str, torch.Tensor | None] = {
            "coordinates": coordinates,
            "coordinates_mask": coordinates_mask,
            "window_scales": window_scales,
        }
        if isinstance(chosen, Budgets):
            return self._look(pixel_values, placed, labels, chosen, **kwargs)
        if chosen is not None:
            if coordinates is not None:
                raise ValueError(f"`coordinates` and `num_tokens` exclude each other; got both (num_tokens={chosen})")
            check_model_inputs(self.config, pixel_values, **placed)
            placed = {**self._place(pixel_values, chosen)}  # type: ignore[arg-type]
        outputs = self.base_model(pixel_values, **placed, windows=windows, return_dict=True, **kwargs)
        logits = self.classifier(outputs.pooler_output)
        loss = None
        if labels is not None:
            loss = self.loss_function(labels, logits, self.config, **kwargs)
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )

    def _look(self, pixel_values, placed, labels, budgets, **kwargs) -> SpotViTImageClassifierOutput:
        """Several looks, each at the images of which the one before was not sure."""
        if self.training:
            raise ValueError(
                f"`num_tokens` must be one number in training, or `config.num_tokens` None for all cells of the grid; got "
                f"{list(budgets.num_tokens)}"
            )
        if self.num_labels < 2 or self.config.problem_type not in (None, "single_label_classification"):
            raise ValueError(
                f"several `num_tokens` need a classifier that picks one of several classes; got num_labels={self.num_labels} "
                f"and problem_type={self.config.problem_type!r}"
            )
        for name in ("output_hidden_states", "output_attentions"):
            if kwargs.get(name):
                raise ValueError(f"`{name}` is not for several `num_tokens`: images have different numbers of looks")
        check_model_inputs(self.config, pixel_values, **placed)
        if placed["coordinates_mask"] is not None:
            raise ValueError("`coordinates_mask` is not for several `num_tokens`: a look has as many in every image")
        total = sum(budgets.num_tokens)
        looks: list[dict[str, torch.Tensor]] = [{} for _ in budgets.num_tokens]
        for name in ("coordinates", "window_scales"):
            if placed[name] is not None:
                if placed[name].shape[1] != total:
                    raise ValueError(
                        f"`{name}` must be those of the looks one after another, {total} with num_tokens="
                        f"{list(budgets.num_tokens)}; got {placed[name].shape[1]}"
                    )
                for look, part in zip(looks, placed[name].split(list(budgets.num_tokens), dim=1), strict=True):
                    look[name] = part

        def classify(number: int, images: torch.Tensor) -> torch.Tensor:
            seen = pixel_values if len(images) == len(pixel_values) else pixel_values[images]
            own = {name: one if len(one) == 1 else one[images] for name, one in looks[number].items()}
            own = own or self._place(seen, budgets.num_tokens[number])
            return self.classifier(self.base_model(seen, **own, return_dict=True, **kwargs).pooler_output)

        images = torch.arange(len(pixel_values), device=pixel_values.device)
        logits, spent = look_until_sure(classify, images, budgets)
        loss = None if labels is None else self.loss_function(labels, logits, self.config, **kwargs)
        return SpotViTImageClassifierOutput(loss=loss, logits=logits, num_tokens=spent)


__all__ = ["SpotForImageClassification", "SpotPlacing", "SpotPreTrainedModel"]
