"""The page, operated as an inspector would, in a real browser."""

import csv
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from served import build_desk, draw, encode, open_server
from steel.desk.service import build_app

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright to control the browser")
expect = sync_api.expect
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium; apt-get install chromium"),
]
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
# The probability of "scale" is 0.5 at a mean grey value of 50, that of "scratch" at 90.
IMAGES = {
    "bright.png": draw(95, [(10, 8, 12, 5, 255), (40, 20, 30, 3, 150)]),
    "dark.png": draw(20, [(10, 8, 12, 5, 255)]),
    "middle.jpg": draw(45, [(10, 8, 2, 2, 255)]),
    "plain.bmp": draw(70),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "coil"
    path.mkdir()
    for name, image in IMAGES.items():
        (path / name).write_bytes(encode(image, Path(name).suffix))
    (path / "broken.png").write_bytes(b"no image")
    (path / "notes.txt").write_text("skipped because of its file name")
    return path


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator["sync_api.BrowserContext"]:
    profile = tmp_path_factory.mktemp("profile")
    with sync_api.sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            profile,
            executable_path=CHROMIUM,
            args=FLAGS.split(),
            viewport={"width": 1400, "height": 900},
        )
        yield context
        context.close()


def open_page(context: "sync_api.BrowserContext", port: int, problems: list[str]) -> "sync_api.Page":
    page = context.new_page()
    page.set_default_timeout(20_000)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    own = (f"http://127.0.0.1:{port}/", "blob:", "data:")
    page.on("request", lambda request: None if request.url.startswith(own) else problems.append(request.url))
    page.goto(f"http://127.0.0.1:{port}/")
    return page


def drop(page: "sync_api.Page", folder: Path) -> None:
    """Drop the files on the page, as from a file manager."""
    files = [[path.name, list(path.read_bytes())] for path in sorted(folder.iterdir())]
    transfer = page.evaluate_handle(
        """files => {
            const transfer = new DataTransfer();
            for (const [name, bytes] of files) transfer.items.add(new File([new Uint8Array(bytes)], name));
            return transfer;
        }""",
        files,
    )
    page.dispatch_event("body", "drop", {"dataTransfer": transfer})


def count(page: "sync_api.Page") -> dict[str, str]:
    rows = page.locator("#counts div").all()
    return {row.locator("dt").inner_text(): row.locator("dd").inner_text() for row in rows}


def download(page: "sync_api.Page", name: str, to: Path) -> Path:
    page.locator("#downloads summary").click()
    with page.expect_download() as waiting:
        page.locator(f'[data-download="{name}"]').click()
    assert waiting.value.suggested_filename == name
    waiting.value.save_as(to / name)
    return to / name


def read(path: Path) -> dict[str, dict[str, str]]:
    return {row["image"]: row for row in csv.DictReader(path.read_text(encoding="utf-8").splitlines())}


def test_inspect_judge_and_download(context: "sync_api.BrowserContext", folder: Path, tmp_path: Path) -> None:
    problems: list[str] = []
    with open_server(build_app(build_desk(tmp_path))) as port:
        page = open_page(context, port, problems)
        drop(page, folder)
        page.locator("#progress").wait_for(state="hidden")
        expect(page.locator("#counts dd").first).to_have_text("5")
        assert count(page) == {
            "inspected": "5", "defective": "2", "clean": "2", "unreadable": "1", "agreed": "0", "missed": "0",
            "false alarms": "0",
        }  # fmt: skip
        options = {row.get_attribute("title"): row for row in page.locator("#strip li").all()}
        decisions = {name: row.get_attribute("data-decision") for name, row in options.items()}
        assert decisions == {
            "bright.png": "defective", "broken.png": "unreadable", "dark.png": "clean", "middle.jpg": "clean",
            "plain.bmp": "unclear",
        }  # fmt: skip

        # Select an image, zoom to a defect, and hide a mask.
        options["bright.png"].click()
        expect(page.locator("#defects-title")).to_have_text("Defects (2 spots)")
        rows = page.locator("#defects tbody tr")
        assert rows.first.inner_text().split() == ["scratch", "90", "55,", "21"]
        picture = page.locator("#picture")
        whole = picture.screenshot()
        rows.first.click()
        page.wait_for_timeout(200)
        zoomed = picture.screenshot()
        assert zoomed != whole
        page.get_by_label("Mask of class scratch").uncheck()
        page.wait_for_timeout(200)
        assert picture.screenshot() != zoomed
        page.keyboard.press("0")

        # With a lower gate, more images are defective, and verdicts are disabled.
        page.keyboard.press("ArrowRight")
        options["middle.jpg"].click()
        page.get_by_label("Gate").fill("0.3")
        assert options["middle.jpg"].get_attribute("data-decision") == "defective"
        expect(rows).to_have_count(1)
        assert page.locator("#what-if").is_visible()
        assert page.locator('[data-verdict="agree"]').is_disabled()
        page.locator("#reset-thresholds").click()
        assert options["middle.jpg"].get_attribute("data-decision") == "clean"

        # Give three verdicts, one of them with the keyboard.
        page.locator("#inspector").fill("K. L.")
        page.locator("#verdict-class").select_option("scale")
        page.locator('[data-verdict="missed"]').click()
        page.locator("#verdict").get_by_text("missed, class scale (K. L.)").wait_for()
        options["bright.png"].click()
        page.keyboard.press("a")
        page.locator("#verdict").get_by_text("agreed").wait_for()
        options["plain.bmp"].click()
        page.locator('[data-verdict="false_alarm"]').click()
        page.locator("#verdict").get_by_text("false alarm").wait_for()
        assert {"agreed": "1", "missed": "1", "false alarms": "1"}.items() <= count(page).items()

        results = read(download(page, "results.csv", tmp_path))
        assert {name: row["defective"] for name, row in results.items()} == {
            "bright.png": "1", "broken.png": "", "dark.png": "0", "middle.jpg": "0", "plain.bmp": "1",
        }  # fmt: skip
        assert results["bright.png"]["area_pixels_scratch"] == "90"
        assert results["bright.png"]["verdict"] == "agree"
        assert "JPEG, PNG, BMP or TIFF" in results["broken.png"]["error"]
        codes = download(page, "submission.csv", tmp_path).read_text().splitlines()
        assert codes[0] == "ImageId,ClassId,EncodedPixels"
        assert len(codes) == 1 + 2 * 4
        kept = read(download(page, "verdicts.csv", tmp_path))
        assert {name: (row["verdict"], row["class"], row["inspector"]) for name, row in kept.items()} == {
            "bright.png": ("agree", "", "K. L."),
            "middle.jpg": ("missed", "scale", "K. L."),
            "plain.bmp": ("false_alarm", "", "K. L."),
        }
        with zipfile.ZipFile(download(page, "labels.zip", tmp_path)) as labels:
            assert labels.read("to_label.csv").decode().splitlines() == ["ImageId,ClassId", "middle.jpg,1"]
            assert "plain.bmp_1," in labels.read("train.csv").decode().splitlines()
        assert "Model card of inspector.pt" in download(page, "model_card.html", tmp_path).read_text()

        # A reloaded page shows the saved verdicts.
        page.reload()
        page.locator("#images").set_input_files(folder / "bright.png")
        page.locator("#verdict").get_by_text("agreed (K. L.)").wait_for()
    assert [text for text in problems if "415" not in text] == []  # the browser logs the refused image


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_on_a_tablet(
    context: "sync_api.BrowserContext", folder: Path, tmp_path: Path, scheme: str
) -> None:
    with open_server(build_app(build_desk(tmp_path))) as port:
        page = open_page(context, port, [])
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": 768, "height": 1024})
        page.locator("#images").set_input_files(sorted(folder.glob("*.png")))
        expect(page.locator("#counts dd").first).to_have_text("3")
        assert page.evaluate("document.documentElement.scrollWidth") <= 768
        for button in page.locator("#verdicts button:visible, #zoom button").all():
            assert min(button.bounding_box()["width"], button.bounding_box()["height"]) >= 40
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (int(ground.split("(")[1].split(",")[0]) < 128) == (scheme == "dark")


def test_the_page_asks_for_the_token(context: "sync_api.BrowserContext", folder: Path, tmp_path: Path) -> None:
    with open_server(build_app(build_desk(tmp_path), token="secret", is_local=False)) as port:
        page = open_page(context, port, [])
        for token in ("wrong", "secret"):
            page.locator("#token").fill(token)
            page.locator("#token-dialog button").click()
        page.locator("#images").set_input_files(folder / "bright.png")
        page.locator("#decision").get_by_text("defective").wait_for()


def test_the_api_documentation_is_shown(context: "sync_api.BrowserContext", tmp_path: Path) -> None:
    problems: list[str] = []
    with open_server(build_app(build_desk(tmp_path))) as port:
        page = open_page(context, port, problems)
        page.goto(f"http://127.0.0.1:{port}/docs")
        page.get_by_text("POST /v1/inspect").wait_for()
        assert "gate_probability" in page.locator("pre").nth(1).inner_text()
    assert problems == []
