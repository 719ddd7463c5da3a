from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SuggestionSource(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SUGGESTION_SOURCE_UNSPECIFIED: _ClassVar[SuggestionSource]
    SUGGESTION_SOURCE_LOG: _ClassVar[SuggestionSource]
    SUGGESTION_SOURCE_GENERATED: _ClassVar[SuggestionSource]
SUGGESTION_SOURCE_UNSPECIFIED: SuggestionSource
SUGGESTION_SOURCE_LOG: SuggestionSource
SUGGESTION_SOURCE_GENERATED: SuggestionSource

class Suggestion(_message.Message):
    __slots__ = ("text", "click_probability", "sources", "position")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    CLICK_PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    text: str
    click_probability: float
    sources: _containers.RepeatedScalarFieldContainer[SuggestionSource]
    position: int
    def __init__(self, text: _Optional[str] = ..., click_probability: _Optional[float] = ..., sources: _Optional[_Iterable[_Union[SuggestionSource, str]]] = ..., position: _Optional[int] = ...) -> None: ...
