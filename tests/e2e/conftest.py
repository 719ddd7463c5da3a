"""Fixtures of the end-to-end tests."""

from collections.abc import Iterator

import grpc
import pytest

from queryrec.v1.query_recommender_service_pb2_grpc import QueryRecommenderServiceStub


@pytest.fixture(scope="module")
def channel(live_engine) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(live_engine.target) as channel:
        yield channel


@pytest.fixture(scope="module")
def stub(channel) -> QueryRecommenderServiceStub:
    return QueryRecommenderServiceStub(channel)
