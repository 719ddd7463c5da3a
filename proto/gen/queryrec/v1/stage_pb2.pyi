from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class OmissionKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OMISSION_KIND_UNSPECIFIED: _ClassVar[OmissionKind]
    OMISSION_KIND_SKIPPED: _ClassVar[OmissionKind]
    OMISSION_KIND_DEGRADED: _ClassVar[OmissionKind]

class OmissionReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OMISSION_REASON_UNSPECIFIED: _ClassVar[OmissionReason]
    OMISSION_REASON_BUDGET: _ClassVar[OmissionReason]
    OMISSION_REASON_NOT_IN_BUNDLE: _ClassVar[OmissionReason]
    OMISSION_REASON_OVERLOAD: _ClassVar[OmissionReason]
    OMISSION_REASON_FAILURE: _ClassVar[OmissionReason]
    OMISSION_REASON_CACHED: _ClassVar[OmissionReason]
OMISSION_KIND_UNSPECIFIED: OmissionKind
OMISSION_KIND_SKIPPED: OmissionKind
OMISSION_KIND_DEGRADED: OmissionKind
OMISSION_REASON_UNSPECIFIED: OmissionReason
OMISSION_REASON_BUDGET: OmissionReason
OMISSION_REASON_NOT_IN_BUNDLE: OmissionReason
OMISSION_REASON_OVERLOAD: OmissionReason
OMISSION_REASON_FAILURE: OmissionReason
OMISSION_REASON_CACHED: OmissionReason

class StageTiming(_message.Message):
    __slots__ = ("stage", "duration_us")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    DURATION_US_FIELD_NUMBER: _ClassVar[int]
    stage: str
    duration_us: int
    def __init__(self, stage: _Optional[str] = ..., duration_us: _Optional[int] = ...) -> None: ...

class Omission(_message.Message):
    __slots__ = ("stage", "kind", "reason")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    stage: str
    kind: OmissionKind
    reason: OmissionReason
    def __init__(self, stage: _Optional[str] = ..., kind: _Optional[_Union[OmissionKind, str]] = ..., reason: _Optional[_Union[OmissionReason, str]] = ...) -> None: ...
