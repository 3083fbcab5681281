"""YOLO, compared with a naive even-odd rule, and in the variants of CVAT, Ultralytics and Label Studio."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from formats.fakes import BAD_OUTLINE, HOLED, assert_same, draw_masks, fill_even_odd, pack, unpack, write_blank
from steel.data.formats import outlines
from steel.data.formats.yolo import read_yolo, write_yolo
from steel.errors import InputError


def write_data(root: Path, text: str, names: str = "names: [pit, scratch]\n", subset: str = "") -> Path:
    write_blank(root / "images" / subset / "a.png", (10, 20))
    (root / "labels" / subset).mkdir(parents=True)
    (root / "labels" / subset / "a.txt").write_text(text)
    (root / ("classes.txt" if ":" not in names else "data.yaml")).write_text(names)
    return root


def test_written_files(tmp_path: Path) -> None:
    masks = draw_masks(4)
    assert write_yolo(pack(masks), tmp_path) == {}
    content = yaml.safe_load((tmp_path / "data.yaml").read_text())
    assert content == {"train": "images", "val": "images", "names": {0: "pit", 1: "Riß", 2: "a: b"}}
    assert (tmp_path / "labels" / "clean.txt").read_text() == ""
    for name, mask in masks.items():
        drawn = np.zeros_like(mask)
        for line in (tmp_path / "labels" / f"{Path(name).stem}.txt").read_text().splitlines():
            c, *numbers = line.split()
            points = np.array(numbers, float).reshape(-1, 2)
            assert 0 <= points.min() <= points.max() <= 1
            drawn[int(c)] |= fill_even_odd(points * mask.shape[:0:-1], mask.shape[1:])
        np.testing.assert_array_equal(drawn, mask, err_msg=name)


@pytest.mark.parametrize(
    ("names", "subset"),
    [
        ("path: ./\ntrain: train.txt\nnames:\n  0: pit\n  1: scratch\n", "train"),  # CVAT
        ("names: [pit, scratch]\nnc: 2\n", ""),  # Ultralytics
        ("pit\nscratch\n", ""),  # Label Studio
    ],
)
def test_files_of_other_tools(tmp_path: Path, names: str, subset: str) -> None:
    text = "1 0.1 0.2 0.3 0.2 0.3 0.5 0.1 0.5\n\n1 0 0 0.1 0 0.1 0.1 0 0.1 \n0 1 1 1 0.9 0.95 0.9 0.95 1\n"
    root = write_data(tmp_path, text, names, subset)
    write_blank(root / "images" / "clean.png", (2, 3))  # no text file
    labels = read_yolo(root, None)
    assert labels.classes == ("pit", "scratch")
    expected = np.zeros((2, 10, 20), bool)
    expected[1, 2:5, 2:6] = expected[1, 0, :2] = expected[0, 9, 19] = True
    assert_same(unpack(labels), {"a.png": expected, "clean.png": np.zeros((2, 2, 3), bool)})


def test_outlines_without_pixels_are_counted(tmp_path: Path) -> None:
    labels = read_yolo(write_data(tmp_path, "1 0.1 0.2 0.3 0.2 0.3 0.5\n0 0.5 0.5 0.5 0.5 0.51 0.5\n"), None)
    assert (labels.num_empty, list(labels.images[0].runs)) == (1, [1])


def test_changed_pixels_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outlines, "trace", lambda runs, size: BAD_OUTLINE)
    assert write_yolo(pack({"a.png": HOLED}), tmp_path) == {"a.png": 10}


@pytest.mark.parametrize(
    ("text", "names", "message"),
    [
        ("\n0 0.1 0.1 0.2 0.2 0.3\n", "names: [a]", "a.txt, line 2: it has a polygon of 5 numbers"),
        ("0 0.1 0.1 0.2 0.2\n", "names: [a]", "line 1: it is a box"),
        ("0 0.1 0.1\n", "names: [a]", "line 1: it has a polygon of 1 points"),
        ("0 0.1 0.1 0.2 0.2 0.3 1.11\n", "names: [a]", "line 1: it has the coordinate 1.11"),
        ("0 0.1 0.1 0.2 0.2 0.3 nan\n", "names: [a]", "line 1: it has the coordinate nan"),
        ("0 0.1 0.1 0.2 0.2 0.3 x\n", "names: [a]", "line 1: it must hold a class and coordinates"),
        ("1 0.1 0.1 0.2 0.2 0.3 0.4\n", "names: [a]", "line 1: it has class 1, but the classes are 0 to 0"),
        ("", "names: {1: a, 2: b}", "data.yaml: names must be a list or 0: name"),
        ("", "nc: 3", "data.yaml: names must be"),
        ("", "names: [a", "data.yaml: it cannot be read"),
    ],
)
def test_errors_in_files(tmp_path: Path, text: str, names: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        read_yolo(write_data(tmp_path, text, names), None)
    assert str(tmp_path) in str(error.value)


def test_labels_and_images_must_match(tmp_path: Path) -> None:
    root = write_data(tmp_path, "")
    (root / "labels" / "b.txt").write_text("")
    with pytest.raises(InputError, match=r'b.txt: no image has the stem "b"'):
        read_yolo(root, None)
    (root / "labels" / "b.txt").unlink()
    write_blank(root / "images" / "a.jpg")
    with pytest.raises(InputError, match='have the same stem "a"'):
        read_yolo(root, None)
    (root / "data.yaml").unlink()
    with pytest.raises(InputError, match=r"no file .*data.yaml \(or classes.txt\)"):
        read_yolo(root, None)


def test_missing_folders_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("pit\n")
    with pytest.raises(InputError, match=r"no folder .*images; put the images there"):
        read_yolo(tmp_path, None)
    (tmp_path / "images").mkdir()
    with pytest.raises(InputError, match=r"no image in .*images; images end in"):
        read_yolo(tmp_path, None)
    write_blank(tmp_path / "images" / "a.png")
    with pytest.raises(InputError, match=r"no folder .*labels; put the labels there"):
        read_yolo(tmp_path, None)


def test_coordinates_may_be_a_pixel_outside(tmp_path: Path) -> None:
    text = "0 -0.0011 -0.0011 1.00019 -0.0011 1.00019 1.00019 -0.0011 1.00019\n"
    labels = read_yolo(write_data(tmp_path, text), None)
    assert unpack(labels)["a.png"][0].all()
    for number in ("1.0501", "-0.0501"):  # 1.002 of 20 pixels
        (tmp_path / "labels" / "a.txt").write_text(f"0 0 0 {number} 0 1 1\n")
        with pytest.raises(InputError, match=f"has the coordinate {number}"):
            read_yolo(tmp_path, None)


def test_byte_order_marks_and_files_of_macos_do_not_matter(tmp_path: Path) -> None:
    text = "\ufeff1 0.1 0.2 0.3 0.2 0.3 0.5 0.1 0.5\n"
    root = write_data(tmp_path, text, "\ufeffnames: [pit, scratch]\n")
    for hidden in ("images/._a.png", "labels/._a.txt", "labels/.DS_Store", "images/__MACOSX/a.png"):
        (root / hidden).parent.mkdir(exist_ok=True)
        (root / hidden).write_bytes(b"\0\5\x16\7")
    labels = read_yolo(root, None)
    assert [image.name for image in labels.images] == ["a.png"]
    assert unpack(labels)["a.png"].sum(axis=(1, 2)).tolist() == [0, 12]


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("Capture_d\u00e9cran.png", "Capture_d%C3%A9cran.txt"),
        ("pru\u0308f.png", "pr\u00fcf.txt"),
        ("0001.png", "1a2b3c4d-0001.txt"),
    ],
)
def test_labels_find_images_that_are_spelt_differently(tmp_path: Path, image: str, label: str) -> None:
    root = write_data(tmp_path, "1 0.1 0.2 0.3 0.2 0.3 0.5 0.1 0.5\n")
    (root / "images" / "a.png").rename(root / "images" / image)
    (root / "labels" / "a.txt").rename(root / "labels" / label)
    labels = read_yolo(root, None)
    assert unpack(labels)[image].sum(axis=(1, 2)).tolist() == [0, 12]
    (root / "labels" / f"{Path(image).stem}.txt").write_text("")
    with pytest.raises(InputError, match=r"are both labels of .*; remove one"):
        read_yolo(root, None)


def test_names_of_classes_stay_text(tmp_path: Path) -> None:
    root = write_data(tmp_path, "", "names: [no, 1e3, 08, 2024-01-01, ~]\n")
    assert read_yolo(root, None).classes == ("no", "1e3", "08", "2024-01-01", "~")
    (root / "data.yaml").write_text("names:\n  0: off\n  '1': 1.0\n")
    assert read_yolo(root, None).classes == ("off", "1.0")
    for names in ("names: [pit, '']", "names: [pit, [a, b]]", "names: {0: pit, 1: }"):
        (root / "data.yaml").write_text(names)
        with pytest.raises(InputError, match="names must be a list"):
            read_yolo(root, None)


@pytest.mark.parametrize("word", ["1.5", "pit", "1_0", "true"])
def test_a_class_must_be_a_whole_number(tmp_path: Path, word: str) -> None:
    with pytest.raises(InputError, match=f'line 1: it must start with the number of a class, got "{word}"'):
        read_yolo(write_data(tmp_path, f"{word} 0.1 0.1 0.2 0.2 0.3 0.4\n"), None)


def test_the_parts_of_roboflow_are_read_together(tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text("train: ../train/images\nval: ../valid/images\nnc: 1\nnames: ['pit']\n")
    for part, name in (("train", "a_jpg.rf.01"), ("valid", "b_jpg.rf.02"), ("test", "c_jpg.rf.03")):
        write_blank(tmp_path / part / "images" / f"{name}.jpg", (10, 20))
        (tmp_path / part / "labels").mkdir()
        (tmp_path / part / "labels" / f"{name}.txt").write_text("0 0.1 0.2 0.3 0.2 0.3 0.5 0.1 0.5\n")
    drawn = {name: mask.sum() for name, mask in unpack(read_yolo(tmp_path, None)).items()}
    assert drawn == {"a_jpg.rf.01.jpg": 12, "b_jpg.rf.02.jpg": 12, "c_jpg.rf.03.jpg": 12}
