"""How `steel tune` chose an operating point: its aim, the images and networks it used, and what it promises.

`to_dict` and `from_dict` convert to and from the types that JSON and YAML have. The keys are those that version 0.1
wrote, so that its files stay readable.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, Self

import numpy as np

from steel.intervals import Interval

AimName = Literal["cost", "recall", "false_alarms", "kaggle_dice"]


def to_plain(value: Any) -> Any:
    """Convert tuples to lists, recursively; NaN and infinity become None, which JSON has a word for."""
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


class Aim(NamedTuple):
    """What an operating point is chosen for. A defect is one class on one image.

    Attributes:
        name: "cost": the lowest sum of costs. "recall": for every class at least a share of the defects, claimed with
            confidence, at the fewest false alarms. "false_alarms": masks on no more than a share of the clean images,
            and as many defects found as that allows, minus the classes called wrongly on the other images.
            "kaggle_dice": the highest Kaggle Dice.
        miss_cost: `(C,)`, cost of a defect that is not found.
        alarm_cost: `(C,)`, cost of a class called on an image without it.
        share: The lowest recall or the highest false-alarm rate, 0 to 1.
        confidence: Confidence with which the recall is claimed, 0 to 1.
    """

    name: AimName
    miss_cost: tuple[float, ...] = ()
    alarm_cost: tuple[float, ...] = ()
    share: float = 0.0
    confidence: float = 0.95

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """Rebuild the aim from JSON or YAML types.

        Raises:
            TypeError: A key is unknown or missing.
        """
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in plain.items()
        }
        return cls(**values)


class Promise(NamedTuple):
    """One number that is expected on new images.

    Attributes:
        name: What is counted.
        num: Number of images (or defects) that it is estimated from.
        value: The estimate, corrected for the optimism of choosing on the same images.
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

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """Rebuild a promise from JSON or YAML types; None stands for NaN, or for an end without a bound.

        Raises:
            KeyError: A key is missing.
            TypeError: A value has another type.
        """

        def interval(ends: Sequence[float | None]) -> Interval:
            low, high = ends
            return Interval(-np.inf if low is None else float(low), np.inf if high is None else float(high))

        def number(value: float | None) -> float:
            return np.nan if value is None else float(value)

        return cls(
            name=str(plain["name"]),
            num=int(plain["num"]),
            value=number(plain["value"]),
            as_chosen=number(plain["as_chosen"]),
            interval=interval(plain["interval"]),
            prediction=interval(plain["prediction"]),
            num_new=int(plain["num_new"]),
        )


@dataclass(frozen=True)
class ChosenOn:
    """The images that an operating point was chosen on.

    Attributes:
        root: Folder of the dataset.
        part: train, val or test.
        data: Hash of the labels.
        split: Hash of the split.
        num_images: Number of images.
        num_groups: Number of groups.
    """

    root: str
    part: str
    data: str
    split: str
    num_images: int
    num_groups: int


@dataclass(frozen=True)
class NetworkHashes:
    """The networks that thresholds belong to.

    Attributes:
        classifiers: Hashes of the classifiers' checkpoints, sorted.
        segmenters: Hashes of the segmenters' checkpoints, sorted.
        flips: Whether probabilities are averaged over flips.
    """

    classifiers: tuple[str, ...]
    segmenters: tuple[str, ...]
    flips: bool

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """Rebuild the hashes from JSON or YAML types."""
        return cls(tuple(plain["classifiers"]), tuple(plain["segmenters"]), bool(plain["flips"]))


@dataclass(frozen=True)
class Tuning:
    """How `steel tune` chose an operating point.

    Attributes:
        aim: What it was chosen for.
        chosen_on: The images it was chosen on.
        networks: The networks it was chosen for.
        promises: What it promises on new images.
        warnings: What `steel tune` warned about.
    """

    aim: Aim
    chosen_on: ChosenOn
    networks: NetworkHashes
    promises: tuple[Promise, ...] = ()
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Convert to the types that JSON and YAML have."""
        promises = [to_plain(promise._asdict()) for promise in self.promises]
        plain: dict[str, Any] = to_plain(asdict(self))
        return plain | {"aim": to_plain(self.aim._asdict()), "promises": promises}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """Rebuild from JSON or YAML types; keys of other things are ignored.

        Raises:
            KeyError: A key is missing.
            TypeError: A value has another type.
        """
        return cls(
            aim=Aim.from_dict(plain["aim"]),
            chosen_on=ChosenOn(**plain["chosen_on"]),
            networks=NetworkHashes.from_dict(plain["networks"]),
            promises=tuple(Promise.from_dict(promise) for promise in plain["promises"]),
            warnings=tuple(map(str, plain.get("warnings", ()))),
        )
