"""How bright an image is, and where on it the strip ends. Needs NumPy and OpenCV alone, as what inspects has to."""

import cv2
import numpy as np
from numpy.typing import NDArray

# Beside the strip Severstal's images have columns of mean grey 0 to 9, while the darkest steel has 16 and more. Edges
# that only lie in the shade are narrower than a fiftieth of the width.
BLACK = 10
MIN_MARGIN = 0.02


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
