"""The layout of this project: train_images/, train.csv and classes.csv; see `steel.data.severstal`."""

import csv
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from steel.data.annotations import read_annotations
from steel.data.formats.labels import LabelledImage, Labels
from steel.data.runs import unite
from steel.errors import InputError


def read_severstal(src: Path, images: Path | None) -> Labels:
    """Read a dataset in the layout of this project.

    Raises:
        InputError: A file is wrong, or `images` is given although the images are in `src`.
    """
    if images:
        raise InputError(f"the images of {src} are in {src / 'train_images'}; --images needs a file of codes as SRC")
    table = read_annotations(src)
    found = []
    for i, (name, (height, width)) in enumerate(zip(table.names.tolist(), table.sizes.tolist(), strict=True)):
        runs = {c: unite([table.runs_of(i, c).astype(np.int64)]) for c in np.flatnonzero(table.labels[i]).tolist()}
        found.append(LabelledImage(name, table.path(i), (height, width), runs))
    return Labels(table.classes, found, src)


def write_severstal(labels: Labels, out: Path) -> None:
    """Write train.csv and classes.csv into a folder."""
    pairs = ((image.name, *pair) for image in labels.images for pair in sorted(image.runs.items()))
    rows = ((name, c + 1, " ".join(map(str, runs.tolist()))) for name, c, runs in pairs)
    _write_csv(out / "train.csv", ("ImageId", "ClassId", "EncodedPixels"), rows)
    write_classes(labels.classes, out)


def write_classes(classes: tuple[str, ...], out: Path) -> None:
    """Write classes.csv into a folder."""
    _write_csv(out / "classes.csv", ("ClassId", "name"), enumerate(classes, 1))


def _write_csv(path: Path, header: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])
