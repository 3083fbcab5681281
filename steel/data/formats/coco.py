"""COCO's JSON, with a mask or an outline for each spot.

    images/
    annotations/instances_default.json      the path that CVAT expects; Label Studio writes result.json
        images          id, file_name, height, width
        categories      id, name
        annotations     id, image_id, category_id, segmentation, area, bbox, iscrowd

A segmentation is a list of polygons `[[x, y, x, y, ...], ...]`, or `{"size": [height, width], "counts": ...}` with the
counts of `steel.data.runs`. The writer makes an annotation for each spot, since COCO annotates instances; the reader
unites the spots of a class. Ids and sizes may be text or have zeros after the point (see `steel.data.spelling`). A
category without annotations that is the supercategory of another, such as Roboflow's first one, is no class.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

from pycocotools import mask as coco_mask

from steel.data import images as image_files
from steel.data.formats import outlines
from steel.data.formats.labels import LabelledImage, Labels, find_files
from steel.data.runs import Runs, Size, area, count_changes, from_counts, to_counts, unite
from steel.data.spelling import NameIndex, parse_whole, read_text
from steel.data.spots import split_spots
from steel.errors import InputError
from steel.progress import track

T = TypeVar("T")
CocoFormat = Literal["coco", "coco-polygons"]
_JSON = "annotations/instances_default.json"


def read_coco(src: Path, images: Path | None) -> Labels:
    """Read a dataset from its folder or JSON file; a missing image is known by its record.

    Raises:
        InputError: The JSON is wrong, or an image has another size than its record.
    """
    path, root = _find_json(src)
    try:
        content = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: it is not JSON ({error}); export it again") from error
    found = _read_images(_list_records(path, content, "images", "image"), images or root)
    names = _read_categories(path, content)
    class_of = {number: c for c, number in enumerate(sorted(names))}  # by id, since the order in the file is arbitrary
    spots: dict[tuple[int, int], list[Runs]] = defaultdict(list)
    for where, annotation in _list_records(path, content, "annotations", "annotation"):
        category_id = _take_whole(where, annotation, "category_id")
        if category_id not in class_of:
            raise InputError(f"{where} has category {category_id}, which is not among the categories; add it there")
        image_id = _take_whole(where, annotation, "image_id")
        if image_id not in found:
            raise InputError(f"{where} is on image {image_id}, which is not among the images; export it again")
        segmentation: Any = _take(where, annotation, "segmentation", list, dict)
        try:
            runs = _read_segmentation(segmentation, found[image_id].size)
        except InputError as error:
            raise InputError(f"{where} (of {found[image_id].name}) {error}") from error
        spots[image_id, class_of[category_id]].append(runs)
    for (image_id, c), parts in spots.items():
        if len(runs := unite(parts)):
            found[image_id].runs[c] = runs
    num_empty = sum(len(runs) == 0 for parts in spots.values() for runs in parts)
    return Labels(tuple(names[number] for number in class_of), list(found.values()), root, num_empty)


def _find_json(src: Path) -> tuple[Path, Path]:
    """Return the JSON file and the folder of the dataset."""
    if src.is_file():
        return src, src.parent.parent if src.parent.name == "annotations" else src.parent
    found = sorted([*src.glob("annotations/*.json"), *src.glob("*.json")])
    if len(found) != 1:
        names = f"({', '.join(path.name for path in found[:5])})"
        raise InputError(f"{len(found)} JSON files {names} in {src} and {src / 'annotations'}; name the file to read")
    return found[0], src


def _read_categories(path: Path, content: Any) -> dict[int, str]:
    """Return the names of the classes by their ids."""
    names: dict[int, str] = {}
    parents: dict[int, Any] = {}
    for where, category in _list_records(path, content, "categories", "category"):
        number = _take_whole(where, category, "id")
        if number in names:
            raise InputError(f"{where} is listed twice; give each category its own id")
        names[number], parents[number] = _take(where, category, "name", str), category.get("supercategory")
    annotations = content.get("annotations")
    records = annotations if isinstance(annotations, list) else []
    used = {parse_whole(record.get("category_id")) for record in records if isinstance(record, dict)}
    groups = [parent for number, parent in parents.items() if parent != names[number]]
    return {number: name for number, name in names.items() if number in used or name not in groups}


def _list_records(path: Path, content: Any, key: str, kind: str) -> Iterator[tuple[str, Any]]:
    """Yield the records of a list in the JSON, each with its place for errors."""
    records = _take(str(path), content, key, list)
    for i, record in enumerate(track(records, f"reading {key}", len(records))):
        yield f"{path}: {kind} {record.get('id', i) if isinstance(record, dict) else i}", record


def _take(where: str, record: Any, key: str, *kinds: type[T]) -> T:
    """Return a value of a record; an InputError if it is missing or of another type."""
    value = record.get(key) if isinstance(record, dict) else None
    if not isinstance(value, kinds):
        words = " or ".join(kind.__name__ for kind in kinds)
        found = "nothing" if value is None else repr(value)[:40]
        raise InputError(f'{where} must have "{key}" ({words}), got {found}; export it again')
    return value


def _take_whole(where: str, record: Any, key: str) -> int:
    """Return a whole number of a record; an InputError if it is missing or something else."""
    value = _take(where, record, key, int, float, str)
    if (number := parse_whole(value)) is None:
        raise InputError(f'{where} must have "{key}" (int), got {value!r:.40}; export it again')
    return number


def _read_images(records: Iterator[tuple[str, Any]], folder: Path) -> dict[int, LabelledImage]:
    """Return the images by their ids."""
    by_name: dict[str, list[Path]] = defaultdict(list)
    for file in find_files(folder):
        by_name[file.name].append(file)
    files, known = list(by_name.values()), NameIndex(by_name)
    found: dict[int, LabelledImage] = {}
    for where, record in records:
        number = _take_whole(where, record, "id")
        if number in found:
            raise InputError(f"{where} is listed twice; give each image its own id")
        found[number] = _read_image(where, record, files, known)
    return found


def _read_image(where: str, record: Any, files: list[list[Path]], known: NameIndex) -> LabelledImage:
    file_name = _take(where, record, "file_name", str)
    height, width = _take_whole(where, record, "height"), _take_whole(where, record, "width")
    where = f"{where} ({file_name})"
    if min(height, width) < 1:
        raise InputError(f"{where} is {width} x {height} pixels; export it again")
    # Label Studio may write folders of its own machine, with the separators of Windows.
    parts = [part for part in file_name.replace("\\", "/").split("/") if part not in ("", ".", "..")] or [""]
    file = _choose_file(where, parts, files, known)
    if file and (size := image_files.read_size(file)) != (height, width):
        reason = f"{where} is {width} x {height} pixels, but {file} is {size[1]} x {size[0]}"
        raise InputError(f"{reason}; convert with the images that were labelled")
    return LabelledImage(file.name if file else parts[-1], file, (height, width), {})


def _choose_file(where: str, parts: list[str], files: list[list[Path]], known: NameIndex) -> Path | None:
    """Return the file, of those with the same name, whose last folders match the most folders of a record."""
    if (i := known.find(parts[-1])) is None:
        return None
    candidates = files[i]
    for first in range(len(parts)):
        folders = tuple(parts[first:-1])
        if len(same := [file for file in candidates if file.parts[-len(folders) - 1 : -1] == folders]) == 1:
            return same[0]
        if same:
            raise InputError(f"{where} matches {same[0]} and {same[1]}; rename one")
    return None


def _read_segmentation(segmentation: list[Any] | dict[str, Any], size: Size) -> Runs:
    """Return the runs of a segmentation in any of COCO's three forms; errors have no subject."""
    if isinstance(segmentation, dict):
        if segmentation.get("size") != list(size):
            raise InputError(f"has an RLE of size {segmentation.get('size')}, but its image is {list(size)}")
        if not isinstance(counts := segmentation.get("counts"), str | list):
            raise InputError("has an RLE without counts; export it again")
        return from_counts(counts, size)
    if not segmentation:
        raise InputError("has a box but no segmentation; outline it or remove it")
    for polygon in segmentation:
        if not isinstance(polygon, list) or not all(type(number) in (int, float) for number in polygon):
            raise InputError("has a polygon that is not a list of numbers; export it again")
    return outlines.fill(segmentation, size)


def write_coco(labels: Labels, out: Path, form: CocoFormat) -> Counter[str]:
    """Write the JSON file with masks ("coco") or outlines ("coco-polygons"); return the changed pixels by image."""
    changed: Counter[str] = Counter()
    images, records = [], []
    for i, image in enumerate(track(labels.images, "writing annotations", len(labels.images)), 1):
        images.append({"id": i, "file_name": image.name, "height": image.size[0], "width": image.size[1]})
        for c, runs in sorted(image.runs.items()):
            described = list(_describe_spots(runs, image.size, form))
            after = unite([_read_segmentation(record["segmentation"], image.size) for record in described])
            changed[image.name] += count_changes(runs, after)
            records += [{"image_id": i, "category_id": c + 1, **record} for record in described]
    content = {
        "images": images,
        "categories": [{"id": c, "name": name, "supercategory": ""} for c, name in enumerate(labels.classes, 1)],
        "annotations": [{"id": number, **record} for number, record in enumerate(records, 1)],
    }
    (out / _JSON).parent.mkdir()
    (out / _JSON).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return +changed


def _describe_spots(runs: Runs, size: Size, form: CocoFormat) -> Iterator[dict[str, Any]]:
    spots = split_spots(runs, size)
    coded = coco_mask.frPyObjects([{"size": list(size), "counts": to_counts(spot, size)} for spot in spots], *size)
    for spot, code, box in zip(spots, coded, coco_mask.toBbox(coded).tolist(), strict=True):
        if form == "coco":
            segmentation: Any = {"size": list(size), "counts": code["counts"].decode()}
        else:
            segmentation = [outlines.trace(spot, size).ravel().tolist()]
        # iscrowd is 0 for masks as well, because trainers skip crowds.
        yield {"segmentation": segmentation, "area": area(spot), "bbox": box, "iscrowd": 0}
