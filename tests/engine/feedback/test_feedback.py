import asyncio
import logging
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import timestamp_pb2

from engine.errors import FeedbackNotStored, InvalidRequest, QueueFull, TokenForged
from engine.feedback.attribution import AttributionToken, KeyRing, Shown, Source
from engine.feedback.events import Event, Kind, checked_event
from engine.feedback.log import FeedbackLog
from engine.feedback.segments import read_events, segments
from queryrec.v1 import feedback_pb2
from queryrec.v1.error_reason_pb2 import ErrorReason

KEYS = KeyRing(active_key_id="k", secrets={"k": b"s" * 32})
MADE_MS = 1_772_323_200_000


def token(request_id: str = "r1", num_texts: int = 3) -> AttributionToken:
    return AttributionToken(
        request_id=request_id,
        bundle_id="bundle-1",
        time_unix_ms=MADE_MS,
        scenario="suggestion",
        query="wireless earbuds",
        session_id="s1",
        suggestions=tuple(
            Shown(text=f"earbuds {i}", sources=Source.LOG | Source.GENERATED, propensity=0.5)
            for i in range(num_texts)
        ),
    )


SEALED = token().seal(KEYS)


def event(event_id: str, kind: Kind = Kind.CLICK, position: int = 1, delay_s: float = 1) -> Event:
    return Event(
        event_id=event_id,
        kind=kind,
        position=position,
        time_unix_ms=MADE_MS + int(delay_s * 1000),
        user_key="u1",
        token=SEALED,
    )


def on_wire(**changes: object) -> feedback_pb2.FeedbackEvent:
    message = feedback_pb2.FeedbackEvent(
        event_id="e1",
        attribution_token=SEALED,
        kind=feedback_pb2.FEEDBACK_KIND_CLICK,
        position=2,
        time=timestamp_pb2.Timestamp(seconds=MADE_MS // 1000, nanos=5_000_000),
        user_key="u1",
    )
    for name, value in changes.items():
        message.ClearField(name)  # pyright: ignore[reportArgumentType]
        if value is not None:
            message.MergeFrom(feedback_pb2.FeedbackEvent(**{name: value}))  # pyright: ignore[reportArgumentType]
    return message


def ids(directory: Path, *, include_open: bool = False) -> list[str]:
    return [e.event_id for e in read_events(segments(directory, include_open=include_open))]


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_a_valid_event_keeps_every_field():
    assert checked_event(on_wire(), KEYS) == Event(
        event_id="e1",
        kind=Kind.CLICK,
        position=2,
        time_unix_ms=MADE_MS + 5,
        user_key="u1",
        token=SEALED,
    )
    assert checked_event(on_wire(user_key=None), KEYS).user_key is None


@pytest.mark.parametrize(
    ("changes", "reason", "field"),
    [
        ({"event_id": None}, "EVENT_INVALID", "event_id"),
        ({"event_id": "x" * 129}, "FIELD_TOO_LONG", "event_id"),
        ({"event_id": "a\nb"}, "TEXT_INVALID", "event_id"),
        ({"user_key": "\x85"}, "TEXT_INVALID", "user_key"),
        ({"user_key": "a\x00b"}, "TEXT_INVALID", "user_key"),
        ({"kind": None}, "EVENT_INVALID", "kind"),
        ({"kind": 99}, "EVENT_INVALID", "kind"),
        ({"time": None}, "EVENT_INVALID", "time"),
        ({"time": timestamp_pb2.Timestamp(seconds=-1)}, "EVENT_INVALID", "time"),
        ({"time": timestamp_pb2.Timestamp(seconds=2**60)}, "EVENT_INVALID", "time"),
        ({"position": None}, "EVENT_INVALID", "position"),
        ({"position": -1}, "EVENT_INVALID", "position"),
        ({"position": 4}, "EVENT_INVALID", "position"),
        ({"attribution_token": None}, "TOKEN_MALFORMED", "attribution_token"),
        ({"attribution_token": SEALED[:-4]}, "TOKEN_MALFORMED", "attribution_token"),
    ],
)
def test_an_event_that_breaks_a_rule_is_refused_with_its_reason_and_field(changes, reason, field):
    with pytest.raises(InvalidRequest) as refusal:
        checked_event(on_wire(**changes), KEYS)

    assert refusal.value.reason_name == f"ERROR_REASON_{reason}"
    assert refusal.value.reason == ErrorReason.Value(f"ERROR_REASON_{reason}")
    assert refusal.value.metadata["field"] == field


def test_a_forged_token_is_refused():
    forged = token().seal(KeyRing(active_key_id="k", secrets={"k": b"t" * 32}))
    with pytest.raises(TokenForged):
        checked_event(on_wire(attribution_token=forged), KEYS)


async def test_appended_events_are_readable_before_the_segment_is_closed(tmp_path):
    log = FeedbackLog(tmp_path)
    await log.append([event("a"), event("b")])
    await log.append([])

    assert ids(tmp_path, include_open=True) == ["a", "b"]
    assert segments(tmp_path) == []
    log.close()
    assert ids(tmp_path) == ["a", "b"]
    assert next(read_events(segments(tmp_path))) == event("a")


async def test_events_of_many_concurrent_callers_are_all_stored_once(tmp_path):
    log = FeedbackLog(tmp_path)
    await asyncio.gather(*(log.append([event(f"{i}-{j}") for j in range(3)]) for i in range(200)))
    log.close()

    assert sorted(ids(tmp_path)) == sorted(f"{i}-{j}" for i in range(200) for j in range(3))


async def test_an_event_sent_twice_is_read_once(tmp_path):
    log = FeedbackLog(tmp_path, max_segment_bytes=1)  # a segment per append
    for _ in range(2):
        await log.append([event("a")])
    log.close()

    assert len(segments(tmp_path)) == 2
    assert ids(tmp_path) == ["a"]
    assert len(list(read_events(segments(tmp_path), keep_duplicates=True))) == 2


async def test_a_segment_is_closed_when_it_is_full(tmp_path):
    log = FeedbackLog(tmp_path, max_segment_bytes=1)
    for i in range(30):
        await log.append([event(str(i))])

    assert ids(tmp_path) == [str(i) for i in range(29)]
    log.close()
    assert ids(tmp_path) == [str(i) for i in range(30)]


async def test_a_segment_is_closed_when_it_is_old(tmp_path):
    clock = Clock()
    log = FeedbackLog(tmp_path, max_segment_age_s=600, clock=clock)
    await log.append([event("a")])
    clock.now_s = 599
    await log.append([event("b")])
    assert ids(tmp_path) == []
    clock.now_s = 600
    await log.append([event("c")])

    assert ids(tmp_path) == ["a", "b"]
    log.close()


def test_a_torn_last_line_of_a_dead_process_is_dropped_at_start(tmp_path, caplog):
    writer = subprocess.Popen(
        [sys.executable, "-c", CRASHING_WRITER, str(tmp_path), SEALED], stdout=subprocess.PIPE
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"stored\n"
    (path,) = segments(tmp_path, include_open=True)
    FeedbackLog(tmp_path).close()
    assert segments(tmp_path, include_open=True) == [path], (
        "a living writer's segment is left alone"
    )

    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    with path.open("ab") as torn:
        torn.write(b'{"event_id":"half')
    assert ids(tmp_path, include_open=True) == ["a"], "readers ignore a torn line"

    with caplog.at_level(logging.WARNING):
        FeedbackLog(tmp_path).close()

    assert "17 bytes dropped" in caplog.text
    assert ids(tmp_path) == ["a"]
    assert segments(tmp_path)[0].read_bytes().endswith(b"}\n")


CRASHING_WRITER = """
import asyncio, pathlib, sys, time
from engine.feedback.events import Event, Kind
from engine.feedback.log import FeedbackLog
log = FeedbackLog(pathlib.Path(sys.argv[1]))
event = Event(event_id="a", kind=Kind.CLICK, position=1, time_unix_ms=1, user_key=None,
              token=sys.argv[2])
asyncio.run(log.append([event]))
print("stored", flush=True)
time.sleep(600)
"""


async def test_a_full_disk_is_an_error_to_the_caller_and_leaves_only_whole_lines(tmp_path):
    log = FeedbackLog(tmp_path)
    await log.append([event("a")])
    line_bytes = segments(tmp_path, include_open=True)[0].stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (line_bytes + line_bytes // 2, limits[1]))
    try:
        with pytest.raises(FeedbackNotStored):
            await log.append([event("b")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)

    assert segments(tmp_path)[0].stat().st_size == line_bytes, "half a line was taken back"
    await log.append([event("b")])
    log.close()
    assert ids(tmp_path) == ["a", "b"]


async def test_a_directory_that_vanished_is_an_error_and_the_log_recovers_with_it(tmp_path):
    directory = tmp_path / "feedback"
    log = FeedbackLog(directory)
    directory.rename(tmp_path / "moved")
    with pytest.raises(FeedbackNotStored) as refusal:
        await log.append([event("a")])
    assert isinstance(refusal.value.__cause__, FileNotFoundError)

    (tmp_path / "moved").rename(directory)
    await log.append([event("a")])
    log.close()
    assert ids(directory) == ["a"]


async def test_more_waiting_events_than_allowed_are_refused_and_none_is_stored(tmp_path):
    log = FeedbackLog(tmp_path, max_waiting_events=2)
    with pytest.raises(QueueFull):
        await log.append([event("a"), event("b"), event("c")])
    await log.append([event("d"), event("e")])
    log.close()

    assert ids(tmp_path) == ["d", "e"]


async def test_a_closed_log_refuses_events(tmp_path):
    log = FeedbackLog(tmp_path)
    log.close()
    log.close()
    with pytest.raises(FeedbackNotStored):
        await log.append([event("a")])


@pytest.mark.parametrize("name", ["max_segment_bytes", "max_segment_age_s", "max_waiting_events"])
def test_limits_that_make_no_sense_are_refused_by_name(tmp_path, name):
    limit: dict[str, Any] = {name: 0}
    with pytest.raises(ValueError, match=f"{name} is 0"):
        FeedbackLog(tmp_path, **limit)


def test_a_directory_that_cannot_be_used_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"feedback directory .*file"):
        FeedbackLog(tmp_path / "file")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no directory here refuses root, too")
def test_a_directory_that_cannot_be_written_is_refused_at_start():
    with pytest.raises(ValueError, match=r"feedback directory /proc/self cannot be used"):
        FeedbackLog(Path("/proc/self"))


async def test_only_their_owner_can_read_what_users_wrote(tmp_path):
    directory = tmp_path / "feedback"
    log = FeedbackLog(directory)
    await log.append([event("a")])
    [open_segment] = directory.iterdir()
    assert open_segment.stat().st_mode & 0o777 == 0o600
    log.close()
    assert segments(directory)[0].stat().st_mode & 0o777 == 0o600
    assert directory.stat().st_mode & 0o777 == 0o700


async def test_a_disk_that_goes_on_failing_is_told_once_and_so_is_its_end(tmp_path, caplog):
    directory = tmp_path / "feedback"
    log = FeedbackLog(directory)
    directory.rename(tmp_path / "moved")
    for _ in range(3):
        with pytest.raises(FeedbackNotStored):
            await log.append([event("a")])
    (tmp_path / "moved").rename(directory)
    for _ in range(2):
        await log.append([event("a")])
    log.close()
    began, ended = (record.getMessage() for record in caplog.records)
    assert began.startswith(f"feedback cannot be written to {directory}: [Errno 2]")
    assert ended == f"feedback is written to {directory} again"


async def test_an_unreadable_line_is_skipped_and_named_without_its_content(tmp_path, caplog):
    log = FeedbackLog(tmp_path)
    await log.append([event("a"), event("b")])
    log.close()
    (path,) = segments(tmp_path)
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + b'{"secret query":1}\n' + b"[]\n" + second)

    assert ids(tmp_path) == ["a", "b"]
    assert f"{path} line 2" in caplog.text
    assert "secret" not in caplog.text
