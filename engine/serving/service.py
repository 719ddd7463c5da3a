"""The gRPC face: takes calls, hands them to the engine, turns what it raises into statuses.

Only translates: limits are checked in `translation`, answers are made in
`engine.answering.pipeline`.
"""

import asyncio
import logging
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, NoReturn

from grpc import aio

from engine import errors
from engine.feedback.attribution import KeyRing
from engine.feedback.events import MAX_EVENTS_PER_CALL, Event, checked_event
from engine.feedback.log import FeedbackLog
from engine.scheduling.deadline import Clock, Deadline
from engine.scheduling.stages import Stage
from engine.serving.in_flight import InFlight
from engine.serving.releases import Release, Releases
from engine.serving.translation import question_of, response_of, scenarios_of
from engine.telemetry.observation import Call, Observer
from queryrec.v1 import query_recommender_service_pb2 as pb
from queryrec.v1.feedback_pb2 import FeedbackEvent, FeedbackRefusal
from queryrec.v1.query_recommender_service_pb2_grpc import QueryRecommenderServiceServicer

DRAINING = "the server is shutting down"
_MAX_EVENTS_ON_LOOP = 8  # tokens of more events are verified on another thread
_MAX_EVENTS_AT_ONCE = 64 * MAX_EVENTS_PER_CALL  # of all calls that are being worked on

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """Where feedback goes."""

    keys: KeyRing
    log: FeedbackLog


class Service(QueryRecommenderServiceServicer):
    """Answers calls with the releases that are in use at that moment."""

    def __init__(
        self,
        feedback: Feedback,
        releases: Releases,
        clock: Clock,
        *,
        default_budget_s: float,
        max_calls: int = 1000,
        observer: Observer | None = None,
    ) -> None:
        """Refuses calls as not ready until a release is loaded, and those beyond `max_calls`.

        Feedback is counted apart, so that a flood of questions does not keep it out.

        gRPC's own limit counts calls until the client has read the response, so a client that does
        not read would keep others out; and it counts refused calls as ended ones
        (https://github.com/grpc/grpc/issues/41531).
        """
        self.is_draining = False
        self._releases = releases
        self._feedback = feedback
        self._clock = clock
        self._default_budget_s = default_budget_s
        self._max_calls = max_calls
        self._observer = observer or Observer(clock)
        self._questions = InFlight()
        self._feedbacks = InFlight()
        self._num_events = 0  # of the calls in flight

    async def Recommend(
        self,
        request: pb.RecommendRequest,
        context: aio.ServicerContext[pb.RecommendRequest, pb.RecommendResponse],
    ) -> pb.RecommendResponse:
        """See the contract."""
        observed = self._observer.call("Recommend", context)
        try:
            with observed as call, _request_errors(call.request_id), self._questions:
                return await self._answered(request, call, _time_left_s(context))
        except errors.RequestError as error:
            await errors.abort(context, error)

    async def RecordFeedback(
        self,
        request: pb.RecordFeedbackRequest,
        context: aio.ServicerContext[pb.RecordFeedbackRequest, pb.RecordFeedbackResponse],
    ) -> pb.RecordFeedbackResponse:
        """See the contract. Needs no bundle: any server with the keys takes feedback."""
        try:
            observed = self._observer.call("RecordFeedback", context)
            with observed as call, _request_errors(call.request_id), self._feedbacks:
                if (left_s := _time_left_s(context)) is not None:
                    call.due(Deadline.after(left_s, self._clock))
                self._check_taking(self._feedbacks)
                num_events = len(request.events)
                if num_events > MAX_EVENTS_PER_CALL:
                    raise errors.too_many_items(
                        "events", num_items=num_events, max_items=MAX_EVENTS_PER_CALL
                    )
                with self._taking(num_events):
                    events = list(request.events)
                    if num_events > _MAX_EVENTS_ON_LOOP:
                        accepted, refusals = await asyncio.to_thread(self._checked, events)
                    else:
                        accepted, refusals = self._checked(events)
                    await self._feedback.log.append(accepted)
                call.stored(len(accepted), [r.reason for r in refusals])
                return pb.RecordFeedbackResponse(num_accepted=len(accepted), refusals=refusals)
        except errors.RequestError as error:
            await errors.abort(context, error)

    async def ListScenarios(
        self,
        request: pb.ListScenariosRequest,
        context: aio.ServicerContext[pb.ListScenariosRequest, pb.ListScenariosResponse],
    ) -> pb.ListScenariosResponse:
        """See the contract."""
        try:
            observed = self._observer.call("ListScenarios", context)
            with observed as call, _request_errors(call.request_id), self._questions:
                return scenarios_of(self._main().manifest)
        except errors.RequestError as error:
            await errors.abort(context, error)

    async def refuse(
        self, method: str, context: aio.ServicerContext[Any, Any], error: errors.RequestError
    ) -> NoReturn:
        """Ends a call of that method with an error."""
        with suppress(errors.RequestError), self._observer.call(method, context):
            raise error
        await errors.abort(context, error)

    def shed(
        self, method: str, context: aio.ServicerContext[Any, Any], error: errors.RequestError
    ) -> tuple[tuple[str, str], ...]:
        """Counts a call that is refused before it is read; returns its trailing metadata."""
        return self._observer.shed(method, context, error)

    async def idle(self) -> None:
        """Waits until no call is being worked on."""
        await self._questions.idle()
        await self._feedbacks.idle()

    async def _answered(
        self, request: pb.RecommendRequest, call: Call, time_left_s: float | None
    ) -> pb.RecommendResponse:
        release = self._picked(request.session_id, request.scenario)
        with release.answering() as pipeline:
            if request.scenario in pipeline.bundle.scenarios:
                call.asked(request.scenario, release.side)
            with call.probe.during(Stage.NORMALISE):
                question = question_of(
                    request,
                    pipeline.bundle.scenarios,
                    time_left_s=time_left_s,
                    default_budget_s=self._default_budget_s,
                    clock=self._clock,
                )
            call.due(question.deadline)
            answer = await pipeline.recommend(question, call.probe)
            response = response_of(
                answer,
                question,
                request_id=call.response_id,
                session_id=request.session_id,
                bundle_id=pipeline.bundle.manifest.bundle_id,
                keys=self._feedback.keys,
                probe=call.probe,
            )
            call.answered(answer.omissions, len(answer.suggestions))
            return response

    def _check_taking(self, calls: InFlight) -> None:
        if self.is_draining:
            raise errors.NotReady(DRAINING)
        if calls.num > self._max_calls:
            raise errors.QueueFull("call")

    @contextmanager
    def _taking(self, num_events: int) -> Generator[None]:
        """Counts a call's events while they are checked and stored; refuses too many."""
        if self._num_events + num_events > _MAX_EVENTS_AT_ONCE:
            raise errors.QueueFull("feedback")
        self._num_events += num_events
        try:
            yield
        finally:
            self._num_events -= num_events

    def _main(self) -> Release:
        self._check_taking(self._questions)
        if self._releases.main is None:
            raise errors.NotReady("the server is loading its bundle")
        return self._releases.main

    def _picked(self, session_id: str, scenario: str) -> Release:
        self._main()
        return self._releases.pick(session_id, scenario)

    def _checked(self, events: list[FeedbackEvent]) -> tuple[list[Event], list[FeedbackRefusal]]:
        accepted: list[Event] = []
        refusals: list[FeedbackRefusal] = []
        for index, event in enumerate(events):
            try:
                accepted.append(checked_event(event, self._feedback.keys))
            except errors.InvalidRequest as error:
                refusals.append(
                    FeedbackRefusal(event_index=index, reason=error.reason, message=error.message)
                )
        return accepted, refusals


def _time_left_s(context: aio.ServicerContext[Any, Any]) -> float | None:
    left: float | None = context.time_remaining()  # None without a deadline, whatever stubs say
    return left


@contextmanager
def _request_errors(request_id: str) -> Generator[None]:
    """Lets request errors through; logs others once and makes an `InternalFault` of them."""
    try:
        yield
    except errors.RequestError:
        raise
    except Exception as error:
        _log.exception("call failed", extra={"request_id": request_id})
        raise errors.InternalFault(request_id) from error
