"""The server's life, in this process: not ready, serving, draining."""

import asyncio
import socket
import struct
import time
import urllib.request

import grpc
import msgspec
import pytest
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from engine.config import MetricsConfig, RankingConfig, ServerConfig
from engine.formats.manifest import BundleError, read_manifest
from engine.serving import server as serving
from engine.serving.places import Places
from engine.serving.server import Server
from engine.telemetry.metrics import Metrics
from queryrec.client import QueryRecClient, QueryRecError
from tests.ipv6 import needs_ipv6
from tests.ports import free_port

STATUS = health_pb2.HealthCheckResponse


async def health(target: str) -> int:
    async with aio.insecure_channel(target) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return (await stub.Check(health_pb2.HealthCheckRequest(), timeout=10)).status


async def test_it_refuses_until_a_bundle_is_warm_then_serves(config, tiny_bundle):
    server = Server(config)
    try:
        target = f"127.0.0.1:{await server.start()}"
        assert await health(target) == STATUS.NOT_SERVING
        async with QueryRecClient(target, timeout_s=30) as client:
            with pytest.raises(QueryRecError) as failure:
                await client.recommend("suggestion", "wireless mouse")
            assert failure.value.code is grpc.StatusCode.UNAVAILABLE
            assert failure.value.reason == "ERROR_REASON_NOT_READY"
            await server.load(tiny_bundle)
            assert await health(target) == STATUS.SERVING
            assert (await client.recommend("suggestion", "wireless mouse")).suggestions
    finally:
        await server.drain()


@needs_ipv6
@pytest.mark.parametrize("host", ["::", "[::]"])
async def test_all_addresses_may_be_named_with_and_without_brackets(config, host):
    metrics = MetricsConfig(host=host, port=free_port())
    everywhere = msgspec.structs.replace(config.server, host=host)
    server = Server(msgspec.structs.replace(config, server=everywhere, metrics=metrics))
    try:
        server.show_metrics()
        port = await server.start()
        for address in ("127.0.0.1", "[::1]"):
            assert await health(f"{address}:{port}") == STATUS.NOT_SERVING
            url = f"http://{address}:{metrics.port}/metrics"
            scraped = await asyncio.to_thread(urllib.request.urlopen, url, timeout=30)
            with scraped:
                assert b"queryrec_ready" in await asyncio.to_thread(scraped.read)
    finally:
        await server.drain()


@needs_ipv6
def test_metrics_that_cannot_be_served_are_told_by_their_address(config):
    with socket.socket(socket.AF_INET6) as taken:
        taken.bind(("::1", 0))
        taken.listen()
        metrics = MetricsConfig(host="::1", port=taken.getsockname()[1])
        server = Server(msgspec.structs.replace(config, metrics=metrics))
        with pytest.raises(ValueError, match=rf"on \[::1\]:{metrics.port}: .*in use"):
            server.show_metrics()


async def test_a_bad_bundle_leaves_it_not_serving(config, tmp_path):
    server = Server(config)
    try:
        target = f"127.0.0.1:{await server.start()}"
        with pytest.raises(BundleError):
            await server.load(tmp_path / "nosuch")
        assert await health(target) == STATUS.NOT_SERVING
    finally:
        await server.drain()


async def test_calls_in_flight_are_answered_while_it_drains(config, tiny_bundle):
    server = Server(config)
    target = f"127.0.0.1:{await server.start()}"
    await server.load(tiny_bundle)
    async with QueryRecClient(target, timeout_s=30) as client:
        await client.recommend("suggestion", "warm the connection")
        calls = [
            asyncio.ensure_future(client.recommend("suggestion", f"thing {i}")) for i in range(6)
        ]
        async with asyncio.timeout(20):
            while (  # noqa: ASYNC110 - nothing tells of calls that arrive
                server._service._questions.num + sum(c.done() for c in calls) < len(calls)
            ):
                await asyncio.sleep(0)
        await server.drain()
        answers = await asyncio.gather(*calls, return_exceptions=True)
    assert all(not isinstance(a, BaseException) and a.suggestions for a in answers), answers


async def test_no_call_fails_while_bundles_are_swapped(config, tiny_bundle, other_bundle):
    server = Server(config)
    target = f"127.0.0.1:{await server.start()}"
    await server.load(tiny_bundle)
    answered: list[tuple[str, int]] = []

    async def call_on(caller: int) -> None:
        async with QueryRecClient(target, timeout_s=30) as client:
            while not is_done.is_set():
                answer = await client.recommend("suggestion", f"thing {caller} {len(answered)}")
                answered.append((answer.bundle_id, len(answer.suggestions)))

    is_done = asyncio.Event()
    callers = [asyncio.ensure_future(call_on(i)) for i in range(6)]
    try:
        async with QueryRecClient(target, timeout_s=30) as client:
            for directory in (other_bundle, tiny_bundle, other_bundle):
                assert await server.releases.refresh(Places(directory), is_asked=True)
                expected = read_manifest(directory).bundle_id
                assert (await client.recommend("suggestion", "a lamp")).bundle_id == expected
        is_done.set()
        await asyncio.gather(*callers)  # raises what a call raised
    finally:
        await server.drain()
    assert {bundle_id for bundle_id, _ in answered} == {
        read_manifest(directory).bundle_id for directory in (tiny_bundle, other_bundle)
    }
    assert all(num_suggestions for _, num_suggestions in answered)


async def test_a_canary_answers_the_same_sessions_again_and_counts_for_itself(
    config, tiny_bundle, other_bundle
):
    share = msgspec.structs.replace(config.server, canary_share=0.5)
    metrics = Metrics()
    server = Server(msgspec.structs.replace(config, server=share), metrics=metrics)
    try:
        target = f"127.0.0.1:{await server.start()}"
        await server.load(tiny_bundle, other_bundle)
        async with QueryRecClient(target, timeout_s=30) as client:

            async def answerers() -> list[str]:
                calls = [
                    client.recommend("suggestion", "a lamp", session_id=f"session {i}")
                    for i in range(20)
                ]
                return [answer.bundle_id for answer in await asyncio.gather(*calls)]

            first = await answerers()
            assert first == await answerers()
        for side, directory in Places(tiny_bundle, other_bundle).sides():
            labels = {"method": "Recommend", "scenario": "suggestion", "side": side, "status": "OK"}
            name = "queryrec_request_duration_seconds_count"
            num_answers = first.count(read_manifest(directory).bundle_id)
            assert metrics.registry.get_sample_value(name, labels) == 2 * num_answers > 0
            labels = {"scenario": "completion", "side": side}  # nobody asks for any
            name = "queryrec_empty_answers_total"
            assert metrics.registry.get_sample_value(name, labels) == 0
    finally:
        await server.drain()


async def test_whoever_watches_its_health_does_not_keep_it_from_ending(config):
    patient = msgspec.structs.replace(config.server, grace_s=600)
    server = Server(msgspec.structs.replace(config, server=patient))
    target = f"127.0.0.1:{await server.start()}"
    async with aio.insecure_channel(target) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest())
        response = await watch.read()
        assert isinstance(response, STATUS)
        assert response.status == STATUS.NOT_SERVING
        async with asyncio.timeout(60):
            await server.drain()


async def test_a_blocklist_that_has_changed_is_read_again_when_somebody_asks(
    config, tiny_bundle, tmp_path
):
    blocklist = tmp_path / "blocklist"
    blocklist.write_text("")
    ranking = RankingConfig(blocklist=str(blocklist))
    lines: list[str] = []
    server = Server(msgspec.structs.replace(config, ranking=ranking), report=lines.append)
    place, identity = Places(tiny_bundle), read_manifest(tiny_bundle).bundle_id

    async def texts() -> list[str]:
        answer = await client.recommend("suggestion", "wireless mouse")
        return [suggestion.text for suggestion in answer.suggestions]

    try:
        target = f"127.0.0.1:{await server.start()}"
        await server.load(tiny_bundle)
        async with QueryRecClient(target, timeout_s=30) as client:
            blocked = (await texts())[0]
            blocklist.write_text(blocked)
            assert await server.releases.refresh(place, is_asked=False)
            assert blocked in await texts()
            assert await server.releases.refresh(place, is_asked=True)
            assert blocked not in await texts()
            assert lines[-1].startswith(f"bundle {identity} takes over from {identity} after")
            assert await server.releases.refresh(place, is_asked=True)
            assert lines[-1] == f"bundle {identity} is served already"
            blocklist.unlink()
            assert not await server.releases.refresh(place, is_asked=True)
            assert blocked not in await texts()
    finally:
        await server.drain()


def frame(kind: int, payload: bytes = b"") -> bytes:
    """An HTTP/2 frame of the connection."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, 0, 0) + payload


SETTINGS, PING, GOAWAY = 4, 6, 7


def connected(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=30)
    connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS))
    return connection


def kinds(connection: socket.socket, last: int) -> list[int]:
    """Reads frames until one of that kind, or the end. Returns their kinds."""
    found = [-1]
    with connection.makefile("rb") as frames:
        while found[-1] not in (last, GOAWAY) and len(head := frames.read(9)) == 9:
            frames.read(int.from_bytes(head[:3]))
            found.append(head[3])
    return found[1:]


async def test_idle_connections_may_ask_for_signs_of_life(config, monkeypatch):
    monkeypatch.setattr(serving, "_MIN_PING_INTERVAL_MS", 100)
    server = Server(config)

    def ping(port: int) -> list[int]:
        with connected(port) as connection:
            found: list[int] = []
            for _ in range(6):
                time.sleep(0.2)
                connection.sendall(frame(PING, b"01234567"))
                found += kinds(connection, PING)
            return found

    try:
        found = await asyncio.to_thread(ping, await server.start())
    finally:
        await server.drain()
    assert GOAWAY not in found
    assert found.count(PING) == 6


async def test_idle_connections_are_asked_for_signs_of_life(config, monkeypatch):
    monkeypatch.setattr(serving, "_KEEPALIVE_MS", 200)
    server = Server(config)

    def listen(port: int) -> list[int]:
        with connected(port) as connection:
            return kinds(connection, PING)

    try:
        found = await asyncio.to_thread(listen, await server.start())
    finally:
        await server.drain()
    assert found[-1:] == [PING]


async def test_a_port_in_use_is_refused(config):
    first = Server(config)
    try:
        port = await first.start()
        taken = msgspec.structs.replace(config, server=ServerConfig(port=port))
        second = Server(taken)
        try:
            with pytest.raises(ValueError, match=f"cannot listen on 127.0.0.1:{port}: .*in use"):
                await second.start()
        finally:
            await second.drain()
    finally:
        await first.drain()
