"""Top-k accuracy of ranked predictions, as a module of Hugging Face's `evaluate`."""

import datasets
import evaluate
import numpy as np


_DESCRIPTION = "Share of examples whose true class is among the first k of a ranked list of classes."

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of `list` of `int`): for each example its classes, best first: at least `k` of them.
    references (`list` of `int`): the true classes.
    k (`int`, defaults to 1): how many of the ranked classes count.
Returns:
    `dict`: `top_{k}_accuracy`, from 0 to 1.
Examples:
    >>> metric.compute(predictions=[[2, 0], [1, 2]], references=[0, 1], k=2)
    {'top_2_accuracy': 1.0}
"""


# `evaluate` loads this file alone: it can share nothing with the other metric.
class TopKAccuracy(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("int64")),
                    "references": datasets.Value("int64"),
                }
            ),
        )

    def _compute(self, predictions, references, k=1):
        shortest = min(len(ranked) for ranked in predictions)
        if not 1 <= k <= shortest:
            raise ValueError(f"`k` must be 1 to {shortest}, the number of classes in `predictions`; got {k}")
        ranked = np.stack([np.asarray(classes[:k]) for classes in predictions])
        return {f"top_{k}_accuracy": float((ranked == np.asarray(references)[:, None]).any(1).mean())}
