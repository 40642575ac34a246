"""The evaluation of models for semantic segmentation: mean IoU by tokens and placement, beside the same baselines.

Predictions are compared with the masks at the size of the original images, as `post_process_semantic_segmentation` gives them.
"""

import logging
import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from ..data.batches import Batch, FailureCount, Preparation, batches_of, work_of
from ..data.failures import FailedImage, check_failures, describe_failures
from ..data.masks import MaskClasses, check_masks, with_encoded_masks
from ..hub.loading import ModelSource
from ..jobs.process import device_of
from ..placement import grid
from .baselines import BASELINES
from .cells import Cell, Line, Measurement
from .confusion import confusion_matrices, mean_iou_of
from .measuring import Meter
from .methods import Methods, Outputs
from .run import RESULTS, EvaluationRun, Setting
from .segmentation_report import PICTURED, SegmentationResults, save_predictions, write_segmentation_report
from .segmentation_results import summarize_segmentation


SEGMENTATION_BASELINES = ("full_grid", "shrunken_image", "larger_windows")  # merged tokens have no place of their own

logger = logging.getLogger(__name__)


class SegmentationMethods(Methods):
    """[`Methods`] whose outputs are maps of scores. `labels` are [`MaskClasses`], and `image_processor` is set by the run."""

    image_processor: Any

    @staticmethod
    def encode(model: Any, **inputs: Any) -> Outputs:
        if "coordinates" not in inputs:  # all cells, whatever the model's config says of tokens
            pixel_values = inputs["pixel_values"]
            height, width = pixel_values.shape[-2:]
            inputs["coordinates"] = grid(height, width, model.config.patch_size)[None].to(pixel_values.device)
        return Outputs(model(**inputs).logits)

    def targets(self, batch: Batch) -> torch.Tensor:
        """Masks over what the model sees, `(batch_size, height, width)`, int64."""
        classes: Any = self.labels
        return classes.seen_of(batch, self.image_processor)


class SegmentationMeter(Meter):
    """Measures confusion matrices, and the mean cross-entropy of an image's pixels."""

    def __init__(self, methods: SegmentationMethods, classes: MaskClasses, image_processor: Any, device: torch.device):
        super().__init__(methods, None, device)
        self.classes, self.image_processor = classes, image_processor
        self._read: tuple[Batch | None, list[np.ndarray]] = (None, [])  # the last batch's masks, for its next cell

    def truth_of(self, batch: Batch) -> list[np.ndarray]:
        if self._read[0] is not batch:
            self._read = batch, self.classes.read_of(batch)
        return self._read[1]

    def compare(self, found: Measurement, cell: Cell, batch: Batch, outputs: Outputs, truth: list[np.ndarray]) -> None:
        num_labels, ignored = self.classes.num_labels, self.classes.ignore_index
        found.confusions, found.loss = [], []
        # One at a time: scores of all classes and pixels are large.
        for logits, mask in zip(outputs.logits, truth, strict=True):
            (one,) = self.image_processor.post_process_semantic_segmentation(
                {"logits": logits[None]}, [mask.shape], return_segmentation_scores=True
            )
            own = one["segmentation_scores"]
            labels = torch.from_numpy(mask)[None].to(own.device)
            matrix = confusion_matrices(one["segmentation"][None], labels, num_labels, ignored)[0]
            found.confusions.append(matrix.flatten().tolist())
            loss = nn.functional.cross_entropy(own[None], labels, ignore_index=ignored, reduction="sum")
            found.loss.append(round(float(loss / max(1, int(matrix.sum()))), 6))


class SegmentationRun(EvaluationRun):
    """[`EvaluationRun`] of models for semantic segmentation."""

    methods_class = SegmentationMethods

    def check_models(self, models: dict[str, ModelSource]) -> None:
        arguments = self.arguments
        refused: dict[str, Any] = {
            "among_labels": False, "knn_dataset_split": None, "confidence": None, "merge_tokens": None, "pareto": False,
            "published": False, "image_size": None, "label_names": None, "labels_by_number": False, "streaming": False,
        }  # fmt: skip
        for name, value in refused.items():
            if getattr(arguments, name) != value:
                raise ValueError(f"`{name}` is not for models that segment; got {getattr(arguments, name)}")
        chosen = arguments.chosen_baselines
        if chosen == list(BASELINES):  # the default
            chosen = list(SEGMENTATION_BASELINES)
        others = [name for name in chosen if name not in SEGMENTATION_BASELINES]
        if others:
            raise ValueError(
                f"`baselines` must be of {', '.join(SEGMENTATION_BASELINES)} for models that segment; got {others[0]}"
            )
        if len({tuple(model.config.id2label.values()) for model in models.values()}) > 1:
            raise ValueError(f"`model` must be models of the same classes; those of {' and '.join(models)} differ")
        self.arguments.baselines = chosen or ["none"]
        self.models = models

    def match_labels(self, models: dict[str, ModelSource]) -> dict[str, Any]:
        arguments = self.arguments
        self.images = with_encoded_masks(self.images, arguments.label_column_name)
        kinds = {(model.config.num_labels, model.config.semantic_loss_ignore_index) for model in models.values()}
        checked = {kind: check_masks(self.images, *kind) for kind in sorted(kinds)}
        return {
            name: checked[model.config.num_labels, model.config.semantic_loss_ignore_index] for name, model in models.items()
        }

    def meter_of(self, methods: Methods, setting: Setting, shrinking: dict, device: Any) -> Meter:
        assert isinstance(methods, SegmentationMethods)
        methods.image_processor = setting.image_processor
        return SegmentationMeter(methods, self.labels[setting.name], setting.image_processor, device)

    def figure_of(self, measured: Measurement) -> str:
        total = np.array(measured.confusions).sum(0)
        total = total.reshape(2 * [math.isqrt(len(total))])
        return f"mean IoU {float(mean_iou_of(total)):.1f} %"

    def summarize(self, lines: list[Line], failed: list[FailedImage]) -> SegmentationResults:
        arguments, ledger = self.arguments, self.directory.ledger
        labels = {name: model.config.num_labels for name, model in self.models.items()}
        rows = summarize_segmentation(lines, labels)
        check_failures(failed, rows[0].num_images + rows[0].num_failed, arguments.max_failed_share)
        names = [self.models[row.model].config.id2label[i] for row in rows[:1] for i in range(labels[row.model])]
        results = SegmentationResults(ledger, rows, failed, names)
        self.directory.write_json(RESULTS, results.to_json())
        drawn = [setting for setting in self.settings if setting.corruption is None]
        pictures = [picture for setting in drawn for picture in self._draw(setting)]
        logger.info(write_segmentation_report(self.directory.directory, results, pictures))
        if failed:
            logger.info("%s; all are listed in %s", describe_failures(failed), RESULTS)
        return results

    def _draw(self, setting: Setting) -> list[str]:
        """Pictures of a few predictions beside the truth, one per number of tokens."""
        device, classes = device_of(self.state), self.labels[setting.name]
        model: Any = setting.model.load().to(device)
        cells = [cell for cell in setting.cells if cell.seed in (None, self.arguments.seed) and cell.steps is None]
        methods = SegmentationMethods(
            model,
            model,
            setting.height,
            setting.width,
            cells,
            self.arguments,
            None,
            classes,  # type: ignore[arg-type]
        )
        shrinking = {size: setting.image_processor.resized(*size) for size in set(methods.shrunken_sizes.values())}
        preparation = Preparation(self.images, setting.image_processor, shrinking)
        chosen = np.linspace(0, (self.num_images or 1) - 1, PICTURED).round().astype(int)
        requests = list(dict.fromkeys(request for cell in cells for request in cell.placements))
        work = replace(next(work_of(range(1), 1, requests)), images=sorted(set(chosen.tolist())))
        (batch,) = batches_of(preparation, [work], 0, FailureCount(1.0, None))
        if batch.pixel_values is None:
            return []
        sizes = [(height, width) for width, height in batch.image_size]
        predicted: dict[int, dict[str, list[torch.Tensor]]] = {}
        for cell in cells:
            outputs = methods.prepare(cell, batch, device)()
            maps = setting.image_processor.post_process_semantic_segmentation(outputs, sizes)
            predicted.setdefault(cell.num_tokens, {})[cell.name] = [one.cpu() for one in maps]
        truth = [torch.from_numpy(mask) for mask in classes.read_of(batch)]
        images = [self.images[index]["image"].convert("RGB") for index in batch.image_index]
        return save_predictions(
            self.directory.directory, setting.name, images, truth, predicted, setting.model.config.id2label, classes
        )
