"""Small simulated log tables for tests: users who search around a few topics."""

import random
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

START = datetime(2024, 3, 1)
TOPICS = {
    "laptop": ["gaming laptop", "laptop bag", "laptop stand", "cheap laptop", "laptop charger"],
    "running shoes": ["running shoes men", "running socks", "trail running shoes", "marathon plan"],
    "coffee": ["coffee grinder", "coffee beans", "espresso machine", "milk frother"],
    "wireless earbuds": [
        "wireless earbuds case",
        "earbuds for running",
        "noise cancelling earbuds",
    ],
    "camping tent": ["camping tent 4 person", "sleeping bag", "camping stove", "tent pegs"],
}
SIDE_TYPE = pa.list_(pa.struct([("kind", pa.string()), ("text", pa.string())]))


class LogTables(NamedTuple):
    """Where the two tables are."""

    searches: Path
    impressions: Path


def write(directory: Path, searches: list[dict], impressions: list[dict]) -> LogTables:
    directory.mkdir(parents=True, exist_ok=True)
    paths = LogTables(directory / "searches.parquet", directory / "impressions.parquet")
    pq.write_table(search_table(searches), paths.searches)
    pq.write_table(impression_table(impressions), paths.impressions)
    return paths


def search_table(rows: list[dict]) -> pa.Table:
    schema = pa.schema(
        {
            "session_id": pa.string(),
            "time": pa.timestamp("us"),
            "query": pa.string(),
            "user_key": pa.string(),
        }
    )
    return pa.Table.from_pylist(rows, schema=schema)


def impression_table(rows: list[dict]) -> pa.Table:
    schema = pa.schema(
        {
            "request_id": pa.string(),
            "time": pa.timestamp("us"),
            "session_id": pa.string(),
            "scenario": pa.string(),
            "query": pa.string(),
            "side_information": SIDE_TYPE,
            "position": pa.int32(),
            "text": pa.string(),
            "source": pa.string(),
            "shown": pa.bool_(),
            "clicked": pa.bool_(),
            "user_key": pa.string(),
            "propensity": pa.float64(),
            "auxiliary_text": pa.string(),
        }
    )
    return pa.Table.from_pylist(rows, schema=schema)


def simulated(directory: Path, *, num_sessions: int = 600, seed: int = 0) -> LogTables:
    """Writes the logs of 40 users who go from a topic's head query to its others."""
    rng = random.Random(seed)
    searches: list[dict] = []
    impressions: list[dict] = []
    for number in range(num_sessions):
        session, user = f"s{number}", f"u{rng.randrange(40)}"
        time = START + timedelta(minutes=30 * number)
        head = rng.choice(sorted(TOPICS))
        earlier: list[str] = []
        for query in [head, *rng.sample(TOPICS[head], 2)]:
            time += timedelta(seconds=rng.randrange(5, 200))
            searches.append({"session_id": session, "time": time, "query": query, "user_key": user})
            for scenario in ("suggestion", "completion", "clarification"):
                typed = query if scenario != "completion" else query[: rng.randrange(1, len(query))]
                options = rng.sample(TOPICS[head], 3)
                for position, text in enumerate(options, start=1):
                    impressions.append(
                        {
                            "request_id": f"{session}-{len(earlier)}-{scenario}",
                            "time": time,
                            "session_id": session,
                            "scenario": scenario,
                            "query": typed,
                            "side_information": [{"kind": "session", "text": t} for t in earlier],
                            "position": position,
                            "text": text,
                            "source": "log",
                            "shown": True,
                            "clicked": rng.random() < 0.5 / position,
                            "user_key": user,
                            "propensity": 1.0,
                            "auxiliary_text": (
                                f"which {head} do you mean?"
                                if scenario == "clarification"
                                else None
                            ),
                        }
                    )
            earlier.append(query)
    return write(directory, searches, impressions)
