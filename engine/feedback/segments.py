"""Segments: files of feedback events, which one process each writes and any number read.

JSON lines, in files named so that their order is their age. One that is still being written ends
in ``.open`` and is locked. They hold what users wrote, so their owner alone may read them. Tokens
are verified before they are stored, so reading needs no keys.
"""

import fcntl
import json
import logging
import os
import secrets
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from engine.errors import TokenMalformed
from engine.feedback.attribution import AttributionToken
from engine.feedback.events import Event, Kind

_CLOSED, _OPEN = ".jsonl", ".jsonl.open"

_log = logging.getLogger(__name__)


class Segment:
    """One file being written; locked for as long as it is.

    Attributes:
        path: Of the file.
        opened_s: When it was opened, by the caller's clock.
        size_bytes: Durable bytes, always whole lines.
    """

    def __init__(self, directory: Path, opened_s: float) -> None:
        """Opens a segment in a directory.

        Raises:
            OSError: it cannot be made.
        """
        # Nanoseconds, as a fast disk takes several segments in a millisecond. Containers that share
        # a volume also share process ids, hence the random part.
        name = f"{time.time_ns():019d}-{os.getpid()}-{secrets.token_hex(4)}"
        self.path = directory / (name + _OPEN)
        self.opened_s = opened_s
        self.size_bytes = 0
        # Locked under another name first: under this one, a starting process could take a segment
        # that is not locked yet for an abandoned one.
        unlocked = directory / f".{name}"
        handle = os.open(unlocked, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        self._file = os.fdopen(handle, "wb", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX)
            unlocked.rename(self.path)
            sync_directory(directory)
        except OSError:
            self._file.close()
            raise

    def append(self, lines: bytes) -> None:
        """Returns once the lines are durable; raises OSError if they are not."""
        rest = memoryview(lines)
        while rest:
            rest = rest[self._file.write(rest) :]
        os.fsync(self._file.fileno())
        self.size_bytes += len(lines)

    def close(self) -> None:
        """Gives the file its closed name, or removes it if it is empty."""
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


def close_abandoned(directory: Path) -> None:
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
