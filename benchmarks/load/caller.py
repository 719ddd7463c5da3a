"""Sends requests and keeps what became of them. Knows nothing of when they are due."""

import asyncio
import itertools
import math
import time
from dataclasses import dataclass, field

from grpc import aio

from benchmarks.load.settings import Load
from engine.scheduling.stages import Effort, Left, Omission, Stage, Why
from queryrec.client import QueryRecError
from queryrec.v1 import query_recommender_service_pb2 as service_pb2
from queryrec.v1 import stage_pb2
from queryrec.v1.query_recommender_service_pb2_grpc import QueryRecommenderServiceStub


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
        """Whether its answer left something out; cached results do not count."""
        return bool(self.effort) and self.effort != Effort.FULL


class Caller:
    """Sends requests over several connections in turn and keeps the outcomes."""

    def __init__(self, load: Load) -> None:
        self._deadline_s = load.deadline_ms / 1000
        # Channels to one target share a connection unless told otherwise.
        options = [("grpc.use_local_subchannel_pool", 1)]
        self._channels = [
            aio.insecure_channel(load.target, options=options) for _ in range(load.num_connections)
        ]
        self._stubs = itertools.cycle([QueryRecommenderServiceStub(c) for c in self._channels])
        self.outcomes: list[Outcome] = []
        self.num_sent = 0

    async def connect(self, timeout_s: float = 10.0) -> None:
        """Raises TimeoutError if there is no connection in time."""
        async with asyncio.timeout(timeout_s):
            await asyncio.gather(*(channel.channel_ready() for channel in self._channels))

    async def close(self) -> None:
        """Ends the connections."""
        await asyncio.gather(*(channel.close() for channel in self._channels))

    async def call(self, request: service_pb2.RecommendRequest, due_s: float) -> None:
        """Sends one request now and records it against ``due_s`` of ``time.perf_counter``."""
        self.num_sent += 1
        outcome = Outcome(request.scenario, due_s, lag_s=time.perf_counter() - due_s)
        try:
            response = await next(self._stubs).Recommend(request, timeout=self._deadline_s)
        except aio.AioRpcError as error:
            outcome.status = error.code().name
            outcome.error = QueryRecError.from_rpc_error(error).reason or outcome.status
        else:
            outcome.latency_s = time.perf_counter() - due_s
            _read(response, outcome)
        self.outcomes.append(outcome)


def _read(response: service_pb2.RecommendResponse, outcome: Outcome) -> None:
    outcome.num_suggestions = len(response.suggestions)
    outcome.bundle_id = response.bundle_id
    outcome.stage_us = {t.stage: t.duration_us for t in response.stage_timings}
    omissions = [
        Omission(
            Stage(o.stage),
            Left[stage_pb2.OmissionKind.Name(o.kind).removeprefix("OMISSION_KIND_")],
            Why[stage_pb2.OmissionReason.Name(o.reason).removeprefix("OMISSION_REASON_")],
        )
        for o in response.omissions
    ]
    outcome.effort = Effort.of(omissions).value
    outcome.omissions = tuple(f"{o.stage} {o.kind.name} {o.reason.name}".lower() for o in omissions)
