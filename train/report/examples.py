"""Lists of two generators side by side, for people to read."""

# u question
from collections.abc import Sequence

import msgspec

from train.evaluation.lists import ProducedList
from train.report.ablation import list_ctr
from train.simulator.truth import Truth

NUM_EXAMPLES = 30


class Example(msgspec.Struct, frozen=True, kw_only=True):
    """What two generators write for one unseen query."""

    scenario: str
    query: str
    before: list[str]
    after: list[str]
    before_ctr: float  # true
    after_ctr: float


def examples_of(
    before: Sequence[ProducedList],
    after: Sequence[ProducedList],
    truth: Truth,
    num_listed: int,
) -> list[Example]:
    """Returns the first questions of every scenario, which are in random order.

    Args:
        before: lists of one generator.
        after: those of another one, for the same questions in the same order.
        truth: scores them.
        num_listed: texts of a list.
    """
    ctr = [list_ctr(lists, truth, num_listed) for lists in (before, after)]
    scenarios = list(dict.fromkeys(p.scenario for p in before))
    places_of = {s: [u for u, p in enumerate(before) if p.scenario == s] for s in scenarios}
    return [
        Example(
            scenario=scenario,
            query=before[u].query,
            before=list(before[u].texts),
            after=list(after[u].texts),
            before_ctr=float(ctr[0][u]),
            after_ctr=float(ctr[1][u]),
        )
        for scenario, places in places_of.items()
        for u in places[: NUM_EXAMPLES // len(scenarios)]
    ]
