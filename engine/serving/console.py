"""Between a process and its operator: signals come in, lines go out."""

import asyncio
import logging
import signal
import sys
from collections.abc import AsyncIterator
from typing import TextIO

from engine.config import Config
from engine.telemetry.writing import writer_of

_log = logging.getLogger(__name__)


class Signals:
    """SIGTERM and SIGINT set `stop`; SIGHUP asks for a look at the bundles."""

    def __init__(self) -> None:
        """Takes over the signals of the process; needs a running event loop."""
        self.stop = asyncio.Event()
        self.reload = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop.set)
        loop.add_signal_handler(signal.SIGHUP, self.reload.set)

    async def reloads(self, watch_s: float) -> AsyncIterator[bool]:
        """Yields each time that the bundles should be looked at: whether somebody asked for it.

        Args:
            watch_s: Seconds after which to look unasked; 0 for never.
        """
        while True:
            try:
                async with asyncio.timeout(watch_s or None):
                    await self.reload.wait()
            except TimeoutError:
                yield False
            else:
                self.reload.clear()
                yield True


def say(text: str) -> None:
    """Prints a line. What cannot be printed (a full disk, nobody who reads) is lost."""
    _print(sys.stdout, text)


def complain(text: str) -> None:
    """Prints a line to stderr, if it can be printed."""
    _print(sys.stderr, text)


def warn_of_ephemeral_keys(config: Config) -> None:
    """Logs a warning if attribution tokens end with this process."""
    if not config.feedback.keys_file:
        _log.warning(
            "feedback.keys_file is not set; attribution tokens end with this process and other "
            "replicas refuse them"
        )


def _print(stream: TextIO | None, text: str) -> None:
    if stream is None:  # closed by a shell's >&-
        return
    line = f"queryrec-engine: {text}\n"
    try:
        writer = writer_of(stream.fileno())
    except OSError:  # no file of the system
        stream.write(line)
    else:
        writer.write(line)
