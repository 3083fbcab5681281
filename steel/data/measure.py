"""What a data set measures: runs, spots and places of its defects, brightness and margins of its images."""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from steel.data import rle
from steel.data.annotations import Annotations
from steel.progress import track

MAP_ROWS = 16  # of the maps of where defects sit; they have as many columns as make their cells square
# Beside the strip Severstal's images have columns of mean grey 0 to 9, while the darkest steel has 16 and more. Edges
# that only lie in the shade are narrower than a fiftieth of the width.
BLACK = 10
MIN_MARGIN = 0.02


@dataclass(frozen=True)
class Defects:
    """What the labels say of each defect.

    Attributes:
        runs: int64 `(n, C)`, runs in the code of class c on image i; 0 where there is none.
        spots: int64 `(n, C)`, 8-connected components.
        maps: `(C, MAP_ROWS, columns)`: for each class and cell of the frame, the share of its pixels that are labelled,
            as the mean over the images with the class.
    """

    runs: NDArray[np.int64]
    spots: NDArray[np.int64]
    maps: NDArray[np.float64]


@dataclass(frozen=True)
class Pixels:
    """What the pixels of sampled images say.

    Attributes:
        indices: `(m,)`, the images that were measured.
        brightness: `(m,)`, mean grey value of the steel, 0..255.
        margins: `(m, 2)`, share of the width that is black at the left and at the right.
    """

    indices: NDArray[np.int64]
    brightness: NDArray[np.float64]
    margins: NDArray[np.float64]


def measure_defects(annotations: Annotations) -> Defects:
    """Counts runs and spots of every defect and maps where they lie; images may differ in size."""
    labels, num_classes = annotations.labels, annotations.num_classes
    aspect = float(np.median(annotations.sizes[:, 1] / annotations.sizes[:, 0]))
    shape = MAP_ROWS, int(np.clip(round(MAP_ROWS * aspect), 4, 10 * MAP_ROWS))
    spots = np.zeros(labels.shape, np.int64)
    maps = np.zeros((num_classes, *shape))
    defects = np.argwhere(labels).tolist()
    for i, c in track(defects, "measuring defects", len(defects)):
        height, width = annotations.sizes[i].tolist()
        runs = annotations.runs_of(i, c)
        first, last = (int(runs[0]) - 1) // height, (int(runs[-2]) + int(runs[-1]) - 2) // height + 1
        block = rle.decode(runs, (height, width))[:, first:last]
        spots[i, c] = cv2.connectedComponents(block, connectivity=8)[0] - 1
        down, across = _weigh(shape[0], height), _weigh(shape[1], width)
        maps[c] += down @ block.astype(np.float32) @ across[:, first:last].T
    maps /= np.maximum(labels.sum(axis=0), 1)[:, None, None]
    return Defects((np.diff(annotations.offsets) // 2).reshape(labels.shape), spots, maps)


@lru_cache(64)
def _weigh(num_cells: int, num_pixels: int) -> NDArray[np.float32]:
    """How much each pixel counts in the mean of each cell, `(cells, pixels)`; an edge of a cell may cut a pixel."""
    edges = np.arange(num_cells + 1)[:, None] * num_pixels / num_cells
    pixels = np.arange(num_pixels)
    overlap = np.minimum(edges[1:], pixels + 1) - np.maximum(edges[:-1], pixels)
    return (overlap.clip(0) * num_cells / num_pixels).astype(np.float32)


def measure_image(image: NDArray[np.uint8]) -> tuple[float, float, float]:
    """Measures the brightness of the steel and the black margins beside it.

    Args:
        image: uint8 `(H, W)`.

    Returns:
        Mean grey value between the margins, and the shares of the width that they take at the left and at the right. A
        margin is columns with a mean grey value below `BLACK`, from the edge on, and at least `MIN_MARGIN` of them; an
        image that is black all over is measured as steel.
    """
    columns = cv2.reduce(image, 0, cv2.REDUCE_AVG, dtype=cv2.CV_64F)[0]
    bright = np.flatnonzero(columns >= BLACK)
    width = len(columns)
    first, last = (int(bright[0]), int(bright[-1]) + 1) if len(bright) else (0, width)
    first = first if first >= MIN_MARGIN * width else 0
    last = last if width - last >= MIN_MARGIN * width else width
    return float(columns[first:last].mean()), first / width, 1 - last / width
