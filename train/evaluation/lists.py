"""What lists are worth by a simulated world's truth; it knows no model and trains nothing.

A list's value is its expected number of clicks, `sum over i of P(click at i)`; its click
probability is value / N, N the longest list of that system and scenario: a missing item counts 0.
Means are over queries, with percentile bootstrap intervals over queries (95 %); ratios to a
baseline are paired: both are resampled together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from train.evaluation.intervals import Interval, mean_interval, ratio_interval

_COMPLETION = "completion"  # scenario of a simulated world whose queries are prefixes


class ListTruth(Protocol):
    """A truth that scores lists, such as `train.simulator.Truth`."""

    def list_click_probabilities(
        self,
        scenario: str,
        queries: Sequence[str],
        listings: Sequence[Sequence[str]],
        *,
        sessions: Sequence[Sequence[str]] | None = None,
        questions: Sequence[str] | None = None,
    ) -> list[np.ndarray]:
        """Returns P(click) at each position of each list, float64."""
        ...


class Suggester(Protocol):
    """A baseline, such as `train.evaluation.baselines.MostPopular`."""

    def suggest(self, query: str, num: int, *, completes_prefix: bool) -> list[str]:
        """Returns up to `num` distinct texts, best first."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ProducedList:
    """One list that a system made.

    Attributes:
        scenario: which panel.
        query: the query, or the typed prefix.
        system: name of what made the list.
        texts: best first.
        sources: of each text, `log`, `generated` or `both`; may be empty if unknown.
        session_queries: earlier queries of the session, oldest first.
        auxiliary_text: the question above the options.
    """

    scenario: str
    query: str
    system: str
    texts: tuple[str, ...]
    sources: tuple[str, ...] = ()
    session_queries: tuple[str, ...] = ()
    auxiliary_text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TruthRow:
    """What one system's lists of one scenario are worth.

    Attributes:
        system: name.
        scenario: which panel.
        num_queries: distinct queries.
        num_items: N, the longest list.
        click_probability: mean of P(click) over N positions.
        list_value: mean of the expected clicks on a list.
        generated_share: share of texts whose source is not `log`; None if sources are unknown.
        ratios: list value over that of each baseline's lists of N for the same queries.
    """

    system: str
    scenario: str
    num_queries: int
    num_items: int
    click_probability: Interval
    list_value: Interval
    generated_share: float | None
    ratios: dict[str, Interval]


def true_ctr(
    truth: ListTruth,
    lists: Sequence[ProducedList],
    *,
    baselines: Mapping[str, Suggester] | None = None,
    num_resamples: int = 1000,
    seed: int = 0,
) -> list[TruthRow]:
    """Returns one row a (scenario, system), baselines after the systems they are compared with.

    Baselines answer the same queries with lists of the same N, the same session and, for
    clarification, the same question: a ratio compares options only.

    Args:
        truth: scores lists.
        lists: any number of systems and scenarios; several lists of one query are averaged.
        baselines: name -> baseline; the names must not be those of systems.
        num_resamples: of the bootstrap, at least 100.
        seed: of the bootstrap.

    Raises:
        ValueError: if there is no list, a name is used twice, or `num_resamples` is too small.
    """
    baselines = dict(baselines or {})
    if not lists:
        raise ValueError("no list to evaluate: expected at least one produced list")
    if num_resamples < 100:
        raise ValueError(f"num_resamples is {num_resamples}: expected at least 100")
    clash = sorted({produced.system for produced in lists} & set(baselines))
    if clash:
        raise ValueError(f"{clash[0]!r} names a system and a baseline: rename one of them")
    groups: dict[tuple[str, str], list[ProducedList]] = defaultdict(list)
    for produced in lists:
        groups[produced.scenario, produced.system].append(produced)
    rows: list[TruthRow] = []
    shown_baselines: set[tuple[str, str, int]] = set()
    for (scenario, _), group in sorted(groups.items()):
        num_items = max(len(produced.texts) for produced in group)
        value_of = _values(truth, scenario, group)
        ratios: dict[str, Interval] = {}
        extra: list[TruthRow] = []
        for name, baseline in baselines.items():
            rival = [
                ProducedList(
                    scenario=scenario,
                    query=produced.query,
                    system=name,
                    texts=tuple(
                        baseline.suggest(
                            produced.query, num_items, completes_prefix=scenario == _COMPLETION
                        )
                    ),
                    session_queries=produced.session_queries,
                    auxiliary_text=produced.auxiliary_text,
                )
                for produced in group
            ]
            rival_of = _values(truth, scenario, rival)
            ratios[name] = ratio_interval(value_of, rival_of, num_resamples, seed)
            if (scenario, name, num_items) not in shown_baselines:
                shown_baselines.add((scenario, name, num_items))
                extra.append(_row(rival, rival_of, num_items, {}, num_resamples, seed))
        rows += [_row(group, value_of, num_items, ratios, num_resamples, seed), *extra]
    return rows


def _values(truth: ListTruth, scenario: str, group: Sequence[ProducedList]) -> np.ndarray:
    """Returns the mean list value of each distinct query, float64, by order of first appearance."""
    clicked = truth.list_click_probabilities(
        scenario,
        [produced.query for produced in group],
        [produced.texts for produced in group],
        sessions=[produced.session_queries for produced in group],
        questions=[produced.auxiliary_text for produced in group],
    )
    at = {query: i for i, query in enumerate(dict.fromkeys(p.query for p in group))}
    rows = np.array([at[produced.query] for produced in group])
    values = np.array([float(probabilities.sum()) for probabilities in clicked])
    return np.bincount(rows, values) / np.bincount(rows)


def _row(
    group: Sequence[ProducedList],
    value_of: np.ndarray,
    num_items: int,
    ratios: dict[str, Interval],
    num_resamples: int,
    seed: int,
) -> TruthRow:
    value = mean_interval(value_of, num_resamples, seed)
    sources = [source for produced in group for source in produced.sources]
    per_item = max(num_items, 1)
    return TruthRow(
        system=group[0].system,
        scenario=group[0].scenario,
        num_queries=len(value_of),
        num_items=num_items,
        click_probability=Interval(*(bound / per_item for bound in value)),
        list_value=value,
        generated_share=sum(s != "log" for s in sources) / len(sources) if sources else None,
        ratios=ratios,
    )
