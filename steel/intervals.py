"""Confidence intervals, and prediction intervals for new images.

Images of one group (one coil, one scene) are correlated. Rates therefore use an effective sample size, the sample size
divided by the design effect, and all other scores use a bootstrap over whole groups.

Throughout, `groups` is int64 `(n,)`, the group of each value (by default every value is its own group), and
`confidence` is the confidence level, between 0 and 1.

SciPy is imported in the functions, since an exported file imports this module and runs without SciPy.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Interval(NamedTuple):
    """Closed interval."""

    low: float
    high: float


def wilson(hits: float, n: float, confidence: float = 0.95) -> Interval:
    """Return the Wilson score interval of a rate, without continuity correction; [0, 1] if n is 0.

    `hits` need not be whole: both numbers may have been divided by a design effect.
    Source: Wilson 1927, Probable inference, the law of succession, and statistical inference.
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
    """Return the largest rate that can be claimed: the lower end of the Wilson interval; see `wilson`."""
    return wilson(hits, n, confidence).low


def design_effect(values: NDArray[Any], groups: NDArray[np.int64]) -> float:
    """Return the design effect of groups on the mean of the values `(n,)`, numbers or bool.

    It is the variance of the mean with groups as sampling units, divided by the variance for independent images. It is
    at least 1, since groups more even than chance are taken as chance. If all values are equal the variance is unknown;
    each group then counts as one image.
    Source: Kish 1965, Survey sampling; Rao and Scott 1992, A simple method for the analysis of clustered binary data.
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
    """Return the factor that widens a normal interval if there are few groups: the quantile of t over that of z."""
    from scipy import stats

    tail = (1 + confidence) / 2
    return float(stats.t.ppf(tail, max(1, num_groups - 1)) / stats.norm.ppf(tail))


def effective_size(values: NDArray[Any], groups: NDArray[np.int64], confidence: float = 0.95) -> float:
    """Return how many independent images give an interval of the same width as the values `(n,)` in their groups.

    With few groups it is smaller than the sample size divided by the design effect, since that effect is uncertain.
    Source: Korn and Graubard 1998, Confidence intervals for proportions with small expected number of positive counts.
    """
    n, k = len(values), len(np.unique(groups))
    if k == n:
        return float(n)
    return n / (design_effect(values, groups) * _widen(k, confidence) ** 2)


def rate(hits: NDArray[np.bool_], groups: NDArray[np.int64] | None = None, confidence: float = 0.95) -> Interval:
    """Return the confidence interval of the rate of hits, bool `(n,)`: Wilson, with the effective sample size."""
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
    """Return percentile bootstrap intervals of K scores, resampling whole groups and widened if groups are few.

    Source: Davison and Hinkley 1997, Bootstrap methods and their application, 3.8. Widening: Hesterberg 2015, What
    teachers should know about the bootstrap.

    Args:
        statistic: Function from row indices, with repetitions, to K scores; NaN where a score is undefined.
        num_images: Number of rows.
        groups: `(num_images,)`, group of each image; by default every image is its own group.
        confidence: Confidence level, between 0 and 1.
        num_resamples: Number of resamples.
        seed: Seed of the resampling.

    Returns:
        `(K, 2)`, the ends of the intervals. Resamples in which a score is undefined are ignored. An interval is NaN if
        the score of the data is undefined, or equal in all resamples, as for a class in one group: its variance is then
        unknown.
    """
    if groups is None:
        groups = np.arange(num_images)
    _, group = np.unique(groups, return_inverse=True)
    members = np.split(np.argsort(group, kind="stable"), np.cumsum(np.bincount(group))[:-1])
    k = len(members)
    rng = np.random.default_rng(seed)
    resamples = (rng.integers(0, k, k) for _ in range(num_resamples))
    scores = np.stack([statistic(np.concatenate([members[g] for g in resample])) for resample in resamples])
    observed = statistic(np.arange(num_images))
    tails = [50 * (1 - confidence), 50 * (1 + confidence)]
    factor = _widen(k, confidence) * np.sqrt(k / max(1, k - 1))
    ends = np.full((len(observed), 2), np.nan)
    for i, column in enumerate(scores.T):
        defined = column[~np.isnan(column)]
        if len(defined) and np.ptp(defined) > 0 and not np.isnan(observed[i]):
            ends[i] = observed[i] + factor * (np.percentile(defined, tails) - observed[i])
    return ends


def predict_rate(hits: float, n: int, num_new: int, confidence: float = 0.95, effective: float = 1.0) -> Interval:
    """Return the prediction interval of a rate on `num_new` images, given `hits` of n: beta-binomial, Jeffreys' prior.

    `effective` is `effective_size` divided by n, and scales both sample sizes. The interval is also valid for a
    threshold that is an order statistic of the images, such as the one that finds 95 % of the defects: the number of
    new scores above the k-th of n is beta-binomial for every distribution of the scores.
    """
    from scipy import stats

    m = max(1, round(num_new * effective))
    posterior = stats.betabinom(m, hits * effective + 0.5, (n - hits) * effective + 0.5)
    return Interval(*(posterior.ppf([(1 - confidence) / 2, (1 + confidence) / 2]) / m).tolist())


def predict_mean(
    values: Array, num_new: int, groups: NDArray[np.int64] | None = None, confidence: float = 0.95
) -> Interval:
    """Return the prediction interval of the mean of `num_new` new values, given values `(n,)`.

    It is Student's t interval with the variances of both means added. The new values are assumed to come in groups of
    similar sizes.
    """
    from scipy import stats

    n = len(values)
    effect, k = 1.0, n
    if groups is not None:
        effect, k = design_effect(values, groups), len(np.unique(groups))
    deviation = float(values.std(ddof=1)) if n > 1 else 0.0
    quantile = float(stats.t.ppf((1 + confidence) / 2, max(1, k - 1)))
    half = quantile * deviation * float(np.sqrt(effect / n + effect / num_new))
    mean = float(values.mean())
    return Interval(mean - half, mean + half)
