import csv
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest

from bright import write_images, write_model
from steel.cli import main
from steel.data import rle
from steel.inspection import parquet
from steel.inspection.pipeline import Pipeline
from steel.inspection.records import Record, Unreadable, list_result_columns
from steel.inspection.tables import Tables


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "inspector.pt")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Nine images in a folder whose name has an umlaut and a space."""
    return write_images(tmp_path / "Bänder 7")


def read(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_writes_tables_and_pictures_for_a_folder(model: Path, folder: Path, tmp_path: Path, batch_size: int) -> None:
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


def test_overlays_show_the_masks_in_colour(model: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["inspect", str(model), str(folder), f"--out={out}", "--overlays=all"]) == 0
    picture = cv2.imread(str(out / "overlays" / "0.png.png"))
    assert picture.shape == (16 + 24, 44, 3)
    grey = cv2.imread(str(folder / "0.png"), cv2.IMREAD_GRAYSCALE)
    assert (picture[24:] == grey[..., None]).all()
    found = cv2.imread(str(out / "overlays" / "1.png.png"))[24:]
    assert (found.max(2) != found.min(2)).any()


def test_writes_the_old_submission_format(model: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["inspect", str(model), str(folder / "[01].png"), f"--out={out}", "--submission_format=old"]) == 0
    rows = read(out / "submission.csv")
    assert [row["ImageId_ClassId"] for row in rows] == ["0.png_1", "0.png_2", "1.png_1", "1.png_2"]


def test_reports_unreadable_images_and_inspects_the_others(
    model: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "4.png").write_text("no image")
    (folder / "5.png").write_bytes(b"")
    out = tmp_path / "out"
    assert main(["inspect", str(model), str(folder), f"--out={out}"]) == 0
    results = read(out / "results.csv")
    assert "not a readable image" in results[4]["error"]
    assert "is empty" in results[5]["error"]
    assert results[4]["defective"] == ""
    assert [row["error"] for i, row in enumerate(results) if i not in (4, 5)] == [""] * 7
    assert len(read(out / "submission.csv")) == 14
    assert "2 unreadable" in capsys.readouterr().out


def test_inspects_a_single_file(model: Path, folder: Path, tmp_path: Path) -> None:
    assert main(["inspect", str(model), str(folder / "1.png"), f"--out={tmp_path / 'out'}"]) == 0
    assert len(read(tmp_path / "out" / "results.csv")) == 1


def test_repeated_file_names_are_recorded_with_their_folder(model: Path, folder: Path, tmp_path: Path) -> None:
    (folder / "other").mkdir()
    (folder / "other" / "1.png").write_bytes((folder / "1.png").read_bytes())
    out = tmp_path / "out"
    assert main(["inspect", str(model), str(folder / "**" / "1.png"), f"--out={out}"]) == 0
    assert {row["image"] for row in read(out / "results.csv")} == {"1.png", "other/1.png"}


def test_file_names_that_are_formulas_are_escaped_in_csv_files_only(model: Path, folder: Path, tmp_path: Path) -> None:
    names = ["'=1.png", "+2.png", "-3.png", "=HYPERLINK(4).png", "@5.png"]
    for name in names:
        (folder / name).write_bytes((folder / "1.png").read_bytes())
    out = tmp_path / "out"
    args = ["inspect", str(model), f"--out={out}"]
    assert main([*args, str(folder / "[!0-9]*.png")]) == 0
    assert main([*args, str(folder), "--resume"]) == 0
    for table, column in (("results", "image"), ("spots", "image"), ("submission", "ImageId")):
        found = list(dict.fromkeys(row[column] for row in read(out / f"{table}.csv")))
        assert found[:5] == [f"'{name}" for name in names]
        assert "1.png" in found[5:]
    images = pd.read_parquet(out / "results.parquet")["image"].tolist()
    assert images == [*names, *(f"{i}.png" for i in range(9))]


def test_images_that_change_or_vanish_during_the_run_are_recorded_once(
    model: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decide, cut = Pipeline.decide, (folder / "1.png").read_bytes()[:40]

    def spoil(pipeline: Pipeline, images: list[Any]) -> Any:
        # The first call is for the empty window before the first one, when the last images are not read yet.
        if (folder / "7.png").exists():
            (folder / "7.png").unlink()
            (folder / "8.png").write_bytes(cut)
        return decide(pipeline, images)

    monkeypatch.setattr(Pipeline, "decide", spoil)
    out = tmp_path / "out"
    assert main(["inspect", str(model), str(folder), f"--out={out}", "--batch_size=1"]) == 0
    results = read(out / "results.csv")
    assert [row["image"] for row in results] == [f"{i}.png" for i in range(9)]
    assert [row["image"] for row in results if row["error"]] == ["7.png", "8.png"]
    assert "No such file" in results[7]["error"]
    assert "not a readable image" in results[8]["error"]


def test_refuses_wrong_options(model: Path, folder: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    out = f"--out={tmp_path / 'out'}"
    assert "no file or folder" in refused("inspect", model, tmp_path / "gone", out)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no image in" in refused("inspect", model, empty, out)
    assert 'device "warp"' in refused("inspect", model, folder, out, "--device=warp")
    assert re.search("batch_size .*1.* 0", refused("inspect", model, folder, out, "--batch_size=0"))
    (empty / "a.jpg").write_text("no image")
    assert "none of the images could be read (1 image)" in refused("inspect", model, empty, out)
    for shard in ("3/2", "0/2", "2"):
        assert f'--shard must be i/n with i from 1 to n, such as 2/8, got "{shard}"' in refused(
            "inspect", model, folder, out, f"--shard={shard}"
        )
    for options, reason in {
        ("--shard=1/2", "--report"): "--report cannot be combined with --shard",
        ("--engine=ray", "--resume"): "--resume cannot be combined with --engine ray",
        ("--engine=ray", "--overlays=all"): "--overlays cannot be combined with --engine ray",
        ("--engine=ray", "--submission_format=old"): "--submission_format cannot be combined with --engine ray",
        ("--idle_seconds=1",): "--idle_seconds has no effect without --watch",
        ("--mm_per_pixel=1",): "--mm_per_pixel has no effect without --report",
    }.items():
        assert f"{reason}; leave it out" in refused("inspect", model, folder, out, *options)
    assert "--device must be auto, cpu or cuda with --engine ray, got warp" in refused(
        "inspect", model, folder, out, "--engine=ray", "--device=warp"
    )
    sentence = refused("inspect", model, folder, out, "--watch", "--idle_seconds=-1")
    assert "idle_seconds must be a number above 0 and at most 1e9, got -1.0" in sentence
    for length in (0.0, -1.0, 1e10):
        sentence = refused("inspect", model, folder, out, "--report", f"--mm_per_pixel={length}")
        assert f"mm_per_pixel must be a number above 0 and at most 1e9, got {length}" in sentence
    sentence = refused("inspect", model, folder / "1.png", out, "--watch")
    assert f"--watch needs a folder, got {folder / '1.png'}" in sentence


TABLES = ("results.csv", "spots.csv", "submission.csv", "results.parquet")


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder `in` with nine images, one of them unreadable, and the results of an uninterrupted run in `out`."""
    path = tmp_path_factory.mktemp("whole")
    write_images(path / "in")
    (path / "in" / "4.png").write_text("no image")
    assert main(["inspect", str(model), str(path / "in"), f"--out={path / 'out'}", "--batch_size=1"]) == 0
    return path


def require_equal(out: Path, whole: Path) -> None:
    for name in TABLES:
        assert (out / name).read_bytes() == (whole / "out" / name).read_bytes()
    # A killed process may leave a temporary file beside the pictures.
    pictures = [{p.name: p.read_bytes() for p in (one / "overlays").glob("*.png")} for one in (out, whole / "out")]
    assert pictures[0] == pictures[1]
    assert not list(out.glob("*.unfinished"))


@pytest.mark.parametrize("seed", range(12))
def test_a_resumed_run_equals_an_uninterrupted_run_wherever_it_was_killed(
    model: Path, whole: Path, tmp_path: Path, seed: int
) -> None:
    out = tmp_path / "out"
    (out / "overlays").mkdir(parents=True)
    random = np.random.default_rng(seed)
    for name in TABLES[:3]:
        data = (whole / "out" / name).read_bytes()
        # Any part of each table may have reached the disk.
        end = int(random.choice([0, 7, len(data), *random.integers(0, len(data), 5)]))
        (out / f"{name}.unfinished").write_bytes(data[:end])
    recorded = (out / "results.csv.unfinished").read_text()
    for path in (whole / "out" / "overlays").iterdir():
        # A picture is written before its row, so a picture without a row may be incomplete.
        end = None if path.stem in recorded else int(random.integers(400))
        (out / "overlays" / path.name).write_bytes(path.read_bytes()[:end])
    assert main(["inspect", str(model), str(whole / "in"), f"--out={out}", "--resume"]) == 0
    require_equal(out, whole)


def stop_after(num: int) -> Callable[..., Iterator[Record | Unreadable]]:
    run = Pipeline.run

    def stopped(self: Pipeline, *args: Any) -> Iterator[Record | Unreadable]:
        for done, record in zip(count(), run(self, *args), strict=False):
            if done == num:
                raise KeyboardInterrupt
            yield record

    return stopped


def test_ctrl_c_keeps_complete_rows_and_explains_how_to_resume(
    model: Path,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    refused: Callable[..., str],
) -> None:
    out = tmp_path / "out"
    args = ["inspect", str(model), str(whole / "in"), f"--out={out}", "--batch_size=1"]
    with monkeypatch.context() as patch:
        patch.setattr(Pipeline, "run", stop_after(6))
        assert main(args) == 130
    message = capsys.readouterr().err
    assert f"6 of 9 images recorded in {out / 'results.csv.unfinished'}" in message
    assert "--resume" in message
    assert len(read(out / "results.csv.unfinished")) == 6
    other = write_model(tmp_path / "other.pt", gate=0.6)
    for again in (model, other):
        sentence = refused("inspect", again, *args[2:])
        assert f"{out / 'results.csv.unfinished'} belongs to an interrupted run" in sentence
        assert "--resume" in sentence
    assert "results of another model" in refused("inspect", other, *args[2:], "--resume")
    assert main([*args, "--resume"]) == 0
    assert "already inspected, so skipped: 6 of 9 images" in capsys.readouterr().out
    require_equal(out, whole)


def test_a_full_disk_is_named_and_the_run_can_be_resumed(
    model: Path, whole: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    resource = pytest.importorskip("resource", reason="needs POSIX limits")
    out = tmp_path / "out"
    args = ["inspect", str(model), str(whole / "in"), f"--out={out}", "--batch_size=1"]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))  # bytes; a larger file cannot be written
    try:
        sentence = refused(*args, "--overlays=none")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert re.search(rf"{os.strerror(errno.EFBIG)}: '{out}/(spots|submission).csv.unfinished'", sentence)
    recorded = {row["image"] for row in read(out / "results.csv.unfinished")}
    assert 0 < len(recorded) < 9
    assert main([*args, "--resume"]) == 0
    for name in TABLES:
        assert (out / name).read_bytes() == (whole / "out" / name).read_bytes()


def test_resuming_a_finished_run_appends_new_images(model: Path, whole: Path, folder: Path, tmp_path: Path) -> None:
    out = shutil.copytree(whole / "out", tmp_path / "out")
    shutil.copy(folder / "1.png", folder / "new.png")
    assert main(["inspect", str(model), str(folder), f"--out={out}", "--resume"]) == 0
    assert [row["image"] for row in read(out / "results.csv")] == [*(f"{i}.png" for i in range(9)), "new.png"]
    assert (out / "results.csv").read_bytes().startswith((whole / "out" / "results.csv").read_bytes())


def test_results_of_an_earlier_run_never_stay_beside_new_ones(
    model: Path, folder: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    out = tmp_path / "out"
    first = ["inspect", str(model), str(folder / "[01].png"), f"--out={out}"]
    assert main([*first, "--report", "--coco"]) == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    sentence = refused("inspect", model, folder / "2.png", f"--out={out}")
    assert f"{out} holds the results of an earlier run (results.csv); choose another folder with --out" in sentence
    # A report or annotations that lack the new images would be as stale.
    for option, name in (("--coco", "report.html"), ("--report", "coco")):
        sentence = refused("inspect", model, folder / "2.png", f"--out={out}", "--resume", option)
        assert f"{out / name} would lack the images of this run; add --" in sentence
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert main(["inspect", str(model), str(folder / "2.png"), f"--out={out}", "--resume", "--report", "--coco"]) == 0
    assert "2.png" in (out / "report.html").read_text(encoding="utf-8")
    (other := tmp_path / "other").mkdir()
    (other / "mine.txt").write_text("not a result")
    assert main(["inspect", str(model), str(folder / "2.png"), f"--out={other}"]) == 0


def test_resume_refuses_another_model_and_another_submission_format(
    model: Path, whole: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    out = shutil.copytree(whole / "out", tmp_path / "out")
    other = write_model(tmp_path / "other.pt", gate=0.6)
    resumed = (whole / "in", f"--out={out}", "--resume")
    assert f"{out} holds results of another model (inspector.pt, " in refused("inspect", other, *resumed)
    sentence = refused("inspect", model, *resumed, "--submission_format=old")
    assert (
        f"{out / 'submission.csv'} must have the columns ImageId_ClassId,EncodedPixels, got ImageId,ClassId" in sentence
    )
    assert "--submission_format" in sentence
    # The refused run leaves the folder as it was.
    assert not list(out.glob("*.unfinished"))
    assert json.loads((out / "inspector.json").read_text())["model"] == "inspector.pt"
    for content in (b"", b"{", b"[1]", b"{}", b"\xff"):
        (out / "inspector.json").write_bytes(content)
        assert f"{out / 'inspector.json'} is damaged" in refused("inspect", model, *resumed)


def test_spots_parquet_and_coco_agree_with_the_results(
    model: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "_GROUP_CHARACTERS", 500)  # writes several row groups
    out = tmp_path / "out"
    assert main(["inspect", str(model), str(whole / "in"), f"--out={out}", "--coco"]) == 0
    results, codes = read(out / "results.csv"), read(out / "submission.csv")
    table = pd.read_parquet(out / "results.parquet")
    assert table["image"].tolist() == [row["image"] for row in results]
    coco = json.loads((out / "coco" / "annotations" / "instances_default.json").read_text())
    sizes = {one["file_name"]: (one["height"], one["width"], one["id"]) for one in coco["images"]}
    for row, typed in zip(results, table.to_dict("records"), strict=True):
        spots = [spot for spot in read(out / "spots.csv") if spot["image"] == row["image"]]
        if row["error"]:
            assert (typed["error"], typed["spots"], spots) == (row["error"], None, [])
            assert row["image"] not in sizes
            continue
        assert typed["defective"] is (row["defective"] == "1")
        assert typed["gate_probability"] == float(row["gate_probability"])
        assert typed["area_pixels_spot"] == int(row["area_pixels_spot"]) == sum(int(s["area_pixels"]) for s in spots)
        assert len(spots) == int(row["spots"]) == len(typed["spots"])
        height, width, number = sizes[row["image"]]
        assert (height, width) == (int(row["height"]), int(row["width"])) == (typed["height"], typed["width"])
        united = np.zeros((height, width), np.uint8)
        for spot, nested in zip(spots, typed["spots"], strict=True):
            assert {key: str(value) for key, value in nested.items() if "centroid" not in key}.items() <= spot.items()
            assert spot["class"] == "1"
            united |= rle.decode(spot["code"], (height, width))
        code = next(one["EncodedPixels"] for one in codes if (one["ImageId"], one["ClassId"]) == (row["image"], "1"))
        assert rle.encode(united) == code
        areas = sorted(one["area"] for one in coco["annotations"] if one["image_id"] == number)
        assert areas == sorted(int(spot["area_pixels"]) for spot in spots)


def test_shards_can_be_read_as_one_table(model: Path, whole: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    out = tmp_path / "out"
    for i in (3, 1, 2):
        assert main(["inspect", str(model), str(whole / "in"), f"--out={out}", f"--shard={i}/3"]) == 0
    table = pd.read_parquet(out / "results.parquet").sort_values("image", ignore_index=True)
    expected = pd.read_parquet(whole / "out" / "results.parquet")
    pd.testing.assert_frame_equal(table, expected)
    rows = [row for i in (1, 2, 3) for row in read(out / f"results-{i}-of-3.csv")]
    assert sorted(row["image"] for row in rows) == [f"{i}.png" for i in range(9)]
    assert [row["image"] for row in read(out / "results-2-of-3.csv")] == ["1.png", "4.png", "7.png"]
    sentence = refused("inspect", model, whole / "in", f"--out={out}", "--shard=1/2")
    assert "holds results of 3 shards" in sentence
    sentence = refused("inspect", model, whole / "in", f"--out={out}", "--shard=2/3")
    assert f"{out / 'results-2-of-3.csv'} is from an earlier run; add to it with --resume" in sentence
    assert main(["inspect", str(model), str(whole / "in"), f"--out={out}", "--shard=2/3", "--resume"]) == 0
    assert "holds the results of an earlier run" in refused("inspect", model, whole / "in", f"--out={out}")
    sentence = refused("inspect", model, whole / "in", f"--out={out}", "--resume")
    assert "is a folder with the results of shards" in sentence
    unsharded = shutil.copytree(whole / "out", tmp_path / "unsharded")
    assert "holds the results of a whole run" in refused(
        "inspect", model, whole / "in", f"--out={unsharded}", "--shard=1/2"
    )


WITHOUT_TRAINING_PACKAGES = """
import sys
from importlib.abc import MetaPathFinder

class Refusing(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"pytorch_lightning", "lightning_fabric", "segmentation_models_pytorch", "timm",
                                      "albumentations", "torchvision", "torchmetrics"}:
            raise ImportError(f"{name} is not installed")

sys.meta_path.insert(0, Refusing())
from steel.cli import main
status = main(sys.argv[1:])
# Packages that a plain run does not need are not loaded either.
print(sorted({"matplotlib", "pandas", "scipy", "sklearn", "pycocotools", "ray"} & set(sys.modules)))
sys.exit(status)
"""


def test_runs_without_the_training_packages(model: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-W", "error", "-c", WITHOUT_TRAINING_PACKAGES]
    run = subprocess.run(
        [*command, "inspect", str(model), str(whole / "in"), f"--out={out}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == "[]"
    require_equal(out, whole)


@pytest.mark.slow
def test_a_killed_process_can_be_resumed(model: Path, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "in", 400)
    args = ["inspect", str(model), str(folder), "--batch_size=2"]
    assert main([*args, f"--out={tmp_path / 'whole' / 'out'}"]) == 0
    out = tmp_path / "out"
    for num in (1, 150):
        run = subprocess.Popen([sys.executable, "-m", "steel", *args, f"--out={out}", "--resume"])
        while run.poll() is None:
            path = out / "results.csv.unfinished"
            if path.exists() and len(path.read_bytes().splitlines()) > num:
                run.kill()
            time.sleep(0.001)
        assert run.returncode == -signal.SIGKILL
    assert main([*args, f"--out={out}", "--resume"]) == 0
    require_equal(out, tmp_path / "whole")


def test_links_folders_and_pipes_with_names_of_images_are_reported(model: Path, folder: Path, tmp_path: Path) -> None:
    (folder / "a.jpg").symlink_to("gone.jpg")
    (folder / "b.jpg").symlink_to("b.jpg")
    (folder / "c.jpg").mkdir()
    os.mkfifo(folder / "d.jpg")
    out = tmp_path / "out"
    assert main(["inspect", str(model), str(folder), f"--out={out}"]) == 0
    errors = {row["image"]: row["error"] for row in read(out / "results.csv") if row["error"]}
    assert list(errors) == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    assert "No such file" in errors["a.jpg"]
    assert "symbolic links" in errors["b.jpg"]
    assert "is a folder, a pipe or a device" in errors["c.jpg"]
    assert "is a folder, a pipe or a device" in errors["d.jpg"]


def test_two_processes_cannot_write_to_one_folder(
    model: Path, folder: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    running = Tables(out, list_result_columns(["spot", "never"]), 2, form="new", shard=None, resume=False)
    args = ("inspect", model, folder, f"--out={out}")
    for resume in ([], ["--resume"]):  # in both cases, deleting the unfinished tables would lose the results
        assert "another command is writing to" in refused(*args, *resume)
    running.close()
    assert "belongs to an interrupted run" in refused(*args)
    assert main([*map(str, args), "--resume"]) == 0
    assert len(read(out / "results.csv")) == 9
