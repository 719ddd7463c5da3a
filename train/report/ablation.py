"""What each step of training adds: lists of equal length for the same unseen questions.

Lists are worth what a simulated truth says, which no model has seen. Knows nothing of pages.
"""

# U units: a question of a scenario
from collections import Counter
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from engine.answering.candidates import key_of
from train.evaluation.intervals import Interval, mean_interval, ratio_interval
from train.evaluation.lists import ListTruth, ProducedList
from train.evaluation.served import ServedBundle

Floats = NDArray[np.float64]


class AblationRow(msgspec.Struct, frozen=True, kw_only=True):
    """What the lists of one system are worth.

    Attributes:
        name: of the system.
        true_ctr: mean true P(click) of a place in the list, over scenarios and questions; a place
            that stays empty is not clicked.
        ci_low: lower bound of its 95 % interval, by queries, in all their scenarios at once.
        ci_high: the upper one.
        relevance: mean cosine of query and texts by the bundle's encoder, which knows no clicks.
        distinct: distinct texts over places.
        gain: of `true_ctr` over that of the system it is compared with.
        by_scenario: `true_ctr` of each.
        gain_by_scenario: the same of `gain`.
    """

    name: str
    true_ctr: float
    ci_low: float
    ci_high: float
    relevance: float
    distinct: float
    gain: Interval
    by_scenario: dict[str, Interval]
    gain_by_scenario: dict[str, Interval]


def ablation_rows(
    systems: Sequence[Sequence[ProducedList]],
    truth: ListTruth,
    served: ServedBundle,
    *,
    num_listed: int,
    baseline: str,
) -> list[AblationRow]:
    """Returns a row a system.

    Args:
        systems: the lists of each, for the same questions in the same order.
        truth: scores them.
        served: whose encoder says what is relevant.
        num_listed: N.
        baseline: name of the system that gains are over.

    Raises:
        ValueError: systems answer different questions, or the baseline is not among them.
    """
    asked = [(produced.scenario, produced.query) for produced in systems[0]]
    for lists in systems:
        if [(produced.scenario, produced.query) for produced in lists] != asked:
            raise ValueError(f"{lists[0].system!r} does not answer the questions of the others")
    values = {lists[0].system: list_ctr(lists, truth, num_listed) for lists in systems}
    if baseline not in values:
        raise ValueError(f"there is no system {baseline!r} to compare with")
    scenario_U = np.array([scenario for scenario, _ in asked])
    query_U = queries_of(systems[0])
    base_U = values[baseline]
    rows: list[AblationRow] = []
    for lists in systems:
        name = lists[0].system
        value_U = values[name]
        whole = mean_interval(value_U, cluster_U=query_U)
        own = {s: scenario_U == s for s in dict.fromkeys(scenario_U.tolist())}
        rows.append(
            AblationRow(
                name=name,
                true_ctr=whole.mean,
                ci_low=whole.low,
                ci_high=whole.high,
                relevance=_relevance(lists, served),
                distinct=float(
                    np.mean([len({key_of(t) for t in p.texts}) for p in lists]) / num_listed
                ),
                gain=ratio_interval(value_U, base_U, cluster_U=query_U),
                by_scenario={s: mean_interval(value_U[is_own]) for s, is_own in own.items()},
                gain_by_scenario={
                    s: ratio_interval(value_U[is_own], base_U[is_own]) for s, is_own in own.items()
                },
            )
        )
    return rows


def queries_of(lists: Sequence[ProducedList]) -> list[int]:
    """Returns numbers that tell queries apart, (U): one query is asked in every scenario.

    Where a scenario completes, a prefix of it is; each scenario has them in the same order.
    """
    asked: Counter[str] = Counter()
    query_U: list[int] = []
    for produced in lists:
        query_U.append(asked[produced.scenario])
        asked[produced.scenario] += 1
    return query_U


def list_ctr(lists: Sequence[ProducedList], truth: ListTruth, num_listed: int) -> Floats:
    """Returns the mean true P(click) over the N places of each list, (U)."""
    value_U = np.zeros(len(lists))
    for scenario in dict.fromkeys(p.scenario for p in lists):
        places = [u for u, p in enumerate(lists) if p.scenario == scenario]
        own = [lists[u] for u in places]
        clicked = truth.list_click_probabilities(
            scenario,
            [p.query for p in own],
            [p.texts for p in own],
            sessions=[p.session_queries for p in own],
            questions=[p.auxiliary_text for p in own],
        )
        value_U[places] = [float(p.sum()) / num_listed for p in clicked]
    return value_U


def _relevance(lists: Sequence[ProducedList], served: ServedBundle) -> float:
    """Returns the mean over lists of the mean cosine of query and text."""
    texts = sorted({t for p in lists for t in (p.query, *p.texts)})
    vectors = dict(zip(texts, served.embeddings(texts), strict=True))
    if not texts or vectors[texts[0]] is None:
        return float("nan")
    means = [
        float(np.mean([vectors[t] @ vectors[p.query] for t in p.texts]))  # type: ignore[operator]
        for p in lists
        if p.texts
    ]
    return float(np.mean(means))
