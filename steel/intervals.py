"""Confidence intervals, and prediction intervals for new images.

Images of one group (one coil, one scene) are correlated. Every score from 0 to 1 is therefore treated as a rate on as
many independent images as would give the variance that the score has between groups. What is not such a score, as the
difference of two, has a bootstrap over whole groups.

Throughout, `groups` is int64 `(n,)`, the group of each value (by default every value is its own group), and
`confidence` is the confidence level, between 0 and 1.

SciPy is imported in the functions, since an exported file imports this module and runs without SciPy.
"""

from collections.abc import Callable, Sequence
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


def _widen(degrees: float, confidence: float) -> float:
    """Return the two-sided quantile of Student's t divided by that of the normal distribution."""
    from scipy import stats

    tail = (1 + confidence) / 2
    return float(stats.t.ppf(tail, degrees) / stats.norm.ppf(tail))


class Ratio(NamedTuple):
    """Score that is a ratio of two sums over n images, such as a recall or a mean over the images with a defect.

    Attributes:
        part: `(n,)`, numerator of each image: 0 to `whole`, unless `largest` is infinite.
        whole: `(n,)`, denominator of each image; 0 for an image that the score ignores.
        influence: `(n,)`, change of the score with the weight of an image beyond the change of the two sums, for scores
            that compare images with one another; 0.0 for other scores. It sums to 0.
        largest: Largest possible score, 1 or infinity.
    """

    part: Array
    whole: Array
    influence: Array | float = 0.0
    largest: float = 1.0

    @property
    def value(self) -> float:
        """The score; NaN if no image counts."""
        total = float(self.whole.sum())
        return float(self.part.sum()) / total if total > 0 else float("nan")


def mean_ratio(ratios: Sequence[Ratio]) -> float:
    """Return the mean of the ratios that are defined; NaN if none is."""
    values = [ratio.value for ratio in ratios if ratio.whole.any()]
    return float(np.mean(values)) if values else float("nan")


class _Spread(NamedTuple):
    """Variation of a ratio between groups.

    Attributes:
        num_groups: Number of groups with an image that counts.
        even_groups: Number of equal groups that give the same variance if the images of a group are all alike.
        middle: The ratio, smoothed.
        deviations: `(K,)`, deviation that each group causes; the sum of their squares estimates the variance.
        pseudo: Variance added by smoothing.
        effect: Design effect, smoothed.
    """

    num_groups: int
    even_groups: float
    middle: float
    deviations: Array
    pseudo: float
    effect: float


def _size_pseudo_groups(ratio: Ratio, group: NDArray[np.int64], num_ratios: int) -> tuple[float, float]:
    """Return the size of the pseudo-groups of one ratio of a mean while its design effect is unknown, and once it is.

    The first is a denominator, the second is in groups worth one independent image; see `_spread`. Of the sizes tried,
    these are the smallest that cover at least 0.93 with 5 or more groups in `benchmarks.intervals`.
    """
    whole = np.bincount(group, ratio.whole)
    mean = float(whole[whole > 0].mean())
    if ratio.largest > 1:
        return mean, 1.0
    # In a mean, the shifts that smoothing causes add up, whereas the errors partly cancel.
    share = float(num_ratios) ** -0.25
    is_ranking = np.ndim(ratio.influence) > 0
    if not is_ranking and np.all((ratio.part == 0) | (ratio.part == ratio.whole)):
        return share * mean, share  # Images that are all or nothing say little about the design effect.
    # For a ranking, the score 0 means that every pair is reversed, which is far worse than a miss.
    return share * float(np.square(whole).sum() / whole.sum()) / 2, share / 2 if is_ranking else share


def _spread(ratio: Ratio, group: NDArray[np.int64], num_groups: int, guess: float, share: float) -> _Spread:
    """Return the variation of a defined ratio between groups; `group` is `(n,)`, from 0 to `num_groups` - 1.

    It is that of the jackknife over groups. A score of 1 on a few images would seem certain, although a miss may not
    have occurred yet. The score is therefore smoothed by two pseudo-groups, with the scores 0 and 1; their denominator
    is `guess` until the design effect is known, and then that of `share` groups worth one independent image.
    Source: MacKinnon, Nielsen and Webb 2023, Fast and reliable jackknife and bootstrap methods for cluster-robust
    inference; Agresti and Coull 1998, Approximate is better than "exact" for interval estimation of proportions.
    """
    part, whole = np.bincount(group, ratio.part, num_groups), np.bincount(group, ratio.whole, num_groups)
    total, k = float(whole.sum()), int((whole > 0).sum())
    changes = np.broadcast_to(ratio.influence, ratio.part.shape) * total
    change = np.bincount(group, changes, num_groups)
    image = float(np.square(ratio.whole).sum()) / total  # typical denominator of one image
    mass = max(image, guess)
    for _ in range(2):  # The design effect is found with pseudo-groups of a guessed size, and then sets their size.
        everything = total + 2 * mass
        middle = (float(part.sum()) + mass) / everything
        both = (1 - middle) ** 2 + middle**2
        jackknife = np.sqrt((k + 1) / (k + 2)) / (1 - whole / everything)
        deviations = (part - middle * whole + change) * jackknife
        variance = float(np.square(deviations).sum()) + mass**2 * both
        independent = float(np.square(ratio.part - middle * ratio.whole + changes).sum()) + mass * image * both
        effect, pseudo = max(1.0, variance / max(independent, 1e-12)), mass**2 * both
        mass = image * effect * share
    # Groups more even than chance are taken as chance.
    scale = max(1.0, independent / max(variance, 1e-12)) / (total * everything)
    even = total**2 / float(np.square(whole).sum())
    return _Spread(k, even, middle, deviations * np.sqrt(scale), pseudo * scale, effect)


def score_interval(
    ratios: Sequence[Ratio], groups: NDArray[np.int64] | None = None, confidence: float = 0.95
) -> Interval:
    """Return the confidence interval of a mean of ratios; NaN if it is undefined or rests on a single group.

    It is the Wilson interval for the number of independent images that gives the same variance. That number is at least
    the number of groups, since the variance of a score from 0 to 1 is largest if each group is all or nothing. Only
    groups with an image that counts are counted; for the Dice of a class, those with the class. The interval of a score
    without an upper bound is the corresponding one for counts.
    """
    ratios = [ratio for ratio in ratios if ratio.whole.any()]
    undefined = Interval(float("nan"), float("nan"))
    if not ratios:
        return undefined
    group = np.unique(groups, return_inverse=True)[1] if groups is not None else np.arange(len(ratios[0].whole))
    num_groups = int(group.max()) + 1
    sizes = (_size_pseudo_groups(ratio, group, len(ratios)) for ratio in ratios)
    spreads = [_spread(ratio, group, num_groups, *size) for ratio, size in zip(ratios, sizes, strict=True)]
    num_carrying = len(np.unique(group[np.any([ratio.whole > 0 for ratio in ratios], axis=0)]))
    if num_carrying < 2:
        return undefined
    value, middle = mean_ratio(ratios), float(np.mean([spread.middle for spread in spreads]))
    if len(ratios) == 1 and _is_rate(ratios[0]) and num_carrying == np.count_nonzero(ratios[0].whole):
        return wilson(value * num_carrying, num_carrying, confidence)
    summed, pseudo, is_bounded = np.zeros(num_groups), 0.0, ratios[0].largest <= 1
    for spread in spreads:
        own = float(np.square(spread.deviations).sum()) + spread.pseudo
        factor = _widen(spread.even_groups + 1, confidence) ** 2
        if is_bounded:  # no more than if each group were all or nothing
            factor = min(factor, spread.middle * (1 - spread.middle) / spread.even_groups / own)
        summed += np.sqrt(factor) * spread.deviations
        pseudo += factor * spread.pseudo
    variance = (float(np.square(summed).sum()) + pseudo) / len(spreads) ** 2
    if not is_bounded:
        return _score_of_count(value, middle / variance, confidence)
    size = middle * (1 - middle) / variance
    return wilson(value * size, size, confidence)


def _is_rate(ratio: Ratio) -> bool:
    """Return whether each image that counts is a hit or a miss, independent of the other images."""
    part, whole = ratio.part[ratio.whole > 0], ratio.whole[ratio.whole > 0]
    return not np.any(ratio.influence) and np.ptp(whole) == 0 and bool(np.all((part == 0) | (part == whole)))


def _score_of_count(mean: float, n: float, confidence: float) -> Interval:
    """Return the score interval of a mean without upper bound whose variance is the mean divided by n."""
    from scipy import stats

    z = float(stats.norm.ppf((1 + confidence) / 2))
    middle, half = mean + z * z / (2 * n), z * float(np.sqrt(mean / n + z * z / (4 * n * n)))
    return Interval(max(0.0, middle - half), middle + half)


def effective_size(values: NDArray[Any], groups: NDArray[np.int64], confidence: float = 0.95) -> float:
    """Return how many independent images give an interval of the same width as the values `(n,)` in their groups.

    Values are from 0 to 1. The effective size is at most n, and at least the number of groups if these are of equal
    size. With few groups it is smaller than n divided by the design effect, since that effect is uncertain.
    Source: Korn and Graubard 1998, Confidence intervals for proportions with small expected number of positive counts.
    """
    n, k = len(values), len(np.unique(groups))
    if k == n:
        return float(n)
    group = np.unique(groups, return_inverse=True)[1]
    spread = _spread(Ratio(np.asarray(values, np.float64), np.ones(n)), group, k, guess=n / k, share=1)
    return min(n, max(n / (spread.effect * _widen(spread.even_groups + 1, confidence) ** 2), spread.even_groups))


def rate(hits: NDArray[np.bool_], groups: NDArray[np.int64] | None = None, confidence: float = 0.95) -> Interval:
    """Return the confidence interval of the rate of hits, bool `(n,)`: Wilson, with the effective sample size."""
    size = len(hits) if groups is None else effective_size(hits, groups, confidence)
    return wilson(float(hits.mean()) * size, size, confidence) if len(hits) else Interval(0.0, 1.0)


def bootstrap(
    statistic: Callable[[NDArray[np.int64]], Array],
    num_images: int,
    groups: NDArray[np.int64] | None = None,
    num_resamples: int = 1000,
) -> Array:
    """Return 95 % percentile bootstrap intervals of K scores of any kind, resampling whole groups.

    An interval is widened if few groups carry the score, which are those without which it would differ.

    Source: Davison and Hinkley 1997, Bootstrap methods and their application, 3.8. Widening: Hesterberg 2015, What
    teachers should know about the bootstrap.

    Args:
        statistic: Function from row indices, with repetitions, to K scores; NaN where a score is undefined.
        num_images: Number of rows.
        groups: `(num_images,)`, group of each image; by default every image is its own group.
        num_resamples: Number of resamples.

    Returns:
        `(K, 2)`, the ends of the intervals. Resamples in which a score is undefined are ignored. An interval is NaN if
        the score of the data is undefined, or is carried by fewer than two groups: its variance is then unknown.
    """
    if groups is None:
        groups = np.arange(num_images)
    _, group = np.unique(groups, return_inverse=True)
    members, sizes = np.argsort(group, kind="stable"), np.bincount(group)
    firsts, k = np.cumsum(sizes) - sizes, len(sizes)

    def list_members(chosen: NDArray[np.int64]) -> NDArray[np.int64]:
        num = sizes[chosen]
        rows: NDArray[np.int64] = members[
            np.repeat(firsts[chosen] - (np.cumsum(num) - num), num) + np.arange(num.sum())
        ]
        return rows

    rng = np.random.default_rng(0)
    scores = np.stack([statistic(list_members(rng.integers(0, k, k))) for _ in range(num_resamples)])
    observed = statistic(np.arange(num_images))
    carrying = _count_carrying(statistic, observed, group)
    ends = np.full((len(observed), 2), np.nan)
    for i, column in enumerate(scores.T):
        defined, c = column[~np.isnan(column)], int(carrying[i])
        if len(defined) and c > 1 and not np.isnan(observed[i]):
            factor = _widen(c - 1, 0.95) * np.sqrt(c / (c - 1))
            ends[i] = observed[i] + factor * (np.percentile(defined, [2.5, 97.5]) - observed[i])
    return ends


def _count_carrying(
    statistic: Callable[[NDArray[np.int64]], Array], observed: Array, group: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return how many groups, at most 200, each score would differ without; many groups are left out in blocks."""
    num_blocks = min(200, int(group.max()) + 1)
    if num_blocks < 2:
        return np.zeros(len(observed), np.int64)
    without = np.stack([statistic(np.flatnonzero(group % num_blocks != block)) for block in range(num_blocks)])
    # Sums in another order differ in the last digits.
    return np.asarray((~(np.abs(without - observed) <= 1e-9 * np.maximum(1, np.abs(observed)))).sum(axis=0))


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
