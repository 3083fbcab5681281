"""PNG masks and index maps, compared with Pillow, and in the variants of CVAT."""

import struct
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from formats.fakes import assert_same, draw_masks, pack, separate, unpack, write_blank, write_names
from steel.data.formats.png_masks import read_index, read_masks, write_index, write_masks
from steel.errors import InputError


def test_written_masks_and_maps(tmp_path: Path) -> None:
    masks = separate(draw_masks(1))
    write_masks(pack(masks), tmp_path)
    assert write_index(pack(masks), tmp_path, "refuse") == {}
    expected = {f"{Path(name).stem}_{c + 1}.png": mask[c] for name, mask in masks.items() for c in range(3)}
    expected = {name: mask for name, mask in expected.items() if mask.any()}
    assert {path.name for path in (tmp_path / "masks").iterdir()} == set(expected)
    for name, one in expected.items():
        values = np.asarray(Image.open(tmp_path / "masks" / name))
        np.testing.assert_array_equal(values, one * 255, err_msg=name)
    for name, mask in masks.items():
        values = np.asarray(Image.open(tmp_path / "index" / f"{Path(name).stem}.png"))
        np.testing.assert_array_equal(values, (mask * np.array([1, 2, 3])[:, None, None]).sum(axis=0), err_msg=name)


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "1"])
def test_masks_of_other_tools(tmp_path: Path, mode: str) -> None:
    mask = np.zeros((6, 5), bool)
    mask[1:3, 2:] = True
    write_blank(tmp_path / "images" / "line_1.jpg", mask.shape)
    picture = Image.fromarray(mask.astype(np.uint8) * (1 if mode == "P" else 255))
    if mode == "P":
        picture.putpalette([0, 0, 0, 250, 50, 50])
    else:
        picture = picture.convert(mode)
    (tmp_path / "masks").mkdir()
    picture.save(tmp_path / "masks" / "line_1_2.PNG")
    labels = read_masks(tmp_path, None)
    assert labels.classes == ("1", "2")
    assert_same(unpack(labels), {"line_1.jpg": np.stack([mask & False, mask])})


def test_two_masks_of_one_defect_are_rejected(tmp_path: Path) -> None:
    write_blank(tmp_path / "images" / "a.png", (3, 5))
    for path in ("masks/a_1.png", "masks/more/a_1.png"):
        write_blank(tmp_path / path, (3, 5))
    with pytest.raises(InputError, match=r'masks/a_1.png and .*more/a_1.png have the same stem "a_1"'):
        read_masks(tmp_path, None)


LABELMAP = "# label:color_rgb:parts:actions\nbackground:0,0,0::\npit:250,50,83::\nnever:1,2,3::\nscratch:51,221,255::\n"


def write_cvat(root: Path, labelmap: str, as_palette: bool) -> NDArray[np.uint8]:
    """Write a dataset with the images a and b, which is clean; return the index map of a."""
    index = np.array([[0, 0, 1], [3, 3, 1]], np.uint8)
    for folder in ("SegmentationClass", "SegmentationObject"):
        (root / folder).mkdir()
    (root / "labelmap.txt").write_text(labelmap)
    for name in ("a", "b"):
        write_blank(root / "JPEGImages" / f"{name}.png", index.shape)
    picture = Image.fromarray(index)
    picture.putpalette([0, 0, 0, 250, 50, 83, 1, 2, 3, 51, 221, 255])
    (picture if as_palette else picture.convert("RGB")).save(root / "SegmentationClass" / "a.png")
    return index


@pytest.mark.parametrize("as_palette", [False, True])
def test_cvat_segmentation_masks(tmp_path: Path, as_palette: bool) -> None:
    index = write_cvat(tmp_path, LABELMAP, as_palette)
    labels = read_index(tmp_path, None)
    assert labels.classes == ("pit", "never", "scratch")
    expected = np.stack([index == 1, index == 2, index == 3])
    assert_same(unpack(labels), {"a.png": expected, "b.png": expected & False})


def test_the_background_may_have_any_line_or_none(tmp_path: Path) -> None:
    write_cvat(tmp_path, LABELMAP, as_palette=True)
    before = unpack(read_index(tmp_path, None))
    for text in (LABELMAP.replace("background:0,0,0::\n", "") + "background:0,0,0::\n", LABELMAP.replace("back", "#")):
        (tmp_path / "labelmap.txt").write_text(text)
        labels = read_index(tmp_path, None)
        assert labels.classes == ("pit", "never", "scratch")
        assert_same(unpack(labels), before)


@pytest.mark.parametrize(
    ("labelmap", "message"),
    [
        (LABELMAP.replace("51", "52"), r"a.png has the colour \(51, 221, 255\), which is not in labelmap.txt"),
        (LABELMAP + "dent:1,2,3::\n", r"labelmap.txt, line 6: another label has the colour \(1, 2, 3\)"),
        (LABELMAP + "dent:1,2::\n", "labelmap.txt, line 6: it must be name:red,green,blue::"),
    ],
)
def test_errors_in_labelmap(tmp_path: Path, labelmap: str, message: str) -> None:
    write_cvat(tmp_path, labelmap, as_palette=False)
    with pytest.raises(InputError, match=message):
        read_index(tmp_path, None)


@pytest.mark.parametrize("overlap", ["lowest", "highest"])
def test_overlaps_are_rejected_or_resolved_and_counted(tmp_path: Path, overlap: Literal["lowest", "highest"]) -> None:
    masks = draw_masks(3)
    (tmp_path / "refused").mkdir()
    with pytest.raises(InputError, match=r"class \d of a.png overlaps another on .* --overlap"):
        write_index(pack(masks), tmp_path / "refused", "refuse")
    changed = write_index(pack(masks), tmp_path, overlap)
    for name, mask in masks.items():
        ids = np.where(mask, np.arange(1, 4)[:, None, None], 99 if overlap == "lowest" else 0)
        winner = ids.min(axis=0) if overlap == "lowest" else ids.max(axis=0)
        values = np.asarray(Image.open(tmp_path / "index" / f"{Path(name).stem}.png"))
        np.testing.assert_array_equal(values, np.where(winner == 99, 0, winner))
        assert changed[name] == mask.sum() - mask.any(axis=0).sum()
    assert "clean.png" not in changed


def draw(value: int, *shape: int) -> NDArray[np.uint8]:
    return np.full(shape, value, np.uint8)


RAMP = np.arange(15, dtype=np.uint8).reshape(3, 5)


@pytest.mark.parametrize(
    ("form", "name", "values", "classes", "message"),
    [
        ("masks", "a_1.png", draw(1, 4, 5), None, "a_1.png is 5 x 4 pixels, but its image a.png is 5 x 3"),
        ("masks", "a_9.png", draw(1, 3, 5), None, "a_9.png: a mask must be called"),
        ("masks", "b_1.png", draw(1, 3, 5), None, 'no image has the stem "b"'),
        ("masks", "task-1-by-2-0.png", draw(1, 3, 5), None, "export COCO instead"),
        ("masks", "a_1.png", RAMP, None, "one value other than 0, got 1 and 2"),
        ("masks", "a_3.png", draw(1, 3, 5), "p,q", "a_3.png has class 3, but .*classes.csv names 2"),
        ("index", "a.png", draw(9, 3, 5), None, "a.png has the value 9, but at most 8"),
        ("index", "a.png", draw(3, 3, 5), "p,q", "a.png has class 3, but .*classes.csv names 2"),
        ("index", "a.png", draw(0, 5, 3), None, "a.png is 3 x 5 pixels, but its image a.png is 5 x 3"),
        ("index", "b.png", draw(0, 3, 5), None, 'b.png: no image has the stem "b"'),
        ("index", "a.png", np.dstack([RAMP, RAMP, draw(0, 3, 5)]), None, r"a.png must have grey values .* \(RGB\)"),
        ("index", "a.png", draw(0, 3, 5, 4), None, r"a.png must have grey values .* \(RGBA\)"),
    ],
)
def test_errors_in_masks(
    tmp_path: Path, form: str, name: str, values: NDArray[np.uint8], classes: str | None, message: str
) -> None:
    write_blank(tmp_path / "images" / "a.png", (3, 5))
    (tmp_path / form).mkdir()
    Image.fromarray(values).save(tmp_path / form / name)
    if classes:
        write_names(tmp_path, classes)
    with pytest.raises(InputError, match=message):
        (read_masks if form == "masks" else read_index)(tmp_path, None)


def test_a_damaged_png_is_rejected(tmp_path: Path) -> None:
    write_blank(tmp_path / "images" / "a.png", (30, 50))
    (tmp_path / "index").mkdir()
    data = (tmp_path / "images" / "a.png").read_bytes()
    for broken in (b"", b"text", data[: len(data) // 2]):
        (tmp_path / "index" / "a.png").write_bytes(broken)
        with pytest.raises(InputError, match=r"index/a.png is (empty|not a readable image)"):
            read_index(tmp_path, None)


def save_index(root: Path, name: str, values: NDArray[np.generic], **options: Any) -> Path:
    """Write an index map as the only label of a black image of its size."""
    write_blank(root / "images" / "a.png", values.shape)
    (root / "index").mkdir(exist_ok=True)
    Image.fromarray(values).save(root / "index" / name, **options)
    return root


INDEX = np.zeros((20, 30), np.uint8)
INDEX[:10, :20], INDEX[12:, 20:] = 1, 2


@pytest.mark.parametrize(("name", "options"), [("a.jpg", {"quality": 95}), ("a.tif", {"compression": "jpeg"})])
@pytest.mark.parametrize("form", ["index", "masks"])
def test_a_lossy_label_image_is_rejected(tmp_path: Path, form: str, name: str, options: dict[str, Any]) -> None:
    root = save_index(tmp_path, name, INDEX, **options)
    if form == "masks":
        (root / "index").rename(root / "masks")
        (root / "masks" / name).rename(root / "masks" / name.replace("a.", "a_1."))
    with pytest.raises(InputError, match="is a JPEG, whose compression changes values; export PNGs"):
        (read_masks if form == "masks" else read_index)(root, None)


def test_a_map_of_fractions_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must have whole numbers, but its values are fractions"):
        read_index(save_index(tmp_path, "a.tif", INDEX.astype(np.float32)), None)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_maps_of_any_depth_are_read_exactly(tmp_path: Path, name: str, dtype: type) -> None:
    if name == "a.png" and dtype is np.int32:
        pytest.skip("PNGs hold no negative numbers")
    labels = read_index(save_index(tmp_path, name, INDEX.astype(dtype)), None)
    assert_same(unpack(labels), {"a.png": np.stack([INDEX == 1, INDEX == 2])})


@pytest.mark.parametrize("num_bits", [1, 2, 4, 8])
def test_png_maps_of_few_bits_are_not_stretched(tmp_path: Path, num_bits: int) -> None:
    values = np.minimum(INDEX, 2**num_bits - 1)
    root = save_index(tmp_path, "a.png", values)
    bits = (values[..., None] >> np.arange(num_bits - 1, -1, -1)) & 1
    rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in bits)
    header = b"IHDR" + struct.pack(">IIBBBBB", 30, 20, num_bits, 0, 0, 0, 0)
    chunks = [header, b"IDAT" + zlib.compress(rows), b"IEND"]
    packed = [struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks]
    (root / "index" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))
    expected = np.stack([values == c for c in range(1, values.max() + 1)])
    assert_same(unpack(read_index(root, None)), {"a.png": expected})


@pytest.mark.parametrize(("value", "message"), [(-1, "has the value -1"), (255, "value 255.* set void pixels to 0")])
def test_values_that_are_no_class_are_rejected(tmp_path: Path, value: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_index(save_index(tmp_path, "a.tif", np.where(INDEX == 2, value, INDEX.astype(np.int32))), None)


def test_half_a_label_image_is_rejected(tmp_path: Path) -> None:
    """Pillow reads a PNG with too few rows, and leaves the others 0."""
    root = save_index(tmp_path, "a.png", INDEX)
    header, end = (root / "index" / "a.png").read_bytes()[:33], struct.pack(">I", 0) + b"IEND\xaeB`\x82"
    chunk = b"IDAT" + zlib.compress(b"".join(b"\0" + row.tobytes() for row in INDEX[:10]))
    data = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (root / "index" / "a.png").write_bytes(header + data + end)
    assert np.asarray(Image.open(root / "index" / "a.png")).sum() == INDEX[:10].sum()
    with pytest.raises(InputError, match=r"index/a.png is not a readable image"):
        read_index(root, None)


def test_a_label_image_that_programs_show_turned_is_rejected(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 3
    with pytest.raises(InputError, match=r"index/a.png has the Orientation tag 3"):
        read_index(save_index(tmp_path, "a.png", INDEX, exif=exif), None)


def test_a_colour_map_of_16_bits_is_rejected(tmp_path: Path) -> None:
    write_cvat(tmp_path, LABELMAP, as_palette=True)
    Image.fromarray(np.full((2, 3), 300, np.uint16)).save(tmp_path / "SegmentationClass" / "a.png")
    with pytest.raises(InputError, match="in 8 bits, but is I;16"):
        read_index(tmp_path, None)
