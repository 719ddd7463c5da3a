"""The feedback log: events that users' actions make, durable before anyone is told so.

Knows nothing of gRPC calls, of training or of what becomes of events. Every process writes segments
of its own, files of JSON lines named so that their order is their age; a segment that is still
being written ends in ``.open`` and is locked. Tokens are verified before they are stored, so
reading needs no keys.
"""

import asyncio
import concurrent.futures
import contextlib
import fcntl
import json
import logging
import os
import queue
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from engine.errors import (
    FeedbackNotStored,
    QueueFull,
    TokenMalformed,
    event_invalid,
    text_invalid,
    text_too_long,
)
from engine.feedback.attribution import AttributionToken, KeyRing
from engine.formats.text import has_control_characters
from queryrec.v1 import feedback_pb2

MAX_EVENTS_PER_CALL = 256
MAX_ID_BYTES = 128

_log = logging.getLogger(__name__)
_MAX_UNIX_S = 253_402_300_799  # the end of year 9999, the last valid google.protobuf.Timestamp
_CLOSED, _OPEN = ".jsonl", ".jsonl.open"


class Kind(StrEnum):
    """What a user did with a suggestion."""

    IMPRESSION = "impression"
    CLICK = "click"
    DISMISS = "dismiss"


_KINDS = {
    feedback_pb2.FEEDBACK_KIND_IMPRESSION: Kind.IMPRESSION,
    feedback_pb2.FEEDBACK_KIND_CLICK: Kind.CLICK,
    feedback_pb2.FEEDBACK_KIND_DISMISS: Kind.DISMISS,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One verified event.

    Attributes:
        event_id: The caller's idempotency key.
        kind: What the user did.
        position: With which suggestion; 1 is the first.
        time_unix_ms: When, by the caller's clock.
        user_key: Opaque key of the user, only ever counted; None if unknown.
        token: The response's attribution token, still sealed.
    """

    event_id: str
    kind: Kind
    position: int
    time_unix_ms: int
    user_key: str | None
    token: str


def checked_event(event: feedback_pb2.FeedbackEvent, keys: KeyRing) -> Event:
    """Returns the event after checking it against the contract and its token against ``keys``.

    Raises:
        InvalidRequest: One of its fields breaks a rule; the error says which.
    """
    for field, text in (("event_id", event.event_id), ("user_key", event.user_key)):
        if (size := len(text.encode())) > MAX_ID_BYTES:
            raise text_too_long(field, size_bytes=size, max_bytes=MAX_ID_BYTES)
        if has_control_characters(text):
            raise text_invalid(field, "no control characters")
    if not event.event_id:
        raise event_invalid("event_id", "set, and unique over all events")
    kind = _KINDS.get(event.kind)
    if kind is None:
        raise event_invalid("kind", "one of IMPRESSION, CLICK and DISMISS")
    at = event.time
    if not event.HasField("time"):
        raise event_invalid("time", "set")
    if not (0 <= at.seconds <= _MAX_UNIX_S and 0 <= at.nanos < 1_000_000_000):
        raise event_invalid("time", "a valid timestamp from 1970 on")
    num_positions = len(AttributionToken.open(event.attribution_token, keys).suggestions)
    if not 1 <= event.position <= num_positions:
        raise event_invalid("position", f"from 1 to {num_positions}, as the response had them")
    return Event(
        event_id=event.event_id,
        kind=kind,
        position=event.position,
        time_unix_ms=at.seconds * 1000 + at.nanos // 1_000_000,
        user_key=event.user_key or None,
        token=event.attribution_token,
    )


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
            directory.mkdir(parents=True, exist_ok=True)
            _close_abandoned(directory)
        except OSError as error:
            raise ValueError(f"feedback directory {directory} cannot be used: {error}") from error
        self._directory = directory
        self._max_segment_bytes = max_segment_bytes
        self._max_segment_age_s = max_segment_age_s
        self._max_waiting_events = max_waiting_events
        self._clock = clock
        self._segment: _Segment | None = None
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

    def close(self) -> None:
        """Writes what waits, closes the segment and returns. May be called twice."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                self._appends.put(None)
        self._writer.join()

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
                cause = error if isinstance(error, OSError) else type(error).__name__
                _log.error("feedback cannot be written to %s: %s", self._directory, cause)
                self._drop_segment()
                for append in batch:
                    refusal = FeedbackNotStored()
                    refusal.__cause__ = error
                    append.done.set_exception(refusal)
            else:
                for append in batch:
                    append.done.set_result(None)
        self._drop_segment()

    def _write(self, batch: Iterable["_Append"]) -> None:
        lines = [as_line(event) for append in batch for event in append.events]
        if self._segment is None:
            self._segment = _Segment(self._directory, self._clock())
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
                _log.error("feedback segment %s cannot be closed: %s", segment.path, error)


class _Append(NamedTuple):
    events: tuple[Event, ...]
    done: concurrent.futures.Future[None]


class _Segment:
    """One file being written; locked for as long as it is."""

    def __init__(self, directory: Path, opened_s: float) -> None:
        # Nanoseconds, as a fast disk takes several segments in a millisecond. Containers that share
        # a volume also share process ids, hence the random part.
        name = f"{time.time_ns():019d}-{os.getpid()}-{secrets.token_hex(4)}"
        self.path = directory / (name + _OPEN)
        self.opened_s = opened_s
        self.size_bytes = 0  # durable bytes, always whole lines
        # Locked under another name first: under this one, a starting process could take a segment
        # that is not locked yet for an abandoned one.
        unlocked = directory / f".{name}"
        self._file = unlocked.open("xb", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX)
            unlocked.rename(self.path)
            sync_directory(directory)
        except OSError:
            self._file.close()
            raise

    def append(self, lines: bytes) -> None:
        rest = memoryview(lines)
        while rest:
            rest = rest[self._file.write(rest) :]
        os.fsync(self._file.fileno())
        self.size_bytes += len(lines)

    def close(self) -> None:
        with self._file:
            if os.fstat(self._file.fileno()).st_size != self.size_bytes:
                self._file.truncate(self.size_bytes)  # a failed append may have left half a line
            _finish(self.path, self.size_bytes)


def segments(directory: Path, *, include_open: bool = False) -> list[Path]:
    """Returns the segments in ``directory``, oldest first.

    Args:
        directory: Where ``FeedbackLog`` wrote them.
        include_open: Whether to list those still being written, whose last line may be torn.
    """
    suffixes = (_CLOSED, _OPEN) if include_open else (_CLOSED,)
    return sorted(path for path in directory.iterdir() if path.name.endswith(suffixes))


def read_events(paths: Iterable[Path], *, keep_duplicates: bool = False) -> Iterator[Event]:
    """Yields the events of the segments in the order written, each event_id once (the first).

    A torn last line is ignored; any other unreadable line is skipped with a warning that names file
    and line. Keeps all event ids in memory, unless ``keep_duplicates``.
    """
    seen: set[str] = set()
    for path in paths:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.endswith(b"\n"):
                    break
                event = _parsed(line)
                if event is None:
                    _log.warning("%s line %d is not a feedback event; skipped", path, number)
                elif keep_duplicates:
                    yield event
                elif event.event_id not in seen:
                    seen.add(event.event_id)
                    yield event


def as_line(event: Event) -> bytes:
    """Returns the event as a line of a segment."""
    return json.dumps(asdict(event), ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _parsed(line: bytes) -> Event | None:
    try:
        fields: dict[str, Any] = json.loads(line)
        fields["kind"] = Kind(fields["kind"])
        event = Event(**fields)
        AttributionToken.open_unverified(event.token)
    except (ValueError, TypeError, KeyError, TokenMalformed):
        return None
    return event


def _close_abandoned(directory: Path) -> None:
    """Closes segments whose writer is gone, dropping torn last lines."""
    for path in directory.glob(f"*{_OPEN}"):
        try:
            file = path.open("r+b")
        except FileNotFoundError:  # another process was faster
            continue
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # its writer lives
                continue
            if not path.exists():
                continue
            content = file.read()
            size = content.rfind(b"\n") + 1
            if size < len(content):
                _log.warning("%s ended in a torn line; %d bytes dropped", path, len(content) - size)
                file.truncate(size)
            os.fsync(file.fileno())
            _finish(path, size)


def _finish(path: Path, size_bytes: int) -> None:
    """Gives a segment its closed name, or removes it if it holds nothing."""
    if size_bytes == 0:
        path.unlink()
    else:
        path.rename(path.with_name(path.name.removesuffix(_OPEN) + _CLOSED))
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Makes the names in ``directory`` durable."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
