"""Conversion between run-length codes and masks, in the format of Kaggle's Severstal competition.

A code is the text `start length start length ...`. Pixels are numbered from 1 down the columns: pixel 1 is the upper
left pixel and pixel 2 is *below* it. For an image of height 4 and width 4:

     1  5  9 13                         . . # .
     2  6 10 14      "2 2 7 3"  is      # . . .
     3  7 11 15      pixels 2-3         # # . .
     4  8 12 16      and 7-9            . # . .

The numbers of a code as a flat array are its runs; see `steel.data.runs`.
Source: https://www.kaggle.com/c/severstal-steel-defect-detection/overview/evaluation
"""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from steel.data.runs import Runs, Size
from steel.errors import InputError

Mask = NDArray[np.uint8]
UNKNOWN_BIT = 7  # the bit of a bit plane that marks unlabelled pixels in datasets of at most 7 classes
_BLOCK = 128  # number of codes that `parse_all` parses as one text


def parse(code: str) -> NDArray[np.int64]:
    """Return the runs of a code, without checking them against an image.

    Raises:
        InputError: The code contains something other than whole numbers and blanks.
    """
    runs = _parse_plain(code, code.count(" ") + 1 if code else 0)
    if runs is None:
        words = [word for word in code.split(" ") if word]
        for word in words:
            if not (word.isascii() and word.isdigit()):
                raise InputError(f'a code must hold whole numbers separated by blanks, got "{word[:40]}"')
        # fromstring returns the largest int64 for a larger number; no image has that many pixels.
        runs = np.fromstring(" ".join(words), np.int64, sep=" ")
    return runs


def _parse_plain(text: str, num_numbers: int) -> NDArray[np.int64] | None:
    """Parse digits and single blanks; return None if there is anything else. Checking first would take longer."""
    if num_numbers == 0:
        return np.zeros(0, np.int64)
    # fromstring accepts these as part of a number or as a blank.
    if "-" in text or "+" in text or "\t" in text or "\n" in text or "\r" in text or "\v" in text or "\f" in text:
        return None
    try:
        numbers: NDArray[np.int64] = np.fromstring(text, np.int64, sep=" ")
    except (DeprecationWarning, ValueError):  # invalid text; the warning is raised where warnings are errors
        return None
    # Older NumPy versions only warn and return the numbers so far, so check the last word, which may be "2x".
    last = text.rstrip(" ").rpartition(" ")[2]
    return numbers if len(numbers) == num_numbers and last.isascii() and last.isdigit() else None


class Fault(NamedTuple):
    """Why a code is invalid.

    Attributes:
        kind: "odd code", "not numbers", "zero or negative", "beyond the image", "overlapping runs" or "unsorted runs".
        text: The error message, without its place and remedy.
    """

    kind: str
    text: str


def find_fault(runs: Runs, size: Size) -> Fault | None:
    """Return the first reason why runs are invalid for an image of a size, or None if they are valid."""
    if len(runs) % 2:
        text = f"a code must hold pairs of start and length, got an odd count of numbers ({len(runs)})"
        return Fault("odd code", text)
    if len(runs) == 0:
        return None
    starts, lengths = runs[0::2].astype(np.int64), runs[1::2].astype(np.int64)
    ends = starts + lengths
    if starts.min() < 1:
        return Fault("zero or negative", f"a run must start at pixel 1 or later, got pixel {starts.min()}")
    if lengths.min() < 1:
        return Fault("zero or negative", f"a run must have at least 1 pixel, got {lengths.min()}")
    # The sum of huge numbers overflows, so each number is checked as well.
    num_pixels = size[0] * size[1]
    beyond = np.flatnonzero((starts > num_pixels) | (lengths > num_pixels) | (ends - 1 > num_pixels))
    if len(beyond):
        run = f"the run of {lengths[beyond[0]]} pixels from pixel {starts[beyond[0]]}"
        text = f"{run} goes beyond the image, which has {size[1]} x {size[0]} = {num_pixels} pixels"
        return Fault("beyond the image", text)
    i = next(iter(np.flatnonzero(starts[1:] < ends[:-1])), None)
    if i is None:
        return None
    run, previous = f"the run from pixel {starts[i + 1]}", f"the run of {lengths[i]} pixels from pixel {starts[i]}"
    if starts[i + 1] < starts[i]:
        return Fault("unsorted runs", f"runs must be sorted by their start, but {run} follows {previous}")
    return Fault("overlapping runs", f"{run} overlaps {previous}")


class Codes(NamedTuple):
    """Many parsed and checked codes.

    Attributes:
        runs: int32, the runs of all valid codes in one flat array.
        offsets: int64 `(n + 1,)`. Code i has the runs `runs[offsets[i] : offsets[i + 1]]`, none if it is invalid.
        faults: Why a code is invalid, by the index of the code.
        touching: Indices of valid codes whose runs touch; fewer, longer runs would describe the same mask.
    """

    runs: NDArray[np.int32]
    offsets: NDArray[np.int64]
    faults: dict[int, Fault]
    touching: list[int]


def parse_all(codes: Sequence[str], sizes: NDArray[np.int32]) -> Codes:
    """Parse and check many codes, several times faster than one at a time.

    Args:
        codes: The n texts.
        sizes: int32 `(n, 2)`, height and width in pixels of the image of each code.
    """
    runs, counts = [np.zeros(0, np.int32)], [np.zeros(1, np.int64)]
    faults: dict[int, Fault] = {}
    touching: list[int] = []
    for start in range(0, len(codes), _BLOCK):
        block = _parse_block(codes[start : start + _BLOCK], sizes[start : start + _BLOCK])
        runs.append(block[0])
        counts.append(block[1])
        faults |= {start + i: fault for i, fault in block[2].items()}
        touching += [start + i for i in block[3]]
    return Codes(np.concatenate(runs), np.cumsum(np.concatenate(counts)), faults, touching)


def _parse_block(
    codes: Sequence[str], sizes: NDArray[np.int32]
) -> tuple[NDArray[np.int32], NDArray[np.int64], dict[int, Fault], list[int]]:
    """Return the runs of all valid codes, their count for each code, the faults, and the codes with touching runs."""
    # One text and one array, which fits the cache, are several times faster than one code at a time.
    counts = np.array([code.count(" ") + 1 if code else 0 for code in codes], np.int64)
    # Extra blanks make the count of a code too large, and nothing makes the count of another code too small.
    numbers = _parse_plain(" ".join(codes), int(counts.sum()))
    if numbers is not None and _is_clean(numbers, counts, sizes):
        return numbers.astype(np.int32), counts, {}, []
    parsed, faults, touching = [np.zeros(0, np.int64)] * len(codes), {}, []
    for i, code in enumerate(codes):
        try:
            runs = parse(code)
        except InputError as error:
            faults[i] = Fault("not numbers", str(error))
            continue
        if fault := find_fault(runs, (int(sizes[i, 0]), int(sizes[i, 1]))):
            faults[i] = fault
            continue
        parsed[i] = runs
        if (runs[2::2] == runs[:-2:2] + runs[1:-1:2]).any():
            touching.append(i)
    counts = np.array([len(runs) for runs in parsed], np.int64)
    return np.concatenate(parsed).astype(np.int32), counts, faults, touching


def _is_clean(numbers: NDArray[np.int64], counts: NDArray[np.int64], sizes: NDArray[np.int32]) -> bool:
    """Return whether all codes are valid and have no touching runs."""
    if (counts % 2).any():
        return False
    starts, lengths = numbers[0::2], numbers[1::2]
    ends = starts + lengths
    previous = np.concatenate([[0], ends])[: len(ends)]
    previous[np.cumsum(counts)[:-1][counts[1:] > 0] // 2] = 0  # the run before belongs to another code
    pixels = np.repeat(sizes.astype(np.int64).prod(axis=1), counts // 2)
    # The sum of huge numbers overflows, so each number is checked as well.
    is_inside = (starts <= pixels) & (lengths <= pixels) & (ends - 1 <= pixels)
    return bool(((starts > previous) & (lengths > 0) & is_inside).all())


def decode(code: str | Runs, size: Size, out: Mask | None = None) -> Mask:
    """Draw a code as a mask: uint8 `(H, W)`, 1 in the runs and 0 elsewhere.

    Example:
        >>> decode("2 2 7 3", (4, 4))
        array([[0, 0, 1, 0],
               [1, 0, 0, 0],
               [1, 1, 0, 0],
               [0, 1, 0, 0]], dtype=uint8)

    Args:
        code: The text, or its runs.
        size: Height and width of the image in pixels.
        out: Array to draw into and return. The page faults of a new array cost more than drawing.

    Raises:
        InputError: The code is malformed, unsorted, overlaps itself or leaves the image.
    """
    runs = parse(code) if isinstance(code, str) else code
    if out is None:
        out = np.zeros(size, np.uint8)
    elif out.shape != size or out.dtype != np.uint8:
        raise ValueError(f"out must be a uint8 array of shape {size}, got {out.dtype} of shape {out.shape}")
    else:
        out.fill(0)
    if len(runs):
        block, columns = _fill(runs, size, 1)
        cv2.transpose(block, dst=out[:, columns])
    return out


def add(plane: Mask, runs: Runs, bit: int) -> None:
    """Set a bit (0 to 7) of a bit plane, uint8 `(H, W)`, in place in all pixels of the runs.

    Raises:
        InputError: The runs are malformed, unsorted, overlap or leave the image.
    """
    if len(runs):
        block, columns = _fill(runs, plane.shape, 1 << bit)
        view = plane[:, columns]
        cv2.bitwise_or(view, cv2.transpose(block), dst=view)


def _fill(runs: Runs, size: tuple[int, ...], value: int) -> tuple[Mask, slice]:
    """Return a transposed block `(columns, H)` with `value` in the runs, and the columns, those that the runs touch."""
    height, num_pixels = size[0], size[0] * size[1]
    edges = np.empty(len(runs) + 2, np.int64)
    if len(runs) % 2 == 0:
        np.subtract(runs[0::2], 1, out=edges[1:-1:2])
        np.add(edges[1:-1:2], runs[1::2], out=edges[2:-1:2])
        start, end = int(edges[1]), int(edges[-2])
        # Edges in ascending order within the image are valid, even if a sum overflowed.
        if 0 <= start < end <= num_pixels:
            first, last = start // height, (end - 1) // height + 1
            edges[0], edges[-1] = first * height, last * height
            counts = np.diff(edges)  # the lengths of gap, run, gap, run, ...
            if counts.min() >= 0 and counts[1::2].min() >= 1:
                # np.repeat is as fast as memset. A cumulative sum is twenty times slower, a slice per run three times.
                values = np.zeros(len(counts), np.uint8)
                values[1::2] = value
                return np.repeat(values, counts).reshape(-1, height), slice(first, last)
    fault = find_fault(runs, (size[0], size[1]))
    assert fault is not None
    raise InputError(fault.text)


def find_runs(mask: NDArray[np.bool_] | Mask) -> NDArray[np.int64]:
    """Return the runs of all nonzero pixels of a mask `(H, W)`; they are sorted and never touch.

    Example:
        >>> find_runs(decode("2 2 7 3", (4, 4)))
        array([2, 2, 7, 3])
    """
    mask = np.ascontiguousarray(mask).view(np.uint8)
    touched = np.flatnonzero(mask.max(axis=0))
    if len(touched) == 0:
        return np.zeros(0, np.int64)
    first, last, height = int(touched[0]), int(touched[-1]) + 1, mask.shape[0]
    flat = np.zeros((last - first) * height + 2, bool)
    # Column after column, with a 0 at both ends so that every run has two edges.
    flat[1:-1] = cv2.transpose(mask[:, first:last]).reshape(-1)
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    runs: NDArray[np.int64] = edges.copy()
    runs[0::2] += first * height + 1
    runs[1::2] -= edges[0::2]
    return runs


def encode(mask: NDArray[np.bool_] | Mask) -> str:
    """Return the code of a mask, empty for an empty mask; see `find_runs`."""
    runs = find_runs(mask)
    return ("%d " * len(runs) % tuple(runs.tolist()))[:-1]
