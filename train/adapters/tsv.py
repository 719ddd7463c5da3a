"""Your own log: lines of session, time, query and, if there is one, user, parted by tabs.

The first line may name the columns, in any order; without it they are in the order above. There
is no quoting: a query holds no tab and no line end. Times are ISO 8601, or seconds or milliseconds
since 1970.
"""

from collections.abc import Iterator
from pathlib import Path

from train.adapters.adapter import BadRow, Impression, LeftOut, Search
from train.adapters.lines import header_error, num_columns, read_lines
from train.adapters.times import TimeReader

DESCRIPTION = "your own searches: session, time, query and optionally user, tab separated"
NOTES: tuple[str, ...] = ()
IS_RECONSTRUCTED = False

_COLUMNS = ("session", "time", "query", "user")
_ALIASES = {"session_id": "session", "user_key": "user"}
_EXPECTED = (
    "lines of session, time, query and optionally user, parted by tabs, with or without a header "
    "of these names; time as 2026-03-01T09:30:00 or seconds or milliseconds since 1970"
)


def rows(path: Path, left_out: LeftOut) -> Iterator[Search | Impression]:
    """See `Adapter`."""
    columns: list[int] | None = None  # where session, time, query and perhaps user are
    num_fields = 0
    read_time = TimeReader()
    for number, line in read_lines(path, left_out):
        fields = line.split("\t")
        if columns is None:
            num_fields = len(fields)
            header = _header(fields)
            columns = header or list(range(num_fields))
            if not 3 <= num_fields <= 4:
                raise header_error(path, _EXPECTED, num_columns(fields))
            if header:
                continue
            try:
                TimeReader()(fields[1])
            except BadRow as bad:
                found = f"{num_columns(fields)}, and of the second: {bad}"
                raise header_error(path, _EXPECTED, found) from None
        try:
            if len(fields) != num_fields:
                raise BadRow(f"not {num_fields} columns")
            session, time, query, *user = (fields[i].strip() for i in columns)
            if not session or not query:
                raise BadRow("without session or query")
            yield Search(session, read_time(time), query, user[0] or None if user else None)
        except BadRow as bad:
            left_out.add(str(bad), path, number)


def _header(fields: list[str]) -> list[int] | None:
    """Returns where the columns are, if these fields are their names."""
    names = [_ALIASES.get(f.strip().lower(), f.strip().lower()) for f in fields]
    wanted = _COLUMNS[: len(names)]
    return [names.index(c) for c in wanted] if sorted(names) == sorted(wanted) else None
