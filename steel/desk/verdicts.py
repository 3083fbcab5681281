"""Storage of the inspectors' verdicts in SQLite."""

import json
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar, get_args

from steel.data import rle
from steel.data.severstal import MAX_CLASSES
from steel.data.spelling import format_csv
from steel.desk.answers import NEW_CLASS, HistoryEntry, Shift, Verdict, VerdictAnswer, VerdictQuestion
from steel.desk.errors import InvalidRequestError, NameTakenError, VerdictChangedError
from steel.desk.labels import pack_labels
from steel.errors import InputError

_Entry = TypeVar("_Entry", VerdictAnswer, HistoryEntry)

# Marks the database as one of this program.
_APPLICATION_ID = 0x57EE1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS history (
    revision INTEGER PRIMARY KEY AUTOINCREMENT, digest TEXT NOT NULL, image TEXT NOT NULL, verdict TEXT, class TEXT,
    defective INTEGER NOT NULL, inspector TEXT NOT NULL, comment TEXT NOT NULL, at TEXT NOT NULL, codes TEXT NOT NULL,
    marks TEXT NOT NULL, unknown_code TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE INDEX IF NOT EXISTS history_digest ON history (digest, revision);
CREATE INDEX IF NOT EXISTS history_image ON history (image);
CREATE INDEX IF NOT EXISTS history_at ON history (at);
CREATE VIEW IF NOT EXISTS verdicts AS SELECT * FROM history AS entry WHERE verdict IS NOT NULL AND NOT EXISTS (
    SELECT 1 FROM history WHERE digest = entry.digest AND revision > entry.revision
);
CREATE TABLE IF NOT EXISTS classes (number INTEGER PRIMARY KEY, name TEXT NOT NULL) STRICT;
"""
# Earlier versions stored only the current verdict on each image, in a table `verdicts`.
_MIGRATION = f"""
BEGIN IMMEDIATE;
ALTER TABLE verdicts RENAME TO earlier;
DROP INDEX IF EXISTS verdicts_at;
{_SCHEMA}
INSERT INTO history (digest, image, verdict, class, defective, inspector, comment, at, codes, marks)
    SELECT digest, image, verdict, class, defective, inspector, '', at, codes, '[]' FROM earlier ORDER BY at, image;
DROP TABLE earlier;
COMMIT;
"""
_INSERT = """
INSERT INTO history (digest, image, verdict, class, defective, inspector, comment, at, codes, marks, unknown_code)
VALUES (:digest, :image, :verdict, :class_name, :defective, :inspector, :comment, :at, :codes, :marks, :unknown_code)
"""
# New classes that are in use, in the order in which they were named, so that their numbers do not change.
_NEW_CLASSES = """
SELECT class FROM history WHERE verdict = 'unknown' AND class IN (SELECT class FROM verdicts WHERE verdict = 'unknown')
GROUP BY class ORDER BY min(revision)
"""
# SQLite needs space even to delete. This file gives it back while the disk is full.
_RESERVE, _RESERVE_BYTES = "-reserve", 1 << 20
# All codes of a verdict together. A mask with a run on every tenth pixel of 256 x 1600 takes half of it.
_MAX_CODE_LENGTH = 1_000_000
_CSV_COLUMNS = ("image", "defective", "verdict", "class", "inspector", "at", "digest", "comment")


class Verdicts:
    """A file with at most one verdict per image and the history of earlier ones. Thread-safe."""

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
                f"PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA application_id={_APPLICATION_ID}"
            )
            kind = self._db.execute("SELECT type FROM sqlite_master WHERE name = 'verdicts'").fetchone()
            self._db.executescript(_MIGRATION if kind and kind["type"] == "table" else _SCHEMA)
            if "unknown_code" not in [row["name"] for row in self._db.execute("PRAGMA table_info(history)")]:
                self._db.execute("ALTER TABLE history ADD COLUMN unknown_code TEXT NOT NULL DEFAULT ''")
            self._require_classes(path)
            self._reserve = path.with_name(path.name + _RESERVE)
            self._keep_reserve()
        except BaseException:
            self._db.close()
            raise

    def _require_classes(self, path: Path) -> None:
        """Refuse a file with verdicts on other classes: codes are stored by class number, without the name."""
        stored = [name for (name,) in self._db.execute("SELECT name FROM classes ORDER BY number")]
        (num_verdicts,) = self._db.execute("SELECT count(*) FROM history").fetchone()
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

    def save(self, digest: str, question: VerdictQuestion, replaces: int | None = None) -> VerdictAnswer:
        """Save a verdict; it replaces an earlier verdict on the image with the same digest.

        Args:
            digest: SHA-256 of the image file.
            question: The verdict.
            replaces: Revision of the verdict that it may replace, 0 for none; None replaces any verdict.

        Raises:
            InvalidRequestError: A class is unknown, a code is invalid for the size of the image, the codes are too
                long, a clean image has codes, or there would be too many new classes.
            NameTakenError: Another image with the same name has a verdict.
            VerdictChangedError: The image has another verdict than `replaces`.
        """
        self._check(question)
        row = question.model_dump(exclude={"size"}) | {
            field: json.dumps([codes.get(name, "") for name in self._classes])
            for field, codes in (("codes", question.codes), ("marks", question.marks))
        }
        with self._write():
            self._require_current(digest, replaces)
            query = "SELECT 1 FROM verdicts WHERE image = ? AND digest != ?"
            if self._db.execute(query, (question.image, digest)).fetchone():
                raise NameTakenError(f"another image named {question.image} has a verdict; rename one of them")
            self._require_few_classes(question)
            revision = self._db.execute(_INSERT, row | {"digest": digest, "at": _format_now()}).lastrowid
            self._keep_reserve()
        return self._build_entry(self._select("SELECT * FROM history WHERE revision = ?", revision)[0], VerdictAnswer)

    def delete(self, digest: str, inspector: str, replaces: int | None = None) -> bool:
        """Delete the verdict on an image, also while the disk is full, and return whether there was one.

        The verdict stays in the history.

        Args:
            digest: SHA-256 of the image file.
            inspector: Name of the person who deletes it, for the history.
            replaces: Revision of the verdict that may be deleted; None deletes any verdict.

        Raises:
            VerdictChangedError: The image has another verdict than `replaces`.
        """
        try:
            return self._add_deletion(digest, inspector, replaces)
        except sqlite3.OperationalError:
            self._reserve.unlink(missing_ok=True)
            return self._add_deletion(digest, inspector, replaces)

    def _add_deletion(self, digest: str, inspector: str, replaces: int | None) -> bool:
        with self._write():
            row = self._db.execute("SELECT *, class AS class_name FROM verdicts WHERE digest = ?", (digest,)).fetchone()
            if row is not None:
                self._require_current(digest, replaces)
                changes = {"verdict": None, "inspector": inspector, "comment": "", "codes": "[]", "marks": "[]"}
                self._db.execute(_INSERT, dict(row) | changes | {"unknown_code": "", "at": _format_now()})
        return row is not None

    def list_history(self, digest: str) -> list[HistoryEntry]:
        """Return all verdicts on an image, and their deletions, newest first."""
        rows = self._select("SELECT * FROM history WHERE digest = ? ORDER BY revision DESC", digest)
        return [self._build_entry(row, HistoryEntry) for row in rows]

    def _keep_reserve(self) -> None:
        if not self._reserve.exists():
            with suppress(OSError):  # the disk is nearly full; verdicts can still be saved
                self._reserve.write_bytes(os.urandom(_RESERVE_BYTES))  # random, so that no file system compresses it

    def list_since(self, start: datetime) -> Shift:
        """Return the verdicts saved since `start`, a time with a time zone; newest first."""
        # By revision, because the clock of the machine may be set back.
        since = start.astimezone(UTC).isoformat(timespec="seconds")
        rows = self._select("SELECT * FROM verdicts WHERE at >= ? ORDER BY revision DESC", since)
        verdicts = [self._build_entry(row, VerdictAnswer) for row in rows]
        kinds = [verdict.verdict for verdict in verdicts]
        return Shift(counts={kind: kinds.count(kind) for kind in get_args(Verdict)}, verdicts=verdicts)

    def format_csv(self) -> str:
        """Return all verdicts as CSV with the columns of `_CSV_COLUMNS`."""
        rows = self._select(f"SELECT {', '.join(_CSV_COLUMNS)} FROM verdicts ORDER BY revision")
        return format_csv([_CSV_COLUMNS, *rows])

    def pack_labels(self) -> bytes:
        """Return all verdicts as labels; see `steel.desk.labels`."""
        names = [*self._classes, *(name for (name,) in self._select(_NEW_CLASSES))]
        return pack_labels(self._select("SELECT * FROM verdicts ORDER BY image"), names)

    def _select(self, query: str, *values: str | int | None) -> list[sqlite3.Row]:
        with self._lock:
            return self._db.execute(query, values).fetchall()

    @contextmanager
    def _write(self) -> Iterator[None]:
        """Hold the lock and a transaction, which is rolled back on an error."""
        with self._lock, self._db:
            self._db.execute("BEGIN IMMEDIATE")
            yield

    def _require_current(self, digest: str, revision: int | None) -> None:
        row = self._db.execute("SELECT revision FROM verdicts WHERE digest = ?", (digest,)).fetchone()
        if revision is not None and revision != (row["revision"] if row else 0):
            raise VerdictChangedError

    def _require_few_classes(self, question: VerdictQuestion) -> None:
        if question.verdict != "unknown" or question.class_name is None:
            return
        new = {name for (name,) in self._db.execute(_NEW_CLASSES)} | {question.class_name}
        if len(self._classes) + len(new) > MAX_CLASSES:
            raise InvalidRequestError(
                f"a dataset has at most {MAX_CLASSES} classes, and the new ones are {', '.join(sorted(new))}; use one "
                f"of them, or leave out the class"
            )

    def _build_entry(self, row: sqlite3.Row, kind: type[_Entry]) -> _Entry:
        marks = dict(zip(self._classes, json.loads(row["marks"]), strict=False))  # empty in earlier versions
        return kind.model_validate({**dict(row), "class_name": row["class"], "marks": marks})

    def _check(self, question: VerdictQuestion) -> None:
        if any(question.marks.values()) and question.verdict != "missed":
            raise InvalidRequestError(f"marks are for missed defects, but the verdict is {question.verdict}; omit them")
        if question.unknown_code and any(question.codes.values()):
            raise InvalidRequestError("unknown_code must be empty if codes are not; send the answer of /v1/inspect")
        names = {*question.codes, *question.marks}
        if question.verdict == "unknown":
            self._check_unknown(question)
        elif question.class_name is not None:
            names.add(question.class_name)
        if unknown := names - {*self._classes}:
            raise InvalidRequestError(
                f"class must be one of {', '.join(self._classes)}, got {min(unknown)[:80]!r}; /v1/model lists the names"
            )
        length = sum(map(len, (*question.codes.values(), *question.marks.values(), question.unknown_code)))
        if length > _MAX_CODE_LENGTH:
            found = f"{_MAX_CODE_LENGTH:,} characters together, got {length:,}"
            raise InvalidRequestError(f"codes must have at most {found}; leave them out")
        if any(question.codes.values()) and not question.defective:
            raise InvalidRequestError("codes must be empty if defective is false; send the answer of /v1/inspect")
        named = [(f"code of class {name}", code) for name, code in (*question.codes.items(), *question.marks.items())]
        for name, code in (*named, ("unknown_code", question.unknown_code)):
            try:
                fault = rle.find_fault(rle.parse(code), question.size)
            except InputError as error:
                raise InvalidRequestError(f"{name}: {error}") from error
            if fault:
                raise InvalidRequestError(f"{name}: {fault.text}; send the code returned by /v1/inspect")

    def _check_unknown(self, question: VerdictQuestion) -> None:
        if not question.unknown_code:
            raise InvalidRequestError("an unknown defect needs unknown_code; send the answer of /v1/inspect")
        name = question.class_name
        if name is not None and name.casefold() in map(str.casefold, self._classes):
            raise InvalidRequestError(f"the class {name[:80]} is not new; give the verdict missed with marks")
        if name is not None and not NEW_CLASS.fullmatch(name):
            raise InvalidRequestError(f"the name of a class must be 1 to 40 printable characters, got {name[:80]!r}")


def _format_now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
