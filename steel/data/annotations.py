"""The labels of a data set: the file formats, and one table with one row per image.

`train.csv` has a row per *defect*, so whoever splits its rows puts one image on both sides. Here a row is an image.
Nothing above this file knows CSV columns, or that classes count from 1 in files.

    ROOT/train.csv        ImageId,ClassId,EncodedPixels   rows only for defects, no empty codes
                       or ImageId_ClassId,EncodedPixels   the contest's first form; empty codes are normal
    ROOT/train_images/    every image here without a row is clean
    ROOT/classes.csv      optional: ClassId,name
    ROOT/unknown.csv      optional: ImageId,EncodedPixels. Regions that nobody has labelled, for at most 7 classes
    ROOT/groups.csv       optional: ImageId,group. Images of one group (a coil, a scene) stay on one side of a split
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from steel.data import images, rle
from steel.data.runs import areas
from steel.data.severstal import (
    MAX_CLASSES,
    Rows,
    join_rows,
    parse,
    read_class_names,
    read_named,
)
from steel.data.tables import Finding, raise_first
from steel.errors import InputError
from steel.progress import track


@dataclass(frozen=True)
class Annotations:
    """A data set's labels, one row per image, in flat arrays that threads and forked processes share without copying.

    Attributes:
        root: The data set's folder.
        names: `(n,)` file names in `train_images`, sorted.
        sizes: int32 `(n, 2)`, height and width in pixels.
        groups: int64 `(n,)`, a number for each group; an image without one is a group of its own.
        classes: The names of the C classes.
        runs: int32, the numbers of all codes, image after image and class after class.
        offsets: int64 `(n * C + 1,)`: the runs of class c on image i are
            `runs[offsets[i * C + c] : offsets[i * C + c + 1]]`.
        unknown: The runs of what nobody has labelled, by the image's row; they count in no loss and no score.
    """

    root: Path
    names: NDArray[np.str_]
    sizes: NDArray[np.int32]
    groups: NDArray[np.int64]
    classes: tuple[str, ...]
    runs: NDArray[np.int32]
    offsets: NDArray[np.int64]
    unknown: Mapping[int, NDArray[np.int32]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def num_classes(self) -> int:
        """C, the number of classes."""
        return len(self.classes)

    @cached_property
    def labels(self) -> NDArray[np.bool_]:
        """Bool `(n, C)`: which classes stand on which image."""
        present: NDArray[np.bool_] = np.diff(self.offsets) > 0
        return present.reshape(len(self), self.num_classes)

    @cached_property
    def areas(self) -> NDArray[np.int64]:
        """int64 `(n, C)`: the labelled pixels of each class on each image."""
        return areas(self.runs, self.offsets).reshape(len(self), self.num_classes)

    def path(self, index: int) -> Path:
        """Where an image lies."""
        return self.root / "train_images" / str(self.names[index])

    def runs_of(self, index: int, c: int) -> NDArray[np.int32]:
        """The runs of class c (from 0) on an image, flat; empty where it is not there."""
        row = index * self.num_classes + c
        return self.runs[self.offsets[row] : self.offsets[row + 1]]

    def read_image(self, index: int) -> NDArray[np.uint8]:
        """Decodes an image to uint8 `(H, W)`.

        Raises:
            InputError: The image is gone, broken, or not of the size that it had when the labels were read.
        """
        image = images.read_grey(self.path(index))
        height, width = self.sizes[index].tolist()
        if image.shape != (height, width):
            raise InputError(
                f"{self.path(index)} has {image.shape[1]} x {image.shape[0]} pixels, but had {width} x {height} when "
                f"the labels were read; start again"
            )
        return image

    def draw_plane(self, index: int) -> NDArray[np.uint8]:
        """Draws an image's labels as a bit plane: uint8 `(H, W)`, bit c set where class c is, bit 7 where unknown."""
        height, width = self.sizes[index]
        plane = np.zeros((int(height), int(width)), np.uint8)
        for c in np.flatnonzero(self.labels[index]):
            rle.add(plane, self.runs_of(index, int(c)), int(c))
        if index in self.unknown:
            rle.add(plane, self.unknown[index], rle.UNKNOWN_BIT)
        return plane

    def draw_masks(self, index: int) -> NDArray[np.bool_]:
        """Draws an image's labels as masks: bool `(C, H, W)`."""
        bits = (1 << np.arange(self.num_classes, dtype=np.uint8))[:, None, None]
        masks: NDArray[np.bool_] = (self.draw_plane(index) & bits) != 0
        return masks

    @cached_property
    def digest(self) -> str:
        """A hash over names, sizes, groups, classes and codes: two data sets with the same one have the same labels."""
        sha = hashlib.sha256()
        for text in (*self.names.tolist(), *self.classes):
            sha.update(text.encode() + b"\0")
        # By first appearance, so that what a group is called does not matter.
        groups = pd.factorize(self.groups)[0].astype(np.int64)
        for array in (self.sizes, groups, self.runs, self.offsets):
            sha.update(np.ascontiguousarray(array).tobytes())
        for index, runs in sorted(self.unknown.items()):
            sha.update(np.array([index, len(runs), *runs], np.int64).tobytes())
        return sha.hexdigest()[:16]


class Reading(NamedTuple):
    """What a data set's files hold, with everything that is wrong with them.

    Attributes:
        annotations: What is left without the images and rows that errors name; None where nothing is.
        findings: What is wrong, and what is worth knowing.
        num_rows: The rows of train.csv.
        num_used: Those whose word counts: a code, or in the contest's first form the absence of one.
    """

    annotations: Annotations | None
    findings: list[Finding]
    num_rows: int
    num_used: int


def read_annotations(root: str | Path, num_classes: int | None = None) -> Annotations:
    """Reads a data set's labels; strict, so what is wrong is an error.

    Args:
        root: The folder that holds `train.csv` and `train_images/`.
        num_classes: C. By default the rows of `classes.csv`, or else the largest class in `train.csv`.

    Raises:
        InputError: The first thing that is wrong, with file, line and reason.
    """
    annotations, findings, _, _ = read_leniently(root, num_classes)
    raise_first(findings)
    assert annotations is not None  # since nothing is left out without an error
    return annotations


def read_leniently(root: str | Path, num_classes: int | None = None) -> Reading:
    """Reads what can be read of a data set's labels and says all that is wrong; see `read_annotations`.

    Raises:
        InputError: There is no such folder, or no image in it; or `num_classes` is impossible.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(
            f"no folder {root}; name the one that holds train.csv and train_images, for steel fit by --data.root"
        )
    folder = root / "train_images"
    if not folder.is_dir():
        raise InputError(f"no folder {folder}; put the images there")
    names, sizes, findings = _read_sizes(folder)
    csv = root / "train.csv"
    rows, num_rows, more = parse(csv)
    findings += more
    classes, more = _choose_classes(root, rows, num_classes)
    findings += more
    groups, more = _read_groups(root / "groups.csv", names)
    findings += more
    unknown, more = _read_unknown(root / "unknown.csv", names, sizes, len(classes))
    findings += more
    if not classes:
        # Rows that nothing else names are named by this.
        if rows.lines or not any(finding.is_error for finding in findings):
            message = "it holds no defect, so the number of classes is unknown; write a classes.csv or set it"
            findings.append(Finding(csv, None, "no defect", message))
        return Reading(None, findings, num_rows, 0)
    runs, offsets, num_used, more = join_rows(csv, rows, names, sizes, len(classes))
    findings += more
    # An image that cannot be used has no labels by now and leaves the table.
    good = sizes[:, 0] > 0
    if not good.any():
        return Reading(None, findings, num_rows, num_used)
    counts = np.diff(offsets).reshape(len(names), len(classes))[good]
    offsets = np.concatenate([[0], np.cumsum(counts)])
    row = np.cumsum(good) - 1
    unknown = {int(row[i]): region for i, region in unknown.items() if good[i]}
    table = Annotations(root, names[good], sizes[good], groups[good], classes, runs, offsets, unknown)
    return Reading(table, findings, num_rows, num_used)


def _read_sizes(folder: Path) -> tuple[NDArray[np.str_], NDArray[np.int32], list[Finding]]:
    """Names and sizes of all images; both sizes are 0 where the header cannot be read or no table holds the name."""
    paths = images.find_images(folder)
    sizes, findings = [], []
    for path in track(paths, "reading sizes", len(paths)):
        size = 0, 0
        try:
            path.name.encode()
            size = images.read_size(path)
        except UnicodeEncodeError:
            message = "its name is not UTF-8, so no table can hold it; rename the file"
            findings.append(Finding(path, None, "file name", message))
        except InputError as error:
            message = f"the image {str(error).removeprefix(f'{path} ')}"
            findings.append(Finding(path, None, "unreadable image", message))
        sizes.append(size)
    return np.array([path.name for path in paths]), np.array(sizes, np.int32), findings


def _choose_classes(root: Path, rows: Rows, num_classes: int | None) -> tuple[tuple[str, ...], list[Finding]]:
    if num_classes is not None and not 1 <= num_classes <= MAX_CLASSES:
        raise InputError(f"{num_classes} classes, but 1 to {MAX_CLASSES} are possible; set data.num_classes to one")
    path = root / "classes.csv"
    named, findings = read_class_names(path)
    largest = max((c for c, code in zip(rows.class_ids, rows.codes, strict=True) if code), default=0)
    count = num_classes or len(named) or min(largest, MAX_CLASSES)
    if len(named) > count:
        message = f"it names {len(named)} classes, but data.num_classes is {count}; let them agree"
        findings.append(Finding(path, None, "class", message))
    return (*named[:count], *(str(c + 1) for c in range(len(named), count))), findings


def _read_groups(path: Path, names: NDArray[np.str_]) -> tuple[NDArray[np.int64], list[Finding]]:
    if not path.is_file():
        return np.arange(len(names)), []
    groups = np.arange(len(names))
    first: dict[str, int] = {}  # image of each group
    table, positions, findings = read_named(path, ("group",), names)
    for i, text, line in zip(positions, table.columns.get("group", []), table.lines, strict=True):
        if not text:
            message = "the group is empty; name it or take the row out"
            findings.append(Finding(path, line, "empty group", message))
        elif i >= 0:
            groups[i] = first.setdefault(text, i)
    return pd.factorize(groups)[0].astype(np.int64), findings


def _read_unknown(
    path: Path, names: NDArray[np.str_], sizes: NDArray[np.int32], num_classes: int
) -> tuple[dict[int, NDArray[np.int32]], list[Finding]]:
    if not path.is_file():
        return {}, []
    table, positions, findings = read_named(path, ("EncodedPixels",), names)
    if num_classes > rle.UNKNOWN_BIT:
        message = (
            f"regions without labels need one of the {MAX_CLASSES} bits of a mask, which {num_classes} classes fill"
        )
        findings.append(Finding(path, None, "class", f"{message}; merge some or take the file out"))
        return {}, findings
    rows = [row for row, i in enumerate(positions) if i >= 0 and sizes[i, 0] > 0]
    image = [positions[row] for row in rows]
    parsed = rle.parse_all([table.columns["EncodedPixels"][row] for row in rows], sizes[image])
    for k, fault in parsed.faults.items():
        message = f"{fault.text} ({names[image[k]]}); mend the code"
        findings.append(Finding(path, table.lines[rows[k]], fault.kind, message))
    regions = {i: parsed.runs[parsed.offsets[k] : parsed.offsets[k + 1]] for k, i in enumerate(image)}
    return {i: runs for i, runs in regions.items() if len(runs)}, findings
