import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from queryrec.v1 import feedback_pb2 as _feedback_pb2
from queryrec.v1 import scenario_pb2 as _scenario_pb2
from queryrec.v1 import side_information_pb2 as _side_information_pb2
from queryrec.v1 import stage_pb2 as _stage_pb2
from queryrec.v1 import suggestion_pb2 as _suggestion_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RecommendRequest(_message.Message):
    __slots__ = ("scenario", "query", "session_id", "user_key", "locale", "session_queries", "answer", "side_information", "exclude", "max_suggestions", "latency_budget")
    SCENARIO_FIELD_NUMBER: _ClassVar[int]
    QUERY_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    USER_KEY_FIELD_NUMBER: _ClassVar[int]
    LOCALE_FIELD_NUMBER: _ClassVar[int]
    SESSION_QUERIES_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    SIDE_INFORMATION_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_FIELD_NUMBER: _ClassVar[int]
    MAX_SUGGESTIONS_FIELD_NUMBER: _ClassVar[int]
    LATENCY_BUDGET_FIELD_NUMBER: _ClassVar[int]
    scenario: str
    query: str
    session_id: str
    user_key: str
    locale: str
    session_queries: _containers.RepeatedScalarFieldContainer[str]
    answer: str
    side_information: _containers.RepeatedCompositeFieldContainer[_side_information_pb2.SideInformation]
    exclude: _containers.RepeatedScalarFieldContainer[str]
    max_suggestions: int
    latency_budget: _duration_pb2.Duration
    def __init__(self, scenario: _Optional[str] = ..., query: _Optional[str] = ..., session_id: _Optional[str] = ..., user_key: _Optional[str] = ..., locale: _Optional[str] = ..., session_queries: _Optional[_Iterable[str]] = ..., answer: _Optional[str] = ..., side_information: _Optional[_Iterable[_Union[_side_information_pb2.SideInformation, _Mapping]]] = ..., exclude: _Optional[_Iterable[str]] = ..., max_suggestions: _Optional[int] = ..., latency_budget: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class RecommendResponse(_message.Message):
    __slots__ = ("request_id", "suggestions", "auxiliary_text", "attribution_token", "stage_timings", "omissions", "bundle_id")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SUGGESTIONS_FIELD_NUMBER: _ClassVar[int]
    AUXILIARY_TEXT_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTION_TOKEN_FIELD_NUMBER: _ClassVar[int]
    STAGE_TIMINGS_FIELD_NUMBER: _ClassVar[int]
    OMISSIONS_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    suggestions: _containers.RepeatedCompositeFieldContainer[_suggestion_pb2.Suggestion]
    auxiliary_text: str
    attribution_token: str
    stage_timings: _containers.RepeatedCompositeFieldContainer[_stage_pb2.StageTiming]
    omissions: _containers.RepeatedCompositeFieldContainer[_stage_pb2.Omission]
    bundle_id: str
    def __init__(self, request_id: _Optional[str] = ..., suggestions: _Optional[_Iterable[_Union[_suggestion_pb2.Suggestion, _Mapping]]] = ..., auxiliary_text: _Optional[str] = ..., attribution_token: _Optional[str] = ..., stage_timings: _Optional[_Iterable[_Union[_stage_pb2.StageTiming, _Mapping]]] = ..., omissions: _Optional[_Iterable[_Union[_stage_pb2.Omission, _Mapping]]] = ..., bundle_id: _Optional[str] = ...) -> None: ...

class RecordFeedbackRequest(_message.Message):
    __slots__ = ("events",)
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[_feedback_pb2.FeedbackEvent]
    def __init__(self, events: _Optional[_Iterable[_Union[_feedback_pb2.FeedbackEvent, _Mapping]]] = ...) -> None: ...

class RecordFeedbackResponse(_message.Message):
    __slots__ = ("num_accepted", "refusals")
    NUM_ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    REFUSALS_FIELD_NUMBER: _ClassVar[int]
    num_accepted: int
    refusals: _containers.RepeatedCompositeFieldContainer[_feedback_pb2.FeedbackRefusal]
    def __init__(self, num_accepted: _Optional[int] = ..., refusals: _Optional[_Iterable[_Union[_feedback_pb2.FeedbackRefusal, _Mapping]]] = ...) -> None: ...

class ListScenariosRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListScenariosResponse(_message.Message):
    __slots__ = ("scenarios", "bundle_id")
    SCENARIOS_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_ID_FIELD_NUMBER: _ClassVar[int]
    scenarios: _containers.RepeatedCompositeFieldContainer[_scenario_pb2.Scenario]
    bundle_id: str
    def __init__(self, scenarios: _Optional[_Iterable[_Union[_scenario_pb2.Scenario, _Mapping]]] = ..., bundle_id: _Optional[str] = ...) -> None: ...
