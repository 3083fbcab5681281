"""The CSV files of a dataset in the Severstal layout.

    train.csv      ImageId,ClassId,EncodedPixels    a row for each defect, without empty codes
                or ImageId_ClassId,EncodedPixels    the first form of the contest, in which empty codes are normal
    classes.csv    ClassId,name                     optional; ClassId counts from 1
    groups.csv     ImageId,group                    optional; images of one coil or scene, kept together by splits
    unknown.csv    ImageId,EncodedPixels            optional; unlabelled regions, for datasets of at most 7 classes

Readers return the valid content, and findings about the rest. `names` are the file names of the n images, sorted.
`sizes` is int32 `(n, 2)`, their height and width in pixels, 0 for an unreadable image.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from steel.data import rle
from steel.data.runs import Offsets
from steel.data.spelling import NameIndex, parse_whole, unescape_formula
from steel.data.tables import Finding, Table, raise_first, read_table
from steel.errors import InputError
from steel.wording import format_count

Names = NDArray[np.str_]
Sizes = NDArray[np.int32]
MAX_CLASSES = 8  # each class is one bit of a uint8 plane
CLASS_IDS = tuple(str(c + 1) for c in range(MAX_CLASSES))
_NEW_FORM = ("ImageId", "ClassId", "EncodedPixels")
_FROM_ZERO = "ids seem to start at 0, so add 1 to every id"
_OLD_FORM = ("ImageId_ClassId", "EncodedPixels")


class Row(NamedTuple):
    """A row of a train.csv or submission.csv."""

    line: int
    image: str
    class_id: int  # counted from 1
    code: str


def parse_rows(path: Path) -> tuple[list[Row], Table]:
    """Parse a train.csv or submission.csv in either form; return its rows with a valid class, and the whole table."""
    table = read_table(path, _NEW_FORM, _OLD_FORM)
    if not table.form:
        return [], table
    if table.form == _OLD_FORM:
        parts = [cell.rpartition("_") for cell in table.columns["ImageId_ClassId"]]
        images, class_ids = [part[0] for part in parts], [part[2] for part in parts]
    else:
        images, class_ids = table.columns["ImageId"], table.columns["ClassId"]
    numbers = {text: parse_whole(text) or 0 for text in set(class_ids)}
    rows = []
    for line, image, text, code in zip(table.lines, images, class_ids, table.columns["EncodedPixels"], strict=True):
        if 1 <= numbers[text] < 1_000_000_000:
            rows.append(Row(line, image, numbers[text], code))
        else:
            # Mending one row by hand would leave all other classes shifted by one.
            remedy = _FROM_ZERO if parse_whole(text) == 0 else "fix the row"
            message = f'the class must be a whole number from 1, got "{text[:40]}"; {remedy}'
            table.findings.append(Finding(path, line, "class", message))
    return rows, table


def parse(path: Path) -> tuple[list[Row], int, list[Finding]]:
    """Parse a train.csv like `parse_rows`; return the valid rows, the number of all rows, and findings."""
    if not path.exists():
        remedy = f"add it, or convert other labels: {suggest_conversion(path.parent)}"
        return [], 0, [Finding(path, None, "missing", f"there is no such file; {remedy}")]
    rows, table = parse_rows(path)
    if table.form == _NEW_FORM:
        for row in rows:
            if not row.code:
                message = f"the code of {row.image} is empty, but only defects have a row; remove the row"
                table.findings.append(Finding(path, row.line, "empty code", message))
        rows = [row for row in rows if row.code]
    return rows, table.num_rows, table.findings


def suggest_conversion(root: Path) -> str:
    """Return the command that converts a folder to this layout, with the format that its subfolders look like."""
    layouts = {
        "masks": "masks",
        "index": "index",
        "SegmentationClass": "index",
        "labels": "yolo",
        "annotations": "coco",
    }
    has_masks = any("mask" in path.name.lower() for path in root.iterdir() if path.is_dir())
    other = "masks" if has_masks else "FORMAT"
    form = next((form for folder, form in layouts.items() if (root / folder).is_dir()), other)
    return f"steel convert {root} NEW_FOLDER --from {form} --to severstal"


def join_rows(
    csv: Path, rows: list[Row], names: Names, sizes: Sizes, num_classes: int, *, folder: Path | None = None
) -> tuple[NDArray[np.int32], Offsets, int, list[Finding]]:
    """Parse the codes of the rows of a file, and arrange them by image and class.

    Returns:
        The runs of all codes in one flat array, their offsets int64 `(n * C + 1,)`, the number of used rows, and
        findings about the others. They name the `folder` of the images, by default `train_images` beside the file.
    """
    used, findings = _place_rows(csv, rows, names, sizes, num_classes, folder or csv.parent / "train_images")
    placed = sorted((place, row) for place, row in used.items() if row.code)
    places = np.array([place for place, _ in placed], np.int64).reshape(-1, 2)
    parsed = rle.parse_all([row.code for _, row in placed], sizes[places[:, 0]])
    touching = rle.Fault("touching runs", "runs touch, which is the same mask as one longer run")
    for k, fault in [*parsed.faults.items(), *((k, touching) for k in parsed.touching)]:
        row, remedy = placed[k][1], "nothing has to be done" if fault is touching else "fix the code"
        message = f"{fault.text} (class {row.class_id} of {row.image}); {remedy}"
        findings.append(Finding(csv, row.line, fault.kind, message, is_error=fault is not touching))
    counts = np.zeros(len(names) * num_classes + 1, np.int64)
    counts[places @ [num_classes, 1]] = np.diff(parsed.offsets)
    return parsed.runs, np.cumsum(counts), len(used) - len(parsed.faults), findings


def _place_rows(
    csv: Path, rows: list[Row], names: Names, sizes: Sizes, num_classes: int, folder: Path
) -> tuple[dict[tuple[int, int], Row], list[Finding]]:
    """Return the usable rows by image and class (from 1), and findings about the others."""
    findings: list[Finding] = []
    known = NameIndex(names.tolist())
    is_readable = (sizes[:, 0] > 0).tolist()
    used: dict[tuple[int, int], Row] = {}
    for row in rows:
        i, name, class_id = known.find(row.image), row.image, row.class_id
        if i is None:
            kind, message = "missing image", f'no image "{name}" in {folder}; add it or remove the row'
        elif class_id > num_classes and row.code:
            kind, message = "class", f"the class must be 1 to {num_classes}, got {class_id}; fix the row"
        elif not is_readable[i]:
            kind, message = "unreadable image", f"the image {name} cannot be read; fix it, so that its labels count"
        elif (i, class_id) in used:
            kind, message = "duplicate row", f"class {class_id} of {name} is also in line {used[i, class_id].line}"
            message += "; join the two codes into one row"
        else:
            used[i, class_id] = row
            continue
        findings.append(Finding(csv, row.line, kind, message))
    return used, findings


def choose_classes(root: Path, largest: int, num_classes: int | None = None) -> tuple[tuple[str, ...], list[Finding]]:
    """Return the names of a dataset's classes, those of its classes.csv or else their numbers, and findings about it.

    Args:
        root: The folder of the dataset.
        largest: The largest class with a label, counted from 1; 0 if there is none.
        num_classes: C; by default the number of rows of classes.csv, or else `largest`.

    Raises:
        InputError: `num_classes` is out of range.
    """
    if num_classes is not None and not 1 <= num_classes <= MAX_CLASSES:
        raise InputError(f"data.num_classes must be 1 to {MAX_CLASSES}, got {num_classes}")
    path = root / "classes.csv"
    table = read_table(path, ("ClassId", "name")) if path.is_file() else Table((), 0, [], {}, [])
    ids, message = table.columns.get("ClassId", []), ""
    names = [unescape_formula(name) for name in table.columns.get("name", [])]
    if [parse_whole(text) for text in ids] != [c + 1 for c in range(len(ids))]:
        remedy = f"{_FROM_ZERO}, also in train.csv" if "0" in ids else "sort them"
        names, message = [], f"ClassId must count 1, 2, 3, ... down the rows, got {', '.join(ids)[:80]}; {remedy}"
    elif len(ids) > MAX_CLASSES:
        names, message = [], f"it names {len(ids)} classes, but at most {MAX_CLASSES} are possible; merge some"
    elif num_classes and len(names) > num_classes:
        message = f"it names {len(names)} classes, but data.num_classes is {num_classes}; change one of them"
    findings = [*table.findings, *([Finding(path, None, "class", message)] if message else [])]
    count = num_classes or len(names) or min(largest, MAX_CLASSES)
    return (*names[:count], *CLASS_IDS[len(names) : count]), findings


def require_classes(folder: Path, largest: int, place: str) -> tuple[str, ...]:
    """Return the names of the classes like `choose_classes`, for labels whose largest class is at `place`.

    Raises:
        InputError: The classes.csv is wrong or does not name all classes, or there are too many.
    """
    classes, findings = choose_classes(folder, largest)
    raise_first(findings)
    if largest > len(classes):
        reason = f"{folder / 'classes.csv'} names" if largest <= MAX_CLASSES else "there are at most"
        num = format_count(len(classes), "class", "classes")
        raise InputError(f"{place} has class {largest}, but {reason} {num}; fix one of them")
    return classes


def read_named(
    path: Path, columns: Sequence[str], names: Names, optional: tuple[str, ...] = ()
) -> tuple[Table, list[int], list[Finding]]:
    """Read a file with ImageId, one of `columns` and any of `optional`, a value for each image, such as splits.csv.

    Returns:
        The table, the index in `names` for each of its rows (-1 for an unknown or repeated image), and the findings.
    """
    table = read_table(path, *(("ImageId", column) for column in columns), optional=optional)
    known = NameIndex(names.tolist())
    seen: dict[int | str, int] = {}
    positions, findings = [], list(table.findings)
    for line, name in zip(table.lines, table.columns.get("ImageId", []), strict=True):
        i = known.find(name)
        key = name if i is None else i
        positions.append(-1 if i is None or key in seen else i)
        if key in seen:
            message = f'image "{name}" is also in line {seen[key]}; remove one of the rows'
            findings.append(Finding(path, line, "duplicate row", message))
        elif i is None:
            message = f'no image "{name}" in train_images; add it or remove the row'
            findings.append(Finding(path, line, "missing image", message))
        seen.setdefault(key, line)
    return table, positions, findings


def read_groups(path: Path, names: Names) -> tuple[NDArray[np.int64], NDArray[np.bool_], list[Finding]]:
    """Return the index of the first listed image of each image's group, or its own index if it is not listed.

    Also return whether each image is listed, and the findings.
    """
    groups, is_listed = np.arange(len(names)), np.zeros(len(names), bool)
    if not path.is_file():
        return groups, is_listed, []
    first: dict[str, int] = {}
    table, positions, findings = read_named(path, ("group",), names)
    for i, group, line in zip(positions, table.columns.get("group", []), table.lines, strict=True):
        if not group:
            findings.append(Finding(path, line, "empty group", "the group is empty; name it or remove the row"))
        elif i >= 0:
            groups[i], is_listed[i] = first.setdefault(group, i), True
    return groups, is_listed, findings


def read_unknown(
    path: Path, names: Names, sizes: Sizes, num_classes: int
) -> tuple[dict[int, NDArray[np.int32]], list[Finding]]:
    """Return the runs of unlabelled regions by the index of the image, and findings about unknown.csv, if it exists."""
    if not path.is_file():
        return {}, []
    table, positions, findings = read_named(path, ("EncodedPixels",), names)
    if num_classes > rle.UNKNOWN_BIT:
        message = f"unlabelled regions need one of the {MAX_CLASSES} bits of a mask, but {num_classes} classes use all"
        return {}, [*findings, Finding(path, None, "class", f"{message}; merge some or remove the file")]
    rows = [row for row, i in enumerate(positions) if i >= 0 and sizes[i, 0] > 0]
    image = [positions[row] for row in rows]
    parsed = rle.parse_all([table.columns["EncodedPixels"][row] for row in rows], sizes[image])
    for k, fault in parsed.faults.items():
        message = f"{fault.text} ({names[image[k]]}); fix the code"
        findings.append(Finding(path, table.lines[rows[k]], fault.kind, message))
    regions = {i: parsed.runs[parsed.offsets[k] : parsed.offsets[k + 1]] for k, i in enumerate(image)}
    return {i: runs for i, runs in regions.items() if len(runs)}, findings
