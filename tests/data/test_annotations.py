"""The table of labels, compared with the files that it was read from."""

import os
import re
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from formats.fakes import HEADER, NAMED, PLAIN, SIZES, assert_equal_tables, write_set
from steel.data import rle
from steel.data.annotations import read_annotations, read_leniently
from steel.data.tables import Finding
from steel.errors import InputError


def to_old_form(root: Path) -> str:
    """Return the train.csv of a dataset in the first form of the contest, with a row for every image and class."""
    table = pd.read_csv(root / "train.csv", dtype=str)
    codes = dict(zip(table["ImageId"] + "_" + table["ClassId"], table["EncodedPixels"], strict=True))
    names = sorted(path.name for path in (root / "train_images").iterdir())
    keys = [f"{name}_{c}" for name in names for c in range(1, 5)]
    return "ImageId_ClassId,EncodedPixels\n" + "".join(f"{key},{codes.get(key, '')}\n" for key in keys)


def test_the_table_equals_the_files(tmp_path: Path) -> None:
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


def test_images_without_rows_are_clean_and_their_own_groups(root: Path) -> None:
    table = read_annotations(root)
    named = set(pd.read_csv(root / "train.csv")["ImageId"])
    clean = [name for name, labels in zip(table.names, table.labels, strict=True) if not labels.any()]
    assert set(clean) == {path.name for path in (root / "train_images").iterdir()} - named
    assert clean
    assert len(set(table.groups.tolist())) == len(table) == 40


def test_labels_and_areas_equal_train_csv(root: Path) -> None:
    table = read_annotations(root)
    expected = np.zeros((len(table), 4), int)
    for row in pd.read_csv(root / "train.csv").itertuples():
        lengths = [int(word) for word in str(row.EncodedPixels).split()[1::2]]
        expected[table.names.tolist().index(row.ImageId), int(str(row.ClassId)) - 1] = sum(lengths)
    np.testing.assert_array_equal(table.areas, expected)
    np.testing.assert_array_equal(table.labels, expected > 0)
    assert table.classes == ("pits", "crack", "scratch", "patch")


def test_both_forms_give_the_same_table(root: Path) -> None:
    new = read_annotations(root)
    text = to_old_form(root)
    (root / "train.csv").write_text(text)
    assert text.count("\n") == 161
    assert_equal_tables(read_annotations(root), new)


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_rows_does_not_matter(root: Path, seed: int) -> None:
    before = read_annotations(root)
    header, *rows = (root / "train.csv").read_text().splitlines()
    shuffled = np.random.default_rng(seed).permutation(rows).tolist()
    assert shuffled != rows
    (root / "train.csv").write_text("\n".join([header, *shuffled]) + "\n")
    assert_equal_tables(read_annotations(root), before)


def test_draw_plane_equals_a_loop(tmp_path: Path) -> None:
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


def test_draw_plane_where_classes_overlap(tmp_path: Path) -> None:
    csv = HEADER + "a.png,1,1 6\na.png,3,5 6\n"  # columns of 4 pixels; both classes have pixels 5 and 6
    table = read_annotations(write_set(tmp_path, csv))
    column = [[1, 5, 4, 0, 0, 0], [1, 5, 4, 0, 0, 0], [1, 4, 0, 0, 0, 0], [1, 4, 0, 0, 0, 0]]
    assert table.draw_plane(0).tolist() == column
    assert table.draw_plane(1).tolist() == np.zeros((4, 6), int).tolist()
    assert table.draw_plane(2).shape == (5, 3)


def test_read_image_decodes_the_image_of_the_row(tmp_path: Path) -> None:
    write_set(tmp_path, HEADER + "a.png,1,1 2\n")
    pixels = np.arange(24, dtype=np.uint8).reshape(4, 6)
    cv2.imwrite(str(tmp_path / "train_images" / "b.png"), pixels)
    table = read_annotations(tmp_path)
    np.testing.assert_array_equal(table.read_image(1), pixels)
    assert not table.read_image(0).any()


def test_missing_folders_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        read_annotations(tmp_path / "nowhere")
    assert str(error.value).startswith(f"no folder {tmp_path / 'nowhere'}; give the folder")
    (tmp_path / "train.csv").write_text(PLAIN)
    with pytest.raises(InputError) as error:
        read_annotations(tmp_path)
    assert str(error.value).startswith(f"no folder {tmp_path / 'train_images'}")
    (tmp_path / "train_images").mkdir()
    with pytest.raises(InputError) as error:
        read_annotations(tmp_path)
    assert f"no image in {tmp_path / 'train_images'}" in str(error.value)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems reject such names")
def test_file_names_that_are_not_utf8_are_rejected(tmp_path: Path) -> None:
    root = write_set(tmp_path, PLAIN)
    folder = os.fsencode(root / "train_images")
    shutil.copy(os.path.join(folder, b"b.png"), os.path.join(folder, b"gr\xfcn.png"))
    with pytest.raises(InputError, match=r"gr\udcfcn\.png: the file name is not UTF-8"):
        read_annotations(root)
    annotations = read_leniently(root).annotations
    assert annotations is not None
    assert annotations.names.tolist() == ["a.png", "b.png", "c.png"]
    assert len(annotations.digest) == 16


def test_an_empty_image_file_is_rejected(tmp_path: Path) -> None:
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
        (PLAIN.replace("a.png,1", "b.png,1"), SIZES, {"groups": GROUPS}),  # the image of a label
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


def test_the_digest_does_not_depend_on_the_names_of_groups(tmp_path: Path) -> None:
    before = read_annotations(write_set(tmp_path / "before", PLAIN, groups=GROUPS))
    renamed = GROUPS.replace(",x", ",z")
    assert read_annotations(write_set(tmp_path / "after", PLAIN, groups=renamed)).digest == before.digest


def describe(findings: list[Finding], root: Path) -> list[tuple[str, int | None, str, bool]]:
    return [(str(f.file.relative_to(root)), f.line, f.kind, f.is_error) for f in findings]


def test_valid_rows_are_read_despite_invalid_ones(tmp_path: Path) -> None:
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
    # The unreadable image is not in the table, nor are its offsets.
    assert table.names.tolist() == ["a.png", "b.png", "c.png"]
    assert table.sizes.tolist() == [[4, 6], [4, 6], [5, 3]]
    assert table.areas.tolist() == [[3, 0, 0], [0, 3, 0], [0, 0, 1]]
    assert table.runs_of(1, 1).tolist() == [4, 2, 6, 1]
    assert table.groups[0] == table.groups[2] != table.groups[1]
    assert len(table.offsets) == 3 * 3 + 1


def test_an_unreadable_image_does_not_shift_labels(tmp_path: Path) -> None:
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
        (PLAIN.replace("1 3", "1 1 2 2"), {}, 2, {"touching runs"}),  # information only
        (PLAIN.replace("\n", "\r\n"), {}, 2, {"line ends"}),
        ("ImageId_ClassId,EncodedPixels\na.png_1,1 2\na.png_7,\n", {}, 2, set()),  # a class without a code
    ],
)
def test_information_is_not_an_error(
    tmp_path: Path, csv: str, tables: dict[str, str], num_used: int, kinds: set[str]
) -> None:
    root = write_set(tmp_path, csv, **tables)
    reading = read_leniently(root)
    assert {(finding.kind, finding.is_error) for finding in reading.findings} == {(kind, False) for kind in kinds}
    assert (reading.num_rows, reading.num_used) == (2, num_used)
    assert reading.annotations is not None
    assert_equal_tables(reading.annotations, read_annotations(root))


@pytest.mark.parametrize(
    ("csv", "tables", "errors", "num_rows"),
    [
        (None, {}, {"missing"}, 0),
        (HEADER, {}, {"no defect"}, 0),
        (HEADER + "a.png,x,1 2\n", {}, {"class"}, 1),  # the row already explains it
        ("ImageId_ClassId,EncodedPixels\na.png_1,\nb.png_1,\n", {}, {"no defect"}, 2),
        # Unused valid rows are reported although there are other errors.
        ("ImageId_ClassId,EncodedPixels\na.png_1,\nb.png_x,\n", {}, {"no defect", "class"}, 2),
        ("ImageId_ClassId,EncodedPixels\na.png_1,\n", {"groups": ""}, {"no defect", "empty file"}, 1),
    ],
)
def test_without_a_class_there_is_no_table_but_a_reason(
    tmp_path: Path, csv: str | None, tables: dict[str, str], errors: set[str], num_rows: int
) -> None:
    reading = read_leniently(write_set(tmp_path, csv, **tables))
    assert reading.annotations is None
    assert {finding.kind for finding in reading.findings} == errors
    assert all(finding.is_error for finding in reading.findings)
    assert (reading.num_rows, reading.num_used) == (num_rows, 0)


def test_a_missing_train_csv_is_an_error_even_if_classes_are_named(tmp_path: Path) -> None:
    root = write_set(tmp_path, None, classes=NAMED)
    reading = read_leniently(root)
    assert describe(reading.findings, root) == [("train.csv", None, "missing", True)]
    with pytest.raises(InputError, match="there is no such file"):
        read_annotations(root)


@pytest.mark.parametrize(
    ("folder", "form"), [("masks", "masks"), ("labels", "yolo"), ("png_masks", "masks"), ("x", "FORMAT")]
)
def test_labels_in_another_layout_name_the_command_that_converts_them(tmp_path: Path, folder: str, form: str) -> None:
    root = write_set(tmp_path, None)
    (root / folder).mkdir()
    command = f"steel convert {root} NEW_FOLDER --from {form} --to severstal"
    with pytest.raises(
        InputError, match=re.escape(f"there is no such file; add it, or convert other labels: {command}")
    ):
        read_annotations(root)
    (root / "train_images").rename(root / "images")
    with pytest.raises(InputError, match=re.escape(command)):
        read_annotations(root)


def decode_naively(code: str, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Draw a mask pixel by pixel: pixel p, from 1, is in column (p - 1) // H and row (p - 1) % H."""
    mask = np.zeros(size, bool)
    numbers = [int(word) for word in code.split()]
    for start, length in zip(numbers[::2], numbers[1::2], strict=True):
        for pixel in range(start - 1, start - 1 + length):
            mask[pixel % size[0], pixel // size[0]] = True
    return mask


UNKNOWN = "ImageId,EncodedPixels\nc.png,3 4 9 1\na.png,2 5\n"


def test_unlabelled_regions_are_the_highest_bit(tmp_path: Path) -> None:
    table = read_annotations(write_set(tmp_path, PLAIN, unknown=UNKNOWN))
    assert {i: runs.tolist() for i, runs in table.unknown.items()} == {0: [2, 5], 2: [3, 4, 9, 1]}
    codes = {0: ("1 3", "", "2 5"), 1: ("", "", ""), 2: ("", "2 2 7 1", "3 4 9 1")}
    for i, (first, second, unknown) in codes.items():
        size = SIZES[str(table.names[i])]
        masks = [decode_naively(code, size) for code in (first, second, unknown)]
        np.testing.assert_array_equal(table.draw_plane(i), masks[0] * 1 + masks[1] * 2 + masks[2] * 128)
        # They are not a class and do not remove labels.
        np.testing.assert_array_equal(table.draw_masks(i), masks[:2])
    assert table.areas.tolist() == [[3, 0], [0, 0], [0, 3]]
    assert table.has_unknown.tolist() == [True, False, True]


def test_an_unreadable_image_does_not_shift_regions(tmp_path: Path) -> None:
    root = write_set(tmp_path, HEADER + "a.png,1,1 3\n", unknown=UNKNOWN + "b.png,99 99\n")
    (root / "train_images" / "b.png").write_bytes(b"")
    reading = read_leniently(root)
    assert describe(reading.findings, root) == [("train_images/b.png", None, "unreadable image", True)]
    assert reading.annotations is not None
    assert {i: runs.tolist() for i, runs in reading.annotations.unknown.items()} == {0: [2, 5], 1: [3, 4, 9, 1]}


def test_without_unknown_csv_every_pixel_is_labelled(tmp_path: Path) -> None:
    plain = read_annotations(write_set(tmp_path / "plain", PLAIN))
    assert plain.unknown == {}
    assert not plain.has_unknown.any()
    for name, text in (("header", "ImageId,EncodedPixels\n"), ("empty", "ImageId,EncodedPixels\na.png,\n")):
        assert_equal_tables(read_annotations(write_set(tmp_path / name, PLAIN, unknown=text)), plain)


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
        "0.png,1 1 3 1 5 7 12 1\n",  # the same numbers in the same order on one image
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
