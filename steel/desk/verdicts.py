"""What inspectors said of images, in SQLite, and as the labels that tomorrow's training learns from.

Labels are a data set's `train.csv` in its older form, in which a clean image has rows with empty codes, and
`to_label.csv` (`ImageId,ClassId`, the class empty where nobody said) with the images that somebody has to outline.
"""

import csv
import json
import sqlite3
import threading
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any, get_args
from zipfile import ZIP_DEFLATED, ZipFile

from steel.data import rle
from steel.data.formats.submission import head_submission, list_codes
from steel.desk.answers import Shift, Verdict, VerdictAnswer, VerdictQuestion
from steel.errors import InputError

# What tells a file of ours from another program's.
_APPLICATION_ID = 0x57EE1
_TABLE = """
CREATE TABLE IF NOT EXISTS verdicts (
    digest TEXT PRIMARY KEY,
    image TEXT NOT NULL UNIQUE,
    verdict TEXT NOT NULL,
    class TEXT,
    defective INTEGER NOT NULL,
    inspector TEXT NOT NULL,
    at TEXT NOT NULL,
    codes TEXT NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS verdicts_at ON verdicts (at);
CREATE TABLE IF NOT EXISTS classes (number INTEGER PRIMARY KEY, name TEXT NOT NULL) STRICT;
"""
_ANSWERED = "digest, image, verdict, class, defective, inspector, at"


class NameTaken(Exception):  # noqa: N818, an answer rather than an error
    """Another image of this name has a verdict already; labels know images by their names."""


class Verdicts:
    """The file of verdicts, one for each image; a later one replaces it. Safe to use from several threads."""

    def __init__(self, path: str | Path, classes: Sequence[str]) -> None:
        """Opens the file, or makes it.

        Args:
            path: The file.
            classes: The names of the C classes.

        Raises:
            InputError: It is there and is something else or about other classes, or its folder is not there.
        """
        self._classes = tuple(classes)
        self._lock = threading.Lock()
        path = Path(path)
        try:
            self._open(path)
        except sqlite3.Error as error:
            raise InputError(
                f"{path} cannot be used for verdicts ({error}); name a new file in a folder that is there with "
                f"--verdicts"
            ) from error

    def _open(self, path: Path) -> None:
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        try:
            (found,) = self._db.execute("PRAGMA application_id").fetchone()
            (num_tables,) = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if num_tables and found != _APPLICATION_ID:
                raise InputError(f"{path} is a database of another program; name another file with --verdicts")
            # A verdict that was answered for is there after a power cut: FULL syncs each, which nobody notices.
            self._db.executescript(
                f"PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA application_id={_APPLICATION_ID}; {_TABLE}"
            )
            self._require_classes(path)
        except BaseException:
            self._db.close()
            raise

    def _require_classes(self, path: Path) -> None:
        """Refuses a file about other classes: a code says its class by its place alone."""
        known = [name for (name,) in self._db.execute("SELECT name FROM classes ORDER BY number")]
        (num_verdicts,) = self._db.execute("SELECT count(*) FROM verdicts").fetchone()
        if num_verdicts and known and known != list(self._classes):
            raise InputError(
                f"{path} has verdicts about the classes {', '.join(known)}, but this model knows "
                f"{', '.join(self._classes)}; name another file with --verdicts"
            )
        with self._db:
            self._db.execute("BEGIN")
            self._db.execute("DELETE FROM classes")
            self._db.executemany("INSERT INTO classes VALUES (?, ?)", enumerate(self._classes, 1))

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._db.close()

    def save(self, digest: str, question: VerdictQuestion) -> VerdictAnswer:
        """Keeps a verdict in place of a former one of the same image.

        Args:
            digest: SHA-256 of the image's file.
            question: What the inspector says.

        Raises:
            InputError: It does not go with the classes, or a code not with the image.
            NameTaken: Another image has the same name.
        """
        self._check(question)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        codes = json.dumps([question.codes.get(name, "") for name in self._classes])
        row = (
            digest,
            question.image,
            question.verdict,
            question.class_name,
            int(question.defective),
            question.inspector,
            now,
            codes,
        )
        try:
            with self._lock:
                self._db.execute(
                    "INSERT INTO verdicts VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (digest) DO UPDATE SET "
                    "(image, verdict, class, defective, inspector, at, codes) = (excluded.image, excluded.verdict, "
                    "excluded.class, excluded.defective, excluded.inspector, excluded.at, excluded.codes)",
                    row,
                )
        except sqlite3.IntegrityError as error:
            raise NameTaken(question.image) from error
        return _read_row(row[:-1])

    def delete(self, digest: str) -> bool:
        """Takes a verdict back; says whether there was one."""
        with self._lock:
            return self._db.execute("DELETE FROM verdicts WHERE digest = ?", (digest,)).rowcount > 0

    def list_since(self, start: datetime) -> Shift:
        """The verdicts since a time, the newest first.

        Args:
            start: With its time zone.
        """
        since = start.astimezone(UTC).isoformat(timespec="seconds")
        query = f"SELECT {_ANSWERED} FROM verdicts WHERE at >= ? ORDER BY at DESC, image"
        verdicts = [_read_row(row) for row in self._select(query, since)]
        counts: dict[Verdict, int] = dict.fromkeys(get_args(Verdict), 0)
        for verdict in verdicts:
            counts[verdict.verdict] += 1
        return Shift(counts=counts, verdicts=verdicts)

    def write_csv(self) -> str:
        """All verdicts as a table: image, defective, verdict, class, inspector, at, digest."""
        query = "SELECT image, defective, verdict, class, inspector, at, digest FROM verdicts ORDER BY at, image"
        text = StringIO(newline="")
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["image", "defective", "verdict", "class", "inspector", "at", "digest"])
        table.writerows([_disarm(cell) for cell in row] for row in self._select(query))
        return text.getvalue()

    def write_labels(self, file: Any) -> None:
        """Writes all verdicts as labels: a ZIP of train.csv, to_label.csv and classes.csv.

        Args:
            file: Open for writing bytes.
        """
        labels, to_label, classes = (StringIO(newline="") for _ in range(3))
        codes = csv.writer(labels, lineterminator="\n")
        codes.writerow(head_submission("old"))
        missing = csv.writer(to_label, lineterminator="\n")
        missing.writerow(["ImageId", "ClassId"])
        names = csv.writer(classes, lineterminator="\n")
        names.writerows([("ClassId", "name"), *enumerate(self._classes, 1)])
        query = "SELECT image, verdict, class, defective, codes FROM verdicts ORDER BY image"
        for image, verdict, name, defective, written in self._select(query):
            c = self._classes.index(name) if name in self._classes else None
            found = json.loads(written)
            # A defect that both saw and nobody outlined is not a clean image.
            if verdict == "missed" or (verdict == "agree" and defective and not any(found)):
                missing.writerow([image, "" if c is None else c + 1])
            else:
                kept = _clear(found, c) if verdict == "false_alarm" else found
                codes.writerows(list_codes(image, kept, "old"))
        with ZipFile(file, "w", ZIP_DEFLATED) as archive:
            for member, text in (("train.csv", labels), ("to_label.csv", to_label), ("classes.csv", classes)):
                archive.writestr(member, text.getvalue())

    def _select(self, query: str, *values: str) -> list[tuple[Any, ...]]:
        with self._lock:
            return self._db.execute(query, values).fetchall()

    def _check(self, question: VerdictQuestion) -> None:
        named = {*question.codes, *([] if question.class_name is None else [question.class_name])}
        if strangers := named - {*self._classes}:
            raise InputError(
                f"the classes are {', '.join(self._classes)}, but {min(strangers)[:80]!r} came; take the names from "
                f"/v1/model"
            )
        for name, code in question.codes.items():
            try:
                fault = rle.find_fault(rle.parse(code), question.size)
            except InputError as error:
                raise InputError(f"the code of class {name}: {error}") from error
            if fault:
                raise InputError(f"the code of class {name}: {fault.text}; send it as /v1/inspect gave it")


def _clear(codes: list[str], c: int | None) -> list[str]:
    """The codes without the class that was a false alarm; without any, where none is named."""
    return ["" if c is None or i == c else code for i, code in enumerate(codes)]


def _read_row(row: Iterable[Any]) -> VerdictAnswer:
    digest, image, verdict, class_name, defective, inspector, at = row
    return VerdictAnswer(
        digest=digest,
        image=image,
        verdict=verdict,
        class_name=class_name,
        defective=bool(defective),
        inspector=inspector,
        at=datetime.fromisoformat(at),
    )


def _disarm(cell: Any) -> Any:
    """A spreadsheet takes a text that begins so for a formula, and runs it."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@")) else cell
