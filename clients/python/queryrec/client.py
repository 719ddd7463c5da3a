"""A client of the queryrec service for asyncio programs.

Knows nothing of how suggestions are made: it turns the contract's messages into plain values and
failed calls into one exception. It never retries; ``QueryRecError.is_retryable`` says when it helps
to ask again, ``record_feedback`` when to send events again.

    async with QueryRecClient("localhost:50051", timeout_s=0.1) as client:
        answer = await client.recommend("suggestion", "wireless earbuds")
        shown = [answer.event("impression", s.position) for s in answer.suggestions]
        await client.record_feedback([*shown, answer.event("click", position=1)])
"""

import re
from collections.abc import Sequence
from functools import cached_property
from types import TracebackType
from typing import Self, TypeVar

import grpc
from google.protobuf import duration_pb2
from grpc import aio

from queryrec.errors import QueryRecError
from queryrec.v1 import query_recommender_service_pb2 as service_pb2
from queryrec.v1 import side_information_pb2
from queryrec.v1.query_recommender_service_pb2_grpc import QueryRecommenderServiceStub
from queryrec.values import (
    FeedbackEvent,
    FeedbackKind,
    Omission,
    Receipt,
    Recommendation,
    Refusal,
    Scenario,
    Suggestion,
)

__all__ = [
    "FeedbackEvent",
    "FeedbackKind",
    "Metadata",
    "Omission",
    "QueryRecClient",
    "QueryRecError",
    "Receipt",
    "Recommendation",
    "Refusal",
    "Scenario",
    "Suggestion",
]

Metadata = Sequence[tuple[str, str]]

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")
_MAX_DURATION_S = 315_576_000_000  # of google.protobuf.Duration
_METADATA_KEY = re.compile(r"[a-z0-9_.-]+")
_MAX_TIMEOUT_S = 1e9  # gRPC takes much longer ones for over already
_MAX_EVENTS = 256
_FEEDBACK_TIMEOUT_S = 5.0  # a disk may take longer than an answer may
_CHANNEL_OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),  # else clients share connections
    # By default the first address that answers gets all calls.
    ("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}'),
    # By default a lost server is tried again after 1 s, later after up to 120 s.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # Despite its name, how long one attempt to connect may take.
    ("grpc.min_reconnect_backoff_ms", 5000),
    # A host that vanishes closes no connection; pings find out, and only while calls wait.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5000),
]


class QueryRecClient:
    """The connections to the service; share it, it carries any number of calls at once.

    Each client has connections of its own, one to each address of its target, which take turns.
    They belong to the event loop of the first call; the client itself may be made before there is
    one.

    Args:
        target: Address or addresses, such as "localhost:50051", "dns:///queryrec:50051" or
            "ipv4:10.0.0.1:50051,10.0.0.2:50051".
        timeout_s: Deadline of each call, in seconds, at most 1e9: the time budget of an answer.
            None for no deadline: the service takes its default budget. Feedback gets five seconds
            if this is less.
        credentials: For TLS, from ``grpc.ssl_channel_credentials``; plain text without.

    Raises:
        ValueError: ``timeout_s`` is no time that a call can have.
    """

    def __init__(
        self,
        target: str,
        *,
        timeout_s: float | None = 1.0,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        self._target = target
        self._timeout_s = _checked_timeout(timeout_s)
        self._credentials = credentials

    @cached_property
    def _channel(self) -> aio.Channel:
        if self._credentials is None:
            return aio.insecure_channel(self._target, _CHANNEL_OPTIONS)
        return aio.secure_channel(self._target, self._credentials, _CHANNEL_OPTIONS)

    @cached_property
    def _stub(self) -> QueryRecommenderServiceStub:
        return QueryRecommenderServiceStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections; calls under way are cancelled."""
        await self._channel.close()

    async def recommend(
        self,
        scenario: str,
        query: str,
        *,
        session_id: str = "",
        user_key: str = "",
        locale: str = "",
        session_queries: Sequence[str] = (),
        answer: str = "",
        side_information: Sequence[tuple[str, str]] = (),
        exclude: Sequence[str] = (),
        max_suggestions: int = 0,
        latency_budget_s: float | None = None,
        timeout_s: float | None = None,
        metadata: Metadata = (),
    ) -> Recommendation:
        """Returns suggestions for ``query``.

        Args:
            scenario: Name of the panel, as ``list_scenarios`` has it.
            query: What the user searched for or has typed so far.
            session_id: Opaque id of the search session.
            user_key: Opaque, salted key of the user; checked, but at present not used. To have
                users counted, give it to ``Recommendation.event``.
            locale: BCP 47 tag, such as "pt-BR"; checked, but at present not used.
            session_queries: The session's earlier queries, oldest first.
            answer: The assistant's answer, for conversational search.
            side_information: (kind, text) pairs, most important first.
            exclude: Texts not to suggest.
            max_suggestions: At most this many; 0 means the scenario's default.
            latency_budget_s: Asks for an answer in less time than the deadline, in seconds.
            timeout_s: Deadline of this call instead of the client's, in seconds.
            metadata: (key, value) pairs to send with the call, such as "x-request-id", which logs
                then have, or "traceparent". The other methods take them, too.

        Raises:
            QueryRecError: The call failed.
            ValueError: An argument does not fit the request's fields, or timeout or metadata cannot
                be sent.
        """
        for name, texts in (("session_queries", session_queries), ("exclude", exclude)):
            if isinstance(texts, str):
                raise ValueError(f"{name} is a string; it must be a sequence of strings")
        request = service_pb2.RecommendRequest(
            scenario=scenario,
            query=query,
            session_id=session_id,
            user_key=user_key,
            locale=locale,
            session_queries=session_queries,
            answer=answer,
            side_information=[
                side_information_pb2.SideInformation(kind=kind, text=text)
                for kind, text in side_information
            ],
            exclude=exclude,
            max_suggestions=max_suggestions,
        )
        if latency_budget_s is not None:
            request.latency_budget.CopyFrom(_duration(latency_budget_s))
        response = await self._call(self._stub.Recommend, request, timeout_s, metadata)
        return Recommendation.of(response)

    async def record_feedback(
        self,
        events: Sequence[FeedbackEvent],
        *,
        timeout_s: float | None = None,
        metadata: Metadata = (),
    ) -> Receipt:
        """Stores at most 256 events; returns once all that were not refused are durable.

        Args:
            events: Made by ``Recommendation.event``.
            timeout_s: Deadline of this call, in seconds; by default the client's, and at least 5.
            metadata: See ``recommend``.

        Raises:
            QueryRecError: The call failed. Send the same events again, whether the error
                ``is_retryable`` or not, unless the code is INVALID_ARGUMENT, UNIMPLEMENTED,
                UNAUTHENTICATED or PERMISSION_DENIED, or RESOURCE_EXHAUSTED without the reason
                ERROR_REASON_QUEUE_FULL: events or metadata are too large, so send fewer at a time.
            ValueError: There are more than 256 events, one does not fit the request's fields, or
                timeout or metadata cannot be sent.
        """
        request = service_pb2.RecordFeedbackRequest(events=[e.message() for e in events])
        if (num := len(request.events)) > _MAX_EVENTS:
            raise ValueError(f"there are {num} events; a call takes at most {_MAX_EVENTS}")
        if timeout_s is None and self._timeout_s is not None:
            timeout_s = max(self._timeout_s, _FEEDBACK_TIMEOUT_S)
        response = await self._call(self._stub.RecordFeedback, request, timeout_s, metadata)
        return Receipt(
            num_accepted=response.num_accepted,
            refusals=tuple(map(Refusal.of, response.refusals)),
        )

    async def list_scenarios(
        self, *, timeout_s: float | None = None, metadata: Metadata = ()
    ) -> tuple[Scenario, ...]:
        """Returns the panels that the service can fill, by name.

        Raises:
            QueryRecError: The call failed.
            ValueError: Timeout or metadata cannot be sent.
        """
        response = await self._call(
            self._stub.ListScenarios, service_pb2.ListScenariosRequest(), timeout_s, metadata
        )
        return tuple(map(Scenario.of, response.scenarios))

    async def _call(
        self,
        method: aio.UnaryUnaryMultiCallable[_Request, _Response],
        request: _Request,
        timeout_s: float | None,
        metadata: Metadata,
    ) -> _Response:
        try:
            return await method(
                request,
                timeout=self._timeout_s if timeout_s is None else _checked_timeout(timeout_s),
                metadata=_checked(metadata),
            )
        except aio.AioRpcError as error:
            raise QueryRecError.from_rpc_error(error) from error


def _checked_timeout(timeout_s: float | None) -> float | None:
    if timeout_s is None or 0 < timeout_s <= _MAX_TIMEOUT_S:
        return timeout_s
    raise ValueError(f"timeout_s is {timeout_s}; it must be above 0 and at most {_MAX_TIMEOUT_S:g}")


def _checked(metadata: Metadata) -> Metadata:
    """Returns metadata that gRPC can send, or raises ValueError; gRPC's own error names none."""
    pairs = tuple(metadata)
    for key, value in pairs:
        if not (_METADATA_KEY.fullmatch(key) and value.isascii() and value.isprintable()):
            raise ValueError(
                f"metadata has {key!r}: {value!r}; keys must be of lower-case letters, digits and "
                "'-', '_', '.', values of printable ASCII characters"
            )
    return pairs


def _duration(seconds: float) -> duration_pb2.Duration:
    if not abs(seconds) <= _MAX_DURATION_S:
        raise ValueError(
            f"latency_budget_s is {seconds}; it must be a number up to {_MAX_DURATION_S}"
        )
    duration = duration_pb2.Duration()
    duration.FromNanoseconds(round(seconds * 1e9))
    return duration
