"""Log lines: what a record becomes, and that exceptions do not quote users."""

import json
import logging
from collections.abc import Callable, Iterator

import pytest

from engine.errors import QueueFull
from engine.telemetry import logs, writing

SECRET = "a very private question"


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root, engine = logging.getLogger(), logging.getLogger("engine")
    before = root.handlers[:], root.level, engine.level
    yield
    root.handlers[:], root.level, engine.level = before


@pytest.fixture
def lines(
    tmp_path, monkeypatch
) -> Iterator[Callable[..., tuple[Callable[[], str], logging.Logger]]]:
    """Sets up a log. Returns what returns what has been written, and a logger."""
    path = tmp_path / "log.txt"
    monkeypatch.setattr(writing, "_FLUSH_S", 60.0)  # a disk may stand still for a second

    def written() -> str:
        writing.flush()
        return path.read_text("utf-8")

    def start(log_format: logs.LogFormat, level: logs.LogLevel = "info"):
        logs.set_up(log_format, level, file.fileno())
        return written, logging.getLogger("engine.test")

    with path.open("w") as file:
        yield start


def failed(error: Exception) -> None:
    try:
        raise error
    except Exception as caught:
        raise RuntimeError(SECRET) from caught


def test_a_json_line_has_time_level_event_and_what_was_added(lines):
    written, log = lines("json")
    log.warning("%d rows failed", 3, extra={"request_id": "r-1"})
    (line,) = map(json.loads, written().splitlines())
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "warning",
        "event": "3 rows failed",
        "logger": "engine.test",
        "request_id": "r-1",
    }


def test_a_text_line_has_the_same(lines):
    written, log = lines("text")
    log.warning("late", extra={"request_id": "r-1"})
    assert written().endswith("WARNING late request_id=r-1\n")


def test_an_event_with_line_breaks_stays_one_json_line(lines):
    written, log = lines("json")
    log.info("one\ntwo", extra={"odd": object()})
    (line,) = written().splitlines()
    assert json.loads(line)["event"] == "one\ntwo"


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_unexpected_exceptions_are_told_without_their_messages(lines, log_format):
    written, log = lines(log_format)
    try:
        failed(KeyError(SECRET))
    except RuntimeError:
        log.exception("call failed")
    assert "RuntimeError" in written()
    assert "KeyError" in written()
    assert "in failed" in written()
    assert SECRET not in written()


@pytest.mark.parametrize("error", [QueueFull("models"), OSError(28, "No space left on device")])
def test_what_the_engine_and_the_system_say_is_told(lines, error):
    written, log = lines("json")
    try:
        failed(error)
    except RuntimeError:
        log.exception("call failed")
    assert str(error) in " ".join(json.loads(written())["error"])


def test_levels_below_the_one_set_and_chatter_of_libraries_are_left_out(lines):
    written, log = lines("json", "warning")
    log.info("quiet")
    logging.getLogger("library").info("chatter")
    assert written() == ""
    logging.getLogger("asyncio").error(f"Task failed\nfuture: exception={SECRET}")
    assert "Task failed" in written()
    assert SECRET not in written()


def test_what_a_callers_deadline_ends_is_no_error(lines):
    for level, expected in (("info", []), ("debug", ["debug"])):
        written, _ = lines("json", level)
        grpc_log = logging.getLogger("grpc._cython.cygrpc")
        grpc_log.error("ExecuteBatchError raised in core by servicer method [%s]", "/a.B/C")
        assert [json.loads(line)["level"] for line in written().splitlines()] == expected
    grpc_log.error("anything else")
    assert json.loads(written().splitlines()[-1])["level"] == "error"
