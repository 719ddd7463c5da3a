from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from typing import ClassVar as _ClassVar

DESCRIPTOR: _descriptor.FileDescriptor

class ErrorReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ERROR_REASON_UNSPECIFIED: _ClassVar[ErrorReason]
    ERROR_REASON_QUERY_EMPTY: _ClassVar[ErrorReason]
    ERROR_REASON_QUERY_TOO_LONG: _ClassVar[ErrorReason]
    ERROR_REASON_TEXT_INVALID: _ClassVar[ErrorReason]
    ERROR_REASON_FIELD_TOO_LONG: _ClassVar[ErrorReason]
    ERROR_REASON_TOO_MANY_ITEMS: _ClassVar[ErrorReason]
    ERROR_REASON_SCENARIO_UNKNOWN: _ClassVar[ErrorReason]
    ERROR_REASON_MAX_SUGGESTIONS_OUT_OF_RANGE: _ClassVar[ErrorReason]
    ERROR_REASON_LATENCY_BUDGET_INVALID: _ClassVar[ErrorReason]
    ERROR_REASON_TOKEN_MALFORMED: _ClassVar[ErrorReason]
    ERROR_REASON_TOKEN_SIGNATURE_INVALID: _ClassVar[ErrorReason]
    ERROR_REASON_TOKEN_KEY_UNKNOWN: _ClassVar[ErrorReason]
    ERROR_REASON_EVENT_INVALID: _ClassVar[ErrorReason]
    ERROR_REASON_QUEUE_FULL: _ClassVar[ErrorReason]
    ERROR_REASON_NOT_READY: _ClassVar[ErrorReason]
    ERROR_REASON_DEADLINE_UNREACHABLE: _ClassVar[ErrorReason]
    ERROR_REASON_FEEDBACK_NOT_STORED: _ClassVar[ErrorReason]
    ERROR_REASON_INTERNAL: _ClassVar[ErrorReason]
ERROR_REASON_UNSPECIFIED: ErrorReason
ERROR_REASON_QUERY_EMPTY: ErrorReason
ERROR_REASON_QUERY_TOO_LONG: ErrorReason
ERROR_REASON_TEXT_INVALID: ErrorReason
ERROR_REASON_FIELD_TOO_LONG: ErrorReason
ERROR_REASON_TOO_MANY_ITEMS: ErrorReason
ERROR_REASON_SCENARIO_UNKNOWN: ErrorReason
ERROR_REASON_MAX_SUGGESTIONS_OUT_OF_RANGE: ErrorReason
ERROR_REASON_LATENCY_BUDGET_INVALID: ErrorReason
ERROR_REASON_TOKEN_MALFORMED: ErrorReason
ERROR_REASON_TOKEN_SIGNATURE_INVALID: ErrorReason
ERROR_REASON_TOKEN_KEY_UNKNOWN: ErrorReason
ERROR_REASON_EVENT_INVALID: ErrorReason
ERROR_REASON_QUEUE_FULL: ErrorReason
ERROR_REASON_NOT_READY: ErrorReason
ERROR_REASON_DEADLINE_UNREACHABLE: ErrorReason
ERROR_REASON_FEEDBACK_NOT_STORED: ErrorReason
ERROR_REASON_INTERNAL: ErrorReason
