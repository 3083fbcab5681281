"""An operating point: calibration, all thresholds and smallest sizes, as numbers, as tensors and as a file."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from torch import Tensor

from steel.decision.drift import Reference
from steel.decision.tuning import Tuning
from steel.errors import InputError
from steel.files import write_atomic

Curve = tuple[tuple[float, float], ...]  # points of a line that rises from probability 0 to 1, the first axis strictly


STRAIGHT: Curve = ((0.0, 0.0), (1.0, 1.0))


@dataclass(frozen=True)
class OperatingPoint:
    """Calibration, all thresholds and smallest sizes, chosen after training and so never part of a task.

    Attributes:
        gate: The largest class probability from which on an image is segmented, 0 to 1.
        label: For each class, the class probability from which on it may be outlined.
        pixel: For each class, the probability from which on a pixel belongs to it.
        smallest_spot: For each class, the area in pixels below which a spot is dropped.
        smallest_area: For each class, the area in pixels below which what is left of its mask on an image is dropped.
        temperature: For each class, what the logit of its probability is divided by before anything else.
        curve: For each class, what the probability becomes after that: a line through at least two points.
    """

    gate: float
    label: tuple[float, ...]
    pixel: tuple[float, ...]
    smallest_spot: tuple[int, ...]
    smallest_area: tuple[int, ...]
    temperature: tuple[float, ...]
    curve: tuple[Curve, ...]

    @classmethod
    def untuned(cls, num_classes: int) -> "OperatingPoint":
        """Gate and pixels at 0.5, everything else left as it is: what holds until a point is chosen on validation."""
        each = num_classes
        return cls(0.5, (0.0,) * each, (0.5,) * each, (0,) * each, (0,) * each, (1.0,) * each, (STRAIGHT,) * each)

    def to_dict(self) -> dict[str, Any]:
        """The point in the types that JSON and YAML have."""

        def to_lists(value: Any) -> Any:
            return [to_lists(item) for item in value] if isinstance(value, tuple) else value

        return {key: to_lists(value) for key, value in asdict(self).items()}

    def to_tensors(self) -> "Point":
        """The point as `Inspector.decide` takes it."""
        knots, values = tabulate_curves(self.curve)
        return Point(
            torch.tensor(self.gate),
            torch.tensor(self.label),
            torch.tensor(self.pixel),
            torch.tensor(self.smallest_spot, dtype=torch.int64),
            torch.tensor(self.smallest_area, dtype=torch.int64),
            torch.tensor(self.temperature),
            knots,
            values,
        )

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "OperatingPoint":
        """The point that `to_dict` wrote."""

        def to_tuples(value: Any) -> Any:
            return tuple(to_tuples(item) for item in value) if isinstance(value, list) else value

        point = cls(**{key: to_tuples(value) for key, value in plain.items()})
        _check_point(point)
        return point

    @classmethod
    def from_tensors(cls, point: "Point") -> "OperatingPoint":
        """The point that `to_tensors` gave, as float32 holds it; padding of the curves is dropped."""
        curves = []
        for knots, values in zip(point.knots.tolist(), point.values.tolist(), strict=True):
            curves.append(tuple((x, y) for x, y in zip(knots, values, strict=True) if x <= 1))
        return cls(
            gate=float(point.gate),
            label=tuple(point.label.tolist()),
            pixel=tuple(point.pixel.tolist()),
            smallest_spot=tuple(point.smallest_spot.tolist()),
            smallest_area=tuple(point.smallest_area.tolist()),
            temperature=tuple(point.temperature.tolist()),
            curve=tuple(curves),
        )


class Point(NamedTuple):
    """An operating point as tensors, so that a program can read it, change it and decide by it; see `OperatingPoint`.

    Attributes:
        gate: float `()`.
        label: float `(C,)`.
        pixel: float `(C,)`.
        smallest_spot: int64 `(C,)`.
        smallest_area: int64 `(C,)`.
        temperature: float `(C,)`.
        knots: float `(C, K)`, the first axis of the curves' points; see `tabulate_curves`.
        values: float `(C, K)`, the second.
    """

    gate: Tensor
    label: Tensor
    pixel: Tensor
    smallest_spot: Tensor
    smallest_area: Tensor
    temperature: Tensor
    knots: Tensor
    values: Tensor


def tabulate_curves(curves: Sequence[Curve]) -> tuple[Tensor, Tensor]:
    """The points of C curves as `calibrate` takes them: both axes, each `(C, K)`."""
    longest = max(len(curve) for curve in curves)
    # Curves of fewer points go on beyond 1, where no probability is.
    padded = [[*curve, *((2.0 + i, curve[-1][1]) for i in range(longest - len(curve)))] for curve in curves]
    knots, values = torch.tensor(padded).unbind(2)
    return knots.contiguous(), values.contiguous()


def calibrate(classes: Tensor, temperature: Tensor, knots: Tensor, values: Tensor) -> Tensor:
    """Class probabilities as the classifier gives them -> as often true as they say.

    Args:
        classes: float32 `(N, C)`.
        temperature: `(C,)`; see `OperatingPoint`.
        knots: `(C, K)`, the first axis of the curves.
        values: `(C, K)`, the second.
    """
    # Where nothing is to be done, nothing is: not even rounding.
    scaled = torch.where(temperature == 1, classes, torch.sigmoid(torch.logit(classes) / temperature))
    scaled = scaled.t().contiguous()
    # As searchsorted finds it, which ONNX does not have.
    right = (scaled[:, :, None] >= knots[:, None]).sum(2).clamp(1, knots.shape[1] - 1)
    x, y = knots.gather(1, right - 1), values.gather(1, right - 1)
    slope = (values.gather(1, right) - y) / (knots.gather(1, right) - x)
    return (y + (scaled - x) * slope).t()


class PointFile(NamedTuple):
    """The content of an operating point's YAML file.

    Attributes:
        point: The operating point.
        tuned: How it was chosen; None if it was written by hand or chosen from scores alone.
        reference: Distribution of the images it was chosen on; None if that is not known.
    """

    point: OperatingPoint
    tuned: Tuning | None
    reference: Reference | None


def read_point(path: str | Path, classes: Sequence[str]) -> PointFile:
    """Read an operating point that `steel tune` wrote, or one that was written by hand.

    Args:
        path: The YAML file.
        classes: Names of the classes.

    Raises:
        InputError: The file does not exist, or holds no operating point for these classes.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no file {path}; `steel tune` writes it")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        point = OperatingPoint.from_dict(content["operating_point"])
        tuned = Tuning.from_dict(content) if "networks" in content else None
        reference = Reference.from_dict(content["reference"]) if content.get("reference") else None
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path} holds no operating point ({reason}); `steel tune` writes one") from error
    counts = {len(getattr(point, entry.name)) for entry in fields(point) if entry.name != "gate"}
    # A point written by hand may name its classes as numbers: [1, 2].
    theirs = ", ".join(map(str, content.get("classes") or sorted(counts)))
    if counts != {len(classes)} or ("classes" in content and theirs != ", ".join(classes)):
        raise InputError(
            f"{path} is for the classes {theirs}, but the networks know {', '.join(classes)}; run `steel tune` with "
            f"these networks"
        )
    return PointFile(point, tuned, reference)


def write_point(path: Path, classes: Sequence[str], file: PointFile, more: Mapping[str, Any]) -> None:
    """Write an operating point as YAML; see `read_point`.

    Args:
        path: The file to write.
        classes: Names of the classes.
        file: The point, and how it was chosen.
        more: Further entries that are worth knowing but not read back, such as versions.
    """
    content = {"classes": list(classes), "operating_point": file.point.to_dict()}
    content |= (file.tuned.to_dict() if file.tuned else {}) | dict(more)
    if file.reference is not None:
        content["reference"] = file.reference.to_dict()
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)
    write_atomic(path, text)


def _check_point(point: OperatingPoint) -> None:
    """Raises ValueError where a number cannot be what it stands for."""
    for threshold in (point.gate, *point.label, *point.pixel):
        if not isinstance(threshold, int | float) or not 0 <= threshold <= 1:
            raise ValueError(f"a threshold lies between 0 and 1, but {threshold} came")
    for size in (*point.smallest_spot, *point.smallest_area):
        if not isinstance(size, int) or size < 0:
            raise ValueError(f"a smallest size is a whole number of pixels, but {size} came")
    if not all(temperature > 0 for temperature in point.temperature):
        raise ValueError("a temperature is above 0")
    for curve in point.curve:
        x, y = zip(*curve, strict=True)
        if len(x) < 2 or (x[0], x[-1]) != (0, 1) or not (np.diff(x) > 0).all() or min(y) < 0 or max(y) > 1:
            raise ValueError("a curve has two points or more, from 0 to 1, and rises along its first axis")
