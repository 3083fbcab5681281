"""Brightness of the steel and black margins beside it. Imports NumPy and OpenCV only."""

import cv2
import numpy as np
from numpy.typing import NDArray

# In Severstal's images, columns beside the strip have a mean grey value of 0 to 9, and the darkest steel at least 16.
# Shaded edges of the strip are narrower than 2 % of the width.
BLACK = 10
MIN_MARGIN = 0.02


def measure_image(image: NDArray[np.uint8]) -> tuple[float, float, float]:
    """Measure the brightness of the steel in an image, uint8 `(H, W)`, and the black margins beside it.

    A margin consists of the columns from an edge on with a mean grey value below `BLACK`, and takes at least
    `MIN_MARGIN` of the width. An entirely black image has no margins.

    Returns:
        Mean grey value between the margins (0 to 255), and the left and right margins as fractions of the width.
    """
    columns = cv2.reduce(image, 0, cv2.REDUCE_AVG, dtype=cv2.CV_64F)[0]
    bright = np.flatnonzero(columns >= BLACK)
    width = len(columns)
    first, last = (int(bright[0]), int(bright[-1]) + 1) if len(bright) else (0, width)
    first = first if first >= MIN_MARGIN * width else 0
    last = last if width - last >= MIN_MARGIN * width else width
    return float(columns[first:last].mean()), first / width, 1 - last / width
