"""results.parquet: results.csv and spots.csv as one typed table, with a list of spots in each image's row."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import json as arrow_json
from pyarrow import types

from steel.inspection.records import SPOT_COLUMNS, Record, Row, Unreadable, to_rows

# A row group is written once its rows exceed this many characters of JSON.
_GROUP_CHARACTERS = 4_000_000


def build_schema(columns: Row) -> pa.Schema:
    """Build the schema of results.parquet: the columns of results.csv, with a list of spots instead of their number."""
    kinds = {"area_pixels": pa.int64(), "class": pa.int8(), "defective": pa.bool_(), "unknown": pa.bool_()}
    kinds |= dict.fromkeys(("left", "top", "width", "height"), pa.int32())
    kinds |= dict.fromkeys(("image", "error", "code", "unknown_code"), pa.string())
    spot = pa.struct([(column, kinds.get(column, pa.float64())) for column in SPOT_COLUMNS])
    kinds["spots"] = pa.list_(spot)
    kinds |= {column: pa.int64() for column in columns if column.startswith("area_pixels_")}
    return pa.schema([(column, kinds.get(column, pa.float64())) for column in columns])


def to_table(records: Iterable[Record | Unreadable], schema: pa.Schema) -> pa.Table:
    """Convert records to an Arrow table with the rounded values of the CSV files."""
    return _parse_lines("".join(_to_line(record, schema) for record in records), schema)


def write_parquet(path: Path, schema: pa.Schema, records: Iterator[Record | Unreadable]) -> None:
    """Write records to a Parquet file in groups, so that any number of them fits into memory."""
    with pq.ParquetWriter(path, schema) as writer:
        text = ""
        for record in records:
            text += _to_line(record, schema)
            if len(text) > _GROUP_CHARACTERS:
                writer.write_table(_parse_lines(text, schema))
                text = ""
        writer.write_table(_parse_lines(text, schema))


def _to_line(record: Record | Unreadable, schema: pa.Schema) -> str:
    result, spots = to_rows(record, len(schema))
    fields = schema.field("spots").type.value_type
    typed = None if isinstance(record, Unreadable) else [_to_typed(spot, fields) for spot in spots]
    return json.dumps(_to_typed(result, schema) | {"spots": typed}) + "\n"


def _to_typed(cells: Row, fields: Any) -> dict[str, Any]:
    return {field.name: _parse_cell(cell, field.type) for cell, field in zip(cells, fields, strict=True)}


def _parse_cell(text: str, kind: pa.DataType) -> Any:
    if text == "":
        return None
    if types.is_boolean(kind):
        return text == "1"
    return int(text) if types.is_integer(kind) else float(text) if types.is_floating(kind) else text


def _parse_lines(text: str, schema: pa.Schema) -> pa.Table:
    """Parse one JSON object per line. `pyarrow.Table.from_pylist` would load pandas."""
    whole = arrow_json.ReadOptions(block_size=len(text) + 1)
    parse = arrow_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error")
    return arrow_json.read_json(pa.BufferReader(text.encode()), whole, parse) if text else schema.empty_table()
