"""What runs cost is learnt wherever they run, also from those that were given up."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from engine.config import Config
from engine.execution.learning import LearningRunner
from engine.scheduling.batcher import TooLate
from engine.scheduling.costs import Work
from engine.scheduling.stages import Stage
from engine.telemetry.metrics import Metrics

WORK = Work(Stage.SCORE, (8,))


class ManualRunner:
    """Holds each run until the test says how it ends."""

    max_batch_size = 1
    concurrency = 4
    can_cancel = True

    def __init__(self) -> None:
        self.runs: list[asyncio.Future[list[str]]] = []

    async def run(self, work: Work, rows: Sequence[Any], finish_by_s: float) -> Sequence[object]:
        self.runs.append(asyncio.get_running_loop().create_future())
        return await self.runs[-1]

    async def close(self) -> None:
        pass


@pytest.fixture
def runner() -> ManualRunner:
    return ManualRunner()


@pytest.fixture
def models(runner, clock) -> LearningRunner:
    return LearningRunner(runner, Config(), clock, Metrics())


async def started(runner: ManualRunner, num: int) -> None:
    for _ in range(10):
        await asyncio.sleep(0)
    assert len(runner.runs) == num


async def test_a_run_counts_with_the_rows_that_ran_when_it_started(runner, models, clock):
    first = asyncio.ensure_future(models.run(WORK, ["a"]))
    await started(runner, 1)
    second = asyncio.ensure_future(models.run(WORK, ["b"]))
    await started(runner, 2)
    clock.advance(1)
    runner.runs[0].set_result(["A"])
    await first
    clock.advance(2)
    runner.runs[1].set_result(["B"])
    await second
    assert models.costs.predict_s(WORK, 1) == pytest.approx(1, rel=0.2)
    assert models.costs.predict_s(WORK, 2) == pytest.approx(3)


@pytest.mark.parametrize("end", ["cancelled", "too late"])
async def test_a_run_that_is_given_up_counts_only_if_it_took_longer_than_predicted(
    runner, models, clock, end
):
    models.costs.observe(WORK, 1, 1.0)
    for num, (elapsed_s, expected_s) in enumerate([(0.5, 1.0), (4.0, 4.0)], 1):
        task = asyncio.ensure_future(models.run(WORK, ["a"]))
        await started(runner, num)
        clock.advance(elapsed_s)
        if end == "cancelled":
            task.cancel()
        else:
            runner.runs[-1].set_exception(TooLate())
        with pytest.raises((asyncio.CancelledError, TooLate)):
            await task
        assert models.costs.predict_s(WORK, 1) == pytest.approx(expected_s)
