"""The best lists that can be composed of given texts, by a truth.

Texts are picked one by one from the top, each the one with which the list so far is clicked most:
by the truth's own probabilities of whole lists, so that what texts do to one another counts. Knows
nothing of who wrote the texts.
"""

# Q questions
from collections.abc import Sequence
from typing import NamedTuple

from train.evaluation.lists import ListTruth

_CHUNK = 16  # questions that the truth is asked at once: it holds arrays of all their lists


class Pool(NamedTuple):
    """Texts that a list for one question may be composed of."""

    scenario: str
    query: str
    texts: Sequence[str]  # distinct
    auxiliary_text: str  # above the list; empty if there is none


def best_lists(truth: ListTruth, pools: Sequence[Pool], num_listed: int) -> list[list[str]]:
    """Returns the best list of each pool, best text first.

    A list ends early where every further text would cost clicks. Ties go to the earlier text.

    Args:
        truth: scores lists.
        pools: of any scenarios.
        num_listed: texts of a list at most.
    """
    best: dict[int, list[str]] = {}
    for scenario in dict.fromkeys(pool.scenario for pool in pools):
        places = [i for i, pool in enumerate(pools) if pool.scenario == scenario]
        for start in range(0, len(places), _CHUNK):
            part = places[start : start + _CHUNK]
            found = _picked(truth, scenario, [pools[i] for i in part], num_listed)
            best |= zip(part, found, strict=True)
    return [best[i] for i in range(len(pools))]


def _picked(
    truth: ListTruth, scenario: str, pools: Sequence[Pool], num_listed: int
) -> list[list[str]]:
    picked_Q: list[list[str]] = [[] for _ in pools]
    worth_Q = [0.0] * len(pools)
    growing = range(len(pools))
    for _ in range(num_listed):
        tries = [
            (q, [*picked_Q[q], text])
            for q in growing
            for text in pools[q].texts
            if text not in picked_Q[q]
        ]
        clicked = truth.list_click_probabilities(
            scenario,
            [pools[q].query for q, _ in tries],
            [texts for _, texts in tries],
            questions=[pools[q].auxiliary_text for q, _ in tries],
        )
        best: dict[int, tuple[float, list[str]]] = {}
        for (q, texts), p_click in zip(tries, clicked, strict=True):
            worth = float(p_click.sum())
            if q not in best or worth > best[q][0]:
                best[q] = worth, texts
        growing = [q for q, (worth, _) in best.items() if worth >= worth_Q[q]]
        for q in growing:
            worth_Q[q], picked_Q[q] = best[q]
    return picked_Q
