"""Everything that is wrong with a data set, said at once."""

import json
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from steel.data import images
from steel.data.annotations import Annotations, read_leniently
from steel.data.duplicates import find_duplicates
from steel.data.splits import read_parts
from steel.data.tables import Finding, read_table
from steel.errors import InputError
from steel.files import write_atomic
from steel.progress import map_on_all_cores

# First bytes of the formats that `images` reads.
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"II*\0", b"MM\0*")
_TOGETHER = "keep them together by steel split --near_duplicates"
_SHOWN = 8  # findings of each kind on the screen; the file has them all
_ONE_SIZE = 0.9  # share of images of one size above which each of the others is named


@dataclass(frozen=True)
class Report:
    """What a check found.

    Attributes:
        findings: By file and line.
        num_images: Image files looked at.
        num_rows: Rows of train.csv read; each of them is used or reported.
        num_used: Those whose word counts.
        num_reported: Those that an error names.
    """

    findings: list[Finding]
    num_images: int
    num_rows: int
    num_used: int
    num_reported: int

    @property
    def num_errors(self) -> int:
        """How many of the findings are errors."""
        return sum(finding.is_error for finding in self.findings)


def examine(root: Path) -> Report:
    """Looks at every file, row and pixel of a data set.

    Args:
        root: The folder that holds `train.csv` and `train_images/`.

    Raises:
        InputError: There is no such folder, or no image in it.
    """
    annotations, findings, num_rows, num_used = read_leniently(root)
    lines = {finding.line for finding in findings if finding.file == root / "train.csv" and finding.is_error}
    # A row has one error at most, and an error of no line is the whole file's.
    num_reported = num_rows if None in lines else len(lines)
    folder = root / "train_images"
    paths = images.find_images(folder)
    unreadable = {finding.file for finding in findings if finding.kind == "unreadable image" and finding.line is None}
    findings = [_name_kind(finding) if finding.file in unreadable else finding for finding in findings]
    findings += _find_strays(folder, paths)
    readable = [path for path in paths if path not in unreadable]
    of_pixels = [
        finding for found in map_on_all_cores(_examine_image, readable, "checking images") for finding in found
    ]
    findings += of_pixels
    if annotations is not None:
        findings += _find_sizes(annotations)
        findings += _find_empty_classes(annotations)
        if (root / "splits.csv").is_file():
            findings += _examine_splits(root / "splits.csv", annotations, {path.name for path in unreadable})
    damaged = {finding.file for finding in of_pixels if finding.is_error}
    findings += _find_twins([path for path in readable if path not in damaged], annotations)
    findings.sort(key=lambda finding: (str(finding.file), finding.line or 0))
    return Report(findings, len(paths), num_rows, num_used, num_reported)


def _name_kind(finding: Finding) -> Finding:
    """Says more of an image whose header cannot be read."""
    try:
        with finding.file.open("rb") as file:
            start = file.read(max(map(len, _SIGNATURES)))
    except OSError:
        return finding
    if not start:
        return replace(finding, kind="empty image")
    return finding if start.startswith(_SIGNATURES) else replace(finding, kind="not an image")


def _find_strays(folder: Path, paths: Sequence[Path]) -> Iterator[Finding]:
    for path in sorted(set(folder.iterdir()).difference(paths)):
        if path.is_dir():
            message = "it is a folder, and images in folders are left out; move them up if they belong to the data set"
            yield Finding(path, None, "folder", message, is_error=False)
        elif path.suffix.lower() in images.SUFFIXES:
            yield Finding(path, None, "no file", "it is a link to nowhere; put the image there or take the link out")
        else:
            message = f"it is no image by its name ({', '.join(images.SUFFIXES)}) and is left out"
            yield Finding(path, None, "not an image", f"{message}; nothing has to be done", is_error=False)


def _examine_image(path: Path) -> list[Finding]:
    """What the pixels of an image with a good header say."""
    try:
        images.read_grey(path)
    except InputError as error:
        message = f"the image {str(error).removeprefix(f'{path} ')}"
        return [Finding(path, None, "not 8 bits" if "8 bits" in message else "truncated image", message)]
    colours = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if colours is None or colours.ndim == 2:
        return []
    channels = colours[..., :3].astype(np.int16)
    if spread := int((channels.max(axis=2) - channels.min(axis=2)).max()):
        message = f"it is a colour image, its channels differ by up to {spread}; brightness alone (luma) is looked at"
        return [Finding(path, None, "colour image", message, is_error=False)]
    return []


def _examine_splits(path: Path, annotations: Annotations, unreadable: Collection[str]) -> list[Finding]:
    """What is wrong with a splits.csv; that it names an image that only has to be mended is not."""
    table = read_table(path, ("ImageId",))
    names = dict(zip(table.lines, table.columns.get("ImageId", []), strict=True))
    findings = read_parts(path, annotations)[2]
    return [f for f in findings if not (f.kind == "missing image" and f.line and names[f.line] in unreadable)]


def _find_sizes(annotations: Annotations) -> Iterator[Finding]:
    sizes = [tuple(size) for size in annotations.sizes.tolist()]
    (common, count), *others = Counter(sizes).most_common()
    if not others:
        return
    remedy = "nothing has to be done"
    if count < _ONE_SIZE * len(sizes):
        low, high = annotations.sizes.min(axis=0), annotations.sizes.max(axis=0)
        message = f"{len(others) + 1:,} sizes of images, {low[1]} to {high[1]} wide and {low[0]} to {high[0]} high"
        yield Finding(annotations.root / "train_images", None, "sizes", f"{message}; {remedy}", is_error=False)
        return
    for i, (height, width) in enumerate(sizes):
        if (height, width) != common:
            message = f"it has {width} x {height} pixels, most others have {common[1]} x {common[0]}; {remedy}"
            yield Finding(annotations.path(i), None, "size", message, is_error=False)


def _find_empty_classes(annotations: Annotations) -> Iterator[Finding]:
    for name, count in zip(annotations.classes, annotations.labels.sum(axis=0).tolist(), strict=True):
        if count == 0:
            message = f"no image has class {name}, so nothing can be learnt about it; if it is a slip, mend the classes"
            yield Finding(annotations.root / "train.csv", None, "empty class", message, is_error=False)


def _find_twins(paths: Sequence[Path], annotations: Annotations | None) -> Iterator[Finding]:
    row = {} if annotations is None else {name: i for i, name in enumerate(annotations.names.tolist())}
    for pair in find_duplicates(paths):
        one, other = paths[pair.first], paths[pair.second]
        i, j = row.get(one.name), row.get(other.name)
        if pair.kind == "near":
            message = f"it shows the same scene as {one.name} ({pair.how}; {pair.score:.2f}); {_TOGETHER}"
            yield Finding(other, None, "near-duplicate", message, is_error=False)
        elif annotations and i is not None and j is not None and _differ(annotations, i, j):
            message = f"it has the same pixels as {one.name}, but another mask; decide for one and take the other out"
            yield Finding(other, None, "duplicate with another mask", message)
        else:
            message = f"it has the same pixels as {one.name}; take one out, or {_TOGETHER}"
            yield Finding(other, None, "duplicate image", message, is_error=False)


def _differ(annotations: Annotations, i: int, j: int) -> bool:
    return not np.array_equal(annotations.draw_plane(i), annotations.draw_plane(j))


def check(root: str, *, out: str | None = None) -> int:
    """Finds everything that is wrong with a data set and says it at once.

    Every file, row and pixel is looked at. Ends with exit status 1 where there is an error, 0 where there is
    information at most.

    Args:
        root: Folder with train.csv and train_images.
        out: File to write all findings to, as JSON; its name ends in .json.

    Example:
        steel check data
        steel check data --out check.json
    """
    # An earlier report is replaced, but nothing else is.
    if out and not out.endswith(".json"):
        raise InputError(f"the findings are written as JSON, but {out} does not end in .json; name it so")
    report = examine(Path(root))
    _show(report, Path(root))
    if out:
        _write(report, Path(root), Path(out))
    num_errors = report.num_errors
    print(f"{report.num_images:,} images; train.csv: {report.num_rows:,} rows = {report.num_used:,} used "
          f"+ {report.num_reported:,} reported")  # fmt: skip
    print(f"{num_errors:,} errors, {len(report.findings) - num_errors:,} for information" + (f"; {out}" if out else ""))
    return 1 if num_errors else 0


def _show(report: Report, root: Path) -> None:
    """The first findings of each kind, errors first."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)  # into a file or a pager there is no width to keep to
    for is_information, kind in sorted({(not finding.is_error, finding.kind) for finding in report.findings}):
        members = [f for f in report.findings if f.kind == kind and f.is_error is not is_information]
        level, style = ("information", "bold") if is_information else ("error", "bold red")
        console.print(Text(f"{level}: {kind} ({len(members):,})", style))
        rows = Table.grid(padding=(0, 2, 0, 0), pad_edge=True)
        for finding in members[:_SHOWN]:
            where = f"  {_relative(finding.file, root)}" + (f":{finding.line}" if finding.line else "")
            rows.add_row(_make_printable(where), _make_printable(finding.message))
        console.print(rows)
        if len(members) > _SHOWN:
            console.print(f"  and {len(members) - _SHOWN:,} more; --out FILE.json has them all")


def _make_printable(text: str) -> Text:
    """The text as it is, but for the bytes of a file name that is not UTF-8, which no terminal takes."""
    return Text(text.encode(errors="backslashreplace").decode())


def _relative(path: Path, root: Path) -> Path:
    return path.relative_to(root) if path.is_relative_to(root) else path


def _write(report: Report, root: Path, out: Path) -> None:
    findings = [asdict(finding) | {"file": str(_relative(finding.file, root))} for finding in report.findings]
    counts = {key: value for key, value in asdict(report).items() if key != "findings"}
    content = {"root": str(root)} | counts | {"num_errors": report.num_errors, "findings": findings}
    write_atomic(out, json.dumps(content, indent=1))
