"""Log lines: JSON objects, or plain text. Knows nothing of what is logged.

A `Writer` writes them, so that whoever logs never waits for a reader that is slow or has stopped.
Lines that it could not take in time are lost, and counted.

What an unexpected exception says may quote its input, and so a user: of those that are not known
to be safe, lines have the type and where it was raised, but not the message.
"""

import logging
import os
import sys
import traceback
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

from engine.errors import EngineError, NotFinite
from engine.telemetry.writing import Writer, writer_of

LogFormat = Literal["json", "text"]
LogLevel = Literal["debug", "info", "warning", "error"]

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
# What gRPC logs as an error if a caller's deadline or disconnection comes while it answers.
_CALL_GIVEN_UP = "ExecuteBatchError raised in core by servicer method"
_SAFE = (EngineError, NotFinite, OSError)  # they name fields, outputs, sizes, files, addresses


def set_up(
    log_format: LogFormat,
    level: LogLevel,
    descriptor: int | None = None,
    *,
    worker: int | None = None,
) -> None:
    """Has the process log. To be called once, at start.

    Args:
        log_format: Of the lines.
        level: Least level of what the engine says; of libraries it is "warning".
        descriptor: Of the open file where lines go; None for stderr.
        worker: Number of this process among those of one engine, for every line.
    """
    handler = _WritingHandler(writer_of(_stderr() if descriptor is None else descriptor))
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    handler.addFilter(_of_callers_to_debug)
    if worker is not None:
        handler.addFilter(_WorkerFilter(worker))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("engine").setLevel(level.upper())


class JsonFormatter(logging.Formatter):
    """One object a line: time, level, event, logger, then what the record was given as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line."""
        line = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "event": _event(record),
            "logger": record.name,
            **_extra(record),
        }
        if record.exc_info and record.exc_info[1]:
            line["error"] = _described(record.exc_info[1])
        return msgspec.json.encode(line, enc_hook=str).decode()


class TextFormatter(logging.Formatter):
    """The same for people: time, level, event, key=value."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line; an exception's frames follow on lines of their own."""
        pairs = [f"{name}={value}" for name, value in _extra(record).items()]
        lines = [" ".join([_time(record), record.levelname, _event(record), *pairs])]
        if record.exc_info and record.exc_info[1]:
            lines += [f"  {part}" for part in _described(record.exc_info[1])]
        return "\n".join(lines)


class _WritingHandler(logging.Handler):
    """Has a `Writer` write lines. Those that find no room to wait are lost, and counted."""

    def __init__(self, writer: Writer) -> None:
        super().__init__()
        self._writer = writer
        self._num_lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if self._num_lost:
                lost = _lost(self._num_lost)
                self.filter(lost)  # adds what all lines have
                if self._is_written(lost):
                    self._num_lost = 0
            if self._num_lost or not self._is_written(record):
                self._num_lost += 1
        except Exception:
            self.handleError(record)

    def _is_written(self, record: logging.LogRecord) -> bool:
        if not self._writer.has_room:
            return False  # without the work of formatting
        return self._writer.write(self.format(record) + "\n")


def _stderr() -> int:
    if sys.stderr is None:  # closed before Python was started: any file may have its number
        return os.open(os.devnull, os.O_WRONLY)
    return sys.stderr.fileno()


def _lost(num_lost: int) -> logging.LogRecord:
    message = "%d log lines lost here: they were not read in time"
    return logging.LogRecord(__name__, logging.WARNING, __file__, 0, message, (num_lost,), None)


def _of_callers_to_debug(record: logging.LogRecord) -> bool:
    """Returns whether a record is to be logged: what callers cause only if calls are logged."""
    is_theirs = record.name.startswith("grpc.") and record.getMessage().startswith(_CALL_GIVEN_UP)
    if not is_theirs:
        return True
    record.levelno, record.levelname = logging.DEBUG, "DEBUG"
    return logging.getLogger("engine").isEnabledFor(logging.DEBUG)


class _WorkerFilter(logging.Filter):
    """Adds the number of the process; lets everything through."""

    def __init__(self, worker: int) -> None:
        super().__init__()
        self._worker = worker

    def filter(self, record: logging.LogRecord) -> bool:
        record.worker = self._worker
        return True


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


def _event(record: logging.LogRecord) -> str:
    text = record.getMessage()
    # asyncio goes on with the representation of the failed task, and so of its exception.
    return text if record.name.startswith("engine.") else text.partition("\n")[0]


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}


def _described(error: BaseException) -> list[str]:
    """Returns an exception and its causes, each with its frames, the first cause last."""
    parts: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        kind = type(cause)
        module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
        is_safe = isinstance(cause, _SAFE) or kind.__module__.startswith("onnxruntime.")
        name = module + kind.__qualname__
        parts.append(f"{name}: {cause}" if is_safe else name)
        frames = traceback.extract_tb(cause.__traceback__)
        parts += [f"at {f.filename}:{f.lineno} in {f.name}" for f in frames]
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return parts
