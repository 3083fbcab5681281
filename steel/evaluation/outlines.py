"""Scores of single spots (8-connected components) and of outlines, counted per image."""

from itertools import pairwise

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from steel.data.spots import label_spots
from steel.intervals import Ratio

Masks = NDArray[np.bool_]

_COVERED = 0.5  # share of a spot's pixels that must be predicted for it to count as found
_SIZES = (0, 100, 1_000, 10_000)  # lower edges of the size bins, in pixels
_CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))


def match_spots(predicted: Masks, truth: Masks) -> pd.DataFrame:
    """Compare each true spot of an image with the predicted mask of its class, and each predicted spot with the truth.

    Args:
        predicted: bool `(C, H, W)`.
        truth: bool `(C, H, W)`.

    Returns:
        A row per spot, with the columns "class" (from 0), "is_true" (spot of the truth, not of the prediction), "area"
        (pixels) and "covered" (pixels that are in the other mask too).
    """
    rows = []
    for c, masks in enumerate(zip(truth, predicted, strict=True)):
        for is_true, (mask, other) in ((True, masks), (False, masks[::-1])):
            if not mask.any():
                continue
            num_spots, spots = label_spots(mask)
            areas = np.bincount(spots.ravel(), minlength=num_spots + 1)[1:]
            covered = np.bincount(spots[other], minlength=num_spots + 1)[1:]
            rows += [(c, is_true, *pair) for pair in zip(areas.tolist(), covered.tolist(), strict=True)]
    return pd.DataFrame(rows, columns=["class", "is_true", "area", "covered"])


def score_spots(spots: pd.DataFrame, num_classes: int) -> list[dict[str, float | int | str]]:
    """Return recall and false share of spots by class and size.

    Args:
        spots: Spots of any number of images, from `match_spots`.
        num_classes: C.

    Returns:
        A row for each class (from 1; 0 is all classes together) and size bin with a spot: "class", "size", "spots"
        (number of true spots), "found" (share of true spots with half or more of the pixels predicted), "touched"
        (share of true spots with any pixel predicted), "predicted" (number of predicted spots) and "false" (share of
        predicted spots without a true pixel).
    """
    rows: list[dict[str, float | int | str]] = []
    edges = [*_SIZES, np.inf]
    for c in range(num_classes + 1):
        selected = spots if c == 0 else spots[spots["class"] == c - 1]
        for low, high in pairwise(edges):
            sized = selected[(selected["area"] >= low) & (selected["area"] < high)]
            if not len(sized):
                continue
            is_true = sized["is_true"].astype(bool)
            true, predicted = sized[is_true], sized[~is_true]
            rows.append(
                {
                    "class": c,
                    "size": f"{low:,} to {high - 1:,.0f}" if np.isfinite(high) else f"{low:,} and more",
                    "spots": len(true),
                    "found": float((true["covered"] >= _COVERED * true["area"]).mean()),
                    "touched": float((true["covered"] > 0).mean()),
                    "predicted": len(predicted),
                    "false": float((predicted["covered"] == 0).mean()),
                }
            )
    return rows


def count_boundaries(predicted: Masks, truth: Masks, tolerance: int) -> NDArray[np.int64]:
    """Count outline pixels within `tolerance` of the other mask's outline.

    The outline of a mask is the set of its pixels with a neighbour (up, down, left or right) outside the mask. Pixels
    beyond the border of the image count as inside, so a defect cut off by the border has no outline there.

    Args:
        predicted: bool `(C, H, W)`.
        truth: bool `(C, H, W)`.
        tolerance: Largest Euclidean distance in pixels.

    Returns:
        int64 `(C, 4)`: outline pixels of the prediction near the true outline, all outline pixels of the prediction,
        outline pixels of the truth near the predicted outline, all outline pixels of the truth.
    """
    counts = np.zeros((len(truth), 4), np.int64)
    for c, masks in enumerate(zip(predicted, truth, strict=True)):
        outlines = [_outline(mask) for mask in masks]
        counts[c, 1::2] = [np.count_nonzero(outline) for outline in outlines]
        if not counts[c, 1::2].all():
            continue
        # Distances are needed only within the bounding box of both outlines.
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


def list_boundary_ratios(counts: NDArray[np.int64]) -> dict[str, tuple[Ratio, ...]]:
    """Return the Dice of outlines within a tolerance as ratios.

    Source: Nikolov et al. 2018, Deep learning to achieve clinically applicable segmentation of head and neck anatomy
    for radiotherapy ("surface Dice"), here for pixels.

    Args:
        counts: `(n, C, 4)`, counts of n images from `count_boundaries`.

    Returns:
        boundary_dice: Mean over the pairs of image and class whose truth has an outline.
        boundary_dice_class_<id>: The same for one class (ids from 1).
    """
    near, outline = counts[..., 0] + counts[..., 2], counts[..., 1] + counts[..., 3]
    present = (counts[..., 3] > 0).astype(np.float64)
    dice = present * near / np.maximum(outline, 1)
    ratios: dict[str, tuple[Ratio, ...]] = {"boundary_dice": (Ratio(dice.sum(axis=1), present.sum(axis=1)),)}
    for c in range(counts.shape[1]):
        ratios[f"boundary_dice_class_{c + 1}"] = (Ratio(dice[:, c], present[:, c]),)
    return ratios
