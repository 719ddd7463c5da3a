"""Simulated panels and clicks: asks the policy what to show and the truth what is clicked.

For a suggestion or clarification, the query is what the user just searched; for a completion it is
a prefix of what the user searches next. Side information of kind `session` holds up to five earlier
queries of the session, oldest first. In three of twenty requests the panel has room for four items
only: the others are logged as not shown and cannot be clicked.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from train.simulator import clicks, policy
from train.simulator.policy import Candidate, LoggingPolicy
from train.simulator.sessions import Searches
from train.simulator.truth import Truth

NUM_SESSION_QUERIES = 5
_SMALL_PANEL_SHARE, _SMALL_PANEL = 0.15, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One request and what was shown; lists are by position.

    Attributes:
        search: row of the search that it belongs to.
        scenario: which panel.
        query: the query, or the typed prefix.
        session_queries: earlier queries, oldest first.
        question: text above the options; None where the scenario has none.
        items: what was listed.
        propensities: of each item's position.
        num_shown: items from this position on were not visible.
        clicked: whether each was clicked.
    """

    search: int
    scenario: str
    query: str
    session_queries: tuple[str, ...]
    question: str | None
    items: list[Candidate]
    propensities: list[float]
    num_shown: int
    clicked: list[bool]


def panels(
    truth: Truth,
    logging_policy: LoggingPolicy,
    queries: list[str],
    searches: Searches,
    scenario: str,
    *,
    num_requests: int,
    exploration_rate: float,
    seed: int,
) -> list[Panel]:
    """Returns up to `num_requests` panels of one scenario, fewer if too few searches allow one."""
    rng = np.random.default_rng([seed, 8, sorted(policy.NUM_SHOWN).index(scenario)])
    drafts: list[Panel] = []
    rows = rng.permutation(len(searches.query)).tolist()
    for row in rows:
        if len(drafts) == num_requests:
            break
        query = int(searches.query[row])
        # A session's rows are contiguous, and `step` counts those before this one.
        num_earlier = min(int(searches.step[row]), NUM_SESSION_QUERIES)
        earlier = tuple(queries[i] for i in searches.query[row - num_earlier : row].tolist())
        question, asked = None, queries[query]
        if scenario == "completion":
            asked = logging_policy.typed(asked, rng)
            picked = logging_policy.completions(asked, rng)
        elif scenario == "clarification":
            picked = logging_policy.options(query, rng)
            question = logging_policy.question(query, picked, rng) if picked else None
        else:
            picked = logging_policy.suggestions(query, rng)
        if len(picked) < 2:
            continue
        order, propensities = policy.explored(len(picked), exploration_rate, rng)
        is_small = rng.random() < _SMALL_PANEL_SHARE and scenario != "clarification"
        drafts.append(
            Panel(
                search=row,
                scenario=scenario,
                query=asked,
                session_queries=earlier,
                question=question,
                items=[picked[i] for i in order],
                propensities=propensities,
                num_shown=min(len(picked), _SMALL_PANEL) if is_small else len(picked),
                clicked=[],
            )
        )
    return _clicked(truth, scenario, drafts, rng)


def _clicked(
    truth: Truth, scenario: str, drafts: list[Panel], rng: np.random.Generator
) -> list[Panel]:
    for start in range(0, len(drafts), 4096):
        part = drafts[start : start + 4096]
        attraction_RN = truth.attraction_after_fatigue(
            scenario,
            [panel.query for panel in part],
            [[item.text for item in panel.items[: panel.num_shown]] for panel in part],
            sessions=[panel.session_queries for panel in part],
            questions=[panel.question or "" for panel in part],
        )
        clicked_RN = clicks.draw(attraction_RN, scenario, truth.click_model, rng)
        for panel, row in zip(part, clicked_RN.tolist(), strict=True):
            padding = [False] * len(panel.items)
            panel.clicked.extend((row[: panel.num_shown] + padding)[: len(panel.items)])
    return drafts
