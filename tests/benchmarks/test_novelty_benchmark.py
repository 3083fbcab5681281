"""`benchmarks.novelty`: what is left out, which images are compared, and that it runs."""

import csv
from pathlib import Path

import pytest

from benchmarks.novelty import evaluate, leave_out
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


@pytest.mark.slow
def test_it_scores_unseen_images(trained: Trained) -> None:
    found = evaluate(str(trained.root), trained.classifier, trained.segmenter, class_index=3, num_places=50)
    assert found["num_defective"] > 0
    for name in ("novelty", "segmenter", "classifier", "PatchCore"):
        value, low, high = found[name]
        assert 0 <= low <= value <= high <= 1
