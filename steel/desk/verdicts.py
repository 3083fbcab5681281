"""Storage of the inspectors' verdicts in SQLite, and their conversion to training labels.

The labels are the `train.csv` of a dataset in the older form, in which a clean image has rows with empty codes, and
`to_label.csv` (`ImageId,ClassId`; the class is empty if unknown), which lists the images that remain to be labelled.
"""

import csv
import json
import os
import sqlite3
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any, get_args
from zipfile import ZIP_DEFLATED, ZipFile

from steel.data import rle
from steel.data.formats.submission import head_submission, list_codes
from steel.data.spelling import FORMULA_STARTS
from steel.desk.answers import Shift, Verdict, VerdictAnswer, VerdictQuestion
from steel.desk.errors import InvalidRequestError, NameTakenError
from steel.errors import InputError

# Marks the database as one of this program.
_APPLICATION_ID = 0x57EE1
_TABLE = """
CREATE TABLE IF NOT EXISTS verdicts (
    digest TEXT PRIMARY KEY, image TEXT NOT NULL UNIQUE, verdict TEXT NOT NULL, class TEXT,
    defective INTEGER NOT NULL, inspector TEXT NOT NULL, at TEXT NOT NULL, codes TEXT NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS verdicts_at ON verdicts (at);
CREATE TABLE IF NOT EXISTS classes (number INTEGER PRIMARY KEY, name TEXT NOT NULL) STRICT;
"""
# SQLite needs space even to delete. This file gives it back while the disk is full.
_RESERVE, _RESERVE_BYTES = "-reserve", 1 << 20
_UPSERT = """
INSERT INTO verdicts VALUES (:digest, :image, :verdict, :class_name, :defective, :inspector, :at, :codes)
ON CONFLICT (digest) DO UPDATE SET (image, verdict, class, defective, inspector, at, codes) =
    (:image, :verdict, :class_name, :defective, :inspector, :at, :codes)
"""
# All codes of a verdict together. A mask with a run on every tenth pixel of 256 x 1600 takes half of it.
_MAX_CODE_LENGTH = 1_000_000
_CSV_COLUMNS = ("image", "defective", "verdict", "class", "inspector", "at", "digest")


class Verdicts:
    """A file with at most one verdict per image. Thread-safe."""

    def __init__(self, path: str | Path, classes: Sequence[str]) -> None:
        """Open the file, or create it if it does not exist.

        Args:
            path: The SQLite file.
            classes: Names of the C classes.

        Raises:
            InputError: The file is not a verdicts file, has verdicts on other classes, or cannot be opened.
        """
        self._classes = tuple(classes)
        self._lock = threading.Lock()
        try:
            self._open(Path(path))
        except sqlite3.Error as error:
            raise InputError(f"cannot use {path} for verdicts ({error}); give another file with --verdicts") from error

    def _open(self, path: Path) -> None:
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._db.row_factory = sqlite3.Row
        try:
            (application_id,) = self._db.execute("PRAGMA application_id").fetchone()
            (num_tables,) = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if num_tables and application_id != _APPLICATION_ID:
                raise InputError(f"{path} is a database of another program; give another file with --verdicts")
            # synchronous=FULL makes every verdict durable (fsynced) before its request is answered.
            self._db.executescript(
                f"PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA application_id={_APPLICATION_ID}; {_TABLE}"
            )
            self._require_classes(path)
            self._reserve = path.with_name(path.name + _RESERVE)
            self._keep_reserve()
        except BaseException:
            self._db.close()
            raise

    def _require_classes(self, path: Path) -> None:
        """Refuse a file with verdicts on other classes: codes are stored by class number, without the name."""
        stored = [name for (name,) in self._db.execute("SELECT name FROM classes ORDER BY number")]
        (num_verdicts,) = self._db.execute("SELECT count(*) FROM verdicts").fetchone()
        if num_verdicts and stored and stored != list(self._classes):
            raise InputError(
                f"{path} has verdicts on the classes {', '.join(stored)}, but the model has the classes "
                f"{', '.join(self._classes)}; give another file with --verdicts"
            )
        with self._db:
            self._db.execute("BEGIN")
            self._db.execute("DELETE FROM classes")
            self._db.executemany("INSERT INTO classes VALUES (?, ?)", enumerate(self._classes, 1))

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def save(self, digest: str, question: VerdictQuestion) -> VerdictAnswer:
        """Save a verdict; it replaces an earlier verdict on the image with the same digest.

        Raises:
            InvalidRequestError: A class is unknown, a code is invalid for the size of the image, the codes are too
                long, or a clean image has codes.
            NameTakenError: Another image with the same name has a verdict.
        """
        self._check(question)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        codes = json.dumps([question.codes.get(name, "") for name in self._classes])
        row = question.model_dump(exclude={"size"}) | {"digest": digest, "at": now, "codes": codes}
        try:
            with self._lock:
                self._db.execute(_UPSERT, row)
                self._keep_reserve()
        except sqlite3.IntegrityError as error:
            raise NameTakenError(f"another image named {question.image} has a verdict; rename one of them") from error
        return VerdictAnswer.model_validate(row)

    def delete(self, digest: str) -> bool:
        """Delete the verdict on an image, also while the disk is full, and return whether there was one."""
        query = "DELETE FROM verdicts WHERE digest = ?"
        with self._lock:
            try:
                return self._db.execute(query, (digest,)).rowcount > 0
            except sqlite3.OperationalError:
                self._reserve.unlink(missing_ok=True)
                return self._db.execute(query, (digest,)).rowcount > 0

    def _keep_reserve(self) -> None:
        if not self._reserve.exists():
            with suppress(OSError):  # the disk is nearly full; verdicts can still be saved
                self._reserve.write_bytes(os.urandom(_RESERVE_BYTES))  # random, so that no file system compresses it

    def list_since(self, start: datetime) -> Shift:
        """Return the verdicts saved since `start`, a time with a time zone; newest first."""
        since = start.astimezone(UTC).isoformat(timespec="seconds")
        query = "SELECT *, class AS class_name FROM verdicts WHERE at >= ? ORDER BY at DESC, image"
        verdicts = [VerdictAnswer.model_validate(dict(row)) for row in self._select(query, since)]
        kinds = [verdict.verdict for verdict in verdicts]
        return Shift(counts={kind: kinds.count(kind) for kind in get_args(Verdict)}, verdicts=verdicts)

    def format_csv(self) -> str:
        """Return all verdicts as CSV with the columns image, defective, verdict, class, inspector, at and digest."""
        rows = self._select(f"SELECT {', '.join(_CSV_COLUMNS)} FROM verdicts ORDER BY at, image")
        return _format_table([_CSV_COLUMNS, *map(_escape_formulas, rows)])

    def pack_labels(self) -> bytes:
        """Return all verdicts as labels: a ZIP archive of train.csv, to_label.csv and classes.csv."""
        codes: list[Sequence[Any]] = [head_submission("old")]
        to_label: list[Sequence[Any]] = [("ImageId", "ClassId")]
        query = "SELECT image, verdict, class, defective, codes FROM verdicts ORDER BY image"
        for image, verdict, name, is_defective, stored in self._select(query):
            c = self._classes.index(name) if name in self._classes else None
            found: list[str] = json.loads(stored)
            # A confirmed defect without a mask is not a clean image.
            if verdict == "missed" or (verdict == "agree" and is_defective and not any(found)):
                to_label.append((image, "" if c is None else c + 1))
                continue
            if verdict == "false_alarm":  # remove the code of class c, or all codes if no class is given
                found = ["" if c is None or i == c else code for i, code in enumerate(found)]
            codes += list_codes(image, found, "old")
        classes = [("ClassId", "name"), *enumerate(self._classes, 1)]
        file = BytesIO()
        with ZipFile(file, "w", ZIP_DEFLATED) as archive:
            for member, rows in (("train.csv", codes), ("to_label.csv", to_label), ("classes.csv", classes)):
                archive.writestr(member, _format_table(map(_escape_formulas, rows)))
        return file.getvalue()

    def _select(self, query: str, *values: str) -> list[sqlite3.Row]:
        with self._lock:
            return self._db.execute(query, values).fetchall()

    def _check(self, question: VerdictQuestion) -> None:
        names = {*question.codes, *([] if question.class_name is None else [question.class_name])}
        if unknown := names - {*self._classes}:
            raise InvalidRequestError(
                f"class must be one of {', '.join(self._classes)}, got {min(unknown)[:80]!r}; /v1/model lists the names"
            )
        length = sum(map(len, question.codes.values()))
        if length > _MAX_CODE_LENGTH:
            found = f"{_MAX_CODE_LENGTH:,} characters together, got {length:,}"
            raise InvalidRequestError(f"codes must have at most {found}; leave them out")
        if length and not question.defective:
            raise InvalidRequestError("codes must be empty if defective is false; send the answer of /v1/inspect")
        for name, code in question.codes.items():
            try:
                fault = rle.find_fault(rle.parse(code), question.size)
            except InputError as error:
                raise InvalidRequestError(f"code of class {name}: {error}") from error
            if fault:
                raise InvalidRequestError(f"code of class {name}: {fault.text}; send the code returned by /v1/inspect")


def _format_table(rows: Iterable[Sequence[Any]]) -> str:
    text = StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _escape_formulas(row: Sequence[Any]) -> list[Any]:
    """Prefix cells that a spreadsheet would run as formulas with an apostrophe; the readers of labels remove it."""
    return [f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA_STARTS) else cell for cell in row]
