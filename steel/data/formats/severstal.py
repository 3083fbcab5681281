"""Our own layout, and files of predictions.

train_images/  train.csv  classes.csv       a data set; see `steel.data.annotations`
submission.csv  classes.csv                 what steel inspect found; an empty code says that nothing was
"""

from pathlib import Path

import numpy as np
import pandas as pd

from steel.data import images as image_files
from steel.data import rle
from steel.data.annotations import read_annotations
from steel.data.formats.labels import LabelledImage, Labels, read_clean
from steel.data.runs import unite
from steel.data.severstal import MAX_CLASSES, read_class_names
from steel.data.tables import Table, raise_first, read_table
from steel.errors import InputError

CLASS_IDS = tuple(str(c + 1) for c in range(MAX_CLASSES))


def read_severstal(src: Path, images: Path | None) -> Labels:
    """Reads a data set's folder, or a file of predictions, whose images are always elsewhere."""
    if src.is_file():
        return _read_predictions(src, images)
    if images:
        raise InputError(f"the images of {src} are in {src / 'train_images'}; --images goes with a file of codes")
    table = read_annotations(src)
    found = []
    for i, (name, (height, width)) in enumerate(zip(table.names.tolist(), table.sizes.tolist(), strict=True)):
        codes = {c: unite([table.runs_of(i, c).astype(np.int64)]) for c in np.flatnonzero(table.labels[i]).tolist()}
        found.append(LabelledImage(name, table.path(i), (height, width), codes))
    return Labels(table.classes, found, src)


def _read_predictions(src: Path, images: Path | None) -> Labels:
    if images is None:
        raise InputError(f"{src} is a file of codes; give the folder of its images with --images")
    table = read_table(src, ("ImageId", "ClassId", "EncodedPixels"), ("ImageId_ClassId", "EncodedPixels"))
    raise_first(table.findings)
    found = read_clean({path.name: path for path in image_files.find_images(images)})
    largest = (0, "")
    for line, (name, class_id), code in zip(
        table.lines, _split_keys(table), table.columns["EncodedPixels"], strict=True
    ):
        where = f"{src}, line {line}"
        if name not in found:
            raise InputError(f'{where}: no image "{name}" in {images}; put it there or take the row out')
        if class_id not in CLASS_IDS:
            raise InputError(f'{where}: classes are 1 to {MAX_CLASSES}, but "{class_id}" came; mend the row')
        largest = max(largest, (int(class_id), where))
        if code:
            _add_code(where, found[name], class_id, code)
    return Labels(read_classes(src.parent, *largest), list(found.values()), src.parent)


def _split_keys(table: Table) -> list[tuple[str, str]]:
    """Image and class of each row, in either form."""
    if "ImageId" in table.form:
        return list(zip(table.columns["ImageId"], table.columns["ClassId"], strict=True))
    parts = [key.rpartition("_") for key in table.columns["ImageId_ClassId"]]
    return [(name, class_id) for name, _, class_id in parts]


def _add_code(where: str, image: LabelledImage, class_id: str, code: str) -> None:
    c = int(class_id) - 1
    if c in image.codes:
        raise InputError(f"{where}: class {class_id} of {image.name} stands in an earlier line too; take one out")
    try:
        image.codes[c] = find_runs(rle.decode(code, image.size))
    except InputError as error:
        raise InputError(f"{where}: {error} (class {class_id} of {image.name}); mend the code") from error


def read_classes(folder: Path, largest: int, place: str) -> tuple[str, ...]:
    """The names of classes.csv, or numbers up to the largest class (from 1), which was seen at a place."""
    path = folder / "classes.csv"
    names, findings = read_class_names(path)
    raise_first(findings)
    if not path.is_file():
        return CLASS_IDS[:largest]
    if largest > len(names):
        raise InputError(f"{place} has class {largest}, but {path} names {len(names)} classes; name it, too")
    return tuple(names)


def write_classes(classes: tuple[str, ...], out: Path) -> None:
    """Writes a classes.csv into a folder."""
    table = pd.DataFrame({"ClassId": CLASS_IDS[: len(classes)], "name": classes})
    table.to_csv(out / "classes.csv", index=False, lineterminator="\n")


def write_severstal(labels: Labels, out: Path) -> None:
    """Writes train.csv and classes.csv into a folder."""
    rows = [
        (image.name, c + 1, " ".join(map(str, runs.tolist())))
        for image in labels.images
        for c, runs in sorted(image.codes.items())
    ]
    table = pd.DataFrame(rows, columns=["ImageId", "ClassId", "EncodedPixels"])
    table.to_csv(out / "train.csv", index=False, lineterminator="\n")
    write_classes(labels.classes, out)
