"""Pixels counted on the codes themselves, without drawing a mask.

Many codes at once, as `rle.parse_all` and `Annotations` hold them: the numbers of all in one flat array, and offsets,
code i being `runs[offsets[i] : offsets[i + 1]]`. Runs are sorted and do not overlap.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from steel.data import rle
from steel.errors import InputError

Runs = NDArray[np.integer]
Offsets = NDArray[np.int64]
Size = tuple[int, int]


def areas(runs: Runs, offsets: Offsets) -> NDArray[np.int64]:
    """The pixels of each of n codes, int64 `(n,)`.

    Example:
        >>> areas(np.array([2, 2, 7, 3, 1, 4]), np.array([0, 4, 4, 6]))
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


def find_runs(mask: NDArray[np.bool_] | NDArray[np.uint8]) -> Runs:
    """The runs of all pixels of a mask `(H, W)` that are not 0."""
    return rle.parse(rle.encode(mask))


def area(runs: Runs) -> int:
    """How many pixels the runs cover."""
    return int(runs[1::2].sum())


def count_changes(before: Runs, after: Runs) -> int:
    """How many pixels are in one of the two and not in the other."""
    return 2 * area(unite([before, after])) - area(before) - area(after)


def unite(parts: Sequence[Runs]) -> Runs:
    """The runs of all pixels that are in any part; within a part they may touch, overlap and stand in any order.

    Example:
        >>> unite([np.array([7, 3, 1, 2]), np.array([3, 1])]).tolist()
        [1, 3, 7, 3]
    """
    flat = np.concatenate([np.zeros(0, np.int64), *parts])
    flat = flat.reshape(-1, 2)[np.argsort(flat[0::2], kind="stable")]
    if len(flat) == 0:
        return flat.ravel()
    ends = np.maximum.accumulate(flat.sum(axis=1))
    first = np.flatnonzero(np.concatenate([[True], flat[1:, 0] > ends[:-1]]))
    starts, ends = flat[first, 0], ends[np.append(first[1:], len(flat)) - 1]
    return np.column_stack([starts, ends - starts]).ravel()


def to_counts(runs: Runs, size: Size) -> list[int]:
    """COCO's list of counts for an image of a size.

    Example:
        >>> to_counts(np.array([2, 2, 7, 3]), (4, 4))
        [1, 2, 3, 3, 7]
    """
    edges = np.column_stack([runs[0::2] - 1, runs[0::2] - 1 + runs[1::2]]).ravel()
    counts: list[int] = np.diff(edges, prepend=0, append=size[0] * size[1]).tolist()
    return counts if counts[-1] else counts[:-1]


def from_counts(given: str | Sequence[int], size: Size) -> Runs:
    """Runs from COCO's counts, a list or compressed.

    Example:
        >>> from_counts("12314", (4, 4)).tolist()
        [2, 2, 7, 3]

    Args:
        given: The counts.
        size: Height and width of the image in pixels.

    Raises:
        InputError: They are damaged or do not fill the image; the sentence goes on from what has them.
    """
    counts = _decompress(given) if isinstance(given, str) else given
    if any(type(count) is not int or count < 0 for count in counts):
        raise InputError("has RLE counts that are not whole numbers from 0; export it again")
    if sum(counts) != size[0] * size[1]:
        raise InputError(
            f"has RLE counts that sum to {sum(counts)}, but its image has {size[1]} x {size[0]} = {size[0] * size[1]} "
            f"pixels; export it again"
        )
    edges, lengths = np.cumsum(counts, dtype=np.int64), np.array(counts[1::2], np.int64)
    runs = np.column_stack([edges[0::2][: len(lengths)] + 1, lengths])
    return unite([runs[lengths > 0].ravel()])


def _decompress(text: str) -> list[int]:
    """Counts from text, as rleFrString does; that one writes beyond its memory where the text is damaged.

    Each number is five bits a character, the lowest first; 32 says that more follow, 16 in the last one that it is
    negative. From the fourth on it is the difference to the number two before.
    """
    codes = np.frombuffer(text.encode(), np.uint8).astype(np.int64) - 48
    if len(codes) == 0 or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        raise InputError("has damaged RLE counts; export it again")
    ends = np.flatnonzero((codes & 32) == 0)
    widths = np.diff(ends, prepend=-1)
    starts = ends - widths + 1
    if widths.max() > 8:
        raise InputError("has damaged RLE counts; export it again")
    shifts = 5 * (np.arange(len(codes)) - np.repeat(starts, widths))
    numbers = np.add.reduceat((codes & 31) << shifts, starts)
    numbers -= np.where(codes[ends] & 16, 1 << (5 * widths), 0)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    counts: list[int] = numbers.tolist()
    return counts
