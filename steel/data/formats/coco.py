"""COCO's JSON, with a mask or an outline for each spot.

    images/
    annotations/instances_default.json      where CVAT looks for it; Label Studio writes result.json
        images          id, file_name, height, width
        categories      id, name
        annotations     id, image_id, category_id, segmentation, area, bbox, iscrowd

A segmentation is a list of polygons `[[x, y, x, y, ...], ...]`, or `{"size": [height, width], "counts": ...}` with the
counts of `runs`. Written is an annotation for each spot, since that is what COCO means by an instance; the reader
unites the spots of a class again.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pycocotools import mask as coco_mask

from steel.data import images as image_files
from steel.data.formats import outlines
from steel.data.formats.labels import LabelledImage, Labels, find_images_below
from steel.data.runs import Runs, Size, area, count_changes, from_counts, to_counts, unite
from steel.errors import InputError
from steel.progress import track

T = TypeVar("T")

_JSON = "annotations/instances_default.json"


def read_coco(src: Path, images: Path | None) -> Labels:
    """Reads a data set's folder, or its JSON file; an image that is not there is known by its record."""
    path, root = _find_json(src)
    content = _load_json(path)
    found = _read_images(path, _take(str(path), content, "images", list), images or root)
    names = _read_categories(path, content)
    # By their numbers, since the order in the file says nothing.
    class_of = {number: c for c, number in enumerate(sorted(names))}
    parts: dict[tuple[int, int], list[Runs]] = defaultdict(list)
    annotations = _take(str(path), content, "annotations", list)
    for i, annotation in enumerate(track(annotations, "reading annotations", len(annotations))):
        where = _describe(path, "annotation", annotation, i)
        category_id = _take(where, annotation, "category_id", int)
        if category_id not in class_of:
            raise InputError(f"{where} has category {category_id}, which is not among the categories; name it there")
        image_id, runs = _read_annotation(where, annotation, found)
        parts[image_id, class_of[category_id]].append(runs)
    for (image_id, c), several in parts.items():
        if len(runs := unite(several)):
            found[image_id].codes[c] = runs
    num_empty = sum(len(runs) == 0 for several in parts.values() for runs in several)
    return Labels(tuple(names[number] for number in class_of), list(found.values()), root, num_empty)


def _find_json(src: Path) -> tuple[Path, Path]:
    """The file with the annotations and the folder of the data set."""
    if src.is_file():
        return src, src.parent.parent if src.parent.name == "annotations" else src.parent
    found = sorted([*src.glob("annotations/*.json"), *src.glob("*.json")])
    if len(found) != 1:
        names = f" ({', '.join(path.name for path in found[:5])})" if found else ""
        raise InputError(f"{len(found)} JSON files{names} in {src} and {src / 'annotations'}; name the file to read")
    return found[0], src


def _load_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {error.lineno}: it is not JSON ({error.msg}); export it again") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: it is not JSON ({error}); export it again") from error


def _describe(path: Path, kind: str, record: Any, i: int) -> str:
    return f"{path}: {kind} {record.get('id', i) if isinstance(record, dict) else i}"


def _take(where: str, record: Any, key: str, *kinds: type[T]) -> T:
    value = record.get(key) if isinstance(record, dict) else None
    if not isinstance(value, kinds):
        came = "nothing" if value is None else repr(value)[:40]
        words = " or ".join(kind.__name__ for kind in kinds)
        raise InputError(f'{where} needs "{key}" ({words}), but {came} came; export it again')
    return value


def _read_categories(path: Path, content: Any) -> dict[int, str]:
    names: dict[int, str] = {}
    for category in _take(str(path), content, "categories", list):
        names[_take(f"{path}: a category", category, "id", int)] = _take(f"{path}: a category", category, "name", str)
    return names


def _read_images(path: Path, records: list[Any], folder: Path) -> dict[int, LabelledImage]:
    by_name: dict[str, list[Path]] = defaultdict(list)
    for file in find_images_below(folder):
        by_name[file.name].append(file)
    found: dict[int, LabelledImage] = {}
    for i, record in enumerate(track(records, "reading sizes", len(records))):
        where = _describe(path, "image", record, i)
        number = _take(where, record, "id", int)
        if number in found:
            raise InputError(f"{where} stands twice among the images; number them anew")
        found[number] = _read_image(where, record, by_name)
    return found


def _read_image(where: str, record: Any, by_name: dict[str, list[Path]]) -> LabelledImage:
    given = _take(where, record, "file_name", str)
    size = (_take(where, record, "height", int), _take(where, record, "width", int))
    if min(size) < 1:
        raise InputError(f"{where} ({given}) is {size[1]} x {size[0]} pixels; export it again")
    # Label Studio may name folders of the machine that it runs on, with the separators of Windows.
    parts = [part for part in given.replace("\\", "/").split("/") if part not in ("", ".", "..")] or [""]
    file = _choose_file(where, parts, by_name[parts[-1]])
    if file and (actual := image_files.read_size(file)) != size:
        raise InputError(
            f"{where} ({given}) is {size[1]} x {size[0]} pixels, but {file} is {actual[1]} x {actual[0]}; "
            f"convert with the images that were labelled"
        )
    return LabelledImage(parts[-1], file, size, {})


def _choose_file(where: str, parts: list[str], files: list[Path]) -> Path | None:
    """The file that has most of the last folders in common with a name."""
    for i in range(len(parts)):
        if len(same := [file for file in files if file.parts[-len(parts) + i :] == tuple(parts[i:])]) == 1:
            return same[0]
        if same:
            raise InputError(f"{where} ({'/'.join(parts)}) may be {same[0]} or {same[1]}; rename one")
    return None


def _read_annotation(where: str, annotation: Any, found: dict[int, LabelledImage]) -> tuple[int, Runs]:
    """The number of its image, and its pixels."""
    image_id = _take(where, annotation, "image_id", int)
    if image_id not in found:
        raise InputError(f"{where} is on image {image_id}, which is not among the images; export it again")
    segmentation: Any = _take(where, annotation, "segmentation", list, dict)
    try:
        return image_id, _read_segmentation(segmentation, found[image_id].size)
    except InputError as error:
        raise InputError(f"{where} (of {found[image_id].name}) {error}") from error


def _read_segmentation(segmentation: list[Any] | dict[str, Any], size: Size) -> Runs:
    """Runs from any of COCO's three forms; an error goes on from the annotation's number."""
    if isinstance(segmentation, dict):
        if segmentation.get("size") != list(size):
            raise InputError(f"has an RLE of size {segmentation.get('size')}, but its image is {list(size)}")
        counts = segmentation.get("counts")
        if not isinstance(counts, str | list):
            raise InputError("has an RLE without counts; export it again")
        return from_counts(counts, size)
    if not segmentation:
        raise InputError("has a box but no segmentation; outline it or take it out")
    for polygon in segmentation:
        if not isinstance(polygon, list) or not all(isinstance(number, int | float) for number in polygon):
            raise InputError("has a polygon that is not a list of numbers; export it again")
    return outlines.fill(segmentation, size)


def write_coco(labels: Labels, out: Path, form: Literal["coco", "coco-polygons"]) -> Counter[str]:
    """Writes the JSON file, with masks or with polygons."""
    changed: Counter[str] = Counter()
    images, records = [], []
    for i, image in enumerate(track(labels.images, "writing annotations", len(labels.images)), 1):
        images.append({"id": i, "file_name": image.name, "height": image.size[0], "width": image.size[1]})
        for c, runs in sorted(image.codes.items()):
            described = list(_describe_spots(outlines.split_spots(runs, image.size), image.size, form))
            after = unite([_read_segmentation(one["segmentation"], image.size) for one in described])
            changed[image.name] += count_changes(runs, after)
            records += [{"image_id": i, "category_id": c + 1, **one} for one in described]
    content = {
        "images": images,
        "categories": [{"id": c, "name": name, "supercategory": ""} for c, name in enumerate(labels.classes, 1)],
        "annotations": [{"id": number, **record} for number, record in enumerate(records, 1)],
    }
    (out / _JSON).parent.mkdir()
    (out / _JSON).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return +changed


def _describe_spots(
    spots: Sequence[Runs], size: Size, form: Literal["coco", "coco-polygons"]
) -> Iterator[dict[str, Any]]:
    counts = [{"size": list(size), "counts": to_counts(spot, size)} for spot in spots]
    coded = coco_mask.frPyObjects(counts, *size)
    for spot, code, box in zip(spots, coded, coco_mask.toBbox(coded).tolist(), strict=True):
        if form == "coco":
            segmentation: Any = {"size": list(size), "counts": code["counts"].decode()}
        else:
            segmentation = [outlines.trace(spot, size).ravel().tolist()]
        # Not a crowd, even as RLE: trainers leave crowds out.
        yield {"segmentation": segmentation, "area": area(spot), "bbox": box, "iscrowd": 0}
