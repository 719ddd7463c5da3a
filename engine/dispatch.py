"""Stages of a request within its time: planning them, and running one row. Knows no stage's work.

What cannot be done in time, or fails, is noted with the request; that is never an error here.
"""

import asyncio
from collections.abc import Sequence

from engine.batcher import BatchFailed, Done, TooLate
from engine.costs import Work
from engine.deadline import Clock
from engine.errors import QueueFull
from engine.planner import ENCODE, SCORED_SIZES, Plan, Rung, Wanted, make_plan, score_work
from engine.request import RequestState
from engine.stages import Left, Stage, Why
from engine.worker import Worker


class Dispatcher:
    """Plans with what the worker has learnt, and hands it rows."""

    def __init__(self, worker: Worker, clock: Clock, *, has_click_model: bool) -> None:
        """Remembers the worker; `clock` is that of deadlines."""
        self.worker = worker
        self._clock = clock
        self._has_click_model = has_click_model

    def plan(self, request: RequestState, *, encode: bool, rungs: Sequence[Rung]) -> Plan:
        """Returns what fits the request's time of the stages ahead: encode, generate, score."""
        wanted = Wanted(encode=encode, rungs=rungs, score=self._has_click_model)
        first = ENCODE if encode else rungs[0].work if rungs else score_work(SCORED_SIZES[0])
        load = self.worker.load(first)
        return make_plan(self.worker.costs, wanted, request.deadline.left_s(), load)

    async def submit(
        self, request: RequestState, work: Work, row: object, *, later_s: float
    ) -> Done | None:
        """Returns the result of a row, or None with an omission if it fails or comes too late.

        Args:
            request: Whose row it is.
            work: Its kind.
            row: What the worker runs.
            later_s: Time to keep for the stages after this one.

        Raises:
            QueueFull: too many rows wait, and there is nothing to rank yet.
        """
        finish_by_s = request.deadline.at_s - later_s
        queued_s = self._clock.now_s()
        # A stage that is late although nothing was ahead of it was too long for the budget.
        why = Why.OVERLOAD if self.worker.load(work).wait_s > 0 else Why.BUDGET
        try:
            async with asyncio.timeout(max(0.0, finish_by_s - queued_s)):
                done = await self.worker.submit(work, row, finish_by_s)
        except (TooLate, TimeoutError):
            request.probe.add(Stage.QUEUE, self._clock.now_s() - queued_s)
            request.omit(work.stage, Left.SKIPPED, why)
            return None
        except BatchFailed:
            request.omit(work.stage, Left.SKIPPED, Why.FAILURE)
            return None
        except QueueFull:
            if work.stage is not Stage.SCORE:  # by then there is an answer: order it by the prior
                raise
            request.omit(work.stage, Left.SKIPPED, Why.OVERLOAD)
            return None
        request.probe.add(Stage.QUEUE, done.queue_s)
        return done
