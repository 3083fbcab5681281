"""Drift detection: compares recent images with those that the operating point was chosen on.

`steel tune` builds the reference, and `steel export` stores it in the exported file. Four image measures and the logits
of the class probabilities are watched. The logits show what the network sees, at no extra cost.

A window of images is compared once, when it is full, so `level` is the rate of false warnings per window over all
quantities together. The rate holds if windows vary like the groups of the reference. If the reference does not name the
coils, ordinary differences between coils look like drift.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from steel.decision.measures import MEASURES, Array, Counts, compare, count_at_most, join, measure
from steel.decision.plain import from_plain, to_plain

WINDOW, LEVEL = 200, 0.01  # images of a window, and rate of windows with a false warning
# Below these, the limits would depend on chance.
FEWEST_IMAGES, FEWEST_GROUPS = 50, 20

_NUM_CUTS = 50
_NUM_WINDOWS = 3000

# For each measure: lower, higher, and the remedy.
_WORDS = {
    "brightness": ("darker", "brighter", "check lamp, lens and exposure"),
    "contrast": ("lower in contrast", "higher in contrast", "check lamp and lens"),
    "margin": ("filled more by the strip", "filled less by the strip", "check whether camera or strip have moved"),
    "sharpness": ("less sharp", "sharper or noisier", "clean the lens and check focus and gain"),
}


@dataclass(frozen=True)
class Sketch:
    """Distribution of one quantity in the reference.

    Attributes:
        median: Median of the reference images.
        limit: The highest value of `compare` over all cuts that a full window can have without a warning.
        cuts: Q increasing values, with about one image in fifty between two of them.
        at_most: For each cut, the number of reference images that do not exceed it.
    """

    median: float
    limit: float
    cuts: tuple[float, ...]
    at_most: tuple[int, ...]


@dataclass(frozen=True)
class Reference:
    """Distribution of images without drift.

    Attributes:
        num_images: Number of reference images.
        window: Number of images in a window.
        level: Share of windows without drift that cause a warning.
        sketches: One for each of `MEASURES`, then one for the logit of each of the C class probabilities.
    """

    num_images: int
    window: int
    level: float
    sketches: tuple[Sketch, ...]

    def to_dict(self) -> dict[str, Any]:
        """Convert to JSON and YAML types."""
        return dict(to_plain(self))

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "Reference":
        """Rebuild from JSON or YAML types; see `from_plain`. Raises ValueError if a sketch is inconsistent."""
        reference = from_plain(cls, plain)
        for sketch in reference.sketches:
            counts = (0, *sketch.at_most, reference.num_images)
            is_increasing = np.all(np.diff(sketch.cuts) > 0) and np.all(np.diff(counts) >= 0)
            if not is_increasing or len(sketch.cuts) != len(sketch.at_most) or np.isnan(sketch.limit):
                raise ValueError("the cuts of a reference must increase, each with a count that does not decrease")
        return reference


def build_reference(
    measured: Array, class_probabilities: NDArray[np.floating[Any]], groups: NDArray[np.int64]
) -> Reference | None:
    """Summarise images without drift, and find the limits for windows of such images by simulation.

    The limit of each quantity is a multiple of the value that one window in twenty exceeds. The multiple is the same
    for all, chosen so that `LEVEL` of all windows exceed at least one limit.
    Source: Westfall and Young 1993, Resampling-based multiple testing.

    Args:
        measured: `(n, 4)`, from `measure`. Images of a group must be in the order in which they were taken.
        class_probabilities: `(n, C)`, calibrated, as in `Inspection`.
        groups: `(n,)`, group numbers.

    Returns:
        The reference; None if there are too few images or groups to tell drift from chance.
    """
    n = len(groups)
    if n < FEWEST_IMAGES or len(np.unique(groups)) < FEWEST_GROUPS:
        return None
    values = join(measured, class_probabilities)
    shares = (np.arange(_NUM_CUTS) + 0.5) / _NUM_CUTS
    quantiles = np.quantile(values, shares, axis=0, method="inverted_cdf")
    cuts = [np.unique([_shorten(cut) for cut in column]) for column in quantiles.T]
    found = _simulate(values, cuts, groups)
    # A quantity that never varies needs a limit too: 1.96.
    scales = np.maximum(np.quantile(found, 0.95, axis=0), 1.96)
    multiple = np.quantile((found / scales).max(axis=1), 1 - LEVEL, method="higher")
    sketches = [
        Sketch(
            _shorten(np.median(column)),
            round(float(scale * multiple), 3),
            tuple(column_cuts.tolist()),
            tuple(count_at_most(column, column_cuts).tolist()),
        )
        for column, column_cuts, scale in zip(values.T, cuts, scales, strict=True)
    ]
    return Reference(n, WINDOW, LEVEL, tuple(sketches))


def _shorten(value: float) -> float:
    """Round to four digits, to keep the file small."""
    return float(f"{value:.4g}")


def _simulate(values: Array, cuts: Sequence[Array], groups: NDArray[np.int64]) -> Array:
    """Draw windows without drift, and return the maximum of `compare` per quantity, `(_NUM_WINDOWS, K)`."""
    n, num_quantities = values.shape
    most = max(map(len, cuts))
    # The first cut that each value does not exceed; the bins of all quantities lie side by side in one row.
    bins = np.stack([np.searchsorted(some, column) for some, column in zip(cuts, values.T, strict=True)], axis=1)
    bins += np.arange(num_quantities) * (most + 1)

    def count(rows: NDArray[np.int64]) -> Counts:
        counted = np.bincount(bins[rows].ravel(), minlength=num_quantities * (most + 1))
        counts: Counts = counted.reshape(num_quantities, most + 1).cumsum(axis=1)[:, :most]
        return counts

    _, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    members = np.split(np.argsort(group, kind="stable"), np.cumsum(sizes)[:-1])
    rng = np.random.default_rng(0)
    reference = count(np.arange(n))
    found = np.empty((_NUM_WINDOWS, num_quantities))
    for i in range(_NUM_WINDOWS):
        found[i] = compare(count(_draw_window(members, sizes, rng)), WINDOW, reference, n).max(axis=1)
    return found


def _draw_window(
    members: Sequence[NDArray[np.int64]], sizes: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Draw the rows of one window as they would follow each other on a strip: group by group, in random order.

    Each window draws new frequencies of the groups (Rubin 1981, The Bayesian bootstrap), so the limits are wider if
    there are few groups.
    """
    # The Bayesian bootstrap has exponential weights. These have twice their variance, because a few groups say little
    # about how often rare ones occur: with 60 groups of real tiles, 3 % of the windows warned without it.
    weights = rng.gamma(0.5, size=len(sizes))
    # A window can start anywhere on the strip, so its first group is a long one more often.
    drawn = np.concatenate([_draw(weights * sizes, 1, rng), _draw(weights, WINDOW, rng)])
    start = int(rng.integers(sizes[drawn[0]]))
    num_touched = np.searchsorted(sizes[drawn].cumsum(), start + WINDOW) + 1
    return np.concatenate([members[g] for g in drawn[:num_touched]])[start : start + WINDOW]


def _draw(weights: Array, num: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw `num` indices with replacement, with probabilities proportional to the weights."""
    edges = weights.cumsum()
    drawn: NDArray[np.int64] = np.searchsorted(edges, rng.random(num) * edges[-1], side="right")
    return drawn


class Change(NamedTuple):
    """A quantity that has drifted.

    Attributes:
        name: One of `MEASURES`, or the class.
        excess: The highest value of `compare`, divided by the limit.
        cut: The value at which window and reference differ most; a probability for a class.
        above: Share of the images that exceed the cut, in the window and in the reference.
        median: Median of the window and of the reference.
    """

    name: str
    excess: float
    cut: float
    above: tuple[float, float]
    median: tuple[float, float]

    @property
    def sentence(self) -> str:
        """Describe what has changed, by how much, and what to do."""
        now, before = self.above
        rises = now > before
        if self.name in _WORDS:
            lower, higher, remedy = _WORDS[self.name]
            change = f"images are {higher if rises else lower} than those that the thresholds were chosen on"
            quantity = self.name
        else:
            change = (
                f"{self.name} is predicted {'more' if rises else 'less'} often than when the thresholds were chosen"
            )
            quantity, remedy = "its probability", "have someone check some of these images"
        side, shares = ("above", (now, before)) if rises else ("at most", (1 - now, 1 - before))
        return (
            f"{change}: {quantity} is {side} {self.cut:.3g} on {shares[0]:.0%} of them (reference {shares[1]:.0%}), "
            f"median {self.median[0]:.3g} (reference {self.median[1]:.3g}); {remedy}, or tune again with current images"
        )


class Drift(NamedTuple):
    """A window that differs from the reference.

    Attributes:
        first: Number of its first image, starting at 1.
        last: Number of its last image.
        changes: The quantities that changed, at least one; image measures come before classes.
    """

    first: int
    last: int
    changes: tuple[Change, ...]

    @property
    def sentence(self) -> str:
        """Describe the drift for the operators of the line."""
        main, *others = self.changes
        also = f" (also changed: {', '.join(change.name for change in others)})" if others else ""
        return f"images {self.first:,} to {self.last:,}: {main.sentence}{also}"


class Window:
    """A window of recent images, compared with the reference whenever it is full. Memory and time are constant.

    Args:
        reference: The reference, with sketches for C classes.
        classes: Names of the C classes.

    Attributes:
        latest: Result for the last full window; None if it had no drift.
    """

    def __init__(self, reference: Reference, classes: Sequence[str]) -> None:
        self._reference = reference
        self._names = [*MEASURES, *(f"class {c} {name}" for c, name in enumerate(classes, 1))]
        self._values = np.empty((reference.window, len(self._names)))
        self._num_seen = 0
        self.latest: Drift | None = None

    def add(self, image: NDArray[np.uint8], class_probabilities: NDArray[np.floating[Any]]) -> Drift | None:
        """Add an image and its class probabilities; return the drift, if any, whenever the window is full.

        Args:
            image: uint8 `(H, W)`.
            class_probabilities: `(C,)`, calibrated.
        """
        size = len(self._values)
        self._values[self._num_seen % size] = join(measure(image), class_probabilities)
        self._num_seen += 1
        if self._num_seen % size:
            return None
        self.latest = self._compare()
        return self.latest

    def _compare(self) -> Drift | None:
        columns = zip(self._names, self._values.T, self._reference.sketches, strict=True)
        changes = [change for column in columns if (change := self._find_change(*column))]
        changes.sort(key=lambda change: (change.name not in MEASURES, -change.excess))
        return Drift(self._num_seen - len(self._values) + 1, self._num_seen, tuple(changes)) if changes else None

    def _find_change(self, name: str, column: Array, sketch: Sketch) -> Change | None:
        n, size = self._reference.num_images, len(column)
        counts, expected = count_at_most(column, np.array(sketch.cuts)), np.array(sketch.at_most)
        found = compare(counts, size, expected, n)
        worst = int(found.argmax())
        if not found[worst] > sketch.limit:
            return None
        numbers = np.array([sketch.cuts[worst], np.median(column), sketch.median])
        cut, *medians = (numbers if name in MEASURES else 1 / (1 + np.exp(-numbers))).tolist()
        above = float(1 - counts[worst] / size), float(1 - expected[worst] / n)
        return Change(name, float(found[worst] / sketch.limit), cut, above, (medians[0], medians[1]))
