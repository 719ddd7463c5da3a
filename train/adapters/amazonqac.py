"""AmazonQAC: searches of an online shop with what was typed before, parquet or JSON lines.

Source: Everaert et al., "AmazonQAC", EMNLP 2024 Industry Track, and the card of the data set. A
row is one search. Its `popularity` is how often the term was searched in the log that the data
were drawn from, the same in each of the term's rows, so it is no weight of a row and not used.
What was suggested is not in the data: no impressions.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from train.adapters.adapter import BadRow, Impression, LeftOut, Search
from train.adapters.lines import header_error, read_lines, reading, starts_with
from train.adapters.times import TimeReader

DESCRIPTION = "AmazonQAC, its training split: parquet or JSON lines"
NOTES: tuple[str, ...] = (
    "popularity counts a term over the whole log and is repeated in its rows: not used",
    "what was suggested is not in the data: no impressions",
    "typed prefixes are not used: training cuts queries at random",
)
IS_RECONSTRUCTED = False

_PARQUET = b"PAR1"
_BATCH_ROWS = 20_000


class _Row(msgspec.Struct):
    query_id: msgspec.Raw
    session_id: str | int
    prefixes: msgspec.Raw
    first_prefix_typed_time: msgspec.Raw
    final_search_term: str | None
    search_time: str
    popularity: msgspec.Raw


_COLUMNS = [field.name for field in msgspec.structs.fields(_Row)]
_USED = ("session_id", "search_time", "final_search_term")
_EXPECTED = f"the columns {', '.join(_COLUMNS)}"


def rows(path: Path, left_out: LeftOut) -> Iterator[Search | Impression]:
    """See `Adapter`."""
    with reading(path):
        is_parquet = starts_with(path, _PARQUET)
    found = _from_parquet(path) if is_parquet else _from_json(path, left_out)
    read_time = TimeReader()
    for number, row in found:
        try:
            if row is None:
                raise BadRow("not JSON with the columns of the first line")
            session, time, query = row
            if session in (None, "") or not query:
                raise BadRow("without session_id or final_search_term")
            time_us = time if isinstance(time, int) else read_time(time or "")
            yield Search(str(session), time_us, query, None)
        except BadRow as bad:
            left_out.add(str(bad), path, number)


_Fields = tuple[str | int | None, str | int | None, str | None]  # session, time, query


def _from_json(path: Path, left_out: LeftOut) -> Iterator[tuple[int, _Fields | None]]:
    decoder = msgspec.json.Decoder(_Row)
    is_first = True
    for number, line in read_lines(path, left_out):
        try:
            row = decoder.decode(line)
        except msgspec.MsgspecError as error:
            if is_first:
                expected = f"parquet, or JSON lines, with {_EXPECTED}"
                raise header_error(path, expected, f"is not that: {error}") from None
            yield number, None
            continue
        is_first = False
        yield number, (row.session_id, row.search_time, row.final_search_term)


def _from_parquet(path: Path) -> Iterator[tuple[int, _Fields | None]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with reading(path), pq.ParquetFile(path) as file:
            kinds = _checked_kinds(path, file.schema_arrow)
            number = 0
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=list(_USED)):
                sessions, times, queries = (batch.column(name) for name in _USED)
                if pa.types.is_timestamp(times.type):
                    zone = kinds["search_time"].tz
                    times = times.cast(pa.timestamp("us", tz=zone), safe=False).cast(pa.int64())
                columns = (c.to_pylist() for c in (sessions, times, queries))
                for fields in zip(*columns, strict=True):
                    number += 1
                    yield number, fields
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as parquet ({error})") from None


def _checked_kinds(path: Path, schema: Any) -> dict[str, Any]:
    """Returns the types of the columns that are used."""
    from pyarrow import types

    missing = [c for c in _COLUMNS if c not in schema.names]
    if missing:
        raise ValueError(f"{path}: misses {', '.join(missing)}; expected {_EXPECTED}")
    kinds = {name: schema.field(name).type for name in _USED}
    texts = {n for n, k in kinds.items() if types.is_string(k) or types.is_large_string(k)}
    texts |= {"session_id"} if types.is_integer(kinds["session_id"]) else set()
    texts |= {"search_time"} if types.is_timestamp(kinds["search_time"]) else set()
    if texts != set(_USED):
        found = ", ".join(f"{n} {k}" for n, k in kinds.items())
        raise ValueError(
            f"{path}: its columns are {found}; all must be strings, but for session_id, which may "
            "be an integer, and search_time, which may be a timestamp"
        )
    return kinds
