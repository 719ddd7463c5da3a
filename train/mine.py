"""From log tables to the anonymous tables that everything else is trained on.

Every text that leaves here was searched (or, if it was only shown, clicked) by at least k
distinct users; every pair of texts that models are trained to follow one another was searched so
by at least k. Users are counted by `user_key`, or by session where the logs have none.

The expressions are Ibis's and hold nothing of DuckDB's own; each step is written to parquet, so
memory stays bounded. Knows nothing of tokens or models.
"""

import math
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import ibis
import msgspec
import pyarrow.parquet as pq

from train import logs, shown
from train.anonymity import CLEAN_SCHEMA, TextFilter, read_unsafe_words
from train.config import MineConfig, Places, TrainConfig
from train.logs import Table

QUERIES = "queries.parquet"  # text (sorted by UTF-8 bytes), num_searches, num_users
PAIRS = "pairs.parquet"  # source, target, num_pairs, num_users, npmi
CONTEXTS = "contexts.parquet"  # query, target, session_queries (oldest first), weight, split
SUMMARY = "summary.json"
SCENARIOS = "scenarios.json"
PROMPT = "prompt.json"
Report = Callable[[str], None]


class MineSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What was mined, what was left out and why."""

    min_users: int  # k
    counted: str  # what k counts: "users" or "sessions"
    num_searches: int  # rows read
    num_sessions: int
    num_queries: int
    num_pairs: int
    num_contexts: int
    num_impressions: int  # 0 without an impression log
    num_clicks: int
    position_ctr_from: str  # "logs", or "default" where there are none
    unknown_click_ratio: dict[str, float]  # scenario -> click rate of texts below k over others'
    dropped: dict[str, int]  # rows by reason


class _Step(NamedTuple):
    """Runs expressions and keeps their results as parquet."""

    connection: Any
    directory: Path

    def keep(self, name: str, expression: Table) -> Table:
        path = self.directory / f"{name}.parquet"
        expression.to_parquet(path)
        return self.connection.read_parquet(str(path))


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
        ValueError: the tables cannot be used, or nothing is left after anonymisation; then
            nothing has been written to `out`.
    """
    settings = config.mine
    scratch = out.with_name(out.name + ".scratch")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        connection = logs.connect(
            memory_limit_mb=settings.memory_limit_mb,
            num_threads=settings.num_threads,
            spill_directory=scratch / "spill",
        )
        report("reading the tables")
        tables = logs.open_tables(connection, searches=searches, impressions=impressions)
        summary = _mine(config, tables, _Step(connection, scratch), scratch / "mined", report)
        connection.disconnect()
        out.mkdir(parents=True, exist_ok=True)
        for path in (scratch / "mined").iterdir():
            path.replace(out / path.name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return summary


def _mine(
    config: TrainConfig, tables: logs.LogTables, step: _Step, out: Path, report: Report
) -> MineSummary:
    settings = config.mine
    out.mkdir()
    report("normalising texts")
    clean = _clean_texts(tables, step, TextFilter(read_unsafe_words(settings.unsafe_words)))
    report("sessions")
    searches = _with_counted_user(tables.searches, tables.counts_users)
    joined = searches.left_join(clean, searches.query == clean.raw)
    dropped = {
        f"search_{row['reason']}": row["rows"]
        for row in joined.filter(joined.text.isnull() | joined.time.isnull())
        .group_by(reason=ibis.coalesce(joined.reason, "missing_value"))
        .agg(rows=lambda t: t.count())
        .to_pyarrow()
        .to_pylist()
    }
    usable = joined.filter(
        joined.text.notnull() & joined.time.notnull() & joined.session_id.notnull()
    ).select("session_id", "time", "user", "text")
    events = step.keep("events", _sessions(usable, settings.session_gap_s))
    cut = _split_time(events, settings.valid_share)
    counts = events.group_by("text").agg(
        num_searches=events.count(), num_users=events.user.nunique()
    )
    counts = step.keep("counts", counts)
    public = counts.filter(counts.num_users >= settings.min_users)
    public.order_by("text").to_parquet(out / QUERIES)
    public = step.connection.read_parquet(str(out / QUERIES))
    num_queries = _number(public.count())
    if not num_queries:
        raise ValueError(
            f"no query was searched by at least {settings.min_users} distinct "
            f"{'users' if tables.counts_users else 'sessions'}: bring more logs, or lower "
            "mine.min_users if the logs are anonymous already"
        )
    dropped["search_below_k"] = _number(events.count()) - _number(public.num_searches.sum())

    report("pairs of queries")
    steps = step.keep("steps", _steps(events, public, cut))
    pairs = step.keep("all_pairs", _all_pairs(steps, settings.max_pair_steps))
    step_pairs = _anonymous_pairs(pairs, public, settings.min_users)
    step_pairs = step.keep("anonymous_pairs", step_pairs)
    _associations(pairs, step_pairs, settings).order_by("source", "target").to_parquet(out / PAIRS)
    report("contexts")
    contexts = _contexts(steps, step_pairs, settings)
    contexts.order_by("query", "session_queries", "target", "split").to_parquet(out / CONTEXTS)

    result = shown.Shown(
        num_rows=0, num_clicks=0, position_ctr={}, unknown_click_ratio={}, dropped={}
    )
    if tables.impressions is not None:
        report("impressions")
        impressions = _with_counted_user(tables.impressions, tables.counts_users)
        result = shown.mine_shown(
            config, impressions, clean=clean, public=public, cut=cut, keep=step.keep, out=out
        )
    specs = [
        s.spec(result.position_ctr.get(s.name) or shown.default_position_ctr(s.num_suggestions))
        for s in config.scenarios
    ]
    (out / SCENARIOS).write_bytes(msgspec.json.format(msgspec.json.encode(specs)))
    (out / PROMPT).write_bytes(msgspec.json.format(msgspec.json.encode(config.prompt.spec())))
    summary = MineSummary(
        min_users=settings.min_users,
        counted="users" if tables.counts_users else "sessions",
        num_searches=_number(tables.searches.count()),
        num_sessions=_number(events.session.nunique()),
        num_queries=num_queries,
        num_pairs=pq.read_metadata(out / PAIRS).num_rows,
        num_contexts=pq.read_metadata(out / CONTEXTS).num_rows,
        num_impressions=result.num_rows,
        num_clicks=result.num_clicks,
        unknown_click_ratio=result.unknown_click_ratio,
        position_ctr_from="logs" if result.position_ctr else "default",
        dropped={k: v for k, v in sorted({**dropped, **result.dropped}.items()) if v},
    )
    (out / SUMMARY).write_bytes(msgspec.json.format(msgspec.json.encode(summary)))
    return summary


def _clean_texts(tables: logs.LogTables, step: _Step, keep: TextFilter) -> Table:
    """Normalises every distinct text of the tables once, in Python, batch by batch."""
    columns = [tables.searches.select(raw="query")]
    if tables.impressions is not None:
        rows = tables.impressions
        columns += [rows.select(raw=name) for name in ("query", "text", "auxiliary_text")]
        items = rows.select(item=rows.side_information.unnest())
        columns.append(items.select(raw=items.item["text"]))
    raw = ibis.union(*columns, distinct=True) if len(columns) > 1 else columns[0].distinct()
    path = step.directory / "clean.parquet"
    with pq.ParquetWriter(path, CLEAN_SCHEMA) as writer:
        for batch in keep.clean(raw.to_pyarrow_batches(chunk_size=100_000)):
            writer.write_batch(batch)
    return step.connection.read_parquet(str(path))


def _with_counted_user(table: Table, counts_users: bool) -> Table:
    """Adds `user`: what k counts. Rows without a user_key count for nobody if others have one."""
    return table.mutate(user=table.user_key if counts_users else table.session_id)


def _sessions(searches: Table, gap_s: int) -> Table:
    """Adds `session`: a part of a session_id without a pause longer than `gap_s`."""
    order = ibis.window(group_by="session_id", order_by=["time", "text"])
    pause = searches.time.delta(searches.time.lag(1).over(order), unit="second")
    starts = searches.mutate(starts=ibis.ifelse(pause > gap_s, 1, 0).fill_null(ibis.literal(0)))
    running = ibis.cumulative_window(group_by="session_id", order_by=["time", "text"])
    numbered = starts.mutate(part=starts.starts.sum().over(running))
    session = numbered.session_id + "#" + numbered.part.cast("string")
    return numbered.mutate(session=session).select("session", "time", "user", "text")


def _split_time(events: Table, valid_share: float) -> Any:
    """Returns the time from which on rows are for validation: the last share of the searches.

    A share of the searches, not of the time between first and last: logs thin out at their ends.
    """
    seconds = events.time.epoch_seconds()
    bounds = events.agg(cut=seconds.quantile(1 - valid_share)).to_pyarrow().to_pylist()
    # The last moment itself is for training where there is no validation.
    cut = datetime.fromtimestamp(math.floor(bounds[0]["cut"]) + 1, tz=UTC)
    return ibis.literal(cut, type=events.time.type())


def _steps(events: Table, public: Table, cut: Any) -> Table:
    """Returns the steps of sessions: repeated queries (next pages) are one step.

    `public` is the text where it is k-anonymous, else null.
    """
    order = ibis.window(group_by="session", order_by=["time", "text"])
    repeated = events.mutate(previous=events.text.lag(1).over(order))
    steps = repeated.filter(repeated.previous.isnull() | (repeated.previous != repeated.text))
    texts = public.select(public=public.text)
    joined = steps.left_join(texts, steps.text == texts.public)
    return joined.select("session", "time", "user", "text", "public", is_valid=joined.time >= cut)


def _all_pairs(steps: Table, max_steps: int) -> Table:
    """Returns ordered pairs of different queries at most `max_steps` apart, one row each."""
    order = ibis.window(group_by="session", order_by=["time", "text"])
    following = [
        steps.select("user", "is_valid", source="text", target=steps.text.lead(d).over(order))
        for d in range(1, max_steps + 1)
    ]
    pairs = ibis.union(*following) if len(following) > 1 else following[0]
    return pairs.filter(pairs.target.notnull() & (pairs.source != pairs.target))


def _anonymous_pairs(pairs: Table, public: Table, min_users: int) -> Table:
    """Returns the pairs (source, target) with k users on the pair and on both of its ends."""
    counted = pairs.group_by("source", "target").agg(num_users=pairs.user.nunique())
    counted = counted.filter(counted.num_users >= min_users)
    counted = counted.semi_join(public, [("source", "text")])
    return counted.semi_join(public, [("target", "text")]).select("source", "target")


def _associations(pairs: Table, anonymous: Table, settings: MineConfig) -> Table:
    """Returns pairs with their normalised pointwise mutual information, from training time only.

    NPMI = log(p(s, t) / (p(s) p(t))) / -log p(s, t) over all pairs (Bouma, 2009): 1 if they only
    occur together, 0 if independent.
    """
    pairs = pairs.filter(~pairs.is_valid)
    both = pairs.group_by("source", "target").agg(
        num_pairs=pairs.count(), num_users=pairs.user.nunique()
    )
    sources = pairs.group_by("source").agg(num_source=pairs.count())
    targets = pairs.group_by("target").agg(num_target=pairs.count())
    total = pairs.agg(total=pairs.count())
    kept = both.semi_join(anonymous, ["source", "target"])
    kept = kept.filter(
        (kept.num_users >= settings.min_users) & (kept.num_pairs >= settings.min_pairs)
    )
    joined = kept.inner_join(sources, "source").inner_join(targets, "target").cross_join(total)
    share = joined.num_pairs / joined.total
    information = (joined.num_pairs * joined.total / (joined.num_source * joined.num_target)).ln()
    # A log that is one single pair: log p = 0, and the pair only occurs together.
    npmi = ibis.ifelse(share < 1, information / -share.ln().nullif(0), 1.0)
    return joined.select("source", "target", "num_pairs", "num_users", npmi=npmi)


def _contexts(steps: Table, anonymous: Table, settings: MineConfig) -> Table:
    """Returns what was searched next, with the session before it.

    For training the pair must be k-anonymous, too. Validation rows, which nothing is trained on,
    only need k-anonymous texts: were they limited to known pairs, whatever looks those up would
    seem perfect.
    """
    order = ibis.window(group_by="session", order_by=["time", "text"])
    earlier = [steps.public.lag(d).over(order) for d in range(settings.max_session_queries, 0, -1)]
    empty = ibis.literal([], type="array<string>")
    rows = steps.select(
        query="public",
        target=steps.public.lead(1).over(order),
        session_queries=ibis.array(earlier) if earlier else empty,
        split=ibis.ifelse(steps.is_valid, "valid", "train"),
    )
    rows = rows.filter(rows.query.notnull() & rows.target.notnull())
    known = rows.filter(rows.split == "train").semi_join(anonymous, [("query", "source"), "target"])
    rows = known.union(rows.filter((rows.split == "valid") & (rows.query != rows.target)))
    rows = rows.mutate(session_queries=rows.session_queries.filter(lambda text: text.notnull()))
    return rows.group_by("query", "target", "session_queries", "split").agg(
        weight=rows.count().cast("float64")
    )


def _number(expression: Any) -> int:
    return int(expression.to_pyarrow().as_py() or 0)
