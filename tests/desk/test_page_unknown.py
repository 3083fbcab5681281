"""Images unlike any clean steel on the page: what is said and shown, and the verdict on them."""

import io
import zipfile
from pathlib import Path

import httpx2 as httpx

from bright import NOVELTY_LIMIT, draw_places, write_novel_model
from browser import add, browser, context, count, download, expect, open_page, pick, pytestmark, read, sign, sync_api
from served import build_desk, encode, open_desk, open_server
from steel.desk.service import build_app


def write_images(folder: Path) -> list[Path]:
    """Write a clean image, two with an unknown defect, and a defective one."""
    clean, unknown, defective = draw_places()[:, 0].numpy()
    paths = []
    for name, image in {"clean": clean, "odd": unknown, "other": unknown[:, ::-1], "spotty": defective}.items():
        paths.append(folder / f"{name}.png")
        paths[-1].write_bytes(encode(image))
    return paths


def test_an_unknown_defect_is_shown_and_becomes_a_new_class(context: "sync_api.BrowserContext", tmp_path: Path) -> None:
    problems: list[str] = []
    with open_server(build_app(open_desk(write_novel_model(tmp_path / "inspector.pt", limit=1.0)))) as port:
        page = open_page(context, port, problems)
        add(page, *write_images(tmp_path))
        assert count(page)["unlike clean steel"] == "2"
        expect(page.locator('#strip li[title="odd.png"]')).to_have_attribute("data-decision", "unlike")
        unknown = page.locator("[data-verdict=unknown]")
        pick(page, "clean.png")
        expect(unknown).to_be_disabled()
        pick(page, "odd.png")
        expect(page.locator("#decision")).to_contain_text(
            "not like any clean steel seen, and none of the classes, novelty"
        )
        page.locator("#opacity").fill("1")
        magenta = """() => {
            const canvas = document.querySelector("#picture");
            const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            let sum = 0;
            for (let i = 0; i < data.length; i += 4) sum += data[i] === 255 && data[i + 1] === 0 && data[i + 2] === 150;
            return sum / (canvas.height / 32) ** 2;
        }"""
        page.wait_for_function(f"() => Math.abs(({magenta})() - 64) < 20")  # a place of 8 x 8 pixels
        page.locator("#picture").focus()
        page.keyboard.press("3")  # after the two classes
        page.wait_for_function(f"() => ({magenta})() === 0")

        sign(page, "K. L.")
        page.locator("#new-class").fill("roll mark")
        page.locator("#new-class").blur()
        page.keyboard.press("u")
        expect(page.locator("#message")).to_contain_text("odd.png: unknown defect, class roll mark.")
        pick(page, "other.png")
        offered = page.locator("#new-classes option")
        expect(offered).to_have_count(1)
        expect(offered).to_have_attribute("value", "roll mark")
        unknown.click()
        pick(page, "odd.png")
        expect(page.locator("#history summary")).to_have_text("History (1)")
        expect(page.locator("#verdict")).to_contain_text("unknown defect, class roll mark (K. L.")
        assert count(page)["unknown defects"] == "2"
        pick(page, "other.png")
        expect(page.locator("#history summary")).to_have_text("History (1)")

        with zipfile.ZipFile(io.BytesIO(httpx.get(f"http://127.0.0.1:{port}/v1/labels.zip").content)) as archive:
            assert archive.read("classes.csv").decode().splitlines()[3] == "3,roll mark"
            assert "odd.png_3," in archive.read("train.csv").decode()
            (left,) = archive.read("unknown.csv").decode().splitlines()[1:]
        rows = read(download(page, "results.csv", tmp_path))
        assert {name: row["unknown"] for name, row in rows.items()} == {
            "clean.png": "0", "odd.png": "1", "other.png": "1", "spotty.png": "0",
        }  # fmt: skip
        assert f"other.png,{rows['other.png']['unknown_code']}" == left
        page.locator("#promises summary").click()
        expect(page.locator("#promises")).to_contain_text(NOVELTY_LIMIT.promise)
        assert problems == []


def test_nothing_of_it_is_shown_for_a_model_without_novelty(context: "sync_api.BrowserContext", tmp_path: Path) -> None:
    with open_server(build_app(build_desk(tmp_path))) as port:
        page = open_page(context, port, [])
        add(page, *write_images(tmp_path))
        pick(page, "odd.png")
        expect(page.locator("[data-verdict=unknown]")).to_be_hidden()
        expect(page.locator("#new-class")).to_be_hidden()
        assert page.locator("#novelty").count() == 0
        assert "unlike clean steel" not in count(page)
        assert "novelty" not in download(page, "results.csv", tmp_path).read_text()
