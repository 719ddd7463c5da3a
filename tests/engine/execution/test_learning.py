"""What runs cost is learnt wherever they run, also from those that were given up."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from engine.config import Config
from engine.execution.learning import LearningRunner
from engine.execution.runner import Results
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
    is_out = False

    def __init__(self) -> None:
        self.runs: list[Results] = []

    def run(self, work: Work, rows: Sequence[Any], finish_by_s: float) -> Results:
        self.runs.append(asyncio.get_running_loop().create_future())
        return self.runs[-1]

    async def close(self) -> None:
        pass


@pytest.fixture
def runner() -> ManualRunner:
    return ManualRunner()


@pytest.fixture
def models(runner, clock) -> LearningRunner:
    return LearningRunner(runner, Config(), clock, Metrics())


async def settled() -> None:
    """Lets all callbacks run that can run."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_run_counts_with_the_rows_that_ran_when_it_started(runner, models, clock):
    for row in "ab":
        models.run(WORK, [row])
    clock.advance(1)
    runner.runs[0].set_result(["A"])
    await settled()
    clock.advance(2)
    runner.runs[1].set_result(["B"])
    await settled()
    assert models.costs.predict_s(WORK, 1) == pytest.approx(1, rel=0.2)
    assert models.costs.predict_s(WORK, 2) == pytest.approx(3)


@pytest.mark.parametrize("end", ["cancelled", "too late"])
async def test_a_run_that_is_given_up_counts_only_if_it_took_longer_than_predicted(
    runner, models, clock, end
):
    models.costs.observe(WORK, 1, 1.0)
    for elapsed_s, expected_s in [(0.5, 1.0), (4.0, 4.0)]:
        run = models.run(WORK, ["a"])
        clock.advance(elapsed_s)
        if end == "cancelled":
            run.cancel()
        else:
            run.set_exception(TooLate())
        await settled()
        assert models.costs.predict_s(WORK, 1) == pytest.approx(expected_s)


async def test_of_batches_that_go_on_failing_one_is_logged_now_and_then(
    runner, models, clock, caplog
):
    async def fail(work: Work) -> None:
        models.run(work, ["a", "b"])
        runner.runs[-1].set_exception(RuntimeError("broken"))
        await settled()

    for _ in range(30):
        await fail(WORK)
        clock.advance(0.1)
    await fail(Work(Stage.ENCODE))
    clock.advance(10)
    await fail(WORK)
    assert [r.getMessage() for r in caplog.records] == [
        "score: a batch of 2 rows failed",
        "encode: a batch of 2 rows failed",
        "score: a batch of 2 rows failed, and 29 others since the last one that was logged",
    ]
    assert all(r.exc_info for r in caplog.records)
