"""Held-out impressions of texts that the log does not know: calibrated on, never learnt from.

Mining leaves out texts below k, and not at random: what stays was searched or clicked more. A
model trained on what stays is too sure of the others, which the generator will write. So rows of
the raw log that are for validation are scored once, and two numbers a scenario, from thousands of
rows, are all that is kept of them. Knows nothing of the model.
"""

# R requests, N impressions (rows)
from pathlib import Path

import ibis
import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from engine.formats.manifest import ScenarioSpec
from engine.formats.text import normalise, normalise_prefix
from engine.formats.token_statistics import TokenStatistics
from train.clicks.data import ClickRequests, requests_of
from train.mining import logs
from train.mining.mine import QUERIES, SCENARIOS
from train.mining.shown import IMPRESSIONS
from train.settings import Places

MAX_REQUESTS = 10_000
_MAX_ROWS = 500_000  # of the raw log; the first of the held-out time
_COLUMNS = (
    *("request_id", "scenario", "query", "side_information", "position", "text"),
    *("clicked", "propensity"),
)


def unknown_requests(
    run: Path,
    impressions: Places,
    *,
    max_edges: int,
    statistics: TokenStatistics | None = None,
    max_requests: int = MAX_REQUESTS,
    seed: int,
) -> ClickRequests | None:
    """Returns held-out requests of the raw log that show a text the log does not know.

    None if there are none. All of their shown rows are in it.

    Args:
        run: run directory, mined, with its tokenizer.
        impressions: places of the raw table of impressions.
        max_edges: see `train.clicks.data.read_requests`.
        statistics: the same.
        max_requests: a random choice of so many.
        seed: of the choice.
    """
    mined = run / "mined"
    specs = msgspec.json.decode((mined / SCENARIOS).read_bytes(), type=list[ScenarioSpec])
    known = pq.read_table(mined / QUERIES, columns=["text"])["text"]
    table = _raw_rows(mined, impressions, [s.name for s in specs])
    completes = {s.name for s in specs if s.completes_prefix}
    table = table.set_column(
        table.column_names.index("text"), "text", _normalised(table["text"].to_pylist())
    )
    is_known = pc.field("text").isin(known.combine_chunks())
    requests = table.filter(~is_known)["request_id"].unique().to_pylist()
    if not requests:
        return None
    order = np.random.default_rng(seed).permutation(len(requests))[:max_requests]
    chosen = [requests[i] for i in order.tolist()]
    table = table.filter(pc.field("request_id").isin(chosen))
    queries = [
        (normalise_prefix if scenario in completes else normalise)(query)
        for scenario, query in zip(
            table["scenario"].to_pylist(), table["query"].to_pylist(), strict=True
        )
    ]
    sides = [
        [
            {"kind": item["kind"], "text": normalise(item["text"])}
            for item in items or []
            if item["kind"] and item["text"]
        ]
        for items in table["side_information"].to_pylist()
    ]
    for name, values in (("query", queries), ("side_information", sides)):
        column = table.column_names.index(name)
        table = table.set_column(column, name, pa.array(values, table.schema.field(name).type))
    table = table.append_column("split", pa.array(["valid"] * table.num_rows))
    return requests_of(run, table, max_edges=max_edges, statistics=statistics)


def _raw_rows(mined: Path, impressions: Places, scenarios: list[str]) -> pa.Table:
    """Returns rows of the raw log that were shown in the held-out time; times are UTC."""
    times = pq.read_table(mined / IMPRESSIONS, columns=["time", "split"])
    start = min(times.filter(pc.field("split") == "valid")["time"].to_pylist())
    connection = ibis.duckdb.connect()
    rows = logs.open_impressions(connection, impressions)
    rows = rows.filter(rows.shown & rows.scenario.isin(scenarios))
    rows = rows.filter(rows.time >= ibis.literal(start))
    for name in ("request_id", "query", "position", "text"):
        rows = rows.filter(rows[name].notnull())
    rows = rows.mutate(clicked=rows.clicked.fill_null(False))
    rows = rows.order_by("time", "request_id", "position")
    table = rows.select(*_COLUMNS).limit(_MAX_ROWS).to_pyarrow()
    connection.disconnect()
    if table.num_rows == _MAX_ROWS:  # the last request may have been cut
        table = table.filter(pc.field("request_id") != table["request_id"][-1])
    return table


def _normalised(texts: list[str]) -> pa.Array:
    return pa.array([normalise(t) for t in texts], pa.string())
