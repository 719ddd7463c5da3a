"""A gRPC server in this process that answers in known ways."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
from grpc import aio

from engine import errors
from queryrec.v1 import query_recommender_service_pb2 as service_pb2
from queryrec.v1 import scenario_pb2, stage_pb2, suggestion_pb2
from queryrec.v1.query_recommender_service_pb2_grpc import (
    QueryRecommenderServiceServicer,
    add_QueryRecommenderServiceServicer_to_server,
)

STAGE_US = {"total": 9000, "queue": 500, "encode": 1000, "generate": 5000}
STALL_S = 0.5


class Servicer(QueryRecommenderServiceServicer):
    def __init__(self) -> None:
        self.requests: list[service_pb2.RecommendRequest] = []
        self.authorizations: list[object] = []
        self.has_50 = asyncio.Event()
        self.is_open = asyncio.Event()
        self.is_open.set()
        self.num_under_way = self.most_under_way = 0

    async def ListScenarios(self, request, context):
        return service_pb2.ListScenariosResponse(
            scenarios=[scenario_pb2.Scenario(name=n) for n in ("completion", "suggestion")]
        )

    async def Recommend(self, request, context):
        self.num_under_way += 1
        self.most_under_way = max(self.most_under_way, self.num_under_way)
        try:
            return await self._answered(request, context)
        finally:
            self.num_under_way -= 1

    async def _answered(self, request, context):
        self.requests.append(request)
        if len(self.requests) == 50:
            self.has_50.set()
        metadata = context.invocation_metadata() or ()
        self.authorizations += [value for key, value in metadata if key == "authorization"]
        if request.query == "stall":
            self.is_open.clear()
            asyncio.get_running_loop().call_later(STALL_S, self.is_open.set)
        await self.is_open.wait()
        if request.query == "refused":
            await errors.abort(context, errors.QueueFull("recommend"))
        response = service_pb2.RecommendResponse(
            suggestions=[suggestion_pb2.Suggestion(text="x", position=1)],
            stage_timings=[
                stage_pb2.StageTiming(stage=stage, duration_us=us) for stage, us in STAGE_US.items()
            ],
        )
        if request.query == "degraded":
            response.omissions.add(
                stage="score",
                kind=stage_pb2.OMISSION_KIND_SKIPPED,
                reason=stage_pb2.OMISSION_REASON_BUDGET,
            )
        if request.query == "from a newer engine":
            response.omissions.add(stage="paint", kind=77, reason=88)
        if request.query == "cached":
            response.omissions.add(
                stage="generate",
                kind=stage_pb2.OMISSION_KIND_SKIPPED,
                reason=stage_pb2.OMISSION_REASON_CACHED,
            )
        return response


@asynccontextmanager
async def serving(
    credentials: grpc.ServerCredentials | None = None,
) -> AsyncIterator[tuple[str, Servicer]]:
    """Serves in this process and gives the address."""
    server, servicer = aio.server(), Servicer()
    add_QueryRecommenderServiceServicer_to_server(servicer, server)
    if credentials is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        yield f"127.0.0.1:{port}", servicer
    finally:
        await server.stop(grace=None)
