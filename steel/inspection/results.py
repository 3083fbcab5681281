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
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, TypeVar

from steel.data import rle
from steel.errors import InputError
from steel.inspection.spots import Spot

if TYPE_CHECKING:
    import pyarrow as pa

SubmissionFormat = Literal["new", "old"]
Row = list[str]
P = TypeVar("P", bound=PurePath)

_SPOT_COLUMNS = ["class", "area_pixels", "left", "top", "width", "height", "centroid_x", "centroid_y", "code"]
# Letters of a Parquet file that are held at a time.
_GROUP = 4_000_000

# The code of a noisy mask is longer than the 131,072 letters that the module allows.
csv.field_size_limit(2**31 - 1)


class Record(NamedTuple):
    """What is recorded of one image.

    Attributes:
        image: Its name.
        defective: Whether the gate called it so.
        gate_probability: The largest class probability.
        class_probabilities: C of them, calibrated.
        areas: Pixels that were outlined, of each class.
        size: Height and width in pixels.
        codes: The code of each class, empty where nothing was outlined.
        spots: What was outlined, spot by spot.
    """

    image: str
    defective: bool
    gate_probability: float
    class_probabilities: Sequence[float]
    areas: Sequence[int]
    size: tuple[int, int]
    codes: Sequence[str]
    spots: Sequence[Spot]


class Unreadable(NamedTuple):
    """An image that could not be read, and why."""

    image: str
    error: str


class Found(NamedTuple):
    """The rows of one image as they stand in the tables, and where in the three files they end."""

    row: dict[str, str]
    spots: list[dict[str, str]]
    codes: list[str]
    ends: tuple[int, ...]


def name_images(paths: Sequence[P]) -> dict[str, P]:
    """Paths by their names in the tables: the files' own, or where these are not unique, those below their folder."""
    names = [path.name for path in paths]
    if len(set(names)) < len(paths):
        common = os.path.commonpath([path.parent for path in paths])
        names = [path.relative_to(common).as_posix() for path in paths]
    # A name that is no text is shown as well as it can be; tables are text.
    return dict(zip((name.encode(errors="backslashreplace").decode() for name in names), paths, strict=True))


def head_submission(form: SubmissionFormat) -> Row:
    """The header of a submission: ImageId,ClassId,EncodedPixels (new) or ImageId_ClassId,EncodedPixels (old)."""
    return ["ImageId_ClassId", "EncodedPixels"] if form == "old" else ["ImageId", "ClassId", "EncodedPixels"]


def list_codes(image: str, codes: Iterable[str], form: SubmissionFormat) -> list[Row]:
    """An image's rows of a submission, one for each class."""
    rows = ([image, str(c), code] for c, code in enumerate(codes, 1))
    return [[f"{name}_{c}", code] if form == "old" else [name, c, code] for name, c, code in rows]


def tell_apart(classes: Sequence[str]) -> list[str]:
    """The names of the classes, with their numbers where two have the same name; columns and keys may not."""
    return list(classes) if len(set(classes)) == len(classes) else [f"{c}_{name}" for c, name in enumerate(classes, 1)]


def head_results(classes: Sequence[str]) -> Row:
    """The columns of results.csv."""
    names = tell_apart(classes)
    probabilities, areas = ([f"{kind}_{name}" for name in names] for kind in ("probability", "area_pixels"))
    return ["image", "defective", "gate_probability", *probabilities, *areas, "spots", "height", "width", "error"]


def to_row(record: Record | Unreadable, num_classes: int) -> Row:
    """An image's row of results.csv."""
    if isinstance(record, Unreadable):
        return [record.image] + [""] * (5 + 2 * num_classes) + [record.error]
    probabilities = [f"{p:.6f}" for p in (record.gate_probability, *record.class_probabilities)]
    counts = [*record.areas, len(record.spots), *record.size]
    return [record.image, str(int(record.defective)), *probabilities, *map(str, counts), ""]


def to_spot_rows(record: Record | Unreadable) -> list[Row]:
    """An image's rows of spots.csv, without its name."""
    if isinstance(record, Unreadable):
        return []
    rows = []
    for spot in record.spots:
        whole = (spot.class_index + 1, spot.area_pixels, *spot.box)
        rows.append([*map(str, whole), *(f"{at:.2f}" for at in spot.centroid), spot.code])
    return rows


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
        self._headers = (head_results(classes), ["image", *_SPOT_COLUMNS], head_submission(form))
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
            spots = [dict(zip(_SPOT_COLUMNS, cells[1:], strict=True)) for cells in groups[0]]
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
        _write_parquet(unfinished, self._classes, self.read())
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
    for row in csv.reader(lines):
        yield row, file.tell()


def build_schema(classes: Sequence[str]) -> "pa.Schema":
    """The types of results.parquet: the columns of results.csv, with the spots themselves in place of their number."""
    import pyarrow as pa

    kinds = {"area_pixels": pa.int64(), "class": pa.int8(), "defective": pa.bool_()}
    kinds |= dict.fromkeys(("left", "top", "width", "height"), pa.int32())
    kinds |= dict.fromkeys(("image", "error", "code"), pa.string())
    spot = pa.struct([(column, kinds.get(column, pa.float64())) for column in _SPOT_COLUMNS])
    kinds["spots"] = pa.list_(spot)
    columns = head_results(classes)
    kinds |= {column: pa.int64() for column in columns if column.startswith("area_pixels_")}
    return pa.schema([(column, kinds.get(column, pa.float64())) for column in columns])


def to_typed(record: Record | Unreadable, schema: "pa.Schema") -> dict[str, Any]:
    """An image's row of results.parquet, with what stands in the tables, no digit more."""
    names = [name for name in schema.names if name.startswith("probability_")]
    row = dict(zip(schema.names, to_row(record, len(names)), strict=True))
    return _type_row(row, [dict(zip(_SPOT_COLUMNS, spot, strict=True)) for spot in to_spot_rows(record)], schema)


def _type_row(row: Mapping[str, str], spots: Sequence[Mapping[str, str]], schema: "pa.Schema") -> dict[str, Any]:
    """Rows of results.csv and spots.csv as a row of results.parquet; an empty cell is null."""
    listed = schema.field("spots").type.value_type
    typed = {field.name: _parse(row[field.name], field.type) for field in schema if field.name != "spots"}
    of_spots = [{field.name: _parse(spot[field.name], field.type) for field in listed} for spot in spots]
    return typed | {"spots": None if row["error"] else of_spots}


def _parse(text: str, kind: "pa.DataType") -> Any:
    import pyarrow.types as of

    if text == "":
        return None
    if of.is_boolean(kind):
        return text == "1"
    return int(text) if of.is_integer(kind) else float(text) if of.is_floating(kind) else text


def to_table(rows: Iterable[Mapping[str, Any]], schema: "pa.Schema") -> "pa.Table":
    """Typed rows as a table."""
    return _read_json("".join(json.dumps(row) + "\n" for row in rows), schema)


def _read_json(text: str, schema: "pa.Schema") -> "pa.Table":
    """A table from a line for each row; from lists pyarrow would make one only after it has loaded pandas."""
    import pyarrow as pa
    from pyarrow import json as arrow_json

    whole = arrow_json.ReadOptions(block_size=len(text) + 1)
    types = arrow_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error")
    return arrow_json.read_json(pa.BufferReader(text.encode()), whole, types) if text else schema.empty_table()


def _write_parquet(path: Path, classes: Sequence[str], images: Iterator[Found]) -> None:
    import pyarrow.parquet as pq

    schema = build_schema(classes)
    with pq.ParquetWriter(path, schema) as writer:
        text = io.StringIO()
        for one in images:
            text.write(json.dumps(_type_row(one.row, one.spots, schema)) + "\n")
            if text.tell() > _GROUP:
                writer.write_table(_read_json(text.getvalue(), schema))
                text = io.StringIO()
        writer.write_table(_read_json(text.getvalue(), schema))


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
