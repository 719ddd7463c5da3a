"""The log tables a team brings: opening them with Ibis, and refusing what cannot be used.

    searches      session_id, time, query [, user_key]
    impressions   request_id, time, session_id, scenario, query, side_information, position, text,
                  source, shown, clicked [, user_key, propensity, bundle_id, auxiliary_text]

Each is a parquet file, a directory of parquet files, a glob, or several of these, whose columns
may differ in what is optional. `side_information` is a list of (kind, text); `position` counts
from 1; an empty id is none. Knows nothing of what is mined from them.
"""

import glob
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import ibis
import ibis.expr.datatypes as dt

from train.mining.checks import counted, files_of_several, num_mixed_requests, num_shared_requests
from train.mining.failures import told_without_values
from train.settings import MineConfig, Places, places_of

# Ibis types columns by their base class only, so a type checker refuses every expression.
Table: TypeAlias = Any
Backend: TypeAlias = Any
Check = Callable[[dt.DataType], bool]

# What is shown further down is no panel that anybody looks through, but a mistake of the log.
MAX_POSITION = 1000


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
    counts_users: bool  # whether searches have a user_key to be counted; else sessions are
    counts_viewers: bool  # the same of impressions; false without them


def _is_id(kind: dt.DataType) -> bool:
    return kind.is_string() or kind.is_integer()


def _is_side_information(kind: dt.DataType) -> bool:
    if not isinstance(kind, dt.Array) or not isinstance(kind.value_type, dt.Struct):
        return False
    fields = dict(kind.value_type.items())
    return set(fields) == {"kind", "text"} and all(f.is_string() for f in fields.values())


_ID = "string or integer"
_SIDE_INFORMATION = "list of struct(kind string, text string)"
# What columns become, so that tables of several places are of one type.
_TYPES = {
    _ID: "string",
    "number": "float64",
    "integer": "int64",
    "timestamp": "timestamp(6)",
    _SIDE_INFORMATION: "array<struct<kind: string, text: string>>",
}
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
    _Column("side_information", _SIDE_INFORMATION, _is_side_information),
    _Column("position", "integer", dt.DataType.is_integer),
    _Column("text", "string", dt.DataType.is_string),
    _Column("source", "string", dt.DataType.is_string),
    _Column("shown", "boolean", dt.DataType.is_boolean),
    _Column("clicked", "boolean", dt.DataType.is_boolean),
    _Column("user_key", _ID, _is_id, is_required=False),
    _Column("propensity", "number", dt.DataType.is_numeric, is_required=False),
    _Column("bundle_id", _ID, _is_id, is_required=False),
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
        from train.mining.spark import connect as connect_spark

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


def open_tables(connection: Backend, *, searches: Places, impressions: Places) -> LogTables:
    """Opens and checks the tables; `impressions` may be empty where there is no such log.

    Args:
        connection: of DuckDB.
        searches: one place or several; a file must not be in two of them.
        impressions: the same; a request must not occur in two places either.

    Raises:
        ValueError: files that cannot be read, missing columns, wrong types, no rows, no clicks,
            positions below 1, files or requests in two places, requests of two panels; the message
            names them all.
    """
    with told_without_values(searches, impressions):
        return _open_tables(connection, searches, impressions)


def _open_tables(connection: Backend, searches: Places, impressions: Places) -> LogTables:
    errors: list[str] = []
    searched = _opened(connection, "searches", places_of(searches), _SEARCHES, errors)
    shown = _opened(connection, "impressions", places_of(impressions), _IMPRESSIONS, errors)
    if errors or searched is None:
        raise ValueError("; ".join(errors))
    num_searches, num_users = counted(searched)
    if not num_searches:
        errors.append("table searches has no rows")
    num_viewers = 0
    if shown is not None:
        num_rows, num_viewers, num_clicks, num_low = counted(
            shown, (shown.shown & shown.clicked).sum(), (shown.position < 1).sum()
        )
        if not num_rows:
            errors.append("table impressions has no rows")
        elif not num_clicks:
            errors.append(
                "table impressions has no clicks (rows with shown and clicked true): "
                "leave logs.impressions empty to train without a click model"
            )
        if num_low:
            errors.append(f"table impressions has {num_low} rows with position < 1")
        num_mixed = num_mixed_requests(shown)
        if num_mixed:
            errors.append(
                f"table impressions: {num_mixed} request_ids stand for several panels, with more "
                "than one scenario or query: give each panel an id of its own, such as that of "
                "the page with the scenario added to it"
            )
    if errors:
        raise ValueError("; ".join(errors))
    return LogTables(searched, shown, num_users > 0, num_viewers > 0)


def open_impressions(connection: Backend, places: Places) -> Table:
    """Opens the table of impressions alone, as `open_tables` gives it, without counting rows.

    Those without a position up to `MAX_POSITION` are left out.

    Raises:
        ValueError: files that cannot be read, missing columns, wrong types.
    """
    errors: list[str] = []
    table = _opened(connection, "impressions", places_of(places), _IMPRESSIONS, errors)
    if errors or table is None:
        raise ValueError("; ".join(errors))
    return table.filter(table.position <= MAX_POSITION)


def _opened(
    connection: Backend,
    name: str,
    places: list[str],
    columns: tuple[_Column, ...],
    errors: list[str],
) -> Table | None:
    """Returns the tables of all places as one; none without places or with errors."""
    tables: list[Table] = []
    errors += [
        f"table {name}: {file} is in more than one of {', '.join(places)}"
        for file in files_of_several(places)
    ]
    for place in places:
        called = f"{name} ({place})" if len(places) > 1 else name
        table = _open(connection, called, place, columns, errors)
        if table is not None:
            tables.append(table)
    if not tables or errors:
        return None
    if len(tables) > 1 and "request_id" in tables[0].columns:
        num_shared = num_shared_requests(tables)
        if num_shared:
            errors.append(
                f"table {name}: {num_shared} request_ids occur in more than one of "
                f"{', '.join(places)}: they overlap, or ids are not unique"
            )
    return ibis.union(*tables) if len(tables) > 1 else tables[0]


def _open(
    connection: Backend, name: str, place: str, columns: tuple[_Column, ...], errors: list[str]
) -> Table | None:
    path = Path(place)
    pattern = as_pattern(connection, path) if path.exists() else place
    pattern += "/*.parquet" if path.is_dir() else ""
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


def as_pattern(connection: Backend, path: Path) -> str:
    """Returns the pattern that fits a path alone, whatever characters are in its name."""
    if connection.name == "pyspark":
        return re.sub(r"([\\*?\[\]{}])", r"\\\1", str(path))
    return glob.escape(str(path))


def _column(table: Table, column: _Column, schema: ibis.Schema) -> Any:
    kind = _TYPES.get(column.wanted, column.wanted)
    if column.name not in schema:
        return ibis.null(kind)
    value = table[column.name]
    if column.wanted == _ID:
        return value.cast(kind).nullif("")
    if column.wanted == _SIDE_INFORMATION:  # the order of the fields may differ
        return value.map(lambda item: ibis.struct({"kind": item["kind"], "text": item["text"]}))
    return value.cast(kind)
