"""Intervals, compared with SciPy and with their coverage in simulations."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import betabinom, binomtest

from steel.intervals import (
    bootstrap,
    design_effect,
    effective_size,
    largest_claim,
    predict_mean,
    predict_rate,
    rate,
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


def test_largest_claim_of_37_hits_out_of_37() -> None:
    assert largest_claim(37, 37) == pytest.approx(37 / (37 + 1.959964**2))
    assert round(largest_claim(37, 37), 3) == 0.906


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
    assert effective_size(np.ones(12), np.repeat(np.arange(3), 4)) < 3


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
        assert 0.93 <= mean <= 0.975
    assert coverage.min() > 0.8


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
    for counts in drawn:
        assert len(set(counts[:3])) == len(set(counts[3:5])) == 1
        assert counts[0] + counts[3] + counts[5] == 3


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
