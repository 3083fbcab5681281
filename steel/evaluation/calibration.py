"""Class probabilities that are as often true as they say: chosen for each class by what holds on groups left out."""

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

_MOST_TEMPERATURE = 20.0
# Positives, and negatives, of a class below which a fit would follow single images.
_FEWEST_FOR_TEMPERATURE = 10
_FEWEST_FOR_ISOTONIC = 50
NUM_FOLDS = 5


class Calibration(NamedTuple):
    """What turns the classifier's probabilities of one class into calibrated ones; see `OperatingPoint`."""

    temperature: float = 1.0
    curve: Curve = STRAIGHT

    def __call__(self, probabilities: Scores) -> Scores:
        """Calibrates `(n,)` as the inspector does."""
        column = torch.from_numpy(probabilities.astype(np.float32))[:, None]
        return calibrate(column, torch.tensor([self.temperature]), *tabulate_curves([self.curve]))[:, 0].numpy()

    @property
    def method(self) -> str:
        """In words."""
        if self.curve != STRAIGHT:
            return "isotonic"
        return "as it is" if self.temperature == 1 else f"temperature {self.temperature:.2f}"


def fit_temperature(probabilities: Scores, labels: NDArray[np.bool_]) -> Calibration:
    """The temperature of the highest likelihood.

    Source: Guo et al. 2017, On calibration of modern neural networks, here for one sigmoid.
    """
    # Beyond these, half precision and float32 know only 0 and 1.
    logits = logit(probabilities.clip(1e-7, 1 - 1e-7))

    def loss(log_temperature: float) -> float:
        signed = np.where(labels, -logits, logits) / np.exp(log_temperature)
        return float(np.logaddexp(0, signed).mean())

    most = np.log(_MOST_TEMPERATURE)
    best = minimize_scalar(loss, bounds=(-most, most), method="bounded")
    return Calibration(float(np.float32(np.exp(best.x))))


def fit_isotonic(probabilities: Scores, labels: NDArray[np.bool_]) -> Calibration:
    """A rising line through the middles of the blocks of isotonic regression.

    Through the middles, since steps would make all images of a block alike and leave no threshold between them.
    Source: Zadrozny and Elkan 2002, Transforming classifier scores into accurate multiclass probability estimates; the
    middles: Oron and Flournoy 2017, Centered isotonic regression.
    """
    # In double precision: rounded to single, one block would fall into several.
    levels = IsotonicRegression().fit_transform(probabilities.astype(np.float64), labels.astype(np.float64))
    values, block = np.unique(levels, return_inverse=True)
    middles = np.bincount(block, probabilities) / np.bincount(block)
    points = {0.0: 0.0} | {
        float(np.float32(x)): float(np.float32(y)) for x, y in zip(middles, values, strict=True) if 1e-6 < x < 1 - 1e-6
    }
    return Calibration(curve=(*points.items(), (1.0, 1.0)))


def split_folds(groups: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Rows to choose by and rows left out, by turns, groups undivided; nothing where there is only one group."""
    count = min(NUM_FOLDS, len(np.unique(groups)))
    if count > 1:
        yield from GroupKFold(count).split(groups, groups=groups)


def fit(probabilities: Scores, labels: NDArray[np.bool_], groups: NDArray[np.int64]) -> Calibration:
    """Fits the calibration of one class: none, temperature or isotonic, by the Brier score on groups left out.

    The simpler stays unless the other is better by more than one standard error, so that chance alone changes nothing.

    Args:
        probabilities: `(n,)`, the classifier's.
        labels: `(n,)`.
        groups: `(n,)`, numbers of the groups.
    """
    best = Calibration()
    folds = list(split_folds(groups))
    fewest = min(labels.sum(), (~labels).sum())
    errors = np.square(probabilities - labels)
    for candidate, needed in ((fit_temperature, _FEWEST_FOR_TEMPERATURE), (fit_isotonic, _FEWEST_FOR_ISOTONIC)):
        if not folds or fewest < needed:
            break
        left_out = np.empty(len(labels))
        for chosen, left in folds:
            left_out[left] = np.square(
                candidate(probabilities[chosen], labels[chosen])(probabilities[left]) - labels[left]
            )
        gain = errors - left_out
        if gain.mean() > gain.std() / np.sqrt(len(gain)):
            best, errors = candidate(probabilities, labels), left_out
    return best
