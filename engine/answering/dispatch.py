"""Stages of a request within its time: planning them, and running one row. Knows no stage's work.

What cannot be done in time, or fails, is noted with the request; that is never an error here.
"""

import asyncio
from collections import Counter
from collections.abc import Generator, Hashable, Sequence
from contextlib import contextmanager

from engine.answering.request import RequestState
from engine.errors import QueueFull
from engine.execution.worker import Worker
from engine.scheduling.batcher import BatchFailed, TooLate
from engine.scheduling.costs import Work
from engine.scheduling.deadline import Clock
from engine.scheduling.planner import (
    SCORED_SIZES,
    Load,
    Plan,
    Rung,
    Wanted,
    make_plan,
    works_of,
)
from engine.scheduling.rows import Done
from engine.scheduling.stages import Left, Stage, Why


class Dispatcher:
    """Plans with what the worker has learnt, and hands it rows."""

    def __init__(self, worker: Worker, clock: Clock, *, has_click_model: bool) -> None:
        """Remembers the worker; `clock` is that of deadlines."""
        self.worker = worker
        self._clock = clock
        self._has_click_model = has_click_model
        self._to_come: dict[RequestState, tuple[Work, ...]] = {}

    @contextmanager
    def attending(self, request: RequestState) -> Generator[None]:
        """Counts what a request is still to submit, for as long as the `with` block lasts."""
        try:
            yield
        finally:
            self._to_come.pop(request, None)

    def plan(
        self,
        request: RequestState,
        *,
        encode: bool,
        rungs: Sequence[Rung],
        num_candidates: int = SCORED_SIZES[0],
    ) -> Plan:
        """Returns what fits the request's time of the stages ahead: encode, generate, score.

        Args:
            request: Whose time.
            encode: Whether its query is to be embedded.
            rungs: Of what is to be generated, best first.
            num_candidates: To be scored at most, as far as is known.
        """
        num_scored = min(num_candidates, SCORED_SIZES[0]) if self._has_click_model else 0
        wanted = Wanted(encode=encode, rungs=rungs, num_scored=num_scored)
        plan = make_plan(
            self.worker.models.costs,
            wanted,
            request.deadline.left_s(),
            self._load(request),
            waited_s=request.probe.elapsed_s(Stage.QUEUE),
        )
        if self.worker.models.is_out:  # costs are then those of calls that were given up
            failed = [o._replace(reason=Why.FAILURE) for o in plan.omissions]
            plan = plan._replace(omissions=tuple(failed))
        # The stage that is planned for is submitted now.
        rung = plan.rung if encode else None
        num_scored = plan.num_scored if encode or rungs else 0
        self._to_come[request] = works_of(False, rung, num_scored)
        return plan

    async def submit(
        self, request: RequestState, work: Work, row: object, *, later_s: float
    ) -> Done | None:
        """Returns the result of a row, or None with an omission if it fails or comes too late.

        Args:
            request: Whose row it is.
            work: Its kind.
            row: What the worker runs.
            later_s: Time to keep for the stages after this one.
        """
        finish_by_s = request.deadline.at_s - later_s
        queued_s = self._clock.now_s()
        # A stage that is late although nothing was ahead of it was too long for the budget.
        is_idle = self.worker.wait_s() == 0 and not any(self.worker.waiting())
        why = Why.BUDGET if is_idle else Why.OVERLOAD
        try:
            async with asyncio.timeout(max(0.0, finish_by_s - queued_s)):
                done = await self.worker.submit(
                    work, row, finish_by_s, request.question.scenario.name
                )
        except (TooLate, TimeoutError):
            request.ready_s = min(finish_by_s, self._clock.now_s())
            request.probe.add(Stage.QUEUE, self._clock.now_s() - queued_s)
            if self.worker.models.is_out:
                why = Why.FAILURE
            request.omit(work.stage, Left.SKIPPED, why)
            return None
        except BatchFailed:
            request.ready_s = self._clock.now_s()
            request.omit(work.stage, Left.SKIPPED, Why.FAILURE)
            return None
        except QueueFull:
            request.is_turned_away = True
            request.omit(work.stage, Left.SKIPPED, Why.OVERLOAD)
            return None
        request.ready_s = queued_s + done.queue_s + done.run_s
        request.probe.add(Stage.QUEUE, done.queue_s, ago_s=done.run_s)
        return done

    def _load(self, request: RequestState) -> Load:
        """Returns what goes before a request: all that is more urgent, and its scenario's turns."""
        scenario, at_s = request.question.scenario.name, request.deadline.at_s
        rows: dict[Hashable, Counter[Work]] = {scenario: Counter()}
        for flow, work, finish_by_s in self.worker.waiting():
            if flow != scenario or finish_by_s <= at_s:
                rows.setdefault(flow, Counter())[work] += 1
        for other, works in self._to_come.items():
            flow = other.question.scenario.name
            if other is not request and (flow != scenario or other.deadline.at_s <= at_s):
                rows.setdefault(flow, Counter()).update(works)
        own = rows.pop(scenario)
        return Load(
            self.worker.wait_s(),
            own,
            [(r, self.worker.lead_s(scenario, other)) for other, r in rows.items()],
            self.worker.max_rows,
            self.worker.num_beside,
        )
