"""Training labels from verdicts.

They are the `train.csv` of a dataset in the older form, in which a clean image has rows with empty codes, and
`to_label.csv` (`ImageId,ClassId`; the class is empty if unknown), which lists the images that remain to be labelled.
Places unlike any clean steel become labels of a new class if the inspector has named one; otherwise `unknown.csv` lists
them.
"""

import json
import sqlite3
from collections.abc import Iterable, Sequence
from io import BytesIO
from typing import Any, NamedTuple
from zipfile import ZIP_DEFLATED, ZipFile

from steel.data import rle, runs
from steel.data.formats.submission import head_submission, list_codes
from steel.data.spelling import format_csv


def pack_labels(verdicts: Iterable[sqlite3.Row], names: Sequence[str]) -> bytes:
    """Return verdicts as a ZIP archive of train.csv, to_label.csv and classes.csv, and unknown.csv if it has rows.

    Args:
        verdicts: Rows of the table of verdicts.
        names: Names of the classes, the new ones last.
    """
    codes: list[Sequence[Any]] = [head_submission("old")]
    to_label: list[Sequence[Any]] = [("ImageId", "ClassId")]
    unknown: list[Sequence[Any]] = [("ImageId", "EncodedPixels")]
    for row in verdicts:
        image, name, label = row["image"], row["class"], _label(row, names)
        # Unlabelled regions need a bit of their own.
        if label is None or (label.unknown and len(names) > rle.UNKNOWN_BIT):
            to_label.append((image, names.index(name) + 1 if name in names else ""))
            continue
        codes += list_codes(image, label.codes, "old")
        unknown += [(image, label.unknown)] if label.unknown else []
    classes: list[Sequence[Any]] = [("ClassId", "name"), *enumerate(names, 1)]
    tables = {"train.csv": codes, "to_label.csv": to_label, "classes.csv": classes}
    tables |= {"unknown.csv": unknown} if len(unknown) > 1 else {}
    file = BytesIO()
    with ZipFile(file, "w", ZIP_DEFLATED) as archive:
        for member, rows in tables.items():
            archive.writestr(member, format_csv(rows))
    return file.getvalue()


class _Label(NamedTuple):
    """The label of an image: the code of each class, and that of the region that remains unlabelled."""

    codes: list[str]
    unknown: str = ""


def _label(row: sqlite3.Row, names: Sequence[str]) -> _Label | None:
    """Return the label that a verdict gives on classes of these names; None if someone has to outline the defect."""
    name, region = row["class"], row["unknown_code"]
    found, marks = (dict(zip(names, json.loads(row[field]), strict=False)) for field in ("codes", "marks"))
    match row["verdict"]:
        case "agree" if region:
            return _Label([""] * len(names), region)
        case "agree" if row["defective"] and not any(found.values()):
            return None  # a confirmed defect without a mask is not a clean image
        case "false_alarm":  # remove the code of the class, or all codes if no class is given
            found = {key: "" if name in (None, key) else code for key, code in found.items()}
        case "missed" if not any(marks.values()):
            return None
        case "missed":  # what was found is right, and what was marked is missing
            found = {key: _unite(code, marks[key]) for key, code in found.items()}
        case "unknown" if name is None:
            return _Label([""] * len(names), region)
        case "unknown":
            found = {name: region}
    return _Label([found.get(key, "") for key in names])


def _unite(code: str, mark: str) -> str:
    return " ".join(map(str, runs.unite([rle.parse(code), rle.parse(mark)]).tolist()))
