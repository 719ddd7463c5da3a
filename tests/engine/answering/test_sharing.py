"""A generation is shared by equal questions, at the same time and later."""

import asyncio
import dataclasses
import threading
from collections.abc import Callable

from engine.execution.bundle import Bundle
from engine.scheduling.stages import Left, Omission, Stage, Why
from engine.telemetry.metrics import Lookup, Metrics
from tests.engine.answering.conftest import ask, make, texts, without


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - nothing tells
        await asyncio.sleep(0)


def num_lookups(metrics: Metrics, result: Lookup) -> float:
    labels = {"cache": "generation", "result": result}
    return metrics.registry.get_sample_value("queryrec_cache_lookups_total", labels) or 0.0


class Counting:
    """A generator that counts its rows and holds the first batch until it is released."""

    def __init__(self, bundle: Bundle) -> None:
        self.may_finish = threading.Event()
        self.num_rows = 0
        assert bundle.generator is not None
        self._generator = bundle.generator

    def run(self, rows):
        self.num_rows += len(rows)
        assert self.may_finish.wait(30)
        return self._generator.run(rows)


async def test_equal_questions_at_the_same_time_share_a_generation(bundle, runtime):
    generator, metrics = Counting(bundle), Metrics()
    pipeline = make(dataclasses.replace(bundle, generator=generator), runtime, metrics=metrics)
    tasks = [asyncio.ensure_future(ask(pipeline, "wireless mouse")) for _ in range(5)]
    await until(lambda: num_lookups(metrics, "shared") == 4)
    generator.may_finish.set()
    answers = await asyncio.gather(*tasks)
    assert generator.num_rows == 1
    assert {a.omissions for a in answers} == {()}
    assert len({a.suggestions for a in answers}) == 1
    await ask(pipeline, "wireless mouse")
    found = {result: num_lookups(metrics, result) for result in ("miss", "shared", "hit")}
    assert found == {"miss": 1, "shared": 4, "hit": 1}


async def test_an_equal_question_that_is_cancelled_takes_nothing_from_the_others(bundle, runtime):
    generator, metrics = Counting(bundle), Metrics()
    pipeline = make(dataclasses.replace(bundle, generator=generator), runtime, metrics=metrics)
    tasks = [asyncio.ensure_future(ask(pipeline, "wireless mouse")) for _ in range(3)]
    await until(lambda: num_lookups(metrics, "shared") == 2)
    tasks[0].cancel()
    await asyncio.wait(tasks[:1])
    generator.may_finish.set()
    answers = await asyncio.gather(*tasks[1:])
    assert generator.num_rows == 1
    assert {a.omissions for a in answers} == {()}


async def test_a_better_generation_that_is_under_way_is_shared_whatever_the_plan(bundle, runtime):
    generator, metrics = Counting(bundle), Metrics()
    pipeline = make(dataclasses.replace(bundle, generator=generator), runtime, metrics=metrics)
    full, *_ = bundle.rungs["completion"]
    first = asyncio.ensure_future(ask(pipeline, "wireless m", scenario="completion"))
    await until(lambda: generator.num_rows == 1)
    for _ in range(3):
        pipeline.worker.models.costs.observe(full.work, 1, 3600.0)  # a plan would give it up
    second = asyncio.ensure_future(ask(pipeline, "wireless m", scenario="completion"))
    await until(lambda: num_lookups(metrics, "shared") == 1)
    generator.may_finish.set()
    answers = await asyncio.gather(first, second)
    assert generator.num_rows == 1
    assert {a.omissions for a in answers} == {()}


async def test_a_generation_that_is_late_is_left_out_and_helps_the_next_request(bundle, runtime):
    class Slow:
        def __init__(self) -> None:
            self.may_finish = threading.Event()

        def run(self, rows):
            assert self.may_finish.wait(30)
            return bundle.generator.run(rows)

    slow = Slow()
    pipeline = make(dataclasses.replace(bundle, generator=slow), runtime)
    answer = await ask(pipeline, "wireless mouse", scenario="completion", budget_s=2.0)
    assert answer.suggestions
    reasons = {o.stage: o.reason for o in answer.omissions}
    assert reasons[Stage.GENERATE] is Why.BUDGET  # nothing was ahead of it
    slow.may_finish.set()
    await runtime.run(lambda: None)  # the model thread has finished what it was doing
    again = await ask(pipeline, "wireless mouse", scenario="completion")
    assert Omission(Stage.GENERATE, Left.SKIPPED, Why.CACHED) in again.omissions


async def test_the_session_changes_what_is_generated_and_is_part_of_the_cache_key(bundle, runtime):
    pipeline = make(without(bundle, "index"), runtime)
    alone = await ask(pipeline, "wireless mouse")
    with_session = await ask(pipeline, "wireless mouse", session_queries=("kitchen lamp",))
    assert Omission(Stage.GENERATE, Left.SKIPPED, Why.CACHED) not in with_session.omissions
    again = await ask(pipeline, "wireless mouse")
    assert Omission(Stage.GENERATE, Left.SKIPPED, Why.CACHED) in again.omissions
    assert texts(again) == texts(alone)
