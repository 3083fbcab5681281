"""The table against what was written into the files, and every refusal with file, line and reason."""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from steel.data import rle
from steel.data.annotations import Annotations, read_annotations, read_leniently
from steel.data.severstal import Rows, parse
from steel.data.tables import Finding
from steel.errors import InputError

HEADER = "ImageId,ClassId,EncodedPixels\n"
SIZES = {"a.png": (4, 6), "b.png": (4, 6), "c.png": (5, 3)}


def write_set(root: Path, csv: str | bytes | None, sizes: dict[str, tuple[int, int]] = SIZES, **tables: str) -> Path:
    """Writes black images, train.csv and other tables by their names."""
    (root / "train_images").mkdir(parents=True)
    for name, size in sizes.items():
        cv2.imwrite(str(root / "train_images" / name), np.zeros(size, np.uint8))
    if csv is not None:
        (root / "train.csv").write_bytes(csv.encode() if isinstance(csv, str) else csv)
    for name, text in tables.items():
        (root / f"{name}.csv").write_text(text)
    return root


def to_old_form(root: Path) -> str:
    """The train.csv of a data set in the contest's first form, with a row for every image and class."""
    table = pd.read_csv(root / "train.csv", dtype=str)
    codes = dict(zip(table["ImageId"] + "_" + table["ClassId"], table["EncodedPixels"], strict=True))
    names = sorted(path.name for path in (root / "train_images").iterdir())
    keys = [f"{name}_{c}" for name in names for c in range(1, 5)]
    return "ImageId_ClassId,EncodedPixels\n" + "".join(f"{key},{codes.get(key, '')}\n" for key in keys)


def assert_same(one: Annotations, other: Annotations) -> None:
    assert one.digest == other.digest
    assert one.classes == other.classes
    for name in ("names", "sizes", "groups", "runs", "offsets", "labels", "areas"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_the_table_holds_what_the_files_say(tmp_path: Path) -> None:
    csv = HEADER + "c.png,3,2 2 7 1\na.png,1,1 3 9 4\na.png,3,24 1\n"
    table = read_annotations(write_set(tmp_path / "data", csv, groups="ImageId,group\nc.png,coil\na.png,coil\n"))
    assert table.root == tmp_path / "data"
    assert table.names.tolist() == ["a.png", "b.png", "c.png"]
    assert table.sizes.tolist() == [[4, 6], [4, 6], [5, 3]]
    assert table.classes == ("1", "2", "3")
    assert (len(table), table.num_classes) == (3, 3)
    assert table.labels.tolist() == [[True, False, True], [False, False, False], [False, False, True]]
    assert table.areas.tolist() == [[7, 0, 1], [0, 0, 0], [0, 0, 3]]
    assert table.groups[0] == table.groups[2] != table.groups[1]
    assert table.path(2) == tmp_path / "data" / "train_images" / "c.png"
    assert [table.runs_of(0, c).tolist() for c in range(3)] == [[1, 3, 9, 4], [], [24, 1]]
    assert [table.runs_of(2, c).tolist() for c in range(3)] == [[], [], [2, 2, 7, 1]]
    assert table.runs.dtype == table.sizes.dtype == np.int32


def test_images_without_rows_are_clean_and_groups_of_their_own(root: Path) -> None:
    table = read_annotations(root)
    named = set(pd.read_csv(root / "train.csv")["ImageId"])
    clean = [name for name, labels in zip(table.names, table.labels, strict=True) if not labels.any()]
    assert set(clean) == {path.name for path in (root / "train_images").iterdir()} - named
    assert clean
    assert len(set(table.groups.tolist())) == len(table) == 40


def test_images_that_groups_csv_does_not_name_are_groups_of_their_own(tmp_path: Path) -> None:
    sizes = {f"{i}.png": (2, 2) for i in range(6)}
    groups = "ImageId,group\n4.png,b\n1.png,a\n0.png,b\n"
    numbers = read_annotations(write_set(tmp_path, HEADER + "0.png,1,1 2\n", sizes, groups=groups)).groups.tolist()
    assert numbers[0] == numbers[4]
    assert len(set(numbers)) == 5


def test_labels_and_areas_equal_what_was_written(root: Path) -> None:
    table = read_annotations(root)
    expected = np.zeros((len(table), 4), int)
    for row in pd.read_csv(root / "train.csv").itertuples():
        lengths = [int(word) for word in str(row.EncodedPixels).split()[1::2]]
        expected[table.names.tolist().index(row.ImageId), int(str(row.ClassId)) - 1] = sum(lengths)
    np.testing.assert_array_equal(table.areas, expected)
    np.testing.assert_array_equal(table.labels, expected > 0)
    assert table.classes == ("pits", "crack", "scratch", "patch")


def test_both_forms_say_the_same(root: Path) -> None:
    new = read_annotations(root)
    text = to_old_form(root)
    (root / "train.csv").write_text(text)
    assert text.count("\n") == 161
    assert_same(read_annotations(root), new)


def test_both_forms_of_real_labels_say_the_same(real_data: Callable[[str], Path]) -> None:
    folder = real_data("severstal-mini")
    tables = []
    for name in ("train.csv", "train_old_format.csv"):
        rows, _, findings = parse(folder / name)
        assert not any(finding.is_error for finding in findings)
        tables.append(sorted(row for row in zip(*rows[1:], strict=True) if row[2]))
    assert tables[0] == tables[1]
    assert len(tables[0]) == 14


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_rows_does_not_matter(root: Path, seed: int) -> None:
    before = read_annotations(root)
    header, *rows = (root / "train.csv").read_text().splitlines()
    shuffled = np.random.default_rng(seed).permutation(rows).tolist()
    assert shuffled != rows
    (root / "train.csv").write_text("\n".join([header, *shuffled]) + "\n")
    assert_same(read_annotations(root), before)


PLAIN = HEADER + "a.png,1,1 3\nc.png,2,2 2 7 1\n"


@pytest.mark.parametrize(
    "content",
    [
        PLAIN.replace("\n", "\r\n").encode(),  # line ends of Windows
        b"\xef\xbb\xbf" + PLAIN.encode(),  # a byte order mark
        b"\xef\xbb\xbf" + PLAIN.replace("\n", "\r\n").encode(),  # both, as Excel writes it
        PLAIN.encode().rstrip(b"\n"),  # no line end at the end
        PLAIN.replace("\n", "\n\n").encode(),  # blank lines
        PLAIN.replace("a.png,1,1 3", '"a.png","1","1 3"').encode(),  # quotes
        PLAIN.replace("a.png,1,1 3", " a.png , 1 , 1 3 ").encode(),  # blanks around
        b"EncodedPixels,x,ClassId,ImageId\n1 3,,1,a.png\n2 2 7 1,,2,c.png\n",  # other order, another column
        b"ImageId_ClassId,EncodedPixels\na.png_1,1 3\nb.png_4,\nc.png_2,2 2 7 1\n",  # the first form
        PLAIN.replace("c.png,2,", "c.png,02,").encode(),  # a leading zero
    ],
)
def test_ways_to_write_the_same(tmp_path: Path, content: bytes) -> None:
    expected = read_annotations(write_set(tmp_path / "plain", PLAIN))
    assert_same(read_annotations(write_set(tmp_path / "other", content)), expected)


def test_names_with_underscores_in_the_first_form(tmp_path: Path) -> None:
    csv = "ImageId_ClassId,EncodedPixels\nline_1_7.png_2,1 3\nline_1.png_1,2 2\n"
    table = read_annotations(write_set(tmp_path, csv, {"line_1_7.png": (4, 4), "line_1.png": (4, 4)}))
    assert dict(zip(table.names.tolist(), table.areas.tolist(), strict=True)) == {
        "line_1.png": [2, 0],
        "line_1_7.png": [0, 3],
    }


NAMED = "ClassId,name\n1,pit\n2,Riß\n"


@pytest.mark.parametrize(
    ("csv", "tables", "num_classes", "classes"),
    [
        (HEADER + "a.png,3,1 2\n", {}, None, ("1", "2", "3")),  # the largest class
        (HEADER + "a.png,1,1 2\n", {}, 4, ("1", "2", "3", "4")),  # as asked for
        (HEADER + "a.png,8,1 2\n", {}, None, tuple("12345678")),  # the most there can be
        (HEADER + "a.png,1,1 2\n", {"classes": NAMED}, None, ("pit", "Riß")),  # named, one of them on no image
        (HEADER + "a.png,1,1 2\n", {"classes": NAMED}, 3, ("pit", "Riß", "3")),  # named and one more
        (HEADER, {}, 2, ("1", "2")),  # no defect, number given
        (HEADER, {"classes": NAMED}, None, ("pit", "Riß")),  # no defect, named
        ("ImageId_ClassId,EncodedPixels\na.png_1,1 2\na.png_4,\n", {}, 4, ("1", "2", "3", "4")),  # the first form
    ],
)
def test_classes(
    tmp_path: Path, csv: str, tables: dict[str, str], num_classes: int | None, classes: tuple[str, ...]
) -> None:
    table = read_annotations(write_set(tmp_path, csv, **tables), num_classes)
    assert table.classes == classes
    assert table.labels.shape == (3, len(classes))


def test_draw_plane_equals_the_loop(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sizes = {"a.png": (7, 9), "b.png": (16, 5), "c.png": (1, 30), "d.png": (12, 1), "e.png": (8, 8)}
    planes = {name: rng.integers(0, 256, size, np.uint8) for name, size in sizes.items()}
    planes["a.png"][:] = 0  # clean
    planes["e.png"] &= 0b1010_0000  # two classes only
    rows = [f"{name},{c + 1},{rle.encode((plane >> c) & 1)}" for name, plane in planes.items() for c in range(8)]
    rows = [row for row in rows if not row.endswith(",")]
    table = read_annotations(write_set(tmp_path, HEADER + "\n".join(rows), sizes))
    for i, (name, plane) in enumerate(planes.items()):
        drawn = table.draw_plane(i)
        assert drawn.dtype == np.uint8
        np.testing.assert_array_equal(drawn, plane, err_msg=name)
        for c in range(8):
            assert table.areas[i, c] == sum(bool(pixel & (1 << c)) for pixel in plane.ravel().tolist())


def test_draw_plane_by_hand_where_classes_overlap(tmp_path: Path) -> None:
    csv = HEADER + "a.png,1,1 6\na.png,3,5 6\n"  # columns of 4: both on pixels 5 and 6
    table = read_annotations(write_set(tmp_path, csv))
    column = [[1, 5, 4, 0, 0, 0], [1, 5, 4, 0, 0, 0], [1, 4, 0, 0, 0, 0], [1, 4, 0, 0, 0, 0]]
    assert table.draw_plane(0).tolist() == column
    assert table.draw_plane(1).tolist() == np.zeros((4, 6), int).tolist()
    assert table.draw_plane(2).shape == (5, 3)


def test_read_image_gives_the_image_of_the_row(tmp_path: Path) -> None:
    write_set(tmp_path, HEADER + "a.png,1,1 2\n")
    pixels = np.arange(24, dtype=np.uint8).reshape(4, 6)
    cv2.imwrite(str(tmp_path / "train_images" / "b.png"), pixels)
    table = read_annotations(tmp_path)
    np.testing.assert_array_equal(table.read_image(1), pixels)
    assert not table.read_image(0).any()


def test_parse_gives_rows_and_everything_that_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text(HEADER + "a.png,1,1 2\n\nb.png,x,1 2\nc.png,2,\nd.png,-1,1 2\ne.png,3,5 1\n")
    rows, num_rows, findings = parse(path)
    assert rows == ([2, 7], ["a.png", "e.png"], [1, 3], ["1 2", "5 1"])
    assert num_rows == 5
    assert sorted((f.line, f.kind) for f in findings) == [(4, "class"), (5, "empty code"), (6, "class")]
    assert all(finding.file == path for finding in findings)
    assert str(findings[0]).startswith(f'{path}, line 4: the class is "x"')


@pytest.mark.parametrize(
    ("csv", "tables", "sentence"),
    [
        (None, {}, "train.csv: there is no such file"),  # missing train.csv
        ("", {}, "train.csv: the file is empty"),
        (b"\xff\xfe\x00\x01", {}, "train.csv: this is no text in UTF-8"),
        ("ImageId,ClassId\na.png,1\n", {}, "train.csv: it needs the columns"),  # a column is missing
        ("image,class,code\na.png,1,1 2\n", {}, "train.csv: it needs the columns"),  # other names
        ("ImageId_ClassId\na.png_1\n", {}, "train.csv: it needs the columns"),  # a column of the first form is missing
        (HEADER.replace(",", ";") + "a.png;1;1 2\n", {}, "train.csv: the columns are separated by semicolons"),
        (HEADER.replace(",", "\t") + "a.png\t1\t1 2\n", {}, "train.csv: the columns are separated by tabs"),
        (HEADER + "a.png,1,1 2\na.png,2,3 1,9\n", {}, "line 3: 4 cells stand in the row, but the header has 3"),
        (HEADER + "a.png,1,1 2\nb.png,0,1 2\n", {}, 'line 3: the class is "0"'),
        (HEADER + "a.png,9,1 2\n", {}, "line 2: class 9, but at most 8 classes are possible"),
        (HEADER + "a.png,1,1 2\nb.png,9,1 2\n", {"classes": NAMED}, "line 3: class 9, but"),  # class 9, named classes
        (HEADER + "a.png,1.5,1 2\n", {}, 'line 2: the class is "1.5"'),  # a fraction
        (HEADER + "a.png,2.0,1 2\n", {}, 'line 2: the class is "2.0"'),  # what pandas makes of a missing value
        (HEADER + "a.png,,1 2\n", {}, 'line 2: the class is ""'),  # no class
        (HEADER + "a.png,scratch,1 2\n", {}, 'line 2: the class is "scratch"'),  # a name
        (HEADER + "a.png,-1,1 2\n", {}, 'line 2: the class is "-1"'),  # below 1
        (HEADER + "a.png,99999999999999999999,1 2\n", {}, 'line 2: the class is "9999'),  # no 64-bit number
        ("ImageId_ClassId,EncodedPixels\na.png,1 2\n", {}, 'line 2: the class is "a.png"'),  # no class, first form
        (HEADER + "a.png,3,1 2\n", {"classes": NAMED}, "line 2: class 3, but this data set has the classes 1 to 2"),
        (HEADER + "a.png,1,1 2\nd.png,1,1 2\n", {}, 'line 3: no image "d.png"'),  # unknown, behind all others
        (HEADER + "a.png,1,1 2\naa.png,1,1 2\n", {}, 'line 3: no image "aa.png"'),  # unknown, between others
        (HEADER + "A.png,1,1 2\n", {}, 'line 2: no image "A.png"'),  # letters of another size
        (HEADER + "a.png,1,1 2 3\n", {}, "line 2: a code holds pairs of start and length"),  # odd
        (HEADER + "a.png,1,1 x\n", {}, 'line 2: a code holds whole numbers separated by blanks, but "x"'),
        (HEADER + "a.png,1,24 1\nb.png,1,24 2\n", {}, "line 3: the run of 2 pixels from pixel 24 goes beyond"),
        (HEADER + "b.png,1,16 1\nc.png,1,16 1\n", {}, "which has 3 x 5 = 15 pixels"),  # beyond this image only
        (HEADER + "a.png,1,1 3 2 2\n", {}, "line 2: the run from pixel 2 overlaps"),  # overlapping runs
        (HEADER + "a.png,1,9 3 2 2\n", {}, "line 2: the run from pixel 2 comes after"),  # unsorted runs
        (HEADER + "a.png,1,0 3\n", {}, "line 2: a run starts at pixel 0"),  # counted from 0
        (HEADER + "a.png,1,1 3\nb.png,1,1 3\na.png,1,9 3\n", {}, "line 4: class 1 of a.png stands in line 2 too"),
        (HEADER + "a.png,1,1 3\na.png,01,1 3\n", {}, "line 3: class 1 of a.png stands in line 2 too"),  # 1 and 01
        (HEADER + "a.png,1,1 2\nb.png,1,\n", {}, "line 3: the code of b.png is empty"),  # empty in the new form
        (HEADER + "a.png,1\n", {}, "line 2: 2 cells stand in the row"),  # a row that was cut off
        (HEADER, {}, "train.csv: it holds no defect, so the number of classes is unknown"),  # nothing to learn
        (HEADER + "a.png,1,1 3\n", {"groups": "ImageId,group\na.png,1\nz.png,1\n"}, 'groups.csv, line 3: there is no'),
        (HEADER + "a.png,1,1 3\n", {"groups": "ImageId,group\na.png,1\na.png,1\n"}, "groups.csv, line 3: image"),
        (HEADER + "a.png,1,1 3\n", {"groups": "ImageId,coil\na.png,1\n"}, "but group is not among ImageId,coil"),
        (HEADER + "a.png,1,1 3\n", {"groups": ""}, "groups.csv: the file is empty"),
        (HEADER + "a.png,1,1 3\n", {"classes": "ClassId,name\n0,x\n1,y\n"}, "classes.csv: ClassId counts 1, 2, 3"),
        (HEADER + "a.png,1,1 3\n", {"classes": "ClassId,name\n2,x\n1,y\n"}, "classes.csv: ClassId counts 1, 2, 3"),
        (HEADER + "a.png,1,1 3\n", {"classes": "name\nx\n"}, "but ClassId is not among name"),  # no column ClassId
        (HEADER + "a.png,1,1 3\n", {"classes": ""}, "classes.csv: the file is empty"),
    ],
)  # fmt: skip
def test_read_annotations_refuses(
    tmp_path: Path, csv: str | bytes | None, tables: dict[str, str], sentence: str
) -> None:
    with pytest.raises(InputError) as error:
        read_annotations(write_set(tmp_path, csv, **tables))
    assert str(tmp_path) in str(error.value)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ("a.png,1,1 2 3\nz.png,1,1 2\n", "line 2: a code"),  # code before image
        ("z.png,1,1 2\na.png,1,1 2 3\n", "line 2: no image"),  # image before code
        ("a.png,1,1 2\nb.png,1,\nb.png,x,1\n", "line 3: the code of b.png is empty"),  # empty before class
        ("a.png,1,1 2\nb.png,x,1\nb.png,1,\n", 'line 3: the class is "x"'),  # class before empty
    ],
)
def test_the_first_line_that_is_wrong_is_named(tmp_path: Path, rows: str, sentence: str) -> None:
    with pytest.raises(InputError) as error:
        read_annotations(write_set(tmp_path, HEADER + rows))
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("num_classes", "tables", "sentence"),
    [
        (1, {}, "line 3: class 2, but this data set has the classes 1 to 1"),  # fewer than there are
        (9, {}, "9 classes, but 1 to 8 are possible"),  # more than a plane has bits
        (1, {"classes": NAMED}, "line 3: class 2, but this data set has the classes 1 to 1"),  # fewer than names
    ],
)
def test_num_classes_is_refused(tmp_path: Path, num_classes: int, tables: dict[str, str], sentence: str) -> None:
    with pytest.raises(InputError) as error:
        read_annotations(write_set(tmp_path, PLAIN, **tables), num_classes)
    assert sentence in str(error.value)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        read_annotations(tmp_path / "nowhere")
    assert str(error.value).startswith(f"no folder {tmp_path / 'nowhere'}; name the one")
    (tmp_path / "train.csv").write_text(PLAIN)
    with pytest.raises(InputError) as error:
        read_annotations(tmp_path)
    assert str(error.value).startswith(f"no folder {tmp_path / 'train_images'}")
    (tmp_path / "train_images").mkdir()
    with pytest.raises(InputError) as error:
        read_annotations(tmp_path)
    assert f"no image in {tmp_path / 'train_images'}" in str(error.value)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_name_that_no_table_can_hold_is_refused(tmp_path: Path) -> None:
    root = write_set(tmp_path, PLAIN)
    folder = os.fsencode(root / "train_images")
    shutil.copy(os.path.join(folder, b"b.png"), os.path.join(folder, b"gr\xfcn.png"))
    with pytest.raises(InputError, match=r"gr\udcfcn\.png: its name is not UTF-8"):
        read_annotations(root)
    annotations = read_leniently(root).annotations
    assert annotations is not None
    assert annotations.names.tolist() == ["a.png", "b.png", "c.png"]
    assert len(annotations.digest) == 16


def test_a_broken_header_of_an_image_is_refused(tmp_path: Path) -> None:
    root = write_set(tmp_path, PLAIN)
    (root / "train_images" / "b.png").write_bytes(b"")
    with pytest.raises(InputError) as error:
        read_annotations(root)
    assert str(error.value).startswith(f"{root / 'train_images' / 'b.png'}: the image is empty")


GROUPS = "ImageId,group\na.png,x\nb.png,y\nc.png,x\n"


@pytest.mark.parametrize(
    ("csv", "sizes", "tables"),
    [
        (PLAIN.replace("1 3", "1 4"), SIZES, {"groups": GROUPS}),  # a code
        (PLAIN.replace("c.png,2,2 2 7 1", "c.png,2,2 2 8 1"), SIZES, {"groups": GROUPS}),  # a start
        (PLAIN.replace("a.png,1", "b.png,1"), SIZES, {"groups": GROUPS}),  # an image's label
        (PLAIN.replace("a.png,1", "a.png,2"), SIZES, {"groups": GROUPS}),  # a class
        (PLAIN, SIZES, {"groups": GROUPS.replace("c.png,x", "c.png,y")}),  # a group
        (PLAIN, SIZES, {}),  # no groups
        (PLAIN, SIZES | {"d.png": (4, 6)}, {"groups": GROUPS}),  # one more clean image
        (PLAIN, SIZES | {"b.png": (6, 4)}, {"groups": GROUPS}),  # the size of an image
        (PLAIN, SIZES, {"groups": GROUPS, "classes": NAMED}),  # names of classes
    ],
)
def test_the_digest_changes_with_the_labels(
    tmp_path: Path, csv: str, sizes: dict[str, tuple[int, int]], tables: dict[str, str]
) -> None:
    before = read_annotations(write_set(tmp_path / "before", PLAIN, groups=GROUPS))
    after = read_annotations(write_set(tmp_path / "after", csv, sizes, **tables))
    assert before.digest != after.digest


def test_the_digest_changes_with_the_name_of_an_image(tmp_path: Path) -> None:
    before = read_annotations(write_set(tmp_path / "before", PLAIN))
    sizes = {("bb.png" if name == "b.png" else name): size for name, size in SIZES.items()}
    assert read_annotations(write_set(tmp_path / "after", PLAIN, sizes)).digest != before.digest


def test_the_digest_does_not_depend_on_the_folder_or_the_order_of_groups(tmp_path: Path) -> None:
    before = read_annotations(write_set(tmp_path / "before", PLAIN, groups=GROUPS))
    turned = "ImageId,group\nc.png,x\nb.png,y\na.png,x\n"
    assert read_annotations(write_set(tmp_path / "after", PLAIN, groups=turned)).digest == before.digest


def test_the_digest_does_not_depend_on_what_groups_are_called(tmp_path: Path) -> None:
    before = read_annotations(write_set(tmp_path / "before", PLAIN, groups=GROUPS))
    renamed = GROUPS.replace(",x", ",z")
    assert read_annotations(write_set(tmp_path / "after", PLAIN, groups=renamed)).digest == before.digest


@pytest.mark.parametrize(
    ("csv", "tables", "sentence"),
    [
        pytest.param(
            HEADER + "a.png,1,1 2,9\nb.png,1,1 2,9\n",
            {},
            "train.csv",
        ),  # one field more in every row
        pytest.param(
            HEADER + "a.png,0,1 2\n",
            {},
            'line 2: the class is "0"',
        ),  # class 0 in every row
        pytest.param(
            HEADER + "a.png,1,1 2\n",
            {"groups": "ImageId,group\na.png,1\n\nz.png,1\n"},
            "groups.csv, line 4",
        ),  # a blank line in groups.csv
    ],
)
def test_read_annotations_should_refuse(tmp_path: Path, csv: str, tables: dict[str, str], sentence: str) -> None:
    with pytest.raises(InputError) as error:
        read_annotations(write_set(tmp_path, csv, **tables))
    assert sentence in str(error.value)


def describe(findings: list[Finding], root: Path) -> list[tuple[str, int | None, str, bool]]:
    return [(str(f.file.relative_to(root)), f.line, f.kind, f.is_error) for f in findings]


@pytest.mark.parametrize(
    ("csv", "rows", "found"),
    [
        (
            HEADER + "a.png,1,\nb.png,x,\nc.png,08,1 2\n\nd.png,999999999,3\ne.png,1000000000,3\nf.png,²,3\n",
            Rows([4, 6], ["c.png", "d.png"], [8, 999_999_999], ["1 2", "3"]),
            [(2, "empty code"), (3, "class"), (7, "class"), (8, "class")],
        ),  # the new form
        (
            "EncodedPixels,ImageId_ClassId\n,a_1.png_2\n1 2,a.png_0\n1 2,a.png\n1 2,_3\nx,a.png_3\n",
            Rows([2, 5, 6], ["a_1.png", "", "a.png"], [2, 3, 3], ["", "1 2", "x"]),
            [(3, "class"), (4, "class")],
        ),  # the first form
        (
            "ImageId,ClassId,EncodedPixels,ImageId_ClassId\na.png,1,1 2,b.png_2\n",
            Rows([2], ["a.png"], [1], ["1 2"]),
            [],
        ),  # both: the new one counts
        (HEADER + "a.png,0,1 2\n", Rows([], [], [], []), [(2, "class")]),  # no good row
        ("a.png,1,1 2\n", Rows([], [], [], []), [(None, "columns")]),  # no header
    ],
)
def test_parse_keeps_good_rows_and_names_the_others(
    tmp_path: Path, csv: str, rows: Rows, found: list[tuple[int | None, str]]
) -> None:
    path = tmp_path / "train.csv"
    path.write_text(csv)
    parsed, num_rows, findings = parse(path)
    assert parsed == rows
    assert [(finding.line, finding.kind) for finding in findings] == found
    assert all(finding.is_error for finding in findings)
    assert num_rows == sum(bool(line) for line in csv.splitlines()[1:])


def test_what_is_good_is_read_beside_what_is_not(tmp_path: Path) -> None:
    csv = HEADER + "a.png,1,1 3\na.png,2,1 x\nz.png,1,1 2\nb.png,2,4 2 6 1\nb.png,2,9 1\nd.png,1,1 1\nc.png,3,15 1\n"
    groups = "ImageId,group\na.png,x\nc.png,x\nz.png,x\nb.png,\n"
    root = write_set(tmp_path, csv, SIZES | {"d.png": (4, 4)}, groups=groups)
    (root / "train_images" / "d.png").write_bytes(b"no image")
    table, findings, num_rows, num_used = read_leniently(root)
    assert (num_rows, num_used) == (7, 3)
    assert sorted(describe(findings, root), key=str) == sorted(
        [
            ("train_images/d.png", None, "unreadable image", True),
            ("train.csv", 3, "not numbers", True),
            ("train.csv", 4, "missing image", True),
            ("train.csv", 5, "touching runs", False),
            ("train.csv", 6, "duplicate row", True),
            ("train.csv", 7, "unreadable image", True),
            ("groups.csv", 4, "missing image", True),
            ("groups.csv", 5, "empty group", True),
        ],
        key=str,
    )
    assert table is not None
    # The image that cannot be read has left the table, with its column of offsets.
    assert table.names.tolist() == ["a.png", "b.png", "c.png"]
    assert table.sizes.tolist() == [[4, 6], [4, 6], [5, 3]]
    assert table.areas.tolist() == [[3, 0, 0], [0, 3, 0], [0, 0, 1]]
    assert table.runs_of(1, 1).tolist() == [4, 2, 6, 1]
    assert table.groups[0] == table.groups[2] != table.groups[1]
    assert len(table.offsets) == 3 * 3 + 1


def test_an_unreadable_image_in_the_middle_moves_no_label(tmp_path: Path) -> None:
    csv = HEADER + "a.png,1,1 3\nb.png,1,5 2\nb.png,2,9 1\nc.png,2,2 2 7 1\n"
    root = write_set(tmp_path, csv)
    (root / "train_images" / "b.png").write_bytes(b"")
    table, _, num_rows, num_used = read_leniently(root)
    assert table is not None
    assert (num_rows, num_used) == (4, 2)
    assert table.names.tolist() == ["a.png", "c.png"]
    assert [table.runs_of(i, c).tolist() for i in range(2) for c in range(2)] == [[1, 3], [], [], [2, 2, 7, 1]]


@pytest.mark.parametrize(
    ("csv", "tables", "num_used", "kinds"),
    [
        (PLAIN, {}, 2, set()),
        (PLAIN.replace("1 3", "1 1 2 2"), {}, 2, {"touching runs"}),  # information alone
        (PLAIN.replace("\n", "\r\n"), {}, 2, {"line ends"}),
        ("ImageId_ClassId,EncodedPixels\na.png_1,1 2\na.png_7,\n", {}, 2, set()),  # a class that nothing has
    ],
)
def test_information_stops_nobody(
    tmp_path: Path, csv: str, tables: dict[str, str], num_used: int, kinds: set[str]
) -> None:
    root = write_set(tmp_path, csv, **tables)
    reading = read_leniently(root)
    assert {(finding.kind, finding.is_error) for finding in reading.findings} == {(kind, False) for kind in kinds}
    assert (reading.num_rows, reading.num_used) == (2, num_used)
    assert reading.annotations is not None
    assert_same(reading.annotations, read_annotations(root))


@pytest.mark.parametrize(
    ("csv", "tables", "errors", "num_rows"),
    [
        (None, {}, {"missing"}, 0),
        (HEADER, {}, {"no defect"}, 0),
        (HEADER + "a.png,x,1 2\n", {}, {"class"}, 1),  # the row says it all
        ("ImageId_ClassId,EncodedPixels\na.png_1,\nb.png_1,\n", {}, {"no defect"}, 2),
        # Rows that are good but of no use are not passed over because something else is wrong.
        ("ImageId_ClassId,EncodedPixels\na.png_1,\nb.png_x,\n", {}, {"no defect", "class"}, 2),
        ("ImageId_ClassId,EncodedPixels\na.png_1,\n", {"groups": ""}, {"no defect", "empty file"}, 1),
    ],
)
def test_without_a_class_there_is_no_table_and_the_reason_is_told(
    tmp_path: Path, csv: str | None, tables: dict[str, str], errors: set[str], num_rows: int
) -> None:
    reading = read_leniently(write_set(tmp_path, csv, **tables))
    assert reading.annotations is None
    assert {finding.kind for finding in reading.findings} == errors
    assert all(finding.is_error for finding in reading.findings)
    assert (reading.num_rows, reading.num_used) == (num_rows, 0)


def test_a_missing_train_csv_beside_named_classes_is_an_error_and_no_clean_data_set(tmp_path: Path) -> None:
    root = write_set(tmp_path, None, classes=NAMED)
    reading = read_leniently(root)
    assert describe(reading.findings, root) == [("train.csv", None, "missing", True)]
    with pytest.raises(InputError, match="there is no such file"):
        read_annotations(root)


def decode_naively(code: str, size: tuple[int, int]) -> NDArray[np.bool_]:
    """A mask pixel by pixel: pixel p, from 1, lies in column (p - 1) // H and row (p - 1) % H."""
    mask = np.zeros(size, bool)
    numbers = [int(word) for word in code.split()]
    for start, length in zip(numbers[::2], numbers[1::2], strict=True):
        for pixel in range(start - 1, start - 1 + length):
            mask[pixel % size[0], pixel // size[0]] = True
    return mask


UNKNOWN = "ImageId,EncodedPixels\nc.png,3 4 9 1\na.png,2 5\n"


def test_regions_that_nobody_has_labelled_are_the_highest_bit(tmp_path: Path) -> None:
    table = read_annotations(write_set(tmp_path, PLAIN, unknown=UNKNOWN))
    assert {i: runs.tolist() for i, runs in table.unknown.items()} == {0: [2, 5], 2: [3, 4, 9, 1]}
    codes = {0: ("1 3", "", "2 5"), 1: ("", "", ""), 2: ("", "2 2 7 1", "3 4 9 1")}
    for i, (first, second, unknown) in codes.items():
        size = SIZES[str(table.names[i])]
        masks = [decode_naively(code, size) for code in (first, second, unknown)]
        np.testing.assert_array_equal(table.draw_plane(i), masks[0] * 1 + masks[1] * 2 + masks[2] * 128)
        # They are no class, and take nothing away from what is labelled beneath them.
        np.testing.assert_array_equal(table.draw_masks(i), masks[:2])
    assert table.areas.tolist() == [[3, 0], [0, 0], [0, 3]]


def test_regions_follow_their_image_past_one_that_cannot_be_read(tmp_path: Path) -> None:
    root = write_set(tmp_path, HEADER + "a.png,1,1 3\n", unknown=UNKNOWN + "b.png,99 99\n")
    (root / "train_images" / "b.png").write_bytes(b"")
    reading = read_leniently(root)
    assert describe(reading.findings, root) == [("train_images/b.png", None, "unreadable image", True)]
    assert reading.annotations is not None
    assert {i: runs.tolist() for i, runs in reading.annotations.unknown.items()} == {0: [2, 5], 1: [3, 4, 9, 1]}


def test_without_the_file_nothing_is_unknown(tmp_path: Path) -> None:
    plain = read_annotations(write_set(tmp_path / "plain", PLAIN))
    assert plain.unknown == {}
    for name, text in (("header", "ImageId,EncodedPixels\n"), ("empty", "ImageId,EncodedPixels\na.png,\n")):
        assert_same(read_annotations(write_set(tmp_path / name, PLAIN, unknown=text)), plain)


def test_each_region_changes_the_digest(tmp_path: Path) -> None:
    eight = {f"{i}.png": (4, 6) for i in range(8)}
    header = "ImageId,EncodedPixels\n"
    regions = [
        None,
        "0.png,1 1\n",
        "0.png,1 2\n",  # longer
        "0.png,2 1\n",  # elsewhere
        "1.png,1 1\n",  # on another image
        "0.png,1 1\n3.png,1 5\n7.png,12 1\n",
        "0.png,1 1 3 1 5 7 12 1\n",  # the same numbers in the same order, all on one image
    ]
    digests = {
        read_annotations(
            write_set(
                tmp_path / str(i), HEADER + "0.png,1,1 3\n", eight, **({"unknown": header + text} if text else {})
            )
        ).digest
        for i, text in enumerate(regions)
    }
    assert len(digests) == len(regions)


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ("a.png,1 2\nb.png,1 2 3\n", "unknown.csv, line 3: a code holds pairs of start and length"),  # odd
        ("a.png,1 x\n", 'unknown.csv, line 2: a code holds whole numbers separated by blanks, but "x"'),
        ("a.png,1 2\nc.png,14 3\n", "unknown.csv, line 3: the run of 3 pixels from pixel 14 goes beyond"),
        ("a.png,1 3 2 2\n", "unknown.csv, line 2: the run from pixel 2 overlaps"),
        ("a.png,0 3\n", "unknown.csv, line 2: a run starts at pixel 0"),
        ("a.png,1 2\nz.png,1 2\n", 'unknown.csv, line 3: there is no image "z.png"'),
        ("a.png,1 2\na.png,5 2\n", 'unknown.csv, line 3: image "a.png" stands in line 2 too'),
        ("a.png,1 2,9\n", "unknown.csv, line 2: 3 cells stand in the row"),
    ],
)
def test_faults_of_unknown_csv_are_named_with_their_line(tmp_path: Path, rows: str, sentence: str) -> None:
    root = write_set(tmp_path, PLAIN, unknown=f"ImageId,EncodedPixels\n{rows}")
    with pytest.raises(InputError) as refusal:
        read_annotations(root)
    assert sentence in str(refusal.value)


@pytest.mark.parametrize(("text", "word"), [("", "the file is empty"), ("ImageId\na.png\n", "EncodedPixels")])
def test_an_unknown_csv_without_its_columns_is_refused(tmp_path: Path, text: str, word: str) -> None:
    with pytest.raises(InputError, match=rf"unknown\.csv: .*{word}"):
        read_annotations(write_set(tmp_path, PLAIN, unknown=text))


def test_eight_classes_leave_no_bit_for_unknown(tmp_path: Path) -> None:
    root = write_set(tmp_path, HEADER + "a.png,8,1 2\n", unknown="ImageId,EncodedPixels\nb.png,1 2\n")
    with pytest.raises(InputError, match=r"unknown\.csv: .* 8 bits of a mask, which 8 classes fill; merge some or"):
        read_annotations(root)
    (root / "train.csv").write_text(HEADER + "a.png,7,1 2\n")
    table = read_annotations(root)
    assert table.draw_plane(0).max() == 64
    assert table.draw_plane(1).max() == 128
