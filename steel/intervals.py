"""How sure a number is: confidence intervals, and prediction intervals for new images.

Images of one coil or tile are alike, so where there are groups it is them that count: rates have their sample size
divided by the design effect, and everything else is resampled by whole groups.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Interval(NamedTuple):
    """Two ends."""

    low: float
    high: float


def wilson(hits: float, n: float, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a rate, without continuity correction.

    Source: Wilson 1927, Probable inference, the law of succession, and statistical inference.

    Args:
        hits: How many of n; not whole where a design effect divides it.
        n: How many there are; of none nothing is known.
        confidence: 0 to 1.
    """
    if n <= 0:
        return Interval(0.0, 1.0)
    from scipy import stats

    z = float(stats.norm.ppf((1 + confidence) / 2))
    p = min(1.0, hits / n)
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * float(np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))) / (1 + z * z / n)
    return Interval(max(0.0, middle - half), min(1.0, middle + half))


def largest_claim(hits: int, n: int, confidence: float = 0.95) -> float:
    """The rate above which the true one lies: the lower end of Wilson's interval."""
    return wilson(hits, n, confidence).low


def design_effect(values: NDArray[Any], groups: NDArray[np.int64]) -> float:
    """How many images of these groups tell as much as one of independent images, for the mean of the values.

    The variance of the mean by the sums of whole groups, over that of independent images; never below 1, since groups
    that are more even than chance are chance. Where all values are equal the variance is unknown, and each group counts
    as one image.
    Source: Kish 1965, Survey sampling; Rao and Scott 1992, A simple method for the analysis of clustered binary data.

    Args:
        values: `(n,)`, numbers or bool.
        groups: `(n,)`, numbers of the groups.
    """
    values = np.asarray(values, np.float64)
    n = len(values)
    _, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    k = len(sizes)
    if n < 2 or k == n:
        return 1.0
    residual = values - values.mean()
    total = float(np.square(residual).sum())
    if k == 1 or total < 1e-12:
        return float(np.square(sizes).sum() / n)
    between = k / (k - 1) * float(np.square(np.bincount(group, residual)).sum())
    return max(1.0, between / (total * n / (n - 1)))


def _widen(num_groups: int, confidence: float) -> float:
    """What few groups add to a normal interval: Student's t in place of the normal's quantile."""
    tail = (1 + confidence) / 2
    from scipy import stats

    return float(stats.t.ppf(tail, max(1, num_groups - 1)) / stats.norm.ppf(tail))


def effective_size(values: NDArray[Any], groups: NDArray[np.int64], confidence: float = 0.95) -> float:
    """How many independent images would tell as much of a rate as these groups do, with this confidence.

    Less than the design effect leaves where groups are few, since the effect itself is then uncertain.
    Source: Korn and Graubard 1998, Confidence intervals for proportions with small expected number of positive counts.
    """
    n, k = len(values), len(np.unique(groups))
    if k == n:
        return float(n)
    return n / (design_effect(values, groups) * _widen(k, confidence) ** 2)


def rate(hits: NDArray[np.bool_], groups: NDArray[np.int64] | None = None, confidence: float = 0.95) -> Interval:
    """The interval of a rate: Wilson's, with the sample size that counts where images belong to groups.

    Args:
        hits: bool `(n,)`.
        groups: `(n,)`, numbers of the groups; by default each image is its own.
        confidence: 0 to 1.
    """
    size = len(hits) if groups is None else effective_size(hits, groups, confidence)
    return wilson(float(hits.mean()) * size, size, confidence) if len(hits) else Interval(0.0, 1.0)


def bootstrap(
    statistic: Callable[[NDArray[np.int64]], Array],
    num_images: int,
    groups: NDArray[np.int64] | None = None,
    confidence: float = 0.95,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Array:
    """Intervals of scores that are no rates: the percentiles of resamples of whole groups, widened where they are few.

    Source: Davison and Hinkley 1997, Bootstrap methods and their application, 3.8; the widening: Hesterberg 2015, What
    teachers should know about the bootstrap.

    Args:
        statistic: Rows, with repetition -> K scores, nan where one is undefined.
        num_images: How many rows there are.
        groups: `(num_images,)`, numbers of the groups; by default each image is its own.
        confidence: 0 to 1.
        num_resamples: How many to draw.
        seed: Of the drawing.

    Returns:
        `(K, 2)`; nan where the score of the data is undefined, and where all resamples have the same, as of a class on
        images of a single group, whose spread nobody has seen. Resamples in which a score is undefined do not count.
    """
    if groups is None:
        groups = np.arange(num_images)
    _, group = np.unique(groups, return_inverse=True)
    members = np.split(np.argsort(group, kind="stable"), np.cumsum(np.bincount(group))[:-1])
    k = len(members)
    rng = np.random.default_rng(seed)
    drawn = (rng.integers(0, k, k) for _ in range(num_resamples))
    resampled = np.stack([statistic(np.concatenate([members[g] for g in some])) for some in drawn])
    whole = statistic(np.arange(num_images))
    tails = [50 * (1 - confidence), 50 * (1 + confidence)]
    wider = _widen(k, confidence) * np.sqrt(k / max(1, k - 1))
    ends = np.full((len(whole), 2), np.nan)
    for i, column in enumerate(resampled.T):
        known = column[~np.isnan(column)]
        if len(known) and np.ptp(known) > 0 and not np.isnan(whole[i]):
            ends[i] = whole[i] + wider * (np.percentile(known, tails) - whole[i])
    return ends


def predict_rate(hits: float, n: int, num_new: int, confidence: float = 0.95, effective: float = 1.0) -> Interval:
    """Where a rate among new images will lie: the beta-binomial law that follows from Jeffreys' prior.

    It holds as well for a threshold that is an order statistic of the images at hand, such as the one that finds 95 %
    of the defects: how many new ones lie above the k-th of n is itself beta-binomial, whatever the scores' law.

    Args:
        hits: How many of n.
        n: How many there were.
        num_new: How many will come.
        confidence: 0 to 1.
        effective: Share of both sample sizes that counts where images belong to groups: `effective_size` / n.
    """
    m = max(1, round(num_new * effective))
    from scipy import stats

    law = stats.betabinom(m, hits * effective + 0.5, (n - hits) * effective + 0.5)
    low, high = law.ppf([(1 - confidence) / 2, (1 + confidence) / 2]) / m
    return Interval(float(low), float(high))


def predict_mean(
    values: Array, num_new: int, groups: NDArray[np.int64] | None = None, confidence: float = 0.95
) -> Interval:
    """Where the mean of new images' values will lie: Student's t interval, the variances of both means added.

    Args:
        values: `(n,)`.
        num_new: How many images will come.
        groups: `(n,)`, numbers of the groups, of which new ones are to come in like sizes; by default each image is
            its own.
        confidence: 0 to 1.
    """
    n = len(values)
    effect, k = 1.0, n
    if groups is not None:
        effect, k = design_effect(values, groups), len(np.unique(groups))
    spread = float(values.std(ddof=1)) if n > 1 else 0.0
    from scipy import stats

    quantile = float(stats.t.ppf((1 + confidence) / 2, max(1, k - 1)))
    half = quantile * spread * float(np.sqrt(effect / n + effect / num_new))
    mean = float(values.mean())
    return Interval(mean - half, mean + half)
