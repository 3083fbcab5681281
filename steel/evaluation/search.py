"""Joint search for an operating point, exact on its grid.

For a given gate the classes are independent. Each image contributes, for every pixel threshold, smallest spot and
smallest area, to the cell of its gate and label bins. Cumulative sums over the cells then evaluate every combination,
at about the cost of evaluating a few combinations one by one.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from steel.decision.point import OperatingPoint
from steel.decision.tuning import Aim
from steel.evaluation import calibration
from steel.evaluation.calibration import Calibration
from steel.evaluation.claims import count_allowed, count_needed
from steel.evaluation.evidence import Evidence

Array = NDArray[np.float64]
Thresholds = NDArray[np.float32]

# Most gates and label thresholds to try together with a grid of masks, and most steps of a budget of false alarms.
_MAX_GATES, _MAX_LABELS, _MAX_STEPS = 32, 64, 500


class Outcome(NamedTuple):
    """Decisions of an operating point on n images, compared with the labels.

    Attributes:
        passed: bool `(n,)`, the gate passes the image on to the segmenter.
        called: bool `(n, C)`, the class is reported with a mask.
        found: bool `(n, C)`, the mask covers at least one pixel of a true defect.
        dice: `(n, C)`, 1 if both truth and mask are empty.
    """

    passed: NDArray[np.bool_]
    called: NDArray[np.bool_]
    found: NDArray[np.bool_]
    dice: Array

    def take(self, rows: NDArray[np.int64]) -> "Outcome":
        """Return the decisions on some of the images, by position."""
        return Outcome(self.passed[rows], self.called[rows], self.found[rows], self.dice[rows])


def calibrated(evidence: Evidence, point: OperatingPoint) -> NDArray[np.float32]:
    """Return the class probabilities `(n, C)` after the calibration of an operating point."""
    fits = map(Calibration, point.temperature, point.curve, point.shift)
    return np.stack([fit(column) for fit, column in zip(fits, evidence.classes.T, strict=True)], axis=1)


def judge(evidence: Evidence, point: OperatingPoint) -> Outcome:
    """Evaluate an operating point from counts alone; `Inspector.decide` makes the same decisions from pixels.

    The grid of the evidence must contain the pixel thresholds and smallest spots of the point.
    """
    classes = calibrated(evidence, point)
    passed = classes.max(axis=1) >= np.float32(point.gate)
    called, found = np.zeros((2, *evidence.labels.shape), bool)
    dice = (evidence.truth == 0).astype(float)
    for c in range(classes.shape[1]):
        t, s = evidence.grid.pixel.index(point.pixel[c]), evidence.grid.spot.index(point.smallest_spot[c])
        allowed = passed & (classes[:, c] >= np.float32(point.label[c]))
        drawn, is_found, scores = (array[:, t, s, 0] for array in _draw(evidence, c, (point.smallest_area[c],)))
        called[:, c], found[:, c] = allowed & drawn, allowed & is_found
        dice[called[:, c], c] = scores[called[:, c]]
    return Outcome(passed, called, found, dice)


def _draw(evidence: Evidence, c: int, areas: tuple[int, ...]) -> tuple[NDArray[np.bool_], NDArray[np.bool_], Array]:
    """Return, if class c is called: whether a mask is drawn, whether it hits a defect, and its Dice; `(n, T, S, A)`."""
    area, predicted, hits = (a[:, c, :, :, None] for a in (evidence.areas, evidence.predicted, evidence.hits))
    drawn = (area >= np.array(areas)) & (predicted > 0)
    pixels = predicted + evidence.truth[:, c, None, None, None]
    return drawn, drawn & (hits > 0), np.broadcast_to(2 * hits / np.maximum(pixels, 1), drawn.shape)


class _Sums(NamedTuple):
    """Sums of one class over all images, each `(G, L, K)`: gates, label thresholds, other choices."""

    found: Array
    dice: Array  # over the images with the class
    alarms: Array  # over the images without the class
    clean_alarms: Array  # over the clean images


def list_thresholds(scores: NDArray[np.float32], labels: NDArray[np.bool_], most: int) -> Thresholds:
    """Return 0 and the midpoints between distinct scores `(n,)`, at most `most` of them.

    If there are more, half are quantiles of the scores of positives (`labels`, bool `(n,)`) and half of all scores.
    """
    distinct = np.unique(scores)
    between = (distinct[1:] + distinct[:-1]) / 2
    if len(between) > most:
        quantiles = np.linspace(0, 1, most // 2)
        wanted = [np.quantile(values, quantiles) for values in (scores[labels], scores) if len(values)]
        between = between[np.unique(np.searchsorted(between, np.concatenate(wanted)).clip(0, len(between) - 1))]
    return np.unique(np.concatenate([np.zeros(1, np.float32), between]))


def choose(evidence: Evidence, aim: Aim) -> OperatingPoint:
    """Return the best operating point of the grid for an aim; ties are broken by Dice on defects, then by the gate."""
    shifts = evidence.logit_shift or (0.0,) * evidence.labels.shape[1]
    fits = [
        calibration.fit(evidence.classes[known, c], evidence.labels[known, c], evidence.groups[known], shift)
        for c, (known, shift) in enumerate(zip(evidence.known.T, shifts, strict=True))
    ]
    classes = np.stack([fit(column) for fit, column in zip(fits, evidence.classes.T, strict=True)], axis=1)
    gate = classes.max(axis=1)
    # With costs, the label thresholds alone decide.
    gates = list_thresholds(gate, evidence.labels.max(axis=1), _MAX_GATES)[: 1 if aim.name == "cost" else None]
    gate_bins = np.searchsorted(gates, gate, side="right") - 1
    labels, sums = zip(
        *(_sum_up_class(evidence, c, aim, classes[:, c], gate_bins, len(gates)) for c in range(len(fits))), strict=True
    )
    if aim.name == "false_alarms":
        g, choices = _spend(sums, count_allowed(evidence, aim) or 0)
    else:
        g, choices = _pick([(_value(evidence, c, aim, s), s.dice) for c, s in enumerate(sums)])

    places = [np.unravel_index(choice, s.found.shape[1:]) for choice, s in zip(choices, sums, strict=True)]
    label = tuple(float(thresholds[place]) for thresholds, place in zip(labels, places, strict=True))
    grid = evidence.grid
    shape = len(grid.pixel), len(grid.spot), len(grid.area)
    pixel, spot, area = (indices.tolist() for indices in np.unravel_index([int(place[1]) for place in places], shape))
    return OperatingPoint(
        # No class is called below the lowest label threshold, so a gate at that level only saves computation.
        gate=max(float(gates[g]), min(label)),
        label=label,
        pixel=tuple(grid.pixel[i] for i in pixel),
        smallest_spot=tuple(grid.spot[i] for i in spot),
        smallest_area=tuple(grid.area[i] for i in area),
        temperature=tuple(fit.temperature for fit in fits),
        curve=tuple(fit.curve for fit in fits),
        shift=tuple(fit.shift for fit in fits),
    )


def _sum_up_class(
    evidence: Evidence, c: int, aim: Aim, scores: NDArray[np.float32], gate_bins: NDArray[np.int64], num_gates: int
) -> tuple[Thresholds, _Sums]:
    """Return the candidate label thresholds of a class `(L, K)`, and its sums at each."""
    drawn, found, dice = _draw(evidence, c, evidence.grid.area)
    n = len(scores)
    drawn, found, dice = drawn.reshape(n, -1), found.reshape(n, -1), dice.reshape(n, -1)
    present, clean = evidence.labels[:, c, None], evidence.clean[:, None]
    flags = found & present, drawn & present, drawn & ~present, drawn & clean
    values = [flag.astype(float) for flag in flags]
    values[1] *= dice
    if aim.name == "cost":
        thresholds = _find_bayes_thresholds(scores, evidence.labels[:, c], drawn, found, aim, c)
        called = scores[:, None] >= thresholds[:, None]
        return thresholds, _Sums(*((called * value).sum(axis=1)[None] for value in values))
    limit = _MAX_LABELS if drawn.shape[1] > 1 else len(scores)
    thresholds = list_thresholds(scores, evidence.labels[:, c], limit)
    label_bins = np.searchsorted(thresholds, scores, side="right") - 1

    def add(rows: Array) -> Array:
        cells = np.zeros((num_gates, len(thresholds), rows.shape[1]))
        np.add.at(cells, (gate_bins, label_bins), rows)
        return cells[::-1, ::-1].cumsum(axis=0).cumsum(axis=1)[::-1, ::-1]

    return np.broadcast_to(thresholds[:, None], (len(thresholds), drawn.shape[1])), _Sums(*map(add, values))


def _find_bayes_thresholds(
    scores: NDArray[np.float32],
    present: NDArray[np.bool_],
    drawn: NDArray[np.bool_],
    found: NDArray[np.bool_],
    aim: Aim,
    c: int,
) -> Thresholds:
    """Return two label thresholds of class c for each of K ways to draw masks, `(2, K)`.

    The first is the Bayes rule of the probability alone. The second is the Bayes rule for what a call leads to: the
    segmenter draws a mask on some of the images without the class, and finds some of the defects. Both rates are
    estimated mainly from images whose label is uncertain. Where these are few, or every call draws a mask, it equals
    the first. Two rates overfit less than a search over all thresholds. The first threshold guards against
    probabilities that are too high although they were calibrated.

    Args:
        scores: Calibrated probabilities `(n,)`.
        present: `(n,)`, the class is on the image.
        drawn: `(n, K)`, a mask is drawn if the class is called.
        found: `(n, K)`, this mask hits a defect.
        aim: The aim, with costs.
        c: The class.
    """
    weight = np.sqrt(scores.astype(float) * (1 - scores))  # the standard deviation of the label
    weight /= max(weight.max(), 1e-12)

    def find_rate(rows: NDArray[np.bool_], hits: NDArray[np.bool_]) -> Array:
        # One pseudo-image with a mask is added.
        rate: Array = (weight[rows] @ hits[rows] + 1) / (weight[rows].sum() + 1)
        return rate

    alarm = aim.alarm_cost[c] * find_rate(~present, drawn)
    miss = aim.miss_cost[c] * find_rate(present, found)
    alone = np.full(len(alarm), aim.alarm_cost[c] / (aim.alarm_cost[c] + aim.miss_cost[c]))
    thresholds: Thresholds = np.stack([alone, alarm / (alarm + miss)]).astype(np.float32)
    return thresholds


def _value(evidence: Evidence, c: int, aim: Aim, sums: _Sums) -> Array:
    """Return the value of each combination for one class; the values of all classes add up."""
    num_present = int(evidence.labels[:, c].sum())
    match aim.name:
        case "kaggle_dice":
            return sums.dice - sums.alarms
        case "cost":
            return -aim.miss_cost[c] * (num_present - sums.found) - aim.alarm_cost[c] * sums.alarms
    needed = count_needed(evidence, c, aim)
    lacking: Array = np.maximum(0, (num_present if needed is None else needed) - sums.found)
    # One more defect outweighs all false alarms together.
    return -sums.alarms - (len(evidence.names) + 1) * lacking


def _pick(classes: list[tuple[Array, Array]]) -> tuple[int, list[int]]:
    """Return the gate and the choice of each class with the highest total value, then Dice, then gate."""
    total = dice = np.zeros(1)
    choices = []
    for value, scores in classes:
        value, scores = (array.reshape(len(array), -1) for array in (value, scores))
        best = _find_best(value, scores)
        choices.append(best)
        rows = np.arange(len(value))
        total, dice = total + value[rows, best], dice + scores[rows, best]
    g = len(total) - 1 - int(_find_best(total[None, ::-1], dice[None, ::-1])[0])
    return g, [int(choice[g]) for choice in choices]


def _find_best(values: Array, ties: Array) -> NDArray[np.intp]:
    """Return the column of the highest value in each row; ties are broken by the highest value of `ties`."""
    top = values.max(axis=1, keepdims=True)
    # Sums of the same terms in another order differ by rounding.
    near = values >= top - 1e-9 * np.maximum(1, np.abs(top))
    best: NDArray[np.intp] = np.where(near, ties, -np.inf).argmax(axis=1)
    return best


def _spend(classes: tuple[_Sums, ...], budget: int) -> tuple[int, list[int]]:
    """Return the gate and the choice of each class that find most defects with at most `budget` masks on clean images.

    This is a knapsack problem: for every gate, first the best choice of each class for each number of false alarms,
    then the best split of the budget among the classes. Masks of two classes on one clean image count twice, which
    errs on the safe side.
    """
    # A large budget is spent in steps of several false alarms.
    step = max(1, -(-budget // _MAX_STEPS))
    most = 1 + sum(sums.dice.max() for sums in classes)
    best: tuple[float, int, list[int]] | None = None
    for g in range(len(classes[0].found)):
        total, traces = np.zeros(budget // step + 1), []
        for sums in classes:
            # Dice and then fewer masks of absent classes break ties: together they count less than a defect.
            worth = (sums.found[g] + (sums.dice[g] - 1e-6 * sums.alarms[g]) / most).ravel()
            price = np.ceil(sums.clean_alarms[g].ravel() / step).astype(int)
            front, choice = _find_front(worth, price, len(total))
            joint = np.full((len(total), len(total)), -np.inf)
            for b in range(len(total)):
                joint[b, : b + 1] = total[b::-1] + front[: b + 1]
            total = joint.max(axis=1)
            traces.append((joint.argmax(axis=1), choice))
        if best is None or total[-1] >= best[0] - 1e-9:
            left, choices = len(total) - 1, []
            for spent, choice in reversed(traces):
                choices.append(int(choice[spent[left]]))
                left -= int(spent[left])
            best = float(total[-1]), g, choices[::-1]
    assert best is not None
    return best[1], best[2]


def _find_front(worth: Array, price: NDArray[np.int64], length: int) -> tuple[Array, NDArray[np.int64]]:
    """Return the highest worth at a price of at most 0, 1, 2, ..., and the choice that reaches it."""
    front, choice = np.full(length, -np.inf), np.zeros(length, np.int64)
    affordable = np.flatnonzero(price < length)
    order = affordable[np.argsort(worth[affordable], kind="stable")]
    front[price[order]] = worth[order]  # for equal prices the last assignment, the highest worth, remains
    choice[price[order]] = order
    for b in range(1, length):
        if front[b - 1] >= front[b]:
            front[b], choice[b] = front[b - 1], choice[b - 1]
    return front, choice
