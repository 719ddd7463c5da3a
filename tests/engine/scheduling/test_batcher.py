"""Which rows leave, when and together, driven by hand.

Batches end when the test says so, time moves when it says so.
"""

import asyncio

import pytest

from engine.scheduling.batcher import Batcher, TooLate
from tests.engine.scheduling.conftest import COST_S, LATER_S, SOON_S, settled


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
