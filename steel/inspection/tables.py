"""What was found on each image, as files that grow image by image, and as what is made of these at the end.

    results.csv       a row for each image, an unreadable one with the reason
    spots.csv         a row for each spot
    submission.csv    codes in Kaggle's form, a row for each image and class
    results.parquet   results.csv and spots.csv as one typed table: a row for each image, with its spots in it

Until a run is over the three tables are called *.unfinished. The row in results.csv is an image's last, so an image
whose row is there was recorded whole, wherever the run was killed; what stands behind the last whole image is cut off
when it is resumed. The Parquet file is made of the tables, since its end has to be written before it can be read.
"""

import csv
import io
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Self

from steel.data import rle
from steel.data.formats.submission import SubmissionFormat, head_submission, list_codes
from steel.data.tables import unlimited_fields
from steel.errors import InputError
from steel.inspection.parquet import (
    write_parquet,
)
from steel.inspection.records import (
    SPOT_COLUMNS,
    Found,
    Record,
    Row,
    Unreadable,
    head_results,
    to_row,
    to_spot_rows,
)


class Tables:
    """The three tables of a run, from the first image to the last.

    Attributes:
        done: Names of the images that are recorded.
        num_defective: How many of these are defective.
        num_unreadable: How many could not be read.
        paths: results.csv, spots.csv and submission.csv as they will be called.
        parquet: results.parquet as it will be called.
    """

    def __init__(
        self,
        folder: Path,
        classes: Sequence[str],
        form: SubmissionFormat = "new",
        shard: tuple[int, int] | None = None,
        resume: bool = False,
    ) -> None:
        """Begins the tables, or goes on with those of a run that was stopped or finished.

        Args:
            folder: Where they go; it is there.
            classes: Names of the classes.
            form: Of submission.csv.
            shard: Which shard this is and of how many, from 1: each has tables of its own, and results.parquet is a
                folder of one file each.
            resume: Whether to go on.

        Raises:
            InputError: What is to be resumed has other columns; or it is not to be resumed, but a run was stopped
                there.
        """
        self._classes, self._form = list(classes), form
        part = f"-{shard[0]}-of-{shard[1]}" if shard else ""
        self.paths = tuple(folder / f"{name}{part}.csv" for name in ("results", "spots", "submission"))
        self.parquet = folder / "results.parquet"
        if shard:
            self.parquet = self.parquet / f"{shard[0]}-of-{shard[1]}.parquet"
            _require_siblings(self.parquet)
        elif self.parquet.is_dir():
            raise InputError(f"{self.parquet} is a folder of shards; name another folder with --out")
        self._headers = (head_results(classes), ["image", *SPOT_COLUMNS], head_submission(form))
        self.done: set[str] = set()
        self.num_defective = self.num_unreadable = 0
        unfinished = name_unfinished(self.paths[0])
        if not resume and unfinished.exists():
            raise InputError(
                f"{unfinished} is of a run that was stopped; go on with --resume, name another folder with --out, or "
                f"delete it"
            )
        ends: tuple[int, ...] = (0, 0, 0)
        if resume:
            self._take_up()
            ends = self._count()
        # Last first, so that results.csv is never there without the others.
        self._files = [self._begin(i, ends[i]) for i in (2, 1, 0)][::-1]

    def _begin(self, i: int, end: int) -> io.TextIOWrapper:
        """Opens a table behind what is whole in it, or with its header."""
        path = name_unfinished(self.paths[i])
        if end == 0:
            path.write_text(_to_text([self._headers[i]]), encoding="utf-8", newline="")
        else:
            os.truncate(path, end)
        return path.open("a", newline="", encoding="utf-8", errors="backslashreplace")

    def _take_up(self) -> None:
        """Makes finished tables unfinished ones; they stay as they are until these are finished in turn."""
        for path in reversed(self.paths):
            if path.exists() and not (unfinished := name_unfinished(path)).exists():
                copy = path.with_name(f"{path.name}.copy")
                shutil.copyfile(path, copy)
                os.replace(copy, unfinished)

    def _count(self) -> tuple[int, ...]:
        """Notes anew what is recorded whole, and tells where it ends in each table; 0 is nowhere."""
        self.done.clear()
        self.num_defective = self.num_unreadable = 0
        ends: tuple[int, ...] = (0, 0, 0)
        for found in self.read():
            self._note(found.row["image"], found.row["defective"] == "1", bool(found.row["error"]))
            ends = found.ends
        return ends

    def cut(self) -> None:
        """Cuts off what stands behind the last whole image, after a write that was interrupted."""
        self.close()
        ends = self._count()
        self._files = [self._begin(i, ends[i]) for i in (2, 1, 0)][::-1]

    def _note(self, image: str, defective: bool, unreadable: bool) -> None:
        self.done.add(image)
        self.num_defective += defective
        self.num_unreadable += unreadable

    def write(self, record: Record | Unreadable) -> None:
        """Adds an image; once this returns, it outlives the process."""
        codes: list[Row] = []
        if isinstance(record, Record):
            codes = list_codes(record.image, record.codes, self._form)
        spots = [[record.image, *row] for row in to_spot_rows(record)]
        rows = ([to_row(record, len(self._classes))], spots, codes)
        # results.csv last.
        for file, some in list(zip(self._files, rows, strict=True))[::-1]:
            file.write(_to_text(some))
            file.flush()
        unreadable = isinstance(record, Unreadable)
        self._note(record.image, isinstance(record, Record) and record.defective, unreadable)

    def read(self) -> Iterator[Found]:
        """The images that are recorded whole, in the order in which they were written.

        Raises:
            InputError: The columns are others.
        """
        with ExitStack() as stack:
            tables = []
            for path, header in zip(self.paths, self._headers, strict=True):
                path = unfinished if (unfinished := name_unfinished(path)).exists() else path
                if not path.exists():
                    return
                tables.append(_read_rows(stack.enter_context(path.open("rb"))))
                first, _ = next(tables[-1], (None, 0))
                if first is None:
                    return
                if first != header:
                    raise InputError(
                        f"{path} has the columns {','.join(first)}, but {','.join(header)} were expected; resume with "
                        f"the same model and --submission_format, or name another folder with --out"
                    )
            yield from self._join(*tables)

    def _join(self, *tables: Iterator[tuple[Row, int]]) -> Iterator[Found]:
        results, *others = tables
        ends = [0, 0, 0]
        for cells, end in results:
            if len(cells) != len(self._headers[0]):
                return
            row, ends[0] = dict(zip(self._headers[0], cells, strict=True)), end
            codes = [] if row["error"] else list_codes(row["image"], [""] * len(self._classes), self._form)
            expected = ([[row["image"]]] * int(row["spots"] or 0), [code[:-1] for code in codes])
            groups: list[list[Row]] = []
            for i, names in enumerate(expected):
                some = list(islice(others[i], len(names)))
                if [cells[: len(name)] for (cells, _), name in zip(some, names, strict=False)] != names:
                    return
                groups.append([cells for cells, _ in some])
                ends[i + 1] = some[-1][1] if some else ends[i + 1]
            spots = [dict(zip(SPOT_COLUMNS, cells[1:], strict=True)) for cells in groups[0]]
            yield Found(row, spots, [cells[-1] for cells in groups[1]], tuple(ends))

    def close(self) -> None:
        """Closes the files; what was written can be resumed."""
        for file in self._files:
            file.close()

    def finish(self) -> None:
        """Makes results.parquet, and gives everything its name."""
        self.close()
        self.parquet.parent.mkdir(exist_ok=True)
        # Not in the folder of shards, where it would be read as one of them.
        unfinished = name_unfinished(self.paths[0].with_suffix(".parquet"))
        write_parquet(unfinished, self._classes, self.read())
        os.replace(unfinished, self.parquet)
        for path in self.paths:
            os.replace(name_unfinished(path), path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _require_siblings(shard: Path) -> None:
    """Refuses to put a shard where it would be read as one of another run."""
    folder, end = shard.parent, shard.name.partition("-")[2]
    if folder.is_file():
        raise InputError(f"{folder} is of a whole run; name another folder with --out")
    for other in folder.glob("*.parquet"):
        if other.name.partition("-")[2] != end:
            raise InputError(
                f"{folder} holds shards of {other.stem.rpartition('-')[2]}; name another folder with --out"
            )


def name_unfinished(path: Path) -> Path:
    """What a file is called until it is whole."""
    return path.with_name(f"{path.name}.unfinished")


def _to_text(rows: Iterable[Row]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _read_rows(file: io.BufferedReader) -> Iterator[tuple[Row, int]]:
    """The whole rows of a table, and where each ends; a line without its end is none."""
    lines = (line.decode("utf-8") for line in file if line.endswith(b"\n"))
    rows = csv.reader(lines)
    while True:
        with unlimited_fields():
            row = next(rows, None)
        if row is None:
            return
        yield row, file.tell()


def write_coco(folder: Path, tables: Tables, classes: Sequence[str]) -> Path:
    """Writes what was outlined as COCO's JSON, with an annotation for each spot, and tells where.

    Args:
        folder: Where annotations/instances_default.json goes, with what was there before.
        tables: Finished.
        classes: Names of the classes.
    """
    from steel.data.formats import coco
    from steel.data.formats.labels import LabelledImage, Labels

    images = [
        LabelledImage(
            found.row["image"],
            None,
            (int(found.row["height"]), int(found.row["width"])),
            {c: rle.parse(code) for c, code in enumerate(found.codes) if code},
        )
        for found in tables.read()
        if not found.row["error"]
    ]
    unfinished = name_unfinished(folder)
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    coco.write_coco(Labels(tuple(classes), images, folder), unfinished, "coco")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(unfinished, folder)
    return folder
