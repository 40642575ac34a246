"""SpotTrainer: transformers' Trainer for few tokens.

A converted model has seen nothing but full grids. Here each step has a number of tokens and each image a placement, drawn at
random (SPoT, arXiv 2507.01654, section on training); the loss is cross-entropy, or agreement with the source model on its
full grid, which needs no labels, or both.

Everything that Trainer does still works: several processes and machines, bf16, gradient accumulation and checkpointing,
`torch.compile`, loggers, checkpoints, pushing. Data flow: `data.py` and `augmentation.py` (images by draw, in workers) →
`batches.py` (on the device) → `placements.py` (where tokens sit) → here.
"""

import inspect
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from transformers import EarlyStoppingCallback, EvalPrediction, Trainer, TrainerCallback
from transformers.modeling_outputs import ImageClassifierOutput

from ..data.failures import FailedImage, TooManyFailedImagesError, check_failures
from ..data.labels import likeliest_class
from ..jobs.files import write_atomically
from ..modeling_spot_vit import SpotViTForImageClassification
from ..oracle.objectives import distill_loss, feature_loss
from .batches import BatchPreparation, TrainingBatch
from .data import NO_LABEL, DrawSampler, EvaluationImages, TrainingImages, collate
from .own_datasets import adopt_datasets, evaluation_of
from .pushing import PushGoldenOutputs


EMA_WEIGHTS = "ema.safetensors"
FAILED_IMAGES = "failed_images.json"  # of a checkpoint: met until then


class SpotTrainer(Trainer):
    """
    Trainer for [`SpotViTForImageClassification`]: trains on batches of [`TrainingImages`], whose tokens it places, and
    evaluates on batches of the model's own inputs, such as of [`EvaluationImages`]. The model may carry PEFT adapters.

    ```python
    >>> trainer = SpotTrainer(
    ...     model=model, args=SpotTrainingArguments("out"), train_dataset=train, eval_dataset=test,
    ...     processing_class=image_processor, num_tokens=[25, 49], placement="isotropic",
    ... )
    ```

    Data sets may be of `datasets`, with the columns `image` and `label`: training images are cropped, flipped and placed anew
    in each epoch; an evaluation is of each number of tokens, with the first placement. Labels are matched with the model's
    classes by name. A data set with a transform of its own (`with_transform`), or of another class, gives the model's inputs.

    Args:
        num_tokens (`int` or `list[int]`, *optional*): token counts; each batch has one of them. The processor's saved default
            where not given.
        placement (`str` or `list[str]`, *optional*, defaults to `"isotropic"`): priors; each image is placed by one of them.
        preparation ([`BatchPreparation`], *optional*): instead of these two: turns a batch's bytes into inputs.
        classes (`list[int]`, *optional*): restrict loss and accuracy to these.
        teacher ([`SpotViTForImageClassification`], *optional*): of the distillation; sees the full grid.
        cross_entropy_weight, distill_weight, distill_temperature, feature_weight, layer_decay, ema_decay: as in
            [`TrainArguments`].
        kwargs: as [`Trainer`] takes them.

    Attributes:
        failed_images, failed_eval_images (`list[FailedImage]`): those that could not be read, of all processes, in order; of
            the evaluations those of the last one.
    """

    optimizer: Any
    control: Any
    measured: Sequence[str] = ("accuracy",)  # of whose values over several data sets there is a mean

    def __init__(
        self,
        *args: Any,
        num_tokens: int | Sequence[int] | None = None,
        placement: str | Sequence[str] = "isotropic",
        preparation: BatchPreparation | None = None,
        classes: list[int] | None = None,
        teacher: SpotViTForImageClassification | None = None,
        cross_entropy_weight: float = 1.0,
        distill_weight: float = 0.0,
        distill_temperature: float = 1.0,
        feature_weight: float = 0.0,
        layer_decay: float = 1.0,
        ema_decay: float | None = None,
        **kwargs: Any,
    ):
        given = dict(inspect.signature(Trainer.__init__).bind_partial(None, *args, **kwargs).arguments)
        del given["self"]
        preparation = adopt_datasets(given, num_tokens, placement, preparation)
        defaults = {"data_collator": collate, "compute_metrics": Accuracies(classes), "processing_class": None}
        for name, value in defaults.items():
            given[name] = value if given.get(name) is None else given[name]
        if given["processing_class"] is None and preparation is not None:
            given["processing_class"] = preparation.image_processor  # or what is saved is no whole model
        super().__init__(**given)
        self.model_accepts_loss_kwargs = False  # our loss is the mean over a batch
        self.preparation: Any = preparation  # none where batches are the model's inputs
        self.classes = classes
        self.cross_entropy_weight, self.distill_weight = cross_entropy_weight, distill_weight
        self.distill_temperature, self.feature_weight = distill_temperature, feature_weight
        self.layer_decay = layer_decay
        self.teacher = None if teacher is None else teacher.to(self.args.device).eval().requires_grad_(False)
        self.features_of: dict[str, Callable[[], torch.Tensor]] = {}
        if feature_weight:
            self.features_of = {"student": _watch_features(self.model), "teacher": _watch_features(self.teacher)}
        self.ema: AveragedModel | None = None
        if ema_decay is not None:
            self.ema = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(ema_decay))
            self.add_callback(_AverageWeights(self.ema))
        self.train_sampler: DrawSampler | None = None
        self.add_callback(_NumberEpochs(self))
        self.failed_images: list[FailedImage] = []
        self.failed_eval_images: list[FailedImage] = []
        self.add_callback(_MergeFailedImages(self))
        self.golden_push = PushGoldenOutputs()
        self.add_callback(self.golden_push)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As Trainer does. Too many images that cannot be read are an error in one line, from worker processes, too."""
        try:
            return super().train(*args, **kwargs)
        except TooManyFailedImagesError as error:
            # A worker process sends its traceback along, which ends with the message.
            raise TooManyFailedImagesError(str(error).rpartition(f"{type(error).__name__}: ")[2].strip()) from None

    # ------------------------------------------------------------------------------------------------------------ data

    def _get_train_sampler(self, train_dataset: Any = None) -> DrawSampler | None:
        images = self.train_dataset if train_dataset is None else train_dataset
        if isinstance(images, TrainingImages):
            self.train_sampler = DrawSampler(len(images), images.seed)
            return self.train_sampler
        return super()._get_train_sampler(train_dataset)

    def _get_dataloader(self, *args: Any, is_training: bool = False, **kwargs: Any) -> Any:
        """`dataloader_drop_last` is for training: an evaluation is of all images."""
        given = self.args.dataloader_drop_last
        self.args.dataloader_drop_last = given and is_training
        try:
            return super()._get_dataloader(*args, is_training=is_training, **kwargs)
        finally:
            self.args.dataloader_drop_last = given

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Nothing where a run is resumed from the checkpoint at which it had ended: Trainer would take another step."""
        stopped = any(
            isinstance(callback, EarlyStoppingCallback)
            and callback.early_stopping_patience_counter >= callback.early_stopping_patience
            for callback in self.callback_handler.callbacks
        )
        if stopped or self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    # ------------------------------------------------------------------------------------------------------------ loss

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Of a training batch, tokens are placed first; any other is the model's own input, with `labels`."""
        given = dict(inputs)
        failed = given.pop("failed", [])
        if "pixels" in given:
            self.failed_images += failed
            batch = self.preparation(given, self.preparation.placements.num_tokens_at(self.state.global_step))
        else:
            self.failed_eval_images += failed
            labels = given.pop("labels", None)
            batch = TrainingBatch(given, labels)
        outputs = model(**batch.inputs)
        loss = self.loss_of(outputs.logits, batch) if model.training else self._cross_entropy(outputs.logits, batch)
        outputs = ImageClassifierOutput(loss=loss, logits=outputs.logits)
        return (loss, outputs) if return_outputs else loss

    def loss_of(self, logits: torch.Tensor, batch: TrainingBatch) -> torch.Tensor:
        """The weighted sum of the losses, a scalar. `logits` `(batch_size, num_labels)`."""
        loss = logits.new_zeros((), dtype=torch.float32)
        if self.cross_entropy_weight:
            loss = loss + self.cross_entropy_weight * self._cross_entropy(logits, batch)
        if self.teacher is None:
            return loss
        with torch.no_grad(), self.accelerator.autocast():
            # By its encoder: the full grid, whatever its config says of tokens and of merging.
            encoded = self.teacher.spot_vit(batch.inputs["pixel_values"], merge_tokens=0.0)
            targets = self.teacher.classifier(encoded.pooler_output)
        if self.distill_weight:
            temperature = self.distill_temperature
            divergence = distill_loss(self._among(logits) / temperature, self._among(targets) / temperature)
            # Gradients of softened distributions are smaller by the square of the temperature (Hinton et al. 2015).
            loss = loss + self.distill_weight * temperature**2 * divergence.mean()
        if self.feature_weight:
            student, teacher = (self.features_of[name]().float() for name in ("student", "teacher"))
            loss = loss + self.feature_weight * feature_loss(student, teacher).mean()
        return loss

    def _cross_entropy(self, logits: torch.Tensor, batch: TrainingBatch) -> torch.Tensor:
        logits = self._among(logits)
        smoothing = self.args.label_smoothing_factor if self.model.training else 0.0

        def against(labels: torch.Tensor) -> torch.Tensor:
            if self.classes is not None:
                places = torch.searchsorted(torch.tensor(self.classes, device=labels.device), labels)
                labels = torch.where(labels == NO_LABEL, NO_LABEL, places)
            return nn.functional.cross_entropy(
                logits, labels, reduction="none", label_smoothing=smoothing, ignore_index=NO_LABEL
            )

        assert batch.labels is not None
        losses = against(batch.labels)
        if batch.other_labels is not None and batch.other_weights is not None:
            losses = torch.lerp(losses, against(batch.other_labels), batch.other_weights)
        return losses.mean()

    def _among(self, logits: torch.Tensor) -> torch.Tensor:
        """`(batch_size, num_classes)`, float32: those of the classes that count."""
        return (logits if self.classes is None else logits[:, self.classes]).float()

    # ------------------------------------------------------------------------------------------------------- optimizer

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Layer-wise learning-rate decay (as BEiT and MAE fine-tune), and no weight decay for positions and learned tokens."""
        model = self.model if model is None else model
        if self.optimizer is None:
            kind, arguments = self.get_optimizer_cls_and_kwargs(self.args, model)
            decayed = set(self.get_decay_parameter_names(model))
            groups: dict[tuple[float, float], list[nn.Parameter]] = {}
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    rate = self.args.learning_rate * self.layer_decay ** layers_above(name, self._num_layers())
                    one_dimensional = parameter.ndim == 1  # such as layer scales, which `decayed` holds
                    learned = any(part in name for part in ("position_embeddings", "position_bias", "prefix_tokens", "probe"))
                    free = name not in decayed or one_dimensional or learned
                    groups.setdefault((rate, 0.0 if free else self.args.weight_decay), []).append(parameter)
            self.optimizer = kind(
                [{"params": found, "lr": rate, "weight_decay": decay} for (rate, decay), found in groups.items()], **arguments
            )
        return self.optimizer

    def _num_layers(self) -> int:
        return int(self.model.config.num_hidden_layers)

    # -------------------------------------------------------------------------------------- evaluation and checkpoints

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """As Trainer does; of several data sets also the means, `eval_accuracy` and `eval_loss`. A data set of images is
        evaluated with each number of tokens."""
        eval_dataset = evaluation_of(eval_dataset, self.model, self.preparation)
        with self.averaged():
            metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        several = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(several, dict):
            means = {}
            for name in (*self.measured, "loss"):
                found = [metrics[key] for key in (f"{metric_key_prefix}_{one}_{name}" for one in several) if key in metrics]
                if found:
                    means[f"{metric_key_prefix}_{name}"] = float(np.mean(found))
            metrics.update(means)
            # Trainer tells callbacks of each data set: early stopping waits for the means.
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, means)
        return metrics

    def evaluation_loop(self, dataloader: DataLoader, *args: Any, **kwargs: Any) -> Any:
        """As Trainer does; images that could not be read count neither in the loss nor in what is allowed to fail."""
        self.failed_eval_images = []
        output = super().evaluation_loop(dataloader, *args, **kwargs)
        images = dataloader.dataset
        if isinstance(images, EvaluationImages):
            self.failed_eval_images = _merged(self.failed_eval_images)
            check_failures(self.failed_eval_images, len(images), images.max_failed_share)
            num_read = len(images) - len(self.failed_eval_images)
            if not num_read:
                raise TooManyFailedImagesError(
                    f"none of {len(images)} images could be read, such as {self.failed_eval_images[0]}"
                )
            for name in output.metrics or {}:
                if name.endswith("_loss"):  # the mean over all images, with 0 for those without a label
                    output.metrics[name] *= len(images) / num_read
        return output

    def predict(self, test_dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """As Trainer does; of a data set of images with the first number of tokens."""
        several = evaluation_of(test_dataset, self.model, self.preparation)
        if several is not test_dataset:
            test_dataset = next(iter(several.values()))
        with self.averaged():
            return super().predict(test_dataset, *args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The averaged weights where there are any; in a checkpoint, which training goes on from, the others too."""
        in_checkpoint = output_dir is not None and Path(output_dir).name.startswith("checkpoint-")
        if self.ema is None or in_checkpoint:
            super().save_model(output_dir, _internal_call)
            if in_checkpoint and self.args.should_save:
                self._save_own_state(Path(str(output_dir)))
        else:
            with self.averaged():
                super().save_model(output_dir, _internal_call)

    def _save_own_state(self, checkpoint: Path) -> None:
        if self.ema is not None:
            state = {name: tensor.contiguous() for name, tensor in self.ema.state_dict().items()}
            save_file(state, checkpoint / EMA_WEIGHTS)
        if self.failed_images:
            with write_atomically(checkpoint / FAILED_IMAGES) as file:
                file.write(json.dumps([asdict(one) for one in self.failed_images]).encode())

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._load_average(resume_from_checkpoint)
        failed = Path(resume_from_checkpoint) / FAILED_IMAGES
        if failed.exists():
            self.failed_images = [FailedImage(**one) for one in json.loads(failed.read_text(encoding="utf-8"))]

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self.state.best_model_checkpoint is not None:
            self._load_average(self.state.best_model_checkpoint)

    def _load_average(self, checkpoint: str) -> None:
        if self.ema is not None:
            self.ema.load_state_dict(load_file(Path(checkpoint) / EMA_WEIGHTS))

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """With the averaged weights in the model's place."""
        if self.ema is None:
            yield
            return
        pairs = list(zip(self.model.parameters(), self.ema.module.parameters(), strict=True))
        with torch.no_grad():
            own = [parameter.clone() for parameter, _ in pairs]
            for parameter, average in pairs:
                parameter.copy_(average)
        try:
            yield
        finally:
            with torch.no_grad():
                for (parameter, _), before in zip(pairs, own, strict=True):
                    parameter.copy_(before)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        with self.golden_push.of(checkpoint_folder):
            super()._push_from_checkpoint(checkpoint_folder)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Our own card is there already: Trainer's would replace it."""


class _AverageWeights(TrainerCallback):
    def __init__(self, ema: AveragedModel):
        self.ema = ema

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.ema.update_parameters(model)


class _NumberEpochs(TrainerCallback):
    """Tells the sampler which epoch it is: through the wrappers of a resumed run of several processes, Trainer does not."""

    def __init__(self, trainer: SpotTrainer):
        self.trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer.train_sampler is not None:
            # A resumed epoch's number has a fraction, and rounding.
            self.trainer.train_sampler.set_epoch(math.floor((state.epoch or 0.0) + 1e-6))


class _MergeFailedImages(TrainerCallback):
    """Makes one list of all processes' failed images before anything is logged, evaluated or saved, and stops where it is too
    long: all processes at the same step."""

    def __init__(self, trainer: SpotTrainer):
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if control.should_log or control.should_evaluate or control.should_save:
            self._merge()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._merge()

    def _merge(self) -> None:
        failed, images = _merged(self.trainer.failed_images), self.trainer.train_dataset
        self.trainer.failed_images = failed
        if isinstance(images, TrainingImages):
            check_failures(failed, len(images), images.max_failed_share)


def _merged(failed: list[FailedImage]) -> list[FailedImage]:
    """Those of all processes, in the order of the data set, each as it failed first."""
    first = {one.image_index: one for one in reversed(gather_object(failed))}
    return [first[index] for index in sorted(first)]


def _watch_features(model: nn.Module | None) -> Callable[[], torch.Tensor]:
    """What the classifier was last given: the pooled features, `(batch_size, pooled_size)`."""
    seen: list[torch.Tensor] = [torch.empty(0)]

    def remember(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        seen[0] = inputs[0]

    assert model is not None
    classifiers = [module for name, module in model.named_modules() if name.endswith("classifier")]
    classifiers[0].register_forward_pre_hook(remember)
    return lambda: seen[0]


def layers_above(name: str, num_layers: int) -> int:
    """How many layers lie between a parameter and the classifier, by its name: 0 of the classifier and the last norm."""
    layer = re.search(r"\blayers\.(\d+)\.", name)
    if layer:
        return num_layers - int(layer[1])
    return num_layers + 1 if "embeddings." in name else 0


class Accuracies:
    """Trainer's `compute_metrics`: top-1 accuracy in percent of the images with a label, among `classes` where given."""

    def __init__(self, classes: list[int] | None):
        self.classes = classes

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        logits: Any = prediction.predictions
        labels: Any = prediction.label_ids
        correct = likeliest_class(logits, self.classes) == labels
        return {"accuracy": 100 * float(correct[labels != NO_LABEL].mean())}
