"""The masks of inspected images as COCO annotations."""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from steel.data import rle
from steel.data.runs import Runs
from steel.files import new_folder
from steel.inspection.records import Record, Unreadable

if TYPE_CHECKING:  # imported when it is needed, since pycocotools delays the start of every inspection
    from steel.data.formats.coco import CocoFormat


def write_coco(
    folder: Path,
    records: Iterable[Record | Unreadable],
    classes: Sequence[str],
    form: "CocoFormat" = "coco",
    copied: Mapping[str, Path] | None = None,
) -> Path:
    """Write annotations/instances_default.json to a folder, which is replaced if it exists, and return the folder.

    Each spot has an annotation. Unreadable images are left out.

    Args:
        folder: The folder.
        records: The inspected images.
        classes: Names of the C classes.
        form: Masks ("coco") or outlines ("coco-polygons").
        copied: Paths of images, by name, to copy into the folder `images` beside the annotations.
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
        coco.write_coco(Labels(tuple(classes), images, folder), draft, form)
        for name, path in (copied or {}).items():
            (copy := draft / "images" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
    return folder
