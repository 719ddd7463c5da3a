"""Calls are refused at once when more come than can be looked at.

Where calls come faster than they are answered, they wait inside gRPC, first come first served,
until each has waited for as long as its client cares to: all are answered, and none in time. Python
does not see that queue, so a probe is sent through it: a call of the server to itself. While that
waits for most of a budget, calls are refused, which takes less than an answer: all of them until
the queue is gone, then as many as keep it short. Work for models has queues of its own.
"""

import asyncio
import logging
import random
import secrets
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

from grpc import aio

from engine.scheduling.deadline import Clock

PROBE_METHOD = "/queryrec.Probe/Wait"
_PROBE_KEY = "queryrec-probe"
_INTERVAL_S = 0.05
_MIN_CALLS = 10  # in an interval: fewer are no overload, and not worth a probe
_MAX_PROBES = 40  # under way
_LONG, _SHORT = 0.8, 0.3  # of a budget
_PATIENCE = 4  # probes in a row that wait for long; a pause of the process holds up one
_LEAST = 0.05  # share of calls that are answered as soon as the queue is gone
_STEP, _GONE_STEP = 1.25, 2.0  # of that share, with every probe

if TYPE_CHECKING:  # not subscriptable at run time
    _Send = aio.UnaryUnaryMultiCallable[bytes, bytes]

_log = logging.getLogger(__name__)


class Shedding:
    """Says which calls to refuse. To be used from one event loop.

    Attributes:
        num_calls: Calls so far.
        num_refused: Calls that were to be refused so far.
    """

    def __init__(self, budget_s: float, randomness: random.Random | None = None) -> None:
        """Refuses none yet.

        Args:
            budget_s: Of an answer: most of it may not go by before a call is looked at.
            randomness: Of which calls.
        """
        self.num_calls = 0
        self.num_refused = 0
        self._long_s, self._short_s = _LONG * budget_s, _SHORT * budget_s
        self._randomness = randomness or random.Random()
        self._share = 1.0  # of calls that are answered
        self._num_long = 0  # in a row

    def refuses(self) -> bool:
        """Returns whether to refuse the call that has just come."""
        self.num_calls += 1
        is_refused = self._share < 1 and self._randomness.random() >= self._share
        self.num_refused += is_refused
        return is_refused

    def waited(self, wait_s: float) -> None:
        """Notes for how long a call waits now until somebody looks at it."""
        before = self._share
        if wait_s > self._long_s:
            self._num_long += 1
            if self._share < 1:
                self._share = self._share / _STEP if wait_s < 2 * self._long_s else 0.0
            elif self._num_long >= _PATIENCE:
                self._share = 0.0
        else:
            self._num_long = 0
            if wait_s < self._short_s and self._share < 1:
                step = _GONE_STEP if wait_s < self._short_s / 5 else _STEP
                self._share = min(1.0, max(_LEAST, self._share * step))
        if (before < 1) != (self._share < 1):
            extra = {"wait_ms": round(1000 * wait_s), "num_refused": self.num_refused}
            _log.warning("overloaded" if self._share < 1 else "no longer overloaded", extra=extra)


class QueueProbe:
    """Finds out how long calls wait, while many come. To be used from one event loop.

    Attributes:
        shedding: Told of it.
    """

    def __init__(self, shedding: Shedding, clock: Clock) -> None:
        """Sends nothing yet."""
        self.shedding = shedding
        self._clock = clock
        self._sent_s: dict[str | bytes, float] = {}  # by secret, of those that nobody looked at
        self._under_way: set[asyncio.Task[None]] = set()

    def arrived(self, metadata: Iterable[tuple[str, str | bytes]]) -> None:
        """Notes that a call is looked at; it is a probe if its metadata has one's secret."""
        for key, value in metadata:
            if key == _PROBE_KEY and (sent_s := self._sent_s.pop(value, None)) is not None:
                self.shedding.waited(self._clock.now_s() - sent_s)

    async def run(self, port: int) -> None:
        """Probes a port of the server for ever."""
        num_before = self.shedding.num_calls
        async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            send: _Send = channel.unary_unary(PROBE_METHOD)
            while True:
                await asyncio.sleep(_INTERVAL_S)
                num_calls = self.shedding.num_calls
                is_busy, num_before = num_calls - num_before >= _MIN_CALLS, num_calls
                now_s = self._clock.now_s()
                if self._sent_s:
                    # As long as the oldest waits, if it is long: it may still wait for longer.
                    self.shedding.waited(now_s - min(self._sent_s.values()))
                elif not is_busy:
                    self.shedding.waited(0.0)
                if is_busy and len(self._under_way) < _MAX_PROBES:
                    secret = secrets.token_hex(8)
                    self._sent_s[secret] = now_s
                    task = asyncio.ensure_future(self._answer(send, secret))
                    self._under_way.add(task)
                    task.add_done_callback(self._under_way.discard)

    async def _answer(self, send: "_Send", secret: str) -> None:
        with suppress(aio.AioRpcError):  # nothing implements it
            await send(b"", metadata=((_PROBE_KEY, secret),), timeout=1.0)
        self._sent_s.pop(secret, None)
