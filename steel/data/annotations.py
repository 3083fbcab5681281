"""The labels of a dataset in one table with one row per image.

In `train.csv` a row is a defect, so a split over its rows would put one image on both sides. Here a row is an image.
`steel.data.severstal` describes the files. Every image in `train_images/` without a row in `train.csv` is clean.
Code above this module knows neither CSV columns nor that classes count from 1 in files.
"""

import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from steel.data import images, rle
from steel.data.runs import Offsets, Runs, areas, intersect
from steel.data.severstal import choose_classes, join_rows, parse, read_groups, read_unknown, suggest_conversion
from steel.data.tables import Finding, raise_first
from steel.errors import InputError
from steel.progress import track


@dataclass(frozen=True)
class Annotations:
    """The labels of a dataset, one row per image, in flat arrays that threads and forked processes share.

    Attributes:
        root: The folder of the dataset.
        names: `(n,)` file names in `train_images`, sorted.
        sizes: int32 `(n, 2)`, height and width in pixels.
        groups: int64 `(n,)`, the group number of each image; an image without a group is its own group.
        classes: The names of the C classes.
        runs: int32, the runs of all codes, ordered by image and then by class.
        offsets: int64 `(n * C + 1,)`. Class c on image i has the runs from `offsets[i * C + c]` to the next offset.
        unknown: The runs of the unlabelled region of an image, by its row; see `steel.data.unknown`.
        grouped: The rows of the images whose group is known.
    """

    root: Path
    names: NDArray[np.str_]
    sizes: NDArray[np.int32]
    groups: NDArray[np.int64]
    classes: tuple[str, ...]
    runs: NDArray[np.int32]
    offsets: NDArray[np.int64]
    unknown: Mapping[int, NDArray[np.int32]] = field(default_factory=dict)
    grouped: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    def __len__(self) -> int:
        return len(self.names)

    @property
    def num_classes(self) -> int:
        """C, the number of classes."""
        return len(self.classes)

    @cached_property
    def labels(self) -> NDArray[np.bool_]:
        """Bool `(n, C)`, whether the class is on the image."""
        return (np.diff(self.offsets) > 0).reshape(len(self), self.num_classes)

    @cached_property
    def areas(self) -> NDArray[np.int64]:
        """int64 `(n, C)`, the number of pixels of each class on each image."""
        return areas(self.runs, self.offsets).reshape(len(self), self.num_classes)

    @cached_property
    def has_unknown(self) -> NDArray[np.bool_]:
        """Bool `(n,)`, whether a part of the image is unlabelled."""
        return np.isin(np.arange(len(self)), list(self.unknown))

    @cached_property
    def is_grouped(self) -> NDArray[np.bool_]:
        """Bool `(n,)`, whether the group of the image is known; otherwise it is its own group."""
        return np.isin(np.arange(len(self)), self.grouped)

    @cached_property
    def hidden(self) -> NDArray[np.int64]:
        """int64 `(n,)`, the number of unlabelled pixels of each image."""
        regions = (self.unknown.get(i, np.empty(0, np.int32)) for i in range(len(self)))
        return np.array([region[1::2].sum() for region in regions], np.int64)

    @cached_property
    def labelled_areas(self) -> NDArray[np.int64]:
        """int64 `(n, C)`, `areas` without pixels in unlabelled regions."""
        return self.count_labelled(self.runs, self.offsets)

    def count_labelled(self, runs: Runs, offsets: Offsets) -> NDArray[np.int64]:
        """Return the pixels of masks outside unlabelled regions, int64 `(n, C)`; runs are ordered as `self.runs`."""
        pixels = areas(runs, offsets)
        if self.unknown:
            none = np.empty(0, np.int32)
            regions = [self.unknown.get(i, none) for i in range(len(self)) for _ in self.classes]
            pixels -= areas(*intersect(runs, offsets, np.concatenate(regions), np.cumsum([0, *map(len, regions)])))
        return pixels.reshape(len(self), self.num_classes)

    def path(self, index: int) -> Path:
        """Return the path of an image."""
        return self.root / "train_images" / str(self.names[index])

    def list_paths(self) -> list[Path]:
        """Return the paths of all images, in the order of the table."""
        return [self.path(i) for i in range(len(self))]

    def runs_of(self, index: int, c: int) -> NDArray[np.int32]:
        """Return the runs of class c (from 0) on an image as a flat array, empty if the class is absent."""
        row = index * self.num_classes + c
        return self.runs[self.offsets[row] : self.offsets[row + 1]]

    def read_image(self, index: int) -> NDArray[np.uint8]:
        """Decode an image to uint8 `(H, W)`.

        Raises:
            InputError: The image is missing, damaged, or its size has changed since the labels were read.
        """
        image = images.read_grey(self.path(index))
        height, width = self.sizes[index].tolist()
        if image.shape != (height, width):
            reason = f"has {image.shape[1]} x {image.shape[0]} pixels, but had {width} x {height}"
            raise InputError(f"{self.path(index)} {reason} when the labels were read; run the command again")
        return image

    def draw_plane(self, index: int) -> NDArray[np.uint8]:
        """Draw the labels of an image as a bit plane: uint8 `(H, W)`, bit c for class c, bit 7 for unlabelled."""
        plane = np.zeros(self.sizes[index], np.uint8)
        for c in np.flatnonzero(self.labels[index]):
            rle.add(plane, self.runs_of(index, int(c)), int(c))
        if index in self.unknown:
            rle.add(plane, self.unknown[index], rle.UNKNOWN_BIT)
        return plane

    def draw_masks(self, index: int) -> NDArray[np.bool_]:
        """Draw the labels of an image as masks: bool `(C, H, W)`."""
        bits = 1 << np.arange(self.num_classes, dtype=np.uint8)
        return np.asarray((self.draw_plane(index) & bits[:, None, None]) != 0)

    @cached_property
    def digest(self) -> str:
        """A hash of names, sizes, groups, classes and codes, equal for two datasets only if their labels are equal."""
        sha = hashlib.sha256()
        for text in (*self.names.tolist(), *self.classes):
            sha.update(text.encode() + b"\0")
        # Groups are numbered by first appearance, so that their names do not matter.
        groups = pd.factorize(self.groups)[0].astype(np.int64)
        for array in (self.sizes, groups, self.runs, self.offsets):
            sha.update(np.ascontiguousarray(array).tobytes())
        for index, runs in sorted(self.unknown.items()):
            sha.update(np.array([index, len(runs), *runs], np.int64).tobytes())
        return sha.hexdigest()[:16]


class Reading(NamedTuple):
    """The labels of a dataset with the findings about its files.

    Attributes:
        annotations: The valid labels, without the images and rows that errors name; None if nothing is left.
        findings: Errors and information.
        num_rows: Number of rows of train.csv.
        num_used: Number of rows with a valid code, or with an empty one in the first form of the contest.
    """

    annotations: Annotations | None
    findings: list[Finding]
    num_rows: int
    num_used: int


def read_annotations(root: str | Path, num_classes: int | None = None) -> Annotations:
    """Read the labels of a dataset; the first error in its files is raised.

    Args:
        root: The folder with `train.csv` and `train_images/`.
        num_classes: C; by default the number of rows of `classes.csv`, or else the largest class in `train.csv`.

    Raises:
        InputError: A file or an image is wrong; the message names file and line.
    """
    annotations, findings, _, _ = read_leniently(root, num_classes)
    raise_first(findings)
    assert annotations is not None  # nothing is left out without an error
    return annotations


def list_unlabelled(paths: Sequence[Path]) -> Annotations:
    """Return a table of images in any folder, without labels and with one unnamed class.

    Raises:
        InputError: An image is unreadable.
    """
    sizes = np.array([images.read_size(path) for path in paths], np.int32)
    names, groups = np.array([path.name for path in paths]), np.arange(len(paths))
    runs, offsets = np.zeros(0, np.int32), np.zeros(len(paths) + 1, np.int64)
    return Annotations(paths[0].parent, names, sizes, groups, ("",), runs, offsets)


def read_leniently(root: str | Path, num_classes: int | None = None) -> Reading:
    """Read the valid labels of a dataset and list all errors; otherwise like `read_annotations`.

    Raises:
        InputError: A folder or all images are missing, or `num_classes` is out of range.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(
            f"no folder {root}; give the folder with train.csv and train_images (--data.root in steel fit)"
        )
    csv, folder = root / "train.csv", root / "train_images"
    if not folder.is_dir():
        raise InputError(
            f"no folder {folder}; put the images there, or convert another layout: {suggest_conversion(root)}"
        )
    names, sizes, findings = _read_sizes(folder)
    rows, num_rows, row_findings = parse(csv)
    largest = max((row.class_id for row in rows if row.code), default=0)
    classes, class_findings = choose_classes(root, largest, num_classes)
    groups, is_grouped, group_findings = read_groups(root / "groups.csv", names)
    unknown, unknown_findings = read_unknown(root / "unknown.csv", names, sizes, len(classes))
    findings += [*row_findings, *class_findings, *group_findings, *unknown_findings]
    if not classes:
        # Report rows that no other finding reports.
        if rows or not any(finding.is_error for finding in findings):
            message = "no row has a defect, so the number of classes is unknown; add classes.csv or set it"
            findings.append(Finding(csv, None, "no defect", message))
        return Reading(None, findings, num_rows, 0)
    runs, offsets, num_used, code_findings = join_rows(csv, rows, names, sizes, len(classes))
    findings += code_findings
    if not (is_good := sizes[:, 0] > 0).any():
        return Reading(None, findings, num_rows, num_used)
    # Unreadable images have no labels here and are removed from the table.
    counts = np.diff(offsets).reshape(len(names), len(classes))[is_good]
    offsets = np.concatenate([[0], np.cumsum(counts)])
    groups = pd.factorize(groups)[0].astype(np.int64)[is_good]
    row = np.cumsum(is_good) - 1
    unknown = {int(row[i]): region for i, region in unknown.items() if is_good[i]}
    grouped = np.flatnonzero(is_grouped[is_good])
    table = Annotations(root, names[is_good], sizes[is_good], groups, classes, runs, offsets, unknown, grouped)
    return Reading(table, findings, num_rows, num_used)


def _read_sizes(folder: Path) -> tuple[NDArray[np.str_], NDArray[np.int32], list[Finding]]:
    """Return names and sizes of all images; the size is (0, 0) if an image is unreadable or its name not UTF-8."""
    paths = images.find_images(folder)
    sizes, findings = [], []
    for path in track(paths, "reading sizes", len(paths)):
        size = 0, 0
        try:
            path.name.encode()
            size = images.read_size(path)
        except UnicodeEncodeError:
            remedy = (
                "rename the file" if sys.getfilesystemencoding() == "utf-8" else "set PYTHONUTF8=1 or rename the file"
            )
            message = f"the file name is not UTF-8, so no CSV file can hold it; {remedy}"
            findings.append(Finding(path, None, "file name", message))
        except images.ImageError as error:
            findings.append(Finding(path, None, error.kind, f"the image {error.reason}"))
        sizes.append(size)
    return np.array([path.name for path in paths]), np.array(sizes, np.int32), findings
