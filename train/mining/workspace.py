"""Runs Ibis expressions on DuckDB or Spark and keeps their results as parquet.

What Python must see of a large result, it reads from those files batch by batch, so memory does
not grow with the log. Knows nothing of what is mined.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from train.mining.parquet import Table, open_files

_BATCH_ROWS = 50_000
Transform = Callable[[Iterable[pa.RecordBatch]], Iterable[pa.RecordBatch]]


class Workspace(NamedTuple):
    """A connection and the directory of its intermediate results."""

    connection: Any  # an Ibis backend
    directory: Path

    def keep(self, name: str, expression: Table) -> Table:
        """Runs an expression and returns its kept result; names must not be used twice."""
        path = self.directory / f"{name}.parquet"
        expression.to_parquet(path)
        return self.read(path)

    def read(self, path: Path) -> Table:
        """Returns a parquet file, or a directory of them, as a table."""
        return open_files(self.connection, [path])

    def write(self, expression: Table, path: Path) -> Table:
        """Writes a result as one file, in the expression's order, and returns it as a table."""
        parts = self.directory / f"{path.stem}.ordered.parquet"
        expression.to_parquet(parts)
        if parts.is_dir():  # Spark: one part after the other, each sorted
            schema = _plain(pq.read_schema(_files(parts)[0]))
            with pq.ParquetWriter(path, schema) as writer:
                for batch in _batches(parts):
                    writer.write_batch(batch.cast(schema))
        else:
            parts.replace(path)
        return self.read(path)

    def map(self, name: str, expression: Table, schema: pa.Schema, transform: Transform) -> Table:
        """Passes a result through Python and returns what comes out, kept under a name."""
        self.keep(f"{name}.input", expression)
        path = self.directory / f"{name}.parquet"
        with pq.ParquetWriter(path, schema) as writer:
            for batch in transform(_batches(self.directory / f"{name}.input.parquet")):
                writer.write_batch(batch)
        return self.read(path)


def _plain(schema: pa.Schema) -> pa.Schema:
    """Returns a schema of Spark's as DuckDB has it: nothing required, times in UTC without zone."""
    return pa.schema(
        (f.name, pa.timestamp("us") if pa.types.is_timestamp(f.type) else f.type) for f in schema
    )


def _files(path: Path) -> list[Path]:
    return sorted(path.glob("part-*")) if path.is_dir() else [path]


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    for file in _files(path):
        with pq.ParquetFile(file) as opened:
            yield from opened.iter_batches(_BATCH_ROWS)
