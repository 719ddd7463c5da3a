"""Opens parquet files as one table of an engine, and tells whether they have the same columns.

Columns come from the files alone, never from `name=value` in their paths. Knows nothing of what
the columns mean.
"""

import glob
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

Table: TypeAlias = Any
Backend: TypeAlias = Any

_IMPORT = b"queryrec.import"  # in the metadata of tables that `queryrec-train import` wrote


def open_files(connection: Backend, files: Sequence[Path]) -> Table:
    """Returns parquet files, or a directory that Spark wrote, as one table.

    Args:
        connection: of DuckDB or Spark.
        files: any names; all with the same columns. See `difference`.
    """
    if connection.name == "pyspark":
        from train.mining.spark import open_groups

        groups: dict[tuple[str, ...], list[Path]] = {}
        for file in files:
            groups.setdefault(_in_nanoseconds(file), []).append(file)
        return open_groups(connection, groups)
    patterns = [glob.escape(str(file)) for file in files]
    return connection.read_parquet(patterns, hive_partitioning=False)


def difference(files: Sequence[Path], columns: Collection[str]) -> str:
    """Returns where files differ in these columns, which an engine would not tell; "" if nowhere.

    Engines take the first file's columns for those of all: what only others have is ignored, and
    other types are converted. Only the files' ends are read.

    Raises:
        ValueError: a file cannot be read as parquet.
    """
    first = files[0]
    expected = _kinds(first, columns)
    for file in files[1:]:
        found = _kinds(file, columns)
        for name in columns:
            kinds = expected.get(name, "missing"), found.get(name, "missing")
            if kinds[0] != kinds[1]:
                return (
                    "files of one place differ in their columns: "
                    f"{name} is {kinds[0]} in {first}, {kinds[1]} in {file}; make them alike, or "
                    "name each in a list"
                )
    return ""


def is_import(file: Path) -> bool:
    """Returns whether `queryrec-train import` wrote a parquet file."""
    return _IMPORT in (pq.read_schema(file).metadata or {})


def _in_nanoseconds(file: Path) -> tuple[str, ...]:
    """Returns the columns of times in nanoseconds."""
    if file.is_dir():
        return ()  # Spark writes none
    schema = pq.read_metadata(file).schema
    kinds = {c.path: c.logical_type for c in map(schema.column, range(len(schema)))}
    return tuple(
        name
        for name, kind in kinds.items()
        if kind.type == "TIMESTAMP" and "nanoseconds" in kind.to_json()
    )


def _kinds(file: Path, columns: Collection[str]) -> dict[str, str]:
    try:
        schema = pq.read_schema(file)
    except (OSError, pa.ArrowException) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{file} cannot be read as parquet: {reason}") from None
    return {field.name: _kind(field.type) for field in schema if field.name in columns}


def _kind(column: pa.DataType) -> str:
    """Returns a type as engines read it: Arrow has several of texts, lists and times."""
    kind = pa.types
    if kind.is_dictionary(column):
        return _kind(column.value_type)
    if kind.is_string(column) or kind.is_large_string(column) or kind.is_string_view(column):
        return "string"
    if kind.is_timestamp(column):
        return "timestamp with a zone" if column.tz else "timestamp without a zone"
    if kind.is_list(column) or kind.is_large_list(column):
        return f"list of {_kind(column.value_type)}"
    if kind.is_struct(column):
        return f"struct({', '.join(f'{f.name} {_kind(f.type)}' for f in column)})"
    return str(column)
