"""SPoT-ON, the oracle: token positions of each image that serve a frozen model best, found by gradient descent.

An image's windows are sampled bilinearly, so the gradient of a loss reaches their positions (SPoT, arXiv 2507.01654,
section on the oracle neighbourhood). The weights stay as they are, and no gradient is computed for them. Each image is a
problem of its own: no result depends on batch mates.

With the label as objective the result is a ceiling of what positions can do, not a method: it has seen the answer.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import nn

from ..modeling_spot import SpotForImageClassification, SpotPlacing, SpotPreTrainedModel
from ..placement import grid
from ..segmentation_spot_vit import SpotViTForSemanticSegmentation, map_size_of
from .arguments import DTYPES, SearchArguments
from .objectives import OBJECTIVES
from .optimizers import OPTIMIZERS
from .outputs import check_class_targets, check_map_targets, sampled_labels, segmenter_outputs
from .tensors import describe, for_backward, padded


# In float16, gradients of a small loss with respect to activations would be rounded to 0. Divided out again.
FLOAT16_LOSS_SCALE = 1024.0


@dataclass
class OracleResult:
    """
    Of a batch. Positions are `(x, y)` in the model frame, float32. An iterate is a set of positions that was evaluated: number
    0 is where the search began, number `steps` the last.

    Attributes:
        coordinates (`(batch_size, num_tokens, 2)`): each image's iterate of the lowest loss.
        last_coordinates (`(batch_size, num_tokens, 2)`): the last iterate.
        trajectory (`(batch_size, steps + 1, num_tokens, 2)`): all iterates.
        losses (`(batch_size, steps + 1)`): float32, the objective at each iterate.
        predictions (`(batch_size, steps + 1)` or `None`): int64, the class at each iterate; `None` without a classifier.
        best_steps (`(batch_size,)`): int64, which iterate `coordinates` is.
        num_steps (`(batch_size,)`): int64, steps that were taken. After them, with `early_stop`, an image's positions, loss
            and prediction repeat.
        window_scales (`(batch_size, num_tokens)` or `None`): those of the best iterate, where they were optimized or given.
        initial_window_scales (`(batch_size, num_tokens)` or `None`): those with which the search began, where they were given.
    """

    coordinates: torch.Tensor
    last_coordinates: torch.Tensor
    trajectory: torch.Tensor
    losses: torch.Tensor
    predictions: torch.Tensor | None
    best_steps: torch.Tensor
    num_steps: torch.Tensor
    window_scales: torch.Tensor | None = None
    initial_window_scales: torch.Tensor | None = None

    @property
    def initial_prediction(self) -> torch.Tensor | None:
        """`(batch_size,)`: the class at the start."""
        return None if self.predictions is None else self.predictions[:, 0]

    @property
    def prediction(self) -> torch.Tensor | None:
        """`(batch_size,)`: the class at `coordinates`."""
        return None if self.predictions is None else self.predictions.gather(1, self.best_steps[:, None])[:, 0]


class SpotOracle:
    """
    Finds the token positions that serve a frozen model best.

    ```python
    >>> oracle = SpotOracle(model, objective="label", steps=5)
    >>> inputs = processor(images, num_tokens=49, placement="isotropic", return_tensors="pt")
    >>> result = oracle.optimize(**inputs, labels=labels)
    >>> model(pixel_values=inputs["pixel_values"], coordinates=result.coordinates)
    ```

    Args:
        model ([`SpotViTForImageClassification`], [`SpotCNNForImageClassification`], [`SpotViTForSemanticSegmentation`], or one
            without a head, such as [`SpotViTModel`]): is not changed. Without a head, the objective must be `"feature"`; so it
            must with a [`SpotViTForZeroShotImageClassification`], which becomes a classifier by `as_classifier`.
        objective (`str`): `"label"`, cross-entropy with the true label, as in the paper; `"distill"`, KL divergence from
            the same model's full-grid prediction; `"feature"`, 1 - cosine to its full-grid pooled feature. The last two need
            no labels. In segmentation the first two are means over pixels of the model's map of scores, a quarter as high and
            wide as the image: of those that are labelled, or of all.
        classes (`list[int]`, *optional*): the only ones among which images are classified: predictions and losses of logits
            know no others. Labels must be of them.
        search: further fields of [`SearchArguments`] by name. `steps`, updates of the positions, cost `steps` forward and
            backward passes, and one forward pass. `learning_rate`, in units of the image's width and height. `optimizer`, a
            name in `torch.optim` in any case, such as `"adamw"`, or `"sign"`, plain sign descent; weight decay, which would
            pull positions to the corner (0, 0), is off unless `optimizer_arguments` give it. `optimize_window_scales`: from
            1, within a quarter and the whole image, with `window_scale_learning_rate` on the logarithms. `early_stop`: an
            image whose loss is at or below it takes no more steps and leaves the batch; for `"label"`, below `log(2)` the
            true class has more than half of the probability, so that accuracy loses nothing. `dtype`: `"float32"`, or
            `"bfloat16"` or `"float16"` for autocast; positions and losses stay float32. `compile`: `torch.compile`.

    Raises:
        `ValueError`: an argument is none of these.
    """

    def __init__(
        self,
        model: SpotPreTrainedModel,
        objective: str = "label",
        *,
        classes: list[int] | None = None,
        **search: Any,
    ):
        arguments = SearchArguments(objective=objective, **search)
        arguments.check_search()
        self.segments = isinstance(model, SpotViTForSemanticSegmentation)
        classifies = isinstance(model, SpotForImageClassification)
        of_ours = isinstance(model, SpotPlacing) or self.segments or getattr(model, "base_model", None) is model
        is_ours = isinstance(model, SpotPreTrainedModel) and of_ours
        if not is_ours:
            raise ValueError(
                "`model` must be a SpotViTForImageClassification, a SpotViTForSemanticSegmentation, a SpotViTModel, or a "
                f"SpotCNN; got {type(model).__name__}: convert it with `convert_checkpoint` first"
            )
        self.has_classifier = classifies and model.config.num_labels > 0
        if objective != "feature" and not self.has_classifier and not self.segments:
            raise ValueError(f"`objective` must be 'feature' with a model that has no classifier; got {objective!r}")
        self.other_classes: torch.Tensor | None = None  # bool (num_labels,)
        if classes is not None:
            num_labels = model.config.num_labels
            if not self.has_classifier or not classes or not all(0 <= one < num_labels for one in classes):
                raise ValueError(f"`classes` must be class numbers of the model, 0 to {num_labels - 1}; got {classes!r:.80}")
            self.other_classes = torch.ones(num_labels, dtype=torch.bool, device=model.device)
            self.other_classes[classes] = False
        self.model, self.arguments, self.objective, self.steps = model, arguments, objective, arguments.steps
        self.dtype = DTYPES[arguments.dtype]
        self._run: Callable = torch.compile(self._run_model) if arguments.compile else self._run_model

    # ------------------------------------------------------------------------------------------------------ the search

    def optimize(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        coordinates: torch.Tensor | None = None,
        targets: torch.Tensor | None = None,
        coordinates_mask: torch.Tensor | None = None,
        window_scales: torch.Tensor | None = None,
    ) -> OracleResult:
        """
        Moves the tokens of each image down the gradient of its own loss. A window's centre stays inside the image.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`): on the model's device.
            labels (`torch.LongTensor` of shape `(batch_size,)`, *optional*): for the objective `"label"`. In segmentation
                `(batch_size, height, width)`, of any size: the class of each pixel, or `config.semantic_loss_ignore_index`. A
                pixel of the map has the label of the nearest of them.
            coordinates (`torch.Tensor` of shape `(batch_size or 1, num_tokens, 2)`, float32, *optional*): where the search
                begins: `(x, y)`, model frame, in [0, 1]. All grid cells by default.
            targets (`torch.Tensor`, *optional*): the full grid's logits `(batch_size, num_labels)` (in segmentation
                `(batch_size, num_labels, height // 4, width // 4)`) for `"distill"`, or pooled features `(batch_size,
                pooled_size)` for `"feature"`; computed where not given.
            coordinates_mask (`torch.Tensor` of shape `(batch_size or 1, num_tokens)`, *optional*): 0 for padding, which does
                not move. At least one token per image.
            window_scales (`torch.Tensor` of shape `(batch_size or 1, num_tokens)`, float32, *optional*): of the windows where
                the search begins, in patches, above 0; they stay as they are unless `optimize_window_scales`. 1 by default.

        Returns:
            [`OracleResult`], on the model's device.

        Raises:
            `ValueError`: an input has another shape, dtype or range, or the objective's target is missing.
        """
        self._check_inputs(pixel_values, labels, coordinates, targets, coordinates_mask, window_scales)
        batch_size = len(pixel_values)
        # The caller may compute without gradients; the positions' are needed.
        with torch.inference_mode(False), torch.enable_grad(), self._frozen():
            pixel_values = for_backward(pixel_values)
            if coordinates is None:
                height, width = pixel_values.shape[-2:]
                coordinates = grid(height, width, self.model.config.patch_size).to(pixel_values.device)[None]
            coordinates = for_backward(coordinates).expand(batch_size, -1, -1)
            if coordinates_mask is not None:
                coordinates_mask = for_backward(coordinates_mask).bool().expand(batch_size, -1)
            if window_scales is not None:
                window_scales = for_backward(window_scales).expand(batch_size, -1)
            if self.objective == "label":
                targets = labels
                if self.segments and labels is not None:
                    ignored = self.model.config.semantic_loss_ignore_index
                    targets = sampled_labels(labels, map_size_of(*pixel_values.shape[-2:]), ignored)
            elif targets is None:
                targets = self.full_grid_targets(pixel_values)
            assert targets is not None
            return self._search(pixel_values, coordinates, for_backward(targets), coordinates_mask, window_scales)

    @torch.no_grad()
    def full_grid_targets(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """What the objectives `"distill"` and `"feature"` aim at: the model's logits or pooled features with all cells."""
        with self._frozen():
            logits, features = self._run_model(pixel_values, None, None, None)
        found = features if OBJECTIVES[self.objective].target == "features" else logits
        assert found is not None
        return found

    def _search(
        self,
        pixel_values: torch.Tensor,
        coordinates: torch.Tensor,
        targets: torch.Tensor,
        mask: torch.Tensor | None,
        window_scales: torch.Tensor | None,
    ) -> OracleResult:
        batch_size, num_tokens = coordinates.shape[:2]
        device = pixel_values.device
        # One parameter per image, without padding: whichever the optimizer, an image's update never sees its batch mates, nor
        # how long they are. One that leaves the batch is one that gets no gradient.
        positions = [nn.Parameter(one.clone() if mask is None else one[mask[i]]) for i, one in enumerate(coordinates)]
        # Matrices, like the positions: Muon takes nothing else.
        log_scales = [nn.Parameter(torch.zeros(len(one), 1, device=device)) for one in positions]
        if window_scales is not None:
            for i, (parameter, scales) in enumerate(zip(log_scales, window_scales, strict=True)):
                parameter.data.copy_((scales if mask is None else scales[mask[i]]).log()[:, None])
        optimizes_scales = self.arguments.optimize_window_scales
        optimizer = self._make_optimizer(positions, log_scales)
        largest_scale = self._largest_window_scale(pixel_values)
        with_scales = optimizes_scales or window_scales is not None
        iterates = _Iterates(batch_size, self.steps, num_tokens, device, with_scales)

        active = torch.arange(batch_size, device=device)  # the images that are still being optimized
        inputs: list[Any] = [pixel_values, targets, mask]
        for step in range(self.steps + 1):
            chosen = active.tolist()
            with torch.set_grad_enabled(step < self.steps):
                now = padded([positions[i] for i in chosen], inputs[2], coordinates[active])
                scales_now = None if window_scales is None else window_scales[active]
                if optimizes_scales:
                    unscaled = now.new_zeros(len(chosen), num_tokens, 1)
                    scales_now = padded([log_scales[i] for i in chosen], inputs[2], unscaled)[..., 0].exp()
                logits, features = self._run(inputs[0], now, scales_now, inputs[2])
                loss = self._loss(logits, features, inputs[1])
            iterates.record(active, step, now, scales_now, loss, logits if self.has_classifier else None)
            if step == self.steps:
                break
            if self.arguments.early_stop is not None:
                stay = ~(loss.detach() <= self.arguments.early_stop)
                iterates.num_steps[active[~stay]] = step
                if not stay.all():
                    active = active[stay]
                    if not len(active):
                        break
                    inputs = [value if value is None else value[stay] for value in inputs]
                    loss = loss[stay]
            self._update(optimizer, loss, positions, log_scales if optimizes_scales else [], largest_scale)
        return iterates.result(self.has_classifier, window_scales)

    def _update(
        self,
        optimizer: torch.optim.Optimizer,
        loss: torch.Tensor,
        positions: list[nn.Parameter],
        log_scales: list[nn.Parameter],
        largest_scale: float,
    ) -> None:
        """One step. The sum of the losses gives each image the gradient of its own."""
        loss_scale = FLOAT16_LOSS_SCALE if self.dtype == torch.float16 else 1.0
        optimizer.zero_grad(set_to_none=True)
        (loss.sum() * loss_scale).backward()
        with torch.no_grad():
            for parameter in positions + log_scales:
                if parameter.grad is not None:
                    parameter.grad = parameter.grad.div(loss_scale).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
            optimizer.step()
            for parameter in positions:
                parameter.clamp_(0, 1)
            for parameter in log_scales:
                parameter.exp_().clamp_(0.25, largest_scale).log_()

    def _make_optimizer(self, positions: list[nn.Parameter], log_scales: list[nn.Parameter]) -> torch.optim.Optimizer:
        kind = OPTIMIZERS[self.arguments.optimizer.lower()]
        arguments = {"lr": self.arguments.learning_rate, **self.arguments.further_optimizer_arguments}
        for name in {"weight_decay", "lambd"} & set(signature(kind).parameters):  # `lambd` is ASGD's word for it
            arguments.setdefault(name, 0.0)
        groups: list[dict[str, Any]] = [{"params": positions}]
        if self.arguments.optimize_window_scales:
            groups.append({"params": log_scales, "lr": self.arguments.window_scale_learning_rate})
        return kind(groups, **arguments)

    def _largest_window_scale(self, pixel_values: torch.Tensor) -> float:
        """At which a window is as large as the image."""
        config = self.model.config
        return max(1.0, min(pixel_values.shape[-2:]) / (config.patch_size * config.window_spacing))

    # ------------------------------------------------------------------------------------------------------- the model

    def _run_model(
        self,
        pixel_values: torch.Tensor,
        coordinates: torch.Tensor | None,
        window_scales: torch.Tensor | None,
        mask: torch.Tensor | None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Logits `(batch_size, num_labels)`, where there is a classifier, and pooled features `(batch_size, pooled_size)`; in
        segmentation as [`segmenter_outputs`] says."""
        low = self.dtype != torch.float32
        with torch.autocast(pixel_values.device.type, dtype=self.dtype) if low else nullcontext():
            model = self.model
            if isinstance(model, SpotViTForSemanticSegmentation):
                return segmenter_outputs(model, self.objective, pixel_values, coordinates, window_scales, mask)
            features = model.base_model(
                pixel_values, coordinates=coordinates, coordinates_mask=mask, window_scales=window_scales
            ).pooler_output
            logits = model.classifier(features) if self.has_classifier else None
            if logits is not None and self.other_classes is not None:
                # No probability is left to them. Not by -inf: its differences are no numbers.
                logits = logits.masked_fill(self.other_classes, torch.finfo(logits.dtype).min)
            return logits, features

    def _loss(self, logits: torch.Tensor | None, features: torch.Tensor | None, targets: torch.Tensor) -> torch.Tensor:
        """Per image, in float64 where the device has it: of a confident prediction, float32 keeps few digits of `1 - p`."""
        objective = OBJECTIVES[self.objective]
        output = features if objective.target == "features" else logits
        assert output is not None
        return objective.loss(output.float() if output.device.type == "mps" else output.double(), targets)

    @contextmanager
    def _frozen(self) -> Iterator[None]:
        """In eval mode and without gradients of weights; afterwards the model is as it was."""
        training = [module for module in self.model.modules() if module.training]
        trainable = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.model.eval()
        for parameter in trainable:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for module in training:
                module.training = True
            for parameter in trainable:
                parameter.requires_grad_(True)

    def _check_inputs(self, pixel_values, labels, coordinates, targets, coordinates_mask, window_scales) -> None:
        """What the model's own checks do not see: values, and the objective's target. One synchronization with a device."""
        if not isinstance(pixel_values, torch.Tensor) or pixel_values.ndim != 4 or len(pixel_values) == 0:
            got = tuple(pixel_values.shape) if isinstance(pixel_values, torch.Tensor) else type(pixel_values).__name__
            raise ValueError(f"`pixel_values` must be a tensor (batch_size, num_channels, height, width); got {got}")
        batch_size = len(pixel_values)
        if coordinates is not None:
            if (
                not isinstance(coordinates, torch.Tensor)
                or coordinates.dtype != torch.float32
                or coordinates.ndim != 3
                or coordinates.shape[0] not in (1, batch_size)
                or coordinates.shape[1] == 0
                or coordinates.shape[2] != 2
            ):
                raise ValueError(
                    f"`coordinates` must be a float32 tensor (batch_size, num_tokens, 2) with batch_size {batch_size} or 1; "
                    f"got {describe(coordinates)}"
                )
            if not ((coordinates >= 0) & (coordinates <= 1)).all():  # also refuses NaN
                raise ValueError(f"`coordinates` must lie in [0, 1], relative to pixel_values; got {describe(coordinates)}")
        if coordinates_mask is not None:
            if coordinates is None:
                raise ValueError("`coordinates_mask` needs `coordinates`: it has one entry per coordinate; got none")
            num_tokens = coordinates.shape[1]
            if (
                not isinstance(coordinates_mask, torch.Tensor)
                or coordinates_mask.shape not in ((1, num_tokens), (batch_size, num_tokens))
                or not coordinates_mask.bool().any(1).all()
            ):
                raise ValueError(
                    f"`coordinates_mask` must be a tensor {(batch_size, num_tokens)} with at least one token per image; "
                    f"got {describe(coordinates_mask)}"
                )
        if window_scales is not None:
            num_tokens = 0 if coordinates is None else coordinates.shape[1]
            if (
                not isinstance(window_scales, torch.Tensor)
                or window_scales.shape not in ((1, num_tokens), (batch_size, num_tokens))
                or not ((window_scales > 0) & window_scales.isfinite()).all()
            ):
                raise ValueError(
                    f"`window_scales` must be a tensor {(batch_size, num_tokens)} of numbers above 0, one per coordinate; "
                    f"got {describe(window_scales)}"
                )
        if self.segments:
            check_map_targets(self.model.config, self.objective, pixel_values, labels, targets)
        else:
            check_class_targets(self.model.config, self.objective, self.other_classes, batch_size, labels, targets)


class _Iterates:
    """All that was evaluated of a batch: see [`OracleResult`]."""

    def __init__(self, batch_size: int, steps: int, num_tokens: int, device: torch.device, with_scales: bool):
        self.trajectory = torch.empty(batch_size, steps + 1, num_tokens, 2, device=device)
        self.scales = torch.empty(batch_size, steps + 1, num_tokens, device=device) if with_scales else None
        self.losses = torch.empty(batch_size, steps + 1, device=device)
        self.predictions = torch.empty(batch_size, steps + 1, dtype=torch.int64, device=device)
        self.num_steps = torch.full((batch_size,), steps, device=device)

    @torch.no_grad()
    def record(
        self,
        active: torch.Tensor,
        step: int,
        coordinates: torch.Tensor,
        scales: torch.Tensor | None,
        loss: torch.Tensor,
        logits: torch.Tensor | None,
    ) -> None:
        """Of the images `active`. What an image that leaves the batch had at last is its value from there on."""
        self.trajectory[active, step:] = coordinates[:, None]
        self.losses[active, step:] = loss.float()[:, None]
        if self.scales is not None and scales is not None:
            self.scales[active, step:] = scales[:, None]
        if logits is not None:
            self.predictions[active, step:] = logits.argmax(-1)[:, None]

    def result(self, has_classifier: bool, initial_scales: torch.Tensor | None) -> OracleResult:
        comparable = torch.where(self.losses.isfinite(), self.losses, torch.inf)
        best = comparable.argmin(1)  # the earliest, of equals
        rows = torch.arange(len(best), device=best.device)
        return OracleResult(
            coordinates=self.trajectory[rows, best],
            last_coordinates=self.trajectory[:, -1],
            trajectory=self.trajectory,
            losses=self.losses,
            predictions=self.predictions if has_classifier else None,
            best_steps=best,
            num_steps=self.num_steps,
            window_scales=self.scales[rows, best] if self.scales is not None else None,
            initial_window_scales=initial_scales,
        )
