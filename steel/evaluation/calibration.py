"""Calibration of the classifier's probabilities; the method for each class is selected by cross-validation."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression
from sklearn.model_selection import GroupKFold

from steel.decision.point import STRAIGHT, Curve, calibrate, tabulate_curves
from steel.intervals import design_effect

Scores = NDArray[np.float32]
Flags = NDArray[np.bool_]
Groups = NDArray[np.int64]

# Standard deviations, in logits, of the prior of the shift and of the logarithm of the temperature.
_SHIFT_SPREAD, _TEMPERATURE_SPREAD = 2.0, 0.5
# A fit needs this many groups with the class, and as many without it; with fewer it would follow single images.
_MIN_FOR_SHIFT = 1
_MIN_FOR_TEMPERATURE = 10
_MIN_FOR_ISOTONIC = 50
NUM_FOLDS = 5


class Calibration(NamedTuple):
    """Calibration of one class: a shift, a temperature, then a piecewise linear curve; see `OperatingPoint`."""

    temperature: float = 1.0
    curve: Curve = STRAIGHT
    shift: float = 0.0

    def __call__(self, probabilities: Scores) -> Scores:
        """Calibrate probabilities `(n,)` in the same way as the inspector."""
        column = torch.from_numpy(probabilities.astype(np.float32))[:, None]
        temperature, shift = torch.tensor([self.temperature]), torch.tensor([self.shift])
        return calibrate(column, temperature, *tabulate_curves([self.curve]), shift)[:, 0].numpy()

    @property
    def method(self) -> str:
        """Method in words: "none", "shift -1.20", "shift -1.20, temperature 1.50" or "isotonic"."""
        steps = [f"shift {-self.shift:+.2f}"] if self.shift else []
        steps += [f"temperature {self.temperature:.2f}"] if self.temperature != 1 else []
        steps += ["isotonic"] if self.curve != STRAIGHT else []
        return ", ".join(steps) or "none"


def _to_logits(probabilities: Scores) -> NDArray[np.float64]:
    # Probabilities outside this range are 0 or 1 in half precision or float32.
    logits: NDArray[np.float64] = logit(probabilities.astype(np.float64).clip(1e-7, 1 - 1e-7))
    return logits


def fit_logistic(
    probabilities: Scores, labels: Flags, groups: Groups, start: Calibration, *, has_temperature: bool = True
) -> Calibration:
    """Fit shift and temperature to one class by penalised maximum likelihood.

    The penalty is that of normal priors around `start`, so that few images change little. Images in groups count as
    fewer, by the design effect.

    Args:
        probabilities: `(n,)`, not calibrated.
        labels: bool `(n,)`.
        groups: `(n,)`, group of each image.
        start: Where to start; has no curve.
        has_temperature: Fit the temperature, too.

    Source: Platt 1999, Probabilistic outputs for support vector machines; Guo et al. 2017, On calibration of modern
    neural networks.
    """
    logits = _to_logits(probabilities) - start.shift
    weight = 1 / design_effect(labels - expit(logits), groups)

    def loss(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        moved, slope = parameters[0], np.exp(-parameters[1]) if has_temperature else 1.0
        scaled = slope * (logits - moved)
        residual = expit(scaled) - labels
        spreads = np.array([_SHIFT_SPREAD, _TEMPERATURE_SPREAD][: len(parameters)])
        gradient = np.array([-slope * residual.sum(), -(residual * scaled).sum()][: len(parameters)])
        fit = np.logaddexp(0, np.where(labels, -scaled, scaled)).sum()
        penalty = np.square(parameters / spreads).sum() / 2
        return float(weight * fit + penalty), weight * gradient + parameters / spreads**2

    best = minimize(loss, np.zeros(1 + has_temperature), jac=True, method="BFGS").x
    temperature = float(np.exp(best[1])) if has_temperature else 1.0
    return Calibration(float(np.float32(temperature)), STRAIGHT, float(np.float32(start.shift + best[0])))


def fit_shift(probabilities: Scores, labels: Flags, groups: Groups, start: Calibration) -> Calibration:
    """Fit the shift alone; see `fit_logistic`."""
    return fit_logistic(probabilities, labels, groups, start, has_temperature=False)


def fit_isotonic(probabilities: Scores, labels: Flags, groups: Groups, start: Calibration) -> Calibration:
    """Fit a centred isotonic regression: line segments through the centres of the blocks of isotonic regression.

    The steps of plain isotonic regression would give all images of a block the same probability, with no threshold
    between them. Arguments as for `fit_logistic`; it replaces `start`.
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


def split_folds(groups: Groups) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield the training and held-out rows of each fold. Groups are never split; a single group yields no fold."""
    num_folds = min(NUM_FOLDS, len(np.unique(groups)))
    if num_folds > 1:
        yield from GroupKFold(num_folds).split(groups, groups=groups)


_METHODS: tuple[tuple[Callable[[Scores, Flags, Groups, Calibration], Calibration], int], ...] = (
    (fit_shift, _MIN_FOR_SHIFT),
    (fit_logistic, _MIN_FOR_TEMPERATURE),
    (fit_isotonic, _MIN_FOR_ISOTONIC),
)


def fit(probabilities: Scores, labels: Flags, groups: Groups, shift: float = 0.0) -> Calibration:
    """Fit the calibration of one class: the known shift, another shift, a temperature too, or isotonic.

    The method is selected by the Brier score on held-out groups. A more complex method is selected only if it is better
    by more than one standard error of the mean over groups.

    Args:
        probabilities: `(n,)`, not calibrated.
        labels: bool `(n,)`.
        groups: `(n,)`, group of each image.
        shift: Known shift of the logits, which is undone first; see `Evidence.logit_shift`.
    """
    start = best = Calibration(shift=float(np.float32(shift)))
    folds = list(split_folds(groups))
    group = np.unique(groups, return_inverse=True)[1]
    num_rarer = min(len(np.unique(groups[labels])), len(np.unique(groups[~labels])))
    errors = np.square(start(probabilities) - labels)
    for method, num_needed in _METHODS:
        if not folds or num_rarer < num_needed:
            break
        new_errors = np.empty(len(labels))
        for train, held_out in folds:
            fitted = method(probabilities[train], labels[train], groups[train], start)
            new_errors[held_out] = np.square(fitted(probabilities[held_out]) - labels[held_out])
        gain = np.bincount(group, errors - new_errors)
        if gain.sum() > gain.std(ddof=1) * np.sqrt(len(gain)):
            best, errors = method(probabilities, labels, groups, start), new_errors
    return best
