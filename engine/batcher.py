"""Micro-batching: rows of many requests leave together, as many batches at a time as allowed.

`submit` returns the row's result; cancelling the await withdraws the row. A batch leaves as soon
as the worker has room and work is waiting, so an idle engine adds no delay, and batches grow only
while others run. The most urgent row decides which kind of work is next; rows of the same kind
join it, most urgent first, as long as the batch can finish in time for all of them. Withdrawn and
late rows never reach a model; a full queue refuses at once; a failing batch fails only its own
rows.

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


@dataclass(eq=False, slots=True)
class _Batch(Generic[K]):
    """Rows that run together."""

    entries: list[_Entry[K]]
    end_s: float  # predicted
    task: asyncio.Task[None] | None = None  # set once it runs


class Batcher(Generic[K]):
    """Feeds one worker. To be used from one event loop."""

    def __init__(
        self,
        run: Callable[[K, Sequence[Any], float], Awaitable[Sequence[object]]],
        predict_s: Callable[[K, int], float],
        *,
        max_batch_size: int,
        max_waiting: int,
        clock: Clock,
        concurrency: int = 1,
        can_cancel: bool = False,
    ) -> None:
        """Remembers the worker; starts nothing.

        Args:
            run: Returns one result per row, in order; told when the last of them stops being
                useful. May raise `TooLate`.
            predict_s: Seconds that a batch of this kind will take, by the number of rows that
                run at the same time, its own and those of other batches.
            max_batch_size: No batch has more rows.
            max_waiting: With this many rows waiting, further ones are refused.
            clock: Time of `finish_by_s`.
            concurrency: Batches that run at the same time.
            can_cancel: Whether a batch is cancelled once all of its rows were withdrawn; else it
                runs to its end.
        """
        self._run = run
        self._predict_s = predict_s
        self._max_batch_size = max_batch_size
        self._max_waiting = max_waiting
        self._clock = clock
        self._concurrency = concurrency
        self._can_cancel = can_cancel
        self._waiting: list[_Entry[K]] = []
        self._running: list[_Batch[K]] = []
        self._is_wakeup_due = False

    async def submit(self, kind: K, row: object, finish_by_s: float) -> Done:
        """Returns the row's result.

        Args:
            kind: Kind of work.
            row: Input of one request.
            finish_by_s: When the result stops being useful, on the clock.

        Raises:
            QueueFull: Too many rows are waiting.
            TooLate: The row could not be ready by `finish_by_s`.
            BatchFailed: Its batch failed.
        """
        if len(self._waiting) >= self._max_waiting:
            raise QueueFull("recommend")
        entry = _Entry(kind, row, finish_by_s, self._clock.now_s())
        self._waiting.append(entry)
        if self._has_room:
            # Not at once: rows submitted in the same turn of the loop share the batch.
            self._wake_up()
        try:
            return await entry.future
        finally:
            if entry.future.cancelled():
                self._withdraw(entry)

    def wait_s(self, kind: K) -> float:
        """Returns about how long a row of this kind would wait if it were submitted now."""
        counts: dict[K, int] = {}
        for entry in self._waiting:
            counts[entry.kind] = counts.get(entry.kind, 0) + 1
        queued_s, beside = 0.0, self._num_beside
        for other, count in counts.items():
            full, rest = divmod(count, self._max_batch_size)
            queued_s += full * self._predict_s(other, self._max_batch_size + beside)
            if rest and other != kind:  # rows of the same kind share the batch
                queued_s += self._predict_s(other, rest + beside)
        ahead_s = 0.0
        if not self._has_room:
            ahead_s = max(0.0, min(b.end_s for b in self._running) - self._clock.now_s())
        return ahead_s + queued_s / self._concurrency

    def joining(self, kind: K) -> int:
        """Returns how many rows would run at the same time as one of this kind submitted now.

        Itself, the others of its batch, and the batches beside that.
        """
        in_batch = 1 + sum(e.kind == kind for e in self._waiting) % self._max_batch_size
        return in_batch + self._num_beside

    @property
    def _has_room(self) -> bool:
        return len(self._running) < self._concurrency

    @property
    def _num_beside(self) -> int:
        """Returns how many rows run beside the next batch when it leaves."""
        ends = sorted(self._running, key=lambda b: b.end_s)
        still = ends if self._has_room else ends[1:]
        return sum(len(b.entries) for b in still)

    def _wake_up(self) -> None:
        if not self._is_wakeup_due:
            self._is_wakeup_due = True
            asyncio.get_running_loop().call_soon(self._start_next)

    def _withdraw(self, entry: _Entry[K]) -> None:
        if entry in self._waiting:
            self._waiting.remove(entry)
        elif self._can_cancel:
            for batch in self._running:
                if entry in batch.entries and all(e.future.done() for e in batch.entries):
                    assert batch.task is not None
                    batch.task.cancel()

    def _start_next(self) -> None:
        self._is_wakeup_due = False
        while self._has_room:
            batch = self._next_batch()
            if batch is None:
                return
            self._running.append(batch)
            batch.task = asyncio.ensure_future(self._finish(batch))
            batch.task.add_done_callback(lambda _, batch=batch: self._leave(batch))

    def _next_batch(self) -> _Batch[K] | None:
        now_s, beside = self._clock.now_s(), self._num_beside
        self._waiting = [e for e in self._waiting if not e.future.done()]
        self._waiting.sort(key=lambda e: e.finish_by_s)
        batch = _Batch[K]([], now_s)
        for entry in list(self._waiting):
            size = len(batch.entries)
            if size == self._max_batch_size:
                break
            if batch.entries and entry.kind != batch.entries[0].kind:
                continue
            end_s = now_s + self._predict_s(entry.kind, size + 1 + beside)
            if batch.entries and end_s > batch.entries[0].finish_by_s:
                break  # one more row would make the most urgent one late
            self._waiting.remove(entry)
            if end_s > entry.finish_by_s:
                entry.future.set_exception(TooLate())
                continue
            batch.entries.append(entry)
            batch.end_s = end_s
        return batch if batch.entries else None

    async def _finish(self, batch: _Batch[K]) -> None:
        entries, started_s = batch.entries, self._clock.now_s()
        try:
            last_s = max(e.finish_by_s for e in entries)
            results = await self._run(entries[0].kind, [e.row for e in entries], last_s)
            if len(results) != len(entries):
                raise ValueError(f"{len(results)} results for {len(entries)} rows")
        except Exception as error:
            failure = error
            if not isinstance(error, TooLate):
                failure = BatchFailed(f"a batch of {len(entries)} rows failed")
                failure.__cause__ = error
            for entry in entries:
                if not entry.future.done():
                    entry.future.set_exception(failure)
        else:
            run_s = self._clock.now_s() - started_s
            for entry, result in zip(entries, results, strict=True):
                if not entry.future.done():
                    queue_s = started_s - entry.queued_s
                    entry.future.set_result(Done(result, queue_s, run_s, len(entries)))
        finally:
            batch.end_s = self._clock.now_s()

    def _leave(self, batch: _Batch[K]) -> None:
        """Makes room for the next batch.

        Called by the loop once a batch has ended, cancelled ones included, and after the callers
        just woken: they may submit their next stage first, which is more urgent than what waits,
        since they are older.
        """
        self._running.remove(batch)
        self._start_next()
