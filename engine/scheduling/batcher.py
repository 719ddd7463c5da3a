"""Micro-batching: rows of many requests leave together, as many batches at a time as allowed.

`submit` returns the row's result; cancelling the await withdraws the row. A batch leaves as soon
as the worker has room and work is waiting, so an idle engine adds no delay, and batches grow only
while others run. Flows whose rows wait take turns by the time that each has had (`shares.py`);
within a flow the most urgent row is next. Rows of the same kind join it, as long as the batch can
finish in time for the row that it leaves for. Callers who ask for the same row at the same time
share it. Withdrawn and late rows never reach a model; a full queue refuses at once; a failing
batch fails only its own rows.

Knows nothing of models: `run` does the work, `predict_s` says how long it will take.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

from engine.errors import EngineError, QueueFull
from engine.scheduling.deadline import Clock
from engine.scheduling.shares import Shares

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


class Waiting(NamedTuple, Generic[K]):
    """A row that waits, as others see it."""

    flow: Hashable
    kind: K
    finish_by_s: float


@dataclass(eq=False, slots=True)
class _Caller:
    """Somebody who waits for a row."""

    finish_by_s: float
    queued_s: float
    future: asyncio.Future[Done] = field(default_factory=asyncio.Future[Done])


@dataclass(eq=False, slots=True)
class _Entry(Generic[K]):
    """A row and all who wait for it."""

    kind: K
    row: object
    flow: Hashable
    key: Hashable
    callers: list[_Caller] = field(default_factory=list[_Caller])
    ends_by_s: float = math.inf  # when a run of it is given up, once it runs

    @property
    def finish_by_s(self) -> float:
        """When the first of its callers has no more use for it."""
        return min(c.finish_by_s for c in self.callers)

    @property
    def last_s(self) -> float:
        """When nobody has any more use for it."""
        return max((c.finish_by_s for c in self.callers), default=-math.inf)


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
        self._shares = Shares()
        self._waiting: list[_Entry[K]] = []
        self._by_key: dict[Hashable, _Entry[K]] = {}  # waiting or running
        self._running: list[_Batch[K]] = []
        self._is_wakeup_due = False

    async def submit(
        self,
        kind: K,
        row: object,
        finish_by_s: float,
        *,
        flow: Hashable = None,
        key: Hashable = None,
    ) -> Done:
        """Returns the row's result.

        Args:
            kind: Kind of work.
            row: Input of one request.
            finish_by_s: When the result stops being useful, on the clock.
            flow: On whose behalf: flows share the worker equally.
            key: Rows with equal keys have equal results, so one of them runs for all; the most
                urgent caller decides its place. None: it is like no other.

        Raises:
            QueueFull: Too many rows are waiting.
            TooLate: The row could not be ready by `finish_by_s`.
            BatchFailed: Its batch failed.
        """
        entry = self._by_key.get(key)
        if entry is None or finish_by_s > entry.ends_by_s:
            if len(self._waiting) >= self._max_waiting:
                raise QueueFull("recommend")
            entry = _Entry(kind, row, flow, key)
            self._waiting.append(entry)
            if key is not None:
                self._by_key[key] = entry
            if self._has_room:
                # Not at once: rows submitted in the same turn of the loop share the batch.
                self._wake_up()
        caller = _Caller(finish_by_s, self._clock.now_s())
        entry.callers.append(caller)
        try:
            return await caller.future
        finally:
            if caller.future.cancelled():
                self._withdraw(entry, caller)
            # An exception holds this frame: with these, it would hold itself.
            del entry, caller

    def is_under_way(self, key: Hashable) -> bool:
        """Returns whether a row with this key waits or runs, so that another would share it."""
        return key in self._by_key

    def waiting(self) -> Iterable[Waiting[K]]:
        """Yields the rows that wait."""
        return (Waiting(e.flow, e.kind, e.finish_by_s) for e in self._waiting)

    def wait_s(self) -> float:
        """Returns about how long it will be until the next batch can leave.

        A batch that takes longer than predicted is taken to last as long again as it is late.
        """
        if self._has_room:
            return 0.0
        return abs(min(b.end_s for b in self._running) - self._clock.now_s())

    def lead_s(self, flow: Hashable, other: Hashable) -> float:
        """Returns how much more of the worker's time `other` has had than `flow`."""
        return self._shares.lead_s(flow, other)

    @property
    def num_waiting(self) -> int:
        """Returns how many rows wait. May be asked from any thread."""
        return len(self._waiting)

    @property
    def num_beside(self) -> int:
        """Returns how many rows run beside the next batch when it leaves."""
        ends = sorted(self._running, key=lambda b: b.end_s)
        still = ends if self._has_room else ends[1:]
        return sum(len(b.entries) for b in still)

    @property
    def _has_room(self) -> bool:
        return len(self._running) < self._concurrency

    def _wake_up(self) -> None:
        if not self._is_wakeup_due:
            self._is_wakeup_due = True
            asyncio.get_running_loop().call_soon(self._start_next)

    def _withdraw(self, entry: _Entry[K], caller: _Caller) -> None:
        if caller not in entry.callers:
            return
        entry.callers.remove(caller)
        if entry.callers:
            return
        if entry in self._waiting:
            self._waiting.remove(entry)
            self._forget(entry)
        elif self._can_cancel:
            for batch in self._running:
                if entry in batch.entries and not any(e.callers for e in batch.entries):
                    assert batch.task is not None
                    batch.task.cancel()
                    for idle in batch.entries:
                        self._forget(idle)

    def _forget(self, entry: _Entry[K]) -> None:
        """Lets nobody join a row any more."""
        if self._by_key.get(entry.key) is entry:
            del self._by_key[entry.key]

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
        now_s, beside = self._clock.now_s(), self.num_beside
        batch = _Batch[K]([], now_s)
        for entry in self._in_order(self._waiting):
            end_s = now_s + self._predict_s(entry.kind, 1 + beside)
            if self._is_useful(entry, end_s):
                batch.entries.append(entry)
                batch.end_s = end_s
                break
        if not batch.entries:
            return None
        first = batch.entries[0]
        others = [e for e in self._waiting if e.kind == first.kind and e is not first]
        for entry in self._in_order(others):
            size = len(batch.entries)
            end_s = now_s + self._predict_s(entry.kind, size + 1 + beside)
            if size == self._max_batch_size or end_s > first.finish_by_s:
                break  # one more row would make the first one late
            if self._is_useful(entry, end_s):
                batch.entries.append(entry)
                batch.end_s = end_s
        for entry in batch.entries:
            self._waiting.remove(entry)
            self._shares.charge(entry.flow, self._predict_s(entry.kind, 1))
            if self._can_cancel:
                entry.ends_by_s = max(e.last_s for e in batch.entries)
        return batch

    def _in_order(self, entries: Sequence[_Entry[K]]) -> Iterator[_Entry[K]]:
        """Yields rows in the order in which they leave."""
        by_urgency = sorted(entries, key=lambda e: e.finish_by_s)
        return self._shares.in_turns([(e.flow, self._predict_s(e.kind, 1), e) for e in by_urgency])

    def _is_useful(self, entry: _Entry[K], end_s: float) -> bool:
        """Turns away callers for whom the row would be late; returns whether others are left."""
        for caller in list(entry.callers):
            if caller.future.done():  # cancelled a moment ago
                entry.callers.remove(caller)
            elif caller.finish_by_s < end_s:
                entry.callers.remove(caller)
                caller.future.set_exception(TooLate())
        if not entry.callers:
            self._waiting.remove(entry)
            self._forget(entry)
        return bool(entry.callers)

    async def _finish(self, batch: _Batch[K]) -> None:
        entries, started_s = batch.entries, self._clock.now_s()
        try:
            last_s = max(e.last_s for e in entries)
            results = await self._run(entries[0].kind, [e.row for e in entries], last_s)
            if len(results) != len(entries):
                raise ValueError(f"{len(results)} results for {len(entries)} rows")
        except Exception as error:
            failure = error
            if not isinstance(error, TooLate):
                failure = BatchFailed(f"a batch of {len(entries)} rows failed")
                failure.__cause__ = error
            for caller in _callers(entries):
                caller.future.set_exception(failure)
            del failure  # which holds this frame
        else:
            now_s = self._clock.now_s()
            for entry, result in zip(entries, results, strict=True):
                for caller in _callers([entry]):
                    begin_s = max(started_s, caller.queued_s)  # later if it joined a running row
                    done = Done(result, begin_s - caller.queued_s, now_s - begin_s, len(entries))
                    caller.future.set_result(done)
        finally:
            batch.end_s = self._clock.now_s()
            for entry in entries:
                self._forget(entry)

    def _leave(self, batch: _Batch[K]) -> None:
        """Makes room for the next batch.

        Called by the loop once a batch has ended, cancelled ones included, and after the callers
        just woken: they may submit their next stage first, which is more urgent than what waits,
        since they are older.
        """
        self._running.remove(batch)
        self._start_next()


def _callers(entries: Iterable[_Entry[K]]) -> list[_Caller]:
    """Returns who still waits for any of the rows."""
    return [c for e in entries for c in e.callers if not c.future.done()]
