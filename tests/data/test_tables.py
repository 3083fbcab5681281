"""CSV files as people write and break them: every kind of finding, and arbitrary bytes."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steel.data.tables import Finding, Table, raise_first, read_table
from steel.errors import InputError

HEADER = "ImageId,ClassId,EncodedPixels\n"
NEW = ("ImageId", "ClassId", "EncodedPixels")
OLD = ("ImageId_ClassId", "EncodedPixels")
BOM = b"\xef\xbb\xbf"


@pytest.fixture
def read(tmp_path: Path) -> Callable[[str | bytes], Table]:
    def write_and_read(content: str | bytes) -> Table:
        path = tmp_path / "train.csv"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return read_table(path, NEW, OLD)

    return write_and_read


def describe(table: Table) -> list[tuple[int | None, str, bool]]:
    return [(finding.line, finding.kind, finding.is_error) for finding in table.findings]


def test_cells_by_column_with_line_numbers(read: Callable[[str], Table]) -> None:
    table = read(HEADER + "a.jpg,1,1 3\nb.jpg,2,4 5\n")
    columns = {"ImageId": ["a.jpg", "b.jpg"], "ClassId": ["1", "2"], "EncodedPixels": ["1 3", "4 5"]}
    assert table == Table(NEW, 2, [2, 3], columns, [])


def test_the_second_form_is_read_if_the_first_does_not_fit(read: Callable[[str], Table]) -> None:
    table = read("ImageId_ClassId,EncodedPixels\na.jpg_1,\na.jpg_2,4 5\n")
    columns = {"ImageId_ClassId": ["a.jpg_1", "a.jpg_2"], "EncodedPixels": ["", "4 5"]}
    assert table == Table(OLD, 2, [2, 3], columns, [])


@pytest.mark.parametrize(
    ("content", "lines", "names"),
    [
        (HEADER + "a,1,1 3", [2], ["a"]),  # no line end at the end
        (HEADER + "\n\na,1,1 3\n  \n,,\n\t\nb,1,1 3\n\n", [4, 8], ["a", "b"]),  # blank lines, some with commas
        ("\n\n" + HEADER + "a,1,1 3\n", [4], ["a"]),  # blank lines above the header
        (HEADER + ' "a" , 1 ,1 3\n', [2], ['"a"']),  # a quote after a blank is part of the cell
        (HEADER + '"a","1","1 3"\n', [2], ["a"]),  # quotes
        (HEADER + '"a,b",1,1 3\n"say ""a""",1,1 3\n', [2, 3], ["a,b", 'say "a"']),  # commas and quotes within quotes
        (HEADER + " a , 1 , 1 3 \n", [2], ["a"]),  # blanks around cells
        (" ImageId , ClassId,EncodedPixels \na,1,1 3\n", [2], ["a"]),  # blanks around columns
        ('"ImageId","ClassId","EncodedPixels"\na,1,1 3\n', [2], ["a"]),  # quotes around columns
        ("x,EncodedPixels,ClassId,ImageId\n,1 3,1,a\n", [2], ["a"]),  # another order, another column
        (HEADER + "Blech_ä_钢.jpg,1,1 3\n", [2], ["Blech_ä_钢.jpg"]),  # non-ASCII names
        (
            HEADER + "a\x0cb\u2028c\x85d,1,1 3\n",
            [2],
            ["a\x0cb\u2028c\x85d"],
        ),  # line ends for str.splitlines, not for a file
        (HEADER + f'a,1,"{"1 3 " * 50_000}"\n', [2], ["a"]),  # 200,000 characters in quotes
        (HEADER, [], []),  # no rows
    ],
)
def test_variants_of_rows(read: Callable[[str], Table], content: str, lines: list[int], names: list[str]) -> None:
    table = read(content)
    assert table.lines == lines
    assert table.columns["ImageId"] == names
    assert table.form == NEW
    assert len(table.findings) == table.num_rows - len(lines)


def test_a_long_quoted_code_is_read_completely(read: Callable[[str], Table]) -> None:
    code = " ".join(str(number) for number in range(10_000, 43_333))
    assert len(code) == 33_333 * 6 - 1
    table = read(HEADER + f'a.jpg,1,"{code}"\nb.jpg,1,{code}\n')
    assert table.columns["EncodedPixels"] == [code, code]
    assert table.findings == []


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (BOM + HEADER.encode() + b"a,1,1 3\n", [(1, "byte-order mark", False)]),
        (HEADER.replace("\n", "\r\n").encode() + b"a,1,1 3\r\n", [(None, "line ends", False)]),
        (HEADER.replace("\n", "\r").encode() + b"a,1,1 3\r", [(None, "line ends", False)]),  # old Mac line ends
        (HEADER.encode() + b"a,1,1 3\r\n", [(None, "line ends", False)]),  # mixed
        (
            BOM + HEADER.encode() + b"a,1,1 3\r\n",
            [(1, "byte-order mark", False), (None, "line ends", False)],
        ),
    ],
)
def test_marks_are_reported_and_accepted(
    read: Callable[[bytes], Table], content: bytes, found: list[tuple[int | None, str, bool]]
) -> None:
    table = read(content)
    assert describe(table) == found
    assert (table.lines, table.columns["ImageId"], table.columns["EncodedPixels"]) == ([2], ["a"], ["1 3"])


@pytest.mark.parametrize(
    ("row", "kind", "words"),
    [
        (b"a,1", "cells", "the row has 2 cells, but the header has 3 columns"),
        (b"a,1,1 3,", "cells", "the row has 4 cells"),
        (b"a;1;1 3", "cells", "the row has 1 cells"),
        (b'a,1,"1 3', "quotes", "a quote is not closed"),
        (b'"a"b,1,1 3', "quotes", "inside a cell"),
        (b"a\xff,1,1 3", "encoding", "bytes that are not UTF-8"),
        (b"gr\xfcn,1,1 3", "encoding", "bytes that are not UTF-8"),  # Latin-1
        (b'"a\xff",1,1 3', "encoding", "bytes that are not UTF-8"),
    ],
)
def test_a_bad_row_does_not_affect_the_others(
    read: Callable[[bytes], Table], row: bytes, kind: str, words: str
) -> None:
    table = read(HEADER.encode() + b"first,1,1 3\n" + row + b"\n\nlast,2,4 5\n")
    assert describe(table) == [(3, kind, True)]
    assert words in table.findings[0].message
    assert table.num_rows == 3
    assert table.lines == [2, 5]
    assert table.columns == {"ImageId": ["first", "last"], "ClassId": ["1", "2"], "EncodedPixels": ["1 3", "4 5"]}


def test_an_open_quote_does_not_swallow_the_next_rows(read: Callable[[str], Table]) -> None:
    table = read(HEADER + 'a,1,"1 3\nb,1,1 3\nc,1,1 3"\n')
    assert table.columns["ImageId"] == ["b", "c"]
    assert describe(table) == [(2, "quotes", True)]
    assert table.columns["EncodedPixels"] == ["1 3", '1 3"']


@pytest.mark.parametrize(
    ("content", "kind", "words", "num_rows"),
    [
        (b"", "empty file", "the file is empty", 0),
        (b"\n \r\n", "empty file", "the file is empty", 0),
        (BOM, "empty file", "the file is empty", 0),
        (b"ImageId;ClassId;EncodedPixels\na;1;1 3\n", "delimiter", "separated by semicolons", 1),
        (b"ImageId\tClassId\tEncodedPixels\na\t1\t1 3\n", "delimiter", "separated by tabs", 1),
        (b"ImageId|ClassId|EncodedPixels\na|1|1 3\n\nb|1|1 3\n", "delimiter", "separated by bars", 2),
        (b"ImageId_ClassId;EncodedPixels\na_1;1 3\n", "delimiter", "separated by semicolons", 1),
        (b"ImageId,ClassID,EncodedPixels\na,1,1 3\n", "columns", "ClassId is not among ImageId,ClassID,Enc", 1),
        (b"a.jpg,1,1 3\nb.jpg,1,1 3\n", "columns", "but ImageId, ClassId, EncodedPixels is not among a.jpg,1,1 3", 1),
        (b"ImageId_ClassId\na_1\n", "columns", "EncodedPixels is not among ImageId_ClassId", 1),
        (b'"ImageId,ClassId,EncodedPixels\na,1,1 3\n', "columns", "it must have the columns", 1),
        ("ImageId,ClassId,EncodedPixels\na,1,1 3\n".encode("utf-16"), "encoding", "not UTF-8 text", 2),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "encoding", "not UTF-8 text", 3),
        (b"\0\0\0\0", "encoding", "not UTF-8 text", 0),
    ],
)
def test_an_unusable_file_is_one_error(
    read: Callable[[bytes], Table], content: bytes, kind: str, words: str, num_rows: int
) -> None:
    table = read(content)
    errors = [finding for finding in table.findings if finding.is_error]
    assert [(finding.line, finding.kind) for finding in errors] == [(None, kind)]
    assert words in errors[0].message
    assert (table.form, table.lines, table.columns, table.num_rows) == ((), [], {}, num_rows)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    table = read_table(tmp_path / "train.csv", NEW)
    assert table == Table((), 0, [], {}, table.findings)
    assert describe(table) == [(None, "missing", True)]
    table = read_table(tmp_path, NEW)
    assert describe(table) == [(None, "unreadable", True)]
    assert table.findings[0].file == tmp_path


SCRAPS = st.sampled_from(
    [b"ImageId", b"ClassId", b"EncodedPixels", HEADER.encode(), b",", b";", b"\t", b'"', b"\n", b"\r", b"\r\n", BOM]
)


@settings(max_examples=300)
@given(content=st.one_of(st.binary(), st.lists(st.one_of(SCRAPS, SCRAPS, st.binary(max_size=4))).map(b"".join)))
@pytest.mark.parametrize("prefix", [b"", HEADER.encode()])
def test_arbitrary_bytes_are_rows_or_findings(
    tmp_path_factory: pytest.TempPathFactory, prefix: bytes, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_bytes(prefix + content)
    table = read_table(path, NEW, OLD)
    named = [finding.line for finding in table.findings if finding.is_error]
    text = (prefix + content).removeprefix(BOM).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    lines = [i for i, line in enumerate(text.split(b"\n"), 1) if line.strip(b" ,\t")]
    assert table.num_rows == max(len(lines) - 1, 0)
    if table.form:
        assert sorted(table.lines + named) == lines[1:]
        assert {len(column) for column in table.columns.values()} == {len(table.lines)}
        assert not any("\ufffd" in cell for column in table.columns.values() for cell in column)
    else:
        assert named == [None]


def test_raise_first_raises_the_error_with_the_lowest_line() -> None:
    path = Path("train.csv")
    findings = [
        Finding(path, 1, "byte-order mark", "a mark", is_error=False),
        Finding(path, 7, "class", "the later line"),
        Finding(path, 3, "cells", "the earlier line"),
    ]
    with pytest.raises(InputError) as error:
        raise_first(findings)
    assert str(error.value) == "train.csv, line 3: the earlier line"
    whole = Finding(path, None, "no defect", "the whole file")
    with pytest.raises(InputError) as error:
        raise_first([whole, *findings])
    assert str(error.value) == "train.csv, line 3: the earlier line"
    with pytest.raises(InputError) as error:
        raise_first([whole])
    assert str(error.value) == "train.csv: the whole file"
    raise_first(findings[:1])
