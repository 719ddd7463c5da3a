"""What the supervisor and its workers tell each other: JSON lines over stdin and stdout.

A pipe and not a command line, because signing keys are among it; and because its end tells a
worker that its supervisor is gone. Knows nothing of what either does.
"""

from pathlib import Path

import msgspec

from engine.config import Config
from engine.feedback.attribution import KeyRing
from engine.serving.places import Places

MAX_LINE_BYTES = 1 << 20


class _Message(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Base of all messages."""


class Start(_Message, frozen=True, kw_only=True):
    """To a worker, first of all: what to serve, and how."""

    number: int  # of the worker; 1 is the first
    config: Config
    active_key_id: str
    secrets: dict[str, bytes]
    bundle: str
    canary: str | None

    def __repr__(self) -> str:
        return f"Start(number={self.number})"  # without secrets

    @property
    def keys(self) -> KeyRing:
        """The signing keys."""
        return KeyRing(active_key_id=self.active_key_id, secrets=self.secrets)

    @property
    def places(self) -> Places:
        """Where the releases are, links followed."""
        return Places(Path(self.bundle), Path(self.canary) if self.canary is not None else None)


class Refresh(_Message, frozen=True, kw_only=True):
    """To a worker: look whether another release is there on one side."""

    side: str
    directory: str  # links followed
    is_asked: bool


class Refused(_Message, frozen=True, kw_only=True):
    """To a worker: count a release as refused, which another worker died over."""


class Ping(_Message, frozen=True, kw_only=True):
    """To a worker: answer at once."""


class Failed(_Message, frozen=True, kw_only=True):
    """From a worker: it cannot start, and ends."""

    why: str


class Serving(_Message, frozen=True, kw_only=True):
    """From a worker: it listens and serves."""

    bundle_id: str


class Refreshed(_Message, frozen=True, kw_only=True):
    """From a worker, to each `Refresh`: whether it serves what is there."""

    is_current: bool


class Pong(_Message, frozen=True, kw_only=True):
    """From a worker, to each `Ping`: its event loop runs."""


class Ending(_Message, frozen=True, kw_only=True):
    """From a worker: it drains, and heeds nothing any more."""


class Said(_Message, frozen=True, kw_only=True):
    """From a worker: a line for the operator."""

    text: str


Command = Start | Refresh | Refused | Ping
Reply = Failed | Serving | Refreshed | Pong | Ending | Said

_COMMANDS = msgspec.json.Decoder(Command)
_REPLIES = msgspec.json.Decoder(Reply)


def as_line(message: _Message) -> bytes:
    """Returns a message as it travels."""
    return msgspec.json.encode(message) + b"\n"


def command_of(line: bytes) -> Command:
    """Returns what the supervisor said."""
    return _COMMANDS.decode(line)


def reply_of(line: bytes) -> Reply:
    """Returns what a worker said."""
    return _REPLIES.decode(line)
