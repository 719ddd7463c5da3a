"""The log tables a team brings: opening them with Ibis, and refusing what cannot be used.

    searches      session_id, time, query [, user_key]
    impressions   request_id, time, session_id, scenario, query, side_information, position, text,
                  source, shown, clicked [, user_key, propensity, bundle_id, auxiliary_text]

Each is a parquet file, a directory of parquet files, a glob, or several of these, whose columns
may differ in what is optional; the files of one place may not. `side_information` is a list of
(kind, text); `position` counts from 1; an empty id is none. Knows nothing of what is mined from
them.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ibis
import ibis.expr.datatypes as dt

from train.mining.checks import check_impressions, check_searches, num_shared_requests
from train.mining.failures import first_line, told_without_values
from train.mining.parquet import Backend, Table, difference, open_files
from train.mining.places import files_of, files_of_several, missing
from train.settings import MineConfig, Places, places_of

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
    warnings: list[str]  # what is odd of them, though not refused


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
        ValueError: files that cannot be read or differ within a place, missing columns, wrong
            types, no rows, no clicks, impossible times, positions or propensities, files or
            requests in two places, requests of two panels, positions with several rows; the
            message names them all.
    """
    with told_without_values(searches, impressions):
        return _open_tables(connection, searches, impressions)


def _open_tables(connection: Backend, searches: Places, impressions: Places) -> LogTables:
    errors: list[str] = []
    searched = _opened(connection, "searches", places_of(searches), _SEARCHES, errors)
    shown = _opened(connection, "impressions", places_of(impressions), _IMPRESSIONS, errors)
    if errors or searched is None:
        raise ValueError("; ".join(errors))
    found = [check_searches(searched, _files_of(searches))]
    if shown is not None:
        found.append(check_impressions(shown, _files_of(impressions)))
    if errors := [error for findings in found for error in findings.errors]:
        raise ValueError("; ".join(errors))
    return LogTables(
        searched,
        shown,
        counts_users=found[0].num_users > 0,
        counts_viewers=shown is not None and found[1].num_users > 0,
        warnings=[warning for findings in found for warning in findings.warnings],
    )


def _files_of(places: Places) -> list[Path]:
    return [file for place in places_of(places) for file in files_of(place)]


def open_impressions(connection: Backend, places: Places) -> Table:
    """Opens the table of impressions alone, as `open_tables` gives it, without counting rows.

    Those without a position up to `MAX_POSITION` are left out.

    Raises:
        ValueError: files that cannot be read or differ within a place, missing columns, wrong
            types.
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
    files = files_of(place)
    if not files:
        errors.append(f"table {name}: {missing(place)}")
        return None
    try:
        differing = difference(files, [c.name for c in columns])
    except ValueError as error:
        differing = str(error)
    if differing:
        errors.append(f"table {name}: {differing}")
        return None
    try:
        table = open_files(connection, files)
        schema = table.schema()
    except Exception as error:  # DuckDB's error types differ between its releases
        errors.append(f"table {name}: {place} cannot be read as parquet: {first_line(error)}")
        return None
    absent = [c.name for c in columns if c.is_required and c.name not in schema]
    if absent:
        errors.append(f"table {name} misses the columns {', '.join(absent)}")
    wrong = [c for c in columns if c.name in schema and not c.fits(schema[c.name])]
    errors += [
        f"table {name}: column {c.name} is {schema[c.name]}, must be {c.wanted}" for c in wrong
    ]
    if absent or wrong:
        return None
    return table.select(**{c.name: _column(table, c, schema) for c in columns})


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
