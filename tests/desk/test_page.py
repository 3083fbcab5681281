"""The page, operated as an inspector would, in a real browser."""

import itertools
import zipfile
from pathlib import Path

import pytest

from browser import (
    add,
    browser,
    context,
    count,
    download,
    drop,
    expect,
    folder,
    open_page,
    pick,
    pytestmark,
    read,
    sign,
    sync_api,
)
from served import build_desk, draw, encode, open_server
from steel.desk.service import build_app

Axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe


def test_inspect_judge_and_download(context: "sync_api.BrowserContext", folder: Path, tmp_path: Path) -> None:
    problems: list[str] = []
    with open_server(build_app(build_desk(tmp_path))) as port:
        page = open_page(context, port, problems)
        drop(page, folder)
        page.locator("#progress").wait_for(state="hidden")
        expect(page.locator("#counts dd").first).to_have_text("5")
        expect(page.locator("#strip [data-decision=waiting]")).to_have_count(0)  # rows follow the counts a moment later
        assert count(page) == {
            "inspected": "5", "defective": "1", "clean": "3", "unreadable": "1", "agreed": "0", "missed": "0",
            "false alarms": "0", "no verdict": "5",
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
        sign(page, "K. L.")
        page.locator('[data-verdict="missed"]').click()
        page.locator("#missed-class").select_option("scale")
        page.get_by_text("Save without outline").click()
        expect(page.locator("#message")).to_have_text("middle.jpg: missed, class scale.")
        expect(options["middle.jpg"]).to_contain_text("✓")
        pick(page, "bright.png")
        page.keyboard.press("a")
        pick(page, "plain.bmp")
        page.locator('[data-verdict="false_alarm"]').click()
        expect(options["plain.bmp"]).to_contain_text("✓")
        assert {"agreed": "1", "missed": "1", "false alarms": "1", "no verdict": "2"}.items() <= count(page).items()
        pick(page, "plain.bmp")
        expect(page.locator("#history summary")).to_have_text("History (1)")  # saved by the service

        results = read(download(page, "results.csv", tmp_path))
        assert {name: row["defective"] for name, row in results.items()} == {
            "bright.png": "1", "broken.png": "", "dark.png": "0", "middle.jpg": "0", "plain.bmp": "0",
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

    assert [text for text in problems if "415" not in text] == []  # the browser logs the refused image


def promise(route: "sync_api.Route") -> None:
    """Answer with the model, and scores as `steel tune` expects them."""
    response = route.fetch()
    names = ["defects found", "clean images with a false alarm, 4 rolled-in scale at the edge", "cost of an image"]
    promises = [{"name": name, "value": 1234.567, "interval": [0.123, None]} for name in names]
    promises.append({"name": "defects found, 3 pits", "value": None, "interval": [0.0, 1.0]})
    route.fulfill(response=response, json=response.json() | {"tuned": {"promises": promises}})


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_tablets_phones_and_small_screens(
    context: "sync_api.BrowserContext", folder: Path, tmp_path: Path, scheme: str
) -> None:
    with open_server(build_app(build_desk(tmp_path))) as port:
        page = open_page(context, port, [])
        page.emulate_media(color_scheme=scheme)
        page.route("**/v1/model", promise)
        page.reload()
        add(page, *sorted(folder.glob("*.png")))
        pick(page, "bright.png")
        page.locator("#promises summary").click()
        cells = [row.locator("td").all_inner_texts()[1:] for row in page.locator("#promises tr").all()[-2:]]
        assert cells == [["1234.567", "0.123 to ∞"], ["", "too wide to tell"]]
        for width in (1280, 768, 400):
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            for panel in page.locator("#panels > section").all():
                assert panel.evaluate("panel => panel.scrollWidth <= panel.clientWidth")
            page.locator("#downloads summary").click()
            boxes = [button.bounding_box() for button in page.locator("[data-download]").all()]
            assert all(box["x"] >= 0 and box["x"] + box["width"] <= width for box in boxes)
            assert all(box["y"] + box["height"] <= below["y"] + 1 for box, below in itertools.pairwise(boxes))
            page.locator("#downloads summary").click()
        for button in page.locator("#verdicts button:visible, #zoom button").all():
            assert min(button.bounding_box()["width"], button.bounding_box()["height"]) >= 40
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (int(ground.split("(")[1].split(",")[0]) < 128) == (scheme == "dark")
        page.set_viewport_size({"width": 1400, "height": 900})


def test_the_page_is_accessible(context: "sync_api.BrowserContext", folder: Path, tmp_path: Path) -> None:
    spots = [(x, y, 2, 2, 255) for x in range(0, 96, 4) for y in range(0, 60, 12)]
    (folder / "many.png").write_bytes(encode(draw(95, spots)))
    with open_server(build_app(build_desk(tmp_path))) as port:
        page = open_page(context, port, [])

        def check(state: str) -> None:
            for scheme in ("dark", "light"):
                page.emulate_media(color_scheme=scheme)
                violations = Axe().run(page).response["violations"]
                assert [(rule["id"], rule["nodes"][0]["html"]) for rule in violations] == [], (state, scheme)

        check("empty")
        add(page, folder / "bright.png", folder / "many.png", folder / "broken.png")
        pick(page, "bright.png")
        assert page.locator("#picture").get_attribute("aria-label") == (
            "bright.png, 96 by 64 pixels: defective, probability 0.99; 1 spot of class scale, 60 pixels, at x 16, y 10"
            "; 1 spot of class scratch, 90 pixels, at x 55, y 21"
        )
        check("image")
        sign(page, "K. L.")
        page.keyboard.press("m")
        check("missed")
        page.keyboard.press("Escape")
        assert page.locator("#missed").is_hidden()

        # All spots are one Tab stop, and the arrow keys move between them.
        pick(page, "many.png")
        rows = page.locator("#defects tbody tr")
        expect(rows).to_have_count(len(spots))
        assert page.locator('#defects tr[tabindex="0"]').count() == 1
        rows.first.focus()
        page.keyboard.press("ArrowDown")
        expect(rows.nth(1)).to_be_focused()
        page.keyboard.press("End")
        expect(rows.last).to_be_focused()
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.closest('#defects')") is None
        page.keyboard.press("Shift+Tab")
        expect(rows.last).to_be_focused()

        page.keyboard.press("a")
        expect(page.locator("#message")).to_contain_text("many.png: agreed.")
        pick(page, "many.png")
        expect(page.locator("#history summary")).to_have_text("History (1)")
        page.locator("#history summary").click()
        check("verdict")
        sign(page, "M. N.")
        page.keyboard.press("f")
        expect(page.locator("#question")).to_be_visible()
        check("question")


def test_brightness_and_contrast_change_the_display_only(
    context: "sync_api.BrowserContext", folder: Path, tmp_path: Path
) -> None:
    dark = draw(18)
    dark[20:40, 30:60] = 24
    (folder / "dark.png").write_bytes(encode(dark))
    grey = "() => document.querySelector('#picture').getContext('2d').getImageData(%s, 1, 1).data[0]"
    with open_server(build_app(build_desk(tmp_path))) as port:
        page = open_page(context, port, [])
        add(page, folder / "dark.png")
        frame = page.evaluate("(({width, height}) => [width, height])(document.querySelector('#picture'))")
        inside = grey % f"{frame[0] // 2}, {frame[1] // 2}"  # in the lighter rectangle

        def read_grey() -> int:
            page.wait_for_timeout(300)
            return page.evaluate(inside)

        assert read_grey() == 24
        decision = page.locator("#decision").inner_text()
        page.locator("#auto-levels").click()
        assert read_grey() >= 140
        page.locator("#reset-levels").click()
        assert read_grey() == 24
        page.locator("#brightness").fill("50")
        assert read_grey() == 74
        page.locator("#contrast").fill("2")
        assert read_grey() == 20  # (24 + 50 - 128) * 2 + 128
        assert page.locator("#decision").inner_text() == decision


def test_images_are_sorted(context: "sync_api.BrowserContext", folder: Path, tmp_path: Path) -> None:
    with open_server(build_app(build_desk(tmp_path))) as port:
        page = open_page(context, port, [])
        add(page, *(folder / name for name in ("dark.png", "plain.bmp", "bright.png", "middle.jpg")))
        sign(page, "K. L.")

        def sort(order: str) -> list[str]:
            page.locator("#order").select_option(order)
            return [row.get_attribute("title") for row in page.locator("#strip li").all()]

        added = ["bright.png", "dark.png", "middle.jpg", "plain.bmp"]  # by name
        assert sort("added") == added
        assert sort("probability") == ["bright.png", "plain.bmp", "middle.jpg", "dark.png"]
        assert sort("area") == ["bright.png", "dark.png", "middle.jpg", "plain.bmp"]
        pick(page, "bright.png")
        page.keyboard.press("a")
        expect(page.locator("#name")).to_have_text("dark.png")
        assert sort("unjudged") == ["dark.png", "middle.jpg", "plain.bmp", "bright.png"]
        page.keyboard.press("ArrowRight")
        expect(page.locator("#name")).to_have_text("middle.jpg")


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
