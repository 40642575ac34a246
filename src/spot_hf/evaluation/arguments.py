"""Arguments of `spot-hf evaluate`."""

from dataclasses import asdict, dataclass, field
from typing import Any

from ..jobs.versions import public_name, weights_digest
from ..oracle.search import DTYPES, check_oracle_arguments
from ..placement import PLACEMENTS, check_placement
from .baselines import BASELINES


def default_placements(with_saliency: bool = False) -> list[str]:
    """All priors but `grid`, which is the baseline `full_grid`; with saliency, those that need it too."""
    return [name for name, one in PLACEMENTS.items() if name != "grid" and (with_saliency or not one.saliency)]


@dataclass(kw_only=True)
class EvaluationArguments:
    """
    What is evaluated. Results depend on all of these but `num_workers` and `streaming`.

    Attributes:
        model (`list[str]`): directories or Hub ids of SpotViT classifiers.
        dataset_name, dataset_config_name, dataset_split, dataset_revision, image_column_name, label_column_name,
            saliency_column_name, max_samples, streaming: as in [`load_images`].
        num_tokens (`list[int]`): token counts; a number of tokens above the grid's is left out where a way cannot have it.
        placement (`list[str]`): priors; those that need no saliency map by default. `salient` and `inverse_salient` draw from
            what `saliency_column_name` says: a map over the image, or boxes in pixels (see [`read_saliency`]).
        baselines (`list[str]`): of `BASELINES`.
        image_size (`list[int]`, *optional*): pixels per side; the model's own by default.
        num_seeds (`int`): draws of each random placement; seed (`int`): of the first.
        oracle_steps (`list[int]`): also find positions with the label, from isotropic ones, in so many steps: a ceiling, not a
            method. What 0 steps give, to which costs are compared, is measured along.
        oracle_learning_rate (`float`): of these steps.
        among_labels (`bool`): classify among the classes that occur in the split, where these are fewer than the model's.
        knn_dataset_split (`str`, *optional*): also measure kNN accuracy, with the features of this split.
        knn_samples (`int`): images of that split, drawn by the seed.
        batch_size (`int`): images per forward pass; shard_size (`int`): images per line.
        dtype (`str`): `"float32"`, or `"bfloat16"` or `"float16"` for autocast.
        num_workers (`int`): processes that decode ahead.
    """

    model: list[str]
    dataset_name: str
    dataset_config_name: str | None = None
    dataset_split: str | None = None
    dataset_revision: str | None = None
    image_column_name: str = "image"
    label_column_name: str = "label"
    saliency_column_name: str | None = None
    max_samples: int | None = None
    streaming: bool = False
    num_tokens: list[int] = field(default_factory=lambda: [25, 49, 100, 196])
    placement: list[str] = field(default_factory=default_placements)
    baselines: list[str] = field(default_factory=lambda: list(BASELINES))
    image_size: list[int] | None = None
    num_seeds: int = 3
    seed: int = 0
    oracle_steps: list[int] = field(default_factory=list)
    oracle_learning_rate: float = 3e-3
    among_labels: bool = False
    knn_dataset_split: str | None = None
    knn_samples: int = 5000
    batch_size: int = 50
    shard_size: int = 250
    dtype: str = "float32"
    num_workers: int = 1

    def check(self) -> None:
        """`ValueError` for what no run can have, before anything is loaded."""
        for name in self.placement:
            for num_tokens in self.num_tokens:
                check_placement(name, num_tokens)
            if PLACEMENTS[name].saliency and self.saliency_column_name is None:
                raise ValueError(
                    f"`placement` {name!r} needs the saliency of each image: give `saliency_column_name`, a column of maps or "
                    "boxes; got none"
                )
            if name == "grid":
                raise ValueError("`placement` 'grid' is the baseline 'full_grid'; got it as a placement")
        for name in self.baselines:
            if name not in BASELINES:
                raise ValueError(f"`baselines` must be of {', '.join(BASELINES)}; got {name!r}")
        for name in ("num_seeds", "batch_size", "shard_size", "max_samples", "knn_samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1; got {value}")
        for steps in self.oracle_steps:
            check_oracle_arguments(
                objective="label",
                steps=steps,
                learning_rate=self.oracle_learning_rate,
                optimizer="adamw",
                optimizer_arguments=None,
                window_scale_learning_rate=self.oracle_learning_rate,
                early_stop=None,
                dtype=self.dtype,
            )
        for name in ("among_labels", "knn_dataset_split"):
            if self.streaming and getattr(self, name):
                raise ValueError(f"`{name}` needs a data set as a whole; got `streaming`")
        if self.num_workers < 0:
            raise ValueError(f"`num_workers` must be at least 0; got {self.num_workers}")
        if self.dtype not in DTYPES:
            raise ValueError(f"`dtype` must be one of {', '.join(DTYPES)}; got {self.dtype!r}")
        names = [public_name(model) for model in self.model]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"`model` must be one or several models with different names; got {', '.join(names) or 'none'}")
        if not self.num_tokens or len(set(self.num_tokens)) != len(self.num_tokens):
            raise ValueError(f"`num_tokens` must be one or several different numbers; got {self.num_tokens}")

    def recorded(self) -> dict[str, Any]:
        """On which results depend. Of what lies on this machine the name, not the path."""
        parameters = asdict(self)
        del parameters["num_workers"], parameters["streaming"]
        parameters["model"] = {public_name(model): weights_digest(model) for model in self.model}
        parameters["dataset_name"] = public_name(self.dataset_name)
        return parameters
