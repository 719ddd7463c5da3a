"""The log tables as parquet: `searches` and `impressions`. It knows only their columns.

Columns are those that a search team brings; `auxiliary_text` (the question above clarification
options, null elsewhere) is one more. Rows of `searches` are ordered by time, rows of `impressions`
by time and position. Every row is simulated: the files' metadata says so.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

SEARCHES_NAME, IMPRESSIONS_NAME = "searches.parquet", "impressions.parquet"
_TIME = pa.timestamp("us", tz="UTC")
_METADATA = {"queryrec.simulated": "true"}

SEARCHES = pa.schema(
    [
        pa.field("session_id", pa.string(), nullable=False),
        pa.field("time", _TIME, nullable=False),
        pa.field("query", pa.string(), nullable=False),
        pa.field("user_key", pa.string()),
    ],
    metadata=_METADATA,
)
SIDE_INFORMATION = pa.list_(pa.struct([("kind", pa.string()), ("text", pa.string())]))
IMPRESSIONS = pa.schema(
    [
        pa.field("request_id", pa.string(), nullable=False),
        pa.field("time", _TIME, nullable=False),
        pa.field("session_id", pa.string(), nullable=False),
        pa.field("scenario", pa.string(), nullable=False),
        pa.field("query", pa.string(), nullable=False),
        pa.field("side_information", SIDE_INFORMATION),
        pa.field("position", pa.int32(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("shown", pa.bool_(), nullable=False),
        pa.field("clicked", pa.bool_(), nullable=False),
        pa.field("user_key", pa.string()),
        pa.field("propensity", pa.float32()),
        pa.field("bundle_id", pa.string()),
        pa.field("auxiliary_text", pa.string()),
    ],
    metadata=_METADATA,
)


def write(columns: dict[str, list | pa.Array], schema: pa.Schema, path: Path) -> None:
    """Writes columns (name -> values, all of one length) as one parquet file."""
    arrays = [
        columns[field.name]
        if isinstance(columns[field.name], pa.Array)
        else pa.array(columns[field.name], type=field.type)
        for field in schema
    ]
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), path, compression="zstd")
