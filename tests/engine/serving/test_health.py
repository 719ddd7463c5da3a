"""What gRPC's health protocol is told, by a real server to real clients."""

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest
from grpc import aio
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub, add_HealthServicer_to_server

from engine.serving.health import Health

NAME = "queryrec.v1.QueryRecommenderService"
Watch = aio.UnaryStreamCall[HealthCheckRequest, HealthCheckResponse]


class Leaving(Health):
    """Also tells that a watcher has left."""

    def __init__(self) -> None:
        super().__init__(("", NAME))
        self.left = asyncio.Event()

    async def Watch(self, request, context) -> None:
        try:
            await super().Watch(request, context)
        finally:
            self.left.set()


@pytest.fixture
def health() -> Leaving:
    return Leaving()


@pytest.fixture
async def stub(health) -> AsyncIterator[HealthStub]:
    server = aio.server()
    add_HealthServicer_to_server(health, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield HealthStub(channel)
    await server.stop(None)


async def told(watch: Watch) -> int:
    """Returns the next status that a watcher is told."""
    async with asyncio.timeout(60):
        response = await watch.read()
    assert isinstance(response, HealthCheckResponse)
    return response.status


def watching(stub: HealthStub, service: str = "") -> Watch:
    return stub.Watch(HealthCheckRequest(service=service))


@pytest.mark.parametrize("service", ["", NAME])
async def test_it_serves_between_its_beginning_and_its_end(health, stub, service):
    watch = watching(stub, service)
    request = HealthCheckRequest(service=service)
    for change, status in (
        (lambda: None, HealthCheckResponse.NOT_SERVING),
        (health.serve, HealthCheckResponse.SERVING),
        (health.end, HealthCheckResponse.NOT_SERVING),
    ):
        change()
        assert await told(watch) == status
        assert (await stub.Check(request, timeout=60)).status == status


async def test_once_ended_it_never_serves_again(health, stub):
    health.end()
    health.serve()
    response = await stub.Check(HealthCheckRequest(), timeout=60)
    assert response.status == HealthCheckResponse.NOT_SERVING


async def test_an_unknown_name_is_not_found_and_its_watcher_told_so(health, stub):
    request = HealthCheckRequest(service="queryrec.v2.QueryRecommenderService")
    with pytest.raises(aio.AioRpcError) as failure:
        await stub.Check(request, timeout=60)
    assert failure.value.code() is grpc.StatusCode.NOT_FOUND
    watch = watching(stub, request.service)
    assert await told(watch) == HealthCheckResponse.SERVICE_UNKNOWN
    assert not watch.done()


async def test_a_watcher_hears_of_changes_after_another_has_left(health, stub):
    leaving, staying = watching(stub), watching(stub)
    for watch in (leaving, staying):
        assert await told(watch) == HealthCheckResponse.NOT_SERVING
    leaving.cancel()
    async with asyncio.timeout(60):
        await health.left.wait()
    health.serve()
    assert await told(staying) == HealthCheckResponse.SERVING
