"""Drift detection: compares recent images with those that the operating point was chosen on.

`steel tune` builds the reference, and `steel export` stores it in the exported file. Four image measures and the logits
of the class probabilities are watched. The logits show what the network sees, at no extra cost.

A window of images is compared once, when it is full, so `level` is the rate of false warnings per window over all
quantities together. `steel.decision.chart` watches for small lasting changes. Both promise a rate of false warnings if
the line continues with groups of images (coils) like those of the reference. If the groups are not known, ordinary
differences between coils look like drift, and nothing is promised.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steel.decision.chart import RUN_LENGTH, Chart, build_charts, score
from steel.decision.measures import MEASURES, Array, Counts, compare, count_at_most, join
from steel.decision.plain import from_plain, to_plain

WINDOW, LEVEL = 200, 0.01  # images of a window, and rate of windows with a false warning
# Below these, the limits would depend on chance.
FEWEST_IMAGES, FEWEST_GROUPS = 50, 20

_NUM_CUTS = 50
_NUM_WINDOWS = 3000
# All windows of a line are compared with the same reference, so its error is theirs. With 1,200 images, some references
# cause five times as many false warnings as the average.
_SAFETY = 3


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
        level: Largest share of windows without drift that cause a warning; NaN if nothing is promised.
        sketches: One for each of `MEASURES`, then one for the logit of each of the C class probabilities.
        charts: One for the contrast, then one for each class; empty in files of earlier versions.
        run_length: Smallest mean number of images until a false warning of the charts; NaN if nothing is promised.
    """

    num_images: int
    window: int
    level: float
    sketches: tuple[Sketch, ...]
    charts: tuple[Chart, ...] = ()
    run_length: float = np.nan

    @property
    def promise(self) -> str:
        """Sentence on false warnings."""
        if np.isnan(self.level):
            return "nothing is promised about false drift warnings, because the groups of the images are not known"
        charts = f", and a chart after {self.run_length:,.0f} images on average" if self.charts else ""
        return f"without drift, at most {self.level:.0%} of the windows of {self.window} images warn{charts}"

    def to_dict(self) -> dict[str, Any]:
        """Convert to JSON and YAML types. A reference of an earlier version stays as it was read."""
        plain = dict(to_plain(self))
        return plain if self.charts else {key: plain[key] for key in plain if key not in ("charts", "run_length")}

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
    measured: Array,
    class_probabilities: NDArray[np.floating[Any]],
    groups: NDArray[np.int64],
    *,
    are_groups_known: bool = True,
) -> Reference | None:
    """Summarise images without drift, and find limits that windows of such images rarely exceed.

    Args:
        measured: `(n, 4)`, from `measure`. Images of a group must be in the order in which they were taken.
        class_probabilities: `(n, C)`, calibrated, as in `Inspection`.
        groups: `(n,)`, group numbers.
        are_groups_known: Whether all images that belong together share a group. If not, nothing is promised.

    Returns:
        The reference; None if there are too few images or groups to tell drift from chance.
    """
    n, num_groups = len(groups), len(np.unique(groups))
    if n < FEWEST_IMAGES or num_groups < FEWEST_GROUPS:
        return None
    values = join(measured, class_probabilities)
    shares = (np.arange(_NUM_CUTS) + 0.5) / _NUM_CUTS
    quantiles = np.quantile(values, shares, axis=0, method="inverted_cdf")
    cuts = [np.unique([_shorten(cut) for cut in column]) for column in quantiles.T]
    counts = [count_at_most(column, column_cuts) for column, column_cuts in zip(values.T, cuts, strict=True)]
    limits = _find_limits(_simulate(values, cuts, groups), num_groups)
    limits = np.maximum(limits, [_expect_bursts(at_most, groups) for at_most in counts])
    sketches = [
        Sketch(_shorten(np.median(column)), round(float(limit), 3), *(tuple(numbers.tolist()) for numbers in pair))
        for column, limit, *pair in zip(values.T, limits, cuts, counts, strict=True)
    ]
    charts = build_charts(score(measured, class_probabilities, cuts[MEASURES.index("contrast")]), groups)
    level, run_length = (LEVEL, float(RUN_LENGTH)) if are_groups_known else (np.nan, np.nan)
    return Reference(n, WINDOW, level, tuple(sketches), charts, run_length)


def _find_limits(found: Array, num_groups: int) -> Array:
    """Return the limits `(K,)` for simulated windows `(W, K)`.

    Each quantity exceeds its limit equally often, and all together in `LEVEL` / `_SAFETY` of the windows (Bonferroni).
    The limits are widened like a t interval, because the differences between groups are known from few groups.
    """
    from scipy import stats

    level = LEVEL / found.shape[1]
    normal = stats.norm.ppf(1 - level / 2)
    widen = stats.t.ppf(1 - level / _SAFETY / 2, num_groups - 1) / normal
    # A quantity that never varies needs a limit too.
    limits: Array = np.maximum(np.quantile(found, 1 - level, axis=0, method="higher"), normal)
    limits *= widen
    return limits


def _expect_bursts(at_most: Counts, groups: NDArray[np.int64]) -> float:
    """Return `compare` for a window in which something new fills as many groups as chance may bring.

    A class or a black margin can be on all images of a group even if no known group is like that. One in G + 1 groups
    exceeds G known ones, so a window has more such groups than the binomial quantile in `LEVEL` of the cases at most.
    """
    from scipy import stats

    n, sizes = len(groups), np.unique(groups, return_counts=True)[1]
    size = float(np.square(sizes).sum() / n)  # of the group of an image
    num_filled = float(stats.binom.ppf(1 - LEVEL, int(np.ceil(WINDOW / size)) + 1, 1 / (len(sizes) + 1)))
    others = (WINDOW - min(WINDOW, num_filled * size)) * at_most / n
    return float(compare(others, WINDOW, at_most, n).max())


def _shorten(value: float) -> float:
    """Round to four digits, to keep the file small."""
    return float(f"{value:.4g}")


def _simulate(values: Array, cuts: Sequence[Array], groups: NDArray[np.int64]) -> Array:
    """Compare windows without drift with the other groups; return the maximum of `compare`, `(_NUM_WINDOWS, K)`.

    A window consists of reference images. Its groups are left out of the reference that it is compared with, because
    the groups of a new window are not in the reference either.
    """
    n, num_quantities = values.shape
    most = max(map(len, cuts)) + 1
    # The first cut that each value does not exceed; the bins of all quantities lie side by side in one row.
    bins = np.stack([np.searchsorted(some, column) for some, column in zip(cuts, values.T, strict=True)], axis=1)
    bins += np.arange(num_quantities) * most

    def count(rows: NDArray[np.int64]) -> Counts:
        counted = np.bincount(bins[rows].ravel(), minlength=num_quantities * most)
        counts: Counts = counted.reshape(num_quantities, most).cumsum(axis=1)[:, :-1]
        return counts

    _, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    members = np.split(np.argsort(group, kind="stable"), np.cumsum(sizes)[:-1])
    rng = np.random.default_rng(0)
    total, length = count(np.arange(n)), min(WINDOW, n // 2)
    found = np.empty((_NUM_WINDOWS, num_quantities))
    for i in range(_NUM_WINDOWS):
        rows, start = _draw_groups(members, sizes, length, rng)
        others = total - count(rows)
        found[i] = compare(count(rows[start : start + length]), length, others, n - len(rows)).max(axis=1)
    return found


def _draw_groups(
    members: Sequence[NDArray[np.int64]], sizes: NDArray[np.int64], length: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], int]:
    """Draw groups for a window of `length` images, as they would follow each other on a strip.

    Returns:
        The rows of all images of the groups, and the position at which the window starts among them.
    """
    # A window can start anywhere on the strip, so its first group is a long one more often.
    first = int(np.searchsorted(sizes.cumsum(), rng.integers(sizes.sum()), side="right"))
    start = int(rng.integers(sizes[first]))
    drawn = np.concatenate([[first], (others := rng.permutation(len(sizes)))[others != first]])
    num_touched = int(np.searchsorted(sizes[drawn].cumsum(), start + length)) + 1
    rows = np.concatenate([members[g] for g in drawn[:num_touched].tolist()])
    return rows, min(start, len(rows) - length)
