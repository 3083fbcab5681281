"""The CSV files of the Severstal layout: variants that are equal, and every error with file, line and reason."""

from collections.abc import Callable
from pathlib import Path

import pytest

from formats.fakes import HEADER, NAMED, PLAIN, assert_equal_tables, write_set
from steel.data.annotations import read_annotations
from steel.data.severstal import Row, parse
from steel.errors import InputError


def assert_parts(expected: str, message: str) -> None:
    """Assert that a message contains the parts of a text between three dots, in order."""
    for part in expected.split(" ... "):
        assert part in message
        message = message[message.index(part) :]


def test_both_forms_of_real_labels_are_equal(real_data: Callable[[str], Path]) -> None:
    folder = real_data("severstal-mini")
    tables = []
    for name in ("train.csv", "train_old_format.csv"):
        rows, _, findings = parse(folder / name)
        assert not any(finding.is_error for finding in findings)
        tables.append(sorted(row[1:] for row in rows if row.code))
    assert tables[0] == tables[1]
    assert len(tables[0]) == 14


@pytest.mark.parametrize(
    "content",
    [
        PLAIN.replace("\n", "\r\n").encode(),  # Windows line ends
        b"\xef\xbb\xbf" + PLAIN.encode(),  # a byte-order mark
        b"\xef\xbb\xbf" + PLAIN.replace("\n", "\r\n").encode(),  # both, like Excel
        PLAIN.encode().rstrip(b"\n"),  # no final line end
        PLAIN.replace("\n", "\n\n").encode(),  # blank lines
        PLAIN.replace("a.png,1,1 3", '"a.png","1","1 3"').encode(),  # quotes
        PLAIN.replace("a.png,1,1 3", " a.png , 1 , 1 3 ").encode(),  # surrounding blanks
        b"EncodedPixels,x,ClassId,ImageId\n1 3,,1,a.png\n2 2 7 1,,2,c.png\n",  # another order and an additional column
        b"ImageId_ClassId,EncodedPixels\na.png_1,1 3\nb.png_4,\nc.png_2,2 2 7 1\n",  # the first form
        PLAIN.replace("c.png,2,", "c.png,02,").encode(),  # a leading zero
    ],
)
def test_variants_of_the_same_train_csv(tmp_path: Path, content: bytes) -> None:
    expected = read_annotations(write_set(tmp_path / "plain", PLAIN))
    assert_equal_tables(read_annotations(write_set(tmp_path / "other", content)), expected)


def test_names_with_underscores_in_the_first_form(tmp_path: Path) -> None:
    csv = "ImageId_ClassId,EncodedPixels\nline_1_7.png_2,1 3\nline_1.png_1,2 2\n"
    table = read_annotations(write_set(tmp_path, csv, {"line_1_7.png": (4, 4), "line_1.png": (4, 4)}))
    assert dict(zip(table.names.tolist(), table.areas.tolist(), strict=True)) == {
        "line_1.png": [2, 0],
        "line_1_7.png": [0, 3],
    }


@pytest.mark.parametrize(
    ("csv", "tables", "num_classes", "classes"),
    [
        (HEADER + "a.png,3,1 2\n", {}, None, ("1", "2", "3")),  # the largest class
        (HEADER + "a.png,1,1 2\n", {}, 4, ("1", "2", "3", "4")),  # as requested
        (HEADER + "a.png,8,1 2\n", {}, None, tuple("12345678")),  # the maximum
        (HEADER + "a.png,1,1 2\n", {"classes": NAMED}, None, ("pit", "Riß")),  # named; one has no image
        (HEADER + "a.png,1,1 2\n", {"classes": NAMED}, 3, ("pit", "Riß", "3")),  # named and one more
        (HEADER, {}, 2, ("1", "2")),  # no defect, but a given number
        (HEADER, {"classes": NAMED}, None, ("pit", "Riß")),  # no defect, but named
        ("ImageId_ClassId,EncodedPixels\na.png_1,1 2\na.png_4,\n", {}, 4, ("1", "2", "3", "4")),  # the first form
    ],
)
def test_names_of_classes(
    tmp_path: Path, csv: str, tables: dict[str, str], num_classes: int | None, classes: tuple[str, ...]
) -> None:
    table = read_annotations(write_set(tmp_path, csv, **tables), num_classes)
    assert table.classes == classes
    assert table.labels.shape == (3, len(classes))


def test_parse_returns_rows_and_findings(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text(HEADER + "a.png,1,1 2\n\nb.png,x,1 2\nc.png,2,\nd.png,-1,1 2\ne.png,3,5 1\n")
    rows, num_rows, findings = parse(path)
    assert rows == [Row(2, "a.png", 1, "1 2"), Row(7, "e.png", 3, "5 1")]
    assert num_rows == 5
    assert sorted((f.line, f.kind) for f in findings) == [(4, "class"), (5, "empty code"), (6, "class")]
    assert all(finding.file == path for finding in findings)
    assert str(findings[0]).startswith(f"{path}, line 4: ")
    assert 'got "x"' in findings[0].message


@pytest.mark.parametrize(
    ("csv", "rows", "found"),
    [
        (
            HEADER + "a.png,1,\nb.png,x,\nc.png,08,1 2\n\nd.png,999999999,3\ne.png,1000000000,3\nf.png,²,3\n",
            [Row(4, "c.png", 8, "1 2"), Row(6, "d.png", 999_999_999, "3")],
            [(2, "empty code"), (3, "class"), (7, "class"), (8, "class")],
        ),  # the new form
        (
            "EncodedPixels,ImageId_ClassId\n,a_1.png_2\n1 2,a.png_0\n1 2,a.png\n1 2,_3\nx,a.png_3\n",
            [Row(2, "a_1.png", 2, ""), Row(5, "", 3, "1 2"), Row(6, "a.png", 3, "x")],
            [(3, "class"), (4, "class")],
        ),  # the first form
        (
            "ImageId,ClassId,EncodedPixels,ImageId_ClassId\na.png,1,1 2,b.png_2\n",
            [Row(2, "a.png", 1, "1 2")],
            [],
        ),  # both: the new form is read
        (HEADER + "a.png,0,1 2\n", [], [(2, "class")]),  # no valid row
        ("a.png,1,1 2\n", [], [(None, "columns")]),  # no header
    ],
)
def test_parse_keeps_valid_rows_and_reports_the_others(
    tmp_path: Path, csv: str, rows: list[Row], found: list[tuple[int | None, str]]
) -> None:
    path = tmp_path / "train.csv"
    path.write_text(csv)
    parsed, num_rows, findings = parse(path)
    assert parsed == rows
    assert sorted((finding.line, finding.kind) for finding in findings) == found
    assert all(finding.is_error for finding in findings)
    assert num_rows == sum(bool(line) for line in csv.splitlines()[1:])


@pytest.mark.parametrize(
    ("csv", "tables", "message"),
    [
        (None, {}, "train.csv: there is no such file"),  # missing train.csv
        ("", {}, "train.csv: the file is empty"),
        (b"\xff\xfe\x00\x01", {}, "train.csv: the file is not UTF-8 text"),
        ("ImageId,ClassId\na.png,1\n", {}, "it must have the columns ImageId"),  # a missing column
        ("image,class,code\na.png,1,1 2\n", {}, "it must have the columns ImageId"),  # other names
        ("ImageId_ClassId\na.png_1\n", {}, "it must have the columns ImageId"),  # first form
        (HEADER.replace(",", ";") + "a.png;1;1 2\n", {}, "train.csv: the columns are separated by semicolons"),
        (HEADER.replace(",", "\t") + "a.png\t1\t1 2\n", {}, "train.csv: the columns are separated by tabs"),
        (HEADER + "a.png,1,1 2\na.png,2,3 1,9\n", {}, "line 3: the row has 4 cells, but the header has 3"),
        (HEADER + "a.png,1,1 2\nb.png,0,1 2\n", {}, 'line 3: the class ... got "0"'),
        (HEADER + "a.png,1,1 2\nb.png,0,1 2\n", {}, "start at 0, so add 1 to every id"),
        (HEADER + "a.png,1,1 3\n", {"classes": "ClassId,name\n0,x\n1,y\n"}, "add 1 to every id, also in train.csv"),
        (HEADER + "a.png,9,1 2\n", {}, "line 2: the class must be 1 to 8, got 9"),
        (HEADER + "a.png,1,1 2\nb.png,9,1 2\n", {"classes": NAMED}, "line 3 ... 1 to 2, got 9"),  # named classes
        (HEADER + "a.png,1.5,1 2\n", {}, 'line 2: the class ... got "1.5"'),  # a fraction
        (HEADER + "a.png,2.0,1 2\n", {}, 'line 2: the class ... got "2.0"'),  # a float from pandas
        (HEADER + "a.png,,1 2\n", {}, 'line 2: the class ... got ""'),  # no class
        (HEADER + "a.png,scratch,1 2\n", {}, 'line 2: the class ... got "scratch"'),  # a name
        (HEADER + "a.png,-1,1 2\n", {}, 'line 2: the class ... got "-1"'),  # below 1
        (HEADER + "a.png,99999999999999999999,1 2\n", {}, 'got "9999'),  # not a 64-bit number
        ("ImageId_ClassId,EncodedPixels\na.png,1 2\n", {}, 'line 2: the class ... got "a.png"'),  # no class, first form
        (HEADER + "a.png,3,1 2\n", {"classes": NAMED}, "line 2: the class must be 1 to 2, got 3"),
        (HEADER + "a.png,1,1 2\nd.png,1,1 2\n", {}, 'line 3: no image "d.png"'),  # after all others
        (HEADER + "a.png,1,1 2\naa.png,1,1 2\n", {}, 'line 3: no image "aa.png"'),  # between others
        (HEADER + "A.png,1,1 2\n", {}, 'line 2: no image "A.png"'),  # upper case
        (HEADER + "a.png,1,1 2 3\n", {}, "line 2: a code must hold pairs of start and length"),  # odd
        (HEADER + "a.png,1,1 x\n", {}, 'line 2: a code must hold whole numbers separated by blanks, got "x"'),
        (HEADER + "a.png,1,24 1\nb.png,1,24 2\n", {}, "line 3: the run of 2 pixels from pixel 24 goes beyond"),
        (HEADER + "b.png,1,16 1\nc.png,1,16 1\n", {}, "which has 3 x 5 = 15 pixels"),  # beyond this image only
        (HEADER + "a.png,1,1 3 2 2\n", {}, "line 2: the run from pixel 2 overlaps"),  # overlapping runs
        (HEADER + "a.png,1,9 3 2 2\n", {}, "line 2: runs must be sorted ... from pixel 2 follows"),  # unsorted runs
        (HEADER + "a.png,1,0 3\n", {}, "line 2: a run must start at pixel 1 or later, got pixel 0"),  # counted from 0
        (HEADER + "a.png,1,1 3\nb.png,1,1 3\na.png,1,9 3\n", {}, "line 4: class 1 of a.png is also in line 2"),
        (HEADER + "a.png,1,1 3\na.png,01,1 3\n", {}, "line 3: class 1 of a.png is also in line 2"),  # 1 and 01
        (HEADER + "a.png,1,1 2\nb.png,1,\n", {}, "line 3: the code of b.png is empty"),  # empty code in the new form
        (HEADER + "a.png,1\n", {}, "line 2: the row has 2 cells"),  # a truncated row
        (HEADER, {}, "train.csv: no row has a defect, so the number of classes is unknown"),
        (HEADER + "a.png,1,1 3\n", {"groups": "ImageId,group\na.png,1\nz.png,1\n"}, 'groups.csv, line 3 ... "z.png"'),
        (HEADER + "a.png,1,1 3\n", {"groups": "ImageId,group\na.png,1\na.png,1\n"}, "groups.csv, line 3 ... in line 2"),
        (HEADER + "a.png,1,1 3\n", {"groups": "ImageId,coil\na.png,1\n"}, "but group is not among ImageId,coil"),
        (HEADER + "a.png,1,1 3\n", {"groups": ""}, "groups.csv: the file is empty"),
        (HEADER + "a.png,1,1 3\n", {"classes": "ClassId,name\n0,x\n1,y\n"}, "classes.csv: ClassId must count 1, 2, 3"),
        (HEADER + "a.png,1,1 3\n", {"classes": "ClassId,name\n2,x\n1,y\n"}, "classes.csv: ClassId must count 1, 2, 3"),
        (HEADER + "a.png,1,1 3\n", {"classes": "name\nx\n"}, "but ClassId is not among name"),  # no column ClassId
        (HEADER + "a.png,1,1 3\n", {"classes": ""}, "classes.csv: the file is empty"),
        (HEADER + "a.png,1,1 2,9\nb.png,1,1 2,9\n", {}, "train.csv, line 2: the row has 4 cells"),  # in every row
        (HEADER + "a.png,0,1 2\n", {}, 'line 2: the class ... got "0"'),  # in every row
        (HEADER + "a.png,1,1 2\n", {"groups": "ImageId,group\na.png,1\n\nz.png,1\n"}, "groups.csv, line 4"),
    ],
)  # fmt: skip
def test_errors_name_file_line_and_reason(
    tmp_path: Path, csv: str | bytes | None, tables: dict[str, str], message: str
) -> None:
    with pytest.raises(InputError) as error:
        read_annotations(write_set(tmp_path, csv, **tables))
    assert str(tmp_path) in str(error.value)
    assert_parts(message, str(error.value))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("a.png,1,1 2 3\nz.png,1,1 2\n", "line 2: a code"),  # code before image
        ("z.png,1,1 2\na.png,1,1 2 3\n", "line 2: no image"),  # image before code
        ("a.png,1,1 2\nb.png,1,\nb.png,x,1\n", "line 3: the code of b.png is empty"),  # empty before class
        (
            "a.png,1,1 2\nb.png,x,1\nb.png,1,\n",
            'line 3: the class ... got "x"',
        ),  # class before empty
    ],
)
def test_the_first_invalid_line_is_reported(tmp_path: Path, rows: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        read_annotations(write_set(tmp_path, HEADER + rows))
    assert_parts(message, str(error.value))


@pytest.mark.parametrize(
    ("num_classes", "tables", "message"),
    [
        (1, {}, "line 3: the class must be 1 to 1, got 2"),  # fewer than there are
        (9, {}, "data.num_classes must be 1 to 8, got 9"),  # more than the bits of a plane
        (1, {"classes": NAMED}, "line 3: the class must be 1 to 1, got 2"),  # fewer than named
    ],
)
def test_invalid_num_classes_is_rejected(
    tmp_path: Path, num_classes: int, tables: dict[str, str], message: str
) -> None:
    with pytest.raises(InputError) as error:
        read_annotations(write_set(tmp_path, PLAIN, **tables), num_classes)
    assert_parts(message, str(error.value))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("a.png,1 2\nb.png,1 2 3\n", "unknown.csv, line 3: a code must hold pairs of start and length"),  # odd
        ("a.png,1 x\n", 'unknown.csv, line 2: a code must hold whole numbers separated by blanks, got "x"'),
        ("a.png,1 2\nc.png,14 3\n", "unknown.csv, line 3: the run of 3 pixels from pixel 14 goes beyond"),
        ("a.png,1 3 2 2\n", "unknown.csv, line 2: the run from pixel 2 overlaps"),
        ("a.png,0 3\n", "unknown.csv, line 2: a run must start at pixel 1 or later, got pixel 0"),
        ("a.png,1 2\nz.png,1 2\n", 'unknown.csv, line 3: no image "z.png"'),
        ("a.png,1 2\na.png,5 2\n", 'unknown.csv, line 3: image "a.png" is also in line 2'),
        ("a.png,1 2,9\n", "unknown.csv, line 2: the row has 3 cells"),
    ],
)
def test_errors_in_unknown_csv_name_the_line(tmp_path: Path, rows: str, message: str) -> None:
    root = write_set(tmp_path, PLAIN, unknown=f"ImageId,EncodedPixels\n{rows}")
    with pytest.raises(InputError) as error:
        read_annotations(root)
    assert_parts(message, str(error.value))


@pytest.mark.parametrize(("text", "word"), [("", "the file is empty"), ("ImageId\na.png\n", "EncodedPixels")])
def test_unknown_csv_without_its_columns_is_rejected(tmp_path: Path, text: str, word: str) -> None:
    with pytest.raises(InputError, match=rf"unknown\.csv: .*{word}"):
        read_annotations(write_set(tmp_path, PLAIN, unknown=text))


def test_eight_classes_leave_no_bit_for_unknown(tmp_path: Path) -> None:
    root = write_set(tmp_path, HEADER + "a.png,8,1 2\n", unknown="ImageId,EncodedPixels\nb.png,1 2\n")
    with pytest.raises(InputError, match=r"unknown\.csv: .* 8 bits of a mask, but 8 classes use all; merge some or"):
        read_annotations(root)
    (root / "train.csv").write_text(HEADER + "a.png,7,1 2\n")
    table = read_annotations(root)
    assert table.draw_plane(0).max() == 64
    assert table.draw_plane(1).max() == 128


def test_images_without_a_group_are_their_own_groups(tmp_path: Path) -> None:
    sizes = {f"{i}.png": (2, 2) for i in range(6)}
    groups = "ImageId,group\n4.png,b\n1.png,a\n0.png,b\n"
    numbers = read_annotations(write_set(tmp_path, HEADER + "0.png,1,1 2\n", sizes, groups=groups)).groups.tolist()
    assert numbers[0] == numbers[4]
    assert len(set(numbers)) == 5


@pytest.mark.parametrize("written", ["pr\u00fcf.png", "pr%C3%BCf.png", "pru\u0308f.png"])
def test_all_tables_find_an_image_that_is_spelt_differently(tmp_path: Path, written: str) -> None:
    stored = "pru\u0308f.png"  # as macOS writes it
    sizes = {stored: (4, 6), "z.png": (4, 6)}
    groups, unknown = f"ImageId,group\n{written},1\nz.png,1\n", f"ImageId,EncodedPixels\n{written},9 2\n"
    rows = f"{written},1,1 3\n"
    annotations = read_annotations(write_set(tmp_path, HEADER + rows, sizes, groups=groups, unknown=unknown))
    assert annotations.names.tolist() == [stored, "z.png"]
    assert annotations.areas.tolist() == [[3], [0]]
    assert annotations.groups.tolist() == [0, 0]
    assert annotations.unknown[0].tolist() == [9, 2]


def test_one_image_in_two_spellings_is_a_duplicate(tmp_path: Path) -> None:
    rows = "pr\u00fcf.png,1,1 3\npru\u0308f.png,1,9 3\n"
    with pytest.raises(InputError, match=r"line 3: class 1 of .* is also in line 2"):
        read_annotations(write_set(tmp_path, HEADER + rows, {"pr\u00fcf.png": (4, 6)}))
    groups = "ImageId,group\npr\u00fcf.png,1\npru\u0308f.png,2\n"
    with pytest.raises(InputError, match=r"groups.csv, line 3: image .* is also in line 2"):
        read_annotations(write_set(tmp_path, HEADER + "prüf.png,1,1 3\n", {"pr\u00fcf.png": (4, 6)}, groups=groups))


def test_files_of_operating_systems_are_no_images(tmp_path: Path) -> None:
    root = write_set(tmp_path, PLAIN)
    for name in ("._a.png", ".DS_Store", "Thumbs.db"):
        (root / "train_images" / name).write_bytes(b"\0\5\x16\7")
    assert read_annotations(root).names.tolist() == ["a.png", "b.png", "c.png"]
