"""The multilingual log: what is held out is not in it, and mining would keep all of it."""

import gzip
from collections import defaultdict

import pytest

from benchmarks.languages import write_log

QUERIES = [
    *(f"red shoe {i}" for i in range(200)),
    *(f"zapato de niño {i}" for i in range(60)),
    *(f"赤い 靴 {i}" for i in range(60)),
]


def test_the_log_keeps_every_script_and_holds_some_of_each_out(tmp_path):
    counts = write_log(QUERIES, tmp_path, num_ascii=100)
    with gzip.open(tmp_path / "heldout.txt.gz", "rt", encoding="utf-8") as stream:
        heldout = stream.read().splitlines()
    lines = (tmp_path / "searches.tsv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "session\ttime\tquery"
    sessions = defaultdict(set)
    for session, _, query in (line.split("\t") for line in lines[1:]):
        sessions[query].add(session)
    assert not set(heldout) & set(sessions)
    assert min(map(len, sessions.values())) >= 5  # as many as mining asks for
    assert len(lines) - 1 == counts["searches"].total()
    whole = counts["logged"] + counts["held_out"]
    assert whole == {"ascii": 100, "latin": 60, "cjk": 60}
    assert all(counts["held_out"][script] > 0 for script in whole)


def test_the_same_queries_give_the_same_log(tmp_path):
    for name in ("a", "b"):
        write_log(QUERIES, tmp_path / name, num_ascii=100)
    one, other = ((tmp_path / n / "searches.tsv").read_bytes() for n in ("a", "b"))
    assert one == other


def test_too_few_queries_are_refused(tmp_path):
    with pytest.raises(ValueError, match="1 queries make no log"):
        write_log(["red"], tmp_path, num_ascii=10)
