"""Spots: the 8-connected components of the mask of one class. Imports NumPy and OpenCV only."""

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from steel.data import rle
from steel.data.runs import Runs, Size, find_columns


class Spot(NamedTuple):
    """One spot.

    Attributes:
        class_index: The class, counted from 0.
        area_pixels: Number of pixels.
        box: Left, top, width and height in pixels.
        centroid: Mean x and y of its pixels; the upper left pixel of the image is at (0, 0).
        code: Its run-length code.
    """

    class_index: int
    area_pixels: int
    box: tuple[int, int, int, int]
    centroid: tuple[float, float]
    code: str


def label_spots(mask: NDArray[np.bool_] | NDArray[np.uint8]) -> tuple[int, NDArray[np.int32]]:
    """Label the spots of a mask `(H, W)`.

    Returns:
        The number of spots, and int32 `(H, W)`: 0 for the background and 1, 2, ... for the spots.
    """
    num_labels, labels = cv2.connectedComponents(mask.view(np.uint8), connectivity=8)
    return num_labels - 1, np.asarray(labels, np.int32)


def split_spots(runs: Runs, size: Size) -> list[Runs]:
    """Return the runs of each spot of a mask.

    Raises:
        InputError: The runs are invalid for an image of this size.
    """
    if len(runs) == 0:
        return []
    columns = find_columns(runs, size[0])
    return _find_runs(*label_spots(rle.decode(runs, size)[:, columns]), columns.start)


def list_spots(masks: NDArray[np.bool_]) -> list[Spot]:
    """Return the spots of masks `(C, H, W)`, ordered by class and then by their first pixel, down the columns."""
    spots: list[Spot] = []
    for c, mask in enumerate(masks):
        touched = np.flatnonzero(mask.any(axis=0))
        if len(touched) == 0:
            continue
        first, block = int(touched[0]), mask[:, touched[0] : touched[-1] + 1].view(np.uint8)
        num_labels, labels, stats, centroids = cv2.connectedComponentsWithStats(block, connectivity=8)
        runs = _find_runs(num_labels - 1, np.asarray(labels, np.int32), first)
        for i in np.argsort([spot[0] for spot in runs]).tolist():
            left, top, width, height, area = stats[i + 1].tolist()
            x, y = centroids[i + 1].tolist()
            code = " ".join(map(str, runs[i].tolist()))
            spots.append(Spot(c, area, (left + first, top, width, height), (x + first, y), code))
    return spots


def _find_runs(num_spots: int, labels: NDArray[np.int32], first_column: int) -> list[Runs]:
    """Return the runs of each spot in a block of columns; a run of the whole mask may belong to two spots."""
    flat = cv2.transpose(labels).ravel()
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])  # np.diff would copy the labels twice
    owners = flat[starts]
    runs = np.column_stack([starts + first_column * len(labels) + 1, np.diff(starts, append=flat.size)])
    order = np.argsort(owners, kind="stable")
    bounds = np.searchsorted(owners[order], np.arange(1, num_spots + 2))
    runs = runs[order]
    return [runs[bounds[i] : bounds[i + 1]].ravel() for i in range(num_spots)]
