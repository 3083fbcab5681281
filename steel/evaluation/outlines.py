"""How well single spots and their outlines are met, image by image; a spot is an 8-connected component."""

from collections.abc import Sequence
from itertools import pairwise

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

Masks = NDArray[np.bool_]

# A spot counts as found when this share of it is outlined.
COVERED = 0.5
_SIZES = (0, 100, 1_000, 10_000)  # smallest areas in pixels of the size bins that spots are scored by
_CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))


def match_spots(predicted: Masks, truth: Masks) -> pd.DataFrame:
    """Compares every spot of one image with the other mask of its class.

    Args:
        predicted: bool `(C, H, W)`.
        truth: bool `(C, H, W)`.

    Returns:
        A row for each spot: "class" (from 0), "is_true" (of the truth, or else of the prediction), "area" and
        "covered", its pixels that the other mask has too.
    """
    rows = []
    for c, masks in enumerate(zip(truth, predicted, strict=True)):
        for is_true, (spots_of, other) in ((True, masks), (False, masks[::-1])):
            if not spots_of.any():
                continue
            num_spots, spots = cv2.connectedComponents(spots_of.view(np.uint8), connectivity=8)
            areas = np.bincount(spots.ravel(), minlength=num_spots)[1:]
            covered = np.bincount(spots[other], minlength=num_spots)[1:]
            rows += [(c, is_true, *pair) for pair in zip(areas.tolist(), covered.tolist(), strict=True)]
    return pd.DataFrame(rows, columns=["class", "is_true", "area", "covered"])


def score_spots(spots: pd.DataFrame, num_classes: int) -> list[dict[str, float | int | str]]:
    """Recall of true spots and share of false ones, by class and size.

    Args:
        spots: As `match_spots` gives them, of any number of images.
        num_classes: C.

    Returns:
        A row for each class (from 1; 0 is all together) and size with a spot: "class", "size", "spots" (true ones),
        "found" (share of them of which half or more is outlined), "touched" (share with any pixel outlined),
        "predicted" (predicted spots of this size) and "false" (share of them that touch no truth).
    """
    rows: list[dict[str, float | int | str]] = []
    edges = [*_SIZES, np.inf]
    for c in range(num_classes + 1):
        of_class = spots if c == 0 else spots[spots["class"] == c - 1]
        for low, high in pairwise(edges):
            some = of_class[(of_class["area"] >= max(low, 1)) & (of_class["area"] < high)]
            true, drawn = some[some["is_true"].astype(bool)], some[~some["is_true"].astype(bool)]
            if len(some):
                rows.append(
                    {
                        "class": c,
                        "size": f"{low:,} to {high - 1:,.0f}" if np.isfinite(high) else f"{low:,} and more",
                        "spots": len(true),
                        "found": float((true["covered"] >= COVERED * true["area"]).mean()),
                        "touched": float((true["covered"] > 0).mean()),
                        "predicted": len(drawn),
                        "false": float((drawn["covered"] == 0).mean()),
                    }
                )
    return rows


def count_boundaries(predicted: Masks, truth: Masks, tolerance: int) -> NDArray[np.int64]:
    """Counts outline pixels that have one of the other outline near, at most `tolerance` pixels away (Euclid).

    The outline of a mask is those of its pixels with a neighbour (up, down, left or right) that is not in it; what lies
    beyond the image counts as in it, so a defect cut off by the border has no outline there.

    Args:
        predicted: bool `(C, H, W)`.
        truth: bool `(C, H, W)`.
        tolerance: In pixels.

    Returns:
        `(C, 4)`: outline pixels of the prediction near the true outline, all of the prediction, outline pixels of the
        truth near the predicted one, all of the truth.
    """
    counts = np.zeros((len(truth), 4), np.int64)
    for c, masks in enumerate(zip(predicted, truth, strict=True)):
        outlines = [_outline(mask) for mask in masks]
        counts[c, 1::2] = [np.count_nonzero(outline) for outline in outlines]
        if not counts[c, 1::2].all():
            continue
        # Nothing beyond the box of both outlines matters.
        rows, columns = (np.flatnonzero((outlines[0] | outlines[1]).any(axis=axis)) for axis in (1, 0))
        box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        for side in (0, 1):
            far = (~outlines[1 - side][box]).view(np.uint8)
            distance = cv2.distanceTransform(far, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
            counts[c, 2 * side] = np.count_nonzero(distance[outlines[side][box]] <= tolerance + 1e-3)
    return counts


def _outline(mask: Masks) -> Masks:
    if not mask.any():
        return mask
    inner = cv2.erode(mask.view(np.uint8), _CROSS, borderType=cv2.BORDER_CONSTANT, borderValue=1)
    outline: Masks = mask & (inner == 0)
    return outline


def score_boundaries(counts: NDArray[np.int64]) -> dict[str, float]:
    """Dice of outlines within a tolerance.

    Source: Nikolov et al. 2018, Deep learning to achieve clinically applicable segmentation of head and neck anatomy
    for radiotherapy ("surface Dice"), here on pixels.

    Args:
        counts: `(n, C, 4)`, of n images, as `count_boundaries` gives them.

    Returns:
        boundary_dice: Mean over the pairs of image and class whose truth has an outline.
        boundary_dice_class_<id>: The same of one class (ids from 1).
    """
    near, outline = counts[..., 0] + counts[..., 2], counts[..., 1] + counts[..., 3]
    dice = near / np.maximum(outline, 1)
    present = counts[..., 3] > 0
    scores = {"boundary_dice": _mean(dice[present])}
    for c in range(counts.shape[1]):
        scores[f"boundary_dice_class_{c + 1}"] = _mean(dice[present[:, c], c])
    return scores


def _mean(values: NDArray[np.float64] | Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else float("nan")
