"""Log lines: JSON objects, or plain text. Knows nothing of what is logged.

What an unexpected exception says may quote its input, and so a user: of those that are not known
to be safe, lines have the type and where it was raised, but not the message.
"""

import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

import msgspec

from engine.errors import EngineError

LogFormat = Literal["json", "text"]
LogLevel = Literal["debug", "info", "warning", "error"]

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_SAFE = (EngineError, OSError)  # they name fields, sizes, files and addresses


def set_up(
    log_format: LogFormat,
    level: LogLevel,
    stream: TextIO | None = None,
    *,
    worker: int | None = None,
) -> None:
    """Has the process log. To be called once, at start.

    Args:
        log_format: Of the lines.
        level: Least level of what the engine says; of libraries it is "warning".
        stream: Where lines go; None for stderr.
        worker: Number of this process among those of one engine, for every line.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
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
