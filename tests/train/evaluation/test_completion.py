"""Completion figures: prefixes, ranks by hand, the guard against leaks, and a whole evaluation."""

import json
from collections import Counter
from functools import partial

import msgspec
import numpy as np
import pytest

from train.evaluation import completion
from train.evaluation.baselines import MostPopular, SuffixCompletion
from train.evaluation.completion import Case
from train.evaluation.traffic import Traffic, read_mined, read_traffic

NEW = ["violet umbrella stand", "umbrella for two", "gaming desk", "stainless tray", "c++ tutorial"]


def test_prefixes_have_all_lengths_up_to_ten_and_never_the_whole_query():
    query = "wireless earbuds for kids"
    prefixes = Counter(completion.prefix_of(query, f"seed {i}") for i in range(4000))
    assert set(prefixes) == {query[:n] for n in range(1, 11)}  # "wireless " keeps its space
    assert all(300 < count < 500 for count in prefixes.values())
    assert {completion.prefix_of("abc", str(i)) for i in range(50)} == {"a", "ab"}
    assert completion.prefix_of("a", "seed") == ""


def test_cases_do_not_change_from_run_to_run_but_with_the_seed():
    assert completion.cases_of(NEW, 0) == completion.cases_of(NEW, 0)
    assert completion.cases_of(NEW, 0) != completion.cases_of(NEW, 1)
    assert completion.cases_of(["x"], 0) == []


def test_ranks_by_hand():
    answers = {
        "re": ["red hat", "Red  Shoes", "red shoes", "reddish"],
        "ga": [*(f"garden {i}" for i in range(10)), "garden hose"],
        "qq": [],
    }
    cases = [
        Case("re", "red hat"),
        Case("re", "reddish"),  # third: the two spellings of red shoes are one suggestion
        Case("ga", "garden hose"),  # eleventh
        Case("ga", "garden 9"),
        Case("qq", "qqq"),
    ]
    asked: list[str] = []

    def complete(prefixes):
        asked.extend(prefixes)
        return [answers[p] for p in prefixes]

    ranks = completion.reciprocal_ranks(cases, complete)
    assert ranks.tolist() == [1.0, 1 / 3, 0.0, 0.1, 0.0]
    assert asked == ["ga", "qq", "re"]  # each once


def test_queries_of_the_log_are_never_unseen_whatever_their_spelling():
    traffic = Traffic(Counter({"red shoes": 1}), Counter({"wi-fi router": 2}), {}, [])
    queries = ["Red  SHOES", "wi fi router", "red shoe", "red shoe", ""]
    assert completion.never_searched(queries, traffic) == ["red shoe"]


def test_seen_queries_are_drawn_as_often_as_they_are_searched():
    drawn = Counter(completion.drawn({"often": 90, "rarely": 10}, 5000, 0))
    assert 0.88 < drawn["often"] / drawn.total() < 0.92


@pytest.fixture(scope="module")
def report(served, run):
    leaked = list(read_traffic(run).before)[:3]
    return completion.evaluate_completion(
        served, run, unseen={"unseen": [*NEW, *leaked]}, num_cases=60, report=lambda _: None
    )


def test_queries_that_leaked_into_the_log_are_left_out_and_counted(report):
    assert report.num_in_log == {"unseen": 3}
    unseen = [s for s in report.scores if s.slice == "unseen"]
    assert {s.num_queries for s in unseen} == {len(NEW)}


def test_baselines_score_what_they_suggest(report, run):
    mined, traffic = read_mined(run), read_traffic(run)
    seen = {q: n for q, n in traffic.after.items() if q in mined.counts and q in traffic.before}
    cases = completion.cases_of(completion.drawn(seen, 60, 0), 0)
    popular, suffix = MostPopular(mined.log()), SuffixCompletion(mined.log())
    for system, suggest in (
        ("most_popular", partial(popular.suggest, completes_prefix=True)),
        ("suffix_completion", suffix.suggest),
    ):
        ranks = []
        for case in cases:
            texts = suggest(case.prefix, 10)
            ranks.append(1 / (texts.index(case.query) + 1) if case.query in texts else 0.0)
        score = next(s for s in report.scores if (s.slice, s.system) == ("seen", system))
        assert score.mrr.mean == pytest.approx(np.mean(ranks))
        assert score.success.mean == pytest.approx(np.mean([r > 0 for r in ranks]))
        weights = {b: sum(lo <= len(c.prefix) <= hi for c in cases) / len(cases)
                   for b, (lo, hi) in completion.BANDS.items()}  # fmt: skip
        by_length = sum(weights[b] * i.mean for b, i in score.mrr_by_length.items())
        assert by_length == pytest.approx(score.mrr.mean)


def test_scripts_with_enough_test_queries_have_a_figure_of_their_own():
    cases = [completion.Case("a", "abc")] * 40 + [completion.Case("あ", "あい")] * 30
    cases += [completion.Case("п", "при")] * 5
    rank_U = np.array([0.5] * 40 + [0.25] * 30 + [1.0] * 5)
    score = completion._score("unseen", "engine", cases, rank_U)
    assert {s: i.mean for s, i in score.mrr_by_script.items()} == {"ascii": 0.5, "cjk": 0.25}


def test_popular_queries_are_found_and_only_ones_from_the_log(report):
    mrr = {(s.slice, s.system): s.mrr.mean for s in report.scores}
    assert mrr["seen", "most_popular"] > 0.3
    assert mrr["seen", "character_model"] > 0.2
    assert mrr["unseen", "most_popular"] == 0.0
    assert {system for _, system in mrr} == {
        "engine", "generator", "most_popular", "suffix_completion", "character_model"
    }  # fmt: skip


def test_goals_are_ratios_to_the_right_rival(report):
    mrr = {(s.slice, s.system): s.mrr.mean for s in report.scores}
    seen, unseen = report.goals
    assert (seen.slice, seen.rival, seen.at_least) == ("seen", "most_popular", 1.0)
    assert seen.ratio.mean == pytest.approx(mrr["seen", "engine"] / mrr["seen", "most_popular"])
    best = max(("suffix_completion", "character_model"), key=lambda s: mrr["unseen", s])
    assert (unseen.slice, unseen.rival, unseen.at_least) == ("unseen", best, 1.3)
    verdicts = {goal.slice: goal.verdict for goal in report.goals}
    assert verdicts["seen"] == ("met" if seen.ratio.low >= 1 else
                                "missed" if seen.ratio.high < 1 else "open")  # fmt: skip


def test_the_report_is_json_and_says_what_is_simulated(report):
    fields = json.loads(msgspec.json.encode(report))
    assert fields["is_simulated"] is False  # the run names a log of its own
    assert 0 < fields["seen_share"] <= 1


def test_a_slice_without_a_test_query_is_left_out(served, run):
    known = list(read_traffic(run).before)
    report = completion.evaluate_completion(
        served, run, unseen={"unseen": known}, num_cases=5, report=lambda _: None
    )
    assert report.left_out == {
        "unseen": "the log has all of its queries that are longer than a character"
    }
    assert {score.slice for score in report.scores} == {"seen"}
    assert [goal.slice for goal in report.goals] == ["seen"]
