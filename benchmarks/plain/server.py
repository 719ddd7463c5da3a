"""The gRPC face of the plain stack: micro-batches in front of one thread that runs the models."""

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

from grpc import aio

from benchmarks.plain.recommender import Recommender
from engine import errors
from engine.answering.answer import Answer, Question
from engine.feedback.attribution import Source
from engine.scheduling.deadline import MonotonicClock
from engine.serving.translation import MAX_SUGGESTIONS, question_of
from queryrec.v1 import query_recommender_service_pb2 as pb
from queryrec.v1.query_recommender_service_pb2_grpc import (
    QueryRecommenderServiceServicer,
    add_QueryRecommenderServiceServicer_to_server,
)
from queryrec.v1.scenario_pb2 import Scenario
from queryrec.v1.suggestion_pb2 import Suggestion, SuggestionSource

_SOURCES = {
    Source.LOG: SuggestionSource.SUGGESTION_SOURCE_LOG,
    Source.GENERATED: SuggestionSource.SUGGESTION_SOURCE_GENERATED,
}
_DEFAULT_BUDGET_S = 1.0

_log = logging.getLogger(__name__)


class _Waiting(NamedTuple):
    question: Question
    answer: asyncio.Future[Answer]
    since_s: float  # of the event loop


@dataclass(frozen=True, slots=True, kw_only=True)
class Batching:
    """When a batch leaves: it is full, or its first request has waited long enough."""

    wait_s: float
    max_size: int


class Batcher:
    """Collects questions and answers them together. To be used from one event loop."""

    def __init__(self, recommender: Recommender, batching: Batching) -> None:
        """Starts without any question."""
        self._recommender = recommender
        self._batching = batching
        self._waiting: asyncio.Queue[_Waiting] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, "models")

    async def answer(self, question: Question) -> Answer:
        """Returns the answer once its batch is done."""
        loop = asyncio.get_running_loop()
        waiting = _Waiting(question, loop.create_future(), loop.time())
        self._waiting.put_nowait(waiting)
        return await waiting.answer

    async def run(self) -> None:
        """Answers for ever."""
        while True:
            batch = [await self._waiting.get()]
            leaves_s = batch[0].since_s + self._batching.wait_s
            while len(batch) < self._batching.max_size:
                try:
                    async with asyncio.timeout_at(leaves_s):
                        batch.append(await self._waiting.get())
                except TimeoutError:
                    break
            await self._answer([w for w in batch if not w.answer.done()])  # callers may leave

    async def _answer(self, batch: Sequence[_Waiting]) -> None:
        if not batch:
            return
        loop, questions = asyncio.get_running_loop(), [w.question for w in batch]
        try:
            answers = await loop.run_in_executor(self._thread, self._recommender.answers, questions)
        except Exception as error:
            _log.exception("a batch failed")
            for waiting in batch:
                if not waiting.answer.done():
                    waiting.answer.set_exception(error)
            return
        for waiting, answer in zip(batch, answers, strict=True):
            if not waiting.answer.done():
                waiting.answer.set_result(answer)


class PlainService(QueryRecommenderServiceServicer):
    """Recommends; feedback is not taken."""

    def __init__(self, recommender: Recommender, batcher: Batcher) -> None:
        """Remembers the parts."""
        self._scenarios = recommender.scenarios
        self._batcher = batcher

    async def Recommend(
        self, request: pb.RecommendRequest, context: aio.ServicerContext[Any, Any]
    ) -> pb.RecommendResponse:
        """See the contract; deadlines are not looked at."""
        try:
            question = question_of(
                request,
                self._scenarios,
                time_left_s=None,
                default_budget_s=_DEFAULT_BUDGET_S,
                clock=MonotonicClock(),
            )
        except errors.RequestError as error:
            await errors.abort(context, error)
        return _response(await self._batcher.answer(question))

    async def ListScenarios(
        self, request: pb.ListScenariosRequest, context: aio.ServicerContext[Any, Any]
    ) -> pb.ListScenariosResponse:
        """See the contract."""
        return pb.ListScenariosResponse(
            scenarios=[
                Scenario(
                    name=s.name,
                    default_num_suggestions=s.num_suggestions,
                    max_num_suggestions=MAX_SUGGESTIONS,
                    has_auxiliary_text=s.has_auxiliary_text,
                )
                for s in self._scenarios.values()
            ]
        )


async def serve(recommender: Recommender, batching: Batching, port: int) -> None:
    """Serves until cancelled. Prints one line when it listens and one when it serves."""
    batcher = Batcher(recommender, batching)
    server = aio.server()
    service = PlainService(recommender, batcher)
    add_QueryRecommenderServiceServicer_to_server(service, server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    print(f"plain: listening on 127.0.0.1:{port}", flush=True)
    print("plain: serving", flush=True)
    try:
        await batcher.run()
    finally:
        await server.stop(0)


def _response(answer: Answer) -> pb.RecommendResponse:
    return pb.RecommendResponse(
        suggestions=[
            Suggestion(
                text=s.text,
                click_probability=s.click_probability,
                sources=[name for source, name in _SOURCES.items() if source in s.source],
                position=position,
            )
            for position, s in enumerate(answer.suggestions, 1)
        ],
        auxiliary_text=answer.auxiliary_text,
    )
