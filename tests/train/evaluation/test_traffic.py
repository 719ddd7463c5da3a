"""What users searched before and after the cut, against what mining made of the same log."""

import dataclasses
from collections import Counter
from datetime import timedelta
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.formats.text import normalise
from tests.train.evaluation.conftest import START, write_log
from train.config import read_config
from train.evaluation.traffic import Step, read_mined, read_traffic
from train.mining.mine import SUMMARY, MineSummary, mine


def test_steps_are_those_that_mining_keeps_for_validation(run):
    mined, traffic = read_mined(run), read_traffic(run)
    steps = Counter(s for s in traffic.steps if {*s} <= mined.counts.keys())
    contexts = pq.read_table(run / "mined/contexts.parquet").to_pylist()
    expected: Counter[Step] = Counter()
    for row in contexts:
        if row["split"] == "valid":
            expected[Step(row["query"], row["target"])] += int(row["weight"])
    assert len(expected) > 50
    assert steps == expected


def test_steps_before_the_cut_hold_those_that_mining_trains_on(run):
    traffic = read_traffic(run)
    contexts = pq.read_table(run / "mined/contexts.parquet").to_pylist()
    trained: Counter[Step] = Counter()
    for row in contexts:
        if row["split"] == "train":
            trained[Step(row["query"], row["target"])] += int(row["weight"])
    assert trained
    for step, count in trained.items():
        assert traffic.followers[step.query][step.target] == count


def test_searches_before_and_after_are_all_that_can_be_used(run):
    mined, traffic = read_mined(run), read_traffic(run)
    for query, count in mined.counts.items():
        assert traffic.before[query] + traffic.after[query] == count
    raw = pq.read_table(run / "log.parquet")["query"].to_pylist()
    usable = Counter(normalise(q) for q in raw if "@" not in q and "1234" not in q and q.strip())
    assert traffic.before + traffic.after == usable
    share = traffic.after.total() / usable.total()
    assert share == pytest.approx(0.2, abs=0.01)


def write_impressions(path: Path, query: str, text: str) -> None:
    """Writes a panel every minute of the log's first half."""
    rows = [
        {
            "request_id": f"r{minute}",
            "time": START + timedelta(minutes=minute),
            "session_id": f"v{minute}",
            "scenario": "suggestion",
            "query": query,
            "side_information": [],
            "position": 1,
            "text": text,
            "source": "log",
            "shown": True,
            "clicked": minute % 3 == 0,
        }
        for minute in range(1700)
    ]
    item = pa.struct({"kind": pa.string(), "text": pa.string()})
    schema = pa.Table.from_pylist([{**rows[0], "side_information": None}]).schema
    place = schema.get_field_index("side_information")
    schema = schema.set(place, pa.field("side_information", pa.list_(item)))
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)


def test_held_out_impressions_hold_searches_out_here_too(run, tmp_path):
    known = sorted(read_mined(run).counts)
    write_log(tmp_path / "log.parquet", known)
    write_impressions(tmp_path / "impressions.parquet", *known[:2])
    (tmp_path / "config.toml").write_text(
        f'[logs]\nsearches = "{tmp_path / "log.parquet"}"\n'
        f'impressions = "{tmp_path / "impressions.parquet"}"\n'
        "[mine]\nmin_users = 3\nvalid_share = 0.2\nnum_threads = 1\n"
    )
    config = read_config(tmp_path / "config.toml")
    places = {"searches": config.logs.searches, "impressions": config.logs.impressions}
    mine(config, **places, out=tmp_path / "mined", report=lambda _: None)
    traffic = read_traffic(tmp_path)
    queries = pq.read_table(tmp_path / "mined/queries.parquet").to_pylist()
    before = {q["text"]: q["num_searches_before_cut"] for q in queries}
    assert {text: traffic.before[text] for text in before} == before
    assert traffic.after.total() > 0.5 * (traffic.before + traffic.after).total()
    # A summary of an older release does not tell the cut: searches are parted by their own times.
    path = tmp_path / "mined" / SUMMARY
    summary = msgspec.json.decode(path.read_bytes(), type=MineSummary)
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(summary, cut=None)))
    older = read_traffic(tmp_path)
    assert older.before + older.after == traffic.before + traffic.after
    share = older.after.total() / (older.before + older.after).total()
    assert share == pytest.approx(0.2, abs=0.01)


def test_baselines_get_steps_between_known_queries_only(run):
    mined, traffic = read_mined(run), read_traffic(run)
    known = mined.log(traffic)
    assert {t for targets in known.followers.values() for t in targets} <= mined.counts.keys()
    assert known.followers.keys() <= mined.counts.keys()
    assert any("only searched once" in t for c in traffic.followers.values() for t in c)
    assert dataclasses.asdict(mined.log())["followers"] == {}


def test_what_is_no_run_directory_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no mined/queries\.parquet"):
        read_mined(tmp_path)
    with pytest.raises(ValueError, match=r"no config\.toml"):
        read_traffic(tmp_path)
    (tmp_path / "config.toml").touch()
    with pytest.raises(ValueError, match=r"no mined/summary\.json"):
        read_traffic(tmp_path)
