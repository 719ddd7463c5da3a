from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class Scenario(_message.Message):
    __slots__ = ("name", "description", "default_num_suggestions", "max_num_suggestions", "has_auxiliary_text", "side_information_kinds")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_NUM_SUGGESTIONS_FIELD_NUMBER: _ClassVar[int]
    MAX_NUM_SUGGESTIONS_FIELD_NUMBER: _ClassVar[int]
    HAS_AUXILIARY_TEXT_FIELD_NUMBER: _ClassVar[int]
    SIDE_INFORMATION_KINDS_FIELD_NUMBER: _ClassVar[int]
    name: str
    description: str
    default_num_suggestions: int
    max_num_suggestions: int
    has_auxiliary_text: bool
    side_information_kinds: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., description: _Optional[str] = ..., default_num_suggestions: _Optional[int] = ..., max_num_suggestions: _Optional[int] = ..., has_auxiliary_text: bool = ..., side_information_kinds: _Optional[_Iterable[str]] = ...) -> None: ...
