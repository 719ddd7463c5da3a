"""The best lists of a pool by a truth, against all lists that there are."""

from itertools import permutations

import numpy as np

from train.report.ceiling import Pool, best_lists


class EndingTruth:
    """A text of n letters is seen 1 / place, worth n / 100, nothing below one that ends like it.

    All options of a clarification are worth less for each that is a "bad" one.
    """

    def list_click_probabilities(
        self, scenario, queries, listings, *, sessions=None, questions=None
    ):
        clicked = []
        for texts in listings:
            p_click = [
                len(text) / 100 / place * all(text[-1] != t[-1] for t in texts[: place - 1])
                for place, text in enumerate(texts, start=1)
            ]
            if scenario == "clarification":
                p_click = [p * 0.5 ** sum("bad" in t for t in texts) for p in p_click]
            clicked.append(np.array(p_click))
        return clicked


TEXTS = ["aaaax", "aaaaaaax", "bbby", "bby", "cccccz", "c", "ddddddz"]


def pool(scenario: str, texts: list[str], query: str = "q") -> Pool:
    return Pool(scenario, query, texts, "")


def test_a_list_is_the_best_of_all_that_can_be_made_of_its_texts() -> None:
    truth = EndingTruth()
    (found,) = best_lists(truth, [pool("suggestion", TEXTS)], 4)
    every = [list(texts) for texts in permutations(TEXTS, 4)]
    worth = truth.list_click_probabilities("suggestion", ["q"] * len(every), every)
    best = max(float(p.sum()) for p in worth)
    (own,) = truth.list_click_probabilities("suggestion", ["q"], [found])
    assert found == ["aaaaaaax", "ddddddz", "bbby", "c"]
    assert float(own.sum()) == best


def test_a_list_ends_where_another_text_would_cost_clicks() -> None:
    pools = [pool("clarification", ["bad bad x", "fine y", "bad z"]), pool("clarification", [])]
    assert best_lists(EndingTruth(), pools, 5) == [["fine y"], []]


def test_pools_of_all_scenarios_are_answered_in_their_order() -> None:
    pools = [
        pool("clarification" if i % 3 else "suggestion", [f"{'a' * (1 + i % 5)}{i}"], f"q{i}")
        for i in range(50)
    ]
    assert best_lists(EndingTruth(), pools, 2) == [list(p.texts) for p in pools]
