"""The masks of a finished run as COCO annotations."""

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from steel.data import rle
from steel.data.runs import Runs
from steel.files import new_folder
from steel.inspection.records import Record, Unreadable


def write_coco(folder: Path, records: Iterable[Record | Unreadable], classes: Sequence[str]) -> Path:
    """Write annotations/instances_default.json to a folder, which is replaced if it exists, and return the folder.

    Each spot has an annotation. Unreadable images are left out.
    """
    from steel.data.formats import coco
    from steel.data.formats.labels import LabelledImage, Labels

    images = []
    for record in records:
        if isinstance(record, Record):
            runs: dict[int, Runs] = {c: rle.parse(code) for c, code in enumerate(record.codes) if code}
            images.append(LabelledImage(record.image, None, record.size, runs))
    shutil.rmtree(folder, ignore_errors=True)
    with new_folder(folder) as draft:
        coco.write_coco(Labels(tuple(classes), images, folder), draft, "coco")
    return folder
