"""From log tables to the anonymous tables that everything else is trained on.

Every text that leaves here was searched (or, if it was only shown, clicked) by at least k
distinct users; every pair of texts that models are trained to follow one another was searched so
by at least k. Users are counted by `user_key`, or by session where the logs have none.

The expressions are Ibis's and give the same on DuckDB and Spark; each step is written to parquet,
so memory stays bounded. Knows nothing of tokens or models.
"""

import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import ibis
import msgspec
import pyarrow.parquet as pq

from train.config import TrainConfig
from train.mining import cooccurrence, logs, searches, sessions, shown
from train.mining.anonymity import CLEAN_SCHEMA, TextFilter, read_unsafe_words
from train.mining.failures import told_without_values
from train.mining.logs import Table
from train.mining.results import number_of
from train.mining.workspace import Workspace
from train.settings import Places
from train.stages import scratch_of

# text (sorted by UTF-8 bytes), num_searches, num_searches_before_cut (of validation), num_users
QUERIES = "queries.parquet"
PAIRS = "pairs.parquet"  # source, target, num_pairs, num_users, association in [-1, 1]
CONTEXTS = "contexts.parquet"  # query, target, session_queries (oldest first), weight, split
ROBOTS = "robots.parquet"  # when sessions were that are left out, see `sessions.spans`
SUMMARY = "summary.json"
SCENARIOS = "scenarios.json"
PROMPT = "prompt.json"
Report = Callable[[str], None]


class MineSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What was mined, what was left out and why."""

    min_users: int  # k
    counted: str  # what k counts in searches: "users" or "sessions"
    counted_in_impressions: str | None = None  # the same of impressions; None: there are none
    num_searches: int  # rows read
    num_sessions: int
    num_queries: int
    num_pairs: int
    num_contexts: int
    num_impressions: int  # 0 without an impression log
    num_clicks: int
    position_ctr_from: str  # "logs", or "default" where there are none
    dropped: dict[str, int]  # rows by reason
    association: str | None = None  # mine.association; None: an older release mined them
    # Second since 1970 from which on searches are held out; None: an older release mined them.
    cut: int | None = None


def read_summary(run: Path) -> MineSummary:
    """Reads what mining said of a run.

    Raises:
        ValueError: nothing was mined there, or the file is damaged.
    """
    path = run / "mined" / SUMMARY
    if not path.is_file():
        raise ValueError(f"{run}: there is no {path.relative_to(run)}; is it a run directory?")
    try:
        return msgspec.json.decode(path.read_bytes(), type=MineSummary)
    except msgspec.MsgspecError as error:
        raise ValueError(f"{path}: {error}") from error


def mine(
    config: TrainConfig,
    *,
    searches: Places,
    impressions: Places,
    out: Path,
    report: Report = print,
) -> MineSummary:
    """Mines the tables into the directory `out`, which must not exist or be empty.

    Args:
        config: sections mine, prompt and scenarios are read.
        searches: place, or places, of the table of searches.
        impressions: place, or places, of the table of impressions; empty if there is none.
        out: gets the files named above.
        report: called with what is being done.

    Raises:
        ValueError: the tables cannot be used, or nothing is left after anonymisation or before
            the held-out impressions; then nothing has been written to `out`.
    """
    scratch = scratch_of(out)
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        scratch.mkdir(mode=0o700, parents=True)  # raw texts are for nobody else
        (scratch / "mined").mkdir()
        connection = logs.connect(config.mine, scratch / "spill")
        try:
            report("reading the tables")
            tables = logs.open_tables(connection, searches=searches, impressions=impressions)
            for warning in tables.warnings:
                report(f"warning: {warning}")
            workspace = Workspace(connection, scratch)
            with told_without_values(searches, impressions):
                summary = _mine(config, tables, workspace, scratch / "mined", report)
        finally:
            connection.disconnect()
        out.mkdir(parents=True, exist_ok=True)
        for path in (scratch / "mined").iterdir():
            path.replace(out / path.name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return summary


def _mine(
    config: TrainConfig, tables: logs.LogTables, workspace: Workspace, out: Path, report: Report
) -> MineSummary:
    settings = config.mine
    keep = workspace.keep
    counted = _people(tables.counts_users)
    report("normalising texts")
    clean = _clean_texts(tables, workspace, TextFilter(read_unsafe_words(settings.unsafe_words)))
    report("sessions")
    events, robots, dropped = searches.usable(tables, clean, workspace, settings)
    if tables.counts_users:
        searches.check_sessions(events, report)
    if robots is not None:
        workspace.write(robots.order_by("session_id", "start_s"), out / ROBOTS)
    split = cut = sessions.split_second(events, settings.valid_share)
    seen = None
    if tables.impressions is not None:
        rows = searches.with_counted_user(tables.impressions, tables.counts_viewers)
        seen = shown.seen_by_people(config, rows, robots=robots, workspace=workspace)
        # Later searches may come of the very clicks that are held out.
        cut = split if seen.first_valid is None else min(split, seen.first_valid)
    events, counts, clean = searches.merged(events, clean, cut, workspace, settings)
    public = counts.filter(counts.num_users >= settings.min_users)
    public = workspace.write(public.order_by("text"), out / QUERIES)
    num_queries = number_of(public.count())
    if not num_queries:
        reasons = ", ".join(f"{n} {reason}" for reason, n in sorted(dropped.items()) if n)
        raise ValueError(
            f"no query was searched by at least {settings.min_users} distinct {counted} (rows left "
            f"out before counting: {reasons or 'none'}): bring more logs, or lower mine.min_users "
            "if the logs are anonymous already"
        )
    if cut < split:
        _check_cut(public, cut, settings.valid_share, report)
    dropped["search_below_k"] = number_of(events.count()) - number_of(public.num_searches.sum())

    report("pairs of queries")
    steps = keep("steps", sessions.steps(events, public, cut))
    pairs = keep("all_pairs", cooccurrence.all_pairs(steps, settings.max_pair_steps))
    anonymous = cooccurrence.anonymous_pairs(pairs, public, settings.min_users)
    anonymous = keep("anonymous_pairs", anonymous)
    associated = cooccurrence.associated_pairs(pairs, anonymous, settings)
    workspace.write(associated.order_by("source", "target"), out / PAIRS)
    report("contexts")
    contexts = cooccurrence.contexts(steps, anonymous, settings.max_session_queries)
    ordered = contexts.order_by("query", "session_queries", "target", "split")
    workspace.write(ordered, out / CONTEXTS)
    if not pq.read_metadata(out / CONTEXTS).num_rows:
        report(
            "warning: no anonymous query follows another in any session, so nothing teaches what "
            "comes next; does session_id name single searches?"
        )

    result = shown.Shown(num_rows=0, num_clicks=0, position_ctr={}, dropped={})
    if seen is not None:
        report("impressions")
        result = shown.mine_shown(
            config, seen, clean=clean, public=public, workspace=workspace, out=out
        )
    specs = [
        s.spec(result.position_ctr.get(s.name) or shown.default_position_ctr(s.num_suggestions))
        for s in config.scenarios
    ]
    (out / SCENARIOS).write_bytes(msgspec.json.format(msgspec.json.encode(specs)))
    (out / PROMPT).write_bytes(msgspec.json.format(msgspec.json.encode(config.prompt.spec())))
    summary = MineSummary(
        min_users=settings.min_users,
        counted=counted,
        counted_in_impressions=None if seen is None else _people(tables.counts_viewers),
        num_searches=number_of(tables.searches.count()),
        num_sessions=number_of(events.session.nunique()),
        num_queries=num_queries,
        num_pairs=pq.read_metadata(out / PAIRS).num_rows,
        num_contexts=pq.read_metadata(out / CONTEXTS).num_rows,
        num_impressions=result.num_rows,
        num_clicks=result.num_clicks,
        position_ctr_from="logs" if result.position_ctr else "default",
        dropped={k: v for k, v in sorted({**dropped, **result.dropped}.items()) if v},
        association=settings.association,
        cut=cut,
    )
    (out / SUMMARY).write_bytes(msgspec.json.format(msgspec.json.encode(summary)))
    return summary


def _clean_texts(tables: logs.LogTables, workspace: Workspace, keep: TextFilter) -> Table:
    """Normalises every distinct text of the tables once, in Python, batch by batch."""
    columns = [tables.searches.select(raw="query")]
    if tables.impressions is not None:
        rows = tables.impressions
        columns += [rows.select(raw=name) for name in ("query", "text", "auxiliary_text")]
        items = rows.select(item=rows.side_information.unnest())
        columns.append(items.select(raw=items.item["text"]))
    raw = ibis.union(*columns, distinct=True) if len(columns) > 1 else columns[0].distinct()
    return workspace.map("clean", raw, CLEAN_SCHEMA, keep.clean)


def _check_cut(public: Table, cut: int, valid_share: float, report: Report) -> None:
    """Checks that held-out impressions leave searches to learn from, and tells if they leave few.

    Raises:
        ValueError: no k-anonymous query was searched before them.
    """
    total, before = (
        number_of(public[name].sum()) for name in ("num_searches", "num_searches_before_cut")
    )
    begin = f"the held-out impressions begin at {datetime.fromtimestamp(cut, UTC):%Y-%m-%d %H:%M}"
    if not before:
        raise ValueError(
            f"{begin} UTC, before all searches of k-anonymous queries: later searches may come of "
            "their clicks, so nothing is left to learn from; bring older searches or younger "
            "impressions, or leave logs.impressions empty"
        )
    if before < total * (1 - valid_share) / 2:
        report(
            f"warning: {begin} UTC, and searches from then on are held out, too: models learn "
            f"from {before} of {total}; bring younger impressions to learn from more"
        )


def _people(counts_users: bool) -> str:
    return "users" if counts_users else "sessions"
