"""95 % intervals of accuracies, and of differences of accuracies on the same images."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest


CONFIDENCE = 0.95
RESAMPLES = 10_000


@dataclass(frozen=True)
class Accuracy:
    """In percent, with its 95 % interval (Wilson)."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, right: np.ndarray) -> "Accuracy":
        interval = binomtest(int(right.sum()), len(right)).proportion_ci(CONFIDENCE, method="wilson")
        return cls(100 * float(right.mean()), 100 * interval.low, 100 * interval.high)

    @classmethod
    def of_share(cls, share: float, count: int) -> "Accuracy":
        """Of a mean over several draws on the same `count` images: as if that share of them were right."""
        interval = binomtest(round(share * count), count).proportion_ci(CONFIDENCE, method="wilson")
        return cls(100 * share, 100 * interval.low, 100 * interval.high)


@dataclass(frozen=True)
class Difference:
    """
    Of two accuracies on the same images, in points, with its 95 % interval: a percentile bootstrap over images.

    `gained` images are right only with the second, `lost` only with the first.
    """

    value: float
    low: float
    high: float
    gained: int
    lost: int

    @classmethod
    def of(cls, first: np.ndarray, second: np.ndarray, seed: int = 0) -> "Difference":
        count, gained, lost = len(first), int((~first & second).sum()), int((first & ~second).sum())
        # To draw images with replacement is to draw these three counts from a multinomial distribution.
        shares = [gained / count, lost / count, (count - gained - lost) / count]
        draws = np.random.default_rng(seed).multinomial(count, shares, size=RESAMPLES)
        low, high = np.quantile((draws[:, 0] - draws[:, 1]) / count, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        return cls(100 * (gained - lost) / count, 100 * float(low), 100 * float(high), gained, lost)
