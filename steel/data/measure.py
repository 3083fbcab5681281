"""Measurements of a dataset: runs, spots and positions of its defects, brightness and margins of its images."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from steel.data import rle
from steel.data.annotations import Annotations
from steel.data.exposure import measure_image
from steel.data.runs import find_columns
from steel.data.spots import label_spots
from steel.errors import InputError
from steel.progress import map_on_all_cores, track

MAP_ROWS = 16  # of a position map; the number of columns makes its cells square


@dataclass(frozen=True)
class Defects:
    """Measurements of the labels.

    Attributes:
        runs: int64 `(n, C)`, runs in the code of each class on each image.
        spots: int64 `(n, C)`, 8-connected components.
        maps: `(C, MAP_ROWS, columns)`, the labelled share of each cell, averaged over the images with the class.
    """

    runs: NDArray[np.int64]
    spots: NDArray[np.int64]
    maps: NDArray[np.float64]


@dataclass(frozen=True)
class Pixels:
    """Measurements of a sample of m images.

    Attributes:
        indices: `(m,)`, rows of the table.
        brightness: `(m,)`, mean grey value of the steel, 0..255.
        margins: `(m, 2)`, shares of the width that are black at the left and at the right.
    """

    indices: NDArray[np.int64]
    brightness: NDArray[np.float64]
    margins: NDArray[np.float64]


def measure_defects(annotations: Annotations) -> Defects:
    """Count runs and spots of every defect and average positions over images of any size."""
    labels, num_classes = annotations.labels, annotations.num_classes
    aspect = float(np.median(annotations.sizes[:, 1] / annotations.sizes[:, 0]))
    shape = MAP_ROWS, int(np.clip(round(MAP_ROWS * aspect), 4, 10 * MAP_ROWS))
    spots = np.zeros(labels.shape, np.int64)
    maps = np.zeros((num_classes, *shape))
    defects = np.argwhere(labels).tolist()
    for i, c in track(defects, "measuring defects", len(defects)):
        height, width = annotations.sizes[i].tolist()
        runs = annotations.runs_of(i, c)
        columns = find_columns(runs, height)
        block = rle.decode(runs, (height, width))[:, columns]
        spots[i, c] = label_spots(block)[0]
        down, across = _compute_weights(shape[0], height), _compute_weights(shape[1], width)
        maps[c] += down @ block.astype(np.float32) @ across[:, columns].T
    maps /= np.maximum(labels.sum(axis=0), 1)[:, None, None]
    return Defects((np.diff(annotations.offsets) // 2).reshape(labels.shape), spots, maps)


@lru_cache(64)
def _compute_weights(num_cells: int, num_pixels: int) -> NDArray[np.float32]:
    """Return the weight of each pixel in the mean of each cell, `(cells, pixels)`; cells may divide pixels."""
    edges = np.arange(num_cells + 1)[:, None] * num_pixels / num_cells
    pixels = np.arange(num_pixels)
    overlap = np.minimum(edges[1:], pixels + 1) - np.maximum(edges[:-1], pixels)
    return (overlap.clip(0) * num_cells / num_pixels).astype(np.float32)


@dataclass
class Reader:
    """A reader of images that collects the error messages of unreadable ones in `broken`, by file name."""

    annotations: Annotations
    broken: dict[str, str] = field(default_factory=dict)

    def read(self, index: int) -> NDArray[np.uint8] | None:
        """Return an image, uint8 `(H, W)`, or None if it cannot be read."""
        try:
            return self.annotations.read_image(index)
        except InputError as error:
            self.broken[str(self.annotations.names[index])] = str(error)
            return None

    def read_first(self, candidates: Iterable[int], num: int) -> dict[int, NDArray[np.uint8]]:
        """Return the first `num` readable images among rows of the table, by row."""
        found: dict[int, NDArray[np.uint8]] = {}
        for i in candidates:
            if len(found) == num:
                break
            if (image := self.read(i)) is not None:
                found[i] = image
        return found


def measure_pixels(reader: Reader, sample: int, seed: int) -> Pixels:
    """Measure brightness and margins on a random sample of at most `sample` images; unreadable ones are skipped."""
    n = len(reader.annotations)
    chosen = np.sort(np.random.default_rng(seed).choice(n, min(sample, n), replace=False)).tolist()

    def measure(i: int) -> tuple[float, ...] | None:
        image = reader.read(i)
        return None if image is None else (i, *measure_image(image))

    measured = list(map_on_all_cores(measure, chosen, "measuring pixels"))
    table = np.array([row for row in measured if row is not None], float).reshape(-1, 4)
    return Pixels(table[:, 0].astype(np.int64), table[:, 1], table[:, 2:])
