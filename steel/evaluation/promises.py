"""What an operating point promises of images to come, and with what certainty."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from steel.decision.tuning import Aim, Promise
from steel.evaluation.calibration import split_folds
from steel.evaluation.evidence import Evidence
from steel.evaluation.search import Outcome, choose, judge
from steel.intervals import Interval, bootstrap, effective_size, predict_mean, predict_rate, wilson

Array = NDArray[np.float64]

_COST = "cost of an image"


def name_classes(classes: Sequence[str]) -> list[str]:
    """Names with their numbers, since two classes may have the same name."""
    return [name if name == str(c + 1) else f"{c + 1} {name}" for c, name in enumerate(classes)]


def measure(
    labels: NDArray[np.bool_],
    clean: NDArray[np.bool_],
    groups: NDArray[np.int64],
    outcome: Outcome,
    aim: Aim,
    classes: Sequence[str],
) -> dict[str, tuple[Array, NDArray[np.int64]]]:
    """The numbers that are promised, each as values whose mean it is, and the groups of the images these belong to.

    Args:
        labels: `(n, C)`, which classes are on an image.
        clean: `(n,)`, the images that have no defect.
        groups: `(n,)`, numbers of the groups.
        outcome: What a point does to the images.
        aim: What it was chosen for; cost is counted where it was that.
        classes: Names of the classes.
    """
    rows = np.nonzero(labels)[0]
    measures = {
        "defects found": (outcome.found[labels], groups[rows]),
        **{
            f"defects found, {name}": (outcome.found[labels[:, c], c], groups[labels[:, c]])
            for c, name in enumerate(name_classes(classes))
        },
        "clean images with a false alarm": (outcome.called[clean].any(axis=1), groups[clean]),
        **{
            f"clean images with a false alarm, {name}": (outcome.called[clean, c], groups[clean])
            for c, name in enumerate(name_classes(classes))
        },
        "Dice on defects": (outcome.dice[labels], groups[rows]),
        "Kaggle Dice": (outcome.dice.mean(axis=1), groups),
    }
    if aim.name == "cost":
        missed, alarms = labels & ~outcome.found, outcome.called & ~labels
        measures[_COST] = (
            missed @ np.array(aim.miss_cost) + alarms @ np.array(aim.alarm_cost),
            groups,
        )
    return measures


def _measure_evidence(
    evidence: Evidence, outcome: Outcome, aim: Aim, classes: Sequence[str]
) -> dict[str, tuple[Array, NDArray[np.int64]]]:
    return measure(evidence.labels, evidence.clean, evidence.groups, outcome, aim, classes)


class _LeftOut(NamedTuple):
    """A number on images that points were not chosen by, from all folds, and how much higher it was on the others."""

    values: Array
    groups: NDArray[np.int64]
    optimism: float


def _cross_fit(evidence: Evidence, aim: Aim, classes: Sequence[str]) -> dict[str, _LeftOut]:
    """Chooses by turns without a fifth of the groups, and measures each point on both parts.

    The difference corrects what came where the point was chosen. The plain mean over the images left out would not do:
    with few defects the folds' points differ from the one chosen by all images, whose promise it is.
    Source: Efron 1983, Estimating the error rate of a prediction rule.
    """
    folds: dict[str, list[tuple[Array, NDArray[np.int64], float]]] = {}
    for rows in split_folds(evidence.groups):
        chosen_by, left = map(evidence.take, rows)
        point = choose(chosen_by, aim)
        seen, unseen = (_measure_evidence(part, judge(part, point), aim, classes) for part in (chosen_by, left))
        for name, (values, groups) in unseen.items():
            if len(values) and len(seen[name][0]):
                gap = seen[name][0].mean() - values.mean()
                folds.setdefault(name, []).append((values, groups, gap * len(values)))
    left_out = {}
    for name, parts in folds.items():
        values, groups = (np.concatenate(arrays) for arrays in list(zip(*parts, strict=True))[:2])
        left_out[name] = _LeftOut(values, groups, float(sum(gap for *_, gap in parts) / len(values)))
    return left_out


def _average(values: Array, rows: NDArray[np.int64]) -> Array:
    return np.array([values[rows].mean()])


def promise(evidence: Evidence, outcome: Outcome, aim: Aim, classes: Sequence[str], num_new: int) -> list[Promise]:
    """What may be expected of new images; see `Promise`."""
    left_out = _cross_fit(evidence, aim, classes)
    promises = []
    for name, (chosen, groups) in _measure_evidence(evidence, outcome, aim, classes).items():
        if len(chosen) == 0:
            everything = Interval(0.0, 1.0)
            promises.append(Promise(name, 0, np.nan, np.nan, everything, everything, 0))
            continue
        unseen = left_out.get(name, _LeftOut(chosen, groups, 0.0))
        m = max(1, round(len(unseen.values) * num_new / len(evidence.names)))
        as_chosen, most = float(chosen.mean()), np.inf if name == _COST else 1.0
        value = float(np.clip(as_chosen - unseen.optimism, 0, most))
        is_rate = np.isin(unseen.values, (0, 1)).all()
        interval, prediction = (_predict_rate if is_rate else _predict_mean)(unseen, value, m)
        # A wide interval of a number near its bound reaches beyond.
        interval, prediction = (Interval(*np.clip(ends, 0, most).tolist()) for ends in (interval, prediction))
        promises.append(Promise(name, len(unseen.values), value, as_chosen, interval, prediction, m))
    return promises


def _predict_rate(unseen: _LeftOut, value: float, num_new: int) -> tuple[Interval, Interval]:
    """Where the true rate lies, and that of new images."""
    n, size = len(unseen.values), effective_size(unseen.values, unseen.groups)
    return wilson(size * value, size), predict_rate(n * value, n, num_new, effective=size / n)


def _predict_mean(unseen: _LeftOut, value: float, num_new: int) -> tuple[Interval, Interval]:
    """Where the true mean lies, and that of new images."""
    # The spread of what was left out, around what is expected.
    values = unseen.values + (value - unseen.values.mean())
    ends = bootstrap(partial(_average, values), len(values), unseen.groups)[0]
    # Of a single group nothing is known.
    interval = Interval(*np.where(np.isnan(ends), (0.0, np.inf), ends).tolist())
    return interval, predict_mean(values, num_new, unseen.groups)


def tabulate_promises(promises: Sequence[Promise]) -> pd.DataFrame:
    """What is promised, a row for each number."""
    return pd.DataFrame(
        [
            {
                "": row.name,
                "of": row.num,
                "expected": f"{row.value:.4f}",
                "95 % interval": f"{row.interval.low:.4f} to {row.interval.high:.4f}",
                "on new images": f"{row.prediction.low:.4f} to {row.prediction.high:.4f} (of {row.num_new})",
                "as chosen": f"{row.as_chosen:.4f}",
            }
            for row in promises
        ]
    )
