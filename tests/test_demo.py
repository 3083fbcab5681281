"""`steel demo` reaches the scores it is documented with, and never deletes other files."""

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from steel.cli import main
from steel.data.annotations import read_annotations
from steel.data.splits import read_split
from steel.errors import InputError


@pytest.mark.slow
def test_the_demo_reaches_its_scores(tmp_path: Path) -> None:
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


def test_a_finished_demo_is_replaced_only_by_force(
    tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "demo").write_text("written by steel demo")
    (tmp_path / "inspector.pt").write_text("of an interrupted demo")

    def stop(*_: object, **__: object) -> None:
        raise InputError("stopped after the folder was cleared")

    monkeypatch.setattr("steel.demo.synth", stop)
    assert "stopped after" in refused("demo", f"--out={tmp_path}")
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]
    (tmp_path / "summary.json").write_text("{}")
    assert f"{tmp_path} contains a finished demo; choose a new folder with --out" in refused(
        "demo", f"--out={tmp_path}"
    )
    assert (tmp_path / "summary.json").is_file()
    assert "stopped after" in refused("demo", f"--out={tmp_path}", "--force")
    assert not (tmp_path / "summary.json").exists()


def test_the_demo_refuses_a_folder_with_other_files(tmp_path: Path, refused: Callable[..., str]) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    sentence = refused("demo", f"--out={tmp_path}")
    assert f"{tmp_path} contains files that are not from a demo" in sentence
    assert "--out" in sentence
    assert (tmp_path / "mine.txt").read_text() == "precious"
