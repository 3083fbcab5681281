"""results.parquet: results.csv and spots.csv as one typed table."""

import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa
from steel.inspection.records import SPOT_COLUMNS, Found, Record, Unreadable, head_results, to_row, to_spot_rows

# Letters of a Parquet file that are held at a time.
_GROUP = 4_000_000


def build_schema(classes: Sequence[str]) -> "pa.Schema":
    """The types of results.parquet: the columns of results.csv, with the spots themselves in place of their number."""
    import pyarrow as pa

    kinds = {"area_pixels": pa.int64(), "class": pa.int8(), "defective": pa.bool_()}
    kinds |= dict.fromkeys(("left", "top", "width", "height"), pa.int32())
    kinds |= dict.fromkeys(("image", "error", "code"), pa.string())
    spot = pa.struct([(column, kinds.get(column, pa.float64())) for column in SPOT_COLUMNS])
    kinds["spots"] = pa.list_(spot)
    columns = head_results(classes)
    kinds |= {column: pa.int64() for column in columns if column.startswith("area_pixels_")}
    return pa.schema([(column, kinds.get(column, pa.float64())) for column in columns])


def to_typed(record: Record | Unreadable, schema: "pa.Schema") -> dict[str, Any]:
    """An image's row of results.parquet, with what stands in the tables, no digit more."""
    names = [name for name in schema.names if name.startswith("probability_")]
    row = dict(zip(schema.names, to_row(record, len(names)), strict=True))
    return _type_row(row, [dict(zip(SPOT_COLUMNS, spot, strict=True)) for spot in to_spot_rows(record)], schema)


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


def write_parquet(path: Path, classes: Sequence[str], images: Iterator[Found]) -> None:
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
