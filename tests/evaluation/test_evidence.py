"""Evaluating an operating point on evidence equals running the inspector; scores made by other software are read."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from steel.data.datamodule import SteelDataModule
from steel.data.unknown import find_unknown
from steel.decision.inspector import Inspector
from steel.decision.point import OperatingPoint
from steel.errors import InputError
from steel.evaluation.evidence import Evidence, Grid, gather, read_scores
from steel.evaluation.search import judge
from steel.training.metrics import count, dice, unpack


class Gate(nn.Module):
    """Class probabilities that depend on the image."""

    def forward(self, images: Tensor) -> Tensor:
        level = images.float().flatten(1)
        return torch.stack([level[:, 7 * c + 3] - 110 for c in range(4)], 1) / 60


class Outline(nn.Module):
    """Smooth blobs of other pixels for each class."""

    def forward(self, images: Tensor) -> Tensor:
        grey = images[:, 0].float()
        smooth = torch.nn.functional.avg_pool2d(grey[:, None], 5, 1, 2)[:, 0]
        return torch.stack([(smooth.roll(11 * c, -1) - 120 - 8 * c) / 10 for c in range(4)], 1)


def build(point: OperatingPoint) -> Inspector:
    return Inspector(Gate(), Outline(), point).eval()


UNTUNED = OperatingPoint.untuned(4)


def gather_from(root: Path) -> tuple[Evidence, SteelDataModule]:
    data = SteelDataModule(str(root), batch_size=3, num_workers=0, fractions=(0.0, 1.0, 0.0))
    return gather(build(UNTUNED).probabilities, data, "val", torch.device("cpu")), data


@pytest.mark.parametrize("has_unknown", [False, True])
def test_judging_from_counts_equals_the_inspector(root: Path, has_unknown: bool) -> None:
    if has_unknown:
        names = sorted(path.name for path in (root / "train_images").iterdir())
        rows = "".join(f"{name},{1 + 64 * k} {64 * 40}\n" for k, name in enumerate(names[::3]))
        (root / "unknown.csv").write_text(f"ImageId,EncodedPixels\n{rows}")
    evidence, data = gather_from(root)
    grid = evidence.grid
    rng = np.random.default_rng(0)
    num_called = 0
    for _ in range(6):
        point = replace(
            UNTUNED,
            gate=0.45,
            label=tuple(np.float32(rng.random(4) * 0.6).tolist()),
            pixel=tuple(rng.choice(grid.pixel, 4).tolist()),
            smallest_spot=tuple(rng.choice(grid.spot, 4).tolist()),
            smallest_area=tuple(rng.choice(grid.area, 4).tolist()),
            temperature=(1.0, 2.0, 0.5, 1.0),
            curve=(((0.0, 0.0), (0.4, 0.6), (1.0, 1.0)), *UNTUNED.curve[1:]),
        )
        outcome = judge(evidence, point)
        inspector = build(point)
        row = 0
        for batch in sorted(data.part_dataloader("val"), key=lambda batch: int(batch["index"][0])):
            with torch.inference_mode():
                inspection = inspector(batch["image"])
            known = ~find_unknown(batch["mask"], 4)
            masks, truth = inspection.masks & known[:, None], unpack(batch["mask"], 4) & known[:, None]
            counts = count(masks, truth)
            rows = slice(row, row + len(masks))
            assert np.array_equal(outcome.called[rows], counts.predicted.numpy() > 0)
            assert np.array_equal(outcome.found[rows], counts.hits.numpy() > 0)
            np.testing.assert_allclose(outcome.dice[rows], dice(counts).numpy())
            assert np.array_equal(outcome.passed[rows], inspection.gate_probability.numpy() >= np.float32(point.gate))
            assert np.array_equal(evidence.truth[rows], counts.truth.numpy())
            num_called += int(outcome.called[rows].sum())
            row += len(masks)
        assert row == len(evidence.names) == 40
    assert 40 < num_called < 6 * 160


def test_grid_scales_with_the_image_size() -> None:
    severstal = Grid.for_images(np.array([[256, 1600]] * 3))
    assert severstal.spot == (0, 50, 150, 500)
    assert severstal.area[-1] == 2000
    small = Grid.for_images(np.array([[64, 64]]))
    assert small.spot == (0, 2, 5)


SCORES = "ImageId,label1,label2,probability1,probability2\na.jpg,1,0,0.9,0.2\nb.jpg,0,0,0.3,0.75\n"


def test_read_scores_of_other_software(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    path.write_text(SCORES)
    evidence, classes = read_scores(path)
    assert classes == ("1", "2")
    assert evidence.names.tolist() == ["a.jpg", "b.jpg"]
    np.testing.assert_array_equal(evidence.classes, np.float32([[0.9, 0.2], [0.3, 0.75]]))
    assert evidence.clean.tolist() == [False, True]
    outcome = judge(evidence, replace(OperatingPoint.untuned(2), gate=0.5, label=(0.5, 0.5)))
    assert outcome.called.tolist() == [[True, False], [False, True]]
    assert outcome.dice.tolist() == [[1, 1], [1, 0]]
    assert evidence.groups.tolist() == [0, 1]
    assert evidence.num_ungrouped == 2
    path.write_text(SCORES.replace("ImageId", "ImageId,group").replace("jpg,", "jpg,coil7,"))
    grouped = read_scores(path)[0]
    assert grouped.groups.tolist() == [0, 0]
    assert grouped.num_ungrouped == 0
    path.write_text(SCORES.replace("ImageId", "ImageId,group").replace("jpg,", "jpg,,"))
    assert read_scores(path)[0].groups.tolist() == [0, 1]  # an empty cell is no group
    assert read_scores(path)[0].num_ungrouped == 2


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (SCORES.replace("0.75", "1.5"), ("line 3", "probability2", "[0, 1]", '"1.5"', "fix the row")),
        (SCORES.replace("0.75", "nan"), ("line 3", "probability2", '"nan"')),
        (SCORES.replace("0.75", "x"), ("line 3", "probability2", '"x"')),
        (SCORES.replace("jpg,1", "jpg,2"), ("line 2", "label1", "0 or 1", '"2"')),
        (SCORES.replace("b.jpg", "a.jpg"), ("line 3", '"a.jpg"', "line 2", "remove")),
        ("ImageId,label1\na.jpg,1\n", ("scores.csv", "probability1")),
        (SCORES.splitlines()[0] + "\n", ("scores.csv", "no image")),
    ],
)
def test_invalid_scores_are_refused(tmp_path: Path, text: str, parts: tuple[str, ...]) -> None:
    (tmp_path / "scores.csv").write_text(text)
    with pytest.raises(InputError) as error:
        read_scores(tmp_path / "scores.csv")
    assert all(part in str(error.value) for part in parts), error.value
