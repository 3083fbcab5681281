"""The CSV files of a data set, read line by line so that one bad line costs no other, and what is wrong with them."""

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
    """Lift the csv module's limit of 131,072 characters a field, which the code of a ragged mask exceeds.

    The limit belongs to the whole process, so it is restored afterwards.
    """
    limit = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


@dataclass(frozen=True)
class Finding:
    """Something about a file that its owner should know.

    Attributes:
        file: The file.
        line: Its line, from 1, or None where the whole file is meant.
        kind: One or two words for what it is.
        message: What it is and what to do, as the rest of a sentence that begins with file and line.
        is_error: Whether it stops or falsifies the work; else it is for information.
    """

    file: Path
    line: int | None
    kind: str
    message: str
    is_error: bool = True

    def __str__(self) -> str:
        where = str(self.file) if self.line is None else f"{self.file}, line {self.line}"
        return f"{where}: {self.message}"


def raise_first(findings: Iterable[Finding]) -> None:
    """Raises the error that stands highest in its file, if there is one; those of a whole file come last.

    Raises:
        InputError: What the finding says.
    """
    errors = [finding for finding in findings if finding.is_error]
    if errors:
        raise InputError(str(min(errors, key=lambda finding: (finding.line is None, finding.line or 0))))


@dataclass(frozen=True)
class Table:
    """The rows of a CSV file, as text.

    Attributes:
        form: The columns that were asked for and are there; empty where the file is of no use.
        num_rows: How many rows stand below the header; blank lines are none.
        lines: The line (from 1, the header's) of each row that could be read.
        columns: The cells of these rows, without the blanks around them, by the columns of `form`.
        findings: What is wrong with the file and with its other rows.
    """

    form: tuple[str, ...]
    num_rows: int
    lines: list[int]
    columns: dict[str, list[str]]
    findings: list[Finding]


def read_table(path: Path, *forms: tuple[str, ...]) -> Table:
    """Reads a CSV file; what is wrong with it is a finding, not an exception.

    Args:
        path: The file: UTF-8 with commas. A byte-order mark, the line ends of Windows, quotes, blank lines and columns
            that nobody asked for do no harm.
        forms: Columns that the file has to have, in one form or another; the first that fits is taken.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return _no_rows(Finding(path, None, "missing", "there is no such file; put it there"))
    except OSError as error:
        return _no_rows(Finding(path, None, "unreadable", f"the file cannot be read ({error.strerror}); mend that"))
    findings = list(_find_marks(path, data))
    # What is not UTF-8 becomes U+FFFD, which no name or code holds.
    text = data.removeprefix(_BOM).decode("utf-8", errors="replace")
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    rows = _split_lines(text)
    header = next(rows, None)
    if header is None:
        return _no_rows(Finding(path, None, "empty file", "the file is empty; put its header and rows there"))
    names = [name.strip() for name in _split(header[1]) or []]
    form = next((form for form in forms if set(form) <= set(names)), ())
    if not form:
        findings.append(_describe_header(path, header[1], names, forms))
        return Table((), sum(1 for _ in rows), [], {}, findings)

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
        else:
            findings.append(_describe_row(path, number, line, cells, len(names)))
    return Table(form, num_rows, lines, dict(zip(form, columns, strict=True)), findings)


def _split_lines(text: str) -> Iterator[tuple[int, str]]:
    """The lines that hold something, with their numbers; one at a time, since a train.csv has megabytes."""
    start, number = 0, 0
    while start < len(text):
        number += 1
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        line = text[start:end]
        if line.strip(", \t"):
            yield number, line
        start = end + 1


def _no_rows(finding: Finding) -> Table:
    return Table((), 0, [], {}, [finding])


def _split(line: str) -> list[str] | None:
    """The cells of a line that may hold quotes; None where these do not match."""
    try:
        with unlimited_fields():
            return next(csv.reader([line], strict=True))
    except csv.Error:
        return None


def _find_marks(path: Path, data: bytes) -> Iterator[Finding]:
    if data.startswith(_BOM):
        message = "the file begins with a byte-order mark, which other programs may take for a part of the first name"
        yield Finding(path, 1, "byte-order mark", f"{message}; save it as plain UTF-8", is_error=False)
    if b"\r" in data:
        message = "lines end as on Windows, which other programs may take for a part of the last column"
        yield Finding(path, None, "line ends", f"{message}; save it with Unix line ends", is_error=False)


def _describe_header(path: Path, header: str, names: list[str], forms: tuple[tuple[str, ...], ...]) -> Finding:
    wanted = " (or ".join(",".join(form) for form in forms) + ")" * (len(forms) - 1)
    if "\0" in header or "\ufffd" in header:
        return Finding(path, None, "encoding", "this is no text in UTF-8; save it as CSV in UTF-8")
    for delimiter, word in _OTHER_DELIMITERS.items():
        if delimiter in header and any(
            set(form) <= {cell.strip() for cell in header.split(delimiter)} for form in forms
        ):
            return Finding(path, None, "delimiter", f"the columns are separated by {word}; save it with commas")
    closest = max(forms, key=lambda form: len(set(form) & set(names)))
    missing = ", ".join(name for name in closest if name not in names)
    shown = ",".join(names)[:200]
    return Finding(
        path, None, "columns", f"it needs the columns {wanted}, but {missing} is not among {shown}; name them so"
    )


def _describe_row(path: Path, line: int, text: str, cells: list[str] | None, num_columns: int) -> Finding:
    if cells is None:
        return Finding(path, line, "quotes", "a quote is not closed or stands inside a cell; mend the row")
    if "\ufffd" in text:
        return Finding(path, line, "encoding", "there are bytes that are not UTF-8; save the file as UTF-8")
    message = f"{len(cells)} cells stand in the row, but the header has {num_columns} columns; mend the row"
    return Finding(path, line, "cells", message)
