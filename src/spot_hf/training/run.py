"""A run of a Trainer in its directory: begun, resumed, finished. Fine-tuning and masked pre-training are such runs."""

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, BinaryIO

from transformers.trainer_utils import sort_checkpoints

from ..data.failures import FailedImage, describe_failures
from ..hub.cards import write_model_card
from ..jobs.directory import JobDirectory, Ledger
from ..jobs.files import write_atomically
from ..jobs.process import open_directory
from ..jobs.versions import device_name, versions
from .arguments import STATE, TrainingInputArguments
from .trainer import SpotTrainer
from .trainer_arguments import SpotTrainingArguments


logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class TrainingResults:
    """
    What came out of a run.

    Attributes:
        ledger ([`Ledger`]): of its directory: parameters, command, versions, device.
        train_loss (`float`): the mean over all steps; steps (`int`): of the whole run.
        resumed_at (`int`): the step after which this process trained: `seconds`, `images_per_second` and `train_loss` are of
            the steps since then.
        log (`list[dict]`): Trainer's. It grows for as long as the trainer logs.
        failed (`list[FailedImage]`): training images that could not be read.
        evaluation (`dict[str, float]`): of the saved model: such as `eval_n25_accuracy`, in percent.
        evaluated_on (`dict`, *optional*): `split`, `num_images`, and those that `failed`.
    """

    ledger: Ledger
    train_loss: float
    steps: int
    seconds: float
    resumed_at: int
    images_per_second: float
    log: list[dict[str, Any]]
    failed: list[FailedImage] = field(default_factory=list)
    evaluation: dict[str, float] = field(default_factory=dict)
    evaluated_on: dict[str, Any] | None = None

    @property
    def parameters(self) -> dict[str, Any]:
        return self.ledger.parameters

    @classmethod
    def read(cls, path: Path) -> "TrainingResults":
        """From `training.json` or `pretraining.json`, also of earlier versions."""
        values = json.loads(path.read_text(encoding="utf-8"))
        own = {one.name: values[one.name] for one in fields(cls) if one.name in values}
        own["failed"] = [FailedImage(**one) for one in own.get("failed", [])]
        return cls(ledger=Ledger(**{one.name: values.get(one.name) for one in fields(Ledger)}), **own)

    def to_json(self) -> dict[str, Any]:
        own = asdict(self)
        del own["ledger"]
        return {**self.ledger.to_json(), **own}


class TrainingRun:
    """
    A run in `training.output_dir`.

    Args:
        training ([`SpotTrainingArguments`]): how.
        results_name (`str`): the JSON file that is written last: a run that has it is finished.
        summarize: writes a paragraph about [`TrainingResults`], for the log.
    """

    def __init__(self, training: SpotTrainingArguments, results_name: str, summarize: Callable[[TrainingResults], str]):
        self.training, self.results_name, self.summarize = training, results_name, summarize
        self.run = JobDirectory(training.output_dir)
        self.directory = self.run.directory

    def open(
        self,
        arguments: TrainingInputArguments,
        pins: Mapping[str, Any],
        num_images: int,
        inputs: Iterable[str | None],
        command: str | None,
        labels: str | None = None,
    ) -> TrainingResults | None:
        """
        Begins it, or resumes it; `ValueError` where the directory holds a run with other parameters.

        Args:
            arguments ([`TrainingInputArguments`]): what is trained on what.
            pins (`dict`): further parameters: the models' commits and digests.
            num_images (`int`): to train on.
            inputs (`list[str]`): models and data that must not be overwritten, as far as they lie on this machine.
            command (`str`, *optional*): how this run was started, for the record.
            labels (`str`, *optional*): how the data set's labels were matched with the model's classes.

        Returns:
            [`TrainingResults`] of a run that is finished already.
        """
        parameters = {
            **arguments.recorded(self.training),
            **pins,
            "total_train_batch_size": total_batch_size(self.training, num_images),
            "num_images": num_images,
        }
        ledger = Ledger(
            parameters=parameters,
            command=command,
            versions=versions(),
            device=device_name(self.training.device),
            labels=labels,
        )
        state: Any = self.training.distributed_state
        open_directory(state, self.run, ledger, overwrite=arguments.overwrite_output_dir, inputs=inputs)
        path = self.directory / self.results_name
        if not path.exists():
            return None
        results = TrainingResults.read(path)
        self.log(f"this run is finished\n{self.summarize(results)}")
        return results

    def train(self, trainer: SpotTrainer) -> TrainingResults:
        """Trains, from the last whole checkpoint on where there is one."""
        checkpoint = self.training.resume_from_checkpoint or last_whole_checkpoint(self.directory)
        resumed_at = 0
        if checkpoint is not None:
            self.log(f"resuming from {checkpoint}")
            resumed_at = json.loads((Path(checkpoint) / STATE).read_text(encoding="utf-8"))["global_step"]
        output = trainer.train(resume_from_checkpoint=checkpoint)
        if trainer.failed_images:
            self.log(describe_failures(trainer.failed_images), logging.WARNING)
        return TrainingResults(
            ledger=self.run.ledger,
            train_loss=output.training_loss,
            steps=trainer.state.global_step,
            seconds=output.metrics["train_runtime"],
            resumed_at=resumed_at,
            images_per_second=output.metrics["train_samples_per_second"],
            log=trainer.state.log_history,
            failed=trainer.failed_images,
        )

    def save(
        self,
        trainer: SpotTrainer,
        results: TrainingResults,
        card: Mapping[str, Any],
        pictures: Mapping[str, Callable[[BinaryIO], Any]],
    ) -> None:
        """
        Writes the model, its card, pictures and, last, the results, and pushes them where `training` says so.

        Args:
            trainer ([`SpotTrainer`]): has trained.
            results ([`TrainingResults`]): of it.
            card (`dict`): further arguments of [`write_model_card`].
            pictures (`dict`): file name → what writes it, on the first process alone.
        """
        first = self.training.process_index == 0
        if first:
            # Before the model is saved, which writes a card only where there is none.
            repo_id = self.training.hub_model_id or self.directory.name
            write_model_card(trainer.model, self.directory, repo_id=repo_id, **card)
        trainer.save_model(_internal_call=True)
        if first:
            for name, draw in pictures.items():
                with write_atomically(self.directory / name) as picture:
                    draw(picture)
            self.run.write_json(self.results_name, results.to_json())
        if self.training.push_to_hub:
            trainer.push_to_hub()
        written = ", ".join(["README.md", self.results_name, *pictures])
        self.log(f"{self.summarize(results)}\nwritten to {self.directory}: the model, {written}")

    def log(self, message: str, level: int = logging.INFO) -> None:
        """On the first process alone."""
        if self.training.process_index == 0:
            logger.log(level, message)


def total_batch_size(training: SpotTrainingArguments, num_images: int) -> int:
    """Images per step, on all processes; `ValueError` where there are not that many."""
    total = training.train_batch_size * training.world_size * training.gradient_accumulation_steps
    if num_images < total:
        raise ValueError(
            f"`per_device_train_batch_size` must leave at least one step; got {training.per_device_train_batch_size} and "
            f"{num_images} images"
        )
    return total


def last_whole_checkpoint(directory: Path) -> str | None:
    """The newest checkpoint that was written to its end."""
    for checkpoint in reversed(sort_checkpoints(output_dir=str(directory))):
        try:
            json.loads((Path(checkpoint) / STATE).read_text(encoding="utf-8"))
            return str(checkpoint)
        except (OSError, ValueError):
            continue
    return None
