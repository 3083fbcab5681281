"""Scores that only a judgement of both stages needs."""

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steel.training.metrics import Counts

# A power of two, so that a probability times it is exact and its whole part is the last threshold that it reaches.
LEVELS = 256
_LANES = 4


def sweep(probabilities: NDArray[np.float32], truth: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Counts pixels at every threshold k / 256 at once, from histograms.

    Args:
        probabilities: float32 `(H, W)` of one class, 0 to 1.
        truth: bool `(H, W)`.

    Returns:
        `(2, 256)`: for each k, pixels of a probability of k / 256 or more that are true, and all of them.
    """
    scaled = probabilities * np.float32(LEVELS)
    cv2.threshold(scaled, LEVELS - 1, LEVELS - 1, cv2.THRESH_TRUNC, dst=scaled)
    # Neighbours are mostly of one level, and a counter that is raised twice in a row waits for itself: each of four
    # columns has its own, which halves the time. Truth has its own too.
    kinds = scaled.astype(np.uint16)
    kinds += np.arange(truth.shape[1], dtype=np.uint16) % _LANES * LEVELS
    kinds += truth * np.uint16(_LANES * LEVELS)
    num_kinds = 2 * _LANES * LEVELS
    # OpenCV counts in whole numbers and hands out float32, which holds those of an image: up to 2^24 of a kind.
    counts = cv2.calcHist([kinds], [0], None, [num_kinds], [0, num_kinds]).astype(np.int64)
    false, true = counts.reshape(2, _LANES, LEVELS).sum(axis=1)
    return np.stack([true, false + true])[:, ::-1].cumsum(axis=1)[:, ::-1]


def exclusive(probabilities: Tensor) -> Tensor:
    """One class or the background for each pixel: the argmax of 1 - max p and the p_c, so background below 0.5.

    Args:
        probabilities: `(N, C, H, W)`, the segmenter's.

    Returns:
        bool `(N, 1 + C, H, W)`, the background first; at exactly 0.5 and between equal classes the first one wins.
    """
    highest, winner = probabilities.max(1)
    winner = torch.where(1 - highest >= highest, 0, winner + 1)
    return torch.nn.functional.one_hot(winner, probabilities.shape[1] + 1).movedim(-1, 1).bool()


def predict_nothing(counts: Counts) -> Counts:
    """What the counts would be if no pixel were predicted."""
    nothing = torch.zeros_like(counts.truth)
    return counts._replace(hits=nothing, predicted=nothing)


def predict_everything(counts: Counts) -> Counts:
    """What the counts would be if every pixel were predicted as every class."""
    return counts._replace(hits=counts.truth, predicted=counts.pixels[:, None].expand_as(counts.truth))


def score_miou(counts: Counts) -> dict[str, float]:
    """Mean over background and classes of the IoU over all images together.

    Published tables of this field have this score, which the background lifts.

    Args:
        counts: Of background and classes, `(n, 1 + C)`.
    """
    hits, predicted, truth = (tensor.sum(0).double() for tensor in counts[:3])
    union = predicted + truth - hits
    return {"miou_with_background": float(torch.where(union > 0, hits / union, torch.nan).nanmean())}


def reliability(
    probabilities: Tensor, labels: Tensor, num_bins: int = 15
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """How often a label is true at each probability, in bins of equal width.

    Args:
        probabilities: `(n,)`, 0 to 1.
        labels: `(n,)` bool.
        num_bins: B.

    Returns:
        Mean probability, share of true labels and number of each bin, `(B,)`; 0 where a bin is empty.
    """
    p, true = probabilities.numpy(force=True).astype(float), labels.numpy(force=True)
    bins = np.minimum((p * num_bins).astype(np.int64), num_bins - 1)
    number = np.bincount(bins, minlength=num_bins)
    mean, share = (np.bincount(bins, values, num_bins) / np.maximum(number, 1) for values in (p, true))
    return mean, share, number


def score_calibration(probabilities: Tensor, labels: Tensor, num_bins: int = 15) -> dict[str, float]:
    """How far class probabilities are from being as often true as they say.

    Args:
        probabilities: `(n, C)`, 0 to 1.
        labels: `(n, C)` bool.
        num_bins: Of the ECE.

    Returns:
        brier_class_<id>: Mean of (p - label)^2 (Brier 1950). ece_class_<id>: Expected calibration error, the mean over
            the images of |mean p - share true| of their bins (Naeini et al. 2015). brier, ece: Their means.
    """
    brier = (probabilities.double() - labels.double()).square().mean(0).tolist()
    ece = []
    for c in range(probabilities.shape[1]):
        mean, share, number = reliability(probabilities[:, c], labels[:, c], num_bins)
        ece.append(float((np.abs(mean - share) * number).sum() / max(1, number.sum())))
    scores = {"brier": float(np.mean(brier)), "ece": float(np.mean(ece))}
    for c, pair in enumerate(zip(brier, ece, strict=True)):
        scores |= {f"brier_class_{c + 1}": pair[0], f"ece_class_{c + 1}": pair[1]}
    return scores
