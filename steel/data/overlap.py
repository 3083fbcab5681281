"""Pixels counted on the codes themselves, without drawing a mask.

Many codes at once, as `rle.parse_all` and `Annotations` hold them: the numbers of all in one flat array, and offsets,
code i being `runs[offsets[i] : offsets[i + 1]]`. Runs are sorted and do not overlap.
"""

import numpy as np
from numpy.typing import NDArray

Runs = NDArray[np.integer]
Offsets = NDArray[np.int64]


def count_pixels(runs: Runs, offsets: Offsets) -> NDArray[np.int64]:
    """The pixels of each of n codes, int64 `(n,)`.

    Example:
        >>> count_pixels(np.array([2, 2, 7, 3, 1, 4]), np.array([0, 4, 4, 6]))
        array([5, 0, 4])
    """
    totals = np.concatenate([[0], np.cumsum(runs[1::2], dtype=np.int64)])
    counts: NDArray[np.int64] = np.diff(totals[offsets // 2])
    return counts


def intersect(
    runs: Runs, offsets: Offsets, other_runs: Runs, other_offsets: Offsets
) -> tuple[NDArray[np.int64], Offsets]:
    """The runs that n codes share with n others, code by code.

    Example:
        >>> intersect(np.array([2, 2, 7, 3]), np.array([0, 4]), np.array([3, 5]), np.array([0, 2]))
        (array([3, 1, 7, 1]), array([0, 4]))

    Returns:
        Runs and offsets of n codes; runs may touch where those of both did.
    """
    numbers, other_numbers = np.diff(offsets) // 2, np.diff(other_offsets) // 2
    last = max((int((r[0::2].astype(np.int64) + r[1::2]).max()) for r in (runs, other_runs) if len(r)), default=0)
    # All codes one behind the other, as if they were one long one.
    shift = np.repeat(np.arange(len(numbers)) * last, numbers)
    other_shift = np.repeat(np.arange(len(numbers)) * last, other_numbers)
    starts, other_starts = runs[0::2] + shift, other_runs[0::2] + other_shift
    ends, other_ends = starts + runs[1::2], other_starts + other_runs[1::2]
    # A run meets the others from the first that ends behind its start to the last that starts before its end.
    first = np.searchsorted(other_ends, starts, "right")
    meets = np.searchsorted(other_starts, ends, "left") - first
    mine = np.repeat(np.arange(len(starts)), meets)
    theirs = np.arange(len(mine)) + np.repeat(first - np.cumsum(meets) + meets, meets)
    shared = np.empty(2 * len(mine), np.int64)
    shared[0::2] = np.maximum(starts[mine], other_starts[theirs])
    shared[1::2] = np.minimum(ends[mine], other_ends[theirs]) - shared[0::2]
    shared[0::2] -= shift[mine]
    met = np.concatenate([[0], np.cumsum(meets)])[np.concatenate([[0], np.cumsum(numbers)])]
    return shared, 2 * met
