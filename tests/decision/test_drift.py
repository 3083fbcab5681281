"""Rate of false warnings, drift that one window detects, and the reference from `tune` to `inspect`."""

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from scipy import stats
from torch import Tensor, nn

from conftest import Trained
from steel.cli import main
from steel.data.annotations import read_annotations
from steel.data.synthetic import draw_image
from steel.decision import bundle, drift
from steel.decision.about import About
from steel.decision.chart import Alarm, Chart, Charts, _find_limit, score
from steel.decision.drift import Reference, build_reference
from steel.decision.inspector import Inspector
from steel.decision.measures import MEASURES, compare, join, measure
from steel.decision.monitor import Change, Drift, Monitor, Shift, Window
from steel.decision.point import OperatingPoint, read_point
from steel.errors import InputError

RATES = (0.07, 0.02, 0.4, 0.06)
NAMES = ("pits", "crack", "scratch", "patch")


def draw(
    n: int, size: int, rng: np.random.Generator, class_icc: float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw measures and class probabilities of n images in groups of equal size: correlated, with heavy tails.

    With a `class_icc` above 0, the rates of the classes differ between groups.
    """
    groups = np.arange(n) // size
    level = rng.standard_t(4, (groups[-1] + 1, 4))[groups]
    margin = np.where(level[:, 2] > 1.2, 0.1 + 0.05 * rng.random(n), 0.0)
    measured = np.stack(
        [
            100 * np.exp(0.15 * level[:, 0] + 0.1 * rng.standard_t(3, n)),
            0.2 * np.exp(0.2 * level[:, 1] + 0.1 * rng.normal(size=n)),
            margin,
            0.8 + 0.03 * level[:, 3] + 0.02 * rng.normal(size=n),
        ],
        axis=1,
    )
    rates = np.array(RATES)
    if class_icc:
        total = 1 / class_icc - 1
        rates = rng.beta(rates * total, (1 - rates) * total, (groups[-1] + 1, 4))[groups]
    return measured, draw_probabilities(rng.random((n, 4)) < rates, rng), groups


def draw_probabilities(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return 1 / (1 + np.exp(-(rng.normal(size=labels.shape) * 1.5 - 3 + 5 * labels)))


class MeasuredWindow(Window):
    """A window that takes measures instead of images."""

    def list_warnings(self, measured: np.ndarray, probabilities: np.ndarray) -> list[bool]:
        """Return whether each full window of a sequence of images warns."""
        warned = []
        size = len(self._values)
        for start in range(0, len(measured) - size + 1, size):
            rows = slice(start, start + size)
            self._values[:] = join(measured[rows], probabilities[rows])
            self._num_seen += size
            warned.append(self._compare() is not None)
        return warned


def rate_of_false_warnings(
    n: int, size: int, num_windows: int, rng: np.random.Generator, class_icc: float = 0.0
) -> float:
    reference = build_reference(*draw(n, size, rng, class_icc))
    assert reference is not None
    measured, probabilities, _ = draw(200 * num_windows + size, size, rng, class_icc)
    start = rng.integers(size)
    return float(np.mean(MeasuredWindow(reference, NAMES).list_warnings(measured[start:], probabilities[start:])))


@pytest.mark.parametrize("size", [1, 6])
def test_windows_without_drift_rarely_warn(size: int) -> None:
    rng = np.random.default_rng(0)
    assert np.mean([rate_of_false_warnings(1200, size, 150, rng) for _ in range(2)]) <= 0.02


@pytest.mark.slow
@pytest.mark.parametrize(("n", "size"), [(60, 1), (300, 1), (300, 6), (2000, 1), (2000, 6), (4000, 100)])
def test_the_level_holds_for_small_references_and_long_coils(n: int, size: int) -> None:
    rng = np.random.default_rng(1)
    assert np.mean([rate_of_false_warnings(n, size, 100, rng) for _ in range(8)]) <= 0.02


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "size", "class_icc", "largest"),
    # The last is not kept: 20 groups tell too little about classes that fill whole groups.
    [(1200, 40, 0.5, 0.02), (2000, 40, 0.1, 0.02), (420, 7, 0.5, 0.02), (800, 40, 0.9, 0.03)],
)
def test_the_level_holds_for_classes_that_come_in_bursts(n: int, size: int, class_icc: float, largest: float) -> None:
    rng = np.random.default_rng(2)
    assert np.mean([rate_of_false_warnings(n, size, 30, rng, class_icc) for _ in range(12)]) <= largest


def run_length(reference: Reference, measured: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the number of images until the first warning of a chart; infinite if there is none."""
    charts = Charts(reference.charts)
    scores = score(measured, probabilities, np.array(reference.sketches[1].cuts))
    return next((float(i) for i, row in enumerate(scores, 1) if charts.add(row, i)), np.inf)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "size", "class_icc"), [(500, 1, 0.0), (2000, 40, 0.5), (800, 40, 0.9)])
def test_charts_warn_as_rarely_as_promised(
    monkeypatch: pytest.MonkeyPatch, n: int, size: int, class_icc: float
) -> None:
    monkeypatch.setattr(drift, "_NUM_WINDOWS", 20)  # the charts do not use them
    rng = np.random.default_rng(3)
    lengths = []
    for _ in range(30):
        reference = build_reference(*draw(n, size, rng, class_icc))
        assert reference is not None
        lengths.append(min(8000.0, run_length(reference, *draw(8000, size, rng, class_icc)[:2])))
    num_warnings = sum(length < 8000 for length in lengths)
    assert sum(lengths) / max(1, num_warnings) >= reference.run_length


def test_charts_find_small_lasting_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift, "_NUM_WINDOWS", 20)
    rng = np.random.default_rng(4)
    reference = build_reference(*draw(2000, 1, rng))
    assert reference is not None
    assert run_length(reference, *draw(2000, 1, rng)[:2]) == np.inf
    measured, probabilities, _ = draw(2000, 1, rng)
    measured[:, 1] *= 0.9
    assert run_length(reference, measured, probabilities) < 500
    measured, probabilities, _ = draw(2000, 1, rng)
    twice = draw_probabilities(rng.random((2000, 4)) < (0.14, 0.02, 0.4, 0.06), rng)
    assert run_length(reference, measured, twice) < 1500


def test_a_chart_warns_once_until_its_sum_returns_to_zero() -> None:
    charts = Charts([Chart(mean=0.5, allowance=0.1, upper=2.0, lower=1e9)])
    found = {i: alarms for i in range(1, 101) if (alarms := charts.add(np.array([0.5 if i <= 10 else 1.0]), i))}
    assert found == {16: [Alarm(0, 11, 1.0)]}  # 6 images of 0.4 each
    assert charts.is_active.tolist() == [[True], [False]]
    num = next(i for i in range(1, 101) if charts.add(np.array([0.5]), 100 + i) or not charts.is_active.any())
    assert num == pytest.approx(20, abs=1)  # from the limit to 0 in steps of 0.1, however long the drift was
    again = [i for i in range(1, 11) if charts.add(np.array([1.0]), 200 + i)]
    assert len(again) == 1


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_the_limit_of_a_chart_gives_the_run_length_of_a_random_walk(scale: float) -> None:
    rng = np.random.default_rng(0)
    steps = scale * (rng.normal(size=100_000) - 0.25)
    limit = _find_limit(steps, 500.0)
    walk = np.cumsum(scale * (rng.normal(size=(400, 3000)) - 0.25), axis=1)
    over = walk - np.minimum(0, np.minimum.accumulate(walk, axis=1)) > limit
    lengths = np.where(over.any(axis=1), over.argmax(axis=1) + 1, 3000)
    num_ended = over.any(axis=1).sum()
    assert 500 <= lengths.sum() / num_ended <= 2500


def test_unknown_groups_promise_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift, "_NUM_WINDOWS", 20)
    images = draw(100, 1, np.random.default_rng(0))
    known, unknown = (build_reference(*images, are_groups_known=are_known) for are_known in (True, False))
    assert known is not None
    assert unknown is not None
    assert known.level == drift.LEVEL
    assert "at most 1% of the windows of 200 images warn, and a chart after 40,000 images" in known.promise
    restored = Reference.from_dict(json.loads(json.dumps(unknown.to_dict())))
    assert np.isnan([restored.level, restored.run_length]).all()
    assert restored.charts == unknown.charts
    assert restored.promise.startswith("nothing is promised")


def test_a_reference_without_charts_is_read(reference: Reference, strip: list[np.ndarray]) -> None:
    plain = {key: value for key, value in reference.to_dict().items() if key not in ("charts", "run_length")}
    monitor = Monitor(Reference.from_dict(plain), NAMES)
    assert monitor.add(strip[0], np.full(4, 0.3)) == []
    assert monitor.latest is None


def test_the_monitor_reports_the_shift_of_a_class(reference: Reference, strip: list[np.ndarray]) -> None:
    monitor = Monitor(reference, NAMES)
    rng = np.random.default_rng(5)
    usual, bad = (draw_probabilities(rng.random((400, 4)) < rates, rng) for rates in (RATES, (0.07, 0.5, 0.4, 0.06)))
    drifts = [found for p, image in zip(np.concatenate([usual[:150], bad[:49]]), strip, strict=False)
              for found in monitor.add(image, p)]  # fmt: skip
    (found,) = drifts  # before the first window is full
    assert isinstance(found.changes[0], Shift)
    assert found == monitor.latest
    assert 140 <= found.first <= 165
    assert "class 2 crack is predicted more often than in the reference: mean probability 0.4" in found.sentence


@pytest.mark.slow
def test_real_windows_rarely_warn_and_real_drift_is_found(real_data: Callable[[str], Path]) -> None:
    """Permute the groups: one third is the reference, and the windows are drawn from the others."""
    table = read_annotations(real_data("magnetic-tile"))
    images = [table.read_image(i) for i in range(len(table))]
    rng = np.random.default_rng(0)
    probabilities = draw_probabilities(table.labels, rng)
    measured, dark, soft = (
        np.stack([measure(change(image)) for image in images])
        for change in (lambda image: image, darken, soften)
    )  # fmt: skip
    warned, found = [], []
    for _ in range(10):
        order = rng.permutation(table.groups.max() + 1)
        rank = np.argsort(order)[table.groups]
        rows = np.argsort(rank, kind="stable")
        known, new = np.split(rows, [int(np.searchsorted(rank[rows], len(order) // 3))])
        reference = build_reference(measured[known], probabilities[known], table.groups[known])
        assert reference is not None
        for _ in range(12):
            rank = rng.permutation(len(order))[table.groups[new]]
            rows = new[np.argsort(rank, kind="stable")]
            warned += MeasuredWindow(reference, table.classes).list_warnings(measured[rows], probabilities[rows])
        for changed in (dark, soft):
            found += MeasuredWindow(reference, table.classes).list_warnings(changed[new], probabilities[new])
    assert np.mean(warned) <= 0.02
    assert np.mean(found) >= 0.95


def darken(image: np.ndarray) -> np.ndarray:
    return (image * 0.7).astype(np.uint8)


def soften(image: np.ndarray) -> np.ndarray:
    return cv2.GaussianBlur(image, (0, 0), 1.0)


@pytest.fixture(scope="module")
def strip() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [draw_image(rng, (), (64, 256))[0] for _ in range(600)]


@pytest.fixture(scope="module")
def reference(strip: list[np.ndarray]) -> Reference:
    rng = np.random.default_rng(1)
    measured = np.stack([measure(image) for image in strip[:400]])
    reference = build_reference(measured, draw_probabilities(rng.random((400, 4)) < RATES, rng), np.arange(400))
    assert reference is not None
    return reference


@pytest.mark.parametrize(
    ("change", "rates", "first", "sentence"),
    [
        (None, RATES, None, None),
        (darken, RATES, "brightness", "images are darker than those that the thresholds were chosen on"),
        (soften, RATES, "sharpness", "images are less sharp than"),
        (lambda image: cv2.convertScaleAbs(image, alpha=1.4), RATES, "brightness", "images are brighter than"),
        (
            lambda image: np.pad(image[:, 50:], ((0, 0), (50, 0))),
            RATES,
            "margin",
            "images are filled less by the strip",
        ),
        (None, (0.07, 0.15, 0.4, 0.06), "class 2 crack", "class 2 crack is predicted more often than"),
        (None, (0.07, 0.02, 0.15, 0.06), "class 3 scratch", "class 3 scratch is predicted less often than"),
    ],
)
def test_a_change_is_found_within_one_window(
    strip: list[np.ndarray],
    reference: Reference,
    change: Callable[[np.ndarray], np.ndarray] | None,
    rates: tuple[float, ...],
    first: str | None,
    sentence: str | None,
) -> None:
    rng = np.random.default_rng(2)
    window = Window(reference, NAMES)
    probabilities = draw_probabilities(rng.random((200, 4)) < rates, rng)
    images = strip[400:] if change is None else [change(image) for image in strip[400:]]
    *earlier, found = [window.add(measure(image), p) for image, p in zip(images, probabilities, strict=True)]
    assert earlier == [None] * 199
    if first is None:
        assert found is None
        return
    assert isinstance(found, Drift)
    assert (found.first, found.last) == (1, 200)
    main_change = found.changes[0]
    assert main_change.name == first
    assert found.sentence.startswith(f"images 1 to 200: {sentence}")
    assert "or tune again" in found.sentence
    if first in MEASURES:
        values = np.stack([measure(image) for image in images])[:, MEASURES.index(first)]
    else:
        values = probabilities[:, NAMES.index(first[8:])]
    assert main_change.median[0] == pytest.approx(np.median(values), rel=0.06)
    assert main_change.above[0] == pytest.approx(np.mean(values > main_change.cut), abs=0.03)


def test_a_class_without_a_name_is_called_by_its_number(strip: list[np.ndarray], reference: Reference) -> None:
    rng = np.random.default_rng(2)
    window = Window(reference, ["1", "2", "3", "4"])
    probabilities = draw_probabilities(rng.random((200, 4)) < (0.07, 0.15, 0.4, 0.06), rng)
    *_, found = [window.add(measure(image), p) for image, p in zip(strip[400:], probabilities, strict=True)]
    assert found is not None
    assert "class 2 is predicted more often" in found.sentence


def test_the_sentence_names_change_size_and_remedy() -> None:
    change = Change("brightness", 2.0, 96.84, (0.15, 0.8), (92.3, 131.0))
    other = Change("class 2 crack", 1.5, 0.312, (0.24, 0.06), (0.02, 0.01))
    sentence = Drift(1201, 1400, (change, other)).sentence
    for part in (
        "images 1,201 to 1,400: images are darker",
        "brightness is at most 96.8 on 85% of them (reference 20%), median 92.3 (reference 131)",
        "check lamp, lens and exposure, or tune again",
        "(also changed: class 2 crack)",
    ):
        assert part in sentence
    for part in (
        "class 2 crack is predicted more often",
        "its probability is above 0.312 on 24% of them (reference 6%), median 0.02 (reference 0.01)",
        "check some of these images, or tune again",
    ):
        assert part in other.sentence


def test_measures_equal_their_definition_in_numpy() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(40, 200, (32, 90), dtype=np.uint8)
    image[:, :9] = 2
    brightness, contrast, margin, sharpness = measure(image)
    steel = image[:, 9:].astype(float)
    assert brightness == pytest.approx(steel.mean())
    assert contrast == pytest.approx(steel[::4].std() / steel.mean())
    assert margin == pytest.approx(0.1)
    fine, coarse = (
        np.mean([abs(steel[y + d, x] - steel[y, x]) for y in range(0, 32 - d, 4) for x in range(81)])
        + np.mean([abs(steel[y, x + d] - steel[y, x]) for y in range(0, 32 - d, 4) for x in range(81 - d)])
        for d in (1, 4)
    )
    assert sharpness == pytest.approx(fine / coarse)
    assert sharpness == pytest.approx(1, abs=0.05)
    assert measure(soften(image))[3] < 0.7
    dark = measure(darken(image))
    assert dark[0] == pytest.approx(0.7 * brightness, rel=0.01)
    assert dark[1:] == pytest.approx([contrast, margin, sharpness], rel=0.01)


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (1, 40), (40, 1)])
def test_images_of_few_pixels_or_without_structure_are_measured(size: tuple[int, int]) -> None:
    assert measure(np.full(size, 90, np.uint8)).tolist() == [90, 0, 0, 0]
    assert measure(np.zeros(size, np.uint8)).tolist() == [0, 0, 0, 0]


def test_compare_equals_the_likelihood_ratio_test_of_scipy() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        m, n = rng.integers(2, 300, 2)
        a, b = rng.integers(0, m), rng.integers(1, n)
        table = [[a, m - a], [b, n - b]]
        expected = stats.chi2_contingency(table, correction=False, lambda_="log-likelihood").statistic
        assert compare(np.array([a]), m, np.array([b]), n)[0] == pytest.approx(np.sqrt(expected))
    assert compare(np.array([0, 200]), 200, np.array([0, 900]), 900).tolist() == [0, 0]


def test_a_reference_survives_json_and_is_small(reference: Reference) -> None:
    text = json.dumps(reference.to_dict())
    assert len(text) < 10_000
    assert Reference.from_dict(json.loads(text)) == reference


def test_too_few_images_or_groups_give_no_reference() -> None:
    measured, probabilities, groups = draw(60, 3, np.random.default_rng(0))
    assert build_reference(measured, probabilities, groups) is not None
    assert build_reference(measured, probabilities, groups // 2) is None
    assert build_reference(measured[:49], probabilities[:49], np.arange(49)) is None


def test_memory_is_constant(strip: list[np.ndarray], reference: Reference) -> None:
    monitor = Monitor(reference, NAMES)
    probabilities = np.full(4, 0.3)

    def add(num: int) -> int:
        for i in range(num):
            monitor.add(strip[i % 10], probabilities)
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    before, after = add(450), add(2000)
    tracemalloc.stop()
    assert after - before < 10_000


FLAT = {"median": 1, "limit": 3, "cuts": [1, 1], "at_most": [1, 2]}
RISING = FLAT | {"cuts": [1, 2]}


@pytest.mark.parametrize(
    "change",
    [
        {"sketches": 3},
        {"num_images": 5},
        {"window": None},
        {"sketches": [FLAT]},
        {"sketches": [RISING | {"limit": None}]},
    ],
)
def test_a_damaged_reference_is_refused(tmp_path: Path, reference: Reference, change: dict[str, object]) -> None:
    path = tmp_path / "point.yaml"
    content = {"operating_point": OperatingPoint.untuned(4).to_dict(), "reference": reference.to_dict() | change}
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match="holds no operating point"):
        read_point(path, NAMES)


def test_tune_writes_the_reference_and_export_stores_it(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks = [f"--classifier={trained.classifier}", f"--segmenter={trained.segmenter}"]
    monkeypatch.setattr(drift, "FEWEST_IMAGES", 2)
    monkeypatch.setattr(drift, "FEWEST_GROUPS", 2)
    point, model = tmp_path / "point.yaml", tmp_path / "inspector.pt"
    assert main(["tune", *networks, f"--root={trained.root}", "--num_workers=0", f"--out={point}"]) == 0
    reference = yaml.safe_load(point.read_text())["reference"]
    assert len(reference["sketches"]) == 4 + 4
    assert main(["export", *networks, f"--operating_point={point}", f"--out={model}"]) == 0
    about = bundle.read(model)[1]
    assert repr(about.reference) == repr(Reference.from_dict(reference))  # some values are NaN, which differs from NaN
    assert about.tuned is not None


class ConstantGate(nn.Module):
    """Predicts a probability of 0.5 for two classes."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.zeros(len(images), 2)


class NoPixels(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return torch.full((images.shape[0], 2, images.shape[2], images.shape[3]), -9.0)


def test_inspect_prints_one_warning_for_the_window_that_drifts(
    strip: list[np.ndarray], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = np.stack([measure(image) for image in strip[:300]])
    reference = build_reference(measured, np.full((300, 2), 0.5), np.arange(300))
    point = OperatingPoint.untuned(2)
    example = torch.from_numpy(strip[0][None])
    program = bundle.Program(Inspector(ConstantGate(), NoPixels(), point).eval(), example, tolerance=1e-5)
    model = tmp_path / "inspector.pt"
    bundle.write(program, About(("a", "b"), point, reference=reference), model)
    folder = tmp_path / "strip"
    folder.mkdir()
    for i, image in enumerate([*strip[300:500], *map(darken, strip[400:])]):
        cv2.imwrite(str(folder / f"{i:03}.png"), image)
    assert main(["inspect", str(model), str(folder), f"--out={tmp_path / 'out'}", "--overlays=none"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("warning") == 1
    assert "warning: images 201 to 400: images are darker" in printed
