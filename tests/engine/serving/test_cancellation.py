"""A call that is cancelled over real gRPC leaves no row behind, whatever queue it is in."""

import asyncio
import contextlib
import dataclasses
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from grpc import aio

from engine.answering.pipeline import Pipeline
from engine.config import Config
from engine.execution.bundle import Bundle
from engine.feedback.attribution import KeyRing
from engine.feedback.log import FeedbackLog
from engine.scheduling.deadline import MonotonicClock
from engine.scheduling.stages import Stage
from engine.serving.handlers import add_service
from engine.serving.places import Places
from engine.serving.releases import Releases
from engine.serving.service import Feedback, Service
from queryrec.v1.query_recommender_service_pb2 import RecommendRequest
from queryrec.v1.query_recommender_service_pb2_grpc import QueryRecommenderServiceStub

CLOCK = MonotonicClock()
PARTS = {Stage.ENCODE: "encoder", Stage.GENERATE: "generator", Stage.SCORE: "click_model"}


class Watched:
    """A model that counts its rows; the first run waits until it may go on."""

    def __init__(self, model: Any) -> None:
        self.num_rows = 0
        self.may_go_on = threading.Event()
        self._model = model

    def run(self, rows: Any, *arguments: Any) -> Any:
        self.num_rows += len(rows)
        assert self.may_go_on.wait(30)
        return self._model.run(rows, *arguments)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - the other side of a connection tells nobody
        await asyncio.sleep(0.001)


@contextlib.asynccontextmanager
async def served(pipeline: Pipeline, directory: Any) -> AsyncIterator[QueryRecommenderServiceStub]:
    log = FeedbackLog(directory)
    keys = KeyRing(active_key_id="k", secrets={"k": b"s" * 32})

    async def load(
        side: str, bundle: Path, phrases: Sequence[str], others: Sequence[Pipeline]
    ) -> Pipeline:
        return pipeline

    releases = Releases(load)
    await releases.load(Places(directory, None))
    service = Service(Feedback(keys=keys, log=log), releases, CLOCK, default_budget_s=30.0)
    server = aio.server()
    add_service(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield QueryRecommenderServiceStub(channel)
    finally:
        await server.stop(None)
        log.close()


# What to ask so that the first row of each call is of this stage.
QUERIES = {
    Stage.ENCODE: [f"odd thing {i}" for i in range(6)],
    Stage.GENERATE: ["w", "wi", "wir", "wire", "wirel", "wirele"],
    Stage.SCORE: ["w", "wi", "wir", "wire", "wirel", "wirele"],
}


def watched_bundle(bundle: Bundle, stage: Stage) -> tuple[Bundle, Watched]:
    if stage is Stage.SCORE:
        manifest = msgspec.structs.replace(bundle.manifest, generator=None)
        rungs = dict.fromkeys(bundle.scenarios, ())
        bundle = dataclasses.replace(bundle, manifest=manifest, generator=None, rungs=rungs)
    watched = Watched(getattr(bundle, PARTS[stage]))
    return dataclasses.replace(bundle, **{PARTS[stage]: watched}), watched


@pytest.mark.parametrize("stage", list(PARTS))
async def test_rows_of_cancelled_calls_never_reach_the_model(bundle, runtime, tmp_path, stage):
    served_bundle, watched = watched_bundle(bundle, stage)
    pipeline = Pipeline(served_bundle, runtime, Config(), CLOCK)
    scenario = "suggestion" if stage is Stage.ENCODE else "completion"
    requests = [
        RecommendRequest(scenario=scenario, query=q, max_suggestions=1) for q in QUERIES[stage]
    ]

    def waiting() -> int:
        rows = list(pipeline.worker.waiting())
        assert {r.kind.stage for r in rows} <= {stage}
        return len(rows)

    async with served(pipeline, tmp_path) as stub:
        running = stub.Recommend(requests[0], timeout=30)
        await until(lambda: watched.num_rows == 1)
        calls = [stub.Recommend(r, timeout=30) for r in requests[1:]]
        await until(lambda: waiting() == 5)
        for call in calls[:4]:
            call.cancel()
        await until(lambda: waiting() == 1)
        watched.may_go_on.set()
        assert (await running).suggestions
        assert (await calls[4]).suggestions
    assert watched.num_rows == 2


async def test_a_call_whose_deadline_passes_on_the_client_leaves_the_queue(
    bundle, runtime, tmp_path
):
    served_bundle, watched = watched_bundle(bundle, Stage.GENERATE)
    pipeline = Pipeline(served_bundle, runtime, Config(), CLOCK)
    async with served(pipeline, tmp_path) as stub:
        running = stub.Recommend(
            RecommendRequest(scenario="completion", query="w", max_suggestions=1), timeout=30
        )
        await until(lambda: watched.num_rows == 1)
        hasty = stub.Recommend(
            RecommendRequest(scenario="completion", query="wi", max_suggestions=1), timeout=3
        )
        await until(lambda: any(pipeline.worker.waiting()))
        await until(lambda: not any(pipeline.worker.waiting()))
        watched.may_go_on.set()
        assert (await running).suggestions
        with contextlib.suppress(aio.AioRpcError):  # the log's answer may still make it
            await hasty
    assert watched.num_rows == 1
