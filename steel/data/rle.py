"""Run-length codes <-> masks, in the form of Kaggle's Severstal data.

A code is `start length start length ...`: pixels are numbered from 1, down the columns, so that pixel 1 is the upper
left one and pixel 2 lies *below* it. In an image of height 4 and width 4

     1  5  9 13                         . . # .
     2  6 10 14      "2 2 7 3"  is      # . . .
     3  7 11 15      pixels 2-3         # # . .
     4  8 12 16      and 7-9            . # . .

Source: https://www.kaggle.com/c/severstal-steel-defect-detection/overview/evaluation
"""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from steel.errors import InputError

Runs = NDArray[np.integer]
Mask = NDArray[np.uint8]

UNKNOWN_BIT = 7  # of a bit plane, where there are at most 7 classes: nobody has labelled this pixel
_BLOCK = 128  # codes that are parsed as one text


def parse(code: str) -> NDArray[np.int64]:
    """Reads the numbers of a code.

    Args:
        code: The text; empty for an empty mask.

    Returns:
        Flat array `(2R,)`: start, length, start, length, ...

    Raises:
        InputError: Something in the code is not a whole number.
    """
    runs = _parse_plain(code, code.count(" ") + 1 if code else 0)
    if runs is None:
        words = [word for word in code.split(" ") if word]
        for word in words:
            if not (word.isascii() and word.isdigit()):
                raise InputError(f'a code holds whole numbers separated by blanks, but "{word[:40]}" stands in it')
        # fromstring holds the largest number for one that is larger still, as no image has so many pixels.
        runs = np.fromstring(" ".join(words), np.int64, sep=" ")
    return runs


def _parse_plain(text: str, num_numbers: int) -> NDArray[np.int64] | None:
    """So many numbers of a text that holds nothing but digits and blanks; None where it may hold anything else.

    What comes out is checked rather than what goes in, which would cost more than the reading itself.
    """
    if num_numbers == 0:
        return np.zeros(0, np.int64)
    # fromstring takes these for a part of a number, or for a blank.
    if "-" in text or "+" in text or "\t" in text or "\n" in text or "\r" in text or "\v" in text or "\f" in text:
        return None
    try:
        numbers: NDArray[np.int64] = np.fromstring(text, np.int64, sep=" ")
    except (DeprecationWarning, ValueError):  # the first, where warnings are errors, says that it stopped in mid-text
        return None
    # An older NumPy only warns and keeps what it has, so a last word such as "2x" is looked at.
    last = text.rstrip(" ").rpartition(" ")[2]
    return numbers if len(numbers) == num_numbers and last.isascii() and last.isdigit() else None


class Fault(NamedTuple):
    """What makes a code unusable.

    Attributes:
        kind: One or two words: "odd code", "not numbers", "zero or negative", "beyond the image", "overlapping runs" or
            "unsorted runs".
        text: The whole of it.
    """

    kind: str
    text: str


def find_fault(runs: Runs, size: tuple[int, int]) -> Fault | None:
    """Says what makes runs unusable for an image of a size, or None where nothing does.

    Args:
        runs: Flat array `(2R,)`: start, length, start, length, ...
        size: Height and width in pixels.
    """
    if len(runs) % 2:
        text = f"a code holds pairs of start and length, but this one has an odd count of numbers, {len(runs)}"
        return Fault("odd code", text)
    starts, lengths = runs[0::2].astype(np.int64), runs[1::2].astype(np.int64)
    ends = starts + lengths
    if len(starts) == 0:
        return None
    if starts.min() < 1:
        return Fault("zero or negative", f"a run starts at pixel {starts.min()}, but pixels count from 1")
    if lengths.min() < 1:
        text = f"a run of {lengths.min()} pixels stands in the code, but a run has 1 pixel or more"
        return Fault("zero or negative", text)
    # Before the sum can be believed: an absurd length overflows it.
    num_pixels = size[0] * size[1]
    beyond = np.flatnonzero((starts > num_pixels) | (lengths > num_pixels) | (ends - 1 > num_pixels))
    if len(beyond):
        start, length = starts[beyond[0]], lengths[beyond[0]]
        text = (
            f"the run of {length} pixels from pixel {start} goes beyond the image, "
            f"which has {size[1]} x {size[0]} = {num_pixels} pixels"
        )
        return Fault("beyond the image", text)
    backwards = np.flatnonzero(starts[1:] < ends[:-1])
    if len(backwards):
        i = backwards[0]
        kind, word = "overlapping runs", "overlaps"
        if starts[i + 1] < starts[i]:
            kind, word = "unsorted runs", "comes after, though it starts before,"
        text = f"the run from pixel {starts[i + 1]} {word} the run of {lengths[i]} pixels from pixel {starts[i]}"
        return Fault(kind, text)
    return None


class Codes(NamedTuple):
    """Many codes, parsed and checked.

    Attributes:
        runs: int32, the numbers of all good codes, one after another.
        offsets: int64 `(n + 1,)`: the runs of code i are `runs[offsets[i] : offsets[i + 1]]`; none for a faulty one.
        faults: What is wrong with a code, by its index.
        touching: Indices of good codes with runs that touch, which are the same mask as fewer, longer runs.
    """

    runs: NDArray[np.int32]
    offsets: NDArray[np.int64]
    faults: dict[int, Fault]
    touching: list[int]


def parse_all(codes: Sequence[str], sizes: NDArray[np.int32]) -> Codes:
    """Parses and checks many codes at once.

    A block of them is read as one text and checked as one array that stays in the cache, which is several times faster
    than one code after another; only those in which something was found are looked at alone.

    Args:
        codes: The texts.
        sizes: int32 `(n, 2)`, height and width of each code's image in pixels.
    """
    runs, counts = [np.zeros(0, np.int32)], [np.zeros(1, np.int64)]
    faults: dict[int, Fault] = {}
    touching: list[int] = []
    for start in range(0, len(codes), _BLOCK):
        numbers, num, wrong, touch = _parse_block(codes[start : start + _BLOCK], sizes[start : start + _BLOCK])
        runs.append(numbers)
        counts.append(num)
        faults |= {start + i: fault for i, fault in wrong.items()}
        touching += [start + i for i in touch]
    return Codes(np.concatenate(runs), np.cumsum(np.concatenate(counts)), faults, touching)


def _parse_block(
    codes: Sequence[str], sizes: NDArray[np.int32]
) -> tuple[NDArray[np.int32], NDArray[np.int64], dict[int, Fault], list[int]]:
    """The numbers of the good codes, how many each code has, the faults, and which codes have runs that touch."""
    numbers, counts, faults = _parse_joined(codes) or _parse_singly(codes)
    suspects = range(len(codes)) if (counts % 2).any() else _find_suspects(numbers, counts, sizes)
    ends = np.cumsum(counts)
    touching = []
    for i in sorted(set(suspects).difference(faults)):
        runs = numbers[ends[i] - counts[i] : ends[i]]
        if fault := find_fault(runs, (int(sizes[i, 0]), int(sizes[i, 1]))):
            faults[i] = fault
        elif (runs[2::2] == runs[:-2:2] + runs[1:-1:2]).any():
            touching.append(i)
    if faults:
        good = np.ones(len(codes), bool)
        good[list(faults)] = False
        numbers = numbers[np.repeat(good, counts)]
        counts = np.where(good, counts, 0)
    return numbers.astype(np.int32), counts, faults, touching


def _parse_joined(codes: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64], dict[int, Fault]] | None:
    """All numbers and how many each code has; None where one is anything but numbers between single blanks."""
    counts = np.array([code.count(" ") + 1 if code else 0 for code in codes], np.int64)
    # Blanks too many make the count of a code too large, and nothing can make another one's too small.
    numbers = _parse_plain(" ".join(codes), int(counts.sum()))
    return None if numbers is None else (numbers, counts, {})


def _parse_singly(codes: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64], dict[int, Fault]]:
    parsed, faults = [], {}
    for i, code in enumerate(codes):
        try:
            parsed.append(parse(code))
        except InputError as error:
            faults[i] = Fault("not numbers", str(error))
            parsed.append(np.zeros(0, np.int64))
    counts = np.array([len(runs) for runs in parsed], np.int64)
    return np.concatenate([np.zeros(0, np.int64), *parsed]), counts, faults


def _find_suspects(numbers: NDArray[np.int64], counts: NDArray[np.int64], sizes: NDArray[np.int32]) -> list[int]:
    """Codes, of even counts, in which a number is out of range or a run does not lie behind the one before it."""
    if len(numbers) == 0:
        return []
    starts, lengths = numbers[0::2], numbers[1::2]
    ends = starts + lengths
    last = np.cumsum(counts)[counts > 0] // 2 - 1
    pixels = sizes.astype(np.int64).prod(axis=1)[counts > 0]
    wrong = starts[1:] <= ends[:-1]
    wrong[last[:-1]] = False  # the next run is another code's
    found = [np.flatnonzero(wrong), last[ends[last] - 1 > pixels]]
    most = pixels.max()
    # The sum of absurd numbers overflows, so that `ends` alone would let them pass.
    if starts.min() < 1 or lengths.min() < 1 or max(starts.max(), lengths.max()) > most:
        found.append(np.flatnonzero((starts < 1) | (lengths < 1) | (starts > most) | (lengths > most)))
    owners = np.flatnonzero(counts)[np.searchsorted(last, np.concatenate(found))]
    suspects: list[int] = owners.tolist()
    return suspects


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
    runs = parse(code) if isinstance(code, str) else code
    if out is None:
        out = np.zeros(size, np.uint8)
    elif out.shape != size or out.dtype != np.uint8:
        raise ValueError(f"out is a uint8 array of shape {size}, but {out.dtype} of {out.shape} came")
    else:
        out.fill(0)
    if len(runs):
        counts, columns = _measure(runs, size)
        cv2.transpose(_fill(counts, 1, size[0]), dst=out[:, columns])
    return out


def add(plane: NDArray[np.uint8], runs: Runs, bit: int) -> None:
    """Sets one bit of a bit plane wherever the runs say so; the other bits stay as they are.

    Args:
        plane: uint8 `(H, W)`, changed in place.
        runs: Flat array `(2R,)`: start, length, start, length, ...
        bit: 0 to 7.

    Raises:
        InputError: The code is malformed, unsorted, overlaps itself or leaves the image.
    """
    if len(runs):
        counts, columns = _measure(runs, plane.shape)
        view = plane[:, columns]
        cv2.bitwise_or(view, cv2.transpose(_fill(counts, 1 << bit, plane.shape[0])), dst=view)


def _measure(runs: Runs, size: tuple[int, ...]) -> tuple[NDArray[np.int64], slice]:
    """How long the gaps and runs of a code are, in turn, from the first to the last column that it touches.

    Raises:
        InputError: See `decode`.
    """
    height, num_pixels = size[0], size[0] * size[1]
    edges = np.empty(len(runs) + 2, np.int64)
    if len(runs) % 2 == 0:
        np.subtract(runs[0::2], 1, out=edges[1:-1:2])
        np.add(edges[1:-1:2], runs[1::2], out=edges[2:-1:2])
        start, end = int(edges[1]), int(edges[-2])
        # What lies in order between the ends of the image is faultless, also after a sum that came round.
        if 0 <= start < end <= num_pixels:
            first, last = start // height, (end - 1) // height + 1
            edges[0], edges[-1] = first * height, last * height
            counts: NDArray[np.int64] = np.diff(edges)
            if counts.min() >= 0 and counts[1::2].min() >= 1:
                return counts, slice(first, last)
    fault = find_fault(runs, (size[0], size[1]))
    assert fault is not None
    raise InputError(fault.text)


def _fill(counts: NDArray[np.int64], value: int, height: int) -> Mask:
    """A transposed block `(columns, H)` with 0 in the gaps and a value in the runs.

    One `np.repeat` fills at the speed of memset; a cumulative sum over the pixels is twenty times slower, a slice for
    each run three times.
    """
    values = np.zeros(len(counts), np.uint8)
    values[1::2] = value
    return np.repeat(values, counts).reshape(-1, height)


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
    touched = np.flatnonzero(mask.max(axis=0))
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
