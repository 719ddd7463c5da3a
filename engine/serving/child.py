"""A worker process: serves on the port that it shares with others, as its supervisor says.

It listens once it is warm, so that no call reaches a worker that cannot answer yet. It drains on
SIGTERM, and if its supervisor is gone. Run by `supervisor` as `python -m engine.serving`.
"""

import asyncio
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

from engine.serving.control import (
    MAX_LINE_BYTES,
    Ending,
    Failed,
    Ping,
    Pong,
    Refresh,
    Refreshed,
    Refused,
    Reply,
    Said,
    Serving,
    Start,
    as_line,
    command_of,
)
from engine.serving.server import Server
from engine.telemetry import logs


async def work() -> bool:
    """Serves until told to stop. Returns whether it could start."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    commands = asyncio.StreamReader(limit=MAX_LINE_BYTES)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    if not (line := await commands.readline()):
        return False
    start = command_of(line)
    assert isinstance(start, Start)
    logs.set_up(start.config.log.format, start.config.log.level, worker=start.number)
    try:
        server = Server(
            start.config, keys=start.keys, shares_port=True, report=lambda t: _tell(Said(text=t))
        )
    except ValueError as error:
        _tell(Failed(why=str(error)))
        return False
    serving = asyncio.ensure_future(_serve(server, start, commands))
    stopped = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait((serving, stopped), return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            serving.result()
    except ValueError as error:
        _tell(Failed(why=str(error)))
        return False
    finally:
        _tell(Ending())
        serving.cancel()
        stopped.cancel()
        await server.drain()
    return True


async def _serve(server: Server, start: Start, commands: asyncio.StreamReader) -> None:
    """Loads, listens, and does what it is told until the supervisor is gone.

    Raises:
        ValueError: the bundle (BundleError), the address or a file cannot be used.
    """
    server.show_metrics()
    await server.load(*start.places)
    await server.start()
    assert server.releases.main is not None
    _tell(Serving(bundle_id=server.releases.main.manifest.bundle_id))
    async with asyncio.TaskGroup() as tasks:
        while line := await commands.readline():
            command = command_of(line)
            if isinstance(command, Ping):
                _tell(Pong())
            elif isinstance(command, Refused):
                server.releases.num_refusals += 1
            else:
                assert isinstance(command, Refresh)
                tasks.create_task(_refresh(server, command))


async def _refresh(server: Server, command: Refresh) -> None:
    is_current = await server.releases.refresh_side(
        command.side, Path(command.directory), is_asked=command.is_asked
    )
    _tell(Refreshed(is_current=is_current))


def _tell(reply: Reply) -> None:
    with suppress(BrokenPipeError):  # the end of stdin will say so, too
        os.write(sys.stdout.fileno(), as_line(reply))
