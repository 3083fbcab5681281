"""The labels of a data set: the file formats, and one table with one row per image.

`train.csv` has a row per *defect*, so whoever splits its rows puts one image on both sides. Here a row is an image.
Nothing above this file knows CSV columns, or that classes count from 1 in files.

    ROOT/train.csv        ImageId,ClassId,EncodedPixels   rows only for defects, no empty codes
                       or ImageId_ClassId,EncodedPixels   the contest's first form; empty codes are normal
    ROOT/train_images/    every image here without a row is clean
    ROOT/classes.csv      optional: ClassId,name
    ROOT/groups.csv       optional: ImageId,group. Images of one group (a coil, a scene) stay on one side of a split
"""

import hashlib
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from steel.data import images, rle
from steel.errors import InputError

MAX_CLASSES = 8  # a bit of a uint8 plane for each


@dataclass(frozen=True)
class Finding:
    """Something wrong in a file.

    Attributes:
        file: The file.
        line: Its line, from 1, or None where the whole file is meant.
        kind: One word for what it is.
        message: What is wrong and what to do, as the rest of a sentence that begins with file and line.
    """

    file: Path
    line: int | None
    kind: str
    message: str

    def __str__(self) -> str:
        where = str(self.file) if self.line is None else f"{self.file}, line {self.line}"
        return f"{where}: {self.message}"


@dataclass(frozen=True)
class Annotations:
    """A data set's labels, one row per image, in flat arrays that worker processes share without copying.

    Attributes:
        root: The data set's folder.
        names: `(n,)` file names in `train_images`, sorted.
        sizes: int32 `(n, 2)`, height and width in pixels.
        groups: int64 `(n,)`, a number for each group; an image without one is a group of its own.
        classes: The names of the C classes.
        runs: int32, the numbers of all codes, image after image and class after class.
        offsets: int64 `(n * C + 1,)`: the runs of class c on image i are
            `runs[offsets[i * C + c] : offsets[i * C + c + 1]]`.
    """

    root: Path
    names: NDArray[np.str_]
    sizes: NDArray[np.int32]
    groups: NDArray[np.int64]
    classes: tuple[str, ...]
    runs: NDArray[np.int32]
    offsets: NDArray[np.int64]

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
        totals = np.concatenate([[0], np.cumsum(self.runs[1::2], dtype=np.int64)])
        areas: NDArray[np.int64] = np.diff(totals[self.offsets // 2])
        return areas.reshape(len(self), self.num_classes)

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
            InputError: The image is gone or broken.
        """
        return images.read_grey(self.path(index))

    def draw_plane(self, index: int) -> NDArray[np.uint8]:
        """Draws an image's labels as a bit plane: uint8 `(H, W)`, bit c set where class c is."""
        height, width = self.sizes[index]
        plane = np.zeros((int(height), int(width)), np.uint8)
        for c in np.flatnonzero(self.labels[index]):
            rle.add(plane, self.runs_of(index, int(c)), int(c))
        return plane

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
        return sha.hexdigest()[:16]


def read_annotations(root: str | Path, num_classes: int | None = None) -> Annotations:
    """Reads a data set's labels; strict, so what is wrong is an error.

    Args:
        root: The folder that holds `train.csv` and `train_images/`.
        num_classes: C. By default the rows of `classes.csv`, or else the largest class in `train.csv`.

    Raises:
        InputError: The first thing that is wrong, with file, line and reason.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"no folder {root}; set --data.root to the folder that holds train.csv and train_images")
    folder = root / "train_images"
    if not folder.is_dir():
        raise InputError(f"no folder {folder}; put the images there")
    paths = images.find_images(folder)
    names = np.array([path.name for path in paths])
    sizes = np.array([images.read_size(path) for path in paths], np.int32)

    csv = root / "train.csv"
    rows, findings = parse(csv)
    if len(rows) == 0:
        _raise_first(findings)
    classes = _choose_classes(root, rows, num_classes)
    runs, offsets, more = _join(csv, rows, names, sizes, len(classes))
    _raise_first([*findings, *more])
    return Annotations(root, names, sizes, _read_groups(root / "groups.csv", names), classes, runs, offsets)


def parse(path: Path) -> tuple[pd.DataFrame, list[Finding]]:
    r"""Reads the rows of a `train.csv` in either form, without looking at images.

    Example:
        >>> from tempfile import mkdtemp
        >>> path = Path(mkdtemp()) / "train.csv"
        >>> _ = path.write_text("ImageId_ClassId,EncodedPixels\na.jpg_1,\na.jpg_3,5 2\n")
        >>> rows, findings = parse(path)
        >>> rows
           line  image  class_id code
        0     3  a.jpg         3  5 2

    Args:
        path: The file.

    Returns:
        The rows with a code, as columns line (from 1, the header's), image, class_id (as in the file) and code; and
        what is wrong with the others.
    """
    if not path.is_file():
        return _no_rows(), [Finding(path, None, "missing", "there is no such file; put the labels there")]
    try:
        table = _read_csv(path)
    except InputError as error:
        return _no_rows(), [Finding(path, None, "format", str(error))]
    is_old = "ImageId_ClassId" in table.columns
    needed = ["ImageId_ClassId", "EncodedPixels"] if is_old else ["ImageId", "ClassId", "EncodedPixels"]
    if missing := [column for column in needed if column not in table.columns]:
        message = (
            f"it needs the columns ImageId,ClassId,EncodedPixels (or ImageId_ClassId,EncodedPixels), "
            f"but {', '.join(missing)} is not among {','.join(table.columns[1:])[:200]}; name them so"
        )
        return _no_rows(), [Finding(path, 1, "columns", message)]

    if is_old:
        parts = table["ImageId_ClassId"].str.rpartition("_")
        image, class_id = parts[0], parts[2]
    else:
        image, class_id = table["ImageId"], table["ClassId"]
    rows = pd.DataFrame(
        {
            "line": table["line"],
            "image": image.str.strip(),
            "class_id": class_id.str.strip(),
            "code": table["EncodedPixels"].str.strip(),
        }
    )

    findings: list[Finding] = []
    whole = rows["class_id"].str.fullmatch(r"0*[1-9][0-9]{0,8}")
    for line, class_text in zip(rows["line"][~whole].tolist(), rows["class_id"][~whole].tolist(), strict=True):
        message = f'the class is "{class_text}", but classes are whole numbers from 1; mend the row'
        findings.append(Finding(path, line, "class", message))
    rows = rows[whole].astype({"class_id": int})
    empty = rows["code"] == ""
    if not is_old:
        for line, name in zip(rows["line"][empty].tolist(), rows["image"][empty].tolist(), strict=True):
            message = f"the code of {name} is empty, but only defects have a row here; take the row out"
            findings.append(Finding(path, line, "empty", message))
    return rows[~empty].reset_index(drop=True), findings


def _no_rows() -> pd.DataFrame:
    return pd.DataFrame({"line": [], "image": [], "class_id": [], "code": []})


def _choose_classes(root: Path, rows: pd.DataFrame, num_classes: int | None) -> tuple[str, ...]:
    named = _read_class_names(root / "classes.csv")
    largest = int(rows["class_id"].max()) if len(rows) else 0
    count = num_classes or len(named) or largest
    if count == 0:
        raise InputError(f"{root / 'train.csv'} holds no defect, so the number of classes is unknown; set it")
    if named and len(named) > count:
        raise InputError(f"{root / 'classes.csv'} names {len(named)} classes, but data.num_classes is {count}")
    if count > MAX_CLASSES:
        line = "" if num_classes or named else f", line {rows['line'].tolist()[int(np.argmax(rows['class_id']))]}"
        raise InputError(
            f"{root / 'train.csv'}{line}: {count} classes, but at most {MAX_CLASSES} are possible; mend the row"
        )
    return tuple(named) + tuple(str(c + 1) for c in range(len(named), count))


def _read_class_names(path: Path) -> list[str]:
    if not path.is_file():
        return []
    table = read_columns(path, ("ClassId", "name"))
    expected = [str(c + 1) for c in range(len(table))]
    if table["ClassId"].tolist() != expected:
        raise InputError(f"{path}: ClassId counts 1, 2, 3, ... from top to bottom, but {list(table['ClassId'])} came")
    return [str(name) for name in table["name"]]


def _read_groups(path: Path, names: NDArray[np.str_]) -> NDArray[np.int64]:
    if not path.is_file():
        return np.arange(len(names))
    table = read_columns(path, ("ImageId", "group"))
    group = [f"\0{name}" for name in names]  # no group of a file begins so
    position = match_names(path, table["ImageId"], names, table["line"])
    for i, text, line in zip(position, table["group"], table["line"], strict=True):
        if not text:
            raise InputError(f"{path}, line {line}: the group is empty; name it or take the row out")
        group[i] = str(text)
    return pd.factorize(np.array(group))[0].astype(np.int64)


def read_columns(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    """Reads a small table of the data set, such as groups.csv.

    Args:
        path: The file.
        columns: What it has to hold.

    Returns:
        Its columns as text, and the line (from 1, the header's) of each row; blank lines are left out.

    Raises:
        InputError: It is no CSV file or a column is missing.
    """
    try:
        table = _read_csv(path)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    if missing := [column for column in columns if column not in table.columns]:
        raise InputError(
            f"{path}: it needs the columns {','.join(columns)}, but {','.join(missing)} is not among "
            f"{','.join(table.columns[1:])[:200]}"
        )
    return table


def _read_csv(path: Path) -> pd.DataFrame:
    """All cells as text, with the line of each row; blank lines are left out.

    Raises:
        InputError: It is no CSV file; the text goes on from the file's name.
    """
    try:
        with warnings.catch_warnings():
            # pandas drops what stands in a row beyond the header's columns, with no more than a warning.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            table = pd.read_csv(
                path, dtype=str, keep_default_na=False, skip_blank_lines=False, index_col=False, encoding="utf-8-sig"
            ).fillna("")
    except pd.errors.ParserWarning as error:
        raise InputError("its rows have more fields than the header has columns; mend them") from error
    except (OSError, pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise InputError(f"it is not a CSV file with commas ({' '.join(str(error).split())})") from error
    table.columns = [str(column).strip() for column in table.columns]
    is_blank = (table == "").all(axis=1)
    table.insert(0, "line", np.arange(2, len(table) + 2))
    return table[~is_blank]


def match_names(path: Path, wanted: Iterable[str], names: NDArray[np.str_], lines: Iterable[int]) -> NDArray[np.int64]:
    """Finds where images stand in the table.

    Args:
        path: The file that names them, for the error.
        wanted: The names.
        names: The table's names, sorted.
        lines: Where in the file each name stands.

    Raises:
        InputError: A name is not in the table, or stands twice.
    """
    index = {str(name): i for i, name in enumerate(names)}
    seen: dict[str, int] = {}
    found = []
    for line, name in zip(lines, wanted, strict=True):
        if name not in index:
            raise InputError(f'{path}, line {line}: there is no image "{name}" in train_images; take the row out')
        if name in seen:
            raise InputError(f'{path}, line {line}: image "{name}" stands in line {seen[name]} too; take one out')
        seen[name] = line
        found.append(index[name])
    return np.array(found, np.int64)


def _raise_first(findings: Sequence[Finding]) -> None:
    if findings:
        raise InputError(str(min(findings, key=lambda finding: finding.line or 0)))


def _join(
    csv: Path, rows: pd.DataFrame, names: NDArray[np.str_], sizes: NDArray[np.int32], num_classes: int
) -> tuple[NDArray[np.int32], NDArray[np.int64], list[Finding]]:
    """Brings the rows into the order of the images: the runs of all codes in one flat array, and their offsets."""
    findings: list[Finding] = []
    numbers: dict[int, NDArray[np.int32]] = {}
    lines: dict[int, int] = {}
    for line, name, class_id, code in _iterate(rows):
        i = int(np.searchsorted(names, name))
        if i == len(names) or names[i] != name:
            folder = csv.parent / "train_images"
            message = f'no image "{name}" in {folder}, though this line names it; put it there or set --data.root'
            findings.append(Finding(csv, line, "image", message))
            continue
        if not 1 <= class_id <= num_classes:
            message = f"class {class_id}, but this data set has the classes 1 to {num_classes}; mend the row"
            findings.append(Finding(csv, line, "class", message))
            continue
        key = i * num_classes + class_id - 1
        if key in lines:
            message = f"class {class_id} of {name} stands in line {lines[key]} too; join the two codes into one row"
            findings.append(Finding(csv, line, "duplicate", message))
            continue
        try:
            runs = rle.parse(code)
            fault = rle.find_fault(runs, (int(sizes[i, 0]), int(sizes[i, 1])))
        except InputError as error:
            fault = str(error)
        if fault:
            findings.append(Finding(csv, line, "code", f"{fault} (class {class_id} of {name}); mend the code"))
            continue
        lines[key] = line
        numbers[key] = runs.astype(np.int32)

    counts = np.zeros(len(names) * num_classes + 1, np.int64)
    for key, run in numbers.items():
        counts[key + 1] = len(run)
    flat = np.concatenate([np.zeros(0, np.int32), *(numbers[key] for key in sorted(numbers))])
    return flat, np.cumsum(counts), findings


def _iterate(rows: pd.DataFrame) -> Iterator[tuple[int, str, int, str]]:
    columns = (rows[name].tolist() for name in ("line", "image", "class_id", "code"))
    yield from zip(*columns, strict=True)
