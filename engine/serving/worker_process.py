"""One worker process as its parent sees it, and when it is started again.

Knows nothing of other workers.
"""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec

from engine.serving.console import say
from engine.serving.control import (
    MAX_LINE_BYTES,
    Command,
    Ending,
    Failed,
    Ping,
    Pong,
    Refresh,
    Said,
    Serving,
    Start,
    as_line,
    reply_of,
)

MAX_RESTARTS = 5  # in a row
STABLE_S = 60.0  # a worker that served this long starts a new row
_BACKOFF_S = 0.5  # before the first restart in a row; doubles with each
_PING_S, _MAX_UNANSWERED = 1.0, 10  # counted, not timed: the whole machine may have stood still


class Restarts:
    """Whether and when a worker that died is started again."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        """Starts with a clean record."""
        self._now_s = now_s
        self._num_in_row = 0
        self._serving_since_s: float | None = None

    def served(self) -> None:
        """Notes that the worker has begun to serve."""
        self._serving_since_s = self._now_s()

    def delay_s(self) -> float | None:
        """Notes that it died. Returns seconds until the next start, or None to give up."""
        since_s, self._serving_since_s = self._serving_since_s, None
        if since_s is not None and self._now_s() - since_s >= STABLE_S:
            self._num_in_row = 0
        self._num_in_row += 1
        if self._num_in_row > MAX_RESTARTS:
            return None
        return _BACKOFF_S * 2 ** (self._num_in_row - 1)


class WorkerProcess:
    """One worker process, as long as it lives."""

    def __init__(self, start: Start, process: asyncio.subprocess.Process) -> None:
        """Wraps a process that has just begun."""
        self.places = start.places
        self.is_serving = False
        self.why_failed = ""
        self.process = process
        self._number = start.number
        self._refreshed: asyncio.Future[bool] | None = None
        self._num_unanswered = 0  # pings

    @classmethod
    async def begin(cls, start: Start) -> "WorkerProcess":
        """Starts a process and tells it what to serve.

        Raises:
            OSError: the system has no room for another process.
        """
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "engine.serving"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=MAX_LINE_BYTES,
            # It finds the very modules that this process has found, however this one was started.
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
            start_new_session=True,  # a terminal's Ctrl-C reaches it through the supervisor only
        )
        worker = cls(start, process)
        worker._tell(start)
        return worker

    async def follow(self, on_serving: Callable[[str], None]) -> int:
        """Heeds what the process says until it ends. Returns its exit status.

        Args:
            on_serving: Called with the bundle's id once it serves.
        """
        assert self.process.stdout is not None
        watching = asyncio.ensure_future(self._watch())
        try:
            while line := await self.process.stdout.readline():
                try:
                    reply = reply_of(line)
                except msgspec.MsgspecError:  # printed by a library
                    reply = Said(text=line.decode(errors="replace").rstrip())
                if isinstance(reply, Said):
                    say(f"worker {self._number}: {reply.text}")
                elif isinstance(reply, Failed):
                    self.why_failed = reply.why
                elif isinstance(reply, Serving):
                    self.is_serving = True
                    on_serving(reply.bundle_id)
                elif isinstance(reply, Pong):
                    self._num_unanswered = 0
                elif isinstance(reply, Ending):
                    self.is_serving = False
                else:
                    self._end_refresh(is_current=reply.is_current)
            return await self.process.wait()
        finally:
            watching.cancel()
            self.is_serving = False
            self._end_refresh(is_current=False)

    async def refresh(self, side: str, directory: Path, *, is_asked: bool) -> bool:
        """Has it look at one side's bundle; one refresh at a time.

        Returns:
            Whether it serves that bundle; not if it died over it.
        """
        refreshed = self._refreshed = asyncio.get_running_loop().create_future()
        self._tell(Refresh(side=side, directory=str(directory), is_asked=is_asked))
        is_current = await refreshed
        if is_current:
            self.places = self.places.with_side(side, directory)
        return is_current

    def signal(self, number: int) -> None:
        """Sends a signal, if the process is still there."""
        with suppress(ProcessLookupError):
            self.process.send_signal(number)

    async def _watch(self) -> None:
        """Kills a process that serves but stands still: it would keep its share of connections."""
        while self._num_unanswered < _MAX_UNANSWERED:
            await asyncio.sleep(_PING_S)
            if self.is_serving:
                self._num_unanswered += 1
                self._tell(Ping())
        self.why_failed = f"gave no sign of life for {_MAX_UNANSWERED * _PING_S:.0f} s; killed"
        self.signal(signal.SIGKILL)

    def _end_refresh(self, *, is_current: bool) -> None:
        if self._refreshed is not None and not self._refreshed.done():
            self._refreshed.set_result(is_current)

    def _tell(self, command: Command) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(as_line(command))
