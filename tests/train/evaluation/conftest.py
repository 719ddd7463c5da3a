"""A bundle of random weights, and a run whose log holds queries that the bundle's index knows."""

import random
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from train.config import read_config
from train.evaluation.served import ServedBundle
from train.mining.mine import mine

START = datetime(2026, 3, 1)
NEVER_MINED = ["me@example.org", "123456789012", "   "]


@pytest.fixture(scope="session")
def served(tiny_bundle: Path) -> Iterator[ServedBundle]:
    served = ServedBundle(tiny_bundle, num_threads=1)
    yield served
    served.close()


def write_log(path: Path, known: list[str], *, num_sessions: int = 500, seed: int = 0) -> None:
    """Writes sessions with repeated queries, pauses, odd spelling and texts that mining refuses."""
    rng = random.Random(seed)
    rows: list[dict] = []
    for session in range(num_sessions):
        time = START + timedelta(minutes=7 * session)
        queries = rng.choices(known, [1 / (1 + i) for i in range(len(known))], k=rng.randint(1, 5))
        if session % 9 == 0:
            queries.insert(1, queries[0].upper() + " ")  # the next page
        if session % 7 == 0:
            queries.append(f"only searched once {session}")
        if session % 11 == 0:
            queries.insert(0, rng.choice(NEVER_MINED))
        for query in queries:
            time += timedelta(seconds=rng.choice([0, 5, 60, 1799, 1800, 1801, 4000]))
            rows.append(
                {
                    "session_id": f"s{session // 2}",
                    "time": time + timedelta(microseconds=rng.randrange(10**6)),
                    "query": query,
                    "user_key": f"u{session % 40}",
                }
            )
    schema = pa.schema(
        {
            "session_id": pa.string(),
            "time": pa.timestamp("us"),
            "query": pa.string(),
            "user_key": pa.string(),
        }
    )
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, served: ServedBundle) -> Path:
    """A run directory after mining; tests must not change it."""
    run = tmp_path_factory.mktemp("evaluated")
    index = served.bundle.index
    assert index is not None
    write_log(run / "log.parquet", [index.text(row) for row in range(0, len(index), 9)])
    (run / "config.toml").write_text(
        f'[logs]\nsearches = "{run / "log.parquet"}"\n'
        "[mine]\nmin_users = 3\nvalid_share = 0.2\nnum_threads = 1\n"
    )
    config = read_config(run / "config.toml")
    searches = config.logs.searches
    mine(config, searches=searches, impressions="", out=run / "mined", report=lambda _: None)
    return run
