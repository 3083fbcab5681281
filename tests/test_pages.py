"""Pages are self-contained, load nothing else, and escape all text."""

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from steel.pages import Page

VOID = {"meta", "img", "link", "br", "hr", "input"}


class Reader(HTMLParser):
    """Parser that checks that every element of a page is closed."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and data.strip():
            self.texts.append((self.open[-1], data))

    def texts_in(self, *tags: str) -> list[str]:
        return [text for tag, text in self.texts if tag in tags]

    def images(self) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == "img"]


def decode(image: dict[str, str | None]) -> np.ndarray:
    head, _, data = (image["src"] or "").partition(",")
    assert head == "data:image/png;base64"
    return cv2.imdecode(np.frombuffer(base64.b64decode(data, validate=True), np.uint8), cv2.IMREAD_UNCHANGED)


NASTY = 'a < b & "c" </p><script>alert(1)</script> Größe'


def test_text_is_escaped_everywhere(tmp_path: Path) -> None:
    page = Page(NASTY, tmp_path)
    page.add_heading(NASTY)
    page.add_text(NASTY)
    page.add_table(pd.DataFrame({NASTY: [NASTY, 1]}), NASTY)
    page.add_picture("dot", np.zeros((3, 4), np.uint8), NASTY)
    reader = Reader(page.write())
    for tag in ("title", "h1", "h2", "p", "caption", "th", "td", "figcaption"):
        assert "".join(reader.texts_in(tag)).removesuffix("1") == NASTY, tag
    assert reader.images()[0]["alt"] == NASTY
    assert not [tag for tag, _ in reader.tags if tag == "script"]


def test_only_the_script_of_the_page_may_run(tmp_path: Path) -> None:
    script = "document.title = 'größer';"
    policies = [re.findall('script-src [^;"]*', Page("title", tmp_path).render(script=text)) for text in ("", script)]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policies == [[], [f"script-src 'sha256-{digest}'"]]


def test_a_table_may_have_columns_of_the_same_name(tmp_path: Path) -> None:
    page = Page("title", tmp_path)
    page.add_table(pd.DataFrame([["x", "1,000", 2.5], ["y", "-", None]], columns=["what", "dent", "dent"]), "caption")
    reader = Reader(page.write())
    assert reader.texts_in("th") == ["what", "dent", "dent"]
    assert reader.texts_in("td") == ["x", "1,000", "2.5", "y", "-", "nan"]


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3)], ids=["grey", "RGB"])
def test_an_array_is_embedded_and_saved_without_loss(tmp_path: Path, shape: tuple[int, ...]) -> None:
    picture = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    page = Page("title", tmp_path)
    page.add_picture("some", picture, "caption")
    embedded = decode(Reader(page.write()).images()[0])
    saved = cv2.imread(str(tmp_path / "some.png"), cv2.IMREAD_UNCHANGED)
    for read in (embedded, saved):
        np.testing.assert_array_equal(read if len(shape) == 2 else cv2.cvtColor(read, cv2.COLOR_BGR2RGB), picture)


def test_a_figure_is_embedded_and_saved(tmp_path: Path) -> None:
    figure = Figure(figsize=(3, 2))
    figure.subplots().set_facecolor((1, 0, 0))
    page = Page("title", tmp_path)
    page.add_picture("red", figure, "caption")
    embedded = decode(Reader(page.write()).images()[0])
    assert embedded.shape[:2] == (220, 330)  # 110 dpi
    assert embedded[110, 165, :3].tolist() == [0, 0, 255]
    np.testing.assert_array_equal(embedded, cv2.imread(str(tmp_path / "red.png"), cv2.IMREAD_UNCHANGED))


def test_the_page_loads_nothing_else(tmp_path: Path) -> None:
    page = Page("title", tmp_path / "new" / "folder")
    page.add_picture("dot", np.zeros((3, 4), np.uint8), "caption")
    path = page.write()
    assert path == tmp_path / "new" / "folder" / "index.html"
    for tag, attributes in Reader(path).tags:
        assert tag not in {"link", "script", "iframe"}
        for name in ("href", "src", "srcset", "data"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert not re.search(r"url\(|@import|https?://", path.read_text(encoding="utf-8"))


def test_a_caption_is_above_its_picture_or_table(tmp_path: Path) -> None:
    page = Page("title", tmp_path)
    page.add_picture("dot", np.zeros((3, 4), np.uint8), "caption")
    page.add_table(pd.DataFrame({"a": [1]}), "caption")
    tags = [tag for tag, _ in Reader(page.write()).tags]
    assert tags.index("figcaption") < tags.index("img")
    assert tags.index("caption") < tags.index("thead")


def test_elements_are_in_the_order_in_which_they_were_added(tmp_path: Path) -> None:
    page = Page("title", tmp_path)
    for i in range(3):
        page.add_heading(f"heading {i}")
        page.add_text(f"text {i}")
        page.add_picture(f"picture_{i}", np.full((2, 2), i, np.uint8), f"caption {i}")
    reader = Reader(page.write())
    expected = [f"{word} {i}" for i in range(3) for word in ("heading", "text", "caption")]
    assert reader.texts_in("h2", "p", "figcaption") == expected
    assert [int(decode(image)[0, 0]) for image in reader.images()] == [0, 1, 2]
