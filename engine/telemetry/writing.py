"""Text that goes out by open files, in order, from a thread of each file's own.

Whoever writes never waits for a reader that is slow or has stopped, and neither does the end of
the process: what was written before it is given a second to go out. Knows nothing of the text.
"""

import atexit
import os
import time
from contextlib import suppress
from queue import SimpleQueue
from threading import Event, Lock, Thread

_MAX_WAITING = 10_000  # texts, some megabytes; a reader may pause for seconds at level "debug"
_FLUSH_S = 1.0
_STDOUT, _STDERR = 1, 2


class Writer:
    """Writes to one file. Texts that find no room to wait are lost; see `writer_of`."""

    def __init__(self, descriptor: int) -> None:
        """Starts the thread."""
        self._descriptor = descriptor
        self._waiting: SimpleQueue[str | Event] = SimpleQueue()
        # A daemon: one that is stuck does not keep the process from its end.
        Thread(target=self._write, name="writer", daemon=True).start()

    @property
    def has_room(self) -> bool:
        """Whether a text that is given next may wait."""
        return self._waiting.qsize() < _MAX_WAITING

    def write(self, text: str) -> bool:
        """Has a text written after those before it, if the file takes it.

        Returns whether there was room for it to wait.
        """
        has_room = self.has_room
        if has_room:
            self._waiting.put(text)
        return has_room

    def mark(self) -> Event:
        """Returns what is set once all that came before is written."""
        written = Event()
        self._waiting.put(written)
        return written

    def _write(self) -> None:
        while True:
            text = self._waiting.get()
            if isinstance(text, Event):
                text.set()
                continue
            left = text.encode("utf-8", "backslashreplace")
            # Past Python's own buffer, whose lock a stuck thread would keep at the process's end.
            with suppress(OSError):  # a full disk, a reader that is gone
                while left:
                    left = left[os.write(self._descriptor, left) :]


_writers: dict[int, Writer] = {}
_making = Lock()


def writer_of(descriptor: int) -> Writer:
    """Returns the one writer of an open file; stdout's is stderr's, too, after a shell's 2>&1."""
    if descriptor == _STDERR and _is_as_stdout():
        descriptor = _STDOUT
    with _making:
        if descriptor not in _writers:
            _writers[descriptor] = Writer(descriptor)
        return _writers[descriptor]


@atexit.register
def flush() -> None:
    """Returns once all that was written so far has gone out, or a second has passed.

    What ends the process by way of the interpreter, not by a signal, does so of itself.
    """
    deadline_s = time.monotonic() + _FLUSH_S
    for written in [writer.mark() for writer in list(_writers.values())]:
        written.wait(max(0.0, deadline_s - time.monotonic()))


def _is_as_stdout() -> bool:
    try:
        return os.path.sameopenfile(_STDOUT, _STDERR)
    except OSError:  # one is closed
        return False
