"""A run of a Trainer in its directory: begun, gone on with, finished. Of fine-tuning and of masked pre-training."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import sort_checkpoints

from ..data.source import resolve_revision
from ..hub.cards import write_model_card
from ..jobs.directory import RunDirectory
from ..jobs.files import write_atomically
from ..jobs.process import open_run
from ..jobs.versions import device_name, versions


STATE = "trainer_state.json"  # is what Trainer writes last into a checkpoint


class TrainingRun:
    """
    A run in `training.output_dir`.

    Args:
        training (`TrainingArguments`): how.
        results_name (`str`): of the JSON file that is written last: a run that has it is finished.
        say: is called with lines that tell what happens.
    """

    def __init__(self, training: TrainingArguments, results_name: str, say: Callable[[str], Any]):
        self.training = training
        self.results_name = results_name
        self.say = say
        self.run = RunDirectory(Path(training.output_dir).expanduser().resolve())
        self.directory = self.run.directory

    def open(self, arguments: Any, num_images: int, inputs: list[str | None], command: str | None) -> None:
        """
        Begins it, or goes on with it; `ValueError` where the directory holds one with other parameters.

        Args:
            arguments: what is trained on what: with `recorded`, `dataset_name`, `dataset_revision` and `overwrite_output_dir`.
            num_images (`int`): to train on.
            inputs (`list[str]`): models and data that must not be overwritten, as far as they lie on this machine.
            command (`str`, *optional*): how this run was started, for the record.
        """
        parameters = {
            **arguments.recorded(self.training),
            "total_train_batch_size": total_batch_size(self.training, num_images),
            "dataset_revision": resolve_revision(arguments.dataset_name, arguments.dataset_revision),
            "num_images": num_images,
        }
        facts = {"command": command, "versions": versions(), "device": device_name(self.training.device)}
        overwrite, state = arguments.overwrite_output_dir, self.training.distributed_state
        open_run(state, self.run, parameters, facts, overwrite, [one for one in inputs if one])

    @property
    def results(self) -> dict[str, Any] | None:
        """Of a finished run."""
        path = self.directory / self.results_name
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def train(self, trainer: Trainer) -> dict[str, Any]:
        """From the last whole checkpoint on. Returns the results, whose `log` grows as long as `trainer` logs."""
        checkpoint = self.training.resume_from_checkpoint or last_whole_checkpoint(self.directory)
        resumed_at = 0
        if checkpoint is not None:
            self.say(f"going on from {checkpoint}")
            resumed_at = json.loads((Path(checkpoint) / STATE).read_text(encoding="utf-8"))["global_step"]
        output = trainer.train(resume_from_checkpoint=checkpoint)
        return {
            **self.run.ledger,
            "train_loss": output.training_loss,
            "steps": trainer.state.global_step,
            "seconds": output.metrics["train_runtime"],
            "resumed_at": resumed_at,  # step from which on loss, time and rate are
            "images_per_second": output.metrics["train_samples_per_second"],
            "log": trainer.state.log_history,
        }

    def save(
        self,
        trainer: Trainer,
        results: Mapping[str, Any],
        card: Mapping[str, Any],
        pictures: Mapping[str, Callable[[BinaryIO], Any]],
    ) -> None:
        """
        Writes the model, its card, pictures and, last, the results, and pushes them where `training` says so.

        Args:
            trainer: has trained.
            results (`dict`): plain values.
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
            with write_atomically(self.directory / self.results_name) as file:
                file.write((json.dumps(results, indent=2) + "\n").encode())
        if self.training.push_to_hub:
            trainer.push_to_hub()


def total_batch_size(training: TrainingArguments, num_images: int) -> int:
    """Images of a step, on all processes; `ValueError` where there are not that many."""
    total = training.train_batch_size * training.world_size * training.gradient_accumulation_steps
    if num_images < total:
        raise ValueError(
            f"`per_device_train_batch_size` must leave at least one step; got {training.per_device_train_batch_size} and "
            f"{num_images} images"
        )
    return total


def last_whole_checkpoint(directory: Path) -> str | None:
    """The newest that a killed run has finished."""
    for checkpoint in reversed(sort_checkpoints(output_dir=str(directory))):
        try:
            json.loads((Path(checkpoint) / STATE).read_text(encoding="utf-8"))
            return str(checkpoint)
        except (OSError, ValueError):
            continue
    return None
