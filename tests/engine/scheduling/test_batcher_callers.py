"""Those who wait for rows: who leaves, who is refused, whose batch fails, who shares a row."""

import asyncio
import gc
import weakref
from collections.abc import Sequence

import pytest

from engine.errors import QueueFull
from engine.scheduling.batcher import Batcher, BatchFailed, TooLate
from tests.engine.scheduling.conftest import COST_S, LATER_S, SOON_S, settled


async def test_a_withdrawn_row_never_reaches_the_model(worker, submit):
    submit("first")
    await settled()
    withdrawn, live = submit("withdrawn"), submit("live")
    await settled()
    withdrawn.cancel()
    await settled()
    await worker.finish()
    assert worker.batches[1:] == [("k", ["live"])]
    await worker.finish()
    assert live.done()


async def test_withdrawing_a_running_row_does_not_disturb_its_batch(worker, submit):
    withdrawn, live = submit("withdrawn"), submit("live")
    await settled()
    withdrawn.cancel()
    await settled()
    await worker.finish()
    assert (await live).result == "k:live"


async def test_a_full_queue_refuses_at_once_and_withdrawal_makes_room(worker, submit):
    submit("first")
    await settled()
    waiting = [submit(i) for i in range(5)]
    await settled()
    with pytest.raises(QueueFull):
        await submit("one too many")
    waiting[0].cancel()
    await settled()
    late = submit("fits now")
    await settled()
    assert not late.done()
    for _ in range(3):
        await worker.finish()
    assert (await late).result == "k:fits now"


async def test_a_failing_batch_fails_only_its_own_rows(worker, submit):
    doomed = submit("doomed")
    await settled()
    next_row = submit("next")
    await settled()
    await worker.finish(RuntimeError("model broke"))
    with pytest.raises(BatchFailed) as failure:
        await doomed
    assert str(failure.value.__cause__) == "model broke"
    await worker.finish()
    assert (await next_row).result == "k:next"


async def test_a_batch_with_too_few_results_fails(worker, submit):
    tasks = [submit("a"), submit("b")]
    await settled()
    await worker.finish(["only one"])
    for task in tasks:
        with pytest.raises(BatchFailed):
            await task


@pytest.fixture
def submit_equal(batcher, clock):
    def start(row: object, within_s: float = LATER_S) -> asyncio.Task:
        at_s = clock.now_s() + within_s
        return asyncio.ensure_future(batcher.submit("k", row, at_s, key=row))

    return start


async def test_rows_with_equal_keys_run_once_while_they_wait_and_while_they_run(
    worker, batcher, submit_equal, clock
):
    tasks = [submit_equal("first"), submit_equal("same"), submit_equal("same")]
    await settled()
    clock.advance(2)
    assert batcher.would_share("same", clock.now_s())
    tasks.append(submit_equal("same"))  # it runs already
    await settled()
    clock.advance(3)
    await worker.finish()
    assert worker.batches == [("k", ["first", "same"])]
    done = [await t for t in tasks]
    assert [d.result for d in done] == ["k:first", "k:same", "k:same", "k:same"]
    assert (done[1].run_s, done[3].run_s) == (5, 3)
    assert not batcher.would_share("same", clock.now_s())
    again = submit_equal("same")
    await settled()
    await worker.finish()
    assert len(worker.batches) == 2
    assert again.done()


async def test_an_equal_row_is_under_way_for_those_for_whom_it_should_be_in_time(
    worker, batcher, submit, submit_equal, clock
):
    tasks = [submit("first"), submit_equal("same")]
    await settled()  # both run, and take two seconds
    assert batcher.is_under_way("same", clock.now_s() + 2 * COST_S)
    assert not batcher.is_under_way("same", clock.now_s() + 1.9 * COST_S)
    tasks.append(submit_equal("waits"))
    await settled()
    assert batcher.is_under_way("waits", clock.now_s() + 3 * COST_S)
    assert not batcher.is_under_way("waits", clock.now_s() + 2.9 * COST_S)
    assert not batcher.is_under_way("other", clock.now_s() + LATER_S)
    await worker.finish()
    await worker.finish()
    assert all(t.done() for t in tasks)


async def test_a_caller_cancelled_as_its_batch_fails_leaves_no_complaint(worker, submit, caplog):
    gc.collect()  # complaints of what others left
    caplog.clear()
    task = submit("doomed")
    await settled()
    worker.running.set_exception(RuntimeError("model broke"))
    await asyncio.sleep(0)  # the caller is told, and has not woken up yet
    task.cancel()
    await settled()
    assert task.cancelled()
    del task, worker.running
    gc.collect()
    assert not caplog.records


async def test_a_shared_row_is_withdrawn_once_all_its_callers_left(worker, submit, submit_equal):
    tasks = [submit("first")]
    await settled()
    left = [submit_equal("left"), submit_equal("left")]
    kept = [submit_equal("kept"), submit_equal("kept")]
    await settled()
    for task in (*left, kept[0]):
        task.cancel()
    await settled()
    await worker.finish()
    assert worker.batches[1:] == [("k", ["kept"])]
    await worker.finish()
    assert (await kept[1]).result == "k:kept"
    assert all(t.done() for t in tasks)


async def test_the_most_urgent_caller_decides_the_place_of_a_shared_row(
    worker, submit, submit_equal
):
    tasks = [submit("first")]
    await settled()
    tasks += [submit_equal("shared"), submit("other", kind="x", within_s=50)]
    urgent = submit_equal("shared", within_s=SOON_S)
    await settled()
    await worker.finish()
    assert worker.batches[1:] == [("k", ["shared"])]
    await worker.finish()
    assert urgent.done()
    await worker.finish()
    assert all(t.done() for t in tasks)


async def test_a_shared_row_too_late_for_one_caller_still_runs_for_another(
    worker, submit, submit_equal, clock
):
    tasks = [submit("first")]
    await settled()
    hurried, patient = submit_equal("shared", within_s=SOON_S), submit_equal("shared")
    await settled()
    clock.advance(SOON_S)
    await worker.finish()
    with pytest.raises(TooLate):
        await hurried
    await worker.finish()
    assert (await patient).result == "k:shared"
    assert all(t.done() for t in tasks)


async def test_a_failing_shared_row_fails_for_all_its_callers(worker, submit_equal):
    tasks = [submit_equal("bad"), submit_equal("bad")]
    await settled()
    await worker.finish(RuntimeError("model broke"))
    for task in tasks:
        with pytest.raises(BatchFailed):
            await task


@pytest.mark.parametrize("failure", [ValueError("broken"), TooLate()])
async def test_what_failed_holds_nothing_in_a_cycle(clock, failure):
    """Else what the collector has been told to leave alone would stay for ever."""

    def run(kind: str, rows: Sequence[object], _: float) -> asyncio.Future[Sequence[object]]:
        async def fail() -> Sequence[object]:
            raise failure

        return asyncio.ensure_future(fail())

    batcher = Batcher(run, lambda *_: COST_S, max_batch_size=3, max_waiting=5, clock=clock)
    gc.disable()
    try:
        with pytest.raises((BatchFailed, TooLate)):
            await batcher.submit("k", "a row that fails", clock.now_s() + LATER_S)
        with pytest.raises(TooLate):
            await batcher.submit("k", "a row that would be late", clock.now_s())
        failure.__traceback__ = None  # the test's own reference
        await settled()
        left = weakref.ref(batcher)
        del batcher
        assert left() is None
    finally:
        gc.enable()
