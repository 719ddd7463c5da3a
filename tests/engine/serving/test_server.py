"""The server's life, in this process: not ready, serving, draining."""

import asyncio
import base64

import grpc
import msgspec
import pytest
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from engine.config import Config, FeedbackConfig, ModelsConfig, ServerConfig
from engine.formats.manifest import BundleError, read_manifest
from engine.serving.places import Places
from engine.serving.server import Server
from queryrec.client import QueryRecClient, QueryRecError

STATUS = health_pb2.HealthCheckResponse


@pytest.fixture
def config(tmp_path) -> Config:
    return Config(
        server=ServerConfig(port=0),
        models=ModelsConfig(num_threads=1, shared_thread_pool=False, max_batch_size=2),
        feedback=FeedbackConfig(directory=str(tmp_path / "feedback")),
    )


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
        probe = asyncio.ensure_future(client.list_scenarios())
        await probe  # the calls before it on the same connection have arrived
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


async def test_a_canary_answers_the_same_sessions_again(config, tiny_bundle, other_bundle):
    share = ServerConfig(port=0, canary_share=0.5)
    server = Server(msgspec.structs.replace(config, server=share))
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
        assert set(first) == {read_manifest(d).bundle_id for d in (tiny_bundle, other_bundle)}
    finally:
        await server.drain()


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


async def test_a_port_in_use_is_refused(config):
    first = Server(config)
    try:
        port = await first.start()
        taken = msgspec.structs.replace(config, server=ServerConfig(port=port))
        second = Server(taken)
        try:
            with pytest.raises(ValueError, match=f"cannot listen on 127.0.0.1:{port}"):
                await second.start()
        finally:
            await second.drain()
    finally:
        await first.drain()
