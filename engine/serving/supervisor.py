"""`serve --workers N`: starts processes that share a port, keeps them alive, ends them in order.

The supervisor runs no model and takes no call. Workers are started afresh, never forked: neither
gRPC nor ONNX Runtime survives a fork. They come to the same bundles one after another, so that the
others answer meanwhile, and a bundle that the first one refuses reaches none of the others.
"""

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec

from engine.config import Config, load_keys
from engine.execution.cpu import num_usable_cpus
from engine.serving.console import Signals, say, warn_of_ephemeral_keys
from engine.serving.control import (
    MAX_LINE_BYTES,
    Failed,
    Refresh,
    Said,
    Serving,
    Start,
    as_line,
    reply_of,
)
from engine.serving.places import Places
from engine.serving.ports import shared_port

_log = logging.getLogger(__name__)

_BACKOFF_S = 0.5  # before the first restart in a row; doubles with each
_MAX_RESTARTS = 5  # in a row
_STABLE_S = 60.0  # a worker that served this long starts a new row
_END_S = 15.0  # beyond what it may take to drain, before a worker is killed


class Restarts:
    """Whether and when a worker that died is started again."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        """Starts with a clean record."""
        self._now_s = now_s
        self._num_in_row = 0
        self._serving_since_s: float | None = None

    def served(self) -> None:
        """Notes that the worker has begun to serve."""
        self._serving_since_s = self._now_s()

    def delay_s(self) -> float | None:
        """Notes that it died. Returns seconds until the next start, or None to give up."""
        since_s, self._serving_since_s = self._serving_since_s, None
        if since_s is not None and self._now_s() - since_s >= _STABLE_S:
            self._num_in_row = 0
        self._num_in_row += 1
        if self._num_in_row > _MAX_RESTARTS:
            return None
        return _BACKOFF_S * 2 ** (self._num_in_row - 1)


class WorkerProcess:
    """One worker process, as long as it lives."""

    def __init__(self, start: Start, process: asyncio.subprocess.Process) -> None:
        """Wraps a process that has just begun."""
        self.places = start.places
        self.is_serving = False
        self.why_failed = ""
        self.process = process
        self._number = start.number
        self._refreshed: asyncio.Future[bool] | None = None

    @classmethod
    async def begin(cls, start: Start) -> "WorkerProcess":
        """Starts a process and tells it what to serve."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "engine.serving.child"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=MAX_LINE_BYTES,
            # It finds the very modules that this process has found, however this one was started.
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
            start_new_session=True,  # a terminal's Ctrl-C reaches it through the supervisor only
        )
        worker = cls(start, process)
        worker._tell(start)
        return worker

    async def follow(self, on_serving: Callable[[str], None]) -> int:
        """Heeds what the process says until it ends. Returns its exit status.

        Args:
            on_serving: Called with the bundle's id once it serves.
        """
        assert self.process.stdout is not None
        try:
            while line := await self.process.stdout.readline():
                try:
                    reply = reply_of(line)
                except msgspec.MsgspecError:  # printed by a library
                    reply = Said(text=line.decode(errors="replace").rstrip())
                if isinstance(reply, Said):
                    say(f"worker {self._number}: {reply.text}")
                elif isinstance(reply, Failed):
                    self.why_failed = reply.why
                elif isinstance(reply, Serving):
                    self.is_serving = True
                    on_serving(reply.bundle_id)
                else:
                    self._end_refresh(is_current=reply.is_current)
            return await self.process.wait()
        finally:
            self.is_serving = False
            self._end_refresh(is_current=False)

    async def refresh(self, places: Places, *, is_asked: bool) -> bool:
        """Has it look at the bundles. Returns whether it serves them; not if it died over it."""
        refreshed = self._refreshed = asyncio.get_running_loop().create_future()
        bundle, canary = str(places.bundle), places.canary and str(places.canary)
        self._tell(Refresh(bundle=bundle, canary=canary, is_asked=is_asked))
        is_current = await refreshed
        if is_current:
            self.places = places
        return is_current

    def signal(self, number: int) -> None:
        """Sends a signal, if the process is still there."""
        with suppress(ProcessLookupError):
            self.process.send_signal(number)

    def _end_refresh(self, *, is_current: bool) -> None:
        if self._refreshed is not None and not self._refreshed.done():
            self._refreshed.set_result(is_current)

    def _tell(self, command: Start | Refresh) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(as_line(command))


class Supervisor:
    """The processes of one engine.

    Attributes:
        num_restarts: Workers started again after they died.
    """

    def __init__(self, places: Places, config: Config, *, started_s: float) -> None:
        """Reads the signing keys, which all workers share; starts nothing yet.

        Args:
            places: The bundle and the canary; links are followed again on SIGHUP.
            config: Settings.
            started_s: When the process started, on `time.monotonic`.

        Raises:
            ValueError: keys cannot be used, or there are too few ports for metrics.
        """
        last_port = config.metrics.port + config.server.workers - 1
        if config.metrics.port and last_port > 65_535:
            raise ValueError(
                f"metrics.port is {config.metrics.port}: {config.server.workers} workers need "
                f"ports up to {last_port}, and 65535 is the last"
            )
        self.num_restarts = 0
        self._keys = load_keys(config.feedback.keys_file)
        self._links = places
        self._places = places.resolved()
        self._deadly: Places | None = None  # a worker died over them: only tried again if asked
        self._config = config
        self._started_s = started_s
        self._numbers = range(1, config.server.workers + 1)
        self._workers: dict[int, WorkerProcess] = {}
        self._have_served: set[int] = set()
        self._is_stopping = False

    async def run(self) -> None:
        """Serves until SIGTERM or SIGINT.

        Raises:
            ValueError: a worker cannot start, dies again and again, or does not end.
        """
        signals = Signals()
        server = self._config.server
        with shared_port(server.host, server.port) as port:
            self._config = msgspec.structs.replace(
                self._config, server=msgspec.structs.replace(server, port=port)
            )
            tasks: list[asyncio.Task[Any]] = [
                asyncio.create_task(signals.stop.wait()),
                asyncio.create_task(self._keep_current(signals)),
                *(asyncio.create_task(self._keep_alive(n, signals)) for n in self._numbers),
            ]
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            finally:
                self._is_stopping = True
                await self._drain()
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _keep_alive(self, number: int, signals: Signals) -> None:
        """Starts a worker, again whenever it dies."""
        restarts = Restarts()

        def on_serving(bundle_id: str) -> None:
            restarts.served()
            self._on_serving(number, bundle_id)
            if self._workers[number].places != self._places:  # swapped while it was loading
                signals.reload.set()

        while True:
            worker = self._workers[number] = await WorkerProcess.begin(self._start(number))
            if self._is_stopping:
                worker.signal(signal.SIGTERM)
            status = await worker.follow(on_serving)
            if self._is_stopping:
                return
            why = f"worker {number}: {worker.why_failed or f'ended with {_described(status)}'}"
            if number not in self._have_served:
                raise ValueError(worker.why_failed or why)
            delay_s = restarts.delay_s()
            if delay_s is None:
                raise ValueError(
                    f"{why}; it died {_MAX_RESTARTS + 1} times in a row, each time within "
                    f"{_STABLE_S:.0f} s of serving: giving up"
                )
            _log.error("%s; starts again in %s s", why, delay_s)
            await asyncio.sleep(delay_s)
            if self._is_stopping:
                return
            self.num_restarts += 1

    def _start(self, number: int) -> Start:
        return Start(
            number=number,
            config=_config_of(number, self._config),
            active_key_id=self._keys.active_key_id,
            secrets=dict(self._keys.secrets),
            bundle=str(self._places.bundle),
            canary=self._places.canary and str(self._places.canary),
        )

    def _on_serving(self, number: int, bundle_id: str) -> None:
        if number in self._have_served:
            say(f"worker {number}: serving {bundle_id} again")
            return
        self._have_served.add(number)
        if len(self._have_served) == len(self._numbers):
            server = self._config.server
            say(f"listening on {server.host}:{server.port}")
            elapsed_s = time.monotonic() - self._started_s
            say(f"serving {bundle_id} by {len(self._numbers)} workers after {elapsed_s:.2f} s")

    async def _keep_current(self, signals: Signals) -> None:
        """Has the workers swap in what the links lead to, for ever."""
        async for is_asked in signals.reloads(self._config.server.watch_s):
            places = self._links.resolved()
            if is_asked or places != self._deadly:
                await self._refresh(places, is_asked=is_asked)

    async def _refresh(self, places: Places, *, is_asked: bool) -> None:
        """Has one worker after another look at the bundles, until one refuses."""
        seen: list[WorkerProcess] = []
        while True:
            # Looked up each time: a worker may have died, or begun to serve.
            left = [w for w in self._workers.values() if w.is_serving and w not in seen]
            if not left:
                return
            worker = left[0]
            if not await worker.refresh(places, is_asked=is_asked):
                if not worker.is_serving:
                    self._deadly = places
                    _log.error("a worker died over %s; the others do not load it", places.bundle)
                return
            self._places = places  # workers that start from now on serve these
            seen.append(worker)

    async def _drain(self) -> None:
        """Passes SIGTERM on, and waits until all workers have ended."""
        workers = list(self._workers.values())
        for worker in workers:
            worker.signal(signal.SIGTERM)
        server = self._config.server
        limit_s = server.lame_duck_s + server.grace_s + _END_S
        try:
            async with asyncio.timeout(limit_s):
                for worker in workers:
                    await worker.process.wait()
        except TimeoutError:
            late = [worker for worker in workers if worker.process.returncode is None]
            for worker in late:
                worker.signal(signal.SIGKILL)
            raise ValueError(
                f"{len(late)} workers did not end within {limit_s:.0f} s and were killed"
            ) from None


async def supervise(places: Places, config: Config, *, started_s: float) -> None:
    """Serves with several processes until SIGTERM or SIGINT; see `Supervisor`.

    Raises:
        ValueError: see `Supervisor`.
    """
    supervisor = Supervisor(places, config, started_s=started_s)
    warn_of_ephemeral_keys(config)
    if config.server.workers > num_usable_cpus():
        _log.warning(
            "%d workers, but %d CPUs; they take them from one another",
            config.server.workers,
            num_usable_cpus(),
        )
    await supervisor.run()


def _config_of(number: int, config: Config) -> Config:
    """Returns a worker's settings: each has a port of its own for metrics, the next one up."""
    if not config.metrics.port:
        return config
    port = config.metrics.port + number - 1
    metrics = msgspec.structs.replace(config.metrics, port=port)
    return msgspec.structs.replace(config, metrics=metrics)


def _described(status: int) -> str:
    return f"status {status}" if status >= 0 else signal.Signals(-status).name
