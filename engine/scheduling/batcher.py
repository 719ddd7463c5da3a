"""Micro-batching: rows of many requests leave together, as many batches at a time as allowed.

`submit` returns the row's result; cancelling the await withdraws the row. A batch leaves as soon
as the worker has room and work is waiting, so an idle engine adds no delay, and batches grow only
while others run. Flows whose rows wait take turns by the time that each has had (`shares.py`);
within a flow the most urgent row is next. Rows of the same kind join it, as long as the batch can
finish in time for the row that it leaves for. Callers who ask for the same row at the same time
share it. Withdrawn and late rows never reach a model; a full queue refuses at once; a failing
batch fails only its own rows.

A batch begins in the same turn of the loop in which it is chosen, and is chosen once those who
were just answered have submitted what they do next. Knows nothing of models: `run` does the work,
`predict_s` says how long it will take.
"""

import asyncio
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, Generic

from engine.errors import EngineError, QueueFull
from engine.scheduling.deadline import Clock
from engine.scheduling.rows import Batch, Caller, Done, Entry, K, Waiting, callers_of
from engine.scheduling.shares import Shares


class TooLate(EngineError):
    """The row's result could not be ready in time, so it was not run."""


class BatchFailed(EngineError):
    """The batch that the row was in failed; the cause is chained."""


class Batcher(Generic[K]):
    """Feeds one worker. To be used from one event loop."""

    def __init__(
        self,
        run: Callable[[K, Sequence[Any], float], asyncio.Future[Any]],
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
            run: Begins at once and returns what will be one result per row, in order, or
                `TooLate`; told when the last of them stops being useful.
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
        self._waiting: list[Entry[K]] = []
        self._by_key: dict[Hashable, Entry[K]] = {}  # waiting or running
        self._running: list[Batch[K]] = []
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
        entry = self._shared(key, finish_by_s)
        if entry is None:
            if len(self._waiting) >= self._max_waiting:
                raise QueueFull("recommend")
            entry = Entry(kind, row, flow, key)
            self._waiting.append(entry)
            if key is not None:
                self._by_key[key] = entry
            if self._has_room:
                # Not at once: rows submitted in the same turn of the loop share the batch.
                self._wake_up()
        caller = Caller(finish_by_s, self._clock.now_s())
        entry.callers.append(caller)
        try:
            return await caller.future
        finally:
            if caller.future.cancelled():
                self._withdraw(entry, caller)
            elif caller.future.done():
                caller.future.exception()  # whoever was cancelled just then does not ask for it
            # An exception holds this frame: with these, it would hold itself.
            del entry, caller

    def would_share(self, key: Hashable, finish_by_s: float) -> bool:
        """Returns whether a row with this key waits or runs, so that another would share it."""
        return self._shared(key, finish_by_s) is not None

    def is_under_way(self, key: Hashable, finish_by_s: float) -> bool:
        """Returns whether another row with this key would share one that should be in time."""
        entry = self._shared(key, finish_by_s)
        if entry is None:
            return False
        end_s = entry.end_s
        if end_s is None:
            alone_s = self._predict_s(entry.kind, 1 + self.num_beside)
            end_s = self._clock.now_s() + self.wait_s() + alone_s
        return end_s <= finish_by_s

    def waiting(self) -> Iterable[Waiting[K]]:
        """Yields the rows that wait."""
        return (Waiting(e.flow, e.kind, e.finish_by_s) for e in self._waiting)

    def wait_s(self) -> float:
        """Returns about how long it will be until the next batch can leave.

        A batch that takes longer than predicted is taken to last as long again as it is late.
        """
        if self._has_room:
            return 0.0
        return min(map(self._left_s, self._running))

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
        by_end = sorted(self._running, key=self._left_s)
        still = by_end if self._has_room else by_end[1:]
        return sum(len(b.entries) for b in still)

    @property
    def _has_room(self) -> bool:
        return len(self._running) < self._concurrency

    def _left_s(self, batch: Batch[K]) -> float:
        return abs(batch.end_s - self._clock.now_s())

    def _shared(self, key: Hashable, finish_by_s: float) -> Entry[K] | None:
        """Returns the row that one with this key would share."""
        entry = self._by_key.get(key)
        return None if entry is None or finish_by_s > entry.ends_by_s else entry

    def _wake_up(self) -> None:
        if not self._is_wakeup_due:
            self._is_wakeup_due = True
            asyncio.get_running_loop().call_soon(self._start_next)

    def _withdraw(self, entry: Entry[K], caller: Caller) -> None:
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
                    assert batch.run is not None
                    batch.run.cancel()
                    for idle in batch.entries:
                        self._forget(idle)

    def _forget(self, entry: Entry[K]) -> None:
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
            last_s = max(e.last_s for e in batch.entries)
            batch.run = self._run(batch.entries[0].kind, [e.row for e in batch.entries], last_s)
            batch.run.add_done_callback(lambda run, batch=batch: self._finish(batch, run))

    def _next_batch(self) -> Batch[K] | None:
        now_s, beside = self._clock.now_s(), self.num_beside
        batch = Batch[K]([], now_s, now_s)
        for entry in self._in_order(self._waiting):
            end_s = now_s + self._predict_s(entry.kind, 1 + beside)
            if self._is_useful(entry, end_s):
                batch.entries.append(entry)
                batch.end_s = end_s
                break
        if not batch.entries:
            return None
        first = batch.entries[0]
        finish_by_s = first.finish_by_s
        others = [e for e in self._waiting if e.kind == first.kind and e is not first]
        for entry in self._in_order(others):
            size = len(batch.entries)
            end_s = now_s + self._predict_s(entry.kind, size + 1 + beside)
            if size == self._max_batch_size or end_s > finish_by_s:
                break  # one more row would make one of them late
            alone_s = now_s + self._predict_s(entry.kind, 1 + beside)
            if self._is_useful(entry, alone_s) and end_s <= entry.finish_by_s:
                batch.entries.append(entry)
                batch.end_s = end_s
                finish_by_s = min(finish_by_s, entry.finish_by_s)
        for entry in batch.entries:
            entry.end_s = batch.end_s
            self._waiting.remove(entry)
            self._shares.charge(entry.flow, self._predict_s(entry.kind, 1))
            if self._can_cancel:
                entry.ends_by_s = max(e.last_s for e in batch.entries)
        return batch

    def _in_order(self, entries: Sequence[Entry[K]]) -> Iterator[Entry[K]]:
        """Yields rows in the order in which they leave."""
        by_urgency = sorted(entries, key=lambda e: e.finish_by_s)
        return self._shares.in_turns([(e.flow, self._predict_s(e.kind, 1), e) for e in by_urgency])

    def _is_useful(self, entry: Entry[K], end_s: float) -> bool:
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

    def _finish(self, batch: Batch[K], run: asyncio.Future[Any]) -> None:
        """Answers the callers of a batch that has ended, and makes room for the next one."""
        entries, now_s = batch.entries, self._clock.now_s()
        self._running.remove(batch)
        for entry in entries:
            self._forget(entry)
        if run.cancelled():  # nobody wants it
            failure = TooLate()
        elif error := run.exception():
            failure = error if isinstance(error, TooLate) else _failed(entries, error)
        elif len(results := run.result()) != len(entries):
            failure = _failed(entries, ValueError(f"{len(results)} results"))
        else:
            failure = None
            for entry, result in zip(entries, results, strict=True):
                for caller in callers_of([entry]):
                    # Later than the others if it joined a running row.
                    begin_s = max(batch.started_s, caller.queued_s)
                    done = Done(result, begin_s - caller.queued_s, now_s - begin_s, len(entries))
                    caller.future.set_result(done)
        if failure is not None:
            for caller in callers_of(entries):
                caller.future.set_exception(failure)
        # After the callers just woken: what they submit next is more urgent than what waits, since
        # they are older.
        self._wake_up()


def _failed(entries: Sequence[Entry[Any]], cause: BaseException) -> BatchFailed:
    failure = BatchFailed(f"a batch of {len(entries)} rows failed")
    failure.__cause__ = cause
    return failure
