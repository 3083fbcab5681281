"""COCO, compared with pycocotools, and in the variants of CVAT and Label Studio."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from scipy import ndimage

from formats.fakes import BAD_OUTLINE, HOLED, MASKS, assert_same, draw_masks, pack, unpack, write_blank
from steel.data.formats import outlines
from steel.data.formats.coco import read_coco, write_coco
from steel.errors import InputError

# The array class of pycocotools 2.0 causes a warning of NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SQUARE = {"segmentation": [[1, 1, 4, 1, 4, 3, 1, 3]]}  # 3 x 2 pixels


def write_data(root: Path, annotations: list[Any], size: tuple[int, int] = (10, 14), **changes: Any) -> Path:
    """Write a dataset of one image, a.png, with the categories 30 (scratch) and 7 (pit)."""
    write_blank(root / "images" / "a.png", size)
    content = {
        "images": [{"id": 5, "file_name": "a.png", "height": size[0], "width": size[1]}],
        "categories": [{"id": 30, "name": "scratch"}, {"id": 7, "name": "pit"}],
        "annotations": [{"id": i, "image_id": 5, "category_id": 30, **one} for i, one in enumerate(annotations)],
        **changes,
    }
    (root / "result.json").write_text(json.dumps(content))
    return root


@settings(max_examples=80)
@given(mask=MASKS)
def test_rle_equals_pycocotools(mask: NDArray[np.bool_], tmp_path_factory: pytest.TempPathFactory) -> None:
    out = tmp_path_factory.mktemp("coco")
    assert write_coco(pack({"a.png": mask[None]}), out, "coco") == {}
    records = json.loads((out / "annotations/instances_default.json").read_text())["annotations"]
    spots, num_spots = ndimage.label(mask, np.ones((3, 3)))
    expected = {}
    for i in range(1, num_spots + 1):
        code = coco_mask.encode(np.asfortranarray(spots == i).view(np.uint8))
        expected[code["counts"].decode()] = (int((spots == i).sum()), coco_mask.toBbox(code).tolist())
    assert {one["segmentation"]["counts"]: (one["area"], one["bbox"]) for one in records} == expected
    assert all(one["segmentation"]["size"] == list(mask.shape) and one["iscrowd"] == 0 for one in records)
    assert [one["id"] for one in records] == list(range(1, num_spots + 1))


@settings(max_examples=80)
@given(masks=arrays(np.bool_, (3, 9, 11)), seed=st.integers(0, 2**32 - 1))
def test_all_forms_of_segmentation_are_united(
    masks: NDArray[np.bool_], seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rng = np.random.default_rng(seed)
    polygons = [(rng.random((rng.integers(3, 9), 2)) * [11, 9]).round(2).ravel().tolist() for _ in range(2)]
    codes = [coco_mask.encode(np.asfortranarray(mask).view(np.uint8))["counts"].decode() for mask in masks]
    flat = masks[1].ravel(order="F")
    edges = np.flatnonzero(np.diff(flat, prepend=False))
    counts = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    annotations = [
        {"segmentation": {"size": [9, 11], "counts": codes[0]}, "iscrowd": 1},
        {"segmentation": polygons},
        {"segmentation": {"size": [9, 11], "counts": counts}},
        {"segmentation": {"size": [9, 11], "counts": codes[2]}, "category_id": 7},
    ]
    root = write_data(tmp_path_factory.mktemp("data") / "set", annotations, (9, 11))
    drawn = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, 9, 11))) > 0
    labels = read_coco(root, None)
    assert labels.classes == ("pit", "scratch")  # ordered by id
    assert_same(unpack(labels), {"a.png": np.stack([masks[2], masks[0] | masks[1] | drawn])})


@pytest.mark.parametrize("form", ["coco", "coco-polygons"])
def test_round_trip_without_images(tmp_path: Path, form: Any) -> None:
    masks = draw_masks(5)
    assert write_coco(pack(masks), tmp_path, form) == {}
    labels = read_coco(tmp_path, None)
    assert labels.classes == ("pit", "Riß", "a: b")
    assert all(image.path is None for image in labels.images)
    assert_same(unpack(labels), masks)


@pytest.mark.parametrize(
    ("json_path", "image_path", "file_name"),
    [
        ("annotations/instances_default.json", "images/a.png", "a.png"),  # CVAT
        ("annotations/instances_default.json", "images/default/a.png", "a.png"),  # CVAT with subsets
        ("annotations/instances_default.json", "images/coil 3/a.png", "coil 3/a.png"),  # subfolders of a task
        ("result.json", "images/a.png", "images/a.png"),  # Label Studio
        ("result.json", "images/a.png", "..\\..\\/media\\upload\\1\\a.png"),  # Label Studio on Windows
        ("labels.json", "a.png", "./a.png"),  # beside the image
    ],
)
@pytest.mark.parametrize("name_the_file", [False, True])
def test_folders_of_other_tools(
    tmp_path: Path, json_path: str, image_path: str, file_name: str, name_the_file: bool
) -> None:
    record = {"id": 5, "file_name": file_name, "height": 10, "width": 14}
    made = write_data(tmp_path / "made", [SQUARE], images=[record])
    root = tmp_path / "data"
    for path, source in [(json_path, "result.json"), (image_path, "images/a.png")]:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (made / source).rename(root / path)
    labels = read_coco(root / json_path if name_the_file else root, None)
    (image,) = labels.images
    assert (image.name, image.path, labels.root) == ("a.png", root / image_path, root)
    assert unpack(labels)["a.png"].sum(axis=(1, 2)).tolist() == [0, 6]


def test_an_ambiguous_image_is_rejected(tmp_path: Path) -> None:
    root = write_data(tmp_path, [])
    for i in (1, 2):
        write_blank(root / "images" / str(i) / "a.png")
    (root / "images" / "a.png").unlink()
    with pytest.raises(InputError, match=r"matches .* and .*; rename one"):
        read_coco(root, None)


def test_annotations_without_pixels_are_counted(tmp_path: Path) -> None:
    nothing = {"segmentation": [[2, 2, 2.2, 2, 2.2, 2.2]]}
    labels = read_coco(write_data(tmp_path, [nothing, SQUARE, {**nothing, "category_id": 7}]), None)
    assert (labels.num_empty, list(labels.images[0].runs)) == (2, [1])


def test_changed_pixels_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outlines, "trace", lambda runs, size: BAD_OUTLINE)
    assert write_coco(pack({"a.png": HOLED}), tmp_path, "coco-polygons") == {"a.png": 10}


@pytest.mark.parametrize(
    ("annotation", "changes", "message"),
    [
        ({"segmentation": [[1, 1, 4, 1, 4]]}, {}, r"annotation 0 \(of a.png\) has a polygon of 5 numbers"),
        ({"segmentation": [1, 1, 4, 1, 4, 4]}, {}, "a polygon that is not a list of numbers"),  # not nested
        ({"segmentation": [], "bbox": [1, 1, 3, 3]}, {}, "has a box but no segmentation"),
        ({"bbox": [1, 1, 3, 3]}, {}, r'annotation 0 must have "segmentation" \(list or dict\), got nothing'),
        ({"segmentation": {"size": [10, 14], "counts": [3, 4]}}, {}, "counts that sum to 7, but its image has 14 x 10"),
        ({"segmentation": {"size": [14, 10], "counts": [140]}}, {}, r"an RLE of size \[14, 10\], but its image is"),
        ({"segmentation": {"size": [10, 14]}}, {}, "an RLE without counts"),
        ({**SQUARE, "category_id": 8}, {}, "annotation 0 has category 8, which is not among the categories"),
        ({**SQUARE, "image_id": 6}, {}, "annotation 0 is on image 6, which is not among the images"),
        (SQUARE, {"categories": None}, r'result.json must have "categories" \(list\), got nothing'),
        (SQUARE, {"images": [{"id": 5, "height": 3, "width": 3}]}, r'image 5 must have "file_name" \(str\)'),
        (
            SQUARE,
            {"images": 2 * [{"id": 5, "file_name": "a.png", "height": 10, "width": 14}]},
            "5 is listed twice",
        ),
        (SQUARE, {"images": [{"id": 5, "file_name": "b.png", "height": 0, "width": 0}]}, "b.png. is 0 x 0 pixels"),
        (
            SQUARE,
            {"images": [{"id": 5, "file_name": "a.png", "height": 14, "width": 10}]},
            r"image 5 \(a.png\) is 10 x 14 pixels, but .*images/a.png is 14 x 10",
        ),
    ],
)
def test_errors_in_json(tmp_path: Path, annotation: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    root = write_data(tmp_path, [annotation], **changes)
    with pytest.raises(InputError, match=message) as error:
        read_coco(root, None)
    assert str(tmp_path) in str(error.value)


def test_damaged_and_ambiguous_json(tmp_path: Path) -> None:
    root = write_data(tmp_path, [SQUARE])
    (root / "result.json").write_text('{"images": [],\n "categories": [}')
    with pytest.raises(InputError, match=r"result.json: it is not JSON .*line 2"):
        read_coco(root, None)
    (root / "result.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"result.json is not UTF-8 text"):
        read_coco(root, None)
    (root / "other.json").write_text("{}")
    with pytest.raises(InputError, match=r"2 JSON files \(other.json, result.json\)"):
        read_coco(root, None)


@pytest.mark.parametrize("spell", [str, float])
def test_numbers_may_be_text_or_have_zeros_after_the_point(tmp_path: Path, spell: type) -> None:
    record = {"id": spell(5), "file_name": "a.png", "height": spell(10), "width": spell(14)}
    annotation = {**SQUARE, "image_id": spell(5), "category_id": spell(30)}
    categories = [{"id": 30, "name": "scratch"}, {"id": spell(7), "name": "pit"}]
    labels = read_coco(write_data(tmp_path, [annotation], images=[record], categories=categories), None)
    assert (labels.classes, unpack(labels)["a.png"].sum(axis=(1, 2)).tolist()) == (("pit", "scratch"), [0, 6])


@pytest.mark.parametrize("value", [True, 5.5, "5.0", "five", [5]])
def test_what_is_no_whole_number_is_rejected(tmp_path: Path, value: Any) -> None:
    with pytest.raises(InputError, match=r'annotation 0 must have "image_id" \('):
        read_coco(write_data(tmp_path, [{**SQUARE, "image_id": value}]), None)


def test_a_polygon_of_booleans_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a polygon that is not a list of numbers"):
        read_coco(write_data(tmp_path, [{"segmentation": [[True, 1, 4, 1, 4, 3]]}]), None)


@pytest.mark.parametrize(
    ("file_name", "image"),
    [
        ("Capture_d%C3%A9cran.png", "Capture_d\u00e9cran.png"),
        ("coil/pr\u00fcf.png", "coil/pru\u0308f.png"),
        ("../upload/1/1a2b3c4d-0001.png", "0001.png"),
    ],
)
def test_images_that_are_spelt_differently_are_found(tmp_path: Path, file_name: str, image: str) -> None:
    root = write_data(tmp_path, [SQUARE], images=[{"id": 5, "file_name": file_name, "height": 10, "width": 14}])
    (root / "images" / image).parent.mkdir(exist_ok=True)
    (root / "images" / "a.png").rename(root / "images" / image)
    (found,) = read_coco(root, None).images
    assert (found.path, found.name) == (root / "images" / image, Path(image).name)


def test_a_category_that_only_groups_others_is_no_class(tmp_path: Path) -> None:
    categories = [
        {"id": 0, "name": "defects", "supercategory": "none"},
        {"id": 1, "name": "pit", "supercategory": "defects"},
        {"id": 2, "name": "scratch", "supercategory": "defects"},
    ]
    root = write_data(tmp_path, [{**SQUARE, "category_id": 2}], categories=categories)
    labels = read_coco(root, None)
    assert (labels.classes, list(labels.images[0].runs)) == (("pit", "scratch"), [1])
    write_data(tmp_path, [{**SQUARE, "category_id": 0}], categories=categories)
    assert read_coco(root, None).classes == ("defects", "pit", "scratch")  # it has an annotation
    own = [{"id": 1, "name": "pit", "supercategory": "pit"}, {"id": 2, "name": "scratch"}]
    write_data(tmp_path, [{**SQUARE, "category_id": 2}], categories=own)
    assert read_coco(root, None).classes == ("pit", "scratch")  # it groups nothing but itself
    write_data(tmp_path, [], categories=[own[1], own[1]])
    with pytest.raises(InputError, match="category 2 is listed twice"):
        read_coco(root, None)
