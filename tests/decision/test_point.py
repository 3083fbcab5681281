"""Operating points: calibration, conversion to tensors, and YAML files."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from scipy import special

from steel.decision.plain import from_plain, to_plain
from steel.decision.point import (
    STRAIGHT,
    OperatingPoint,
    PointFile,
    calibrate,
    read_point,
    tabulate_curves,
    write_point,
)
from steel.decision.tuning import Aim, ChosenOn, NetworkHashes, Promise, Tuning
from steel.errors import InputError
from steel.intervals import Interval

POINT = replace(
    OperatingPoint.untuned(2),
    label=(0.0, 0.25),
    smallest_spot=(0, 7),
    curve=(STRAIGHT, ((0.0, 0.0), (0.5, 0.25), (1.0, 1.0))),
)
TUNING = Tuning(
    Aim("cost", (5.0, 1.0), (1.0, 1.0)),
    ChosenOn("data", "val", "abc", "def", 60, 30),
    NetworkHashes(("a", "b"), ("c",), True),
    (Promise("cost of an image", 60, 0.5, float("inf"), Interval(0.0, np.inf), Interval(-np.inf, 1.0), 60),),
    ("a warning",),
)


def test_identity_calibration_returns_the_input_bit_for_bit() -> None:
    classes = torch.rand(50, 2)
    classes[0], classes[1] = 0, 1
    ours = calibrate(classes, torch.ones(2), *tabulate_curves([STRAIGHT, STRAIGHT]), torch.zeros(2))
    assert torch.equal(ours, classes)


def test_calibration_equals_scipy_and_numpy() -> None:
    classes = torch.rand(50, 2)
    classes[0], classes[1] = 0, 1
    curve = ((0.0, 0.05), (0.3, 0.2), (0.31, 0.8), (1.0, 0.95))
    curves = tabulate_curves([STRAIGHT, curve])
    ours = calibrate(classes, torch.tensor([1.7, 1.0]), *curves, torch.tensor([-0.8, 0.0])).numpy()
    logits = special.logit(classes[:, 0].double().numpy())
    assert ours[:, 0] == pytest.approx(special.expit((logits + 0.8) / 1.7), abs=1e-6)
    assert ours[:, 1] == pytest.approx(np.interp(classes[:, 1].numpy(), *zip(*curve, strict=True)), abs=1e-6)


def test_tensors_are_converted_back_without_the_padding_of_curves() -> None:
    tensors = POINT.to_tensors()
    assert tensors.knots.shape == tensors.values.shape == (2, 3)
    assert OperatingPoint.from_tensors(tensors) == POINT
    integers = OperatingPoint(0, (0, 1), (1, 1), (0, 0), (0, 0), (1, 1), (((0, 0), (1, 1)),) * 2, (0, 0)).to_tensors()
    assert [tensor.dtype for tensor in integers] == [tensor.dtype for tensor in tensors]


def test_a_point_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "point.yaml"
    for tuned in (None, TUNING):
        write_point(path, ("a", "b"), PointFile(POINT, tuned, None), {"versions": {"torch": "2"}})
        point, read, reference = read_point(path, ("a", "b"))
        assert (point, reference) == (POINT, None)
        assert to_plain(read) == to_plain(tuned)  # infinity is read as NaN
    with pytest.raises(
        InputError, match=r"point.yaml is for the classes a, b, but the networks know a, c; run `steel tune`"
    ):
        read_point(path, ("a", "c"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"gate": 1.5}, "gate must be in [0, 1], got 1.5"),
        ({"gate": float("nan")}, "gate must be in [0, 1], got nan"),
        ({"gate": "0.5"}, "gate must be float, got '0.5'"),
        ({"smallest_area": [0.5, 1]}, "smallest_area must be int, got 0.5"),
        ({"smallest_spot": [-1, 0]}, "smallest_spot must be in [0, 1e15] pixels, got -1"),
        ({"temperature": [0.0, 1.0]}, "temperature must be finite and above 0, got 0.0"),
        ({"temperature": [float("inf"), 1.0]}, "temperature must be finite and above 0, got inf"),
        ({"curve": [[[0.5, 0.0], [1.0, 1.0]]] * 2}, "got [[0.5, 0.0], [1.0, 1.0]]"),
        ({"curve": [[[0.0, 0.0]], [[0.0, 0.0], [1.0, 1.0]]]}, "got [[0.0, 0.0]]"),
        ({"curve": [[[0.0, 0.0], [0.5, 0.1], [0.50000001, 0.2], [1.0, 1.0]]] * 2}, "x increasing from 0 to 1"),
        ({"shift": [float("nan"), 0.0]}, "shift must be finite, got nan"),
        ({"threshold": 0.5}, "unknown key threshold"),
    ],
)
def test_values_out_of_range_are_refused(tmp_path: Path, change: dict[str, object], reason: str) -> None:
    path = tmp_path / "point.yaml"
    path.write_text(yaml.safe_dump({"operating_point": POINT.to_dict() | change}))
    with pytest.raises(InputError, match="holds no operating point") as error:
        read_point(path, ("a", "b"))
    assert reason in str(error.value)


def test_null_means_nan_or_no_bound() -> None:
    promise = TUNING.promises[0]
    plain = to_plain(promise)
    assert (plain["as_chosen"], plain["interval"], plain["prediction"]) == (None, [0.0, None], [None, 1.0])
    read = from_plain(Promise, plain)
    assert np.isnan(read.as_chosen)
    assert replace(read, as_chosen=promise.as_chosen) == promise


@pytest.mark.parametrize(
    ("kind", "plain", "reason"),
    [
        (NetworkHashes, {"classifiers": ["a"], "segmenters": [], "flips": 1}, "flips must be bool, got 1"),
        (NetworkHashes, {"classifiers": ["a"], "segmenters": [3], "flips": True}, "segmenters must be str, got 3"),
        (NetworkHashes, {"classifiers": ["a"]}, "missing"),
        (Promise, {"name": "x", "num": 2.5}, "num must be int, got 2.5"),
    ],
)
def test_values_of_the_wrong_type_are_refused(kind: type, plain: dict[str, object], reason: str) -> None:
    with pytest.raises(TypeError, match=reason):
        from_plain(kind, plain)
