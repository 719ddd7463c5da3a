"""What is logged of servers that fail, and of those that only hang."""

import asyncio
import logging
from collections.abc import AsyncIterator

import grpc
import pytest
import pytest_asyncio
from tritonclient.grpc import aio
from tritonclient.grpc.service_pb2_grpc import (
    GRPCInferenceServiceServicer,
    add_GRPCInferenceServiceServicer_to_server,
)

from engine.execution.connection import CHANNEL_OPTIONS, Outage
from engine.execution.triton import TritonModels
from engine.execution.warmup import kinds_of_work
from engine.formats.manifest import read_manifest
from engine.scheduling.batcher import TooLate
from engine.scheduling.stages import Stage, Why
from tests.engine.answering.conftest import CLOCK, ask, make

LOG = logging.getLogger("engine.test")


def told(caplog) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name.startswith("engine.")]


def test_a_server_that_answers_no_call_in_time_is_told_of_once(clock, caplog):
    outage = Outage("milvus at X", LOG)
    for _ in range(6):
        outage.timed_out(clock.now_s())
        clock.advance(0.5)
    assert outage.is_on
    assert told(caplog) == [
        "milvus at X: answered none of 3 calls in time; what needs it is left out until it "
        "answers again"
    ]
    outage.answered()
    outage.answered()
    assert not outage.is_on
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


@pytest_asyncio.fixture
async def hanging() -> AsyncIterator[str]:
    """The address of a server that takes calls and never answers."""
    server = grpc.aio.server()
    add_GRPCInferenceServiceServicer_to_server(Hanging(), server)
    url = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    yield url
    await server.stop(None)


@pytest_asyncio.fixture
async def models(hanging, tiny_bundle, clock) -> AsyncIterator[TritonModels]:
    client = aio.InferenceServerClient(hanging, channel_args=CHANNEL_OPTIONS)
    models = TritonModels(client, hanging, read_manifest(tiny_bundle), clock)
    yield models
    await models.close()


async def test_a_triton_server_that_hangs_is_an_outage(hanging, models, clock, caplog):
    for _ in range(5):
        with pytest.raises(TooLate):
            await models.encode([150], clock.now_s() + 0.05)
        clock.advance(0.5)
    (line,) = told(caplog)
    assert line.startswith(f"triton at {hanging}: answered none of 3 calls in time")


@pytest.mark.parametrize(("waited_s", "is_out"), [(20.0, True), (9.0, False)])
async def test_calls_given_up_when_their_time_is_over_are_late_and_those_given_up_before_are_not(
    models, clock, caplog, waited_s, is_out
):
    for _ in range(5):
        call = asyncio.ensure_future(models.encode([150], clock.now_s() + 10.0))
        await asyncio.sleep(0)  # it is under way
        clock.advance(waited_s)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    assert models.is_out == is_out
    assert len(told(caplog)) == is_out


async def test_answers_say_failure_once_a_triton_server_is_found_to_hang(
    hanging, bundle, runtime, tiny_bundle, caplog
):
    client = aio.InferenceServerClient(hanging, channel_args=CHANNEL_OPTIONS)
    models = TritonModels(client, hanging, read_manifest(tiny_bundle), CLOCK)
    pipeline = make(bundle, runtime, remote=models)
    for work, _ in kinds_of_work(bundle):
        pipeline.worker.models.costs.observe(work, 1, 0.001)  # as when it was well
    try:
        while not told(caplog):
            await ask(pipeline, "never searched before", budget_s=0.5)
            await asyncio.sleep(0.05)  # what is planned away takes no time
        answer = await ask(pipeline, "never searched before", budget_s=0.5)
    finally:
        await pipeline.close()
    assert {o.stage: o.reason for o in answer.omissions} == dict.fromkeys(
        (Stage.ENCODE, Stage.GENERATE, Stage.SCORE), Why.FAILURE
    )
    (line,) = told(caplog)
    assert line.startswith(f"triton at {hanging}: answered none of")
