"""`steel demo` reaches the scores it is documented with, and never deletes other files."""

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from steel import demo
from steel.cli import main
from steel.data.annotations import read_annotations
from steel.data.splits import read_split
from steel.errors import InputError


@pytest.mark.slow
def test_the_demo_reaches_its_scores(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    threads = torch.get_num_threads()
    num_workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // num_workers))
    try:
        assert main(["demo", f"--out={out}"]) == 0
    finally:
        torch.set_num_threads(threads)
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary) == {"accuracy", "dice_on_defects", "kaggle_dice", "seconds"}
    assert summary["accuracy"] >= 0.9
    assert summary["dice_on_defects"] >= 0.7
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
    assert {path.name for path in tmp_path.iterdir()} == {"demo", "demo.log"}
    (tmp_path / "summary.json").write_text("{}")
    assert f"{tmp_path} contains a finished demo; choose a new folder with --out" in refused(
        "demo", f"--out={tmp_path}"
    )
    assert (tmp_path / "summary.json").is_file()
    assert "stopped after" in refused("demo", f"--out={tmp_path}", "--force")
    assert not (tmp_path / "summary.json").exists()


def test_the_output_fits_a_terminal_and_ends_with_the_next_step(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = dict.fromkeys(("dice_on_defects", "kaggle_dice", "false_alarm_rate", "recall", "accuracy"), 0.9)
    report = {
        **scores,
        "scores": scores,
        "intervals": {name: [0.8, 1.0] for name in scores},
        "predict_nothing": dict.fromkeys(scores, 0.0),
        "accuracy_calling_all_clean": 0.5,
        "verdict": {"sentence": f"Too few images to tell: {'a long reason ' * 20}."},
    }

    def print_wide(*_: object, **__: object) -> str:
        print("a table " * 30)
        print("epoch 1 of 13: train/loss 0.1234, up to 2 min left", flush=True)
        return "best.ckpt"

    def evaluate(*, out: str, **_: object) -> None:
        Path(out).mkdir()
        (Path(out) / "evaluation.json").write_text(json.dumps(report))

    for step in ("synth", "split", "explore", "_fit", "tune", "export", "inspect"):
        monkeypatch.setattr(demo, step, print_wide)
    monkeypatch.setattr(demo, "evaluate", evaluate)
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--out=out"]) == 0
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert max(map(len, lines)) <= 80
    assert "1 of 9: create a synthetic dataset (4 min left)" in lines
    assert "9 of 9: inspect images with it (less than a minute left)" in lines
    assert lines.count("epoch 1 of 13: train/loss 0.1234, up to 2 min left") == 8
    verdict, scored, (first, then, command, _) = (part.splitlines() for part in printed.split("\n\n")[1:])
    assert verdict[0].startswith("Too few images to tell")
    assert len(scored) == 1 + 5
    assert first == "Open out/evaluation/index.html"
    assert "your own data" in then
    assert command == "    steel check FOLDER"
    log = (tmp_path / "out" / "demo.log").read_text()
    assert log.count("a table") == 8 * 30
    assert "== 4 of 9: train the classifier" in log


def test_the_demo_refuses_a_folder_with_other_files(tmp_path: Path, refused: Callable[..., str]) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    sentence = refused("demo", f"--out={tmp_path}")
    assert f"{tmp_path} contains files that are not from a demo" in sentence
    assert "--out" in sentence
    assert (tmp_path / "mine.txt").read_text() == "precious"
