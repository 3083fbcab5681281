"""The CSV files of a Severstal data set, parsed."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from steel.data import rle
from steel.data.tables import Finding, Table, read_table

MAX_CLASSES = 8  # a bit of a uint8 plane for each


class Rows(NamedTuple):
    """The rows of a train.csv, column by column."""

    lines: list[int]  # from 1, the header's
    images: list[str]
    class_ids: list[int]  # as in the file
    codes: list[str]  # empty only in the contest's first form


def parse(path: Path) -> tuple[Rows, int, list[Finding]]:
    r"""Reads the rows of a `train.csv` in either form, without looking at images or into codes.

    Example:
        >>> from tempfile import mkdtemp
        >>> path = Path(mkdtemp()) / "train.csv"
        >>> _ = path.write_text("ImageId_ClassId,EncodedPixels\na.jpg_1,\na.jpg_x,3 1\na.jpg_3,5 2\n")
        >>> rows, num_rows, findings = parse(path)
        >>> rows
        Rows(lines=[2, 4], images=['a.jpg', 'a.jpg'], class_ids=[1, 3], codes=['', '5 2'])
        >>> findings[0].line, findings[0].kind
        (3, 'class')

    Args:
        path: The file.

    Returns:
        The rows that can be used, how many there are in all, and what is wrong with the others.
    """
    table = read_table(path, ("ImageId", "ClassId", "EncodedPixels"), ("ImageId_ClassId", "EncodedPixels"))
    findings = table.findings
    if not table.form:
        return Rows([], [], [], []), table.num_rows, findings
    is_old = len(table.form) == 2
    if is_old:
        parts = [cell.rpartition("_") for cell in table.columns["ImageId_ClassId"]]
        names, class_ids = [part[0] for part in parts], [part[2] for part in parts]
    else:
        names, class_ids = table.columns["ImageId"], table.columns["ClassId"]
    numbers = {text: _read_class_id(text) for text in set(class_ids)}
    rows = Rows(table.lines, names, [numbers[text] for text in class_ids], table.columns["EncodedPixels"])
    bad = {
        row
        for row, (class_id, code) in enumerate(zip(rows.class_ids, rows.codes, strict=True))
        if not class_id or not (code or is_old)
    }
    for row in sorted(bad):
        kind = "empty code"
        message = f"the code of {names[row]} is empty, but only defects have a row here; take the row out"
        if not rows.class_ids[row]:
            kind = "class"
            message = f'the class is "{class_ids[row][:40]}", but classes are whole numbers from 1; mend the row'
        findings.append(Finding(path, rows.lines[row], kind, message))
    if bad:
        good = [cells for row, cells in enumerate(zip(*rows, strict=True)) if row not in bad]
        rows = Rows(*(list(column) for column in zip(*good, strict=True))) if good else Rows([], [], [], [])
    return rows, table.num_rows, findings


def _read_class_id(text: str) -> int:
    """The class, or 0 for what is none."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0


def read_class_names(path: Path) -> tuple[list[str], list[Finding]]:
    """Reads the names of a `classes.csv`, none where it is not there or wrong, and what is wrong with it."""
    if not path.is_file():
        return [], []
    table = read_table(path, ("ClassId", "name"))
    findings = table.findings
    if not table.form:
        return [], findings
    ids = table.columns["ClassId"]
    if ids != [str(c + 1) for c in range(len(ids))]:
        message = f"ClassId counts 1, 2, 3, ... from top to bottom, but {', '.join(ids)[:80]} came; put them in order"
        return [], [*findings, Finding(path, None, "class", message)]
    if len(ids) > MAX_CLASSES:
        message = f"it names {len(ids)} classes, but at most {MAX_CLASSES} are possible; merge some"
        return [], [*findings, Finding(path, None, "class", message)]
    return table.columns["name"], findings


def read_named(path: Path, columns: Sequence[str], names: NDArray[np.str_]) -> tuple[Table, list[int], list[Finding]]:
    """Reads a file that says one thing of each image, such as splits.csv.

    Args:
        path: The file, with the column ImageId and one of `columns`.
        columns: What it may say.
        names: The data set's images, sorted.

    Returns:
        The table; for each of its rows the place of its image in `names`, -1 where there is none or it stands twice;
        and what is wrong.
    """
    table = read_table(path, *(("ImageId", column) for column in columns))
    index = {name: i for i, name in enumerate(names.tolist())}
    seen: dict[str, int] = {}
    positions, findings = [], list(table.findings)
    for line, name in zip(table.lines, table.columns.get("ImageId", []), strict=True):
        positions.append(-1 if name in seen else index.get(name, -1))
        if name in seen:
            message = f'image "{name}" stands in line {seen[name]} too; take one out'
            findings.append(Finding(path, line, "duplicate row", message))
        elif name not in index:
            message = f'there is no image "{name}" in train_images; take the row out or put the image there'
            findings.append(Finding(path, line, "missing image", message))
        seen.setdefault(name, line)
    return table, positions, findings


def join_rows(
    csv: Path, rows: Rows, names: NDArray[np.str_], sizes: NDArray[np.int32], num_classes: int
) -> tuple[NDArray[np.int32], NDArray[np.int64], int, list[Finding]]:
    """Brings the rows into the order of the images.

    Returns:
        The runs of all codes in one flat array, their offsets, how many rows were used, and what is wrong with others.
    """
    findings: list[Finding] = []
    index = {name: i for i, name in enumerate(names.tolist())}
    readable = (sizes[:, 0] > 0).tolist()
    used: dict[tuple[int, int], int] = {}  # (image, class from 1) -> row
    for row, (line, name, class_id, code) in enumerate(zip(*rows, strict=True)):
        i = index.get(name, -1)
        if i < 0:
            message = f'no image "{name}" in {csv.parent / "train_images"}, though this line names it'
            findings.append(Finding(csv, line, "missing image", f"{message}; put it there or take the row out"))
        elif class_id > num_classes and code:
            known = f"at most {MAX_CLASSES} classes are possible"
            if num_classes < MAX_CLASSES:
                known = f"this data set has the classes 1 to {num_classes}"
            findings.append(Finding(csv, line, "class", f"class {class_id}, but {known}; mend the row"))
        elif not readable[i]:
            message = f"the image {name} cannot be read, so its labels are of no use; mend the image"
            findings.append(Finding(csv, line, "unreadable image", message))
        elif (i, class_id) in used:
            message = f"class {class_id} of {name} stands in line {rows.lines[used[i, class_id]]} too"
            findings.append(Finding(csv, line, "duplicate row", f"{message}; join the two codes into one row"))
        else:
            used[i, class_id] = row

    places = sorted(place for place, row in used.items() if rows.codes[row])
    order = [used[place] for place in places]
    image = np.array([i for i, _ in places], np.int64)
    parsed = rle.parse_all([rows.codes[row] for row in order], sizes[image])
    for k, fault in parsed.faults.items():
        findings.append(_blame(csv, rows, order[k], fault.kind, fault.text, "mend the code"))
    for k in parsed.touching:
        text, remedy = "runs touch, which is the same mask as one longer run", "nothing has to be done"
        findings.append(_blame(csv, rows, order[k], "touching runs", text, remedy, is_error=False))
    counts = np.zeros(len(names) * num_classes + 1, np.int64)
    counts[image * num_classes + np.array([class_id for _, class_id in places], np.int64)] = np.diff(parsed.offsets)
    return parsed.runs, np.cumsum(counts), len(used) - len(parsed.faults), findings


def _blame(csv: Path, rows: Rows, row: int, kind: str, text: str, remedy: str, is_error: bool = True) -> Finding:
    message = f"{text} (class {rows.class_ids[row]} of {rows.images[row]}); {remedy}"
    return Finding(csv, rows.lines[row], kind, message, is_error)
