"""Sends requests and keeps what became of them. Knows nothing of when they are due."""

import asyncio
import itertools
import math
import sys
import time
from dataclasses import dataclass, field
from typing import cast

import grpc
from grpc import aio

from benchmarks.load.settings import Load
from benchmarks.load.traffic import Request
from engine.scheduling.stages import Effort, Left, Omission, Stage, Why
from queryrec.client import QueryRecError
from queryrec.v1 import query_recommender_service_pb2 as service_pb2
from queryrec.v1 import stage_pb2

_METHOD = (
    f"/{service_pb2.DESCRIPTOR.services_by_name['QueryRecommenderService'].full_name}/Recommend"
)
_LEFT = {stage_pb2.OmissionKind.Value(f"OMISSION_KIND_{kind.name}"): kind for kind in Left}
_WHY = {stage_pb2.OmissionReason.Value(f"OMISSION_REASON_{why.name}"): why for why in Why}
_CACHED = f" {Why.CACHED.name.lower()}"


@dataclass(slots=True)
class Outcome:
    """What became of one request. Times are in seconds."""

    scenario: str
    due_s: float  # of `time.perf_counter`
    lag_s: float  # from then until it was sent
    latency_s: float = math.nan  # of an answer, from `due_s` on
    status: str = "OK"
    error: str = ""  # its reason
    omissions: tuple[str, ...] = ()
    effort: str = ""
    num_suggestions: int = 0
    bundle_id: str = ""  # that answered
    stage_us: dict[str, int] = field(default_factory=dict)

    @property
    def is_degraded(self) -> bool:
        """Whether its answer left out what the bundle has; cached results do not count."""
        return bool(self.effort) and self.effort != Effort.FULL

    @property
    def is_cached(self) -> bool:
        """Whether its answer used results of an earlier request."""
        return any(name.endswith(_CACHED) for name in self.omissions)


def credentials(load: Load) -> grpc.ChannelCredentials | None:
    """Returns what TLS needs, None for plain text."""
    return grpc.ssl_channel_credentials(load.root_certificates) if load.is_tls else None


class Caller:
    """Sends requests over several connections in turn and keeps the outcomes."""

    def __init__(self, load: Load) -> None:
        self._deadline_s = load.deadline_ms / 1000
        # Channels to one target share a connection unless told otherwise.
        options = [("grpc.use_local_subchannel_pool", 1)]
        tls = credentials(load)
        self._channels = [
            aio.insecure_channel(load.target, options)
            if tls is None
            else aio.secure_channel(load.target, tls, options)
            for _ in range(load.num_connections)
        ]
        self._metadata = load.metadata
        self._methods = itertools.cycle(
            [
                c.unary_unary(
                    _METHOD,
                    request_serializer=None,
                    response_deserializer=service_pb2.RecommendResponse.FromString,
                )
                for c in self._channels
            ]
        )
        self.outcomes: list[Outcome] = []
        self.num_sent = 0

    async def connect(self, timeout_s: float = 10.0) -> None:
        """Raises TimeoutError if there is no connection in time."""
        async with asyncio.timeout(timeout_s):
            await asyncio.gather(*(channel.channel_ready() for channel in self._channels))

    async def close(self) -> None:
        """Ends the connections."""
        await asyncio.gather(*(channel.close() for channel in self._channels))

    async def call(self, request: Request, due_s: float) -> Outcome:
        """Sends one request now and records it against ``due_s`` of ``time.perf_counter``."""
        self.num_sent += 1
        outcome = Outcome(request.scenario, due_s, lag_s=time.perf_counter() - due_s)
        try:
            response = await next(self._methods)(
                request.message, timeout=self._deadline_s, metadata=self._metadata
            )
        except aio.AioRpcError as error:
            outcome.status = error.code().name
            outcome.error = QueryRecError.from_rpc_error(error).reason or outcome.status
        else:
            if response is None:  # what gRPC makes of bytes that are no such message
                outcome.error = "UNREADABLE_ANSWER"
            else:
                outcome.latency_s = time.perf_counter() - due_s
                _read(response, outcome)
        self.outcomes.append(outcome)
        return outcome


def _read(response: service_pb2.RecommendResponse, outcome: Outcome) -> None:
    # Names are interned: a run may keep millions of outcomes.
    outcome.num_suggestions = len(response.suggestions)
    outcome.bundle_id = sys.intern(response.bundle_id)
    outcome.stage_us = {sys.intern(t.stage): t.duration_us for t in response.stage_timings}
    omissions = [
        # Newer engines may have more of each.
        Omission(
            cast(Stage, o.stage), _LEFT.get(o.kind, Left.DEGRADED), _WHY.get(o.reason, Why.FAILURE)
        )
        for o in response.omissions
    ]
    outcome.effort = Effort.of(omissions).value
    outcome.omissions = tuple(
        sys.intern(f"{o.stage} {o.kind.name} {o.reason.name}".lower()) for o in omissions
    )
