"""The quantities that drift detection watches: four image measures and the logits of the class probabilities."""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from steel.data.exposure import measure_image

Array = NDArray[np.float64]
Counts = NDArray[np.int64]

MEASURES = ("brightness", "contrast", "margin", "sharpness")

_STEP = 4  # rows skipped, and the larger distance of `_difference`; 0.1 ms an image
_LEAST_PROBABILITY = 1e-4  # differences closer to 0 or 1 than this are noise


def measure(image: NDArray[np.uint8]) -> Array:
    """Measure an image. A change of exposure affects the brightness alone.

    Args:
        image: uint8 `(H, W)`.

    Returns:
        float64 `(4,)`, in the order of `MEASURES`. Brightness: mean grey value of the steel. Contrast: standard
        deviation divided by the brightness. Margin: black share of the width. Sharpness: mean difference of
        neighbouring pixels divided by that of pixels four apart; 1 for noise, lower for softer images, 0 for an image
        without structure.
    """
    brightness, left, right = measure_image(image)
    width = image.shape[1]
    steel = image[:, round(left * width) : width - round(right * width)]
    contrast = float(cv2.meanStdDev(steel[::_STEP])[1].item()) / max(brightness, 1.0)
    fine, coarse = (_difference(steel, distance) for distance in (1, _STEP))
    return np.array([brightness, contrast, left + right, fine / coarse if coarse else 0.0])


def _difference(image: NDArray[np.uint8], distance: int) -> float:
    """Return the mean absolute difference of pixels at a distance, vertical plus horizontal, on every fourth row."""
    upper = image[:-distance:_STEP]
    pairs = ((upper, image[distance::_STEP][: len(upper)]), (upper[:, :-distance], upper[:, distance:]))
    return sum(cv2.norm(a, b, cv2.NORM_L1) / a.size for a, b in pairs if a.size)


def join(measured: Array, class_probabilities: NDArray[np.floating[Any]]) -> Array:
    """Append the logits of class probabilities, `(..., C)`, to image measures, `(..., 4)`."""
    # Logits are rounded to tenths, because processors differ by less than that.
    probabilities = np.asarray(class_probabilities, np.float64).clip(_LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY)
    return np.concatenate([measured, np.log(probabilities / (1 - probabilities)).round(1)], axis=-1)


def count_at_most(values: Array, cuts: Array) -> Counts:
    """Count the values, `(n,)`, that do not exceed each of the increasing cuts, `(Q,)`."""
    counts: Counts = np.searchsorted(np.sort(values), cuts, side="right")
    return counts


def compare(window: Counts | Array, num_window: Counts | int, reference: Counts, num_reference: Counts | int) -> Array:
    """Test whether two shares of images are equal: the square root of twice the log likelihood ratio.

    For a single share, it is distributed like the absolute value of a standard normal variable, even if few images
    exceed the cut. Its maximum over all cuts detects any change of a distribution, including that of a rare class.
    Source: Berk and Jones 1979, Goodness-of-fit test statistics that dominate the Kolmogorov statistics.

    Args:
        window: Number of images of the window that do not exceed each cut.
        num_window: Number of images of the window.
        reference: Number of images of the reference that do not exceed each cut. All arguments broadcast.
        num_reference: Number of images of the reference.
    """
    pooled = (window + reference) / (num_window + num_reference)
    total: Array = np.zeros(np.shape(pooled))
    for counts, num in ((window, num_window), (reference, num_reference)):
        share = counts / np.maximum(num, 1)
        total += num * (_relative_entropy(share, pooled) + _relative_entropy(1 - share, 1 - pooled))
    root: Array = np.sqrt(2 * total.clip(0))
    return root


def _relative_entropy(share: Array, reference: Array) -> Array:
    """Equal `scipy.special.rel_entr`, whose import would delay the start of every inspection by 0.2 s."""
    ratio = np.where(share > 0, share / np.maximum(reference, 1e-300), 1)
    entropy: Array = np.where(share > 0, share * np.log(ratio), 0)
    return entropy
