"""Mean intersection over union from confusion matrices, as a module of Hugging Face's `evaluate`."""

import datasets
import evaluate
import numpy as np


_DESCRIPTION = """
How well maps of classes agree with the truth: intersection over union of each class, over the pixels of all images, and its
mean over the classes that occur in either. From one confusion matrix per image, so that maps need not be kept.
"""

_KWARGS_DESCRIPTION = """
Args:
    confusions (`list` of `list` of `list` of `int`): for each image, how many pixels of each true class (rows) were given each
        class (columns). Pixels that do not count are left out.
Returns:
    `dict`: `mean_iou`, `overall_accuracy`, the share of pixels that are right, both from 0 to 1; and `per_category_iou`, a
    list with `nan` for classes that never occur.
Examples:
    >>> metric.compute(confusions=[[[3, 1], [0, 4]]])
    {'mean_iou': 0.775, 'overall_accuracy': 0.875, 'per_category_iou': [0.75, 0.8]}
"""


# `evaluate` loads this file alone: it can share nothing with the other metrics.
class MeanIoU(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"confusions": datasets.Sequence(datasets.Sequence(datasets.Value("int64")))}),
        )

    def _compute(self, confusions):
        total = np.asarray(confusions).sum(0)
        if total.ndim != 2 or total.shape[0] != total.shape[1] or total.min() < 0:
            raise ValueError(f"`confusions` must be square matrices of counts; got {np.shape(confusions)}")
        right = np.diag(total)
        union = total.sum(0) + total.sum(1) - right
        ious = np.where(union > 0, right / np.maximum(union, 1), np.nan)
        return {
            "mean_iou": float(np.nanmean(ious)) if (union > 0).any() else float("nan"),
            "overall_accuracy": float(right.sum() / total.sum()) if total.sum() else float("nan"),
            "per_category_iou": ious.tolist(),
        }
