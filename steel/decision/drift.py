"""Has the camera or the steel changed? The last images against those that the thresholds were chosen on.

Of an image its brightness, contrast, black margin and sharpness count, and of each class the logit of its probability:
the classifier's pooled features along the one direction that decides about the class, so that the network's view is
watched without running it twice. `steel tune` builds the reference, `steel export` puts it into the file.

A window is compared once, when it is full, and then begun anew: so the level is the rate of windows with a false
warning, all measures together. It holds where windows vary as the groups of the reference do; strip whose coils are not
named there looks like drift.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from steel.data.exposure import measure_image

Array = NDArray[np.float64]
Counts = NDArray[np.int64]

WINDOW = 200
LEVEL = 0.01
# With fewer the limits would be chance themselves.
FEWEST_IMAGES, FEWEST_GROUPS = 50, 20

_NUM_CUTS = 50
_NUM_WINDOWS = 3000
_STEP = 4  # rows that are skipped, and the distance to which the finest is compared; 0.1 ms an image
_LEAST_PROBABILITY = 1e-4  # below it, and as close to 1, differences mean nothing

# Of each measure: lower, higher, and what is done about it.
_WORDS = {
    "brightness": ("darker", "brighter", "look after lamp, lens and exposure"),
    "contrast": ("lower in contrast", "higher in contrast", "look after lamp and lens"),
    "margin": ("filled more by the strip", "filled less by the strip", "look whether camera or strip have moved"),
    "sharpness": ("less sharp", "sharper or noisier", "clean the lens and look after focus and gain"),
}
MEASURES = tuple(_WORDS)


def measure(image: NDArray[np.uint8]) -> Array:
    """Measures an image; a change of exposure is seen in brightness alone.

    Args:
        image: uint8 `(H, W)`.

    Returns:
        `(4,)`, as `MEASURES` names them: mean grey value of the steel, its standard deviation as a share of that, the
        share of the width that is black, and differences of neighbouring pixels as a share of those four pixels apart:
        1 for noise, less the softer the image is, and 0 where it has no structure.
    """
    brightness, left, right = measure_image(image)
    width = image.shape[1]
    steel = image[:, round(left * width) : width - round(right * width)]
    contrast = float(cv2.meanStdDev(steel[::_STEP])[1].item()) / max(brightness, 1.0)
    fine, coarse = (_difference(steel, distance) for distance in (1, _STEP))
    return np.array([brightness, contrast, left + right, fine / coarse if coarse else 0.0])


def _difference(image: NDArray[np.uint8], distance: int) -> float:
    """Mean difference of pixels at a distance, down and across, of some rows."""
    upper = image[:-distance:_STEP]
    pairs = ((upper, image[distance::_STEP][: len(upper)]), (upper[:, :-distance], upper[:, distance:]))
    return sum(cv2.norm(a, b, cv2.NORM_L1) / a.size for a, b in pairs if a.size)


@dataclass(frozen=True)
class Sketch:
    """How one measure was distributed.

    Attributes:
        median: Of the images of the reference.
        limit: What `compare` may give for a full window without a warning.
        cuts: Q values that rise, about a fiftieth of the images between two.
        at_most: For each cut, how many images of the reference do not exceed it.
    """

    median: float
    limit: float
    cuts: tuple[float, ...]
    at_most: tuple[int, ...]


@dataclass(frozen=True)
class Reference:
    """What undrifted images are like.

    Attributes:
        num_images: Of the reference.
        window: Images of a window.
        level: Share of undrifted windows that warn.
        sketches: Of `MEASURES`, then of the logits of the C class probabilities.
    """

    num_images: int
    window: int
    level: float
    sketches: tuple[Sketch, ...]

    def to_dict(self) -> dict[str, Any]:
        """The reference in the types that JSON and YAML have."""
        sketches = [
            {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(sketch).items()}
            for sketch in self.sketches
        ]
        return asdict(self) | {"sketches": sketches}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """The reference that `to_dict` wrote.

        Raises:
            KeyError: Something is missing.
            TypeError: Something has another type.
            ValueError: The numbers of a sketch do not belong together.
        """
        sketches = []
        for entry in plain["sketches"]:
            sketch = Sketch(
                float(entry["median"]),
                float(entry["limit"]),
                tuple(map(float, entry["cuts"])),
                tuple(map(int, entry["at_most"])),
            )
            counts = (0, *sketch.at_most, int(plain["num_images"]))
            rises = np.all(np.diff(sketch.cuts) > 0) and np.all(np.diff(counts) >= 0)
            if not rises or len(sketch.cuts) != len(sketch.at_most):
                raise ValueError("the cuts of a reference rise, and so do the counts that go with them")
            sketches.append(sketch)
        return cls(int(plain["num_images"]), int(plain["window"]), float(plain["level"]), tuple(sketches))


def compare(window: Counts, num_window: Counts | int, reference: Counts, num_reference: Counts | int) -> Array:
    """How unlikely two shares of images are the same: the root of twice the logarithm of the likelihood ratio.

    For a single share about the absolute value of a standard normal variable, whatever the sizes, and unlike the
    difference over its deviation also where a few images are all that exceed. The largest over all cuts tells any
    change of a distribution, that of a rare class among them.
    Source: Berk and Jones 1979, Goodness-of-fit test statistics that dominate the Kolmogorov statistics.

    Args:
        window: Images of the window that do not exceed each cut.
        num_window: How many the window has.
        reference: The same of the reference; all four broadcast.
        num_reference: How many the reference has.
    """
    both = (window + reference) / (num_window + num_reference)
    total: Array = np.zeros(np.shape(both))
    for counts, num in ((window, num_window), (reference, num_reference)):
        share = counts / np.maximum(num, 1)
        total += num * (_relative_entropy(share, both) + _relative_entropy(1 - share, 1 - both))
    root: Array = np.sqrt(2 * total.clip(0))
    return root


def _relative_entropy(share: Array, of: Array) -> Array:
    """As SciPy's `rel_entr`, without a fifth of a second of import wherever an exported file runs."""
    entropy: Array = np.where(share > 0, share * np.log(np.where(share > 0, share / np.maximum(of, 1e-300), 1)), 0)
    return entropy


def _join(measured: Array, class_probabilities: NDArray[np.floating[Any]]) -> Array:
    """All that is watched; logits in tenths, since processors differ in less."""
    probabilities = np.asarray(class_probabilities, np.float64).clip(_LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY)
    return np.concatenate([measured, np.log(probabilities / (1 - probabilities)).round(1)], axis=-1)


def build_reference(
    measured: Array, class_probabilities: NDArray[np.floating[Any]], groups: NDArray[np.int64]
) -> Reference | None:
    """Sketches undrifted images and finds the limits for windows of like ones.

    Windows are drawn as a strip would run: groups follow each other at random, and images stay together in them. How
    often each group comes is drawn anew for every window, so that what few groups cannot tell makes the limits wider.
    The limit of each measure is the same multiple of what it exceeds in one window of twenty, and the multiple is such
    that `LEVEL` of all windows exceed a limit.
    Source: Rubin 1981, The Bayesian bootstrap; Westfall and Young 1993, Resampling-based multiple testing.

    Args:
        measured: `(n, 4)`, of each image what `measure` gives; images of a group in the order in which they came.
        class_probabilities: `(n, C)`, calibrated, as an `Inspection` has them.
        groups: `(n,)`, numbers of the groups.

    Returns:
        The reference; None where there are too few images or groups to tell drift from chance.
    """
    n = len(groups)
    if n < FEWEST_IMAGES or len(np.unique(groups)) < FEWEST_GROUPS:
        return None
    values = _join(measured, class_probabilities)
    shares = (np.arange(_NUM_CUTS) + 0.5) / _NUM_CUTS
    # Four digits keep the file small.
    cuts = [
        np.unique([float(f"{cut:.4g}") for cut in np.quantile(column, shares, method="inverted_cdf")])
        for column in values.T
    ]
    found = _simulate(values, cuts, groups)
    # 1.96: a measure that never varies has a limit too.
    scales = np.maximum(np.quantile(found, 0.95, axis=0), 1.96)
    multiple = np.quantile((found / scales).max(axis=1), 1 - LEVEL, method="higher")
    sketches = [
        Sketch(
            float(f"{np.median(column):.4g}"),
            round(float(scale * multiple), 3),
            tuple(some.tolist()),
            tuple(_count(column, some).tolist()),
        )
        for column, some, scale in zip(values.T, cuts, scales, strict=True)
    ]
    return Reference(n, WINDOW, LEVEL, tuple(sketches))


def _count(column: Array, cuts: Array) -> Counts:
    """How many values do not exceed each cut."""
    counts: Counts = np.searchsorted(np.sort(column), cuts, side="right")
    return counts


def _simulate(values: Array, cuts: Sequence[Array], groups: NDArray[np.int64]) -> Array:
    """What `compare` gives at most for each measure of windows of like images, `(_NUM_WINDOWS, K)`."""
    n, num_measures = values.shape
    most = max(map(len, cuts))
    # The first cut that each value does not exceed; measures side by side in one row of bins.
    bins = np.stack([np.searchsorted(some, column) for some, column in zip(cuts, values.T, strict=True)], axis=1)
    bins += np.arange(num_measures) * (most + 1)

    def count(rows: NDArray[np.int64]) -> Counts:
        counted = np.bincount(bins[rows].ravel(), minlength=num_measures * (most + 1))
        counts: Counts = counted.reshape(num_measures, most + 1).cumsum(axis=1)[:, :most]
        return counts

    _, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    members = np.split(np.argsort(group, kind="stable"), np.cumsum(sizes)[:-1])
    rng = np.random.default_rng(0)
    reference = count(np.arange(n))
    found = np.empty((_NUM_WINDOWS, num_measures))
    for i in range(_NUM_WINDOWS):
        # Exponential weights are the Bayesian bootstrap. Twice their variance, since few groups hardly tell how often
        # what only some of them have will come: with 60 groups of real tiles, 3 % of the windows warned without it.
        weights = rng.gamma(0.5, size=len(sizes))
        # The window may begin anywhere on the strip, so long coils are met first more often.
        some = np.concatenate([_draw(weights * sizes, 1, rng), _draw(weights, WINDOW, rng)])
        start = int(rng.integers(sizes[some[0]]))
        touched = np.searchsorted(sizes[some].cumsum(), start + WINDOW) + 1
        rows = np.concatenate([members[g] for g in some[:touched]])[start : start + WINDOW]
        found[i] = compare(count(rows), WINDOW, reference, n).max(axis=1)
    return found


def _draw(weights: Array, num: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Numbers drawn with replacement, each as often as it weighs."""
    edges = weights.cumsum()
    drawn: NDArray[np.int64] = np.searchsorted(edges, rng.random(num) * edges[-1], side="right")
    return drawn


class Change(NamedTuple):
    """One measure that has changed.

    Attributes:
        name: One of `MEASURES`, or the class.
        excess: What `compare` gives, as a multiple of the limit.
        cut: The value at which window and reference differ most; a probability for a class.
        above: Shares of the images that exceed it: in the window and in the reference.
        median: Of the window and of the reference.
    """

    name: str
    excess: float
    cut: float
    above: tuple[float, float]
    median: tuple[float, float]

    @property
    def sentence(self) -> str:
        """What has changed, by how much, and what to do."""
        now, before = self.above
        rises = now > before
        if self.name in _WORDS:
            lower, higher, remedy = _WORDS[self.name]
            what = f"images are {higher if rises else lower} than those that the thresholds were chosen on"
            watched = self.name
        else:
            what = f"{self.name} is seen {'more' if rises else 'less'} than where the thresholds were chosen"
            watched, remedy = "its probability", "have some of these images looked at"
        side, shares = ("above", (now, before)) if rises else ("at most", (1 - now, 1 - before))
        return (
            f"{what}: {watched} is {side} {self.cut:.3g} on {shares[0]:.0%} of them against {shares[1]:.0%}, median "
            f"{self.median[0]:.3g} against {self.median[1]:.3g}; {remedy}, or tune again with images of today"
        )


class Drift(NamedTuple):
    """A window unlike the reference.

    Attributes:
        first: Number of its first image, counted from 1.
        last: Number of its last image.
        changes: At least one; what is seen in the images comes before what the classifier says of them.
    """

    first: int
    last: int
    changes: tuple[Change, ...]

    @property
    def sentence(self) -> str:
        """For the people at the line."""
        main, *others = self.changes
        also = f" (changed as well: {', '.join(change.name for change in others)})" if others else ""
        return f"images {self.first:,} to {self.last:,}: {main.sentence}{also}"


class Window:
    """The last images, compared with the reference whenever the window is full; memory and time are constant."""

    def __init__(self, reference: Reference, classes: Sequence[str]) -> None:
        """An empty window.

        Args:
            reference: Has C sketches of classes.
            classes: The names of the C classes.
        """
        self._reference = reference
        self._names = [*MEASURES, *(f"class {c + 1} {name}" for c, name in enumerate(classes))]
        self._values = np.empty((reference.window, len(self._names)))
        self._num_seen = 0
        self.latest: Drift | None = None  # what the last full window found

    def add(self, image: NDArray[np.uint8], class_probabilities: NDArray[np.floating[Any]]) -> Drift | None:
        """Takes the next image.

        Args:
            image: uint8 `(H, W)`.
            class_probabilities: `(C,)`, as the exported file gives them.

        Returns:
            What has changed, where the image fills the window and something has; else None.
        """
        size = len(self._values)
        self._values[self._num_seen % size] = _join(measure(image), class_probabilities)
        self._num_seen += 1
        if self._num_seen % size:
            return None
        self.latest = self._compare()
        return self.latest

    def _compare(self) -> Drift | None:
        changes = []
        n, size = self._reference.num_images, len(self._values)
        for name, column, sketch in zip(self._names, self._values.T, self._reference.sketches, strict=True):
            counts, known = _count(column, np.array(sketch.cuts)), np.array(sketch.at_most)
            found = compare(counts, size, known, n)
            worst = int(found.argmax())
            if found[worst] > sketch.limit:
                numbers = np.array([sketch.cuts[worst], np.median(column), sketch.median])
                cut, *medians = (numbers if name in MEASURES else 1 / (1 + np.exp(-numbers))).tolist()
                above = 1 - counts[worst] / size, 1 - known[worst] / n
                excess = float(found[worst] / sketch.limit)
                changes.append(Change(name, excess, cut, (float(above[0]), float(above[1])), (medians[0], medians[1])))
        changes.sort(key=lambda change: (change.name not in MEASURES, -change.excess))
        return Drift(self._num_seen - size + 1, self._num_seen, tuple(changes)) if changes else None
