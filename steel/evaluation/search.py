"""The joint search for an operating point, exact on its grid.

Given the gate, the classes decide alone. So what each image adds at every pixel threshold, smallest spot and smallest
area goes to the cell of its gate and label bin, and running sums over the cells tell what every combination does: all
of them together cost about as much as judging a few one by one.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from steel.decision.point import OperatingPoint
from steel.decision.tuning import Aim
from steel.evaluation import calibration
from steel.evaluation.calibration import Calibration
from steel.evaluation.evidence import Evidence
from steel.intervals import effective_size, wilson

Array = NDArray[np.float64]

# Thresholds of the gate and of a label that are tried at the most, where masks are to be chosen too, and steps in which
# false alarms are spent.
_MOST_GATES, _MOST_LABELS, _MOST_STEPS = 32, 64, 500


class Outcome(NamedTuple):
    """What an operating point does to n images.

    Attributes:
        passed: bool `(n,)`, the gate lets the image through.
        called: bool `(n, C)`, a mask is drawn.
        found: bool `(n, C)`, the class is there and at least one of its pixels is outlined.
        dice: `(n, C)`, 1 where there is neither truth nor mask.
    """

    passed: NDArray[np.bool_]
    called: NDArray[np.bool_]
    found: NDArray[np.bool_]
    dice: Array


def calibrated(evidence: Evidence, point: OperatingPoint) -> NDArray[np.float32]:
    """The class probabilities `(n, C)` as a point calibrates them."""
    curves = zip(point.temperature, point.curve, evidence.classes.T, strict=True)
    return np.stack([Calibration(temperature, curve)(column) for temperature, curve, column in curves], axis=1)


def judge(evidence: Evidence, point: OperatingPoint) -> Outcome:
    """What a point does, from counts alone; `Inspector.decide` does the same to pixels.

    Args:
        evidence: Its grid holds the point's pixel thresholds and smallest spots.
        point: The point.
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
    """Whether a class that is called is drawn, and found, and its Dice: each `(n, T, S, A)`."""
    area, predicted, hits = (a[:, c, :, :, None] for a in (evidence.areas, evidence.predicted, evidence.hits))
    drawn = (area >= np.array(areas)) & (predicted > 0)
    pixels = predicted + evidence.truth[:, c, None, None, None]
    return drawn, drawn & (hits > 0), np.broadcast_to(2 * hits / np.maximum(pixels, 1), drawn.shape)


class _Sums(NamedTuple):
    """What one class adds over all images: each `(G, L, K)`, for gates, label thresholds and choices of the rest."""

    found: Array
    dice: Array  # of the images that have the class
    alarms: Array  # on all images that do not have it
    clean_alarms: Array  # on clean images


def _sum_up(
    evidence: Evidence, c: int, gate_bins: NDArray[np.int64], label_bins: NDArray[np.int64], shape: tuple[int, int]
) -> _Sums:
    n = len(gate_bins)
    all_drawn, all_found, all_dice = _draw(evidence, c, evidence.grid.area)
    drawn, found, dice = all_drawn.reshape(n, -1), all_found.reshape(n, -1), all_dice.reshape(n, -1)
    present, clean = evidence.labels[:, c, None], evidence.clean[:, None]

    def add(values: NDArray[np.bool_] | Array) -> Array:
        cells = np.zeros((*shape, values.shape[1]))
        np.add.at(cells, (gate_bins, label_bins), values.astype(float))
        running: Array = cells[::-1, ::-1].cumsum(axis=0).cumsum(axis=1)[::-1, ::-1]
        return running

    return _Sums(add(found & present), add(dice * (drawn & present)), add(drawn & ~present), add(drawn & clean))


def list_thresholds(scores: NDArray[np.float32], labels: NDArray[np.bool_], most: int) -> NDArray[np.float32]:
    """0 and thresholds between the scores that occur; where these are too many, such as divide positives and all."""
    distinct = np.unique(scores)
    between = (distinct[1:] + distinct[:-1]) / 2
    if len(between) > most:
        quantiles = np.linspace(0, 1, most // 2)
        wanted = [np.quantile(some, quantiles) for some in (scores[labels], scores) if len(some)]
        between = between[np.unique(np.searchsorted(between, np.concatenate(wanted)).clip(0, len(between) - 1))]
    return np.unique(np.concatenate([np.zeros(1, np.float32), between]))


def choose(evidence: Evidence, aim: Aim) -> OperatingPoint:
    """The best point of the grid for an aim; equally good ones are told apart by Dice on defects, then by the gate.

    Args:
        evidence: Of the images to choose by.
        aim: What to choose for.
    """
    grid, num_classes = evidence.grid, evidence.labels.shape[1]
    fits = [
        calibration.fit(evidence.classes[known, c], evidence.labels[known, c], evidence.groups[known])
        for c, known in enumerate(evidence.known.T)
    ]
    classes = np.stack([fit(column) for fit, column in zip(fits, evidence.classes.T, strict=True)], axis=1)
    gate = classes.max(axis=1)
    gates = list_thresholds(gate, evidence.labels.max(axis=1), _MOST_GATES)
    if aim.name == "cost":
        gates = gates[:1]
    gate_bins = np.searchsorted(gates, gate, side="right") - 1
    all_labels, all_sums = [], []
    for c in range(num_classes):
        if aim.name == "cost":
            # Of calibrated probabilities Bayes' rule knows the threshold; searching for it as well follows chance: on
            # the scores of a published network that cost 4 to 7 % more on the images left out.
            bayes = aim.alarm_cost[c] / (aim.alarm_cost[c] + aim.miss_cost[c])
            labels = np.array([0, bayes], np.float32)
        else:
            has_pixels = len(grid.pixel) * len(grid.spot) * len(grid.area) > 1
            labels = list_thresholds(classes[:, c], evidence.labels[:, c], _MOST_LABELS if has_pixels else len(gate))
        label_bins = np.searchsorted(labels, classes[:, c], side="right") - 1
        sums = _sum_up(evidence, c, gate_bins, label_bins, (len(gates), len(labels)))
        if aim.name == "cost":
            labels, sums = labels[1:], _Sums(*(array[:, 1:] for array in sums))
        all_labels.append(labels)
        all_sums.append(sums)

    if aim.name == "false_alarms":
        picks = _spend(all_sums, int(aim.share * evidence.clean.sum() + 1e-9))
    else:
        picks = _pick([(_value(evidence, c, aim, sums), sums.dice) for c, sums in enumerate(all_sums)])
    g, choices = picks
    places = [np.unravel_index(choice, sums.found.shape[1:]) for choice, sums in zip(choices, all_sums, strict=True)]
    label = tuple(float(labels[place[0]]) for labels, place in zip(all_labels, places, strict=True))
    shape = len(grid.pixel), len(grid.spot), len(grid.area)
    t, s, a = (indices.tolist() for indices in np.unravel_index([int(place[1]) for place in places], shape))
    return OperatingPoint(
        # No class is called below the lowest label threshold, so a gate there only saves work.
        gate=max(float(gates[g]), min(label)),
        label=label,
        pixel=tuple(grid.pixel[i] for i in t),
        smallest_spot=tuple(grid.spot[i] for i in s),
        smallest_area=tuple(grid.area[i] for i in a),
        temperature=tuple(fit.temperature for fit in fits),
        curve=tuple(fit.curve for fit in fits),
    )


def _value(evidence: Evidence, c: int, aim: Aim, sums: _Sums) -> Array:
    """What each combination is worth for one class; the worths of all classes add up."""
    num_present = int(evidence.labels[:, c].sum())
    value: Array
    match aim.name:
        case "kaggle_dice":
            value = sums.dice - sums.alarms
        case "cost":
            value = -aim.miss_cost[c] * (num_present - sums.found) - aim.alarm_cost[c] * sums.alarms
        case _:
            needed = count_needed(evidence, c, aim)
            lacking = np.maximum(0, (num_present if needed is None else needed) - sums.found)
            # One defect more counts more than all false alarms together.
            value = -sums.alarms - (len(evidence.names) + 1) * lacking
    return value


def count_needed(evidence: Evidence, c: int, aim: Aim) -> int | None:
    """How many defects of a class have to be found so that the recall asked for can be claimed; None: all prove less.

    Images of one group are worth fewer than as many independent ones; how many is judged by how alike the classifier's
    scores of them are.
    """
    present = evidence.labels[:, c]
    n = int(present.sum())
    effective = effective_size(evidence.classes[present, c], evidence.groups[present], aim.confidence) if n else 0.0
    for k in range(n + 1):
        if wilson(k / max(n, 1) * effective, effective, aim.confidence).low >= aim.share:
            return k
    return None


def _pick(classes: list[tuple[Array, Array]]) -> tuple[int, list[int]]:
    """The gate and each class's choice that are worth most together; of those, with the highest Dice and gate."""
    worth = dice = np.zeros(1)
    choices = []
    for value, scores in classes:
        value, scores = (array.reshape(len(array), -1) for array in (value, scores))
        best = _find_best(value, scores)
        choices.append(best)
        rows = np.arange(len(value))
        worth, dice = worth + value[rows, best], dice + scores[rows, best]
    g = len(worth) - 1 - int(_find_best(worth[None, ::-1], dice[None, ::-1])[0])
    return g, [int(choice[g]) for choice in choices]


def _find_best(values: Array, ties: Array) -> NDArray[np.intp]:
    """The place of the highest value in each row, among equal ones of the highest tie."""
    top = values.max(axis=1, keepdims=True)
    # Sums of the same terms in another order differ by rounding.
    near = values >= top - 1e-9 * np.maximum(1, np.abs(top))
    best: NDArray[np.intp] = np.where(near, ties, -np.inf).argmax(axis=1)
    return best


def _spend(classes: list[_Sums], budget: int) -> tuple[int, list[int]]:
    """The gate and each class's choice that find most defects with at most `budget` masks on clean images.

    A knapsack: for every gate, the best of each class at 0, 1, 2, ... alarms, then of the classes together. Masks of
    two classes on one clean image count twice, which errs on the safe side.
    """
    # A budget of thousands is spent in steps.
    step = max(1, -(-budget // _MOST_STEPS))
    best: tuple[float, int, list[int]] | None = None
    for g in range(len(classes[0].found)):
        total, traces = np.zeros(budget // step + 1), []
        for sums in classes:
            # A class called wrongly on a defective image undoes one found. Dice breaks ties: never as much as a defect.
            worth = (sums.found[g] - sums.alarms[g] + sums.clean_alarms[g]).ravel()
            worth += 0.5 * sums.dice[g].ravel() / (1 + sums.dice[g].max()) / len(classes)
            price = np.ceil(sums.clean_alarms[g].ravel() / step).astype(int)
            front, choice = _front(worth, price, len(total))
            sums_of_both = np.full((len(total), len(total)), -np.inf)
            for b in range(len(total)):
                sums_of_both[b, : b + 1] = total[b::-1] + front[: b + 1]
            spent = sums_of_both.argmax(axis=1)
            total = sums_of_both.max(axis=1)
            traces.append((spent, choice))
        if best is None or total[-1] >= best[0] - 1e-9:
            left, choices = len(total) - 1, []
            for spent, choice in reversed(traces):
                choices.append(int(choice[spent[left]]))
                left -= int(spent[left])
            best = float(total[-1]), g, choices[::-1]
    assert best is not None
    return best[1], best[2]


def _front(worth: Array, price: NDArray[np.int64], length: int) -> tuple[Array, NDArray[np.int64]]:
    """The best that can be had for at most 0, 1, 2, ... and which it is."""
    front, choice = np.full(length, -np.inf), np.zeros(length, np.int64)
    affordable = np.flatnonzero(price < length)
    order = affordable[np.argsort(worth[affordable], kind="stable")]
    front[price[order]] = worth[order]  # the last of a price stays, the best
    choice[price[order]] = order
    for b in range(1, length):
        if front[b - 1] >= front[b]:
            front[b], choice[b] = front[b - 1], choice[b - 1]
    return front, choice
