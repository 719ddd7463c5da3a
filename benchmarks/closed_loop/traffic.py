"""Asks a running engine, and tells it what became of its answers. Knows nothing of users."""

import asyncio
from collections.abc import Sequence

from benchmarks.closed_loop.users import Answered, Asked
from queryrec.client import QueryRecClient, Recommendation

_AT_ONCE = 4
_EVENTS_PER_CALL = 200
_HARMLESS = ("cached", "not_in_bundle")
_BUDGET_S, _TIMEOUT_S = 1.0, 10.0


async def ask(
    client: QueryRecClient, questions: Sequence[Asked]
) -> list[tuple[Answered, Recommendation]]:
    """Returns the answers, in order of the questions.

    Raises:
        ValueError: an answer left something out: what is measured would not be the bundle.
    """
    free = asyncio.Semaphore(_AT_ONCE)

    async def one(asked: Asked) -> tuple[Answered, Recommendation]:
        async with free:
            answer = await client.recommend(
                asked.scenario,
                asked.query,
                session_queries=asked.session_queries,
                user_key=asked.user,
                latency_budget_s=_BUDGET_S,
                timeout_s=_TIMEOUT_S,
            )
        left_out = [o for o in answer.omissions if o.reason not in _HARMLESS]
        if left_out:
            raise ValueError(f"an answer left out {left_out}: give the engine the machine alone")
        texts = [s.text for s in answer.suggestions]
        return Answered(asked, texts, answer.auxiliary_text), answer

    return await asyncio.gather(*map(one, questions))


async def report(
    client: QueryRecClient, answers: Sequence[Recommendation], clicked: Sequence[Sequence[bool]]
) -> None:
    """Sends what was seen and clicked.

    Raises:
        ValueError: events were refused.
    """
    events = [
        answer.event(kind, place)
        for answer, row in zip(answers, clicked, strict=True)
        for place, is_clicked in enumerate(row, 1)
        for kind in (("impression", "click") if is_clicked else ("impression",))
    ]
    for start in range(0, len(events), _EVENTS_PER_CALL):
        receipt = await client.record_feedback(
            events[start : start + _EVENTS_PER_CALL], timeout_s=_TIMEOUT_S
        )
        if receipt.refusals:
            raise ValueError(f"feedback was refused: {receipt.refusals[:3]}")
