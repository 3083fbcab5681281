"""`benchmarks.novelty`: what is left out, which images are compared, and that it runs."""

import csv
from pathlib import Path

import numpy as np
import pytest

from benchmarks.novelty import Compared, evaluate, format_table, leave_out, summarise
from conftest import Trained
from steel.cli import main
from steel.data.datamodule import SteelDataModule


def test_images_of_the_class_are_left_out_of_train_and_val_only(root: Path, tmp_path: Path) -> None:
    assert main(["split", str(root), "--folds", "4"]) == 0
    before = SteelDataModule(str(root), fold=0)
    showing = before.annotations.labels[:, 1]
    num = leave_out(root, 2, tmp_path / "without")
    after = SteelDataModule(str(tmp_path / "without"), fold=0)
    assert after.annotations.classes == before.annotations.classes
    assert num == int((showing & (before.split.parts != "test")).sum()) > 0
    assert not showing[after.split.indices("train")].any()
    assert not showing[after.split.indices("val")].any()
    assert after.split.indices("test").tolist() == before.split.indices("test").tolist()
    with (tmp_path / "without" / "splits.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(before.annotations) - num


def test_methods_are_compared_on_the_same_images() -> None:
    """Novelty ranks all defective images above the clean ones, the segmenter below those of 6 of 20 groups."""
    is_defective = np.repeat([True, False], [30, 60])
    novelty = np.where(is_defective, 3, np.tile([1, 1, 2], 30)).astype(np.float32)
    segmenter = np.where(is_defective, 2, np.tile(np.repeat([1, 1, 3, 1, 1, 3, 1, 1, 3, 1], 3), 3)).astype(np.float32)
    groups = np.arange(90) // 3
    compared = Compared({"novelty": novelty, "segmenter": segmenter}, is_defective, groups, [0.1, 0.0, 0.1], 2.0)
    found = summarise(compared)
    assert found["novelty"][0] == 1.0
    assert found["segmenter"][0] == pytest.approx(0.7)
    value, low, high = found["above_segmenter"]
    assert value == pytest.approx(0.3)
    assert 0 < low < value < high < 0.7
    assert found["num_groups"] == [10, 20]
    assert found["found_above_limit"] == 1.0
    value, low, high = found["false_alarms"]
    assert value == pytest.approx(1 / 3)
    assert low < value < high
    table = format_table([found | {"class": "crack"}, found | {"class": "fray", "novelty": [0.5, 0.4, 0.6]}])
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert lines[0] == ["class", "images", "novelty", "segmenter", "above segmenter", "found", "false alarms"]
    assert lines[3][:3] == ["fray", "30 in 10 groups", "0.500 (0.400 to 0.600)"]
    assert lines[4] == ["mean", "", "0.750", "0.700", "0.300", "", ""]


@pytest.mark.slow
def test_it_scores_unseen_images(trained: Trained) -> None:
    found = evaluate(str(trained.root), trained.classifier, trained.segmenter, class_index=3)
    assert found["num_defective"] > 0
    for name in ("novelty", "segmenter", "classifier", "PatchCore"):
        value, low, high = found[name]
        assert 0 <= low <= value <= high <= 1
    assert -1 <= found["above_segmenter"][0] <= 1
