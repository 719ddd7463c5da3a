"""Micro-batching: rows of many requests leave together, one batch at a time.

`submit` returns the row's result; cancelling the await withdraws the row. A batch leaves as soon
as the worker is free and work is waiting, so an idle engine adds no delay, and batches grow only
while the previous one runs. The most urgent row decides which kind of work is next; rows of the
same kind join it, most urgent first, as long as the batch can finish in time for all of them.
Withdrawn and late rows never reach a model; a full queue refuses at once; a failing batch fails
only its own rows.

Knows nothing of models: `run` does the work, `predict_s` says how long it will take.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

from engine.deadline import Clock
from engine.errors import EngineError, QueueFull

K = TypeVar("K", bound=Hashable)  # kind of work: only rows of one kind share a batch


class TooLate(EngineError):
    """The row's result could not be ready in time, so it was not run."""


class BatchFailed(EngineError):
    """The batch that the row was in failed; the cause is chained."""


class Done(NamedTuple):
    """A row's result and where its time went."""

    result: Any  # whatever `run` returned for the row; the callers of one kind know its type
    queue_s: float
    run_s: float
    batch_size: int


@dataclass(eq=False, slots=True)
class _Entry(Generic[K]):
    kind: K
    row: object
    finish_by_s: float
    queued_s: float
    future: asyncio.Future[Done] = field(default_factory=asyncio.Future[Done])


class Batcher(Generic[K]):
    """Feeds one worker. To be used from one event loop."""

    def __init__(
        self,
        run: Callable[[K, Sequence[Any]], Awaitable[Sequence[object]]],
        predict_s: Callable[[K, int], float],
        *,
        max_batch_size: int,
        max_waiting: int,
        clock: Clock,
    ) -> None:
        """Remembers the worker; starts nothing.

        Args:
            run: Returns one result per row, in order.
            predict_s: Seconds that a batch of this kind and size will take.
            max_batch_size: No batch has more rows.
            max_waiting: With this many rows waiting, further ones are refused.
            clock: Time of `finish_by_s`.
        """
        self._run = run
        self._predict_s = predict_s
        self._max_batch_size = max_batch_size
        self._max_waiting = max_waiting
        self._clock = clock
        self._waiting: list[_Entry[K]] = []
        self._running: asyncio.Task[None] | None = None
        self._is_wakeup_due = False
        self._free_at_s = 0.0  # when the running batch should end

    async def submit(self, kind: K, row: object, finish_by_s: float) -> Done:
        """Returns the row's result.

        Args:
            kind: Kind of work.
            row: Input of one request.
            finish_by_s: When the result stops being useful, on the clock.

        Raises:
            QueueFull: Too many rows are waiting.
            TooLate: The row could not be ready by `finish_by_s`; it never ran.
            BatchFailed: Its batch failed.
        """
        if len(self._waiting) >= self._max_waiting:
            raise QueueFull("recommend")
        entry = _Entry(kind, row, finish_by_s, self._clock.now_s())
        self._waiting.append(entry)
        if self._running is None and not self._is_wakeup_due:
            # Not at once: rows submitted in the same turn of the loop share the batch.
            self._is_wakeup_due = True
            asyncio.get_running_loop().call_soon(self._start_next)
        try:
            return await entry.future
        finally:
            if entry.future.cancelled() and entry in self._waiting:
                self._waiting.remove(entry)

    def wait_s(self, kind: K) -> float:
        """Returns about how long a row of this kind would wait if it were submitted now."""
        ahead_s = max(0.0, self._free_at_s - self._clock.now_s()) if self._running else 0.0
        counts: dict[K, int] = {}
        for entry in self._waiting:
            counts[entry.kind] = counts.get(entry.kind, 0) + 1
        for other, count in counts.items():
            full, rest = divmod(count, self._max_batch_size)
            ahead_s += full * self._predict_s(other, self._max_batch_size)
            if rest and other != kind:  # rows of the same kind share the batch
                ahead_s += self._predict_s(other, rest)
        return ahead_s

    def joining(self, kind: K) -> int:
        """Returns how many rows a batch would have if one of this kind were submitted now."""
        return 1 + sum(e.kind == kind for e in self._waiting) % self._max_batch_size

    def _start_next(self) -> None:
        self._is_wakeup_due = False
        batch = self._next_batch()
        self._running = asyncio.ensure_future(self._finish(batch)) if batch else None

    def _next_batch(self) -> list[_Entry[K]]:
        now_s = self._clock.now_s()
        self._waiting = [e for e in self._waiting if not e.future.done()]
        self._waiting.sort(key=lambda e: e.finish_by_s)
        batch: list[_Entry[K]] = []
        for entry in list(self._waiting):
            if len(batch) == self._max_batch_size:
                break
            if batch and entry.kind != batch[0].kind:
                continue
            end_s = now_s + self._predict_s(entry.kind, len(batch) + 1)
            if batch and end_s > batch[0].finish_by_s:
                break  # one more row would make the most urgent one late
            self._waiting.remove(entry)
            if end_s > entry.finish_by_s:
                entry.future.set_exception(TooLate())
                continue
            batch.append(entry)
            self._free_at_s = end_s
        return batch

    async def _finish(self, batch: list[_Entry[K]]) -> None:
        started_s = self._clock.now_s()
        try:
            results = await self._run(batch[0].kind, [e.row for e in batch])
            if len(results) != len(batch):
                raise ValueError(f"{len(results)} results for {len(batch)} rows")
        except Exception as error:
            failure = BatchFailed(f"a batch of {len(batch)} rows failed")
            failure.__cause__ = error
            for entry in batch:
                if not entry.future.done():
                    entry.future.set_exception(failure)
        else:
            run_s = self._clock.now_s() - started_s
            for entry, result in zip(batch, results, strict=True):
                if not entry.future.done():
                    queue_s = started_s - entry.queued_s
                    entry.future.set_result(Done(result, queue_s, run_s, len(batch)))
        # Not at once: the callers just woken may submit their next stage first, which is more
        # urgent than what waits, since they are older.
        self._free_at_s = self._clock.now_s()
        asyncio.get_running_loop().call_soon(self._start_next)
