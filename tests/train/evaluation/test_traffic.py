"""What users searched before and after the cut, against what mining made of the same log."""

import dataclasses
from collections import Counter

import pyarrow.parquet as pq
import pytest

from engine.formats.text import normalise
from train.evaluation.traffic import Step, read_mined, read_traffic


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
