"""What `steel demo` promises: measured here, not asserted by the code."""

import csv
import json
import os
from pathlib import Path

import pytest
import torch

from steel.cli import main
from steel.data.annotations import read_annotations
from steel.data.splits import read_split


@pytest.mark.slow
def test_the_demo_keeps_its_promise(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    threads = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    try:
        assert main(["demo", f"--out={out}"]) == 0
    finally:
        torch.set_num_threads(threads)
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary) == {"accuracy", "dice_on_defects", "kaggle_dice", "seconds"}
    assert summary["accuracy"] >= 0.9
    assert summary["dice_on_defects"] >= 0.5
    table = read_annotations(out / "data")
    split = read_split(out / "data" / "splits.csv", table)
    assert len(table) >= 300
    assert len(split.indices("test")) >= 60
    for part in ("train", "val", "test"):
        assert table.labels[split.indices(part)].any(axis=0).all()
    rows = list(csv.DictReader((out / "evaluation" / "submission.csv").read_text().splitlines()))
    assert len(rows) == 4 * len(split.indices("test"))
    assert (out / "inspector.pt").is_file()
    assert list((out / "evaluation" / "pictures").glob("*.png"))


def test_a_folder_that_is_no_demo_is_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    assert main(["demo", f"--out={tmp_path}"]) == 2
    assert "no former demo" in capsys.readouterr().err
    assert (tmp_path / "mine.txt").read_text() == "precious"
