"""The errors that end a request, and how each looks on the wire.

Knows nothing of how requests are served: only which gRPC status, which ``ErrorReason`` and which
words a failure has. Wrong configuration is a ``ValueError``; doing less than asked is not an error.

    EngineError
    +-- RequestError              one gRPC status, one reason, one message, metadata
        +-- InvalidRequest        INVALID_ARGUMENT      the caller's mistake: do not retry
        |   +-- TokenMalformed        missing, cut, or not one of ours
        |   +-- TokenForged           the signature does not match
        |   +-- TokenKeyUnknown       signed with a key that is not held
        +-- ScenarioUnknown       NOT_FOUND             the bundle has no such scenario
        +-- QueueFull             RESOURCE_EXHAUSTED    too many are waiting: back off
        +-- NotReady              UNAVAILABLE           loading or draining: try another replica
        +-- FeedbackNotStored     UNAVAILABLE           not durable: send the batch again
        +-- DeadlineUnreachable   DEADLINE_EXCEEDED     the time was over before the work began
        +-- InternalFault         INTERNAL              ours; says nothing of the inside

Messages go to callers and into logs, so neither they nor the metadata ever hold text that a user
wrote: they name the field, its size and its limit.
"""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, NoReturn

import grpc
from google.protobuf import any_pb2
from google.rpc import (  # pyright: ignore[reportMissingTypeStubs]  # googleapis ships none
    error_details_pb2,
    status_pb2,
)
from grpc import aio

from queryrec.v1.error_reason_pb2 import ErrorReason

DOMAIN = "queryrec.v1"  # ``ErrorInfo.domain`` of every error of this service

_DETAILS_KEY = "grpc-status-details-bin"  # where gRPC libraries look for a google.rpc.Status


class EngineError(Exception):
    """Root of what the engine raises on purpose."""


class NotFinite(ValueError):
    """A model's output has a number that is not finite. No caller's doing, so no EngineError."""


class RequestError(EngineError):
    """A request that ends with a gRPC status other than OK.

    Raise one of the subclasses: each carries its status.

    Args:
        reason: Why, for programs.
        message: Why, for a developer: what was wrong and what would be right.
        metadata: The keys that ``error_reason.proto`` lists with the reason.
    """

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL

    def __init__(
        self, reason: ErrorReason, message: str, metadata: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.metadata = dict(metadata or {})

    @property
    def reason_name(self) -> str:
        """The reason's name in ``error_reason.proto``, as ``ErrorInfo.reason`` has it."""
        return ErrorReason.Name(self.reason)


class InvalidRequest(RequestError):
    """The request breaks a rule of the contract, whatever the state of the server."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class TokenMalformed(InvalidRequest):
    """An attribution token is missing, cut, or not one that this service made."""

    def __init__(self, why: str) -> None:
        super().__init__(
            ErrorReason.ERROR_REASON_TOKEN_MALFORMED,
            f"attribution_token {why}; send it back exactly as the response carried it",
            {"field": "attribution_token"},
        )


class TokenForged(InvalidRequest):
    """An attribution token's signature does not match its content."""

    def __init__(self, key_id: str) -> None:
        super().__init__(
            ErrorReason.ERROR_REASON_TOKEN_SIGNATURE_INVALID,
            f"attribution_token's signature does not match under key {key_id!r}; "
            "send it back exactly as the response carried it",
            {"field": "attribution_token", "key_id": key_id},
        )


class TokenKeyUnknown(InvalidRequest):
    """An attribution token names a signing key that this server does not hold."""

    def __init__(self, key_id: str) -> None:
        super().__init__(
            ErrorReason.ERROR_REASON_TOKEN_KEY_UNKNOWN,
            f"attribution_token is signed with key {key_id!r}, which this server does not hold; "
            "keep retired keys for as long as feedback may arrive",
            {"field": "attribution_token", "key_id": key_id},
        )


class ScenarioUnknown(RequestError):
    """The bundle being served has no scenario of the name asked for.

    Args:
        known: Names of the scenarios that the bundle has.
    """

    code = grpc.StatusCode.NOT_FOUND

    def __init__(self, known: Iterable[str]) -> None:
        names = sorted(known)
        super().__init__(
            ErrorReason.ERROR_REASON_SCENARIO_UNKNOWN,
            f"scenario must be one of {', '.join(names)}",
            {"field": "scenario", "known": ",".join(names)},
        )


class QueueFull(RequestError):
    """More work is waiting than can be answered in time.

    Args:
        queue: Name of the queue that is full.
    """

    code = grpc.StatusCode.RESOURCE_EXHAUSTED

    def __init__(self, queue: str) -> None:
        super().__init__(
            ErrorReason.ERROR_REASON_QUEUE_FULL,
            f"the {queue} queue is full; retry with back-off or on another replica",
            {"queue": queue},
        )


class NotReady(RequestError):
    """The server cannot answer yet, or does not any more."""

    code = grpc.StatusCode.UNAVAILABLE

    def __init__(self, why: str) -> None:
        super().__init__(ErrorReason.ERROR_REASON_NOT_READY, f"{why}; retry on another replica")


class FeedbackNotStored(RequestError):
    """Feedback could not be made durable. The cause is chained, and is not shown to callers."""

    code = grpc.StatusCode.UNAVAILABLE

    def __init__(self) -> None:
        super().__init__(
            ErrorReason.ERROR_REASON_FEEDBACK_NOT_STORED,
            "the events could not be stored; send the batch again with the same event ids",
        )


class DeadlineUnreachable(RequestError):
    """The latency budget, or the deadline, was over when the request was looked at."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED

    def __init__(self) -> None:
        super().__init__(
            ErrorReason.ERROR_REASON_DEADLINE_UNREACHABLE,
            "no time was left when the request was looked at; allow more",
        )


class InternalFault(RequestError):
    """A fault of the server, told to the caller without its inside.

    Args:
        request_id: Under which the log has the details.
    """

    def __init__(self, request_id: str) -> None:
        super().__init__(
            ErrorReason.ERROR_REASON_INTERNAL,
            f"internal error; report it with request id {request_id}",
            {"request_id": request_id},
        )


def query_empty() -> InvalidRequest:
    """Returns the error for a query of nothing but white space."""
    return InvalidRequest(
        ErrorReason.ERROR_REASON_QUERY_EMPTY,
        "query is empty; send at least one character that is not white space",
        {"field": "query"},
    )


def text_too_long(field: str, *, size_bytes: int, max_bytes: int) -> InvalidRequest:
    """Returns the error for a text of more than ``max_bytes`` bytes of UTF-8.

    The field ``query`` has a reason of its own.
    """
    return InvalidRequest(
        ErrorReason.ERROR_REASON_QUERY_TOO_LONG
        if field == "query"
        else ErrorReason.ERROR_REASON_FIELD_TOO_LONG,
        f"{field} has {size_bytes} bytes of UTF-8; at most {max_bytes} are allowed",
        {"field": field, "size_bytes": str(size_bytes), "max_bytes": str(max_bytes)},
    )


def request_too_large(size_bytes: int, max_bytes: int) -> InvalidRequest:
    """Returns the error for a request that was sent as more than ``max_bytes`` bytes."""
    return InvalidRequest(
        ErrorReason.ERROR_REASON_FIELD_TOO_LONG,
        f"request has {size_bytes} bytes as it was sent; at most {max_bytes} are allowed",
        {"field": "request", "size_bytes": str(size_bytes), "max_bytes": str(max_bytes)},
    )


def text_invalid(field: str, rule: str) -> InvalidRequest:
    """Returns the error for a text with characters that its field does not allow.

    Args:
        field: Path of the field, such as ``session_queries[3]``.
        rule: What the field must hold, such as "no control characters".
    """
    return InvalidRequest(
        ErrorReason.ERROR_REASON_TEXT_INVALID, f"{field} must hold {rule}", {"field": field}
    )


def too_many_items(field: str, *, num_items: int, max_items: int) -> InvalidRequest:
    """Returns the error for a repeated field with more than ``max_items`` items."""
    return InvalidRequest(
        ErrorReason.ERROR_REASON_TOO_MANY_ITEMS,
        f"{field} has {num_items} items; at most {max_items} are allowed",
        {"field": field, "num_items": str(num_items), "max_items": str(max_items)},
    )


def max_suggestions_out_of_range(value: int, *, max_value: int) -> InvalidRequest:
    """Returns the error for a ``max_suggestions`` that is negative or above ``max_value``."""
    return InvalidRequest(
        ErrorReason.ERROR_REASON_MAX_SUGGESTIONS_OUT_OF_RANGE,
        f"max_suggestions is {value}; it must be from 0 (the scenario's default) to {max_value}",
        {"field": "max_suggestions", "value": str(value), "min": "0", "max": str(max_value)},
    )


def latency_budget_invalid() -> InvalidRequest:
    """Returns the error for a latency budget that is not a positive duration."""
    return InvalidRequest(
        ErrorReason.ERROR_REASON_LATENCY_BUDGET_INVALID,
        "latency_budget must be a valid duration above zero; leave it unset to use the deadline",
        {"field": "latency_budget"},
    )


def event_invalid(field: str, rule: str) -> InvalidRequest:
    """Returns the error for a feedback event whose ``field`` breaks ``rule``."""
    return InvalidRequest(
        ErrorReason.ERROR_REASON_EVENT_INVALID, f"{field} must be {rule}", {"field": field}
    )


def as_status(error: RequestError) -> status_pb2.Status:
    """Returns the error as the ``google.rpc.Status`` that goes on the wire, ErrorInfo included."""
    detail, metadata = any_pb2.Any(), error.metadata
    info = error_details_pb2.ErrorInfo(reason=error.reason_name, domain=DOMAIN, metadata=metadata)
    detail.Pack(info)
    number: int = error.code.value[0]
    return status_pb2.Status(code=number, message=error.message, details=[detail])


def trailing_metadata(error: RequestError) -> tuple[tuple[str, bytes], ...]:
    """Returns what a call ends with besides the status: its details, with the ErrorInfo."""
    return ((_DETAILS_KEY, as_status(error).SerializeToString()),)


async def abort(context: aio.ServicerContext[Any, Any], error: RequestError) -> NoReturn:
    """Ends a call with the error's status and ErrorInfo, and trailing metadata already set."""
    trailing = (*(context.trailing_metadata() or ()), *trailing_metadata(error))
    await context.abort(error.code, error.message, trailing)
    raise AssertionError("abort always raises")
