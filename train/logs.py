"""The log tables a team brings: opening them with Ibis, and refusing what cannot be used.

    searches      session_id, time, query [, user_key]
    impressions   request_id, time, session_id, scenario, query, side_information, position, text,
                  source, shown, clicked [, user_key, propensity, bundle_id, auxiliary_text]

Each is a parquet file, a directory of parquet files, or a glob. `side_information` is a list of
(kind, text); `position` counts from 1. Knows nothing of what is mined from them.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import ibis
import ibis.expr.datatypes as dt

from train.config import MineConfig

# Ibis types columns by their base class only, so a type checker refuses every expression.
Table: TypeAlias = Any
Backend: TypeAlias = Any
Check = Callable[[dt.DataType], bool]


class _Column(NamedTuple):
    name: str
    wanted: str
    fits: Check
    is_required: bool = True


class LogTables(NamedTuple):
    """Validated tables: exactly the documented columns, absent ones null.

    Ids are strings, times UTC without a zone.
    """

    searches: Table
    impressions: Table | None
    counts_users: bool  # whether user_key is there to be counted; else sessions are


def _is_id(kind: dt.DataType) -> bool:
    return kind.is_string() or kind.is_integer()


def _is_side_information(kind: dt.DataType) -> bool:
    if not isinstance(kind, dt.Array) or not isinstance(kind.value_type, dt.Struct):
        return False
    fields = dict(kind.value_type.items())
    return set(fields) == {"kind", "text"} and all(f.is_string() for f in fields.values())


_ID = "string or integer"
_SEARCHES = (
    _Column("session_id", _ID, _is_id),
    _Column("time", "timestamp", dt.DataType.is_timestamp),
    _Column("query", "string", dt.DataType.is_string),
    _Column("user_key", _ID, _is_id, is_required=False),
)
_IMPRESSIONS = (
    _Column("request_id", _ID, _is_id),
    _Column("time", "timestamp", dt.DataType.is_timestamp),
    _Column("session_id", _ID, _is_id),
    _Column("scenario", "string", dt.DataType.is_string),
    _Column("query", "string", dt.DataType.is_string),
    _Column("side_information", "list of struct(kind string, text string)", _is_side_information),
    _Column("position", "integer", dt.DataType.is_integer),
    _Column("text", "string", dt.DataType.is_string),
    _Column("source", "string", dt.DataType.is_string),
    _Column("shown", "boolean", dt.DataType.is_boolean),
    _Column("clicked", "boolean", dt.DataType.is_boolean),
    _Column("user_key", _ID, _is_id, is_required=False),
    _Column("propensity", "number", dt.DataType.is_numeric, is_required=False),
    _Column("auxiliary_text", "string", dt.DataType.is_string, is_required=False),
)


def connect(settings: MineConfig, spill_directory: Path) -> Backend:
    """Returns a connection to the engine that the settings name; its `disconnect` ends it.

    Raises:
        ValueError: the engine is not installed.
    """
    limits = {
        "memory_limit_mb": settings.memory_limit_mb,
        "num_threads": settings.num_threads,
        "spill_directory": spill_directory,
    }
    if settings.engine == "spark":
        from train.spark import connect as connect_spark

        return connect_spark(master=settings.spark_master, **limits)
    return _connect_duckdb(**limits)


def _connect_duckdb(*, memory_limit_mb: int, num_threads: int, spill_directory: Path) -> Backend:
    """Returns a DuckDB connection that spills to disk rather than outgrow its memory."""
    config: dict[str, object] = {
        # The rest is for what DuckDB does not count: Python, Arrow, its own readers.
        "memory_limit": f"{memory_limit_mb * 4 // 5}MB",
        "temp_directory": str(spill_directory),
        "preserve_insertion_order": False,  # tables are sets here; what is written is sorted
        "autoinstall_known_extensions": False,  # nothing is fetched from the network
    }
    if num_threads:
        config["threads"] = num_threads
    return ibis.duckdb.connect(**config)


def open_tables(connection: Backend, *, searches: str, impressions: str) -> LogTables:
    """Opens and checks the tables; `impressions` may be empty where there is no such log.

    Raises:
        ValueError: files that cannot be read, missing columns, wrong types, no rows, no clicks,
            positions below 1; the message names them all.
    """
    errors: list[str] = []
    searched = _open(connection, "searches", searches, _SEARCHES, errors)
    shown = None
    if impressions:
        shown = _open(connection, "impressions", impressions, _IMPRESSIONS, errors)
    if errors or searched is None:
        raise ValueError("; ".join(errors))
    checks = [_checked("searches", searched, errors)]
    if shown is not None:
        found = _checked(
            "impressions",
            shown,
            errors,
            num_clicks=(shown.shown & shown.clicked).sum(),
            num_low=(shown.position < 1).sum(),
        )
        checks.append(found)
        if found["num_rows"] and not found["num_clicks"]:
            errors.append(
                "table impressions has no clicks (rows with shown and clicked true): "
                "leave logs.impressions empty to train without a click model"
            )
        if found["num_low"]:
            errors.append(f"table impressions has {found['num_low']} rows with position < 1")
    if errors:
        raise ValueError("; ".join(errors))
    return LogTables(searched, shown, all(found["num_user_keys"] for found in checks))


def _checked(name: str, table: Table, errors: list[str], **sums: Any) -> dict[str, int]:
    """Returns counts and sums over a table, all in one pass; no rows are an error."""
    counts = {"num_rows": table.count(), "num_user_keys": table.user_key.count(), **sums}
    row = table.agg(**counts).to_pyarrow().to_pylist()[0]
    if not row["num_rows"]:
        errors.append(f"table {name} has no rows")
    return {key: int(value or 0) for key, value in row.items()}


def _open(
    connection: Backend, name: str, place: str, columns: tuple[_Column, ...], errors: list[str]
) -> Table | None:
    path = Path(place)
    pattern = str(path / "*.parquet") if path.is_dir() else place
    if not path.exists() and not any(c in place for c in "*?["):
        errors.append(f"table {name}: there is no {place}")
        return None
    try:
        table = connection.read_parquet(pattern)
        schema = table.schema()
    except Exception as error:  # DuckDB's error types differ between its releases
        reason = str(error).strip().splitlines()[0]
        errors.append(f"table {name}: {place} cannot be read as parquet: {reason}")
        return None
    missing = [c.name for c in columns if c.is_required and c.name not in schema]
    if missing:
        errors.append(f"table {name} misses the columns {', '.join(missing)}")
    wrong = [c for c in columns if c.name in schema and not c.fits(schema[c.name])]
    errors += [
        f"table {name}: column {c.name} is {schema[c.name]}, must be {c.wanted}" for c in wrong
    ]
    if missing or wrong:
        return None
    return table.select(**{c.name: _column(table, c, schema) for c in columns})


def _column(table: Table, column: _Column, schema: ibis.Schema) -> Any:
    kind = {_ID: "string", "number": "float64", "timestamp": "timestamp(6)"}.get(column.wanted)
    if column.name not in schema:
        return ibis.null(kind or "string")
    return table[column.name].cast(kind) if kind else table[column.name]
