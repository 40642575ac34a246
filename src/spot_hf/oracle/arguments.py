"""Arguments of `spot-hf oracle`."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..coordinates.schema import check_config_name
from ..jobs.versions import public_name
from ..placement import PLACEMENTS, check_placement
from .search import check_oracle_arguments


@dataclass(kw_only=True)
class OracleRunArguments:
    """
    What a run of the oracle does. Its rows depend on all of these but `num_workers`.

    Attributes:
        model (`str`): directory or Hub id of a SpotViT; revision (`str`, *optional*): of a Hub id.
        dataset_name, dataset_config_name, dataset_split, dataset_revision, image_column_name, label_column_name, max_samples,
            streaming: as in [`load_images`].
        num_tokens (`list[int]`): budgets, each a config of the result.
        placement (`str`): where the search begins; seed (`int`): of random ones, which are drawn per image.
        among_labels (`bool`): classify among the classes that occur in the split only: the loss, too, knows no others.
        objective, steps, learning_rate, optimizer, optimizer_arguments, optimize_window_scales, window_scale_learning_rate,
            early_stop, dtype, compile: as in [`SpotOracle`].
        run_name (`str`, *optional*): configs are called `RUN_NAME_nTOKENS`; by default the model's name.
        batch_size (`int`): images per forward pass; shard_size (`int`): images per shard.
        save_trajectories (`bool`): also write every step's positions.
        num_workers (`int`): processes that decode ahead, per process of the run.
    """

    model: str
    revision: str | None = None
    dataset_name: str
    dataset_config_name: str | None = None
    dataset_split: str | None = None
    dataset_revision: str | None = None
    image_column_name: str = "image"
    label_column_name: str | None = "label"
    max_samples: int | None = None
    streaming: bool = False
    num_tokens: list[int] = field(default_factory=lambda: [49])
    placement: str = "isotropic"
    seed: int = 0
    objective: str = "label"
    steps: int = 5
    learning_rate: float = 3e-3
    optimizer: str = "adamw"
    optimizer_arguments: dict[str, Any] | None = None
    optimize_window_scales: bool = False
    window_scale_learning_rate: float = 0.05
    early_stop: float | None = None
    among_labels: bool = False
    dtype: str = "float32"
    compile: bool = False
    run_name: str | None = None
    batch_size: int = 32
    shard_size: int = 1000
    save_trajectories: bool = False
    num_workers: int = 2

    def check(self) -> None:
        """`ValueError` for what no run can have, before anything is loaded."""
        check_oracle_arguments(
            objective=self.objective,
            steps=self.steps,
            learning_rate=self.learning_rate,
            optimizer=self.optimizer,
            optimizer_arguments=self.optimizer_arguments,
            window_scale_learning_rate=self.window_scale_learning_rate,
            early_stop=self.early_stop,
            dtype=self.dtype,
        )
        if not self.num_tokens or len(set(self.num_tokens)) != len(self.num_tokens):
            raise ValueError(f"`num_tokens` must be one or several different numbers; got {self.num_tokens}")
        for num_tokens in self.num_tokens:
            check_placement(self.placement, num_tokens)
        if PLACEMENTS[self.placement].saliency:
            raise ValueError(
                f"`placement` {self.placement!r} needs a saliency map per image, which data sets do not have here"
            )
        for name in ("batch_size", "shard_size", "max_samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1; got {value}")
        if self.num_workers < 0:
            raise ValueError(f"`num_workers` must be at least 0; got {self.num_workers}")
        if self.objective == "label" and self.label_column_name is None:
            raise ValueError("`label_column_name` is needed by objective='label'; got none")
        if self.among_labels and (self.label_column_name is None or self.streaming):
            missing = "`label_column_name`" if self.label_column_name is None else "all of the data set: not `streaming`"
            raise ValueError(f"`among_labels` needs {missing}, to know which classes occur")
        check_config_name("run_name", self.config_names[0])

    @property
    def config_names(self) -> list[str]:
        """Of the result: one per budget."""
        name = self.run_name or Path(self.model.rstrip("/")).name
        return [f"{name}_n{num_tokens}" for num_tokens in self.num_tokens]

    def recorded(self) -> dict[str, Any]:
        """On which the rows depend. Of what lies on this machine the name, not the path."""
        parameters = asdict(self)
        del parameters["num_workers"], parameters["streaming"]
        for name in ("model", "dataset_name"):
            parameters[name] = public_name(parameters[name])
        return parameters
