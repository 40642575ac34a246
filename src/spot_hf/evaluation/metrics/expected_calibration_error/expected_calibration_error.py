"""Expected calibration error, as a module of Hugging Face's `evaluate`."""

import datasets
import evaluate
import numpy as np


_DESCRIPTION = """
How far a classifier's confidence is from its accuracy (Guo et al. 2017, arXiv 1706.04599): examples are put into bins of
equal width by their confidence; the differences of mean confidence and accuracy are averaged over bins, weighted by their
numbers of examples.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of `int`): the predicted classes.
    references (`list` of `int`): the true classes.
    confidences (`list` of `float`): the probability that the classifier gave to each predicted class.
    num_bins (`int`, defaults to 15): bins of equal width over [0, 1], closed above.
Returns:
    `dict`: `expected_calibration_error`, from 0 to 1.
Examples:
    >>> metric.compute(predictions=[1, 0], references=[1, 1], confidences=[0.8, 0.8])
    {'expected_calibration_error': 0.3}
"""


# `evaluate` loads this file alone: it can share nothing with the other metric.
class ExpectedCalibrationError(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    "predictions": datasets.Value("int64"),
                    "references": datasets.Value("int64"),
                    "confidences": datasets.Value("float64"),
                }
            ),
        )

    def _compute(self, predictions, references, confidences, num_bins=15):
        confidences = np.asarray(confidences)
        if confidences.min() < 0 or confidences.max() > 1 + 1e-6:
            raise ValueError(f"`confidences` must lie in [0, 1]; got {confidences.min()} to {confidences.max()}")
        right = np.asarray(predictions) == np.asarray(references)
        bins = np.clip(np.ceil(confidences * num_bins).astype(int) - 1, 0, num_bins - 1)
        gaps = np.zeros(num_bins)
        np.add.at(gaps, bins, confidences - right)
        return {"expected_calibration_error": float(np.abs(gaps).sum() / len(right))}
