"""`steel inspect` with a file that measures novelty."""

import csv
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from bright import draw_places, write_model, write_novel_model, write_png
from steel import overlays
from steel.cli import main
from steel.data import rle

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.*` is deprecated")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Write a clean image, one with an unknown defect, and one that passes the gate."""
    (folder := tmp_path / "images").mkdir()
    for i, image in enumerate(draw_places()[:, 0].numpy()):
        write_png(folder / f"{i}.png", image)
    return folder


def test_images_unlike_any_clean_steel_are_flagged_outlined_and_reported(tmp_path: Path, images: Path) -> None:
    model, out = write_novel_model(tmp_path / "novel.pt", limit=1.0), tmp_path / "out"
    assert main(["inspect", str(model), str(images), "--out", str(out), "--report"]) == 0
    rows = list(csv.DictReader((out / "results.csv").read_text().splitlines()))
    assert [row["defective"] for row in rows] == ["0", "0", "0"]  # the third only passes the gate
    assert [float(row["novelty"]) >= 1 for row in rows] == [False, True, False]
    assert [row["unknown"] for row in rows] == ["0", "1", "0"]
    region = rle.decode(rows[1]["unknown_code"], (32, 48))
    assert region[8:16, 24:32].all()
    assert not region[:, :16].any()
    table = pq.read_table(out / "results.parquet").to_pylist()
    assert [row["unknown"] for row in table] == [False, True, False]
    assert table[1]["unknown_code"] == rows[1]["unknown_code"]
    drawn = cv2.imread(str(out / "overlays" / "1.png.png"))[..., ::-1]
    assert (drawn == np.array(overlays.UNKNOWN)).all(axis=2).any()
    report = (out / "report.html").read_text()
    assert "Images unlike any clean steel seen, and none of the classes" in report
    assert "1.png: novelty" in report


def test_a_file_without_novelty_adds_no_columns(tmp_path: Path, images: Path) -> None:
    model, out = write_model(tmp_path / "plain.pt"), tmp_path / "out"
    assert main(["inspect", str(model), str(images), "--out", str(out)]) == 0
    with (out / "results.csv").open() as file:
        columns = next(csv.reader(file))
    assert columns[:4] == ["image", "defective", "gate_probability", "probability_spot"]
    assert "novelty" not in columns
