"""Scores computed from counts.

A mask is reduced to three integers per image and class (hits, predicted and true pixels), an image to its class
probabilities. Undefined scores, such as a recall without any defect, are NaN.
"""

from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steel.data.unknown import Labels, find_labels
from steel.intervals import Ratio, mean_ratio


def unpack(plane: Tensor, num_classes: int) -> Tensor:
    """Unpack bit planes `(N, H, W)` uint8 into masks `(N, C, H, W)` bool; bit c is class c."""
    bits = 1 << torch.arange(num_classes, dtype=torch.uint8, device=plane.device)
    return (plane[:, None] & bits[:, None, None]) != 0


class Counts(NamedTuple):
    """Pixel counts per image and class, each int64 `(n, C)`.

    Attributes:
        hits: Pixels both predicted and true.
        predicted: Predicted pixels.
        truth: True pixels.
        pixels: Labelled pixels of the image, `(n,)`. The other numbers count labelled pixels only.
        hidden: Unlabelled pixels of the image, `(n,)`.
    """

    hits: Tensor
    predicted: Tensor
    truth: Tensor
    pixels: Tensor
    hidden: Tensor

    @property
    def labels(self) -> Labels[Tensor]:
        """The labels of the images."""
        return find_labels(self.truth, self.hidden > 0)

    def take(self, rows: NDArray[np.int64]) -> "Counts":
        """Return the counts of the images at the given rows."""
        index = torch.from_numpy(rows)
        return Counts(*(tensor[index] for tensor in self))


def count(predicted: Tensor, truth: Tensor, unknown: Tensor | None = None) -> Counts:
    """Count the labelled pixels of each image and class.

    Args:
        predicted: Masks `(N, C, H, W)` bool.
        truth: Masks `(N, C, H, W)` bool.
        unknown: Unlabelled pixels `(N, H, W)` bool; by default there are none.
    """
    n, num_classes, height, width = truth.shape
    hidden = torch.zeros(n, dtype=torch.int64, device=truth.device)
    is_on_cpu = truth.device.type == "cpu"
    # Other devices do the work in any case, because asking them whether there is any waits for them.
    if unknown is not None and not (is_on_cpu and not unknown.any()):
        hidden += unknown.flatten(1).sum(1)
        predicted, truth = (masks & ~unknown[:, None] for masks in (predicted, truth))
    pixels = height * width - hidden
    if not is_on_cpu:
        return Counts((predicted & truth).sum((2, 3)), predicted.sum((2, 3)), truth.sum((2, 3)), pixels, hidden)
    # On a CPU, OpenCV sums bytes three times faster than NumPy counts bools, and NumPy is far faster than torch.
    rows = []
    planes = (masks.flatten(0, 1).numpy().view(np.uint8) for masks in (predicted, truth))
    for one, other in zip(*planes, strict=True):
        areas = [cv2.sumElems(one)[0], cv2.sumElems(other)[0]]
        num_different = cv2.norm(one, other, cv2.NORM_L1) if all(areas) else sum(areas)
        rows.append([(sum(areas) - num_different) / 2, *areas])
    hits, predicted_pixels, true_pixels = torch.tensor(rows, dtype=torch.int64).reshape(n, num_classes, 3).unbind(2)
    return Counts(hits, predicted_pixels, true_pixels, pixels, hidden)


def dice(counts: Counts) -> Tensor:
    """Return the Dice of each image and class, float64 `(n, C)` on the CPU; 1 without true and predicted pixels.

    Source: https://www.kaggle.com/c/severstal-steel-defect-detection/overview/evaluation
    """
    hits, predicted, truth = (tensor.cpu() for tensor in counts[:3])  # not every GPU has float64
    total = (predicted + truth).double()
    return torch.where(total > 0, 2 * hits / total, 1.0)


def score_masks(counts: Counts) -> dict[str, float]:
    """Return the scores of masks; see `list_mask_ratios`."""
    return {name: mean_ratio(ratios) for name, ratios in list_mask_ratios(counts).items()}


def list_mask_ratios(counts: Counts) -> dict[str, tuple[Ratio, ...]]:
    """Return the scores of masks as means of ratios.

    Args:
        counts: Counts of n images.

    Returns:
        kaggle_dice: Mean Dice over all (image, class) pairs; 1 for a pair without true and predicted pixels.
        dice_on_defects: Mean Dice over the pairs with true pixels.
        iou: Mean IoU over the classes.
        false_alarm_rate: Fraction of the images known to be clean that have a predicted pixel.
        area_error: Mean of the area errors of the classes.
        dice_class_<id>: Mean Dice over the images with the class (ids from 1).
        false_alarm_rate_class_<id>: Fraction of the images known to be clean on which the class is predicted.
        area_error_class_<id>: Mean of |predicted - true| / true pixels over the images with the class.
        iou_class_<id>: Intersection over union of the class, both summed over all images.
    """
    hits, predicted, truth = (tensor.numpy(force=True).astype(np.float64) for tensor in counts[:3])
    present, clean = (tensor.numpy(force=True) for tensor in (counts.labels.present, counts.labels.clean))
    pairs = dice(counts).numpy(force=True)
    errors = np.abs(predicted - truth) / np.maximum(truth, 1)
    classes = range(truth.shape[1])
    iou = [Ratio(hits[:, c], (predicted + truth - hits)[:, c]) for c in classes]
    area_errors = [_average(errors[:, c], present[:, c])._replace(largest=np.inf) for c in classes]
    ratios: dict[str, tuple[Ratio, ...]] = {
        "kaggle_dice": (_average(pairs.mean(axis=1), np.ones_like(clean)),),
        "dice_on_defects": (Ratio((pairs * present).sum(axis=1), present.sum(axis=1).astype(np.float64)),),
        "iou": tuple(iou),
        "false_alarm_rate": (_average((predicted > 0).any(axis=1), clean),),
        "area_error": tuple(area_errors),
    }
    for c in classes:
        ratios[f"dice_class_{c + 1}"] = (_average(pairs[:, c], present[:, c]),)
        ratios[f"iou_class_{c + 1}"] = (iou[c],)
        ratios[f"false_alarm_rate_class_{c + 1}"] = (_average(predicted[:, c] > 0, clean),)
        ratios[f"area_error_class_{c + 1}"] = (area_errors[c],)
    return ratios


def _average(values: Any, selected: Any) -> Ratio:
    """Return the mean of the values `(n,)` over the selected images, bool `(n,)`."""
    return Ratio(np.where(selected, values, 0).astype(np.float64), selected.astype(np.float64))


def score_labels(probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """Return the scores of class probabilities at a threshold of 0.5; see `list_label_ratios`."""
    return {name: mean_ratio(ratios) for name, ratios in list_label_ratios(probabilities, labels).items()}


def list_label_ratios(
    probabilities: Tensor,
    labels: Tensor,
    *,
    threshold: float | Tensor = 0.5,
    known: Tensor | None = None,
    class_thresholds: Tensor | None = None,
    called: Tensor | None = None,
) -> dict[str, tuple[Ratio, ...]]:
    """Return the scores of class probabilities as means of ratios.

    Args:
        probabilities: `(n, C)`, 0 to 1.
        labels: `(n, C)` bool.
        threshold: An image is predicted defective if its largest class probability is at least this, a number or
            `(n,)`.
        known: `(n, C)` bool, the labels that count in the scores per class; all by default.
        class_thresholds: `(C,)` or `(n, C)`, at which a class is predicted on a defective image; default `threshold`.
        called: `(n,)` bool, the images called defective, if `threshold` is not what decides.

    Returns:
        accuracy, balanced_accuracy, precision, recall, f1, auroc, average_precision: Scores of defective or not.
        precision_class_<id>, ..., average_precision_class_<id>: The last five for one class (ids from 1).
        f1_macro: Mean F1 over the classes.
    """
    predicted = probabilities >= (threshold if class_thresholds is None else class_thresholds)
    gate, passed = probabilities.amax(1), probabilities.amax(1) >= threshold
    predicted &= passed[:, None]
    scores, were_called, was_predicted, truth = (
        tensor.numpy(force=True) for tensor in (probabilities, passed if called is None else called, predicted, labels)
    )
    defective: NDArray[np.bool_] = np.asarray(truth.any(axis=1))
    every = np.ones(len(truth), bool)
    overall = _list_binary_ratios(gate.numpy(force=True), were_called, defective, every)
    specificity = _average(~were_called, ~defective)
    # Undefined unless both are defined.
    balanced = (overall["recall"], specificity) if 0 < defective.sum() < len(truth) else ()
    ratios: dict[str, tuple[Ratio, ...]] = {
        "accuracy": (_average(were_called == defective, every),),
        "balanced_accuracy": balanced,
        **{name: (ratio,) for name, ratio in overall.items()},
    }
    counted = np.ones_like(truth) if known is None else known.numpy(force=True)
    of_classes = [
        _list_binary_ratios(scores[:, c], was_predicted[:, c], truth[:, c], counted[:, c])
        for c in range(truth.shape[1])
    ]
    ratios["f1_macro"] = tuple(of_class["f1"] for of_class in of_classes)
    for c, of_class in enumerate(of_classes, 1):
        ratios |= {f"{name}_class_{c}": (ratio,) for name, ratio in of_class.items()}
    return ratios


def _list_binary_ratios(
    probabilities: NDArray[np.float32],
    predicted: NDArray[np.bool_],
    labels: NDArray[np.bool_],
    counted: NDArray[np.bool_],
) -> dict[str, Ratio]:
    """Return the scores of one yes-or-no label on the images that count; all arguments are `(n,)`."""
    hits, predicted, true = (values & counted for values in (predicted & labels, predicted, labels))
    return {
        "precision": _average(hits, predicted),
        "recall": _average(hits, true),
        "f1": Ratio(2 * hits.astype(np.float64), predicted.astype(np.float64) + true),
        "auroc": rank_pairs(probabilities, true, counted & ~labels),
        "average_precision": _average_precision(probabilities, true, counted),
    }


def rank_pairs(scores: NDArray[np.float32], positive: NDArray[np.bool_], negative: NDArray[np.bool_]) -> Ratio:
    """Return the exact AUROC, with ties: the mean over the rarer kind of images, of the share of the others they beat.

    Source: DeLong, DeLong and Clarke-Pearson 1988, Comparing the areas under two or more correlated receiver operating
    characteristic curves.
    """
    if not (positive.any() and negative.any()):
        return Ratio(np.zeros(len(scores)), np.zeros(len(scores)))
    placements = np.zeros(len(scores))
    for ours, theirs, sign in ((positive, negative, 1), (negative, positive, -1)):
        others = np.sort(sign * scores[theirs])
        below, up_to = (np.searchsorted(others, sign * scores[ours], side) for side in ("left", "right"))
        placements[ours] = (below + up_to) / (2 * len(others))
    rarer, commoner = sorted((positive, negative), key=np.count_nonzero)
    ratio = _average(placements, rarer)
    return ratio._replace(influence=np.where(commoner, placements - ratio.value, 0) / np.count_nonzero(commoner))


def _average_precision(scores: NDArray[np.float32], positive: NDArray[np.bool_], counted: NDArray[np.bool_]) -> Ratio:
    """Return the exact average precision, with ties: the mean over the positive images of the precision at each."""
    if not positive.any() or np.array_equal(positive, counted):
        return Ratio(np.zeros(len(scores)), np.zeros(len(scores)))
    # Levels of equal scores, the highest first.
    levels, level = np.unique(-scores, return_inverse=True)
    new_found = np.bincount(level, positive, len(levels))
    found, ranked = np.cumsum(new_found), np.cumsum(np.bincount(level, counted, len(levels)))
    ranked = np.maximum(ranked, 1)
    ratio = _average((found / ranked)[level], positive)
    # An image changes the precision at its own level and at all lower ones.
    of_hit, of_any = (
        np.cumsum(change[::-1])[::-1][level] for change in (new_found / ranked, new_found * found / ranked**2)
    )
    return ratio._replace(influence=np.where(counted, of_hit * positive - of_any, 0) / np.count_nonzero(positive))


def confusion(called: Tensor, defective: Tensor) -> NDArray[np.int64]:
    """Return the confusion matrix `(2, 2)` of clean (0) and defective (1): rows are the truth, columns the prediction.

    Args:
        called: `(n,)` bool, whether the image is predicted defective.
        defective: `(n,)` bool, whether it is defective.
    """
    cells = (2 * defective.long() + called.long()).cpu().numpy()
    return np.bincount(cells, minlength=4).reshape(2, 2).astype(np.int64)
