"""What is logged of servers that fail, and of those that only hang."""

import asyncio
import logging

import grpc
import pytest
from tritonclient.grpc import aio
from tritonclient.grpc.service_pb2_grpc import (
    GRPCInferenceServiceServicer,
    add_GRPCInferenceServiceServicer_to_server,
)

from engine.execution.connection import CHANNEL_OPTIONS, Outage
from engine.execution.triton import TritonModels
from engine.formats.manifest import read_manifest
from engine.scheduling.batcher import TooLate

LOG = logging.getLogger("engine.test")


def told(caplog) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name.startswith("engine.")]


def test_a_server_that_answers_no_call_in_time_is_told_of_once(clock, caplog):
    outage = Outage("milvus at X", LOG)
    for _ in range(6):
        outage.timed_out(clock.now_s())
        clock.advance(0.5)
    assert told(caplog) == [
        "milvus at X: answered none of 3 calls in time; what needs it is left out until it "
        "answers again"
    ]
    outage.answered()
    outage.answered()
    assert told(caplog)[1:] == ["milvus at X: answers again"]


def test_a_server_that_answers_some_calls_in_time_is_not_out(clock, caplog):
    outage = Outage("milvus at X", LOG)
    for _ in range(8):  # at once, as rows of a batch
        outage.timed_out(clock.now_s())
    for _ in range(8):
        clock.advance(5)
        outage.answered()
        outage.timed_out(clock.now_s())
        outage.timed_out(clock.now_s())
    assert told(caplog) == []


class Hanging(GRPCInferenceServiceServicer):
    async def ModelInfer(self, request, context):
        await asyncio.sleep(60)


async def test_a_triton_server_that_hangs_is_an_outage(tiny_bundle, clock, caplog):
    server = grpc.aio.server()
    add_GRPCInferenceServiceServicer_to_server(Hanging(), server)
    url = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    client = aio.InferenceServerClient(url, channel_args=CHANNEL_OPTIONS)
    models = TritonModels(client, url, read_manifest(tiny_bundle), clock)
    try:
        for _ in range(5):
            with pytest.raises(TooLate):
                await models.encode([150], clock.now_s() + 0.05)
            clock.advance(0.5)
    finally:
        await models.close()
        await server.stop(None)
    (line,) = told(caplog)
    assert line.startswith(f"triton at {url}: answered none of 3 calls in time")
