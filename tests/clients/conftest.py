"""A real gRPC server whose answers are fixed."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest_asyncio
from grpc import aio

from engine import errors
from queryrec.v1 import (
    error_reason_pb2,
    feedback_pb2,
    scenario_pb2,
    stage_pb2,
    suggestion_pb2,
)
from queryrec.v1 import query_recommender_service_pb2 as service_pb2
from queryrec.v1.query_recommender_service_pb2_grpc import (
    QueryRecommenderServiceServicer,
    add_QueryRecommenderServiceServicer_to_server,
)

FAILURES: dict[str, errors.RequestError] = {
    "empty": errors.query_empty(),
    "long": errors.text_too_long("query", size_bytes=300, max_bytes=256),
    "field": errors.text_too_long("answer", size_bytes=9000, max_bytes=8192),
    "invalid": errors.text_invalid("session_queries[3]", "no control characters"),
    "items": errors.too_many_items("exclude", num_items=300, max_items=256),
    "scenario": errors.ScenarioUnknown(["suggestion", "completion"]),
    "range": errors.max_suggestions_out_of_range(-1, max_value=32),
    "budget": errors.latency_budget_invalid(),
    "full": errors.QueueFull("recommend"),
    "loading": errors.NotReady("the bundle is loading"),
    "late": errors.DeadlineUnreachable(),
    "disk": errors.FeedbackNotStored(),
    "fault": errors.InternalFault("r1"),
}


class FixedServicer(QueryRecommenderServiceServicer):
    """Fails as the query says, else echoes."""

    def __init__(self) -> None:
        self.requests: list[service_pb2.RecommendRequest] = []
        self.events: list[feedback_pb2.FeedbackEvent] = []
        self.peers: set[str] = set()
        self.metadata: list[dict[str, str | bytes]] = []
        self.left_s: list[float | None] = []  # of each call's deadline

    async def Recommend(self, request, context):
        self.requests.append(request)
        self._note(context)
        if request.query in FAILURES:
            await errors.abort(context, FAILURES[request.query])
        if request.query == "plain":
            await context.abort(grpc.StatusCode.UNAVAILABLE, "from a proxy")
        if request.query == "garbled":
            await context.abort(
                grpc.StatusCode.INTERNAL, "?", (("grpc-status-details-bin", b"\xff\xff"),)
            )
        if request.query == "never":
            await asyncio.Event().wait()
        return service_pb2.RecommendResponse(
            request_id="r1",
            suggestions=[
                suggestion_pb2.Suggestion(
                    text="wireless earbuds",
                    click_probability=0.25,
                    sources=["SUGGESTION_SOURCE_LOG", "SUGGESTION_SOURCE_GENERATED"],
                    position=1,
                )
            ],
            auxiliary_text="Which kind?",
            attribution_token="token",
            stage_timings=[stage_pb2.StageTiming(stage="total", duration_us=1500)],
            omissions=[
                stage_pb2.Omission(
                    stage="generate",
                    kind=stage_pb2.OMISSION_KIND_SKIPPED,
                    reason=stage_pb2.OMISSION_REASON_BUDGET,
                )
            ],
            bundle_id="b1",
        )

    async def RecordFeedback(self, request, context):
        self._note(context)
        self.events.extend(request.events)
        return service_pb2.RecordFeedbackResponse(
            num_accepted=1,
            refusals=[
                feedback_pb2.FeedbackRefusal(
                    event_index=1,
                    reason=error_reason_pb2.ERROR_REASON_TOKEN_MALFORMED,
                    message="cut",
                )
            ],
        )

    async def ListScenarios(self, request, context):
        self._note(context)
        return service_pb2.ListScenariosResponse(
            scenarios=[
                scenario_pb2.Scenario(
                    name="suggestion",
                    description="What to search next.",
                    default_num_suggestions=8,
                    max_num_suggestions=16,
                    side_information_kinds=["answer", "session"],
                )
            ]
        )

    def _note(self, context):
        self.peers.add(context.peer())
        self.metadata.append(dict(context.invocation_metadata()))
        self.left_s.append(context.time_remaining())


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[str, FixedServicer]]:
    """Yields the target and the servicer of a server."""
    server = aio.server()
    servicer = FixedServicer()
    add_QueryRecommenderServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}", servicer
    await server.stop(grace=None)


@pytest_asyncio.fixture
async def served() -> AsyncIterator[tuple[str, FixedServicer]]:
    async with serving() as target_and_servicer:
        yield target_and_servicer
