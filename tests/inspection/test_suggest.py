"""`steel suggest`: which images are chosen and why, what is written for labelling, and how a run is continued."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from bright import draw, draw_places, write_model, write_novel_model, write_png
from steel.cli import main
from steel.data import rle
from steel.inspection.pipeline import Pipeline

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.*` is deprecated")

SIZE = (64, 96)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An inspector that calls images brighter than 50 on average, and outlines pixels above 127."""
    return write_model(tmp_path_factory.mktemp("model") / "inspector.pt")


def draw_steel(seed: int, brightness: float) -> np.ndarray:
    """Draw steel with a texture of its own and a given mean grey value."""
    texture = cv2.GaussianBlur(np.random.default_rng(seed).normal(0, 20, SIZE), (5, 5), 0)
    return np.clip(texture - texture.mean() + brightness, 0, 255).round().astype(np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write images that are clearly clean and clearly defective, one near the gate, and two of one scene."""
    (folder := tmp_path / "new").mkdir()
    for i in range(4):
        write_png(folder / f"clean{i}.png", draw_steel(i, 20 + i))
    bright = draw_steel(4, 60)
    bright[:40, :40] = 250  # outlined, whatever the threshold
    write_png(folder / "sure.png", bright)
    write_png(folder / "near.png", near := draw_steel(5, 50.4))
    write_png(folder / "twin.png", np.roll(near, 3, axis=1))
    return folder


def read(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def test_the_image_nearest_to_the_gate_comes_first_and_its_twin_is_left_out(
    model: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["suggest", str(model), str(folder), "--num=3", f"--out={out}"]) == 0
    rows = read(out / "suggestions.csv")
    assert [row["rank"] for row in rows] == ["1", "2", "3"]
    assert rows[0]["image"] in ("near.png", "twin.png")
    assert not {"near.png", "twin.png"} <= {row["image"] for row in rows}
    assert all(row["reason"].endswith(".") for row in rows)
    assert [float(row["score"]) for row in rows] == sorted((float(row["score"]) for row in rows), reverse=True)
    results = {row["image"]: row for row in read(out / "results.csv")}
    assert len(results) == 7
    mean = cv2.imread(str(folder / rows[0]["image"]), cv2.IMREAD_GRAYSCALE).mean()
    assert float(rows[0]["label_doubt"]) == pytest.approx(2 / (1 + np.exp(abs(mean - 50))), abs=1e-3)
    page = (out / "suggestions.html").read_text()
    assert page.count("<figure>") == 3
    assert rows[0]["reason"] in page
    assert "7 images: 3 chosen, 0 unreadable" in capsys.readouterr().out


def test_masks_that_thresholds_decide_are_in_doubt(model: Path, folder: Path, tmp_path: Path) -> None:
    """The probability of a grey value g is the sigmoid of g - 127.5; the thresholds are moved by 1 in log odds."""
    image = np.full(SIZE, 100, np.uint8)
    image[:10, :10], image[10:20, :10] = 250, 128
    write_png(folder / "edge.png", image)
    out = tmp_path / "out"
    assert main(["suggest", str(model), str(folder), "--num=100", f"--out={out}"]) == 0
    results = {row["image"]: row for row in read(out / "results.csv")}
    assert float(results["edge.png"]["mask_doubt"]) == pytest.approx(0.5)
    assert float(results["sure.png"]["mask_doubt"]) == 0
    assert float(results["clean0.png"]["mask_doubt"]) == 0
    reasons = {row["image"]: row["reason"] for row in read(out / "suggestions.csv")}
    assert reasons["edge.png"] == "The outlines are uncertain: other pixel thresholds would change 50% of their pixels."


def test_images_and_outlines_are_ready_for_labelling(model: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["suggest", str(model), str(folder), "--num=100", f"--out={out}"]) == 0
    content = json.loads((out / "to_label" / "annotations" / "instances_default.json").read_text())
    assert len(content["images"]) == 6
    for image in content["images"]:
        copy = out / "to_label" / "images" / image["file_name"]
        assert copy.read_bytes() == (folder / image["file_name"]).read_bytes()
    assert main(["convert", str(out / "to_label"), str(tmp_path / "data"), "--from=coco", "--to=severstal"]) == 0
    (label,) = read(tmp_path / "data" / "train.csv")
    mask = rle.decode(label["EncodedPixels"], SIZE)
    assert label["ImageId"] == "sure.png"
    assert np.array_equal(mask > 0, cv2.imread(str(folder / "sure.png"), cv2.IMREAD_GRAYSCALE) > 127)


def test_unreadable_images_are_reported(
    model: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "broken.png").write_text("no image")
    out = tmp_path / "out"
    assert main(["suggest", str(model), str(folder), "--num=2", f"--out={out}"]) == 0
    assert "8 images: 2 chosen, 1 unreadable" in capsys.readouterr().out
    results = {row["image"]: row for row in read(out / "results.csv")}
    assert "not a readable image" in results["broken.png"]["error"]


def test_a_folder_without_a_readable_image_is_refused(model: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "broken.png").write_text("no image")
    sentence = refused("suggest", model, tmp_path / "new", f"--out={tmp_path / 'out'}")
    assert "none of the images could be read" in sentence


def test_scenes_that_a_dataset_has_are_left_out(
    model: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (labelled := tmp_path / "data" / "train_images").mkdir(parents=True)
    near = cv2.imread(str(folder / "near.png"), cv2.IMREAD_GRAYSCALE)
    write_png(labelled / "1.png", np.roll(near, -4, axis=1))
    out = tmp_path / "out"
    args = ["suggest", str(model), str(folder), f"--root={labelled.parent}", f"--out={out}"]
    assert main([*args, "--num=6"]) == 0
    assert {row["image"] for row in read(out / "suggestions.csv")} == {f"clean{i}.png" for i in range(4)} | {"sure.png"}
    assert "the other images show scenes that are chosen or labelled already" in capsys.readouterr().out


def test_images_unlike_clean_steel_come_first_and_the_reason_says_so(tmp_path: Path) -> None:
    (folder := tmp_path / "new").mkdir()
    for i, image in enumerate(draw_places()[:, 0].numpy()):
        write_png(folder / f"{i}.png", image)
    out = tmp_path / "out"
    model = write_novel_model(tmp_path / "novel.pt", limit=1.0)
    assert main(["suggest", str(model), str(folder), "--num=1", f"--out={out}"]) == 0
    (row,) = read(out / "suggestions.csv")
    assert row["image"] == "1.png"
    assert float(row["novelty"]) > 1
    assert row["reason"].startswith("It is unlike any clean steel seen: its novelty is ")


def test_an_interrupted_run_continues_and_a_used_folder_is_refused(
    model: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    whole, out = tmp_path / "whole", tmp_path / "out"
    args = ["suggest", str(model), str(folder), "--num=3", "--batch_size=1"]
    assert main([*args, f"--out={whole}"]) == 0
    record, calls = Pipeline._record, iter(range(100))

    def interrupt(self: Pipeline, *some: object) -> object:
        if next(calls) == 4:
            raise KeyboardInterrupt
        return record(self, *some)

    with monkeypatch.context() as patch:
        patch.setattr(Pipeline, "_record", interrupt)
        assert main([*args, f"--out={out}"]) == 130
    assert "--resume to continue" in capsys.readouterr().err
    assert "interrupted run" in refused(*args, f"--out={out}")
    assert main([*args, f"--out={out}", "--resume"]) == 0
    for name in ("suggestions.csv", "results.csv", "suggestions.html"):
        assert (out / name).read_text() == (whole / name).read_text()
    assert "earlier run" in refused(*args, f"--out={out}")
    assert main([*args[:3], "--num=1", f"--out={out}", "--resume"]) == 0
    assert len(read(out / "suggestions.csv")) == 1


def test_results_of_inspect_are_not_continued(
    model: Path, folder: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    out = tmp_path / "out"
    assert main(["inspect", str(model), str(folder), f"--out={out}"]) == 0
    assert "earlier run" in refused("suggest", model, folder, f"--out={out}")
    assert "must have the columns" in refused("suggest", model, folder, f"--out={out}", "--resume")


def test_names_that_are_formulas_are_escaped(model: Path, folder: Path, tmp_path: Path) -> None:
    write_png(folder / "=1.png", draw(0, SIZE, 255))
    out = tmp_path / "out"
    assert main(["suggest", str(model), str(folder / "=1.png"), "--num=1", f"--out={out}"]) == 0
    assert read(out / "suggestions.csv")[0]["image"] == "'=1.png"
