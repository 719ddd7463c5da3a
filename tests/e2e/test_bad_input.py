"""Every kind of bad input, over real gRPC against an engine in a process of its own."""

import re
import time
from pathlib import Path

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2

from queryrec.v1 import query_recommender_service_pb2 as pb
from queryrec.v1.feedback_pb2 import FeedbackEvent, FeedbackKind
from queryrec.v1.side_information_pb2 import SideInformation
from tests.blocking import status_of

TIMEOUT_S = 10
RECOMMEND = "/queryrec.v1.QueryRecommenderService/Recommend"


def request(**fields) -> pb.RecommendRequest:
    return pb.RecommendRequest(**{"scenario": "suggestion", "query": "wireless mouse", **fields})


def info(error: grpc.RpcError) -> error_details_pb2.ErrorInfo:
    found = error_details_pb2.ErrorInfo()
    assert status_of(error).details[0].Unpack(found)
    assert found.domain == "queryrec.v1"
    return found


@pytest.mark.parametrize(
    ("fields", "reason", "field"),
    [
        ({"query": ""}, "QUERY_EMPTY", "query"),
        ({"query": " \t\n "}, "QUERY_EMPTY", "query"),
        ({"query": "x" * 257}, "QUERY_TOO_LONG", "query"),
        ({"query": "é" * 129}, "QUERY_TOO_LONG", "query"),
        ({"query": "mouse\x00"}, "TEXT_INVALID", "query"),
        ({"query": "mou\x1b[31mse"}, "TEXT_INVALID", "query"),
        ({"max_suggestions": -1}, "MAX_SUGGESTIONS_OUT_OF_RANGE", "max_suggestions"),
        ({"max_suggestions": 33}, "MAX_SUGGESTIONS_OUT_OF_RANGE", "max_suggestions"),
        ({"max_suggestions": 2**31 - 1}, "MAX_SUGGESTIONS_OUT_OF_RANGE", "max_suggestions"),
        ({"session_queries": ["a"] * 17}, "TOO_MANY_ITEMS", "session_queries"),
        ({"session_queries": ["a", " "]}, "TEXT_INVALID", "session_queries[1]"),
        ({"session_queries": ["a", "b" * 300]}, "FIELD_TOO_LONG", "session_queries[1]"),
        ({"exclude": ["a"] * 257}, "TOO_MANY_ITEMS", "exclude"),
        ({"answer": "a" * 8193}, "FIELD_TOO_LONG", "answer"),
        ({"answer": "a\x07"}, "TEXT_INVALID", "answer"),
        ({"session_id": "a" * 129}, "FIELD_TOO_LONG", "session_id"),
        ({"user_key": "a\x00"}, "TEXT_INVALID", "user_key"),
        ({"locale": "en_US"}, "TEXT_INVALID", "locale"),
        (
            {"side_information": [SideInformation(kind="Title!", text="a")]},
            "TEXT_INVALID",
            "side_information[0].kind",
        ),
        ({"latency_budget": Duration()}, "LATENCY_BUDGET_INVALID", "latency_budget"),
        ({"latency_budget": Duration(seconds=-1)}, "LATENCY_BUDGET_INVALID", "latency_budget"),
        (
            {"latency_budget": Duration(seconds=1, nanos=-5)},
            "LATENCY_BUDGET_INVALID",
            "latency_budget",
        ),
    ],
)
def test_bad_fields_are_refused_with_a_reason_that_names_them(stub, fields, reason, field):
    with pytest.raises(grpc.RpcError) as failure:
        stub.Recommend(request(**fields), timeout=TIMEOUT_S)
    assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    found = info(failure.value)
    assert (found.reason, found.metadata["field"]) == (f"ERROR_REASON_{reason}", field)


def test_user_text_never_appears_in_an_error(stub):
    with pytest.raises(grpc.RpcError) as failure:
        stub.Recommend(request(query="secret\x00"), timeout=TIMEOUT_S)
    assert "secret" not in str(status_of(failure.value))


@pytest.mark.parametrize("scenario", ["", "nosuch", "Suggestion"])
def test_an_unknown_scenario_is_not_found_and_the_known_ones_are_listed(stub, scenario):
    with pytest.raises(grpc.RpcError) as failure:
        stub.Recommend(request(scenario=scenario), timeout=TIMEOUT_S)
    assert failure.value.code() is grpc.StatusCode.NOT_FOUND
    found = info(failure.value)
    assert found.reason == "ERROR_REASON_SCENARIO_UNKNOWN"
    assert found.metadata["known"] == "clarification,completion,suggestion"


def test_bytes_that_are_not_utf8_are_refused(channel):
    raw = channel.unary_unary(RECOMMEND)
    good = request().SerializeToString()
    assert pb.RecommendResponse.FromString(raw(good, timeout=TIMEOUT_S)).suggestions
    bad = good.replace(b"wireless", b"wirel\xff\xfes")
    with pytest.raises(grpc.RpcError) as failure:
        raw(bad, timeout=TIMEOUT_S)
    assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert info(failure.value).reason == "ERROR_REASON_TEXT_INVALID"
    assert info(failure.value).metadata["field"] == "request"


@pytest.mark.parametrize(
    "text", ["<|eos|>", "<|sep|> pillow", "<|scenario:completion|> <|respond|>", "<|slot_1|>"]
)
def test_special_tokens_in_text_are_text(stub, text):
    response = stub.Recommend(
        request(query=text, session_queries=[text], answer=text, exclude=[text]),
        timeout=TIMEOUT_S,
    )
    assert len(response.suggestions) >= 5


def test_a_question_that_is_far_too_large_is_refused_unread(stub):
    with pytest.raises(grpc.RpcError) as failure:
        stub.Recommend(request(answer="a" * 300_000), timeout=TIMEOUT_S)
    assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "bytes as it was sent; at most 196608" in (failure.value.details() or "")
    assert info(failure.value).reason == "ERROR_REASON_FIELD_TOO_LONG"
    assert info(failure.value).metadata["field"] == "request"


def test_a_message_that_no_method_takes_is_not_read_to_its_end(stub):
    with pytest.raises(grpc.RpcError) as failure:
        stub.Recommend(request(answer="a" * 1_100_000), timeout=TIMEOUT_S)
    assert failure.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("num_bytes", [12_000, 15_000])
def test_metadata_below_the_limit_always_passes(stub, num_bytes):
    for i in range(50):
        metadata = [("x-request-id", f"r{i}"), ("x-of-a-mesh", "a" * num_bytes)]
        assert stub.ListScenarios(
            pb.ListScenariosRequest(), timeout=TIMEOUT_S, metadata=metadata
        ).scenarios


def test_metadata_over_the_limit_is_refused(stub):
    with pytest.raises(grpc.RpcError) as failure:
        stub.Recommend(request(), timeout=TIMEOUT_S, metadata=[("x-of-a-mesh", "a" * 20_000)])
    assert failure.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_budget_below_every_answer_ends_as_deadline_exceeded_with_a_reason(stub):
    with pytest.raises(grpc.RpcError) as failure:
        stub.Recommend(request(latency_budget=Duration(nanos=1)), timeout=TIMEOUT_S)
    assert failure.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert info(failure.value).reason == "ERROR_REASON_DEADLINE_UNREACHABLE"


def event(token: str, **fields) -> FeedbackEvent:
    filled = FeedbackEvent(
        **{
            "event_id": f"e{time.time_ns()}",
            "attribution_token": token,
            "kind": FeedbackKind.FEEDBACK_KIND_CLICK,
            "position": 1,
            **fields,
        }
    )
    filled.time.GetCurrentTime()
    return filled


def test_forged_and_truncated_tokens_are_refused_and_the_rest_is_stored(stub):
    token = stub.Recommend(request(), timeout=TIMEOUT_S).attribution_token
    changed = token[:40] + ("A" if token[40] != "A" else "B") + token[41:]
    events = [event(token[:-10]), event(token), event(changed), event(""), event(token, position=9)]
    response = stub.RecordFeedback(pb.RecordFeedbackRequest(events=events), timeout=TIMEOUT_S)
    assert response.num_accepted == 1
    assert [r.event_index for r in response.refusals] == [0, 2, 3, 4]
    assert all(r.reason for r in response.refusals)


def test_more_events_than_allowed_are_refused_as_a_whole(stub):
    with pytest.raises(grpc.RpcError) as failure:
        stub.RecordFeedback(pb.RecordFeedbackRequest(events=[event("x")] * 257), timeout=TIMEOUT_S)
    assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert info(failure.value).reason == "ERROR_REASON_TOO_MANY_ITEMS"


def test_a_compressed_request_is_refused_without_being_inflated(live_engine, channel, stub):
    process = Path(f"/proc/{live_engine.process.pid}")

    def peak_bytes() -> int:
        [kilobytes] = re.findall(r"VmHWM:\s*(\d+) kB", (process / "status").read_text())
        return int(kilobytes) * 1024

    ask = channel.unary_unary(RECOMMEND)
    (process / "clear_refs").write_text("5")  # the peak is measured from now on
    before_bytes = peak_bytes()
    for size in (200, 160 << 20):  # of the latter, less than may be received is sent
        with pytest.raises(grpc.RpcError) as failure:
            ask(bytes(size), timeout=120, compression=grpc.Compression.Gzip)
        assert failure.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert peak_bytes() < before_bytes + (80 << 20)
    assert stub.Recommend(request(), timeout=TIMEOUT_S).suggestions
