"""Drawing masks into image arrays with NumPy and OpenCV alone. This module reads and saves no files.

Truth is green and prediction red. A class has the same colour in every picture.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

TRUTH, PREDICTION = (0, 200, 0), (230, 30, 30)
CLASS_COLOURS = (
    (255, 200, 0), (60, 140, 255), (255, 70, 60), (60, 220, 90), (220, 90, 255), (0, 220, 220), (255, 140, 0),
    (160, 160, 255),
)  # fmt: skip
UNKNOWN = (255, 0, 150)  # places unlike any clean steel, on images without a known class
# Longest side in pixels of a picture that is drawn at full size. On a page, the longest has about 1,300.
_LARGEST = 3200


def name_colour(c: int) -> str:
    """Return the CSS colour of class `c`, such as #ff463c."""
    return format_colour(CLASS_COLOURS[c])


def format_colour(colour: tuple[int, int, int]) -> str:
    """Return the CSS colour of red, green and blue, 0 to 255."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def reduce_image(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return an image `(H, W)` for drawing: divided by the smallest whole number that makes it at most 3,200 pixels."""
    factor = _compute_reduction(image.shape)
    if factor == 1:
        return image
    height, width = (-(-side // factor) for side in image.shape)
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def reduce_masks(masks: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Reduce masks `(C, H, W)` like their image. A pixel is set if any that it stands for is, so no defect vanishes."""
    factor = _compute_reduction(masks.shape[1:])
    for axis in (1, 2) if factor > 1 else ():
        # Many times faster than np.logical_or.reduceat.
        lines = np.moveaxis(masks, axis, 0)
        reduced = lines[::factor].copy()
        for start in range(1, factor):
            others = lines[start::factor]
            reduced[: len(others)] |= others
        masks = np.moveaxis(reduced, 0, axis)
    return masks


def _compute_reduction(size: Sequence[int]) -> int:
    return -(-max(size) // _LARGEST)


def draw_masks(
    image: NDArray[np.uint8], masks: Sequence[NDArray[np.bool_]], colours: Sequence[tuple[int, int, int]]
) -> NDArray[np.uint8]:
    """Return a grey image `(H, W)` as RGB `(H, W, 3)` with each mask `(H, W)` drawn as an outline with a faint fill."""
    canvas = cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    for mask, colour in zip(masks, colours, strict=True):
        if not mask.any():
            continue
        canvas[mask] = (0.75 * canvas[mask] + 0.25 * np.array(colour)).astype(np.uint8)
        outline, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(canvas, outline, -1, colour, 1)
    return canvas  # type: ignore[return-value]


def draw_overlay(
    image: NDArray[np.uint8],
    masks: NDArray[np.bool_],
    captions: Sequence[str],
    headline: str,
    unknown: NDArray[np.bool_] | None = None,
) -> NDArray[np.uint8]:
    """Draw a decision: each class in its colour, and a line of text above the image.

    Args:
        image: uint8 `(H, W)`.
        masks: bool `(C, H, W)`.
        captions: Text for each class, shown if its mask is not empty.
        headline: Text for the image.
        unknown: bool `(H, W)`, places unlike any clean steel; None if there are none.

    Returns:
        uint8 `(H + 24, W, 3)`, RGB.
    """
    outlined = list(zip(masks, CLASS_COLOURS, strict=False)) + ([] if unknown is None else [(unknown, UNKNOWN)])
    canvas = draw_masks(image, *zip(*outlined, strict=True))
    bar = np.zeros((24, image.shape[1], 3), np.uint8)
    x = 6
    found = [(text, CLASS_COLOURS[c]) for c, text in enumerate(captions) if masks[c].any()]
    found += [] if unknown is None else [("unlike any clean steel seen", UNKNOWN)]
    for text, colour in [(headline, (255, 255, 255)), *found]:
        text = text.encode("ascii", "replace").decode()  # OpenCV's fonts have no other characters
        cv2.putText(bar, text, (x, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.5, colour, 1, cv2.LINE_AA)
        x += cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.5, 1)[0][0] + 18
    return np.vstack([bar, canvas])
