"""Counts in sentences, and text and tables that fit a terminal."""

import pytest

from steel.wording import WIDTH, format_count, format_table, wrap


@pytest.mark.parametrize(
    ("num", "expected"),
    [(0, "0 images"), (1, "1 image"), (2, "2 images"), (1000, "1,000 images"), (1001, "1,001 images")],
)
def test_a_noun_agrees_with_its_number(num: int, expected: str) -> None:
    assert format_count(num, "image") == expected
    assert format_count(num, "class", "classes") == expected.replace("image", "class").replace("classs", "classes")


def test_text_is_broken_between_words_only() -> None:
    path = f"/data/{'long-name/' * 12}operating-point.yaml"
    lines = wrap(
        f"wrote {path}, a trade-off and a calibration of the classes, all of them next to that file"
    ).splitlines()
    assert path + "," in lines
    assert all(len(line) <= WIDTH or line == f"{path}," for line in lines)
    assert " ".join(lines).split()[-5:] == ["them", "next", "to", "that", "file"]


def test_the_first_column_of_a_wide_table_is_shortened() -> None:
    rows = [("class", "found", "interval"), ("a" * 200, "0.95", "0.9123 to 0.9876"), ("b", "1.00", "0 to 1")]
    header, long, short = format_table(rows).splitlines()
    assert len(header) == len(long) == len(short) == WIDTH
    assert long.split() == ["a" * 54 + "…", "0.95", "0.9123", "to", "0.9876"]
    assert short.startswith("b ")
    assert header.split() == ["class", "found", "interval"]
