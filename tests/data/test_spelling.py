"""Names, numbers and text in the spellings of other systems."""

from pathlib import Path

import pytest

from steel.data.spelling import NameIndex, format_csv, is_hidden, parse_whole, read_text
from steel.errors import InputError

COMPOSED, DECOMPOSED = "pr\u00fcf_1.jpg", "pru\u0308f_1.jpg"


@pytest.mark.parametrize(
    ("names", "name", "found"),
    [
        (["b.jpg", "a.jpg"], "a.jpg", 1),  # as it is
        ([DECOMPOSED], COMPOSED, 0),  # a file from macOS, a table from Windows
        ([COMPOSED], DECOMPOSED, 0),  # the reverse
        (["Capture_d\u00e9cran.png"], "Capture_d%C3%A9cran.png", 0),  # percent codes
        (["Capture_de\u0301cran.png"], "Capture_d%C3%A9cran.png", 0),  # both
        (["a b.png"], "a%20b.png", 0),  # a blank
        (["a%20b.png", "a b.png"], "a%20b.png", 0),  # the exact name is preferred
        (["a b.png", "a%20b.png"], "a%20b.png", 1),  # in any order
        (["0001.jpg"], "1a2b3c4d-0001.jpg", 0),  # Label Studio's prefix
        ([COMPOSED], "1a2b3c4d-pr%C3%BCf_1.jpg", 0),  # with percent codes
        (["1a2b3c4d-0001.jpg"], "0001.jpg", None),  # a prefix of the image is part of its name
        (["0001.jpg"], "coil0001-0001.jpg", None),  # not eight hexadecimal digits
        ([COMPOSED, DECOMPOSED], "pr%C3%BCf_1.jpg", None),  # two files are alike
        (["A.jpg"], "a.jpg", None),  # case matters
        (["100%.jpg"], "100%.jpg", 0),  # no percent code
    ],
)
def test_names_are_found_in_other_spellings(names: list[str], name: str, found: int | None) -> None:
    assert NameIndex(names).find(name) == found


@pytest.mark.parametrize(
    "value", ["1.0", "1_0", " 1", "²", "١", "", "1e3", True, 1.5, float("nan"), float("inf"), None, [1]]
)
def test_what_is_no_whole_number(value: object) -> None:
    assert parse_whole(value) is None


@pytest.mark.parametrize(
    ("value", "number"), [("-7", -7), ("08", 8), (2.0, 2), (10**15, 10**15), ("1" * 18, int("1" * 18))]
)
def test_whole_numbers(value: object, number: int) -> None:
    assert parse_whole(value) == number


def test_text_with_and_without_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    for encoding in ("utf-8", "utf-8-sig"):
        path.write_text("0 Riß\n", encoding=encoding)
        assert read_text(path) == "0 Riß\n"
    path.write_text("0 Riß\n", encoding="cp1252")
    with pytest.raises(InputError, match=r"labels\.txt is not UTF-8 text .*; save it as UTF-8"):
        read_text(path)
    with pytest.raises(InputError, match=r"gone\.txt cannot be read"):
        read_text(tmp_path / "gone.txt")


def test_files_of_operating_systems_are_hidden() -> None:
    assert all(map(is_hidden, ["._a.jpg", ".DS_Store", "Thumbs.db", "desktop.ini", "__MACOSX", ".git"]))
    assert not any(map(is_hidden, ["a.jpg", "_a.jpg", "thumbs.jpg", "a._b.jpg"]))


def test_csv_runs_no_formula_in_a_spreadsheet_and_keeps_numbers() -> None:
    rows = [("image", "score"), ("=cmd|a.png", -0.5), ('+1 "x".png', 2), ("a,b.png", 1e-05)]
    text = format_csv(rows)
    assert text.splitlines()[1:] == ["'=cmd|a.png,-0.5", '"\'+1 ""x"".png",2', '"a,b.png",1e-05']
