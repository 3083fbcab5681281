"""A real browser with the page of the desk, and functions that operate it as an inspector would."""

import csv
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from served import draw, encode

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright to control the browser")
expect = sync_api.expect
expect.set_options(timeout=60_000)  # a loaded machine is slow, and the page waits longer between its attempts
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


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator["sync_api.BrowserContext"]:
    """Yield a browser; it keeps what pages store until it is closed."""
    with sync_api.sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("profile"),
            executable_path=CHROMIUM,
            args=FLAGS.split(),
            viewport={"width": 1400, "height": 900},
        )
        yield context
        context.close()


@pytest.fixture
def context(browser: "sync_api.BrowserContext") -> Iterator["sync_api.BrowserContext"]:
    """Close the pages of a test. Each test serves on a port of its own, so no page sees what others have stored."""
    yield browser
    for page in browser.pages[1:]:
        page.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a new folder with IMAGES, a damaged image and a text file."""
    folder = tmp_path / "coil"
    folder.mkdir()
    for name, image in IMAGES.items():
        (folder / name).write_bytes(encode(image, Path(name).suffix))
    (folder / "broken.png").write_bytes(b"no image")
    (folder / "notes.txt").write_text("skipped because of its file name")
    return folder


def open_page(context: "sync_api.BrowserContext", port: int, problems: list[str]) -> "sync_api.Page":
    """Open the page; `problems` collects errors of scripts, of the console, and requests to other hosts."""
    page = context.new_page()
    page.set_default_timeout(60_000)
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


def add(page: "sync_api.Page", *paths: Path) -> None:
    """Add files and wait until all images on the page are inspected."""
    number = page.locator("#strip li").count() + len(paths)
    page.locator("#images").set_input_files(paths)
    expect(page.locator("#counts dd").first).to_have_text(str(number))


def sign(page: "sync_api.Page", name: str) -> None:
    page.locator("#inspector").fill(name)
    page.locator("#inspector").blur()


def pick(page: "sync_api.Page", name: str) -> None:
    """Select an image."""
    page.locator(f'#strip li[title="{name}"]').click()
    expect(page.locator("#name")).to_have_text(name)


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
