"""The anonymous form of the impression log: what was shown, where, and whether it was clicked.

A row stays if its query and its text are k-anonymous. A text that was never searched needs k
distinct users who clicked it, unless an engine's generator wrote it and is known to have read
nothing but public text: then it is a function of what the bundle holds and of public inputs, and
says nothing of any user. Without such rows a click model would know of unknown texts only those
that were clicked often, and trust them all. Side information that is not a query (answers), and
auxiliary texts, need k distinct users who were shown it, or they are left out of the row. A typed
prefix stays if it starts a k-anonymous query, whose users all typed through it.
"""

from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import ibis
import pyarrow.compute as pc
import pyarrow.parquet as pq

from train.config import TrainConfig
from train.mining.logs import MAX_POSITION, Table
from train.mining.results import number_of, rows_of
from train.mining.sessions import first_valid_second, is_valid, outside, split_second
from train.mining.side_information import side_information, side_items
from train.mining.workspace import Workspace

IMPRESSIONS = "impressions.parquet"
GENERATED = "generated"  # what the engine calls the source of a text that its log does not know
_MAX_POSITIONS = 20
_NUM_NAMED = 5  # scenarios, in an error
_MIN_IMPRESSIONS = 30  # per position, for its click rate to be believed


class Seen(NamedTuple):
    """The impressions that people saw."""

    rows: Table  # all columns of the log, and `user`
    split: int  # see `sessions.split_second`
    first_valid: (
        int | None
    )  # second since 1970 of the first one for validation; None: there is none
    dropped: dict[str, int]  # rows by reason


class Shown(NamedTuple):
    """What was mined from impressions."""

    num_rows: int
    num_clicks: int
    position_ctr: dict[str, list[float]]  # per scenario, relative to position 1
    dropped: dict[str, int]


def default_position_ctr(num_positions: int) -> list[float]:
    """Returns what is assumed where there is no impression log: a hyperbola, 1 at position 1."""
    return [round(1 / (1 + 0.35 * i), 4) for i in range(num_positions)]


def seen_by_people(
    config: TrainConfig, impressions: Table, *, robots: Table | None, workspace: Workspace
) -> Seen:
    """Returns the impressions that count, and which of them are for validation.

    That goes by the impressions' own times: feedback on a bundle is all younger than the searches
    that it was trained on.

    Args:
        config: sections mine and scenarios are read.
        impressions: validated table with `user`, what k counts.
        robots: when robots' sessions were, see `sessions.spans`; None: nobody is taken for one.
        workspace: runs expressions.

    Raises:
        ValueError: none of them is of a scenario of the config.
    """
    shown = impressions.filter(impressions.shown)
    seen = shown.filter(shown.scenario.isin([s.name for s in config.scenarios]))
    known = seen.filter(seen.request_id.notnull() & seen.time.notnull() & seen.position.notnull())
    near = known.filter(known.position <= MAX_POSITION)
    human = near if robots is None else outside(near, robots, config.mine.session_gap_s)
    times = workspace.keep("seen_times", human.select("time"))
    split = split_second(times, config.mine.valid_share)
    nums = [number_of(t.count()) for t in (impressions, shown, seen, known, near, times)]
    if not nums[2]:
        raise _scenarios_unknown(config, shown)
    reasons = (
        "impression_not_shown",
        "impression_of_unknown_scenario",
        "impression_missing_value",
        f"impression_position_beyond_{MAX_POSITION}",
        "impression_of_robot",
    )
    dropped = {r: n - left for r, (n, left) in zip(reasons, pairwise(nums), strict=True)}
    return Seen(human, split, first_valid_second(times, split), dropped)


def _scenarios_unknown(config: TrainConfig, shown: Table) -> ValueError:
    """Returns the error for a table whose panels the config does not have."""
    most = shown.group_by("scenario").agg(num=shown.count())
    found = rows_of(most.order_by(ibis.desc("num"), "scenario").limit(_NUM_NAMED))
    return ValueError(
        "table impressions: no row is of a scenario of the config, which has "
        f"{', '.join(s.name for s in config.scenarios)}; most rows are of "
        f"{', '.join(str(row['scenario']) for row in found)}: name the [[scenarios]] of the config "
        "as the logs do"
    )


def mine_shown(
    config: TrainConfig,
    seen: Seen,
    *,
    clean: Table,
    public: Table,
    workspace: Workspace,
    out: Path,
) -> Shown:
    """Writes impressions.parquet into `out`.

    Args:
        config: sections mine, prompt and scenarios are read.
        seen: see `seen_by_people`.
        clean: raw texts and what they became (anonymity.CLEAN_SCHEMA).
        public: the k-anonymous queries.
        workspace: runs expressions.
        out: directory.
    """
    k, keep, human = config.mine.min_users, workspace.keep, seen.rows
    completing = [s.name for s in config.scenarios if s.completes_prefix]
    queries = clean.select(raw_query="raw", query_text="text", query_prefix="prefix")
    texts = clean.select(raw_text="raw", clean_text="text")
    auxiliary = clean.select(raw_auxiliary="raw", clean_auxiliary="text")
    rows = human.left_join(queries, human.query == queries.raw_query)
    rows = rows.left_join(texts, rows.text == texts.raw_text)
    rows = rows.left_join(auxiliary, rows.auxiliary_text == auxiliary.raw_auxiliary)
    completes = rows.scenario.isin(completing) if completing else ibis.literal(False)
    rows = keep(
        "shown",
        rows.select(
            "request_id",
            "time",
            "scenario",
            "position",
            "source",
            "propensity",
            "user",
            "side_information",
            is_written=(rows.source == GENERATED) & rows.bundle_id.notnull(),
            clicked=rows.clicked.fill_null(False),
            completes=completes,
            query=ibis.ifelse(completes, rows.query_prefix, rows.query_text),
            text=rows.clean_text,
            auxiliary_text=rows.clean_auxiliary,
        ),
    )
    position_ctr = _position_ctr(rows)
    items = keep("side_items", side_items(rows, clean, public, k))
    unknown = rows.filter(rows.side_information.isnull()).select("request_id")
    private = items.filter(~items.is_public).select("request_id").union(unknown)
    texts = _anonymous_texts(rows, public, k)
    searched = rows.semi_join(texts, "text")
    written = rows.filter(rows.is_written & rows.text.notnull()).anti_join(texts, "text")
    with_text = keep("with_text", searched.union(written.anti_join(private, "request_id")))
    anonymous = _anonymous_rows(with_text, public, k, workspace)
    side = keep("side_information", side_information(items, config.prompt.side_information_kinds))
    joined = anonymous.left_join(side, anonymous.request_id == side.side_request)
    no_items = ibis.literal([], type="array<struct<kind: string, text: string>>")
    result = joined.select(
        "request_id",
        "time",
        "scenario",
        "query",
        "position",
        "text",
        "source",
        "clicked",
        "propensity",
        "auxiliary_text",
        side_information=ibis.coalesce(joined.items, no_items),
        split=ibis.ifelse(is_valid(joined.time, seen.split), "valid", "train"),
    )
    order = ["time", "request_id", "position", "text"]
    ties = ["query", "source", "clicked", "propensity", "auxiliary_text"]
    workspace.write(result.order_by(*order, *ties), out / IMPRESSIONS)
    num_rows, num_with_text = (number_of(t.count()) for t in (rows, with_text))
    num_left = pq.read_metadata(out / IMPRESSIONS).num_rows
    return Shown(
        num_rows=num_left,
        num_clicks=number_of(anonymous.clicked.sum()),
        position_ctr=position_ctr,
        dropped={
            **seen.dropped,
            "impression_text_refused_or_below_k": num_rows - num_with_text,
            "impression_query_refused_or_below_k": num_with_text - num_left,
        },
    )


def check_clicks(split: str, num_shown: int, num_clicks: int) -> None:
    """Checks that a click model has something to learn, or to be measured on.

    Args:
        split: "train" or "valid".
        num_shown: impressions of the split.
        num_clicks: how many of them were clicked.

    Raises:
        ValueError: no impressions, none clicked or all.
    """
    if not num_shown:
        raise ValueError(f"the {split} split has no impressions: bring a longer log")
    if num_clicks in (0, num_shown):
        raise ValueError(
            f"{'all' if num_clicks else 'none'} of the {num_shown} shown impressions of the "
            f"{split} split are clicked: there is nothing to learn; check the column 'clicked'"
        )


def check_mined_clicks(mined: Path) -> None:
    """Checks both splits of a directory of mined tables; see `check_clicks`.

    Without impressions in it there is nothing to check, and no click model.
    """
    path = mined / IMPRESSIONS
    if not path.exists():
        return
    table = pq.read_table(path, columns=["split", "clicked"])
    if not table.num_rows:
        return
    for split in ("train", "valid"):
        clicked = table.filter(pc.field("split") == split)["clicked"].to_numpy()
        check_clicks(split, len(clicked), int(clicked.sum()))


def _anonymous_texts(rows: Table, public: Table, k: int) -> Table:
    """Returns the texts that may be shown: searched or clicked by k users."""
    clicked = rows.filter(rows.clicked)
    clickers = clicked.group_by("text").agg(num_users=clicked.user.nunique())
    clicked_texts = clickers.filter(clickers.num_users >= k).select("text")
    return public.select("text").union(clicked_texts, distinct=True)


def _anonymous_rows(rows: Table, public: Table, k: int, workspace: Workspace) -> Table:
    """Returns rows whose query is k-anonymous; other auxiliary texts and sources become null."""
    searched = rows.filter(~rows.completes).semi_join(public, [("query", "text")])
    typed = rows.filter(rows.completes)
    prefixes = workspace.keep("prefixes", _anonymous_prefixes(typed, public))
    typed = typed.semi_join(prefixes, [("query", "prefix")])
    rows = workspace.keep("anonymous_rows", searched.union(typed))
    rows = rows.drop("side_information")
    return _without_rare(_without_rare(rows, "auxiliary_text", k), "source", k)


def _without_rare(rows: Table, column: str, k: int) -> Table:
    """Returns the rows with values of a column that fewer than k users were shown made null."""
    readers = rows.group_by(column).agg(num_users=rows.user.nunique())
    common = readers.filter(readers.num_users >= k).select(common=column)
    joined = rows.left_join(common, rows[column] == common.common)
    return joined.mutate(**{column: joined.common}).drop("common")


def _anonymous_prefixes(typed: Table, public: Table) -> Table:
    """Returns the typed prefixes that start a k-anonymous query, as `prefix`."""
    ends = public.select("text", end=ibis.range(1, public.text.length() + 1)).unnest("end")
    starts = ends.select(start=ends.text.substr(0, ends.end))
    wanted = typed.select(prefix="query").distinct()
    return wanted.semi_join(starts, [("prefix", "start")])


def _position_ctr(rows: Table) -> dict[str, list[float]]:
    """Returns per scenario the click rate at each position relative to that of position 1.

    Too few impressions at a position: its predecessor's. None at position 1: no entry.
    """
    counted = rows_of(
        rows.group_by("scenario", "position")
        .agg(num_shown=rows.count(), num_clicks=rows.clicked.sum())
        .order_by("scenario", "position")
    )
    rates: dict[str, list[float]] = {}
    for row in counted:
        if row["position"] == 1 and row["num_clicks"] and row["num_shown"] >= _MIN_IMPRESSIONS:
            rates[row["scenario"]] = [row["num_clicks"] / row["num_shown"]]
        rate = rates.get(row["scenario"])
        if rate is None or not 1 < row["position"] <= _MAX_POSITIONS:
            continue
        rate.extend(rate[-1:] * (row["position"] - 1 - len(rate)))
        believed = row["num_shown"] >= _MIN_IMPRESSIONS
        rate.append(row["num_clicks"] / row["num_shown"] if believed else rate[-1])
    return {name: [round(r / rate[0], 4) for r in rate] for name, rate in rates.items()}
