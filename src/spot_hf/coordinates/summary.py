"""What all shards of a config say together: counts, accuracy, losses, where tokens were and are."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..data.failures import FailedImage
from ..data.labels import LabelMapping
from .shards import ShardFacts


DENSITY_CELLS = 56  # per axis


@dataclass
class Summary:
    """
    Of all shards of a config's split, read one at a time.

    Attributes:
        num_images, num_labelled, num_steps (`int`): rows; those with a label and a prediction; steps taken, over all images.
        num_bytes, download_size (`int`): of the shards, in memory and on disk.
        failed (`list`): images that could not be read.
        accuracy_per_step (`list[float]`): percent, of iterates 0 to `steps`. The last iterate need not be the best one.
        accuracy_before, accuracy_after (`float`): percent, at the initial and at the best positions. `None` without labels.
        loss_per_step (`list[float]`): means of the objective.
        start_density, end_density (`np.ndarray`): tokens per cell of the image, `(rows, columns)`, summing to 1; `None` of
            what was read from a record.
    """

    num_images: int
    num_labelled: int
    num_steps: int
    num_bytes: int
    download_size: int
    failed: list[FailedImage]
    accuracy_per_step: list[float]
    accuracy_before: float | None
    accuracy_after: float | None
    loss_per_step: list[float]
    start_density: np.ndarray | None = None
    end_density: np.ndarray | None = None

    def to_json(self) -> dict[str, Any]:
        """All but the densities, which are drawn."""
        return {name: value for name, value in asdict(self).items() if not name.endswith("_density")}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Summary":
        return cls(**{**values, "failed": [FailedImage(**one) for one in values["failed"]]})


def summarize(shards: Iterable[Path], mapping: LabelMapping | None) -> Summary:
    """
    Reads a config's shards, one at a time.

    Args:
        shards: the files.
        mapping ([`LabelMapping`], *optional*): knows the model's classes of the rows' labels, where they are such.
    """
    totals = dict.fromkeys(("num_images", "num_labelled", "num_steps", "num_bytes", "download_size"), 0)
    failed: list[FailedImage] = []
    correct: np.ndarray | int = 0
    losses: np.ndarray | int = 0
    before = after = 0
    densities = {name: np.zeros((DENSITY_CELLS, DENSITY_CELLS)) for name in ("initial_coordinates", "coordinates")}
    for path in shards:
        facts = ShardFacts.read(path)
        for name in ("num_images", "num_labelled", "num_steps", "num_bytes"):
            totals[name] += getattr(facts, name)
        totals["download_size"] += path.stat().st_size
        failed += facts.failed
        correct = correct + np.array(facts.correct_per_step)
        table = pq.read_table(path, columns=["label", "initial_prediction", "prediction", "losses", *densities])
        if not len(table):
            continue
        losses = losses + np.stack(table["losses"].to_numpy()).astype(np.float64).sum(0)
        initial, final = (table[name].to_numpy() for name in ("initial_prediction", "prediction"))
        if mapping is not None:
            truth = np.array([mapping(label) for label in table["label"].to_pylist()], dtype=float)  # NaN where there is none
            before, after = before + int((initial == truth).sum()), after + int((final == truth).sum())
        for name, density in densities.items():
            points = _points(table[name])
            density += np.histogram2d(points[:, 1], points[:, 0], bins=DENSITY_CELLS, range=[[0, 1], [0, 1]])[0]
    if mapping is None:  # an earlier version may have counted labels that are none of the model's classes
        totals["num_labelled"] = 0
    labelled = totals["num_labelled"]
    return Summary(
        **totals,
        failed=failed,
        accuracy_per_step=[round(100 * float(x) / labelled, 3) for x in np.atleast_1d(correct)] if labelled else [],
        accuracy_before=round(100 * before / labelled, 3) if labelled else None,
        accuracy_after=round(100 * after / labelled, 3) if labelled else None,
        loss_per_step=[float(x) / totals["num_images"] for x in np.atleast_1d(losses)] if totals["num_images"] else [],
        start_density=densities["initial_coordinates"] / max(1.0, densities["initial_coordinates"].sum()),
        end_density=densities["coordinates"] / max(1.0, densities["coordinates"].sum()),
    )


def _points(column: pa.ChunkedArray) -> np.ndarray:
    """`(num_points, 2)` of a column of lists of points."""
    return column.combine_chunks().flatten().flatten().to_numpy(zero_copy_only=False).reshape(-1, 2)
