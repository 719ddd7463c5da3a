"""The batcher with several batches beside one another, driven by hand."""

import asyncio
from collections.abc import Sequence

import pytest

from engine.scheduling.batcher import Batcher, TooLate
from tests.engine.scheduling.conftest import COST_S, LATER_S, SOON_S, settled


class ManyHands:
    """A worker that runs several batches at a time; each is released by its first row."""

    def __init__(self) -> None:
        self.running: dict[object, asyncio.Future[None]] = {}
        self.finish_by_s: list[float] = []
        self.cancelled: list[object] = []

    def run(
        self, kind: str, rows: Sequence[object], finish_by_s: float
    ) -> asyncio.Future[list[str]]:
        return asyncio.ensure_future(self._run(kind, rows, finish_by_s))

    async def _run(self, kind: str, rows: Sequence[object], finish_by_s: float) -> list[str]:
        self.finish_by_s.append(finish_by_s)
        released = self.running[rows[0]] = asyncio.get_running_loop().create_future()
        try:
            await released
        except asyncio.CancelledError:
            self.cancelled.append(rows[0])
            raise
        finally:
            del self.running[rows[0]]
        return [f"{kind}:{row}" for row in rows]

    async def finish(self, row: object) -> None:
        self.running[row].set_result(None)
        await settled()


@pytest.fixture
def hands() -> ManyHands:
    return ManyHands()


@pytest.fixture
def two_at_a_time(hands, clock) -> Batcher[str]:
    return Batcher(
        hands.run,
        lambda kind, size: COST_S * size,
        max_batch_size=1,
        max_waiting=5,
        clock=clock,
        concurrency=2,
        can_cancel=True,
    )


@pytest.fixture
def submit_two(two_at_a_time, clock):
    def start(row: object, within_s: float = LATER_S) -> asyncio.Task:
        return asyncio.ensure_future(two_at_a_time.submit("k", row, clock.now_s() + within_s))

    return start


async def test_as_many_batches_run_as_are_allowed_and_the_next_follows_the_first_to_end(
    hands, submit_two
):
    tasks = {row: submit_two(row) for row in "abcd"}
    await settled()
    assert list(hands.running) == ["a", "b"]
    await hands.finish("b")
    assert list(hands.running) == ["a", "c"]
    assert (await tasks["b"]).result == "k:b"
    assert not tasks["a"].done()
    for row in "acd":
        await hands.finish(row)
    assert all(t.done() for t in tasks.values())


async def test_there_is_no_wait_while_there_is_room_and_then_until_the_first_should_end(
    hands, two_at_a_time, submit_two, clock
):
    tasks = [submit_two("a")]
    await settled()
    assert two_at_a_time.wait_s() == 0
    assert two_at_a_time.num_beside == 1  # the next would share the machine with "a"
    clock.advance(0.5)
    tasks.append(submit_two("b"))
    await settled()
    # "a" alone should take 1 s; "b" beside it 2 s.
    assert two_at_a_time.wait_s() == pytest.approx(0.5)
    assert two_at_a_time.num_beside == 1
    await hands.finish("a")
    await hands.finish("b")
    assert two_at_a_time.wait_s() == 0
    assert two_at_a_time.num_beside == 0
    assert all(t.done() for t in tasks)


async def test_what_runs_beside_a_row_counts_when_it_is_decided_whether_it_can_finish(
    hands, submit_two
):
    first = submit_two("a")
    await settled()
    with pytest.raises(TooLate):
        await submit_two("b", within_s=1.5)  # 1 s alone, 2 s beside "a"
    await hands.finish("a")
    assert first.done()


async def test_a_batch_whose_rows_are_all_withdrawn_is_cancelled_and_makes_room(hands, submit_two):
    tasks = {row: submit_two(row) for row in "abc"}
    await settled()
    tasks["a"].cancel()
    await settled()
    assert hands.cancelled == ["a"]
    assert list(hands.running) == ["b", "c"]
    await hands.finish("b")
    await hands.finish("c")
    assert (await tasks["c"]).result == "k:c"


async def test_a_row_withdrawn_before_its_batch_took_a_step_leaves_no_trace(
    hands, two_at_a_time, submit_two
):
    task = submit_two("a")
    await asyncio.sleep(0)  # submitted
    await asyncio.sleep(0)  # its batch exists
    task.cancel()
    await settled()
    assert hands.running == {}
    assert two_at_a_time.num_beside == 0


async def test_a_caller_who_can_wait_longer_does_not_join_a_run_that_will_be_given_up_before(
    hands, two_at_a_time, clock
):
    def start(within_s: float) -> asyncio.Task:
        at_s = clock.now_s() + within_s
        return asyncio.ensure_future(two_at_a_time.submit("k", "a", at_s, key="a"))

    hurried = start(SOON_S)
    await settled()
    joins, patient = start(SOON_S / 2), start(LATER_S)
    await settled()
    assert len(hands.finish_by_s) == 2
    for task in (hurried, joins, patient):
        task.cancel()
    await settled()
    assert hands.cancelled == ["a", "a"]
    assert not two_at_a_time.would_share("a", clock.now_s())


async def test_a_run_is_told_when_its_result_stops_being_useful_and_may_be_late(
    hands, submit_two, clock
):
    task = submit_two("a", within_s=SOON_S)
    await settled()
    assert hands.finish_by_s == [clock.now_s() + SOON_S]
    hands.running["a"].set_exception(TooLate())
    with pytest.raises(TooLate):
        await task


async def test_of_a_batch_that_is_late_and_one_that_soon_ends_the_latter_is_waited_for(
    hands, two_at_a_time, submit_two, clock
):
    tasks = [submit_two("stuck")]
    await settled()
    clock.advance(COST_S + 5)
    tasks.append(submit_two("soon"))
    await settled()
    assert two_at_a_time.wait_s() == pytest.approx(2 * COST_S)  # for two rows at a time
    for row in ("soon", "stuck"):
        await hands.finish(row)
    assert all(t.done() for t in tasks)
