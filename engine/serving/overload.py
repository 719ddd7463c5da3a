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

from grpc import StatusCode, aio

from engine.scheduling.deadline import Clock

PROBE_METHOD = "/queryrec.Probe/Wait"
_PROBE_KEY = "queryrec-probe"
_INTERVAL_S = 0.05
_MIN_TIMEOUT_S = 5.0
_LONG, _SHORT = 0.8, 0.3  # of a budget
_PATIENCE_S = 0.4  # of waits that are all long; a pause of the process is over by then
_WARY_S = 5.0  # after an overload, in which there is no patience
_LEAST = 0.05  # share of calls that are answered as soon as the queue is gone
_STEP, _GONE_STEP = 1.25, 2.0  # of that share, with every probe
_CHANNEL = [("grpc.enable_http_proxy", 0)]  # the way to oneself leads through no proxy

if TYPE_CHECKING:  # not subscriptable at run time
    _Send = aio.UnaryUnaryMultiCallable[bytes, bytes]

_log = logging.getLogger(__name__)


class Shedding:
    """Says which calls to refuse. To be used from one event loop.

    Attributes:
        num_calls: Calls so far.
        num_refused: Calls that were to be refused so far.
        budget_s: Of an answer.
        wait_s: How long the last call waited, of those that were timed.
    """

    def __init__(
        self, budget_s: float, clock: Clock, randomness: random.Random | None = None
    ) -> None:
        """Refuses none yet.

        Args:
            budget_s: Of an answer: most of it may not go by before a call is looked at.
            clock: Time.
            randomness: Of which calls.
        """
        self.num_calls = 0
        self.num_refused = 0
        self.budget_s = budget_s
        self.wait_s = 0.0
        self._long_s, self._short_s = _LONG * budget_s, _SHORT * budget_s
        self._clock = clock
        self._randomness = randomness or random.Random()
        self._share = 1.0  # of calls that are answered
        self._long_since_s: float | None = None
        self._wary_until_s = clock.now_s()

    def refuses(self) -> bool:
        """Returns whether to refuse the call that has just come."""
        self.num_calls += 1
        is_refused = self._share < 1 and self._randomness.random() >= self._share
        self.num_refused += is_refused
        return is_refused

    def waited(self, wait_s: float) -> None:
        """Notes for how long a call waited until somebody looked at it."""
        self.wait_s = wait_s
        if wait_s <= self._long_s:
            self._long_since_s = None
            if self._share == 0:
                self._set(_LEAST)
            elif wait_s < self._short_s and self._share < 1:
                step = _GONE_STEP if wait_s < self._short_s / 5 else _STEP
                self._set(min(1.0, self._share * step))
        elif self._share < 1:
            self._set(self._share / _STEP if wait_s < 2 * self._long_s else 0.0)
        else:
            now_s = self._clock.now_s()
            if self._long_since_s is None:
                self._long_since_s = now_s
            if now_s < self._wary_until_s:
                self._set(1 / _STEP)
            elif now_s - self._long_since_s >= _PATIENCE_S:
                self._set(0.0)

    def waits(self, wait_s: float) -> None:
        """Notes for how long a call has waited already that nobody has looked at."""
        if wait_s > self._long_s:  # else it may still be a short wait
            self.waited(wait_s)

    def reset(self) -> None:
        """Refuses none any more."""
        self._long_since_s = None
        self.wait_s = 0.0
        self._set(1.0)

    def _set(self, share: float) -> None:
        was_over, is_over = self._share < 1, share < 1
        self._share = share
        if was_over:
            self._wary_until_s = self._clock.now_s() + _WARY_S
        if was_over != is_over:
            extra = {"num_refused": self.num_refused}
            _log.warning("overloaded" if is_over else "no longer overloaded", extra=extra)


class QueueProbe:
    """Finds out how long calls wait, while any come. To be used from one event loop.

    Attributes:
        shedding: Told of it.
    """

    def __init__(self, shedding: Shedding, clock: Clock) -> None:
        """Sends nothing yet."""
        self.shedding = shedding
        self._timeout_s = max(_MIN_TIMEOUT_S, 2 * shedding.budget_s)  # beyond every long wait
        self._clock = clock
        self._secret = ""  # of the probe that nobody has looked at; empty without one
        self._sent_s = 0.0

    def arrived(self, metadata: Iterable[tuple[str, str | bytes]]) -> None:
        """Notes that a call is looked at; it is the probe if its metadata has the secret."""
        if self._secret and (_PROBE_KEY, self._secret) in tuple(metadata):
            self._secret = ""
            self.shedding.waited(self._clock.now_s() - self._sent_s)

    async def run(self, port: int) -> None:
        """Probes a port of the server for ever."""
        try:
            async with aio.insecure_channel(f"127.0.0.1:{port}", options=_CHANNEL) as channel:
                await channel.channel_ready()
                await self._probe(channel.unary_unary(PROBE_METHOD))
        finally:
            self.shedding.reset()

    async def _probe(self, send: "_Send") -> None:
        num_before = self.shedding.num_calls
        probe: asyncio.Future[None] | None = None
        while True:
            await asyncio.sleep(_INTERVAL_S)
            num_calls = self.shedding.num_calls
            if self._secret:
                self.shedding.waits(self._clock.now_s() - self._sent_s)
            elif probe is None or probe.done():
                if num_calls > num_before:
                    self._secret, self._sent_s = secrets.token_hex(8), self._clock.now_s()
                    probe = asyncio.ensure_future(self._sent(send, self._secret))
                else:
                    self.shedding.waited(0.0)
            num_before = num_calls

    async def _sent(self, send: "_Send", secret: str) -> None:
        """Sends a probe and waits for its end: nobody implements the method."""
        try:
            with suppress(asyncio.CancelledError):
                await send(b"", metadata=((_PROBE_KEY, secret),), timeout=self._timeout_s)
        except aio.AioRpcError as error:
            if error.code() not in (StatusCode.UNIMPLEMENTED, StatusCode.DEADLINE_EXCEEDED):
                _log.warning("the engine cannot call itself: %s", error.details())
        finally:
            if self._secret == secret:
                self._secret = ""
