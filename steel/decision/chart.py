"""CUSUM charts: small lasting changes of contrast and class rates, which no single window of images can show.

A chart adds up how far each image is from the mean of the reference, less an allowance, and never falls below 0. It
warns when the sum exceeds a limit. Contrast enters as the share of the reference's cuts below it, a class as its
probability, so a single image counts at most 1.

The limit follows from the groups of the reference. Without drift the sums over groups are independent. If theta > 0
solves E exp(theta * sum) = 1, theta * sum is a log likelihood ratio, and the mean number of groups until the chart
exceeds a limit h is at least exp(theta * h). Source: Lorden 1971, Procedures for reacting to a change in distribution.
The mean of the reference is an estimate, and a chart accumulates its error. The allowance is therefore a multiple of
its standard error.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from steel.decision.measures import MEASURES, Array

RUN_LENGTH = 40_000  # mean number of images until a false warning of any chart

# Quantiles of the error of the mean: the allowance, and the error that the limit assumes.
_ALLOWED, _ASSUMED = 0.995, 0.9
# Smallest allowance as a share of the mean. A smaller one would delay warnings of larger changes.
_LEAST = 0.1


@dataclass(frozen=True)
class Chart:
    """Chart of one quantity in both directions.

    Attributes:
        mean: Mean of the reference.
        allowance: Deviation from the mean that an image may have without raising a sum.
        upper: The highest sum of deviations above the mean without a warning.
        lower: The same for deviations below the mean.
    """

    mean: float
    allowance: float
    upper: float
    lower: float


def score(measured: Array, class_probabilities: NDArray[np.floating[Any]], contrast_cuts: Array) -> Array:
    """Return the charted numbers, 0 to 1, `(..., 1 + C)`: contrast first, then the classes.

    Args:
        measured: `(..., 4)`, from `measure`.
        class_probabilities: `(..., C)`, calibrated.
        contrast_cuts: The cuts of the contrast in the reference.
    """
    contrast = measured[..., MEASURES.index("contrast")]
    rank = np.searchsorted(contrast_cuts, contrast) / len(contrast_cuts)
    return np.concatenate([rank[..., None], class_probabilities], axis=-1)


def build_charts(scores: Array, groups: NDArray[np.int64]) -> tuple[Chart, ...]:
    """Build one chart per column of scores `(n, K)` of images in groups `(n,)`."""
    from scipy import stats

    _, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    # The run length is that of all charts together, in both directions.
    num_groups = 2 * scores.shape[1] * RUN_LENGTH / sizes.mean()
    charts = []
    for column in scores.T:
        mean = float(column.mean())
        # Two further groups of the lowest and the highest score: the next group may differ from all that are known.
        lengths = np.append(sizes, [sizes.mean()] * 2)
        deviations = np.append(np.bincount(group, column - mean), np.array([-mean, 1 - mean]) * sizes.mean())
        squares = np.square(deviations)
        # Satterthwaite's degrees of freedom: few if few groups carry the variance, as for a rare class.
        kurtosis = float((squares**2).mean() / squares.mean() ** 2)
        error = stats.t(2 * len(lengths) / max(kurtosis - 1, 1e-9), scale=np.sqrt(squares.sum()) / len(column))
        allowed, assumed = error.ppf([_ALLOWED, _ASSUMED]).tolist()
        allowance = max(allowed, _LEAST * min(mean, 1 - mean))
        steps = (sign * deviations - (allowance - assumed) * lengths for sign in (1, -1))
        charts.append(Chart(mean, allowance, *(_find_limit(some, num_groups) for some in steps)))
    return tuple(charts)


def _find_limit(steps: Array, run_length: float) -> float:
    """Return the limit that a sum of these steps, in random order, exceeds after `run_length` steps on average."""
    if steps.max() <= 0:
        return float(RUN_LENGTH)  # the allowance hides every deviation
    theta = _find_exponent(steps)
    cycles = run_length * theta * abs(float(steps.mean()))
    height = 0.0
    for _ in range(50):  # solves exp(height) - height - 1 = cycles
        height = float(np.log1p(cycles + height))
    return height / theta


def _find_exponent(steps: Array) -> float:
    """Return theta > 0 with mean(exp(theta * steps)) = 1, for steps with a negative mean and a positive maximum."""
    from scipy.optimize import brentq

    largest = float(steps.max())

    def log_mean(theta: float) -> float:
        return theta * largest + float(np.log(np.exp(theta * (steps - largest)).mean()))

    # At half of this theta the largest step alone makes the mean 1, but for rounding.
    high = 2 * np.log(len(steps)) / largest
    return float(brentq(log_mean, high * 1e-6, high)) if log_mean(high * 1e-6) < 0 else high * 1e-6


class Alarm(NamedTuple):
    """A chart that exceeds its limit.

    Attributes:
        chart: Index of the chart.
        first: Number of the image, starting at 1, at which its sum last left 0.
        mean: Mean of the scores since then.
    """

    chart: int
    first: int
    mean: float


class Charts:
    """The running sums of charts. A chart warns once, and again only after its sum has returned to 0.

    A sum stays at its limit instead of growing, so that it returns to 0 soon after a drift has ended.

    Attributes:
        is_active: bool `(2, K)`, whether each chart warns, above (0) and below (1) the mean.
    """

    def __init__(self, charts: Sequence[Chart]) -> None:
        self._mean = np.array([chart.mean for chart in charts])
        self._allowance = np.array([chart.allowance for chart in charts])
        self._limits = np.array([[chart.upper for chart in charts], [chart.lower for chart in charts]])
        self._sums, self._totals = np.zeros((2, *self._limits.shape))
        self._first = np.ones(self._limits.shape, np.int64)
        self.is_active = np.zeros(self._limits.shape, bool)

    def add(self, scores: Array, number: int) -> list[Alarm]:
        """Add the scores `(K,)` of an image, given its number, and return the charts that start to warn."""
        deviation = scores - self._mean
        self._sums = np.maximum(0, self._sums + np.stack([deviation, -deviation]) - self._allowance)
        is_zero, is_over = self._sums == 0, self._sums > self._limits
        self._first = np.where(is_zero, number + 1, self._first)
        self._totals = np.where(is_zero, 0, self._totals + scores)
        starts = is_over & ~self.is_active
        self.is_active = (self.is_active | is_over) & ~is_zero
        self._sums = np.minimum(self._sums, self._limits)
        return [
            Alarm(int(k), int(self._first[side, k]), float(self._totals[side, k] / (number + 1 - self._first[side, k])))
            for side, k in np.argwhere(starts)
        ]
