"""`benchmarks.suggest`: which images a strategy takes, the labels needed to reach a score, and that it runs."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.suggest import STRATEGIES, _take, count_needed, main


def test_no_two_images_of_one_scene_are_taken_while_there_are_others() -> None:
    scores = np.array([0.9, 0.8, 0.7, 0.1, 0.2])
    scenes = np.array([1, 1, 2, 2, 3])
    assert _take(scores, scenes, 3).tolist() == [0, 2, 4]
    assert _take(scores, scenes, 5).tolist() == [0, 2, 4, 1, 3]


def test_labels_needed_are_interpolated_on_the_mean_curve() -> None:
    curves = [
        [
            {"labels": 10, "auroc": a},
            {"labels": 20, "auroc": b},
            {"labels": 30, "auroc": c},
        ]
        for a, b, c in ((0.0, 0.2, 0.1), (0.2, 0.4, 0.7))
    ]
    assert count_needed(curves, "auroc", 0.2) == pytest.approx(15)
    assert count_needed(curves, "auroc", 0.35) == pytest.approx(25)
    assert count_needed(curves, "auroc", 0.5) == math.inf
    assert count_needed(curves, "auroc", 0.0) == pytest.approx(10)


@pytest.mark.slow
def test_it_draws_the_curve_of_every_strategy(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from steel.cli import main as steel

    assert steel(["split", str(root), "--folds", "3"]) == 0
    file = tmp_path / "curves.json"
    args = ["suggest", str(root), "--seeds", "0", "--rounds", "1", "--per_round", "3", "--json", str(file)]
    monkeypatch.setattr(sys, "argv", args)
    main()
    (found,) = json.loads(file.read_text())["found"]
    assert list(found["curves"]) == list(STRATEGIES)
    for curve in found["curves"].values():
        assert curve[1]["labels"] == curve[0]["labels"] + 3
        assert all(0 <= point["dice_on_defects"] <= 1 for point in curve)
