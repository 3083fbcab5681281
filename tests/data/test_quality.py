"""Tests of `steel check`: every kind of damage is reported with file, line and level, and no damaged row is lost."""

import csv
import errno
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from steel.cli import main
from steel.data.annotations import Annotations, read_annotations, read_leniently
from steel.data.quality import Report, examine
from steel.errors import InputError

HEADER = "ImageId,ClassId,EncodedPixels\n"
Mask = NDArray[np.uint8]
Found = set[tuple[str, int | None, str, bool]]


def describe(report: Report, root: Path) -> Found:
    return {(str(f.file.relative_to(root)), f.line, f.kind, f.is_error) for f in report.findings}


def read_grey(path: Path) -> Mask:
    return np.asarray(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE), np.uint8)


def split_rows(root: Path) -> tuple[list[str], list[str]]:
    """Return the names of clean images, and the rows of train.csv."""
    rows = (root / "train.csv").read_text().splitlines()[1:]
    named = {row.split(",")[0] for row in rows}
    return sorted({path.name for path in (root / "train_images").iterdir()} - named), rows


def write_speckle(path: Path, size: tuple[int, int] = (4, 6), seed: int = 0) -> None:
    cv2.imwrite(str(path), np.random.default_rng(seed).integers(0, 256, size, np.uint8))


def test_valid_dataset_has_no_findings(root: Path) -> None:
    report = examine(root)
    num_rows = len(split_rows(root)[1])
    assert report == Report([], 40, num_rows, num_rows, 0)
    assert report.num_errors == 0


def test_every_kind_of_image_damage_is_reported(root: Path) -> None:
    folder = root / "train_images"
    clean, _ = split_rows(root)
    first = (folder / clean[0]).read_bytes()
    (folder / clean[0]).write_bytes(first[: len(first) * 2 // 3])
    (folder / clean[1]).write_text("not a picture")
    (folder / clean[2]).write_bytes(b"")
    (folder / clean[3]).write_bytes(first[:30])
    colours = np.repeat(read_grey(folder / clean[4])[..., None], 3, axis=2)
    colours[:, :40, 0] = 0
    cv2.imwrite(str(folder / clean[4]), colours)
    write_speckle(folder / clean[5], (40, 100))
    (folder / clean[8]).write_bytes(first[: len(first) * 2 // 3] + b"\xff\xd9")
    exif = Image.Exif()
    exif[274] = 3
    Image.open(folder / clean[9]).save(folder / clean[9], exif=exif)
    (folder / "._a.jpg").write_bytes(b"\0\5\x16\7Mac OS X")
    (folder / "notes.txt").write_text("bought in May")
    (folder / "coil 7").mkdir()
    (folder / "gone.png").symlink_to("nowhere.png")
    cv2.imwrite(str(folder / "deep.png"), read_grey(folder / clean[6]).astype(np.uint16) * 99)
    png = folder / "cut.png"
    cv2.imwrite(str(png), read_grey(folder / clean[6]))
    png.write_bytes(png.read_bytes()[: png.stat().st_size // 2])
    (root / "splits.csv").write_text(f"ImageId,split\n{clean[1]},train\n{clean[7]},val\n")

    expected = {
        (clean[0], "truncated image", True),
        (clean[8], "truncated image", True),
        (clean[9], "orientation", True),
        ("._a.jpg", "not an image", False),
        (clean[1], "not an image", True),
        (clean[2], "empty image", True),
        (clean[3], "unreadable image", True),
        (clean[4], "colour image", False),
        (clean[5], "size", False),
        ("notes.txt", "not an image", False),
        ("coil 7", "folder", False),
        ("gone.png", "no file", True),
        ("deep.png", "not 8 bits", True),
        ("cut.png", "truncated image", True),
    }
    report = examine(root)
    assert describe(report, root) == {(f"train_images/{name}", None, kind, bad) for name, kind, bad in expected}
    assert len(report.findings) == len(expected)
    assert report.num_errors == sum(bad for *_, bad in expected)
    assert report.num_images == 42
    assert report.num_used == report.num_rows


def test_every_kind_of_row_damage_is_reported(root: Path) -> None:
    clean, rows = split_rows(root)
    (root / "train_images" / clean[9]).write_bytes(b"")
    area = 64 * 128
    bad: list[tuple[bytes, str | None, bool]] = [
        (f"{clean[0]},1,1 2 9".encode(), "odd code", True),
        (f"{clean[0]},2,1 2 x 4".encode(), "not numbers", True),
        (f"{clean[0]},3,-1 2".encode(), "not numbers", True),
        (f"{clean[0]},4,0 5".encode(), "zero or negative", True),
        (f"{clean[1]},1,7 0".encode(), "zero or negative", True),
        (f"{clean[1]},2,50 2 7 3".encode(), "unsorted runs", True),
        (f"{clean[1]},3,5 9 7 3".encode(), "overlapping runs", True),
        (f"{clean[1]},4,5 4 9 3".encode(), "touching runs", False),
        (f"{clean[2]},1,{area} 2".encode(), "beyond the image", True),
        (f"{clean[2]},2,{2**63 - 1} 1 5 1".encode(), "beyond the image", True),
        (rows[0].encode(), "duplicate row", True),
        (f"{clean[3]},5,1 2".encode(), "class", True),
        (f"{clean[3]},0,1 2".encode(), "class", True),
        (f"{clean[3]},two,1 2".encode(), "class", True),
        (f"{clean[3]},-1,1 2".encode(), "class", True),
        (b"nowhere.jpg,1,1 2", "missing image", True),
        (f"{clean[4]},1,".encode(), "empty code", True),
        (f"{clean[4]},2".encode(), "cells", True),
        (f"{clean[4]},3,1 2,5 6".encode(), "cells", True),
        (f'{clean[4]},4,"1 2'.encode(), "quotes", True),
        (clean[5].encode() + b"\xff,1,1 2", "encoding", True),
        (f"{clean[9]},1,1 2".encode(), "unreadable image", True),
        (b"", None, False),  # a blank line is not a row
        (f'"{clean[5]}","1","3 4"'.encode(), None, False),  # valid
    ]
    lines = [HEADER.strip().encode(), *(row.encode() for row in rows), *(text for text, *_ in bad)]
    (root / "train.csv").write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(lines) + b"\r\n")
    named = {
        ("train.csv", len(rows) + 2 + i, kind, is_error)
        for i, (_, kind, is_error) in enumerate(bad)
        if kind is not None
    }
    of_file = {
        ("train.csv", 1, "byte-order mark", False),
        ("train.csv", None, "line ends", False),
        (f"train_images/{clean[9]}", None, "empty image", True),
    }
    report = examine(root)
    assert describe(report, root) == named | of_file
    assert len(report.findings) == len(named) + len(of_file)
    num_bad = sum(is_error for *_, is_error in bad)
    assert (report.num_rows, report.num_reported) == (len(rows) + len(bad) - 1, num_bad)
    assert report.num_used == len(rows) + 2  # the row with touching runs and the quoted row
    assert report.num_errors == num_bad + 1


def test_older_form_of_train_csv_is_checked(root: Path) -> None:
    clean, rows = split_rows(root)
    good = ["{}_{},{}".format(*row.split(",")) for row in rows]
    bad = [
        (f"{clean[0]}_1,", None),  # valid in this form
        (f"{clean[0]}_7,", None),
        (f"{clean[0]},1 2", "class"),
        (f"{clean[0]}_x,", "class"),
        (f"{clean[0]}_5,1 2", "class"),
        ("nowhere.jpg_1,", "missing image"),
        (f"{clean[0]}_1,1 2", "duplicate row"),
        (f"{clean[1]}_1,1 2,", "cells"),
        (f"{clean[1]}_2,1 2 3", "odd code"),
    ]
    text = "\n".join(["ImageId_ClassId,EncodedPixels", *good, *(row for row, _ in bad)])
    (root / "train.csv").write_text(text)
    report = examine(root)
    assert describe(report, root) == {
        ("train.csv", len(good) + 2 + i, kind, True) for i, (_, kind) in enumerate(bad) if kind
    }
    assert (report.num_rows, report.num_used, report.num_reported) == (len(good) + 9, len(good) + 2, 7)


@pytest.mark.parametrize(
    ("content", "kind", "num_rows"),
    [
        (None, "missing", 0),
        (b"", "empty file", 0),
        (b"ImageId;ClassId;EncodedPixels\na.jpg;1;1 3\n", "delimiter", 1),
        (b"a.jpg,1,1 3\nb.jpg,1,1 3\nc.jpg,1,1 3\n", "columns", 2),
        (HEADER.encode("utf-16"), "encoding", 1),
        (b"ImageId_ClassId,EncodedPixels\nsynthetic_00000.jpg_1,\nsynthetic_00001.jpg_x,\n", "no defect", 2),
    ],
)
def test_unusable_train_csv_is_reported_and_images_are_checked(
    root: Path, content: bytes | None, kind: str, num_rows: int
) -> None:
    (root / "classes.csv").unlink()
    (root / "train.csv").unlink()
    if content is not None:
        (root / "train.csv").write_bytes(content)
    (root / "train_images" / "notes.txt").write_text("")
    report = examine(root)
    errors = {(str(f.file.relative_to(root)), f.kind) for f in report.findings if f.is_error and f.line is None}
    assert errors == {("train.csv", kind)}
    assert ("train_images/notes.txt", None, "not an image", False) in describe(report, root)
    assert (report.num_rows, report.num_used, report.num_reported) == (num_rows, 0, num_rows)
    assert report.num_images == 40


def test_rows_are_reported_if_another_file_has_errors(root: Path) -> None:
    # Without a class no row can be used, whatever the other errors are.
    clean, _ = split_rows(root)
    (root / "classes.csv").unlink()
    (root / "train.csv").write_text(f"ImageId_ClassId,EncodedPixels\n{clean[0]}_1,\n{clean[1]}_1,\n")
    (root / "groups.csv").write_text("ImageId,group\nnowhere.jpg,a\n")
    report = examine(root)
    assert describe(report, root) == {
        ("train.csv", None, "no defect", True),
        ("groups.csv", 2, "missing image", True),
    }
    assert (report.num_rows, report.num_used, report.num_reported) == (2, 0, 2)


def test_images_that_are_all_broken_are_all_named(root: Path) -> None:
    for path in (root / "train_images").iterdir():
        path.write_bytes(b"\xff\xd8\xff")
    report = examine(root)
    num_rows = len(split_rows(root)[1])
    assert sum(finding.kind == "unreadable image" for finding in report.findings) == 40 + num_rows
    assert (report.num_rows, report.num_used, report.num_reported) == (num_rows, 0, num_rows)


def test_duplicates_are_reported(root: Path) -> None:
    folder = root / "train_images"
    clean, rows = split_rows(root)
    defective, class_id, code = rows[0].split(",")
    shutil.copy(folder / clean[0], folder / "z_clean_copy.jpg")
    shutil.copy(folder / defective, folder / "z_other_mask.jpg")
    image = read_grey(folder / clean[1])
    cv2.imwrite(str(folder / "z_mirrored.png"), image[:, ::-1])
    cv2.imwrite(str(folder / "z_re-encoded.jpg"), read_grey(folder / clean[2]), [cv2.IMWRITE_JPEG_QUALITY, 85])
    bright = np.clip(read_grey(folder / clean[3]).astype(float) * 1.15 + 12, 0, 255).astype(np.uint8)
    cv2.imwrite(str(folder / "z_brightened.png"), bright)
    expected = {
        ("z_clean_copy.jpg", "duplicate image", False),
        ("z_other_mask.jpg", "duplicate with another mask", True),
        ("z_mirrored.png", "near-duplicate", False),
        ("z_re-encoded.jpg", "near-duplicate", False),
        ("z_brightened.png", "near-duplicate", False),
    }
    report = examine(root)
    assert describe(report, root) == {(f"train_images/{name}", None, kind, bad) for name, kind, bad in expected}
    messages = {f.file.name: f.message for f in report.findings}
    originals = {
        "z_clean_copy.jpg": clean[0],
        "z_other_mask.jpg": defective,
        "z_mirrored.png": clean[1],
        "z_re-encoded.jpg": clean[2],
        "z_brightened.png": clean[3],
    }
    assert {name for name, original in originals.items() if original in messages[name]} == set(originals)
    assert "mirrored left to right" in messages["z_mirrored.png"]

    # With the same mask it is information only.
    rows_of_copy = [row.replace(defective, "z_other_mask.jpg") for row in rows if row.startswith(f"{defective},")]
    assert f"z_other_mask.jpg,{class_id},{code}" in rows_of_copy
    (root / "train.csv").write_text(HEADER + "\n".join([*rows, *rows_of_copy]))
    again = describe(examine(root), root)
    assert ("train_images/z_other_mask.jpg", None, "duplicate image", False) in again
    assert not any(is_error for *_, is_error in again)


def test_damaged_groups_and_splits_are_reported(root: Path) -> None:
    clean, _ = split_rows(root)
    groups = [
        f"{clean[0]},coil",
        f"{clean[1]},coil",
        "nowhere.jpg,coil",
        f"{clean[0]},other",
        f"{clean[2]},",
        f"{clean[3]},a,b",
    ]
    splits = [
        f"{clean[0]},train",
        f"{clean[1]},val",
        "nowhere.jpg,val",
        f"{clean[0]},train",
        f"{clean[4]},dev",
        clean[5],
    ]
    (root / "groups.csv").write_text("\n".join(["ImageId,group", *groups]))
    (root / "splits.csv").write_text("\n".join(["ImageId,split", *splits]))
    assert describe(examine(root), root) == {
        ("groups.csv", 4, "missing image", True),
        ("groups.csv", 5, "duplicate row", True),
        ("groups.csv", 6, "empty group", True),
        ("groups.csv", 7, "cells", True),
        ("splits.csv", 4, "missing image", True),
        ("splits.csv", 5, "duplicate row", True),
        ("splits.csv", 6, "split", True),
        ("splits.csv", 7, "cells", True),
        ("splits.csv", None, "divided group", True),
    }


def test_damaged_unknown_regions_are_reported(root: Path) -> None:
    names = sorted(path.name for path in (root / "train_images").iterdir())
    rows = [
        (f"{names[0]},1 64", None),
        (f"{names[1]},1 64 3", "odd code"),
        (f"{names[2]},8192 2", "beyond the image"),  # 64 x 128 pixels
        (f"{names[3]},9 3 2 2", "unsorted runs"),
        (f"{names[0]},5 1", "duplicate row"),
        ("nothing.png,1 1", "missing image"),
        (f"{names[4]},100 3 103 2", None),  # runs that touch
    ]
    (root / "unknown.csv").write_text("ImageId,EncodedPixels\n" + "".join(f"{row}\n" for row, _ in rows))
    report = examine(root)
    expected = {("unknown.csv", line, kind, True) for line, (_, kind) in enumerate(rows, 2) if kind}
    assert describe(report, root) == expected
    assert report.num_errors == len(expected)
    reading = read_leniently(root)
    assert reading.annotations is not None
    assert set(reading.annotations.unknown) == {0, 4}


def test_classes_are_checked(root: Path) -> None:
    (root / "classes.csv").write_text("ClassId,name\n1,pits\n2,crack\n3,scratch\n4,patch\n5,lamination\n")
    assert describe(examine(root), root) == {("train.csv", None, "empty class", False)}
    (root / "classes.csv").write_text("ClassId,name\n1,pits\n3,crack\n")
    assert describe(examine(root), root) == {("classes.csv", None, "class", True)}


def test_a_dataset_without_any_defect_is_warned_of(root: Path) -> None:
    (root / "classes.csv").write_text("ClassId,name\n1,pits\n2,crack\n")
    (root / "train.csv").write_text("ImageId,ClassId,EncodedPixels\n")
    assert describe(examine(root), root) == {("train.csv", None, "no defect", False)}


def test_few_different_sizes_are_reported_individually_and_many_together(root: Path) -> None:
    folder = root / "train_images"
    clean, _ = split_rows(root)
    for i, name in enumerate(clean[:4]):  # a tenth of 40
        write_speckle(folder / name, (50 + i, 90), seed=i)
    odd = {(f"train_images/{name}", None, "size", False) for name in clean[:4]}
    report = examine(root)
    assert describe(report, root) == odd
    assert "90 x 50 pixels, most have 128 x 64" in report.findings[0].message
    write_speckle(folder / clean[4], (64, 300), seed=9)
    report = examine(root)
    assert describe(report, root) == {("train_images", None, "sizes", False)}
    assert "6 different sizes: width 90 to 300, height 50 to 64" in report.findings[0].message


def test_exit_status_and_summary(root: Path, capsys: pytest.CaptureFixture[str], refused: Callable[..., str]) -> None:
    assert main(["check", str(root)]) == 0
    clean, rows = split_rows(root)
    out = capsys.readouterr().out.splitlines()
    assert out == [
        f"40 images; train.csv: {len(rows)} rows = {len(rows)} used + 0 reported",
        "0 errors, 0 for information",
    ]
    (root / "train_images" / "notes.txt").write_text("")
    assert main(["check", str(root)]) == 0
    assert "0 errors, 1 for information" in capsys.readouterr().out
    with (root / "train.csv").open("a") as file:
        file.write(f"{clean[0]},1,1 2 3\n")
    assert main(["check", str(root)]) == 1
    out = capsys.readouterr().out
    assert out.endswith("\n1 error, 1 for information\n")
    assert f"train.csv:{len(rows) + 2}  " in out
    assert f"{len(rows) + 1} rows = {len(rows)} used + 1 reported" in out
    assert out.index("error: odd code (1)") < out.index("information: not an image (1)")
    assert "no folder" in refused("check", root / "nowhere")
    assert "no folder" in refused("check", root / "train_images")


def test_findings_are_shown_if_the_file_cannot_be_written(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "train_images" / "notes.txt").write_text("")
    assert main(["check", str(root), f"--out={root / 'train.csv' / 'findings.json'}"]) == 2
    shown = capsys.readouterr()
    assert "notes.txt" in shown.out
    assert shown.err.startswith("steel: ")
    assert len(shown.err.splitlines()) == 1


def test_file_has_all_findings_and_the_screen_counts_the_rest(
    root: Path, capsys: pytest.CaptureFixture[str], refused: Callable[..., str]
) -> None:
    num_rows = len(split_rows(root)[1])
    with (root / "train.csv").open("a") as file:
        file.writelines(f"nowhere_{i:02}.jpg,1,1 2\n" for i in range(11))
    out = root / "reports" / "check.json"
    assert main(["check", str(root), "--out", str(out)]) == 1
    shown = capsys.readouterr().out
    assert [f"nowhere_{i:02}.jpg" in shown for i in range(11)] == [True] * 8 + [False] * 3
    assert "and 3 more; save all of them with --out" in shown
    written = json.loads(out.read_text())
    assert {key: written[key] for key in ("num_images", "num_rows", "num_used", "num_reported", "num_errors")} == {
        "num_images": 40,
        "num_rows": num_rows + 11,
        "num_used": num_rows,
        "num_reported": 11,
        "num_errors": 11,
    }
    assert [finding["line"] for finding in written["findings"]] == [num_rows + 2 + i for i in range(11)]
    assert {(f["file"], f["kind"], f["is_error"]) for f in written["findings"]} == {
        ("train.csv", "missing image", True)
    }
    assert [f"nowhere_{i:02}.jpg" in finding["message"] for i, finding in enumerate(written["findings"])] == [True] * 11

    before = (root / "train.csv").read_bytes()
    assert "must end in .json" in refused("check", root, "--out", root / "train.csv")
    assert (root / "train.csv").read_bytes() == before


def test_names_that_look_like_markup_are_shown_literally(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "train_images" / "[bold].jpg").write_bytes(b"")
    (root / "train_images" / "[red] ä.txt").write_text("")
    with (root / "train.csv").open("a") as file:
        file.write("[link=x].jpg,1,1 2\n")
    assert main(["check", str(root)]) == 1
    out = capsys.readouterr().out
    for name in ("train_images/[bold].jpg ", "train_images/[red] ä.txt ", '"[link=x].jpg"'):
        assert name in out


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_file_name_that_is_not_utf8_is_an_error(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clean, _ = split_rows(root)
    folder = os.fsencode(root / "train_images")
    os.rename(os.path.join(folder, clean[0].encode()), os.path.join(folder, b"gr\xfcn.jpg"))
    assert main(["check", str(root), "--out", str(root / "check.json")]) == 1
    assert "train_images/gr\\udcfcn.jpg  " in capsys.readouterr().out
    (finding,) = json.loads((root / "check.json").read_text())["findings"]
    assert (finding["file"], finding["kind"]) == ("train_images/gr\udcfcn.jpg", "file name")


def test_file_without_permission_is_reported_and_others_are_checked(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean, _ = split_rows(root)
    locked, broken = (root / "train_images" / name for name in clean[:2])
    broken.write_bytes(b"")
    open_any = Path.open

    def refuse(path: Path, *args: Any, **kwargs: Any) -> Any:
        if path == locked:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return open_any(path, *args, **kwargs)

    # Root ignores file permissions, so the error is simulated.
    monkeypatch.setattr(Path, "open", refuse)
    found = {finding.file: finding for finding in examine(root).findings}
    assert set(found) == {locked, broken}
    assert found[locked].kind == "unreadable image"
    assert "Permission denied" in found[locked].message
    assert found[broken].kind == "empty image"


def test_real_images_have_no_errors(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    root = Path(shutil.copytree(real_data("severstal-mini"), tmp_path / "mini"))
    report = examine(root)
    assert report.num_errors == 0
    assert report.num_used == report.num_rows == 14
    name = sorted(path.name for path in (root / "train_images").iterdir())[0]
    path = root / "train_images" / name
    path.write_bytes(path.read_bytes()[:-2000])
    assert (f"train_images/{name}", None, "truncated image", True) in describe(examine(root), root)


SIZES = {"a.png": (4, 6), "b.png": (3, 5), "c_1.png": (5, 3)}
GOOD = [
    ("a.png", 1, "1 3 9 4"),
    ("a.png", 3, "24 1"),
    ("b.png", 2, "2 2 7 1"),
    ("c_1.png", 1, "15 1"),
    ("b.png", 1, "1 2 3 1"),
]
MARKS = [b",", b";", b'"', b"\n", b"\r", b"\r\n", b"\n\n", b" ", b"\t", b"0", b"9", b"-", b"+", b"x", b"_", b"\0"]
LETTERS = [b"\xff", b"\xef\xbb\xbf", b"\xc3\xa9", b"\xef\xbc\x92", b"99999999999999999999 1 "]
SCRAPS = st.sampled_from([*MARKS, *LETTERS, b",,", b"a.png,1,1 3\n", b"a.png_2,\n"])
PLACES = st.integers(0, 10**6)


def damage(content: bytes, how: str, scrap: bytes, one: int, other: int) -> bytes:
    """Damage content in one way; the numbers determine the place."""
    start, stop = sorted((one % (len(content) + 1), other % (len(content) + 1)))
    lines = content.split(b"\n")
    i, k = one % len(lines), other % len(lines)
    match how:
        case "overwrite":
            return content[:start] + scrap + content[start + 1 :]
        case "insert":
            return content[:start] + scrap + content[start:]
        case "delete":
            return content[:start] + content[min(stop, start + 9) :]
        case "truncate":
            return content[:stop]
        case "repeat line":
            return b"\n".join([*lines[:k], lines[i], *lines[k:]])
        case "lose line":
            return b"\n".join(lines[:i] + lines[i + 1 :])
        case "end lines otherwise":
            return content.replace(b"\n", b"\r\n" if one % 2 else b"\r", 1 + other % 6)
        case "quote":
            return content.replace(lines[i], b",".join(b'"%s"' % cell for cell in lines[i].split(b",")))
        case _:
            return content.replace(b",", b";\t|"[one % 3 : one % 3 + 1], 1 + other % 9)


ACCIDENTS = st.tuples(
    st.sampled_from(["overwrite", "insert", "delete", "truncate", "repeat line", "lose line"])
    | st.sampled_from(["end lines otherwise", "quote", "separate otherwise"]),
    SCRAPS,
    PLACES,
    PLACES,
)


@st.composite
def damaged_tables(draw: st.DrawFn) -> bytes:
    rows = draw(st.lists(st.sampled_from(GOOD), min_size=2, max_size=5, unique_by=lambda row: row[:2]))
    if draw(st.booleans()):
        lines = [HEADER.strip(), *(f"{name},{class_id},{code}" for name, class_id, code in rows)]
    else:
        lines = ["ImageId_ClassId,EncodedPixels", *(f"{name}_{class_id},{code}" for name, class_id, code in rows)]
        lines.insert(draw(st.integers(1, len(lines))), "c_1.png_2,")
    content = "\n".join([*lines, ""]).encode()
    for accident in draw(st.lists(ACCIDENTS, max_size=3)):
        content = damage(content, *accident)
    return content


def read_line_naively(header: list[str], line: str) -> tuple[str, int, str]:
    """Return image, class and code of a valid line."""
    cells = [cell.strip() for cell in next(csv.reader([line]))]
    assert len(cells) == len(header)
    of = dict(reversed(list(zip(header, cells, strict=True))))
    if "ImageId" in of and "ClassId" in of:
        return of["ImageId"], int(of["ClassId"]), of["EncodedPixels"]
    name, class_id = of["ImageId_ClassId"].rsplit("_", 1)
    return name, int(class_id), of["EncodedPixels"]


def draw_naively(rows: list[tuple[str, int, str]]) -> dict[str, list[list[int]]]:
    planes = {name: np.zeros(size, int) for name, size in SIZES.items()}
    for name, class_id, code in rows:
        numbers = [int(word) for word in code.split(" ") if word]
        for start, length in zip(numbers[::2], numbers[1::2], strict=True):
            for pixel in range(start - 1, start - 1 + length):
                planes[name][pixel % SIZES[name][0], pixel // SIZES[name][0]] += 1 << (class_id - 1)
    return {name: plane.tolist() for name, plane in planes.items()}


def draw_table(table: Annotations) -> dict[str, list[list[int]]]:
    return {str(name): table.draw_plane(i).tolist() for i, name in enumerate(table.names)}


@pytest.fixture(scope="module")
def small_sets(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return valid images without train.csv, the same with named classes, and the same with an unreadable image."""
    roots = [tmp_path_factory.mktemp("small") for _ in range(3)]
    for root in roots:
        (root / "train_images").mkdir()
        for seed, (name, size) in enumerate(SIZES.items()):
            write_speckle(root / "train_images" / name, size, seed)
    (roots[1] / "classes.csv").write_text("ClassId,name\n1,pit\n2,crack\n3,patch\n")
    (roots[2] / "train_images" / "b.png").write_bytes(b"")
    return roots


@settings(max_examples=250)
@given(content=damaged_tables(), place=st.integers(0, 2))
def test_no_row_is_lost(small_sets: list[Path], content: bytes, place: int) -> None:
    root = small_sets[place]
    (root / "train.csv").write_bytes(content)
    text = content.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    lines = {i: line for i, line in enumerate(text.split(b"\n"), 1) if line.strip(b" ,\t")}
    rows = dict(list(lines.items())[1:])

    report = examine(root)
    assert report.num_rows == len(rows) == report.num_used + report.num_reported
    named = [f.line for f in report.findings if f.is_error and f.file == root / "train.csv"]
    reading = read_leniently(root)
    assert (reading.num_rows, reading.num_used) == (report.num_rows, report.num_used)
    if None in named:
        assert report.num_used == 0
        assert reading.annotations is None or not reading.annotations.labels.any()
    else:
        assert len(set(named)) == len(named) == report.num_reported
        assert set(named) <= set(rows)
        used = [line.decode() for i, line in rows.items() if i not in named]
        header = [cell.strip() for cell in next(csv.reader([next(iter(lines.values())).decode()]))]
        expected = draw_naively([read_line_naively(header, line) for line in used])
        if reading.annotations is not None:
            drawn = draw_table(reading.annotations)
            assert drawn == {name: expected[name] for name in SIZES if place < 2 or name != "b.png"}
        else:
            assert not used

    if any(f.is_error for f in reading.findings):
        with pytest.raises(InputError):
            read_annotations(root)
    else:
        strict = read_annotations(root)
        assert reading.annotations is not None
        assert strict.digest == reading.annotations.digest
        assert draw_table(strict) == expected
