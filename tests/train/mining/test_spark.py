"""Mining on Spark gives what mining on DuckDB gives, row for row."""

import json
import os
import random
import subprocess
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from train.config import read_config
from train.mining.mine import mine

ROOT = Path(__file__).parents[3]
PYTHON = ROOT / ".venv-spark/bin/python"
START = datetime(2024, 3, 31, 0, 30)
HEADS = ["tea", "Green  TEA", "東京", "\uff54ea", "zebra", "äpfel", "\U0001f600", "\uffee"]
TAILS = ["", " pot", " pots", ", pot", " 2", " für zwei", " "]
REFUSED = ["bob@x.org", "\x00", "", "x" * 300, "123456789012"]
SETTINGS = {
    "npmi": 'association = "npmi"\nnear_duplicates = "keep"',
    "llr": 'association = "llr"\nnear_duplicates = "words"\nmax_session_queries = 0',
}

pytestmark = [
    pytest.mark.spark,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not PYTHON.exists(), reason="no .venv-spark: run make spark"),
]


def random_log(rng: random.Random) -> tuple[list[dict], list[dict]]:
    """A log with pauses, ties, robots, nulls and texts of several scripts."""
    users = [f"u{i}" for i in range(40)]
    searches: list[dict] = []
    impressions: list[dict] = []
    for number in range(250):
        user = rng.choice([*users, None])
        session = rng.choice([f"s{number}", f"s{number}", f"of {user}", None])
        time = START + timedelta(minutes=rng.randrange(9000), microseconds=rng.randrange(10**6))
        for _ in range(60 if number == 7 else rng.randrange(1, 9)):
            pauses = [0, 5] if number == 7 else [0, 0.25, 20, 1799, 1800, 1801, 4000]
            time += timedelta(seconds=rng.choice(pauses))
            query = rng.choice(HEADS[: rng.randrange(1, 9)]) + rng.choice(TAILS)
            query = rng.choice(REFUSED) if rng.random() < 0.04 else query
            row = {"session_id": session, "time": time, "query": query, "user_key": user}
            searches.append({**row, **({"time": None} if rng.random() < 0.02 else {})})
            impressions += panel(rng, f"r{number // 2}-{len(searches)}", row)
    return searches, impressions


def panel(rng: random.Random, request: str, row: dict) -> list[dict]:
    scenario = rng.choice(["suggestion", "completion", "clarification", "unknown"])
    items = [
        {
            "kind": rng.choice(["session", "answer", "cooccurring", "spell"]),
            "text": rng.choice([rng.choice(HEADS), "tea is a drink", f"only {request}", None]),
        }
        for _ in range(rng.randrange(4))
    ]
    typed = row["query"][: rng.randrange(1, 8)] if scenario == "completion" else row["query"]
    return [
        {
            **row,
            "request_id": request,
            "scenario": scenario,
            "query": typed,
            "side_information": rng.choice([items, items, None]),
            "position": 2 * position - rng.randrange(2),
            "text": rng.choice(HEADS) + rng.choice([*TAILS, f" {request}", " of all kinds"]),
            "source": rng.choice(["log", "generated", None]),
            "bundle_id": rng.choice(["b1", None]),
            "shown": rng.random() < 0.9,
            "clicked": rng.random() < 0.4 / position,
            "propensity": rng.choice([1.0, 0.08, None]),
            "auxiliary_text": rng.choice(["which tea?", f"which {request}?", None]),
        }
        for position in range(1, rng.randrange(1, 5))
    ]


def on_spark(config: Path, run: Path) -> None:
    """Mines in the environment that has Spark, as a user would."""
    done = subprocess.run(
        [str(PYTHON), "-m", "train", "mine", "--config", str(config), "--run", str(run)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT}:{ROOT}/proto/gen:{ROOT}/clients/python",
            # Most of the time goes into compiling code that runs once.
            "JAVA_TOOL_OPTIONS": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
        },
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", SETTINGS)
def test_spark_and_duckdb_mine_the_same(
    write_log_tables: Callable[..., Any], tmp_path: Path, name: str
) -> None:
    tables = write_log_tables(*random_log(random.Random(name)))
    parts = tmp_path / "query=x"  # names of directories are no columns
    parts.mkdir()
    whole = pq.read_table(tables.searches)
    time = whole.column_names.index("time")
    nanoseconds = whole.set_column(time, "time", whole["time"].cast(pa.timestamp("ns")))
    for part, table in enumerate((whole.slice(0, 300), nanoseconds.slice(300))):
        pq.write_table(table, parts / f"{part}.parquet")
    config = tmp_path / "spark.toml"
    written = (
        f'[logs]\nsearches = "{parts}"\nimpressions = "{tables.impressions}"\n'
        f"[mine]\nmin_users = 3\nmax_session_searches = 40\nnum_threads = 1\n"
        f"memory_limit_mb = 1024\n{SETTINGS[name]}\n"
    )
    config.write_text(written + 'engine = "spark"\n')
    on_spark(config, tmp_path / "num_users=99")
    config.write_text(written)
    mine(
        read_config(config),
        searches=str(parts),
        impressions=str(tables.impressions),
        out=tmp_path / "duckdb",
        report=lambda _: None,
    )
    expected, found = tmp_path / "duckdb", tmp_path / "num_users=99/mined"
    assert sorted(p.name for p in found.iterdir()) == sorted(p.name for p in expected.iterdir())
    for path in expected.iterdir():
        if path.suffix == ".json":
            assert json.loads((found / path.name).read_text()) == json.loads(path.read_text())
            continue
        ours, theirs = pq.read_table(found / path.name), pq.read_table(path)
        assert ours.schema.equals(theirs.schema), path.name
        assert path.stem == "robots" or len(theirs) > 20
        for column in theirs.column_names:
            values = theirs[column].to_pylist()
            if column in ("association", "propensity"):
                values = pytest.approx(values, abs=1e-9)
            assert ours[column].to_pylist() == values, (path.name, column)


def test_mistakes_in_the_tables_are_told_as_on_duckdb(tmp_path: Path) -> None:
    config = tmp_path / "spark.toml"
    (tmp_path / "broken.parquet").write_text("session_id,time,query")
    columns = {"session_id": ["s"], "time": pa.array([START], pa.timestamp("us")), "query": ["q"]}
    for name, kind in {"_a": "us", "12:00": "us", "odd": "ns"}.items():
        more = pa.array([0], pa.time64(kind))
        pq.write_table(pa.table({**columns, "more": more}), tmp_path / f"{name}.parquet")
    told = {
        "broken": "",
        "_a": 'Spark reads no file whose name starts with "_"',
        "12:00": "Spark reads no file",
        "odd": "org.apache.spark.sql.AnalysisException: Illegal Parquet type: INT64 (TIME(NANOS",
    }
    places = [str(tmp_path / f"{name}.parquet") for name in told]
    config.write_text(f'logs.searches = {json.dumps(places)}\nmine.engine = "spark"\n')
    with pytest.raises(AssertionError) as refused:
        on_spark(config, tmp_path / "spark")
    for place, why in zip(places, told.values(), strict=True):
        assert f"{place} cannot be read as parquet: {why}" in str(refused.value)
    assert not (tmp_path / "spark/mined").exists()
