"""What the supervisor does while workers start and die, with real processes."""

import asyncio
import os
import shutil
import signal
import time
import urllib.request
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest

from engine.config import Config, FeedbackConfig, MetricsConfig, ModelsConfig, ServerConfig
from engine.formats.manifest import MANIFEST_FILE
from engine.serving import refusals, supervisor, worker_process
from engine.serving.places import Places
from engine.serving.supervisor import Supervisor
from engine.serving.worker_process import WorkerProcess
from tests.ports import free_port

TIMEOUT_S = 60


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():  # noqa: ASYNC110 - a process tells nobody
            await asyncio.sleep(0.01)


class Engine:
    """Two workers. What is started while `may_follow` is not set has begun, but is held."""

    def __init__(self, link: Path, directory: Path) -> None:
        self._metrics_port = free_port(2)
        self._config = Config(
            metrics=MetricsConfig(port=self._metrics_port),
            models=ModelsConfig(num_threads=1, shared_thread_pool=False, max_batch_size=2),
            feedback=FeedbackConfig(directory=str(directory / "feedback")),
        )
        self.link = link
        self.begun: list[WorkerProcess] = []
        self.tried: list[Path] = []  # where workers were told to look
        self.may_follow = asyncio.Event()
        self.may_follow.set()
        self._begin, self._refresh = WorkerProcess.begin, WorkerProcess.refresh
        self.running: asyncio.Task[None] | None = None

    async def begin(self, start) -> WorkerProcess:
        worker = await self._begin(start)
        self.begun.append(worker)
        await self.may_follow.wait()
        return worker

    async def refresh(
        self, worker: WorkerProcess, side: str, directory: Path, *, is_asked: bool
    ) -> bool:
        self.tried.append(directory)
        return await self._refresh(worker, side, directory, is_asked=is_asked)

    async def start(
        self, watch_s: float = 0.0, *, canary: Path | None = None, start_limit_s: float = 1800.0
    ) -> None:
        """Returns once both workers serve."""
        config = msgspec.structs.replace(
            self._config, server=ServerConfig(port=0, workers=2, watch_s=watch_s)
        )
        supervisor = Supervisor(
            Places(self.link, canary),
            config,
            started_s=time.monotonic(),
            start_limit_s=start_limit_s,
        )
        self.running = asyncio.create_task(supervisor.run())
        await until(lambda: len(self.begun) == 2 and all(w.is_serving for w in self.begun))

    async def start_and_kill_a_worker(self) -> WorkerProcess:
        """Returns the other one, once a third has begun, which is held."""
        await self.start()
        self.may_follow.clear()
        self.begun[0].signal(signal.SIGKILL)
        await until(lambda: len(self.begun) == 3)
        return self.begun[1]

    def move(self, directory: Path) -> None:
        (self.link.parent / "next").symlink_to(directory)
        (self.link.parent / "next").rename(self.link)

    def num_refusals(self) -> float:
        """Returns what the second worker has counted."""
        url = f"http://127.0.0.1:{self._metrics_port + 1}/metrics"
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:
            lines = response.read().decode().splitlines()
        [line] = [x for x in lines if x.startswith("queryrec_bundle_refusals_total ")]
        return float(line.split()[1])


@pytest.fixture
async def engine(tiny_bundle, tmp_path, monkeypatch) -> AsyncIterator[Engine]:
    link = tmp_path / "current"
    link.symlink_to(tiny_bundle)
    engine = Engine(link, tmp_path)
    monkeypatch.setattr(WorkerProcess, "begin", engine.begin)
    monkeypatch.setattr(WorkerProcess, "refresh", lambda *args, **how: engine.refresh(*args, **how))
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


@pytest.mark.parametrize("what_helps", ["a change", "time"])
async def test_a_release_over_which_a_worker_died_is_refused_for_a_while_and_then_tried_again(
    engine, other_bundle, changed_bundle, tmp_path, monkeypatch, what_helps
):
    if what_helps == "time":
        monkeypatch.setattr(refusals, "_RETRY_S", 0.1)
    changed = changed_bundle(other_bundle, "changed", provenance={"made": "again"})
    release = shutil.copytree(other_bundle, tmp_path / "release")
    await engine.start(watch_s=0.05)
    dying = engine.begun[0]
    dying.signal(signal.SIGSTOP)  # it cannot answer before it dies
    engine.move(release)
    await until(lambda: release in engine.tried)
    dying.signal(signal.SIGKILL)
    await until(lambda: len(engine.begun) == 3 and engine.begun[2].is_serving)
    if what_helps == "a change":
        assert engine.tried.count(release) == 1
        (changed / MANIFEST_FILE).replace(release / MANIFEST_FILE)
    await until(lambda: all(w.places.bundle == release for w in engine.begun[1:]))
    assert await asyncio.to_thread(engine.num_refusals) == 1


async def test_a_release_on_both_sides_costs_one_worker_each_time_that_somebody_asks(
    engine, other_bundle, caplog
):
    await engine.start(canary=engine.link)
    dying, other = engine.begun
    dying.signal(signal.SIGSTOP)
    engine.move(other_bundle)
    os.kill(os.getpid(), signal.SIGHUP)
    await until(lambda: engine.tried == [other_bundle])
    dying.signal(signal.SIGKILL)
    await until(lambda: len(engine.begun) == 3 and engine.begun[2].is_serving)
    assert engine.tried == [other_bundle]
    assert f"died over {other_bundle}; no further one loads it until SIGHUP asks" in caplog.text
    os.kill(os.getpid(), signal.SIGHUP)
    everywhere = Places(other_bundle, other_bundle)
    await until(lambda: all(w.places == everywhere for w in (other, engine.begun[2])))


async def test_only_a_start_that_has_worked_before_is_cut_short(engine, caplog):
    await engine.start(start_limit_s=0)
    engine.begun[0].signal(signal.SIGKILL)
    await until(lambda: "could not start: did not serve within 0 s; killed" in caplog.text)
    assert not engine.running.done()


async def test_a_worker_that_cannot_come_back_is_tried_until_none_serves(
    engine, tiny_bundle, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(worker_process, "MAX_RESTARTS", 1)
    monkeypatch.setattr(supervisor, "MAX_RESTARTS", 1)
    monkeypatch.setattr(worker_process, "_BACKOFF_S", 0.01)
    bundle, away = shutil.copytree(tiny_bundle, tmp_path / "bundle"), tmp_path / "away"
    engine.move(bundle)
    await engine.start()
    bundle.rename(away)
    engine.begun[0].signal(signal.SIGKILL)
    await until(lambda: len(engine.begun) > 4)
    assert not engine.running.done()
    assert "worker 1 died while serving: ended with SIGKILL; starts again in" in caplog.text
    assert "worker 1 could not start: " in caplog.text
    away.rename(bundle)
    await until(lambda: engine.begun[-1].is_serving)
    bundle.rename(away)
    for worker in (engine.begun[1], engine.begun[-1]):
        worker.signal(signal.SIGKILL)
    with pytest.raises(ValueError, match=r"could not start: .*; no worker serves.*giving up"):
        await asyncio.wait_for(engine.running, TIMEOUT_S)
