"""Runs of labelled pixels: found, united and compared, and the two ways in which COCO writes them.

Runs are `start, length, start, length, ...`, counted from 1 down the columns as in `steel.data.rle`, sorted and never
touching. COCO counts clean, labelled, clean, ... pixels down the same columns: as a list, or compressed to text.

    . . # .
    # . . .     runs    2 2 7 3
    # # . .     counts  1 2 3 3 7
    . # . .     text    "12314"

Source: https://github.com/cocodataset/cocoapi, common/maskApi.c
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from steel.data import rle
from steel.errors import InputError

Runs = NDArray[np.int64]
Size = tuple[int, int]


def find_runs(mask: NDArray[np.bool_] | NDArray[np.uint8]) -> Runs:
    """The runs of all pixels of a mask `(H, W)` that are not 0."""
    return rle.parse(rle.encode(mask))


def count_pixels(runs: Runs) -> int:
    """How many pixels the runs cover."""
    return int(runs[1::2].sum())


def count_changes(before: Runs, after: Runs) -> int:
    """How many pixels are in one of the two and not in the other."""
    return 2 * count_pixels(unite([before, after])) - count_pixels(before) - count_pixels(after)


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
