"""Files of predictions, and what is refused of them."""

from pathlib import Path

import pytest

from formats.fakes import draw_masks, write_names, write_root
from steel.data.formats.severstal import read_severstal
from steel.errors import InputError


@pytest.mark.parametrize("old", [False, True])
def test_predictions_travel(tmp_path: Path, old: bool) -> None:
    images = write_root(tmp_path / "data", draw_masks(2)) / "train_images"
    rows = ["a.png,1,1 2 9 3", "a.png,2,", "b b.jpg,2,4 1 5 1", "clean.png,4,"]
    text = "\n".join(["ImageId,ClassId,EncodedPixels", *rows]) + "\n"
    if old:
        text = text.replace("ImageId,ClassId", "ImageId_ClassId").replace("g,", "g_")
    (tmp_path / "submission.csv").write_text(text)
    labels = read_severstal(tmp_path / "submission.csv", images)
    assert labels.classes == ("1", "2", "3", "4")
    codes = {image.name: {c: runs.tolist() for c, runs in image.codes.items()} for image in labels.images}
    assert codes == {"a.png": {0: [1, 2, 9, 3]}, "b b.jpg": {1: [4, 2]}, "c.1.png": {}, "d_2.bmp": {}, "clean.png": {}}
    write_names(tmp_path, "pit,b,c,d")
    assert read_severstal(tmp_path / "submission.csv", images).classes == ("pit", "b", "c", "d")


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ("a.png,1,1 2\nz.png,1,1 2\n", 'line 3: no image "z.png" in'),
        ("a.png,1,1 2\na.png,1,5 2\n", "line 3: class 1 of a.png stands in an earlier line too"),
        ("a.png,9,1 2\n", 'line 2: classes are 1 to 8, but "9" came'),
        ("a.png,x,1 2\n", 'line 2: classes are 1 to 8, but "x" came'),
        ("a.png,1,1 2 3\n", r"line 2: .* odd count of numbers, 3 \(class 1 of a.png\)"),
        ("a.png,1,1 9999\n", "line 2: the run of 9999 pixels from pixel 1 goes beyond the image"),
        ("a.png,1\n", "line 2: 2 cells stand in the row"),
    ],
)
def test_prediction_refusals(tmp_path: Path, rows: str, sentence: str) -> None:
    root = write_root(tmp_path / "data", draw_masks())
    path = tmp_path / "submission.csv"
    path.write_text("ImageId,ClassId,EncodedPixels\n" + rows)
    with pytest.raises(InputError, match=sentence) as error:
        read_severstal(path, root / "train_images")
    assert str(path) in str(error.value)
    with pytest.raises(InputError, match="give the folder of its images with --images"):
        read_severstal(path, None)


def test_class_names_have_to_be_right_and_enough(tmp_path: Path) -> None:
    images = write_root(tmp_path / "data", draw_masks()) / "train_images"
    path = tmp_path / "submission.csv"
    path.write_text("ImageId,ClassId,EncodedPixels\na.png,1,1 2\na.png,3,\n")
    write_names(tmp_path, "p,q")
    with pytest.raises(InputError, match=r"submission.csv, line 3 has class 3, but .*classes.csv names 2 classes"):
        read_severstal(path, images)
    (tmp_path / "classes.csv").write_text("ClassId,name\n0,p\n1,q\n2,r\n")
    with pytest.raises(InputError, match="ClassId counts 1, 2, 3"):
        read_severstal(path, images)
