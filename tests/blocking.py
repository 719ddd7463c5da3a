"""Services as a blocking channel calls them; the types of their stubs are those of grpc.aio."""

from __future__ import annotations

from typing import Protocol, cast

import grpc
from google.rpc import status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from queryrec.v1 import query_recommender_service_pb2 as pb
from queryrec.v1.query_recommender_service_pb2_grpc import QueryRecommenderServiceStub


class BlockingStub(Protocol):
    """What a `QueryRecommenderServiceStub` is on a `grpc.Channel`."""

    Recommend: grpc.UnaryUnaryMultiCallable[pb.RecommendRequest, pb.RecommendResponse]
    RecordFeedback: grpc.UnaryUnaryMultiCallable[
        pb.RecordFeedbackRequest, pb.RecordFeedbackResponse
    ]
    ListScenarios: grpc.UnaryUnaryMultiCallable[pb.ListScenariosRequest, pb.ListScenariosResponse]


class BlockingHealthStub(Protocol):
    """What a `HealthStub` is on a `grpc.Channel`."""

    Check: grpc.UnaryUnaryMultiCallable[
        health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse
    ]


def blocking_stub(channel: grpc.Channel) -> BlockingStub:
    return cast(BlockingStub, QueryRecommenderServiceStub(channel))


def blocking_health_stub(channel: grpc.Channel) -> BlockingHealthStub:
    return cast(BlockingHealthStub, health_pb2_grpc.HealthStub(channel))


def status_of(error: grpc.RpcError) -> status_pb2.Status:
    """Returns the status that a call failed with, and its details."""
    status = rpc_status.from_call(cast(grpc.Call, error))  # it has what a call says of its end
    assert status is not None
    return status
