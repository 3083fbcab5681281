"""Run-length codes <-> masks, in the form of Kaggle's Severstal data.

A code is `start length start length ...`: pixels are numbered from 1, down the columns, so that pixel 1 is the upper
left one and pixel 2 lies *below* it. In an image of height 4 and width 4

     1  5  9 13
     2  6 10 14      "2 2 7 3"  is      . # # .
     3  7 11 15      pixels 2-3         # . # .
     4  8 12 16      and 7-9            # # . .
                                        . # . .

Source: https://www.kaggle.com/c/severstal-steel-defect-detection/overview/evaluation
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from steel.errors import InputError

Runs = NDArray[np.integer]


def parse(code: str) -> NDArray[np.int64]:
    """Reads the numbers of a code.

    Args:
        code: The text; empty for an empty mask.

    Returns:
        Flat array `(2R,)`: start, length, start, length, ...

    Raises:
        InputError: There is something in the code that is not a whole number.
    """
    if not code.strip():
        return np.zeros(0, np.int64)
    if not (code.isascii() and code.replace(" ", "").isdigit()):
        word = next(word for word in code.split(" ") if word and not (word.isascii() and word.isdigit()))
        raise InputError(f'a code holds whole numbers separated by blanks, but "{word[:40]}" stands in it')
    runs: NDArray[np.int64] = np.fromstring(code, dtype=np.int64, sep=" ")
    return runs


def find_fault(runs: Runs, size: tuple[int, int]) -> str | None:
    """Says what makes runs unusable for an image of a size, or None where nothing does.

    Args:
        runs: Flat array `(2R,)`: start, length, start, length, ...
        size: Height and width in pixels.
    """
    if len(runs) % 2:
        return f"a code holds pairs of start and length, but this one has an odd count of numbers, {len(runs)}"
    starts, lengths = runs[0::2].astype(np.int64), runs[1::2].astype(np.int64)
    ends = starts + lengths
    if len(starts) == 0:
        return None
    if starts.min() < 1:
        return f"a run starts at pixel {starts.min()}, but pixels count from 1"
    if lengths.min() < 1:
        return f"a run of {lengths.min()} pixels stands in the code, but a run has 1 pixel or more"
    # Before the sum can be believed: an absurd length overflows it.
    num_pixels = size[0] * size[1]
    beyond = np.flatnonzero((starts > num_pixels) | (lengths > num_pixels) | (ends - 1 > num_pixels))
    if len(beyond):
        start, length = starts[beyond[0]], lengths[beyond[0]]
        return (
            f"the run of {length} pixels from pixel {start} goes beyond the image, "
            f"which has {size[1]} x {size[0]} = {num_pixels} pixels"
        )
    backwards = np.flatnonzero(starts[1:] < ends[:-1])
    if len(backwards):
        i = backwards[0]
        word = "overlaps" if starts[i + 1] >= starts[i] else "comes after, though it starts before,"
        return f"the run from pixel {starts[i + 1]} {word} the run of {lengths[i]} pixels from pixel {starts[i]}"
    return None


def decode(code: str | Runs, size: tuple[int, int], out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
    """Draws a code as a mask.

    Example:
        >>> decode("2 2 7 3", (4, 4))
        array([[0, 0, 1, 0],
               [1, 0, 0, 0],
               [1, 1, 0, 0],
               [0, 1, 0, 0]], dtype=uint8)

    Args:
        code: The text, or its numbers as a flat array.
        size: Height and width of the image in pixels.
        out: A uint8 array `(H, W)` to draw into. Saves the page faults of a fresh array, which cost more than drawing.

    Returns:
        The mask `(H, W)`, 1 where the code says so and 0 elsewhere; `out` itself where it was given.

    Raises:
        InputError: The code is malformed, unsorted, overlaps itself or leaves the image.
    """
    runs = parse(code) if isinstance(code, str) else code.astype(np.int64)
    if fault := find_fault(runs, size):
        raise InputError(fault)
    if out is None:
        out = np.zeros(size, np.uint8)
    elif out.shape != size or out.dtype != np.uint8:
        raise ValueError(f"out is a uint8 array of shape {size}, but {out.dtype} of {out.shape} came")
    else:
        out.fill(0)
    if len(runs):
        block, columns = _draw(runs, size[0], 1)
        cv2.transpose(block, dst=out[:, columns])
    return out


def add(plane: NDArray[np.uint8], runs: Runs, bit: int) -> None:
    """Sets one bit of a bit plane wherever the runs say so; the other bits stay as they are.

    Args:
        plane: uint8 `(H, W)`, changed in place.
        runs: Flat array `(2R,)` that `find_fault` found nothing in.
        bit: 0 to 7.
    """
    if len(runs):
        block, columns = _draw(runs, plane.shape[0], 1 << bit)
        view = plane[:, columns]
        cv2.bitwise_or(view, cv2.transpose(block), dst=view)


def _draw(runs: Runs, height: int, value: int) -> tuple[NDArray[np.uint8], slice]:
    """The columns that the runs touch, as a transposed block `(columns, H)`, and which columns these are.

    One `np.repeat` over alternating gaps and runs fills at the speed of memset; a cumulative sum over the pixels is
    twenty times slower, a slice for each run three times.
    """
    starts, lengths = runs[0::2] - 1, runs[1::2]
    first = int(starts[0]) // height
    last = int(starts[-1] + lengths[-1] - 1) // height + 1
    edges = np.empty(2 * len(starts) + 2, np.int64)
    edges[0] = first * height
    edges[1:-1:2] = starts
    edges[2:-1:2] = starts + lengths
    edges[-1] = last * height
    values = np.zeros(len(edges) - 1, np.uint8)
    values[1::2] = value
    return np.repeat(values, np.diff(edges)).reshape(last - first, height), slice(first, last)


def encode(mask: NDArray[np.bool_] | NDArray[np.uint8]) -> str:
    """Writes a mask as a code.

    Example:
        >>> encode(decode("2 2 7 3", (4, 4)))
        '2 2 7 3'

    Args:
        mask: `(H, W)`, bool or uint8; every pixel other than 0 counts.

    Returns:
        The code; empty for an empty mask. Runs are sorted and never touch.
    """
    mask = np.ascontiguousarray(mask).view(np.uint8)
    touched = np.flatnonzero(np.bitwise_or.reduce(mask, axis=0))
    if len(touched) == 0:
        return ""
    first, last, height = int(touched[0]), int(touched[-1]) + 1, mask.shape[0]
    flat = np.zeros((last - first) * height + 2, bool)
    # Transposed into place: column after column, with a 0 before and behind so that every run has both its edges.
    flat[1:-1] = cv2.transpose(mask[:, first:last]).reshape(-1)
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    numbers = edges.copy()
    numbers[0::2] += first * height + 1
    numbers[1::2] -= edges[0::2]
    return ("%d " * len(numbers) % tuple(numbers.tolist()))[:-1]
