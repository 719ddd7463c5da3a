"""The batcher, driven by hand: batches end when the test says so, time moves when it says so."""

import asyncio
import gc
import weakref
from collections.abc import Sequence

import pytest

from engine.errors import QueueFull
from engine.scheduling.batcher import Batcher, BatchFailed, TooLate

COST_S = 1.0
SOON_S, LATER_S = 10.0, 100.0


class ManualWorker:
    """Records the batches it is given and holds each until it is released."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, list[object]]] = []
        self.running: asyncio.Future[Sequence[object]]  # the last batch

    def run(self, kind: str, rows: Sequence[object], _: float) -> asyncio.Future[Sequence[object]]:
        self.batches.append((kind, list(rows)))
        self.running = asyncio.get_running_loop().create_future()
        return self.running

    async def finish(self, outcome: Sequence[object] | Exception = ()) -> None:
        kind, rows = self.batches[-1]
        if isinstance(outcome, Exception):
            self.running.set_exception(outcome)
        else:
            self.running.set_result(outcome or [f"{kind}:{row}" for row in rows])
        await settled()


async def settled() -> None:
    """Lets all callbacks run that can run."""
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.fixture
def worker() -> ManualWorker:
    return ManualWorker()


@pytest.fixture
def batcher(worker, clock) -> Batcher[str]:
    return Batcher(
        worker.run, lambda kind, size: COST_S * size, max_batch_size=3, max_waiting=5, clock=clock
    )


@pytest.fixture
def submit(batcher, clock):
    def start(row: object, *, kind: str = "k", within_s: float = LATER_S) -> asyncio.Task:
        return asyncio.ensure_future(batcher.submit(kind, row, clock.now_s() + within_s))

    return start


async def test_an_idle_worker_gets_a_row_at_once(worker, submit):
    task = submit("a")
    await settled()
    assert worker.batches == [("k", ["a"])]
    await worker.finish()
    assert (await task).result == "k:a"


async def test_rows_submitted_together_share_the_first_batch(worker, submit):
    tasks = [submit("a"), submit("b")]
    await settled()
    assert worker.batches == [("k", ["a", "b"])]
    await worker.finish()
    assert [(await t).result for t in tasks] == ["k:a", "k:b"]


async def test_rows_that_arrive_while_a_batch_runs_leave_together_up_to_the_limit(worker, submit):
    submit("first")
    await settled()
    tasks = [submit(i) for i in range(4)]
    await settled()
    assert len(worker.batches) == 1
    await worker.finish()
    assert worker.batches[1:] == [("k", [0, 1, 2])]
    await worker.finish()
    assert worker.batches[2:] == [("k", [3])]
    await worker.finish()
    assert all(t.done() for t in tasks)


async def test_the_most_urgent_row_leaves_first_and_only_its_kind_joins(worker, submit):
    submit("first")
    await settled()
    tasks = [
        submit("patient", kind="x"),
        submit("urgent", kind="y", within_s=SOON_S),
        submit("joins", kind="y"),
    ]
    await settled()
    await worker.finish()
    assert worker.batches[1:] == [("y", ["urgent", "joins"])]
    await worker.finish()
    assert worker.batches[2:] == [("x", ["patient"])]
    await worker.finish()
    assert all(t.done() for t in tasks)


async def test_an_expired_row_never_reaches_the_model(worker, submit, clock):
    submit("first")
    await settled()
    expired, live = submit("expired", within_s=SOON_S), submit("live")
    await settled()
    clock.advance(SOON_S)
    await worker.finish()
    assert worker.batches[1:] == [("k", ["live"])]
    with pytest.raises(TooLate):
        await expired
    await worker.finish()
    assert (await live).result == "k:live"


async def test_a_row_that_cannot_finish_in_time_never_reaches_the_model(worker, submit):
    with pytest.raises(TooLate):
        await submit("hopeless", within_s=COST_S / 2)
    assert worker.batches == []


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


async def test_a_batch_never_grows_past_what_its_most_urgent_row_can_afford(worker, submit):
    submit("first")
    await settled()
    tasks = [submit("urgent", within_s=2.5), submit("joins"), submit("would delay")]
    await settled()
    await worker.finish()
    assert worker.batches[1:] == [("k", ["urgent", "joins"])]  # three rows would take 3 s
    await worker.finish()
    await worker.finish()
    assert all(t.done() for t in tasks)


async def test_what_a_woken_caller_submits_next_goes_before_less_urgent_rows(
    worker, batcher, clock
):
    async def two_stages() -> None:
        finish_by_s = clock.now_s() + SOON_S
        await batcher.submit("stage 1", "a", finish_by_s)
        await batcher.submit("stage 2", "a", finish_by_s)

    older = asyncio.ensure_future(two_stages())
    await settled()
    younger = asyncio.ensure_future(batcher.submit("stage 1", "b", clock.now_s() + LATER_S))
    await settled()
    await worker.finish()
    assert worker.batches[1:] == [("stage 2", ["a"])]
    await worker.finish()
    await worker.finish()
    await asyncio.gather(older, younger)


async def test_the_next_batch_begins_as_soon_as_those_just_answered_have_gone_on(worker, submit):
    """One turn of the loop answers them, in the next they go on, and then it begins."""
    tasks = [submit("first")]
    await settled()
    tasks.append(submit("second"))
    await settled()
    worker.running.set_result(["a result"])
    for _ in range(2):
        assert len(worker.batches) == 1
        await asyncio.sleep(0)
    assert worker.batches[1:] == [("k", ["second"])]
    await worker.finish()
    assert all(t.done() for t in tasks)


async def test_a_row_for_which_this_batch_would_end_too_late_waits_for_the_next(worker, clock):
    """Costs rise in steps, so a batch that a row would make too long may be followed in time."""
    batcher = Batcher[str](
        worker.run,
        lambda _, size: COST_S * (1 << (size - 1).bit_length()),
        max_batch_size=8,
        max_waiting=9,
        clock=clock,
    )

    def start(row: str, flow: str, within_s: float) -> asyncio.Task:
        at_s = clock.now_s() + within_s
        return asyncio.ensure_future(batcher.submit("k", row, at_s, flow=flow))

    tasks = [start("first", "b", LATER_S)]
    await settled()
    tasks += [start("a0", "a", LATER_S), start("a1", "a", LATER_S), start("urgent", "b", 4.5)]
    await settled()
    clock.advance(COST_S)
    await worker.finish()
    assert worker.batches[1:] == [("k", ["a0", "a1"])]  # three rows would take 4 s, of 3.5
    clock.advance(2 * COST_S)
    await worker.finish()
    assert worker.batches[2:] == [("k", ["urgent"])]
    await worker.finish()
    assert [(await t).result for t in tasks] == ["k:first", "k:a0", "k:a1", "k:urgent"]


async def test_the_result_says_how_long_the_row_waited_and_ran(worker, submit, clock):
    submit("first")
    await settled()
    task = submit("second")
    await settled()
    clock.advance(2)
    await worker.finish()
    clock.advance(3)
    await worker.finish()
    done = await task
    assert (done.queue_s, done.run_s, done.batch_size) == (2, 3, 1)


async def test_the_wait_lasts_until_the_running_batch_should_end_and_what_waits_is_listed(
    worker, batcher, submit, clock
):
    assert batcher.wait_s() == 0
    tasks = [submit("first")]
    await settled()
    clock.advance(0.25)
    assert batcher.wait_s() == pytest.approx(0.75)
    tasks += [submit("a"), submit("b", kind="other", within_s=SOON_S)]
    await settled()
    assert sorted((w.kind, w.finish_by_s - clock.now_s()) for w in batcher.waiting()) == [
        ("k", pytest.approx(LATER_S)),
        ("other", pytest.approx(SOON_S)),
    ]
    for _ in range(3):
        await worker.finish()
    assert all(t.done() for t in tasks)


async def test_a_batch_that_is_late_is_taken_to_last_as_long_again(worker, batcher, submit, clock):
    task = submit("stuck")
    await settled()
    clock.advance(COST_S + 5)
    assert batcher.wait_s() == pytest.approx(5)
    await worker.finish()
    assert batcher.wait_s() == 0
    assert task.done()


async def test_flows_take_turns_by_time_had_and_the_most_urgent_row_of_a_flow_is_next(
    worker, batcher, clock
):
    def start(row: str, flow: str, within_s: float) -> asyncio.Task:
        at_s = clock.now_s() + within_s
        return asyncio.ensure_future(batcher.submit(row, row, at_s, flow=flow))  # a kind each

    tasks = [start("first", "flood", LATER_S)]
    await settled()
    tasks += [start(f"flood {i}", "flood", SOON_S + i) for i in range(3)]
    tasks += [start("calm, later", "calm", LATER_S), start("calm, sooner", "calm", 50)]
    await settled()
    for _ in range(6):
        await worker.finish()
    assert [rows for _, rows in worker.batches] == [
        ["first"],
        ["calm, sooner"],
        ["flood 0"],
        ["calm, later"],
        ["flood 1"],
        ["flood 2"],
    ]
    assert all(t.done() for t in tasks)


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
