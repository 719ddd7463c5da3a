"""A worker that does not come to serve, and when one that died is started again.

More of the processes: test_supervisor, and tests/e2e/test_workers.
"""

import asyncio
import signal
from collections.abc import AsyncIterator

import pytest

from engine.config import Config
from engine.serving import worker_process
from engine.serving.control import Start
from engine.serving.worker_process import Restarts, WorkerProcess


def test_the_delay_doubles_up_to_a_minute_and_hope_ends_with_the_sixth_death_in_a_row(clock):
    restarts = Restarts(clock.now_s)
    delays = []
    for _ in range(10):
        restarts.served()
        clock.advance(1)
        delays.append((restarts.delay_s(), restarts.is_hopeless))
    assert delays[:6] == [(0.5, False), (1, False), (2, False), (4, False), (8, False), (16, True)]
    assert delays[6:] == [(32, True), (64, True), (64, True), (64, True)]


def test_a_worker_that_served_for_a_minute_starts_anew(clock):
    restarts = Restarts(clock.now_s)
    assert [restarts.delay_s() for _ in range(3)] == [0.5, 1, 2]
    restarts.served()
    clock.advance(60)
    assert restarts.delay_s() == 0.5
    assert not restarts.is_hopeless


def test_time_spent_loading_is_no_time_spent_serving(clock):
    restarts = Restarts(clock.now_s)
    restarts.served()
    clock.advance(60)
    assert restarts.delay_s() == 0.5
    clock.advance(60)  # it never serves again
    assert restarts.delay_s() == 1


@pytest.fixture
async def hanging(tmp_path) -> AsyncIterator[WorkerProcess]:
    """One that stands still before it serves."""
    start = Start(
        number=3,
        config=Config(),
        active_key_id="k",
        secrets={"k": b"s" * 32},
        bundle=str(tmp_path),
        canary=None,
    )
    worker = await WorkerProcess.begin(start)
    worker.signal(signal.SIGSTOP)
    yield worker
    worker.signal(signal.SIGKILL)
    await worker.process.wait()


async def test_a_worker_that_hangs_while_it_starts_is_told_of_and_killed(
    hanging, caplog, monkeypatch
):
    monkeypatch.setattr(worker_process, "_SLOW_START_S", 1)
    status = await hanging.follow(lambda _: None, start_limit_s=2)
    assert status == -signal.SIGKILL
    assert hanging.why_failed == "did not serve within 2 s; killed"
    assert "worker 3 has been starting for 1 s; killed at 2 s" in caplog.text


async def test_without_a_limit_it_is_told_of_again_and_again(hanging, caplog, monkeypatch):
    monkeypatch.setattr(worker_process, "_SLOW_START_S", 1)
    following = asyncio.ensure_future(hanging.follow(lambda _: None, start_limit_s=None))
    async with asyncio.timeout(60):
        while "worker 3 has been starting for 2 s" not in caplog.messages:  # noqa: ASYNC110 - a log tells nobody
            await asyncio.sleep(0.01)
    hanging.signal(signal.SIGKILL)
    await following
    assert hanging.why_failed == ""
