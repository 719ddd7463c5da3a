"""What goes to the service and comes back, as plain values made of the contract's messages.

Knows nothing of connections.
"""

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol, Self

from google.protobuf import timestamp_pb2

from queryrec.v1 import (
    error_reason_pb2,
    feedback_pb2,
    query_recommender_service_pb2,
    scenario_pb2,
    stage_pb2,
    suggestion_pb2,
)

FeedbackKind = Literal["impression", "click", "dismiss"]


class Suggestion(NamedTuple):
    """One recommended query."""

    text: str
    # If shown at this position. Where "score" was skipped, a guess from the position alone; where
    # it was degraded, the last ones were not scored and are taken for no better than the worst.
    click_probability: float
    sources: tuple[str, ...]  # of "log" and "generated"
    position: int  # 1 is the first

    @classmethod
    def of(cls, message: suggestion_pb2.Suggestion) -> Self:
        """Returns a message as a value."""
        return cls(
            text=message.text,
            click_probability=message.click_probability,
            sources=tuple(
                _short(suggestion_pb2.SuggestionSource, source, "SUGGESTION_SOURCE_")
                for source in message.sources
            ),
            position=message.position,
        )


class Omission(NamedTuple):
    """A stage that did less than the scenario asks for."""

    stage: str
    kind: str  # "skipped" or "degraded"
    reason: str  # such as "budget"

    @classmethod
    def of(cls, message: stage_pb2.Omission) -> Self:
        """Returns a message as a value."""
        return cls(
            stage=message.stage,
            kind=_short(stage_pb2.OmissionKind, message.kind, "OMISSION_KIND_"),
            reason=_short(stage_pb2.OmissionReason, message.reason, "OMISSION_REASON_"),
        )


class Scenario(NamedTuple):
    """A panel that the service can fill."""

    name: str
    description: str
    default_num_suggestions: int
    max_num_suggestions: int
    has_auxiliary_text: bool
    side_information_kinds: tuple[str, ...] = ()  # which models read; others are ignored

    @classmethod
    def of(cls, message: scenario_pb2.Scenario) -> Self:
        """Returns a message as a value."""
        return cls(
            name=message.name,
            description=message.description,
            default_num_suggestions=message.default_num_suggestions,
            max_num_suggestions=message.max_num_suggestions,
            has_auxiliary_text=message.has_auxiliary_text,
            side_information_kinds=tuple(message.side_information_kinds),
        )


class Refusal(NamedTuple):
    """A feedback event that was not stored."""

    event_index: int
    reason: str
    message: str

    @classmethod
    def of(cls, message: feedback_pb2.FeedbackRefusal) -> Self:
        """Returns a message as a value."""
        return cls(
            event_index=message.event_index,
            reason=_name(error_reason_pb2.ErrorReason, message.reason),
            message=message.message,
        )


class Receipt(NamedTuple):
    """What became of a batch of feedback; everything not refused is durable."""

    num_accepted: int
    refusals: tuple[Refusal, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedbackEvent:
    """One thing that a user did with one suggestion.

    Send the same object again after an error: its ``event_id`` makes it count once. ``user_key`` is
    an opaque, salted key of the user, only ever counted; without it, training counts sessions.
    """

    attribution_token: str
    kind: FeedbackKind
    position: int
    time_unix_ns: int = field(default_factory=time.time_ns)
    event_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    user_key: str | None = None

    def message(self) -> feedback_pb2.FeedbackEvent:
        """Returns it as a message.

        Raises:
            ValueError: a field does not fit.
        """
        seconds, nanos = divmod(self.time_unix_ns, 1_000_000_000)
        return feedback_pb2.FeedbackEvent(
            event_id=self.event_id,
            attribution_token=self.attribution_token,
            kind=f"FEEDBACK_KIND_{self.kind.upper()}",
            position=self.position,
            time=timestamp_pb2.Timestamp(seconds=seconds, nanos=nanos),
            user_key=self.user_key,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """The answer to one request.

    Attributes:
        request_id: Identifies the answer in logs.
        suggestions: Best first; fewer than asked for, even none, is normal.
        auxiliary_text: The line that introduces them, such as a clarifying question; may be empty.
        attribution_token: Ties feedback to this answer.
        stage_us: Microseconds by stage of the server, "total" among them.
        omissions: What was left out; empty means full quality.
        bundle_id: The models that answered.
    """

    request_id: str
    suggestions: tuple[Suggestion, ...]
    auxiliary_text: str
    attribution_token: str
    stage_us: Mapping[str, int]
    omissions: tuple[Omission, ...]
    bundle_id: str

    @classmethod
    def of(cls, message: query_recommender_service_pb2.RecommendResponse) -> Self:
        """Returns a message as a value."""
        return cls(
            request_id=message.request_id,
            suggestions=tuple(map(Suggestion.of, message.suggestions)),
            auxiliary_text=message.auxiliary_text,
            attribution_token=message.attribution_token,
            stage_us={timing.stage: timing.duration_us for timing in message.stage_timings},
            omissions=tuple(map(Omission.of, message.omissions)),
            bundle_id=message.bundle_id,
        )

    def event(
        self, kind: FeedbackKind, position: int, *, user_key: str | None = None
    ) -> FeedbackEvent:
        """Returns a feedback event for the suggestion at ``position``, stamped with the time."""
        return FeedbackEvent(
            attribution_token=self.attribution_token,
            kind=kind,
            position=position,
            user_key=user_key,
        )


class _Enum(Protocol):
    """A generated enum: names by number."""

    def Name(self, number: int, /) -> str: ...


def _name(enum: _Enum, number: int) -> str:
    """Returns the value's name; the number itself if it is newer than this client."""
    try:
        return enum.Name(number)
    except ValueError:
        return str(int(number))


def _short(enum: _Enum, number: int, prefix: str) -> str:
    return _name(enum, number).removeprefix(prefix).lower()
