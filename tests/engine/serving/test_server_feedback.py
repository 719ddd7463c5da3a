"""Feedback that a server takes, refuses and waits for, in this process."""

import asyncio
import base64
import random
import string
import threading

import grpc
import msgspec
import pytest

from engine.config import FeedbackConfig
from engine.feedback.attribution import (
    MAX_POSITIONS,
    MAX_TOKEN_BYTES,
    AttributionToken,
    KeyRing,
    Shown,
    Source,
)
from engine.feedback.events import MAX_EVENTS_PER_CALL, MAX_ID_BYTES
from engine.feedback.segments import Segment
from engine.serving import server as server_module
from engine.serving import service
from engine.serving.server import Server
from engine.telemetry.metrics import Metrics
from queryrec.client import FeedbackEvent, QueryRecClient, QueryRecError

KEYS = KeyRing(active_key_id="k", secrets={"k": b"x" * 32})


async def test_feedback_for_another_replica_is_taken_if_the_keys_are_shared(
    config, tiny_bundle, tmp_path
):
    keys = tmp_path / "keys"
    keys.write_text(f"k1 {base64.b64encode(b'x' * 32).decode()}\n")
    servers = []
    for name in ("one", "two"):
        feedback = FeedbackConfig(directory=str(tmp_path / name), keys_file=str(keys))
        servers.append(Server(msgspec.structs.replace(config, feedback=feedback)))
    try:
        target, other = [f"127.0.0.1:{await s.start()}" for s in servers]
        await servers[0].load(tiny_bundle)
        async with QueryRecClient(target, timeout_s=30) as client:
            answer = await client.recommend("suggestion", "wireless mouse")
        async with QueryRecClient(other, timeout_s=30) as client:  # it has no bundle at all
            receipt = await client.record_feedback([answer.event("click", 1)])
        assert (receipt.num_accepted, receipt.refusals) == (1, ())
    finally:
        for server in servers:
            await server.drain()


def longest_token() -> str:
    """A token of as many characters as there may be: texts that hardly compress."""
    letters = random.Random(0)
    texts = ["".join(letters.choices(string.ascii_letters, k=58)) for _ in range(MAX_POSITIONS)]
    token = AttributionToken(
        request_id="r" * 64,
        bundle_id="b",
        time_unix_ms=1,
        scenario="suggestion",
        query="a lamp",
        session_id="s",
        suggestions=tuple(Shown(text=text, sources=Source.LOG) for text in texts),
    ).seal(KEYS)
    assert len(token) > MAX_TOKEN_BYTES - 64
    return token


def click(token: str, number: int = 0) -> FeedbackEvent:
    return FeedbackEvent(
        attribution_token=token,
        kind="click",
        position=1,
        event_id=f"{number:0{MAX_ID_BYTES}}",
        user_key="u" * MAX_ID_BYTES,
    )


class HeldDisk:
    """Nothing reaches the disk until `released` is set; `asked` is set by the first who tries."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.released = threading.Event()


@pytest.fixture
def held_disk(monkeypatch):
    append, disk = Segment.append, HeldDisk()

    def held(segment: Segment, lines: bytes) -> None:
        disk.asked.set()
        assert disk.released.wait(30)
        append(segment, lines)

    monkeypatch.setattr(Segment, "append", held)
    yield disk
    disk.released.set()


async def test_as_many_events_as_allowed_with_the_longest_tokens_are_taken(config):
    server = Server(config, keys=KEYS)
    try:
        target = f"127.0.0.1:{await server.start()}"
        token = longest_token()
        async with QueryRecClient(target, timeout_s=30) as client:
            events = [click(token, i) for i in range(MAX_EVENTS_PER_CALL)]
            assert (await client.record_feedback(events)).num_accepted == MAX_EVENTS_PER_CALL
    finally:
        await server.drain()


async def test_feedback_that_its_deadline_ends_counts_as_such(config, held_disk):
    metrics = Metrics()
    server = Server(config, keys=KEYS, metrics=metrics)

    def num_calls(status: str) -> float:
        labels = {"method": "RecordFeedback", "scenario": "", "side": "", "status": status}
        name = "queryrec_request_duration_seconds_count"
        return metrics.registry.get_sample_value(name, labels) or 0.0

    try:
        target = f"127.0.0.1:{await server.start()}"
        async with QueryRecClient(target, timeout_s=0.5) as client:
            # The client's clock may cancel a call a moment before the server's does.
            async with asyncio.timeout(60):
                while not num_calls("DEADLINE_EXCEEDED"):
                    with pytest.raises(QueryRecError) as failure:
                        await client.record_feedback([click(longest_token())])
                    assert failure.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
        held_disk.released.set()
    finally:
        await server.drain()
    misses = {"scenario": "", "side": ""}
    assert metrics.registry.get_sample_value("queryrec_budget_misses_total", misses) is None


async def test_draining_waits_for_feedback_on_its_way_and_refuses_what_comes_later(
    config, held_disk
):
    slow = msgspec.structs.replace(config.server, grace_s=60)
    server = Server(msgspec.structs.replace(config, server=slow), keys=KEYS)
    target = f"127.0.0.1:{await server.start()}"
    async with QueryRecClient(target, timeout_s=30) as client:
        stored = asyncio.ensure_future(client.record_feedback([click(longest_token())]))
        assert await asyncio.to_thread(held_disk.asked.wait, 20)
        draining = asyncio.ensure_future(server.drain())
        async with asyncio.timeout(20):
            reason = ""
            while not reason:
                try:
                    await client.record_feedback([])
                except QueryRecError as error:
                    reason = error.reason
        assert reason == "ERROR_REASON_NOT_READY"
        assert not stored.done()
        held_disk.released.set()
        assert (await stored).num_accepted == 1
        await draining


async def test_a_disk_that_hangs_does_not_keep_the_engine_from_its_end(
    config, held_disk, monkeypatch, caplog
):
    monkeypatch.setattr(server_module, "_CLOSE_LOG_S", 0.1)
    hasty = msgspec.structs.replace(config.server, lame_duck_s=0, grace_s=0.1)
    server = Server(msgspec.structs.replace(config, server=hasty), keys=KEYS)
    target = f"127.0.0.1:{await server.start()}"
    async with QueryRecClient(target, timeout_s=30) as client:
        stored = asyncio.ensure_future(client.record_feedback([click(longest_token())]))
        assert await asyncio.to_thread(held_disk.asked.wait, 20)
        await server.drain()
        assert not held_disk.released.is_set()
        with pytest.raises(QueryRecError):
            await stored
    assert "gave no answer for 0 s; the next start there closes it" in caplog.text


async def test_questions_beyond_the_limit_do_not_keep_feedback_out(config):
    few = msgspec.structs.replace(config.server, max_concurrent_calls=1)
    server = Server(msgspec.structs.replace(config, server=few), keys=KEYS)
    try:
        target = f"127.0.0.1:{await server.start()}"
        async with QueryRecClient(target, timeout_s=30) as client:
            with server._service._questions, server._service._questions:  # as if two were asked
                with pytest.raises(QueryRecError) as refusal:
                    await client.list_scenarios()
                assert refusal.value.reason == "ERROR_REASON_QUEUE_FULL"
                assert (await client.record_feedback([click(longest_token())])).num_accepted == 1
    finally:
        await server.drain()


async def test_feedback_is_refused_while_too_many_events_are_being_stored(
    config, held_disk, monkeypatch
):
    monkeypatch.setattr(service, "_MAX_EVENTS_AT_ONCE", 3)
    server = Server(config, keys=KEYS)
    try:
        target, token = f"127.0.0.1:{await server.start()}", longest_token()
        async with QueryRecClient(target, timeout_s=30) as client:
            stored = asyncio.ensure_future(
                client.record_feedback([click(token, i) for i in range(3)])
            )
            assert await asyncio.to_thread(held_disk.asked.wait, 20)
            with pytest.raises(QueryRecError) as refusal:
                await client.record_feedback([click(token, 3)])
            assert refusal.value.reason == "ERROR_REASON_QUEUE_FULL"
            held_disk.released.set()
            assert (await stored).num_accepted == 3
            assert (await client.record_feedback([click(token, 3)])).num_accepted == 1
    finally:
        await server.drain()
