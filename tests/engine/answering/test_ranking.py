"""Ranking: calibration, variety, position and exploration."""

import math
import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.answering.answer import Question
from engine.answering.candidates import Candidate
from engine.answering.ranking import (
    click_probability,
    completion_likelihoods,
    diverse_order,
    explored,
    ranked,
    seen_probabilities,
    trust,
)
from engine.config import RankingConfig
from engine.feedback.attribution import Source
from engine.formats.manifest import ClickModelSpec, ScenarioSpec
from engine.scheduling.deadline import Deadline, MonotonicClock

SCENARIO = ScenarioSpec(name="s", description="", position_ctr=[1.0, 0.5, 0.25])
DEADLINE = Deadline.after(30.0, MonotonicClock())  # nothing here looks at it


def order(scores, texts, *, query="q", diversity=0.5, k=10):
    return diverse_order(np.array(scores, np.float32), texts, query, diversity=diversity, k=k)


def test_calibration_is_a_sigmoid_of_slope_and_intercept():
    spec = ClickModelSpec(
        file="",
        precision="fp32",
        inputs={},
        outputs={},
        feature_names=[],
        calibration={"s": (2.0, -1.0), "t": (2.0, -1.0)},
        unknown_calibration={"s": (1.0, -3.0)},
    )
    logits, is_known = np.array([0.0, 2.0, 2.0], np.float32), np.array([True, True, False])
    known = [1 / (1 + np.exp(1)), 1 / (1 + np.exp(1 - 4))]
    found = seen_probabilities(spec, "s", logits, is_known)
    assert found == pytest.approx([*known, 1 / (1 + np.exp(3 - 2))])
    assert found.dtype == np.float32
    # A scenario without a calibration of its own for unknown texts, and one without any.
    assert seen_probabilities(spec, "t", logits, is_known) == pytest.approx([*known, known[1]])
    assert seen_probabilities(spec, "other", logits[:1], is_known[:1]) == pytest.approx([0.5])


def test_distinct_texts_keep_the_order_of_their_scores():
    assert order([0.1, 0.3, 0.2], ["red", "blue", "green"]) == [1, 2, 0]


def test_ties_go_to_the_earlier_candidate():
    assert order([0.2, 0.2, 0.2], ["red", "blue", "green"]) == [0, 1, 2]


def test_a_near_duplicate_falls_behind_a_slightly_worse_but_different_text():
    texts = ["usb cable black", "black usb cable", "usb hub"]
    assert order([0.30, 0.29, 0.20], texts, query="usb") == [0, 2, 1]
    assert order([0.30, 0.29, 0.20], texts, query="usb", diversity=0) == [0, 1, 2]


def test_texts_without_spaces_repeat_one_another_too():
    texts = ["無線耳機推薦運動", "推薦運動無線耳機", "喇叭"]
    assert order([0.30, 0.29, 0.25], texts, query="耳機") == [0, 2, 1]


def test_sharing_only_the_words_of_the_query_is_no_repetition():
    texts = ["wireless earbuds cheap", "wireless earbuds kids", "lamp"]
    assert order([0.30, 0.29, 0.20], texts, query="wireless earbuds") == [0, 1, 2]


def by_hand(scores, texts, query, diversity, k):
    """Picks one by one, with sets of words."""
    asked = set(query.split())

    def weight(words):
        return len(words - asked) + 0.25 * len(words & asked)

    def similarity(a, b):
        a, b = set(a.split()), set(b.split())
        return weight(a & b) / weight(a | b)

    picks: list[int] = []
    while len(picks) < min(k, len(texts)):
        adjusted = {
            i: scores[i]
            * (1 - diversity * max((2 * similarity(t, texts[p]) - 1 for p in picks), default=0))
            if any(similarity(t, texts[p]) > 0.5 for p in picks)
            else scores[i]
            for i, t in enumerate(texts)
            if i not in picks
        }
        picks.append(max(adjusted, key=lambda i: (round(adjusted[i], 9), -i)))
    return picks


@settings(max_examples=200, deadline=None)
@given(
    texts=st.lists(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=4).map(" ".join)),
    query=st.lists(st.sampled_from("abg"), min_size=1, max_size=3).map(" ".join),
    diversity=st.sampled_from([0.25, 0.5, 1.0]),
    seed=st.integers(0, 99),
)
def test_picks_are_those_made_by_hand(texts, query, diversity, seed):
    # Scores that no penalty makes equal.
    scores = np.random.default_rng(seed).uniform(0.1, 0.9, len(texts)).astype(np.float32)
    expected = by_hand(scores.tolist(), texts, query, diversity, k=5)
    assert order(scores, texts, query=query, diversity=diversity, k=5) == expected


def test_no_more_than_k_are_picked():
    assert len(order([0.1] * 5, list("abcde"), k=3)) == 3


def test_what_the_generator_finds_less_probable_counts_less_and_what_it_did_not_write_least():
    assert trust([0, 1, None, 3], 0.5) == pytest.approx([1, 2**-0.5, 5**-0.5, 4**-0.5])
    assert trust([0, 1, None], 0.0).tolist() == [1, 1, 1]
    assert trust([None, None], 0.5).tolist() == [1, 1]  # nothing was written


def ranked_texts(places, p_seen, *, is_best_first=True, searches=None, **config):
    candidates = [
        Candidate(f"text{i}", f"text{i}", Source.LOG, (searches or {}).get(i, 0.0), place=p)
        for i, p in places.items()
    ]
    question = Question(scenario=SCENARIO, query="q", num_suggestions=3, deadline=DEADLINE)
    return ranked(
        question,
        candidates,
        np.array(p_seen, np.float32),
        is_scored=True,
        is_best_first=is_best_first,
        num_searches=None,
        config=RankingConfig(**config),
        randomness=random.Random(0),
    )


def test_the_second_opinion_turns_near_ties_and_leaves_probabilities_alone():
    places, p_seen = {0: None, 1: 1, 2: 0}, [0.20, 0.18, 0.12]
    found = ranked_texts(places, p_seen, generator_weight=0.3)
    assert [s.text for s in found] == ["text1", "text0", "text2"]
    assert [s.click_probability for s in found] == pytest.approx([0.18, 0.20 / 2, 0.12 / 4])
    changes: tuple[dict[str, Any], ...] = ({"generator_weight": 0.0}, {"is_best_first": False})
    for change in changes:
        assert [s.text for s in ranked_texts(places, p_seen, **change)] == [
            "text0",
            "text1",
            "text2",
        ]


def test_what_was_written_counts_whether_or_not_it_is_scored():
    """Three texts were written, of which one is scored: the log's is after all of them."""
    found = ranked_texts({0: 0, 1: None, 2: 1, 3: 2}, [0.2, 0.35], generator_weight=0.5)
    # .35 * 4 ** -.5 is less than .2; .35 * 2 ** -.5, with one text written, would be more.
    assert [s.text for s in found[:2]] == ["text0", "text1"]


@pytest.mark.parametrize(("p_seen", "of_others"), [([0.04, 0.3], 0.04), ([0.2, 0.3], 0.1)])
def test_what_is_not_scored_comes_last_and_is_taken_for_no_better_than_the_worst(p_seen, of_others):
    found = ranked_texts({0: None, 1: None, 2: None}, p_seen)
    assert [s.text for s in found] == ["text1", "text0", "text2"]
    expected = [p_seen[1], p_seen[0] / 2, of_others / 4]
    assert [s.click_probability for s in found] == pytest.approx(expected)


def test_what_people_search_turns_near_ties_and_leaves_probabilities_alone():
    places, p_seen = {0: None, 1: None}, [0.2, 0.15]
    found = ranked_texts(places, p_seen, searches={1: 31}, popularity_weight=0.2)
    assert [s.text for s in found] == ["text1", "text0"]  # .15 * 32 ** .2 is .3
    assert [s.click_probability for s in found] == pytest.approx([0.15, 0.1])
    found = ranked_texts(places, p_seen, searches={1: 31}, popularity_weight=0.0)
    assert [s.text for s in found] == ["text0", "text1"]


def completions() -> list[Candidate]:
    both = Source.LOG | Source.GENERATED
    return [
        Candidate("known", "known", Source.LOG, popularity=30.0),
        Candidate("both", "both", both, popularity=10.0, place=0, logprob=math.log(0.5)),
        Candidate("written", "written", Source.GENERATED, place=1, logprob=math.log(0.2)),
        Candidate("further", "further", Source.GENERATED, place=2),
        Candidate("suffix", "suffix", Source.LOG),
    ]


def test_how_probable_a_completion_is_is_known_to_the_log_and_to_the_generator():
    expected = [0.8 * 0.75, 0.8 * 0.25 + 0.2 * 0.5, 0.2 * 0.2, 0.2 * 0.2, 0]
    found = completion_likelihoods(completions(), 40.0)
    assert found == pytest.approx([e + 0.001 for e in expected])
    # Where one text is nearly certain, further ones share what it leaves.
    sure = Candidate("sure", "sure", Source.GENERATED, place=0, logprob=math.log(0.95))
    further = Candidate("further", "further", Source.GENERATED, place=1)
    found = completion_likelihoods([sure, further], 10.0)
    assert found == pytest.approx([0.2 * 0.95 + 0.001, 0.2 * 0.05 + 0.001])
    nobody = completion_likelihoods([Candidate("a", "a", Source.GENERATED, place=0)], 0.0)
    assert nobody == pytest.approx([0.001])


def ranked_completions(p_seen, num_searches, **config):
    question = Question(scenario=SCENARIO, query="q", num_suggestions=5, deadline=DEADLINE)
    found = ranked(
        question,
        completions(),
        np.array(p_seen, np.float32),
        is_scored=bool(p_seen),
        is_best_first=True,
        num_searches=num_searches,
        config=RankingConfig(**config),
        randomness=random.Random(0),
    )
    return [s.text for s in found]


def test_completions_compete_by_clicks_and_by_what_is_being_typed():
    p_seen = [0.1, 0.15, 0.4, 0.1, 0.9]
    alone = ranked_completions(p_seen, 40.0, completion_weight=0.0)
    assert alone == ["suffix", "written", "both", "known", "further"]
    # .1 * .601, .15 * .301, .4 * .041, .1 * .041, .9 * .001
    both = ranked_completions(p_seen, 40.0, completion_weight=1.0)
    assert both == ["known", "both", "written", "further", "suffix"]


def test_completions_that_nothing_scores_go_by_what_is_being_typed():
    assert ranked_completions([], 40.0) == ["known", "both", "written", "further", "suffix"]
    # Of a prefix that is searched much, those are rare.
    assert ranked_completions([], 4000.0)[:2] == ["both", "written"]
    assert ranked_completions([], None) == ["known", "both", "written", "further", "suffix"]


def test_click_probability_falls_with_the_position_and_holds_beyond_the_last_known():
    values = [click_probability(0.4, SCENARIO, p) for p in (1, 2, 3, 4)]
    assert values == pytest.approx([0.4, 0.2, 0.1, 0.1])


def test_without_exploration_the_order_stands():
    assert explored(4, 0.0, random.Random(0)) == ([0, 1, 2, 3], [1.0] * 4)


def test_propensities_are_the_frequencies_of_each_item_at_each_place():
    rate, runs, num = 0.8, 20_000, 4
    randomness = random.Random(7)
    seen, claimed = Counter(), {}
    for _ in range(runs):
        places, propensities = explored(num, rate, randomness)
        for place, (item, propensity) in enumerate(zip(places, propensities, strict=True)):
            seen[item, place] += 1
            claimed[item, place] = propensity
    assert len(claimed) == num + 2 * (num - 1)
    for key, propensity in claimed.items():
        assert seen[key] / runs == pytest.approx(propensity, abs=0.015)
