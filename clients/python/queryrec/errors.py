"""What a failed call of the queryrec service says. Knows nothing of its messages."""

import contextlib
from collections.abc import Mapping
from typing import Self

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc import aio

_DOMAIN = "queryrec.v1"
_QUEUE_FULL = "ERROR_REASON_QUEUE_FULL"


class QueryRecError(Exception):
    """A call that failed.

    Attributes:
        code: The gRPC status.
        reason: Name of the ``ErrorReason``, such as "ERROR_REASON_QUERY_EMPTY"; None if the failure
            did not come from the service itself (no connection, deadline passed).
        message: What was wrong, for a developer.
        metadata: What ``error_reason.proto`` lists with the reason, such as the field.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        reason: str | None,
        message: str,
        metadata: Mapping[str, str],
    ) -> None:
        super().__init__(code, reason, message, dict(metadata))  # what copies are made from
        self.code = code
        self.reason = reason
        self.message = message
        self.metadata = dict(metadata)

    def __str__(self) -> str:
        return f"{self.reason or self.code.name}: {self.message}"

    @classmethod
    def from_rpc_error(cls, error: aio.AioRpcError) -> Self:
        """Returns the failure of a call made with the stubs, ErrorInfo taken apart."""
        info = _error_info(error)
        return cls(error.code(), info.reason or None, error.details() or "", info.metadata)

    @property
    def is_retryable(self) -> bool:
        """Whether the same question may be answered later or on another replica.

        UNAVAILABLE may, from whomever it comes, and so may a full queue. RESOURCE_EXHAUSTED without
        that reason is gRPC's word for a message or metadata that are too large, now and later. Not
        for feedback, which is to be sent again more often: see ``QueryRecClient.record_feedback``.
        """
        return self.code is grpc.StatusCode.UNAVAILABLE or self.reason == _QUEUE_FULL


def _error_info(error: aio.AioRpcError) -> error_details_pb2.ErrorInfo:
    """Returns the service's ErrorInfo in a failed call; an empty one if there is none."""
    status = status_pb2.Status()
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            with contextlib.suppress(DecodeError):  # not from the service, then
                status.ParseFromString(value)
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info) and info.domain == _DOMAIN:
            return info
    return error_details_pb2.ErrorInfo()
