"""Calibration of the classifier's probabilities; the method for each class is selected by cross-validation."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import logit
from sklearn.isotonic import IsotonicRegression
from sklearn.model_selection import GroupKFold

from steel.decision.point import STRAIGHT, Curve, calibrate, tabulate_curves

Scores = NDArray[np.float32]

_MAX_TEMPERATURE = 20.0
# A fit needs this many images with the class, and as many without it; with fewer it would follow single images.
_MIN_FOR_TEMPERATURE = 10
_MIN_FOR_ISOTONIC = 50
NUM_FOLDS = 5


class Calibration(NamedTuple):
    """Calibration of one class: a temperature, then a piecewise linear curve; see `OperatingPoint`."""

    temperature: float = 1.0
    curve: Curve = STRAIGHT

    def __call__(self, probabilities: Scores) -> Scores:
        """Calibrate probabilities `(n,)` in the same way as the inspector."""
        column = torch.from_numpy(probabilities.astype(np.float32))[:, None]
        return calibrate(column, torch.tensor([self.temperature]), *tabulate_curves([self.curve]))[:, 0].numpy()

    @property
    def method(self) -> str:
        """Method in words: "none", "temperature 1.50" or "isotonic"."""
        if self.curve != STRAIGHT:
            return "isotonic"
        return "none" if self.temperature == 1 else f"temperature {self.temperature:.2f}"


def fit_temperature(probabilities: Scores, labels: NDArray[np.bool_]) -> Calibration:
    """Fit the temperature by maximum likelihood to probabilities `(n,)` and labels bool `(n,)` of one class.

    Source: Guo et al. 2017, On calibration of modern neural networks, here for one sigmoid.
    """
    # Probabilities outside this range are 0 or 1 in half precision or float32.
    logits = logit(probabilities.clip(1e-7, 1 - 1e-7))

    def loss(log_temperature: float) -> float:
        signed = np.where(labels, -logits, logits) / np.exp(log_temperature)
        return float(np.logaddexp(0, signed).mean())

    bound = np.log(_MAX_TEMPERATURE)
    best = minimize_scalar(loss, bounds=(-bound, bound), method="bounded")
    return Calibration(float(np.float32(np.exp(best.x))))


def fit_isotonic(probabilities: Scores, labels: NDArray[np.bool_]) -> Calibration:
    """Fit a centred isotonic regression: line segments through the centres of the blocks of isotonic regression.

    The steps of plain isotonic regression would give all images of a block the same probability, with no threshold
    between them. Arguments as for `fit_temperature`.
    Source: Zadrozny and Elkan 2002, Transforming classifier scores into accurate multiclass probability estimates;
    Oron and Flournoy 2017, Centered isotonic regression.
    """
    # In single precision, rounding would split a block into several.
    levels = IsotonicRegression().fit_transform(probabilities.astype(np.float64), labels.astype(np.float64))
    values, block = np.unique(levels, return_inverse=True)
    centres = np.bincount(block, probabilities) / np.bincount(block)
    points = {0.0: 0.0} | {
        float(np.float32(x)): float(np.float32(y)) for x, y in zip(centres, values, strict=True) if 1e-6 < x < 1 - 1e-6
    }
    return Calibration(curve=(*points.items(), (1.0, 1.0)))


def split_folds(groups: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield the training and held-out rows of each fold. Groups are never split; a single group yields no fold."""
    num_folds = min(NUM_FOLDS, len(np.unique(groups)))
    if num_folds > 1:
        yield from GroupKFold(num_folds).split(groups, groups=groups)


def fit(probabilities: Scores, labels: NDArray[np.bool_], groups: NDArray[np.int64]) -> Calibration:
    """Fit the calibration of one class: none, temperature or isotonic, selected by the Brier score on held-out groups.

    A more complex method is selected only if it is better by more than one standard error. All arguments are `(n,)`.
    """
    best = Calibration()
    folds = list(split_folds(groups))
    num_rarer = min(labels.sum(), (~labels).sum())
    errors = np.square(probabilities - labels)
    for method, num_needed in ((fit_temperature, _MIN_FOR_TEMPERATURE), (fit_isotonic, _MIN_FOR_ISOTONIC)):
        if not folds or num_rarer < num_needed:
            break
        new_errors = np.empty(len(labels))
        for train, held_out in folds:
            fitted = method(probabilities[train], labels[train])
            new_errors[held_out] = np.square(fitted(probabilities[held_out]) - labels[held_out])
        gain = errors - new_errors
        if gain.mean() > gain.std() / np.sqrt(len(gain)):
            best, errors = method(probabilities, labels), new_errors
    return best
