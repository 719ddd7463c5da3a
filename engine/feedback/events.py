"""Feedback events: what a user did with a suggestion, checked against the contract.

Knows nothing of where events are kept.
"""

import unicodedata
from dataclasses import dataclass
from enum import StrEnum

from engine.errors import event_invalid, text_invalid, text_too_long
from engine.feedback.attribution import AttributionToken, KeyRing
from engine.formats.text import has_control_characters
from queryrec.v1 import feedback_pb2

MAX_EVENTS_PER_CALL = 256
MAX_ID_BYTES = 128
TEXT_RULE = "no control characters and no noncharacters, such as U+FFFF"
_MAX_UNIX_S = 253_402_300_799  # the end of year 9999, the last valid google.protobuf.Timestamp


class Kind(StrEnum):
    """What a user did with a suggestion."""

    IMPRESSION = "impression"
    CLICK = "click"
    DISMISS = "dismiss"


_KINDS = {
    feedback_pb2.FEEDBACK_KIND_IMPRESSION: Kind.IMPRESSION,
    feedback_pb2.FEEDBACK_KIND_CLICK: Kind.CLICK,
    feedback_pb2.FEEDBACK_KIND_DISMISS: Kind.DISMISS,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One verified event.

    Attributes:
        event_id: The caller's idempotency key.
        kind: What the user did.
        position: With which suggestion; 1 is the first.
        time_unix_ms: When, by the caller's clock.
        user_key: Opaque key of the user, only ever counted; None if unknown.
        token: The response's attribution token, still sealed.
    """

    event_id: str
    kind: Kind
    position: int
    time_unix_ms: int
    user_key: str | None
    token: str


def check_id(field: str, text: str) -> None:
    """Checks a caller's id, which unlike a query is never normalised: white space counts as it is.

    Raises:
        InvalidRequest: It is too long or holds noncharacters or control characters, line breaks and
            tabs among them.
    """
    if (size := len(text.encode())) > MAX_ID_BYTES:
        raise text_too_long(field, size_bytes=size, max_bytes=MAX_ID_BYTES)
    if text.isprintable():
        return
    if has_control_characters(text) or any(unicodedata.category(c) == "Cc" for c in text):
        raise text_invalid(field, TEXT_RULE)


def checked_event(event: feedback_pb2.FeedbackEvent, keys: KeyRing) -> Event:
    """Returns the event after checking it against the contract and its token against ``keys``.

    Raises:
        InvalidRequest: One of its fields breaks a rule; the error says which.
    """
    check_id("event_id", event.event_id)
    check_id("user_key", event.user_key)
    if not event.event_id:
        raise event_invalid("event_id", "set, and unique over all events")
    kind = _KINDS.get(event.kind)
    if kind is None:
        raise event_invalid("kind", "one of IMPRESSION, CLICK and DISMISS")
    at = event.time
    if not event.HasField("time"):
        raise event_invalid("time", "set")
    if not (0 <= at.seconds <= _MAX_UNIX_S and 0 <= at.nanos < 1_000_000_000):
        raise event_invalid("time", "a valid timestamp from 1970 on")
    num_positions = len(AttributionToken.open(event.attribution_token, keys).suggestions)
    if not 1 <= event.position <= num_positions:
        raise event_invalid("position", f"from 1 to {num_positions}, as the response had them")
    return Event(
        event_id=event.event_id,
        kind=kind,
        position=event.position,
        time_unix_ms=at.seconds * 1000 + at.nanos // 1_000_000,
        user_key=event.user_key or None,
        token=event.attribution_token,
    )
