"""The feedback log: events that users' actions make, durable before anyone is told so.

Knows nothing of gRPC calls, of training or of what becomes of events. Every process writes
segments of its own.
"""

import asyncio
import concurrent.futures
import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from engine.errors import FeedbackNotStored, QueueFull
from engine.feedback.events import Event
from engine.feedback.segments import Segment, as_line, close_abandoned

_log = logging.getLogger(__name__)


class FeedbackLog:
    """Appends events durably. One per process; any number may share a directory.

    One thread writes: what arrives while it syncs goes out with the next sync (group commit), so
    the disk's latency bounds the delay and not the rate.

    Args:
        directory: Where segments live; made if missing. Segments that a dead process left open are
            repaired (a torn last line is dropped) and closed.
        max_segment_bytes: A segment that has reached this size is closed.
        max_segment_age_s: A segment this old is closed, so that readers see its events.
        max_waiting_events: More events than this waiting for the disk are refused.
        clock: Monotonic seconds; decides a segment's age.

    Raises:
        ValueError: A limit is not positive, or the directory cannot be used.
    """

    def __init__(
        self,
        directory: Path,
        *,
        max_segment_bytes: int = 64 << 20,
        max_segment_age_s: float = 600.0,
        max_waiting_events: int = 65_536,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        for name, value in (
            ("max_segment_bytes", max_segment_bytes),
            ("max_segment_age_s", max_segment_age_s),
            ("max_waiting_events", max_waiting_events),
        ):
            if value <= 0:
                raise ValueError(f"{name} is {value}; it must be above 0")
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            close_abandoned(directory)
            Segment(directory, clock()).close()  # whether one can be written at all
        except OSError as error:
            raise ValueError(f"feedback directory {directory} cannot be used: {error}") from error
        self._directory = directory
        self._max_segment_bytes = max_segment_bytes
        self._max_segment_age_s = max_segment_age_s
        self._max_waiting_events = max_waiting_events
        self._clock = clock
        self._segment: Segment | None = None
        self._is_failing = False
        self._lock = threading.Lock()
        self._num_waiting = 0
        self._is_closed = False
        self._appends: queue.SimpleQueue[_Append | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._run, name="feedback-log", daemon=True)
        self._writer.start()

    async def append(self, events: Sequence[Event]) -> None:
        """Returns once all events are on disk. An empty batch returns at once.

        A cancelled call may or may not have been stored.

        Raises:
            QueueFull: Too many events wait for the disk; none of these is stored.
            FeedbackNotStored: The disk refused them or the log is closed; some may be stored all
                the same, so send all of them again.
        """
        if not events:
            return
        with self._lock:
            if self._is_closed:
                raise FeedbackNotStored
            if self._num_waiting + len(events) > self._max_waiting_events:
                raise QueueFull("feedback")
            self._num_waiting += len(events)
            append = _Append(tuple(events), concurrent.futures.Future())
            self._appends.put(append)
        await asyncio.wrap_future(append.done)

    def close(self, limit_s: float | None = None) -> bool:
        """Writes what waits, closes the segment and returns. May be called twice.

        Args:
            limit_s: How long it may block; None for as long as the disk takes.

        Returns:
            Whether all is written and closed. If not, the next log of the directory closes the
            segment.
        """
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                self._appends.put(None)
        self._writer.join(limit_s)
        return not self._writer.is_alive()

    def _run(self) -> None:
        is_open = True
        while is_open:
            batch: list[_Append] = []
            # Without a segment nothing ages. With one, its age is looked at every second.
            with contextlib.suppress(queue.Empty):
                item = self._appends.get(timeout=None if self._segment is None else 1.0)
                while item is not None:
                    batch.append(item)
                    item = self._appends.get_nowait()
                is_open = False
            with self._lock:
                self._num_waiting -= sum(len(append.events) for append in batch)
            batch = [append for append in batch if append.done.set_running_or_notify_cancel()]
            try:
                self._close_segment_if_due()
                if batch:
                    self._write(batch)
            except Exception as error:  # the loop's edge: callers must hear, the log goes on
                # Once, not for every batch: the log may go onto the same disk.
                if not self._is_failing:
                    cause = error if isinstance(error, OSError) else type(error).__name__
                    _log.error("feedback cannot be written to %s: %s", self._directory, cause)
                self._drop_segment()
                self._is_failing = True
                for append in batch:
                    refusal = FeedbackNotStored()
                    refusal.__cause__ = error
                    append.done.set_exception(refusal)
            else:
                if batch and self._is_failing:
                    self._is_failing = False
                    _log.warning("feedback is written to %s again", self._directory)
                for append in batch:
                    append.done.set_result(None)
        self._drop_segment()

    def _write(self, batch: Iterable["_Append"]) -> None:
        lines = [as_line(event) for append in batch for event in append.events]
        if self._segment is None:
            self._segment = Segment(self._directory, self._clock())
        self._segment.append(b"".join(lines))

    def _close_segment_if_due(self) -> None:
        segment = self._segment
        if segment is not None and (
            segment.size_bytes >= self._max_segment_bytes
            or self._clock() - segment.opened_s >= self._max_segment_age_s
        ):
            self._drop_segment()

    def _drop_segment(self) -> None:
        """Closes the segment, keeping what is durable, even on a disk that fails."""
        segment, self._segment = self._segment, None
        if segment is not None:
            try:
                segment.close()
            except OSError as error:
                if not self._is_failing:
                    _log.error("feedback segment %s cannot be closed: %s", segment.path, error)


class _Append(NamedTuple):
    events: tuple[Event, ...]
    done: concurrent.futures.Future[None]
