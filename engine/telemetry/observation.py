"""What a call leaves behind: metrics, a log line for those who debug, a trace if it is sampled.

Knows scenarios, deadlines, omissions and times, but no text of a user: none can get out here.
"""

import asyncio
import logging
import re
import uuid
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from grpc import StatusCode, aio

from engine.errors import RequestError
from engine.scheduling.deadline import Clock, Deadline
from engine.scheduling.stages import Effort, Omission, Probe
from engine.telemetry.metrics import UNKNOWN_SCENARIO, Metrics
from engine.telemetry.tracing import Trace, Tracer
from queryrec.v1.error_reason_pb2 import ErrorReason

REQUEST_ID_KEY = "x-request-id"
"""Metadata with the caller's id of a call; comes back with the id that logs and traces have."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:=-]{1,64}")

_log = logging.getLogger(__name__)


class Observer:
    """Sees every call begin and end. To be used from one event loop."""

    def __init__(
        self, clock: Clock, metrics: Metrics | None = None, tracer: Tracer | None = None
    ) -> None:
        """Remembers who is to be told; without a tracer there are no traces."""
        self.metrics = metrics or Metrics()
        self._clock = clock
        self._tracer = tracer

    def call(self, method: str, context: aio.ServicerContext[Any, Any]) -> "Call":
        """Returns a call that has just arrived, to be used as a context manager.

        Args:
            method: Name of the RPC.
            context: Of the call; its trailing metadata is set to the request id.
        """
        metadata = dict(context.invocation_metadata() or ())
        trace = self._tracer.begin(method, metadata) if self._tracer else None
        call = Call(method, metadata.get(REQUEST_ID_KEY), self._clock, self.metrics, trace)
        context.set_trailing_metadata(((REQUEST_ID_KEY, call.request_id),))
        return call

    def shed(
        self, method: str, context: aio.ServicerContext[Any, Any], error: RequestError
    ) -> tuple[tuple[str, str], ...]:
        """Counts a call that is refused before it is read; returns its trailing metadata.

        It took no time, so that it is in no histogram, no log and no trace.
        """
        self.metrics.failed(method, error.reason)
        given_id = dict(context.invocation_metadata() or ()).get(REQUEST_ID_KEY)
        return ((REQUEST_ID_KEY, _valid_id(given_id) or uuid.uuid4().hex),)


class Call:
    """One call, from its arrival to its response or error.

    Attributes:
        response_id: Unique: a caller may send the same request id again, as with a retry.
        request_id: That of the caller if it sent a valid one, else the response's.
        probe: Collects the times of its stages.
    """

    __slots__ = (
        "_clock",
        "_deadline",
        "_is_empty",
        "_method",
        "_metrics",
        "_omissions",
        "_scenario",
        "_side",
        "_trace",
        "probe",
        "request_id",
        "response_id",
    )

    def __init__(
        self,
        method: str,
        given_id: str | bytes | None,
        clock: Clock,
        metrics: Metrics,
        trace: Trace | None,
    ) -> None:
        """Starts the time."""
        self.response_id = uuid.uuid4().hex
        self.request_id = _valid_id(given_id) or self.response_id
        self.probe = Probe(clock) if trace is None else trace.probe(clock)
        self._method = method
        self._metrics = metrics
        self._trace = trace
        self._scenario = UNKNOWN_SCENARIO if method == "Recommend" else ""
        self._side = ""
        self._deadline: Deadline | None = None
        self._omissions: Sequence[Omission] | None = None
        self._is_empty = False

    def __enter__(self) -> "Call":
        """Counts it as in flight."""
        self._metrics.call_began()
        return self

    def asked(self, scenario: str, side: str) -> None:
        """Notes for which scenario of which release it is, "bundle" or "canary"."""
        self._scenario = scenario
        self._side = side

    def due(self, deadline: Deadline) -> None:
        """Notes when an answer has to be ready."""
        self._deadline = deadline

    def answered(self, omissions: Sequence[Omission], num_suggestions: int) -> None:
        """Notes what its answer leaves out, and how much it holds."""
        self._omissions = omissions
        self._is_empty = num_suggestions == 0

    def stored(self, num_accepted: int, refused: Sequence[ErrorReason]) -> None:
        """Notes what became of its feedback events."""
        self._metrics.feedback(num_accepted, refused)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Tells everybody how it ended; lets exceptions through."""
        (_, elapsed_s), *stages = self.probe.finish()
        is_late = self._deadline is not None and self._deadline.has_passed
        status = _status(error, is_late=is_late)
        metrics = self._metrics
        scenario, side = self._scenario, self._side
        metrics.call_ended(self._method, scenario, side, status.name, elapsed_s)
        if isinstance(error, RequestError):
            metrics.failed(self._method, error.reason)
        if self._omissions is not None:
            metrics.answered(scenario, side, self._omissions, stages, is_empty=self._is_empty)
        if is_late and scenario and status in (StatusCode.OK, StatusCode.DEADLINE_EXCEEDED):
            metrics.budget_missed(scenario, side)
        if self._trace is not None:
            self._trace.end(status, self._fields())
        if _log.isEnabledFor(logging.DEBUG):
            fields = self._fields() | {
                "method": self._method,
                "status": status.name,
                "duration_ms": round(elapsed_s * 1000, 3),
                "stages_ms": {stage.value: round(s * 1000, 3) for stage, s in stages},
            }
            _log.debug("call ended", extra=fields)

    def _fields(self) -> dict[str, Any]:
        """Returns what logs and traces tell of it."""
        fields: dict[str, Any] = {"request_id": self.request_id}
        if self.response_id != self.request_id:
            fields["response_id"] = self.response_id
        if self._scenario:
            fields["scenario"] = self._scenario
        if self._side:
            fields["side"] = self._side
        if self._omissions is not None:
            fields["effort"] = Effort.of(self._omissions).value
            fields["omissions"] = [
                f"{o.stage} {o.kind.name} {o.reason.name}".lower() for o in self._omissions
            ]
        return fields


def _valid_id(given_id: str | bytes | None) -> str:
    """Returns a caller's request id; empty if it gave none that may stand in a log."""
    is_valid = isinstance(given_id, str) and _REQUEST_ID.fullmatch(given_id)
    return given_id if isinstance(given_id, str) and is_valid else ""


def _status(error: BaseException | None, *, is_late: bool) -> StatusCode:
    if error is None:
        return StatusCode.OK
    if isinstance(error, RequestError):
        return error.code
    if isinstance(error, asyncio.CancelledError):  # by the caller, or by gRPC at the deadline
        return StatusCode.DEADLINE_EXCEEDED if is_late else StatusCode.CANCELLED
    return StatusCode.UNKNOWN
