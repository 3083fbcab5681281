"""`steel check`: all errors in a dataset in one report."""

import json
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from steel.data import containers, images
from steel.data.annotations import Annotations, read_leniently
from steel.data.duplicates import find_duplicates
from steel.data.spelling import is_hidden
from steel.data.splits import read_parts
from steel.data.tables import Finding, read_table
from steel.errors import InputError
from steel.files import write_atomic
from steel.progress import map_on_all_cores
from steel.wording import format_count

_KEEP_TOGETHER = "keep them together with steel split --near_duplicates"
_NUM_SHOWN = 8  # findings of each kind on the screen; the file has all of them
_ONE_SIZE = 0.9  # if this share of images has the same size, every other image is named


@dataclass(frozen=True)
class Report:
    """The result of a check.

    Attributes:
        findings: Errors and information, sorted by file and line.
        num_images: Number of image files.
        num_rows: Number of rows in train.csv, which is the sum of `num_used` and `num_reported` (those with an error).
    """

    findings: list[Finding]
    num_images: int
    num_rows: int
    num_used: int
    num_reported: int

    @property
    def num_errors(self) -> int:
        """The number of findings that are errors."""
        return sum(finding.is_error for finding in self.findings)


def examine(root: Path) -> Report:
    """Examine every file, row and pixel of a dataset.

    Args:
        root: The folder with `train.csv` and `train_images/`.

    Raises:
        InputError: The folder does not exist or has no images.
    """
    annotations, findings, num_rows, num_used = read_leniently(root)
    lines = {finding.line for finding in findings if finding.file == root / "train.csv" and finding.is_error}
    # A row has at most one error. An error without a line concerns the whole file.
    num_reported = num_rows if None in lines else len(lines)
    folder = root / "train_images"
    paths = images.find_images(folder)
    without_size = ("unreadable image", "orientation")
    unreadable = {finding.file for finding in findings if finding.kind in without_size and finding.line is None}
    findings = [_classify(finding) if finding.file in unreadable else finding for finding in findings]
    findings += _find_other_files(folder, paths)
    readable = [path for path in paths if path not in unreadable]
    examined = list(map_on_all_cores(_examine_image, readable, "checking images"))
    findings += [finding for found in examined for finding in found]
    if annotations is not None:
        findings += _find_sizes(annotations)
        findings += _find_empty_classes(annotations)
        if (root / "splits.csv").is_file():
            findings += _examine_splits(root / "splits.csv", annotations, {path.name for path in unreadable})
    damaged = {finding.file for found in examined for finding in found if finding.is_error}
    findings += _find_duplicates([path for path in readable if path not in damaged], annotations)
    findings.sort(key=lambda finding: (str(finding.file), finding.line or 0))
    return Report(findings, len(paths), num_rows, num_used, num_reported)


def _classify(finding: Finding) -> Finding:
    """Refine the kind of an image without a readable size."""
    try:
        with finding.file.open("rb") as file:
            start = file.read(8)
    except OSError:
        return finding
    if not start:
        return replace(finding, kind="empty image")
    return finding if containers.find_format(start) else replace(finding, kind="not an image")


def _find_other_files(folder: Path, paths: Sequence[Path]) -> Iterator[Finding]:
    for path in sorted(set(folder.iterdir()).difference(paths)):
        if path.is_dir():
            message = "this is a folder, and images in it are ignored; move them up if they belong to the dataset"
            yield Finding(path, None, "folder", message, is_error=False)
        elif images.is_image(path):
            message = "this is a link to a file that does not exist; restore the image or remove the link"
            yield Finding(path, None, "no file", message)
        else:
            suffixes = ", ".join(images.SUFFIXES)
            reason = "it is hidden" if is_hidden(path.name) else f"its suffix is not one of {suffixes}"
            message = f"ignored, since {reason}; nothing needs to be done"
            yield Finding(path, None, "not an image", message, is_error=False)


def _examine_image(path: Path) -> list[Finding]:
    """Examine the pixels of an image with a valid header."""
    try:
        images.read_grey(path)
    except images.ImageError as error:
        kind = "truncated image" if error.kind == "unreadable image" else error.kind
        return [Finding(path, None, kind, f"the image {error.reason}")]
    colours = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if colours is None or colours.ndim == 2:
        return []
    # Thirty times faster than a maximum and a minimum of each pixel.
    pairs = combinations(cv2.split(colours)[:3], 2)
    if spread := int(max(cv2.norm(one, other, cv2.NORM_INF) for one, other in pairs)):
        message = f"this is a colour image whose channels differ by up to {spread}; only its brightness (luma) is used"
        return [Finding(path, None, "colour image", message, is_error=False)]
    return []


def _examine_splits(path: Path, annotations: Annotations, unreadable: Collection[str]) -> list[Finding]:
    """Return the errors in a splits.csv; naming an image that exists but is unreadable is not one."""
    table = read_table(path, ("ImageId",))
    names = dict(zip(table.lines, table.columns.get("ImageId", []), strict=True))
    findings = read_parts(path, annotations)[2]
    return [f for f in findings if not (f.kind == "missing image" and f.line and names[f.line] in unreadable)]


def _find_sizes(annotations: Annotations) -> Iterator[Finding]:
    sizes = [tuple(size) for size in annotations.sizes.tolist()]
    (common, count), *others = Counter(sizes).most_common()
    remedy = "nothing needs to be done"
    if count < _ONE_SIZE * len(sizes):
        low, high = annotations.sizes.min(axis=0), annotations.sizes.max(axis=0)
        spans = f"width {low[1]} to {high[1]}, height {low[0]} to {high[0]}"
        message = f"the images have {len(others) + 1:,} different sizes: {spans}; {remedy}"
        yield Finding(annotations.root / "train_images", None, "sizes", message, is_error=False)
        return
    for i, size in enumerate(sizes):
        if size != common:
            message = f"this image has {size[1]} x {size[0]} pixels, most have {common[1]} x {common[0]}; {remedy}"
            yield Finding(annotations.path(i), None, "size", message, is_error=False)


def _find_empty_classes(annotations: Annotations) -> Iterator[Finding]:
    if not annotations.labels.any():
        message = "no image has a defect, so nothing can be learnt; check that the rows of all defects are there"
        yield Finding(annotations.root / "train.csv", None, "no defect", message, is_error=False)
        return
    for name in np.array(annotations.classes)[~annotations.labels.any(axis=0)]:
        message = f"no image has class {name}, so it cannot be learnt; fix the classes if this is a mistake"
        yield Finding(annotations.root / "train.csv", None, "empty class", message, is_error=False)


def _find_duplicates(paths: Sequence[Path], annotations: Annotations | None) -> Iterator[Finding]:
    row = {} if annotations is None else {name: i for i, name in enumerate(annotations.names.tolist())}
    for pair in find_duplicates(paths):
        one, other = paths[pair.first], paths[pair.second]
        rows = [row[path.name] for path in (one, other) if path.name in row]
        if pair.kind == "near":
            message = f"shows the same scene as {one.name} ({pair.how}; score {pair.score:.2f}); {_KEEP_TOGETHER}"
            yield Finding(other, None, "near-duplicate", message, is_error=False)
        elif annotations and len(rows) == 2 and np.any(np.not_equal(*map(annotations.draw_plane, rows))):
            message = f"has the same pixels as {one.name}, but another mask; decide which is right and remove the other"
            yield Finding(other, None, "duplicate with another mask", message)
        else:
            message = f"has the same pixels as {one.name}; remove one of them, or {_KEEP_TOGETHER}"
            yield Finding(other, None, "duplicate image", message, is_error=False)


def check(root: str, *, out: str | None = None) -> int:
    """Find all errors in a dataset.

    Every file, row and pixel is examined. The exit status is 1 if there is an error, else 0.

    Args:
        root: Folder with train.csv and train_images.
        out: JSON file to write all findings to; its name must end in .json.

    Example:
        steel check data
        steel check data --out check.json
    """
    # An existing report is replaced, so the suffix protects all other files.
    if out and not out.endswith(".json"):
        raise InputError(f"--out must end in .json, because the findings are written as JSON, got {out}")
    report = examine(Path(root))
    _show(report, Path(root))
    if out:
        _write(report, Path(root), Path(out))
    num_errors, saved = report.num_errors, f"; saved to {out}" if out else ""
    counts = f"{format_count(report.num_rows, 'row')} = {report.num_used:,} used + {report.num_reported:,} reported"
    print(f"{format_count(report.num_images, 'image')}; train.csv: {counts}")
    num_others = len(report.findings) - num_errors
    print(f"{format_count(num_errors, 'error')}, {num_others:,} for information{saved}")
    return 1 if num_errors else 0


def _show(report: Report, root: Path) -> None:
    """Print the first findings of each kind, errors first."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)  # files and pagers have no width
    for is_information, kind in sorted({(not finding.is_error, finding.kind) for finding in report.findings}):
        members = [f for f in report.findings if f.kind == kind and f.is_error is not is_information]
        level, style = ("information", "bold") if is_information else ("error", "bold red")
        console.print(Text(f"{level}: {kind} ({len(members):,})", style))
        rows = Table.grid(padding=(0, 2, 0, 0), pad_edge=True)
        for finding in members[:_NUM_SHOWN]:
            where = f"  {_relative(finding.file, root)}" + (f":{finding.line}" if finding.line else "")
            rows.add_row(_escape(where), _escape(finding.message))
        console.print(rows)
        if len(members) > _NUM_SHOWN:
            console.print(f"  and {len(members) - _NUM_SHOWN:,} more; save all of them with --out FILE.json")


def _escape(text: str) -> Text:
    """Return the text without markup and with bytes that are not UTF-8 escaped."""
    return Text(text.encode(errors="backslashreplace").decode())


def _relative(path: Path, root: Path) -> Path:
    return path.relative_to(root) if path.is_relative_to(root) else path


def _write(report: Report, root: Path, out: Path) -> None:
    findings = [asdict(finding) | {"file": str(_relative(finding.file, root))} for finding in report.findings]
    counts = {key: value for key, value in asdict(report).items() if key != "findings"}
    content = {"root": str(root)} | counts | {"num_errors": report.num_errors, "findings": findings}
    write_atomic(out, json.dumps(content, indent=1))
