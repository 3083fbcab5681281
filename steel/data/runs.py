"""Arithmetic on runs: areas, intersections, unions and COCO's counts, without drawing masks.

The runs of a mask are a flat integer array `(2R,)`: start, length, start, length, ..., with pixels numbered from 1 down
the columns as in `steel.data.rle`. They are sorted and do not overlap. The runs of n masks are one flat array with
offsets int64 `(n + 1,)`: mask i has the runs `runs[offsets[i] : offsets[i + 1]]`.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from steel.errors import InputError

Runs = NDArray[np.integer]
Offsets = NDArray[np.int64]
Size = tuple[int, int]  # height and width in pixels


def area(runs: Runs) -> int:
    """Return the number of pixels of one mask."""
    return int(runs[1::2].sum())


def find_columns(runs: Runs, height: int) -> slice:
    """Return the columns, from the first to the last, that the runs of a mask touch; there is at least one run."""
    return slice((int(runs[0]) - 1) // height, (int(runs[-2]) + int(runs[-1]) - 2) // height + 1)


def areas(runs: Runs, offsets: Offsets) -> NDArray[np.int64]:
    """Return the number of pixels of each of n masks, int64 `(n,)`.

    Example:
        >>> areas(np.array([2, 2, 7, 3, 1, 4]), np.array([0, 4, 4, 6]))
        array([5, 0, 4])
    """
    totals = np.concatenate([[0], np.cumsum(runs[1::2], dtype=np.int64)])
    return np.asarray(np.diff(totals[offsets // 2]), np.int64)


def intersect(
    runs: Runs, offsets: Offsets, other_runs: Runs, other_offsets: Offsets
) -> tuple[NDArray[np.int64], Offsets]:
    """Intersect n masks with n other masks, pair by pair.

    Example:
        >>> intersect(np.array([2, 2, 7, 3]), np.array([0, 4]), np.array([3, 5]), np.array([0, 2]))
        (array([3, 1, 7, 1]), array([0, 4]))

    Returns:
        Runs and offsets of the n intersections. Runs may touch where runs of both masks touch.
    """
    num_runs, num_others = np.diff(offsets) // 2, np.diff(other_offsets) // 2
    last = max((int((r[0::2].astype(np.int64) + r[1::2]).max()) for r in (runs, other_runs) if len(r)), default=0)
    # Shift the pixel numbers of each pair past those of the previous pair, as if all were one long mask.
    shift = np.repeat(np.arange(len(num_runs)) * last, num_runs)
    other_shift = np.repeat(np.arange(len(num_runs)) * last, num_others)
    starts, other_starts = runs[0::2] + shift, other_runs[0::2] + other_shift
    ends, other_ends = starts + runs[1::2], other_starts + other_runs[1::2]
    # A run meets the other runs from the first that ends after its start to the last that starts before its end.
    first = np.searchsorted(other_ends, starts, "right")
    num_met = np.searchsorted(other_starts, ends, "left") - first
    ours = np.repeat(np.arange(len(starts)), num_met)
    theirs = np.arange(len(ours)) + np.repeat(first - np.cumsum(num_met) + num_met, num_met)
    shared = np.empty(2 * len(ours), np.int64)
    shared[0::2] = np.maximum(starts[ours], other_starts[theirs])
    shared[1::2] = np.minimum(ends[ours], other_ends[theirs]) - shared[0::2]
    shared[0::2] -= shift[ours]
    met_before = np.concatenate([[0], np.cumsum(num_met)])
    return shared, 2 * met_before[np.concatenate([[0], np.cumsum(num_runs)])]


def unite(parts: Sequence[Runs]) -> Runs:
    """Return the union of masks, sorted and never touching; runs within a mask may touch, overlap and have any order.

    Example:
        >>> unite([np.array([7, 3, 1, 2]), np.array([3, 1])]).tolist()
        [1, 3, 7, 3]
    """
    flat = np.concatenate([np.zeros(0, np.int64), *parts])
    if len(flat) == 0:
        return flat
    flat = flat.reshape(-1, 2)[np.argsort(flat[0::2], kind="stable")]
    ends = np.maximum.accumulate(flat.sum(axis=1))
    first = np.flatnonzero(np.concatenate([[True], flat[1:, 0] > ends[:-1]]))
    starts, ends = flat[first, 0], ends[np.append(first[1:], len(flat)) - 1]
    return np.column_stack([starts, ends - starts]).ravel()


def count_changes(before: Runs, after: Runs) -> int:
    """Return the number of pixels that belong to exactly one of two masks."""
    return 2 * area(unite([before, after])) - area(before) - area(after)


def to_counts(runs: Runs, size: Size) -> list[int]:
    """Return COCO's counts of a mask: the lengths of gap, run, gap, run, ...

    Example:
        >>> to_counts(np.array([2, 2, 7, 3]), (4, 4))
        [1, 2, 3, 3, 7]
    """
    edges = np.column_stack([runs[0::2] - 1, runs[0::2] - 1 + runs[1::2]]).ravel()
    counts: list[int] = np.diff(edges, prepend=0, append=size[0] * size[1]).tolist()
    return counts if counts[-1] else counts[:-1]


def from_counts(counts: str | Sequence[int], size: Size) -> Runs:
    """Return the runs of a mask from COCO's counts, a list or compressed text.

    Example:
        >>> from_counts("12314", (4, 4)).tolist()
        [2, 2, 7, 3]

    Raises:
        InputError: The counts are damaged or do not fill an image of this size. The caller adds the subject.
    """
    numbers = _decompress(counts) if isinstance(counts, str) else counts
    if any(type(number) is not int or number < 0 for number in numbers):
        raise InputError("has RLE counts that are not whole numbers from 0; export it again")
    if sum(numbers) != (num_pixels := size[0] * size[1]):
        expected = f"{size[1]} x {size[0]} = {num_pixels} pixels"
        raise InputError(f"has RLE counts that sum to {sum(numbers)}, but its image has {expected}; export it again")
    edges, lengths = np.cumsum(numbers, dtype=np.int64), np.array(numbers[1::2], np.int64)
    runs = np.column_stack([edges[0::2][: len(lengths)] + 1, lengths])
    return unite([runs[lengths > 0].ravel()])


def _decompress(text: str) -> list[int]:
    """Decode compressed counts; COCO's own rleFrString writes out of bounds if the text is damaged.

    A character has five bits of a number, lowest first; bit 32 if more follow; bit 16 of the last is the sign. From the
    fourth number on, each is the difference to the number two places before.
    """
    codes = np.frombuffer(text.encode(), np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero((codes & 32) == 0)
    widths = np.diff(ends, prepend=-1)
    if len(ends) == 0 or ends[-1] != len(codes) - 1 or widths.max() > 8 or codes.min() < 0 or codes.max() > 63:
        raise InputError("has damaged RLE counts; export it again")
    starts = ends - widths + 1
    shifts = 5 * (np.arange(len(codes)) - np.repeat(starts, widths))
    numbers = np.add.reduceat((codes & 31) << shifts, starts)
    numbers -= np.where(codes[ends] & 16, 1 << (5 * widths), 0)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return list(numbers.tolist())
