"""Searches: which of them count, by whom they were, and how often each text was searched.

Knows nothing of pairs of queries, or of what is shown.
"""

from collections.abc import Callable
from typing import NamedTuple

import ibis

from train.mining import logs, sessions, variants
from train.mining.logs import Table
from train.mining.results import number_of, rows_of
from train.mining.workspace import Workspace
from train.settings import MineConfig

_MAX_MIXED_SHARE = 0.05  # of sessions that have several users: some people change theirs


class Searches(NamedTuple):
    """The log of searches, normalised."""

    events: Table  # session, time, user, text
    robots: Table | None  # when their sessions were, see `sessions.spans`; None without a limit
    dropped: dict[str, int]  # rows by reason


class Counted(NamedTuple):
    """Searches and texts, near-duplicates merged."""

    events: Table  # session, time, user, text
    counts: Table  # text, num_searches, num_searches_before_cut, num_users
    clean: Table  # anonymity.CLEAN_SCHEMA


def with_counted_user(table: Table, counts_users: bool) -> Table:
    """Adds `user`: what k counts. Rows without a user_key count for nobody if others have one."""
    return table.mutate(user=table.user_key if counts_users else table.session_id)


def usable(
    tables: logs.LogTables, clean: Table, workspace: Workspace, settings: MineConfig
) -> Searches:
    """Returns the usable searches by session, without robots."""
    searches = with_counted_user(tables.searches, tables.counts_users)
    joined = searches.left_join(clean, searches.query == clean.raw)
    is_usable = joined.text.notnull() & joined.time.notnull() & joined.session_id.notnull()
    refused = joined.filter(~is_usable).group_by(
        reason=ibis.coalesce(joined.reason, "missing_value")
    )
    dropped = {
        f"search_{row['reason']}": row["num"]
        for row in rows_of(refused.agg(num=lambda t: t.count()))
    }
    usable = joined.filter(is_usable).select("session_id", "time", "user", "text")
    events = workspace.keep("events", sessions.sessions(usable, settings.session_gap_s))
    robots = None
    if settings.max_session_searches:
        is_robot = events.session_size > settings.max_session_searches
        robots = workspace.keep("robots", sessions.spans(events.filter(is_robot)))
        dropped["search_of_robot"] = number_of(events.filter(is_robot).count())
        events = events.filter(~is_robot)
    return Searches(events, robots, dropped)


def check_sessions(events: Table, report: Callable[[str], None]) -> None:
    """Warns if many sessions with more than one search are of more than one user."""
    longer = events.filter(events.session_size > 1)
    users = longer.group_by("session").agg(num=longer.user.nunique())
    several, total = number_of(users.filter(users.num > 1).count()), number_of(users.count())
    if several > _MAX_MIXED_SHARE * total:
        report(
            f"warning: {several} of {total} sessions of several searches have several users; "
            "session_id must not be the same for two users, or what strangers search is taken for "
            "one session"
        )


def merged(
    events: Table, clean: Table, cut: int, workspace: Workspace, settings: MineConfig
) -> Counted:
    """Merges near-duplicates, if they are to be, and counts the searches of each text."""
    counts = workspace.keep("counts", _counts(events, cut))
    if settings.near_duplicates != "keep":
        canonical = variants.canonical_texts(
            counts,
            workspace,
            min_users=settings.min_users,
            is_bag=settings.near_duplicates == "words",
        )
        clean = workspace.keep("merged_clean", variants.replaced(clean, canonical))
        events = workspace.keep("merged_events", variants.replaced(events, canonical))
        counts = workspace.keep("merged_counts", _counts(events, cut))
    return Counted(events, counts, clean)


def _counts(events: Table, cut: int) -> Table:
    return events.group_by("text").agg(
        num_searches=events.count(),
        num_searches_before_cut=events.count(where=~sessions.is_valid(events.time, cut)),
        num_users=events.user.nunique(),
    )
