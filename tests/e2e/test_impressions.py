"""From a click in a running engine to a table that training accepts."""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from queryrec.client import QueryRecClient
from train.mining.logs import connect, open_tables
from train.settings import MineConfig

EXAMPLE_BUNDLE = Path(__file__).parents[2] / "examples/bundle"


def engine_command(*arguments: object) -> str:
    """Runs `queryrec-engine` in a process of its own; returns what it printed."""
    run = subprocess.run(
        [sys.executable, "-m", "engine", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONSAFEPATH": "1"},
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_a_click_reaches_the_table_that_training_reads(
    tiny_bundle, tmp_path, start_engine, stop_engine
):
    engine = start_engine(tiny_bundle, tmp_path)
    asked = ("--target", engine.target, "--timeout-ms", 10000, "--clicks", 1)
    engine_command("ask", "wireless mouse", *asked)
    assert stop_engine(engine) == 0
    out = tmp_path / "impressions.parquet"

    printed = engine_command("impressions", "--feedback", engine.feedback_directory, "--out", out)

    rows = pq.read_table(out).to_pylist()
    assert f"{len(rows)} rows of 1 requests" in printed
    assert f"{len(rows)} shown, 1 clicked" in printed
    assert [r["position"] for r in rows] == list(range(1, len(rows) + 1))
    assert [r["clicked"] for r in rows] == [True] + [False] * (len(rows) - 1)
    assert {r["query"] for r in rows} == {"wireless mouse"}
    assert {r["source"] for r in rows} <= {"log", "generated", "both"}

    searches = pa.table({"session_id": ["s"], "time": [rows[0]["time"]], "query": ["wireless"]})
    pq.write_table(searches, tmp_path / "searches.parquet")
    connection = connect(MineConfig(memory_limit_mb=256, num_threads=1), tmp_path / "spill")
    tables = open_tables(
        connection, searches=str(tmp_path / "searches.parquet"), impressions=str(out)
    )
    assert tables.impressions is not None
    assert tables.impressions.count().to_pyarrow().as_py() == len(rows)
    connection.disconnect()


async def test_a_question_reaches_the_table_with_the_options_it_was_shown_with(
    tmp_path, start_engine, stop_engine
):
    engine = start_engine(EXAMPLE_BUNDLE, tmp_path)
    async with QueryRecClient(engine.target, timeout_s=30) as client:
        answer = await client.recommend("clarification", "running shoes", latency_budget_s=10)
        await client.record_feedback([answer.event("click", 1)])
    assert stop_engine(engine) == 0
    out = tmp_path / "impressions.parquet"

    engine_command("impressions", "--feedback", engine.feedback_directory, "--out", out)

    assert answer.auxiliary_text
    rows = pq.read_table(out).to_pylist()
    assert [(r["auxiliary_text"], r["text"]) for r in rows] == [
        (answer.auxiliary_text, s.text) for s in answer.suggestions
    ]
