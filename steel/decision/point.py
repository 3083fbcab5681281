"""The operating point: calibration, thresholds and smallest sizes, as a dataclass, as tensors and as a YAML file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from torch import Tensor

from steel.decision.drift import Reference
from steel.decision.plain import from_plain, to_plain
from steel.decision.tuning import Tuning
from steel.errors import InputError
from steel.files import write_atomic

# A piecewise linear map of probabilities: points (x, y) with x strictly increasing from 0 to 1.
Curve = tuple[tuple[float, float], ...]
STRAIGHT: Curve = ((0.0, 0.0), (1.0, 1.0))


@dataclass(frozen=True)
class OperatingPoint:
    """Calibration, thresholds and smallest sizes. They are chosen after training and are never part of a task.

    All attributes but `gate` hold one value per class.

    Attributes:
        gate: An image is segmented if its largest class probability is at least this, 0 to 1.
        label: A class can be outlined on an image if its probability is at least this, 0 to 1.
        pixel: A pixel belongs to a class if its probability is at least this, 0 to 1.
        smallest_spot: Spots of fewer pixels are dropped.
        smallest_area: A class whose remaining mask has fewer pixels on an image is dropped.
        temperature: Calibration, second step: the shifted logit is divided by this; above 0.
        curve: Calibration, third step: map of the class probability, at least two points.
        shift: Calibration, first step: this is subtracted from the logit of the class probability; finite.
    """

    gate: float
    label: tuple[float, ...]
    pixel: tuple[float, ...]
    smallest_spot: tuple[int, ...]
    smallest_area: tuple[int, ...]
    temperature: tuple[float, ...]
    curve: tuple[Curve, ...]
    shift: tuple[float, ...]

    @classmethod
    def untuned(cls, num_classes: int) -> "OperatingPoint":
        """Return the default point: gate and pixel thresholds of 0.5, no calibration, nothing dropped."""
        n = num_classes
        return cls(0.5, (0.0,) * n, (0.5,) * n, (0,) * n, (0,) * n, (1.0,) * n, (STRAIGHT,) * n, (0.0,) * n)

    def to_dict(self) -> dict[str, Any]:
        """Convert to JSON and YAML types."""
        return dict(to_plain(self))

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "OperatingPoint":
        """Rebuild from JSON or YAML types.

        Raises:
            TypeError: A key is unknown or missing, or a value has the wrong type.
            ValueError: A value is out of range.
        """
        if unknown := plain.keys() - {entry.name for entry in fields(cls)}:
            raise TypeError(f"unknown key {', '.join(sorted(unknown))}")
        # Earlier versions wrote no shift.
        point = from_plain(cls, {"shift": [0.0] * len(plain.get("label", ()))} | dict(plain))
        point._check()
        return point

    def _check(self) -> None:
        thresholds = dict.fromkeys(("gate", "label", "pixel"), ("in [0, 1]", 0, 1))
        sizes = dict.fromkeys(("smallest_spot", "smallest_area"), ("in [0, 1e15] pixels", 0, 1e15))
        for name, (expected, low, high) in (thresholds | sizes).items():
            for value in np.ravel(getattr(self, name)).tolist():
                if not low <= value <= high:
                    raise ValueError(f"{name} must be {expected}, got {value}")
        for temperature in self.temperature:
            if not 0 < temperature < np.inf:
                raise ValueError(f"temperature must be finite and above 0, got {temperature}")
        for shift in self.shift:
            if not np.isfinite(shift):
                raise ValueError(f"shift must be finite, got {shift}")
        for curve in self.curve:
            x, y = np.array(curve, np.float32).reshape(-1, 2).T  # as in the exported file
            if len(x) < 2 or (x[0], x[-1]) != (0, 1) or not (np.diff(x) > 0).all() or y.min() < 0 or y.max() > 1:
                raise ValueError(
                    f"a curve must be two or more points (x, y) with x increasing from 0 to 1 and y in [0, 1], "
                    f"got {to_plain(curve)}"
                )

    def to_tensors(self) -> "Point":
        """Convert to the tensors that `Inspector.decide` takes."""
        numbers = (self.gate, self.label, self.pixel, self.temperature, self.shift)
        gate, label, pixel, temperature, shift = (torch.tensor(number, dtype=torch.float32) for number in numbers)
        spot, area = (torch.tensor(size, dtype=torch.int64) for size in (self.smallest_spot, self.smallest_area))
        return Point(gate, label, pixel, spot, area, temperature, *tabulate_curves(self.curve), shift)

    @classmethod
    def from_tensors(cls, point: "Point") -> "OperatingPoint":
        """Rebuild from tensors. Numbers are rounded to float32, and the padding of the curves is removed."""
        plain = {name: tensor.tolist() for name, tensor in point._asdict().items()}
        curves = zip(plain.pop("knots"), plain.pop("values"), strict=True)
        plain["curve"] = [[(x, y) for x, y in zip(*curve, strict=True) if x <= 1] for curve in curves]
        return cls.from_dict(plain)


class Point(NamedTuple):
    """An operating point as tensors, which an exported program can read and change; see `OperatingPoint`.

    `gate` has shape `()`, `knots` and `values` are the x and y of the curves, `(C, K)`, and the others are `(C,)`. The
    smallest sizes are int64, the others float32.
    """

    gate: Tensor
    label: Tensor
    pixel: Tensor
    smallest_spot: Tensor
    smallest_area: Tensor
    temperature: Tensor
    knots: Tensor
    values: Tensor
    shift: Tensor


def tabulate_curves(curves: Sequence[Curve]) -> tuple[Tensor, Tensor]:
    """Convert C curves to the tensors that `calibrate` takes.

    Returns:
        x and y of the points, float `(C, K)` each. Shorter curves are padded with points at x > 1.
    """
    longest = max(map(len, curves))
    padded = [[*curve, *((2.0 + i, curve[-1][1]) for i in range(longest - len(curve)))] for curve in curves]
    knots, values = torch.tensor(padded, dtype=torch.float32).unbind(2)
    return knots.contiguous(), values.contiguous()


def calibrate(classes: Tensor, temperature: Tensor, knots: Tensor, values: Tensor, shift: Tensor) -> Tensor:
    """Calibrate class probabilities: shift the logits, scale them by temperature, then interpolate the curves.

    Args:
        classes: Probabilities of the classifier, float32 `(N, C)`.
        temperature: float `(C,)`; see `OperatingPoint`.
        knots: x of the curves' points, float `(C, K)`.
        values: y of the curves' points, float `(C, K)`.
        shift: float `(C,)`; see `OperatingPoint`.

    Returns:
        float32 `(N, C)`. Without calibration, the probabilities are returned bit for bit.
    """
    is_same = (temperature == 1) & (shift == 0)
    scaled = torch.where(is_same, classes, torch.sigmoid((torch.logit(classes) - shift) / temperature))
    scaled = scaled.t().contiguous()
    # Equivalent to searchsorted, which ONNX does not have.
    right = (scaled[:, :, None] >= knots[:, None]).sum(2).clamp(1, knots.shape[1] - 1)
    x, y = knots.gather(1, right - 1), values.gather(1, right - 1)
    slope = (values.gather(1, right) - y) / (knots.gather(1, right) - x)
    return (y + (scaled - x) * slope).t()


class PointFile(NamedTuple):
    """Content of an operating point's YAML file.

    Attributes:
        point: The operating point.
        tuned: How it was chosen; None if it was written by hand or chosen from scores alone.
        reference: Distribution of the images it was chosen on; None if the file has none.
    """

    point: OperatingPoint
    tuned: Tuning | None
    reference: Reference | None


def read_point(path: str | Path, classes: Sequence[str]) -> PointFile:
    """Read an operating point for these classes that `steel tune` or a user wrote.

    Raises:
        InputError: The file does not exist, is not a valid operating point, or is for other classes.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no file {path}; `steel tune` writes it")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        point = OperatingPoint.from_dict(content["operating_point"])
        tuned = from_plain(Tuning, content) if "networks" in content else None
        reference = Reference.from_dict(content["reference"]) if content.get("reference") else None
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path} holds no operating point ({reason}); `steel tune` writes one") from error
    counts = {len(getattr(point, entry.name)) for entry in fields(point) if entry.name != "gate"}
    # A user may have written numbers as class names: [1, 2].
    names = ", ".join(map(str, content.get("classes") or sorted(counts)))
    if counts != {len(classes)} or ("classes" in content and names != ", ".join(classes)):
        raise InputError(
            f"{path} is for the classes {names}, but the networks know {', '.join(classes)}; run `steel tune` with "
            f"these networks"
        )
    return PointFile(point, tuned, reference)


def write_point(path: Path, classes: Sequence[str], file: PointFile, more: Mapping[str, Any]) -> None:
    """Write an operating point as YAML, with `more` entries such as versions that `read_point` ignores."""
    content = {"classes": list(classes), "operating_point": file.point.to_dict()}
    content |= (to_plain(file.tuned) if file.tuned else {}) | dict(more)
    if file.reference is not None:
        content["reference"] = file.reference.to_dict()
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)
    write_atomic(path, text)
