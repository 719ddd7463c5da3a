"""One worker process as its parent sees it, and when it is started again.

Knows nothing of other workers.
"""

import asyncio
import logging
import math
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
    Refused,
    Said,
    Serving,
    Start,
    as_line,
    reply_of,
)

MAX_RESTARTS = 5  # in a row, if no other worker serves meanwhile
STABLE_S = 60.0  # a worker that served this long starts a new row
START_LIMIT_S = 1800.0  # of a start that has worked before: TensorRT may compile for long
_BACKOFF_S, _MAX_DOUBLINGS = 0.5, 7  # before the first restart in a row; doubles with each, to 64 s
_SLOW_START_S = 60.0  # told of each time that this has passed
_PING_S, _MAX_UNANSWERED = 1.0, 10  # counted, not timed: the whole machine may have stood still

_log = logging.getLogger(__name__)


class Restarts:
    """When a worker that died is started again, and whether there is hope that it helps."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        """Starts with a clean record."""
        self._now_s = now_s
        self._num_in_row = 0
        self._serving_since_s: float | None = None

    def served(self) -> None:
        """Notes that the worker has begun to serve."""
        self._serving_since_s = self._now_s()

    @property
    def is_hopeless(self) -> bool:
        """Whether it died more than `MAX_RESTARTS` times in a row."""
        return self._num_in_row > MAX_RESTARTS

    def delay_s(self) -> float:
        """Notes that it died. Returns seconds until the next start."""
        since_s, self._serving_since_s = self._serving_since_s, None
        if since_s is not None and self._now_s() - since_s >= STABLE_S:
            self._num_in_row = 0
        self._num_in_row += 1
        return _BACKOFF_S * 2 ** min(self._num_in_row - 1, _MAX_DOUBLINGS)


class WorkerProcess:
    """One worker process, as long as it lives."""

    def __init__(self, start: Start, process: asyncio.subprocess.Process) -> None:
        """Wraps a process that has just begun."""
        self.places = start.places
        self.is_serving = False
        self.has_served = False
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

    async def follow(self, on_serving: Callable[[str], None], start_limit_s: float | None) -> int:
        """Heeds what the process says until it ends. Returns its exit status.

        Args:
            on_serving: Called with the bundle's id once it serves.
            start_limit_s: If it does not serve by then, it is killed; None waits for ever.
        """
        assert self.process.stdout is not None
        watching = asyncio.ensure_future(self._watch(start_limit_s))
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
                    self.is_serving = self.has_served = True
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

    def count_refusal(self) -> None:
        """Has it count a release as refused, which another worker died over."""
        self._tell(Refused())

    def signal(self, number: int) -> None:
        """Sends a signal, if the process is still there."""
        with suppress(ProcessLookupError):
            self.process.send_signal(number)

    async def _watch(self, start_limit_s: float | None) -> None:
        """Kills a process that does not come to serve, or serves but stands still.

        The latter would keep its share of connections.
        """
        starting_s, limit_s = 0.0, math.inf if start_limit_s is None else start_limit_s
        end = "" if start_limit_s is None else f"; killed at {start_limit_s:.0f} s"
        while self._num_unanswered < _MAX_UNANSWERED and starting_s < limit_s:
            await asyncio.sleep(_PING_S)
            if self.is_serving:
                self._num_unanswered += 1
                self._tell(Ping())
            elif not self.has_served:
                starting_s += _PING_S
                if starting_s % _SLOW_START_S < _PING_S:
                    _log.warning(
                        "worker %d has been starting for %.0f s%s", self._number, starting_s, end
                    )
        if self.has_served:
            self.why_failed = f"gave no sign of life for {_MAX_UNANSWERED * _PING_S:.0f} s; killed"
        else:
            self.why_failed = f"did not serve within {limit_s:.0f} s; killed"
        self.signal(signal.SIGKILL)

    def _end_refresh(self, *, is_current: bool) -> None:
        if self._refreshed is not None and not self._refreshed.done():
            self._refreshed.set_result(is_current)

    def _tell(self, command: Command) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(as_line(command))
