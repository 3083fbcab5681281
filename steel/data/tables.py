"""CSV files of a dataset, parsed line by line so that a bad line does not affect the others, with their findings."""

import csv
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from steel.errors import InputError

_BOM = b"\xef\xbb\xbf"
_OTHER_DELIMITERS = {";": "semicolons", "\t": "tabs", "|": "bars"}


@contextmanager
def unlimited_fields() -> Iterator[None]:
    """Lift the csv module's limit of 131,072 characters per field, and restore it, since the whole process has it."""
    limit = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


@dataclass(frozen=True)
class Finding:
    """A problem or a remark about a file.

    Attributes:
        file: The file.
        line: The line, counted from 1; None for the whole file.
        kind: One or two words that name the kind of finding.
        message: The problem and its remedy; continues a sentence that starts with file and line.
        is_error: Whether it prevents or falsifies the work; otherwise it is information.
    """

    file: Path
    line: int | None
    kind: str
    message: str
    is_error: bool = True

    def __str__(self) -> str:
        return f"{self.file}{'' if self.line is None else f', line {self.line}'}: {self.message}"


def raise_first(findings: Iterable[Finding]) -> None:
    """Raise the error with the lowest line number, if there is one; errors of a whole file come last.

    A row is not named before the reason why its image is unreadable.

    Raises:
        InputError: There is an error among the findings.
    """
    errors = [finding for finding in findings if finding.is_error]
    if errors:
        effects = {finding for finding in errors if finding.kind == "unreadable image" and finding.line}
        raise InputError(str(min(errors, key=lambda f: (f in effects, f.line is None, f.line or 0))))


@dataclass(frozen=True)
class Table:
    """The rows of a CSV file as text.

    Attributes:
        form: The requested columns that the file has; empty if the file is unusable.
        num_rows: Number of rows below the header, without blank lines.
        lines: The line number of each valid row, counted from 1.
        columns: The cells of the valid rows by column, without surrounding blanks.
        findings: Findings about the file and its other rows.
    """

    form: tuple[str, ...]
    num_rows: int
    lines: list[int]
    columns: dict[str, list[str]]
    findings: list[Finding]


def read_table(path: Path, *forms: tuple[str, ...], optional: tuple[str, ...] = ()) -> Table:
    """Read the first of several forms, sets of columns, that a CSV file has; every problem becomes a finding.

    Columns in `optional` are read as well if the file has them. A byte-order mark, Windows line ends, quotes, blank
    lines and additional columns are accepted.
    """
    findings: list[Finding] = []

    def reject(kind: str, message: str, num_rows: int = 0) -> Table:
        return Table((), num_rows, [], {}, [*findings, Finding(path, None, kind, message)])

    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return reject("missing", "there is no such file; add it")
    except OSError as error:
        return reject("unreadable", f"the file cannot be read ({error.strerror}); fix that")
    # Invalid bytes become U+FFFD, which no name or code contains.
    text = data.removeprefix(_BOM).decode("utf-8", errors="replace")
    text = text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text
    rows = ((number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip(", \t"))
    header = next(rows, None)
    if header is None:
        return reject("empty file", "the file is empty; add its header and rows")
    findings += _find_marks(path, data)
    names = [name.strip() for name in _split(header[1]) or []]
    form = next((form for form in forms if set(form) <= set(names)), ())
    if not form:
        return reject(*_describe_header(header[1], names, forms), sum(1 for _ in rows))
    form += tuple(name for name in optional if name in names)
    places = [names.index(name) for name in form]
    lines: list[int] = []
    columns: list[list[str]] = [[] for _ in form]
    num_rows = 0
    for number, line in rows:
        num_rows += 1
        cells = line.split(",") if '"' not in line else _split(line)
        if cells is not None and len(cells) == len(names) and "\ufffd" not in line:
            lines.append(number)
            for column, place in zip(columns, places, strict=True):
                column.append(cells[place].strip())
        elif cells is None:
            message = "a quote is not closed or is inside a cell; fix the row"
            findings.append(Finding(path, number, "quotes", message))
        elif "\ufffd" in line:
            message = "the row has bytes that are not UTF-8; save the file as UTF-8"
            findings.append(Finding(path, number, "encoding", message))
        else:
            message = f"the row has {len(cells)} cells, but the header has {len(names)} columns; fix the row"
            findings.append(Finding(path, number, "cells", message))
    return Table(form, num_rows, lines, dict(zip(form, columns, strict=True)), findings)


def _split(line: str) -> list[str] | None:
    """Return the cells of a line that may contain quotes; None if the quotes do not match."""
    try:
        with unlimited_fields():
            return next(csv.reader([line], strict=True))
    except csv.Error:
        return None


def _find_marks(path: Path, data: bytes) -> Iterator[Finding]:
    if data.startswith(_BOM):
        message = "the file starts with a byte-order mark, which other programs may read as part of the first name"
        yield Finding(path, 1, "byte-order mark", f"{message}; save it as plain UTF-8", is_error=False)
    if b"\r" in data:
        message = "lines have Windows line ends, which other programs may read as part of the last column"
        yield Finding(path, None, "line ends", f"{message}; save it with Unix line ends", is_error=False)


def _describe_header(header: str, names: list[str], forms: tuple[tuple[str, ...], ...]) -> tuple[str, str]:
    """Return the kind and the message of the finding about a header without the requested columns."""
    if "\0" in header or "\ufffd" in header:
        return "encoding", "the file is not UTF-8 text; save it as CSV in UTF-8"
    for delimiter, word in _OTHER_DELIMITERS.items():
        cells = {cell.strip() for cell in header.split(delimiter)}
        if delimiter in header and any(set(form) <= cells for form in forms):
            return "delimiter", f"the columns are separated by {word}; save it with commas"
    wanted = " (or ".join(",".join(form) for form in forms) + ")" * (len(forms) - 1)
    closest = max(forms, key=lambda form: len(set(form) & set(names)))
    missing, found = ", ".join(name for name in closest if name not in names), ",".join(names)[:200]
    return "columns", f"it must have the columns {wanted}, but {missing} is not among {found}; fix the header"
