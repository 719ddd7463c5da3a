"""`serve --workers N`: starts processes that share a port, keeps them alive, ends them in order.

The supervisor runs no model and takes no call. Workers are started afresh, never forked: neither
gRPC nor ONNX Runtime survives a fork. They come to the same bundles one after another, so that the
others answer meanwhile, and a bundle that the first one refuses reaches none of the others.
"""

import asyncio
import logging
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from engine.config import Config, load_keys
from engine.execution.cpu import num_usable_cpus
from engine.serving.console import Signals, say, warn_of_ephemeral_keys
from engine.serving.control import Start
from engine.serving.deadly import DeadlyBundles
from engine.serving.places import Places
from engine.serving.ports import address_of, shared_port
from engine.serving.worker_process import (
    MAX_RESTARTS,
    STABLE_S,
    START_LIMIT_S,
    Restarts,
    WorkerProcess,
)

_log = logging.getLogger(__name__)

_END_S = 15.0  # beyond what it may take to drain, before a worker is killed


class Supervisor:
    """The processes of one engine."""

    def __init__(
        self,
        places: Places,
        config: Config,
        *,
        started_s: float,
        start_limit_s: float = START_LIMIT_S,
    ) -> None:
        """Reads the signing keys, which all workers share; starts nothing yet.

        Args:
            places: The bundle and the canary; links are followed again on SIGHUP.
            config: Settings.
            started_s: When the process started, on `time.monotonic`.
            start_limit_s: How long a worker that has served before may take to serve again.

        Raises:
            ValueError: keys cannot be used, or there are too few ports for metrics.
        """
        last_port = config.metrics.port + config.server.workers - 1
        if config.metrics.port and last_port > 65_535:
            raise ValueError(
                f"metrics.port is {config.metrics.port}: {config.server.workers} workers need "
                f"ports up to {last_port}, and 65535 is the last"
            )
        self._keys = load_keys(config.feedback.keys_file)
        self._links = places
        self._places = places.resolved()
        self._deadly = DeadlyBundles()
        self._config = config
        self._started_s = started_s
        self._start_limit_s = start_limit_s
        self._numbers = range(1, config.server.workers + 1)
        self._workers: dict[int, WorkerProcess] = {}
        self._restarts = {number: Restarts() for number in self._numbers}
        self._have_served: set[int] = set()
        self._has_begun = asyncio.Event()  # a worker, to serve
        self._refreshing = asyncio.Lock()
        self._starting = asyncio.Lock()
        self._is_stopping = False

    async def run(self) -> None:
        """Serves until SIGTERM or SIGINT.

        Raises:
            ValueError: a worker cannot start in the first place, all of them die again and again,
                or one does not end.
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
                asyncio.create_task(self._keep_even()),
                *(asyncio.create_task(self._keep_alive(n)) for n in self._numbers),
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

    async def _keep_alive(self, number: int) -> None:
        """Starts a worker, again whenever it dies."""
        restarts = self._restarts[number]

        def on_serving(bundle_id: str) -> None:
            restarts.served()
            self._on_serving(number, bundle_id)
            self._has_begun.set()

        while True:
            why = f"worker {number} {await self._work(number, on_serving)}"
            if self._is_stopping:
                return
            if number not in self._have_served:
                raise ValueError(why)
            delay_s = restarts.delay_s()
            if all(each.is_hopeless for each in self._restarts.values()) and not self._serving():
                raise ValueError(
                    f"{why}; no worker serves, and each died more than {MAX_RESTARTS} times in a "
                    f"row, before or within {STABLE_S:.0f} s of serving: giving up"
                )
            _log.error("%s; starts again in %s s", why, delay_s)
            await asyncio.sleep(delay_s)
            if self._is_stopping:
                return

    async def _work(self, number: int, on_serving: Callable[[str], None]) -> str:
        """Starts a worker and follows it to its end. Returns why it ended."""
        async with self._starting:
            if self._is_stopping:
                return ""
            try:
                worker = await WorkerProcess.begin(self._start(number))
            except OSError as error:
                return f"could not start: {error}"
            self._workers[number] = worker
        limit_s = self._start_limit_s if number in self._have_served else None
        status = await worker.follow(on_serving, limit_s)
        what = "died while serving" if worker.has_served else "could not start"
        return f"{what}: {worker.why_failed or f'ended with {_described(status)}'}"

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
            say(f"listening on {address_of(server.host, server.port)}")
            elapsed_s = time.monotonic() - self._started_s
            say(f"serving {bundle_id} by {len(self._numbers)} workers after {elapsed_s:.2f} s")

    async def _keep_current(self, signals: Signals) -> None:
        """Has the workers swap in what the links lead to, for ever."""
        async for is_asked in signals.reloads(self._config.server.watch_s):
            sides = self._links.resolved().sides()
            if is_asked:  # not at each: both may lead to what a worker is about to die over
                for _, directory in sides:
                    self._deadly.release(directory)
            for side, directory in sides:
                if not await self._deadly.holds(directory):
                    async with self._refreshing:
                        await self._refresh(side, directory, is_asked=is_asked)

    async def _keep_even(self) -> None:
        """Has workers that began to serve what was swapped meanwhile catch up, for ever."""
        while True:
            await self._has_begun.wait()
            self._has_begun.clear()
            async with self._refreshing:
                for worker in self._serving():
                    for side, directory in self._places.sides():
                        if worker.is_serving and (side, directory) not in worker.places.sides():
                            await worker.refresh(side, directory, is_asked=False)

    async def _refresh(self, side: str, directory: Path, *, is_asked: bool) -> None:
        """Has one worker after another look at one side's bundle, until one refuses."""
        seen: list[WorkerProcess] = []
        while True:
            # Looked up each time: a worker may have died, or begun to serve.
            left = [w for w in self._serving() if w not in seen]
            if not left:
                return
            worker = left[0]
            if not await worker.refresh(side, directory, is_asked=is_asked):
                if not worker.is_serving and not self._is_stopping:
                    refusal = await self._deadly.add(directory, is_asked=is_asked)
                    until = "until SIGHUP asks"
                    if self._config.server.watch_s:
                        delay_min = refusal.delay_s / 60
                        until = f"for {delay_min:.0f} min, unless it changes or SIGHUP asks"
                    _log.error(
                        "a worker died over %s; no further one loads it %s", directory, until
                    )
                    if not refusal.is_again:
                        for other in self._serving()[:1]:
                            other.count_refusal()
                return
            self._deadly.forget(directory)
            self._places = self._places.with_side(side, directory)  # for those that start from now
            seen.append(worker)

    def _serving(self) -> list[WorkerProcess]:
        return [worker for worker in self._workers.values() if worker.is_serving]

    async def _drain(self) -> None:
        """Passes SIGTERM on, and waits until all workers have ended."""
        async with self._starting:  # one that is being started is told, too
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
    if status >= 0:
        return f"status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:  # most real-time signals have no name
        return f"signal {-status}"
