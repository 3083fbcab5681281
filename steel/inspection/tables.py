"""The result tables of a run: CSV files that grow image by image, survive a crash, and can be resumed.

    results.csv       one row per image; an unreadable image has the reason in the column error
    spots.csv         one row per spot
    submission.csv    run-length codes in Kaggle's format, one row per image and class
    results.parquet   results.csv and spots.csv as one typed table

Until a run is finished, the CSV files are named *.unfinished. An image's row in results.csv is written last, so an
image with a row there is complete in all three files, whenever the process was killed. Resuming truncates each file
after the last complete image. Cells that a spreadsheet would run as formulas have an apostrophe before them.

The Parquet file is written at the end from the CSV files, because it cannot be read without its footer.
"""

import csv
import io
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from steel.data.formats.submission import SubmissionFormat, head_submission, list_codes
from steel.data.spelling import format_csv, unescape_formula
from steel.data.tables import unlimited_fields
from steel.errors import InputError
from steel.files import atomic_path
from steel.inspection.parquet import build_schema, write_parquet
from steel.inspection.records import SPOT_COLUMNS, Record, Row, Unreadable, from_rows, to_rows


class Shard(NamedTuple):
    """Part `number` (from 1) of the images, which are divided into `num_shards` parts."""

    number: int
    num_shards: int


class Tables:
    """The result tables of one run.

    Args:
        folder: An existing folder.
        columns: Columns of results.csv, from `list_result_columns`.
        num_classes: C.
        form: Columns of submission.csv.
        shard: Shard that the tables are for, if any. Each shard has CSV files of its own and one file in
            results.parquet, which is a folder.
        resume: Continue the tables of an interrupted or finished run in the folder.

    Attributes:
        done: Names of the recorded images.
        num_defective: Number of recorded images that are defective.
        num_unknown: Number of recorded images that are unlike any clean steel and show no known class.
        num_unreadable: Number of recorded images that could not be read.
        paths: Final paths of results.csv, spots.csv and submission.csv.
        unfinished: Their paths until the run is finished.
        parquet: Final path of results.parquet.

    Raises:
        InputError: The tables to continue have other columns, or the folder holds an interrupted run that is not to be
            resumed, or shards of another run; or another process is writing the same tables.
    """

    def __init__(
        self,
        folder: Path,
        columns: Row,
        num_classes: int,
        *,
        form: SubmissionFormat,
        shard: Shard | None,
        resume: bool,
    ) -> None:
        self._num_classes, self._form = num_classes, form
        suffix = f"-{shard.number}-of-{shard.num_shards}" if shard else ""
        self.paths = tuple(folder / f"{name}{suffix}.csv" for name in ("results", "spots", "submission"))
        self.unfinished = tuple(path.with_name(f"{path.name}.unfinished") for path in self.paths)
        self.parquet = folder / "results.parquet"
        if shard:
            self.parquet /= f"{shard.number}-of-{shard.num_shards}.parquet"
        self._schema = build_schema(columns)
        self._headers = (columns, ["image", *SPOT_COLUMNS], head_submission(form))
        self.done: set[str] = set()
        self.num_defective = self.num_unknown = self.num_unreadable = 0
        self._lock = FileLock(folder / f".results{suffix}.lock")
        try:
            # Before anything else, because the files of a run in progress look like those of an interrupted run.
            self._lock.acquire(blocking=False)
        except Timeout as error:
            raise InputError(
                f"another command is writing to {folder}; wait until it ends, or choose another folder with --out"
            ) from error
        try:
            self._require_own_folder(is_shard=shard is not None, resume=resume)
            self._files = self._open(self._scan() if resume else (0, 0, 0))
        except BaseException:
            self._lock.release()
            raise

    def _require_own_folder(self, *, is_shard: bool, resume: bool) -> None:
        """Refuse a folder with results that are not to be continued."""
        if is_shard:
            _require_same_run(self.parquet)
        elif self.parquet.is_dir():
            raise InputError(f"{self.parquet} is a folder with the results of shards; choose another folder with --out")
        if not resume and self.unfinished[0].exists():
            raise InputError(
                f"{self.unfinished[0]} belongs to an interrupted run; continue it with --resume, choose another folder "
                f"with --out, or delete the file"
            )
        if not resume and self.paths[0].exists():
            raise InputError(
                f"{self.paths[0]} is from an earlier run; add to it with --resume, or choose another --out"
            )

    def _scan(self) -> tuple[int, ...]:
        """Recount the complete images and return the byte offset in each table where the last one ends."""
        self.done.clear()
        self.num_defective = self.num_unknown = self.num_unreadable = 0
        ends: tuple[int, ...] = (0, 0, 0)
        for record, after in self._read():
            self._count(record)
            ends = after
        return ends

    def _open(self, ends: tuple[int, ...]) -> list[io.TextIOWrapper]:
        """Truncate the tables after the last complete image, write missing headers, and open them for appending."""
        files = []
        # In reverse, so that results.csv never exists without the other two.
        tables = list(zip(self.paths, self.unfinished, self._headers, ends, strict=True))
        for path, unfinished, header, end in reversed(tables):
            if end:
                if not unfinished.exists():  # the run was finished; its tables stay until this one is finished
                    with atomic_path(unfinished) as copy:
                        shutil.copyfile(path, copy)
                os.truncate(unfinished, end)
            file = unfinished.open("a" if end else "w", newline="", encoding="utf-8", errors="backslashreplace")
            files.append(file)
            if not end:
                _append(file, [header])
        return files[::-1]

    def recover(self) -> None:
        """Truncate the tables after the last complete image, after an interrupted `write`."""
        self._close_files()
        self._files = self._open(self._scan())

    def _count(self, record: Record | Unreadable) -> None:
        self.done.add(record.image)
        self.num_defective += isinstance(record, Record) and record.defective
        self.num_unknown += isinstance(record, Record) and bool(record.unknown_code)
        self.num_unreadable += isinstance(record, Unreadable)

    def write(self, record: Record | Unreadable) -> None:
        """Append an image. When this returns, the rows survive a crash of the process."""
        codes = list_codes(record.image, record.codes, self._form) if isinstance(record, Record) else []
        result, spots = to_rows(record, len(self._headers[0]))
        rows = ([result], [[record.image, *row] for row in spots], codes)
        for file, added in reversed(list(zip(self._files, rows, strict=True))):  # results.csv last
            _append(file, added)
        self._count(record)

    def read(self) -> Iterator[Record | Unreadable]:
        """Yield the complete images in the order in which they were written.

        Raises:
            InputError: A table has other columns.
        """
        return (record for record, _ in self._read())

    def _read(self) -> Iterator[tuple[Record | Unreadable, tuple[int, ...]]]:
        """Yield the complete images, each with the byte offsets in the three tables where its rows end."""
        with ExitStack() as stack:
            tables = []
            for finished, unfinished, header in zip(self.paths, self.unfinished, self._headers, strict=True):
                path = unfinished if unfinished.exists() else finished
                if not path.exists():
                    return
                tables.append(_read_rows(stack.enter_context(path.open("rb"))))
                columns, _ = next(tables[-1], (None, 0))
                if columns is None:
                    return
                if columns != header:
                    raise InputError(
                        f"{path} must have the columns {','.join(header)}, got {','.join(columns)}; resume with the "
                        f"same model and --submission_format, or choose another folder with --out"
                    )
            yield from self._join(*tables)

    def _join(self, *tables: Iterator[tuple[Row, int]]) -> Iterator[tuple[Record | Unreadable, tuple[int, ...]]]:
        """Collect the rows of each image from the three tables; stop at the first image that is incomplete."""
        results, *others = tables
        ends = [0, 0, 0]
        for cells, ends[0] in results:
            if len(cells) != len(self._headers[0]):
                return
            image, *_, num_spots, _, _, error = cells
            codes = list_codes(image, [] if error else [""] * self._num_classes, self._form)
            # The first cells of the rows that the image must have in spots.csv and submission.csv.
            expected = ([[image]] * int(num_spots or 0), [row[:-1] for row in codes])
            rests: list[list[Row]] = []
            for i, (table, keys) in enumerate(zip(others, expected, strict=True), 1):
                rows = list(islice(table, len(keys)))
                if [cells[: len(key)] for (cells, _), key in zip(rows, keys, strict=False)] != keys:
                    return
                rests.append([cells[len(key) :] for (cells, _), key in zip(rows, keys, strict=True)])
                ends[i] = rows[-1][1] if rows else ends[i]
            yield from_rows(cells, rests[0], [code for (code,) in rests[1]]), tuple(ends)

    def close(self) -> None:
        """Close the files and let another process write them. The run can still be resumed."""
        self._close_files()
        self._lock.release()

    def _close_files(self) -> None:
        for file in self._files:
            with suppress(OSError):  # writes again what a full disk has refused; `write` has raised that error
                file.close()

    def finish(self) -> None:
        """Write results.parquet and rename the tables to their final names."""
        self._close_files()
        # A draft in the folder of shards would be read as one of them, so the file moves there when it is complete.
        complete = self.paths[0].with_suffix(".parquet")
        self.parquet.parent.mkdir(exist_ok=True)
        with atomic_path(complete) as draft:
            write_parquet(draft, self._schema, self.read())
        os.replace(complete, self.parquet)
        for unfinished, path in zip(self.unfinished, self.paths, strict=True):
            os.replace(unfinished, path)


def _require_same_run(shard: Path) -> None:
    """Refuse to put a shard's Parquet file among those of another run."""
    if shard.parent.is_file():
        raise InputError(f"{shard.parent} holds the results of a whole run; choose another folder with --out")
    for other in shard.parent.glob("*.parquet"):
        if (num_shards := other.stem.rpartition("-")[2]) != shard.stem.rpartition("-")[2]:
            raise InputError(f"{shard.parent} holds results of {num_shards} shards; choose another folder with --out")


def _append(file: io.TextIOWrapper, rows: Iterable[Row]) -> None:
    try:
        file.write(format_csv(rows))
        file.flush()
    except OSError as error:  # does not name the file
        raise OSError(error.errno, error.strerror, file.name) from error


def _read_rows(file: io.BufferedReader) -> Iterator[tuple[Row, int]]:
    """Yield the rows of a table, each with the byte offset where it ends; an incomplete last line is skipped."""
    lines = (line.decode("utf-8") for line in file if line.endswith(b"\n"))
    rows = csv.reader(lines)
    while True:
        with unlimited_fields():
            row = next(rows, None)
        if row is None:
            return
        yield list(map(unescape_formula, row)), file.tell()
