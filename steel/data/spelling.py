"""How files of labels may spell names, numbers and text. Every reader uses this, so that all are equally lenient.

Names are found in another Unicode form, with percent codes, behind the prefix of an upload to Label Studio, and behind
the apostrophe that keeps spreadsheets from running them as formulas. Whole numbers may be text, and in JSON, whose
numbers are all of one kind, 64.0 is one. Text is UTF-8 with or without a byte-order mark. Files that macOS and Windows
add to folders are no data.
"""

import csv
import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import cached_property
from io import StringIO
from pathlib import Path
from urllib.parse import unquote

from steel.errors import InputError

_FORMULA = re.compile("'*[=+@-]")  # cells that spreadsheets run, or that `escape_formula` has changed
_UPLOAD = re.compile("[0-9a-f]{8}-")  # Label Studio puts it before the name of an uploaded image
_SYSTEM_NAMES = ("thumbs.db", "desktop.ini", "__macosx")


class NameIndex:
    """A list of names in which a name is found even if another system spelt it differently.

    Example:
        >>> names = NameIndex(["prüf_1.jpg", "0001.jpg"])
        >>> names.find("pr%C3%BCf_1.jpg"), names.find("1a2b3c4d-0001.jpg"), names.find("1.jpg")
        (0, 1, None)
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = list(names)
        self._index = {name: i for i, name in enumerate(self._names)}

    def find(self, name: str) -> int | None:
        """Return the index of a name, or else of the only name that is spelt differently; None if there is none."""
        if name in self._index:
            return self._index[name]
        alike = self._alike.get(_normalise(name)) or self._alike.get(_UPLOAD.sub("", _normalise(name), count=1)) or []
        return alike[0] if len(alike) == 1 else None

    @cached_property
    def _alike(self) -> dict[str, list[int]]:
        """The indices of the names that are the same but for their spelling."""
        alike: dict[str, list[int]] = {}
        for i, name in enumerate(self._names):
            alike.setdefault(_normalise(name), []).append(i)
        return alike


def _normalise(name: str) -> str:
    return unicodedata.normalize("NFC", unquote(unescape_formula(name)))


def escape_formula(cell: str) -> str:
    """Put an apostrophe before a cell that a spreadsheet would run as a formula; see `unescape_formula`.

    Example:
        >>> escape_formula("=1+2.png"), escape_formula("12.png")
        ("'=1+2.png", '12.png')
    """
    return f"'{cell}" if _FORMULA.match(cell) else cell


def unescape_formula(cell: str) -> str:
    """Remove the apostrophe that `escape_formula` has put before a cell."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def format_csv(rows: Iterable[Sequence[object]]) -> str:
    """Return rows as CSV; cells that a spreadsheet would run as formulas are escaped.

    Example:
        >>> print(format_csv([("image", "score"), ("=1+2.png", 0.5)]), end="")
        image,score
        '=1+2.png,0.5
    """
    text = StringIO(newline="")
    escaped = ([escape_formula(cell) if isinstance(cell, str) else cell for cell in row] for row in rows)
    csv.writer(text, lineterminator="\n").writerows(escaped)
    return text.getvalue()


def parse_whole(value: object) -> int | None:
    """Return the whole number that a text or a value of a JSON file is; None if it is none.

    Example:
        >>> parse_whole("64"), parse_whole(64.0), parse_whole("64.0"), parse_whole(64.5), parse_whole(True)
        (64, 64, None, None, None)
    """
    if isinstance(value, str):
        return int(value) if re.fullmatch("-?[0-9]{1,18}", value) else None
    is_whole = (isinstance(value, float) and value.is_integer()) or type(value) is int
    return int(value) if is_whole else None  # type: ignore[call-overload]


def read_text(path: Path) -> str:
    """Return the content of a text file without its byte-order mark.

    Raises:
        InputError: The file cannot be read or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); fix that") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error.reason}); save it as UTF-8") from error


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is hidden, or one that macOS or Windows adds (`._a.jpg`, `Thumbs.db`)."""
    return name.startswith(".") or name.lower() in _SYSTEM_NAMES
