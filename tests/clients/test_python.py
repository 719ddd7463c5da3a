"""The Python client against a real gRPC server whose answers are fixed."""

import asyncio
import copy
import pickle
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from grpc import aio
from grpc.aio import UsageError
from grpc_status import rpc_status

from engine import errors
from queryrec.client import Omission, QueryRecClient, QueryRecError, Suggestion
from queryrec.v1 import query_recommender_service_pb2 as service_pb2
from queryrec.v1.query_recommender_service_pb2_grpc import QueryRecommenderServiceStub
from tests.clients.conftest import FAILURES, serving


async def test_an_answer_becomes_plain_values(served):
    target, servicer = served
    async with QueryRecClient(target, timeout_s=10) as client:
        answer = await client.recommend(
            "suggestion",
            "earbuds",
            session_queries=["phones"],
            side_information=[("title", "Audio")],
            max_suggestions=3,
            latency_budget_s=0.05,
        )

    (request,) = servicer.requests
    assert (request.scenario, request.query, request.max_suggestions) == (
        "suggestion",
        "earbuds",
        3,
    )
    assert request.latency_budget.ToTimedelta().total_seconds() == 0.05
    assert request.side_information[0].kind == "title"
    assert answer.suggestions == (Suggestion("wireless earbuds", 0.25, ("log", "generated"), 1),)
    assert answer.omissions == (Omission("generate", "skipped", "budget"),)
    assert answer.stage_us == {"total": 1500}
    assert (answer.auxiliary_text, answer.bundle_id) == ("Which kind?", "b1")


async def test_an_unset_latency_budget_stays_unset(served):
    target, servicer = served
    async with QueryRecClient(target, timeout_s=10) as client:
        await client.recommend("suggestion", "earbuds")
        await client.recommend("suggestion", "earbuds", latency_budget_s=-1.5)

    assert not servicer.requests[0].HasField("latency_budget")
    assert servicer.requests[1].latency_budget.ToMilliseconds() == -1500


@pytest.mark.parametrize("latency_budget_s", [float("inf"), float("nan"), 1e300, -1e12])
async def test_a_latency_budget_that_no_request_can_have_is_refused(served, latency_budget_s):
    async with QueryRecClient(served[0]) as client:
        with pytest.raises(ValueError, match="latency_budget_s is"):
            await client.recommend("suggestion", "earbuds", latency_budget_s=latency_budget_s)


@pytest.mark.parametrize("query", FAILURES)
async def test_every_request_error_reaches_the_client_with_status_reason_and_metadata(
    served, query
):
    expected = FAILURES[query]
    async with QueryRecClient(served[0], timeout_s=10) as client:
        with pytest.raises(QueryRecError) as failure:
            await client.recommend("suggestion", query)

    error = failure.value
    assert (error.code, error.reason) == (expected.code, expected.reason_name)
    assert (error.message, error.metadata) == (expected.message, expected.metadata)
    assert error.is_retryable == (query in {"full", "loading", "disk"})


async def test_errors_are_what_the_standard_status_library_reads(served):
    async with aio.insecure_channel(served[0]) as channel:
        call = QueryRecommenderServiceStub(channel).Recommend(
            service_pb2.RecommendRequest(query="scenario"), timeout=10
        )
        with pytest.raises(aio.AioRpcError):
            await call
        status = await rpc_status.aio.from_call(call)

    assert status == errors.as_status(FAILURES["scenario"])


@pytest.mark.parametrize(("query", "code"), [("plain", "UNAVAILABLE"), ("garbled", "INTERNAL")])
async def test_a_failure_without_readable_details_has_no_reason(served, query, code):
    async with QueryRecClient(served[0], timeout_s=10) as client:
        with pytest.raises(QueryRecError) as failure:
            await client.recommend("suggestion", query)

    assert (failure.value.code.name, failure.value.reason) == (code, None)


async def test_a_message_that_is_too_large_is_not_to_be_sent_again(served):
    async with QueryRecClient(served[0], timeout_s=10) as client:
        with pytest.raises(QueryRecError) as failure:
            await client.recommend("suggestion", "earbuds", answer="a" * (5 << 20))

    assert failure.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (failure.value.reason, failure.value.is_retryable) == (None, False)


class ErrorOfACaller(QueryRecError):
    """What a program that uses the client may derive."""


@pytest.mark.parametrize("kind", [QueryRecError, ErrorOfACaller])
@pytest.mark.parametrize(
    "duplicate", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy, copy.deepcopy]
)
async def test_an_error_can_be_pickled_and_copied(
    served, kind: type[QueryRecError], duplicate: Callable[[QueryRecError], QueryRecError]
):
    async with aio.insecure_channel(served[0]) as channel:
        with pytest.raises(aio.AioRpcError) as failure:
            await QueryRecommenderServiceStub(channel).Recommend(
                service_pb2.RecommendRequest(query="scenario"), timeout=10
            )
    error = kind.from_rpc_error(failure.value)

    other = duplicate(error)

    assert (type(other), str(other), vars(other)) == (kind, str(error), vars(error))
    assert other.metadata == FAILURES["scenario"].metadata


async def test_a_passed_deadline_ends_on_the_client_side(served):
    async with QueryRecClient(served[0], timeout_s=0.05) as client:
        with pytest.raises(QueryRecError) as failure:
            await client.recommend("suggestion", "never")

    assert failure.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert failure.value.reason is None


async def test_scenarios_become_plain_values(served):
    async with QueryRecClient(served[0], timeout_s=10) as client:
        (scenario,) = await client.list_scenarios()

    assert (scenario.name, scenario.max_num_suggestions) == ("suggestion", 16)
    assert not scenario.has_auxiliary_text
    assert scenario.side_information_kinds == ("answer", "session")


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan"), float("inf"), 1e10])
async def test_a_timeout_of_nonsense_is_refused(timeout_s):
    with pytest.raises(ValueError, match=f"timeout_s is {timeout_s}; it must be above 0"):
        QueryRecClient("127.0.0.1:1", timeout_s=timeout_s)
    async with QueryRecClient("127.0.0.1:1") as client:
        with pytest.raises(ValueError, match=f"timeout_s is {timeout_s}; it must be above 0"):
            await client.list_scenarios(timeout_s=timeout_s)


@pytest.mark.parametrize("timeout_s", [None, 1e9])
async def test_a_call_may_have_no_deadline_or_one_far_away(served, timeout_s):
    async with QueryRecClient(served[0], timeout_s=timeout_s) as client:
        assert await client.list_scenarios()


async def test_a_client_may_be_made_before_the_event_loop_runs(served):
    client = await asyncio.to_thread(QueryRecClient, served[0], timeout_s=10)
    assert await client.list_scenarios()
    await client.close()


async def test_a_client_that_was_closed_before_its_first_call_stays_closed(served):
    client = QueryRecClient(served[0], timeout_s=10)
    await client.close()
    with pytest.raises(UsageError):
        await client.list_scenarios()


@pytest.mark.timeout(60)
async def test_a_server_that_is_away_is_tried_again_every_second():
    num_attempts = 0

    def turn_away(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal num_attempts
        num_attempts += 1
        writer.close()

    away = await asyncio.start_server(turn_away, "127.0.0.1", 0)
    port = away.sockets[0].getsockname()[1]
    async with QueryRecClient(f"127.0.0.1:{port}", timeout_s=10) as client:
        # With gRPC's own back-off the tenth attempt would come after almost two minutes.
        while num_attempts < 10:
            with pytest.raises(QueryRecError) as failure:
                await client.list_scenarios()
            assert failure.value.code is grpc.StatusCode.UNAVAILABLE
            await asyncio.sleep(0.02)
    away.close()
    await away.wait_closed()


@pytest.mark.parametrize("name", ["session_queries", "exclude"])
async def test_a_string_in_place_of_a_sequence_of_strings_is_refused(name):
    arguments: dict[str, Any] = {name: "abc"}
    async with QueryRecClient("127.0.0.1:1") as client:
        with pytest.raises(ValueError, match=f"{name} is a string"):
            await client.recommend("suggestion", "q", **arguments)


async def test_each_client_has_a_connection_of_its_own(served):
    target, servicer = served
    clients = [QueryRecClient(target, timeout_s=10) for _ in range(4)]
    for client in [*clients, *clients]:
        await client.list_scenarios()
    for client in clients:
        await client.close()

    assert len(servicer.peers) == len(clients)


@pytest.mark.timeout(60)
async def test_every_address_of_a_target_gets_calls():
    async with (
        serving() as (one, first),
        serving() as (other, second),
        QueryRecClient(f"ipv4:{one},{other}", timeout_s=10) as client,
    ):
        while not (first.peers and second.peers):  # the second connection may take longer
            await client.list_scenarios()
        before = len(first.metadata), len(second.metadata)
        for _ in range(10):
            await client.list_scenarios()
    assert (len(first.metadata), len(second.metadata)) == (before[0] + 5, before[1] + 5)


async def test_metadata_goes_with_each_call(served):
    target, servicer = served
    metadata = [("x-request-id", "r-1"), ("traceparent", "00-1-2-01")]
    async with QueryRecClient(target, timeout_s=10) as client:
        await client.recommend("suggestion", "earbuds", metadata=metadata)
        await client.record_feedback([], metadata=metadata)
        await client.list_scenarios(metadata=metadata)
        await client.list_scenarios()

    sent = [{k: v for k, v in m.items() if k in dict(metadata)} for m in servicer.metadata]
    assert sent == [dict(metadata)] * 3 + [{}]


@pytest.mark.parametrize("pair", [("X-Request-Id", "r-1"), ("x-request-id", "größe")])
async def test_metadata_that_cannot_be_sent_is_refused(pair):
    async with QueryRecClient("127.0.0.1:1") as client:
        with pytest.raises(ValueError, match=f"metadata has '{pair[0]}'"):
            await client.list_scenarios(metadata=[pair])
