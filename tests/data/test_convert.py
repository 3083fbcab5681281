"""Round trips through every format, and the command."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from formats.fakes import assert_same, draw_masks, separate, unpack, write_blank, write_root
from steel import cli
from steel.data.annotations import read_annotations
from steel.data.convert import Format, convert, read_labels
from steel.errors import InputError
from steel.wording import format_count

LOSSLESS: tuple[Format, ...] = ("severstal", "coco", "coco-polygons", "yolo", "masks")


@pytest.mark.parametrize("form", [*LOSSLESS, "index"])
@pytest.mark.parametrize("seed", range(3))
def test_round_trip(tmp_path: Path, form: Format, seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    masks = separate(draw_masks(seed)) if form == "index" else draw_masks(seed)
    root = write_root(tmp_path / "data", masks)
    (root / "groups.csv").write_text("ImageId,group\na.png,coil 7\nclean.png,coil 7\n")
    (root / "splits.csv").write_text("ImageId,split\nclean.png,test\n")
    (root / "unknown.csv").write_text("ImageId,EncodedPixels\nclean.png,2 3\n")
    convert(str(root), str(tmp_path / "there"), **{"from": "severstal", "to": form})
    printed = capsys.readouterr().out
    num_pixels = sum(int(mask.sum()) for mask in masks.values())
    assert f"none of {num_pixels:,} labelled pixels changed" in printed
    assert "5 images, 1 clean" in printed
    convert(str(tmp_path / "there"), str(tmp_path / "back"), **{"from": form, "to": "severstal"})
    back = read_annotations(tmp_path / "back")
    before = read_annotations(root)
    assert back.digest == before.digest  # names, sizes, groups, classes, codes and unknown regions
    assert back.classes == ("pit", "Riß", "a: b")
    for i, name in enumerate(back.names.tolist()):
        plane = sum(mask.astype(int) << c for c, mask in enumerate(masks[name]))
        np.testing.assert_array_equal(back.draw_plane(i) & 0x7F, plane, err_msg=name)
    for path in ["groups.csv", "splits.csv", "unknown.csv", *(f"train_images/{name}" for name in masks)]:
        assert (tmp_path / "back" / path).read_bytes() == (root / path).read_bytes()
    # No temporary files remain.
    assert {path.name for path in tmp_path.iterdir()} == {"data", "there", "back"}


def test_round_trip_of_real_labels_through_every_format(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    before = read_annotations(real_data("severstal-mini"))
    at, known_as = before.root, "severstal"
    for form in [*LOSSLESS[1:], "index", "severstal"]:
        convert(str(at), str(tmp_path / form), **{"from": known_as, "to": form})  # type: ignore[typeddict-item]
        at, known_as = tmp_path / form, form
    assert read_annotations(at).digest == before.digest


def write_coco(root: Path, names: list[str]) -> Path:
    """Write images of 10 x 14 of one class, each with a rectangle of 6 pixels and an outline that covers no pixel."""
    outlines = [[1, 1, 4, 1, 4, 3, 1, 3], [2, 2, 2.2, 2, 2.2, 2.2]]
    annotations = [{"image_id": i, "category_id": 1, "segmentation": [o]} for i in range(len(names)) for o in outlines]
    for name in names:
        write_blank(root / "images" / name)
    content = {
        "images": [{"id": i, "file_name": name, "height": 10, "width": 14} for i, name in enumerate(names)],
        "categories": [{"id": 1, "name": "pit"}],
        "annotations": annotations,
    }
    (root / "result.json").write_text(json.dumps(content))
    return root


def test_labels_are_converted_without_images_if_the_format_stores_sizes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_coco(tmp_path / "data", ["a.png"])
    (root / "images").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r'no image "a.png" .* --images, .* --copy_images=false'):
        convert(str(root), str(tmp_path / "out"), **{"from": "coco", "to": "yolo"})
    assert not (tmp_path / "out").exists()
    convert(str(root), str(tmp_path / "out"), copy_images=False, **{"from": "coco", "to": "yolo"})
    printed = capsys.readouterr().out
    assert f"put the images into {tmp_path / 'out' / 'images'}" in printed
    assert "skipped 1 annotation without a pixel" in printed
    assert not (tmp_path / "out" / "images").exists()
    labels = read_labels(tmp_path / "out", "yolo", tmp_path / "elsewhere")
    assert unpack(labels)["a.png"].sum(axis=(1, 2)).tolist() == [6]
    convert(str(root), str(tmp_path / "full"), images=str(tmp_path / "elsewhere"), **{"from": "coco", "to": "yolo"})
    assert (tmp_path / "full" / "images" / "a.png").is_file()


def test_images_of_the_same_name_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r'two images in different folders are called "a.png"'):
        read_labels(write_coco(tmp_path, ["b.png", "1/a.png", "2/a.png"]), "coco")


@pytest.mark.parametrize("num_classes", [0, 9])
def test_the_number_of_classes_is_limited(tmp_path: Path, num_classes: int) -> None:
    root = write_coco(tmp_path, ["a.png"])
    categories = [{"id": i, "name": str(i)} for i in range(30, 30 + num_classes)]
    content = {**json.loads((root / "result.json").read_text()), "categories": categories, "annotations": []}
    (root / "result.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=f"{tmp_path}: the number of classes must be 1 to 8, got {num_classes}"):
        read_labels(root, "coco")


@pytest.mark.parametrize("form", ["yolo", "masks", "index"])
def test_equal_stems_are_rejected(tmp_path: Path, form: Format) -> None:
    masks = {"a.png": np.ones((1, 3, 3), bool), "a.jpg": np.zeros((1, 3, 3), bool)}
    root = write_root(tmp_path / "data", masks, "pit")
    with pytest.raises(InputError, match='have the same stem "a"'):
        convert(str(root), str(tmp_path / "out"), **{"from": "severstal", "to": form})
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_the_number_of_changed_pixels_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    masks = draw_masks(3)
    root = write_root(tmp_path / "data", masks)
    with pytest.raises(InputError, match="--overlap"):
        convert(str(root), str(tmp_path / "out"), **{"from": "severstal", "to": "index"})
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    convert(str(root), str(tmp_path / "out"), overlap="highest", **{"from": "severstal", "to": "index"})
    after = unpack(read_labels(tmp_path / "out", "index"))
    changed = {name: int((after[name] != mask).sum()) for name, mask in masks.items()}
    total = sum(int(mask.sum()) for mask in masks.values())
    printed = capsys.readouterr().out
    assert f"{sum(changed.values()):,} of {total:,} labelled pixels changed" in printed
    assert (
        f"on {format_count(sum(num > 0 for num in changed.values()), 'image')}, most on a.png ({changed['a.png']:,})"
        in printed
    )


def test_steel_convert(tmp_path: Path, refused: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    masks = draw_masks()
    root, out = write_root(tmp_path / "data", masks), tmp_path / "deep" / "out"
    assert cli.main(["convert", str(root), str(out), "--from", "severstal", "--to=coco-polygons"]) == 0
    assert f"wrote {out}" in capsys.readouterr().out
    assert_same(unpack(read_labels(out, "coco")), masks)
    before = sorted(out.rglob("*"))
    assert f"{out} already exists" in refused("convert", root, out, "--from=severstal", "--to=masks")
    assert sorted(out.rglob("*")) == before
    other = tmp_path / "other"
    other.mkdir()  # an empty folder is accepted
    assert cli.main(["convert", str(out), str(other), "--from=coco", "--to=masks", "--copy_images=false"]) == 0
    assert sorted(path.name for path in other.iterdir()) == ["classes.csv", "masks"]
    assert "--from" in refused("convert", root, tmp_path / "new", "--to=coco")
    assert "voc" in refused("convert", root, tmp_path / "new", "--from=severstal", "--to=voc")
    assert "no file or folder" in refused("convert", tmp_path / "no", tmp_path / "new", "--from=coco", "--to=yolo")
    assert "--images needs a file" in refused(
        "convert", root, tmp_path / "new", "--from=severstal", "--to=yolo", f"--images={other}"
    )
    assert "is a file, but yolo is a folder" in refused(
        "convert", root / "train.csv", tmp_path / "new", "--from=yolo", "--to=coco"
    )
    assert "no folder" in refused(
        "convert", root, tmp_path / "new", "--from=coco", "--to=yolo", f"--images={tmp_path / 'no'}"
    )
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("orientation", [3, 6])
@pytest.mark.parametrize("form", ["coco", "yolo", "masks", "index", "severstal"])
def test_images_that_labelling_tools_show_turned_are_refused(tmp_path: Path, form: Format, orientation: int) -> None:
    """The polygon of a dark corner, drawn where tools show it, would mark the opposite corner of the stored pixels."""
    root = write_root(tmp_path / "data", separate(draw_masks()))
    convert(str(root), str(tmp_path / "labels"), **{"from": "severstal", "to": form})
    (path,) = (tmp_path / "labels").rglob("images/a.png" if form != "severstal" else "train_images/a.png")
    exif = Image.Exif()
    exif[274] = orientation
    Image.open(path).save(path, exif=exif)
    with pytest.raises(InputError, match=rf"a\.png:? .*has the Orientation tag {orientation}"):
        convert(str(tmp_path / "labels"), str(tmp_path / "out"), **{"from": form, "to": "severstal"})
    assert not (tmp_path / "out").exists()
