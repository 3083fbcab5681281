import csv
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from steel.cli import main
from steel.data import rle
from steel.inspection import bundle
from steel.inspection.inspector import Inspector, OperatingPoint


class Gate(nn.Module):
    """Calls an image defective where its mean is above 50."""

    def forward(self, images: Tensor) -> Tensor:
        brightness = images.float().mean(dim=[1, 2, 3])
        return torch.stack([brightness - 50, brightness - 1000], dim=1)


class BrightPixels(nn.Module):
    """Class 1 where a pixel is above 127, class 2 nowhere."""

    def forward(self, images: Tensor) -> Tensor:
        grey = images[:, 0].float()
        return torch.stack([grey - 127.5, grey - 1000], dim=1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "inspector.pt"
    inspector = Inspector(Gate(), BrightPixels(), OperatingPoint.untuned(2)).eval()
    program = bundle.Program(inspector, torch.zeros(1, 64, 256, dtype=torch.uint8), tolerance=1e-5)
    metadata = {"classes": ["spot", "never"], "operating_point": {"gate": 0.5}}
    bundle.write(program, metadata, path)
    return path


def draw(seed: int, size: tuple[int, int], level: int) -> np.ndarray:
    image = np.random.default_rng(seed).integers(0, level, size, dtype=np.uint8)
    return image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Nine images of two sizes, every third one dark, with an umlaut and a blank in the path."""
    path = tmp_path / "Bänder 7"
    path.mkdir()
    for i in range(9):
        image = draw(i, (20, 30) if i % 2 else (16, 44), 40 if i % 3 == 0 else 255)
        (path / f"{i}.png").write_bytes(cv2.imencode(".png", image)[1].tobytes())
    return path


def read(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_a_folder_becomes_tables_and_pictures(model: Path, folder: Path, tmp_path: Path, batch_size: int) -> None:
    out = tmp_path / "out"
    assert main(["inspect", str(model), str(folder), f"--out={out}", f"--batch_size={batch_size}"]) == 0
    results = read(out / "results.csv")
    assert [row["image"] for row in results] == [f"{i}.png" for i in range(9)]
    codes = {(row["ImageId"], row["ClassId"]): row["EncodedPixels"] for row in read(out / "submission.csv")}
    assert len(codes) == 18
    for i, row in enumerate(results):
        image = cv2.imread(str(folder / row["image"]), cv2.IMREAD_GRAYSCALE)
        defective = image.mean() > 50
        expected = (image > 127) & defective
        assert row["defective"] == str(int(defective))
        assert int(row["area_pixels_spot"]) == expected.sum()
        assert np.array_equal(rle.decode(codes[row["image"], "1"], image.shape), expected)
        assert codes[row["image"], "2"] == ""
        assert float(row["gate_probability"]) == pytest.approx(1 / (1 + np.exp(50 - image.mean())), abs=1e-4)
        assert (out / "overlays" / f"{i}.png.png").exists() == defective
    assert not list(out.glob("*.unfinished"))


def test_overlays_show_what_was_found(model: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["inspect", str(model), str(folder), f"--out={out}", "--overlays=all"]) == 0
    picture = cv2.imread(str(out / "overlays" / "0.png.png"))
    assert picture.shape == (16 + 24, 44, 3)
    grey = cv2.imread(str(folder / "0.png"), cv2.IMREAD_GRAYSCALE)
    assert (picture[24:] == grey[..., None]).all()
    found = cv2.imread(str(out / "overlays" / "1.png.png"))[24:]
    assert (found.max(2) != found.min(2)).any()


def test_the_contests_first_form(model: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["inspect", str(model), str(folder / "[01].png"), f"--out={out}", "--submission_format=old"]) == 0
    rows = read(out / "submission.csv")
    assert [row["ImageId_ClassId"] for row in rows] == ["0.png_1", "0.png_2", "1.png_1", "1.png_2"]


def test_a_broken_image_is_reported_and_the_rest_goes_on(
    model: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "4.png").write_text("no image")
    (folder / "5.png").write_bytes(b"")
    out = tmp_path / "out"
    assert main(["inspect", str(model), str(folder), f"--out={out}"]) == 0
    results = read(out / "results.csv")
    assert "not an image" in results[4]["error"]
    assert "is empty" in results[5]["error"]
    assert results[4]["defective"] == ""
    assert [row["error"] for i, row in enumerate(results) if i not in (4, 5)] == [""] * 7
    assert len(read(out / "submission.csv")) == 14
    assert "2 unreadable" in capsys.readouterr().out


def test_one_file(model: Path, folder: Path, tmp_path: Path) -> None:
    assert main(["inspect", str(model), str(folder / "1.png"), f"--out={tmp_path / 'out'}"]) == 0
    assert len(read(tmp_path / "out" / "results.csv")) == 1


def test_names_that_are_not_unique_get_their_folder(model: Path, folder: Path, tmp_path: Path) -> None:
    (folder / "other").mkdir()
    (folder / "other" / "1.png").write_bytes((folder / "1.png").read_bytes())
    out = tmp_path / "out"
    assert main(["inspect", str(model), str(folder / "**" / "1.png"), f"--out={out}"]) == 0
    assert {row["image"] for row in read(out / "results.csv")} == {"1.png", "other/1.png"}


def test_what_cannot_be_is_refused(model: Path, folder: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    out = f"--out={tmp_path / 'out'}"
    assert "no file or folder" in refused("inspect", model, tmp_path / "gone", out)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no image in" in refused("inspect", model, empty, out)
    assert 'no device "warp"' in refused("inspect", model, folder, out, "--device=warp")
    assert "batch_size is 1 or more" in refused("inspect", model, folder, out, "--batch_size=0")
    (empty / "a.jpg").write_text("no image")
    assert "none of the 1 images" in refused("inspect", model, empty, out)
