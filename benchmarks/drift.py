"""Simulated lines for drift detection."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

RATES = (0.07, 0.02, 0.4, 0.06)


class Line(NamedTuple):
    num_groups: int
    size: int
    icc: float
    heavy: bool = False


class Images(NamedTuple):
    measured: Array
    probabilities: Array
    groups: NDArray[np.int64]


def draw(line: Line, num_groups: int, rng: np.random.Generator, contrast: float = 1.0, rate: float = 1.0) -> Images:
    group = np.repeat(np.arange(num_groups), line.size)
    n = len(group)
    share = np.sqrt(line.icc), np.sqrt(1 - line.icc)

    def noise(shape):
        return rng.standard_t(4, shape) / np.sqrt(2) if line.heavy else rng.normal(size=shape)

    level = share[0] * noise((num_groups, 4))[group] + share[1] * noise((n, 4))
    measured = np.stack(
        [
            100 * np.exp(0.15 * level[:, 0]),
            0.2 * contrast * np.exp(0.15 * level[:, 1]),
            np.maximum(0, 0.04 * (level[:, 2] - 1)),
            0.8 + 0.03 * level[:, 3],
        ],
        axis=1,
    )
    rates = np.array(RATES) * np.array([1, rate, 1, 1])
    total = 1 / line.icc - 1
    of_group = rng.beta(rates * total, (1 - rates) * total, (num_groups, 4))
    labels = rng.random((n, 4)) < of_group[group]
    separation = 3.5
    score = rng.normal(size=(n, 4)) + separation * labels
    logit = np.log(np.array(RATES) / (1 - np.array(RATES))) + separation * score - separation**2 / 2
    return Images(measured, 1 / (1 + np.exp(-logit)), group)
