"""How `steel tune` chose an operating point: its aim, its images and networks, and the values expected on new images.

The names of attributes are the keys of a file format, so they must stay as they are.
"""

import math
from dataclasses import dataclass
from typing import Literal

from steel.intervals import Interval

AimName = Literal["cost", "recall", "false_alarms", "kaggle_dice"]


@dataclass(frozen=True)
class Aim:
    """The goal that an operating point is chosen for. A defect is one class on one image.

    Attributes:
        name: "cost" minimises the total cost. "recall" finds at least a given share of the defects of every class, at a
            given confidence, with the fewest false alarms. "false_alarms" marks at most a given share of the clean
            images, at a given confidence, and within that limit finds as many defects as possible.
            "kaggle_dice" maximises the Kaggle Dice.
        miss_cost: `(C,)`, cost of a missed defect.
        alarm_cost: `(C,)`, cost of calling a class on an image without it.
        share: The lowest recall or the highest false-alarm rate, 0 to 1.
        confidence: One-sided confidence of the claimed recall or limit of false alarms, 0.5 to 1.
    """

    name: AimName
    miss_cost: tuple[float, ...] = ()
    alarm_cost: tuple[float, ...] = ()
    share: float = 0.0
    confidence: float = 0.95


@dataclass(frozen=True)
class Promise:
    """A score with the range expected on new images.

    Attributes:
        name: Name of the score.
        num: Number of images (or defects) that it is estimated from.
        value: The estimate, corrected for the optimism of choosing and measuring on the same images.
        as_chosen: The value measured on the images that the operating point was chosen on.
        interval: 95 % confidence interval of the true value.
        prediction: 95 % prediction interval of the value on `num_new` new images.
        num_new: Number of new images that the prediction is for.
    """

    name: str
    num: int
    value: float
    as_chosen: float
    interval: Interval
    prediction: Interval
    num_new: int

    @property
    def is_too_wide(self) -> bool:
        """True if the prediction interval covers every possible value, so that no new images can break the promise."""
        # Intervals end at the largest possible value: 1, or infinity for a cost. Three digits are shown.
        return round(self.prediction.low, 3) <= 0 and round(self.prediction.high, 3) in (1, math.inf)

    def describe(self) -> tuple[str, str]:
        """Return the estimate with its interval, "-" if it rests on nothing, and the range on new images."""
        (low, high), (least, most) = self.interval, self.prediction
        expected = f"{self.value:.3f} ({low:.3f} to {high:.3f})" if self.num else "-"
        return expected, "too wide to tell" if self.is_too_wide else f"{least:.3f} to {most:.3f}"


@dataclass(frozen=True)
class ChosenOn:
    """The images that an operating point was chosen on: part of a dataset, with hashes of its labels and its split."""

    root: str
    part: str  # train, val or test
    data: str
    split: str
    num_images: int
    num_groups: int


@dataclass(frozen=True)
class NetworkHashes:
    """The networks that an operating point was chosen for: sorted hashes of their checkpoints, and use of flips."""

    classifiers: tuple[str, ...]
    segmenters: tuple[str, ...]
    flips: bool


@dataclass(frozen=True)
class Tuning:
    """How `steel tune` chose an operating point.

    Attributes:
        aim: The goal it was chosen for.
        chosen_on: The images it was chosen on.
        networks: The networks it was chosen for.
        promises: The scores expected on new images.
        warnings: The warnings that `steel tune` printed.
    """

    aim: Aim
    chosen_on: ChosenOn
    networks: NetworkHashes
    promises: tuple[Promise, ...] = ()
    warnings: tuple[str, ...] = ()
