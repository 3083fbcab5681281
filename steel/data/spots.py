"""Spots, one by one: what an inspector looks at, and what every list of defects holds.

A spot is an 8-connected component of the mask of one class. Needs NumPy and OpenCV alone.
"""

from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray


class Spot(NamedTuple):
    """One spot.

    Attributes:
        class_index: The class, from 0; in files it counts from 1.
        area_pixels: How many pixels it has.
        box: Left, top, width and height in pixels.
        centroid: Mean x and y of its pixels, that of the first row and column being 0.
        code: Its pixels as a run-length code; see `steel.data.rle`.
    """

    class_index: int
    area_pixels: int
    box: tuple[int, int, int, int]
    centroid: tuple[float, float]
    code: str


def list_spots(masks: NDArray[np.bool_]) -> list[Spot]:
    """The spots of an image, class by class, and within one in the order of their codes: left to right.

    Args:
        masks: bool `(C, H, W)`.
    """
    return [spot for c, mask in enumerate(masks) if mask.any() for spot in _split(c, mask)]


def _split(class_index: int, mask: NDArray[np.bool_]) -> Iterator[Spot]:
    height = mask.shape[0]
    touched = np.flatnonzero(mask.any(axis=0))
    first, last = int(touched[0]), int(touched[-1]) + 1
    block = np.ascontiguousarray(mask[:, first:last]).view(np.uint8)
    _, spots, stats, centroids = cv2.connectedComponentsWithStats(block, connectivity=8)
    # A run of the mask's own code may go on from the foot of one column into another spot at the head of the next.
    flat = cv2.transpose(spots).ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=-1))
    lengths, owners = np.diff(starts, append=flat.size), flat[starts]
    starts += first * height + 1
    order = np.argsort(owners, kind="stable")
    runs = np.column_stack([starts, lengths])[order]
    ends = np.searchsorted(owners[order], np.arange(len(stats)), side="right")
    # Spot 0 is the background.
    for i in 1 + np.argsort(runs[ends[:-1], 0]):
        left, top, width, below, area = stats[i].tolist()
        x, y = centroids[i].tolist()
        code = " ".join(map(str, runs[ends[i - 1] : ends[i]].ravel().tolist()))
        yield Spot(class_index, area, (left + first, top, width, below), (x + first, y), code)
