import _thread
import csv
import os
import re
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from bright import draw, write_images, write_model
from steel.cli import main
from steel.inspection import watch


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "inspector.pt")


def read(path: Path) -> dict[str, dict[str, str]]:
    return {row["image"]: row for row in csv.DictReader(path.read_text(encoding="utf-8").splitlines())}


def wait_for(out: Path, num: int) -> None:
    """Wait until this many images are recorded."""
    path = out / "results.csv.unfinished"
    for _ in range(2400):  # 120 seconds, for a busy machine
        if path.exists() and len(read(path)) >= num:
            return
        time.sleep(0.05)
    pytest.fail(f"{path} has fewer than {num} images")


def test_inspects_new_images_once_they_are_complete(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = write_images(tmp_path / "line", 2), tmp_path / "out"
    images = {f"late{i}.png": draw(i, (200, 300), 255) for i in range(4)}

    def write_slowly() -> None:
        wait_for(out, 2)
        for name, image in images.items():
            data = cv2.imencode(".png", image)[1].tobytes()
            with (folder / name).open("wb") as file:
                for start in range(0, len(data), len(data) // 4):
                    file.write(data[start : start + len(data) // 4])
                    file.flush()
                    # Longer than the scan interval, so that scans see the incomplete file.
                    time.sleep(3 * watch._SCAN_INTERVAL)

    writer = threading.Thread(target=write_slowly)
    writer.start()
    assert main(["inspect", str(model), str(folder), f"--out={out}", "--watch", "--idle_seconds=3"]) == 0
    writer.join()
    results = read(out / "results.csv")
    assert set(results) == {"0.png", "1.png", *images}
    for name, image in images.items():
        assert int(results[name]["area_pixels_spot"]) == (image > 127).sum()
    printed = capsys.readouterr()
    assert re.search(r"latency of 4 images at [\d.]+ per second: p50 \d+ ms, p99 \d+ ms", printed.out)
    assert "6 images: 5 defective, 0 unreadable" in printed.out


def test_an_image_that_vanishes_before_it_is_read_is_inspected_once_it_is_back(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = write_images(tmp_path / "line", 3), tmp_path / "out"
    scan, num_vanished = watch._Folder.scan, 0

    def scan_and_move(watched: watch._Folder) -> list[Path]:
        nonlocal num_vanished
        ready = scan(watched)
        if (folder / "1.png") in ready and num_vanished < 2:
            num_vanished += 1
            (folder / "1.png").rename(tmp_path / "1.png")
        elif (tmp_path / "1.png").exists() and not ready:
            (tmp_path / "1.png").rename(folder / "1.png")
        return ready

    monkeypatch.setattr(watch._Folder, "scan", scan_and_move)
    assert main(["inspect", str(model), str(folder), f"--out={out}", "--watch", "--idle_seconds=3"]) == 0
    assert num_vanished == 2
    results = read(out / "results.csv")
    assert set(results) == {"0.png", "1.png", "2.png"}
    assert not any(row["error"] for row in results.values())


def test_two_hundred_images_at_once_are_each_recorded_once(model: Path, tmp_path: Path) -> None:
    folder, out = write_images(tmp_path / "line", 1), tmp_path / "out"
    burst = write_images(tmp_path / "burst", 200)

    def deliver() -> None:
        wait_for(out, 1)
        for path in burst.iterdir():
            path.rename(folder / path.name)

    (burst / "0.png").rename(burst / "200.png")
    writer = threading.Thread(target=deliver)
    writer.start()
    assert main(["inspect", str(model), str(folder), f"--out={out}", "--watch", "--idle_seconds=3"]) == 0
    writer.join()
    rows = list(csv.DictReader((out / "results.csv").read_text(encoding="utf-8").splitlines()))
    assert sorted(int(row["image"].removesuffix(".png")) for row in rows) == list(range(201))
    assert not any(row["error"] for row in rows)


def test_ctrl_c_stops_watching_and_unreadable_images_are_recorded(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(watch, "_UNREADABLE_AFTER", 0.2)
    folder, out = write_images(tmp_path / "line", 1), tmp_path / "out"
    (folder / "broken.png").write_text("no image")
    (folder / "empty.jpg").touch()

    def interrupt() -> None:
        wait_for(out, 3)
        _thread.interrupt_main()

    threading.Thread(target=interrupt).start()
    args = ["inspect", str(model), str(folder), f"--out={out}", "--watch"]
    assert main(args) == 0
    results = read(out / "results.csv")
    assert "not a readable image" in results["broken.png"]["error"]
    assert "is empty" in results["empty.jpg"]["error"]
    assert "no image appeared while the folder was watched" in capsys.readouterr().out
    write_images(tmp_path / "more", 2)
    (tmp_path / "more" / "1.png").rename(folder / "1.png")
    assert main([*args, "--resume", "--idle_seconds=0.5"]) == 0
    assert list(read(out / "results.csv")) == [*results, "1.png"]


def test_a_name_that_is_not_utf_8_is_inspected_once(model: Path, tmp_path: Path) -> None:
    folder, out = write_images(tmp_path / "line", 2), tmp_path / "out"
    (folder / "1.png").rename(folder / os.fsdecode(b"\xff.png"))
    args = ["inspect", str(model), str(folder), f"--out={out}", "--watch", "--idle_seconds=1", "--report"]
    for more in ([], ["--resume"]):
        assert main([*args, *more]) == 0
        rows = list(csv.DictReader((out / "results.csv").read_text(encoding="utf-8").splitlines()))
        assert sorted(row["image"] for row in rows) == ["0.png", "\\udcff.png"]


def test_latencies_are_summarised_by_percentiles() -> None:
    seconds = np.linspace(0.01, 0.02, 101)
    latencies = [watch.Latency(0.5 * i, second) for i, second in enumerate(seconds)]
    sentence = watch.describe_latencies(latencies)
    assert sentence == "latency of 101 images at 2.0 per second: p50 15 ms, p99 20 ms"
