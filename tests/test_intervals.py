"""Intervals, compared with SciPy and with their coverage in simulations."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import betabinom, binomtest, norm

from steel.intervals import (
    Ratio,
    bootstrap,
    design_effect,
    effective_size,
    predict_mean,
    predict_rate,
    rate,
    score_interval,
    wilson,
)

Array = NDArray[np.float64]


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_wilson_equals_scipy(confidence: float) -> None:
    for n in (1, 2, 7, 100, 5000):
        for hits in {0, 1, n // 3, n - 1, n}:
            expected = binomtest(hits, n).proportion_ci(confidence, method="wilson")
            assert wilson(hits, n, confidence) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert wilson(0, 0) == (0, 1)


def test_design_effect_of_known_correlations() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(300), 5)
    assert design_effect(np.repeat(rng.random(300), 5), groups) == pytest.approx(5, rel=0.02)  # copies
    assert design_effect(rng.random(1500), groups) < 1.2  # independent after all
    assert design_effect(rng.random(1500), np.arange(1500)) == 1
    assert design_effect(np.ones(1500), groups) == 5  # no variance: each group counts as one image
    assert design_effect(np.array([1.0, 0.0]), np.zeros(2, int)) == 2
    alternating = np.tile([0.0, 1.0], 700)
    assert design_effect(alternating, np.repeat(np.arange(700), 2)) == 1  # never less than 1
    assert effective_size(alternating, np.arange(1400)) == 1400
    assert effective_size(np.ones(12), np.repeat(np.arange(3), 4)) == 3


def draw_groups(rng: np.random.Generator, k: int, size: int, p: float, correlation: float) -> NDArray[np.bool_]:
    """`(k, size)` hits, with beta-distributed group rates that give this correlation within a group."""
    rates = np.full(k, p)
    if correlation > 0:
        rates = rng.beta(p * (1 / correlation - 1), (1 - p) * (1 / correlation - 1), k)
    return rng.random((k, size)) < rates[:, None]


# Number of groups, images in each, correlation within a group.
GROUPS = [(40, 1, 0.0), (200, 1, 0.0), (20, 5, 0.2), (60, 3, 0.5), (60, 10, 0.1), (200, 6, 0.4)]
RATES = (0.05, 0.2, 0.5, 0.9)


def count_rates(num_tries: int) -> dict[tuple[int, int, float, float], tuple[float, float]]:
    """Return how often the interval contains the true rate, and the prediction interval the rate of new images."""
    coverage = {}
    for place, (k, size, correlation) in enumerate(GROUPS):
        groups = np.repeat(np.arange(k), size)
        for p in RATES:
            rng = np.random.default_rng([place, int(100 * p)])
            is_covered, is_predicted = [], []
            for _ in range(num_tries):
                hits, new = (draw_groups(rng, k, size, p, correlation).ravel() for _ in range(2))
                low, high = rate(hits, groups)
                is_covered.append(low <= p <= high)
                effective = effective_size(hits, groups) / len(hits)
                low, high = predict_rate(int(hits.sum()), len(hits), len(new), effective=effective)
                is_predicted.append(low - 1e-9 <= new.mean() <= high + 1e-9)
            coverage[k, size, correlation, p] = float(np.mean(is_covered)), float(np.mean(is_predicted))
    return coverage


def test_rate_intervals_have_their_nominal_coverage() -> None:
    coverage = np.array(list(count_rates(num_tries=80).values()))
    for mean in coverage.mean(axis=0):
        assert 0.93 <= mean <= 0.985
    assert coverage.min() > 0.85


def draw_dice(rng: np.random.Generator, k: int, size: int, correlation: float) -> tuple[Array, Array]:
    """Two sets of `(k * size,)` Dice scores: mostly around 0.7, and a tenth that are 0."""

    def draw() -> Array:
        quality = rng.normal(size=(k, 1)) * np.sqrt(correlation) + rng.normal(size=(k, size)) * np.sqrt(1 - correlation)
        scores = 1 / (1 + np.exp(-0.9 - quality))
        return np.where(quality < -1.28, 0, scores).ravel()

    return draw(), draw()


def test_intervals_of_means_and_ratios_have_their_nominal_coverage() -> None:
    """Bootstrap of a mean and of a ratio of sums, and prediction of a mean."""
    covered: dict[str, list[bool]] = {"mean": [], "ratio": [], "prediction": []}
    rng = np.random.default_rng(0)
    population, _ = draw_dice(rng, 400_000, 1, 0.0)
    true_mean, true_ratio = population.mean(), (population**2).mean() / population.mean()
    for k, size, correlation in ((20, 4, 0.3), (60, 1, 0.0), (100, 5, 0.5)):
        groups = np.repeat(np.arange(k), size)
        for _ in range(100):
            scores, new = draw_dice(rng, k, size, correlation)
            sums = np.array([scores, scores**2])

            def statistic(rows: NDArray[np.int64], sums: Array = sums) -> Array:
                total, squares = sums[:, rows].sum(axis=1)
                return np.array([total / len(rows), squares / total])

            mean, ratio = bootstrap(statistic, len(scores), groups, num_resamples=200)
            covered["mean"].append(bool(mean[0] <= true_mean <= mean[1]))
            covered["ratio"].append(bool(ratio[0] <= true_ratio <= ratio[1]))
            low, high = predict_mean(scores, len(new), groups)
            covered["prediction"].append(low <= new.mean() <= high)
    for name, hits in covered.items():
        assert 0.92 <= np.mean(hits) <= 0.98, name  # 300 trials: 95 % plus or minus 2.5 %


def test_bootstrap_draws_whole_groups() -> None:
    groups = np.array([5, 5, 5, 2, 2, 9])
    drawn = []

    def statistic(rows: NDArray[np.int64]) -> Array:
        drawn.append(np.bincount(rows, minlength=6))
        return np.array([1.0])

    bootstrap(statistic, 6, groups, num_resamples=50)
    for counts in drawn[:51]:
        assert len(set(counts[:3])) == len(set(counts[3:5])) == 1
        assert counts[0] + counts[3] + counts[5] == 3


def mean_of(values: Array, counted: NDArray[np.bool_] | None = None) -> Ratio:
    """Return the mean of the values `(n,)` over the images that count."""
    whole = np.ones(len(values)) if counted is None else counted.astype(float)
    return Ratio(values * whole, whole)


def test_intervals_of_independent_hits_are_wilsons() -> None:
    for hits in (0, 3, 8):
        values = (np.arange(8) < hits).astype(float)
        assert score_interval([mean_of(values)]) == pytest.approx(wilson(hits, 8))


def test_a_perfect_score_is_as_uncertain_as_its_number_of_groups() -> None:
    assert score_interval([mean_of(np.ones(4))]) == pytest.approx(wilson(4, 4))
    groups = np.repeat(np.arange(4), 5)
    assert score_interval([mean_of(np.ones(20))], groups) == pytest.approx(wilson(4, 4))
    assert score_interval([mean_of(np.zeros(20))], groups) == pytest.approx(wilson(0, 4))
    # Also if the images are unequal, as those of an IoU.
    low, high = score_interval([Ratio(10.0 ** np.arange(4), 10.0 ** np.arange(4))])
    assert low < wilson(2, 2).low
    assert high == 1


def test_groups_without_the_class_do_not_narrow_the_interval() -> None:
    rng = np.random.default_rng(0)
    groups, values = np.repeat(np.arange(60), 7), rng.beta(4, 2, 420)
    carrying = groups < 3
    few = score_interval([mean_of(values[carrying])], groups[carrying])
    assert score_interval([mean_of(values, carrying)], groups) == pytest.approx(few)
    assert few.high - few.low > 2 * np.ptp(score_interval([mean_of(values)], groups))


def test_a_score_carried_by_one_group_has_no_interval() -> None:
    groups = np.repeat(np.arange(6), 4)
    # The score of 1/3 is not exact, so that sums differ by rounding.
    values = np.full(24, 1 / 3)
    assert np.isnan(score_interval([mean_of(values, groups == 2)], groups)).all()
    assert np.isnan(score_interval([mean_of(values, groups > 9)], groups)).all()

    def statistic(rows: NDArray[np.int64]) -> Array:
        counted = rows[groups[rows] == 2]
        return np.array([values[counted].mean() if len(counted) else np.nan, (rows % 7).sum() / len(rows)])

    alone, every = bootstrap(statistic, 24, groups, num_resamples=50)
    assert np.isnan(alone).all()
    assert every[0] < every[1]


def test_a_class_in_one_group_leaves_the_mean_over_classes_its_meaning() -> None:
    groups = np.repeat(np.arange(30), 3)
    values = np.random.default_rng(0).beta(8, 2, (90, 3))
    common = [mean_of(values[:, c]) for c in range(3)]
    rare = mean_of(np.full(90, 0.1), groups == 4)
    mean = np.mean([*(ratio.value for ratio in common), 0.1])
    low, high = score_interval([*common, rare], groups)
    assert low < mean < high
    # Nothing is known of the rare class, a quarter of the mean; the other classes are known well.
    assert 0.2 < high - low < 0.5


def test_a_score_without_upper_bound_may_exceed_one() -> None:
    errors = np.random.default_rng(0).lognormal(0, 1, 40)
    ratio = mean_of(errors)._replace(largest=np.inf)
    low, high = score_interval([ratio])
    assert 0 < low < errors.mean() < high
    assert high > 1
    perfect = score_interval([mean_of(np.zeros(40))._replace(largest=np.inf)])
    assert perfect.low == 0
    assert 0.05 < perfect.high < 0.2


def draw_good(rng: np.random.Generator, k: int, size: int, correlation: float, missed: float) -> Array:
    """Draw `(k * size,)` Dice scores around 0.9, but for a share of misses."""
    shared, own = rng.normal(size=(k, 1)), rng.normal(size=(k, size))
    latent = np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * own
    return np.where(latent < norm.ppf(missed), 0, 1 / (1 + np.exp(-2.5 - 0.7 * latent))).ravel()


# Groups, images in each, correlation within a group, share of misses, and a bound on the median width.
SCORES = [(5, 7, 0.9, 0.1, 0.45), (10, 1, 0.0, 0.05, 0.35), (20, 7, 0.9, 0.05, 0.17), (8, 20, 0.3, 0.0, 0.28)]


def test_intervals_of_scores_have_their_nominal_coverage() -> None:
    """Dice with misses: with few groups, all of which are found, a percentile bootstrap covers 0.55 to 0.65."""
    rng = np.random.default_rng(0)
    for k, size, correlation, missed, width in SCORES:
        groups = np.repeat(np.arange(k), size)

        truth = draw_good(rng, 200_000 // size, size, correlation, missed).mean()
        scores = [mean_of(draw_good(rng, k, size, correlation, missed)) for _ in range(200)]
        low, high = np.array([score_interval([score], groups) for score in scores]).T
        assert ((low <= truth) & (truth <= high)).mean() >= 0.92, (k, size, correlation, missed)
        assert np.median(high - low) < width, (k, size, correlation, missed)


def test_the_mean_over_classes_is_known_better_than_one_class() -> None:
    rng, groups = np.random.default_rng(0), np.repeat(np.arange(10), 7)
    truth = draw_good(rng, 30_000, 7, 0.9, 0.1).mean()
    ends, factors = [], []
    for _ in range(150):
        classes = [mean_of(draw_good(rng, 10, 7, 0.9, 0.1)) for _ in range(4)]
        ends.append(score_interval(classes, groups))
        factors.append(np.ptp(ends[-1]) / np.mean([np.ptp(score_interval([one], groups)) for one in classes]))
    low, high = np.array(ends).T
    assert ((low <= truth) & (truth <= high)).mean() >= 0.92
    assert 0.4 < np.median(factors) < 0.53  # the classes are independent: half as wide


def test_undefined_scores_have_nan_intervals() -> None:
    values = np.array([1.0, np.nan, 3.0, 5.0])

    def statistic(rows: NDArray[np.int64]) -> Array:
        sample = values[rows]
        return np.array([np.nanmean(sample) if (~np.isnan(sample)).any() else np.nan, np.nan])

    (low, high), undefined = bootstrap(statistic, 4)
    assert low < 3 < high
    assert np.isnan(undefined).all()


def test_prediction_intervals_shrink_to_the_confidence_interval_with_more_images() -> None:
    now, soon, later = wilson(90, 100), predict_rate(90, 100, 100), predict_rate(90, 100, 100_000)
    assert soon.low < later.low == pytest.approx(now.low, abs=0.01)
    assert soon.high > later.high == pytest.approx(now.high, abs=0.01)
    assert predict_rate(90, 100, 100) == tuple(betabinom(100, 90.5, 10.5).ppf([0.025, 0.975]) / 100)
    values = np.random.default_rng(0).random(50)
    spread = [np.subtract(*predict_mean(values, n)) for n in (1, 50, 10_000)]
    assert spread[0] < spread[1] < spread[2] < 0
    assert predict_mean(np.array([0.5]), 3) == (0.5, 0.5)
