"""From the feedback log to the table of impressions that training reads.

Knows nothing of how events are stored durably, nor of what is learnt from the table. Tokens hold
all that a row needs, so neither keys nor the server that answered are asked.
"""

import functools
import importlib
import os
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from engine.feedback.attribution import AttributionToken, Source
from engine.feedback.events import Kind
from engine.feedback.segments import as_line, read_events, sync_directory

ATTRIBUTION_WINDOW_S = 30 * 60.0

_CLOCK_SKEW_S = 300.0  # a caller's clock may run this much behind the server's
_BUCKET_MS = 3_600_000
_MAX_BUFFERED_BYTES = 64 << 20
_ROWS_PER_WRITE = 100_000
_SOURCE_NAMES = {
    Source.LOG: "log",
    Source.GENERATED: "generated",
    Source.LOG | Source.GENERATED: "both",
}


class ImpressionCounts(NamedTuple):
    """What ``to_impressions`` wrote, and what it left out."""

    num_rows: int
    num_requests: int
    num_shown: int
    num_clicked: int
    num_late_clicks: int  # outside the attribution window, hence not joined
    num_cut_texts: int  # positions without a row, because the token had no room for their text


def to_impressions(
    paths: Iterable[Path], destination: Path, *, window_s: float = ATTRIBUTION_WINDOW_S
) -> ImpressionCounts:
    """Writes the events of the segments as a table of impressions (parquet).

    One row for each (request_id, position) of every response that has an event, in order of
    request time: ``clicked`` if a click in time arrived for it, ``shown`` if that did, or else an
    impression or a dismissal but no click at another time: such a position was neither clicked in
    time nor passed over. ``time`` is that of the response, in UTC; ``source`` is
    "log", "generated" or "both"; ``session_id`` is null where the caller gave none,
    ``auxiliary_text`` where nothing led in; ``side_information`` is empty where all that the caller
    told was public, and else null: tokens do not carry it. Positions whose text the token had no
    room for are left out and counted, clicks on them included: a text nobody knows teaches nothing.
    Appears at ``destination`` whole or not at all, readable by its owner alone.

    An event may arrive in any segment, however late, so events are first parted by the hour of
    their response into temporary files beside ``destination``, as large as the segments together.
    Memory holds 64 MiB of events, then the responses of two hours at most. An event sent again has
    the same token, hence the same hour: it counts once.

    Args:
        paths: Segments, oldest first.
        destination: File to write; replaced if it exists.
        window_s: How long after its response a click still counts, in seconds.

    Raises:
        ValueError: ``window_s`` is not positive.
        OSError: A segment cannot be read, or the table not be written.
    """
    if not window_s > 0:
        raise ValueError(f"window_s is {window_s}; it must be above 0")
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=f".{destination.name}.", dir=destination.parent
    ) as scratch:
        partial = Path(scratch) / "table.parquet"
        hours = _by_hour(paths, Path(scratch))
        counts = _write_parquet((_responses(hour, window_s) for hour in hours), partial)
        partial.chmod(0o600)  # user keys and queries as typed
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.replace(destination)
    sync_directory(destination.parent)
    return counts


class _Response:
    """What became of one response."""

    __slots__ = ("clicked", "clicked_late", "num_late_clicks", "seen", "token", "user_key")

    def __init__(self, token: AttributionToken) -> None:
        self.token = token
        self.user_key: str | None = None
        self.seen: set[int] = set()
        self.clicked: set[int] = set()
        self.clicked_late: set[int] = set()
        self.num_late_clicks = 0

    def rows(self) -> Iterator[dict[str, object]]:
        token = self.token
        shown = (self.seen - self.clicked_late) | self.clicked
        for position, suggestion in enumerate(token.suggestions, start=1):
            if suggestion.text is None:
                continue
            yield {
                "request_id": token.request_id,
                "time": token.time_unix_ms * 1000,
                "session_id": token.session_id or None,  # many unknown ones are not one session
                "scenario": token.scenario,
                "query": token.query,
                "side_information": [] if token.is_public else None,  # None: not known
                "position": position,
                "text": suggestion.text,
                "source": _SOURCE_NAMES.get(suggestion.sources),
                "shown": position in shown,
                "clicked": position in self.clicked,
                "user_key": self.user_key,
                "propensity": suggestion.propensity,
                "bundle_id": token.bundle_id,
                "auxiliary_text": token.auxiliary_text or None,
            }


def _by_hour(paths: Iterable[Path], directory: Path) -> list[Path]:
    """Parts the events by the hour of their response; returns a file per hour, oldest first."""
    files: dict[int, Path] = {}
    waiting: defaultdict[int, bytearray] = defaultdict(bytearray)
    num_waiting_bytes = 0

    def flush() -> None:
        for hour, lines in waiting.items():
            files[hour] = directory / f"{hour}.jsonl"
            with files[hour].open("ab") as file:
                file.write(lines)
        waiting.clear()

    opened = _token_opener()
    for event in read_events(paths, keep_duplicates=True):
        line = as_line(event)
        waiting[opened(event.token).time_unix_ms // _BUCKET_MS] += line
        num_waiting_bytes += len(line)
        if num_waiting_bytes >= _MAX_BUFFERED_BYTES:
            flush()
            num_waiting_bytes = 0
    flush()
    return [files[hour] for hour in sorted(files)]


def _responses(path: Path, window_s: float) -> list[_Response]:
    """Returns the responses that one file's events belong to, oldest first."""
    responses: dict[str, _Response] = {}
    opened = _token_opener()
    for event in read_events([path]):
        token = opened(event.token)
        response = responses.setdefault(token.request_id, _Response(token))
        response.user_key = response.user_key or event.user_key
        delay_s = (event.time_unix_ms - token.time_unix_ms) / 1000
        if event.kind is Kind.CLICK and not -_CLOCK_SKEW_S <= delay_s <= window_s:
            response.num_late_clicks += 1
            response.clicked_late.add(event.position)
        elif event.kind is Kind.CLICK:
            response.clicked.add(event.position)
        else:
            response.seen.add(event.position)
    return sorted(responses.values(), key=lambda r: (r.token.time_unix_ms, r.token.request_id))


def _token_opener() -> Callable[[str], AttributionToken]:
    # A response's events, a dozen or so, come close together: opening is most of the time.
    return functools.lru_cache(maxsize=1024)(AttributionToken.open_unverified)


def _write_parquet(hours: Iterable[list[_Response]], path: Path) -> ImpressionCounts:
    # pyarrow ships no types, and only this function needs it.
    pa: Any = importlib.import_module("pyarrow")
    pq: Any = importlib.import_module("pyarrow.parquet")
    side_information = pa.list_(pa.struct([("kind", pa.string()), ("text", pa.string())]))
    schema = pa.schema(
        [
            ("request_id", pa.string()),
            ("time", pa.timestamp("us", tz="UTC")),
            ("session_id", pa.string()),
            ("scenario", pa.string()),
            ("query", pa.string()),
            ("side_information", side_information),
            ("position", pa.int32()),
            ("text", pa.string()),
            ("source", pa.string()),
            ("shown", pa.bool_()),
            ("clicked", pa.bool_()),
            ("user_key", pa.string()),
            ("propensity", pa.float32()),
            ("bundle_id", pa.string()),
            ("auxiliary_text", pa.string()),
        ]
    )
    counts = ImpressionCounts(0, 0, 0, 0, 0, 0)
    waiting: list[dict[str, object]] = []
    with pq.ParquetWriter(path, schema) as writer:

        def flush() -> None:
            writer.write_table(pa.Table.from_pylist(waiting, schema=schema))
            waiting.clear()

        for response in (response for hour in hours for response in hour):
            rows = list(response.rows())
            counts = ImpressionCounts(
                num_rows=counts.num_rows + len(rows),
                num_requests=counts.num_requests + bool(rows),
                num_shown=counts.num_shown + sum(bool(row["shown"]) for row in rows),
                num_clicked=counts.num_clicked + sum(bool(row["clicked"]) for row in rows),
                num_late_clicks=counts.num_late_clicks + response.num_late_clicks,
                num_cut_texts=counts.num_cut_texts + len(response.token.suggestions) - len(rows),
            )
            waiting += rows
            if len(waiting) >= _ROWS_PER_WRITE:
                flush()
        flush()
    return counts
