"""Overlapping tiles of images that are too large to go through a network whole. Can be scripted.

A network sees each tile with a margin that only its neighbours decide on. Tiles begin at multiples of 128 pixels, so
that the strides of a network fall on the same pixels as in the whole image.
"""

import math
from typing import NamedTuple

# Pixels of the largest image that goes through the networks whole: a batch of one then takes 1.1 GB (2026-11).
LARGEST_WHOLE = 2**23
MARGIN = 128
_GRID = 128


class Span(NamedTuple):
    """Rows or columns of a tile: the network sees `start` to `end`, and its outputs from `first` to `last` count."""

    start: int
    end: int
    first: int
    last: int


class Tile(NamedTuple):
    """Rows and columns of a tile. The parts that count cover the image once."""

    rows: Span
    columns: Span


def list_tiles(height: int, width: int, pixels: int) -> list[Tile]:
    """Divide an image into overlapping tiles of about `pixels` pixels: square, or longer if the image is narrow.

    An image of at most `pixels` pixels is a single tile.
    """
    if height * width <= pixels:
        return [Tile(Span(0, height, 0, height), Span(0, width, 0, width))]
    side = int(math.sqrt(pixels))
    num_rows, num_columns = side, side
    if height < side:
        num_columns = pixels // height
    elif width < side:
        num_rows = pixels // width
    tiles: list[Tile] = []
    for rows in _split(height, num_rows):
        for columns in _split(width, num_columns):
            tiles.append(Tile(rows, columns))  # noqa: PERF401, TorchScript has no nested comprehensions
    return tiles


# TorchScript reads no global numbers, but default values.
def _split(length: int, size: int, margin: int = MARGIN, grid: int = _GRID) -> list[Span]:
    """Divide a side into the smallest number of overlapping spans of at most about `size` pixels."""
    overlap = 2 * margin
    longest_step = max(1, (size - overlap) // grid) * grid
    if length <= max(size, overlap + longest_step):
        return [Span(0, length, 0, length)]
    num = _divide_up(length - overlap, longest_step)
    step = _divide_up(_divide_up(length - overlap, num), grid) * grid  # spans of similar lengths
    spans: list[Span] = []
    for start in range(0, length - overlap, step):
        end = min(start + step + overlap, length)
        first = start + margin if start > 0 else 0
        last = end - margin if end < length else length
        spans.append(Span(start, end, first, last))
    return spans


def _divide_up(a: int, b: int) -> int:
    return (a + b - 1) // b
