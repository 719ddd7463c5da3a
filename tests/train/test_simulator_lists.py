"""Baselines from a log, and what lists are worth by a truth."""

import datetime
import json

import numpy as np
import pytest

from benchmarks import truth as truth_benchmark
from train.evaluation.baselines import Adjacency, MostPopular, NearestNeighbour, SearchLog
from train.evaluation.lists import ProducedList, true_ctr

NOON = datetime.datetime(2026, 1, 1, 12, tzinfo=datetime.UTC)


@pytest.fixture
def log():
    searches = [
        ("s1", 0, "red shoes"),
        ("s1", 1, "red shoes for women"),
        ("s2", 0, "red shoes"),
        ("s2", 1, "red shoes for women"),
        ("s2", 90, "weather"),
        ("s3", 0, "red shoes"),
        ("s3", 1, "red boots"),
        ("s4", 0, "weather"),
        ("s5", 0, "rental cars"),
    ]
    return SearchLog.of(
        (session, NOON + datetime.timedelta(minutes=m), query) for session, m, query in searches
    )


class CountingTruth:
    """A truth whose items are clicked with 0.1 for each letter "x" in them."""

    def list_click_probabilities(
        self, scenario, queries, listings, *, sessions=None, questions=None
    ):
        return [np.array([0.1 * text.count("x") for text in listing]) for listing in listings]


def produced(query, *texts, system="ours", sources=()):
    return ProducedList(
        scenario="suggestion", query=query, system=system, texts=texts, sources=sources
    )


def test_most_popular_lists_the_most_searched_but_never_the_query(log):
    assert MostPopular(log).suggest("weather", 2) == [
        "red shoes",
        "red shoes for women",
    ]
    assert "red shoes" not in MostPopular(log).suggest("red shoes", 9)


def test_most_popular_completions_start_with_the_prefix_and_back_off_to_the_last_word(log):
    popular = MostPopular(log)
    assert popular.suggest("re", 3, completes_prefix=True) == [
        "red shoes",
        "red shoes for women",
        "red boots",
    ]
    assert popular.suggest("red shoes ", 3, completes_prefix=True) == ["red shoes for women"]
    assert popular.suggest("cheap ren", 3, completes_prefix=True) == ["cheap rental cars"]


def test_nearest_neighbours_share_letters_and_the_popular_win_ties(log):
    assert NearestNeighbour(log).suggest("womens red shoe", 1) == ["red shoes for women"]
    assert NearestNeighbour(log).suggest("zzz", 5) == []
    assert NearestNeighbour(log).suggest("red s", 5, completes_prefix=True)[0] == "red shoes"


def test_adjacency_counts_followers_within_half_an_hour(log):
    adjacency = Adjacency(log)
    assert adjacency.suggest("red shoes", 5) == ["red shoes for women", "red boots"]
    assert adjacency.suggest("red shoes for women", 5) == []
    assert adjacency.suggest("never searched", 5) == []


def test_an_empty_log_is_refused():
    with pytest.raises(ValueError, match="empty"):
        SearchLog.of([])


def test_missing_items_count_as_nothing():
    rows = true_ctr(CountingTruth(), [produced("a", "x", "x"), produced("b", "x")])
    assert rows[0].list_value.mean == pytest.approx(0.15)
    assert rows[0].click_probability.mean == pytest.approx(0.075)
    assert rows[0].num_items == 2


def test_ratios_are_paired_and_of_equal_length():
    class Fixed:
        def suggest(self, query, num, *, completes_prefix):
            return ["x", "x", "x"][:num]

    lists = [produced(str(i), "xx", "xx", sources=("generated", "log")) for i in range(30)]
    ours, rival = true_ctr(CountingTruth(), lists, baselines={"fixed": Fixed()})
    assert ours.ratios["fixed"] == pytest.approx((2.0, 2.0, 2.0))
    assert rival.system == "fixed"
    assert rival.num_items == 2
    assert ours.generated_share == 0.5
    assert rival.generated_share is None


def test_intervals_hold_the_mean_and_narrow_with_more_queries():
    rng = np.random.default_rng(0)
    texts = ["x" * int(n) for n in rng.integers(0, 6, 400)]
    few = true_ctr(CountingTruth(), [produced(str(i), t) for i, t in enumerate(texts[:20])])[0]
    many = true_ctr(CountingTruth(), [produced(str(i), t) for i, t in enumerate(texts)])[0]
    for row in (few, many):
        assert row.list_value.low < row.list_value.mean < row.list_value.high
    width_few = few.list_value.high - few.list_value.low
    assert many.list_value.high - many.list_value.low < width_few / 2


def test_no_lists_and_clashing_names_are_refused(log):
    with pytest.raises(ValueError, match="no list"):
        true_ctr(CountingTruth(), [])
    with pytest.raises(ValueError, match="'ours' names a system and a baseline"):
        true_ctr(CountingTruth(), [produced("a", "x")], baselines={"ours": MostPopular(log)})


def test_the_benchmark_refuses_seen_queries_and_broken_lines(tmp_path):
    path = tmp_path / "lists.jsonl"
    line = {"scenario": "completion", "query": "red s", "system": "ours", "texts": ["red shoes"]}
    path.write_text(json.dumps(line) + "\n")
    lists = truth_benchmark.read_lists(path)
    truth_benchmark.check_heldout(lists, ["blue", "red shoes"])
    with pytest.raises(ValueError, match="'red s'"):
        truth_benchmark.check_heldout(lists, ["blue"])
    path.write_text('{"scenario": "completion"}\n')
    with pytest.raises(ValueError, match="line 1"):
        truth_benchmark.read_lists(path)
