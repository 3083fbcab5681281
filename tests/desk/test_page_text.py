"""Names, comments and classes that contain HTML are shown as text, on the page of the desk and on all reports.

Long names are also a test of the layout. The evaluation and the model card are checked for accessibility.
"""

import csv
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import pytest

from browser import add, browser, context, expect, open_page, pytestmark, sign, sync_api
from served import draw, encode, open_desk, open_server, write_inspector
from steel.cli import main
from steel.decision.tuning import Aim, ChosenOn, NetworkHashes, Promise, Tuning
from steel.desk.service import build_app
from steel.intervals import Interval

Axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe

IMAGE = "<img src=x onerror=alert(1)>"
SCRIPT = "'\"></title></style><!--<script>alert(2)</script>"
CLASSES = [f"{IMAGE}{'long' * 60}", f"{SCRIPT}\u2028of\u2029lines"]
# File names have no slashes. The third has 255 bytes, the most that a file system takes.
NAMES = [f"{IMAGE}.png", f"{SCRIPT.replace('/', '')}.png", f"{'long' * 62}{'l' * 3}.png", "two\u2028lines.png"]
TUNED = Tuning(
    Aim("cost", (1.0, 1.0), (1.0, 1.0)),
    ChosenOn("data", SCRIPT, IMAGE, IMAGE, 60, 20),
    NetworkHashes(("c",), ("d",), False),
    tuple(Promise(f"found, {name}", 4, 0.5, 0.5, Interval(0.1, 0.9), Interval(0, 1), 4) for name in CLASSES),
    (SCRIPT,),
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "inspector.pt"
    return write_inspector(path, classes=CLASSES, tuned=TUNED, description=IMAGE, license=SCRIPT)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a dataset of images with spots of both classes, all in the test part."""
    (folder := tmp_path / "data" / "train_images").mkdir(parents=True)
    rows = []
    for i, name in enumerate(NAMES):
        (folder / name).write_bytes(encode(draw(95 - i, [(10, 8, 12, 5, 255), (40, 20, 30, 3, 150)])))
        rows += [(name, 1, f"{64 * 10 + 9} 5"), (name, 2, f"{64 * 40 + 21} 3")]
    tables = {
        "train.csv": [("ImageId", "ClassId", "EncodedPixels"), *rows],
        "classes.csv": [("ClassId", "name"), *enumerate(CLASSES, 1)],
        "splits.csv": [("ImageId", "split"), *((name, "test") for name in NAMES)],
    }
    for name, table in tables.items():
        with (folder.parent / name).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(table)
    return folder.parent


def require_text(page: "sync_api.Page", *texts: str) -> None:
    """Check that a page shows texts literally, and that no element was made from them."""
    shown = page.evaluate("document.body.textContent + [...document.querySelectorAll('img')].map(({alt}) => alt)")
    for text in texts:
        assert text in shown, text
    assert page.evaluate("document.querySelectorAll('[src=x], [onerror]').length") == 0
    scripts = page.locator("script:not([type='application/json'])").all()
    assert not any("alert" in script.text_content() for script in scripts)


def answer_with(route: "sync_api.Route", **more: str) -> None:
    response = route.fetch()
    route.fulfill(response=response, json=response.json() | more)


def pick_exactly(page: "sync_api.Page", name: str) -> None:
    """Select an image whose name would be no valid selector."""
    (row,) = (row for row in page.locator("#strip li").all() if row.get_attribute("title") == name)
    row.click()
    expect(page.locator("#name")).to_contain_text(name)
    assert page.evaluate("document.querySelector('#name').textContent") == name


def require_width(page: "sync_api.Page") -> None:
    """Check that long texts do not make the page wider than the window."""
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def require_accessible(page: "sync_api.Page") -> None:
    """Check a report on a phone, by light and in the dark."""
    page.set_viewport_size({"width": 400, "height": 900})
    require_width(page)
    for scheme in ("dark", "light"):
        page.emulate_media(color_scheme=scheme)
        violations = Axe().run(page).response["violations"]
        assert [(rule["id"], rule["nodes"][0]["html"][:200]) for rule in violations] == [], (page.url, scheme)
    page.set_viewport_size({"width": 1400, "height": 900})


@pytest.fixture(autouse=True)
def dialogs(context: "sync_api.BrowserContext") -> Iterator[None]:
    """Check that no script has opened a dialog."""
    opened: list[str] = []

    def refuse(dialog: "sync_api.Dialog") -> None:
        opened.append(dialog.message)
        dialog.dismiss()

    context.on("dialog", refuse)
    yield
    context.remove_listener("dialog", refuse)
    assert opened == []


def test_the_desk_shows_text_literally(
    context: "sync_api.BrowserContext", model: Path, root: Path, tmp_path: Path
) -> None:
    problems: list[str] = []
    paths = [root / "train_images" / name for name in NAMES]
    (broken := tmp_path / f"{IMAGE}broken.png").write_bytes(b"no image")
    with open_server(build_app(open_desk(model))) as port:
        url = f"http://127.0.0.1:{port}"
        answer = httpx.post(f"{url}/v1/inspect", content=paths[0].read_bytes()).json()["images"][0]
        found = {"image": NAMES[0], "size": answer["size"], "defective": True, "codes": answer["codes"]}
        verdict = {"verdict": "missed", "class": CLASSES[1], "inspector": IMAGE, "comment": SCRIPT}
        httpx.put(f"{url}/v1/verdicts/{answer['digest']}", json=found | verdict).raise_for_status()
        page = open_page(context, port, problems)
        page.route("**/v1/model", lambda route: answer_with(route, drift=f"{SCRIPT} are darker"))
        page.reload()
        add(page, *paths, broken)
        expect(page.locator("#drift")).to_have_text(f"{SCRIPT} are darker")
        assert {row.get_attribute("title") for row in page.locator("#strip li").all()} == {*NAMES, broken.name}
        page.locator("#promises summary").click()
        for name in CLASSES:
            expect(page.locator("#promises")).to_contain_text(f"found, {name}")
            assert page.locator("#verdict-class").select_option(name) == [name]
        pick_exactly(page, NAMES[0])
        expect(page.locator("#verdict")).to_contain_text(f"missed, class {CLASSES[1]} ({IMAGE}, ")
        expect(page.locator("#verdict")).to_contain_text(f": {SCRIPT}")
        require_text(page, *NAMES, *CLASSES)
        require_width(page)

        # Another inspector is asked, and gives verdicts with the same text.
        sign(page, SCRIPT.replace("/", ""))
        page.locator("#comment").fill(f"{IMAGE} {SCRIPT}")
        page.locator("[data-verdict=agree]").click()
        expect(page.locator("#question-text")).to_contain_text(f"{NAMES[0]} has a verdict: missed, class {CLASSES[1]}")
        page.get_by_role("button", name="Replace", exact=True).click()
        pick_exactly(page, NAMES[0])
        expect(page.locator("#history li").first).to_contain_text(f"{IMAGE} {SCRIPT}")
        assert page.locator("#history li").count() == 2
        page.locator("#history summary").click()
        require_width(page)
        pick_exactly(page, NAMES[3])
        page.keyboard.press("a")
        expect(page.locator("#message")).to_contain_text(f"Your verdict on {NAMES[3]} was refused")
        page.reload()
        expect(page.locator("#strip li")).to_have_count(5)
        pick_exactly(page, NAMES[0])
        expect(page.locator("#verdict")).to_contain_text(f": {IMAGE} {SCRIPT}")
        require_text(page, *NAMES, *CLASSES)
        saved = httpx.get(f"{url}/v1/verdicts").json()["verdicts"]
        assert [(one["image"], one["comment"]) for one in saved] == [(NAMES[0], f"{IMAGE} {SCRIPT}")]

        page.goto(f"{url}/v1/card")
        require_text(page, *CLASSES, IMAGE, SCRIPT)
        require_accessible(page)
    assert [text for text in problems if "415" not in text and "422" not in text] == []  # logged by the browser


def test_reports_show_text_literally(
    context: "sync_api.BrowserContext", model: Path, root: Path, tmp_path: Path
) -> None:
    problems: list[str] = []
    (root / "train_images" / f"{IMAGE}.jpg").write_bytes(b"no image")
    assert main(["inspect", str(model), str(root / "train_images"), "--report", f"--out={tmp_path / 'out'}"]) == 0
    (root / "train_images" / f"{IMAGE}.jpg").unlink()
    assert main(["explore", str(root), f"--out={tmp_path / 'explored'}"]) == 0
    evaluate = ["evaluate", f"--model={model}", f"--root={root}", f"--out={tmp_path / 'evaluated'}"]
    assert main(evaluate) == 0
    page = context.new_page()
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text))

    page.goto((tmp_path / "out" / "report.html").as_uri())
    expect(page.locator("#count")).to_have_text("5 of 5 images, 8 of 8 spots")
    for name in (*NAMES, f"{IMAGE}.jpg"):
        page.locator("#thumbs button", has_text=name).click()
        expect(page.locator("#one h2")).to_contain_text(name)
        page.keyboard.press("Escape")
    require_text(page, *NAMES, *CLASSES)

    page.goto((tmp_path / "explored" / "index.html").as_uri())
    require_text(page, *(name[:24] for name in CLASSES))  # longer names would leave no room for the figures

    page.goto((tmp_path / "evaluated" / "index.html").as_uri())
    require_text(page, *CLASSES, *NAMES, SCRIPT)
    require_accessible(page)
    assert problems == []
