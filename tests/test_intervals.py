"""Intervals against an independent reference, and against what comes in simulations."""

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
def test_wilson_is_scipys(confidence: float) -> None:
    for n in (1, 2, 7, 100, 5000):
        for hits in {0, 1, n // 3, n - 1, n}:
            theirs = binomtest(hits, n).proportion_ci(confidence, method="wilson")
            assert wilson(hits, n, confidence) == pytest.approx((theirs.low, theirs.high), abs=1e-9)
    assert wilson(0, 0) == (0, 1)


def test_what_37_of_37_prove() -> None:
    assert largest_claim(37, 37) == pytest.approx(37 / (37 + 1.959964**2))
    assert round(largest_claim(37, 37), 3) == 0.906


def test_design_effect_counts_what_groups_tell() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(300), 5)
    assert design_effect(np.repeat(rng.random(300), 5), groups) == pytest.approx(5, rel=0.02)  # copies
    assert design_effect(rng.random(1500), groups) < 1.2  # independent after all
    assert design_effect(rng.random(1500), np.arange(1500)) == 1
    assert design_effect(np.ones(1500), groups) == 5  # no variance, so each group is taken as one image
    assert design_effect(np.array([1.0, 0.0]), np.zeros(2, int)) == 2
    alternating = np.tile([0.0, 1.0], 700)
    assert design_effect(alternating, np.repeat(np.arange(700), 2)) == 1  # never more than independent images
    assert effective_size(alternating, np.arange(1400)) == 1400
    assert effective_size(np.ones(12), np.repeat(np.arange(3), 4)) < 3


def draw_groups(rng: np.random.Generator, k: int, size: int, p: float, correlation: float) -> NDArray[np.bool_]:
    """`(k, size)` hits, the rate of each group beta-distributed so that images of one group are this much alike."""
    rates = np.full(k, p)
    if correlation > 0:
        rates = rng.beta(p * (1 / correlation - 1), (1 - p) * (1 / correlation - 1), k)
    return rng.random((k, size)) < rates[:, None]


# Groups, images in each, correlation within them.
GROUPS = [(40, 1, 0.0), (200, 1, 0.0), (20, 5, 0.2), (60, 3, 0.5), (60, 10, 0.1), (200, 6, 0.4)]
RATES = (0.05, 0.2, 0.5, 0.9)


def count_rates(num_tries: int) -> dict[tuple[int, int, float, float], tuple[float, float]]:
    """How often the interval of a rate holds the true one, and the prediction what comes."""
    coverage = {}
    for place, (k, size, correlation) in enumerate(GROUPS):
        groups = np.repeat(np.arange(k), size)
        for p in RATES:
            rng = np.random.default_rng([place, int(100 * p)])
            held, came = [], []
            for _ in range(num_tries):
                hits, new = (draw_groups(rng, k, size, p, correlation).ravel() for _ in range(2))
                low, high = rate(hits, groups)
                held.append(low <= p <= high)
                share = effective_size(hits, groups) / len(hits)
                low, high = predict_rate(int(hits.sum()), len(hits), len(new), effective=share)
                came.append(low - 1e-9 <= new.mean() <= high + 1e-9)
            coverage[k, size, correlation, p] = float(np.mean(held)), float(np.mean(came))
    return coverage


def test_rates_hold_what_they_say() -> None:
    coverage = np.array(list(count_rates(num_tries=80).values()))
    for mean in coverage.mean(axis=0):
        assert 0.93 <= mean <= 0.975
    assert coverage.min() > 0.8


def draw_dice(rng: np.random.Generator, k: int, size: int, correlation: float) -> tuple[Array, Array]:
    """Two sets of `(k * size,)` Dice scores: mostly around 0.7, and a tenth that were missed."""

    def draw() -> Array:
        quality = rng.normal(size=(k, 1)) * np.sqrt(correlation) + rng.normal(size=(k, size)) * np.sqrt(1 - correlation)
        scores = 1 / (1 + np.exp(-0.9 - quality))
        return np.where(quality < -1.28, 0, scores).ravel()

    return draw(), draw()


def test_means_and_ratios_hold_what_they_say() -> None:
    """The bootstrap of a mean and of a ratio of sums, and the prediction of a mean."""
    held: dict[str, list[bool]] = {"mean": [], "ratio": [], "prediction": []}
    rng = np.random.default_rng(0)
    every, _ = draw_dice(rng, 400_000, 1, 0.0)
    true_mean, true_ratio = every.mean(), (every**2).mean() / every.mean()
    for k, size, correlation in ((20, 4, 0.3), (60, 1, 0.0), (100, 5, 0.5)):
        groups = np.repeat(np.arange(k), size)
        for _ in range(100):
            scores, new = draw_dice(rng, k, size, correlation)
            sums = np.array([scores, scores**2])

            def statistic(rows: NDArray[np.int64], sums: Array = sums) -> Array:
                total, squares = sums[:, rows].sum(axis=1)
                return np.array([total / len(rows), squares / total])

            mean, ratio = bootstrap(statistic, len(scores), groups, num_resamples=200)
            held["mean"].append(bool(mean[0] <= true_mean <= mean[1]))
            held["ratio"].append(bool(ratio[0] <= true_ratio <= ratio[1]))
            low, high = predict_mean(scores, len(new), groups)
            held["prediction"].append(low <= new.mean() <= high)
    for name, hits in held.items():
        assert 0.92 <= np.mean(hits) <= 0.98, name  # of 300, so 95 % is seen as 92.5 to 97.5


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


def test_what_is_undefined_stays_so() -> None:
    values = np.array([1.0, np.nan, 3.0, 5.0])

    def statistic(rows: NDArray[np.int64]) -> Array:
        some = values[rows]
        return np.array([np.nanmean(some) if (~np.isnan(some)).any() else np.nan, np.nan])

    (low, high), undefined = bootstrap(statistic, 4)
    assert low < 3 < high
    assert np.isnan(undefined).all()


def test_predictions_are_wider_than_intervals_and_narrow_with_more_images() -> None:
    now, soon, later = wilson(90, 100), predict_rate(90, 100, 100), predict_rate(90, 100, 100_000)
    assert soon.low < later.low == pytest.approx(now.low, abs=0.01)
    assert soon.high > later.high == pytest.approx(now.high, abs=0.01)
    assert predict_rate(90, 100, 100) == tuple(betabinom(100, 90.5, 10.5).ppf([0.025, 0.975]) / 100)
    values = np.random.default_rng(0).random(50)
    spread = [np.subtract(*predict_mean(values, n)) for n in (1, 50, 10_000)]
    assert spread[0] < spread[1] < spread[2] < 0
    assert predict_mean(np.array([0.5]), 3) == (0.5, 0.5)
