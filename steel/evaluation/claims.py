"""Claims about rates at a one-sided confidence level, and how many hits or false alarms they need or allow."""

from bisect import bisect_left, bisect_right
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from steel.decision.tuning import Aim
from steel.evaluation.calibration import Groups
from steel.evaluation.evidence import Evidence
from steel.intervals import effective_size

# Share of the clean images that tells how correlated high scores are in groups. Few images exceed the threshold itself.
HIGH = 0.2


def claim_rate(hits: float, n: float, confidence: float) -> float:
    """Return the largest rate that `hits` of n images prove: a one-sided confidence bound, 0 if there are no hits.

    It is exact for independent images, also for a threshold chosen such that exactly `hits` images reach it. For images
    in groups, both numbers are scaled to the effective sample size.
    Source: Clopper and Pearson 1934; Korn and Graubard 1998, for groups.
    """
    return float(stats.beta.ppf(1 - confidence, hits, n - hits + 1)) if hits > 0 else 0.0


def find_effective_size(values: NDArray[Any], groups: Groups, confidence: float) -> float:
    """Return how many independent images count as much as these, given the correlation of their values in groups."""
    # The one-sided level that both ends of a two-sided interval have; at 0.5 such an interval has no width.
    return effective_size(values, groups, max(0.5, 2 * confidence - 1)) if len(values) else 0.0


def find_largest_claim(evidence: Evidence, c: int, found: int, aim: Aim) -> float:
    """Return the largest recall of class c that can be claimed if `found` of its defects are found."""
    present = evidence.labels[:, c]
    size = find_effective_size(evidence.classes[present, c], evidence.groups[present], aim.confidence)
    return claim_rate(found / max(1, int(present.sum())) * size, size, aim.confidence)


def count_needed(evidence: Evidence, c: int, aim: Aim) -> int | None:
    """Return how many defects of class c must be found to claim the recall of the aim; None if all are too few."""
    n = int(evidence.labels[:, c].sum())
    needed = bisect_left(range(n + 1), aim.share, key=lambda k: find_largest_claim(evidence, c, k, aim))
    return needed if needed <= n else None


def find_alarm_bound(evidence: Evidence, num_alarms: int, confidence: float) -> float:
    """Return the upper bound of the share of clean images with a mask, if `num_alarms` of those of the evidence have.

    The thresholds are chosen on these images. One between two scores lets through up to one image in n + 1 more than
    observed, so one false alarm is added. Half of one is added for each further class, because false alarms are
    allotted to the classes in which they find most (simulated in `benchmarks.tuning`).
    """
    clean = evidence.clean
    n = int(clean.sum())
    if n == 0:
        return 1.0
    scores = evidence.classes[clean].max(axis=1)
    # Images of a group are less alike in whether they exceed a high threshold than in their scores.
    is_high = scores > np.quantile(scores, 1 - HIGH)
    share = find_effective_size(is_high, evidence.groups[clean], confidence) / n
    num_added = 0.5 + 0.5 * evidence.labels.shape[1]
    num_without = max(0.0, n + 1 - num_alarms - num_added)
    return 1 - claim_rate(num_without * share, n * share, confidence)


def count_allowed(evidence: Evidence, aim: Aim) -> int | None:
    """Return how many clean images may have a mask, so that their share is at most that of the aim at its confidence.

    None if not even 0 of them proves it.
    """
    limits = range(int(aim.share * evidence.clean.sum() + 1e-9) + 1)
    num_allowed = bisect_right(limits, aim.share, key=lambda k: find_alarm_bound(evidence, k, aim.confidence))
    return num_allowed - 1 if num_allowed else None
