"""Expected performance of an operating point on new images, with confidence and prediction intervals."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from steel.decision.tuning import Aim, Promise
from steel.evaluation.calibration import split_folds
from steel.evaluation.evidence import Evidence
from steel.evaluation.search import Outcome, choose, judge
from steel.intervals import (
    Interval,
    bootstrap,
    design_effect,
    effective_size,
    predict_mean,
    predict_rate,
    wilson,
)
from steel.progress import track
from steel.wording import name_classes

Array = NDArray[np.float64]
Groups = NDArray[np.int64]

_COST = "cost of an image"


def list_measures(
    labels: NDArray[np.bool_],
    clean: NDArray[np.bool_],
    groups: Groups,
    outcome: Outcome,
    aim: Aim,
    classes: Sequence[str],
) -> dict[str, tuple[Array, Groups]]:
    """Return every measure that is predicted for new images: the values to average, and the group of each value.

    Args:
        labels: `(n, C)`, which classes are on an image.
        clean: `(n,)`, which images have no defect.
        groups: `(n,)`, group of each image.
        outcome: Decisions of the operating point on the images.
        aim: Objective of the operating point; the cost is measured if the objective is the cost.
        classes: Names of the C classes.
    """
    rows = np.nonzero(labels)[0]
    found, alarms = "defects found", "clean images with a false alarm"
    measures: dict[str, tuple[Any, Groups]] = {found: (outcome.found[labels], groups[rows])}
    for c, name in enumerate(name_classes(classes)):
        measures[f"{found}, {name}"] = outcome.found[labels[:, c], c], groups[labels[:, c]]
    measures[alarms] = outcome.called[clean].any(axis=1), groups[clean]
    for c, name in enumerate(name_classes(classes)):
        measures[f"{alarms}, {name}"] = outcome.called[clean, c], groups[clean]
    measures["Dice on defects"] = outcome.dice[labels], groups[rows]
    measures["Kaggle Dice"] = outcome.dice.mean(axis=1), groups
    if aim.name == "cost":
        missed, wrong = labels & ~outcome.found, outcome.called & ~labels
        measures[_COST] = missed @ np.array(aim.miss_cost) + wrong @ np.array(aim.alarm_cost), groups
    return measures


class _HeldOut(NamedTuple):
    """A measure on the held-out images of all folds.

    Attributes:
        values: `(n,)`, its values.
        groups: `(n,)`, the group of each value.
        optimism: How much higher it was on the images that the points of the folds were chosen on.
        variance: Variance of the optimism, since another sample would have led to other points.
    """

    values: Array
    groups: Groups
    optimism: float
    variance: float


def _cross_validate(evidence: Evidence, outcome: Outcome, aim: Aim, classes: Sequence[str]) -> dict[str, _HeldOut]:
    """Choose a point on each fold's training part, and compare its measures there with those on the held-out part.

    The difference corrects the measures of the point chosen on all images. The mean over the held-out images would be
    biased: with few defects, the points of the folds differ from that point. The images on which they differ tell how
    unsure the difference is.
    Source: Efron 1983, Estimating the error rate of a prediction rule.
    """
    folds: dict[str, list[tuple[Array, Groups, Array, float]]] = {}
    splits = list(split_folds(evidence.groups))
    for rows in track(splits, "estimating promises", len(splits)):
        train, held_out = map(evidence.take, rows)
        point = choose(train, aim)
        final = outcome.take(rows[1])
        seen, unseen, chosen = (
            list_measures(part.labels, part.clean, part.groups, decisions, aim, classes)
            for part, decisions in ((train, judge(train, point)), (held_out, judge(held_out, point)), (held_out, final))
        )
        for name, (values, groups) in unseen.items():
            if len(values) and len(seen[name][0]):
                gap = seen[name][0].mean() - values.mean()
                changes = values.astype(float) - chosen[name][0]
                folds.setdefault(name, []).append((values, groups, changes, gap * len(values)))
    results = {}
    for name, parts in folds.items():
        values, groups, changes = (np.concatenate(arrays) for arrays in list(zip(*parts, strict=True))[:3])
        variance = float(changes.var()) * design_effect(changes, groups) / len(changes)
        results[name] = _HeldOut(values, groups, float(sum(gap for *_, gap in parts) / len(values)), variance)
    return results


def promise(evidence: Evidence, outcome: Outcome, aim: Aim, classes: Sequence[str], num_new: int) -> list[Promise]:
    """Return the estimate of every measure, with confidence intervals and prediction intervals for `num_new` images."""
    held_out = _cross_validate(evidence, outcome, aim, classes)
    promises = []
    measures = list_measures(evidence.labels, evidence.clean, evidence.groups, outcome, aim, classes)
    for name, (chosen, groups) in measures.items():
        if len(chosen) == 0:
            unknown = Interval(0.0, 1.0)
            promises.append(Promise(name, 0, np.nan, np.nan, unknown, unknown, 0))
            continue
        unseen = held_out.get(name, _HeldOut(chosen, groups, 0.0, 0.0))
        m = max(1, round(len(unseen.values) * num_new / len(evidence.names)))
        as_chosen, largest = float(chosen.mean()), np.inf if name == _COST else 1.0
        value = float(np.clip(as_chosen - unseen.optimism, 0, largest))
        is_rate = np.isin(unseen.values, (0, 1)).all()
        interval, prediction = (_predict_rate if is_rate else _predict_mean)(unseen, value, m)
        if name == _COST:
            prediction = _skew(prediction, value)
        # An interval around a value near 0 or its maximum can extend beyond it.
        interval, prediction = (Interval(*np.clip(ends, 0, largest).tolist()) for ends in (interval, prediction))
        promises.append(Promise(name, len(unseen.values), value, as_chosen, interval, prediction, m))
    return promises


def _predict_rate(unseen: _HeldOut, value: float, num_new: int) -> tuple[Interval, Interval]:
    """Return the confidence interval of a rate, and its prediction interval on new images."""
    n, size = len(unseen.values), effective_size(unseen.values, unseen.groups)
    smoothed = (n * value + 1) / (n + 2)
    variance = smoothed * (1 - smoothed) / size
    # The unsure optimism counts as a smaller sample, but not the new images.
    known = size * variance / (variance + unseen.variance)
    prediction = predict_rate(n * value, n, max(1, round(num_new * size / known)), effective=known / n)
    return wilson(known * value, known), prediction


def _predict_mean(unseen: _HeldOut, value: float, num_new: int) -> tuple[Interval, Interval]:
    """Return the confidence interval of a mean, and its prediction interval on new images."""
    # The spread of the held-out values, centred at the estimate.
    values = unseen.values + (value - unseen.values.mean())
    ends = bootstrap(lambda rows: np.array([values[rows].mean()]), len(values), unseen.groups)[0]
    # The bootstrap gives NaN for a single group; the interval is then unbounded.
    interval = Interval(*np.where(np.isnan(ends), (0.0, np.inf), ends).tolist())
    n = len(values)
    variance = float(values.var()) * design_effect(values, unseen.groups) / n
    # The optimism adds its variance to that of the mean, and to that of the means of both samples.
    return (
        _stretch(interval, value, 1 + unseen.variance / max(variance, 1e-12)),
        _stretch(
            predict_mean(values, num_new, unseen.groups),
            value,
            1 + unseen.variance / max(variance * (1 + n / num_new), 1e-12),
        ),
    )


def _stretch(interval: Interval, value: float, factor: float) -> Interval:
    """Return an interval around a value, for a variance that is `factor` times as large."""
    low, high = (value + (end - value) * float(np.sqrt(factor)) for end in interval)
    return Interval(low, high)


def _skew(interval: Interval, value: float) -> Interval:
    """Return the interval of the same width that is symmetric around `value` on the scale of the square root.

    Costs are skewed, since a few images have several misses. The symmetric interval is then exceeded too often
    (simulated in `benchmarks.tuning`).
    """
    half = (interval.high - interval.low) / 2
    if not 0 < half < 2 * value:  # no spread, or no low end on that scale
        return interval
    moved = half**2 / (4 * value)
    return Interval(interval.low + moved, interval.high + moved)


def tabulate_promises(promises: Sequence[Promise]) -> list[tuple[str, ...]]:
    """Return the estimates as text, a header and one row for each measure, narrow enough for a terminal.

    The measures of the classes are below that of all classes, indented. The value as chosen is left out.
    """
    rows: list[tuple[str, ...]] = [("", "of", "expected, 95 % interval", "on new images")]
    for row in promises:
        measure_of_all, _, name = row.name.partition(", ")
        rows.append((f"  {name}" if name else measure_of_all, f"{row.num:,}", *row.describe()))
    return rows
