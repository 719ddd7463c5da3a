"""What the Python client makes of feedback, against a real gRPC server whose answers are fixed."""

import time

import pytest

from queryrec.client import FeedbackEvent, QueryRecClient
from queryrec.v1 import feedback_pb2


def click() -> FeedbackEvent:
    return FeedbackEvent(attribution_token="t", kind="click", position=1)


async def test_feedback_carries_every_field_and_returns_refusals(served):
    target, servicer = served
    async with QueryRecClient(target, timeout_s=10) as client:
        answer = await client.recommend("suggestion", "earbuds")
        click = answer.event("click", 1, user_key="u1")
        receipt = await client.record_feedback([click, answer.event("impression", 1)])

    first, second = servicer.events
    assert first.kind == feedback_pb2.FEEDBACK_KIND_CLICK
    assert first.event_id == click.event_id != second.event_id
    assert first.time.ToNanoseconds() == click.time_unix_ns
    assert (first.user_key, second.HasField("user_key")) == ("u1", False)
    assert (first.attribution_token, first.position) == ("token", 1)
    assert receipt.num_accepted == 1
    assert receipt.refusals[0].reason == "ERROR_REASON_TOKEN_MALFORMED"


def test_events_made_one_after_the_other_have_their_own_ids_and_times():
    before = time.time_ns()
    one, two = (click() for _ in range(2))
    assert one.event_id != two.event_id
    assert before <= one.time_unix_ns <= two.time_unix_ns


async def test_more_events_than_a_call_takes_are_refused_before_they_are_sent(served):
    target, servicer = served
    async with QueryRecClient(target, timeout_s=10) as client:
        with pytest.raises(ValueError, match="there are 257 events; a call takes at most 256"):
            await client.record_feedback([click()] * 257)
        assert not servicer.events
        await client.record_feedback([click()] * 256)
        assert len(servicer.events) == 256


async def test_feedback_has_at_least_five_seconds_unless_its_call_says_otherwise(served):
    target, servicer = served
    for of_client, of_call in ((0.1, None), (600, None), (0.1, 60), (None, None)):
        async with QueryRecClient(target, timeout_s=of_client) as client:
            await client.record_feedback([click()], timeout_s=of_call)
    short, long, own, none = servicer.left_s
    assert 0.1 < short < 6 < own < 61 < long  # gRPC rounds up
    assert none is None
