"""Connections to servers that may go away and come back. Knows nothing of what they serve."""

import logging

CHANNEL_OPTIONS: list[tuple[str, int | str]] = [
    # By default a lost server is tried again after 1 s, later after up to 120 s.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2000),  # how long one attempt to connect may take
    ("grpc.max_reconnect_backoff_ms", 1000),
    # A host that vanishes closes no connection; pings find out, and only while calls wait.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 1000),
    # Engines of one process (tests, benchmarks) must not share a connection.
    ("grpc.use_local_subchannel_pool", 1),
]
_HUNG_CALLS, _HUNG_S = 3, 1.0  # late calls without an answer between them, and for how long


class Outage:
    """Logs when a server begins to fail and when it answers again, not every call in between.

    A server that hangs fails no call, but is late with all: an outage, too, once it answered none
    of several calls for a while. One late call is none: its time may have been short.

    Attributes:
        is_on: Whether the server fails or hangs, as far as its last calls tell.
    """

    def __init__(self, server: str, log: logging.Logger) -> None:
        """Starts with a server that answers; `server` names it in the log."""
        self._server = server
        self._log = log
        self.is_on = False
        self._num_late = 0  # since the last answer
        self._late_since_s = 0.0

    def failed(self, message: str) -> None:
        """Notes a failure."""
        if not self.is_on:
            self.is_on = True
            self._log.error("%s; what needs it is left out until it answers again", message)

    def timed_out(self, now_s: float) -> None:
        """Notes a call that was given up."""
        if self._num_late == 0:
            self._late_since_s = now_s
        self._num_late += 1
        if self._num_late >= _HUNG_CALLS and now_s - self._late_since_s >= _HUNG_S:
            self.failed(f"{self._server}: answered none of {self._num_late} calls in time")

    def answered(self) -> None:
        """Notes an answer."""
        self._num_late = 0
        if self.is_on:
            self.is_on = False
            self._log.warning("%s: answers again", self._server)
