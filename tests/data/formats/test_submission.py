"""Submissions in both forms, and errors in them."""

from pathlib import Path

import pytest

from formats.fakes import draw_masks, write_names, write_root
from steel.data.formats.submission import SubmissionFormat, head_submission, list_codes, read_submission
from steel.errors import InputError


@pytest.mark.parametrize("form", ["new", "old"])
def test_written_submissions_are_read(tmp_path: Path, form: SubmissionFormat) -> None:
    images = write_root(tmp_path / "data", draw_masks(2)) / "train_images"
    codes = {"a.png": ["1 2 9 3", ""], "b b.jpg": ["", "4 1 5 1"], "clean.png": ["", "", "", ""]}
    rows = [head_submission(form), *(row for name, some in codes.items() for row in list_codes(name, some, form))]
    path = tmp_path / "submission.csv"
    path.write_text("".join(f"{','.join(row)}\n" for row in rows))
    labels = read_submission(path, images)
    assert labels.classes == ("1", "2", "3", "4")
    found = {image.name: {c: runs.tolist() for c, runs in image.runs.items()} for image in labels.images}
    assert found == {"a.png": {0: [1, 2, 9, 3]}, "b b.jpg": {1: [4, 2]}, "c.1.png": {}, "d_2.bmp": {}, "clean.png": {}}
    write_names(tmp_path, "pit,b,c,d")
    assert read_submission(path, images).classes == ("pit", "b", "c", "d")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("a.png,1,1 2\nz.png,1,1 2\n", 'line 3: no image "z.png" in .*data/train_images'),
        ("a.png,1,1 2\na.png,1,5 2\n", "line 3: class 1 of a.png is also in line 2"),
        ("a.png,9,1 2\n", "line 2 has class 9, but there are at most 8 classes"),
        ("a.png,9,\n", "line 2 has class 9, but there are at most 8 classes"),
        ("a.png,x,1 2\n", 'line 2: the class must be .*, got "x"'),
        ("a.png,1,1 2 3\n", r"line 2: .* odd count of numbers \(3\) \(class 1 of a.png\)"),
        ("a.png,1,1 9999\n", "line 2: the run of 9999 pixels from pixel 1 goes beyond the image"),
        ("a.png,1\n", "line 2: the row has 2 cells"),
    ],
)
def test_errors_in_rows(tmp_path: Path, rows: str, message: str) -> None:
    root = write_root(tmp_path / "data", draw_masks())
    path = tmp_path / "submission.csv"
    path.write_text("ImageId,ClassId,EncodedPixels\n" + rows)
    with pytest.raises(InputError, match=message) as error:
        read_submission(path, root / "train_images")
    assert str(path) in str(error.value)
    with pytest.raises(InputError, match="give the folder of its images with --images"):
        read_submission(path, None)


def test_classes_csv_must_be_valid_and_name_every_class(tmp_path: Path) -> None:
    images = write_root(tmp_path / "data", draw_masks()) / "train_images"
    path = tmp_path / "submission.csv"
    path.write_text("ImageId,ClassId,EncodedPixels\na.png,1,1 2\na.png,3,\n")
    write_names(tmp_path, "p,q")
    with pytest.raises(InputError, match=r"submission.csv, line 3 has class 3, but .*classes.csv names 2 classes"):
        read_submission(path, images)
    (tmp_path / "classes.csv").write_text("ClassId,name\n0,p\n1,q\n2,r\n")
    with pytest.raises(InputError, match="ClassId must count 1, 2, 3"):
        read_submission(path, images)
