"""Says whether the service serves, as gRPC's health protocol has it. Knows nothing of why.

Unlike grpcio-health-checking's servicer, watchers share nothing: neither the end of one nor one
that does not read holds up a change or the others.
"""

import asyncio
from collections.abc import Iterable

import grpc
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

_Status = health_pb2.HealthCheckResponse
_Context = aio.ServicerContext[health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse]


class Health(health_pb2_grpc.HealthServicer):
    """The health of some names, all alike. To be used from one event loop."""

    def __init__(self, names: Iterable[str]) -> None:
        """Says NOT_SERVING of `names`; others are unknown."""
        self._names = frozenset(names)
        self._status = _Status.NOT_SERVING
        self._is_ended = False
        self._changed = asyncio.Event()  # set when the status has changed; each has its own

    def serve(self) -> None:
        """Says SERVING, unless it has ended."""
        if not self._is_ended:
            self._set(_Status.SERVING)

    def end(self) -> None:
        """Says NOT_SERVING for good."""
        self._is_ended = True
        self._set(_Status.NOT_SERVING)

    async def Check(self, request: health_pb2.HealthCheckRequest, context: _Context) -> _Status:
        """Answers with the status; NOT_FOUND if the name is unknown."""
        if request.service not in self._names:
            await context.abort(grpc.StatusCode.NOT_FOUND)
        return _Status(status=self._status)

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: _Context) -> None:
        """Sends the status, and again whenever it has changed; SERVICE_UNKNOWN stays."""
        is_known = request.service in self._names
        sent = None
        while True:
            # Taken first: a change while the status is sent is not missed.
            changed = self._changed
            status = self._status if is_known else _Status.SERVICE_UNKNOWN
            if status != sent:
                await context.write(_Status(status=status))
                sent = status
            await changed.wait()

    def _set(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        self._status = status
        self._changed.set()
        self._changed = asyncio.Event()
