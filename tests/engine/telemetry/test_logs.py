"""Log lines: what a record becomes, and that exceptions do not quote users."""

import io
import json
import logging
from collections.abc import Iterator

import pytest

from engine.errors import QueueFull
from engine.telemetry import logs

SECRET = "a very private question"


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root, engine = logging.getLogger(), logging.getLogger("engine")
    before = root.handlers[:], root.level, engine.level
    yield
    root.handlers[:], root.level, engine.level = before


def lines(log_format: logs.LogFormat, level: logs.LogLevel = "info"):
    stream = io.StringIO()
    logs.set_up(log_format, level, stream)
    return stream, logging.getLogger("engine.test")


def failed(error: Exception) -> None:
    try:
        raise error
    except Exception as caught:
        raise RuntimeError(SECRET) from caught


def test_a_json_line_has_time_level_event_and_what_was_added():
    stream, log = lines("json")
    log.warning("%d rows failed", 3, extra={"request_id": "r-1"})
    (line,) = map(json.loads, stream.getvalue().splitlines())
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "warning",
        "event": "3 rows failed",
        "logger": "engine.test",
        "request_id": "r-1",
    }


def test_a_text_line_has_the_same():
    stream, log = lines("text")
    log.warning("late", extra={"request_id": "r-1"})
    assert stream.getvalue().endswith("WARNING late request_id=r-1\n")


def test_an_event_with_line_breaks_stays_one_json_line():
    stream, log = lines("json")
    log.info("one\ntwo", extra={"odd": object()})
    (line,) = stream.getvalue().splitlines()
    assert json.loads(line)["event"] == "one\ntwo"


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_unexpected_exceptions_are_told_without_their_messages(log_format):
    stream, log = lines(log_format)
    try:
        failed(KeyError(SECRET))
    except RuntimeError:
        log.exception("call failed")
    assert "RuntimeError" in stream.getvalue()
    assert "KeyError" in stream.getvalue()
    assert "in failed" in stream.getvalue()
    assert SECRET not in stream.getvalue()


@pytest.mark.parametrize("error", [QueueFull("models"), OSError(28, "No space left on device")])
def test_what_the_engine_and_the_system_say_is_told(error):
    stream, log = lines("json")
    try:
        failed(error)
    except RuntimeError:
        log.exception("call failed")
    assert str(error) in " ".join(json.loads(stream.getvalue())["error"])


def test_levels_below_the_one_set_and_chatter_of_libraries_are_left_out():
    stream, log = lines("json", "warning")
    log.info("quiet")
    logging.getLogger("library").info("chatter")
    assert stream.getvalue() == ""
    logging.getLogger("asyncio").error(f"Task failed\nfuture: exception={SECRET}")
    assert "Task failed" in stream.getvalue()
    assert SECRET not in stream.getvalue()
