"""What the supervisor does while a worker is being started, with real processes."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from engine.config import Config, FeedbackConfig, ModelsConfig, ServerConfig
from engine.serving import supervisor
from engine.serving.places import Places
from engine.serving.supervisor import Supervisor
from engine.serving.worker_process import WorkerProcess

TIMEOUT_S = 60


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():  # noqa: ASYNC110 - a process tells nobody
            await asyncio.sleep(0.01)


class Engine:
    """Two workers. What is started while `may_follow` is not set has begun, but is held."""

    def __init__(self, link: Path, directory: Path) -> None:
        config = Config(
            server=ServerConfig(port=0, workers=2),
            models=ModelsConfig(num_threads=1, shared_thread_pool=False, max_batch_size=2),
            feedback=FeedbackConfig(directory=str(directory / "feedback")),
        )
        self.link = link
        self.begun: list[WorkerProcess] = []
        self.may_follow = asyncio.Event()
        self.may_follow.set()
        self._begin = WorkerProcess.begin
        self._supervisor = Supervisor(Places(link), config, started_s=time.monotonic())
        self.running: asyncio.Task[None] | None = None

    async def begin(self, start) -> WorkerProcess:
        worker = await self._begin(start)
        self.begun.append(worker)
        await self.may_follow.wait()
        return worker

    async def start_and_kill_a_worker(self) -> WorkerProcess:
        """Returns the other one, once a third has begun, which is held."""
        self.running = asyncio.create_task(self._supervisor.run())
        await until(lambda: len(self.begun) == 2 and all(w.is_serving for w in self.begun))
        self.may_follow.clear()
        self.begun[0].signal(signal.SIGKILL)
        await until(lambda: len(self.begun) == 3)
        return self.begun[1]

    def move(self, directory: Path) -> None:
        self.link.unlink(missing_ok=True)
        self.link.symlink_to(directory)


@pytest.fixture
async def engine(tiny_bundle, tmp_path, monkeypatch) -> AsyncIterator[Engine]:
    link = tmp_path / "current"
    link.symlink_to(tiny_bundle)
    engine = Engine(link, tmp_path)
    monkeypatch.setattr(WorkerProcess, "begin", engine.begin)
    yield engine
    for worker in engine.begun:
        worker.signal(signal.SIGKILL)
    if engine.running is not None:
        engine.running.cancel()
        await asyncio.wait([engine.running])


@pytest.mark.parametrize(
    ("status", "described"),
    [(0, "status 0"), (-9, "SIGKILL"), (-35, "signal 35")],
)
def test_how_a_process_ended_is_told_of_every_signal(status, described):
    assert supervisor._described(status) == described


async def test_a_worker_that_is_being_started_at_the_end_ends_too(engine):
    await engine.start_and_kill_a_worker()
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait([engine.running], timeout=3)  # it has all the time to forget that worker
    engine.may_follow.set()
    await engine.running
    assert all(worker.process.returncode is not None for worker in engine.begun)


async def test_a_worker_catches_up_with_the_others_and_not_with_the_link(
    engine, tiny_bundle, other_bundle
):
    other = await engine.start_and_kill_a_worker()
    engine.move(other_bundle)
    os.kill(os.getpid(), signal.SIGHUP)
    await until(lambda: other.places.bundle == other_bundle)
    engine.move(tiny_bundle)  # nobody asks for that one
    engine.may_follow.set()
    late = engine.begun[2]
    assert late.places.bundle == tiny_bundle
    await until(lambda: late.places.bundle == other_bundle)
    os.kill(os.getpid(), signal.SIGTERM)
    await engine.running
    assert other.places.bundle == other_bundle
