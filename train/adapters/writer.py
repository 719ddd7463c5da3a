"""Log tables as parquet files, written in row groups as rows come. Knows nothing of formats."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from train.adapters.adapter import Impression, Search

_ROWS_PER_GROUP = 100_000
_TIME = pa.timestamp("us", tz="UTC")
_SIDE_INFORMATION = pa.list_(pa.struct([("kind", pa.string()), ("text", pa.string())]))
_SEARCHES = pa.schema(
    [
        ("session_id", pa.string()),
        ("time", _TIME),
        ("query", pa.string()),
        ("user_key", pa.string()),
    ]
)
_IMPRESSIONS = pa.schema(
    [
        ("request_id", pa.string()),
        ("time", _TIME),
        ("session_id", pa.string()),
        ("scenario", pa.string()),
        ("query", pa.string()),
        ("position", pa.int32()),
        ("text", pa.string()),
        ("clicked", pa.bool_()),
        ("auxiliary_text", pa.string()),
        ("side_information", _SIDE_INFORMATION),
        ("source", pa.string()),
        ("shown", pa.bool_()),
    ]
)


class TableWriter:
    """One table of rows of one type, at PATH.partial until `publish`; no row, no file."""

    def __init__(
        self, path: Path, kind: type[Search] | type[Impression], metadata: Mapping[str, str]
    ) -> None:
        """Takes the place, which must be free, and what is kept with the table."""
        self.path = path
        self.num_rows = 0
        self._partial = path.with_name(path.name + ".partial")
        self._schema = (_SEARCHES if kind is Search else _IMPRESSIONS).with_metadata(dict(metadata))
        self._constants = () if kind is Search else (None, None, True)
        self._waiting: list[tuple[Any, ...]] = []
        self._writer: pq.ParquetWriter | None = None

    def add(self, row: Search | Impression) -> None:
        """Takes a row."""
        self._waiting.append(row)
        self.num_rows += 1
        if len(self._waiting) == _ROWS_PER_GROUP:
            self._write()

    def finish(self) -> None:
        """Writes what is left to the partial file and closes it."""
        if self._waiting:
            self._write()
        if self._writer is not None:
            self._writer.close()

    def publish(self) -> None:
        """Gives the finished file its name."""
        if self.num_rows:
            self._partial.rename(self.path)

    def discard(self) -> None:
        """Removes the partial file."""
        if self._writer is not None and self._writer.is_open:
            self._writer.close()
        self._partial.unlink(missing_ok=True)

    def _write(self) -> None:
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._partial, self._schema, compression="zstd")
        constants = [[value] * len(self._waiting) for value in self._constants]
        columns = [*map(list, zip(*self._waiting, strict=True)), *constants]
        arrays = [pa.array(c, f.type) for c, f in zip(columns, self._schema, strict=True)]
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema))
        self._waiting.clear()
