"""Sessions of searches, their steps, and the moment that parts training from validation.

Knows nothing of k-anonymity.
"""

import ibis

from train.mining.logs import Table
from train.mining.results import number_of, rows_of

ORDER = ["time", "text", "user"]  # within a session; ties of all three are one and the same


def sessions(searches: Table, gap_s: int) -> Table:
    """Adds `session`: a part of a session_id without a pause longer than `gap_s` seconds.

    Args:
        searches: session_id, time, user, text.
        gap_s: in whole seconds.

    Returns:
        session, session_id, time, user, text, session_size (searches of the session).
    """
    order = ibis.window(group_by="session_id", order_by=ORDER)
    second = _second(searches.time)
    starts = searches.mutate(starts=ibis.ifelse(second - second.lag(1).over(order) > gap_s, 1, 0))
    running = ibis.cumulative_window(group_by="session_id", order_by=ORDER)
    parts = starts.mutate(part=starts.starts.sum().over(running))
    named = parts.mutate(session=parts.session_id + "#" + parts.part.cast("string"))
    size = named.count().over(ibis.window(group_by="session"))
    return named.select("session", "session_id", "time", "user", "text", session_size=size)


def spans(events: Table) -> Table:
    """Returns when sessions were: session_id, start_s, end_s (seconds since 1970)."""
    second = _second(events.time)
    found = events.group_by("session", "session_id").agg(start_s=second.min(), end_s=second.max())
    return found.drop("session")


def outside(rows: Table, spans: Table, gap_s: int) -> Table:
    """Returns the rows that are of none of these sessions.

    Args:
        rows: session_id, which may be null, and time.
        spans: see above.
        gap_s: see `sessions`: so near to a session, a row is of it.
    """
    second = _second(rows.time)
    return rows.anti_join(
        spans,
        [
            rows.session_id == spans.session_id,
            second >= spans.start_s - gap_s,
            second <= spans.end_s + gap_s,
        ],
    )


def split_second(events: Table, valid_share: float) -> int:
    """Returns the second since 1970 from which on rows are for validation: the last share of rows.

    A share of the searches, not of the time between first and last: logs thin out at their ends.
    Counted by hour and then within one hour, so that memory does not grow with the log.
    """
    left = (1 - valid_share) * number_of(events.count())
    hour = events.time.truncate("h").epoch_seconds().cast("int64")
    hours = _counts(events.select(at=hour))
    while len(hours) > 1 and hours[0][1] < left:
        left -= hours.pop(0)[1]
    if not hours:
        return 0
    seconds = _counts(events.filter(hour == hours[0][0]).select(at=_second(events.time)))
    while len(seconds) > 1 and seconds[0][1] < left:
        left -= seconds.pop(0)[1]
    return seconds[0][0] + 1


def is_valid(time: Table, split: int) -> Table:
    """Returns whether times are for validation, given `split_second`."""
    return _second(time) >= split


def first_valid_second(events: Table, split: int) -> int | None:
    """Returns the second since 1970 of the first row that is for validation, if there is one."""
    valid = events.filter(is_valid(events.time, split))
    return _second(valid.time).min().to_pyarrow().as_py()


def steps(events: Table, public: Table, split: int) -> Table:
    """Returns the steps of sessions: repeated queries (next pages) are one step.

    Args:
        events: session, time, user, text.
        public: the k-anonymous texts.
        split: see `split_second`.

    Returns:
        session, time, user, text, public (the text where it is k-anonymous, else null), is_valid.
    """
    order = ibis.window(group_by="session", order_by=ORDER)
    repeated = events.mutate(previous=events.text.lag(1).over(order))
    kept = repeated.filter(repeated.previous.isnull() | (repeated.previous != repeated.text))
    texts = public.select(public=public.text)
    joined = kept.left_join(texts, kept.text == texts.public)
    return joined.select(
        "session", "time", "user", "text", "public", is_valid=is_valid(joined.time, split)
    )


def _second(time: Table) -> Table:
    # Truncated first: DuckDB's seconds have a fraction, Spark's have none.
    return time.truncate("s").epoch_seconds().cast("int64")


def _counts(column: Table) -> list[tuple[int, int]]:
    counted = rows_of(column.group_by("at").agg(num=column.count()))
    return sorted((int(row["at"]), int(row["num"])) for row in counted)
