"""Rows of an ablation against values computed by hand, with a truth made for the purpose."""

from collections.abc import Sequence

import numpy as np
import pytest

from train.clicks.judge import Judged
from train.evaluation.lists import ProducedList
from train.evaluation.served import ServedBundle
from train.report.ablation import ablation_rows, list_ctr
from train.report.placebo import PlaceboJudge


class LengthTruth:
    """A text of n letters is clicked with probability n / 10, wherever it stands."""

    def list_click_probabilities(
        self, scenario, queries, listings, *, sessions=None, questions=None
    ):
        return [np.array([len(text) / 10 for text in texts]) for texts in listings]


class Served(ServedBundle):
    """An encoder for which a text is what its first letter says."""

    def __init__(self) -> None:
        """Loads no bundle."""

    def embeddings(self, texts: Sequence[str]) -> list:
        return [np.eye(26)[ord(text[0].lower()) - ord("a")] for text in texts]


def lists(system: str, *texts: tuple[str, ...]) -> list[ProducedList]:
    scenarios = ["suggestion", "suggestion", "completion"]
    return [
        ProducedList(scenario=s, query=f"a{i}", system=system, texts=t)
        for i, (s, t) in enumerate(zip(scenarios, texts, strict=True))
    ]


ONE = lists("one", ("a", "bb"), ("ab",), ())
TWO = lists("two", ("aaaa", "aa"), ("abcd", "ABCD"), ("aa",))


def test_an_empty_place_of_a_list_is_not_clicked() -> None:
    assert list_ctr(ONE, LengthTruth(), 2).tolist() == pytest.approx([0.15, 0.1, 0.0])
    assert list_ctr(TWO, LengthTruth(), 2).tolist() == pytest.approx([0.3, 0.4, 0.1])


def test_rows_hold_means_gains_relevance_and_distinct_texts() -> None:
    one, two = ablation_rows([ONE, TWO], LengthTruth(), Served(), num_listed=2, baseline="one")
    assert one.true_ctr == pytest.approx(0.25 / 3)
    assert two.true_ctr == pytest.approx(0.8 / 3)
    assert one.ci_low <= one.true_ctr <= one.ci_high
    assert (one.gain.mean, one.gain.high) == pytest.approx((1, 1))
    assert two.gain.mean == pytest.approx(0.8 / 0.25)
    assert two.gain_by_scenario["suggestion"].mean == pytest.approx(0.7 / 0.25)
    assert one.by_scenario["completion"].mean == 0
    assert one.relevance == pytest.approx((0.5 + 1) / 2)  # the empty list does not count
    assert one.distinct == pytest.approx(3 / 6)
    assert two.distinct == pytest.approx(4 / 6)  # abcd and ABCD say the same


def test_a_query_of_several_scenarios_counts_once_in_intervals() -> None:
    """Asked three times over, queries say no more than once."""
    texts = [("a" * (1 + i % 9),) for i in range(40)]
    scenarios = ["suggestion", "completion", "clarification"]
    once, thrice = (
        [
            ProducedList(scenario=scenario, query=f"a{i}", system="one", texts=text)
            for scenario in asked
            for i, text in enumerate(texts)
        ]
        for asked in (scenarios[:1], scenarios)
    )
    (alone,), (together,) = (
        ablation_rows([lists], LengthTruth(), Served(), num_listed=1, baseline="one")
        for lists in (once, thrice)
    )
    assert (together.ci_low, together.ci_high) == pytest.approx((alone.ci_low, alone.ci_high))


def test_systems_must_answer_the_same_questions() -> None:
    with pytest.raises(ValueError, match="'two' does not answer the questions"):
        ablation_rows([ONE, TWO[::-1]], LengthTruth(), Served(), num_listed=2, baseline="one")
    with pytest.raises(ValueError, match="no system 'three'"):
        ablation_rows([ONE, TWO], LengthTruth(), Served(), num_listed=2, baseline="three")


def test_a_placebo_is_consistent_and_knows_nothing() -> None:
    judge = PlaceboJudge(seed=0)
    texts = [f"text {i}" for i in range(2000)]
    (first,), (second,) = (judge([Judged("s", "q", [], t)], level=0.8) for t in (texts, texts[:5]))
    assert first.p_seen_C[:5].tolist() == second.p_seen_C.tolist()
    assert first.p_seen_C.mean() == pytest.approx(0.1, abs=0.01)
    (other,) = judge([Judged("s", "another", [], texts)], level=0.8)
    assert abs(np.corrcoef(first.p_seen_C, other.p_seen_C)[0, 1]) < 0.1
