"""Drift warnings while images are inspected: windows for large changes, charts for small lasting ones."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from steel.decision.chart import Charts, score
from steel.decision.drift import Reference, Sketch
from steel.decision.measures import MEASURES, Array, compare, count_at_most, join, measure
from steel.wording import name_classes

# For each measure: lower, higher, and the remedy.
_WORDS = {
    "brightness": ("darker", "brighter", "check lamp, lens and exposure"),
    "contrast": ("lower in contrast", "higher in contrast", "check lamp and lens"),
    "margin": ("filled more by the strip", "filled less by the strip", "check whether camera or strip have moved"),
    "sharpness": ("less sharp", "sharper or noisier", "clean the lens and check focus and gain"),
}
_REMEDY = "have someone check some of these images"  # for a class


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
            quantity, remedy = "its probability", _REMEDY
        side, shares = ("above", (now, before)) if rises else ("at most", (1 - now, 1 - before))
        return (
            f"{change}: {quantity} is {side} {self.cut:.3g} on {shares[0]:.0%} of them (reference {shares[1]:.0%}), "
            f"median {self.median[0]:.3g} (reference {self.median[1]:.3g}); {remedy}, or tune again with current images"
        )


class Shift(NamedTuple):
    """A small lasting change that a chart has found.

    Attributes:
        name: "contrast", or the class.
        mean: Mean since the change began and of the reference: of the class probability, or of the share of reference
            images with a lower contrast.
    """

    name: str
    mean: tuple[float, float]

    @property
    def sentence(self) -> str:
        """Describe what has changed, by how much, and what to do."""
        now, before = self.mean
        if self.name in _WORDS:
            lower, higher, remedy = _WORDS[self.name]
            change = f"images are slightly {higher if now > before else lower} than those of the reference"
            means = f"on average {now:.0%} of the reference images have a lower {self.name} (reference {before:.0%})"
        else:
            change = f"{self.name} is predicted {'more' if now > before else 'less'} often than in the reference"
            means, remedy = f"mean probability {now:.3g} (reference {before:.3g})", _REMEDY
        return f"{change}: {means}; {remedy}, or tune again with current images"


class Drift(NamedTuple):
    """Images that differ from the reference.

    Attributes:
        first: Number of the first image, starting at 1.
        last: Number of the last image.
        changes: The changes of a window, at least one, image measures before classes; or the shift of one chart.
    """

    first: int
    last: int
    changes: tuple[Change | Shift, ...]

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
        self._names = [*MEASURES, *(f"class {name}" for name in name_classes(classes))]
        self._values = np.empty((reference.window, len(self._names)))
        self._num_seen = 0
        self.latest: Drift | None = None

    def add(self, measured: Array, class_probabilities: NDArray[np.floating[Any]]) -> Drift | None:
        """Add an image; return the drift, if any, whenever the window is full.

        Args:
            measured: `(4,)`, from `measure`.
            class_probabilities: `(C,)`, calibrated.
        """
        size = len(self._values)
        self._values[self._num_seen % size] = join(measured, class_probabilities)
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


class Monitor:
    """Watches inspected images for drift. Memory and time per image are constant.

    Args:
        reference: The reference, with sketches for C classes.
        classes: Names of the C classes.
    """

    def __init__(self, reference: Reference, classes: Sequence[str]) -> None:
        self._window = Window(reference, classes)
        self._charts = Charts(reference.charts) if reference.charts else None
        self._cuts = np.array(reference.sketches[MEASURES.index("contrast")].cuts)
        self._means = [chart.mean for chart in reference.charts]
        self._names = ["contrast", *(f"class {name}" for name in name_classes(classes))]
        self._num_seen = 0
        self._shift: Drift | None = None

    @property
    def latest(self) -> Drift | None:
        """The drift of the last full window, or else of a chart that still warns; None if there is none."""
        is_active = self._charts is not None and self._charts.is_active.any()
        return self._window.latest or (self._shift if is_active else None)

    def add(self, image: NDArray[np.uint8], class_probabilities: NDArray[np.floating[Any]]) -> list[Drift]:
        """Add an image and return the drifts that it reveals.

        Args:
            image: uint8 `(H, W)`.
            class_probabilities: `(C,)`, calibrated.
        """
        measured = measure(image)
        self._num_seen += 1
        drift = self._window.add(measured, class_probabilities)
        drifts = [drift] if drift else []
        if self._charts:
            for alarm in self._charts.add(score(measured, class_probabilities, self._cuts), self._num_seen):
                shift = Shift(self._names[alarm.chart], (alarm.mean, self._means[alarm.chart]))
                self._shift = Drift(alarm.first, self._num_seen, (shift,))
                drifts.append(self._shift)
        return drifts
