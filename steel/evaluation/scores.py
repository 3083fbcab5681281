"""Scores used only to evaluate both stages together."""

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steel.decision.tuning import Aim
from steel.training.metrics import Counts

# A power of two, so that probability * LEVELS is exact and its integer part is the last threshold that it reaches.
LEVELS = 256
_LANES = 4
_NUM_BINS = 15  # of probabilities, when they are compared with frequencies


def sweep(probabilities: NDArray[np.float32], truth: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Count pixels at all thresholds k / 256 at once, from histograms.

    Args:
        probabilities: float32 `(H, W)`, probabilities of one class, 0 to 1.
        truth: bool `(H, W)`.

    Returns:
        int64 `(2, 256)`: for each k, the true pixels with a probability of k / 256 or more, and all pixels with it.
    """
    scaled = probabilities * np.float32(LEVELS)
    cv2.threshold(scaled, LEVELS - 1, LEVELS - 1, cv2.THRESH_TRUNC, dst=scaled)
    # Neighbouring pixels mostly have the same level, and incrementing one counter repeatedly stalls the CPU. Separate
    # counters for four columns halve the time. True pixels have separate counters too.
    kinds = scaled.astype(np.uint16)
    kinds += np.arange(truth.shape[1], dtype=np.uint16) % _LANES * LEVELS
    kinds += truth * np.uint16(_LANES * LEVELS)
    num_kinds = 2 * _LANES * LEVELS
    # OpenCV returns float32, which is exact for up to 2^24 pixels of a kind.
    counts = cv2.calcHist([kinds], [0], None, [num_kinds], [0, num_kinds]).astype(np.int64)
    false, true = counts.reshape(2, _LANES, LEVELS).sum(axis=1)
    return np.stack([true, false + true])[:, ::-1].cumsum(axis=1)[:, ::-1]


def exclusive(probabilities: Tensor) -> Tensor:
    """Assign each pixel to one class or the background: the argmax of 1 - max p and the p_c.

    Args:
        probabilities: `(N, C, H, W)`, probabilities of the segmenter.

    Returns:
        bool `(N, 1 + C, H, W)`, the background first; on ties (a probability of 0.5, equal classes) the first one wins.
    """
    highest, winner = probabilities.max(1)
    winner = torch.where(1 - highest >= highest, 0, winner + 1)
    return torch.nn.functional.one_hot(winner, probabilities.shape[1] + 1).movedim(-1, 1).bool()


def list_costs(counts: Counts, aim: Aim) -> NDArray[np.float64]:
    """Return the cost of each image, float64 `(n,)`, by the costs of missed defects and false alarms of an aim."""
    hits, drawn, truth = (tensor.numpy() > 0 for tensor in counts[:3])
    missed, alarms = truth & ~hits, drawn & ~truth
    costs: NDArray[np.float64] = missed @ np.array(aim.miss_cost) + alarms @ np.array(aim.alarm_cost)
    return costs


def predict_nothing(counts: Counts) -> Counts:
    """Return the counts of a model that predicts no pixel."""
    nothing = torch.zeros_like(counts.truth)
    return counts._replace(hits=nothing, predicted=nothing)


def predict_everything(counts: Counts) -> Counts:
    """Return the counts of a model that predicts every class at every pixel."""
    return counts._replace(hits=counts.truth, predicted=counts.pixels[:, None].expand_as(counts.truth))


def score_miou(counts: Counts) -> dict[str, float]:
    """Return the mean over background and classes of the IoU, with the pixels of all images pooled.

    Published tables use this score; the large background raises it.

    Args:
        counts: Counts of n images for background and C classes, `(n, 1 + C)`.

    Returns:
        miou_with_background: The score.
    """
    hits, predicted, truth = (tensor.sum(0).double() for tensor in counts[:3])
    union = predicted + truth - hits
    return {"miou_with_background": float(torch.where(union > 0, hits / union, torch.nan).nanmean())}


def reliability(
    probabilities: Tensor, labels: Tensor
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Compare probabilities with observed frequencies, in bins of equal width.

    Args:
        probabilities: `(n,)`, 0 to 1.
        labels: bool `(n,)`.

    Returns:
        Mean probability, share of true labels and number of labels per bin, each `(15,)`; 0 where a bin is empty.
    """
    p, true = probabilities.numpy(force=True).astype(float), labels.numpy(force=True)
    bins = np.minimum((p * _NUM_BINS).astype(np.int64), _NUM_BINS - 1)
    number = np.bincount(bins, minlength=_NUM_BINS)
    mean, share = (np.bincount(bins, values, _NUM_BINS) / np.maximum(number, 1) for values in (p, true))
    return mean, share, number


def score_calibration(probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """Score the calibration of class probabilities.

    Args:
        probabilities: `(n, C)`, 0 to 1.
        labels: bool `(n, C)`.

    Returns:
        brier_class_<id>: Mean of (p - label)^2 (Brier 1950).
        ece_class_<id>: Expected calibration error: |mean p - share of true labels| of each bin, averaged over the
            images (Naeini et al. 2015).
        brier, ece: Means over the classes.
    """
    brier = (probabilities.double() - labels.double()).square().mean(0).tolist()
    ece = []
    for c in range(probabilities.shape[1]):
        mean, share, number = reliability(probabilities[:, c], labels[:, c])
        ece.append(float((np.abs(mean - share) * number).sum() / max(1, number.sum())))
    scores = {"brier": float(np.mean(brier)), "ece": float(np.mean(ece))}
    for c, pair in enumerate(zip(brier, ece, strict=True)):
        scores |= {f"brier_class_{c + 1}": pair[0], f"ece_class_{c + 1}": pair[1]}
    return scores
