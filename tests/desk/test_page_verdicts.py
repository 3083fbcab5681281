"""Verdicts on the page: nothing is lost, several inspectors, outlines of missed defects."""

import io
import zipfile
from pathlib import Path

import httpx2 as httpx
import numpy as np

from browser import (
    add,
    browser,
    context,
    count,
    expect,
    folder,
    open_page,
    pick,
    pytestmark,
    sign,
    sync_api,
)
from served import build_desk, open_server
from steel.data import rle
from steel.desk.service import build_app

SIZE = (64, 96)


def list_verdicts(port: int) -> dict[str, tuple[str, str]]:
    verdicts = httpx.get(f"http://127.0.0.1:{port}/v1/verdicts").json()["verdicts"]
    return {verdict["image"]: (verdict["verdict"], verdict["inspector"]) for verdict in verdicts}


def read_labels(port: int) -> dict[str, np.ndarray]:
    content = httpx.get(f"http://127.0.0.1:{port}/v1/labels.zip").content
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        rows = archive.read("train.csv").decode().splitlines()[1:]
    return {name: rle.decode(code, SIZE) for name, code in (row.split(",") for row in rows)}


def test_verdicts_and_images_wait_while_the_service_is_gone(
    context: "sync_api.BrowserContext", folder: Path, tmp_path: Path
) -> None:
    with open_server(build_app(build_desk(tmp_path))) as port:
        page = open_page(context, port, [])
        add(page, folder / "bright.png", folder / "dark.png")
        sign(page, "K. L.")
    page.keyboard.press("a")
    expect(page.locator("#offline")).to_be_visible()
    expect(page.locator("#offline")).to_contain_text("verdicts are kept in this browser")
    pick(page, "bright.png")
    expect(page.locator("#verdict")).to_contain_text("not yet sent")
    page.locator("#images").set_input_files(folder / "plain.bmp")
    expect(page.locator('#strip li[title="plain.bmp"]')).to_have_attribute("data-decision", "waiting")
    page.wait_for_timeout(1500)
    assert "unreadable" not in count(page)
    with open_server(build_app(build_desk(tmp_path)), port=port):
        expect(page.locator("#offline")).to_be_hidden()
        expect(page.locator('#strip li[title="plain.bmp"]')).to_have_attribute("data-decision", "unclear")
        expect(page.locator("#history summary")).to_have_text("History (1)")
        assert list_verdicts(port) == {"bright.png": ("agree", "K. L.")}


def test_an_unsent_verdict_survives_closing_the_page(
    context: "sync_api.BrowserContext", folder: Path, tmp_path: Path
) -> None:
    with open_server(build_app(build_desk(tmp_path))) as port:
        page = open_page(context, port, [])
        add(page, folder / "bright.png")
        sign(page, "K. L.")
    page.keyboard.press("f")
    expect(page.locator("#verdict")).to_contain_text("not yet sent")
    expect(page.locator("#offline")).to_be_visible()
    page.close()
    with open_server(build_app(build_desk(tmp_path)), port=port):
        page = open_page(context, port, [])
        expect(page.locator("#history summary")).to_have_text("History (1)")
        assert list_verdicts(port) == {"bright.png": ("false_alarm", "K. L.")}


def test_images_and_verdicts_return_after_a_reload_and_in_a_second_tab(
    context: "sync_api.BrowserContext", folder: Path, tmp_path: Path
) -> None:
    with open_server(build_app(build_desk(tmp_path))) as port:
        page = open_page(context, port, [])
        add(page, folder / "bright.png", folder / "dark.png")
        sign(page, "K. L.")
        page.keyboard.press("a")
        expect(page.locator("#name")).to_have_text("dark.png")  # the next image without a verdict
        expected = count(page)
        assert (expected["inspected"], expected["agreed"], expected["no verdict"]) == ("2", "1", "1")
        page.reload()
        expect(page.locator("#counts dd").first).to_have_text("2")
        expect(page.locator("#verdict")).to_contain_text("agreed (K. L.")
        assert count(page) == expected
        second = open_page(context, port, [])
        expect(second.locator("#verdict")).to_contain_text("agreed (K. L.")
        assert count(second) == expected
        assert second.locator("#inspector").input_value() == "K. L."
        # A change in one tab appears in the other.
        add(second, folder / "plain.bmp")
        expect(page.locator("#counts dd").first).to_have_text("3")
        page.locator("#remove-images").click()
        page.get_by_role("button", name="Remove", exact=True).click()
        expect(second.locator("#empty")).to_be_visible()
        page.reload()
        expect(page.locator("#empty")).to_be_visible()
        requests = httpx.get(f"http://127.0.0.1:{port}/metrics").text
        assert 'steel_requests_total{path="/v1/inspect",status="200"} 3.0' in requests  # no image was sent twice


def test_stored_results_of_another_model_are_not_shown(
    context: "sync_api.BrowserContext", folder: Path, tmp_path: Path
) -> None:
    with open_server(build_app(build_desk(tmp_path))) as port:
        page = open_page(context, port, [])
        add(page, folder / "bright.png")
        expect(page.locator("#defects tbody tr").first).to_contain_text("90")
    with open_server(build_app(build_desk(tmp_path, mm_per_pixel=0.5)), port=port):
        page.reload()
        expect(page.locator("#defects tbody tr").first).to_contain_text("22.5")


def test_an_image_that_is_added_twice_counts_once(
    context: "sync_api.BrowserContext", folder: Path, tmp_path: Path
) -> None:
    (folder / "copy.png").write_bytes((folder / "bright.png").read_bytes())
    with open_server(build_app(build_desk(tmp_path))) as port:
        page = open_page(context, port, [])
        add(page, folder / "bright.png")
        page.locator("#images").set_input_files([folder / "bright.png", folder / "copy.png"])
        expect(page.locator("#message")).to_have_text("copy.png is the same file as bright.png, so it is shown once.")
        assert count(page)["inspected"] == "1"


def test_a_second_inspector_sees_the_first_verdict_and_is_asked(
    context: "sync_api.BrowserContext", folder: Path, tmp_path: Path
) -> None:
    with open_server(build_app(build_desk(tmp_path))) as port:
        page = open_page(context, port, [])
        add(page, folder / "bright.png", folder / "plain.bmp")
        sign(page, "M. N.")
        expect(page.locator("#verdicts button").first).to_be_enabled()

        def judge_elsewhere(verdict: str) -> None:
            answer = httpx.post(f"http://127.0.0.1:{port}/v1/inspect", content=(folder / "bright.png").read_bytes())
            digest = answer.json()["images"][0]["digest"]
            body = {
                "image": "bright.png", "size": SIZE, "verdict": verdict, "defective": True, "codes": {},
                "inspector": "K. L.", "comment": "checked under the lamp",
            }  # fmt: skip
            assert httpx.put(f"http://127.0.0.1:{port}/v1/verdicts/{digest}", json=body).status_code == 200

        # The page does not know of the other verdict when this inspector judges.
        page.wait_for_timeout(500)
        judge_elsewhere("false_alarm")
        page.keyboard.press("a")
        question = page.locator("#question")
        expect(question).to_contain_text("false alarm (K. L.")
        expect(question).to_contain_text("checked under the lamp")
        question.get_by_text("Keep").click()
        pick(page, "bright.png")
        expect(page.locator("#verdict")).to_contain_text("false alarm (K. L.")
        assert list_verdicts(port) == {"bright.png": ("false_alarm", "K. L.")}

        # Now it is shown, and replacing it is a decision.
        page.keyboard.press("a")
        question.get_by_text("Replace", exact=True).click()
        expect(page.locator("#name")).to_have_text("plain.bmp")
        pick(page, "bright.png")
        expect(page.locator("#history summary")).to_have_text("History (2)")
        page.locator("#history summary").click()
        assert [line.split(" (")[0] for line in page.locator("#history li").all_inner_texts()] == [
            "agreed", "false alarm",
        ]  # fmt: skip
        assert list_verdicts(port) == {"bright.png": ("agree", "M. N.")}


def test_a_verdict_needs_a_name_and_can_have_a_comment(
    context: "sync_api.BrowserContext", folder: Path, tmp_path: Path
) -> None:
    with open_server(build_app(build_desk(tmp_path))) as port:
        page = open_page(context, port, [])
        add(page, folder / "bright.png", folder / "plain.bmp")
        expect(page.locator("#verdicts button").first).to_be_enabled()
        page.keyboard.press("a")
        expect(page.locator("#message")).to_contain_text("Enter your name")
        expect(page.locator("#inspector")).to_be_focused()
        assert list_verdicts(port) == {}
        sign(page, "K. L.")
        page.keyboard.press("a")
        expect(page.locator("#name")).to_have_text("plain.bmp")
        pick(page, "bright.png")
        expect(page.locator("#history summary")).to_have_text("History (1)")
        page.locator("#comment").fill("oil stain")
        page.locator("#save-comment").click()
        expect(page.locator("#history summary")).to_have_text("History (2)")
        expect(page.locator("#verdict")).to_contain_text("oil stain")
        page.locator("#delete-verdict").click()
        expect(page.locator("#history summary")).to_have_text("History (3)")
        expect(page.locator("#verdict")).to_have_text("")
        assert list_verdicts(port) == {}


def test_the_outline_of_a_missed_defect_becomes_a_label(
    context: "sync_api.BrowserContext", folder: Path, tmp_path: Path
) -> None:
    with open_server(build_app(build_desk(tmp_path))) as port:
        page = open_page(context, port, [])
        add(page, folder / "bright.png", folder / "plain.bmp")
        sign(page, "K. L.")
        expect(page.locator("#verdicts button").first).to_be_enabled()
        page.keyboard.press("m")
        expect(page.locator("#missed-hint")).to_contain_text("Choose the class")
        page.locator("#missed-class").select_option("scale")
        page.locator("[data-tool=box]").click()
        frame = page.locator("#picture").bounding_box()
        scale = min(frame["width"] / SIZE[1], frame["height"] / SIZE[0])
        left, top = frame["x"] + (frame["width"] - SIZE[1] * scale) / 2, frame["y"]

        def draw_line(x1: float, y1: float, x2: float, y2: float) -> None:
            page.mouse.move(left + x1 * scale, top + y1 * scale)
            page.mouse.down()
            page.mouse.move(left + x2 * scale, top + y2 * scale, steps=4)
            page.mouse.up()

        draw_line(60.5, 30.5, 69.5, 35.5)
        page.locator("#missed-class").select_option("scratch")
        page.locator("[data-tool=brush]").click()
        page.locator("#brush").fill("4")
        draw_line(5, 50, 25, 50)
        page.get_by_text("Enter a box").click()
        for name, value in {"left": 90, "top": 60, "width": 50, "height": 50}.items():
            page.locator(f"#box-{name}").fill(str(value))
        page.keyboard.press("Enter")
        page.locator("#save-missed").click()
        expect(page.locator("#message")).to_have_text("bright.png: missed, class scale and scratch.")
        pick(page, "bright.png")
        expect(page.locator("#history summary")).to_have_text("History (1)")

        labels = read_labels(port)
        scale_label = np.zeros(SIZE, np.uint8)
        scale_label[8:13, 10:22] = 1  # found
        scale_label[30:36, 60:70] = 1  # the box
        assert np.array_equal(labels["bright.png_1"], scale_label)
        scratch = labels["bright.png_2"]
        assert scratch[20:23, 40:70].all()  # found
        assert scratch[60:, 90:].all()  # the box, cut at the border of the image
        brush = scratch[40:60, :40]
        assert brush[8:12, 5:25].all()
        assert 80 <= brush.sum() <= 100  # 20 x 4 pixels and round ends
        assert scratch.sum() == 90 + brush.sum() + 4 * 6
