import base64
import csv
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from scipy import stats

from bright import write_model, write_png
from steel.cli import main
from steel.data.spots import Spot
from steel.inspection import strip_map, strip_report
from steel.inspection.records import Record

SIZE = (40, 300)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "inspector.pt")


@pytest.fixture
def strip(tmp_path: Path) -> Path:
    """Six images: two with a bright spot, one grey without a spot, two dark ones, and one unreadable."""
    folder = tmp_path / "coil"
    folder.mkdir()
    for i in range(5):
        image = np.full(SIZE, 100 if i < 3 else 20, np.uint8)
        if i < 2:
            image[10 : 20 + 10 * i, 60:90] = 200
        write_png(folder / f"{i}<b>.png", image)
    (folder / "5.png").write_text("no image")
    return folder


def inspect(model: Path, folder: Path, *args: str) -> str:
    out = folder.parent / "out"
    assert main(["inspect", str(model), str(folder), f"--out={out}", "--report", *args]) == 0
    return (out / "report.html").read_text(encoding="utf-8")


def read_data(page: str) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


def read_tables(page: str) -> list[list[list[str]]]:
    tables = re.findall(r"<tbody>(.*?)</tbody>", page)
    return [[re.findall(r"<td>(.*?)</td>", row) for row in table.split("</tr>")[:-1]] for table in tables]


def test_tables_show_totals_and_fractions(model: Path, strip: Path) -> None:
    totals, classes = read_tables(inspect(model, strip, "--mm_per_pixel=0.5"))[:2]
    low, high = stats.binomtest(2, 5).proportion_ci(method="wilson")
    assert dict(totals) == {
        "images": "6",
        "unreadable images": "1",
        "defective images": "2",
        "fraction defective (95 % interval)": f"40.0 % ({100 * low:.1f} to {100 * high:.1f})",
        "spots": "2",
        "defective area": f"{(300 + 600) / 4:.1f} mm²",
        "fraction of the inspected area": f"{100 * 900 / (5 * 40 * 300):.3f} %",
        "length of strip": "120 mm",  # six images of 40 rows of 0.5 mm; the unreadable one has the median length
        "spots per metre": f"{2 / 0.12:.3g}",
    }
    low, high = stats.binomtest(2, 5).proportion_ci(method="wilson")
    share = f"40.0 % ({100 * low:.1f} to {100 * high:.1f})"
    assert classes[0] == ["spot", "2", share, "2", "225.0 mm²", "150.0 mm²"]
    assert classes[1][:2] == ["never", "0"]


@pytest.mark.parametrize(
    ("args", "unit", "step"),
    [
        ((), "px", 40.0),
        (("--mm_per_pixel=0.5",), "mm", 20.0),
        (("--mm_per_pixel=0.5", "--image_length=25"), "mm", 25.0),
        (("--image_length=100",), "mm", 100.0),
    ],
)
def test_images_and_spots_have_their_positions(
    model: Path, strip: Path, args: tuple[str, ...], unit: str, step: float
) -> None:
    page = inspect(model, strip, *args)
    data = read_data(page)
    assert data["unit"] == unit
    assert [image[0] for image in data["images"]] == [
        "0<b>.png",
        "1<b>.png",
        "2<b>.png",
        "3<b>.png",
        "4<b>.png",
        "5.png",
    ]
    assert [image[1] for image in data["images"]] == [1, 1, 0, 0, 0, 2]
    assert [image[3] for image in data["images"]] == pytest.approx([i * step for i in range(6)])
    assert "not a readable image" in data["images"][5][5]
    assert data["spots"] == [[1, 0, 600, 60, 10, 30, 20], [0, 0, 300, 60, 10, 30, 10]]
    marks = re.findall(r'class="(spot|unreadable)" x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)"', page)
    kinds = [mark[0] for mark in marks]
    boxes = np.array([mark[1:] for mark in marks], float)
    assert kinds == ["unreadable", "spot", "spot"]
    # The six images share one line of 1200 units; 110 units are their 300 columns.
    expected = [[1000, 0, 200, 110], [200 + 50, 22, 100, 11], [50, 22, 50, 11]]
    assert boxes == pytest.approx(np.array(expected), abs=0.06)


def test_thumbnails_show_the_images(model: Path, strip: Path) -> None:
    for name, _, _, _, thumbnail, *_ in read_data(inspect(model, strip))["images"][:5]:
        shown = cv2.imdecode(np.frombuffer(base64.b64decode(thumbnail), np.uint8), cv2.IMREAD_COLOR)
        assert shown.shape == (*SIZE, 3)
        image = cv2.imread(str(strip / name), cv2.IMREAD_GRAYSCALE)
        bare = image <= 127
        assert np.abs(shown.mean(2)[bare] - image[bare]).mean() < 6
        assert (np.ptp(shown, axis=2).max() > 60) == (~bare).any()  # colour where something was found


def test_page_is_self_contained(model: Path, strip: Path) -> None:
    page = inspect(model, strip)
    assert "default-src 'none'" in page
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", page)
    assert "http" not in page.replace("http-equiv", "")
    assert "<b>.png" not in page.replace("\\u003cb>", "")


def test_page_reports_what_exceeds_its_limits(model: Path, strip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strip_report, "MAX_THUMBNAILS", 3)
    monkeypatch.setattr(strip_report, "_MAX_SPOTS", 1)
    monkeypatch.setattr(strip_map, "_MAX_SPOTS", 1)
    page = inspect(model, strip)
    data = read_data(page)
    assert [bool(image[4]) for image in data["images"]] == [True, True, True, False, False, False]
    assert len(data["spots"]) == 1
    assert "the 1 largest of 2 spots are listed; spots.csv" in page
    assert "the 1 largest of 2 spots are marked" in page
    assert page.count('class="spot"') == 1


def test_deleted_images_have_no_picture(model: Path, strip: Path) -> None:
    inspect(model, strip)
    (strip / "0<b>.png").unlink()
    data = read_data(inspect(model, strip, "--resume"))
    assert [bool(image[4]) for image in data["images"]] == [False, True, True, True, True, False]


def test_map_of_a_long_strip_has_several_lines() -> None:
    spot = Spot(0, 9, (0, 0, 3, 3), (1.0, 1.0), "")
    record = Record("a", True, 1.0, [1.0], [9], (256, 1600), [""], [spot])
    strip = strip_map.Strip([record] * 1000, mm_per_pixel=None, image_length=300)
    drawn = strip_map.draw_map(strip, ["one"])
    marks = re.findall(r'class="spot" x="([\d.]+)" y="([\d.]+)"', drawn)
    assert len(marks) == 1000
    assert drawn.count('class="strip"') == 12
    x, y = np.array(marks, float).T
    # The lines follow each other, each from left to right.
    assert y // 132 * 1200 + x == pytest.approx(np.arange(1000) * 14.4, abs=0.06)
    assert ">25.00 m<" in drawn


SEARCH = """<script>
document.getElementById("name").value = "1<";
document.getElementById("name").dispatchEvent(new Event("input", {bubbles: true}));
document.querySelector(".thumbs button").click();
</script>"""


@pytest.mark.slow
def test_page_can_be_searched_in_a_browser(model: Path, strip: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("Chromium is not installed; Debian's package is chromium")
    page = inspect(model, strip)

    def show(text: str) -> str:
        (strip.parent / "page.html").write_text(text, encoding="utf-8")
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=2000", "--dump-dom"]
        profile = f"--user-data-dir={strip.parent / 'profile'}"
        command = [browser, *options, profile, (strip.parent / "page.html").as_uri()]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout

    shown = show(page)
    assert "6 of 6 images, 2 of 2 spots" in shown
    assert shown.count('<tr tabindex="0">') == 2
    shown = show(
        re.sub("script-src '[^']+'", "script-src 'unsafe-inline'", page).replace("</body>", f"{SEARCH}</body>")
    )
    assert "1 of 6 images, 1 of 2 spots" in shown
    assert shown.count('<tr tabindex="0">') == 1
    assert re.search(r'<dialog[^>]*open[^>]*><h2>1&lt;b&gt;.png: defective, p = 1.00</h2><img src="data:image', shown)


def test_refuses_a_report_without_images(model: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    args = ("--watch", "--idle_seconds=0.1", "--report", f"--out={tmp_path / 'out'}")
    assert "no image was inspected" in refused("inspect", model, folder, *args)
    assert list(csv.reader((tmp_path / "out" / "results.csv").read_text().splitlines()))[1:] == []


def test_shrinking_keeps_a_dark_image_dark(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", np.ones(SIZE, np.uint8))
    record = Record("a.png", False, 0.0, [0.0], [0], SIZE, [""], [])
    jpeg = base64.b64decode(strip_report.draw_record(record, {"a.png": tmp_path / "a.png"}, 100, 90))
    shown = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert shown.shape[1] == 100
    assert shown.max() < 10
