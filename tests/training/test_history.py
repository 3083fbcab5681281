import csv
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from steel.training.history import History


def read_rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "classifier" / "version_0" / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def log(history: History, values: Sequence[float], first: int = 0, name: str = "loss") -> None:
    for step, value in enumerate(values, first):
        history.log_metrics({name: value}, step)


def test_each_row_is_written_immediately_and_the_header_grows(tmp_path: Path) -> None:
    history = History(tmp_path / "classifier" / "version_0")
    assert history.num_rows == 0
    log(history, [3.0, 2.0])
    assert read_rows(tmp_path) == [{"loss": "3.0", "step": "0"}, {"loss": "2.0", "step": "1"}]
    log(history, [0.5], 2, "val/dice")
    expected = [("3.0", "0", ""), ("2.0", "1", ""), ("", "2", "0.5")]
    rows = read_rows(tmp_path)
    assert [(row["loss"], row["step"], row["val/dice"]) for row in rows] == expected
    log(history, [1.0], 3)
    assert [row["step"] for row in read_rows(tmp_path)] == ["0", "1", "2", "3"]
    assert history.num_rows == 4
    assert sorted(path.name for path in (tmp_path / "classifier" / "version_0").iterdir()) == ["metrics.csv"]


@pytest.mark.parametrize("num_kept", [0, 2, 3, 5])
@pytest.mark.parametrize("partial", ["", "2.", "9.25,7"])
def test_a_resumed_run_keeps_only_the_rows_of_the_checkpoint(tmp_path: Path, num_kept: int, partial: str) -> None:
    log(History(tmp_path / "classifier" / "version_0"), [5.0, 4.0, 3.0, 2.0, 1.0])
    path = tmp_path / "classifier" / "version_0" / "metrics.csv"
    whole = path.read_bytes()
    path.write_bytes(whole + partial.encode())
    history = History(tmp_path / "classifier" / "version_0", num_kept)
    assert history.num_rows == num_kept  # the value that a checkpoint saves before the first new row
    assert history.experiment  # the trainer reads it when a run starts
    assert history.num_rows == num_kept
    log(history, [5.0, 4.0, 3.0, 2.0, 1.0][num_kept:], num_kept)
    assert path.read_bytes() == whole
    assert history.num_rows == 5
    log(history, [0.5], 5, "val/dice")
    assert [row["val/dice"] for row in read_rows(tmp_path)] == [""] * 5 + ["0.5"]


def test_rows_are_kept_if_rewriting_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    history = History(tmp_path / "classifier" / "version_0")
    log(history, [5.0, 4.0])
    path = tmp_path / "classifier" / "version_0" / "metrics.csv"
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        log(history, [0.5], 2, "val/dice")
    assert path.read_bytes() == before
