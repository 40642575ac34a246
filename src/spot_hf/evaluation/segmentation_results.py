"""From the ledger's lines to results of segmentation: mean IoU with its interval, and what it is beside the full grid's."""

import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from .cells import ORACLE, Cell, Line, SettingKey
from .confusion import Estimate, bootstrap, mean_iou_of, segmentation_scores
from .results import group_lines, identity_of, in_order, timing


@dataclass(kw_only=True)
class SegmentationResult:
    """
    Of a method at a number of tokens, in percent. What was not measured is `None`.

    Attributes:
        model (`str`), method (`str`), num_tokens (`int`): what was measured; steps (`int`): of the oracle, which uses masks;
            corruption (`str`), severity (`int`): of the images, where they were corrupted.
        num_images, num_failed, num_seeds (`int`): images that were segmented, that could not be read; draws.
        mean_iou ([`Estimate`]): over the pixels of all images, mean over seeds, with the first seed's interval over images.
        mean_iou_spread (`float`): standard deviation over seeds.
        pixel_accuracy (`float`), per_class (`list[float]`): of the first seed; `None` of a class that never occurs.
        loss (`float`): mean over images of their pixels' mean cross-entropy.
        share_of_full_grid (`float`): mean IoU in percent of the full grid's.
        difference_to_shrunken ([`Estimate`]): of mean IoU on the same images, to the image shrunk to as many cells.
        images_per_second, speed_up (`float`): speed-up to the full grid on the same batches. peak_mib (`float`).
    """

    model: str
    method: str
    num_tokens: int
    num_images: int
    num_failed: int
    num_seeds: int
    corruption: str | None = None
    severity: int | None = None
    steps: int | None = None
    mean_iou: Estimate | None = None
    mean_iou_spread: float | None = None
    pixel_accuracy: float | None = None
    per_class: list[float | None] | None = None
    loss: float | None = None
    share_of_full_grid: float | None = None
    difference_to_shrunken: Estimate | None = None
    images_per_second: float | None = None
    speed_up: float | None = None
    peak_mib: float | None = None

    @property
    def key(self) -> SettingKey:
        """By which tables are made."""
        return SettingKey(self.model, None, self.corruption, self.severity)

    def to_json(self) -> dict[str, Any]:
        values = {name: value for name, value in asdict(self).items() if value is not None}
        return {**values, "uses_label": True} if self.steps is not None else values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "SegmentationResult":
        known = {one.name: values[one.name] for one in fields(cls) if one.name in values}
        for name in ("mean_iou", "difference_to_shrunken"):
            if name in known:
                known[name] = Estimate(**known[name])
        return cls(**known)


def summarize_segmentation(lines: list[Line], num_labels: Mapping[str, int]) -> list[SegmentationResult]:
    """One result per model, method, number of tokens, and steps of the oracle. `num_labels`: classes, by the model's name."""
    found = []
    for setting, by_cell in group_lines(lines):
        merged = {cell: in_order(parts) for cell, parts in by_cell.items()}
        square = (-1, num_labels[setting.model], num_labels[setting.model])
        matrices = {cell: np.array(one.confusions or []).reshape(square) for cell, one in merged.items()}
        full_cell = next((cell for cell in by_cell if cell.method == "full_grid"), None)
        full = None if full_cell is None else by_cell[full_cell]
        for key in dict.fromkeys((identity_of(cell), cell.steps) for cell in by_cell):
            seeds = sorted(
                (cell for cell in by_cell if (identity_of(cell), cell.steps) == key), key=lambda cell: cell.seed or 0
            )
            first = seeds[0]
            result = SegmentationResult(
                model=setting.model,
                corruption=setting.corruption,
                severity=setting.severity,
                method=first.name,
                num_tokens=first.num_tokens,
                num_images=len(merged[first].image_index),
                num_failed=sum(merged[first].num_failed),
                num_seeds=len(seeds),
                steps=first.steps,
            )
            found.append(result)
            if not matrices[first].sum():  # no image, or none with a labelled pixel
                continue
            values = [float(mean_iou_of(matrices[cell].sum(0))) for cell in seeds]
            interval, mean = bootstrap(matrices[first]), statistics.fmean(values)
            shift = mean - interval.value
            result.mean_iou = Estimate(mean, interval.low + shift, interval.high + shift)
            result.mean_iou_spread = statistics.stdev(values) if len(values) > 1 else None
            scores = segmentation_scores(matrices[first])
            result.pixel_accuracy = scores.pixel_accuracy
            result.per_class = [None if np.isnan(value) else value for value in scores.per_class]
            result.loss = statistics.fmean(merged[first].loss)
            result.peak_mib = max(max(merged[cell].peak_mib, default=0.0) for cell in seeds)
            of_full = 0.0 if full_cell is None else float(mean_iou_of(matrices[full_cell].sum(0)))
            if of_full > 0:
                result.share_of_full_grid = 100 * mean / of_full
            shrunken = Cell("shrunken_image", first.num_tokens)
            if shrunken in by_cell and first not in (shrunken, full_cell):
                result.difference_to_shrunken = bootstrap(matrices[first], matrices[shrunken])
            speed = timing(by_cell[first], full)
            result.speed_up = speed.ratio
            result.images_per_second = speed.images_per_second
            if full is not None and speed.ratio is not None:
                base = timing(full, None).images_per_second
                result.images_per_second = base * speed.ratio if base is not None else None
    return sorted(found, key=lambda row: (row.method == ORACLE, row.steps or 0))
