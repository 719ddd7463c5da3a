"""Held-out impressions of texts that the log does not know: calibrated on, never learnt from.

Mining leaves out texts below k, and not at random: what stays was searched or clicked more. A
model trained on what stays is too sure of the others, which the generator will write. So rows of
the raw log that are for validation are scored once, and two numbers a scenario, from thousands of
rows, are all that is kept of them. Robots are left out as in mining, and texts cleaned: what mining
refuses is left out, and what it merges into a known query is that query. Knows nothing of the
model.
"""

# R requests, N impressions (rows)
import tempfile
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

import ibis
import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from engine.formats.manifest import ScenarioSpec
from engine.formats.text import normalise_prefix
from engine.formats.token_statistics import TokenStatistics
from train.clicks.data import ClickRequests, RequestReader
from train.mining import logs
from train.mining.anonymity import TextFilter, read_unsafe_words
from train.mining.failures import told_without_values
from train.mining.mine import ROBOTS, SCENARIOS
from train.mining.results import number_of
from train.mining.sessions import outside
from train.mining.shown import IMPRESSIONS
from train.mining.variants import variant_key
from train.mining.workspace import Workspace
from train.retrieval.pairs import BEFORE_CUT, read_queries
from train.settings import MineConfig, Places

MAX_REQUESTS = 10_000
_MAX_ROWS = 500_000  # of the raw log, about; those of a random choice of requests
_COLUMNS = (
    *("request_id", "scenario", "query", "side_information", "position", "text"),
    *("clicked", "propensity"),
)


def unknown_requests(
    run: Path,
    impressions: Places,
    *,
    max_edges: int,
    settings: MineConfig | None = None,
    statistics: TokenStatistics | None = None,
    max_requests: int = MAX_REQUESTS,
    seed: int,
) -> ClickRequests | None:
    """Returns held-out requests of the raw log that show a text the log does not know.

    None if there are none. All of their shown rows are in it, but for those that mining refuses. A
    text that was first searched in the held-out time is not known, as when it was shown.

    Args:
        run: run directory, mined, with its tokenizer.
        impressions: places of the raw table of impressions.
        max_edges: see `train.clicks.data.RequestReader`.
        settings: that the run was mined with; None: the defaults.
        statistics: see `train.clicks.data.RequestReader`.
        max_requests: a random choice of so many.
        seed: of the choice.

    Raises:
        ValueError: the log cannot be read, or the run is to be mined again.
    """
    mined = run / "mined"
    specs = msgspec.json.decode((mined / SCENARIOS).read_bytes(), type=list[ScenarioSpec])
    searched = read_queries(run / "mined", BEFORE_CUT)
    settings = settings or MineConfig()
    clean = _cleaner(searched["text"].to_pylist(), settings)
    completes = {s.name for s in specs if s.completes_prefix}
    table = _raw_rows(mined, impressions, [s.name for s in specs], settings)
    scenarios, raw_queries = table["scenario"].to_pylist(), table["query"].to_pylist()
    queries = [
        normalise_prefix(raw) if scenario in completes and clean(raw) else clean(raw)
        for scenario, raw in zip(scenarios, raw_queries, strict=True)
    ]
    sides = [
        [
            {"kind": item["kind"], "text": text}
            for item in items or []
            if item["kind"] and item["text"] and (text := clean(item["text"]))
        ]
        for items in table["side_information"].to_pylist()
    ]
    texts = [clean(raw) for raw in table["text"].to_pylist()]
    for name, values in (("query", queries), ("side_information", sides), ("text", texts)):
        column = table.column_names.index(name)
        table = table.set_column(column, name, pa.array(values, table.schema.field(name).type))
    table = table.filter(pc.field("query").is_valid() & pc.field("text").is_valid())
    known = searched.filter(pc.field(BEFORE_CUT) > 0)["text"].combine_chunks()
    requests = table.filter(~pc.field("text").isin(known))["request_id"].unique().sort().to_pylist()
    if not requests:
        return None
    order = np.random.default_rng(seed).permutation(len(requests))[:max_requests]
    chosen = [requests[i] for i in order.tolist()]
    table = table.filter(pc.field("request_id").isin(chosen))
    table = table.append_column("split", pa.array(["valid"] * table.num_rows))
    return RequestReader(run, max_edges=max_edges, statistics=statistics).of(table)


def _cleaner(known: Iterable[str], settings: MineConfig) -> Callable[[str], str | None]:
    """Returns what makes of a raw text what mining makes of it; None: it is refused."""
    keep = TextFilter(read_unsafe_words(settings.unsafe_words))
    is_bag = settings.near_duplicates == "words"
    merged: dict[str, str] = {}
    if settings.near_duplicates != "keep":
        merged = {variant_key(text, is_bag=is_bag): text for text in known}

    @cache
    def clean(raw: str) -> str | None:
        text = keep(raw).text
        if text is None or not merged:
            return text
        return merged.get(variant_key(text, is_bag=is_bag), text)

    return clean


def _raw_rows(
    mined: Path, impressions: Places, scenarios: list[str], settings: MineConfig
) -> pa.Table:
    """Returns rows of the raw log that were shown to people in the held-out time; times are UTC."""
    held_out = pq.read_table(
        mined / IMPRESSIONS, columns=["time"], filters=[("split", "=", "valid")]
    )
    start = held_out.group_by([]).aggregate([("time", "min")])["time_min"][0].as_py()
    with tempfile.TemporaryDirectory() as spill, told_without_values("", impressions):
        connection = logs.connect(settings, Path(spill))
        try:
            rows = logs.open_impressions(connection, impressions)
            rows = rows.filter(rows.shown & rows.scenario.isin(scenarios))
            rows = rows.filter(rows.time >= ibis.literal(start))
            for name in ("request_id", "query", "position", "text"):
                rows = rows.filter(rows[name].notnull())
            if (mined / ROBOTS).is_file():
                robots = Workspace(connection, Path(spill)).read(mined / ROBOTS)
                rows = outside(rows, robots, settings.session_gap_s)
            num_rows = number_of(rows.count())
            if num_rows > _MAX_ROWS:  # the same requests on every engine
                most = f"{int(_MAX_ROWS / num_rows * 16**8):08x}"
                rows = rows.filter(rows.request_id.hexdigest("md5").substr(0, 8) < most)
            rows = rows.mutate(clicked=rows.clicked.fill_null(False))
            return rows.select(*_COLUMNS).order_by("request_id", "position", "text").to_pyarrow()
        finally:
            connection.disconnect()
