"""Counting a submission on its codes gives the same counts as drawing its masks."""

import csv
import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from steel.cli import main
from steel.data import rle
from steel.data.annotations import Annotations, read_annotations
from steel.data.formats.submission import SubmissionFormat, head_submission, list_codes
from steel.data.unknown import find_unknown
from steel.errors import InputError
from steel.evaluation.score import count_submission
from steel.training.metrics import count, score_masks, unpack


def write(path: Path, table: Annotations, form: SubmissionFormat) -> torch.Tensor:
    """Write a submission with shifted and missing true masks, and return its masks."""
    rng = np.random.default_rng(0)
    masks = np.stack([np.roll(table.draw_masks(i), rng.integers(-3, 9), 2) for i in range(len(table))])
    masks[rng.random(masks.shape[:2]) < 0.3] = False
    masks[1, 2, 5:20, 7:90] = True
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(head_submission(form))
        for name, planes in list(zip(table.names.tolist(), masks, strict=True))[::-1]:
            writer.writerows(list_codes(name, [rle.encode(plane) for plane in planes], form))
    return torch.from_numpy(masks)


@pytest.mark.parametrize("form", ["new", "old"])
@pytest.mark.parametrize("with_unknown", [False, True])
def test_counts_equal_those_of_masks(root: Path, tmp_path: Path, form: SubmissionFormat, with_unknown: bool) -> None:
    table = read_annotations(root)
    if with_unknown:
        region = np.zeros((64, 128), bool)
        region[10:40, 20:100] = True
        unknown = {int(i): rle.parse(rle.encode(np.roll(region, i))).astype(np.int32) for i in (1, 4, 7, 30)}
        table = dataclasses.replace(table, unknown=unknown)
    masks = write(tmp_path / "submission.csv", table, form)
    planes = torch.from_numpy(np.stack([table.draw_plane(i) for i in range(len(table))]))
    known = ~find_unknown(planes, 4)
    expected = count(masks & known[:, None], unpack(planes, 4) & known[:, None])
    expected = expected._replace(pixels=known.sum((1, 2)), hidden=(~known).sum((1, 2)))
    counts = count_submission(tmp_path / "submission.csv", table)
    assert counts.hits.sum() > 0
    for one, other in zip(counts, expected, strict=True):
        assert torch.equal(one, other)


def test_missing_rows_are_empty_and_unknown_images_are_refused(root: Path, tmp_path: Path) -> None:
    table, path = read_annotations(root), tmp_path / "submission.csv"
    path.write_text(f"ImageId,ClassId,EncodedPixels\n{table.names[3]},2,1 10\n")
    counts = count_submission(path, table)
    assert counts.predicted.sum() == counts.predicted[3, 1] == 10
    assert counts.truth.tolist() == table.areas.tolist()
    path.write_text("ImageId,ClassId,EncodedPixels\nother.jpg,2,1 10\n")
    with pytest.raises(InputError, match=r'submission\.csv, line 2.*"other\.jpg"'):
        count_submission(path, table)


def test_scores_equal_those_of_the_masks(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: Callable[..., str]
) -> None:
    table = read_annotations(root)
    masks = write(tmp_path / "submission.csv", table, "new")
    assert main(["score", str(tmp_path / "submission.csv"), str(root)]) == 0
    shown = dict(re.findall(r"^(\w+) +([\d.]+) ", capsys.readouterr().out, re.MULTILINE))
    truth = torch.from_numpy(np.stack([table.draw_masks(i) for i in range(len(table))]))
    for name, value in score_masks(count(masks, truth)).items():
        assert float(shown[name]) == pytest.approx(value, abs=1e-4)
    sentence = refused("score", tmp_path / "nothing.csv", root)
    assert f"no file {tmp_path / 'nothing.csv'}; " in sentence


def test_two_submissions_are_compared_on_the_same_images(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: Callable[..., str]
) -> None:
    table, first, second = read_annotations(root), tmp_path / "first.csv", tmp_path / "second.csv"
    write(first, table, "new")
    second.write_text("ImageId,ClassId,EncodedPixels\n")
    ours, nothing = (score_masks(count_submission(path, table)) for path in (first, second))
    for against, other in ((second, nothing), (first, ours)):
        assert main(["score", str(first), str(root), "--against", str(against)]) == 0
        row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("dice_on_defects"))
        mean, _, _, compared, difference, *limits = map(float, re.findall(r"-?\d\.\d{4}", row))
        assert (mean, compared) == pytest.approx((ours["dice_on_defects"], other["dice_on_defects"]), abs=1e-4)
        assert difference == pytest.approx(mean - compared, abs=2e-4)
        if against == first:
            assert (difference, limits) == (0, [])  # it never varies
        else:
            assert limits[0] < difference < limits[1]
    sentence = refused("score", first, root, "--against", tmp_path / "nothing.csv")
    assert f"no file {tmp_path / 'nothing.csv'}; " in sentence
